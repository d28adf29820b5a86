//! Certificates for a developer's machine: a local CA and a certificate for localhost, made once and shared.
//!
//! Owns a directory with `ca.pem`, `ca.key`, `server.pem` and `server.key` (keys 0600). Several gateways may start on it at the same
//! time: a file lock lets one make the files, the others use them. The server's certificate is made anew before it ends.
//! Extensions are those that strict verifiers ask for (RFC 5280: key identifiers, critical basic constraints and key usage).

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
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
/// What clients accept at most (CA/Browser Forum's 398 days), less a little.
const SERVER_DAYS: u32 = 390;
const RENEW_AFTER_DAYS: u32 = 300;

/// The development certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DevTlsError {
    /// A file cannot be read or written.
    #[error("cannot use `{path}`")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

/// Makes what is missing in `dir`; gives the server's files and the CA's certificate.
pub fn dev_tls(dir: &Path) -> Result<(TlsFiles, PathBuf), DevTlsError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DevTlsError::File { path, source }
    };
    fs::create_dir_all(dir).map_err(failed(dir))?;
    let lock_path = dir.join(".lock");
    let lock = File::create(&lock_path).map_err(failed(&lock_path))?;
    // Held until this function returns; the system releases it when a process dies.
    lock.lock().map_err(failed(&lock_path))?;

    let (ca_cert, ca_key) = (dir.join("ca.pem"), dir.join("ca.key"));
    let files = TlsFiles { cert: dir.join("server.pem"), key: dir.join("server.key") };
    let new_ca = !(ca_cert.exists() && ca_key.exists());
    let ca_pair = if new_ca {
        KeyPair::generate()?
    } else {
        KeyPair::from_pem(&fs::read_to_string(&ca_key).map_err(failed(&ca_key))?)?
    };
    let ca = ca_params();
    if new_ca {
        write(&ca_key, &ca_pair.serialize_pem(), 0o600)?;
        write(&ca_cert, &ca.self_signed(&ca_pair)?.pem(), 0o644)?;
    }
    if new_ca || !files.key.exists() || is_old(&files.cert) {
        let server_pair = KeyPair::generate()?;
        let issuer = Issuer::new(ca, ca_pair);
        let certificate = server_params()?.signed_by(&server_pair, &issuer)?;
        write(&files.key, &server_pair.serialize_pem(), 0o600)?;
        write(&files.cert, &certificate.pem(), 0o644)?;
    }
    Ok((files, ca_cert))
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("Stage0 development CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_days(&mut params, CA_DAYS);
    params
}

fn server_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("localhost");
    params.subject_alt_names = vec![
        SanType::DnsName(Ia5String::try_from("localhost")?),
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    set_days(&mut params, SERVER_DAYS);
    Ok(params)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn set_days(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    // A day back, for clocks that are a little behind.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * days).into();
}

fn is_old(cert: &Path) -> bool {
    let age = fs::metadata(cert).and_then(|data| data.modified()).map(|made| made.elapsed().unwrap_or_default());
    age.map_or(true, |age| age > DAY * RENEW_AFTER_DAYS)
}

/// Writes beside and renames, so that nobody reads half a file.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), DevTlsError> {
    let beside = path.with_extension("new");
    let written = || -> io::Result<()> {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    written().map_err(|source| DevTlsError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_second_start_uses_what_the_first_made() {
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
    fn many_gateways_may_start_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let made: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| dev_tls(dir.path()).map(|(f, _)| fs::read_to_string(f.cert).unwrap()).unwrap()))
                .collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(made.iter().all(|cert| *cert == made[0]));
    }

    #[test]
    fn an_old_certificate_is_renewed_under_the_same_ca() {
        let dir = tempfile::tempdir().unwrap();
        let (files, ca) = dev_tls(dir.path()).unwrap();
        let (cert, authority) = (fs::read(&files.cert).unwrap(), fs::read(&ca).unwrap());
        File::options().append(true).open(&files.cert).unwrap().set_modified(SystemTime::now() - DAY * 301).unwrap();
        dev_tls(dir.path()).unwrap();
        assert_ne!(cert, fs::read(&files.cert).unwrap());
        assert_eq!(authority, fs::read(&ca).unwrap());
    }
}
