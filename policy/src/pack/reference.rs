//! The reference of a pack: every word that a caller may write, and every code that may come back, as one JSON object.
//!
//! It is the reply to `GET /v1/policy/vocabulary`. The words come straight from the pack's files; forms of constraints
//! and members of `context` come from the contract's tables.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use stage0_contract::{CONTEXT_MEMBERS, ConstraintName, IssueCode, RequestMember};

use super::Pack;
use super::codes::{BuiltIn, Codes};
use crate::approval::Terms;
use crate::facts::{CustomType, CustomTypes};
use crate::files::{CONSTRAINTS, Files};
use crate::rule::Rule;
use crate::vocabulary::{Class, Vocabulary};

/// The meaning of a member that only the policy declares.
const OWN_MEMBER: &str = "declared by the policy for its own rules";

const WORDS: [(&str, &str); 4] = [
    ("side_effects", "effects.toml"),
    ("tools", "tools.toml"),
    ("constraints", "constraints.toml"),
    ("vocabulary", "vocabulary.toml"),
];

pub(super) fn of(
    files: &Files,
    vocabulary: &Vocabulary,
    codes: (&Codes, &BuiltIn),
    rules: &BTreeMap<String, Rule>,
    defaults: &Terms,
    custom: &CustomTypes,
) -> Map<String, Value> {
    let mut reference = Map::new();
    reference.insert("edition".to_owned(), (vocabulary.edition() as u8).into());
    if let Some((effects, tools)) = vocabulary.second() {
        let classes: Map<String, Value> =
            Class::ALL.into_iter().map(|class| (class.as_str().to_owned(), effects.of_class(class).into())).collect();
        reference.insert("classes".to_owned(), classes.into());
        reference.insert("sensitive_tools".to_owned(), tools.sensitive().into());
    }
    reference.insert("constraint_forms".to_owned(), forms(files, vocabulary).into());
    let member = |member: &RequestMember| json!({"name": member.name, "type": member.kind, "meaning": member.meaning});
    let own = |(name, kind): (&str, CustomType)| json!({"name": name, "type": kind.json_type(), "meaning": OWN_MEMBER});
    // A pack may declare a member of the contract too, whose meaning stays.
    let added = custom.iter().filter(|(name, _)| CONTEXT_MEMBERS.iter().all(|member| member.name != *name));
    let members = CONTEXT_MEMBERS.iter().map(member).chain(added.map(own)).collect();
    reference.insert("context".to_owned(), members);
    for (member, file) in WORDS {
        // The loader has parsed this file before.
        if let Some(words) = files.get(file).and_then(|text| toml::from_str::<Value>(text).ok()) {
            reference.insert(member.to_owned(), words);
        }
    }
    reference.insert("codes".to_owned(), told(codes, rules, defaults).into_iter().collect());
    reference
}

/// Every constraint that the grammar knows, with its form and the pack's other names for it.
fn forms(files: &Files, vocabulary: &Vocabulary) -> Vec<Value> {
    let words = files.get(CONSTRAINTS).and_then(|text| toml::from_str::<Value>(text).ok()).unwrap_or_default();
    let known = |name: &&ConstraintName| vocabulary.constraints.names().find(name.as_str()).is_some();
    let form = |name: &ConstraintName| {
        let aliases = words.get("aliases").and_then(|aliases| aliases.get(name.as_str()));
        json!({"name": name.as_str(), "value": name.example(), "aliases": aliases.cloned().unwrap_or_else(|| json!([])),
            "guardrail": vocabulary.constraints.is_guardrail(name.as_str())})
    };
    ConstraintName::ALL.iter().filter(known).map(form).collect()
}

fn told((codes, built_in): (&Codes, &BuiltIn), rules: &BTreeMap<String, Rule>, defaults: &Terms) -> Vec<Value> {
    let mut by_code: BTreeMap<&IssueCode, Vec<&Rule>> = BTreeMap::new();
    for rule in rules.values() {
        by_code.entry(&rule.code).or_default().push(rule);
    }
    for (code, ..) in built_in {
        by_code.entry(code).or_default();
    }
    let told = |(code, rules): (&IssueCode, Vec<&Rule>)| {
        let known = built_in.iter().find(|(known, ..)| known == code);
        let meaning = codes.get(code).or(known.map(|(.., meaning)| meaning));
        let severities = rules.iter().map(|rule| rule.severity).chain(known.map(|(_, severity, _)| *severity));
        let rules: Vec<Value> = rules.iter().map(|rule| rule_of(rule, defaults)).collect();
        json!({"code": code, "severity": severities.max(), "meaning": meaning.map(|m| &m.meaning),
            "remedy": meaning.map(|m| &m.remedy), "rules": rules})
    };
    by_code.into_iter().map(told).collect()
}

/// A rule, with what an approval needs where the rule asks for one.
fn rule_of(rule: &Rule, defaults: &Terms) -> Value {
    let mut told = json!({"id": rule.id, "effect": rule.effect, "severity": rule.severity, "message": rule.message,
        "next_action": rule.next_action, "final": rule.is_final});
    if let Some(told) = told.as_object_mut().filter(|_| rule.asks_for_approval()) {
        told.insert("approval".to_owned(), json!(rule.terms.or(defaults)));
    }
    told
}

impl Pack {
    /// Every word that a caller may write and every code that may come back.
    pub fn reference(&self) -> &Map<String, Value> {
        &self.reference
    }
}
