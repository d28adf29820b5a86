//! This process's health: served by `/readyz`, and sent to the gateways as a heartbeat every two seconds.
//!
//! What makes a role ready is the role's own [`Probe`]. Heartbeats are best effort: a lost one is followed by the next.
//! A process that is not ready says why in its log, at a limited rate, and when it is ready again.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use stage0_backplane::{Backplane, BoxFuture, PublishError, WaitReason};
use stage0_contract::{
    DeliveryLag, InstanceHeartbeat, InstanceState, MAX_LISTED_POLICIES, PROTOCOL_VERSION, PolicyVersion, Role,
};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

/// How long a report is reused, so that frequent requests of `/readyz` cost nothing.
const REPORT_TTL: Duration = Duration::from_secs(1);
/// A probe that takes longer counts as a fault.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Examines one role.
pub type Probe = Box<dyn Fn() -> BoxFuture<'static, HealthReport> + Send + Sync>;

/// What a probe finds.
#[derive(Debug, Clone, Default)]
pub struct HealthReport {
    /// Why the role cannot do its part; the role is ready while there is none.
    pub faults: Vec<String>,
    /// What an operator should know although the role is ready.
    pub remarks: Vec<String>,
    /// The active policy of an evaluator.
    pub policy_version: Option<PolicyVersion>,
    /// The published policies that an evaluator has loaded.
    pub policies: Vec<PolicyVersion>,
    /// How far the deliveries of an exporter are behind.
    pub delivery: Option<DeliveryLag>,
}

impl HealthReport {
    fn fault(text: impl Into<String>) -> Self {
        Self { faults: vec![text.into()], ..Self::default() }
    }
}

/// The health of this process; clones share it.
#[derive(Clone)]
pub struct HealthMonitor(Arc<Inner>);

struct Inner {
    instance: String,
    version: String,
    started_at: Timestamp,
    stop: CancellationToken,
    /// Unset while the process starts.
    probe: OnceLock<Probe>,
    /// What the process waits for before it has a probe.
    start_waits: OnceLock<WaitReason>,
    not_ready: WaitReason,
    last: Mutex<Option<(Instant, HealthReport)>>,
}

