//! Policies that are tried before they are active: a shadow judges checks beside the active one, a canary decides a
//! share of them.
//!
//! The keystore keeps which candidates there are, as a part of [`AccountRules`]. Evaluators judge each of their checks
//! by both policies and count where they differ; gateways end a canary that differs too often.
//! INVARIANT: a shadow has no effect on an answer. A check of a canary is decided by one of the two policies alone, the
//! same one for all checks of a run.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Activation;
use crate::{
    AccountId, AccountRules, Caller, CheckRequest, IssueCode, KeyId, PolicyVersion, RequestId, RunId, Verdict,
    is_same_environment,
};

/// Candidates that an account may try at the same time: one at each place.
pub const MAX_CANDIDATES: usize = 8;
/// Candidates that an account may begin within 24 hours: what is found of each is kept for a while.
pub const MAX_CANDIDATES_A_DAY: usize = 100;
/// Kinds of disagreement that are listed for a candidate. Others are only counted.
pub const MAX_DISAGREEMENTS: usize = 100;
/// The fewest checks that a canary's rates are taken of, unless its terms name another number.
pub const DEFAULT_MIN_CHECKS: u32 = 50;

/// How a candidate is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CandidateMode {
    /// It judges beside the active policy, without effect.
    Shadow,
    /// It decides a share of the runs.
    Canary,
}

/// When a canary ends by itself. A rate is taken of all checks that it decided, or of `min_checks` if it decided fewer:
/// with 50 and 2 percent, the second disagreement among the first 50 checks ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ReturnAt {
    /// It ends when more than this percentage of its verdicts differ from those of the active policy.
    #[schemars(extend("minimum" = 0, "maximum" = 100))]
    pub disagreement_percent: u8,
    /// It ends when in more than this percentage of its checks a rule failed (`POLICY_ERROR`).
    #[schemars(extend("minimum" = 0, "maximum" = 100))]
    pub error_percent: u8,
    /// The fewest checks that the rates are taken of.
    #[schemars(extend("minimum" = 1, "maximum" = 1_000_000))]
    pub min_checks: u32,
}

/// What an activation says to begin as a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CanaryTerms {
    /// The share of runs that it decides.
    #[schemars(extend("minimum" = 1, "maximum" = 100))]
    pub percent: u8,
    /// When it ends by itself.
    #[serde(default)]
    pub return_at: ReturnAt,
}

/// A policy that is tried at a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyCandidate {
    /// Its id: what is counted is counted under it.
    pub id: Uuid,
    /// Whether it decides.
    pub mode: CandidateMode,
    /// The version that is tried.
    pub version: PolicyVersion,
    /// The environment; null: wherever none has its own.
    pub environment: Option<String>,
    /// The share of runs that it judges or decides; checks without a run are taken one by one.
    #[schemars(extend("minimum" = 1, "maximum" = 100))]
    pub percent: u8,
    /// When a canary ends by itself; null for a shadow.
    pub return_at: Option<ReturnAt>,
    /// Since when; RFC 3339.
    pub started_at: Timestamp,
    /// The key that began it.
    pub key_id: KeyId,
    /// What a canary was compared with, null for the evaluators' own: where something else is active by now, it decides
    /// nothing. Empty for a shadow.
    #[serde(default)]
    pub against: Vec<Option<PolicyVersion>>,
}

/// `POST /v1/policies/{version}/shadow`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShadowPolicy {
    #[schemars(skip)]
    pub caller: Caller,
    /// The version: `<pack>@<semver>+<digest>`.
    pub version: PolicyVersion,
    /// Only the operator names another account, and must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// Only for checks in this environment; absent or null: for those without an activation of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 100))]
    pub environment: Option<String>,
    /// The share of runs that it judges.
    #[schemars(with = "Option<u8>", extend("minimum" = 1, "maximum" = 100, "default" = 100))]
    pub percent: u8,
    /// Why, for people; secrets masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 500))]
    pub reason: Option<String>,
    /// The place among the changes that it had when it was tried: if another change has it by now, nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub sequence: Option<u64>,
    /// Says what would be done, and does nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(skip)]
    pub is_trial: bool,
}

