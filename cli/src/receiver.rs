//! `stage0 receiver`: a demo webhook receiver. It verifies deliveries and shows them on standard output and on a page.
//!
//! Owns two listeners: HTTPS for deliveries, plain HTTP for the page. A delivery's signature is checked over the raw
//! bytes before its body is parsed, and nothing of an unverified delivery is shown. All state is bounded and in memory.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::web::{self, ServiceConfig};
use actix_web::{App, HttpServer};
use anyhow::Context as _;
use rustls::ServerConfig;
use stage0_gateway::{Certificate, server_config};
use stage0_runtime::ProcessContext;
use stage0_runtime::heartbeat::HealthReport;
use tokio_util::sync::CancellationToken;

use crate::args::VERSION;
use crate::exit::Exit;
use crate::out;
use crate::roles::serve;
use crate::settings::roles::ReceiverSettings;

mod event;
mod hook;
mod journal;
mod page;
mod sequence;
mod signature;

use hook::Hook;

/// An exporter sends up to 16 deliveries at a time to one endpoint.
const MAX_CONNECTIONS: usize = 256;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);
const DRAIN_SECONDS: u64 = 5;

pub(crate) fn run(settings: ReceiverSettings) -> Exit {
    let ReceiverSettings { process, listen, tls, secret_file, page_listen } = settings;
    serve(process, "receiver", async move |ProcessContext { stop, health }| {
        let certificate = Certificate::load(tls).context("cannot serve TLS")?;
        let tls = server_config(Arc::clone(&certificate)).context("cannot set TLS up")?;
        let listener = bind(listen)?;
        let page = page_listen.map(bind).transpose()?;
        announce(&listener, page.as_ref()).context("cannot write to standard output")?;
        // A missing secret does not make the receiver unready: it answers 503 and the sender retries.
        health.set_probe(Box::new(|| Box::pin(async { HealthReport::default() })));

        let hook = web::Data::new(Hook::new(secret_file));
        let watching = tokio::spawn(stop.clone().run_until_cancelled_owned(certificate.watch()));
        let deliveries = server(listener, Some(tls), hook::configure, hook.clone(), &stop)?;
        let served = match page {
            Some(page) => {
                let page = server(page, None, page::configure, hook, &stop)?;
                tokio::try_join!(deliveries, page).map(|_| ())
            }
            None => deliveries.await,
        };
        // If one server failed, the other must end too.
        stop.cancel();
        if let Err(error) = watching.await {
            tracing::error!(error = &error as &dyn std::error::Error, "watching the certificate ended early");
        }
        Ok(served?)
    })
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
}

/// Prints the addresses with the ports that were bound: they differ from the settings where port 0 was given.
fn announce(deliveries: &TcpListener, page: Option<&TcpListener>) -> io::Result<()> {
    let address = deliveries.local_addr()?;
    tracing::info!(version = VERSION, %address, "receiver starts");
    out::line(format!("receives at https://{address}/"))?;
    match page {
        Some(page) => out::line(format!("shows it at http://{}/", page.local_addr()?)),
        None => Ok(()),
    }
}

fn server(
    listener: TcpListener,
    tls: Option<ServerConfig>,
    configure: fn(&mut ServiceConfig),
    hook: web::Data<Hook>,
    stop: &CancellationToken,
) -> io::Result<Server> {
    let server = HttpServer::new(move || App::new().app_data(hook.clone()).configure(configure))
        .workers(1)
        .max_connections(MAX_CONNECTIONS)
        .tls_handshake_timeout(HEAD_TIMEOUT)
        .client_request_timeout(HEAD_TIMEOUT)
        .keep_alive(KEEP_ALIVE_TIMEOUT)
        .shutdown_timeout(DRAIN_SECONDS)
        .shutdown_signal(stop.clone().cancelled_owned());
    let server = match tls {
        Some(tls) => server.listen_rustls_0_23(listener, tls)?,
        None => server.listen(listener)?,
    };
    Ok(server.run())
}
