//! Reports to the keystore which keys were used in this hour, so that `GET /v1/keys` can show it.
//!
//! No request waits for it. Memory is bounded: a key that does not fit is not reported in this hour. What the keystore
//! does not accept is sent again for a while, and then dropped until the key is used again.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use stage0_backplane::Requests;
use stage0_contract::{KeyId, NoteKeyUses, NoteKeyUsesReply};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// As many as the key cache holds.
const MAX_KEYS: usize = 100_000;
/// After the first unreported key, for more of them.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// For a keystore that is unavailable, or of a version that does not serve this message.
const RETRY_DELAY: Duration = Duration::from_secs(15);
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
const FINAL_REPORT_TIMEOUT: Duration = Duration::from_secs(1);
/// Older uses that could not be reported are dropped.
const UNREPORTED_TTL: SignedDuration = SignedDuration::from_hours(3);

#[derive(Default)]
pub(crate) struct KeyUses {
    table: Mutex<Table>,
    unreported: Notify,
}

#[derive(Default)]
struct Table {
    /// The start of the hour that `seen` is about.
    hour: Timestamp,
    seen: HashSet<KeyId>,
    /// With their hours, the oldest first.
    unreported: VecDeque<(Timestamp, KeyId)>,
}

impl KeyUses {
    pub(crate) fn note(&self, key_id: &KeyId, now: Timestamp) {
        if self.table().note(key_id, NoteKeyUses::hour_of(now)) {
            self.unreported.notify_one();
        }
    }

    /// Sends reports until `stop`, and a last one then.
    pub(crate) async fn run(&self, keystore: &dyn Requests, stop: &CancellationToken) {
        while stop.run_until_cancelled(self.unreported.notified()).await.is_some() {
            let mut delay = BATCH_DELAY;
            while stop.run_until_cancelled(tokio::time::sleep(delay)).await.is_some() {
                if self.report_all(keystore, REPORT_TIMEOUT).await {
                    break;
                }
                delay = RETRY_DELAY;
            }
        }
        self.report_all(keystore, FINAL_REPORT_TIMEOUT).await;
    }

    /// Returns whether everything was reported.
    async fn report_all(&self, keystore: &dyn Requests, timeout: Duration) -> bool {
        loop {
            let Some(batch) = self.table().next_batch(Timestamp::now()) else { return true };
            let error = match keystore.request(&batch, timeout).await {
                Ok(NoteKeyUsesReply::Noted) => continue,
                refused => refused.err(),
            };
            let error = error.as_ref().map(|error| error as &dyn std::error::Error);
            tracing::debug!(error, keys = batch.keys.len(), "the keystore does not take which keys were used");
            self.table().put_back(batch);
            return false;
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Returns whether the key must be reported.
    fn note(&mut self, key_id: &KeyId, hour: Timestamp) -> bool {
        if self.hour != hour {
            self.hour = hour;
            self.seen.clear();
        }
        if self.seen.contains(key_id) || self.seen.len() >= MAX_KEYS || self.unreported.len() >= MAX_KEYS {
            return false;
        }
        self.seen.insert(key_id.clone());
        self.unreported.push_back((hour, key_id.clone()));
        true
    }

    /// Keys of one hour, the oldest that is not dropped.
    fn next_batch(&mut self, now: Timestamp) -> Option<NoteKeyUses> {
        while self.unreported.front().is_some_and(|(hour, _)| now.duration_since(*hour) > UNREPORTED_TTL) {
            self.unreported.pop_front();
        }
        let (hour, _) = *self.unreported.front()?;
        let of_hour = self.unreported.iter().take_while(|(other, _)| *other == hour).count();
        let keys = self.unreported.drain(..of_hour.min(NoteKeyUses::MAX_KEYS)).map(|(_, key)| key).collect();
        Some(NoteKeyUses { hour, keys })
    }

    fn put_back(&mut self, batch: NoteKeyUses) {
        let NoteKeyUses { hour, keys } = batch;
        for key in keys.into_iter().rev().take(MAX_KEYS.saturating_sub(self.unreported.len())) {
            self.unreported.push_front((hour, key));
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
    fn a_used_key_is_reported_once_an_hour() {
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
    fn a_report_has_keys_of_one_hour_up_to_its_maximum() {
        let mut table = Table::default();
        for number in 0..NoteKeyUses::MAX_KEYS + 1 {
            table.note(&key(number), at(0));
        }
        table.note(&key(0), at(1));
        let batches: Vec<_> = std::iter::from_fn(|| table.next_batch(at(1))).collect();
        let reported: Vec<_> = batches.iter().map(|batch| (batch.hour, batch.keys.len())).collect();
        assert_eq!(reported, [(at(0), NoteKeyUses::MAX_KEYS), (at(0), 1), (at(1), 1)]);
    }

    #[test]
    fn a_failed_report_is_sent_again_for_a_while_and_memory_is_bounded() {
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
        assert_eq!((table.seen.len(), table.unreported.len()), (MAX_KEYS, MAX_KEYS));
        table.put_back(NoteKeyUses { hour: at(0), keys: vec![key(1)] });
        assert_eq!(table.unreported.len(), MAX_KEYS);
    }

    #[tokio::test(start_paused = true)]
    async fn key_uses_are_reported_until_accepted_and_when_the_gateway_stops() {
        let (backplane, uses) = (Backplane::embedded(), KeyUses::default());
        let mut asked = backplane.requests.serve::<NoteKeyUses>().await.unwrap();
        let stop = CancellationToken::new();
        uses.note(&key(1), at(0));
        let keystore = async {
            let mut reports = Vec::new();
            for reply in [NoteKeyUsesReply::Failed, NoteKeyUsesReply::Noted] {
                let request = asked.next().await.unwrap();
                reports.push(request.request.clone());
                request.answer(&reply).await;
            }
            uses.note(&key(2), at(0));
            stop.cancel();
            let request = asked.next().await.unwrap();
            reports.push(request.request.clone());
            request.answer(&NoteKeyUsesReply::Noted).await;
            reports
        };
        let ((), reports) = tokio::join!(uses.run(&*backplane.requests, &stop), keystore);
        let of = |number| NoteKeyUses { hour: at(0), keys: vec![key(number)] };
        assert_eq!(reports, [of(1), of(1), of(2)]);
    }
}