/// `POST /v1/policies/withdraw`: ends the candidate of a place. What is active decides all of it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WithdrawCandidate {
    #[schemars(skip)]
    pub caller: Caller,
    /// Only the operator names another account, and must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// The environment of the candidate; absent or null: the one for checks without an activation of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 100))]
    pub environment: Option<String>,
    /// Why, for people; secrets masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 500))]
    pub reason: Option<String>,
    /// The place among the changes that it had when it was tried: if another change has it by now, nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub sequence: Option<u64>,
    /// Says what would be done, and does nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(skip)]
    pub is_trial: bool,
}

/// Gateway to keystore: end this canary, which differs too often. No caller: its own terms end it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReturnCanary {
    pub account: AccountId,
    pub candidate: Uuid,
    pub counts: CandidateCounts,
    /// It ends because what it decides is not counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_uncounted: bool,
    /// The place among the changes that it had when it was tried: if another change has it by now, nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Says what would be done, and does nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_trial: bool,
}

/// The answer to [`ShadowPolicy`], [`WithdrawCandidate`] and [`ReturnCanary`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateChanged {
    pub activation: Activation,
    /// How many days lines of its account are kept.
    pub retention_days: u32,
    /// Another change came between, and nothing changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_outdated: bool,
}

/// `GET /v1/policies/candidates`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListCandidates {
    #[schemars(skip)]
    pub caller: Caller,
    /// Only the operator names another account, and must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// True: instead, the last eight that ended; what was found of them is kept for seven days.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub ended: bool,
}

/// Gateway to evaluator: what was found of these candidates? Those of which nothing was found are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadCandidates {
    pub account: AccountId,
    pub candidates: Vec<Uuid>,
}

/// What was found of a candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundOfCandidate {
    pub candidate: Uuid,
    pub findings: CandidateFindings,
}

/// The answer to [`ReadCandidates`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidatesRead {
    pub found: Vec<FoundOfCandidate>,
}

/// The answer to `GET /v1/policies/candidates`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Candidates {
    /// Each candidate with what was found of it.
    pub items: Vec<ShownCandidate>,
}

/// A candidate with what was found of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShownCandidate {
    /// The candidate.
    #[serde(flatten)]
    pub candidate: PolicyCandidate,
    /// When it ended; absent while it is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// What was found, of every evaluator, up to a few seconds ago.
    pub findings: CandidateFindings,
}

/// How often a candidate and the active policy differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CandidateCounts {
    /// Checks that both judged.
    pub checks: u64,
    /// Of these, those with another verdict.
    pub disagreements: u64,
    /// Of these, those that the candidate lets further: DENY to DEFER or ALLOW, DEFER to ALLOW.
    pub looser: u64,
    /// Checks in which a rule of the candidate failed (`POLICY_ERROR`).
    pub errors: u64,
    /// Checks that only the policy judged which decided: the other was not loaded, took too long, or too many waited.
    pub not_judged: u64,
}

/// What was found of a candidate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CandidateFindings {
    /// All checks.
    pub counts: CandidateCounts,
    /// Kinds of disagreement: DENY to ALLOW first, then DEFER to ALLOW, DENY to DEFER, and what is stricter; of each
    /// the most frequent first. Last, rules of the candidate that failed (`POLICY_ERROR`) where both verdicts are the
    /// same. At most 100; empty for a key without `decisions:read`.
    pub disagreements: Vec<Disagreement>,
    /// Disagreements of kinds that are not listed.
    pub left_out: u64,
}

/// Checks that are judged differently for the same reason, or in which the same rule failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Disagreement {
    /// The verdict of the active policy.
    pub from: Verdict,
    /// The verdict of the candidate.
    pub to: Verdict,
    /// The code of the gravest issue that decides, of the stricter of both; `POLICY_ERROR` where a rule of the
    /// candidate failed.
    pub code: IssueCode,
    /// Its rule.
    pub rule: String,
    /// The agent that the key belongs to; null where it names none.
    pub agent: Option<String>,
    /// How many.
    #[schemars(extend("minimum" = 1))]
    pub count: u64,
    /// The newest of them.
    pub request_id: RequestId,
    /// When that was decided, in seconds since the epoch.
    pub last_at: i64,
}

impl Default for ReturnAt {
    /// The first failed rule, and more than two percent of disagreement.
    fn default() -> Self {
        Self { disagreement_percent: 2, error_percent: 0, min_checks: DEFAULT_MIN_CHECKS }
    }
}

