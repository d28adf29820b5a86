//! The ledger on JetStream: the last message of a subject is the record, its sequence the revision.
//!
//! A plain message with an expected sequence and a lifetime, and not the KV interface, whose update drops the lifetime. A put whose
//! acknowledgement is lost may have been stored: the next one from the old revision then hears `Conflict` and reads again.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;

use super::Connection;
use super::auth::{LIFETIME, Rejection};
use super::jetstream::{JetError, StreamName, WRONG_LAST_SEQUENCE, fetch_last, publish};
use super::log::EXPECTED_LAST;
use crate::ledger::fault;
use crate::{BoxFuture, Ledger, PutError, ReadError, Record, Revision};

impl Ledger for Connection {
    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        Box::pin(async move {
            if let Some(why) = fault(key, &[]) {
                return Err(ReadError(why.to_owned()));
            }
            self.found(key, false, deadline).await
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
            match publish(&self.link, self.record(key), headers, value, deadline).await {
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
}

impl Connection {
    /// As [`Ledger::get`], and what is not authenticated does not do, whenever it was stored.
    pub(super) async fn proven(&self, key: &str, deadline: Instant) -> Result<Option<Record>, ReadError> {
        self.found(key, true, deadline).await
    }

    async fn found(&self, key: &str, proven: bool, deadline: Instant) -> Result<Option<Record>, ReadError> {
        let stream = StreamName::ledger(&self.link.prefix);
        let subject = self.record(key);
        let Some(found) = fetch_last(&self.link, &stream, &subject, deadline).await? else { return Ok(None) };
        if let Some(auth) = &self.link.auth {
            let judged =
                if found.subject == subject { auth.judge_record(key, &found, proven) } else { Err(Rejection::Forged) };
            judged.map_err(|why| ReadError(format!("the record `{key}` is not believed: {why}")))?;
        }
        Ok(Some(Record { revision: Revision(found.sequence), value: found.payload }))
    }

    fn record(&self, key: &str) -> String {
        format!("{}.ledger.{key}", self.link.prefix)
    }
}
