//! The gateway's life: build (load, connect, bind), serve, drain.
//!
//! Each worker thread has a backplane connection of its own (measured: one shared connection costs a sixth of the throughput), and
//! each connection listens for changed keys, so that a notice is missed only if all of them are down.
//! Put together from the parts of actix and not by `HttpServer`, which has no place for a PROXY header before TLS, nor for
//! [`Patient`] behind it.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use actix_http::HttpService;
use actix_server::{GracefulShutdownSignal, Server};
use actix_service::{Service as _, ServiceFactory, ServiceFactoryExt, fn_factory, fn_service, map_config};
use actix_tls::accept::TlsError as AcceptError;
use actix_tls::accept::max_concurrent_tls_connect;
use actix_tls::accept::rustls_0_23::{Acceptor, AcceptorService, TlsStream};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, ServiceRequest, ServiceResponse};
use actix_web::middleware::{NormalizePath, TrailingSlash, from_fn};
use actix_web::rt::net::TcpStream;
use actix_web::{App, Error, web};
use futures_util::future::OptionFuture;
use moka::future::Cache;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::ServerConfig;
use stage0_backplane::{Backplane, BoxFuture, StoreClock, follow_store_clock};
use stage0_contract::AuditMode;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::GatewayConfig;
use crate::idempotency::Sightings;
use crate::in_flight::{ByteLimits, BytesInFlight};
use crate::in_hand::InHand;
use crate::instances::Instances;
use crate::key_uses::KeyUses;
use crate::keyring::Keyring;
use crate::metrics::{self, Metered, Throttle};
use crate::patience::{Limits, Patient};
use crate::plain_http::{is_plain_http, turn_away};
use crate::proxy_protocol::Balancers;
use crate::quota::Quotas;
use crate::readers::Readers;
use crate::recorder::{Recorder, recorder};
use crate::routes::{self, Readiness};
use crate::state::Gate;
use crate::throttle::{Bursts, Connections, Counted, FailedLogins, ManagementCalls};
use crate::tls::{Certificate, TlsError, server_config};

