//! What changes when one policy takes the place of another, as an evaluator finds it, and what of it must be accepted.
//!
//! Only what people read to judge a change is here: lists are bounded, texts are cut, and what was left out is counted.
//! The digest covers the whole difference.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{AccountId, Caller, PolicyVersion, Verdict};

/// The most entries of each list of a comparison.
pub const MAX_COMPARED_ENTRIES: usize = 100;
/// The largest comparison as JSON.
pub const MAX_COMPARISON_BYTES: usize = 256 << 10;

/// Gateway to evaluator: what changes when the new version takes the place of the old one?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparePolicies {
    /// Whose versions they are; none: the deployment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// None: the evaluator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<PolicyVersion>,
    pub new: PolicyVersion,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComparePoliciesReply {
    Compared(Box<PolicyComparison>),
    /// They could not be compared here; the text is for the log.
    Unable(String),
    /// Others are being compared; ask again.
    Busy,
}

/// `GET /v1/policies/{version}/diff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiffPolicies {
    #[schemars(skip)]
    pub caller: Caller,
    /// The new version: `<pack>@<semver>+<digest>`.
    pub version: PolicyVersion,
    /// The old version; without it, what decides now at the place that `account`, `environment` and `floor` name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PolicyVersion>,
    /// Only the operator names another account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// Compare with what decides in this environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 100))]
    pub environment: Option<String>,
    /// Compare with the floor of every account.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub floor: bool,
}

/// What changes when one policy takes the place of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyComparison {
    /// The old version.
    pub old: PolicyVersion,
    /// The new version.
    pub new: PolicyVersion,
    /// Hex SHA-256 of the whole difference, as `stage0 policy diff` prints it.
    pub diff_digest: String,
    /// How much is looser, cases and entries together: what `accept_flips` must be.
    pub flips: u64,
    /// What may let more pass, or cannot be judged.
    pub looser: DifferenceCount,
    /// What lets less pass.
    pub stricter: DifferenceCount,
    /// What lets no more and no less pass.
    pub neutral: DifferenceCount,
    /// Cases that both decide.
    pub decided_cases: u64,
    /// Cases whose verdict differs: the looser ones first, DENY to ALLOW before DEFER to ALLOW before DENY to DEFER.
    pub cases: Vec<ComparedCase>,
    /// Rules that differ; the looser ones first, as in the lists below.
    pub rules: Vec<ComparedRule>,
    /// Words that stand in other lists.
    pub words: Vec<ComparedWord>,
    /// Numbers, windows, terms and declared members that differ.
    pub values: Vec<ComparedValue>,
    /// What the new version says that it weakens.
    pub weakens: Vec<ComparedWeakening>,
    /// How many entries each list is short of.
    pub left_out: LeftOut,
}

/// How many differences of a kind there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DifferenceCount {
    /// Cases with another verdict.
    pub cases: u64,
    /// Rules, words and values.
    pub entries: u64,
}

/// Entries that a comparison has no room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeftOut {
    /// Of `cases`.
    pub cases: u64,
    /// Of `rules`.
    pub rules: u64,
    /// Of `words`.
    pub words: u64,
    /// Of `values`.
    pub values: u64,
    /// Of `weakens`.
    pub weakens: u64,
}

/// A case whose verdict differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ComparedCase {
    /// Its `id`.
    pub case: String,
    /// Name and number of the pack that it is from.
    pub pack: String,
    /// The beginning of the goal; redacted where the request holds a secret.
    pub goal: String,
    /// The old verdict; null if the old version refuses the request.
    pub from: Option<Verdict>,
    /// The new verdict; null if the new version refuses the request.
    pub to: Option<Verdict>,
    /// What that does.
    pub direction: DifferenceDirection,
    /// Rules that decided before.
    pub old_rules: Vec<String>,
    /// Rules that decide now.
    pub new_rules: Vec<String>,
}

/// A rule that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ComparedRule {
    /// Its `@id`.
    pub rule: String,
    /// What became of it.
    pub change: DifferenceKind,
    /// What that does.
    pub direction: DifferenceDirection,
    /// Its `@message`.
    pub message: String,
    /// Its file: in the new version, or in the old one if it is removed.
    pub file: String,
    /// Its line, from 1.
    pub line: u64,
    /// What of it differs: names of annotations, and `condition`.
    pub differs: Vec<String>,
}

