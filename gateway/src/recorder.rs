//! Record, then release: nothing that was decided leaves before the log has acknowledged it.
//!
//! One recorder for each gateway. What its workers hand in while one append is under way becomes the next: no timer, and one fsync
//! for all that an account has in hand. Owns the queue, the rounds and what an unknown outcome means; `chain.rs` links the lines.
//! A caller whose key is not known to live at that moment is not recorded: what was asked before the process was stopped
//! does not get into the log when it goes on.
//! INVARIANT: `record` returns `Ok` only for a line that an append acknowledged. When the fate of an append stays unknown, its
//! chain is never continued: the account's next line begins a new one.

mod chain;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use jiff::Timestamp;
use stage0_backplane::{AppendError, Backplane, Batch, Kind};
use stage0_contract::{AccountId, DecisionsRecorded};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use chain::{Chain, Drafted};

use crate::keyring::{Believed, Keyring};
use crate::metrics::{self, Lines};

/// Lines that wait for their turn; more are refused until some are through.
const QUEUE: usize = 8_192;
/// Lines of one round, and their bytes: a round is one message for each account in it.
const MOST_LINES: usize = 1_024;
const MOST_BYTES: usize = 1 << 20;
/// Before an append is tried again: a server that restarts needs a moment.
const PAUSE: Duration = Duration::from_millis(50);
/// Shorter than the log remembers the ids of what it has.
const RETRY_FOR: Duration = Duration::from_secs(20);
/// Chains that are remembered; the least busy of more are begun anew.
const MOST_CHAINS: usize = 100_000;

/// Hands lines to the rounds.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Ticket>,
}

/// A decision to be recorded.
#[derive(Clone)]
pub(crate) struct Entry {
    /// Who asked.
    pub(crate) caller: Believed,
    /// Whose.
    pub(crate) account: AccountId,
    /// How long it is kept.
    pub(crate) retention_days: u32,
    /// All of the line but what only the recorder knows: a JSON object.
    pub(crate) body: Bytes,
}

struct Ticket {
    entry: Entry,
    deadline: Instant,
    done: oneshot::Sender<Result<(), NotRecorded>>,
}

/// A decision is not known to be recorded, and so it must not leave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotRecorded {
    /// It waited too long; what becomes of it nobody knows yet.
    #[error("the decision was not recorded in time")]
    Late,
    /// The log failed, and does not have it.
    #[error("the decision could not be recorded: {0}")]
    Failed(String),
    /// Too long ago it was known that the caller's key lives. The log does not have it.
    #[error("it is not known any more whether the caller's key lives")]
    Doubted,
    /// The log failed, and may have it.
    #[error("it is not known whether the decision was recorded: {0}")]
    Unknown(String),
}

/// The rounds; they end when every [`Recorder`] is dropped, or once stopped and emptied.
pub(crate) struct Rounds {
    queue: mpsc::Receiver<Ticket>,
    backplane: Backplane,
    keyring: Arc<Keyring>,
    chains: HashMap<AccountId, Chain>,
}

pub(crate) fn recorder(backplane: Backplane, keyring: Arc<Keyring>) -> (Recorder, Rounds) {
    let (sender, queue) = mpsc::channel(QUEUE);
    (Recorder { queue: sender }, Rounds { queue, backplane, keyring, chains: HashMap::new() })
}

impl Recorder {
    /// Waits until the decision is on disk, or `deadline`.
    pub(crate) async fn record(&self, entry: Entry, deadline: Instant) -> Result<(), NotRecorded> {
        let (done, outcome) = oneshot::channel();
        let recorded = async {
            let gone = |_| NotRecorded::Failed("the gateway is stopping".to_owned());
            self.queue.send(Ticket { entry, deadline, done }).await.map_err(gone)?;
            outcome.await.unwrap_or(Err(NotRecorded::Late))
        };
        timeout_at(deadline, recorded).await.unwrap_or(Err(NotRecorded::Late))
    }
}

