//! When an upgraded deployment starts to refuse unauthenticated messages: once every role has been seen to authenticate
//! for a while.
//!
//! Gateways decide, as they receive every process's heartbeat. Only authenticated heartbeats count, so a process
//! without keys can neither cause nor delay the switch; a process that would be left behind is logged before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stage0_contract::{InstanceHeartbeat, Role};

const MIN_AUTHENTICATED_TIME: Duration = Duration::from_secs(30);
/// A role that was silent for longer starts over.
const MAX_SILENCE: Duration = Duration::from_secs(10);

/// Since when each role has authenticated, and when it last did.
#[derive(Default)]
pub(super) struct Rollout {
    seen: BTreeMap<Role, (Instant, Instant)>,
}

impl Rollout {
    /// Records an authenticated heartbeat; returns whether every role has now authenticated for long enough.
    pub(super) fn record(&mut self, role: Role, now: Instant) -> bool {
        let (since, last) = self.seen.entry(role).or_insert((now, now));
        if now.saturating_duration_since(*last) > MAX_SILENCE {
            *since = now;
        }
        *last = now;
        Role::ALL.iter().all(|role| {
            self.seen.get(role).is_some_and(|(since, last)| {
                now.saturating_duration_since(*since) >= MIN_AUTHENTICATED_TIME
                    && now.saturating_duration_since(*last) <= MAX_SILENCE
            })
        })
    }
}

pub(super) fn is_heartbeat(subject: &str) -> bool {
    Role::ALL.iter().any(|role| InstanceHeartbeat::subject(*role) == subject)
}

pub(super) fn instance(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<InstanceHeartbeat>(body).ok().filter(InstanceHeartbeat::is_small).map(|seen| seen.instance)
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
                if rollout.record(*role, from + Duration::from_secs(second)) {
                    return Some(second);
                }
            }
        }
        None
    }

    #[test]
    fn authentication_is_required_once_every_role_authenticated_for_thirty_seconds() {
        let (mut rollout, start) = (Rollout::default(), Instant::now());
        assert_eq!(hear(&mut rollout, &Role::ALL[..3], start, 0..=100), None);
        assert_eq!(hear(&mut rollout, &Role::ALL, start, 102..=200), Some(132));
    }

    #[test]
    fn a_role_that_was_silent_starts_over_in_the_rollout() {
        let (mut rollout, start) = (Rollout::default(), Instant::now());
        assert_eq!(hear(&mut rollout, &Role::ALL, start, 0..=10), None);
        assert_eq!(hear(&mut rollout, &Role::ALL[1..], start, 12..=24), None);
        assert_eq!(hear(&mut rollout, &Role::ALL, start, 26..=100), Some(56));
    }

    #[test]
    fn only_heartbeats_count_for_the_rollout() {
        assert!(is_heartbeat("notice.instance.keystore") && !is_heartbeat("notice.key.changed"));
        assert_eq!(instance(b"{}"), None);
    }
}