/// How long what is in hand may take once the gateway drains.
const DRAIN_SECONDS: u64 = 10;
const DISCARD_UNREAD_BODY_FOR: Duration = Duration::from_secs(3);
/// Chunks are discarded without that limit, so [`Patient`] has its own; longer, for where both apply the server closes in good order.
const FAREWELL: Duration = Duration::from_secs(4);
/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: i32 = 4096;
/// What the kernel keeps of a connection in each direction; it may take twice as much. By default it is megabytes for
/// who is fast.
const SOCKET_BUFFER_BYTES: usize = 64 << 10;
/// What the server keeps of an answer that is not taken before it asks for more, and what TLS keeps. Measured with the
/// defaults, an answer that nobody took held 250 KiB.
const WRITE_BUFFER_BYTES: usize = 4 << 10;
const TLS_BUFFER_BYTES: usize = 8 << 10;
/// A connection whose last request showed no valid key waits so long for the next.
const STRANGER_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// In which 64 KiB of an answer must be taken.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// Files that are no connection of a client.
const OWN_FILES: u64 = 200;
/// Requests in hand may need so many times what may arrive at a time.
const IN_HAND_FOR_EACH: usize = 2;
const SIGNING_KEYS_LIVE: Duration = Duration::from_secs(1);
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
    /// The threads that read the log cannot be started.
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
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
    /// Of long reads.
    reading: Backplane,
    readers: Arc<Readers>,
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
        metrics::describe();
        config.warnings().into_iter().for_each(|warning| tracing::warn!("{warning}"));
        raise_open_files_limit();
        let certificate = Certificate::load(config.tls.clone())?;
        let mut tls = server_config(Arc::clone(&certificate))?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let keyring = Arc::new(Keyring::new(secret));
        let readers = Readers::start(config.reads_per_second_per_account, Instant::now());
        let readers = Arc::new(readers.map_err(BuildError::Threads)?);
        let reading = connect().await.map_err(BuildError::Connect)?;
        let mut backplanes = Vec::new();
        for _ in 0..config.workers.max(1) {
            let backplane = connect().await.map_err(BuildError::Connect)?;
            backplanes.push(Backplane { ledger: Arc::new(Metered(backplane.ledger)), ..backplane });
        }
        let address = config.listen;
        let listener = bind(address).map_err(|source| BuildError::Bind { address, source })?;
        let address = listener.local_addr().unwrap_or(address);
        Ok(Self { address, listener, tls, certificate, keyring, backplanes, reading, readers, config })
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
        let keyring = Arc::clone(&self.keyring);
        let watching = drained.clone();
        tasks.spawn(async move { watching.run_until_cancelled(keyring.watch()).await });
        // The first connection carries the records, as one gateway appends one round at a time.
        let recording = self.backplanes.first().filter(|_| self.config.audit != AuditMode::None).cloned();
        let (recorder, rounds) = recording.map(|backplane| recorder(backplane, Arc::clone(&self.keyring))).unzip();
        let rounds = rounds.map(|rounds| tokio::spawn(rounds.run(drained.clone())));
        let clock = self.backplanes.first().map_or(StoreClock::own(), |backplane| backplane.ledger.clock());
        let quotas = Arc::new(Quotas::new(self.config.quotas_on_failure, clock));
        if let Some(backplane) = self.backplanes.first().cloned() {
            let drained = drained.clone();
            tasks.spawn(async move { drained.run_until_cancelled(follow_store_clock(&*backplane.ledger)).await });
        }
        let counting = self.backplanes.first().map(|backplane| {
            let (quotas, ledger) = (Arc::clone(&quotas), Arc::clone(&backplane.ledger));
            let stop = drained.clone();
            tokio::spawn(async move { quotas.run(ledger, stop).await })
        });
        let instances = Arc::new(Instances::new(Instant::now()));
        if let Some(backplane) = self.backplanes.first().cloned() {
            let (instances, drained) = (Arc::clone(&instances), drained.clone());
            tasks.spawn(async move { drained.run_until_cancelled(instances.listen(&backplane)).await });
        }
        let key_uses = Arc::new(KeyUses::default());
        if let Some(backplane) = self.backplanes.first().cloned() {
            let (key_uses, drained) = (Arc::clone(&key_uses), drained.clone());
            tasks.spawn(async move { key_uses.run(&*backplane.requests, &drained).await });
        }
        let shared = Shared {
            keyring: &self.keyring,
            key_uses: &key_uses,
            quotas: &quotas,
            instances: &instances,
            reading: &self.reading,
            readers: &self.readers,
        };
        let gates = gates(&self.config, &shared, &self.backplanes, recorder.as_ref());
        drop(recorder);
        let served = match serve(self.listener, self.tls, &self.config, gates, stop) {
            Ok(server) => server.await,
            Err(error) => Err(error),
        };
        background.cancel();
        drained.cancel();
        if let Some(Err(error)) = OptionFuture::from(counting).await {
            tracing::error!(%error, "the counting of usage ended early");
        }
        if let Some(Err(error)) = OptionFuture::from(rounds).await {
            tracing::error!(%error, "the recorder ended early");
        }
        tasks.close();
        tasks.wait().await;
        for backplane in self.backplanes.iter().chain([&self.reading]) {
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
    // Connections inherit them.
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, SOCKET_BUFFER_BYTES)?;
    rustix::net::sockopt::set_socket_send_buffer_size(&listener, SOCKET_BUFFER_BYTES)?;
    Ok(listener)
}

fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    config: &GatewayConfig,
    gates: Vec<Gate>,
    stop: CancellationToken,
) -> io::Result<Server> {
    let server = Server::build()
        .workers(gates.len().max(1))
        .max_concurrent_connections(config.max_connections_per_worker)
        .shutdown_timeout(DRAIN_SECONDS)
        .shutdown_signal(stop.cancelled_owned());
    // By default 256 clients that never finish their handshake keep every other one of a worker waiting.
    max_concurrent_tls_connect(config.max_connections_per_worker);
    let (draining, config) = (server.graceful_shutdown_signal(), config.clone());
    let entrance = Arc::new(Entrance::new(&config));
    // Called once on each worker thread, which takes the next of the gates.
    let turn = Arc::new(AtomicUsize::new(0));
    let worker = move || {
        let turn = turn.fetch_add(1, Ordering::Relaxed) % gates.len().max(1);
        https(&tls, &config, &entrance, &draining, gates.get(turn))
    };
    Ok(server.listen("gateway", listener, worker)?.run())
}

