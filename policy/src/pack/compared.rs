//! What the comparison of two packs needs to know of them: files in force, cases, and which of them is milder in what.
//!
//! Milder is what a pack that extends another would have to name in `[weakens]`. Here the packs need not be related.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use stage0_contract::{CheckRequest, Decision};
use toml::Table;

use super::cases::{self, Case};
use super::manifest::{Pro, Scores};
use super::merge::{self, Merged};
use super::weakens::{self, Child};
use super::{Pack, PackError};
use crate::approval::Terms;
use crate::diff::Weakening;
use crate::engine::Engine;
use crate::files::{Files, SECRETS};
use crate::secrets;

/// File and name of each word and number that is milder in one pack than in another.
pub(crate) type Milder = BTreeSet<(&'static str, String)>;

/// By list, such as `names.tokens`: its words.
pub(crate) type WordLists = BTreeMap<String, BTreeSet<String>>;

/// A case, with the pack that it is from.
pub(crate) struct KnownCase {
    /// Name and number of the pack.
    pub(crate) pack: String,
    /// What it decides, as JSON. Cases of several packs may be the same.
    pub(crate) input: String,
    case: Case,
}

impl KnownCase {
    pub(crate) fn id(&self) -> &str {
        &self.case.id
    }

    /// The request, if it can be parsed.
    pub(crate) fn request(&self) -> Option<&CheckRequest> {
        self.case.request.as_ref().ok()
    }

    /// The decision of a pack; `None` where the request is refused.
    pub(crate) fn decide(&self, engine: &Engine) -> Option<Decision> {
        let decided = engine.decide_in(self.request()?, &self.case.circumstances(engine.pack().groups));
        decided.ok().map(|(decision, _)| decision)
    }

    /// Whether a pack finds a secret in the request.
    pub(crate) fn has_secret(&self, pack: &Pack) -> bool {
        self.request().is_some_and(|request| !secrets::find(request, pack.secrets()).is_empty())
    }
}

impl Pack {
    /// The files in force: its own over those of the packs that it extends. Of rules and cases only its own.
    pub(crate) fn files(&self) -> &Files {
        &self.lineage.files
    }

    /// The texts of the forms of secrets, the oldest first.
    pub(crate) fn secret_texts(&self) -> &[Cow<'static, str>] {
        &self.lineage.secrets
    }

    /// Its `[weakens]` and those of the packs that it extends, its own first.
    pub fn weakenings(&self) -> Vec<Weakening> {
        self.ancestors().filter_map(Self::weakening).collect()
    }

    /// As [`Pack::weakenings`], up to another pack.
    pub(crate) fn weakenings_since(&self, other: &Self) -> Vec<Weakening> {
        let since = self.ancestors().take_while(|pack| pack.version() != other.version());
        since.filter_map(Self::weakening).collect()
    }

    fn weakening(&self) -> Option<Weakening> {
        Some(Weakening { pack: self.label().to_owned(), weakened: self.weakened()?.clone() })
    }

    /// Its cases and those of the packs that it extends.
    pub(crate) fn known_cases(&self) -> Result<Vec<KnownCase>, PackError> {
        let mut known = Vec::new();
        for pack in self.ancestors().filter(|pack| pack.lineage.files.cases().next().is_some()) {
            let mut faults = Vec::new();
            let files = &pack.lineage.files;
            // They were parsed when the pack was loaded.
            let cases = cases::parse(files, &mut faults).filter(|_| faults.is_empty()).ok_or(PackError { faults })?;
            let texts = files.cases().filter_map(|(_, text)| serde_json::from_str::<Vec<Value>>(text).ok());
            let inputs = texts.flatten().map(|case| input(&case));
            let label = pack.label();
            known.extend(cases.into_iter().zip(inputs).map(|(case, input)| KnownCase {
                pack: label.to_owned(),
                input,
                case,
            }));
        }
        Ok(known)
    }
}

fn input(case: &Value) -> String {
    let member = |name: &str| case.get(name).map(Value::to_string).unwrap_or_default();
    ["request", "evaluated_at", "caller", "run"].map(member).join("\n")
}

/// What is milder in `to` than in `from`, except its rules. `added` are the words of forms of secrets that only `to`
/// has.
pub(crate) fn milder(from: &Pack, to: &Pack, added: &WordLists) -> Milder {
    // Words are judged only if a pack lists them, so that the words of both count as listed.
    let Some(mut both) = listed_by_either(to.files(), from.files()) else { return Milder::new() };
    both.files.set(SECRETS, written(added));
    let (scores, pro): (&Scores, &Pro) = (&to.scores, &to.pro);
    let (approvals, outcomes) = (&to.approvals, &to.outcomes);
    let child = Child { vocabulary: &to.vocabulary, windows: &to.windows, scores, pro, approvals, outcomes };
    weakens::find(from, &child, &both).into_iter().map(|weaker| (weaker.file, weaker.name)).collect()
}

/// The annotations by which terms of an approval are milder than others, without `@`.
pub(crate) fn milder_terms(from: &Terms, to: &Terms) -> Vec<&'static str> {
    let named = |(key, _): (&'static str, &str)| match key {
        "within" => "approve_within",
        "valid_for" => "approval_valid_for",
        "reason" => "approval_reason",
        other => other,
    };
    weakens::milder_terms(from, to).into_iter().map(named).collect()
}

fn listed_by_either(one: &Files, other: &Files) -> Option<Merged> {
    let merged = merge::merge(one, other, &mut Vec::new())?;
    merge::merge(&merged.files, &Files::default(), &mut Vec::new())
}

/// Lists such as `names.tokens` as a file.
fn written(lists: &WordLists) -> String {
    let mut tables: BTreeMap<&str, Table> = BTreeMap::new();
    for (path, words) in lists {
        let Some((table, list)) = path.split_once('.') else { continue };
        let words: Vec<toml::Value> = words.iter().map(|word| word.as_str().into()).collect();
        tables.entry(table).or_default().insert(list.to_owned(), words.into());
    }
    // Forms are tables of another shape, and more of them are never milder.
    tables.remove("forms");
    tables.into_iter().map(|(name, table)| (name.to_owned(), toml::Value::Table(table))).collect::<Table>().to_string()
}
