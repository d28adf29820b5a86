//! The gateway's lifecycle: build (load, connect, bind), serve, drain.
//!
//! Each worker thread has a backplane connection of its own (measured: one shared connection costs a sixth of the
//! throughput), and each connection subscribes to changed keys, so that a notice is missed only if all of them are
//! down. The server is assembled from parts of actix, because `HttpServer` supports neither a PROXY header before TLS
//! nor [`TimedStream`] behind it.

use std::convert::Infallible;
use std::error::Error;
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
use actix_web::{App, web};
use moka::future::Cache;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::ServerConfig;
use stage0_backplane::{Backplane, BoxFuture, follow_store_clock};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::GatewayConfig;
use crate::idempotency::FirstSeen;
use crate::idle_timeout::{ConnectionTimeouts, TimedStream};
use crate::in_flight::{ByteLimits, BytesInFlight};
use crate::instances::Instances;
use crate::key_cache::KeyCache;
use crate::key_uses::KeyUses;
use crate::metrics::{self, MeteredStateStore, Throttle};
use crate::middleware;
use crate::plain_http::{is_plain_http, refuse};
use crate::proxy_protocol::Balancers;
use crate::quota::Quotas;
use crate::read_pool::ReadPool;
use crate::readiness::Readiness;
use crate::recorder::{Recorder, recorder};
use crate::request_memory::RequestMemory;
use crate::routes;
use crate::state::AppState;
use crate::throttle::{Connections, CountedStream, FailedLogins, ManagementCalls, RateLimiter};
use crate::tls::{Certificate, TlsError, server_config};

/// How long requests in flight may take once the gateway drains.
const DRAIN_TIMEOUT_SECONDS: u64 = 10;
/// For discarding the rest of a body that nothing reads.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(3);
/// actix does not apply that timeout to chunked bodies, so [`TimedStream`] has one, too. It is longer: where both
/// apply, the server closes the connection in good order.
const LINGER_TIMEOUT: Duration = Duration::from_secs(4);
/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: i32 = 4096;
/// The kernel's buffer per connection and direction; the kernel may double it. The default grows to megabytes for a
/// fast client.
const SOCKET_BUFFER_BYTES: usize = 64 << 10;
/// Buffers of the server and of TLS for an answer that is not taken yet. Measured with the defaults, such an answer
/// held 250 KiB.
const WRITE_BUFFER_BYTES: usize = 4 << 10;
const TLS_BUFFER_BYTES: usize = 8 << 10;
/// For the next request on a connection whose last one had no valid key.
const UNAUTHENTICATED_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Within which a client must take 64 KiB of an answer.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// Open files that are not client connections.
const OWN_FILES: u64 = 200;
/// The memory for parsed requests, as a multiple of the bytes that may be in flight.
const REQUEST_MEMORY_FACTOR: usize = 2;
/// Of `requests-per-second-per-address`.
const ADDRESS_RATE_PERIOD: Duration = Duration::from_secs(1);
const SIGNING_KEYS_TTL: Duration = Duration::from_secs(1);
const SUBSCRIBE_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Connects to the backplane.
pub type Connect<E> = Box<dyn Fn() -> BoxFuture<'static, Result<Backplane, E>> + Send + Sync>;

