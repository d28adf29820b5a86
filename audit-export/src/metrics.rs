//! The metrics of the exporter.
//!
//! INVARIANT: no label holds an endpoint, an account or an event, so the number of series is bounded; the log names
//! them. Without a recorder, counting does nothing.

use std::time::Duration;

use jiff::Timestamp;
use metrics::Unit::{Count, Seconds};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use stage0_contract::MarkBody;

use crate::cursor::Completion;
use crate::lag::Lag;

const DELIVERIES: &str = "stage0_deliveries_total";
const REQUEST_SECONDS: &str = "stage0_delivery_request_seconds";
const DELAY_SECONDS: &str = "stage0_delivery_delay_seconds";
const LAG_SECONDS: &str = "stage0_delivery_lag_seconds";
const UNTRIED_SECONDS: &str = "stage0_delivery_untried_seconds";
const HELD: &str = "stage0_endpoints_held";
const BEHIND: &str = "stage0_endpoints_behind";
const ENDPOINTS: &str = "stage0_endpoints";
const DISABLED: &str = "stage0_endpoints_disabled_total";
const MARKS: &str = "stage0_marks_total";
const LOOKUPS: &str = "stage0_webhook_look_ups_total";
const STOPPED: &str = "stage0_retention_stopped";
const AHEAD_SECONDS: &str = "stage0_clock_ahead_seconds";
const REMOVED: &str = "stage0_log_entries_removed_total";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RemovalReason {
    Retention,
    Deletion,
}

pub(crate) fn describe() {
    describe_counter!(
        DELIVERIES,
        Count,
        "Attempts to deliver an event by outcome, and events that expired before an attempt."
    );
    describe_histogram!(
        REQUEST_SECONDS,
        Seconds,
        "Duration of one attempt, up to the receiver's answer or the failure."
    );
    describe_histogram!(DELAY_SECONDS, Seconds, "Time from an event's recording to its delivery, without replays.");
    describe_gauge!(LAG_SECONDS, Seconds, "Age of the oldest event that is not delivered; 0 when all are.");
    describe_gauge!(UNTRIED_SECONDS, Seconds, "Age of the oldest event that was not even tried; 0 when all were.");
    describe_gauge!(HELD, Count, "Endpoints that this instance serves.");
    describe_gauge!(BEHIND, Count, "Of those, the ones with an event that is not delivered after a minute.");
    describe_gauge!(ENDPOINTS, Count, "Endpoints of all accounts, as the keystore lists them, by state.");
    describe_counter!(DISABLED, Count, "Endpoints that this instance had disabled.");
    describe_counter!(MARKS, Count, "Signed marks by kind and by whether they were written.");
    describe_counter!(LOOKUPS, Count, "DNS lookups of webhook host names by outcome.");
    describe_gauge!(
        STOPPED,
        Count,
        "1 while retention removes nothing because this host's clock is far ahead of all others."
    );
    describe_gauge!(AHEAD_SECONDS, Seconds, "How far this host's clock is ahead of all others; 0 while it is trusted.");
    describe_counter!(REMOVED, Count, "Entries removed from the decision log by reason.");
    // From zero on: a rate does not see the first increment of a counter that did not exist.
    for outcome in ["delivered", "retried", "exhausted", "refused", "expired"] {
        counter!(DELIVERIES, "outcome" => outcome).increment(0);
    }
    for kind in ["checkpoint", "deletion", "expiry", "webhook_disabled"] {
        for outcome in ["written", "failed"] {
            counter!(MARKS, "kind" => kind, "outcome" => outcome).increment(0);
        }
    }
    counter!(DISABLED).increment(0);
}

/// Counts a finished attempt. `recorded_at` is none for a replayed event.
pub(crate) fn attempt(completion: &Completion, took: Duration, recorded_at: Option<Timestamp>, now: Timestamp) {
    counter!(DELIVERIES, "outcome" => completion.label()).increment(1);
    histogram!(REQUEST_SECONDS).record(took.as_secs_f64());
    if let (Completion::Delivered, Some(recorded_at)) = (completion, recorded_at) {
        // The clock of the process that recorded the event may be ahead of ours.
        histogram!(DELAY_SECONDS).record(now.duration_since(recorded_at).as_secs_f64().max(0.0));
    }
}

/// An event left the log before it was delivered.
pub(crate) fn expired() {
    counter!(DELIVERIES, "outcome" => "expired").increment(1);
}

pub(crate) fn lag(lag: Lag) {
    let Lag { held, behind, oldest_seconds, untried_seconds } = lag;
    gauge!(HELD).set(f64::from(held));
    gauge!(BEHIND).set(f64::from(behind));
    gauge!(LAG_SECONDS).set(seconds(oldest_seconds));
    gauge!(UNTRIED_SECONDS).set(seconds(untried_seconds));
}

