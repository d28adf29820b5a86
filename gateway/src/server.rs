//! The gateway's life: build (load, connect, bind), serve, drain.
//!
//! Each worker thread has a backplane connection of its own (measured: one shared connection costs a sixth of the throughput), and
//! each connection listens for changed keys, so that a notice is missed only if all of them are down.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::middleware::{NormalizePath, TrailingSlash, from_fn};
use actix_web::{App, HttpServer, web};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::ServerConfig;
use stage0_backplane::{Backplane, BoxFuture};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::GatewayConfig;
use crate::keyring::Keyring;
use crate::routes::{self, Readiness};
use crate::state::Gate;
use crate::throttle::FailedLogins;
use crate::tls::{Certificate, TlsError, server_config};

/// How long what is in hand may take once the gateway drains.
const DRAIN_SECONDS: u64 = 10;
const DISCARD_UNREAD_BODY_FOR: Duration = Duration::from_secs(3);
/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: i32 = 4096;
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Makes one connection to the backplane.
pub type Connect<E> = Box<dyn Fn() -> BoxFuture<'static, Result<Backplane, E>> + Send + Sync>;

/// The gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError<E: std::error::Error + 'static> {
    /// The certificate or key is at fault.
    #[error("cannot serve TLS")]
    Tls(#[from] TlsError),
    /// TLS itself is.
    #[error("cannot set TLS up")]
    TlsSetup(#[from] rustls::Error),
    /// The address is taken or not ours.
    #[error("cannot listen on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No connection to the backplane.
    #[error("cannot connect to the backplane")]
    Connect(#[source] E),
    /// The system gave no randomness.
    #[error("the system gives no random bytes")]
    Random(#[from] getrandom::Error),
}

/// A gateway that is bound and connected, and serves once [`Gateway::run_until`] is called.
pub struct Gateway {
    address: SocketAddr,
    certificate: Arc<Certificate>,
    keyring: Arc<Keyring>,
    backplanes: Vec<Backplane>,
    listener: TcpListener,
    tls: ServerConfig,
    config: GatewayConfig,
}

impl Gateway {
    /// Loads the certificate, connects and binds.
    pub async fn build<E>(config: GatewayConfig, connect: Connect<E>) -> Result<Self, BuildError<E>>
    where
        E: std::error::Error + 'static,
    {
        raise_open_files_limit();
        let certificate = Certificate::load(config.tls.clone())?;
        let mut tls = server_config(Arc::clone(&certificate))?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let keyring = Arc::new(Keyring::new(secret));
        let mut backplanes = Vec::new();
        for _ in 0..config.workers.max(1) {
            backplanes.push(connect().await.map_err(BuildError::Connect)?);
        }
        let address = config.listen;
        let listener = bind(address).map_err(|source| BuildError::Bind { address, source })?;
        let address = listener.local_addr().unwrap_or(address);
        Ok(Self { address, listener, tls, certificate, keyring, backplanes, config })
    }

    /// Where it listens; the real port when 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled, then takes no new connections, finishes what is in hand and closes.
    pub async fn run_until(self, stop: CancellationToken) -> io::Result<()> {
        let (tasks, background) = (TaskTracker::new(), stop.child_token());
        let certificate = Arc::clone(&self.certificate);
        tasks.spawn(background.clone().run_until_cancelled_owned(certificate.watch()));
        // Listening goes on while requests in hand are finished: they still need to hear of a revocation.
        let drained = CancellationToken::new();
        for backplane in &self.backplanes {
            let listening = listen(Arc::clone(&self.keyring), backplane.clone());
            tasks.spawn(drained.clone().run_until_cancelled_owned(listening));
        }
        let gates = gates(&self.config, &self.keyring, &self.backplanes);
        let served = match serve(self.listener, self.tls, &self.config, gates, stop) {
            Ok(server) => server.await,
            Err(error) => Err(error),
        };
        background.cancel();
        drained.cancel();
        tasks.close();
        tasks.wait().await;
        for backplane in &self.backplanes {
            backplane.requests.close().await;
        }
        served
    }
}

/// Binds now, so that a taken address is an error at start and not later.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // The standard library asks for a short queue; a burst of agents needs a longer one.
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    config: &GatewayConfig,
    gates: Vec<Gate>,
    stop: CancellationToken,
) -> io::Result<Server> {
    let workers = gates.len();
    // Called once on each worker thread, which takes the next of the gates.
    let turn = Arc::new(AtomicUsize::new(0));
    let base_path = config.base_path.clone();
    let app = move || {
        let turn = turn.fetch_add(1, Ordering::Relaxed) % gates.len().max(1);
        let gate = gates.get(turn).cloned().map(web::Data::new);
        App::new()
            .wrap(NormalizePath::new(TrailingSlash::Trim))
            .wrap(from_fn(routes::stamp))
            .configure(|app| routes::configure(app, &base_path, gate))
    };
    let server = HttpServer::new(app)
        .workers(workers)
        .max_connections(config.max_connections_per_worker)
        .tls_handshake_timeout(config.header_timeout)
        .client_request_timeout(config.header_timeout)
        .keep_alive(config.keep_alive)
        .client_disconnect_timeout(DISCARD_UNREAD_BODY_FOR)
        .shutdown_timeout(DRAIN_SECONDS)
        .shutdown_signal(stop.cancelled_owned())
        .listen_rustls_0_23(listener, tls)?;
    Ok(server.run())
}

/// One for each worker: its own connection, the rest shared.
fn gates(config: &GatewayConfig, keyring: &Arc<Keyring>, backplanes: &[Backplane]) -> Vec<Gate> {
    let config = Arc::new(config.clone());
    let failed_logins = Arc::new(FailedLogins::new(config.failed_logins_per_minute));
    let readiness = Arc::new(Readiness::default());
    let gate = |backplane: &Backplane| Gate {
        backplane: backplane.clone(),
        config: Arc::clone(&config),
        keyring: Arc::clone(keyring),
        failed_logins: Arc::clone(&failed_logins),
        readiness: Arc::clone(&readiness),
    };
    backplanes.iter().map(gate).collect()
}

async fn listen(keyring: Arc<Keyring>, backplane: Backplane) {
    loop {
        if let Err(error) = keyring.listen(&backplane).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot hear of changed keys, every request asks");
        }
        tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
    }
}

/// Ten thousand idle connections are ten thousand open files; many systems start a process with 1,024.
fn raise_open_files_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "limit on open files could not be raised");
        }
    }
}
