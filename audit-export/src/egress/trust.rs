//! Which certificate authorities are trusted: the system's and those of one file.
//!
//! Verification cannot be switched off. A file that cannot be used stops the start; a system without authorities only
//! logs a warning, as endpoints signed by the file's authorities may still be reached.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{ClientConfig, RootCertStore};

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("cannot read the CA file `{path}`")]
    Read { path: PathBuf, source: pem::Error },
    #[error("the CA file `{0}` holds no certificate")]
    Empty(PathBuf),
    #[error("the CA file `{path}` holds a certificate that cannot be used")]
    Certificate { path: PathBuf, source: rustls::Error },
    #[error("cannot configure TLS")]
    Tls(#[source] rustls::Error),
}

pub(super) fn client_config(extra_ca: Option<&Path>) -> Result<ClientConfig, TrustError> {
    let system = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A system's bundle may hold entries that are not certificates; the others are usable.
    let (_, unusable) = roots.add_parsable_certificates(system.certs);
    if unusable > 0 || !system.errors.is_empty() {
        let errors = system.errors;
        tracing::warn!(unusable, ?errors, "some of the system's certificate authorities cannot be used");
    }
    if let Some(path) = extra_ca {
        for certificate in certificates(path)? {
            let failed = |source| TrustError::Certificate { path: path.to_owned(), source };
            roots.add(certificate).map_err(failed)?;
        }
    }
    if roots.is_empty() {
        tracing::warn!("no certificate authority is known: no endpoint can be reached over https");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TrustError::Tls)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let failed = |source| TrustError::Read { path: path.to_owned(), source };
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if found.is_empty() { Err(TrustError::Empty(path.to_owned())) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_that_is_missing_empty_or_damaged_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let begin = "-----BEGIN CERTIFICATE-----\n";
        let missing = dir.path().join("missing.pem");
        assert!(matches!(client_config(Some(&missing)), Err(TrustError::Read { path, .. }) if path == missing));
        let empty = file("empty.pem", "");
        assert!(matches!(client_config(Some(&empty)), Err(TrustError::Empty(path)) if path == empty));
        let half = file("half.pem", begin);
        assert!(matches!(client_config(Some(&half)), Err(TrustError::Read { path, .. }) if path == half));
        let damaged = file("damaged.pem", &format!("{begin}AAAA\n-----END CERTIFICATE-----\n"));
        assert!(matches!(client_config(Some(&damaged)), Err(TrustError::Certificate { path, .. }) if path == damaged));
    }
}
