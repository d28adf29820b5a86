//! What the keystore counts, and under which names.
//!
//! No label holds a key, an id or an account. Without a recorder, counting does nothing.

use std::time::Duration;

use metrics::Unit::{Bytes, Count, Seconds};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use stage0_contract::VerifyKeyReply;

const HASHES: &str = "stage0_key_hashes_total";
const QUEUE: &str = "stage0_key_hash_queue";
const THREADS: &str = "stage0_key_hash_threads";
const SECONDS: &str = "stage0_key_hash_seconds";
const WAIT_SECONDS: &str = "stage0_key_hash_wait_seconds";
const CHANGES: &str = "stage0_keystore_changes_total";
const WRITABLE: &str = "stage0_keystore_writable";
const MARKS_REFUSED: &str = "stage0_keystore_marks_refused_total";
const RESERVE: &str = "stage0_keystore_disk_reserve_bytes";
const UNSHIPPED: &str = "stage0_keystore_unshipped_changes";
const BEHIND: &str = "stage0_keystore_standby_behind_changes";
const UNPROVEN: &str = "stage0_keystore_unproven_calls_total";

/// A hash that runs or waits, until this is dropped.
pub(crate) struct Queued(());

pub(crate) fn describe() {
    describe_counter!(HASHES, Count, "Keys that were to be hashed, by outcome; a busy pool hashes nothing.");
    describe_gauge!(QUEUE, Count, "Keys that are being hashed or wait to be.");
    describe_gauge!(THREADS, Count, "Keys that may be hashed at a time.");
    describe_histogram!(SECONDS, Seconds, "Time that the hash of one key took, its record's reading included.");
    describe_histogram!(WAIT_SECONDS, Seconds, "Time that a key waited for its hash to begin.");
    describe_counter!(
        CHANGES,
        Count,
        "Changes of accounts, keys, endpoints, members and stops, by outcome; busy ones were not begun."
    );
    describe_counter!(
        MARKS_REFUSED,
        Count,
        "Marks that were not signed, by reason; raced: another exporter was faster. All others are an alarm."
    );
    describe_counter!(
        UNPROVEN,
        Count,
        "Management calls whose caller was not proven by its key: of a gateway that is older, or lies."
    );
    describe_gauge!(WRITABLE, Count, "1 while changes can be stored, 0 since a write failed.");
    describe_gauge!(UNSHIPPED, Count, "Changes that are on this machine's disk only, and would be lost with it.");
    describe_gauge!(BEHIND, Count, "Acknowledged changes that a keystore that stands by does not have yet.");
    describe_gauge!(RESERVE, Bytes, "Disk space that is kept for revocations; less than 8 MiB: the disk was full.");
    // From zero on: a rate does not see the first increment of a counter that did not exist.
    for outcome in ["valid", "invalid", "busy", "failed"] {
        counter!(HASHES, "outcome" => outcome).increment(0);
    }
    for outcome in ["stored", "failed", "busy"] {
        counter!(CHANGES, "outcome" => outcome).increment(0);
    }
    counter!(UNPROVEN).increment(0);
}

pub(crate) fn judged(reply: &VerifyKeyReply) {
    counter!(HASHES, "outcome" => outcome(reply)).increment(1);
}

pub(crate) fn outcome(reply: &VerifyKeyReply) -> &'static str {
    match reply {
        VerifyKeyReply::Valid(_) => "valid",
        VerifyKeyReply::Invalid => "invalid",
        VerifyKeyReply::Busy => "busy",
        VerifyKeyReply::Failed => "failed",
    }
}

pub(crate) fn queued() -> Queued {
    gauge!(QUEUE).increment(1.0);
    Queued(())
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred at most")]
pub(crate) fn threads(workers: usize) {
    gauge!(THREADS).set(workers as f64);
}

pub(crate) fn hashed(waited: Duration, took: Duration) {
    histogram!(WAIT_SECONDS).record(waited.as_secs_f64());
    histogram!(SECONDS).record(took.as_secs_f64());
}

pub(crate) fn changed(stored: bool) {
    counter!(CHANGES, "outcome" => if stored { "stored" } else { "failed" }).increment(1);
}

pub(crate) fn busy() {
    counter!(CHANGES, "outcome" => "busy").increment(1);
}

pub(crate) fn mark_refused(reason: &'static str) {
    counter!(MARKS_REFUSED, "reason" => reason).increment(1);
}

pub(crate) fn unproven() {
    counter!(UNPROVEN).increment(1);
}

pub(crate) fn writable(writable: bool) {
    gauge!(WRITABLE).set(f64::from(u8::from(writable)));
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand, or all changes that there ever were")]
pub(crate) fn unshipped(changes: u64) {
    gauge!(UNSHIPPED).set(changes as f64);
}

#[expect(clippy::cast_precision_loss, reason = "as above")]
pub(crate) fn behind(changes: u64) {
    gauge!(BEHIND).set(changes as f64);
}

#[expect(clippy::cast_precision_loss, reason = "a few megabytes")]
pub(crate) fn reserve(bytes: u64) {
    gauge!(RESERVE).set(bytes as f64);
}

impl Drop for Queued {
    fn drop(&mut self) {
        gauge!(QUEUE).decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;

    #[test]
    fn every_metric_is_described_and_recorded() {
        let recorder = PrometheusBuilder::new().set_buckets(&[1.0]).unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            judged(&VerifyKeyReply::Failed);
            drop(queued());
            threads(3);
            hashed(Duration::from_secs(2), Duration::from_millis(20));
            changed(true);
            changed(false);
            busy();
            unproven();
            writable(true);
            mark_refused("taken");
            reserve(8 << 20);
            unshipped(2);
            behind(3);
        });
        let page = recorder.handle().render();
        for line in [
            "stage0_key_hashes_total{outcome=\"failed\"} 1",
            "stage0_key_hash_queue 0",
            "stage0_key_hash_threads 3",
            "stage0_key_hash_seconds_sum 0.02",
            "stage0_key_hash_wait_seconds_sum 2",
            "stage0_keystore_changes_total{outcome=\"stored\"} 1",
            "stage0_keystore_changes_total{outcome=\"failed\"} 1",
            "stage0_keystore_changes_total{outcome=\"busy\"} 1",
            "stage0_keystore_writable 1",
            "stage0_keystore_marks_refused_total{reason=\"taken\"} 1",
            "stage0_keystore_unproven_calls_total 1",
            "stage0_keystore_disk_reserve_bytes 8388608",
            "stage0_keystore_unshipped_changes 2",
            "stage0_keystore_standby_behind_changes 3",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
        let hashes = [HASHES, QUEUE, THREADS, SECONDS, WAIT_SECONDS];
        let others = [CHANGES, WRITABLE, MARKS_REFUSED, UNPROVEN, RESERVE, UNSHIPPED, BEHIND];
        for name in hashes.iter().chain(&others) {
            assert!(page.contains(&format!("# HELP {name} ")), "{name} in\n{page}");
        }
    }
}
