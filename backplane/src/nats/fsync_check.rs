//! Does the server sync each message to disk before it acknowledges it, and can it still write? Only its monitor tells.
//!
//! The sync mode cannot change without a restart of the server. If the monitor cannot be reached after a reconnect, the
//! mode counts as unknown. Without a monitor's address nothing is verified, and readiness says so.
//! INVARIANT: of several servers more than half are known to sync, and none is known not to. An acknowledged message is
//! on more than half of them, so it is on a disk; and a server that was lost must not stop the ones that are left.
//! A stream whose disk filled up rejects appends until its server restarts; one at its size limit, until space is
//! freed. Readiness checks both and remembers a rejected append for a few seconds.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use reqwest::redirect;
use tokio::time::{Instant, timeout_at};

use super::monitor::JetStreamState;

const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// A monitor may start a moment after its server.
const UNHEALTHY_POLL_INTERVAL: Duration = Duration::from_millis(500);
const MONITOR_TIMEOUT: Duration = Duration::from_secs(1);
/// For the monitors that are left once more than half have answered.
const STRAGGLER_TIMEOUT: Duration = Duration::from_millis(200);
/// Short, so that a process that gets no traffic while it is not ready notices that there is space again.
const REJECTED_APPEND_TTL: Duration = Duration::from_secs(5);

/// Whether and how the server's sync mode is verified.
#[derive(Debug, Clone, Default)]
pub struct SyncMode {
    /// `http://host:port` of every server's monitor; empty: it is not verified.
    pub monitors: Vec<String>,
    /// The operator accepts the risk explicitly: a server that syncs rarely is used all the same.
    pub dangerous_relaxed: bool,
}

/// Why an append may not be trusted to be on disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyncFault {
    /// A server does not sync each message.
    #[error("{0}")]
    Relaxed(String),
    /// It is not known whether every server does: a monitor does not answer, or not as one.
    #[error("{0}")]
    Unknown(String),
}

#[derive(Debug)]
pub(super) struct FsyncCheck {
    mode: SyncMode,
    /// None: there is no monitor to ask.
    client: Option<reqwest::Client>,
    last: Mutex<Option<LastAnswer>>,
    rejected_append: Mutex<Option<(Instant, String)>>,
    /// Why single servers were not verified when more than half were.
    unverified: Mutex<Vec<String>>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
struct LastAnswer {
    connects: u64,
    at: Instant,
    outcome: Result<(), SyncFault>,
}

impl FsyncCheck {
    pub(super) fn new(mode: SyncMode) -> Result<Self, String> {
        let client = || reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).build();
        let client = (!mode.monitors.is_empty()).then(client).transpose();
        let client = client.map_err(|error| format!("no HTTP client for its monitor: {error}"))?;
        Ok(Self {
            mode,
            client,
            last: Mutex::default(),
            rejected_append: Mutex::default(),
            unverified: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        })
    }

    /// `Ok` if an append on this connection may be trusted.
    pub(super) async fn check(&self, connects: u64, deadline: Instant) -> Result<(), SyncFault> {
        let Some(client) = self.client.as_ref().filter(|_| !self.mode.dangerous_relaxed) else { return Ok(()) };
        let known = self.known(connects);
        if let Some(known) = known.as_ref().filter(|known| known.is_fresh()) {
            return known.outcome.clone();
        }
        let was_good = known.is_some_and(|known| known.outcome.is_ok());
        let asked = async {
            // One caller asks for all. A caller that knows of a good outcome need not wait for it.
            let _turn = match self.asking.try_lock() {
                Ok(turn) => turn,
                Err(_) if was_good => return Ok(()),
                Err(_) => self.asking.lock().await,
            };
            match self.known(connects).filter(LastAnswer::is_fresh) {
                Some(known) => known.outcome,
                None => self.ask_and_remember(client, connects, was_good).await,
            }
        };
        let late = "the sync mode of nats is not verified: there was no time to ask its monitor";
        timeout_at(deadline, asked).await.unwrap_or_else(|_| Err(SyncFault::Unknown(late.to_owned())))
    }

