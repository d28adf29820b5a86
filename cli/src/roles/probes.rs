//! The health probes of the roles: what makes each of them ready, and what an operator should know.

use std::time::Duration;

use stage0_audit_export::{Lag, LagTracker, Listing};
use stage0_backplane::Backplane;
use stage0_contract::{DeliveryLag, PolicyVersion, RUN_RECORDS};
use stage0_evaluator::LoadedPolicies;
use stage0_gateway::Audit;
use stage0_keystore::Health;
use stage0_runtime::heartbeat::{HealthReport, Probe};
use tokio::time::Instant;

/// For reading one record of the state store.
const STATE_STORE_TIMEOUT: Duration = Duration::from_millis(800);

/// As `/readyz` of the gateway itself; where the exporter runs in the same process, also its lag.
pub(crate) fn gateway(own: Backplane, audit: Audit, lag: Option<LagTracker>) -> Probe {
    Box::new(move || {
        let own = own.clone();
        let delivery = lag.as_ref().map(delivery);
        let stopped = lag.as_ref().and_then(LagTracker::retention_stopped);
        Box::pin(async move {
            let stage0_gateway::Probe { faults, mut remarks, policy_version } =
                stage0_gateway::probe(&own, audit).await;
            remarks.extend(stopped);
            HealthReport { faults, remarks, policy_version, delivery, ..HealthReport::default() }
        })
    })
}

pub(crate) fn evaluator(own: Backplane, active: PolicyVersion) -> Probe {
    Box::new(move || {
        let own = own.clone();
        let active = active.clone();
        Box::pin(async move {
            let mut report = HealthReport { policy_version: Some(active), ..backplane_report(&own).await };
            if let Err(error) = own.state_store.ready().await {
                report.faults.push(format!("ledger: {error}"));
            }
            // Checks without a run are decided even if this fails.
            let record =
                own.state_store.get(&format!("{RUN_RECORDS}.ready"), Instant::now() + STATE_STORE_TIMEOUT).await;
            if let Err(error) = record {
                report.remarks.push(format!("ledger: {error}: {}: checks of runs cannot be decided", error.0));
            }
            report
        })
    })
}

/// The same probe in a process that decides checks: it also says which published policies are loaded, and is not ready
/// before those that are active.
pub(crate) fn with_policies(probe: Probe, policies: LoadedPolicies) -> Probe {
    Box::new(move || {
        let (report, policies) = (probe(), policies.clone());
        Box::pin(async move {
            let mut report = HealthReport { policies: policies.versions(), ..report.await };
            if !policies.is_preloaded() {
                report.faults.push("the active policies are still being loaded".to_owned());
            }
            report
        })
    })
}

pub(crate) fn keystore(own: Backplane, health: Health) -> Probe {
    Box::new(move || {
        let own = own.clone();
        let health = health.clone();
        Box::pin(async move {
            let mut report = backplane_report(&own).await;
            if let Err(error) = own.state_store.ready().await {
                report.faults.push(format!("ledger: {error}"));
            }
            report.faults.extend(health.fault());
            report.remarks.extend(health.remark());
            if !health.writable() {
                report.remarks.push("cannot store changes: keys can be verified but not managed".to_owned());
            }
            if health.disk_low() {
                report.remarks.push("disk is nearly full: keys can be revoked but not created".to_owned());
            }
            if health.rolled_back() {
                report.remarks.push(
                    "the decision log holds marks that are newer than the data directory: unless it was restored with \
                     --accept-restore, revoked keys may live again (docs/OPERATIONS.md)"
                        .to_owned(),
                );
            }
            report
        })
    })
}

pub(crate) fn audit_export(own: Backplane, lag: LagTracker) -> Probe {
    Box::new(move || {
        let own = own.clone();
        let delivery = delivery(&lag);
        let listing = lag.listing();
        let stopped = lag.retention_stopped();
        Box::pin(async move {
            let mut report = HealthReport { delivery: Some(delivery), ..backplane_report(&own).await };
            match listing {
                Listing::Never => {
                    report.faults.push("endpoints could not be listed yet: the keystore does not answer".to_owned());
                }
                Listing::Failed => {
                    report.remarks.push("endpoints cannot be listed: those that are known are served".to_owned());
                }
                Listing::Current => {}
            }
            report.remarks.extend(stopped);
            match own.log.ready().await {
                Ok(remarks) => report.remarks.extend(remarks),
                Err(error) => report.faults.push(format!("log: {error}")),
            }
            report
        })
    })
}

fn delivery(lag: &LagTracker) -> DeliveryLag {
    let Lag { held, behind, oldest_seconds, .. } = lag.snapshot();
    DeliveryLag { endpoints: held, behind, oldest_seconds }
}

async fn backplane_report(own: &Backplane) -> HealthReport {
    let faults = own.requests.ready().await.err().map(|error| format!("backplane: {error}"));
    HealthReport { faults: faults.into_iter().collect(), ..HealthReport::default() }
}
