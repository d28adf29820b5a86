//! The evaluator's metrics and their names.
//!
//! INVARIANT: no label holds text of a request, an account or a run. Codes and versions are those of the process's own
//! packs, so the number of series is bounded.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use serde_json::Value;
use stage0_contract::{ApprovalSource, ApprovalStatus, Decision, IssueCode, OutcomeStatus, PolicyVersion};
use stage0_policy::Pack;

const DECISIONS: &str = "stage0_decisions_total";
const CODES: &str = "stage0_decision_codes_total";
const GIVEN_UP: &str = "stage0_checks_given_up_total";
const SECONDS: &str = "stage0_decide_seconds";
const IN_FLIGHT: &str = "stage0_in_flight";
const POLICY: &str = "stage0_policy_info";
const POLICY_DIFFERENCES: &str = "stage0_policy_differences_total";
const POLICY_LOADS: &str = "stage0_policy_loads_total";
const TOGETHER: &str = "stage0_run_checks_together";
const CONFLICTS: &str = "stage0_run_conflicts_total";
const ROUND: &str = "stage0_run_changes_together";
const TAKEN: &str = "stage0_runs_taken_total";
const CANDIDATE_JUDGED: &str = "stage0_policy_candidate_judged_total";
const LEDGER_FAILURES: &str = "stage0_ledger_failures_total";
const APPROVALS_OPENED: &str = "stage0_approvals_opened_total";
const APPROVALS_DECIDED: &str = "stage0_approvals_decided_total";
const APPROVALS_USED: &str = "stage0_approvals_used_total";
const APPROVALS_RELEASED: &str = "stage0_approvals_released_total";
const APPROVALS_REFUSED: &str = "stage0_approvals_refused_total";
const OUTCOMES_REPORTED: &str = "stage0_outcomes_reported_total";
const GUARDS_SILENT: &str = "stage0_guards_silent_total";

/// Why a check whose only missing thing is an approval gets none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApprovalRefused {
    /// Too many are pending.
    Cap,
    TooLarge,
    /// Lines about approvals cannot be recorded.
    NotRecordable,
    /// The keystore does not answer.
    NoPeople,
    /// Another check uses or used it.
    Used,
    Denied,
    /// The state store does not answer, or a record is malformed.
    Failed,
}

impl ApprovalRefused {
    fn as_str(self) -> &'static str {
        match self {
            Self::Cap => "cap",
            Self::TooLarge => "too_large",
            Self::NotRecordable => "not_recordable",
            Self::NoPeople => "no_people",
            Self::Used => "used",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// What became of a check that a candidate takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Same,
    Differs,
    /// A rule of the candidate failed.
    Error,
    NotJudged,
}

impl Comparison {
    fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Differs => "differs",
            Self::Error => "error",
            Self::NotJudged => "not_judged",
        }
    }
}

/// Stands for every code of a published policy that the baseline does not have.
const OWN_CODE: &str = "own";

pub(crate) struct InFlightGuard(());

