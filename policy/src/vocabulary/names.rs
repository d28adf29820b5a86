//! Names of environments and words of approval, as a pack of the second edition lists them in `vocabulary.toml`.
//!
//! At load each must be in normal form (another could never match), and none may have two meanings.
//! INVARIANT: no word of a pack means approved; only `approved` itself does.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use stage0_contract::Spelling;

use super::Words;
use crate::files::{Fault, VOCABULARY, line_of};

pub(crate) const APPROVED: &str = "approved";

/// The meaning of a word of `approval_status` other than [`APPROVED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApprovalWord {
    Pending,
    Missing,
    None,
    Rejected,
}

#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Alias → canonical name.
    aliases: HashMap<String, String>,
    approval: HashMap<String, ApprovalWord>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawApproval {
    pending: Words,
    missing: Words,
    none: Words,
    rejected: Words,
}

/// The table `[environments]`: canonical name → aliases.
pub(super) type RawEnvironments = BTreeMap<String, Words>;

impl Names {
    /// The environment that a word names, directly or as an alias.
    pub(crate) fn environment(&self, word: &Spelling) -> Option<&str> {
        let readings = [word.folded(), word.split()];
        readings.into_iter().flatten().find_map(|reading| self.aliases.get(reading)).map(String::as_str)
    }

    /// The canonical name for a folded word; a word that is no alias stands for itself.
    pub(crate) fn canonical(&self, folded: &str) -> String {
        self.aliases.get(folded).cloned().unwrap_or_else(|| folded.to_owned())
    }

    /// Whether an alias has these letters and a `_` between them.
    pub(crate) fn has_alias_of_letters(&self, letters: &str) -> bool {
        self.aliases.keys().any(|alias| alias.contains('_') && alias.replace('_', "") == letters)
    }

    /// The meaning of a word of approval. A word that could also be a refusal counts as a refusal.
    pub(crate) fn approval(&self, word: &Spelling) -> Option<ApprovalWord> {
        let meaning = |reading: Option<&str>| reading.and_then(|reading| self.approval.get(reading)).copied();
        match [meaning(word.folded()), meaning(word.split())] {
            [Some(ApprovalWord::Rejected), _] | [_, Some(ApprovalWord::Rejected)] => Some(ApprovalWord::Rejected),
            [folded, split] => folded.or(split),
        }
    }
}

pub(super) fn read(environments: RawEnvironments, approval: RawApproval, text: &str, faults: &mut Vec<Fault>) -> Names {
    let mut fault = |at: Option<usize>, message: String| {
        faults.push(Fault { line: at.map(|at| line_of(text, at)), ..Fault::new(VOCABULARY, message) });
    };
    let mut names = Names::default();
    let canonical: Vec<String> = environments.keys().cloned().collect();
    for (name, words) in environments {
        if !is_normal(&name) {
            fault(None, format!("`{name}` in `[environments]` {NORMAL}"));
        }
        if words.is_empty() {
            fault(None, format!("`{name}` in `[environments]` is empty"));
        }
        for word in words {
            let (at, word) = (Some(word.span().start), word.into_inner());
            if !is_normal(&word) {
                fault(at, format!("`{word}` in `{name}` {NORMAL}"));
            }
            if canonical.contains(&word) {
                fault(at, format!("`{word}` is an environment of its own and no other name of `{name}`"));
            } else if let Some(before) = names.aliases.insert(word.clone(), name.clone()) {
                fault(at, format!("`{word}` stands for `{before}` and for `{name}`"));
            }
        }
    }
    for (list, meaning, words) in [
        ("pending", ApprovalWord::Pending, approval.pending),
        ("missing", ApprovalWord::Missing, approval.missing),
        ("none", ApprovalWord::None, approval.none),
        ("rejected", ApprovalWord::Rejected, approval.rejected),
    ] {
        if words.is_empty() {
            fault(None, format!("`{list}` in `[approval]` is empty"));
        }
        for word in words {
            let (at, word) = (Some(word.span().start), word.into_inner());
            if !is_normal(&word) {
                fault(at, format!("`{word}` in `{list}` {NORMAL}"));
            }
            if word == APPROVED {
                fault(at, format!("`{APPROVED}` in `{list}` is an approval, and cannot mean anything else"));
            } else if names.approval.insert(word.clone(), meaning).is_some() {
                fault(at, format!("`{word}` stands twice in `[approval]`"));
            }
        }
    }
    names
}

const NORMAL: &str = "is not in normal form and would match nothing: small letters, and `_` between parts";

fn is_normal(word: &str) -> bool {
    !word.is_empty() && Spelling::of(word).folded() == Some(word)
}
