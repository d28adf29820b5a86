//! The state store on JetStream: the last message of a subject is the record, its sequence the revision.
//!
//! Uses plain messages with an expected sequence and a TTL instead of the KV interface, whose update drops the TTL.
//! Records that moved from an earlier version's single stream kept their sequences, but not the header that their proof
//! covers, so that is read from the old stream.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::Connection;
use super::auth::{Newest, Rejection, TTL};
use super::jetstream::{
    self, REPLICA_LAG_TIMEOUT, REPLICA_RETRY_DELAY, Stored, fetch, fetch_last, is_malformed, publish_expecting,
};
use super::log::EXPECTED_LAST;
use super::stream_watch::MAX_SEQUENCE;
use super::streams::StreamName;
use crate::state_store::{MAX_PAGE_BYTES, fault};
use crate::{
    BoxFuture, ClockError, ListError, NotReady, PutError, ReadError, Record, RecordPage, Revision, StateStore,
    StoreClock,
};

const MAX_LISTED: usize = 1_000;
const READY_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) enum Proven {
    Absent,
    /// The record, and when the server stored it.
    Record(Record, Timestamp),
    /// There is something that no role that may put it there has put.
    Unproven,
}

impl StateStore for Connection {
    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        Box::pin(async move {
            if let Some(why) = fault(key, &[]) {
                return Err(ReadError(why.into()));
            }
            let known = self.newest(key);
            let Some(found) = self.newest_stored(key, known.as_ref(), deadline).await? else { return Ok(None) };
            let judged = self.judge(key, &found, false, known.as_ref());
            judged.map_err(|why| ReadError(format!("the record `{key}` is not believed: {why}").into()))?;
            Ok(Some(Record { revision: Revision(found.sequence), value: found.payload }))
        })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Option<Revision>,
        expires_in: Option<Duration>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Revision, PutError>> {
        Box::pin(async move {
            if let Some(why) = fault(key, &value) {
                return Err(PutError::Failed(why.into()));
            }
            let mut headers = HeaderMap::new();
            headers.insert(EXPECTED_LAST, HeaderValue::from(expected.map_or(0, |revision| revision.0)));
            if let Some(expires_in) = expires_in {
                // Whole seconds, rounded up, at least one.
                let seconds = expires_in.as_secs() + u64::from(expires_in.subsec_nanos() > 0);
                headers.insert(TTL, HeaderValue::from(seconds.max(1)));
            }
            let subject = self.record(key);
            if let Some(auth) = &self.link.auth
                && auth.record(key, &subject, &value, &mut headers).is_none()
            {
                return Err(PutError::Failed(format!("the record is not one of {}'s", auth.role()).into()));
            }
            let stream = StreamName::of_record(&self.link.prefix, key);
            self.link.streams.check(&self.link, &stream, deadline).await?;
            let ack = publish_expecting(&self.link, &subject, &headers, &value, deadline).await?;
            if let Some(auth) = &self.link.auth {
                auth.note_newest(&subject, Some(&headers));
            }
            let revision = ack.get("seq").and_then(Value::as_u64).map(Revision);
            revision.ok_or_else(|| PutError::Failed("no acknowledgement".into()))
        })
    }

    /// In the order of the last puts; the cursor is the sequence of the last record that was looked at. Records that
    /// fail the check are left out, and so are those that moved out of an earlier version's stream, until they expire.
    fn list<'a>(
        &'a self,
        under: &'a str,
        after: Option<&'a str>,
        most: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<RecordPage, ListError>> {
        Box::pin(async move {
            if let Some(why) = fault(under, &[]) {
                return Err(ReadError(why.into()).into());
            }
            let after = after.map(|after| after.parse::<u64>().ok().filter(|place| *place < MAX_SEQUENCE));
            let after = after.map(|after| after.ok_or(ListError::Cursor)).transpose()?.unwrap_or(0);
            let stream = StreamName::of_record(&self.link.prefix, &format!("{under}.x"));
            let subject = self.record(under);
            let get = json!({
                "batch": most.clamp(1, MAX_LISTED),
                "max_bytes": MAX_PAGE_BYTES,
                "next_by_subj": format!("{subject}.*"),
                "seq": after.saturating_add(1),
            });
            let (found, more) = fetch(&self.link, &stream, &get, deadline).await.map_err(ReadError::from)?;
            let next = found.last().filter(|_| more).map(|last| last.sequence.to_string());
            let genuine = found.into_iter().filter_map(|found| {
                let word = found.subject.strip_prefix(&subject)?.strip_prefix('.')?.to_owned();
                self.judge(&format!("{under}.{word}"), &found, false, None).ok()?;
                Some((word, Record { revision: Revision(found.sequence), value: found.payload }))
            });
            Ok(RecordPage { records: genuine.collect(), next })
        })
    }