pub(crate) fn describe() {
    describe_counter!(DECISIONS, Unit::Count, "Checks decided, by verdict; one that is decided again counts again.");
    describe_counter!(CODES, Unit::Count, "Checks decided, by each reason code among their issues.");
    describe_counter!(
        GIVEN_UP,
        Unit::Count,
        "Checks that were not decided: too many of their account, or out of time."
    );
    describe_histogram!(
        SECONDS,
        Unit::Seconds,
        "Time that deciding took: one check's policy, or a run with its ledger."
    );
    describe_gauge!(IN_FLIGHT, Unit::Count, "Questions that were taken and are not answered yet.");
    describe_gauge!(
        POLICY,
        Unit::Count,
        "1 for each policy version: the one that decides, and others that are loaded."
    );
    describe_counter!(POLICY_LOADS, Unit::Count, "Published policies that were loaded, or could not be.");
    describe_counter!(
        POLICY_DIFFERENCES,
        Unit::Count,
        "Policies whose compiled rules were found to differ from Cedar, which evaluates them from then on."
    );
    describe_histogram!(TOGETHER, Unit::Count, "Checks of one run that were decided together.");
    describe_counter!(CONFLICTS, Unit::Count, "Runs read again because another evaluator wrote them meanwhile.");
    describe_histogram!(ROUND, Unit::Count, "Changes of runs that were stored with one write.");
    describe_counter!(TAKEN, Unit::Count, "Runs taken from the journal of another evaluator, or of one that died.");
    describe_counter!(LEDGER_FAILURES, Unit::Count, "Records that could not be read or written, by what they are.");
    describe_counter!(
        CANDIDATE_JUDGED,
        Unit::Count,
        "Checks that a shadow or the policy beside a canary judged too, by what came of it."
    );
    describe_counter!(APPROVALS_OPENED, Unit::Count, "Approvals opened by deferred checks.");
    describe_counter!(APPROVALS_DECIDED, Unit::Count, "Approvals decided, cancelled or expired, by status.");
    describe_counter!(APPROVALS_USED, Unit::Count, "Checks that used an approval or a wider grant.");
    describe_counter!(APPROVALS_RELEASED, Unit::Count, "Uses given back: the decision was not made or not recorded.");
    describe_counter!(
        APPROVALS_REFUSED,
        Unit::Count,
        "Checks that only lacked an approval and neither opened, awaited nor used one, by the reason."
    );
    describe_counter!(OUTCOMES_REPORTED, Unit::Count, "Outcomes of allowed actions that were reported, by status.");
    describe_counter!(GUARDS_SILENT, Unit::Count, "Guards that did not report within the time that they gave.");
    // From zero on: a rate does not see the first increment of a counter that did not exist.
    for name in [POLICY_DIFFERENCES, GUARDS_SILENT] {
        counter!(name).increment(0);
    }
    for outcome in ["loaded", "failed"] {
        counter!(POLICY_LOADS, "outcome" => outcome).increment(0);
    }
    for why in ["timed_out", "busy"] {
        counter!(GIVEN_UP, "why" => why).increment(0);
    }
    for by in ["runs", "approvals", "outcomes", "guards", "candidates"] {
        counter!(LEDGER_FAILURES, "by" => by).increment(0);
    }
    counter!(CODES, "code" => IssueCode::POLICY_ERROR).increment(0);
}

/// What came of an allowed action was reported; the same again does not count.
pub(crate) fn outcome_reported(status: OutcomeStatus) {
    counter!(OUTCOMES_REPORTED, "status" => status.as_str()).increment(1);
}

pub(crate) fn outcomes_failed() {
    counter!(LEDGER_FAILURES, "by" => "outcomes").increment(1);
}

/// A guard went silent; each silence counts once.
pub(crate) fn guard_silent() {
    counter!(GUARDS_SILENT).increment(1);
}

pub(crate) fn guards_failed() {
    counter!(LEDGER_FAILURES, "by" => "guards").increment(1);
}

pub(crate) fn approval_opened() {
    counter!(APPROVALS_OPENED).increment(1);
}

/// An approval reached a state by a person, or because its time was over.
pub(crate) fn approval_decided(status: ApprovalStatus) {
    counter!(APPROVALS_DECIDED, "status" => status.as_str()).increment(1);
}

pub(crate) fn approval_used(source: ApprovalSource) {
    let by = match source {
        ApprovalSource::Caller => "caller",
        ApprovalSource::Approval => "approval",
        ApprovalSource::Grant => "grant",
    };
    counter!(APPROVALS_USED, "by" => by).increment(1);
}

pub(crate) fn approval_released() {
    counter!(APPROVALS_RELEASED).increment(1);
}

pub(crate) fn approval_refused(why: ApprovalRefused) {
    counter!(APPROVALS_REFUSED, "why" => why.as_str()).increment(1);
}

pub(crate) fn approvals_failed() {
    counter!(LEDGER_FAILURES, "by" => "approvals").increment(1);
}

/// A check that a candidate takes was judged by the other policy too, or was not.
pub(crate) fn candidate_judged(comparison: Comparison) {
    counter!(CANDIDATE_JUDGED, "result" => comparison.as_str()).increment(1);
}

