//! When an upgraded deployment refuses what is not authenticated: once every role was heard to authenticate for a
//! while.
//!
//! Gateways decide it, as they hear every process. Only authenticated heartbeats count, so nobody without keys can
//! bring it about or hold it up; a process that is left behind is named in the log before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stage0_contract::{InstanceSeen, Role};

/// So long each role must have been heard.
const HEARD_FOR: Duration = Duration::from_secs(30);
/// A role that was silent for longer begins again.
const MAX_SILENCE: Duration = Duration::from_secs(10);

/// Which roles were heard to authenticate: since when, and last.
#[derive(Default)]
pub(super) struct Rollout {
    heard: BTreeMap<Role, (Instant, Instant)>,
}

impl Rollout {
    /// An authenticated heartbeat; whether that was the last that was waited for.
    pub(super) fn heard(&mut self, role: Role, now: Instant) -> bool {
        let (since, last) = self.heard.entry(role).or_insert((now, now));
        if now.saturating_duration_since(*last) > MAX_SILENCE {
            *since = now;
        }
        *last = now;
        Role::ALL.iter().all(|role| {
            self.heard.get(role).is_some_and(|(since, last)| {
                now.saturating_duration_since(*since) >= HEARD_FOR
                    && now.saturating_duration_since(*last) <= MAX_SILENCE
            })
        })
    }
}

/// Whether a notice is some role's heartbeat.
pub(super) fn is_heartbeat(subject: &str) -> bool {
    Role::ALL.iter().any(|role| InstanceSeen::subject(*role) == subject)
}

/// What the process calls itself in its heartbeat.
pub(super) fn instance(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<InstanceSeen>(body).ok().filter(InstanceSeen::is_small).map(|seen| seen.instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(
        rollout: &mut Rollout,
        roles: &[Role],
        from: Instant,
        seconds: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        for second in seconds.step_by(2) {
            for role in roles {
                if rollout.heard(*role, from + Duration::from_secs(second)) {
                    return Some(second);
                }
            }
        }
        None
    }

    #[test]
    fn every_role_must_have_been_heard_for_thirty_seconds() {
        let (mut rollout, start) = (Rollout::default(), Instant::now());
        assert_eq!(hear(&mut rollout, &Role::ALL[..3], start, 0..=100), None);
        assert_eq!(hear(&mut rollout, &Role::ALL, start, 102..=200), Some(132));
    }

    #[test]
    fn a_role_that_was_silent_begins_anew() {
        let (mut rollout, start) = (Rollout::default(), Instant::now());
        assert_eq!(hear(&mut rollout, &Role::ALL, start, 0..=10), None);
        assert_eq!(hear(&mut rollout, &Role::ALL[1..], start, 12..=24), None);
        assert_eq!(hear(&mut rollout, &Role::ALL, start, 26..=100), Some(56));
    }

    #[test]
    fn only_heartbeats_are_taken_for_such() {
        assert!(is_heartbeat("notice.instance.keystore") && !is_heartbeat("notice.key.changed"));
        assert_eq!(instance(b"{}"), None);
    }
}