/// Where a connection gets its place, whoever of the workers has accepted it.
struct Entrance {
    balancers: Balancers,
    connections: Arc<Connections>,
}

impl Entrance {
    fn new(config: &GatewayConfig) -> Self {
        let total = config.max_connections.min(files_for_connections());
        let connections = Connections::new(config.max_connections_per_address, total, config.trusted_proxies.clone());
        let balancers = Balancers::new(config.proxy_protocol_from.clone(), config.header_timeout);
        Self { balancers, connections: Arc::new(connections) }
    }

    /// Finds out who is at the other end. An error closes the connection.
    async fn admit(&self, mut stream: TcpStream) -> io::Result<Counted<TcpStream>> {
        let peer = match stream.peer_addr() {
            Ok(peer) => Some(self.balancers.peer(&mut stream, peer).await.map_err(io::Error::other)?),
            Err(_) => None,
        };
        self.connections.admit(stream, peer, Instant::now()).ok_or_else(|| {
            metrics::throttled(Throttle::Connections);
            io::ErrorKind::ConnectionRefused.into()
        })
    }
}

/// What becomes of an accepted connection: its place, then TLS, then patience, then HTTP/1.1.
fn https(
    tls: &ServerConfig,
    config: &GatewayConfig,
    entrance: &Arc<Entrance>,
    draining: &GracefulShutdownSignal,
    gate: Option<&Gate>,
) -> impl ServiceFactory<TcpStream, Config = ()> + use<> {
    let mut acceptor = Acceptor::new(tls.clone());
    acceptor.set_handshake_timeout(config.header_timeout);
    let next_head = config.keep_alive.saturating_add(config.header_timeout);
    let limits = Limits {
        next_head,
        stranger: next_head.min(STRANGER_IDLE_TIMEOUT),
        farewell: FAREWELL,
        progress: PROGRESS_TIMEOUT,
    };
    let draining = draining.clone();
    let http = HttpService::build()
        // Idle connections close at once when the gateway drains.
        .graceful_shutdown_signal(move || {
            let draining = draining.clone();
            async move { draining.notified().await }
        })
        .client_request_timeout(config.header_timeout)
        .keep_alive(config.keep_alive)
        .client_disconnect_timeout(DISCARD_UNREAD_BODY_FOR)
        .h1_write_buffer_size(WRITE_BUFFER_BYTES)
        .on_connect_ext(|stream: &Patient<TlsStream<Counted<TcpStream>>>, data| {
            data.insert(stream.patience().clone());
        })
        .h1(map_config(app(&config.base_path, gate), |()| AppConfig::default()));
    let (entrance, handshake_timeout) = (Arc::clone(entrance), config.header_timeout);
    let secured = fn_factory(move || {
        let acceptor = ServiceFactory::<Counted<TcpStream>>::new_service(&acceptor, ());
        let entrance = Arc::clone(&entrance);
        async move {
            let acceptor = Rc::new(acceptor.await?);
            let secure = move |stream: TcpStream| {
                let (entrance, acceptor) = (Arc::clone(&entrance), Rc::clone(&acceptor));
                async move {
                    let connection = entrance.admit(stream).await.map_err(AcceptError::Tls)?;
                    let secured = timeout(handshake_timeout, secure(connection, &acceptor)).await;
                    secured.unwrap_or(Err(AcceptError::Timeout))
                }
            };
            Ok::<_, ()>(fn_service(secure))
        }
    });
    secured
        .map_err(AcceptError::into_service_error)
        .map(move |mut stream: TlsStream<Counted<TcpStream>>| {
            let (connection, tls) = stream.get_mut();
            connection.established();
            tls.set_buffer_limit(Some(TLS_BUFFER_BYTES));
            let (peer, seat) = (connection.peer(), connection.seat());
            (Patient::new(stream, limits, Some(seat)), peer)
        })
        .and_then(http.map_err(AcceptError::Service))
}

