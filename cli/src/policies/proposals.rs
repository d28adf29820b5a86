//! `stage0 policy proposals`, `approve`, `deny` and `cancel`: activations that wait for a second member.

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{
    Activation, ActivationKind, ActivationProposed, CanaryTerms, Page, PolicyActor, PolicyProposal, ProposalId,
    ReturnAt,
};

use super::candidates::returns;
use super::next::other_key;
use super::{PAGE_SIZE, POLICIES, connect, show};
use crate::args::policies::proposals::{DecideArgs, DenyArgs, ProposalsArgs};
use crate::client::{Connection, Limit, Query, parse};
use crate::keys::set;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields, seconds};

/// The proposal in the answer to an activation; none: it is active.
pub(super) fn of_answer(answer: &Value) -> Option<ActivationProposed> {
    // An activation, too, names the proposal that it came from.
    if answer.get("sequence").is_some() { None } else { parse(answer).ok() }
}

/// What a person does about a proposal that was just made.
pub(super) fn waits(ActivationProposed { proposal }: &ActivationProposed, settings: &ClientSettings) -> String {
    let PolicyProposal { id, expires_at, .. } = proposal;
    format!(
        "proposed: nothing is activated until a second member approves it, before {}\n{}\n\n\
         another member types, with a key of their own: {}",
        seconds(*expires_at),
        one(proposal),
        other_key(&format!("stage0 policy approve {id}"), settings)
    )
}

pub(super) async fn list(args: &ProposalsArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings, settings.timeout)?;
    let [v1, policies] = POLICIES;
    let account = args.account.as_ref().or(client.account());
    let query = Query::default().with("account", account).with("status", args.status.map(|status| status.as_str()));
    let limit = Limit { items: args.limit, per_page: PAGE_SIZE };
    let proposals: Page<Value> = client.list(&[v1, policies, "proposals"], &query, Some(limit)).await?;
    if args.json {
        return out::json(&proposals);
    }
    if proposals.items.is_empty() {
        out::stderr_line("no activation was proposed here");
    }
    let proposals = proposals.items.iter().map(parse::<PolicyProposal>).collect::<Result<Vec<_>, _>>()?;
    Ok(table(&proposals).print()?)
}

pub(super) async fn approve(args: &DecideArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings, settings.timeout)?;
    let answer = decide(&client, &args.id, "approve", args.reason.as_deref()).await?;
    if args.json {
        return out::json(&answer);
    }
    let activation: Activation = parse(&answer)?;
    Ok(out::line(format!("{}\n{}", approved(&activation), show::activation(&activation, client.key_origin())))?)
}

fn approved(activation: &Activation) -> &'static str {
    let is_canary = activation.kind == ActivationKind::CanaryStarted;
    if is_canary { "approved, and begun as a canary" } else { "approved, and active" }
}

pub(super) async fn deny(args: &DenyArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings, settings.timeout)?;
    ended(&decide(&client, &args.id, "deny", Some(&args.reason)).await?, args.json)
}

pub(super) async fn cancel(args: &DecideArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings, settings.timeout)?;
    ended(&decide(&client, &args.id, "cancel", args.reason.as_deref()).await?, args.json)
}

async fn decide(client: &Connection, id: &ProposalId, what: &str, reason: Option<&str>) -> anyhow::Result<Value> {
    let [v1, policies] = POLICIES;
    let mut body = json!({});
    set(&mut body, "reason", reason);
    let path = [v1, policies, "proposals", id.as_str(), what];
    Ok(client.call(Method::POST, &path, &[], Some(&body)).await?)
}

fn ended(answer: &Value, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return out::json(answer);
    }
    let proposal: PolicyProposal = parse(answer)?;
    Ok(out::line(format!("{}\n{}", proposal.status.as_str(), one(&proposal)))?)
}

fn one(proposal: &PolicyProposal) -> String {
    let PolicyProposal { id, version, environment, from, reason, proposed_by, canary, replayed, .. } = proposal;
    let is_canary = canary.is_some();
    let mut rows = vec![
        ("proposal", id.to_string()),
        ("version", version.to_string()),
        (if is_canary { "active" } else { "before" }, show::named(from.as_ref())),
        ("where", show::place(false, environment.as_deref())),
        ("share", share(canary.as_ref())),
    ];
    rows.extend(canary.as_ref().map(|terms| ("returns", returns(&terms.return_at))));
    rows.extend([
        ("accepted", show::accepted(proposal.accepted_flips, replayed.as_ref())),
        ("replayed", show::replayed(replayed.as_ref(), true)),
        ("proposed by", by(proposed_by)),
        ("reason", reason.as_deref().map_or_else(|| "-".to_owned(), plain)),
    ]);
    fields(rows)
}

