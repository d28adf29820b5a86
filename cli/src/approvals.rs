//! `stage0 approvals`: the actions that wait for people, and what people decide about them.
//!
//! INVARIANT: `approve` and `deny` send the digest of what was shown, or, without a person at a terminal, the one that
//! the caller names. They never read a digest and send it unseen.

mod action;
mod decide;
mod grants;
mod show;
mod watch;

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{Approval, ApprovalHistory, ApprovalId, ExternalApproval, Page};

use crate::args::approvals::{ApprovalArgs, ApprovalsCommand};
use crate::client::{Connection, ConnectionError, Credential, Limit, Query, block_on, parse, target};
use crate::confirm;
use crate::exit::Exit;
use crate::keys::set;
use crate::out::{self, Painted, Terminal, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, optional, seconds};

use decide::Answer;

pub(crate) use show::length;

const APPROVALS: [&str; 2] = ["v1", "approvals"];
const PAGE_SIZE: u32 = 100;
/// Lists have no actions: those of so many open approvals, the newest, are read one by one.
const MAX_ACTIONS: usize = 20;
/// Of the tools and of the goal. `show` has all of it.
const MAX_ACTION_CHARS: usize = 60;
/// The id is never cut, because every other command needs it.
const SHRINKABLE: [(usize, usize); 12] =
    [(9, 30), (6, 0), (5, 0), (3, 12), (2, 8), (8, 12), (7, 11), (3, 0), (2, 0), (9, 16), (7, 0), (8, 0)];

pub(crate) fn run(command: &ApprovalsCommand, settings: &ClientSettings) -> anyhow::Result<Exit> {
    match command {
        // These ask a person, and refuse before anything is sent if they cannot.
        ApprovalsCommand::Approve(args) => return decide::decide(args, Answer::Approve, settings),
        ApprovalsCommand::Deny(args) => return decide::decide(args, Answer::Deny, settings),
        ApprovalsCommand::Reopen { approval, reason, yes } => return reopen(approval, reason, *yes, settings),
        ApprovalsCommand::Grant(args) => return grants::create(args, settings),
        ApprovalsCommand::ApproveGrant { grant, yes } => return grants::approve(grant, *yes, settings),
        ApprovalsCommand::List { status, group, limit, json } => {
            let query = Query::default().with("status", status.map(|status| status.as_str()));
            list(&connect(settings)?, &query.with("group", group.as_ref()), *limit, *json)?;
        }
        ApprovalsCommand::Show { approval, wait } => show(approval, *wait, settings)?,
        ApprovalsCommand::Watch { group, json } => watch::watch(settings, group.as_deref(), *json)?,
        ApprovalsCommand::Cancel { approval, reason } => {
            let mut body = json!({});
            set(&mut body, "reason", reason.as_deref());
            change(&connect(settings)?, approval, "cancel", &body)?;
        }
        ApprovalsCommand::History(ApprovalArgs { id, json }) => history(&connect(settings)?, id, *json)?,
        ApprovalsCommand::Outcome { id, status, json } => {
            let args = ApprovalArgs { id: id.clone(), json: *json };
            change(&connect(settings)?, &args, "outcome", &json!({"status": status}))?;
        }
        ApprovalsCommand::Register { approval, digest, approved_by, evidence, reason } => {
            let external = ExternalApproval { approved_by: approved_by.clone(), evidence: evidence.clone() };
            let mut body = json!(external);
            set(&mut body, "action_digest", Some(digest.as_str()));
            set(&mut body, "reason", reason.as_deref());
            change(&connect(settings)?, approval, "register", &body)?;
        }
        ApprovalsCommand::Grants { json } => grants::list(&connect(settings)?, *json)?,
        ApprovalsCommand::Revoke(args) => grants::revoke(args, &connect(settings)?)?,
    }
    Ok(Exit::Done)
}

fn connect(settings: &ClientSettings) -> anyhow::Result<Connection> {
    Ok(Connection::new(target(settings, Credential::Account)?, settings.timeout)?)
}

