//! The floors: what TLS, JSON and a request over NATS cost without the product.
//!
//! They serve within this program, or as processes of their own, whose CPU time is then comparable with that of the
//! product's processes.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::web::{Bytes, Data, Json, ServiceConfig, post};
use actix_web::{App, HttpResponse, HttpServer};
use clap::Subcommand;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stage0_backplane::Backplane;
use stage0_backplane::nats::NatsConfig;
use stage0_contract::{Request, TestMessage};
use stage0_gateway::TlsFiles;
use tokio::time::{Duration, Instant};

/// Connections idle while others have their turn.
pub(crate) const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3_600);

/// What a floor's process says first, before its address.
pub(crate) const SERVES: &str = "floor serves";

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Floor {
    /// Answers JSON over TLS with itself
    Tls { tls_dir: PathBuf },
    /// Does the same with a request over NATS in between
    Asker { tls_dir: PathBuf, nats: String },
    /// Answers requests over NATS with themselves
    Responder { nats: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct Echo {
    body: Value,
}

impl TestMessage for Echo {}

impl Request for Echo {
    const SUBJECT: &'static str = "bench.echo";
    type Reply = Echo;
}

/// Parses JSON and writes it back.
pub(crate) fn tls_echo(tls: &TlsFiles, workers: usize) -> anyhow::Result<SocketAddr> {
    serve(tls, workers, |app| {
        app.route("/echo", post().to(async |body: Json<Value>| HttpResponse::Ok().json(body.0)));
    })
}

/// Answers requests over NATS with themselves, until the connection ends.
pub(crate) async fn nats_responder(nats: &NatsConfig) -> anyhow::Result<impl Future<Output = ()> + use<>> {
    let responder = Backplane::connect(nats).await?;
    let mut inbox = responder.requests.serve::<Echo>().await?;
    Ok(async move {
        let _open = responder;
        while let Some(question) = inbox.next().await {
            let reply = Echo { body: question.request.body.clone() };
            question.answer(&reply).await;
        }
    })
}

/// Does the same as [`tls_echo`] with a request to a responder in between; one connection for each worker.
pub(crate) async fn nats_echo(tls: &TlsFiles, workers: usize, nats: &NatsConfig) -> anyhow::Result<SocketAddr> {
    let mut askers = Vec::new();
    for _ in 0..workers {
        askers.push(Backplane::connect(nats).await?);
    }
    let turn = Arc::new(AtomicUsize::new(0));
    serve(tls, workers, move |app| {
        if let Some(asker) = askers.get(turn.fetch_add(1, Ordering::Relaxed) % askers.len().max(1)) {
            app.app_data(Data::new(asker.clone()));
        }
        app.route("/echo", post().to(ask));
    })
}

/// Runs one floor in this process until it is killed; says on standard output that it serves, and where.
pub(crate) async fn run_floor(floor: &Floor) -> anyhow::Result<()> {
    let workers = workers();
    let nats = |url: &String| NatsConfig::new(url, "bench");
    match floor {
        Floor::Tls { tls_dir } => {
            println!("{SERVES} {}", tls_echo(&stage0_gateway::dev_tls(tls_dir)?.0, workers)?);
        }
        Floor::Asker { tls_dir, nats: url } => {
            let tls = stage0_gateway::dev_tls(tls_dir)?.0;
            println!("{SERVES} {}", nats_echo(&tls, workers, &nats(url)).await?);
        }
        Floor::Responder { nats: url } => {
            let serving = nats_responder(&nats(url)).await?;
            println!("{SERVES} {url}");
            serving.await;
        }
    }
    std::future::pending().await
}

/// As many as a gateway has.
pub(crate) fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn serve(
    tls: &TlsFiles,
    workers: usize,
    configure: impl Fn(&mut ServiceConfig) + Clone + Send + 'static,
) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let server = HttpServer::new(move || App::new().configure(&configure));
    let server = server.workers(workers).keep_alive(KEEP_ALIVE_TIMEOUT).disable_signals();
    tokio::spawn(server.listen_rustls_0_23(listener, config(tls)?)?.run());
    Ok(address)
}

async fn ask(asker: Data<Backplane>, body: Bytes) -> HttpResponse {
    let Ok(body) = serde_json::from_slice(&body) else { return HttpResponse::BadRequest().finish() };
    match asker.requests.request_until(&Echo { body }, Instant::now() + Duration::from_secs(2)).await {
        Ok(echo) => HttpResponse::Ok().json(echo.body),
        Err(_) => HttpResponse::ServiceUnavailable().finish(),
    }
}

fn config(tls: &TlsFiles) -> anyhow::Result<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(&tls.cert)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&tls.key)?;
    Ok(ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?)
}