/// The gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError<E: Error + 'static> {
    /// The certificate or its key cannot be used.
    #[error("cannot serve TLS")]
    Tls(#[from] TlsError),
    /// TLS cannot be configured.
    #[error("cannot set TLS up")]
    TlsSetup(#[from] rustls::Error),
    /// The address is in use or not one of this host.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address of the setting.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The backplane cannot be reached.
    #[error("cannot connect to the backplane")]
    Connect(#[source] E),
    /// The threads that read the log cannot be started.
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
    /// The system has no randomness.
    #[error("the system gives no random bytes")]
    Random(#[from] getrandom::Error),
}

/// A gateway that is bound and connected, and serves once [`Gateway::run_until`] is called.
pub struct Gateway {
    address: SocketAddr,
    certificate: Arc<Certificate>,
    key_cache: Arc<KeyCache>,
    backplanes: Vec<Backplane>,
    /// The connection of long reads.
    reading: Backplane,
    read_pool: Arc<ReadPool>,
    listener: TcpListener,
    tls: ServerConfig,
    config: GatewayConfig,
}

impl Gateway {
    /// Loads the certificate, connects and binds.
    pub async fn build<E>(config: GatewayConfig, connect: Connect<E>) -> Result<Self, BuildError<E>>
    where
        E: Error + 'static,
    {
        metrics::describe();
        config.warnings().into_iter().for_each(|warning| tracing::warn!("{warning}"));
        raise_open_files_limit();
        let certificate = Certificate::load(config.tls.clone())?;
        let mut tls = server_config(Arc::clone(&certificate))?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let key_cache = Arc::new(KeyCache::new(secret));
        let read_pool = ReadPool::start(config.reads_per_second_per_account, Instant::now());
        let read_pool = Arc::new(read_pool.map_err(BuildError::Threads)?);
        let reading = connect().await.map_err(BuildError::Connect)?;
        let mut backplanes = Vec::new();
        for _ in 0..config.workers.max(1) {
            let backplane = connect().await.map_err(BuildError::Connect)?;
            backplanes.push(Backplane { state_store: Arc::new(MeteredStateStore(backplane.state_store)), ..backplane });
        }
        let address = config.listen;
        let listener = bind(address).map_err(|source| BuildError::Bind { address, source })?;
        let address = listener.local_addr().unwrap_or(address);
        Ok(Self { address, listener, tls, certificate, key_cache, backplanes, reading, read_pool, config })
    }

    /// The address it listens on, with the real port if the setting was 0.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled, then accepts no more connections, finishes the requests in flight and closes.
    pub async fn run_until(self, stop: CancellationToken) -> io::Result<()> {
        let tasks = TaskTracker::new();
        let background = stop.child_token();
        let certificate = Arc::clone(&self.certificate);
        tasks.spawn(background.clone().run_until_cancelled_owned(certificate.watch()));
        // The subscriptions outlive the requests in flight, which must still learn of a revocation.
        let drained = CancellationToken::new();
        for backplane in &self.backplanes {
            let subscription = subscribe(Arc::clone(&self.key_cache), backplane.clone());
            tasks.spawn(drained.clone().run_until_cancelled_owned(subscription));
        }
        let key_cache = Arc::clone(&self.key_cache);
        let watching = drained.clone();
        tasks.spawn(async move { watching.run_until_cancelled(key_cache.watch()).await });
        // The first connection carries what the gateway sends as one process: records, counters and key uses.
        let first = self.backplanes.first().cloned().unwrap_or_else(|| self.reading.clone());
        let (recorder, writer) = recorder(first.clone(), Arc::clone(&self.key_cache));
        let writer = tokio::spawn(writer.run(drained.clone()));
        let quotas = Arc::new(Quotas::new(self.config.quotas_on_failure, first.state_store.clock()));
        let flushing = tokio::spawn({
            let (quotas, state_store, drained) = (Arc::clone(&quotas), Arc::clone(&first.state_store), drained.clone());
            async move { quotas.run(state_store, drained).await }
        });
        let instances = Arc::new(Instances::new(Instant::now()));
        let key_uses = Arc::new(KeyUses::default());
        tasks.spawn({
            let (backplane, drained) = (first.clone(), drained.clone());
            async move { drained.run_until_cancelled(follow_store_clock(&*backplane.state_store)).await }
        });
        tasks.spawn({
            let (instances, backplane, drained) = (Arc::clone(&instances), first.clone(), drained.clone());
            async move { drained.run_until_cancelled(instances.listen(&backplane)).await }
        });
        tasks.spawn({
            let (key_uses, backplane, drained) = (Arc::clone(&key_uses), first, drained.clone());
            async move { key_uses.run(&*backplane.requests, &drained).await }
        });
        let shared = Shared {
            key_cache: &self.key_cache,
            key_uses: &key_uses,
            quotas: &quotas,
            instances: &instances,
            reading: &self.reading,
            read_pool: &self.read_pool,
        };
        let worker_states = worker_states(&self.config, &shared, &self.backplanes, &recorder);
        drop(recorder);
        let served = match serve(self.listener, self.tls, &self.config, worker_states, stop) {
            Ok(server) => server.await,
            Err(error) => Err(error),
        };
        background.cancel();
        drained.cancel();
        if let Err(error) = flushing.await {
            tracing::error!(error = &error as &dyn Error, "the counting of usage ended early");
        }
        if let Err(error) = writer.await {
            tracing::error!(error = &error as &dyn Error, "the recorder ended early");
        }
        tasks.close();
        tasks.wait().await;
        for backplane in self.backplanes.iter().chain([&self.reading]) {
            backplane.requests.close().await;
        }
        served
    }
}

/// Binds at once, so that an address in use is an error at start.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // The standard library uses a short queue; a burst of agents needs a longer one.
    rustix::net::listen(&listener, BACKLOG)?;
    // Accepted connections inherit these.
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, SOCKET_BUFFER_BYTES)?;
    rustix::net::sockopt::set_socket_send_buffer_size(&listener, SOCKET_BUFFER_BYTES)?;
    Ok(listener)
}

fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    config: &GatewayConfig,
    worker_states: Vec<AppState>,
    stop: CancellationToken,
) -> io::Result<Server> {
    let server = Server::build()
        .workers(worker_states.len().max(1))
        .max_concurrent_connections(config.max_connections_per_worker)
        .shutdown_timeout(DRAIN_TIMEOUT_SECONDS)
        .shutdown_signal(stop.cancelled_owned());
    // By default, 256 clients that never finish their handshake block all others of a worker.
    max_concurrent_tls_connect(config.max_connections_per_worker);
    let draining = server.graceful_shutdown_signal();
    let config = config.clone();
    let admission = Arc::new(ConnectionAdmission::new(&config));
    // Called once on each worker thread, which takes the next state.
    let next = Arc::new(AtomicUsize::new(0));
    let worker = move || {
        let index = next.fetch_add(1, Ordering::Relaxed) % worker_states.len().max(1);
        https(&tls, &config, &admission, &draining, worker_states.get(index))
    };
    Ok(server.listen("gateway", listener, worker)?.run())
}

