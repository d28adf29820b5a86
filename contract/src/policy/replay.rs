//! Recorded decisions that another policy decides again, from the facts that were kept with them.
//!
//! An account opts in (`record_facts`): each decision is then recorded with its facts, typed and without free text.
//! INVARIANT: what cannot be decided again from what was kept is counted as such, and never guessed.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{AccountId, Caller, IssueCode, PolicyVersion, RequestId, Verdict};

/// The most decisions of one replay.
pub const MAX_REPLAYED: usize = 10_000;
/// Decisions that are read where no number is given.
pub const DEFAULT_REPLAYED: usize = 1_000;
/// Flips that a replay lists.
pub const MAX_LISTED_FLIPS: usize = 100;
/// The most decisions of one message to an evaluator, and about the most bytes.
pub const MAX_REPLAY_BATCH: usize = 200;
pub const MAX_REPLAY_BATCH_BYTES: usize = 512 << 10;
/// The largest facts of one decision as JSON: none are kept of one with more.
pub const MAX_KEPT_FACTS_BYTES: usize = 16 << 10;
/// Members of `context` beyond those that the policy declares of which the value is kept.
pub const MAX_KEPT_MEMBERS: usize = 50;

/// The facts that a decision was made from, as they are recorded with it. No goal, argument or other free text: texts
/// are canonical names of tools, effects, targets, environments and roles, and members of `context` that the policy
/// declares. Where the request holds a secret, none are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeptFacts {
    /// The form of what is kept; 1.
    pub v: u8,
    /// Whether the request said `pro`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pro: bool,
    /// Whether a person had denied this very action: then every policy denies it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub denied: bool,
    /// How the operator's floor judged it; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Verdict>,
    /// The environment by which the policy was selected; absent where the request named none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// By what its facts were read: digests of the policy's words, windows and counted tools. Another policy can
    /// decide by these facts only where its own are the same.
    pub read_by: ReadBy,
    /// Facts by their names in rules. Optional ones that were absent are left out. A member of `custom` that was sent
    /// as the text of a decimal is `{"decimal": "19.99"}`, and one whose value is not kept `{"other": "text"}`.
    #[schemars(with = "Map<String, Value>")]
    pub values: Map<String, Value>,
    /// Facts that were not read, such as those of a run whose history was not counted, or that hold a longer text or
    /// the arguments of a tool; sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
    /// Whole numbers, decimals and Booleans among the members of `context` that the policy does not declare. A name
    /// that no policy can declare is not kept.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(with = "Map<String, Value>")]
    pub members: Map<String, Value>,
    /// Other members of `context` that the policy does not declare: their names, without their values; sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unkept: Vec<String>,
}

/// Digests of what a policy reads facts by: 16 hex digits each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadBy {
    /// Words, terms and the edition of the pack.
    pub words: String,
    /// Windows of time.
    pub windows: String,
    /// What is counted of a run.
    pub run: String,
}

/// Why a recorded decision cannot be decided again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplayGap {
    /// No facts were kept: the account did not ask for it then, the request held a secret, a stop covered it, or they
    /// were too large.
    NotKept,
    /// The version reads words otherwise.
    Words,
    /// The version has other windows of time.
    Windows,
    /// The version counts something of runs that was not counted.
    Run,
    /// The version declares a member of `context` whose value was not kept.
    Member,
    /// The version names a fact that was not read.
    Fact,
    /// What was kept cannot be read by this release.
    Unreadable,
}

/// Gateway to evaluator: decide these again by this version; none: by the evaluator's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayDecisions {
    pub account: AccountId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<PolicyVersion>,
    pub facts: Vec<KeptFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayDecisionsReply {
    /// One for each, in their order.
    Replayed(Vec<Replayed>),
    /// They could not be replayed here; the text is for the log.
    Unable(String),
    /// Others are being replayed; ask again.
    Busy,
}

/// What became of one decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replayed {
    Decided {
        verdict: Verdict,
        /// The gravest issue that decides; none for an ALLOW, and where the floor decides.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<IssueCode>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rule: Option<String>,
    },
    Not(ReplayGap),
}

/// `GET /v1/policies/{version}/replay`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayPolicy {
    #[schemars(skip)]
    pub caller: Caller,
    /// The version: `<pack>@<semver>+<digest>`.
    pub version: PolicyVersion,
    /// Only decisions in this environment; absent: those in environments without an activation of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 100))]
    pub environment: Option<String>,
    /// Only decisions recorded at or after it; RFC 3339. Absent: seven days before `until`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// Only decisions recorded before it; RFC 3339. Absent: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// True: what an activation replays: decisions that were not allowed, 10,000 at most.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub gate: bool,
    /// The most decisions, the newest first.
    #[schemars(with = "Option<u32>", extend("minimum" = 1, "maximum" = 10_000, "default" = 1_000))]
    pub limit: u32,
}

/// What a version would have decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyReplay {
    /// The version.
    pub version: PolicyVersion,
    /// Decisions recorded from then on; RFC 3339.
    pub from: Timestamp,
    /// Decisions recorded before; RFC 3339. The same value again replays the same decisions.
    pub until: Timestamp,
    /// Recorded decisions at that place that were read.
    pub decisions: u64,
    /// True: `limit`, or the most of the log that one replay reads, was reached, and there are older ones.
    pub has_older: bool,
    /// Of `decisions`, those that the version decided again.
    pub replayed: u64,
    /// Of `replayed`, those that it lets further than what is active: DENY to DEFER or ALLOW, DEFER to ALLOW.
    pub flips: u64,
    /// How many go from which verdict to which other one: DENY to ALLOW first, then DEFER to ALLOW, DENY to DEFER.
    pub changes: Vec<VerdictChange>,
    /// How many could not be replayed, and why.
    pub not_replayed: Vec<NotReplayed>,
    /// Decisions whose verdict differs, in the order of `changes`, the newest first. At most 100; empty for a key
    /// without `decisions:read`.
    pub items: Vec<ReplayedDecision>,
    /// How many `items` is short of.
    pub left_out: u64,
}

/// How many decisions go from one verdict to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerdictChange {
    /// As the policy that is active at that place decides the same facts; as recorded where it cannot.
    pub from: Verdict,
    /// As the version decides.
    pub to: Verdict,
    /// How many.
    #[schemars(extend("minimum" = 1))]
    pub count: u64,
}

/// How many decisions could not be replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotReplayed {
    /// Why not.
    pub why: ReplayGap,
    /// How many.
    #[schemars(extend("minimum" = 1))]
    pub count: u64,
}

/// A decision whose verdict differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayedDecision {
    /// Its request.
    pub request_id: RequestId,
    /// When it was recorded; RFC 3339.
    pub recorded_at: Timestamp,
    /// The version that decided it.
    pub policy_version: PolicyVersion,
    /// As recorded.
    pub recorded: Verdict,
    /// As the policy that is active at that place decides the same facts; as recorded where it cannot.
    pub from: Verdict,
    /// As the version decides.
    pub to: Verdict,
    /// The code of the gravest issue that decides, of the stricter of both.
    pub code: Option<IssueCode>,
    /// Its rule.
    pub rule: Option<String>,
}

/// What an activation was checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplaySummary {
    /// Decisions recorded before; RFC 3339.
    pub until: Timestamp,
    /// Decisions that were read.
    pub decisions: u64,
    /// Of these, those that the version decided again.
    pub replayed: u64,
    /// Of these, those that it lets further.
    pub flips: u64,
    /// Whether there are older ones in the last seven days, beyond what was read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_older: bool,
}