/// What was found of candidates could not be read or written.
pub(crate) fn candidates_failed() {
    counter!(LEDGER_FAILURES, "by" => "candidates").increment(1);
}

/// `is_published`: decided by policies of accounts, whose own codes are counted together.
pub(crate) fn decided(decision: &Decision, is_published: bool) {
    counter!(DECISIONS, "verdict" => decision.verdict.as_str()).increment(1);
    let label = |code| if is_published && !is_of_baseline(code) { OWN_CODE } else { code };
    let codes: BTreeSet<&str> = decision.issues.iter().map(|issue| label(issue.code.as_str())).collect();
    for code in codes {
        counter!(CODES, "code" => code.to_owned()).increment(1);
    }
}

fn is_of_baseline(code: &str) -> bool {
    if code == IssueCode::OUTCOME_UNKNOWN {
        // No rule gives it.
        return true;
    }
    static CODES: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let Ok(baseline) = Pack::embedded() else { return BTreeSet::new() };
        let told = baseline.reference().get("codes").and_then(Value::as_array).into_iter().flatten();
        told.filter_map(|told| told.get("code")?.as_str().map(str::to_owned)).collect()
    });
    CODES.contains(code)
}

pub(crate) fn timed_out() {
    counter!(GIVEN_UP, "why" => "timed_out").increment(1);
}

/// Too many checks of its account are queued.
pub(crate) fn busy() {
    counter!(GIVEN_UP, "why" => "busy").increment(1);
}

/// Facts and rules of one check.
pub(crate) fn observe_policy(time: Duration) {
    histogram!(SECONDS, "step" => "policy").record(time.as_secs_f64());
}

/// A batch of checks of one run, from the first read of the state store to the last write.
pub(crate) fn observe_run(time: Duration) {
    histogram!(SECONDS, "step" => "run").record(time.as_secs_f64());
}

pub(crate) fn begin_request() -> InFlightGuard {
    gauge!(IN_FLIGHT).increment(1.0);
    InFlightGuard(())
}

pub(crate) fn policies(active: &PolicyVersion, loaded: &[PolicyVersion]) {
    for version in loaded {
        let state = if version == active { "active" } else { "loaded" };
        gauge!(POLICY, "policy_version" => version.to_string(), "state" => state).set(1.0);
    }
}

/// A published policy was loaded, or its load failed.
pub(crate) fn policy_load(is_loaded: bool) {
    counter!(POLICY_LOADS, "outcome" => if is_loaded { "loaded" } else { "failed" }).increment(1);
}

/// Compiled rules of a policy and Cedar came to different outcomes.
pub(crate) fn policy_differs() {
    counter!(POLICY_DIFFERENCES).increment(1);
}

#[expect(clippy::cast_precision_loss, reason = "a few dozen at most")]
pub(crate) fn batch_size(checks: usize) {
    histogram!(TOGETHER).record(checks as f64);
}

pub(crate) fn conflict() {
    counter!(CONFLICTS).increment(1);
}

#[expect(clippy::cast_precision_loss, reason = "a few dozen at most")]
pub(crate) fn round_size(changes: usize) {
    histogram!(ROUND).record(changes as f64);
}

pub(crate) fn run_taken() {
    counter!(TAKEN).increment(1);
}

