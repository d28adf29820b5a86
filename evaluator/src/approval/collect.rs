//! The outbox: gateways say what they recorded, and fetch what was not recorded in time.
//!
//! Maintenance also ends what is past its time and asks further groups. It goes by the index: what is not due is not
//! read. INVARIANT: an event is given out until a gateway has said that its line is in the log.

use jiff::Timestamp;
use stage0_backplane::ListError;
use stage0_contract::{
    AccountEvents, AccountId, ApprovalEvent, ApprovalId, CollectEvents, CollectedEvents, EventRef, EventsSettled,
    ManageReply, SettleEvents, UnconfirmedUse,
};
use tokio::time::{Instant, timeout_at};

use super::Approvals;
use super::grants::StoredGrants;
use super::index::Index;
use super::record::{StoredApproval, slot_in};
use super::serve::{failed, invalid};
use super::store::{ApprovalStore, StoreError, index_prefix, pause};

/// Accounts of one page.
const MAX_ACCOUNTS: usize = 50;
/// Events of one page, and of one account in it.
const MAX_EVENTS: usize = 200;
const MAX_EVENTS_OF_ACCOUNT: usize = 50;

/// What one approval has to tell.
struct Tended {
    events: Vec<ApprovalEvent>,
    unconfirmed: Vec<UnconfirmedUse>,
    retention_days: u32,
}

impl Approvals {
    /// What came of recording.
    pub(crate) async fn settle(&self, message: &SettleEvents, deadline: Instant) -> ManageReply<EventsSettled> {
        match self.settled(message, deadline).await {
            Ok(()) => ManageReply::Done(EventsSettled {}),
            Err(error) => failed(&message.account, &error),
        }
    }