fn path<'a>(id: &'a ApprovalId, more: &[&'a str]) -> Vec<&'a str> {
    APPROVALS.into_iter().chain([id.as_str()]).chain(more.iter().copied()).collect()
}

fn fetch(client: &Connection, id: &ApprovalId) -> anyhow::Result<Approval> {
    Ok(block_on(client.call(Method::GET, &path(id, &[]), &[], None))?)
}

fn show(
    ApprovalArgs { id, json }: &ApprovalArgs,
    wait: Option<Duration>,
    settings: &ClientSettings,
) -> anyhow::Result<()> {
    // The answer takes as long as it may wait, and then as long as any other.
    let timeout = settings.timeout + wait.unwrap_or_default();
    let client = Connection::new(target(settings, Credential::Account)?, timeout)?;
    let query = Query::default().with("wait", wait.map(|wait| format!("{}s", wait.as_secs())));
    let answer: Value = block_on(client.call(Method::GET, &path(id, &[]), &query.pairs(), None))?;
    if *json {
        return out::json(&answer);
    }
    Ok(out::painted(&show::for_people(&parse(&answer)?, Terminal::of_stdout())).map(|_| ())?)
}

/// Sends a change and shows where the approval stands then.
fn change(client: &Connection, args: &ApprovalArgs, call: &str, body: &Value) -> anyhow::Result<()> {
    let answer: Value = block_on(client.call(Method::POST, &path(&args.id, &[call]), &[], Some(body)))?;
    report(&answer, args.json)
}

fn report(answer: &Value, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return out::json(answer);
    }
    let mut text = Painted::new(Terminal::of_stdout().colours);
    show::summary(&parse(answer)?, &mut text);
    Ok(out::painted(&text).map(|_| ())?)
}

fn list(client: &Connection, query: &Query, limit: u32, as_json: bool) -> anyhow::Result<()> {
    let limits = Limit { items: limit, per_page: PAGE_SIZE };
    let found: Page<Value> = block_on(client.list(&APPROVALS, query, Some(limits)))?;
    if as_json {
        return out::json(&found);
    }
    if found.items.is_empty() {
        out::stderr_line("no approvals found");
    }
    let headings = ["ID", "STATUS", "ENVIRONMENT", "CODES", "APPROVED", "GROUPS", "WORKLOAD", "UNTIL", "TOOLS", "GOAL"];
    let mut table = Table::new(headings).shrinkable(&SHRINKABLE).coloured(1);
    let mut approvals = found.items.iter().map(parse).collect::<Result<Vec<Approval>, _>>()?;
    let unread = block_on(add_actions(client, &mut approvals));
    for approval in &approvals {
        let [id, status, environment, codes, approved, groups, workload, until] = cells(approval);
        let [tools, goal] = action_cells(approval);
        table.row([id, status, environment, codes, approved, groups, workload, until, tools, goal]);
    }
    table.print()?;
    if let Err(error) = unread {
        out::stderr_line(format!("tools and goals are not complete: {error}"));
    }
    if found.next_cursor.is_some() {
        out::stderr_line(format!("these are the newest {limit}; there are more (--limit)"));
    }
    Ok(())
}

fn cells(approval: &Approval) -> [String; 8] {
    let mut codes: Vec<&str> = approval.issues.iter().map(|issue| issue.code.as_str()).collect();
    codes.dedup();
    [
        approval.id.to_string(),
        approval.status.as_str().to_owned(),
        plain(&approval.environment),
        codes.join(","),
        format!("{} of {}", show::approvals_given(approval), approval.terms.quorum()),
        plain(&approval.terms.groups().join(",")),
        approval.workload.to_string(),
        seconds(approval.usable_until.unwrap_or(approval.expires_at)).to_string(),
    ]
}

