//! `stage0 nats-admin`: creates, checks and upgrades the streams, with the administrator's login, which no role has.
//! Exit code 1 if a stream is missing or has wrong settings.

use anyhow::Context as _;
use serde_json::{Value, json};
use stage0_backplane::nats::{Connection, StreamAdmin, StreamState};

use crate::args::nats::NatsAdminCommand;
use crate::exit::Exit;
use crate::out;
use crate::settings::roles::AdminSettings;

pub(crate) fn run(command: NatsAdminCommand, as_json: bool, settings: &AdminSettings) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(act(command, as_json, settings))
}

async fn act(command: NatsAdminCommand, as_json: bool, settings: &AdminSettings) -> anyhow::Result<Exit> {
    settings.safety.refuse_open_servers(&settings.nats).await?;
    let connection = Connection::open(&settings.nats).await?;
    let requests = connection.backplane().requests;
    let admin = StreamAdmin::new(connection);
    let exit = match command {
        NatsAdminCommand::Init => report(&admin.init(&settings.sizes).await?, &[], as_json)?,
        NatsAdminCommand::Check => report(&admin.check().await?, &[], as_json)?,
        NatsAdminCommand::Upgrade => {
            let steps = admin.upgrade(&settings.sizes).await?;
            report(&admin.check().await?, &steps, as_json)?
        }
    };
    requests.close().await;
    Ok(exit)
}

fn report(states: &[StreamState], steps: &[String], as_json: bool) -> anyhow::Result<Exit> {
    let is_good = states.iter().all(|state| state.differences.is_empty());
    let exit = if is_good { Exit::Done } else { Exit::Failed };
    if as_json {
        let streams: Vec<Value> = states
            .iter()
            .map(|StreamState { stream, is_new, differences, remarks }| {
                json!({"stream": stream, "made": is_new, "differences": differences, "remarks": remarks})
            })
            .collect();
        out::json(&json!({"ok": is_good, "done": steps, "streams": streams}))?;
        return Ok(exit);
    }
    for step in steps {
        out::line(out::plain(step))?;
    }
    for StreamState { stream, is_new, differences, remarks } in states {
        for difference in differences {
            out::line(out::plain(&format!("BAD   {stream}: {difference}")))?;
        }
        if differences.is_empty() {
            out::line(out::plain(&format!("ok    {stream}{}", if *is_new { ": made" } else { "" })))?;
        }
        for remark in remarks {
            out::line(out::plain(&format!("look  {stream}: {remark}")))?;
        }
    }
    if !is_good {
        out::stderr_line(
            "create missing streams with `stage0 nats-admin init`; correct wrong settings with `stage0 nats-admin \
             upgrade`, once you know who changed them",
        );
    }
    Ok(exit)
}
