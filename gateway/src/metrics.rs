//! The gateway's metrics: every name and label. Without a recorder, counting does nothing.
//!
//! INVARIANT: no label holds text of a caller, so the number of series is bounded: a route is its pattern, an issue's
//! code is fixed text of a policy pack's rule, and every other label is a word of this file or an error code.

use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use stage0_contract::{ErrorCode, IssueCode, Verdict};

use crate::proxy_protocol::Refused;
use crate::throttle::LoginsBy;

mod state_store;

pub(crate) use state_store::MeteredStateStore;

const REQUESTS: &str = "stage0_http_requests_total";
const REQUEST_SECONDS: &str = "stage0_http_request_seconds";
const CHECKS: &str = "stage0_checks_total";
const CHECK_STEP_SECONDS: &str = "stage0_check_step_seconds";
const CHECKS_IN_FLIGHT: &str = "stage0_checks_in_flight";
const ISSUES: &str = "stage0_issues_total";
const RECORD_ROUND_SECONDS: &str = "stage0_record_round_seconds";
const RECORD_LINES: &str = "stage0_record_lines_total";
const EVENT_LINES: &str = "stage0_event_lines_total";
const APPROVAL_WAITS: &str = "stage0_approval_waits";
const CANARIES_RETURNED: &str = "stage0_canaries_returned_total";
const NOTICES_PROVEN: &str = "stage0_notices_proven_age_seconds";
const KEY_CACHE: &str = "stage0_key_cache_total";
const REFUSED: &str = "stage0_refused_total";
const FAILED_LOGINS: &str = "stage0_failed_logins_total";
const THROTTLED: &str = "stage0_throttled_total";
const PROXY_HEADERS_REFUSED: &str = "stage0_proxy_headers_refused_total";
const CONNECTIONS: &str = "stage0_connections";
const LEDGER_FAILURES: &str = "stage0_ledger_failures_total";
/// The route of a path that does not exist.
const NO_ROUTE: &str = "none";

/// The steps of a check, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckStep {
    Authenticate,
    /// The body arrives, which takes the caller's time.
    Body,
    /// The account's limit per minute.
    Admit,
    LookUp,
    /// The account's quotas per day and month.
    Reserve,
    /// The fields are validated; if some are invalid, an evaluator validates them, too.
    Parse,
    Claim,
    Evaluate,
    Record,
}

/// The limit that refused a request or closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Throttle {
    Logins(LoginsBy),
    Burst,
    /// Connections, of an address or in total: the new one was closed.
    Connections,
    /// The same limit: an older connection was closed.
    Evicted,
    Bytes,
    Reads,
    /// The account's checks per minute.
    Rate,
    /// The account's checks per day or month.
    Quota,
    /// Calls that wait for approvals.
    Waits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyLookup {
    Hit,
    /// The identity was cached and revalidated by the keystore.
    Refreshed,
    /// The keystore verified the key, which takes a hash.
    Miss,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordOutcome {
    Recorded,
    Failed,
    Unknown,
}

pub(crate) fn describe() {
    describe_counter!(REQUESTS, Unit::Count, "Requests answered, by pattern of the path and by status.");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "Time from a request's head to its answer's.");
    describe_counter!(CHECKS, Unit::Count, "Checks answered, by verdict; answers that are repeated count again.");
    describe_histogram!(CHECK_STEP_SECONDS, Unit::Seconds, "Time that a check spent in each of its steps.");
    describe_gauge!(CHECKS_IN_FLIGHT, Unit::Count, "Checks that have begun and are not answered.");
    describe_counter!(ISSUES, Unit::Count, "Checks answered with an issue of this code, each code once a check.");
    describe_histogram!(RECORD_ROUND_SECONDS, Unit::Seconds, "Time of one append to the log, tries included.");
    describe_counter!(RECORD_LINES, Unit::Count, "Decisions handed to the log, by what became of them.");
    describe_counter!(
        EVENT_LINES,
        Unit::Count,
        "Events of approvals, grants and stops handed to the log, by what became of them."
    );
    describe_gauge!(APPROVAL_WAITS, Unit::Count, "Calls that wait for an approval to change.");
    describe_counter!(CANARIES_RETURNED, Unit::Count, "Canaries that ended by their own terms.");
    describe_gauge!(
        NOTICES_PROVEN,
        Unit::Seconds,
        "Time since notices of revocations were last proven to arrive; from 0.5 on cached keys are not believed."
    );
    describe_counter!(KEY_CACHE, Unit::Count, "Well-formed keys looked up, by what was known of them.");
    describe_counter!(REFUSED, Unit::Count, "Requests refused, by the code of the error.");
    describe_counter!(FAILED_LOGINS, Unit::Count, "Failed logins counted against an address or a key id.");
    describe_counter!(THROTTLED, Unit::Count, "Requests and connections refused because of a limit, by the limit.");
    describe_counter!(
        PROXY_HEADERS_REFUSED,
        Unit::Count,
        "Connections of balancers closed for want of a PROXY header."
    );
    describe_gauge!(CONNECTIONS, Unit::Count, "Connections that are open, also those that still shake hands.");
    describe_counter!(
        LEDGER_FAILURES,
        Unit::Count,
        "Times that the ledger of quotas and idempotency keys failed or was too slow."
    );
    // From zero on: a rate does not see the first increment of a counter that did not exist.
    for outcome in [RecordOutcome::Recorded, RecordOutcome::Failed, RecordOutcome::Unknown] {
        counter!(RECORD_LINES, "outcome" => outcome.as_str()).increment(0);
        counter!(EVENT_LINES, "outcome" => outcome.as_str()).increment(0);
    }
    for by in ["get", "put"] {
        counter!(LEDGER_FAILURES, "by" => by).increment(0);
    }
}

