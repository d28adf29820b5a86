//! The ledger on JetStream: the last message of a subject is the record, its sequence the revision.
//!
//! A plain message with an expected sequence and a lifetime, and not the KV interface, whose update drops the lifetime. A put whose
//! acknowledgement is lost may have been stored: the next one from the old revision then hears `Conflict` and reads again.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;

use super::Connection;
use super::jetstream::{JetError, StreamName, WRONG_LAST_SEQUENCE, fetch_last, publish};
use super::log::EXPECTED_LAST;
use crate::ledger::fault;
use crate::{BoxFuture, Ledger, PutError, ReadError, Record, Revision};

const LIFETIME: HeaderName = HeaderName::from_static("Nats-TTL");

impl Ledger for Connection {
    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        Box::pin(async move {
            if let Some(why) = fault(key, &[]) {
                return Err(ReadError(why.to_owned()));
            }
            let stream = StreamName::ledger(&self.link.prefix);
            let found = fetch_last(&self.link, &stream, &self.record(key), deadline).await?;
            Ok(found.map(|found| Record { revision: Revision(found.sequence), value: found.payload }))
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
    fn record(&self, key: &str) -> String {
        format!("{}.ledger.{key}", self.link.prefix)
    }
}
