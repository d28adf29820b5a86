//! Checkpoints and retention: what happens to the log by the clock.
//!
//! Every account whose decisions grew gets a checkpoint; accounts that nobody told of are found by looking. What is
//! past an account's retention is removed behind a signed mark, while `trust` believes the clock and no more than an
//! hour of an account's log a minute, so that an alarm can be acted on. Several exporters may do the same: marks meet
//! in the log, and removing twice does no harm.
//! INVARIANT: what others say of accounts is a hint. Only accounts that the log itself names get a checkpoint, and no
//! number of them holds up the rest of this loop.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use stage0_backplane::Event;
use stage0_contract::{
    AccountId, DEFAULT_RETENTION_DAYS, DecisionsRecorded, ListRetentions, ManageReply, MarkBody, RetentionsPage,
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::config::ExportConfig;
use crate::marks::{self, MarkFailure, NOT_AGAIN_WITHIN, Written};
use crate::metrics;
use crate::shared::Shared;
use crate::trust::{Verdict, in_words, removable};

/// Even when no notice arrives, each account is looked at so often.
const LOOK_AT_ALL_EVERY: Duration = Duration::from_secs(60);
/// After a gap; many gaps cause one look.
const GAP_LOOK_DELAY: Duration = Duration::from_secs(1);
/// Accounts that are remembered between two ticks; beyond it all are looked at.
const MAX_GROWN: usize = 100_000;
/// How long checkpoints may take before the loop does something else; the next tick goes on with the next account.
const CHECKPOINT_SLICE: Duration = Duration::from_secs(10);
/// When the keystore does not answer, as while it starts; doubled from one time to the next.
const RETAIN_AGAIN_AFTER: Duration = Duration::from_millis(250);
const RETAIN_AGAIN_AT_MOST: Duration = Duration::from_secs(10);

/// The loop behind checkpoints and retention.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    config: ExportConfig,
    /// Days that each account keeps decisions, as far as it is known.
    retentions: HashMap<AccountId, u32>,
    /// By the kernel's clock, when something could last be removed.
    removed_at: Option<Duration>,
    /// The accounts of the log, as they were last listed.
    known: BTreeSet<AccountId>,
    /// The last account whose turn it was; the next tick begins behind it.
    last_turn: Option<AccountId>,
}

impl Keeper {
    pub(crate) fn new(shared: Arc<Shared>, config: ExportConfig) -> Self {
        Self { shared, config, retentions: HashMap::new(), removed_at: None, known: BTreeSet::new(), last_turn: None }
    }

    /// Until stopped; then the accounts that grew get a last checkpoint.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut grown: BTreeSet<AccountId> = BTreeSet::new();
        let ticks = |every| {
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut checkpoints, mut retention) =
            (ticks(self.config.checkpoint_every), ticks(self.config.retention_every));
        let (mut look, mut looks_soon) = (ticks(LOOK_AT_ALL_EVERY), false);
        let mut listener = None;
        let mut again_after = RETAIN_AGAIN_AFTER;
        loop {
            if listener.is_none() {
                listener = self.shared.backplane.notices.listen::<DecisionsRecorded>().await.ok();
            }
            let heard = async {
                match &mut listener {
                    Some(listener) => listener.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = retention.tick() => if self.retain().await {
                    again_after = RETAIN_AGAIN_AFTER;
                } else {
                    retention.reset_after(again_after);
                    again_after = (again_after * 2).min(RETAIN_AGAIN_AT_MOST);
                },
                _ = look.tick() => {
                    looks_soon = false;
                    if self.list_accounts().await {
                        grown.extend(self.known.iter().cloned());
                    }
                },
                _ = checkpoints.tick() => grown = self.checkpoint(std::mem::take(&mut grown), NOT_AGAIN_WITHIN).await,
                event = heard => match event {
                    Some(Event::Heard(DecisionsRecorded { accounts })) if grown.len() < MAX_GROWN => grown.extend(accounts),
                    Some(Event::Heard(_) | Event::Gap) => if !looks_soon {
                        looks_soon = true;
                        look.reset_after(GAP_LOOK_DELAY);
                    },
                    None => listener = None,
                },
            }
        }
        self.checkpoint(grown, SignedDuration::ZERO).await;
    }

