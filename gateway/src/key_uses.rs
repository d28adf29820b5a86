//! Which keys were used in this hour, told to the keystore so that `GET /v1/keys` can show it.
//!
//! Owns the table of keys that were told already, and the telling: each key once an hour, many in one message, one
//! message at a time. Nothing that answers a request waits for it. Memory is bounded: beyond that a key is not told in
//! this hour. What the keystore does not take is told again for a while, and then lost until the key is used later.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use stage0_backplane::Requests;
use stage0_contract::{KeyId, NoteKeyUses, NoteKeyUsesReply};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// As many keys as the keyring has.
const MAX_KEYS: usize = 100_000;
/// After the first key that is to be told, further ones are waited for.
const GATHER_DELAY: Duration = Duration::from_secs(1);
/// A keystore of an earlier version, or one that is away, is asked so often.
const RETRY_DELAY: Duration = Duration::from_secs(15);
const TELL_TIMEOUT: Duration = Duration::from_secs(5);
/// The last time, when the gateway stops.
const LAST_TELL_TIMEOUT: Duration = Duration::from_secs(1);
/// What could not be told in this time is lost.
const KEPT_FOR: SignedDuration = SignedDuration::from_hours(3);

/// Keys that were used.
#[derive(Default)]
pub(crate) struct KeyUses {
    table: Mutex<Table>,
    untold: Notify,
}

#[derive(Default)]
struct Table {
    /// When the hour began of which `seen` is.
    hour: Timestamp,
    seen: HashSet<KeyId>,
    /// With their hours, the earliest first.
    untold: VecDeque<(Timestamp, KeyId)>,
}

impl KeyUses {
    /// A key was used; it is told unless it was in this hour.
    pub(crate) fn note(&self, key_id: &KeyId, now: Timestamp) {
        if self.table().note(key_id, NoteKeyUses::hour_of(now)) {
            self.untold.notify_one();
        }
    }

    /// Tells until `stop`, and once more then.
    pub(crate) async fn run(&self, keystore: &dyn Requests, stop: &CancellationToken) {
        while stop.run_until_cancelled(self.untold.notified()).await.is_some() {
            let mut delay = GATHER_DELAY;
            while stop.run_until_cancelled(tokio::time::sleep(delay)).await.is_some() {
                if self.tell_all(keystore, TELL_TIMEOUT).await {
                    break;
                }
                delay = RETRY_DELAY;
            }
        }
        self.tell_all(keystore, LAST_TELL_TIMEOUT).await;
    }

