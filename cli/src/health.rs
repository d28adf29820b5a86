//! `stage0 health`: asks the operator's listener of a role on this machine whether it is ready. For a container's health check, where there
//! is no shell and no curl. Exit code 0: ready; 1: not, with the reasons.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::dev::reachable;
use crate::exit::Exit;
use crate::out;

const WITHIN: Duration = Duration::from_secs(3);

#[derive(Serialize, Deserialize)]
struct Readiness {
    ready: bool,
    reasons: Vec<String>,
}

/// Asks and says.
pub(crate) fn run(listener: SocketAddr, as_json: bool) -> Exit {
    crate::run::ended(ask(reachable(listener), as_json))
}

fn ask(address: SocketAddr, as_json: bool) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().timeout(WITHIN).build()?;
        client.get(format!("http://{address}/readyz")).send().await?.bytes().await
    });
    let answer = answer.with_context(|| format!("nothing answers at {address}"))?;
    let said: Readiness = serde_json::from_slice(&answer).context("what answers there is no role of stage0")?;
    if as_json {
        out::json(&said)?;
        return Ok(if said.ready { Exit::Done } else { Exit::Failed });
    }
    let reasons = said.reasons.iter().map(|reason| out::plain(reason)).collect::<Vec<_>>().join("; ");
    if !said.ready {
        bail!("not ready: {reasons}");
    }
    out::line(if reasons.is_empty() { "ready".to_owned() } else { format!("ready: {reasons}") })?;
    Ok(Exit::Done)
}
