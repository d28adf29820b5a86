//! The policy files and the schema of a pack: parsed, named, validated.
//!
//! Validation is strict, and Cedar's warnings are faults too: a rule that can never be satisfied protects nothing.

use std::collections::BTreeMap;

use cedar_policy::{Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use miette::Diagnostic;

use super::OwnTypes;
use super::shape::{self, MAX_RULES};
use crate::files::{Fault, Files, SCHEMA};
use crate::rule::{self, Rule};
use crate::vocabulary::Edition;

/// Parses all rules and collects their faults; also returns the texts in the order of file names.
pub(super) fn parse(
    files: &Files,
    edition: Edition,
    own: &OwnTypes,
    faults: &mut Vec<Fault>,
) -> (BTreeMap<String, Rule>, Vec<String>) {
    let mut rules: BTreeMap<String, Rule> = BTreeMap::new();
    let mut sources = Vec::new();
    let mut set = PolicySet::new();
    let Some(shapes) = shapes(files, faults) else { return (rules, sources) };
    for ((file, text), statements) in files.policies().zip(shapes) {
        sources.push(text.to_owned());
        for (line, policy) in policies(file, text, &statements, faults) {
            let id = policy.annotation("id").unwrap_or("a rule without `@id`").to_owned();
            match rule::read(&policy, edition, own, file, line) {
                Ok(rule) => match rules.get(&rule.id) {
                    Some(first) => {
                        let message = format!("its `@id` is taken by {}:{}", first.file, first.line);
                        faults.push(Fault::new(file, message).at(line).rule(&id));
                    }
                    None => {
                        if let Err(error) = set.add(policy.new_id(PolicyId::new(&rule.id))) {
                            faults.push(Fault::new(file, error.to_string()).at(line).rule(&id));
                        }
                        rules.insert(rule.id.clone(), rule);
                    }
                },
                Err(wrong) => faults.extend(wrong.into_iter().map(|w| Fault::new(file, w).at(line).rule(&id))),
            }
        }
    }
    validate(files, &set, &rules, faults);
    (rules, sources)
}

/// The fault of a pack that extends no other and has no rule of its own.
pub(super) fn none(rules: &BTreeMap<String, Rule>, sources: &[String], faults: &[Fault]) -> Option<Fault> {
    let fault = |what: &str| Some(Fault::new("*.cedar", what));
    // A rule that cannot be read is reported already.
    match (sources.is_empty(), rules.is_empty() && faults.is_empty()) {
        (true, _) if !faults.iter().any(|fault| fault.file.ends_with(".cedar")) => fault("there is no policy file"),
        (false, true) => fault("there is no rule"),
        _ => None,
    }
}

/// The lines of each policy file's statements; `None` if a file, or all files together, exceed the bounds.
fn shapes(files: &Files, faults: &mut Vec<Fault>) -> Option<Vec<Vec<usize>>> {
    let mut shapes = Vec::new();
    let mut rules = 0_usize;
    let mut parsable = true;
    for (file, text) in files.policies() {
        match shape::statements(file, text) {
            Ok(statements) => {
                let before = rules;
                rules += statements.len();
                if before <= MAX_RULES && rules > MAX_RULES {
                    let line = statements.get(MAX_RULES - before).copied().unwrap_or(1);
                    let message =
                        format!("the pack has more than {MAX_RULES} rules: the first one too many stands here");
                    faults.push(Fault::new(file, message).at(line));
                    parsable = false;
                }
                shapes.push(statements);
            }
            Err(fault) => {
                faults.push(fault);
                parsable = false;
            }
        }
    }
    parsable.then_some(shapes)
}

/// The policies of a text, each with its `@id` as the id that diagnostics name.
pub(crate) fn rekeyed(text: &str) -> Option<Vec<Policy>> {
    let set: PolicySet = text.parse().ok()?;
    set.policies().map(|policy| Some(policy.new_id(PolicyId::new(policy.annotation("id")?)))).collect()
}

/// The policies of a file in their order, each with its line; `lines` has those of the file's statements.
fn policies(file: &str, text: &str, lines: &[usize], faults: &mut Vec<Fault>) -> Vec<(usize, Policy)> {
    let set = match text.parse::<PolicySet>() {
        Ok(set) => set,
        Err(errors) => {
            faults.extend(errors.iter().map(|error| Fault::diagnosed(file, text, error)));
            return Vec::new();
        }
    };
    for template in set.templates() {
        faults.push(Fault::new(file, "a rule must not be a template").rule(template.annotation("id").unwrap_or("?")));
    }
    // Cedar's parser names them `policy0`, `policy1`, … in the order of the text.
    let place = |policy: &Policy| policy.id().to_string().strip_prefix("policy").and_then(|n| n.parse::<usize>().ok());
    let line = |policy: &Policy| place(policy).and_then(|at| lines.get(at)).copied().unwrap_or(1);
    let mut policies: Vec<Policy> = set.policies().cloned().collect();
    policies.sort_by_key(place);
    policies.into_iter().map(|policy| (line(&policy), policy)).collect()
}

fn validate(files: &Files, set: &PolicySet, rules: &BTreeMap<String, Rule>, faults: &mut Vec<Fault>) {
    let Some(schema) = schema(files, faults) else { return };
    let result = Validator::new(schema).validate(set, ValidationMode::Strict);
    let errors = result.validation_errors().map(|e| (e.policy_id().to_string(), e as &dyn Diagnostic));
    let warnings = result.validation_warnings().map(|w| (w.policy_id().to_string(), w as &dyn Diagnostic));
    for (id, problem) in errors.chain(warnings) {
        let fault = match rules.get(&id) {
            Some(rule) => {
                let fault = Fault::diagnosed(&rule.file, files.get(&rule.file).unwrap_or_default(), problem);
                if fault.line.is_some() { fault } else { fault.at(rule.line) }
            }
            None => Fault::new(SCHEMA, problem.to_string()),
        };
        faults.push(fault.rule(&id));
    }
}

pub(super) fn schema(files: &Files, faults: &mut Vec<Fault>) -> Option<Schema> {
    let text = files.needed(SCHEMA, faults)?;
    if let Err(fault) = shape::schema(SCHEMA, text) {
        faults.push(fault);
        return None;
    }
    match Schema::from_cedarschema_str(text) {
        Ok((schema, _)) => Some(schema),
        Err(error) => {
            faults.push(Fault::diagnosed(SCHEMA, text, &error));
            None
        }
    }
}
