//! The guard in front of a server that is reached over streamable HTTP.
//!
//! It listens on this machine alone unless it is asked to, and answers no web page. Streams pass event by event; of an
//! event only the answer to a guarded request is looked at.
//! INVARIANT: only what [`Guard::request`] forwards is sent to the server as a request.

pub(crate) mod events;
mod message;
mod origin;
mod passing;
mod sessions;
mod upstream;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::{App, HttpServer, web};
use url::Url;

use crate::guard::Guard;
use crate::message::MAX_REQUEST_BYTES;
use origin::Allowed;
use sessions::Sessions;
use upstream::Upstream;

const WORKERS: usize = 2;
const MAX_CONNECTIONS: usize = 1_000;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that are open when the guard ends have this long.
const SHUTDOWN_SECONDS: u64 = 2;

/// Where the guard listens, and for whom.
#[derive(Debug, Clone)]
pub struct Listen {
    /// The server behind the guard.
    pub upstream: Url,
    /// PEM file: the authority of the server behind the guard, instead of the system's.
    pub upstream_ca: Option<PathBuf>,
    /// The guard's own address.
    pub address: SocketAddr,
    /// Others than this machine may connect.
    pub beyond_loopback: bool,
    /// Pages that may use the guard, by origin.
    pub origins: Vec<String>,
    /// Names of this machine, besides its addresses.
    pub hosts: Vec<String>,
}

/// Why the guard does not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum HttpError {
    #[error("the upstream must be an https URL, or an http URL of this machine")]
    Upstream(Url),
    #[error("cannot use the CA file {}", .path.display())]
    Ca { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot make a client for the upstream")]
    Client(#[source] reqwest::Error),
    #[error("{0} can be reached from other machines: choose a loopback address, or add `--listen-beyond-loopback`")]
    Exposed(SocketAddr),
    #[error("cannot listen on {address}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("the server ended early")]
    Serve(#[source] std::io::Error),
}

struct State {
    guard: Arc<Guard>,
    upstream: Upstream,
    sessions: Sessions,
    allowed: Allowed,
}

/// A guard that listens.
pub struct HttpGuard {
    server: Server,
    address: SocketAddr,
    path: String,
    guard: Arc<Guard>,
}

impl HttpGuard {
    /// Binds, and serves once it is run.
    pub fn build(guard: Arc<Guard>, listen: Listen) -> Result<Self, HttpError> {
        if !listen.beyond_loopback && !listen.address.ip().is_loopback() {
            return Err(HttpError::Exposed(listen.address));
        }
        let upstream = Upstream::new(listen.upstream, listen.upstream_ca)?;
        let path = upstream.path().to_owned();
        let own = Some(listen.address.ip()).filter(|ip| !ip.is_unspecified());
        let allowed = Allowed { origins: listen.origins, hosts: listen.hosts, listen: own };
        let state = State { guard: Arc::clone(&guard), upstream, sessions: Sessions::default(), allowed };
        let state = web::Data::new(state);
        let endpoint = path.clone();
        let server = HttpServer::new(move || {
            let endpoint = web::resource(endpoint.clone())
                .route(web::post().to(message::post))
                .route(web::get().to(message::get))
                .route(web::delete().to(message::delete));
            App::new().app_data(state.clone()).app_data(web::PayloadConfig::new(MAX_REQUEST_BYTES)).service(endpoint)
        });
        let bind = |source| HttpError::Bind { address: listen.address, source };
        let server = server
            .workers(WORKERS)
            .max_connections(MAX_CONNECTIONS)
            .client_request_timeout(HEADER_TIMEOUT)
            // A client that is gone cancels what is done for it.
            .h1_allow_half_closed(false)
            .shutdown_timeout(SHUTDOWN_SECONDS)
            .disable_signals()
            .bind(listen.address)
            .map_err(bind)?;
        let address = server.addrs().first().copied().unwrap_or(listen.address);
        Ok(Self { server: server.run(), address, path, guard })
    }

    /// The endpoint for clients.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.address, self.path)
    }

    /// Serves until `stop` ends, then reports what is left to report.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), HttpError> {
        self.guard.begin();
        let handle = self.server.handle();
        let mut serving = std::pin::pin!(self.server);
        let ended = tokio::select! {
            ended = &mut serving => ended,
            () = stop => {
                let ((), ended) = tokio::join!(handle.stop(true), serving);
                ended
            }
        };
        self.guard.settle().await;
        ended.map_err(HttpError::Serve)
    }
}
