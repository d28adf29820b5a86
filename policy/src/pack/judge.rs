//! Judging a pack that is about to be published: beside what a folder must be, within bounds of time and memory, and
//! with nothing in it that misleads the people who read it.
//!
//! A published pack decides for others than its authors, and is loaded by every evaluator. What was published once is
//! loaded without these bounds, so that they can become narrower.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use stage0_contract::{PolicyBundle, PolicyFiles, is_misleading, is_reordering};

use super::bundle::BundleError;
use super::codes::Meaning;
use super::{Pack, PackError, line_of_case};
use crate::files::{BASELINE, CODES, Fault, MANIFEST, is_policy};
use crate::rule::Rule;
use crate::time_limit::TimeLimit;

/// The most bytes of rules of a bundle, all its `.cedar` files together.
pub const MAX_RULE_BYTES: usize = 512 << 10;
/// The most bytes of rules of a pack that was judged, with those that it takes over from packs that are compiled in.
pub const MAX_LOADED_RULE_BYTES: usize = MAX_RULE_BYTES + (128 << 10);

impl Pack {
    /// Loads and proves the packs of a bundle as [`Pack::from_bundle`] does, and refuses what must not be published.
    /// What takes longer than the limit is refused.
    pub fn judge(bundle: &PolicyBundle, limit: TimeLimit) -> Result<Arc<Self>, BundleError> {
        if let Some(refused) = too_many_rules(bundle) {
            return Err(refused);
        }
        for (index, pack) in bundle.packs.iter().enumerate() {
            refuse_any(index, reordered(pack))?;
        }
        let judged = Self::from_bundle_within(bundle, limit)?;
        let packs: Vec<&Self> = judged.ancestors().take(bundle.packs.len()).collect();
        for (index, (pack, files)) in packs.into_iter().rev().zip(&bundle.packs).enumerate() {
            let mut faults = misleading(pack, files);
            faults.extend(taken_name(pack, files));
            refuse_any(index, faults)?;
        }
        Ok(judged)
    }

    /// The bytes of rules that an engine of this pack parses.
    pub fn rule_bytes(&self) -> usize {
        self.sources.iter().map(String::len).sum()
    }
}

fn refuse_any(pack: usize, faults: Vec<Fault>) -> Result<(), BundleError> {
    if faults.is_empty() { Ok(()) } else { Err(BundleError::new(pack, PackError { faults })) }
}

/// Names the largest file of rules.
fn too_many_rules(bundle: &PolicyBundle) -> Option<BundleError> {
    let packs = bundle.packs.iter().enumerate();
    let files = packs.flat_map(|(pack, of)| of.files.iter().map(move |(name, text)| (pack, name, text.len())));
    let rules: Vec<_> = files.filter(|(_, name, _)| is_policy(name)).collect();
    let bytes: usize = rules.iter().map(|(.., bytes)| bytes).sum();
    let (pack, name, largest) = rules.into_iter().max_by_key(|(.., bytes)| *bytes)?;
    let message = format!(
        "all `.cedar` files, with those of the packs that come with it, have {bytes} bytes, and may have \
         {MAX_RULE_BYTES}: this one has {largest}"
    );
    (bytes > MAX_RULE_BYTES).then(|| BundleError::new(pack, PackError::of(Fault::new(name, message))))
}

/// Faults of rules, words and types whose text does not stand in the order in which it is shown. Cases may hold
/// anything: requests do.
fn reordered(pack: &PolicyFiles) -> Vec<Fault> {
    let is_read = |name: &str| is_policy(name) || name.ends_with(".toml") || name.ends_with(".cedarschema");
    let files = pack.files.iter().filter(|(name, _)| is_read(name));
    let lines = files.flat_map(|(name, text)| text.lines().enumerate().map(move |(line, text)| (name, line + 1, text)));
    let faults = lines.filter_map(|(name, line, text)| {
        let found = text.chars().find(|c| is_reordering(*c))?;
        Some(Fault::new(name, format!("{}: take it out", what_misleads(found))).at(line))
    });
    faults.collect()
}

/// Faults of texts that people read in answers, approvals and comparisons.
fn misleading(pack: &Pack, files: &PolicyFiles) -> Vec<Fault> {
    let own = pack.rules.values().filter(|rule| rule.inherited.is_none());
    let mut faults: Vec<Fault> = own.filter_map(|rule| misleading_rule(rule)).collect();
    faults.extend(misleading_meanings(files));
    let reason = pack.weakened().and_then(|weakened| found_in("`reason` of `[weakens]`", &weakened.reason));
    faults.extend(reason.map(|message| at_line(MANIFEST, files, "reason", message)));
    faults.extend(misleading_cases(files));
    faults
}

fn misleading_rule(rule: &Rule) -> Option<Fault> {
    let message = found_in("`@message`", &rule.message);
    let question = || found_in("`@question`", rule.question.as_deref().unwrap_or_default());
    let wrong = message.or_else(question)?;
    Some(Fault::new(&rule.file, wrong).at(rule.line).rule(&rule.id))
}

fn misleading_meanings(files: &PolicyFiles) -> Vec<Fault> {
    let text = files.files.get(CODES).map_or("", String::as_str);
    // It was read before.
    let meanings: BTreeMap<String, Meaning> = toml::from_str(text).unwrap_or_default();
    let faults = meanings.iter().filter_map(|(code, Meaning { meaning, remedy })| {
        let wrong = found_in("`meaning`", meaning).or_else(|| found_in("`remedy`", remedy))?;
        Some(at_line(CODES, files, &format!("[{code}]"), format!("`{code}`: {wrong}")))
    });
    faults.collect()
}

/// Comparisons name cases by their ids.
fn misleading_cases(files: &PolicyFiles) -> Vec<Fault> {
    #[derive(Deserialize)]
    struct Named {
        id: String,
    }
    let cases = files.files.iter().filter(|(name, _)| name.ends_with(".json"));
    let named = cases.flat_map(|(name, text)| {
        let cases: Vec<Named> = serde_json::from_str(text).unwrap_or_default();
        cases.into_iter().map(move |case| (name, text, case.id))
    });
    let faults = named.filter_map(|(name, text, id)| {
        let wrong = found_in("`id`", &id)?;
        Some(Fault::new(name, wrong).at(line_of_case(text, &id)))
    });
    faults.collect()
}

fn found_in(what: &str, text: &str) -> Option<String> {
    let found = text.chars().find(|c| is_misleading(*c))?;
    Some(format!("{what} has {}: take it out", what_misleads(found)))
}

fn what_misleads(c: char) -> String {
    format!("U+{:04X}, a character that cannot be seen or changes the order in which text is shown", u32::from(c))
}

/// A fault at the first line that begins with this.
fn at_line(file: &str, files: &PolicyFiles, begin: &str, message: String) -> Fault {
    let text = files.files.get(file).map_or("", String::as_str);
    let line = text.lines().position(|line| line.trim_start().starts_with(begin)).map(|index| index + 1);
    Fault { line, ..Fault::new(file, message) }
}

/// A fault if the pack has the name of one that is compiled in, and is another one: people would take it for that.
fn taken_name(pack: &Pack, files: &PolicyFiles) -> Option<Fault> {
    let name = pack.label().split('@').next().unwrap_or_default();
    let compiled = match name {
        BASELINE => Pack::embedded(),
        name => Pack::template(name)?,
    };
    if compiled.is_ok_and(|compiled| compiled.version() == pack.version()) {
        return None;
    }
    let message = format!("`{name}` is the name of a pack that is compiled in, and this is another one");
    Some(at_line(MANIFEST, files, "name", message).help("give it another `name`"))
}
