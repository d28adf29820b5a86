//! Checkpoints and retention: the periodic work on the decision log.
//!
//! Accounts whose notice was lost are found by listing the log. Removal stops while the clock is not trusted, and takes
//! one hour of an account's log per minute, so that an operator can react to an alarm. Several exporters may do the
//! same work: the log accepts one of two concurrent marks, and removing twice does no harm.
//! INVARIANT: accounts named in notices are a hint. Only accounts that the log itself names get a checkpoint, and
//! however many there are, they do not hold up the rest of this loop.

use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use stage0_backplane::Event;
use stage0_contract::{
    AccountId, DEFAULT_RETENTION_DAYS, DecisionsRecorded, ListRetentions, ManageReply, MarkBody, RetentionsPage,
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::clock_trust::{ClockStatus, describe_duration, removable_span};
use crate::config::ExportConfig;
use crate::marks::{self, MIN_CHECKPOINT_INTERVAL, MarkFailure, MarkResult};
use crate::metrics;
use crate::shared::{Shared, next_event};

/// How often all accounts are checked for new decisions, even if no notice arrives.
const FULL_SCAN_INTERVAL: Duration = Duration::from_secs(60);
/// How soon after lost notices all accounts are checked; several gaps cause one scan.
const GAP_SCAN_DELAY: Duration = Duration::from_secs(1);
/// Accounts with new decisions that are remembered between two ticks; beyond it all are scanned.
const MAX_GROWN: usize = 100_000;
/// For a round of checkpoints, after which the loop does other work; the next tick goes on with the next account.
const CHECKPOINT_ROUND_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon retention is tried again when the keystore does not answer, as while it starts; doubled each time.
const RETENTION_RETRY_DELAY: Duration = Duration::from_millis(250);
const MAX_RETENTION_RETRY_DELAY: Duration = Duration::from_secs(10);
const LIST_RETENTIONS_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct Maintenance {
    shared: Arc<Shared>,
    config: ExportConfig,
    retentions: HashMap<AccountId, u32>,
    /// When decisions could last be removed, by the kernel's clock.
    removed_at: Option<Duration>,
    known: BTreeSet<AccountId>,
    last_turn: Option<AccountId>,
}

impl Maintenance {
    pub(crate) fn new(shared: Arc<Shared>, config: ExportConfig) -> Self {
        Self { shared, config, retentions: HashMap::new(), removed_at: None, known: BTreeSet::new(), last_turn: None }
    }

    /// Runs until stopped; then accounts with new decisions get a last checkpoint.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut grown: BTreeSet<AccountId> = BTreeSet::new();
        let mut checkpoints = ticks(self.config.checkpoint_interval);
        let mut retention = ticks(self.config.retention_interval);
        let mut scan = ticks(FULL_SCAN_INTERVAL);
        let mut scans_soon = false;
        let mut recorded = None;
        let mut retry_delay = RETENTION_RETRY_DELAY;
        loop {
            if recorded.is_none() {
                recorded = self.shared.backplane.notices.subscribe::<DecisionsRecorded>().await.ok();
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = retention.tick() => if self.apply_retention().await {
                    retry_delay = RETENTION_RETRY_DELAY;
                } else {
                    retention.reset_after(retry_delay);
                    retry_delay = (retry_delay * 2).min(MAX_RETENTION_RETRY_DELAY);
                },
                _ = scan.tick() => {
                    scans_soon = false;
                    if self.list_accounts().await {
                        grown.extend(self.known.iter().cloned());
                    }
                },
                _ = checkpoints.tick() => {
                    grown = self.write_checkpoints(std::mem::take(&mut grown), MIN_CHECKPOINT_INTERVAL).await;
                }
                event = next_event(&mut recorded) => match event {
                    Some(Event::Message(DecisionsRecorded { accounts })) if grown.len() < MAX_GROWN => {
                        grown.extend(accounts);
                    }
                    Some(Event::Message(_) | Event::Gap) => if !scans_soon {
                        scans_soon = true;
                        scan.reset_after(GAP_SCAN_DELAY);
                    },
                    None => recorded = None,
                },
            }
        }
        self.write_checkpoints(grown, SignedDuration::ZERO).await;
    }

    /// Returns the accounts to try again. One whose last mark is younger than `min_interval` is not searched.
    async fn write_checkpoints(
        &mut self,
        accounts: BTreeSet<AccountId>,
        min_interval: SignedDuration,
    ) -> BTreeSet<AccountId> {
        // A notice may name accounts that do not exist. Listing those of the log costs the server a look at each.
        if accounts.is_empty() || (!accounts.is_subset(&self.known) && !self.list_accounts().await) {
            return accounts;
        }
        let mut accounts: BTreeSet<_> = accounts.intersection(&self.known).cloned().collect();
        let mut turns = self.last_turn.as_ref().map(|last| accounts.split_off(last)).unwrap_or_default();
        let last = self.last_turn.take().and_then(|last| turns.take(&last));
        let turns: Vec<_> = turns.into_iter().chain(accounts).chain(last).collect();
        let mut again = BTreeSet::new();
        let started = Instant::now();
        for account in turns {
            if started.elapsed() > CHECKPOINT_ROUND_TIMEOUT {
                again.insert(account);
                continue;
            }
            self.last_turn = Some(account.clone());
            let days = self.retention_days(&account);
            let (backplane, now) = (&self.shared.backplane, self.shared.clock.now());
            match marks::write(backplane, &account, days, MarkBody::Checkpoint {}, min_interval, now).await {
                Ok(MarkResult::Written(_) | MarkResult::NothingNew) => {}
                Ok(MarkResult::TooSoon) => {
                    again.insert(account);
                }
                Err(MarkFailure::UnknownAccount) => {
                    tracing::debug!(%account, "the keystore does not know this account: it gets no checkpoint");
                }
                Err(error) => {
                    let error = &error as &dyn Error;
                    tracing::warn!(%account, error, "checkpoint was not written; it is tried again");
                    again.insert(account);
                }
            }
        }
        again
    }

    async fn list_accounts(&mut self) -> bool {
        match self.shared.backplane.log.accounts(Shared::store_deadline()).await {
            Ok(accounts) => {
                self.known = accounts.into_iter().collect();
                true
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn Error, "accounts of the log cannot be listed");
                false
            }
        }
    }

    /// Returns false when the keystore did not list the current retentions, or the time is not known.
    async fn apply_retention(&mut self) -> bool {
        if let Err(error) = self.shared.clock.load(&self.shared.backplane).await {
            let error = &error as &dyn Error;
            tracing::warn!(error, "the time that was last trusted cannot be read, so nothing is removed");
            return false;
        }
        let listed = self.list_retentions().await;
        let is_current = listed.is_some();
        if let Some(retentions) = listed {
            self.retentions = retentions;
        } else if self.retentions.is_empty() {
            return false;
        }
        let Some(status) = self.shared.clock.check(&self.shared.backplane).await else { return false };
        if !self.may_remove(status) {
            return is_current;
        }
        let boot = self.shared.clock.clocks().boot;
        let span = removable_span(self.removed_at.map(|at| boot.saturating_sub(at)));
        self.removed_at = Some(boot);
        if !self.list_accounts().await {
            return false;
        }
        for account in self.known.clone() {
            if let Err(error) = self.remove_expired(&account, span).await {
                let error = &error as &dyn Error;
                tracing::warn!(%account, error, "decisions past their retention were not removed; it is tried again");
            }
        }
        is_current
    }

    fn may_remove(&self, status: ClockStatus) -> bool {
        let ahead = match status {
            ClockStatus::Trusted => None,
            ClockStatus::Ahead(by) => Some(by),
        };
        metrics::clock(ahead);
        let changed = self.shared.lag.set_clock_ahead(ahead);
        match ahead {
            Some(by) if changed => tracing::error!(
                ahead = describe_duration(by),
                "this host's clock is ahead of all others: nothing is removed from the decision log until it \
                 is set right"
            ),
            None if changed => tracing::info!("this host's clock is believed again: what is past its time is removed"),
            Some(_) | None => {}
        }
        ahead.is_none()
    }

    async fn remove_expired(&self, account: &AccountId, span: Duration) -> Result<(), MarkFailure> {
        let now = self.shared.clock.now();
        let days = self.retention_days(account);
        let removed = marks::expire(&self.shared.backplane, account, days, span, now).await?;
        if removed > 0 {
            tracing::info!(%account, entries = removed, "entries past the account's retention were removed");
        }
        Ok(())
    }

    fn retention_days(&self, account: &AccountId) -> u32 {
        self.retentions.get(account).copied().unwrap_or(DEFAULT_RETENTION_DAYS)
    }

    /// All accounts' retentions, or none: with half a list, decisions of the other accounts would be removed too early.
    async fn list_retentions(&self) -> Option<HashMap<AccountId, u32>> {
        let (mut found, mut cursor) = (HashMap::new(), None);
        let deadline = Instant::now() + LIST_RETENTIONS_TIMEOUT;
        loop {
            let list = ListRetentions { cursor };
            let reply = self.shared.backplane.requests.request(&list, Shared::STORE_TIMEOUT).await;
            let Ok(ManageReply::Done(RetentionsPage { items, next_cursor, clock })) = reply else {
                tracing::warn!("the keystore does not say how long decisions are kept");
                return None;
            };
            clock.iter().for_each(|time| self.shared.clock.observe(time));
            found.extend(items);
            cursor = next_cursor;
            if cursor.is_none() {
                return Some(found);
            }
            if Instant::now() > deadline {
                return None;
            }
        }
    }
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