impl Rounds {
    /// Appends until `stop`, then what had been handed in.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut waiting: Vec<Ticket> = Vec::new();
        loop {
            if waiting.is_empty() {
                let more = stop.run_until_cancelled(self.queue.recv_many(&mut waiting, MOST_LINES)).await;
                match more {
                    Some(0) => return,
                    Some(_) => {}
                    None => self.queue.close(),
                }
                if more.is_none() && self.queue.recv_many(&mut waiting, MOST_LINES).await == 0 {
                    return;
                }
            }
            let rest = waiting.split_off(fitting(&waiting));
            self.round(waiting).await;
            waiting = rest;
        }
    }

    /// Everything of one round: each account's lines are linked, appended together and told their outcome.
    async fn round(&mut self, tickets: Vec<Ticket>) {
        let now = Instant::now();
        let mut accounts: HashMap<AccountId, Vec<Ticket>> = HashMap::new();
        let mut deadline = now;
        for ticket in tickets {
            // Nobody waits for it any more.
            if ticket.deadline > now && !ticket.done.is_closed() {
                deadline = deadline.max(ticket.deadline);
                accounts.entry(ticket.entry.account.clone()).or_default().push(ticket);
            }
        }
        self.begin_chains(&mut accounts, deadline).await;
        accounts.values_mut().for_each(|tickets| self.refuse_doubted(tickets));
        accounts.retain(|_, tickets| !tickets.is_empty());
        let recorded_at = Timestamp::now();
        let drafts: Vec<Draft> =
            accounts.into_iter().filter_map(|(account, tickets)| self.draft(account, tickets, recorded_at)).collect();
        let appending = Instant::now();
        let outcomes = self.append(&drafts, deadline).await;
        if !drafts.is_empty() {
            metrics::record_round(appending.elapsed());
        }
        let mut recorded = Vec::new();
        for (draft, outcome) in drafts.into_iter().zip(outcomes) {
            if outcome.is_ok() {
                recorded.push(draft.batch.account.clone());
            }
            self.settle(draft, outcome);
        }
        for accounts in recorded.chunks(DecisionsRecorded::MAX_ACCOUNTS) {
            // Exporters also look by themselves: a lost notice costs a moment.
            let notice = DecisionsRecorded { accounts: accounts.to_vec() };
            if let Err(error) = self.backplane.notices.tell(&notice).await {
                tracing::debug!(%error, "exporters were not told");
            }
        }
    }

    /// An account that this gateway has not written for yet, or no longer trusts its chain of, begins one behind what is there.
    async fn begin_chains(&mut self, accounts: &mut HashMap<AccountId, Vec<Ticket>>, deadline: Instant) {
        if self.chains.len() > MOST_CHAINS {
            self.chains.clear();
        }
        let log = &self.backplane.log;
        let new = accounts.keys().filter(|account| !self.chains.contains_key(*account)).cloned();
        let begun = new.map(|account| async move {
            let last = tokio::try_join!(
                log.last(&account, Kind::Decisions, deadline),
                log.last(&account, Kind::Mark, deadline)
            );
            let chain = last.map(|(decisions, mark)| Chain::begin(Uuid::now_v7(), decisions.as_ref(), mark.as_ref()));
            (account, chain)
        });
        for (account, chain) in join_all(begun).await {
            match chain {
                Ok(chain) => {
                    self.chains.insert(account, chain);
                }
                Err(error) => {
                    tracing::error!(%account, %error, "the end of the account's log cannot be read");
                    let why = NotRecorded::Failed(error.to_string());
                    tell(accounts.remove(&account).unwrap_or_default(), &Err(why));
                }
            }
        }
    }

    /// Appends every batch, again with the same id while there is time and every caller is believed: the log stores it
    /// once. An outcome that was in doubt once is certain only when it is acknowledged.
    async fn append(&self, drafts: &[Draft], deadline: Instant) -> Vec<Result<(), AppendError>> {
        let deadline = deadline.min(Instant::now() + RETRY_FOR);
        let mut outcomes: Vec<Option<Result<(), AppendError>>> = vec![None; drafts.len()];
        loop {
            let is_open = |i: &usize| !matches!(outcomes.get(*i), Some(Some(Ok(()))));
            let open: Vec<usize> = (0..drafts.len()).filter(is_open).collect();
            let batches = open.iter().filter_map(|i| drafts.get(*i)).map(|draft| draft.batch.clone()).collect();
            for (index, now) in open.iter().zip(self.backplane.log.append(batches, deadline).await) {
                if let Some(slot) = outcomes.get_mut(*index) {
                    *slot = Some(match (slot.take(), now) {
                        (Some(Err(AppendError::Unknown(_))), Err(AppendError::NotStored(why))) => {
                            Err(AppendError::Unknown(why))
                        }
                        (_, now) => now,
                    });
                }
            }
            let failed = outcomes.iter().any(|outcome| !matches!(outcome, Some(Ok(()))));
            // Of some accounts and not of others is not worth the while.
            let stand = || drafts.iter().flat_map(|draft| &draft.tickets).all(|ticket| self.stands(ticket));
            if !failed || Instant::now() + PAUSE >= deadline || !stand() {
                return outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(never_tried)).collect();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// After the last wait before the append.
    fn refuse_doubted(&self, tickets: &mut Vec<Ticket>) {
        let (stand, doubted) = std::mem::take(tickets).into_iter().partition(|ticket| self.stands(ticket));
        *tickets = stand;
        tell(doubted, &Err(NotRecorded::Doubted));
    }

    fn stands(&self, ticket: &Ticket) -> bool {
        self.keyring.stands(&ticket.entry.caller)
    }

    fn draft(&self, account: AccountId, tickets: Vec<Ticket>, recorded_at: Timestamp) -> Option<Draft> {
        let chain = self.chains.get(&account)?;
        let bodies = tickets.iter().map(|ticket| (ticket.entry.body.as_ref(), ticket.entry.retention_days));
        match chain.draft(bodies, recorded_at) {
            Ok(drafted) => {
                let Drafted { id, lines, chain } = drafted;
                Some(Draft { batch: Batch { account, id, lines: lines.into() }, chain, tickets })
            }
            Err(error) => {
                tracing::error!(%account, %error, "a decision's line cannot be written");
                tell(tickets, &Err(NotRecorded::Failed("its line cannot be written".to_owned())));
                None
            }
        }
    }

    fn settle(&mut self, draft: Draft, outcome: Result<(), AppendError>) {
        let Draft { batch, chain, tickets } = draft;
        let account = batch.account;
        match outcome {
            Ok(()) => {
                self.chains.insert(account, chain);
                metrics::recorded(tickets.len(), Lines::Recorded);
                tell(tickets, &Ok(()));
            }
            // As if it had never been tried: the chain stands where it stood.
            Err(error @ AppendError::NotStored(_)) => {
                tracing::error!(%account, lines = tickets.len(), %error, "decisions were not recorded");
                metrics::recorded(tickets.len(), Lines::Failed);
                tell(tickets, &Err(NotRecorded::Failed(error.to_string())));
            }
            Err(error @ AppendError::Unknown(_)) => {
                tracing::error!(%account, lines = tickets.len(), %error, "decisions may not have been recorded; a new chain begins");
                self.chains.remove(&account);
                metrics::recorded(tickets.len(), Lines::Unknown);
                tell(tickets, &Err(NotRecorded::Unknown(error.to_string())));
            }
        }
    }
}

/// What one account has in hand, linked, and its chain as it will stand once this is stored.
struct Draft {
    batch: Batch,
    chain: Chain,
    tickets: Vec<Ticket>,
}

fn never_tried() -> Result<(), AppendError> {
    Err(AppendError::NotStored("it was not tried".to_owned()))
}

/// How many of the first tickets make a round.
fn fitting(tickets: &[Ticket]) -> usize {
    let mut bytes = 0;
    let fit = tickets.iter().take_while(|ticket| {
        bytes += ticket.entry.body.len();
        bytes <= MOST_BYTES
    });
    fit.count().max(1).min(tickets.len())
}

/// Whoever does not wait any more has answered already.
fn tell(tickets: Vec<Ticket>, outcome: &Result<(), NotRecorded>) {
    for ticket in tickets {
        drop(ticket.done.send(outcome.clone()));
    }
}
