//! A local certificate authority, for a developer's machine and the local stack.
//!
//! Owns two files, `ca.pem` and `ca.key` (0600), and the extensions that strict verifiers require (RFC 5280: key
//! identifiers, critical basic constraints and key usage). A certificate is renewed before it expires.
//! INVARIANT: next to a certificate is a file that says what it was issued for and by which authority. It is written
//! last and removed first, so that a pair that a crash left incomplete has none and is issued again.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::config::TlsFiles;

const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_DAYS: u32 = 3650;
/// A little less than the most that clients accept (398 days, CA/Browser Forum).
const LEAF_DAYS: u32 = 390;
const RENEW_AFTER_DAYS: u32 = 300;

/// A certificate could not be issued.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("cannot use `{path}`")]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A key or certificate could not be generated.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

/// A certificate authority in a directory.
pub struct Authority {
    cert: PathBuf,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    is_new: bool,
}

/// The subject and purpose of a certificate.
#[derive(Debug, Clone)]
pub struct Leaf<'a> {
    /// Its common name.
    pub name: &'a str,
    /// The names and addresses of the server.
    pub hosts: &'a [&'a str],
    /// Whether it is also a client certificate.
    pub client: bool,
}

impl Authority {
    /// Opens the authority in this directory, or creates it with this common name. If only its certificate is missing,
    /// a new one is made for the key.
    pub fn open(dir: &Path, name: &str) -> Result<Self, AuthorityError> {
        let cert = dir.join("ca.pem");
        let key = dir.join("ca.key");
        let found = read_optional(&key)?;
        let is_new = found.is_none();
        let pair = match found {
            Some(pem) => KeyPair::from_pem(&pem)?,
            None => KeyPair::generate()?,
        };
        let params = ca_params(name);
        let pem = match read_optional(&cert)?.filter(|_| !is_new) {
            Some(pem) => pem,
            None => {
                let pem = params.self_signed(&pair)?.pem();
                // The key is written last, so that a new key never stays with the old certificate.
                write(&cert, &pem, 0o644)?;
                pem
            }
        };
        if is_new {
            write(&key, &pair.serialize_pem(), 0o600)?;
        }
        Ok(Self { cert, pem, issuer: Issuer::new(params, pair), is_new })
    }

    /// Whether it was created by this call, so that clients do not trust it yet.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The path of the certificate that clients must trust.
    #[must_use]
    pub fn cert(&self) -> &Path {
        &self.cert
    }

    /// The hosts of the certificate that was last issued to these files; none if there was none.
    pub fn last_hosts(files: &TlsFiles) -> Result<Vec<String>, AuthorityError> {
        let note = read_optional(&files.cert.with_extension("issued"))?.unwrap_or_default();
        let hosts =
            note.split_once("hosts: [").and_then(|(_, rest)| rest.split_once(']')).map_or("", |(hosts, _)| hosts);
        Ok(hosts.split(", ").map(|host| host.trim_matches('"').to_owned()).filter(|host| !host.is_empty()).collect())
    }

    /// Issues a certificate and its key (0600), unless a recent pair of this authority for the same leaf exists. Must
    /// not run concurrently for the same files.
    pub fn issue(&self, leaf: &Leaf<'_>, files: &TlsFiles) -> Result<(), AuthorityError> {
        let note_path = files.cert.with_extension("issued");
        let note = format!("{leaf:?}\n{}", self.pem);
        if files.key.exists() && !is_old(&files.cert) && read_optional(&note_path)?.as_ref() == Some(&note) {
            return Ok(());
        }
        remove_if_present(&note_path).map_err(failed(&note_path))?;
        let pair = KeyPair::generate()?;
        let certificate = leaf_params(leaf)?.signed_by(&pair, &self.issuer)?;
        write(&files.key, &pair.serialize_pem(), 0o600)?;
        write(&files.cert, &certificate.pem(), 0o644)?;
        write(&note_path, &note, 0o644)
    }
}

fn read_optional(path: &Path) -> Result<Option<String>, AuthorityError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path)(error)),
    }
}

fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> AuthorityError {
    let path = path.to_owned();
    move |source| AuthorityError::File { path, source }
}

fn ca_params(common: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_days(&mut params, CA_DAYS);
    params
}

fn leaf_params(leaf: &Leaf<'_>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(leaf.name);
    let host = |host: &&str| match host.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ia5String::try_from(*host).map(SanType::DnsName),
    };
    params.subject_alt_names = leaf.hosts.iter().map(host).collect::<Result<_, _>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    if leaf.client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    params.use_authority_key_identifier_extension = true;
    set_days(&mut params, LEAF_DAYS);
    Ok(params)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn set_days(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    // A day early, for clocks that are behind.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * days).into();
}

fn is_old(cert: &Path) -> bool {
    let age = fs::metadata(cert).and_then(|data| data.modified()).map(|made| made.elapsed().unwrap_or_default());
    age.map_or(true, |age| age > DAY * RENEW_AFTER_DAYS)
}