pub(crate) fn answered(route: Option<&str>, status: StatusCode, took: Duration) {
    let route = route.unwrap_or(NO_ROUTE).to_owned();
    counter!(REQUESTS, "route" => route.clone(), "status" => status.as_str().to_owned()).increment(1);
    histogram!(REQUEST_SECONDS, "route" => route).record(took.as_secs_f64());
}

/// Each code must be given once.
pub(crate) fn checked<'a>(verdict: Verdict, codes: impl IntoIterator<Item = &'a IssueCode>) {
    counter!(CHECKS, "verdict" => verdict.as_str()).increment(1);
    for code in codes {
        counter!(ISSUES, "code" => code.as_str().to_owned()).increment(1);
    }
}

/// Measures how long a step takes, whether it succeeds or fails, each time it is done. A step that is cancelled is not
/// measured.
pub(crate) async fn timed<T>(step: CheckStep, work: impl Future<Output = T>) -> T {
    let step = match step {
        CheckStep::Authenticate => "authenticate",
        CheckStep::Body => "body",
        CheckStep::Admit => "admit",
        CheckStep::LookUp => "look_up",
        CheckStep::Reserve => "reserve",
        CheckStep::Parse => "parse",
        CheckStep::Claim => "claim",
        CheckStep::Evaluate => "evaluate",
        CheckStep::Record => "record",
    };
    let began = Instant::now();
    let done = work.await;
    histogram!(CHECK_STEP_SECONDS, "step" => step).record(began.elapsed().as_secs_f64());
    done
}

/// A check is in flight until this is dropped.
pub(crate) struct InFlight(());

