//! `stage0 decisions`: what was recorded, for operators and auditors.
//!
//! Owns the calls and how records look. Whether a log is whole is judged by the contract's walk: on the server, or here when a
//! downloaded log is verified ([`offline`]). Text of records comes from agents, so all of it is cleaned on its way to a terminal.

mod delete;
mod export;
mod lines;
mod list;
mod offline;
mod progress;
mod record;
mod retry;
mod tail;
mod verify;

use std::time::Duration;

use jiff::Timestamp;
use reqwest::Method;
use stage0_contract::{DecisionRecord, PublicKeys, RequestId};

use crate::args::decisions::DoDecisions;
use crate::client::{Client, ClientError, Query, Target, Whose, block_on};
use crate::exit::Exit;
use crate::out;
use crate::settings::client::ClientSettings;
use export::Export;
use list::List;

/// For walks through the whole log, where no time was named.
const WALK_TIMEOUT: Duration = Duration::from_secs(600);
/// A download that is silent for so long is cut here, and resumed.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// The server gives a deletion a minute.
const DELETE_WITHIN: Duration = Duration::from_secs(90);
const DECISIONS: [&str; 2] = ["v1", "decisions"];

/// Runs one of them.
pub(crate) fn run(command: &DoDecisions, settings: &ClientSettings) -> Exit {
    crate::run::ended(act(command, settings, Timestamp::now()))
}

fn act(command: &DoDecisions, settings: &ClientSettings, now: Timestamp) -> anyhow::Result<Exit> {
    let client = || connect(settings, settings.timeout);
    match command {
        DoDecisions::List { period, filter, code, run_id, limit, oldest_first, json } => {
            let (from, to) = period.at(now)?;
            let query = Query::default().with("from", from).with("to", to).with("verdict", filter.verdict);
            let query = query.with("environment", filter.environment.as_ref()).with("code", code.as_ref());
            let list = List { limit: *limit, oldest_first: *oldest_first, as_json: *json };
            list.run(&client()?, &query.with("run_id", run_id.as_ref()))?;
        }
        DoDecisions::Show { request_id, json } => show(&client()?, *request_id, *json)?,
        DoDecisions::Tail { filter, json } => {
            let query = Query::default().with("from", Some(now)).with("verdict", filter.verdict);
            tail::tail(settings, query.with("environment", filter.environment.as_ref()), *json)?;
        }
        DoDecisions::Export { period, out, progress, json } => {
            let (from, to) = period.at(now)?;
            let timeout = settings.timeout_or(WALK_TIMEOUT);
            let target = Target::find(settings, Whose::Account)?;
            let client = Client::for_downloads(target, timeout.min(READ_TIMEOUT))?;
            Export { client: &client, from, to, timeout, progress: *progress, as_json: *json }.run(out)?;
        }
        DoDecisions::Verify(verify) => return verify::verify(verify, settings, now),
        DoDecisions::Keys { json: _ } => out::json(&signing_keys(&client()?)?)?,
        DoDecisions::Delete { before, yes, json } => {
            delete::refuse_unasked(*yes)?;
            let client = connect(settings, settings.timeout_or(DELETE_WITHIN))?;
            return delete::delete(&client, before.at(now), *yes, *json);
        }
    }
    Ok(Exit::Done)
}

fn connect(settings: &ClientSettings, timeout: Duration) -> Result<Client, ClientError> {
    Client::new(Target::find(settings, Whose::Account)?, timeout)
}

fn signing_keys(client: &Client) -> Result<PublicKeys, ClientError> {
    block_on(client.call(Method::GET, &["v1", "signing-keys"], &[], None))
}

fn show(client: &Client, id: RequestId, as_json: bool) -> anyhow::Result<()> {
    let id = id.to_string();
    let [v1, decisions] = DECISIONS;
    let found: serde_json::Value = block_on(client.call(Method::GET, &[v1, decisions, &id], &[], None))?;
    if as_json {
        return out::json(&found);
    }
    Ok(out::decision(&record::for_people(&read(&found)?))?)
}

/// A record of the contract; where it is printed as JSON it is not read, so that nothing of it is lost.
fn read(record: &serde_json::Value) -> Result<DecisionRecord, ClientError> {
    serde::Deserialize::deserialize(record)
        .map_err(|e: serde_json::Error| ClientError::Unreadable(out::plain(&e.to_string())))
}
