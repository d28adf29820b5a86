//! What a pack takes over from the pack that it extends: words and numbers, rules, facts and the forms of secrets.
//!
//! The parent is loaded and proven before. Its rules are not validated again; the schema in force is written from the
//! fact table, with the types of both packs.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use cedar_policy::SchemaFragment;
use stage0_contract::PolicyVersion;

use super::merge::{self, MERGED, Merged};
use super::shape::{self, MAX_RULES};
use super::weakens::{self, Section};
use super::{OwnTypes, Pack, PackError, rekeyed};
use crate::facts::{self, Attribute};
use crate::files::{CODES, Fault, Files, MANIFEST, SCHEMA, SECRETS, TOOLS};
use crate::rule::Rule;
use crate::secrets::spec::{self, Secrets};
use crate::vocabulary::{Edition, Vocabulary};

/// Where a pack comes from.
#[derive(Debug)]
pub(super) struct Lineage {
    pub(super) parent: Option<Arc<Pack>>,
    /// The files in force, for a pack that extends this one and for its cases.
    pub(super) files: Files,
    /// The texts of the forms of secrets, the oldest first.
    pub(super) secrets: Vec<Cow<'static, str>>,
    pub(super) weakened: Option<weakens::Weakened>,
}

/// A pack that extends another, while it is parsed.
pub(super) struct Inheritance<'p> {
    pub(super) parent: &'p Arc<Pack>,
    pub(super) merged: Merged,
    pub(super) section: Section,
}

/// The types that a pack may add.
const OWN_TYPES: [&str; 2] = ["Custom", "RunCalls"];

impl<'p> Inheritance<'p> {
    /// Merges the files of a pack with those of its parent. A file that cannot be read is a fault, and ends it.
    pub(super) fn of(own: &Files, parent: &'p Arc<Pack>) -> Result<Self, PackError> {
        let mut faults = Vec::new();
        let merged = merge::merge(own, &parent.lineage.files, &mut faults);
        let section = weakens::section(own, &mut faults);
        let types = types(own, parent, &mut faults);
        match (merged, section) {
            (Some(mut merged), Some(section)) if faults.is_empty() => {
                if let Some(manifest) = merged.own(MANIFEST)
                    && manifest.value(&["edition"]).is_some_and(|edition| edition != "2")
                {
                    let message = "`edition` is that of the pack that it extends: take it out";
                    let fault = Fault::new(MANIFEST, message);
                    return Err(PackError::of(Fault { line: manifest.line(&["edition"]), ..fault }));
                }
                merged.files.set(SCHEMA, facts::schema(&types.custom, &types.run_calls));
                Ok(Self { parent, merged, section })
            }
            _ => Err(PackError { faults }),
        }
    }

    /// Whether the pack has rules or words of its own, which its own cases must prove.
    pub(super) fn needs_cases(&self) -> bool {
        let files = &self.merged.files;
        let has_words = MERGED.iter().any(|file| *file != MANIFEST && self.merged.own(file).is_some());
        has_words || files.get(SECRETS).is_some() || files.policies().next().is_some()
    }

    /// Whether the pack itself describes a code.
    pub(super) fn describes(&self, code: &str) -> bool {
        self.merged.own(CODES).is_some_and(|codes| codes.line(&[code]).is_some())
    }

    /// The forms of secrets of both packs.
    pub(super) fn secrets(&self, faults: &mut Vec<Fault>) -> Option<Secrets> {
        let Lineage { secrets, .. } = &self.parent.lineage;
        spec::extend(&self.merged.files, name_of(self.parent.label()), &self.parent.secrets, secrets, faults)
    }

    /// A fault of a rule of the parent that a number of this pack has caused.
    pub(super) fn blamed(&self, fault: &Fault) -> Fault {
        let manifest = self.merged.own(MANIFEST);
        let line = ["within", "escalate_after"].iter().find_map(|key| manifest?.line(&["approvals", key]));
        Fault { file: MANIFEST.to_owned(), line, ..fault.clone() }
    }

    /// Adds the rules of the parent, except those that the pack leaves out or replaces, and their texts. Returns the
    /// faults; `is_clean` says that the pack's own rules have none.
    pub(super) fn add_rules(
        &self,
        rules: &mut BTreeMap<String, Rule>,
        sources: &mut Vec<String>,
        is_clean: bool,
    ) -> Vec<Fault> {
        let mut faults = Vec::new();
        let label = self.parent.label();
        let level = self.parent.ancestors().count();
        rules.values_mut().for_each(|rule| rule.level = level);
        let left_out = self.section.left_out(&self.parent.rules, is_clean.then_some(&*rules), label, &mut faults);
        for rule in self.parent.rules.values().filter(|rule| !left_out.contains(rule.id.as_str())) {
            if let Some(own) = rules.get(&rule.id) {
                let message = format!("its `@id` is that of a rule of `{label}`");
                let help = format!(
                    "give it another `@id`; or, if it is to stand in the place of that rule, add \"{}\" to \
                     `replaces` in `[weakens]` of pack.toml",
                    rule.id
                );
                faults.push(Fault::new(&own.file, message).at(own.line).rule(&rule.id).help(help));
                continue;
            }
            let mut rule = Rule::clone(rule);
            if rule.inherited.is_none() {
                rule.inherited = Some(self.parent.version().clone());
                rule.file = format!("{label}/{}", rule.file);
            }
            rules.insert(rule.id.clone(), rule);
        }
        if rules.len() > MAX_RULES {
            let message = format!("with those of `{label}` the pack has more than {MAX_RULES} rules");
            faults.push(Fault::new(MANIFEST, message));
        }
        sources.extend(self.parent.sources.iter().map(|source| without(source, &left_out)));
        faults
    }

