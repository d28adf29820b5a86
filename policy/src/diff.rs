//! What changes when one pack takes the place of another: rules, words, numbers, and the verdicts of both packs' cases.
//!
//! Each difference has a direction. What cannot be judged counts as looser, so that a pack that is not looser here
//! lets no more pass than the other one. The digest names the two versions and all that is in the difference.
//! INVARIANT: no text of a request in which either pack finds a secret is part of a difference.

mod cases;
mod rules;
mod values;
mod words;

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use stage0_contract::{PolicyVersion, canonical_hash};

use crate::engine::Engine;
use crate::files::PackError;
use crate::pack::{Milder, Pack, Weakened, milder, on_large_stack};

pub use cases::{CaseDiff, Cases, DecidedBy};
pub use rules::{AnnotationDiff, ConditionDiff, RuleDiff};
pub use values::ValueDiff;
pub use words::WordDiff;

/// All differences between two packs.
#[derive(Debug, Clone, Serialize)]
pub struct PackDiff {
    /// The pack in force.
    pub old: PolicyVersion,
    /// The pack that is to take its place.
    pub new: PolicyVersion,
    /// What the differences come to.
    pub outcome: Outcome,
    /// Rules, by `@id`.
    pub rules: Vec<RuleDiff>,
    /// Words, by file and word.
    pub words: Vec<WordDiff>,
    /// Single values, by file and name: numbers, windows, terms, declared members, texts of codes.
    pub values: Vec<ValueDiff>,
    /// What the new pack, or a pack between it and the old one, says that it weakens.
    pub weakens: Vec<Weakening>,
    /// Cases whose verdict differs, and how many were decided.
    pub cases: Cases,
    /// Hex SHA-256 of this object as canonical JSON, without this member.
    pub diff_digest: String,
}

/// What differences come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// What may let more pass, or cannot be judged.
    pub looser: Count,
    /// What lets less pass.
    pub stricter: Count,
    /// What lets no more and no less pass.
    pub neutral: Count,
}

/// How many differences there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Cases with another verdict.
    pub cases: usize,
    /// Rules, words and values.
    pub entries: usize,
}

/// What a difference does to what the policy lets pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// It lets more pass.
    Looser,
    /// It may let more pass: it is looser in one way and stricter in another, or cannot be judged.
    Unclear,
    /// It lets less pass.
    Stricter,
    /// It lets no more and no less pass.
    #[default]
    Neutral,
}

/// What became of a rule or a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Only the new pack has it.
    Added,
    /// Only the old pack has it.
    Removed,
    /// Both have it, and it differs.
    Changed,
    /// Both have it, in other lists.
    Moved,
}

/// `[weakens]` of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Weakening {
    /// Name and number of the pack.
    pub pack: String,
    /// What it says.
    #[serde(flatten)]
    pub weakened: Weakened,
}

impl Direction {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Looser => "looser",
            Self::Unclear => "unclear",
            Self::Stricter => "stricter",
            Self::Neutral => "neutral",
        }
    }

    fn of(looser: bool, stricter: bool) -> Self {
        match (looser, stricter) {
            (true, true) => Self::Unclear,
            (true, false) => Self::Looser,
            (false, true) => Self::Stricter,
            (false, false) => Self::Neutral,
        }
    }

    /// That of two differences together.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (one, Self::Neutral) | (Self::Neutral, one) => one,
            (one, other) if one == other => one,
            _ => Self::Unclear,
        }
    }

    /// That of a value that lets less pass the greater it is.
    fn of_greater<T: PartialOrd>(old: &T, new: &T) -> Self {
        Self::of(new < old, new > old)
    }
}

impl Outcome {
    /// Whether anything may let more pass.
    pub fn is_looser(&self) -> bool {
        self.looser != Count::default()
    }

    /// Whether there is any difference.
    pub fn is_different(&self) -> bool {
        *self != Self::default()
    }

