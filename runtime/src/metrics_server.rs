//! Serves `/metrics` for Prometheus, `/healthz` and `/readyz` over plain HTTP, where an address is configured.
//!
//! There is no authentication, so it belongs on an address that only a scraper reaches; it serves numbers and reasons,
//! no secret and no account. If it cannot listen, the role does not start.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpResponse, HttpServer, guard, web};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::BuildInfo;
use crate::heartbeat::HealthMonitor;
use crate::process_metrics;

/// In seconds: a check takes a few milliseconds, and its budget is two seconds.
const BUCKETS: &[f64] = &[0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Histograms with other ranges: a policy decides in some hundred microseconds, a delivery may take a day of retries,
/// and two count checks or runs.
const OTHER_BUCKETS: [(&str, &[f64]); 4] = [
    (
        "stage0_decide_seconds",
        &[0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0],
    ),
    (
        "stage0_delivery_delay_seconds",
        &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0],
    ),
    ("stage0_run_checks_together", &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]),
    ("stage0_run_changes_together", &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]),
];
/// The recorder keeps every single measurement until its upkeep aggregates them.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(75);
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The running server and the recorder's upkeep.
pub struct MetricsServer {
    server: ServerHandle,
    serving: JoinHandle<std::io::Result<()>>,
    upkeep: JoinHandle<()>,
}

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum MetricsError {
    #[error("cannot count metrics")]
    Recorder(#[source] BuildError),
    #[error("cannot serve metrics and health on {address}")]
    Bind { address: SocketAddr, source: std::io::Error },
}

impl MetricsServer {
    /// Installs the recorder and serves. What is counted before is lost, so services are built after this.
    pub fn start(address: SocketAddr, build: BuildInfo, health: &HealthMonitor) -> Result<Self, MetricsError> {
        let recorder = recorder().map_err(MetricsError::Recorder)?;
        let scraped = recorder.clone();
        let health = health.clone();
        let server = HttpServer::new(move || {
            let recorder = scraped.clone();
            let health = health.clone();
            let own_health = health.clone();
            let scrape = move || {
                let (recorder, health) = (recorder.clone(), own_health.clone());
                async move { metrics(&recorder, build, &health).await }
            };
            let ready = move || {
                let health = health.clone();
                async move { readiness(&health).await }
            };
            let get = || web::route().guard(guard::Any(guard::Get()).or(guard::Head()));
            App::new()
                .route("/metrics", get().to(scrape))
                .route("/healthz", get().to(|| async { HttpResponse::Ok().json(json!({ "status": "ok" })) }))
                .route("/readyz", get().to(ready))
        });
        let server = server
            .workers(1)
            .max_connections(MAX_CONNECTIONS)
            .client_request_timeout(HEADER_TIMEOUT)
            .keep_alive(KEEP_ALIVE)
            .disable_signals()
            .bind(address)
            .map_err(|source| MetricsError::Bind { address, source })?;
        for address in server.addrs() {
            tracing::info!(%address, "metrics and health are served");
        }
        let serving = server.run();
        let server = serving.handle();
        Ok(Self { server, serving: tokio::spawn(serving), upkeep: tokio::spawn(upkeep(recorder)) })
    }

    /// Ends at once, without waiting for scrapers.
    pub async fn stop(self) {
        self.upkeep.abort();
        self.server.stop(false).await;
        match self.serving.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = &error as &dyn Error, "the metrics server failed"),
            Err(error) => tracing::warn!(error = &error as &dyn Error, "the metrics server ended early"),
        }
    }
}

fn recorder() -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new().set_buckets(BUCKETS)?;
    for (name, buckets) in OTHER_BUCKETS {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)?;
    }
    builder.install_recorder()
}

async fn metrics(recorder: &PrometheusHandle, build: BuildInfo, health: &HealthMonitor) -> HttpResponse {
    let is_ready = health.report().await.faults.is_empty();
    let own = process_metrics::render(build, health.started_at(), is_ready);
    HttpResponse::Ok().insert_header(("content-type", CONTENT_TYPE)).body(recorder.render() + &own)
}

async fn readiness(health: &HealthMonitor) -> HttpResponse {
    let report = health.report().await;
    let ready = report.faults.is_empty();
    let mut answer = if ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    let reasons: Vec<_> = report.faults.iter().chain(&report.remarks).collect();
    answer.json(json!({ "ready": ready, "policy_version": report.policy_version, "reasons": reasons }))
}

async fn upkeep(recorder: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        recorder.run_upkeep();
    }
}