/// Writes a temporary file and renames it, so that no reader sees half of it. Syncs, so that files appear in order.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let written = || -> io::Result<()> {
        remove_if_present(&temporary)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new(".")))?.sync_all()
    };
    written().map_err(failed(path))
}

const LOCALHOST: Leaf<'static> = Leaf { name: "localhost", hosts: &["localhost", "127.0.0.1", "::1"], client: false };

/// Creates the missing files of a local CA and a certificate for localhost in `dir`. Returns the server's files and the
/// path of the CA's certificate. Gateways may start concurrently: under a file lock one creates the files.
pub fn dev_tls(dir: &Path) -> Result<(TlsFiles, PathBuf), AuthorityError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir))?;
    let lock_path = dir.join(".lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
    let lock = lock.map_err(failed(&lock_path))?;
    lock.lock().map_err(failed(&lock_path))?;
    let authority = Authority::open(dir, "Stage0 development CA")?;
    let files = TlsFiles { cert: dir.join("server.pem"), key: dir.join("server.key") };
    authority.issue(&LOCALHOST, &files)?;
    Ok((files, authority.cert().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const LEAF: Leaf<'static> = Leaf { name: "x", hosts: &["localhost"], client: false };

    fn files(dir: &Path) -> TlsFiles {
        TlsFiles { cert: dir.join("x.pem"), key: dir.join("x.key") }
    }

    fn issued(dir: &Path, leaf: &Leaf<'_>) -> String {
        let files = files(dir);
        Authority::open(dir, "test").unwrap().issue(leaf, &files).unwrap();
        crate::tls::check_pair(&files).unwrap();
        fs::read_to_string(files.cert).unwrap()
    }

    #[test]
    fn a_certificate_of_another_authority_or_for_other_hosts_is_reissued() {
        let dir = tempfile::tempdir().unwrap();
        let first = issued(dir.path(), &LEAF);
        assert_eq!(issued(dir.path(), &LEAF), first);
        let second = issued(dir.path(), &Leaf { hosts: &["localhost", "other"], ..LEAF });
        assert_ne!(second, first);
        assert_eq!(Authority::last_hosts(&files(dir.path())).unwrap(), ["localhost", "other"]);
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(Authority::open(dir.path(), "test").unwrap().is_new());
        // As if the process had ended right after it made the authority.
        assert!(!Authority::open(dir.path(), "test").unwrap().is_new());
        assert_ne!(issued(dir.path(), &Leaf { hosts: &["localhost", "other"], ..LEAF }), second);
    }

    #[test]
    fn a_pair_that_a_crash_left_incomplete_is_reissued() {
        let dir = tempfile::tempdir().unwrap();
        issued(dir.path(), &LEAF);
        // The note is removed first; then comes a new key.
        fs::remove_file(dir.path().join("x.issued")).unwrap();
        fs::write(dir.path().join("x.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        issued(dir.path(), &LEAF);
    }

    #[test]
    fn an_authority_whose_certificate_is_gone_keeps_its_key() {
        let dir = tempfile::tempdir().unwrap();
        issued(dir.path(), &LEAF);
        let key = fs::read(dir.path().join("ca.key")).unwrap();
        fs::remove_file(dir.path().join("ca.pem")).unwrap();
        assert!(!Authority::open(dir.path(), "test").unwrap().is_new());
        assert_eq!(fs::read(dir.path().join("ca.key")).unwrap(), key);
    }

    #[test]
    fn the_second_start_uses_the_files_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let (files, ca) = dev_tls(dir.path()).unwrap();
        let read = |p: &Path| fs::read_to_string(p).unwrap();
        let first = (read(&files.cert), read(&files.key), read(&ca));
        let (again, _) = dev_tls(dir.path()).unwrap();
        assert_eq!(first, (read(&again.cert), read(&again.key), read(&ca)));
        for key in ["server.key", "ca.key"] {
            assert_eq!(fs::metadata(dir.path().join(key)).unwrap().permissions().mode() & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn gateways_may_start_concurrently() {
        let dir = tempfile::tempdir().unwrap();
        let certs: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| dev_tls(dir.path()).map(|(f, _)| fs::read_to_string(f.cert).unwrap()).unwrap()))
                .collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(certs.iter().all(|cert| *cert == certs[0]));
    }

    #[test]
    fn an_old_certificate_is_renewed_under_the_same_ca() {
        let dir = tempfile::tempdir().unwrap();
        let (files, ca) = dev_tls(dir.path()).unwrap();
        let (cert, authority) = (fs::read(&files.cert).unwrap(), fs::read(&ca).unwrap());
        fs::File::options()
            .append(true)
            .open(&files.cert)
            .unwrap()
            .set_modified(SystemTime::now() - DAY * 301)
            .unwrap();
        dev_tls(dir.path()).unwrap();
        assert_ne!(cert, fs::read(&files.cert).unwrap());
        assert_eq!(authority, fs::read(&ca).unwrap());
    }
}
