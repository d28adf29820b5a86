//! The processes of the deployment, by the heartbeats that they publish every two seconds.
//!
//! It is for people, and for two questions: whether lines about approvals may be written, which every process must be
//! able to read ([`Instances::can_record`]), and which evaluator knows of no published policies
//! ([`Instances::evaluator_without_policies`]). Neither decides a check. People also learn which processes must not run
//! beside this version ([`Instances::remark`]). Each role has its own subject, and a process can only report its own
//! role. Memory is bounded: large heartbeats are dropped, and beyond the limit of a role the process that was silent
//! longest is removed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use stage0_backplane::{Backplane, Event, ServeError, WaitReason};
use stage0_contract::{InstanceHeartbeat, InstanceState, InstanceStatus, PROTOCOL_VERSION, Role, may_run_together};

/// Three missed heartbeats.
const LOST_AFTER: Duration = InstanceHeartbeat::INTERVAL.saturating_mul(3);
/// How long a process is listed after it reported that it stops.
const STOPPING_TTL: Duration = Duration::from_secs(15);
const LOST_TTL: Duration = Duration::from_secs(15 * 60);
const MAX_PER_ROLE: usize = 250;
/// Processes that a remark names.
const MAX_NAMED: usize = 8;
/// Longer than the interval of heartbeats.
const LISTEN_BEFORE_RECORDING: Duration = Duration::from_secs(3);
/// From this `log_edition` on a process can read lines of every kind.
const LOG_EDITION_OF_EVENTS: u32 = 1;
const SUBSCRIBE_RETRY_DELAY: Duration = Duration::from_secs(1);

pub(crate) struct Instances {
    since: Instant,
    /// All roles are in this process, so that no other version reads the log.
    is_single_process: bool,
    heartbeats: Mutex<HashMap<(Role, String), (Instant, InstanceHeartbeat)>>,
    /// Limits how often the log names processes that must not run beside this version.
    incompatible: WaitReason,
}

impl Instances {
    pub(crate) fn new(now: Instant, is_single_process: bool) -> Self {
        Self { since: now, is_single_process, heartbeats: Mutex::default(), incompatible: WaitReason::default() }
    }

    /// Whether every process can read lines about approvals and stops, as far as heartbeats tell. Not before each of
    /// them has had the time to send one, and not while not even this gateway's own arrive.
    pub(crate) fn can_record(&self, now: Instant) -> bool {
        if self.is_single_process {
            return true;
        }
        if now.saturating_duration_since(self.since) < LISTEN_BEFORE_RECORDING {
            return false;
        }
        let heartbeats = self.lock();
        let mut alive =
            heartbeats.values().filter(|(at, _)| now.saturating_duration_since(*at) <= LOST_AFTER).peekable();
        alive.peek().is_some() && alive.all(|(_, heartbeat)| heartbeat.log_edition >= LOG_EDITION_OF_EVENTS)
    }

    /// An evaluator of a release that would decide by its own policy whatever an account has activated. One that is not
    /// heard of yet is found out by its answer, which names the version that decided.
    pub(crate) fn evaluator_without_policies(&self, now: Instant) -> Option<String> {
        let heartbeats = self.lock();
        let mut alive = heartbeats.values().filter(|(at, _)| now.saturating_duration_since(*at) <= LOST_AFTER);
        let is_old = |seen: &InstanceHeartbeat| {
            seen.role == Role::Evaluator
                && seen.state != InstanceState::Stopping
                && seen.policy_edition < InstanceHeartbeat::POLICY_EDITION
        };
        alive.find(|(_, seen)| is_old(seen)).map(|(_, seen)| seen.instance.clone())
    }

    /// Names the processes that live and must not run beside this version; none: there are none.
    pub(crate) fn remark(&self, now: Instant) -> Option<String> {
        let heartbeats = self.lock();
        let alive = heartbeats.values().filter(|(at, seen)| {
            now.saturating_duration_since(*at) <= LOST_AFTER && seen.state != InstanceState::Stopping
        });
        let far = alive.filter(|(_, seen)| !may_run_together(seen.protocol_version, PROTOCOL_VERSION));
        let mut names: Vec<_> = far
            .map(|(_, seen)| {
                let InstanceHeartbeat { role, instance, version, protocol_version, .. } = seen;
                format!("{role} {instance} ({version}, protocol {protocol_version})")
            })
            .collect();
        names.sort();
        names.truncate(MAX_NAMED);
        let names = names.join(", ");
        (!names.is_empty()).then(|| {
            format!(
                "versions: these must not run beside this gateway, which speaks protocol {PROTOCOL_VERSION}: {names} \
                 (docs/OPERATIONS.md)"
            )
        })
    }

    fn log_incompatible(&self, now: Instant) {
        match self.remark(now) {
            Some(why) => {
                if self.incompatible.set(&why) {
                    tracing::error!(why, "processes run that must not run side by side");
                }
            }
            None => {
                self.incompatible.clear();
            }
        }
    }

    /// From when on every running process has sent a heartbeat.
    pub(crate) fn complete_from(&self) -> Instant {
        self.since + InstanceHeartbeat::INTERVAL + InstanceHeartbeat::INTERVAL / 4
    }

