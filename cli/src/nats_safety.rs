//! The safety of a role's NATS connection: open servers are refused, and message keys are kept up to date.
//!
//! A server on another machine without login or TLS is refused, unless `--dangerous-open-nats` accepts the risk. One on
//! this machine causes a warning, and so does one that cannot be probed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_backplane::WaitReason;
use stage0_backplane::nats::{Connection, Exposure, MessageAuth, NatsConfig, exposure, persist_requirement};
use tokio_util::task::AbortOnDropHandle;

use crate::settings::NatsSafety;
use crate::{files, message_keys};

/// In the keystore's data directory: since when messages must be authenticated.
const REQUIREMENT_FILE: &str = "message-auth.json";
const RETRY_DELAY: Duration = Duration::from_millis(500);
pub(crate) const MAKE_SAFE: &str =
    "give it what `stage0 nats-config` prints, and each role its user, password file, certificate and message keys";

pub(crate) type BackgroundTasks = Vec<AbortOnDropHandle<()>>;

/// Where a role stores since when messages must be authenticated, so that a restart does not forget it.
pub(crate) enum RequirementStore {
    StateStore(Connection),
    Directory(PathBuf),
}

impl NatsSafety {
    pub(crate) async fn refuse_open_servers(&self, nats: &NatsConfig) -> anyhow::Result<()> {
        for found in exposure(nats).await? {
            if let Some(refusal) = refusal(&found, self.open_allowed) {
                bail!(refusal);
            }
            warn(&found, nats.auth.is_some());
        }
        if nats.auth.is_none() {
            tracing::warn!(
                "messages are not authenticated: any client of NATS can act as any role; create keys with `stage0 \
                 nats-keys create`"
            );
        }
        Ok(())
    }

    /// Restores the requirement of an earlier start, and starts tasks that keep keys and requirement up to date.
    pub(crate) async fn start_tasks(
        &self,
        nats: &NatsConfig,
        store: RequirementStore,
    ) -> anyhow::Result<BackgroundTasks> {
        let Some(auth) = nats.auth.clone() else { return Ok(Vec::new()) };
        let mut tasks = Vec::new();
        if let Some(path) = self.message_keys.clone() {
            tasks.push(tokio::spawn(message_keys::watch(path, auth.clone())));
        }
        if !auth.is_strict() {
            while let Err(error) = store.sync(&auth).await {
                match store {
                    RequirementStore::StateStore(_) => wait_out(&nats.waiting, &error, RETRY_DELAY).await,
                    RequirementStore::Directory(_) => return Err(error),
                }
            }
            tasks.push(tokio::spawn(watch_requirement(auth, store)));
        }
        Ok(tasks.into_iter().map(AbortOnDropHandle::new).collect())
    }
}

/// Says why a start has to wait, and waits a moment.
pub(crate) async fn wait_out(waiting: &WaitReason, error: &anyhow::Error, delay: Duration) {
    let why = format!("{error:#}");
    if waiting.set(&why) {
        tracing::warn!(why, "cannot start yet");
    }
    tokio::time::sleep(delay).await;
}

impl RequirementStore {
    async fn sync(&self, auth: &Arc<MessageAuth>) -> anyhow::Result<()> {
        match self {
            Self::StateStore(connection) => Ok(persist_requirement(connection).await?),
            Self::Directory(dir) => sync_with_file(dir, auth),
        }
    }
}

async fn watch_requirement(auth: Arc<MessageAuth>, store: RequirementStore) {
    let mut since = auth.required_since();
    while since.changed().await.is_ok() {
        while let Err(error) = store.sync(&auth).await {
            tracing::warn!(error = format!("{error:#}"), "the authentication requirement was not stored yet");
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }
}

#[derive(Serialize, Deserialize)]
struct RequirementFile {
    required_since: Timestamp,
}

fn sync_with_file(dir: &Path, auth: &MessageAuth) -> anyhow::Result<()> {
    let path = dir.join(REQUIREMENT_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => {
            let stored = serde_json::from_slice::<RequirementFile>(&bytes);
            auth.require(stored.with_context(|| format!("`{}` cannot be read", path.display()))?.required_since);
            return Ok(());
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    }
    let since = *auth.required_since().borrow();
    let Some(required_since) = since.filter(|_| auth.is_required()) else { return Ok(()) };
    files::private_dir(dir)?;
    files::replace(&path, &serde_json::to_string(&RequirementFile { required_since })?)
}

fn refusal(found: &Exposure, open_allowed: bool) -> Option<String> {
    let fault = found.fault().filter(|_| !found.is_loopback && !open_allowed)?;
    Some(format!(
        "the NATS server at `{}` {fault}: {MAKE_SAFE}; or accept the risk with --dangerous-open-nats",
        found.server
    ))
}

fn warn(found: &Exposure, has_keys: bool) {
    let server = &found.server;
    match (found.fault(), found.unknown()) {
        (Some(fault), _) if has_keys => tracing::warn!(
            server,
            "the NATS server {fault}: any client that reaches it can read and disturb all messages; {MAKE_SAFE}"
        ),
        (Some(fault), _) => tracing::warn!(
            server,
            "the NATS server {fault}, and messages are not authenticated: any client that reaches it can decide in \
             place of the evaluators; {MAKE_SAFE}"
        ),
        (None, Some(why)) => tracing::warn!(server, why, "it is unknown whether this NATS server is open to anybody"),
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use stage0_backplane::nats::{Enforced, KeySet, Requirement};
    use stage0_contract::Role;

    use super::*;

    fn found(is_loopback: bool, login: Enforced, tls: Enforced) -> Exposure {
        Exposure { server: "nats:4222".to_owned(), is_loopback, login, tls }
    }

    #[test]
    fn a_remote_server_without_login_or_tls_is_refused_unless_the_risk_is_accepted() {
        for (login, tls) in [(Enforced::No, Enforced::Yes), (Enforced::Yes, Enforced::No), (Enforced::No, Enforced::No)]
        {
            let text = refusal(&found(false, login.clone(), tls.clone()), false).unwrap();
            assert!(text.contains("`nats:4222` takes no ") && text.contains("--dangerous-open-nats"), "{text}");
            assert_eq!(refusal(&found(false, login.clone(), tls.clone()), true), None);
            assert_eq!(refusal(&found(true, login, tls), false), None);
        }
        assert_eq!(refusal(&found(false, Enforced::Yes, Enforced::Yes), false), None);
        assert_eq!(refusal(&found(false, Enforced::Unknown(String::new()), Enforced::Yes), false), None);
    }

    #[test]
    fn the_authentication_requirement_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let keys = KeySet::create(Requirement::WhenAllCan).unwrap();
        let auth = || MessageAuth::new(keys.role(Role::Keystore).unwrap(), Role::Keystore, false).unwrap();
        let first = auth();
        sync_with_file(dir.path(), &first).unwrap();
        assert!(!first.is_required());
        let since = Timestamp::from_second(1_700_000_000).unwrap();
        first.require(since);
        sync_with_file(dir.path(), &first).unwrap();
        let second = auth();
        sync_with_file(dir.path(), &second).unwrap();
        assert!(second.is_required() && *second.required_since().borrow() == Some(since));
        std::fs::write(dir.path().join(REQUIREMENT_FILE), "{").unwrap();
        assert!(sync_with_file(dir.path(), &auth()).is_err());
    }
}
