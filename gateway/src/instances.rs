//! Which processes there are, by what they say of themselves every two seconds.
//!
//! Owns the table and when a silent process counts as lost. It is for people: nothing that decides about a check looks at it. Each role is
//! heard in its own place and believed of itself alone. Memory is bounded, whoever says what: what is large is dropped, and of each role
//! the one that was silent longest is forgotten beyond the bound.

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
const MOST_OF_ROLE: usize = 250;
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The table.
pub(crate) struct Instances {
    since: Instant,
    seen: Mutex<HashMap<(Role, String), (Instant, InstanceSeen)>>,
}

impl Instances {
    /// Hears nobody yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, seen: Mutex::default() }
    }

    /// From when on everybody who is there was heard of.
    pub(crate) fn complete_from(&self) -> Instant {
        self.since + InstanceSeen::EVERY + InstanceSeen::EVERY / 4
    }

    /// Hears of processes for ever; ends when dropped.
    pub(crate) async fn listen(&self, backplane: &Backplane) {
        let [a, b, c, d] = Role::ALL.map(|role| self.keep_listening(role, backplane));
        tokio::join!(a, b, c, d);
    }

    async fn keep_listening(&self, role: Role, backplane: &Backplane) {
        loop {
            if let Err(error) = self.listen_to(role, backplane).await {
                tracing::warn!(%role, error = &error as &dyn std::error::Error, "cannot hear which processes there are");
            }
            tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
        }
    }

    async fn listen_to(&self, role: Role, backplane: &Backplane) -> Result<(), ServeError> {
        let mut heard = backplane.notices.listen_bytes(InstanceSeen::subject(role)).await?;
        while let Some(event) = heard.next().await {
            // What was missed is said again.
            let Event::Heard(bytes) = event else { continue };
            match serde_json::from_slice::<InstanceSeen>(&bytes) {
                Ok(said) if said.role == role && said.is_small() => self.note(said, Instant::now()),
                Ok(_) | Err(_) => tracing::debug!(%role, "a process said of itself what cannot be believed"),
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
        let of_role = || seen.iter().filter(|((role, _), _)| *role == said.role);
        if !seen.contains_key(&key) && of_role().count() >= MOST_OF_ROLE {
            let silent = of_role().min_by_key(|(_, (at, _))| *at).map(|(key, _)| key.clone());
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
        let now = Instant::now();
        let instances = Instances::new(now);
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
    fn the_table_is_bounded_and_forgets_who_was_silent_longest_of_the_same_role() {
        let now = Instant::now();
        let instances = Instances::new(now);
        instances.note(InstanceSeen { role: Role::Gateway, ..said("oldest", InstanceState::Ready) }, now);
        for index in 0..=MOST_OF_ROLE {
            let at = now + Duration::from_millis(u64::try_from(index).unwrap());
            instances.note(said(&format!("i{index}"), InstanceState::Ready), at);
        }
        let all = states(&instances, now + Duration::from_secs(2));
        assert_eq!(all.len(), MOST_OF_ROLE + 1);
        assert!(all.iter().all(|(name, _)| name != "i0") && all.iter().any(|(name, _)| name == "oldest"));
    }

    #[tokio::test]
    async fn a_role_is_believed_of_itself_alone_and_only_what_is_small() {
        let (backplane, instances) = (Backplane::embedded(), Instances::new(Instant::now()));
        let tell = async |role: Role, said: &InstanceSeen| {
            let bytes = serde_json::to_vec(said).unwrap();
            backplane.notices.tell_bytes(InstanceSeen::subject(role), bytes.into()).await.unwrap();
        };
        let telling = async {
            // Until the listeners are there nobody hears.
            while instances.seen().is_empty() {
                tell(Role::Keystore, &said("forged", InstanceState::Ready)).await;
                let large = vec!["x".repeat(100_000)];
                tell(Role::Evaluator, &InstanceSeen { remarks: large, ..said("large", InstanceState::Ready) }).await;
                tell(Role::Evaluator, &said("true", InstanceState::Ready)).await;
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = instances.listen(&backplane) => {}
            () = telling => {}
        }
        assert_eq!(states(&instances, Instant::now()), [("true".to_owned(), InstanceState::Ready)]);
    }
}