pub(crate) fn endpoints(enabled: usize, disabled: usize) {
    gauge!(ENDPOINTS, "state" => "enabled").set(seconds(enabled as u64));
    gauge!(ENDPOINTS, "state" => "disabled").set(seconds(disabled as u64));
}

pub(crate) fn endpoint_disabled() {
    counter!(DISABLED).increment(1);
}

pub(crate) fn clock(ahead: Option<Duration>) {
    gauge!(STOPPED).set(f64::from(u8::from(ahead.is_some())));
    gauge!(AHEAD_SECONDS).set(ahead.unwrap_or_default().as_secs_f64());
}

pub(crate) fn lookup_finished(outcome: &'static str) {
    counter!(LOOKUPS, "outcome" => outcome).increment(1);
}

pub(crate) fn mark(body: &MarkBody, written: bool) {
    let kind = match body {
        MarkBody::Checkpoint {} => "checkpoint",
        MarkBody::Deletion(_) => "deletion",
        MarkBody::Expiry(_) => "expiry",
        MarkBody::WebhookDisabled { .. } => "webhook_disabled",
    };
    counter!(MARKS, "kind" => kind, "outcome" => if written { "written" } else { "failed" }).increment(1);
}

pub(crate) fn removed(reason: RemovalReason, entries: u64) {
    let why = match reason {
        RemovalReason::Retention => "retention",
        RemovalReason::Deletion => "demand",
    };
    counter!(REMOVED, "why" => why).increment(entries);
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn seconds(whole: u64) -> f64 {
    whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;

    #[test]
    fn every_metric_is_described_and_counted_under_its_name() {
        let recorder = PrometheusBuilder::new().set_buckets(&[1.0]).unwrap().build_recorder();
        let at = |second| Timestamp::from_second(second).unwrap();
        metrics::with_local_recorder(&recorder, || {
            describe();
            attempt(&Completion::Delivered, Duration::from_secs(2), Some(at(10)), at(13));
            attempt(&Completion::Delivered, Duration::ZERO, None, at(13));
            attempt(&Completion::RetryScheduled, Duration::ZERO, Some(at(0)), at(13));
            attempt(&Completion::DeadLettered, Duration::ZERO, Some(at(0)), at(13));
            attempt(&Completion::Disable(String::new()), Duration::ZERO, Some(at(0)), at(13));
            expired();
            lag(Lag { held: 4, behind: 3, oldest_seconds: 70, untried_seconds: 7 });
            endpoints(5, 6);
            endpoint_disabled();
            mark(&MarkBody::Checkpoint {}, true);
            mark(&MarkBody::Checkpoint {}, false);
            removed(RemovalReason::Retention, 8);
            removed(RemovalReason::Deletion, 9);
            lookup_finished("found");
            clock(Some(Duration::from_secs(86_400)));
        });
        let page = recorder.handle().render();
        for line in [
            "stage0_deliveries_total{outcome=\"delivered\"} 2",
            "stage0_deliveries_total{outcome=\"retried\"} 1",
            "stage0_deliveries_total{outcome=\"exhausted\"} 1",
            "stage0_deliveries_total{outcome=\"refused\"} 1",
            "stage0_deliveries_total{outcome=\"expired\"} 1",
            "stage0_delivery_request_seconds_count 5",
            "stage0_delivery_delay_seconds_sum 3",
            "stage0_delivery_delay_seconds_count 1",
            "stage0_delivery_lag_seconds 70",
            "stage0_delivery_untried_seconds 7",
            "stage0_endpoints_held 4",
            "stage0_endpoints_behind 3",
            "stage0_endpoints{state=\"enabled\"} 5",
            "stage0_endpoints{state=\"disabled\"} 6",
            "stage0_endpoints_disabled_total 1",
            "stage0_marks_total{kind=\"checkpoint\",outcome=\"written\"} 1",
            "stage0_marks_total{kind=\"checkpoint\",outcome=\"failed\"} 1",
            "stage0_log_entries_removed_total{why=\"retention\"} 8",
            "stage0_log_entries_removed_total{why=\"demand\"} 9",
            "stage0_webhook_look_ups_total{outcome=\"found\"} 1",
            "stage0_retention_stopped 1",
            "stage0_clock_ahead_seconds 86400",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
        let described = page.lines().filter(|line| line.starts_with("# HELP ")).count();
        assert_eq!(described, page.lines().filter(|line| line.starts_with("# TYPE ")).count(), "{page}");
    }
}
