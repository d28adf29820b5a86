//! `stage0 decisions`: the recorded decisions, for operators and auditors.
//!
//! A log is verified by the contract's `ChainVerifier`, on the server or here for a downloaded log ([`offline`]).
//! Records hold text of agents, so all of it is escaped before it reaches a terminal.

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

use crate::args::decisions::{DecisionsCommand, Filter};
use crate::client::{Connection, ConnectionError, Credential, Query, block_on, parse, target};
use crate::exit::Exit;
use crate::out;
use crate::settings::client::ClientSettings;
use export::Export;

const WALK_TIMEOUT: Duration = Duration::from_secs(600);
/// A download without data for this long is cut off and resumed.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than the minute that the server allows for a deletion.
const DELETE_TIMEOUT: Duration = Duration::from_secs(90);
const DECISIONS: [&str; 2] = ["v1", "decisions"];

pub(crate) fn run(command: &DecisionsCommand, settings: &ClientSettings) -> anyhow::Result<Exit> {
    let now = Timestamp::now();
    let client = || connect(settings, settings.timeout);
    match command {
        DecisionsCommand::List { period, filter, code, run_id, limit, oldest_first, json } => {
            let (from, to) = period.at(now)?;
            let query = filtered(filter).with("from", from).with("to", to);
            let query = query.with("code", code.as_ref()).with("run_id", run_id.as_ref());
            list::list(&client()?, query, *limit, *oldest_first, *json)?;
        }
        DecisionsCommand::Show { request_id, json } => show(&client()?, *request_id, *json)?,
        DecisionsCommand::Tail { filter, json } => {
            tail::tail(settings, filtered(filter).with("from", Some(now)), *json)?;
        }
        DecisionsCommand::Export { period, out, progress, json } => {
            let (from, to) = period.at(now)?;
            let timeout = settings.timeout_or(WALK_TIMEOUT);
            let target = target(settings, Credential::Account)?;
            let client = Connection::for_downloads(target, timeout.min(READ_TIMEOUT))?;
            Export { client: &client, from, to, timeout, progress: *progress, as_json: *json }.run(out)?;
        }
        DecisionsCommand::Verify(verify) => return verify::verify(verify, settings, now),
        DecisionsCommand::Keys { json: _ } => out::json(&signing_keys(&client()?)?)?,
        DecisionsCommand::Delete { before, yes, json } => {
            delete::require_confirmation(*yes)?;
            let client = connect(settings, settings.timeout_or(DELETE_TIMEOUT))?;
            return delete::delete(&client, before.at(now), *yes, *json);
        }
    }
    Ok(Exit::Done)
}

fn filtered(filter: &Filter) -> Query {
    Query::default().with("verdict", filter.verdict).with("environment", filter.environment.as_ref())
}

fn connect(settings: &ClientSettings, timeout: Duration) -> Result<Connection, ConnectionError> {
    Connection::new(target(settings, Credential::Account)?, timeout)
}

fn signing_keys(client: &Connection) -> Result<PublicKeys, ConnectionError> {
    block_on(client.call(Method::GET, &["v1", "signing-keys"], &[], None))
}

fn show(client: &Connection, id: RequestId, as_json: bool) -> anyhow::Result<()> {
    let [v1, decisions] = DECISIONS;
    let path = [v1, decisions, &id.to_string()];
    let found: serde_json::Value = block_on(client.call(Method::GET, &path, &[], None))?;
    if as_json {
        return out::json(&found);
    }
    Ok(out::decision(&record::for_people(&parse::<DecisionRecord>(&found)?))?)
}
