//! Whether a check can be decided and recorded now, and what an operator should know besides.
//!
//! `/readyz` is open to anyone, so its report is cached for a second: however often it is requested, the backplane gets
//! at most one request of each kind per second. The report holds no secret and names no account.

use std::time::{Duration, Instant};

use stage0_backplane::{Backplane, CLOCK_READ_INTERVAL};
use stage0_contract::{EvaluatorStatus, KeystoreStatus, PolicyVersion, ReadinessReport};
use tokio::sync::Mutex;

use crate::config::Audit;

const REPORT_TTL: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);

#[derive(Default)]
pub(crate) struct Readiness {
    last: Mutex<Option<(Instant, ReadinessReport)>>,
}

impl Readiness {
    pub(crate) async fn report(
        &self,
        backplane: &Backplane,
        audit: Audit,
        own_remarks: impl FnOnce() -> Vec<String>,
    ) -> ReadinessReport {
        let mut last = self.last.lock().await;
        if let Some((at, report)) = &*last
            && at.elapsed() < REPORT_TTL
        {
            return report.clone();
        }
        let Probe { faults, mut remarks, policy_version } = probe(backplane, audit).await;
        remarks.extend(own_remarks());
        let (ready, audit) = (faults.is_empty(), audit.into());
        let report = ReadinessReport { ready, audit, policy_version, reasons: [faults, remarks].concat() };
        *last = Some((Instant::now(), report.clone()));
        report
    }
}

/// What [`probe`] found about the services that a check needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Why nothing can be decided and recorded now; empty if it can.
    pub faults: Vec<String>,
    /// What an operator should know.
    pub remarks: Vec<String>,
    /// The active policy version, as an evaluator reports it.
    pub policy_version: Option<PolicyVersion>,
}

/// Sends one request to everything that a check needs.
pub async fn probe(backplane: &Backplane, audit: Audit) -> Probe {
    let requests = &backplane.requests;
    let deadline = tokio::time::Instant::now() + PROBE_TIMEOUT;
    let (connection, evaluator, keystore, log, clock) = tokio::join!(
        requests.ready(),
        requests.request(&EvaluatorStatus {}, PROBE_TIMEOUT),
        requests.request(&KeystoreStatus {}, PROBE_TIMEOUT),
        backplane.log.ready(),
        backplane.state_store.read_clock(CLOCK_READ_INTERVAL, deadline),
    );
    let mut faults = Vec::new();
    faults.extend(connection.err().map(|error| format!("backplane: {error}")));
    faults.extend(evaluator.as_ref().err().map(|error| format!("evaluator: {error}")));
    faults.extend(keystore.as_ref().err().map(|error| format!("keystore: {error}")));
    let mut remarks = Vec::new();
    match clock {
        Ok(()) => remarks.extend(backplane.state_store.clock().remark().map(|remark| format!("clock: {remark}"))),
        Err(error) => faults.push(format!("clock: {error}")),
    }
    match (log, audit) {
        (Ok(log_remarks), _) => remarks.extend(log_remarks),
        (Err(error), Audit::Required) => faults.push(format!("audit: {error}")),
        (Err(error), Audit::BestEffort) => remarks.push(format!("audit: {error}")),
    }
    if audit == Audit::BestEffort {
        remarks.push("audit: best-effort: a decision is released even when it is not recorded".into());
    }
    if let Ok(keystore) = keystore {
        if !keystore.writable {
            remarks.push("keystore: cannot store changes, keys can be verified but not managed".into());
        }
        if keystore.disk_low {
            remarks.push("keystore: disk is nearly full, keys can be revoked but not created".into());
        }
    }
    Probe { faults, remarks, policy_version: evaluator.ok().map(|status| status.active) }
}