impl ReturnAt {
    /// Whether a canary with these counts has to end.
    pub fn is_passed(&self, counts: &CandidateCounts) -> bool {
        let of = u128::from(counts.checks.max(self.min_checks.into()));
        let is_over = |count: u64, percent: u8| u128::from(count) * 100 > of * u128::from(percent);
        is_over(counts.disagreements, self.disagreement_percent) || is_over(counts.errors, self.error_percent)
    }
}

impl PolicyCandidate {
    /// Whether it judges or decides this check: one at its place, of a run within its share. A check without a run is
    /// a run of its own; the same request always falls the same way. The runs of a smaller share are within a larger
    /// one, so that a share which grows moves no run back.
    pub fn takes(&self, check: &CheckRequest) -> bool {
        let is_within = || {
            let run = RunId::of(check).ok().flatten();
            let of = run.map_or_else(|| check.task_hash(), |run| run.canonical());
            let hash = Sha256::digest(of.as_bytes());
            let [first, second, third, fourth, ..] = <[u8; 32]>::from(hash);
            u32::from_be_bytes([first, second, third, fourth]) % 100 < u32::from(self.percent)
        };
        self.percent >= 100 || is_within()
    }
}

impl AccountRules {
    /// The canary that decides this check: the one at its place, where what it was compared with is still active.
    pub fn canary_of(&self, check: &CheckRequest) -> Option<&PolicyCandidate> {
        let canary = self.at_place_of(check, CandidateMode::Canary)?;
        let active = self.active_policy_of(check);
        let is_compared = canary.against.iter().any(|against| against.as_ref() == active);
        // A check that asks for another version is not decided by this one.
        let wanted = check.policy_pack_version.as_deref();
        let is_wanted = wanted.is_none_or(|wanted| wanted == canary.version.as_str());
        Some(canary).filter(|canary| is_compared && is_wanted && canary.takes(check))
    }

    /// The candidate by which a check is counted: the canary that decides it, or else the shadow at its place.
    pub fn candidate_of(&self, check: &CheckRequest) -> Option<&PolicyCandidate> {
        if self.candidates.is_empty() {
            return None;
        }
        let shadow = || self.at_place_of(check, CandidateMode::Shadow).filter(|shadow| shadow.takes(check));
        self.canary_of(check).or_else(shadow)
    }

    /// That of its environment, or the default's, which stands where no environment has a policy of its own. A shadow
    /// hides no canary.
    fn at_place_of(&self, check: &CheckRequest, mode: CandidateMode) -> Option<&PolicyCandidate> {
        let environment = check.environment_name();
        let is_it = |other: &str| environment.is_some_and(|name| is_same_environment(other, name));
        let of_mode = || self.candidates.iter().filter(|candidate| candidate.mode == mode);
        let own = of_mode().find(|candidate| candidate.environment.as_deref().is_some_and(is_it));
        own.or_else(|| {
            let has_own = self.policy.environments.keys().any(|environment| is_it(environment));
            of_mode().find(|candidate| candidate.environment.is_none()).filter(|_| !has_own)
        })
    }

    /// The version that would decide this check if there were no canary; none: the evaluator's own.
    pub fn active_policy_of(&self, check: &CheckRequest) -> Option<&PolicyVersion> {
        self.policy.of(check.environment_name())
    }
}

impl CandidateCounts {
    /// Both together.
    pub fn add(&mut self, other: &Self) {
        let Self { checks, disagreements, looser, errors, not_judged } = other;
        self.checks = self.checks.saturating_add(*checks);
        self.disagreements = self.disagreements.saturating_add(*disagreements);
        self.looser = self.looser.saturating_add(*looser);
        self.errors = self.errors.saturating_add(*errors);
        self.not_judged = self.not_judged.saturating_add(*not_judged);
    }
}

impl CandidateFindings {
    /// Both together, within their bounds. What is counted already is never left out for what is new.
    pub fn add(&mut self, other: Self) {
        self.counts.add(&other.counts);
        self.left_out = self.left_out.saturating_add(other.left_out);
        for one in other.disagreements {
            let is_it = |known: &&mut Disagreement| known.is_same_kind(&one);
            if let Some(known) = self.disagreements.iter_mut().find(is_it) {
                known.count = known.count.saturating_add(one.count);
                // Ids carry their time: within a second they say which is newer.
                if (one.last_at, one.request_id) > (known.last_at, known.request_id) {
                    (known.request_id, known.last_at) = (one.request_id, one.last_at);
                }
            } else if self.disagreements.len() < MAX_DISAGREEMENTS {
                self.disagreements.push(one);
            } else {
                self.left_out = self.left_out.saturating_add(one.count);
            }
        }
    }

