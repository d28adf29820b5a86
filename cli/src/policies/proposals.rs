//! `stage0 policy proposals`, `approve`, `deny` and `cancel`: activations that wait for a second member.

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{Activation, ActivationProposed, Page, PolicyActor, PolicyProposal, ProposalId};

use super::{PAGE_SIZE, POLICIES, connect, show};
use crate::args::policies::proposals::{DecideArgs, DenyArgs, ProposalsArgs};
use crate::client::{Client, Limit, Query, parse};
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
pub(super) fn waits(ActivationProposed { proposal }: &ActivationProposed) -> String {
    let PolicyProposal { id, expires_at, .. } = proposal;
    format!(
        "proposed: nothing is activated until a second member approves it, before {}\n{}\n\n\
         another member types: stage0 policy approve {id}",
        seconds(*expires_at),
        one(proposal)
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
    Ok(out::line(format!("approved, and active\n{}", show::activation(&activation)))?)
}

pub(super) async fn deny(args: &DenyArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings, settings.timeout)?;
    ended(&decide(&client, &args.id, "deny", Some(&args.reason)).await?, args.json)
}

pub(super) async fn cancel(args: &DecideArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings, settings.timeout)?;
    ended(&decide(&client, &args.id, "cancel", args.reason.as_deref()).await?, args.json)
}

async fn decide(client: &Client, id: &ProposalId, what: &str, reason: Option<&str>) -> anyhow::Result<Value> {
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
    let PolicyProposal { id, version, environment, from, reason, proposed_by, .. } = proposal;
    fields([
        ("proposal", id.to_string()),
        ("version", version.to_string()),
        ("before", show::named(from.as_ref())),
        ("where", show::place(false, environment.as_deref())),
        ("proposed by", by(proposed_by)),
        ("reason", reason.as_deref().map_or_else(|| "-".to_owned(), plain)),
    ])
}

fn table(proposals: &[PolicyProposal]) -> Table {
    let headings = ["ID", "STATUS", "VERSION", "WHERE", "PROPOSED", "BY", "REASON"];
    let mut table = Table::new(headings).shrinkable(&[(4, 0), (5, 0), (6, 16), (2, 20)]);
    for proposal in proposals {
        table.row([
            proposal.id.to_string(),
            proposal.status.as_str().to_owned(),
            proposal.version.to_string(),
            show::place(false, proposal.environment.as_deref()),
            seconds(proposal.proposed_at).to_string(),
            by(&proposal.proposed_by),
            proposal.reason.clone().unwrap_or_default(),
        ]);
    }
    table
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

    #[test]
    fn a_proposal_is_told_from_an_activation_that_came_from_one() {
        let proposed = fixture(include_str!("../../../contract/fixtures/activation_proposed.json"));
        let waiting = of_answer(&proposed).unwrap();
        let told = waits(&waiting);
        assert!(told.contains("nothing is activated until a second member approves it"), "{told}");
        assert!(told.ends_with("stage0 policy approve prop_1"), "{told}");
        for made in [
            include_str!("../../../contract/fixtures/activation_approved.json"),
            include_str!("../../../contract/fixtures/activation.json"),
        ] {
            assert_eq!(of_answer(&fixture(made)), None);
        }
    }
}
