//! What the keystore counts, and under which names.
//!
//! Owns every name and label; no label holds a key, an id or an account. Where nobody records, counting does nothing.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use stage0_contract::VerifyKeyReply;

const HASHES: &str = "stage0_key_hashes_total";
const QUEUE: &str = "stage0_key_hash_queue";

/// A hash that runs or waits to; it no longer does when this is dropped.
pub(crate) struct Queued(());

/// Tells whoever records what the names mean.
pub(crate) fn describe() {
    describe_counter!(HASHES, Unit::Count, "Keys that were to be hashed, by outcome; a busy pool hashes nothing.");
    describe_gauge!(QUEUE, Unit::Count, "Keys that are being hashed or wait to be.");
}

pub(crate) fn judged(reply: &VerifyKeyReply) {
    let outcome = match reply {
        VerifyKeyReply::Valid(_) => "valid",
        VerifyKeyReply::Invalid => "invalid",
        VerifyKeyReply::Busy => "busy",
        VerifyKeyReply::Failed => "failed",
    };
    counter!(HASHES, "outcome" => outcome).increment(1);
}

pub(crate) fn queued() -> Queued {
    gauge!(QUEUE).increment(1.0);
    Queued(())
}

impl Drop for Queued {
    fn drop(&mut self) {
        gauge!(QUEUE).decrement(1.0);
    }
}
