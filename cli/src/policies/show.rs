//! Published policies and their activations, as people read them.

use stage0_contract::{
    Activation, ActivationKind, PoliciesInForce, PolicyVersion, PublishedPolicy, ReplaySummary, ShownPolicy,
};

use super::candidates;
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

/// A change, and where the key was found that made it; `None` where the key of this call did not make it.
pub(super) fn activation(activation: &Activation, key_origin: Option<&str>) -> String {
    let Activation { account, environment, version, from, reason, .. } = activation;
    let mut rows = match &activation.candidate {
        Some(candidate) => candidates::change(activation, candidate),
        None => vec![
            ("version", named(version.as_ref())),
            ("before", named(from.as_ref())),
            ("account", account.as_ref().map_or_else(|| "every account".to_owned(), ToString::to_string)),
            ("where", place(activation.floor, environment.as_deref())),
        ],
    };
    if matches!(activation.kind, ActivationKind::Activated | ActivationKind::CanaryStarted) {
        let replay = activation.replayed.as_ref();
        rows.push(("accepted", accepted(activation.accepted_flips, replay)));
        rows.push(("replayed", replayed(replay, account.is_some())));
    }
    let origin = key_origin.map(|origin| format!(" ({})", plain(origin))).unwrap_or_default();
    rows.push(("by", format!("{}{origin}", by(activation))));
    rows.push(("reason", reason.as_deref().map_or_else(|| "-".to_owned(), plain)));
    fields(rows)
}

/// What was looser and accepted, and which part of it recorded decisions are.
pub(super) fn accepted(flips: Option<u64>, replay: Option<&ReplaySummary>) -> String {
    match (flips.unwrap_or_default(), replay.map(|replay| replay.flips)) {
        (0, _) => "nothing: nothing is looser".to_owned(),
        (flips, None) => format!("{flips} looser, all of cases and entries"),
        (flips, Some(of_replay)) => {
            let compared = flips.saturating_sub(of_replay);
            format!("{flips} looser: {compared} of cases and entries, {of_replay} of recorded decisions")
        }
    }
}

/// What the replay before an activation found; without one, why there was none.
pub(super) fn replayed(replay: Option<&ReplaySummary>, is_of_an_account: bool) -> String {
    match replay {
        Some(ReplaySummary { decisions: 0, .. }) => {
            "nothing: no refused decision was recorded there in seven days".to_owned()
        }
        Some(ReplaySummary { decisions, replayed, flips, has_older, .. }) => {
            let newest = if *has_older { "the newest " } else { "" };
            format!("{replayed} of {newest}{decisions} refused decisions, {flips} of them looser")
        }
        None if is_of_an_account => {
            "nothing: the account's decisions were not recorded with their facts (`record_facts`)".to_owned()
        }
        None => "nothing: it is for every account".to_owned(),
    }
}

fn by(change: &Activation) -> String {
    match (&change.returned_for, &change.member_id) {
        (Some(_), _) => "its own terms".to_owned(),
        (None, Some(member)) => format!("{member} with key {}", change.key_id),
        (None, None) => format!("key {}", change.key_id),
    }
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

/// What a change did, in words.
pub(super) fn what(kind: ActivationKind) -> &'static str {
    match kind {
        ActivationKind::Activated => "activated",
        ActivationKind::RolledBack => "rolled back",
        ActivationKind::ShadowStarted => "shadow started",
        ActivationKind::ShadowEnded => "shadow ended",
        ActivationKind::CanaryStarted => "canary started",
        ActivationKind::CanaryEnded => "canary ended",
    }
}