/// Adds what is to be done to those that have not ended. The action stays unknown where this key may not see it.
async fn add_actions(client: &Connection, approvals: &mut [Approval]) -> Result<(), ConnectionError> {
    let open = approvals.iter_mut().filter(|approval| !approval.status.is_final() && approval.action.is_none());
    for approval in open.take(MAX_ACTIONS) {
        match client.call::<Approval>(Method::GET, &path(&approval.id, &[]), &[], None).await {
            Ok(whole) => approval.action = whole.action,
            // It has been deleted meanwhile.
            Err(ConnectionError::Refused { status: 404, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The tools and the goal as far as they tell approvals apart, each on one line.
fn action_cells(approval: &Approval) -> [String; 2] {
    let member = |name: &str| approval.action.as_ref().and_then(|action| action.get(name));
    let tools = member("tools").and_then(Value::as_array);
    let tools: Vec<&str> = tools.into_iter().flatten().filter_map(Value::as_str).collect();
    let goal = member("goal").and_then(Value::as_str).unwrap_or_default();
    [shortened(&tools.join(",")), shortened(goal)]
}

/// The beginning of foreign text, in which no run of spaces can look like the next column.
fn shortened(text: &str) -> String {
    let text = plain(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    let mut shown: String = text.chars().take(MAX_ACTION_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

fn history(client: &Connection, id: &ApprovalId, as_json: bool) -> anyhow::Result<()> {
    let answer: Value = block_on(client.call(Method::GET, &path(id, &["history"]), &[], None))?;
    if as_json {
        return out::json(&answer);
    }
    let history: ApprovalHistory = parse(&answer)?;
    Ok(out::painted(&show::history(&history, Terminal::of_stdout())).map(|_| ())?)
}

fn reopen(args: &ApprovalArgs, reason: &str, yes: bool, settings: &ClientSettings) -> anyhow::Result<Exit> {
    confirm::require(yes, "--yes is required because standard input is not a terminal")?;
    let client = connect(settings)?;
    if !yes {
        let approval = fetch(&client, &args.id)?;
        let used = approval.used_by.map_or_else(
            || "It is not known to have been used.".to_owned(),
            |request| format!("Request {request} used it at {}.", optional(approval.used_at.map(seconds).as_ref())),
        );
        let question = format!(
            "{used}\nIf the action ran then, it can run a second time: look first whether it did.\nLet workload {} use \
             {} again?",
            approval.workload, approval.id
        );
        if !confirm::agrees(question)? {
            out::stderr_line("nothing was reopened");
            return Ok(Exit::Failed);
        }
    }
    change(&client, args, "reopen", &json!({"reason": reason}))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The approvals of the contract's fixture: one pending, one consumed.
    pub(super) fn fixtures() -> Vec<Approval> {
        let page: Value = serde_json::from_str(include_str!("../../contract/fixtures/approval_page.json")).unwrap();
        serde_json::from_value(page["done"]["items"].clone()).unwrap()
    }

    /// The pending approval with this action.
    pub(super) fn pending(action: &Value) -> Approval {
        let mut approval = fixtures().remove(0);
        approval.action = Some(action.as_object().unwrap().clone());
        approval
    }

    #[test]
    fn a_row_counts_approvals_and_ends_with_the_time_that_matters() {
        let approvals = fixtures();
        let row = cells(&approvals[0]);
        assert_eq!(row[4], "1 of 2");
        assert_eq!((row[1].as_str(), row[7].as_str()), ("pending", "2026-03-16T13:00:00Z"));
        assert_eq!(cells(&approvals[1])[7], "2026-03-16T12:20:00Z", "of an approved one, until when it can be used");
    }

    #[test]
    fn tools_and_goal_are_short_and_cannot_hide_text_or_look_like_another_column() {
        let of = |action: Value| action_cells(&pending(&action));
        assert_eq!(
            of(json!({"goal": "Deploy\n  build   7", "tools": ["argo_cd", "psql"]})),
            ["argo_cd,psql", "Deploy build 7"]
        );
        assert_eq!(
            of(json!({"goal": "re\u{202e}tropeR\u{1b}[2J", "tools": ["ma\u{200b}il", 5]})),
            [r"ma\u{200b}il", r"re\u{202e}tropeR\u{1b}[2J"]
        );
        assert_eq!(of(json!({"goal": "x".repeat(61)}))[1], format!("{}…", "x".repeat(60)));
        assert_eq!(of(json!({"goal": "x".repeat(60)}))[1], "x".repeat(60));
        assert_eq!(of(json!({"goal": ["x"], "tools": "psql"})), ["", ""], "as no server sends it");
        let mut unseen = pending(&json!({}));
        unseen.action = None;
        assert_eq!(action_cells(&unseen), ["", ""]);
    }
}