impl HealthMonitor {
    /// For a process that starts now, and stops when the token is cancelled.
    pub fn new(version: impl Into<String>, stop: CancellationToken) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        // Containers may share a host name, and each process may be the first of its container.
        let mut own = [0; 3];
        let instance = match getrandom::fill(&mut own) {
            Ok(()) => format!("{host}-{}", data_encoding::HEXLOWER.encode(&own)),
            Err(_) => format!("{host}-{}", std::process::id()),
        };
        Self(Arc::new(Inner {
            instance,
            version: version.into(),
            started_at: Timestamp::now(),
            stop,
            probe: OnceLock::new(),
            start_waits: OnceLock::new(),
            not_ready: WaitReason::default(),
            last: Mutex::default(),
        }))
    }

    pub(crate) fn started_at(&self) -> Timestamp {
        self.0.started_at
    }

    /// Registers the role's probe. The first one stays.
    pub fn set_probe(&self, probe: Probe) {
        let _ = self.0.probe.set(probe);
    }

    /// Registers where the start says what it waits for. The first one stays.
    pub fn set_start_waits(&self, start_waits: WaitReason) {
        let _ = self.0.start_waits.set(start_waits);
    }

    /// The current report, or one that is at most one second old.
    pub async fn report(&self) -> HealthReport {
        if self.0.stop.is_cancelled() {
            return HealthReport::fault("it stops");
        }
        let mut last = self.0.last.lock().await;
        if let Some((at, report)) = &*last
            && at.elapsed() < REPORT_TTL
        {
            return report.clone();
        }
        let Some(probe) = self.0.probe.get() else {
            let waits_for = self.0.start_waits.get().and_then(WaitReason::get);
            return HealthReport::fault(waits_for.unwrap_or_else(|| "it starts".to_owned()));
        };
        let report = timeout(PROBE_TIMEOUT, probe()).await.unwrap_or_else(|_| {
            HealthReport::fault(format!("its health could not be determined within {PROBE_TIMEOUT:?}"))
        });
        *last = Some((Instant::now(), report.clone()));
        report
    }

    /// Sends heartbeats until it is stopped, and then one that says so. Ends with `stop`.
    async fn send_heartbeats(self, roles: &'static [Role], backplane: Backplane, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(InstanceHeartbeat::INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut had_faults = false;
        loop {
            let stopping = tokio::select! {
                _ = ticks.tick() => false,
                () = stop.cancelled() => true,
            };
            let report = if stopping { HealthReport::default() } else { self.report().await };
            // A single report may be from the moment of the start, or of a peer's.
            if !stop.is_cancelled() && (had_faults || report.faults.is_empty()) {
                self.log_readiness(&report);
            }
            had_faults = !report.faults.is_empty();
            for role in roles {
                let heartbeat = self.heartbeat(*role, &report, stopping);
                let sent = match serde_json::to_vec(&heartbeat) {
                    Ok(bytes) => backplane.notices.publish_bytes(InstanceHeartbeat::subject(*role), bytes.into()).await,
                    Err(_) => Err(PublishError),
                };
                if sent.is_err() {
                    tracing::debug!(%role, "a heartbeat was not sent");
                }
            }
            if stopping {
                return;
            }
        }
    }

    fn log_readiness(&self, report: &HealthReport) {
        if report.faults.is_empty() {
            if self.0.not_ready.clear() {
                tracing::info!("ready again");
            }
            return;
        }
        let why = report.faults.join("; ");
        if self.0.not_ready.set(&why) {
            tracing::warn!(why, "not ready");
        }
    }

    fn heartbeat(&self, role: Role, report: &HealthReport, stopping: bool) -> InstanceHeartbeat {
        let state = match (stopping, report.faults.is_empty()) {
            (true, _) => InstanceState::Stopping,
            (false, true) => InstanceState::Ready,
            (false, false) => InstanceState::NotReady,
        };
        let is_evaluator = role == Role::Evaluator;
        let policies = report.policies.iter().filter(|_| is_evaluator).take(MAX_LISTED_POLICIES);
        InstanceHeartbeat {
            log_edition: InstanceHeartbeat::LOG_EDITION,
            policy_edition: if is_evaluator { InstanceHeartbeat::POLICY_EDITION } else { 0 },
            policies: policies.cloned().collect(),
            protocol_version: PROTOCOL_VERSION,
            role,
            instance: self.0.instance.clone(),
            version: self.0.version.clone(),
            started_at: self.0.started_at,
            state,
            remarks: InstanceHeartbeat::remarks_of(report.faults.iter().chain(&report.remarks).cloned()),
            policy_version: report.policy_version.clone().filter(|_| is_evaluator),
            delivery: report.delivery.filter(|_| role == Role::AuditExport),
        }
    }
}

/// The task that sends the heartbeats of a process.
pub struct HeartbeatTask {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl HeartbeatTask {
    /// Registers the probe and sends heartbeats for `roles`, the last of them once `stop` is cancelled.
    pub fn start(
        health: &HealthMonitor,
        roles: &'static [Role],
        backplane: Backplane,
        probe: Probe,
        stop: &CancellationToken,
    ) -> Self {
        health.set_probe(probe);
        let stop = stop.child_token();
        let task = tokio::spawn(health.clone().send_heartbeats(roles, backplane, stop.clone()));
        Self { stop, task }
    }

    /// Sends the last heartbeat; also for a role that ends by itself.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(error = &error as &dyn std::error::Error, "the heartbeat task ended early");
        }
    }
}

#[cfg(test)]
mod tests {
    use stage0_backplane::Event;

    use super::*;

