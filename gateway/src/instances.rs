//! The processes of the deployment, by the heartbeats that they publish every two seconds.
//!
//! It is for people: no decision about a check depends on it. Each role has its own subject, and a process can only
//! report its own role. Memory is bounded: large heartbeats are dropped, and beyond the limit of a role the process
//! that was silent longest is removed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use stage0_backplane::{Backplane, Event, ServeError};
use stage0_contract::{InstanceHeartbeat, InstanceState, InstanceStatus, Role};

/// Three missed heartbeats.
const LOST_AFTER: Duration = InstanceHeartbeat::INTERVAL.saturating_mul(3);
/// How long a process is listed after it reported that it stops.
const STOPPING_TTL: Duration = Duration::from_secs(15);
const LOST_TTL: Duration = Duration::from_secs(15 * 60);
const MAX_PER_ROLE: usize = 250;
const SUBSCRIBE_RETRY_DELAY: Duration = Duration::from_secs(1);

pub(crate) struct Instances {
    since: Instant,
    heartbeats: Mutex<HashMap<(Role, String), (Instant, InstanceHeartbeat)>>,
}

impl Instances {
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, heartbeats: Mutex::default() }
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
                    self.record(heartbeat, Instant::now());
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
        let instances = Instances::new(now);
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
        let instances = Instances::new(now);
        instances.record(InstanceHeartbeat { role: Role::Gateway, ..heartbeat("oldest", InstanceState::Ready) }, now);
        for index in 0..=MAX_PER_ROLE {
            let at = now + Duration::from_millis(u64::try_from(index).unwrap());
            instances.record(heartbeat(&format!("i{index}"), InstanceState::Ready), at);
        }
        let all = states(&instances, now + Duration::from_secs(2));
        assert_eq!(all.len(), MAX_PER_ROLE + 1);
        assert!(all.iter().all(|(name, _)| name != "i0") && all.iter().any(|(name, _)| name == "oldest"));
    }

    #[tokio::test]
    async fn a_heartbeat_of_another_role_or_a_large_one_is_dropped() {
        let (backplane, instances) = (Backplane::embedded(), Instances::new(Instant::now()));
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