/// A word that stands in other lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ComparedWord {
    /// The file that it is from.
    pub file: String,
    /// The word.
    pub word: String,
    /// What became of it.
    pub change: DifferenceKind,
    /// What that does.
    pub direction: DifferenceDirection,
    /// Lists that it has left.
    pub from: Vec<String>,
    /// Lists that it has come to.
    pub to: Vec<String>,
}

/// A value that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ComparedValue {
    /// The file that it is from.
    pub file: String,
    /// Its name, such as `scores.floor.deny`.
    pub name: String,
    /// What that does.
    pub direction: DifferenceDirection,
    /// The old value; null if there was none. A long one is its beginning, as text.
    pub from: Option<Value>,
    /// The new value.
    pub to: Option<Value>,
}

/// `[weakens]` of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ComparedWeakening {
    /// Name and number of the pack.
    pub pack: String,
    /// Why, in its authors' words.
    pub reason: String,
    /// Rules, words and numbers that it names.
    pub names: Vec<String>,
}

/// What a difference does to what the policy lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceDirection {
    /// It lets more pass.
    Looser,
    /// It may let more pass, and counts as looser.
    Unclear,
    /// It lets less pass.
    Stricter,
    /// It lets no more and no less pass.
    Neutral,
}

/// What became of a rule or a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// Only the new version has it.
    Added,
    /// Only the old version has it.
    Removed,
    /// Both have it, and it differs.
    Changed,
    /// Both have it, in other lists.
    Moved,
}

impl DifferenceDirection {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Looser => "looser",
            Self::Unclear => "unclear",
            Self::Stricter => "stricter",
            Self::Neutral => "neutral",
        }
    }
}

impl PolicyComparison {
    /// Brings it within its limits. The end of each list goes first.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let mut most = MAX_COMPARED_ENTRIES;
        loop {
            self.keep(most);
            let bytes = serde_json::to_vec(&self).map_or(usize::MAX, |json| json.len());
            if bytes <= MAX_COMPARISON_BYTES || most == 0 {
                return self;
            }
            most /= 2;
        }
    }

    fn keep(&mut self, most: usize) {
        fn cut<T>(list: &mut Vec<T>, most: usize, left_out: &mut u64) {
            *left_out += list.len().saturating_sub(most) as u64;
            list.truncate(most);
        }
        cut(&mut self.cases, most, &mut self.left_out.cases);
        cut(&mut self.rules, most, &mut self.left_out.rules);
        cut(&mut self.words, most, &mut self.left_out.words);
        cut(&mut self.values, most, &mut self.left_out.values);
        cut(&mut self.weakens, most, &mut self.left_out.weakens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_words(count: usize, word: &str) -> PolicyComparison {
        let mut comparison: PolicyComparison =
            serde_json::from_str(include_str!("../../fixtures/policy_comparison.json")).unwrap();
        let one = ComparedWord { word: word.to_owned(), ..comparison.words[0].clone() };
        comparison.words = vec![one; count];
        comparison
    }

    #[test]
    fn a_list_keeps_its_first_hundred_entries_and_counts_the_others() {
        let all = with_words(MAX_COMPARED_ENTRIES, "w");
        assert_eq!(all.clone().bounded(), all);
        let some = with_words(MAX_COMPARED_ENTRIES + 7, "w").bounded();
        assert_eq!((some.words.len(), some.left_out.words), (MAX_COMPARED_ENTRIES, 7 + all.left_out.words));
        assert_eq!((some.cases, some.flips), (all.cases, all.flips));
    }

    #[test]
    fn a_comparison_of_long_texts_stays_within_its_bytes() {
        let size = |comparison: &PolicyComparison| serde_json::to_vec(comparison).unwrap().len();
        let long = with_words(MAX_COMPARED_ENTRIES, &"w".repeat(10_000));
        assert!(size(&long) > MAX_COMPARISON_BYTES);
        let bounded = long.clone().bounded();
        assert!(size(&bounded) <= MAX_COMPARISON_BYTES);
        assert_eq!((bounded.words.len(), bounded.left_out.words), (25, 75 + long.left_out.words));
        assert_eq!(bounded.diff_digest, long.diff_digest);
    }
}
