//! Ids of events: a change that is tried again has the same one, so that its line is known to be the same.

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use uuid::{Builder, Uuid};

/// A UUIDv7 that follows from what the event is of, its number and its time.
pub(crate) fn event_id(source: &str, number: u32, at: Timestamp) -> Uuid {
    let hash = digest(&SHA256, format!("{source}|{number}").as_bytes());
    let mut random = [0; 10];
    random.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
    let millis = u64::try_from(at.as_millisecond()).unwrap_or_default();
    Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}
