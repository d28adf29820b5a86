//! `stage0 health`: asks a role on this machine whether it is ready, for a container's health check, where there is no
//! shell and no curl. Exit code 0: ready; 1: not, with the reasons.

use std::net::SocketAddr;

use anyhow::bail;
use stage0_runtime::health_client;

use crate::dev::reachable;
use crate::exit::Exit;
use crate::out;

pub(crate) fn run(listener: SocketAddr, as_json: bool) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(health_client::readiness(reachable(listener)))?;
    if as_json {
        out::json(&answer)?;
        return Ok(if answer.ready { Exit::Done } else { Exit::Failed });
    }
    let reasons = answer.reasons.iter().map(|reason| out::plain(reason)).collect::<Vec<_>>().join("; ");
    if !answer.ready {
        bail!("not ready: {reasons}");
    }
    out::line(if reasons.is_empty() { "ready".to_owned() } else { format!("ready: {reasons}") })?;
    Ok(Exit::Done)
}
