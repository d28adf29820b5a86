//! What a role's process does about the safety of NATS: it refuses servers that anybody may use, and keeps its message
//! keys and what they require up to date.
//!
//! Owns the judgement and its words; the looking is the backplane's. A server off this machine that takes no login or
//! no TLS is refused unless the operator takes the risk by name; one on this machine is warned about. What cannot be
//! found out is warned about as well.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_backplane::nats::{Connection, Exposure, MessageAuth, NatsConfig, exposure, remember_requirement};
use tokio_util::task::AbortOnDropHandle;

use crate::settings::NatsSafety;
use crate::{files, message_keys};

/// In the keystore's data directory: from when on what is not authenticated is refused.
const REQUIREMENT_FILE: &str = "message-auth.json";
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Others may still start; the ledger's stream may be missing.
const MAX_TRIES: u32 = 20;
/// What to do about a server that anybody may use.
pub(crate) const MAKE_SAFE: &str =
    "give it what `stage0 nats-config` prints, and each role its user, password file, certificate and message keys";

/// Lasts as long as the role does.
pub(crate) struct Guard {
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// Where a role keeps what it must not forget.
pub(crate) enum Memory {
    /// In the ledger.
    Ledger(Connection),
    /// In its data directory.
    Directory(PathBuf),
}

impl NatsSafety {
    /// Refuses to use servers that anybody may use.
    pub(crate) async fn examine(&self, nats: &NatsConfig) -> anyhow::Result<()> {
        for found in exposure(nats).await? {
            if let Some(refusal) = refusal(&found, self.open_allowed) {
                bail!(refusal);
            }
            warn(&found, nats.auth.is_some());
        }
        if nats.auth.is_none() {
            tracing::warn!(
                "messages are not authenticated: whoever may use NATS can speak for other roles; make keys with `stage0 nats-keys create`"
            );
        }
        Ok(())
    }

    /// Requires what was required before, and keeps keys and requirement up to date from now on.
    pub(crate) async fn keep(&self, nats: &NatsConfig, memory: Memory) -> anyhow::Result<Guard> {
        let Some(auth) = nats.auth.clone() else { return Ok(Guard { _tasks: Vec::new() }) };
        let mut tasks = Vec::new();
        if let Some(path) = self.message_keys.clone() {
            tasks.push(tokio::spawn(message_keys::keep_reading(path, auth.clone())));
        }
        if !auth.is_strict() {
            let mut tries = 0;
            while let Err(error) = memory.remember(&auth).await {
                tries += 1;
                if tries == MAX_TRIES {
                    return Err(error);
                }
                tokio::time::sleep(TRY_AGAIN_AFTER).await;
            }
            tasks.push(tokio::spawn(keep_remembering(auth, memory)));
        }
        Ok(Guard { _tasks: tasks.into_iter().map(AbortOnDropHandle::new).collect() })
    }
}

impl Memory {
    async fn remember(&self, auth: &Arc<MessageAuth>) -> anyhow::Result<()> {
        match self {
            Self::Ledger(connection) => Ok(remember_requirement(connection).await?),
            Self::Directory(dir) => remember_in(dir, auth),
        }
    }
}

async fn keep_remembering(auth: Arc<MessageAuth>, memory: Memory) {
    let mut since = auth.required_since();
    while since.changed().await.is_ok() {
        while let Err(error) = memory.remember(&auth).await {
            tracing::warn!(error = format!("{error:#}"), "that messages must be authenticated is not kept yet");
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
        }
    }
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
struct RequirementFile {
    required_since: Timestamp,
}

fn remember_in(dir: &Path, auth: &MessageAuth) -> anyhow::Result<()> {
    let path = dir.join(REQUIREMENT_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => {
            let kept = serde_json::from_slice::<RequirementFile>(&bytes);
            auth.require(kept.with_context(|| format!("`{}` cannot be read", path.display()))?.required_since);
            return Ok(());
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    }
    let since = *auth.required_since().borrow();
    let Some(required_since) = since.filter(|_| auth.is_required()) else { return Ok(()) };
    // On its first start it is not there yet.
    files::private_dir(dir)?;
    files::replace(&path, &serde_json::to_string(&RequirementFile { required_since })?)
}

/// Why a server must not be used.
fn refusal(found: &Exposure, open_allowed: bool) -> Option<String> {
    let fault = found.fault().filter(|_| !found.is_loopback && !open_allowed)?;
    Some(format!(
        "the NATS server at `{}` {fault}: {MAKE_SAFE}; or take the risk with --dangerous-open-nats",
        found.server
    ))
}

fn warn(found: &Exposure, has_keys: bool) {
    let server = &found.server;
    match (found.fault(), found.unknown()) {
        (Some(fault), _) if has_keys => tracing::warn!(
            server,
            "the NATS server {fault}: whoever reaches it hears all and may disturb all; {MAKE_SAFE}"
        ),
        (Some(fault), _) => tracing::warn!(
            server,
            "the NATS server {fault}, and messages are not authenticated: whoever reaches it decides in the place of the evaluators; {MAKE_SAFE}"
        ),
        (None, Some(why)) => tracing::warn!(server, why, "it is not known whether anybody may use this NATS server"),
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use stage0_backplane::nats::{Asked, KeySet, Requirement};
    use stage0_contract::Role;

    use super::*;

    fn found(is_loopback: bool, login: Asked, tls: Asked) -> Exposure {
        Exposure { server: "nats:4222".to_owned(), is_loopback, login, tls }
    }

    #[test]
    fn a_server_off_this_machine_that_lacks_login_or_tls_is_refused_unless_the_risk_is_taken() {
        for (login, tls) in [(Asked::No, Asked::Yes), (Asked::Yes, Asked::No), (Asked::No, Asked::No)] {
            let text = refusal(&found(false, login.clone(), tls.clone()), false).unwrap();
            assert!(text.contains("`nats:4222` takes no ") && text.contains("--dangerous-open-nats"), "{text}");
            assert_eq!(refusal(&found(false, login.clone(), tls.clone()), true), None);
            assert_eq!(refusal(&found(true, login, tls), false), None);
        }
        assert_eq!(refusal(&found(false, Asked::Yes, Asked::Yes), false), None);
        assert_eq!(refusal(&found(false, Asked::Unknown(String::new()), Asked::Yes), false), None);
    }

    #[test]
    fn the_keystore_requires_after_a_start_what_it_required_before() {
        let dir = tempfile::tempdir().unwrap();
        let keys = KeySet::create(Requirement::WhenAllCan).unwrap();
        let auth = || MessageAuth::new(keys.role(Role::Keystore).unwrap(), Role::Keystore, false).unwrap();
        let first = auth();
        remember_in(dir.path(), &first).unwrap();
        assert!(!first.is_required());
        let since = Timestamp::from_second(1_700_000_000).unwrap();
        first.require(since);
        remember_in(dir.path(), &first).unwrap();
        let second = auth();
        remember_in(dir.path(), &second).unwrap();
        assert!(second.is_required() && *second.required_since().borrow() == Some(since));
        std::fs::write(dir.path().join(REQUIREMENT_FILE), "{").unwrap();
        assert!(remember_in(dir.path(), &auth()).is_err());
    }
}