    fn was_rolled_back<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let known = self.newest(key);
            let Ok(Some(found)) = self.stored(key, deadline).await else { return false };
            self.judge(key, &found, false, known.as_ref()) == Err(Rejection::Replayed)
        })
    }

    fn clock(&self) -> &Arc<StoreClock> {
        &self.link.store_clock
    }

    fn read_clock(&self, max_age: Duration, deadline: Instant) -> BoxFuture<'_, Result<(), ClockError>> {
        Box::pin(async move {
            let clock = &self.link.store_clock;
            clock.read(max_age, deadline, |until| self.time_of_the_store(until)).await;
            clock.check()
        })
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), NotReady>> {
        Box::pin(async move {
            let (log, until) = (StreamName::log(&self.link.prefix), Instant::now() + READY_TIMEOUT);
            for stream in self.link.streams.used().iter().filter(|stream| **stream != log) {
                let looked = self.link.streams.check_now(&self.link, stream, until).await;
                looked.map_err(|error| NotReady(error.into()))?;
            }
            Ok(())
        })
    }
}

impl Connection {
    /// The time by the server that leads the stream of this role's records: it stores and expires them.
    async fn time_of_the_store(&self, until: Instant) -> Option<Timestamp> {
        let log = StreamName::log(&self.link.prefix);
        let own = self.link.streams.used().into_iter().find(|stream| *stream != log);
        let stream = own.unwrap_or_else(|| StreamName::state_store(&self.link.prefix));
        let info = jetstream::info(&self.link, &stream, &Value::Null, until).await;
        let info = info.inspect_err(|error| {
            tracing::debug!(error = error as &dyn std::error::Error, "the state store's clock cannot be read");
        });
        info.ok()?.get("ts")?.as_str()?.parse().ok()
    }

    /// Like [`StateStore::get`], but an unauthenticated record is refused, whenever it was stored.
    pub(super) async fn proven(&self, key: &str, deadline: Instant) -> Result<Proven, ReadError> {
        let known = self.newest(key);
        let Some(found) = self.newest_stored(key, known.as_ref(), deadline).await? else { return Ok(Proven::Absent) };
        let revision = Revision(found.sequence);
        Ok(match self.judge(key, &found, true, known.as_ref()) {
            Ok(()) => Proven::Record(Record { revision, value: found.payload }, found.at),
            Err(_) => Proven::Unproven,
        })
    }

    /// Like [`Self::stored`]. Any replica may answer a read, and one that is a moment behind has an older version than
    /// this process wrote or read: then it is read again. What stays older is returned, to be judged.
    async fn newest_stored(
        &self,
        key: &str,
        known: Option<&Newest>,
        deadline: Instant,
    ) -> Result<Option<Stored>, ReadError> {
        let until = deadline.min(Instant::now() + REPLICA_LAG_TIMEOUT);
        loop {
            let found = self.stored(key, deadline).await?;
            let is_older = |found: &Stored| {
                let auth = self.link.auth.as_ref().zip(known);
                auth.is_some_and(|(auth, known)| auth.is_older(found, known))
            };
            if !found.as_ref().is_some_and(is_older) || Instant::now() + REPLICA_RETRY_DELAY >= until {
                return Ok(found);
            }
            sleep(REPLICA_RETRY_DELAY).await;
        }
    }

    async fn stored(&self, key: &str, deadline: Instant) -> Result<Option<Stored>, ReadError> {
        let (stream, record) = (StreamName::of_record(&self.link.prefix, key), self.record(key));
        let found = fetch_last(&self.link, &stream, &record, deadline).await?;
        let Some(moved) = found.as_ref().filter(|found| self.link.auth.is_some() && has_moved(found)) else {
            return Ok(found);
        };
        let former = StreamName::state_store(&self.link.prefix);
        let before = fetch_last(&self.link, &former, &record, deadline).await?;
        // The very same message: a sequence is used only once.
        let same = before.filter(|before| before.sequence == moved.sequence && before.payload == moved.payload);
        Ok(same.or(found))
    }

    fn newest(&self, key: &str) -> Option<Newest> {
        self.link.auth.as_ref()?.newest(&self.record(key))
    }

    /// `known`: the newest version known before the read, as another one may be put meanwhile.
    fn judge(&self, key: &str, found: &Stored, proven: bool, known: Option<&Newest>) -> Result<(), Rejection> {
        match &self.link.auth {
            Some(_) if found.subject != self.record(key) => Err(Rejection::Forged),
            Some(auth) => auth.check_record(key, found, proven, known),
            None if is_malformed(found.headers.as_ref()) => Err(Rejection::Malformed),
            None => Ok(()),
        }
    }

    fn record(&self, key: &str) -> String {
        format!("{}.ledger.{key}", self.link.prefix)
    }
}

/// A put names the revision that it replaces; a mirror drops that header.
fn has_moved(found: &Stored) -> bool {
    found.headers.as_ref().is_none_or(|headers| headers.get(EXPECTED_LAST).is_none())
}
