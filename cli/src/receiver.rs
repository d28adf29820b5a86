//! `stage0 receiver`: receives webhooks, verifies and shows them. To see them arrive, and to read as an example of a receiver.
//!
//! Owns two listeners, HTTPS for deliveries and plain HTTP for the page, and the order in which a delivery is judged: its
//! signature over the bytes as they came, and only then their meaning. Refuses to show anything that was not verified, and to
//! keep: what it remembers is bounded, and gone with the process. A taken port or a bad certificate ends the start.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::{App, HttpServer, web};
use anyhow::Context as _;
use rustls::ServerConfig;
use stage0_gateway::{Certificate, server_config};
use tokio_util::sync::CancellationToken;

use crate::args::VERSION;
use crate::exit::Exit;
use crate::out;
use crate::roles::{Life, serve};
use crate::settings::roles::ReceiverSettings;
use crate::vitals::Seen;

mod event;
mod hook;
mod journal;
mod page;
mod secrets;
mod sequence;
mod signature;

use hook::Hook;
use journal::Journal;
use secrets::Secrets;

/// One exporter sends 16 deliveries at a time to an endpoint.
const MOST_CONNECTIONS: usize = 256;
const HEAD_WITHIN: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(75);
const DRAIN_SECONDS: u64 = 5;

/// A receiver that is bound.
struct Receiver {
    hook: web::Data<Hook>,
    certificate: Arc<Certificate>,
    tls: ServerConfig,
    listener: TcpListener,
    page: Option<TcpListener>,
}

/// Runs until it is told to stop.
pub(crate) fn run(settings: ReceiverSettings) -> Exit {
    let ReceiverSettings { process, listen, tls, secret_file, page_listen } = settings;
    serve(process, async move |Life { stop, vitals }| {
        let certificate = Certificate::load(tls).context("cannot serve TLS")?;
        let tls = server_config(Arc::clone(&certificate)).context("cannot set TLS up")?;
        let (listener, page) = (bind(listen)?, page_listen.map(bind).transpose()?);
        hook::describe();
        let hook = web::Data::new(Hook::new(Secrets::new(secret_file), Journal::default()));
        let receiver = Receiver { hook, certificate, tls, listener, page };
        receiver.greet().context("cannot write to standard output")?;
        // A receiver that listens can do its part; that it has no secret yet is the deliverer's to hear.
        vitals.set(Box::new(|| Box::pin(async { Seen::default() })));
        Ok(receiver.run_until(stop).await?)
    })
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
}

impl Receiver {
    /// Says where it listens: with the real port when 0 was asked for.
    fn greet(&self) -> io::Result<()> {
        let address = self.listener.local_addr()?;
        let page = self.page.as_ref().map(TcpListener::local_addr).transpose()?;
        tracing::info!(version = VERSION, %address, "receiver starts");
        out::line(format!("receives at https://{address}/"))?;
        page.map_or(Ok(()), |page| out::line(format!("shows it at http://{page}/")))
    }

    /// Takes no new connections once `stop` is cancelled, finishes what is in hand and ends.
    async fn run_until(self, stop: CancellationToken) -> io::Result<()> {
        let watching = tokio::spawn(stop.clone().run_until_cancelled_owned(self.certificate.watch()));
        let deliveries = deliveries(self.listener, self.tls, self.hook.clone(), stop.clone())?;
        let page = self.page.map(|listener| page(listener, self.hook, stop.clone())).transpose()?;
        let served = match page {
            Some(page) => tokio::try_join!(deliveries, page).map(|_| ()),
            None => deliveries.await,
        };
        // One of them may have ended by a failure.
        stop.cancel();
        if let Err(error) = watching.await {
            tracing::error!(%error, "watching the certificate ended early");
        }
        served
    }
}

fn deliveries(
    listener: TcpListener,
    tls: ServerConfig,
    hook: web::Data<Hook>,
    stop: CancellationToken,
) -> io::Result<Server> {
    let server = HttpServer::new(move || App::new().app_data(hook.clone()).configure(hook::configure));
    let server = server
        .workers(1)
        .max_connections(MOST_CONNECTIONS)
        .tls_handshake_timeout(HEAD_WITHIN)
        .client_request_timeout(HEAD_WITHIN)
        .keep_alive(KEEP_ALIVE)
        .shutdown_timeout(DRAIN_SECONDS)
        .shutdown_signal(stop.cancelled_owned());
    Ok(server.listen_rustls_0_23(listener, tls)?.run())
}

fn page(listener: TcpListener, hook: web::Data<Hook>, stop: CancellationToken) -> io::Result<Server> {
    let server = HttpServer::new(move || App::new().app_data(hook.clone()).configure(page::configure));
    let server = server
        .workers(1)
        .max_connections(MOST_CONNECTIONS)
        .client_request_timeout(HEAD_WITHIN)
        .keep_alive(KEEP_ALIVE)
        .shutdown_timeout(DRAIN_SECONDS)
        .shutdown_signal(stop.cancelled_owned());
    Ok(server.listen(listener)?.run())
}