    /// Faults of what the pack makes milder without a word, or says and does not do.
    pub(super) fn weakenings(&self, child: &weakens::Child<'_>, faults: &mut Vec<Fault>) {
        let defers = |vocabulary: &Vocabulary| vocabulary.second().is_some_and(|(_, tools)| tools.undeclared_defers());
        if defers(&self.parent.vocabulary) && !defers(child.vocabulary) {
            // The rules of the parent are taken over as they are there.
            let message = format!(
                "`undeclared_effects` is `defer` in `{}`, and stays so for its rules: take it out, or replace the rule",
                self.parent.label()
            );
            let line = self.merged.own(TOOLS).and_then(|tools| tools.line(&["undeclared_effects"]));
            faults.push(Fault { line, ..Fault::new(TOOLS, message) });
        }
        let found = weakens::find(self.parent, child, &self.merged);
        self.section.compare(&found, self.parent.label(), faults);
    }
}

fn name_of(label: &str) -> &str {
    label.split_once('@').map_or(label, |(name, _)| name)
}

/// A text of policies without the rules that are left out.
fn without(source: &str, left_out: &HashSet<&str>) -> String {
    // The parent's texts have been parsed before, and the engine checks that it finds a rule for each policy.
    let policies = if left_out.is_empty() { None } else { rekeyed(source) };
    let Some(policies) = policies else { return source.to_owned() };
    let is_left_out = |id: &str| left_out.contains(id);
    if !policies.iter().any(|policy| is_left_out(policy.id().as_ref())) {
        return source.to_owned();
    }
    let kept = policies.iter().filter(|policy| !is_left_out(policy.id().as_ref()));
    kept.map(|policy| format!("{policy}\n")).collect()
}

/// The types of the parent and the pack's own.
fn types(own: &Files, parent: &Pack, faults: &mut Vec<Fault>) -> OwnTypes {
    let mut types =
        OwnTypes { custom: parent.custom.clone(), run_calls: parent.run_calls.clone(), ..OwnTypes::default() };
    let Some(text) = own.get(SCHEMA) else { return types };
    if let Err(fault) = only_own_types(text) {
        faults.push(fault);
        return types;
    }
    let added = OwnTypes::read(SCHEMA, text, Edition::Second, faults);
    for (member, kind) in added.custom.0 {
        match types.custom.get(&member).filter(|known| *known != kind) {
            Some(known) => {
                let label = parent.label();
                let message = format!("`{member}` is a {} in `{label}`, and cannot have another type", known.as_str());
                faults.push(Fault::new(SCHEMA, message).at(line_of_word(text, &member)));
            }
            None => {
                types.custom.0.insert(member, kind);
            }
        }
    }
    types.run_calls.extend(added.run_calls);
    types.run_calls.sort_unstable();
    types.run_calls.dedup();
    types
}

fn only_own_types(text: &str) -> Result<(), Fault> {
    shape::schema(SCHEMA, text)?;
    let (fragment, _) =
        SchemaFragment::from_cedarschema_str(text).map_err(|error| Fault::diagnosed(SCHEMA, text, &error))?;
    let json = fragment.to_json_value().map_err(|error| Fault::new(SCHEMA, error.to_string()))?;
    let others = json.as_object().into_iter().flatten().flat_map(|(namespace, declared)| {
        let names = |what: &str| declared.get(what).and_then(|names| names.as_object()).into_iter().flatten();
        let types =
            names("commonTypes").filter(|(name, _)| !namespace.is_empty() || !OWN_TYPES.contains(&name.as_str()));
        types.chain(names("entityTypes")).chain(names("actions")).map(|(name, _)| name.as_str())
    });
    match others.collect::<Vec<_>>().first() {
        None => Ok(()),
        Some(name) => {
            let message = format!(
                "`{name}` is not the pack's to declare: the facts are inherited, and only `type Custom` and \
                 `type RunCalls` can be added"
            );
            Err(Fault::new(SCHEMA, message).at(line_of_word(text, name)))
        }
    }
}

/// The first line outside of a comment with a word in it.
fn line_of_word(text: &str, word: &str) -> usize {
    let code = |line: &str| line.split("//").next().is_some_and(|code| code.contains(word));
    text.lines().position(code).map_or(1, |index| index + 1)
}

impl Pack {
    /// The version of the pack that it extends.
    pub fn parent(&self) -> Option<&PolicyVersion> {
        self.lineage.parent.as_ref().map(|parent| parent.version())
    }

    /// What the pack makes milder than the pack that it extends.
    pub fn weakened(&self) -> Option<&weakens::Weakened> {
        self.lineage.weakened.as_ref()
    }

    /// The packs that it extends, the nearest first.
    pub fn parents(&self) -> impl Iterator<Item = &Self> {
        self.ancestors().skip(1)
    }

    /// Name and number, without the digest.
    pub(crate) fn label(&self) -> &str {
        let version = self.version.as_str();
        version.split_once('+').map_or(version, |(label, _)| label)
    }

    /// Whether one of its rules reads a fact.
    pub(super) fn reads(&self, fact: &str) -> bool {
        let reads = |attribute| self.rules.values().any(|rule| rule.attributes.contains(attribute));
        Attribute::parse(fact).is_some_and(reads)
    }

    /// The pack, the one that it extends, and so on.
    pub(super) fn ancestors(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |pack| pack.lineage.parent.as_deref())
    }
}
