//! `/healthz`: this process runs. `/readyz`: it can decide and record now.
//!
//! Both are open to anybody, so the answer is at most a second old and costs the backplane no more than one question of each kind
//! a second, however often it is asked for. No secret and no account is in it.

use std::time::{Duration, Instant};

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use stage0_backplane::{Backplane, CLOCK_READ_INTERVAL};
use stage0_contract::{AuditMode, EvaluatorStatus, KeystoreStatus, PolicyVersion};
use tokio::sync::Mutex;

use crate::state::Gate;

pub(super) const ALIVE: &str = "/healthz";
pub(super) const READY: &str = "/readyz";
const FRESH: Duration = Duration::from_secs(1);
const WITHIN: Duration = Duration::from_millis(800);

/// The last report, renewed by whoever asks once it is old.
#[derive(Default)]
pub(crate) struct Readiness {
    last: Mutex<Option<(Instant, Report)>>,
}

/// The body of `/readyz`.
#[derive(Debug, Clone, Serialize)]
struct Report {
    ready: bool,
    audit: AuditMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_version: Option<PolicyVersion>,
    /// What is not as it should be, or worth knowing; may be there while ready.
    reasons: Vec<String>,
}

pub(super) async fn alive() -> HttpResponse {
    HttpResponse::Ok().json(serde_json::json!({ "status": "ok" }))
}

pub(super) async fn ready(gate: Data<Gate>, _: HttpRequest) -> HttpResponse {
    let mut last = gate.readiness.last.lock().await;
    let report = match &*last {
        Some((at, report)) if at.elapsed() < FRESH => report.clone(),
        _ => {
            let audit = gate.config.audit;
            let Found { faults, mut remarks, policy_version } = look(&gate.backplane, audit).await;
            remarks.extend(gate.keyring.remark());
            let ready = faults.is_empty();
            let report = Report { ready, audit, policy_version, reasons: [faults, remarks].concat() };
            *last = Some((Instant::now(), report.clone()));
            report
        }
    };
    let mut response = if report.ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    response.json(report)
}

/// What was found out about what this gateway needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Why nothing can be decided and recorded now; none: it can.
    pub faults: Vec<String>,
    /// What an operator should know.
    pub remarks: Vec<String>,
    /// What decides, as an evaluator says.
    pub policy_version: Option<PolicyVersion>,
}

/// Asks everybody that a check needs, each with one question.
pub async fn look(backplane: &Backplane, audit: AuditMode) -> Found {
    let requests = &backplane.requests;
    let until = tokio::time::Instant::now() + WITHIN;
    let (carried, evaluator, keystore, log, clock) = tokio::join!(
        requests.ready(),
        requests.ask(&EvaluatorStatus {}, WITHIN),
        requests.ask(&KeystoreStatus {}, WITHIN),
        backplane.log.ready(),
        backplane.ledger.read_clock(CLOCK_READ_INTERVAL, until),
    );
    let mut faults = Vec::new();
    if let Err(error) = carried {
        faults.push(format!("backplane: {error}"));
    }
    if let Err(error) = &evaluator {
        faults.push(format!("evaluator: {error}"));
    }
    if let Err(error) = &keystore {
        faults.push(format!("keystore: {error}"));
    }
    let mut remarks = Vec::new();
    match clock {
        Ok(()) => remarks.extend(backplane.ledger.clock().remark().map(|remark| format!("clock: {remark}"))),
        Err(error) => faults.push(format!("clock: {error}")),
    }
    match (log, audit) {
        (Ok(said), _) => remarks.extend(said),
        (Err(error), AuditMode::Required) => faults.push(format!("audit: {error}")),
        (Err(error), AuditMode::BestEffort | AuditMode::None) => remarks.push(format!("audit: {error}")),
    }
    match audit {
        AuditMode::Required => {}
        AuditMode::BestEffort => {
            remarks.push("audit: best-effort: a decision is released even when it is not recorded".into());
        }
        AuditMode::None => remarks.push("audit: nothing is recorded".into()),
    }
    if let Ok(keystore) = keystore {
        if !keystore.writable {
            remarks.push("keystore: cannot store changes, keys can be verified but not managed".into());
        }
        if keystore.disk_low {
            remarks.push("keystore: disk is nearly full, keys can be revoked but not created".into());
        }
    }
    Found { faults, remarks, policy_version: evaluator.ok().map(|status| status.active) }
}