    /// In the order in which people read them.
    pub fn sort(&mut self) {
        let gravity = |one: &Disagreement| flip_gravity(Some(one.from), Some(one.to));
        self.disagreements.sort_by(|a, b| gravity(a).cmp(&gravity(b)).then_with(|| b.count.cmp(&a.count)));
    }
}

impl Disagreement {
    fn is_same_kind(&self, other: &Self) -> bool {
        (self.from, self.to) == (other.from, other.to)
            && self.code == other.code
            && self.rule == other.rule
            && self.agent == other.agent
    }
}

/// The gravest first: DENY to ALLOW, DEFER to ALLOW, DENY to DEFER, then what is stricter, then what is the same. A
/// refused request counts as denied.
pub fn flip_gravity(from: Option<Verdict>, to: Option<Verdict>) -> u8 {
    let [from, to] = [from, to].map(|verdict| verdict.unwrap_or(Verdict::Deny));
    match (from, to) {
        (Verdict::Deny, Verdict::Allow) => 0,
        (Verdict::Defer, Verdict::Allow) => 1,
        (Verdict::Deny, Verdict::Defer) => 2,
        (from, to) if from == to => 4,
        _ => 3,
    }
}

/// Whether the new verdict lets a check further than the old one.
pub fn is_looser(from: Option<Verdict>, to: Option<Verdict>) -> bool {
    flip_gravity(from, to) < 3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(checks: u64, disagreements: u64, errors: u64) -> CandidateCounts {
        CandidateCounts { checks, disagreements, errors, ..CandidateCounts::default() }
    }

    #[test]
    fn a_canary_ends_once_more_than_its_rate_differs_and_one_fewer_does_not_end_it() {
        let at = ReturnAt { disagreement_percent: 2, error_percent: 1, min_checks: 50 };
        for (of, is_over) in [
            (counts(0, 0, 0), false),
            (counts(1, 1, 0), false),
            (counts(2, 2, 0), true),
            (counts(1_000, 20, 0), false),
            (counts(1_000, 21, 0), true),
            (counts(1_000, 0, 10), false),
            (counts(1_000, 0, 11), true),
            (counts(u64::MAX, u64::MAX, 0), true),
        ] {
            assert_eq!(at.is_passed(&of), is_over, "{of:?}");
        }
        assert!(ReturnAt::default().is_passed(&counts(9, 0, 1)), "by default the first failed rule ends it");
        let never = ReturnAt { disagreement_percent: 100, error_percent: 100, min_checks: 1 };
        assert!(!never.is_passed(&counts(9, 9, 9)));
    }

    #[test]
    fn disagreements_of_a_kind_are_counted_together_and_the_gravest_come_first() {
        let one = |from, to, rule: &str, count, last_at| Disagreement {
            from,
            to,
            code: IssueCode::policy_error(),
            rule: rule.to_owned(),
            agent: None,
            count,
            request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
            last_at,
        };
        use Verdict::{Allow, Defer, Deny};
        let found = |disagreements| CandidateFindings { disagreements, ..CandidateFindings::default() };
        let mut all = found(vec![one(Allow, Deny, "a", 9, 1), one(Defer, Allow, "b", 1, 5)]);
        all.add(found(vec![one(Defer, Allow, "b", 2, 4), one(Deny, Allow, "c", 1, 1), one(Allow, Deny, "d", 20, 1)]));
        all.sort();
        let shown: Vec<_> = all.disagreements.iter().map(|one| (one.rule.as_str(), one.count, one.last_at)).collect();
        assert_eq!(shown, [("c", 1, 1), ("b", 3, 5), ("d", 20, 1), ("a", 9, 1)]);
        let of = |last: &str| Disagreement {
            request_id: RequestId::parse(&format!("0190163d-8694-739b-aea5-966c26f8ad{last}")).unwrap(),
            ..one(Defer, Allow, "b", 1, 5)
        };
        for (last, newest) in [("99", "99"), ("92", "99")] {
            all.add(found(vec![of(last)]));
            assert_eq!(all.disagreements[1].request_id, of(newest).request_id, "within a second");
        }
        let many = (0..MAX_DISAGREEMENTS).map(|number| one(Deny, Allow, &format!("r{number}"), 1, 1)).collect();
        all.add(found(many));
        assert_eq!((all.disagreements.len(), all.left_out), (MAX_DISAGREEMENTS, 4));
    }

    fn version(number: u8) -> PolicyVersion {
        PolicyVersion::parse(&format!("acme@1.{number}.0+0123456789ab")).unwrap()
    }

    fn tried(mode: CandidateMode, number: u8, environment: Option<&str>, percent: u8) -> PolicyCandidate {
        PolicyCandidate {
            id: Uuid::from_u128(number.into()),
            mode,
            version: version(number),
            environment: environment.map(str::to_owned),
            percent,
            return_at: None,
            started_at: Timestamp::UNIX_EPOCH,
            key_id: KeyId::parse("key_1").unwrap(),
            against: vec![None],
        }
    }

    fn check(context: &serde_json::Value, environment: Option<&str>) -> CheckRequest {
        let body = serde_json::json!({"goal": "g", "context": context, "environment": environment});
        CheckRequest::parse(body).unwrap()
    }

    fn rules(candidates: Vec<PolicyCandidate>) -> AccountRules {
        AccountRules { candidates, ..AccountRules::default() }
    }

    #[test]
    fn a_run_falls_the_same_way_however_its_name_is_written_and_smaller_shares_are_within_larger_ones() {
        let taken = |percent: u8, run: &str| {
            let check = check(&serde_json::json!({"run_id": run}), None);
            tried(CandidateMode::Canary, 1, None, percent).takes(&check)
        };
        let mut count = 0;
        for number in 0..1_000 {
            let run = format!("run {number}");
            count += u32::from(taken(20, &run));
            assert_eq!(taken(20, &run), taken(20, &format!(" run\u{200b}  {number} ")), "{run}");
            assert!(!taken(20, &run) || taken(50, &run), "{run}");
            assert!(taken(100, &run));
        }
        assert!((120..280).contains(&count), "{count} of 1000 at 20 percent");
    }

    #[test]
    fn a_shadow_hides_no_canary_and_decides_nothing() {
        let staging = || check(&serde_json::json!({}), Some("staging"));
        let canary = tried(CandidateMode::Canary, 1, None, 100);
        let with_shadow = rules(vec![canary.clone(), tried(CandidateMode::Shadow, 2, Some("staging"), 100)]);
        for rules in [rules(vec![canary]), with_shadow.clone()] {
            assert_eq!(rules.policy_of(&staging()), Some(&version(1)));
        }
        assert_eq!(with_shadow.candidate_of(&staging()).unwrap().mode, CandidateMode::Canary);
        let alone = rules(vec![tried(CandidateMode::Shadow, 2, Some("staging"), 100)]);
        assert_eq!(alone.policy_of(&staging()), None);
        assert_eq!(alone.candidate_of(&staging()).unwrap().version, version(2));
        assert!(alone.candidate_of(&check(&serde_json::json!({}), Some("qa"))).is_none());
    }

    #[test]
    fn a_canary_decides_only_in_place_of_what_it_was_compared_with_and_not_what_asks_for_another_version() {
        let any = check(&serde_json::json!({}), None);
        let mut rules = rules(vec![tried(CandidateMode::Canary, 1, None, 100)]);
        assert_eq!(rules.policy_of(&any), Some(&version(1)));
        rules.policy.default = Some(version(7));
        assert_eq!(rules.policy_of(&any), Some(&version(7)), "another one is active by now");
        rules.candidates[0].against.push(Some(version(7)));
        assert_eq!(rules.policy_of(&any), Some(&version(1)));
        for (wanted, decides) in [(version(1), 1), (version(7), 7)] {
            let mut pinned = any.clone();
            pinned.policy_pack_version = Some(wanted.as_str().to_owned());
            assert_eq!(rules.policy_of(&pinned), Some(&version(decides)));
        }
        rules.policy.environments.insert("production".to_owned(), version(7));
        let production = check(&serde_json::json!({}), Some("production"));
        assert_eq!(rules.policy_of(&production), Some(&version(7)), "it has a policy of its own");
    }
}