    /// Writes checkpoints; the accounts that are to be tried again. Of one whose last mark is too young nobody knows whether it
    /// grew behind that mark, and so it has its turn at the next tick.
    async fn checkpoint(&mut self, accounts: BTreeSet<AccountId>, pace: SignedDuration) -> BTreeSet<AccountId> {
        if accounts.is_empty() {
            return accounts;
        }
        // Who tells of accounts may invent them. Listing the log's costs the server a look at every account.
        if !accounts.is_subset(&self.known) && !self.list_accounts().await {
            return accounts;
        }
        let mut accounts: BTreeSet<_> = accounts.intersection(&self.known).cloned().collect();
        let mut turns = self.last_turn.as_ref().map(|last| accounts.split_off(last)).unwrap_or_default();
        let last = self.last_turn.take().and_then(|last| turns.take(&last));
        let turns: Vec<_> = turns.into_iter().chain(accounts).chain(last).collect();
        let (mut again, started) = (BTreeSet::new(), Instant::now());
        for account in turns {
            if started.elapsed() > CHECKPOINT_SLICE {
                again.insert(account);
                continue;
            }
            self.last_turn = Some(account.clone());
            let days = self.days(&account);
            match self.shared.mark(&account, days, MarkBody::Checkpoint {}, pace).await {
                Ok(Written::Number(_) | Written::Nothing) => {}
                Ok(Written::TooSoon) => {
                    again.insert(account);
                }
                // It is looked at again with all others.
                Err(MarkFailure::UnknownAccount) => {
                    tracing::debug!(%account, "the keystore knows of no such account: it gets no checkpoint");
                }
                Err(error) => {
                    tracing::warn!(%account, %error, "checkpoint was not written; it is tried again");
                    again.insert(account);
                }
            }
        }
        again
    }

    async fn list_accounts(&mut self) -> bool {
        match self.shared.backplane.log.accounts(Shared::soon()).await {
            Ok(accounts) => {
                self.known = accounts.into_iter().collect();
                true
            }
            Err(error) => {
                tracing::warn!(%error, "accounts of the log cannot be listed");
                false
            }
        }
    }

    /// Removes what is past its time, by what is known; false where the keystore did not say what holds now, or it is
    /// not known what time it is.
    async fn retain(&mut self) -> bool {
        if let Err(error) = self.shared.clock.load(&self.shared.backplane).await {
            tracing::warn!(%error, "it is not known which time it was, so nothing is removed");
            return false;
        }
        let asked = self.ask_retentions().await;
        let current = asked.is_some();
        if let Some(retentions) = asked {
            self.retentions = retentions;
        } else if self.retentions.is_empty() {
            // Nobody knows how long anything is kept: nothing is removed.
            return false;
        }
        let Some(verdict) = self.shared.clock.judge(&self.shared.backplane).await else { return false };
        if !self.may_remove(verdict) {
            return current;
        }
        let boot = self.shared.clock.clocks().boot;
        let span = removable(self.removed_at.map(|at| boot.saturating_sub(at)));
        self.removed_at = Some(boot);
        if !self.list_accounts().await {
            return false;
        }
        for account in self.known.clone() {
            if let Err(error) = self.remove_old(&account, span).await {
                tracing::warn!(%account, %error, "decisions past their retention were not removed; it is tried again");
            }
        }
        current
    }

    /// Says it once when removal stops, and when it goes on.
    fn may_remove(&self, verdict: Verdict) -> bool {
        let ahead = match verdict {
            Verdict::Believed => None,
            Verdict::Ahead(by) => Some(by),
        };
        metrics::clock(ahead);
        let changed = self.shared.lag.clock_is(ahead);
        match ahead {
            Some(by) if changed => tracing::error!(
                ahead = in_words(by),
                "this host's clock is ahead of all others: nothing is removed from the decision log until it is set right"
            ),
            None if changed => tracing::info!("this host's clock is believed again: what is past its time is removed"),
            Some(_) | None => {}
        }
        ahead.is_none()
    }

    async fn remove_old(&self, account: &AccountId, span: Duration) -> Result<(), MarkFailure> {
        let (backplane, now) = (&self.shared.backplane, self.shared.clock.now());
        let removed = marks::expire(backplane, account, self.days(account), span, now).await?;
        if removed > 0 {
            tracing::info!(%account, entries = removed, "entries past the account's retention were removed");
        }
        Ok(())
    }

    fn days(&self, account: &AccountId) -> u32 {
        self.retentions.get(account).copied().unwrap_or(DEFAULT_RETENTION_DAYS)
    }

    /// All of them, or nothing: half a list would let the store forget too early.
    async fn ask_retentions(&self) -> Option<HashMap<AccountId, u32>> {
        let (mut found, mut cursor) = (HashMap::new(), None);
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let list = ListRetentions { cursor };
            match self.shared.backplane.requests.ask(&list, Shared::STORE_WITHIN).await {
                Ok(ManageReply::Done(RetentionsPage { items, next_cursor, clock })) => {
                    clock.iter().for_each(|said| self.shared.clock.hear(said));
                    found.extend(items);
                    cursor = next_cursor;
                }
                Ok(ManageReply::Refused(_) | ManageReply::Failed | ManageReply::Busy) | Err(_) => {
                    tracing::warn!("the keystore does not say how long decisions are kept");
                    return None;
                }
            }
            if cursor.is_none() {
                return Some(found);
            }
            if Instant::now() > until {
                return None;
            }
        }
    }
}