pub(super) fn history(changes: &[Activation]) -> Table {
    let headings = ["AT", "WHAT", "WHERE", "VERSION", "BEFORE", "ACCEPTED", "REPLAYED", "BY", "REASON"];
    let mut table = Table::new(headings).shrinkable(&[(4, 0), (7, 0), (6, 0), (8, 16), (3, 20)]);
    for change in changes {
        let by = match &change.member_id {
            Some(member) if change.returned_for.is_none() => member.to_string(),
            Some(_) | None => by(change),
        };
        let share = change.candidate.as_ref().map(|candidate| format!(", {}%", candidate.percent));
        table.row([
            seconds(change.at).to_string(),
            format!("{}{}", what(change.kind), share.unwrap_or_default()),
            place(change.floor, change.environment.as_deref()),
            named(change.version.as_ref()),
            named(change.from.as_ref()),
            change.accepted_flips.map(looser).unwrap_or_default(),
            change.replayed.as_ref().map(replayed_briefly).unwrap_or_default(),
            by,
            why(change),
        ]);
    }
    table
}

/// For a cell of a table.
pub(super) fn looser(flips: u64) -> String {
    format!("{flips} looser")
}

/// For a cell of a table.
pub(super) fn replayed_briefly(ReplaySummary { decisions, replayed, flips, .. }: &ReplaySummary) -> String {
    format!("{replayed} of {decisions}, {flips} looser")
}

/// The reason; a canary that ended by itself has none.
fn why(change: &Activation) -> String {
    match &change.returned_for {
        Some(counts) if candidates::is_uncounted(change) => {
            format!("what it decided was not counted; {} checks were", counts.checks)
        }
        Some(counts) => {
            format!("of {} checks {} differed, {} failed", counts.checks, counts.disagreements, counts.errors)
        }
        None => change.reason.clone().unwrap_or_default(),
    }
}

pub(super) fn list(policies: &[PublishedPolicy], in_force: &PoliciesInForce) -> Table {
    let headings = ["VERSION", "ACTIVE", "OF", "RULES", "PUBLISHED"];
    let mut table = Table::new(headings).shrinkable(&[(4, 0), (3, 0), (2, 8), (0, 20)]);
    for policy in policies {
        let version = &policy.summary.version;
        table.row([
            version.to_string(),
            active(version, in_force).join(", "),
            optional(policy.account.as_ref()),
            policy.summary.rules.to_string(),
            seconds(policy.published_at).to_string(),
        ]);
    }
    table
}

/// What decides where and is tried there, and whose choice it is.
pub(super) fn in_force(in_force: &PoliciesInForce) -> Table {
    let PoliciesInForce { effective, own, floor, candidates: tried, .. } = in_force;
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
    for one in tried {
        let at = place(false, one.environment.as_deref());
        table.row([format!("{at}: {}", candidates::brief(one)), one.version.to_string(), by(true)]);
    }
    table
}

