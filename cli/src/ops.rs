//! The operator's listener: `/metrics` for Prometheus, `/healthz` and `/readyz`, over plain HTTP, where one is asked for.
//!
//! Owns the recorder of the process and that listener; what is counted, and how it is called, is each service's, and whether a role can do
//! its part is asked of [`Vitals`]. Nobody is asked who he is, so it belongs on an address that only a scraper reaches. It holds numbers
//! and reasons, no secret and no account. When it cannot listen, the role does not start; it ends after the role.

use std::net::SocketAddr;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpResponse, HttpServer, guard, web};
use anyhow::Context as _;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::vitals::Vitals;

/// Seconds: a check takes a millisecond or a few, and its budget is two seconds.
const BUCKETS: &[f64] = &[0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Histograms that need others: a policy decides in some hundred microseconds, a delivery may be tried for a day, and one counts.
const OTHER_BUCKETS: [(&str, &[f64]); 3] = [
    (
        "stage0_decide_seconds",
        &[0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0],
    ),
    (
        "stage0_delivery_delay_seconds",
        &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0],
    ),
    ("stage0_run_checks_together", &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]),
];
/// The recorder keeps single measurements until then.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Scrapers are few.
const MOST_CONNECTIONS: usize = 64;
const HEAD_WITHIN: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(75);
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Counts and serves until it is stopped.
pub(crate) struct Ops {
    server: ServerHandle,
    serving: JoinHandle<std::io::Result<()>>,
    upkeep: JoinHandle<()>,
}

impl Ops {
    /// From here on the process counts; so the services are built after it.
    pub(crate) fn start(address: SocketAddr, vitals: &Vitals) -> anyhow::Result<Self> {
        let recorder = recorder().context("cannot count metrics")?;
        let (told, scraped, vitals) = (recorder.clone(), recorder, vitals.clone());
        let server = HttpServer::new(move || {
            let (recorder, vitals) = (scraped.clone(), vitals.clone());
            let scrape = move || {
                let recorder = recorder.clone();
                async move { page(&recorder) }
            };
            let ready = move || {
                let vitals = vitals.clone();
                async move { readiness(&vitals).await }
            };
            let get = || web::route().guard(guard::Any(guard::Get()).or(guard::Head()));
            App::new()
                .route("/metrics", get().to(scrape))
                .route("/healthz", get().to(|| async { HttpResponse::Ok().json(json!({ "status": "ok" })) }))
                .route("/readyz", get().to(ready))
        });
        let server = server
            .workers(1)
            .max_connections(MOST_CONNECTIONS)
            .client_request_timeout(HEAD_WITHIN)
            .keep_alive(KEEP_ALIVE)
            .disable_signals()
            .bind(address)
            .with_context(|| format!("cannot serve metrics and health on {address}"))?;
        for address in server.addrs() {
            tracing::info!(%address, "metrics and health are served");
        }
        let serving = server.run();
        let server = serving.handle();
        Ok(Self { server, serving: tokio::spawn(serving), upkeep: tokio::spawn(upkeep(told)) })
    }

    /// Without waiting for scrapers.
    pub(crate) async fn stop(self) {
        self.upkeep.abort();
        self.server.stop(false).await;
        match self.serving.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "metrics and health were served no longer"),
            Err(error) => tracing::warn!(%error, "serving metrics and health ended early"),
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

fn page(recorder: &PrometheusHandle) -> HttpResponse {
    HttpResponse::Ok().insert_header(("content-type", TEXT)).body(recorder.render())
}

async fn readiness(vitals: &Vitals) -> HttpResponse {
    let seen = vitals.look().await;
    let ready = seen.faults.is_empty();
    let mut answer = if ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    let reasons: Vec<_> = seen.faults.iter().chain(&seen.remarks).collect();
    answer.json(json!({ "ready": ready, "policy_version": seen.policy_version, "reasons": reasons }))
}

async fn upkeep(recorder: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        recorder.run_upkeep();
    }
}
