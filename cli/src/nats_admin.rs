//! `stage0 nats-admin`: makes, checks and upgrades the streams with the administrator's login, which no role has.
//!
//! Owns what people read; what the streams are and how records move is the backplane's. Exit code 1 when a stream is
//! missing or not as it has to be.

use anyhow::Context as _;
use serde_json::{Value, json};
use stage0_backplane::nats::{Connection, StreamAdmin, StreamState};

use crate::args::nats_admin::DoNatsAdmin;
use crate::exit::Exit;
use crate::out;
use crate::settings::roles::AdminSettings;

/// Runs one of them.
pub(crate) fn run(command: DoNatsAdmin, as_json: bool, settings: &AdminSettings) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.context("cannot start").and_then(|runtime| runtime.block_on(done(command, as_json, settings)));
    crate::run::ended(ended)
}

async fn done(command: DoNatsAdmin, as_json: bool, settings: &AdminSettings) -> anyhow::Result<Exit> {
    settings.safety.examine(&settings.nats).await?;
    let connection = Connection::open(&settings.nats).await?;
    let requests = connection.backplane().requests;
    let admin = StreamAdmin::new(connection);
    let exit = match command {
        DoNatsAdmin::Init => told(&admin.init(&settings.sizes).await?, &[], as_json)?,
        DoNatsAdmin::Check => told(&admin.check().await?, &[], as_json)?,
        DoNatsAdmin::Upgrade => {
            let done = admin.upgrade(&settings.sizes).await?;
            told(&admin.check().await?, &done, as_json)?
        }
    };
    requests.close().await;
    Ok(exit)
}

/// What was done, then how the streams are.
fn told(states: &[StreamState], done: &[String], as_json: bool) -> anyhow::Result<Exit> {
    if as_json {
        let is_good = states.iter().all(|state| state.differences.is_empty());
        let streams: Vec<Value> = states
            .iter()
            .map(|StreamState { stream, is_new, differences, remarks }| {
                json!({"stream": stream, "made": is_new, "differences": differences, "remarks": remarks})
            })
            .collect();
        out::json(&json!({"ok": is_good, "done": done, "streams": streams}))?;
        return Ok(if is_good { Exit::Done } else { Exit::Failed });
    }
    for line in done {
        out::line(out::plain(line))?;
    }
    let mut exit = Exit::Done;
    for StreamState { stream, is_new, differences, remarks } in states {
        for difference in differences {
            exit = Exit::Failed;
            out::line(out::plain(&format!("BAD   {stream}: {difference}")))?;
        }
        if differences.is_empty() {
            out::line(out::plain(&format!("ok    {stream}{}", if *is_new { ": made" } else { "" })))?;
        }
        for remark in remarks {
            out::line(out::plain(&format!("look  {stream}: {remark}")))?;
        }
    }
    if exit == Exit::Failed {
        out::complain(
            "what is missing: `stage0 nats-admin init`; what differs: `stage0 nats-admin upgrade`, once you know who changed it",
        );
    }
    Ok(exit)
}
