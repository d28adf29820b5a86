//! Which processes there are, by what they say of themselves every two seconds.
//!
//! Owns the table and when a silent process counts as lost. It is for people: nothing that decides about a check looks at it. Memory is
//! bounded, whoever says what: beyond the bound the one that was silent longest is forgotten.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stage0_backplane::{Backplane, Event, ServeError};
use stage0_contract::{InstanceSeen, InstanceState, InstanceStatus, Role};

/// Three of their events.
const LOST_AFTER: Duration = InstanceSeen::EVERY.saturating_mul(3);
/// One that said that it stops has, by then.
const GONE_AFTER: Duration = Duration::from_secs(15);
/// One that is lost is shown for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15 * 60);
const MOST: usize = 1_000;

/// The table.
#[derive(Default)]
pub(crate) struct Instances {
    seen: Mutex<HashMap<(Role, String), (Instant, InstanceSeen)>>,
}

impl Instances {
    /// Hears of processes until the backplane is closed.
    pub(crate) async fn listen(&self, backplane: &Backplane) -> Result<(), ServeError> {
        let mut heard = backplane.notices.listen::<InstanceSeen>().await?;
        while let Some(event) = heard.next().await {
            match event {
                Event::Heard(said) => self.note(said, Instant::now()),
                // They say it again.
                Event::Gap => {}
            }
        }
        Ok(())
    }

    /// All that are remembered, by role and name.
    pub(crate) fn all(&self, now: Instant) -> Vec<InstanceStatus> {
        let mut seen = self.seen();
        seen.retain(|_, (at, said)| !is_forgotten(said, now.saturating_duration_since(*at)));
        let status = |(at, said): &(Instant, InstanceSeen)| {
            let silent = now.saturating_duration_since(*at);
            let mut said = said.clone();
            if silent > LOST_AFTER && said.state != InstanceState::Stopping {
                said.state = InstanceState::Lost;
            }
            InstanceStatus { seen: said, seconds_ago: silent.as_secs() }
        };
        let mut all: Vec<_> = seen.values().map(status).collect();
        all.sort_by(|a, b| (a.seen.role, &a.seen.instance).cmp(&(b.seen.role, &b.seen.instance)));
        all
    }

    fn note(&self, said: InstanceSeen, now: Instant) {
        let mut seen = self.seen();
        let key = (said.role, said.instance.clone());
        if seen.len() >= MOST && !seen.contains_key(&key) {
            let silent = seen.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| key.clone());
            silent.iter().for_each(|key| drop(seen.remove(key)));
        }
        seen.insert(key, (now, said));
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<(Role, String), (Instant, InstanceSeen)>> {
        // Each use is one step on the map: a panic elsewhere cannot leave it half done.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_forgotten(said: &InstanceSeen, silent: Duration) -> bool {
    silent > if said.state == InstanceState::Stopping { GONE_AFTER } else { FORGOTTEN_AFTER }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(instance: &str, state: InstanceState) -> InstanceSeen {
        InstanceSeen {
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
        instances.all(now).into_iter().map(|one| (one.seen.instance, one.seen.state)).collect()
    }

    #[test]
    fn a_silent_process_is_lost_and_one_that_said_goodbye_is_gone() {
        let (instances, now) = (Instances::default(), Instant::now());
        instances.note(said("a", InstanceState::Ready), now);
        instances.note(said("b", InstanceState::Ready), now);
        instances.note(said("b", InstanceState::Stopping), now);
        let both = |a| vec![("a".to_owned(), a), ("b".to_owned(), InstanceState::Stopping)];
        assert_eq!(states(&instances, now + LOST_AFTER), both(InstanceState::Ready));
        assert_eq!(states(&instances, now + LOST_AFTER * 2), both(InstanceState::Lost));
        let later = now + GONE_AFTER + Duration::from_secs(1);
        assert_eq!(states(&instances, later), [("a".to_owned(), InstanceState::Lost)]);
        instances.note(said("a", InstanceState::NotReady), later);
        assert_eq!(states(&instances, later), [("a".to_owned(), InstanceState::NotReady)]);
        assert!(states(&instances, later + FORGOTTEN_AFTER * 2).is_empty());
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_was_silent_longest() {
        let (instances, now) = (Instances::default(), Instant::now());
        for index in 0..=MOST {
            let at = now + Duration::from_millis(u64::try_from(index).unwrap());
            instances.note(said(&format!("i{index}"), InstanceState::Ready), at);
        }
        let all = states(&instances, now + Duration::from_secs(2));
        assert_eq!(all.len(), MOST);
        assert!(all.iter().all(|(name, _)| name != "i0"));
    }
}
