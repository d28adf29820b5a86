//! Wider grants: what a workload may do without a new approval, for at most 8 hours.
//!
//! A grant lets actions run that no person has seen, so making one and joining one asks first; revoking does not.

use anyhow::bail;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{Grant, Grants, Vote};

use crate::args::approvals::{GrantArgs, GrantReasonArgs};
use crate::client::{Connection, block_on, parse};
use crate::confirm;
use crate::exit::Exit;
use crate::keys::set;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields, optional, seconds};

const GRANTS: [&str; 2] = ["v1", "grants"];
const NEEDS_YES: &str = "--yes is required because standard input is not a terminal";

pub(super) fn create(args: &GrantArgs, settings: &ClientSettings) -> anyhow::Result<Exit> {
    confirm::require(args.yes, NEEDS_YES)?;
    let until = args.until.at(Timestamp::now());
    let body = body_of(args, until);
    let client = super::connect(settings)?;
    if !args.yes {
        let covered = covered(args.run.as_deref(), args.tool.as_deref(), &args.effects, args.environment.as_deref());
        let question = format!(
            "Until {until} the workload of key {} needs no new approval for {covered}.\nNo person sees these actions \
             before they run. Grant it?",
            args.key
        );
        if !confirm::agrees(question)? {
            out::stderr_line("nothing was granted");
            return Ok(Exit::Failed);
        }
    }
    report(&client, &GRANTS, &body, args.json)
}

fn body_of(args: &GrantArgs, until: Timestamp) -> Value {
    let mut body = json!({"key_id": args.key, "until": until, "reason": args.reason});
    set(&mut body, "run_id", args.run.as_deref());
    set(&mut body, "tool", args.tool.as_deref());
    set(&mut body, "effects", (!args.effects.is_empty()).then(|| json!(args.effects)));
    set(&mut body, "environment", args.environment.as_deref());
    body
}

/// All that a grant is limited to, in words.
fn covered(run: Option<&str>, tool: Option<&str>, effects: &[String], environment: Option<&str>) -> String {
    let named = |what: &str, value: Option<&str>| value.map(|value| format!("{what} {}", plain(value)));
    let effects = (!effects.is_empty()).then(|| plain(&effects.join(", ")));
    let parts = [
        named("run", run),
        named("tool", tool),
        named("effects", effects.as_deref()),
        named("environment", environment),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

pub(super) fn approve(args: &GrantReasonArgs, yes: bool, settings: &ClientSettings) -> anyhow::Result<Exit> {
    confirm::require(yes, NEEDS_YES)?;
    let client = super::connect(settings)?;
    if !yes {
        let Some(grant) = all(&client)?.items.into_iter().find(|grant| grant.id == args.id) else {
            bail!("there is no grant {} that has not ended: `stage0 approvals grants` lists them", args.id);
        };
        let question = format!("{}\n\nNo person sees these actions before they run. Approve it?", for_people(&grant));
        if !confirm::agrees(question)? {
            out::stderr_line("nothing was approved");
            return Ok(Exit::Failed);
        }
    }
    let [v1, grants] = GRANTS;
    report(&client, &[v1, grants, args.id.as_str(), "approve"], &json!({"reason": args.reason}), args.json)
}

pub(super) fn revoke(args: &GrantReasonArgs, client: &Connection) -> anyhow::Result<()> {
    let [v1, grants] = GRANTS;
    let path = [v1, grants, args.id.as_str(), "revoke"];
    report(client, &path, &json!({"reason": args.reason}), args.json).map(|_| ())
}

fn report(client: &Connection, path: &[&str], body: &Value, as_json: bool) -> anyhow::Result<Exit> {
    let answer: Value = block_on(client.call(Method::POST, path, &[], Some(body)))?;
    if as_json {
        out::json(&answer)?;
    } else {
        out::line(for_people(&parse(&answer)?))?;
    }
    Ok(Exit::Done)
}

fn all(client: &Connection) -> anyhow::Result<Grants> {
    Ok(block_on(client.call(Method::GET, &GRANTS, &[], None))?)
}

pub(super) fn list(client: &Connection, as_json: bool) -> anyhow::Result<()> {
    let answer: Value = block_on(client.call(Method::GET, &GRANTS, &[], None))?;
    if as_json {
        return out::json(&answer);
    }
    let grants: Grants = parse(&answer)?;
    if grants.items.is_empty() {
        out::stderr_line("no wider grant holds");
    }
    let headings = ["ID", "WORKLOAD", "COVERS", "UNTIL", "APPROVED BY", "USES", "REVOKED"];
    let mut table = Table::new(headings).shrinkable(&[(6, 0), (5, 0), (4, 0), (2, 16)]);
    for grant in &grants.items {
        table.row([
            grant.id.to_string(),
            grant.workload.to_string(),
            covered_by(grant),
            seconds(grant.until).to_string(),
            people(&grant.votes),
            grant.uses.to_string(),
            optional(grant.revoked_at.map(seconds).as_ref()),
        ]);
    }
    Ok(table.print()?)
}

fn covered_by(grant: &Grant) -> String {
    let effects = grant.effects.as_deref().unwrap_or_default();
    covered(grant.run_id.as_deref(), grant.tool.as_deref(), effects, grant.environment.as_deref())
}

fn people(votes: &[Vote]) -> String {
    let approving = votes.iter().filter(|vote| vote.approve);
    let names = approving.map(|vote| vote.member_id.as_ref().map_or("another system", |member| member.as_str()));
    names.collect::<Vec<_>>().join(", ")
}

fn for_people(grant: &Grant) -> String {
    fields([
        ("grant", grant.id.to_string()),
        ("workload", grant.workload.to_string()),
        ("covers", covered_by(grant)),
        ("until", seconds(grant.until).to_string()),
        ("approved by", people(&grant.votes)),
        ("uses", grant.uses.to_string()),
        ("revoked", optional(grant.revoked_at.map(seconds).as_ref())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_shown_with_all_that_limits_it_and_escaped() {
        let fixture = include_str!("../../../contract/fixtures/grant.json");
        let mut grant: Grant = serde_json::from_str(fixture).unwrap();
        (grant.tool, grant.effects) = (Some("psql\u{202e}".to_owned()), Some(vec!["write".to_owned()]));
        let shown = for_people(&grant);
        assert!(shown.contains(r"covers       run nightly-7, tool psql\u{202e}, effects write"), "{shown}");
        assert!(shown.contains("approved by  mem_1") && !shown.contains('\u{202e}'), "{shown:?}");
    }
}