/// Where a version decides, and where it is tried.
fn active(version: &PolicyVersion, in_force: &PoliciesInForce) -> Vec<String> {
    let PoliciesInForce { effective: policies, floor, candidates, .. } = in_force;
    let default = policies.default.as_ref().filter(|default| *default == version).map(|_| "default".to_owned());
    let environments = policies.environments.iter().filter(|(_, active)| *active == version);
    let environments = environments.map(|(environment, _)| plain(environment));
    let floor = floor.as_ref().filter(|floor| *floor == version).map(|_| "floor".to_owned());
    let tried = candidates.iter().filter(|candidate| candidate.version == *version).map(candidates::in_list);
    default.into_iter().chain(environments).chain(floor).chain(tried).collect()
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

    use stage0_contract::ActivePolicies;

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
        let answer = include_str!("../../../contract/fixtures/policies_in_force_candidates.json");
        let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
        let fixture: PoliciesInForce = serde_json::from_value(answer["done"].clone()).unwrap();
        let tried = |name: &str, mode, percent, environment: Option<&str>| stage0_contract::PolicyCandidate {
            version: version(name),
            mode,
            percent,
            environment: environment.map(str::to_owned),
            ..fixture.candidates[0].clone()
        };
        use stage0_contract::CandidateMode::{Canary, Shadow};
        let in_force = PoliciesInForce {
            effective: policies,
            floor: Some(version("b")),
            candidates: vec![
                tried("d", Canary, 20, None),
                tried("d", Shadow, 100, Some("staging")),
                tried("b", Shadow, 5, Some("prod")),
            ],
            ..fixture.clone()
        };
        let places = |name: &str| active(&version(name), &in_force);
        assert_eq!(places("a"), ["default", r"prod\u{202e}"]);
        assert_eq!(places("b"), ["staging", "floor", "shadow 5% in prod"]);
        assert_eq!(places("d"), ["canary 20%", "shadow in staging"]);
        assert!(places("c").is_empty());
    }

    #[test]
    fn what_is_tried_stands_below_what_decides() {
        let answer = include_str!("../../../contract/fixtures/policies_in_force_candidates.json");
        let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
        let told = in_force(&serde_json::from_value(answer["done"].clone()).unwrap()).to_string();
        let last = told.lines().last().unwrap();
        assert!(last.starts_with("environment staging: canary, decides 10% of the runs  acme@1.2.0+"), "{told}");
        assert_eq!(told.lines().count(), 5, "default, environment, floor and canary: {told}");
    }

    #[test]
    fn the_history_says_that_a_canary_ended_by_itself_and_for_what() {
        let change = |text| serde_json::from_str::<Activation>(text).unwrap();
        let told = history(&[
            change(include_str!("../../../contract/fixtures/activation_returned.json")),
            change(include_str!("../../../contract/fixtures/activation_canary.json")),
            change(include_str!("../../../contract/fixtures/activation_shadow.json")),
        ])
        .to_string();
        let lines: Vec<&str> = told.lines().collect();
        assert!(
            lines[1].contains("canary ended, 10%") && lines[1].contains("of 240 checks 6 differed, 0 failed"),
            "{told}"
        );
        assert!(lines[2].contains("canary started, 10%") && lines[2].contains("try the limit of refunds"), "{told}");
        assert!(lines[2].contains("3 looser  940 of 1000, 3 looser  mem_1"), "{told}");
        assert!(lines[3].contains("shadow started, 20%") && lines[3].ends_with('-'), "{told}");
    }

    #[test]
    fn a_change_says_what_was_accepted_what_was_replayed_and_by_which_key() {
        let fixture = |text| serde_json::from_str::<Activation>(text).unwrap();
        let canary = fixture(include_str!("../../../contract/fixtures/activation_canary.json"));
        let told = activation(&canary, Some("ada.key"));
        for line in [
            "accepted  3 looser: 0 of cases and entries, 3 of recorded decisions",
            "replayed  940 of 1000 refused decisions, 3 of them looser",
            "by        mem_1 with key key_2 (ada.key)",
        ] {
            assert!(told.lines().any(|one| one == line), "`{line}` in {told}");
        }
        let plain = fixture(include_str!("../../../contract/fixtures/activation.json"));
        let told = activation(&plain, None);
        assert!(
            told.contains("3 looser, all of cases and entries") && told.contains("by        mem_1 with key key_2\n")
        );
        assert!(
            told.contains("replayed  nothing: the account's decisions were not recorded with their facts"),
            "{told}"
        );
        let of_all = Activation { account: None, accepted_flips: None, ..plain };
        let told = activation(&of_all, None);
        assert!(told.contains("nothing is looser") && told.contains("nothing: it is for every account"), "{told}");
        let none = canary.replayed.map(|replay| ReplaySummary { decisions: 0, replayed: 0, flips: 0, ..replay });
        assert!(replayed(none.as_ref(), true).contains("no refused decision was recorded there"));
        let newest = canary.replayed.map(|replay| ReplaySummary { has_older: true, ..replay });
        assert!(replayed(newest.as_ref(), true).starts_with("940 of the newest 1000 "));
        let ended = fixture(include_str!("../../../contract/fixtures/activation_returned.json"));
        let uncounted = stage0_contract::CandidateCounts { not_judged: 90, ..Default::default() };
        let uncounted = Activation { returned_for: Some(uncounted), ..ended.clone() };
        assert_eq!(why(&uncounted), "what it decided was not counted; 0 checks were");
        let told = activation(&ended, None);
        assert!(told.contains("by               its own terms") && !told.contains("accepted"), "{told}");
        let back = fixture(include_str!("../../../contract/fixtures/activation_rolled_back.json"));
        assert!(!activation(&back, None).contains("replayed"), "a rollback is not judged");
    }
}