/// TLS, or the end of a connection that does not begin with it.
async fn secure(
    mut connection: Counted<TcpStream>,
    acceptor: &AcceptorService,
) -> Result<TlsStream<Counted<TcpStream>>, AcceptError<io::Error, Infallible>> {
    if connection.first_byte().await.map_err(AcceptError::Tls)?.is_some_and(is_plain_http) {
        turn_away(&mut connection).await.map_err(AcceptError::Tls)?;
        return Err(AcceptError::Tls(io::ErrorKind::InvalidData.into()));
    }
    acceptor.call(connection).await
}

/// All that a worker serves, without its connections.
pub(crate) fn app(
    base_path: &str,
    gate: Option<&Gate>,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody + use<>>,
        Error = Error,
        InitError = (),
    > + use<>,
> {
    App::new()
        .wrap(NormalizePath::new(TrailingSlash::Trim))
        .wrap(from_fn(routes::stamp))
        .configure(|app| routes::configure(app, base_path, gate.cloned().map(web::Data::new)))
}

/// What all workers share and tasks of the gateway work on.
struct Shared<'a> {
    keyring: &'a Arc<Keyring>,
    key_uses: &'a Arc<KeyUses>,
    quotas: &'a Arc<Quotas>,
    instances: &'a Arc<Instances>,
    reading: &'a Backplane,
    readers: &'a Arc<Readers>,
}

/// One for each worker: its own connection, the rest shared.
fn gates(
    config: &GatewayConfig,
    shared: &Shared<'_>,
    backplanes: &[Backplane],
    recorder: Option<&Recorder>,
) -> Vec<Gate> {
    let config = Arc::new(config.clone());
    let failed_logins = Arc::new(FailedLogins::new(config.failed_logins_per_minute));
    let bursts = config.requests_per_second_per_address.map(|limit| Arc::new(Bursts::new(limit, Instant::now())));
    let management_calls =
        config.management_calls_per_minute.map(|limit| Arc::new(ManagementCalls::new(limit, Instant::now())));
    let readiness = Arc::new(Readiness::default());
    let sightings = Sightings::default();
    let bytes = BytesInFlight::new(ByteLimits::of(config.max_bytes_in_flight));
    let in_hand = InHand::new(config.max_bytes_in_flight.saturating_mul(IN_HAND_FOR_EACH));
    let signing_keys = Cache::builder().max_capacity(1).time_to_live(SIGNING_KEYS_LIVE).build();
    let gate = |backplane: &Backplane| Gate {
        backplane: backplane.clone(),
        config: Arc::clone(&config),
        keyring: Arc::clone(shared.keyring),
        key_uses: Arc::clone(shared.key_uses),
        failed_logins: Arc::clone(&failed_logins),
        bursts: bursts.clone(),
        management_calls: management_calls.clone(),
        quotas: Arc::clone(shared.quotas),
        instances: Arc::clone(shared.instances),
        readiness: Arc::clone(&readiness),
        recorder: recorder.cloned(),
        sightings: sightings.clone(),
        bytes: Arc::clone(&bytes),
        in_hand: Arc::clone(&in_hand),
        readers: Arc::clone(shared.readers),
        reading: shared.reading.clone(),
        signing_keys: signing_keys.clone(),
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

/// As many as the system allows.
fn files_for_connections() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit.saturating_sub(OWN_FILES).max(limit / 2)).unwrap_or(usize::MAX)
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::TlsFiles;

    /// A gate that records nothing, as a worker has it, and hears no notices: whoever asks is asked for again.
    pub(crate) fn gate(backplane: &Backplane, change: impl FnOnce(&mut GatewayConfig)) -> Gate {
        let tls = TlsFiles { cert: "c".into(), key: "k".into() };
        let mut config = GatewayConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), tls);
        change(&mut config);
        let shared = Shared {
            keyring: &Arc::new(Keyring::new([1; 32])),
            key_uses: &Arc::default(),
            quotas: &Arc::new(Quotas::new(config.quotas_on_failure, StoreClock::own())),
            instances: &Arc::new(Instances::new(Instant::now())),
            reading: backplane,
            readers: &Arc::new(Readers::start(config.reads_per_second_per_account, Instant::now()).unwrap()),
        };
        gates(&config, &shared, std::slice::from_ref(backplane), None).remove(0)
    }
}
