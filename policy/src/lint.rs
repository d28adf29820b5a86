//! Findings about a pack that is valid and probably not what its author means.
//!
//! A finding is no fault: an evaluator loads the pack all the same. Inherited rules and words are the business of the
//! pack that they come from, and are not looked at.

mod cases;
mod literals;
mod rules;
mod words;

use serde::Serialize;

use crate::files::{Fault, Files};
use crate::pack::{Pack, Trial};

/// A kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lint {
    /// A condition contradicts itself, or the rule's trigger.
    NeverApplies,
    /// Wherever the rule applies, another one does, and to the same effect.
    ShadowedRule,
    /// No case satisfies the rule.
    DeadRule,
    /// In no case the rule is evaluated and does not apply.
    UntestedRule,
    /// The rule passes where a member is absent, and no other rule asks for it.
    AbsentMember,
    /// No case without a run satisfies a rule that reads what a run counted.
    PassesWithoutRun,
    /// A rule compares a fact with a text that the fact never holds.
    NeverMatches,
    /// A case names a code that no rule gives.
    UnknownCode,
    /// Words of the pack occur in no case.
    UnusedWord,
}

/// Something that is probably wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing.
    pub kind: Lint,
    /// Where it is, and what is wrong.
    #[serde(flatten)]
    pub fault: Fault,
}

impl Lint {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::NeverApplies,
        Self::ShadowedRule,
        Self::DeadRule,
        Self::UntestedRule,
        Self::AbsentMember,
        Self::PassesWithoutRun,
        Self::NeverMatches,
        Self::UnknownCode,
        Self::UnusedWord,
    ];

    /// Its name, as `--allow` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NeverApplies => "never-applies",
            Self::ShadowedRule => "shadowed-rule",
            Self::DeadRule => "dead-rule",
            Self::UntestedRule => "untested-rule",
            Self::AbsentMember => "absent-member",
            Self::PassesWithoutRun => "passes-without-run",
            Self::NeverMatches => "never-matches",
            Self::UnknownCode => "unknown-code",
            Self::UnusedWord => "unused-word",
        }
    }

    fn finding(self, fault: Fault) -> Finding {
        Finding { kind: self, fault }
    }
}

/// What can be found in a pack, its files and the trials of its own cases; by file and line.
pub(crate) fn findings(pack: &Pack, files: &Files, trials: &[Trial]) -> Vec<Finding> {
    let own = rules::own(pack);
    let mut found = rules::findings(&own);
    found.extend(literals::findings(pack, &own));
    found.extend(cases::without_run(&own, trials));
    // A rule that never applies is dead for that reason.
    let never: Vec<String> = found
        .iter()
        .filter(|finding| finding.kind == Lint::NeverApplies)
        .filter_map(|f| f.fault.rule.clone())
        .collect();
    found.extend(
        cases::findings(&own, trials)
            .into_iter()
            .filter(|finding| !finding.fault.rule.as_ref().is_some_and(|rule| never.contains(rule))),
    );
    found.extend(cases::unknown_codes(pack, files));
    found.extend(words::findings(files));
    found.sort_by(|one, other| {
        (&one.fault.file, one.fault.line, one.kind).cmp(&(&other.fault.file, other.fault.line, other.kind))
    });
    found
}