pub(crate) fn ledger_failed() {
    counter!(LEDGER_FAILURES, "by" => "runs").increment(1);
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        gauge!(IN_FLIGHT).decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use serde_json::json;
    use stage0_contract::{CheckRequest, Issue};
    use stage0_policy::Engine;

    fn page_of(work: impl FnOnce()) -> String {
        let recorder = PrometheusBuilder::new().set_buckets(&[1.0]).unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, work);
        recorder.handle().render()
    }

    #[test]
    fn a_decision_counts_each_of_its_codes_once_and_no_word_of_the_caller() {
        let engine = Engine::new(Pack::embedded().unwrap()).unwrap();
        let body = json!({"goal": "CALLER_WORD deploy", "side_effects": ["CALLER_WORD", "deploy"],
            "tools": ["CALLER_WORD"],
            "environment": "CALLER_WORD", "constraints": ["CALLER_WORD"]});
        let mut decision = engine.decide(&CheckRequest::parse(body).unwrap(), 0).unwrap();
        let twice = decision.issues[0].clone();
        decision.issues.push(twice);
        let page = page_of(|| decided(&decision, false));
        for code in decision.issues.iter().map(|issue| &issue.code) {
            let known = serde_json::to_string(engine.pack().reference()).unwrap();
            assert!(known.contains(&format!("\"{code}\"")), "{code} in {known}");
            let line = format!("stage0_decision_codes_total{{code=\"{code}\"}} 1\n");
            assert!(page.contains(&line), "{line} in\n{page}");
        }
        assert!(page.contains("stage0_decisions_total{verdict=\"DENY\"} 1\n") && !page.contains("CALLER"), "{page}");
    }

    #[test]
    fn codes_of_published_policies_are_counted_under_one_label_unless_the_baseline_has_them() {
        let engine = Engine::new(Pack::embedded().unwrap()).unwrap();
        let body = json!({"goal": "deploy", "side_effects": ["deploy"]});
        let mut decision = engine.decide(&CheckRequest::parse(body).unwrap(), 0).unwrap();
        let known = decision.issues[0].clone();
        let own = |code| Issue { code: IssueCode::parse(code).unwrap(), ..known.clone() };
        decision.issues = vec![known.clone(), own("OUR_LIMIT"), own("OUR_OTHER_LIMIT")];
        let line = |code: &str| format!("stage0_decision_codes_total{{code=\"{code}\"}} 1\n");
        let page = page_of(|| decided(&decision, true));
        assert!(page.contains(&line(known.code.as_str())) && page.contains(&line("own")), "{page}");
        assert!(!page.contains("OUR_"), "{page}");
        assert!(page_of(|| decided(&decision, false)).contains(&line("OUR_LIMIT")));
    }

    #[test]
    fn every_loaded_version_is_exported_and_one_of_them_decides() {
        let version = |text| PolicyVersion::parse(text).unwrap();
        let (old, new) = (version("p@1.0.0+000000000001"), version("p@1.1.0+000000000002"));
        let page = page_of(|| policies(&new, &[old.clone(), new.clone()]));
        for line in [
            format!("stage0_policy_info{{policy_version=\"{old}\",state=\"loaded\"}} 1\n"),
            format!("stage0_policy_info{{policy_version=\"{new}\",state=\"active\"}} 1\n"),
        ] {
            assert!(page.contains(&line), "{line} in\n{page}");
        }
        assert_eq!(page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count(), 2, "{page}");
    }

    #[test]
    fn every_name_is_described() {
        let page = page_of(|| {
            describe();
            observe_policy(Duration::ZERO);
            timed_out();
            busy();
            drop(begin_request());
            policy_load(true);
            policy_differs();
            batch_size(1);
            conflict();
            round_size(1);
            run_taken();
            ledger_failed();
            candidate_judged(Comparison::Same);
            approval_opened();
            approval_decided(ApprovalStatus::Denied);
            approval_used(ApprovalSource::Grant);
            approval_released();
            approval_refused(ApprovalRefused::Cap);
            outcome_reported(OutcomeStatus::Unknown);
            guard_silent();
        });
        for name in [
            GIVEN_UP,
            SECONDS,
            IN_FLIGHT,
            POLICY_LOADS,
            POLICY_DIFFERENCES,
            TOGETHER,
            ROUND,
            TAKEN,
            CONFLICTS,
            LEDGER_FAILURES,
            CANDIDATE_JUDGED,
            APPROVALS_OPENED,
            APPROVALS_DECIDED,
            APPROVALS_USED,
            APPROVALS_RELEASED,
            APPROVALS_REFUSED,
            OUTCOMES_REPORTED,
            GUARDS_SILENT,
        ] {
            assert!(page.contains(&format!("# HELP {name} ")), "{name} in\n{page}");
        }
    }
}
