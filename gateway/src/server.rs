//! The gateway's lifecycle: build (load, connect, bind), serve, drain.
//!
//! Each worker thread has a backplane connection of its own (one shared connection costs a sixth of the throughput),
//! and each connection subscribes to changed keys, so that a notice is missed only if all of them are down. The server
//! is assembled from parts of actix, because `HttpServer` supports neither a PROXY header before TLS nor
//! [`TimedStream`] behind it.

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
use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::ServerConfig;
use stage0_backplane::{Backplane, BoxFuture, follow_store_clock};
use stage0_contract::RequestId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::canary_return;
use crate::config::GatewayConfig;
use crate::errors::ApiError;
use crate::event_collection;
use crate::idle_timeout::{ConnectionTimeouts, TimedStream};
use crate::key_cache::KeyCache;
use crate::metrics::{self, MeteredStateStore, Throttle};
use crate::middleware;
use crate::proxy_protocol::Balancers;
use crate::read_pool::ReadPool;
use crate::recorder::recorder;
use crate::routes;
use crate::state::AppState;
use crate::throttle::{Connections, CountedStream};
use crate::tls::{Certificate, TlsError, server_config};

const DRAIN_TIMEOUT_SECONDS: u64 = 10;
/// How long idle connections stay open when the gateway stops: a request that is on its way on one of them would be
/// dropped without an answer. Meanwhile each answer says that its connection ends. The server looks every second
/// whether all have ended.
const IDLE_CLOSE_DELAY: Duration = Duration::from_millis(900);
/// For discarding the rest of a body that nothing reads.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(3);
/// For chunked bodies, to which actix does not apply that timeout. It is longer: where both apply, the server closes
/// the connection in good order.
const LINGER_TIMEOUT: Duration = Duration::from_secs(4);
/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: i32 = 4096;
/// The kernel's buffer per connection and direction. The default grows to megabytes for a fast client.
const SOCKET_BUFFER_BYTES: usize = 64 << 10;
/// Buffers for an answer that is not taken yet. With the defaults, such an answer held 250 KiB.
const WRITE_BUFFER_BYTES: usize = 4 << 10;
const TLS_BUFFER_BYTES: usize = 8 << 10;
/// For the next request on a connection whose last one had no valid key.
const UNAUTHENTICATED_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// More than the largest request that is allowed.
const MAX_DISCARDED_BYTES: usize = 2 << 20;
const DISCARD_BYTES: usize = 4 << 10;
/// Open files that are not client connections.
const OWN_FILES: u64 = 200;
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
    certificate: Arc<Certificate>,
    key_cache: Arc<KeyCache>,
    backplanes: Vec<Backplane>,
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
        Ok(Self { listener, tls, certificate, key_cache, backplanes, reading, read_pool, config })
    }

    /// The address it listens on, with the real port if the setting was 0.
    pub fn addr(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or(self.config.listen)
    }

    /// Serves until `stop` is cancelled, then accepts no more connections, finishes the requests in flight and closes.
    pub async fn run_until(self, stop: CancellationToken) -> io::Result<()> {
        let tasks = TaskTracker::new();
        let background = stop.child_token();
        tasks.spawn(background.clone().run_until_cancelled_owned(Arc::clone(&self.certificate).watch()));
        // The subscriptions outlive the requests in flight, which must still learn of a revocation.
        let drained = CancellationToken::new();
        for backplane in &self.backplanes {
            let subscription = subscribe(Arc::clone(&self.key_cache), backplane.clone());
            tasks.spawn(drained.clone().run_until_cancelled_owned(subscription));
        }
        // The first connection carries what the gateway sends as one process: records, counters and key uses.
        let first = self.backplanes.first().unwrap_or(&self.reading).clone();
        let (recorder, writer) = recorder(first.clone(), Arc::clone(&self.key_cache));
        let writer = tokio::spawn(writer.run(drained.clone()));
        let reading = self.reading.clone();
        let state = AppState::new(self.config.clone(), first, reading, self.key_cache, self.read_pool, recorder);
        let state = AppState { stopping: background.clone(), ..state };
        let flushing = tokio::spawn({
            let (state, drained) = (state.clone(), drained.clone());
            async move { state.quotas.run(state.state_store(), drained).await }
        });
        tasks.spawn({
            let (state, drained) = (state.clone(), drained.clone());
            async move { state.key_uses.run(state.requests(), &drained).await }
        });
        tasks.spawn(drained.clone().run_until_cancelled_owned({
            let state = state.clone();
            async move {
                let clock = follow_store_clock(state.state_store());
                let waits = state.approval_waits.listen(&state.backplane);
                tokio::join!(state.key_cache.watch(), clock, state.instances.listen(&state.backplane), waits);
            }
        }));
        tasks.spawn({
            let (state, stopping) = (state.clone(), background.clone());
            async move { event_collection::run(&state, &stopping).await }
        });
        tasks.spawn({
            let (state, stopping) = (state.clone(), background.clone());
            async move { canary_return::run(&state, &stopping).await }
        });
        tasks.spawn({
            let (waits, stopping) = (Arc::clone(&state.approval_waits), background.clone());
            async move {
                stopping.cancelled().await;
                waits.end();
            }
        });
        let worker = |backplane: &Backplane| AppState { backplane: backplane.clone(), ..state.clone() };
        let worker_states = self.backplanes.iter().map(worker).collect();
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
        // The first answer would wait until the client acknowledges the session tickets, which it delays by 40 ms.
        stream.set_nodelay(true)?;
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
        .graceful_shutdown_signal(move || {
            let draining = draining.clone();
            async move {
                draining.notified().await;
                tokio::time::sleep(IDLE_CLOSE_DELAY).await;
            }
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

/// An HTTP method consists of letters; TLS begins with 0x16, and older handshakes with 0x80.
fn is_plain_http(first: u8) -> bool {
    first.is_ascii_alphabetic()
}

/// Answers, and waits until the client closes the connection. The caller sets a timeout.
async fn refuse(stream: &mut CountedStream<TcpStream>) -> io::Result<()> {
    let id = RequestId::new(Uuid::now_v7()).map_err(io::Error::other)?;
    tracing::debug!(request_id = %id, peer = ?stream.peer(), "plain HTTP on the TLS port refused");
    stream.established();
    stream.write_all(&ApiError::PlainHttp.raw(id)).await?;
    stream.shutdown().await?;
    let mut left = MAX_DISCARDED_BYTES;
    let mut unread = [0; DISCARD_BYTES];
    while left > 0 {
        match stream.read(&mut unread).await? {
            0 => break,
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

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

async fn subscribe(key_cache: Arc<KeyCache>, backplane: Backplane) {
    loop {
        if let Err(error) = key_cache.listen(&backplane).await {
            tracing::warn!(error = &error as &dyn Error, "cannot hear of changed keys, every request asks");
        }
        tokio::time::sleep(SUBSCRIBE_RETRY_DELAY).await;
    }
}

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
        state_and_writer(backplane, change).0
    }

    /// As [`state`], with the task that records.
    pub(crate) fn state_and_writer(
        backplane: &Backplane,
        change: impl FnOnce(&mut GatewayConfig),
    ) -> (AppState, crate::recorder::BatchWriter) {
        let tls = TlsFiles { cert: "c".into(), key: "k".into() };
        let mut config = GatewayConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), tls);
        change(&mut config);
        let key_cache = Arc::new(KeyCache::new([1; 32]));
        let read_pool = Arc::new(ReadPool::start(config.reads_per_second_per_account, Instant::now()).unwrap());
        let (recorder, writer) = recorder(backplane.clone(), Arc::clone(&key_cache));
        (AppState::new(config, backplane.clone(), backplane.clone(), key_cache, read_pool, recorder), writer)
    }

    #[test]
    fn only_http_methods_are_taken_for_plain_http() {
        assert!([b'G', b'P', b'H', b'D', b'O', b'T', b'C', b'g'].into_iter().all(is_plain_http));
        assert!([0x16, 0x80, b'\r', b'\n', 0, b' ', b'{', b'1', 0xff].into_iter().all(|first| !is_plain_http(first)));
    }
}
