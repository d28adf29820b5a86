//! Names of environments and words of approval, as a pack of the second edition lists them in `vocabulary.toml`.
//!
//! Owns their look-up and their check at load: each in normal form (another could never match), none with two meanings.
//! INVARIANT: no word of a pack means approved; only `approved` itself does.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use stage0_contract::Spelling;
use toml::Spanned;

use super::fault::{Fault, line_of};
use super::files::VOCABULARY;

/// The one word that is an approval.
pub(crate) const APPROVED: &str = "approved";

/// What a word of `approval_status` means, beside [`APPROVED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApprovalWord {
    Pending,
    Missing,
    None,
    Rejected,
}

/// Environments by alias, and words of approval.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Canonical name → its aliases, in the order of the file.
    environments: BTreeMap<String, Vec<String>>,
    /// Alias → canonical name.
    aliases: HashMap<String, String>,
    approval: HashMap<String, ApprovalWord>,
}

type Words = Vec<Spanned<String>>;

/// `[approval]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawApproval {
    pending: Words,
    missing: Words,
    none: Words,
    rejected: Words,
}

/// `[environments]`.
pub(super) type RawEnvironments = BTreeMap<String, Words>;

impl Names {
    /// The name of the environment that a word is an alias of, if it is one.
    pub(crate) fn environment(&self, word: &Spelling) -> Option<&str> {
        let readings = [word.folded(), word.split()];
        readings.into_iter().flatten().find_map(|reading| self.aliases.get(reading)).map(String::as_str)
    }

    /// What a folded word stands for: another name is itself.
    pub(crate) fn canonical(&self, folded: &str) -> String {
        self.aliases.get(folded).cloned().unwrap_or_else(|| folded.to_owned())
    }

    /// What a word of approval means, if it is one. A word that may be a refusal is one.
    pub(crate) fn approval(&self, word: &Spelling) -> Option<ApprovalWord> {
        let meaning = |reading: Option<&str>| reading.and_then(|reading| self.approval.get(reading)).copied();
        match [meaning(word.folded()), meaning(word.split())] {
            [Some(ApprovalWord::Rejected), _] | [_, Some(ApprovalWord::Rejected)] => Some(ApprovalWord::Rejected),
            [folded, split] => folded.or(split),
        }
    }
}

/// Checks both tables and notes what is wrong with them.
pub(super) fn read(environments: RawEnvironments, approval: RawApproval, text: &str, faults: &mut Vec<Fault>) -> Names {
    let mut fault = |at: Option<usize>, message: String| {
        let fault = Fault::new(VOCABULARY, message);
        faults.push(match at {
            Some(at) => fault.at(line_of(text, at)),
            None => fault,
        });
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
        let mut aliases = Vec::with_capacity(words.len());
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
            aliases.push(word);
        }
        names.environments.insert(name, aliases);
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