/// Admits connections within the limits that all workers share.
struct ConnectionAdmission {
    balancers: Balancers,
    connections: Arc<Connections>,
}

impl ConnectionAdmission {
    fn new(config: &GatewayConfig) -> Self {
        let total = config.max_connections.min(files_for_connections());
        let connections = Connections::new(config.max_connections_per_address, total, config.trusted_proxies.clone());
        let balancers = Balancers::new(config.proxy_protocol_from.clone(), config.header_timeout);
        Self { balancers, connections: Arc::new(connections) }
    }

    /// Finds out the client's address and counts the connection. An error closes it.
    async fn admit(&self, mut stream: TcpStream) -> io::Result<CountedStream<TcpStream>> {
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

/// The layers of an accepted connection: admission, then TLS, then timeouts, then HTTP/1.1.
fn https(
    tls: &ServerConfig,
    config: &GatewayConfig,
    admission: &Arc<ConnectionAdmission>,
    draining: &GracefulShutdownSignal,
    state: Option<&AppState>,
) -> impl ServiceFactory<TcpStream, Config = ()> + use<> {
    let mut acceptor = Acceptor::new(tls.clone());
    acceptor.set_handshake_timeout(config.header_timeout);
    let next_head = config.keep_alive.saturating_add(config.header_timeout);
    let timeouts = ConnectionTimeouts {
        next_head,
        unauthenticated: next_head.min(UNAUTHENTICATED_IDLE_TIMEOUT),
        linger: LINGER_TIMEOUT,
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
        .client_disconnect_timeout(DISCARD_TIMEOUT)
        .h1_write_buffer_size(WRITE_BUFFER_BYTES)
        .on_connect_ext(|stream: &TimedStream<TlsStream<CountedStream<TcpStream>>>, data| {
            data.insert(stream.connection_state().clone());
        })
        .h1(map_config(app(&config.base_path, state), |()| AppConfig::default()));
    let (admission, handshake_timeout) = (Arc::clone(admission), config.header_timeout);
    let secured = fn_factory(move || {
        let acceptor = ServiceFactory::<CountedStream<TcpStream>>::new_service(&acceptor, ());
        let admission = Arc::clone(&admission);
        async move {
            let acceptor = Rc::new(acceptor.await?);
            let secure = move |stream: TcpStream| {
                let (admission, acceptor) = (Arc::clone(&admission), Rc::clone(&acceptor));
                async move {
                    let connection = admission.admit(stream).await.map_err(AcceptError::Tls)?;
                    let secured = timeout(handshake_timeout, secure(connection, &acceptor)).await;
                    secured.unwrap_or(Err(AcceptError::Timeout))
                }
            };
            Ok::<_, ()>(fn_service(secure))
        }
    });
    secured
        .map_err(AcceptError::into_service_error)
        .map(move |mut stream: TlsStream<CountedStream<TcpStream>>| {
            let (connection, tls) = stream.get_mut();
            connection.established();
            tls.set_buffer_limit(Some(TLS_BUFFER_BYTES));
            let (peer, handle) = (connection.peer(), connection.handle());
            (TimedStream::new(stream, timeouts, Some(handle)), peer)
        })
        .and_then(http.map_err(AcceptError::Service))
}

/// The TLS handshake. A connection that begins with plain HTTP gets an answer and is closed.
async fn secure(
    mut connection: CountedStream<TcpStream>,
    acceptor: &AcceptorService,
) -> Result<TlsStream<CountedStream<TcpStream>>, AcceptError<io::Error, Infallible>> {
    if connection.first_byte().await.map_err(AcceptError::Tls)?.is_some_and(is_plain_http) {
        refuse(&mut connection).await.map_err(AcceptError::Tls)?;
        return Err(AcceptError::Tls(io::ErrorKind::InvalidData.into()));
    }
    acceptor.call(connection).await
}

/// The application that a worker serves.
pub(crate) fn app(
    base_path: &str,
    state: Option<&AppState>,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody + use<>>,
        Error = actix_web::Error,
        InitError = (),
    > + use<>,
> {
    App::new()
        .wrap(NormalizePath::new(TrailingSlash::Trim))
        .wrap(from_fn(middleware::handle))
        .configure(|app| routes::configure(app, base_path, state.cloned().map(web::Data::new)))
}

/// What the workers share with the gateway's background tasks.
struct Shared<'a> {
    key_cache: &'a Arc<KeyCache>,
    key_uses: &'a Arc<KeyUses>,
    quotas: &'a Arc<Quotas>,
    instances: &'a Arc<Instances>,
    reading: &'a Backplane,
    read_pool: &'a Arc<ReadPool>,
}

/// One state per worker, with its own connection.
fn worker_states(
    config: &GatewayConfig,
    shared: &Shared<'_>,
    backplanes: &[Backplane],
    recorder: &Recorder,
) -> Vec<AppState> {
    let config = Arc::new(config.clone());
    let failed_logins = Arc::new(FailedLogins::new(config.failed_logins_per_minute));
    let ip_rate_limiter = config
        .requests_per_second_per_address
        .map(|limit| Arc::new(RateLimiter::new(limit, ADDRESS_RATE_PERIOD, Instant::now())));
    let management_calls =
        config.management_calls_per_minute.map(|limit| Arc::new(ManagementCalls::new(limit, Instant::now())));
    let readiness = Arc::new(Readiness::default());
    let first_seen = FirstSeen::default();
    let bytes = BytesInFlight::new(ByteLimits::of(config.max_bytes_in_flight));
    let request_memory = RequestMemory::new(config.max_bytes_in_flight.saturating_mul(REQUEST_MEMORY_FACTOR));
    let signing_keys = Cache::builder().max_capacity(1).time_to_live(SIGNING_KEYS_TTL).build();
    let state = |backplane: &Backplane| AppState {
        backplane: backplane.clone(),
        config: Arc::clone(&config),
        key_cache: Arc::clone(shared.key_cache),
        key_uses: Arc::clone(shared.key_uses),
        failed_logins: Arc::clone(&failed_logins),
        ip_rate_limiter: ip_rate_limiter.clone(),
        management_calls: management_calls.clone(),
        quotas: Arc::clone(shared.quotas),
        instances: Arc::clone(shared.instances),
        readiness: Arc::clone(&readiness),
        recorder: recorder.clone(),
        first_seen: first_seen.clone(),
        bytes: Arc::clone(&bytes),
        request_memory: Arc::clone(&request_memory),
        read_pool: Arc::clone(shared.read_pool),
        reading: shared.reading.clone(),
        signing_keys: signing_keys.clone(),
    };
    backplanes.iter().map(state).collect()
}

/// Keeps one connection subscribed to changed keys.
async fn subscribe(key_cache: Arc<KeyCache>, backplane: Backplane) {
    loop {
        if let Err(error) = key_cache.listen(&backplane).await {
            tracing::warn!(error = &error as &dyn Error, "cannot hear of changed keys, every request asks");
        }
        tokio::time::sleep(SUBSCRIBE_RETRY_DELAY).await;
    }
}

/// How many connections the limit on open files allows.
fn files_for_connections() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit.saturating_sub(OWN_FILES).max(limit / 2)).unwrap_or(usize::MAX)
}

/// Every connection is an open file, and many systems start a process with a limit of 1,024.
fn raise_open_files_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(error = &error as &dyn Error, "limit on open files could not be raised");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::TlsFiles;

    /// A worker's state without background tasks: nothing is recorded, and no notices arrive, so that every request
    /// refreshes its key.
    pub(crate) fn state(backplane: &Backplane, change: impl FnOnce(&mut GatewayConfig)) -> AppState {
        let tls = TlsFiles { cert: "c".into(), key: "k".into() };
        let mut config = GatewayConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), tls);
        change(&mut config);
        let shared = Shared {
            key_cache: &Arc::new(KeyCache::new([1; 32])),
            key_uses: &Arc::default(),
            quotas: &Arc::new(Quotas::new(config.quotas_on_failure, backplane.state_store.clock())),
            instances: &Arc::new(Instances::new(Instant::now())),
            reading: backplane,
            read_pool: &Arc::new(ReadPool::start(config.reads_per_second_per_account, Instant::now()).unwrap()),
        };
        let (recorder, _) = recorder(backplane.clone(), Arc::clone(shared.key_cache));
        worker_states(&config, &shared, std::slice::from_ref(backplane), &recorder).remove(0)
    }
}
