//! A pack evaluated without any of the engine's shortcuts: all its rules in one set, with all facts at once.
//!
//! Built from the files of the pack and of the pack that it extends, with Cedar alone: no triggers, no buckets, no
//! choice of facts. The schema is written here from the published table of facts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cedar_policy::{
    AuthorizationError, Authorizer, Context, Entities, EntityUid, Policy, PolicyId, PolicySet, Request, Schema,
};
use serde_json::{Map, Value};
use stage0_contract::{Effect, Severity, Verdict};
use stage0_policy::fact_table;
use stage0_policy::test_support::Found;

/// What a satisfied rule does.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    effect: Effect,
    severity: Severity,
}

pub(super) struct Plain {
    policies: PolicySet,
    outcomes: BTreeMap<String, Outcome>,
    /// The rules that are not inherited.
    own: BTreeSet<String>,
    /// Every fact that must be there, and one in which none must: a gateway may not have told all.
    schemas: [Schema; 2],
    facts: BTreeSet<&'static str>,
    pro_denies_from: Severity,
    /// Advice on an undeclared effect defers.
    undeclared_defers: bool,
    authorizer: Authorizer,
    uids: [EntityUid; 3],
}

impl Plain {
    pub(super) fn of(folder: &Path) -> Self {
        let manifest: toml::Table = read(folder, "pack.toml").parse().unwrap();
        let parent = manifest.get("extends").map(|_| baseline());
        let mut pack = Self::empty(folder, parent.is_some());
        let named = |key: &str| -> BTreeSet<String> {
            let listed = manifest.get("weakens").and_then(|weakens| weakens.get(key)).and_then(toml::Value::as_array);
            listed.into_iter().flatten().map(|id| id.as_str().unwrap().to_owned()).collect()
        };
        let left_out = &named("without") | &named("replaces");
        for (from, without) in
            parent.iter().map(|parent| (parent.as_path(), &left_out)).chain([(folder, &BTreeSet::new())])
        {
            for policy in policies(from) {
                let id = policy.annotation("id").unwrap().to_owned();
                if !without.contains(&id) {
                    pack.add(&id, &policy);
                }
            }
        }
        pack
    }

    fn empty(folder: &Path, extends: bool) -> Self {
        let own_types = if extends { read(folder, "schema.cedarschema") } else { String::new() };
        let is_declared = |kind: &str| match kind {
            "Custom" | "RunCalls" => own_types.contains(&format!("type {kind} ")),
            _ => true,
        };
        let rows: Vec<_> = fact_table()
            .filter_map(|row| Some((row.name, row.cedar_type?, row.is_optional)))
            .filter(|(_, kind, _)| is_declared(kind))
            .collect();
        let schema = |all_optional: bool| {
            let facts: Vec<String> = rows
                .iter()
                .map(|(name, kind, optional)| {
                    format!("{name}{}: {kind}", if *optional || all_optional { "?" } else { "" })
                })
                .collect();
            let text = format!(
                "entity Agent; entity Proposal; {own_types} type Facts = {{ {} }};\n\
                 action \"check\" appliesTo {{ principal: Agent, resource: Proposal, context: Facts }};",
                facts.join(", ")
            );
            Schema::from_cedarschema_str(&text).unwrap().0
        };
        Self {
            policies: PolicySet::new(),
            outcomes: BTreeMap::new(),
            own: policies(folder).iter().map(|policy| policy.annotation("id").unwrap().to_owned()).collect(),
            schemas: [schema(false), schema(true)],
            facts: rows.iter().map(|(name, ..)| *name).collect(),
            // No pack of these changes it, and one that did would have to say so.
            pro_denies_from: Severity::Medium,
            undeclared_defers: has_line(folder, "tools.toml", "undeclared_effects = \"defer\""),
            authorizer: Authorizer::new(),
            uids: [r#"Agent::"caller""#, r#"Action::"check""#, r#"Proposal::"action""#].map(|uid| uid.parse().unwrap()),
        }
    }

    fn add(&mut self, id: &str, policy: &Policy) {
        let word = |name: &str, default: &str| -> Value { policy.annotation(name).unwrap_or(default).into() };
        let effect: Effect = serde_json::from_value(word("effect", "")).unwrap();
        let severity = match effect {
            Effect::Deny => "HIGH",
            Effect::Defer => "MEDIUM",
            Effect::Advise => "LOW",
        };
        let is_undeclared = policy.annotation("code") == Some("UNDECLARED_SIDE_EFFECT");
        let effect = match effect {
            Effect::Advise if self.undeclared_defers && is_undeclared => Effect::Defer,
            given => given,
        };
        let severity = serde_json::from_value(word("severity", severity)).unwrap();
        self.outcomes.insert(id.to_owned(), Outcome { effect, severity });
        self.policies.add(policy.new_id(PolicyId::new(id))).unwrap();
    }

    pub(super) fn rules(&self) -> impl Iterator<Item = &str> {
        self.outcomes.keys().map(String::as_str)
    }

    pub(super) fn own(&self) -> impl Iterator<Item = &str> {
        self.own.iter().map(String::as_str)
    }

    pub(super) fn find(&self, facts: &BTreeMap<&'static str, Value>) -> Found {
        let described = facts.iter().filter(|(name, _)| self.facts.contains(*name));
        let context: Map<String, Value> = described.map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let [principal, action, resource] = &self.uids;
        let read = |schema| Context::from_json_value(Value::Object(context.clone()), Some((schema, action))).ok();
        let [strict, lenient] = &self.schemas;
        let context = read(strict).or_else(|| read(lenient)).unwrap_or_else(|| panic!("no context: {facts:#?}"));
        let request = Request::new(principal.clone(), action.clone(), resource.clone(), context, None).unwrap();
        let failed = |AuthorizationError::PolicyEvaluationError(error): &_| error.policy_id().to_string();
        let response = self.authorizer.is_authorized(&request, &self.policies, &Entities::empty());
        Found {
            satisfied: response.diagnostics().reason().map(ToString::to_string).collect(),
            failed: response.diagnostics().errors().map(failed).collect(),
        }
    }

    /// What the rules come to, by their annotations.
    pub(super) fn verdict(&self, found: &Found, pro: bool) -> Verdict {
        let effect = |id: &String| {
            let Outcome { effect, severity } = self.outcomes[id];
            if pro && effect == Effect::Advise && severity >= self.pro_denies_from { Effect::Deny } else { effect }
        };
        match found.satisfied.iter().map(effect).max() {
            _ if !found.failed.is_empty() => Verdict::Deny,
            Some(Effect::Deny) => Verdict::Deny,
            Some(Effect::Defer) => Verdict::Defer,
            Some(Effect::Advise) | None => Verdict::Allow,
        }
    }
}

pub(super) fn baseline() -> PathBuf {
    policy_folder("baseline")
}

pub(super) fn policy_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(name)
}

fn read(folder: &Path, file: &str) -> String {
    fs::read_to_string(folder.join(file)).unwrap()
}

fn has_line(folder: &Path, file: &str, line: &str) -> bool {
    fs::read_to_string(folder.join(file)).is_ok_and(|text| text.lines().any(|known| known == line))
}

fn policies(folder: &Path) -> Vec<Policy> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let texts = files.filter(|path| path.extension().is_some_and(|ending| ending == "cedar"));
    let sets = texts.map(|path| fs::read_to_string(path).unwrap().parse::<PolicySet>().unwrap());
    sets.flat_map(|set| set.policies().cloned().collect::<Vec<_>>()).collect()
}