    /// Receives heartbeats. Never returns.
    pub(crate) async fn listen(&self, backplane: &Backplane) {
        join_all(Role::ALL.map(|role| self.listen_to_role(role, backplane))).await;
    }

    async fn listen_to_role(&self, role: Role, backplane: &Backplane) {
        loop {
            if let Err(error) = self.receive(role, backplane).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%role, error, "cannot hear which processes there are");
            }
            tokio::time::sleep(SUBSCRIBE_RETRY_DELAY).await;
        }
    }

    async fn receive(&self, role: Role, backplane: &Backplane) -> Result<(), ServeError> {
        let mut events = backplane.notices.subscribe_bytes(InstanceHeartbeat::subject(role)).await?;
        while let Some(event) = events.next().await {
            // A missed heartbeat is followed by the next one.
            let Event::Message(bytes) = event else { continue };
            match serde_json::from_slice::<InstanceHeartbeat>(&bytes) {
                Ok(heartbeat) if heartbeat.role == role && heartbeat.is_small() => {
                    let now = Instant::now();
                    self.record(heartbeat, now);
                    self.log_incompatible(now);
                }
                Ok(_) | Err(_) => tracing::debug!(%role, "a process said of itself what cannot be believed"),
            }
        }
        Ok(())
    }

    pub(crate) fn list(&self, now: Instant) -> Vec<InstanceStatus> {
        let mut heartbeats = self.lock();
        heartbeats.retain(|_, (at, heartbeat)| !is_expired(heartbeat, now.saturating_duration_since(*at)));
        let status = |(at, heartbeat): &(Instant, InstanceHeartbeat)| {
            let silent = now.saturating_duration_since(*at);
            let mut heartbeat = heartbeat.clone();
            if silent > LOST_AFTER && heartbeat.state != InstanceState::Stopping {
                heartbeat.state = InstanceState::Lost;
            }
            InstanceStatus { seen: heartbeat, seconds_ago: silent.as_secs() }
        };
        let mut all: Vec<_> = heartbeats.values().map(status).collect();
        all.sort_by(|a, b| (a.seen.role, &a.seen.instance).cmp(&(b.seen.role, &b.seen.instance)));
        all
    }

    fn record(&self, heartbeat: InstanceHeartbeat, now: Instant) {
        let mut heartbeats = self.lock();
        let key = (heartbeat.role, heartbeat.instance.clone());
        let of_role = || heartbeats.iter().filter(|((role, _), _)| *role == heartbeat.role);
        if !heartbeats.contains_key(&key) && of_role().count() >= MAX_PER_ROLE {
            let oldest = of_role().min_by_key(|(_, (at, _))| *at).map(|(key, _)| key.clone());
            oldest.iter().for_each(|key| drop(heartbeats.remove(key)));
        }
        heartbeats.insert(key, (now, heartbeat));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Role, String), (Instant, InstanceHeartbeat)>> {
        self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_expired(heartbeat: &InstanceHeartbeat, silent: Duration) -> bool {
    silent > if heartbeat.state == InstanceState::Stopping { STOPPING_TTL } else { LOST_TTL }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(instance: &str, state: InstanceState) -> InstanceHeartbeat {
        InstanceHeartbeat {
            log_edition: InstanceHeartbeat::LOG_EDITION,
            policy_edition: InstanceHeartbeat::POLICY_EDITION,
            policies: Vec::new(),
            protocol_version: PROTOCOL_VERSION,
            role: Role::Evaluator,
            instance: instance.to_owned(),
            version: "1".to_owned(),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            state,
            remarks: Vec::new(),
            policy_version: None,
            delivery: None,
        }
    }

    fn states(instances: &Instances, now: Instant) -> Vec<(String, InstanceState)> {
        instances.list(now).into_iter().map(|one| (one.seen.instance, one.seen.state)).collect()
    }

    #[test]
    fn a_silent_process_is_lost_and_a_stopped_one_is_removed() {
        let now = Instant::now();
        let instances = Instances::new(now, false);
        instances.record(heartbeat("a", InstanceState::Ready), now);
        instances.record(heartbeat("b", InstanceState::Ready), now);
        instances.record(heartbeat("b", InstanceState::Stopping), now);
        let both = |a| vec![("a".to_owned(), a), ("b".to_owned(), InstanceState::Stopping)];
        assert_eq!(states(&instances, now + LOST_AFTER), both(InstanceState::Ready));
        assert_eq!(states(&instances, now + LOST_AFTER * 2), both(InstanceState::Lost));
        let later = now + STOPPING_TTL + Duration::from_secs(1);
        assert_eq!(states(&instances, later), [("a".to_owned(), InstanceState::Lost)]);
        instances.record(heartbeat("a", InstanceState::NotReady), later);
        assert_eq!(states(&instances, later), [("a".to_owned(), InstanceState::NotReady)]);
        assert!(states(&instances, later + LOST_TTL * 2).is_empty());
    }

    #[test]
    fn beyond_the_limit_of_a_role_its_longest_silent_process_is_removed() {
        let now = Instant::now();
        let instances = Instances::new(now, false);
        instances.record(InstanceHeartbeat { role: Role::Gateway, ..heartbeat("oldest", InstanceState::Ready) }, now);
        for index in 0..=MAX_PER_ROLE {
            let at = now + Duration::from_millis(u64::try_from(index).unwrap());
            instances.record(heartbeat(&format!("i{index}"), InstanceState::Ready), at);
        }
        let all = states(&instances, now + Duration::from_secs(2));
        assert_eq!(all.len(), MAX_PER_ROLE + 1);
        assert!(all.iter().all(|(name, _)| name != "i0") && all.iter().any(|(name, _)| name == "oldest"));
    }

    #[test]
    fn events_are_recorded_once_every_process_that_lives_can_read_them() {
        let began = Instant::now();
        let (instances, now) = (Instances::new(began, false), began + LISTEN_BEFORE_RECORDING);
        assert!(!instances.can_record(now), "not even the own heartbeat has arrived");
        instances.record(heartbeat("new", InstanceState::Ready), now);
        assert!(instances.can_record(now));
        assert!(!instances.can_record(now.checked_sub(Duration::from_millis(1)).unwrap()), "others may be silent yet");
        let old = InstanceHeartbeat { log_edition: 0, ..heartbeat("old", InstanceState::NotReady) };
        instances.record(old, now);
        assert!(!instances.can_record(now));
        let later = now + LOST_AFTER + Duration::from_secs(1);
        assert!(!instances.can_record(later), "nothing arrives any more");
        instances.record(heartbeat("new", InstanceState::Ready), later);
        assert!(instances.can_record(later), "the old process is lost");
        assert!(Instances::new(began, true).can_record(began), "one process reads what it writes");
    }

    #[test]
    fn an_evaluator_that_knows_of_no_published_policies_is_named_while_it_lives() {
        let now = Instant::now();
        let instances = Instances::new(now, false);
        instances.record(heartbeat("new", InstanceState::Ready), now);
        let of_last_release =
            |name: &str| InstanceHeartbeat { policy_edition: 0, ..heartbeat(name, InstanceState::Ready) };
        let gateway = InstanceHeartbeat { role: Role::Gateway, ..of_last_release("gateway") };
        instances.record(gateway, now);
        instances.record(InstanceHeartbeat { state: InstanceState::Stopping, ..of_last_release("stopping") }, now);
        assert_eq!(instances.evaluator_without_policies(now), None);
        instances.record(of_last_release("old"), now);
        assert_eq!(instances.evaluator_without_policies(now + LOST_AFTER).as_deref(), Some("old"));
        assert_eq!(instances.evaluator_without_policies(now + LOST_AFTER * 2), None, "it is lost");
    }

    #[test]
    fn a_process_of_a_distant_protocol_is_named_while_it_lives() {
        let now = Instant::now();
        let instances = Instances::new(now, false);
        let speaks = |name: &str, protocol_version| InstanceHeartbeat {
            protocol_version,
            ..heartbeat(name, InstanceState::Ready)
        };
        for (name, protocol) in [("own", PROTOCOL_VERSION), ("next", PROTOCOL_VERSION + 1), ("last", 0)] {
            instances.record(speaks(name, protocol), now);
        }
        let stopping = InstanceHeartbeat { state: InstanceState::Stopping, ..speaks("stopping", PROTOCOL_VERSION + 2) };
        instances.record(stopping, now);
        assert_eq!(instances.remark(now), None);
        instances.record(speaks("far", PROTOCOL_VERSION + 2), now);
        let remark = instances.remark(now + LOST_AFTER).unwrap();
        assert!(remark.contains("evaluator far (1, protocol 3)") && !remark.contains("next"), "{remark}");
        assert_eq!(instances.remark(now + LOST_AFTER * 2), None, "it is lost");
    }

    #[tokio::test]
    async fn a_heartbeat_of_another_role_or_a_large_one_is_dropped() {
        let (backplane, instances) = (Backplane::embedded(), Instances::new(Instant::now(), false));
        let publish = async |role: Role, heartbeat: &InstanceHeartbeat| {
            let bytes = serde_json::to_vec(heartbeat).unwrap();
            backplane.notices.publish_bytes(InstanceHeartbeat::subject(role), bytes.into()).await.unwrap();
        };
        let publishing = async {
            // Before the subscription, heartbeats are lost.
            while instances.lock().is_empty() {
                publish(Role::Keystore, &heartbeat("forged", InstanceState::Ready)).await;
                let large = vec!["x".repeat(100_000)];
                publish(
                    Role::Evaluator,
                    &InstanceHeartbeat { remarks: large, ..heartbeat("large", InstanceState::Ready) },
                )
                .await;
                publish(Role::Evaluator, &heartbeat("true", InstanceState::Ready)).await;
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = instances.listen(&backplane) => {}
            () = publishing => {}
        }
        assert_eq!(states(&instances, Instant::now()), [("true".to_owned(), InstanceState::Ready)]);
    }
}