    /// One record that cannot be read does not keep the others from being settled.
    async fn settled(&self, message: &SettleEvents, deadline: Instant) -> Result<(), StoreError> {
        let SettleEvents { account, recorded, released } = message;
        let mut ids: Vec<_> = recorded.iter().filter_map(|event| event.approval_id.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut outcome = Ok(());
        for id in &ids {
            let confirm = |approval: &mut StoredApproval, _: Timestamp| {
                let mut changed = false;
                for event in recorded.iter().filter(|event| event.approval_id.as_ref() == Some(id)) {
                    changed |= approval.confirm(event.event_id);
                }
                changed
            };
            outcome = outcome.and(self.settle_approval(account, id, deadline, confirm).await);
            // An ended approval's events may stand in the outbox of the one that took its place.
            outcome = outcome.and(self.update_heir(account, id, deadline, confirm).await);
        }
        outcome = outcome.and(self.settle_grants(account, recorded, deadline).await);
        if let Some(released) = released {
            let (approval, grant) = (released.approval_id.as_ref(), released.grant_id.as_ref());
            let release = self.release(account, released.request_id, None, approval, grant, deadline);
            outcome = outcome.and(release.await);
        }
        outcome
    }

    async fn settle_approval(
        &self,
        account: &AccountId,
        id: &ApprovalId,
        deadline: Instant,
        confirm: impl Fn(&mut StoredApproval, Timestamp) -> bool,
    ) -> Result<(), StoreError> {
        let before = self.store.find(account, id, deadline).await?.map(|(_, approval, _)| approval.status);
        if !self.update(account, id, deadline, confirm).await? {
            return Ok(());
        }
        if let Some((place, approval, _)) = self.store.find(account, id, deadline).await?
            && place.is_current
            && before.is_some_and(|before| before != approval.status)
        {
            tracing::info!(%account, approval_id = %id, status = approval.status.as_str(), "use recorded");
            self.shorten_text(&approval, self.store.config.approval_text_ttl, deadline).await?;
            self.announce(account, id).await;
        }
        Ok(())
    }

    async fn settle_grants(
        &self,
        account: &AccountId,
        recorded: &[EventRef],
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let of_grants: Vec<_> =
            recorded.iter().filter_map(|event| Some((event.grant_id.as_ref()?, event.event_id))).collect();
        if of_grants.is_empty() {
            return Ok(());
        }
        let confirm = |grants: &mut StoredGrants, _| {
            for (id, event_id) in &of_grants {
                grants.confirm(id, *event_id);
            }
            Ok::<_, std::convert::Infallible>(())
        };
        let Ok(()) = self.store.change_grants(account, deadline, confirm).await?;
        Ok(())
    }

    /// Confirms events in the current record of an ended approval's action.
    async fn update_heir(
        &self,
        account: &AccountId,
        id: &ApprovalId,
        deadline: Instant,
        confirm: impl Fn(&mut StoredApproval, Timestamp) -> bool,
    ) -> Result<(), StoreError> {
        let Some(slot) = slot_in(id) else { return Ok(()) };
        let Some(current) = self.store.current(account, slot, deadline).await?.value else { return Ok(()) };
        if current.id != *id {
            self.update(account, &current.id, deadline, confirm).await?;
        }
        Ok(())
    }

    /// Which events wait to be recorded, by account.
    pub(crate) async fn collect(&self, message: &CollectEvents, deadline: Instant) -> ManageReply<CollectedEvents> {
        let Ok(Ok(_turn)) = timeout_at(deadline, self.lists.acquire()).await else { return ManageReply::Busy };
        let under = index_prefix();
        let listed = self.store.state_store.list(&under, message.cursor.as_deref(), MAX_ACCOUNTS, deadline).await;
        let page = match listed {
            Ok(page) => page,
            Err(ListError::Cursor) => return invalid("cursor", "must be the `next_cursor` of an earlier page"),
            Err(error @ ListError::Read(_)) => {
                crate::metrics::approvals_failed();
                tracing::warn!(error = &error as &dyn std::error::Error, "accounts with approvals cannot be listed");
                return ManageReply::Failed;
            }
        };
        let now = self.store.now();
        let mut busy = Vec::new();
        for (word, record) in page.records {
            let Ok(account) = AccountId::parse(&word) else { continue };
            let Ok(index) = serde_json::from_slice::<Index>(&record.value) else {
                failed::<()>(&account, &StoreError::Forged);
                continue;
            };
            if index.is_due(now) {
                busy.push((account, index));
            }
        }
        let (mut accounts, mut left, count) = (Vec::new(), MAX_EVENTS, busy.len());
        for (at, (account, index)) in busy.into_iter().enumerate() {
            // None of them waits for ever behind one that has much to tell.
            let share = left.checked_div(count - at).unwrap_or_default().clamp(1, MAX_EVENTS_OF_ACCOUNT);
            match self.collect_of(&account, &index, share, deadline).await {
                Ok(Some(found)) => {
                    left = left.saturating_sub(found.events.len());
                    accounts.push(found);
                }
                Ok(None) => {}
                // The others' events are recorded all the same.
                Err(error) => {
                    failed::<()>(&account, &error);
                }
            }
        }
        ManageReply::Done(CollectedEvents { accounts, next_cursor: page.next })
    }

    async fn collect_of(
        &self,
        account: &AccountId,
        index: &Index,
        most: usize,
        deadline: Instant,
    ) -> Result<Option<AccountEvents>, StoreError> {
        let now = self.store.now();
        let (mut events, mut unconfirmed) = (Vec::new(), Vec::new());
        let mut retention_days = stage0_contract::DEFAULT_RETENTION_DAYS;
        for slot in index.due(now) {
            let left = most.saturating_sub(events.len());
            if left == 0 || unconfirmed.len() >= most {
                break;
            }
            // A malformed record is logged and left; the others go on.
            match self.tend(account, &slot, left, deadline).await {
                Ok(Some(found)) => {
                    events.extend(found.events);
                    unconfirmed.extend(found.unconfirmed);
                    retention_days = found.retention_days;
                }
                Ok(None) => {}
                Err(error) => {
                    failed::<()>(account, &error);
                }
            }
        }
        let left = most.saturating_sub(events.len());
        if left > 0 && index.grants_due_at.is_some_and(|at| at <= now) {
            match self.collect_of_grants(account, left, deadline).await {
                Ok((found, days)) => {
                    if !found.is_empty() {
                        retention_days = days;
                    }
                    events.extend(found);
                }
                // What approvals have handed out is recorded all the same.
                Err(error) => {
                    failed::<()>(account, &error);
                }
            }
        }
        let is_empty = events.is_empty() && unconfirmed.is_empty();
        Ok((!is_empty).then(|| AccountEvents { account: account.clone(), retention_days, events, unconfirmed }))
    }

    /// What the account's wider grants have to tell, and how long its lines are kept.
    async fn collect_of_grants(
        &self,
        account: &AccountId,
        most: usize,
        deadline: Instant,
    ) -> Result<(Vec<ApprovalEvent>, u32), StoreError> {
        let collect = |grants: &mut StoredGrants, now: Timestamp| {
            let mut events = Vec::new();
            for grant in &mut grants.grants {
                events.extend(grant.outbox.collect(now, most.saturating_sub(events.len())));
            }
            Ok::<_, std::convert::Infallible>((events, grants.retention_days))
        };
        let Ok(found) = self.store.change_grants(account, deadline, collect).await?;
        Ok(found)
    }

    /// Ends what is past its time, and hands out what was not recorded in time.
    async fn tend(
        &self,
        account: &AccountId,
        slot: &str,
        most: usize,
        deadline: Instant,
    ) -> Result<Option<Tended>, StoreError> {
        while Instant::now() < deadline {
            let found = self.store.current(account, slot, deadline).await?;
            let Some(mut approval) = found.value else {
                // It was never stored, or it was kept for long enough.
                let now = self.store.now();
                let change = |index: &mut Index| {
                    index.entries.retain(|entry| entry.slot != slot || entry.due_at > now);
                };
                self.store.change_index(account, deadline, change).await?;
                return Ok(None);
            };
            let (before, now) = (approval.clone(), self.store.now());
            let was = approval.status;
            approval.pass_time(now);
            let events = approval.outbox.collect(now, most);
            let unconfirmed = approval.unconfirmed(now);
            let place = ApprovalStore::place(account, &approval.action_digest);
            if approval != before && !self.store.put(&place, &approval, found.revision, deadline).await? {
                pause().await;
                continue;
            }
            self.after_change(&approval, was, deadline).await;
            if approval.status != was || approval.escalated_after != before.escalated_after {
                let status = approval.status.as_str();
                tracing::info!(%account, approval_id = %approval.id, status, "approval passed its time");
                self.announce(account, &approval.id).await;
            }
            return Ok(Some(Tended { events, unconfirmed, retention_days: approval.retention_days }));
        }
        Err(StoreError::Contended)
    }
}
