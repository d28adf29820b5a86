//! The server's certificate: loaded at start, watched, and replaced without a restart.
//!
//! A certificate that cannot be used is an error at start; later it is logged and the old one stays in use.

use std::error::Error;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use stage0_secret_file::{Exposed, check_secret_file};

use crate::config::TlsFiles;

mod authority;

pub use authority::{Authority, AuthorityError, Leaf, dev_tls};

const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// A certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds no PEM of the wanted kind.
    #[error("cannot read {what} from `{path}`")]
    Read {
        /// A certificate or a private key.
        what: &'static str,
        /// The path of the file.
        path: String,
        /// The reason.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate file holds no certificate.
    #[error("`{0}` holds no certificate")]
    NoCertificate(String),
    /// The private key is readable for others.
    #[error("{0}")]
    Exposed(Exposed),
    /// Key and certificate do not belong together, or the key is of an unknown kind.
    #[error("the certificate and the private key cannot be used together")]
    Mismatch(#[source] rustls::Error),
}

/// The certificate in use.
#[derive(Debug)]
pub struct Certificate {
    files: TlsFiles,
    /// Taken before the files were read, so that a change meanwhile is noticed.
    loaded: Stamps,
    current: RwLock<Arc<CertifiedKey>>,
}

/// Of each file: when it was changed, in seconds and nanoseconds, and its length.
type Stamps = [Option<(i64, i64, u64)>; 2];

impl Certificate {
    /// Reads the files at start.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let loaded = stamps(&files);
        let current = RwLock::new(Arc::new(read(&files)?));
        Ok(Arc::new(Self { files, loaded, current }))
    }

    /// Reloads the files when they change. Never returns.
    pub async fn watch(self: Arc<Self>) {
        let mut seen = self.loaded;
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        loop {
            ticks.tick().await;
            let files = self.files.clone();
            match tokio::task::spawn_blocking(move || stamps(&files)).await {
                Ok(stamp) if stamp != seen => {
                    seen = stamp;
                    self.reload().await;
                }
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "cannot check the certificate for changes"),
            }
        }
    }

    async fn reload(&self) {
        let files = self.files.clone();
        match tokio::task::spawn_blocking(move || read(&files)).await {
            Ok(Ok(new)) => {
                if let Ok(mut current) = self.current.write() {
                    *current = Arc::new(new);
                }
                tracing::info!(cert = %self.files.cert.display(), "certificate reloaded");
            }
            // The two files change one after the other; the pair matches after the second change.
            Ok(Err(error)) => {
                let error = &error as &dyn Error;
                tracing::error!(error, "new certificate refused, the old one stays in use");
            }
            Err(error) => tracing::error!(%error, "cannot read the certificate"),
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().ok().map(|current| Arc::clone(&current))
    }
}

/// The TLS configuration of the server.
pub fn server_config(certificate: Arc<Certificate>) -> Result<ServerConfig, rustls::Error> {
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    Ok(config)
}

/// Checks that a gateway could start with this certificate and key.
pub fn check_pair(files: &TlsFiles) -> Result<(), TlsError> {
    read(files).map(drop)
}

fn read(files: &TlsFiles) -> Result<CertifiedKey, TlsError> {
    let wrong = |what, path: &Path| {
        let path = path.display().to_string();
        move |source| TlsError::Read { what, path, source }
    };
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(wrong("a certificate", &files.cert))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(files.cert.display().to_string()));
    }
    check_secret_file(&files.key).map_err(TlsError::Exposed)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(wrong("a private key", &files.key))?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(TlsError::Mismatch)
}

fn stamps(files: &TlsFiles) -> Stamps {
    // Follows symbolic links, because orchestrators replace mounted secrets by changing a link.
    [&files.cert, &files.key].map(|path| {
        let data = std::fs::metadata(path).ok()?;
        // Not `modified`: an administrator writes a file, and gives it to the gateway's user a moment later. Only the
        // time of change tells the second.
        Some((data.ctime(), data.ctime_nsec(), data.len()))
    })
}