impl InFlight {
    pub(crate) fn begin() -> Self {
        gauge!(CHECKS_IN_FLIGHT).increment(1.0);
        Self(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        gauge!(CHECKS_IN_FLIGHT).decrement(1.0);
    }
}

pub(crate) fn record_round(took: Duration) {
    histogram!(RECORD_ROUND_SECONDS).record(took.as_secs_f64());
}

impl RecordOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

pub(crate) fn recorded(decisions: usize, outcome: RecordOutcome) {
    counter!(RECORD_LINES, "outcome" => outcome.as_str()).increment(u64::try_from(decisions).unwrap_or(u64::MAX));
}

pub(crate) fn events_recorded(events: usize, outcome: RecordOutcome) {
    if events > 0 {
        counter!(EVENT_LINES, "outcome" => outcome.as_str()).increment(u64::try_from(events).unwrap_or(u64::MAX));
    }
}

pub(crate) fn wait_began() {
    gauge!(APPROVAL_WAITS).increment(1.0);
}

pub(crate) fn wait_ended() {
    gauge!(APPROVAL_WAITS).decrement(1.0);
}

pub(crate) fn canary_returned() {
    counter!(CANARIES_RETURNED).increment(1);
}

pub(crate) fn notices_proven(age: Duration) {
    gauge!(NOTICES_PROVEN).set(age.as_secs_f64());
}

pub(crate) fn key_looked_up(outcome: KeyLookup) {
    let outcome = match outcome {
        KeyLookup::Hit => "hit",
        KeyLookup::Refreshed => "refreshed",
        KeyLookup::Miss => "miss",
    };
    counter!(KEY_CACHE, "outcome" => outcome).increment(1);
}

pub(crate) fn refused(code: ErrorCode) {
    // As in the answer's body.
    let code = serde_json::to_value(code).unwrap_or_default();
    counter!(REFUSED, "reason" => code.as_str().unwrap_or_default().to_owned()).increment(1);
}

pub(crate) fn throttled(throttle: Throttle) {
    let by = match throttle {
        Throttle::Logins(by) => logins(by),
        Throttle::Burst => "burst",
        Throttle::Connections => "connections",
        Throttle::Evicted => "evicted",
        Throttle::Bytes => "bytes",
        Throttle::Reads => "reads",
        Throttle::Rate => "rate",
        Throttle::Quota => "quota",
        Throttle::Waits => "waits",
    };
    counter!(THROTTLED, "by" => by).increment(1);
}

pub(crate) fn login_failed(by: LoginsBy) {
    counter!(FAILED_LOGINS, "by" => logins(by)).increment(1);
}

pub(crate) fn proxy_header_refused(refused: Refused) {
    let reason = match refused {
        Refused::Missing => "missing",
        Refused::Malformed => "malformed",
        Refused::TooLong => "too_long",
        Refused::Truncated => "truncated",
        Refused::Late => "late",
    };
    counter!(PROXY_HEADERS_REFUSED, "reason" => reason).increment(1);
}

pub(crate) fn connection_opened() {
    gauge!(CONNECTIONS).increment(1.0);
}

pub(crate) fn connection_closed() {
    gauge!(CONNECTIONS).decrement(1.0);
}

fn state_store_failed(by: &'static str) {
    counter!(LEDGER_FAILURES, "by" => by).increment(1);
}

fn logins(by: LoginsBy) -> &'static str {
    match by {
        LoginsBy::Address => "address",
        LoginsBy::Key => "key",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use std::future::{pending, ready};

    #[test]
    fn every_metric_is_described_and_counted_under_its_name() {
        let recorder = PrometheusBuilder::new().set_buckets(&[1.0]).unwrap().build_recorder();
        let mut under_way = None;
        metrics::with_local_recorder(&recorder, || {
            describe();
            answered(Some("/v1/keys/{id}"), StatusCode::OK, Duration::from_millis(1_500));
            answered(None, StatusCode::NOT_FOUND, Duration::ZERO);
            let codes = ["APPROVAL_REQUIRED", "SCOPE_UNCLEAR"].map(|code| IssueCode::parse(code).unwrap());
            checked(Verdict::Defer, &codes);
            checked(Verdict::Allow, &codes[..1]);
            let done = timed(CheckStep::LookUp, ready(7)).now_or_never();
            assert_eq!(done, Some(7));
            assert_eq!(timed(CheckStep::Record, pending::<()>()).now_or_never(), None);
            drop(InFlight::begin());
            under_way = Some(InFlight::begin());
            record_round(Duration::from_millis(2_500));
            recorded(3, RecordOutcome::Recorded);
            recorded(4, RecordOutcome::Recorded);
            recorded(2, RecordOutcome::Failed);
            recorded(1, RecordOutcome::Unknown);
            events_recorded(5, RecordOutcome::Recorded);
            events_recorded(0, RecordOutcome::Failed);
            wait_began();
            wait_began();
            wait_ended();
            for outcome in [KeyLookup::Hit, KeyLookup::Refreshed, KeyLookup::Miss, KeyLookup::Hit] {
                key_looked_up(outcome);
            }
            notices_proven(Duration::from_millis(250));
            refused(ErrorCode::Unauthorized);
            throttled(Throttle::Burst);
            login_failed(LoginsBy::Key);
            proxy_header_refused(Refused::TooLong);
            connection_opened();
            connection_opened();
            connection_closed();
            state_store_failed("get");
        });
        let handle = recorder.handle();
        handle.run_upkeep();
        let page = handle.render();
        drop(under_way);
        for line in [
            "stage0_http_requests_total{route=\"/v1/keys/{id}\",status=\"200\"} 1",
            "stage0_http_requests_total{route=\"none\",status=\"404\"} 1",
            "stage0_http_request_seconds_bucket{route=\"/v1/keys/{id}\",le=\"1\"} 0",
            "stage0_http_request_seconds_sum{route=\"/v1/keys/{id}\"} 1.5",
            "stage0_checks_total{verdict=\"DEFER\"} 1",
            "stage0_checks_total{verdict=\"ALLOW\"} 1",
            "stage0_issues_total{code=\"APPROVAL_REQUIRED\"} 2",
            "stage0_issues_total{code=\"SCOPE_UNCLEAR\"} 1",
            "stage0_check_step_seconds_count{step=\"look_up\"} 1",
            "stage0_checks_in_flight 1",
            "stage0_record_round_seconds_sum 2.5",
            "stage0_record_lines_total{outcome=\"recorded\"} 7",
            "stage0_record_lines_total{outcome=\"failed\"} 2",
            "stage0_record_lines_total{outcome=\"unknown\"} 1",
            "stage0_event_lines_total{outcome=\"recorded\"} 5",
            "stage0_approval_waits 1",
            "stage0_key_cache_total{outcome=\"hit\"} 2",
            "stage0_key_cache_total{outcome=\"refreshed\"} 1",
            "stage0_key_cache_total{outcome=\"miss\"} 1",
            "stage0_notices_proven_age_seconds 0.25",
            "stage0_refused_total{reason=\"unauthorized\"} 1",
            "stage0_throttled_total{by=\"burst\"} 1",
            "stage0_failed_logins_total{by=\"key\"} 1",
            "stage0_proxy_headers_refused_total{reason=\"too_long\"} 1",
            "stage0_connections 1",
            "stage0_ledger_failures_total{by=\"get\"} 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
        assert!(!page.contains("step=\"record\""), "a cancelled step is not measured: {page}");
        let count = |start: &str| page.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!((count("# TYPE "), count("# HELP ")), (18, 18), "{page}");
    }
}
