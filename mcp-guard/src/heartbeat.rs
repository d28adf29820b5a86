//! The guard's sign of life: every minute, and one that says that it ends.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use stage0_contract::{GuardCounts, GuardId};

use crate::ask::Asker;
use crate::instance::{Instance, new_id};

const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(60);
/// The server misses the guard after this many seconds without one.
const NEXT_WITHIN_SECONDS: u32 = 180;
/// How long an orderly end waits for its report.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// Who reports.
#[derive(Debug)]
pub struct Reporter {
    id: GuardId,
    host: Option<String>,
    /// `None`: nothing is kept from one process to the next.
    instance: Option<Instance>,
}

impl Reporter {
    /// A guard of a server on this machine. Each process has an id of its own; one that ends in order leaves it to the
    /// next process that starts with the same directory, name and key. `None`: no id can be made.
    pub fn new(server: &str, principal: &str, dir: &Path) -> Option<Self> {
        match Instance::claim(dir, server, principal, Timestamp::now()) {
            Ok(instance) => Some(Self { id: instance.id().clone(), host: host(), instance: Some(instance) }),
            Err(why) => {
                tracing::warn!("this guard reports under an id that is not kept: {why}");
                Some(Self { id: new_id(server)?, host: host(), instance: None })
            }
        }
    }

    /// A guard that was given its id.
    pub fn named(id: GuardId) -> Self {
        Self { id, host: host(), instance: None }
    }

    /// Reports until it is dropped. A server that does not take reports is logged once.
    pub async fn run(&self, asker: &Asker) {
        let mut is_logged = false;
        loop {
            match self.report(asker, NEXT_WITHIN_SECONDS).await {
                Ok(()) => is_logged = false,
                Err(why) if !is_logged => {
                    tracing::warn!("the guard's heartbeat is not taken: {why}");
                    is_logged = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(HEARTBEAT_INTERVAL).await;
        }
    }

    /// Says that the guard ends in order.
    pub async fn end(&self, asker: &Asker) {
        match tokio::time::timeout(END_TIMEOUT, self.report(asker, 0)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => tracing::debug!("the guard's end is not taken: {why}"),
            Err(_) => tracing::debug!("the guard's end is not taken in time"),
        }
    }

    async fn report(&self, asker: &Asker, next_within_seconds: u32) -> Result<(), String> {
        let before = self.instance.as_ref().map(Instance::counts).unwrap_or_default();
        let counts = sum(before, asker.counts());
        // The server may take a report whose answer is lost. So the file says first what could be due.
        if next_within_seconds > 0 {
            self.keep(counts, Some(Timestamp::now() + Duration::from_secs(next_within_seconds.into())));
        }
        asker.heartbeat(&self.id, self.host.as_deref(), next_within_seconds, counts).await?;
        if next_within_seconds == 0 {
            self.keep(counts, None);
        }
        Ok(())
    }

    fn keep(&self, counts: GuardCounts, due_at: Option<Timestamp>) {
        if let Some(Err(error)) = self.instance.as_ref().map(|instance| instance.keep(counts, due_at)) {
            tracing::debug!("the guard's counts are not kept: {error}");
        }
    }
}

fn sum(one: GuardCounts, other: GuardCounts) -> GuardCounts {
    GuardCounts {
        asked: one.asked.saturating_add(other.asked),
        refused: one.refused.saturating_add(other.refused),
        undecided: one.undecided.saturating_add(other.undecided),
        ran_undecided: one.ran_undecided.saturating_add(other.ran_undecided),
    }
}

/// The machine's name, if the server would take it.
fn host() -> Option<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/@+".contains(c);
    let fits =
        !name.is_empty() && name.chars().all(is_plain) && name.chars().count() <= stage0_contract::MAX_GUARD_TEXT_CHARS;
    fits.then_some(name)
}
