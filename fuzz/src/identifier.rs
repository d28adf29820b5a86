//! Ids, digests, times, cursors and `Retry-After`: what is read can be written, and is then read as the same.
//!
//! An id that can stand in a NATS subject holds nothing that a subject gives a meaning to.

use jiff::Timestamp;
use stage0_audit_export::fuzz_support::{MAX_RETRY_DELAY, retry_delay};
use stage0_contract::{
    AccountId, ActionDigest, ClientRequestId, GuardId, LineHash, MarkRef, PolicyVersion, RequestId, Verdict, https_url,
};
use stage0_gateway::fuzz_support::cursor;

use crate::{Target, text};

pub(crate) const TARGET: Target = Target::new("identifier", check);

fn check(input: &[u8]) -> bool {
    let text = text(input);
    let text = text.as_ref();
    let mut is_taken = false;
    if let Ok(id) = RequestId::parse(text) {
        assert_eq!(RequestId::parse(&id.to_string()), Ok(id));
        assert!(id.unix_millis() >= 0);
        is_taken = true;
    }
    if let Ok(id) = AccountId::parse(text) {
        assert_eq!(id.as_str(), text);
        assert!(!text.contains(['.', '*', '>', ' ', '\0', '/']) && text.is_ascii(), "{text} in a subject");
        assert!(GuardId::parse(text).is_ok());
        is_taken = true;
    }
    if let Ok(id) = ClientRequestId::parse(text) {
        assert_eq!(id.as_str(), text);
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()) && text.len() <= 128);
    }
    if let Ok(version) = PolicyVersion::parse(text) {
        assert_eq!(version.as_str(), text);
        assert!(version.is_at_least(&version));
        let other = PolicyVersion::parse("baseline@2.0.0+0123456789ab").unwrap();
        let is_both = version.is_at_least(&other) && other.is_at_least(&version);
        assert!(!is_both || version == other, "{version} and {other} are each above the other");
        is_taken = true;
    }
    if let Ok(hash) = LineHash::parse(text) {
        assert_eq!(hash.to_string(), text);
    }
    if let Ok(mark) = MarkRef::parse(text) {
        assert_eq!(MarkRef::parse(&mark.to_string()), Ok(mark));
    }
    if let Ok(digest) = ActionDigest::parse(text) {
        assert_eq!(digest.to_string(), text);
    }
    if let Some(verdict) = Verdict::parse(text) {
        assert_eq!(verdict.to_string(), text);
    }
    if let Some(again) = cursor(text) {
        assert_eq!(again, text, "a cursor has one text");
        is_taken = true;
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time, "of {text}");
        is_taken = true;
    }
    if let Ok(url) = https_url(text) {
        assert!(url.scheme() == "https" && url.host_str().is_some_and(|host| !host.is_empty()), "{url}");
        assert_eq!(https_url(url.as_str()).as_ref(), Ok(&url));
    }
    let delay = retry_delay(text, Timestamp::UNIX_EPOCH).unwrap();
    assert!(delay <= MAX_RETRY_DELAY, "{delay:?}");
    is_taken
}