    /// Remarks for an operator; the error says why nothing can be appended to this stream, if more than half of the
    /// servers say so.
    pub(super) async fn remarks(&self, stream: &str, deadline: Instant) -> Result<Vec<String>, String> {
        let mut remarks = Vec::new();
        if self.mode.dangerous_relaxed {
            let risk = "audit: relaxed sync was asked for: a power cut may lose decisions that were answered";
            remarks.push(risk.to_owned());
        } else if self.mode.monitors.is_empty() {
            remarks.push("audit: sync mode not verified".to_owned());
        }
        let rejected_append = self.rejected_append.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, why)) = rejected_append.filter(|(at, _)| at.elapsed() < REJECTED_APPEND_TTL) {
            return Err(format!("an append found no room: {why}"));
        }
        if let Some(client) = &self.client {
            let monitors = &self.mode.monitors;
            let asked = monitors.iter().map(|monitor| timeout_at(deadline, write_problem(client, monitor, stream)));
            // An unreachable monitor is no reason here; `check` decides about that.
            let errors: Vec<_> = join_all(asked).await.into_iter().flatten().flatten().collect();
            // An append needs more than half of the servers.
            if errors.len() * 2 > monitors.len() {
                return Err(errors.join("; "));
            }
            remarks.extend(errors);
            let unverified = self.unverified.lock().unwrap_or_else(PoisonError::into_inner);
            remarks.extend(unverified.iter().map(|why| format!("audit: {why}")));
        }
        Ok(remarks)
    }

    /// Records the outcome of an append: stored, or why there was no space for it.
    pub(super) fn appended(&self, rejection: Option<String>) {
        let rejection = rejection.map(|why| (Instant::now(), why));
        *self.rejected_append.lock().unwrap_or_else(PoisonError::into_inner) = rejection;
    }

    async fn ask_and_remember(&self, client: &reqwest::Client, connects: u64, was_good: bool) -> Result<(), SyncFault> {
        let (outcome, unverified) = match self.ask_all(client).await {
            Ok(unverified) => (Ok(()), unverified),
            // The server that we are still connected to has not restarted, so its last answer holds.
            Err(SyncFault::Unknown(why)) if was_good => (Ok(()), vec![why]),
            Err(fault) => (Err(fault), Vec::new()),
        };
        *self.unverified.lock().unwrap_or_else(PoisonError::into_inner) = unverified;
        let known = LastAnswer { connects, at: Instant::now(), outcome: outcome.clone() };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        outcome
    }

    /// The last outcome, if it belongs to this connection.
    fn known(&self, connects: u64) -> Option<LastAnswer> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        last.filter(|known| known.connects == connects)
    }

    /// Asks all servers at the same time. If more than half of them sync: why the others are not known to.
    async fn ask_all(&self, client: &reqwest::Client) -> Result<Vec<String>, SyncFault> {
        let monitors = &self.mode.monitors;
        let each = monitors.iter().map(|monitor| async move { (monitor, ask(client, monitor).await) });
        let (mut asked, mut silent) = (each.collect::<FuturesUnordered<_>>(), monitors.iter().collect::<Vec<_>>());
        let (mut synced, mut unknown, mut until) = (0, Vec::new(), Instant::now() + MONITOR_TIMEOUT);
        while let Ok(Some((monitor, answer))) = timeout_at(until, asked.next()).await {
            silent.retain(|other| *other != monitor);
            match answer {
                Ok(()) => synced += 1,
                Err(SyncFault::Unknown(why)) => unknown.push(why),
                Err(relaxed @ SyncFault::Relaxed(_)) => return Err(relaxed),
            }
            if synced * 2 > monitors.len() {
                until = until.min(Instant::now() + STRAGGLER_TIMEOUT);
            }
        }
        let late = |monitor| format!("the sync mode of nats is not verified: its monitor at {monitor} does not answer");
        unknown.extend(silent.into_iter().map(late));
        if synced * 2 > monitors.len() { Ok(unknown) } else { Err(SyncFault::Unknown(unknown.join("; "))) }
    }
}

impl LastAnswer {
    fn is_fresh(&self) -> bool {
        let interval = if self.outcome.is_ok() { POLL_INTERVAL } else { UNHEALTHY_POLL_INTERVAL };
        self.at.elapsed() < interval
    }
}

async fn ask(client: &reqwest::Client, monitor: &str) -> Result<(), SyncFault> {
    match JetStreamState::fetch(client, monitor).await {
        Ok(state) if !state.enabled => {
            Err(SyncFault::Unknown(format!("what answers at {monitor} is no monitor of nats with JetStream")))
        }
        Ok(state) if state.sync_always => Ok(()),
        Ok(_) => Err(SyncFault::Relaxed(format!(
            "nats at {monitor} does not sync each message: set `sync_interval: always` in its `jetstream` block, or \
             take the risk with --dangerous-relaxed-sync"
        ))),
        Err(why) => {
            let why = format!("the sync mode of nats is not verified: its monitor at {monitor} {why}");
            Err(SyncFault::Unknown(why))
        }
    }
}

/// Why a server will not store what is appended to this stream.
async fn write_problem(client: &reqwest::Client, monitor: &str, stream: &str) -> Option<String> {
    if let Some(error) = write_error(client, monitor, stream).await {
        return Some(error);
    }
    let state = JetStreamState::fetch(client, monitor).await.ok().filter(JetStreamState::is_full)?;
    let (taken, most) = (state.used_bytes, state.max_bytes.unwrap_or(state.used_bytes));
    Some(format!(
        "nats at {monitor} has no room: {taken} of {most} bytes are taken; raise `max_file` or let decisions expire"
    ))
}

/// Whether a server can no longer write this stream; `/healthz` reports why until it restarts.
async fn write_error(client: &reqwest::Client, monitor: &str, stream: &str) -> Option<String> {
    let answer = client.get(format!("{}/healthz", monitor.trim_end_matches('/'))).send().await.ok()?;
    let text = answer.text().await.ok()?;
    let ours = text.contains(&format!("{stream}'")) && text.contains("write error");
    ours.then(|| format!("nats at {monitor} cannot write `{stream}`; make room and start it again: {text}"))
}