fn share(canary: Option<&CanaryTerms>) -> String {
    canary.map_or_else(
        || "decides all runs".to_owned(),
        |terms| format!("a canary: decides {}% of the runs", terms.percent),
    )
}

fn table(proposals: &[PolicyProposal]) -> Table {
    let headings =
        ["ID", "STATUS", "VERSION", "WHERE", "SHARE", "RETURNS AT", "ACCEPTED", "REPLAYED", "PROPOSED", "BY", "REASON"];
    let mut table = Table::new(headings).shrinkable(&[(8, 0), (9, 0), (5, 0), (7, 0), (10, 16), (2, 20)]);
    for proposal in proposals {
        table.row([
            proposal.id.to_string(),
            proposal.status.as_str().to_owned(),
            proposal.version.to_string(),
            show::place(false, proposal.environment.as_deref()),
            proposal.canary.map_or_else(|| "all runs".to_owned(), |terms| format!("canary {}%", terms.percent)),
            proposal.canary.map(|terms| returns_at(&terms.return_at)).unwrap_or_default(),
            proposal.accepted_flips.map(show::looser).unwrap_or_default(),
            proposal.replayed.as_ref().map(show::replayed_briefly).unwrap_or_default(),
            seconds(proposal.proposed_at).to_string(),
            by(&proposal.proposed_by),
            proposal.reason.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// For a cell of a table.
fn returns_at(ReturnAt { disagreement_percent, error_percent, min_checks }: &ReturnAt) -> String {
    format!("over {disagreement_percent}% differ, over {error_percent}% fail, of {min_checks} checks or more")
}

fn by(PolicyActor { key_id, member_id }: &PolicyActor) -> String {
    member_id.as_ref().map_or_else(|| format!("key {key_id}"), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn settings() -> ClientSettings {
        ClientSettings {
            url: None,
            ca: None,
            key_file: Some("ada.key".into()),
            api_key: None,
            data_dir: ".stage0".into(),
            data_dir_is_named: false,
            timeout: std::time::Duration::from_secs(5),
            timeout_is_named: false,
        }
    }

    #[test]
    fn a_proposed_canary_is_told_from_a_whole_activation() {
        let proposed = fixture(include_str!("../../../contract/fixtures/activation_proposed.json"));
        let whole = of_answer(&proposed).unwrap().proposal;
        let told = one(&whole);
        assert!(told.contains("share        decides all runs") && !told.contains("returns"), "{told}");
        assert!(told.contains("3 looser, all of cases and entries"), "{told}");
        let begun: Activation =
            parse(&fixture(include_str!("../../../contract/fixtures/activation_canary.json"))).unwrap();
        let canary = PolicyProposal {
            canary: begun.candidate.as_ref().and_then(|candidate| {
                Some(CanaryTerms { percent: candidate.percent, return_at: candidate.return_at? })
            }),
            replayed: begun.replayed,
            ..whole.clone()
        };
        let told = one(&canary);
        for part in [
            "a canary: decides 10% of the runs",
            "when more than 2% of its verdicts differ, or a rule fails in one check",
            "3 looser: 0 of cases and entries, 3 of recorded decisions",
            "940 of 1000 refused decisions, 3 of them looser",
        ] {
            assert!(told.contains(part), "`{part}` in {told}");
        }
        let listed = table(&[canary, whole]).to_string();
        let lines: Vec<&str> = listed.lines().collect();
        let terms = "canary 10%  over 2% differ, over 0% fail, of 50 checks or more  3 looser  940 of 1000, 3 looser";
        assert!(lines[1].contains(terms), "{listed}");
        assert!(lines[2].contains("all runs    -"), "{listed}");
        assert_eq!(approved(&begun), "approved, and begun as a canary");
        let whole = parse(&fixture(include_str!("../../../contract/fixtures/activation_approved.json"))).unwrap();
        assert_eq!(approved(&whole), "approved, and active");
    }

    #[test]
    fn a_proposal_is_told_from_an_activation_that_came_from_one() {
        let proposed = fixture(include_str!("../../../contract/fixtures/activation_proposed.json"));
        let waiting = of_answer(&proposed).unwrap();
        let told = waits(&waiting, &settings());
        assert!(told.contains("nothing is activated until a second member approves it"), "{told}");
        assert!(told.ends_with("with a key of their own: stage0 policy approve prop_1 --key-file FILE"), "{told}");
        for made in [
            include_str!("../../../contract/fixtures/activation_approved.json"),
            include_str!("../../../contract/fixtures/activation.json"),
        ] {
            assert_eq!(of_answer(&fixture(made)), None);
        }
    }
}