    /// Whether nothing is left to tell.
    async fn tell_all(&self, keystore: &dyn Requests, within: Duration) -> bool {
        loop {
            let Some(batch) = self.table().next_batch(Timestamp::now()) else { return true };
            let told = keystore.ask(&batch, within).await;
            if matches!(told, Ok(NoteKeyUsesReply::Noted)) {
                continue;
            }
            let error = told.err();
            let error = error.as_ref().map(|error| error as &dyn std::error::Error);
            tracing::debug!(error, keys = batch.keys.len(), "the keystore does not take which keys were used");
            self.table().put_back(batch);
            return false;
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic elsewhere can at most have left a key untold.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Whether it is to be told.
    fn note(&mut self, key_id: &KeyId, hour: Timestamp) -> bool {
        if self.hour != hour {
            self.hour = hour;
            self.seen.clear();
        }
        if self.seen.contains(key_id) || self.seen.len() >= MAX_KEYS || self.untold.len() >= MAX_KEYS {
            return false;
        }
        self.seen.insert(key_id.clone());
        self.untold.push_back((hour, key_id.clone()));
        true
    }

    /// Keys of one hour, the earliest that is not too long ago.
    fn next_batch(&mut self, now: Timestamp) -> Option<NoteKeyUses> {
        while self.untold.front().is_some_and(|(hour, _)| now.duration_since(*hour) > KEPT_FOR) {
            self.untold.pop_front();
        }
        let (hour, _) = *self.untold.front()?;
        let of_hour = self.untold.iter().take_while(|(other, _)| *other == hour).count();
        let keys = self.untold.drain(..of_hour.min(NoteKeyUses::MAX_KEYS)).map(|(_, key)| key).collect();
        Some(NoteKeyUses { hour, keys })
    }

    fn put_back(&mut self, batch: NoteKeyUses) {
        let NoteKeyUses { hour, keys } = batch;
        for key in keys.into_iter().rev().take(MAX_KEYS.saturating_sub(self.untold.len())) {
            self.untold.push_front((hour, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage0_backplane::Backplane;

    fn key(number: usize) -> KeyId {
        KeyId::parse(&format!("key{number}")).unwrap()
    }

    fn at(hour: i64) -> Timestamp {
        NoteKeyUses::hour_of(Timestamp::now()) + SignedDuration::from_hours(hour)
    }

    #[test]
    fn a_key_is_told_once_in_an_hour_however_often_it_is_used() {
        let mut table = Table::default();
        for _ in 0..1_000 {
            table.note(&key(1), at(0));
        }
        table.note(&key(2), at(0));
        assert_eq!(table.next_batch(at(0)), Some(NoteKeyUses { hour: at(0), keys: vec![key(1), key(2)] }));
        assert_eq!((table.note(&key(1), at(0)), table.next_batch(at(0))), (false, None));
        assert!(table.note(&key(1), at(1)), "another hour");
        assert_eq!(table.next_batch(at(1)), Some(NoteKeyUses { hour: at(1), keys: vec![key(1)] }));
    }

    #[test]
    fn a_message_holds_keys_of_one_hour_and_no_more_than_it_may() {
        let mut table = Table::default();
        for number in 0..NoteKeyUses::MAX_KEYS + 1 {
            table.note(&key(number), at(0));
        }
        table.note(&key(0), at(1));
        let batches: Vec<_> = std::iter::from_fn(|| table.next_batch(at(1))).collect();
        let told: Vec<_> = batches.iter().map(|batch| (batch.hour, batch.keys.len())).collect();
        assert_eq!(told, [(at(0), NoteKeyUses::MAX_KEYS), (at(0), 1), (at(1), 1)]);
    }

    #[test]
    fn what_was_not_taken_is_told_again_for_a_while_and_memory_is_bounded() {
        let mut table = Table::default();
        table.note(&key(1), at(0));
        table.note(&key(2), at(0));
        let batch = table.next_batch(at(0)).unwrap();
        table.put_back(batch.clone());
        assert_eq!(table.next_batch(at(3)), Some(batch.clone()));
        table.put_back(batch);
        assert_eq!(table.next_batch(at(4)), None, "too long ago");
        let mut table = Table::default();
        for number in 0..MAX_KEYS + 10 {
            table.note(&key(number), at(0));
        }
        assert_eq!((table.seen.len(), table.untold.len()), (MAX_KEYS, MAX_KEYS));
        table.put_back(NoteKeyUses { hour: at(0), keys: vec![key(1)] });
        assert_eq!(table.untold.len(), MAX_KEYS);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_keystore_does_not_take_is_told_until_it_does_and_what_is_left_when_the_gateway_stops() {
        let (backplane, uses) = (Backplane::embedded(), KeyUses::default());
        let mut asked = backplane.requests.serve::<NoteKeyUses>().await.unwrap();
        let stop = CancellationToken::new();
        uses.note(&key(1), at(0));
        let told = async {
            let mut heard = Vec::new();
            for reply in [NoteKeyUsesReply::Failed, NoteKeyUsesReply::Noted] {
                let question = asked.next().await.unwrap();
                heard.push(question.request.clone());
                question.answer(&reply).await;
            }
            uses.note(&key(2), at(0));
            stop.cancel();
            let question = asked.next().await.unwrap();
            heard.push(question.request.clone());
            question.answer(&NoteKeyUsesReply::Noted).await;
            heard
        };
        let ((), heard) = tokio::join!(uses.run(&*backplane.requests, &stop), told);
        let of = |number| NoteKeyUses { hour: at(0), keys: vec![key(number)] };
        assert_eq!(heard, [of(1), of(1), of(2)]);
    }
}