    fn probe(fault: &str) -> Probe {
        let fault = fault.to_owned();
        Box::new(move || {
            let faults = vec![fault.clone()];
            Box::pin(async move { HealthReport { faults, ..HealthReport::default() } })
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_is_not_ready_until_its_probe_is_registered() {
        let health = HealthMonitor::new("1", CancellationToken::new());
        assert_eq!(health.report().await.faults, ["it starts"]);
        health.set_probe(probe("x"));
        assert_eq!(health.report().await.faults, ["x"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_waits_while_it_starts_says_for_what() {
        let (health, waits) = (HealthMonitor::new("1", CancellationToken::new()), WaitReason::default());
        health.set_start_waits(waits.clone());
        assert_eq!(health.report().await.faults, ["it starts"]);
        assert!(waits.set("no server"));
        assert_eq!(health.report().await.faults, ["no server"]);
        waits.clear();
        assert_eq!(health.report().await.faults, ["it starts"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_hangs_is_reported_as_a_fault() {
        let health = HealthMonitor::new("1", CancellationToken::new());
        health.set_probe(Box::new(|| Box::pin(std::future::pending())));
        assert!(health.report().await.faults[0].contains("could not be determined"));
    }

    /// Gateways write lines of newer types only when every process says that it can read them.
    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_of_each_role_says_which_lines_of_the_log_it_can_read() {
        let (backplane, stop) = (Backplane::embedded(), CancellationToken::new());
        let health = HealthMonitor::new("1", stop.clone());
        let mut received = Vec::new();
        for role in Role::ALL {
            received.push(backplane.notices.subscribe_bytes(InstanceHeartbeat::subject(role)).await.unwrap());
        }
        let sending = tokio::spawn(health.send_heartbeats(&Role::ALL, backplane.clone(), stop.clone()));
        for (role, received) in Role::ALL.into_iter().zip(&mut received) {
            let Some(Event::Message(bytes)) = received.next().await else { panic!("no heartbeat of {role}") };
            let heartbeat = serde_json::from_slice::<serde_json::Value>(&bytes).unwrap();
            assert_eq!((&heartbeat["role"], &heartbeat["log_edition"]), (&role.as_str().into(), &1.into()), "{role}");
        }
        stop.cancel();
        sending.await.unwrap();
    }

    /// Gateways send checks of accounts with a policy of their own to no evaluator that would decide by another.
    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_of_an_evaluator_alone_says_that_it_decides_by_published_policies_and_which_it_has() {
        let (backplane, stop) = (Backplane::embedded(), CancellationToken::new());
        let health = HealthMonitor::new("1", stop.clone());
        let version = PolicyVersion::parse("ours@1.0.0+0123456789ab").unwrap();
        let policies = vec![version.clone(); MAX_LISTED_POLICIES + 1];
        health.set_probe(Box::new(move || {
            let policies = policies.clone();
            Box::pin(async move { HealthReport { policies, ..HealthReport::default() } })
        }));
        let mut received = Vec::new();
        for role in Role::ALL {
            received.push(backplane.notices.subscribe_bytes(InstanceHeartbeat::subject(role)).await.unwrap());
        }
        let sending = tokio::spawn(health.send_heartbeats(&Role::ALL, backplane.clone(), stop.clone()));
        for (role, received) in Role::ALL.into_iter().zip(&mut received) {
            let Some(Event::Message(bytes)) = received.next().await else { panic!("no heartbeat of {role}") };
            let heartbeat = serde_json::from_slice::<InstanceHeartbeat>(&bytes).unwrap();
            let expected = if role == Role::Evaluator { (1, MAX_LISTED_POLICIES) } else { (0, 0) };
            assert_eq!((heartbeat.policy_edition, heartbeat.policies.len()), expected, "{role}");
            assert!(heartbeat.is_small() && heartbeat.policies.iter().all(|listed| *listed == version));
        }
        stop.cancel();
        sending.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_carry_the_health_of_a_process_and_that_it_stops() {
        let (backplane, stop) = (Backplane::embedded(), CancellationToken::new());
        let health = HealthMonitor::new("1", stop.clone());
        health.set_probe(probe("x"));
        let mut received = backplane.notices.subscribe_bytes(InstanceHeartbeat::subject(Role::Keystore)).await.unwrap();
        let mut next = async || match received.next().await.unwrap() {
            Event::Message(bytes) => serde_json::from_slice::<InstanceHeartbeat>(&bytes).unwrap(),
            Event::Gap => panic!("a gap"),
        };
        let stopping = health.clone();
        let sending = tokio::spawn(health.send_heartbeats(&[Role::Keystore], backplane.clone(), stop.clone()));
        let heartbeat = next().await;
        assert_eq!(
            (heartbeat.role, heartbeat.state, heartbeat.remarks),
            (Role::Keystore, InstanceState::NotReady, vec!["x".to_owned()])
        );
        stop.cancel();
        sending.await.unwrap();
        assert_eq!(stopping.report().await.faults, ["it stops"]);
        let heartbeat = next().await;
        assert_eq!(heartbeat.state, InstanceState::Stopping);
    }
}
