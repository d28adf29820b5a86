//! A certificate authority of our own, for machines where no other is at hand: a developer's, and the local stack.
//!
//! Owns two files, `ca.pem` and `ca.key` (0600), and how certificates under them look: extensions are those that strict verifiers ask
//! for (RFC 5280: key identifiers, critical basic constraints and key usage). A certificate is made anew before it ends, under the same
//! authority. Callers see to it that no two make the same files at the same time.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::config::TlsFiles;

pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_DAYS: u32 = 3650;
/// What clients accept at most (CA/Browser Forum's 398 days), less a little.
const LEAF_DAYS: u32 = 390;
const RENEW_AFTER_DAYS: u32 = 300;

/// Certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
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

/// Signs certificates.
pub struct Authority {
    cert: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    is_new: bool,
}

/// Whom a certificate is for, and what for.
#[derive(Debug, Clone)]
pub struct Leaf<'a> {
    /// Its common name.
    pub name: &'a str,
    /// Names and addresses that clients reach it by.
    pub hosts: &'a [&'a str],
    /// Whether it also proves who a client is.
    pub client: bool,
}

impl Authority {
    /// Takes the authority of this directory, or makes it, called `name`.
    pub fn open(dir: &Path, name: &str) -> Result<Self, AuthorityError> {
        let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        let is_new = !(cert.exists() && key.exists());
        let pair = if is_new {
            KeyPair::generate()?
        } else {
            KeyPair::from_pem(&fs::read_to_string(&key).map_err(failed(&key))?)?
        };
        let params = ca_params(name);
        if is_new {
            write(&key, &pair.serialize_pem(), 0o600)?;
            write(&cert, &params.self_signed(&pair)?.pem(), 0o644)?;
        }
        Ok(Self { cert, issuer: Issuer::new(params, pair), is_new })
    }

    /// Whom clients trust.
    #[must_use]
    pub fn cert(&self) -> &Path {
        &self.cert
    }

    /// Makes a certificate and its key (0600), unless they are there, of this authority, and young.
    pub fn issue(&self, leaf: &Leaf<'_>, files: &TlsFiles) -> Result<(), AuthorityError> {
        if !self.is_new && files.key.exists() && !is_old(&files.cert) {
            return Ok(());
        }
        let pair = KeyPair::generate()?;
        let certificate = leaf_params(leaf)?.signed_by(&pair, &self.issuer)?;
        write(&files.key, &pair.serialize_pem(), 0o600)?;
        write(&files.cert, &certificate.pem(), 0o644)
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
    // A day back, for clocks that are a little behind.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * days).into();
}

fn is_old(cert: &Path) -> bool {
    let age = fs::metadata(cert).and_then(|data| data.modified()).map(|made| made.elapsed().unwrap_or_default());
    age.map_or(true, |age| age > DAY * RENEW_AFTER_DAYS)
}

/// Writes beside and renames, so that nobody reads half a file.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
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
    written().map_err(failed(path))
}
