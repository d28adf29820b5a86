//! Published policies and their activations, as people read them.

use stage0_contract::{
    Activation, ActivationKind, ActivePolicies, PoliciesInForce, PolicyVersion, PublishedPolicy, ShownPolicy,
};

use crate::out::plain;
use crate::table::{Table, fields, optional, seconds};

pub(super) fn published(policy: &PublishedPolicy) -> String {
    let PublishedPolicy { summary, account, published_at, bytes, .. } = policy;
    let list = |items: Vec<String>| if items.is_empty() { "-".to_owned() } else { items.join(", ") };
    fields([
        ("version", summary.version.to_string()),
        ("account", account.as_ref().map_or_else(|| "every account".to_owned(), ToString::to_string)),
        ("rules", summary.rules.to_string()),
        ("cases", summary.cases.to_string()),
        ("extends", list(summary.parents.iter().map(ToString::to_string).collect())),
        ("makes milder", list(summary.weakens.iter().map(|name| plain(name)).collect())),
        ("published", format!("{} by {}", seconds(*published_at), by_publisher(policy))),
        ("size", format!("{bytes} bytes")),
    ])
}

pub(super) fn activation(activation: &Activation) -> String {
    let Activation { account, environment, version, from, reason, .. } = activation;
    fields([
        ("version", named(version.as_ref())),
        ("before", named(from.as_ref())),
        ("account", account.as_ref().map_or_else(|| "every account".to_owned(), ToString::to_string)),
        ("where", place(activation.floor, environment.as_deref())),
        ("reason", reason.as_deref().map_or_else(|| "-".to_owned(), plain)),
    ])
}

pub(super) fn shown(shown: &ShownPolicy) -> String {
    let mut text = published(&shown.policy);
    text.push_str("\n\nEvaluators\n");
    if shown.evaluators.is_empty() {
        text.push_str("  the gateway sees none\n");
    }
    for one in &shown.evaluators {
        let state = if one.loaded { "loaded" } else { "not loaded: the first check that needs it waits" };
        text.push_str(&format!("  {}  {state}\n", plain(&one.instance)));
    }
    for (number, pack) in shown.policy.packs.iter().flatten().enumerate() {
        for (name, content) in &pack.files {
            text.push_str(&format!("\n── {number}/{}\n{}\n", plain(name), content.trim_end()));
        }
    }
    text.trim_end().to_owned()
}

pub(super) fn history(changes: &[Activation]) -> Table {
    let headings = ["AT", "WHAT", "WHERE", "VERSION", "BEFORE", "BY", "REASON"];
    let mut table = Table::new(headings).shrinkable(&[(4, 0), (5, 0), (6, 16), (3, 20)]);
    for change in changes {
        let what = match change.kind {
            ActivationKind::Activated => "activated",
            ActivationKind::RolledBack => "rolled back",
        };
        let by = change.member_id.as_ref().map_or_else(|| format!("key {}", change.key_id), ToString::to_string);
        table.row([
            seconds(change.at).to_string(),
            what.to_owned(),
            place(change.floor, change.environment.as_deref()),
            named(change.version.as_ref()),
            named(change.from.as_ref()),
            by,
            change.reason.clone().unwrap_or_default(),
        ]);
    }
    table
}

pub(super) fn list(policies: &[PublishedPolicy], in_force: &PoliciesInForce) -> Table {
    let headings = ["VERSION", "ACTIVE", "OF", "RULES", "PUBLISHED"];
    let mut table = Table::new(headings).shrinkable(&[(4, 0), (3, 0), (2, 8), (0, 20)]);
    for policy in policies {
        let version = &policy.summary.version;
        table.row([
            version.to_string(),
            active(version, &in_force.effective, in_force.floor.as_ref()).join(", "),
            optional(policy.account.as_ref()),
            policy.summary.rules.to_string(),
            seconds(policy.published_at).to_string(),
        ]);
    }
    table
}

/// What decides where, and whose choice it is.
pub(super) fn in_force(in_force: &PoliciesInForce) -> Table {
    let PoliciesInForce { effective, own, floor, .. } = in_force;
    let mut table = Table::new(["WHERE", "VERSION", "ACTIVATED BY"]).shrinkable(&[(1, 20)]);
    let by = |is_own: bool| if is_own { "the account" } else { "the operator, for every account" }.to_owned();
    let own_pack = "the evaluators' own (`stage0 status` names it)";
    let (default, default_by) = match &effective.default {
        Some(version) => (version.to_string(), by(own.default.as_ref() == Some(version))),
        None => (own_pack.to_owned(), "the start of the evaluators".to_owned()),
    };
    table.row(["default".to_owned(), default, default_by]);
    for (environment, version) in &effective.environments {
        let is_own = own.environments.get(environment) == Some(version);
        table.row([format!("environment {}", plain(environment)), version.to_string(), by(is_own)]);
    }
    if let Some(floor) = floor {
        table.row(["floor, beside each".to_owned(), floor.to_string(), by(false)]);
    }
    table
}

/// Where a version decides.
fn active(version: &PolicyVersion, policies: &ActivePolicies, floor: Option<&PolicyVersion>) -> Vec<String> {
    let default = policies.default.as_ref().filter(|default| *default == version).map(|_| "default".to_owned());
    let environments = policies.environments.iter().filter(|(_, active)| *active == version);
    let environments = environments.map(|(environment, _)| plain(environment));
    let floor = floor.filter(|floor| *floor == version).map(|_| "floor".to_owned());
    default.into_iter().chain(environments).chain(floor).collect()
}

pub(super) fn place(floor: bool, environment: Option<&str>) -> String {
    match (floor, environment) {
        (true, _) => "floor".to_owned(),
        (false, Some(environment)) => format!("environment {}", plain(environment)),
        (false, None) => "default".to_owned(),
    }
}

/// Without a version of the account's own, what stands behind it decides.
pub(super) fn named(version: Option<&PolicyVersion>) -> String {
    version.map_or_else(|| "none of its own".to_owned(), ToString::to_string)
}

fn by_publisher(policy: &PublishedPolicy) -> String {
    match (&policy.member_id, &policy.key_id) {
        (Some(member), _) => member.to_string(),
        (None, Some(key)) => format!("key {key}"),
        (None, None) => "the operator".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn version(text: &str) -> PolicyVersion {
        PolicyVersion::parse(&format!("{text}@1.0.0+000000000001")).unwrap()
    }

    #[test]
    fn a_version_is_listed_with_every_place_where_it_decides() {
        let policies = ActivePolicies {
            default: Some(version("a")),
            environments: BTreeMap::from([
                ("prod\u{202e}".to_owned(), version("a")),
                ("staging".to_owned(), version("b")),
            ]),
        };
        let places = |name: &str| active(&version(name), &policies, Some(&version("b")));
        assert_eq!(places("a"), ["default", r"prod\u{202e}"]);
        assert_eq!(places("b"), ["staging", "floor"]);
        assert!(places("c").is_empty());
    }
}
