//! The ledger on JetStream: the last message of a subject is the record, its sequence the revision.
//!
//! A plain message with an expected sequence and a lifetime, and not the KV interface, whose update drops the lifetime. A put whose
//! acknowledgement is lost may have been stored: the next one from the old revision then hears `Conflict` and reads again.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use super::Connection;
use super::auth::{LIFETIME, Newest, Rejection};
use super::jetstream::{self, JetError, Stored, StreamName, WRONG_LAST_SEQUENCE, fetch_last, publish};
use super::log::EXPECTED_LAST;
use crate::ledger::fault;
use crate::{BoxFuture, ClockError, Ledger, PutError, ReadError, Record, Revision, StoreClock};

/// What is there of a record that must be proven.
pub(super) enum Proven {
    Absent,
    /// And when the server stored it.
    Record(Record, Timestamp),
    /// Something that nobody who may put it there did.
    Unproven,
}

impl Ledger for Connection {
    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        Box::pin(async move {
            if let Some(why) = fault(key, &[]) {
                return Err(ReadError(why.to_owned()));
            }
            let known = self.newest(key);
            let Some(found) = self.stored(key, deadline).await? else { return Ok(None) };
            let judged = self.judge(key, &found, false, known.as_ref());
            judged.map_err(|why| ReadError(format!("the record `{key}` is not believed: {why}")))?;
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
                return Err(PutError::Failed(why.to_owned()));
            }
            let mut headers = HeaderMap::new();
            headers.insert(EXPECTED_LAST, HeaderValue::from(expected.map_or(0, |revision| revision.0)));
            if let Some(expires_in) = expires_in {
                // Whole seconds, at least one, and never too few.
                let seconds = expires_in.as_secs() + u64::from(expires_in.subsec_nanos() > 0);
                headers.insert(LIFETIME, HeaderValue::from(seconds.max(1)));
            }
            if let Some(auth) = &self.link.auth
                && auth.record(key, &self.record(key), &value, &mut headers).is_none()
            {
                return Err(PutError::Failed(format!("the record is not one of {}'s", auth.role())));
            }
            let put = publish(&self.link, self.record(key), headers.clone(), value, deadline).await;
            if let (Ok(_), Some(auth)) = (&put, &self.link.auth) {
                auth.note_newest(&self.record(key), Some(&headers));
            }
            match put {
                Ok(ack) => ack
                    .get("seq")
                    .and_then(Value::as_u64)
                    .map(Revision)
                    .ok_or_else(|| PutError::Failed("no acknowledgement".to_owned())),
                Err(JetError::Refused { code, .. }) if WRONG_LAST_SEQUENCE.contains(&code) => Err(PutError::Conflict),
                Err(error) => Err(PutError::Failed(error.to_string())),
            }
        })
    }

    fn clock(&self) -> &Arc<StoreClock> {
        &self.link.store_clock
    }

    fn read_clock(&self, max_age: Duration, deadline: Instant) -> BoxFuture<'_, Result<(), ClockError>> {
        Box::pin(async move {
            let clock = &self.link.store_clock;
            clock.read(max_age, deadline, |until| self.time_of_the_store(until)).await;
            clock.judge()
        })
    }
}

impl Connection {
    /// By the clock of the server that leads the ledger's stream: it stores the records and ends them.
    async fn time_of_the_store(&self, until: Instant) -> Option<Timestamp> {
        let stream = StreamName::ledger(&self.link.prefix);
        let info = jetstream::info(&self.link, &stream, &Value::Null, until).await;
        let info = info.inspect_err(|error| {
            tracing::debug!(error = error as &dyn std::error::Error, "the state store's clock cannot be read");
        });
        info.ok()?.get("ts")?.as_str()?.parse().ok()
    }

    /// As [`Ledger::get`], and what is not authenticated does not do, whenever it was stored.
    pub(super) async fn proven(&self, key: &str, deadline: Instant) -> Result<Proven, ReadError> {
        let known = self.newest(key);
        let Some(found) = self.stored(key, deadline).await? else { return Ok(Proven::Absent) };
        let revision = Revision(found.sequence);
        Ok(match self.judge(key, &found, true, known.as_ref()) {
            Ok(()) => Proven::Record(Record { revision, value: found.payload }, found.at),
            Err(_) => Proven::Unproven,
        })
    }

    async fn stored(&self, key: &str, deadline: Instant) -> Result<Option<Stored>, ReadError> {
        let stream = StreamName::ledger(&self.link.prefix);
        Ok(fetch_last(&self.link, &stream, &self.record(key), deadline).await?)
    }

    fn newest(&self, key: &str) -> Option<Newest> {
        self.link.auth.as_ref()?.newest(&self.record(key))
    }

    /// `known`: of before it was asked for, as another one may be put meanwhile.
    fn judge(&self, key: &str, found: &Stored, proven: bool, known: Option<&Newest>) -> Result<(), Rejection> {
        match &self.link.auth {
            Some(_) if found.subject != self.record(key) => Err(Rejection::Forged),
            Some(auth) => auth.judge_record(key, found, proven, known),
            None => Ok(()),
        }
    }

    fn record(&self, key: &str) -> String {
        format!("{}.ledger.{key}", self.link.prefix)
    }
}