    fn count(&mut self, direction: Direction) -> &mut Count {
        match direction {
            Direction::Looser | Direction::Unclear => &mut self.looser,
            Direction::Stricter => &mut self.stricter,
            Direction::Neutral => &mut self.neutral,
        }
    }
}

/// Which words and numbers are milder in either pack.
struct Compared<'a> {
    old: &'a Pack,
    new: &'a Pack,
    looser: Milder,
    stricter: Milder,
}

impl Compared<'_> {
    fn direction(&self, file: &'static str, name: &str) -> Direction {
        let place = (file, name.to_owned());
        Direction::of(self.looser.contains(&place), self.stricter.contains(&place))
    }

    /// Words of packs of the first edition have no meaning that could be compared.
    fn is_judged(&self) -> bool {
        self.old.vocabulary.second().is_some() && self.new.vocabulary.second().is_some()
    }
}

impl PackDiff {
    /// Compares two packs. Both decide the cases of both, 4,000 at most.
    pub fn between(old: &Arc<Pack>, new: &Arc<Pack>) -> Result<Self, PackError> {
        on_large_stack(|| {
            let secrets = [old, new].map(|pack| words::of_secrets(pack));
            let compared = Compared {
                old,
                new,
                looser: milder(old, new, &words::added(&secrets[0].lists, &secrets[1].lists)),
                stricter: milder(new, old, &words::added(&secrets[1].lists, &secrets[0].lists)),
            };
            let (mut words, mut values) = words::differences(&compared, &secrets);
            values.extend(values::differences(&compared));
            words.sort_by(|one, other| (&one.file, &one.word).cmp(&(&other.file, &other.word)));
            values.sort_by(|one, other| (&one.file, &one.name).cmp(&(&other.file, &other.name)));
            let rules = rules::differences(old, new);
            let engines = [Engine::new(Arc::clone(old))?, Engine::new(Arc::clone(new))?];
            let cases = cases::differences(&engines)?;
            let mut diff = Self {
                old: old.version().clone(),
                new: new.version().clone(),
                outcome: Outcome::default(),
                rules,
                words,
                values,
                weakens: new.weakenings_since(old),
                cases,
                diff_digest: String::new(),
            };
            diff.outcome = diff.counted();
            diff.diff_digest = diff.digest();
            Ok(diff)
        })
    }

    fn counted(&self) -> Outcome {
        let mut outcome = Outcome::default();
        let of_words = self.words.iter().map(|word| word.direction);
        let of_values = self.values.iter().map(|value| value.direction);
        for direction in self.rules.iter().map(|rule| rule.direction).chain(of_words).chain(of_values) {
            outcome.count(direction).entries += 1;
        }
        for case in &self.cases.changed {
            outcome.count(case.direction).cases += 1;
        }
        outcome
    }

    fn digest(&self) -> String {
        let Ok(Value::Object(mut members)) = serde_json::to_value(self) else { return String::new() };
        members.remove("diff_digest");
        canonical_hash(&members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_directions_are_clear_only_if_they_agree() {
        use Direction::{Looser, Neutral, Stricter, Unclear};
        for (one, other, both) in [
            (Looser, Neutral, Looser),
            (Neutral, Stricter, Stricter),
            (Neutral, Neutral, Neutral),
            (Looser, Stricter, Unclear),
            (Unclear, Stricter, Unclear),
            (Unclear, Neutral, Unclear),
        ] {
            assert_eq!((one.and(other), other.and(one)), (both, both));
        }
    }

    #[test]
    fn what_is_unclear_counts_as_looser() {
        let mut outcome = Outcome::default();
        outcome.count(Direction::Stricter).cases += 1;
        outcome.count(Direction::Neutral).entries += 1;
        assert!(outcome.is_different() && !outcome.is_looser());
        outcome.count(Direction::Unclear).entries += 1;
        assert!(outcome.is_looser());
        assert!(!Outcome::default().is_different());
    }
}
