//! How a role reaches NATS at its start, and what it waits for there.
//!
//! It waits for a server, for its streams, for a monitor and for the state store, for as long as it takes, and its log
//! and `/readyz` say for which. If it ended instead, it would only be started again. What waiting cannot mend is an
//! error: refused credentials, a server that is open to anybody, streams with wrong settings, a version that must not
//! run here.

use std::time::Duration;

use stage0_backplane::Backplane;
use stage0_backplane::nats::{Connection, NatsConfig, PrepareError, Release};
use stage0_contract::{PROTOCOL_VERSION, Role};

use crate::args::VERSION;
use crate::nats_safety::{BackgroundTasks, RequirementStore, wait_out};
use crate::settings::NatsSafety;

const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Connects a role that keeps in the state store what it requires of messages.
pub(super) async fn prepare(
    role: Role,
    nats: &NatsConfig,
    safety: &NatsSafety,
    replicas: usize,
) -> anyhow::Result<(Backplane, BackgroundTasks)> {
    connect(role, nats, safety, replicas, |connection| RequirementStore::StateStore(connection.clone())).await
}

/// Connects, and checks the server's safety, the role's streams, how they are synced, and that this version may run
/// here, before anything relies on it.
pub(super) async fn connect(
    role: Role,
    nats: &NatsConfig,
    safety: &NatsSafety,
    replicas: usize,
    memory: impl FnOnce(&Connection) -> RequirementStore,
) -> anyhow::Result<(Backplane, BackgroundTasks)> {
    let connection = Connection::open(nats).await?;
    safety.refuse_open_servers(nats).await?;
    let connection = with_streams(connection, role, nats, replicas).await?;
    let guard = safety.start_tasks(nats, memory(&connection)).await?;
    admit(&connection, role, nats).await?;
    nats.waiting.clear();
    Ok((connection.backplane(), guard))
}

/// Waits until the role's streams are as they must be.
async fn with_streams(
    mut connection: Connection,
    role: Role,
    nats: &NatsConfig,
    replicas: usize,
) -> anyhow::Result<Connection> {
    loop {
        let error = match connection.prepare(role, replicas).await {
            Ok(()) => return Ok(connection),
            Err(error) if error.is_temporary() => error,
            Err(error) => return Err(error.into()),
        };
        let is_missing = matches!(error, PrepareError::Missing(_));
        wait_out(&nats.waiting, &error.into(), RETRY_DELAY).await;
        if is_missing {
            // From now on it only looks: to ask for a stream that it may not make is a violation that the log names.
            while let Err(error) = connection.check_streams(role).await {
                if !error.is_temporary() {
                    return Err(error.into());
                }
                wait_out(&nats.waiting, &error.into(), RETRY_DELAY).await;
            }
            // A connection on which something was forbidden does not count as ready any more.
            connection.backplane().requests.close().await;
            connection = Connection::open(nats).await?;
        }
    }
}

/// Waits until it is known whether this version may run here.
async fn admit(connection: &Connection, role: Role, nats: &NatsConfig) -> anyhow::Result<()> {
    let own = Release { protocol_version: PROTOCOL_VERSION, version: VERSION.to_owned() };
    while let Err(error) = connection.admit(role, &own).await {
        if !error.is_temporary() {
            return Err(error.into());
        }
        wait_out(&nats.waiting, &error.into(), RETRY_DELAY).await;
    }
    Ok(())
}
