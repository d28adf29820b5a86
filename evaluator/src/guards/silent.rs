//! The round that finds silent guards, and what came of recording their events.
//!
//! INVARIANT: what is handed out is marked in the guard's record first, so two gateways do not record it at once.

use jiff::Timestamp;
use stage0_backplane::{ListError, Revision};
use stage0_contract::{
    AccountEvents, AccountId, CollectSilentGuards, CollectedEvents, GuardId, ManageReply, SettleEvents,
};
use tokio::time::{Instant, timeout_at};

use super::index::GuardIndex;
use super::record::{HandedOut, StoredGuard};
use super::{Guards, INDEX_TTL, account_prefix, failed, index_prefix, invalid, key_of, key_of_index};
use crate::metrics;
use crate::records::{Found, RecordError, pause, until};

/// Accounts of one page.
const MAX_ACCOUNTS: usize = 50;
/// Events of one page, and of one account in it.
const MAX_EVENTS: usize = 200;
const MAX_EVENTS_OF_ACCOUNT: usize = 50;
/// Guards that are read at a time.
const PAGE: usize = 500;

/// Some guards with the revisions of their records, and where the next ones begin.
type GuardPage = (Vec<(StoredGuard, Revision)>, Option<String>);

/// What a look at an account's guards has found.
#[derive(Default)]
struct Look {
    events: Vec<HandedOut>,
    retention_days: u32,
    count: usize,
    /// When the first guard must be looked at next.
    first: Option<Timestamp>,
    /// There was more than may be handed out at a time.
    is_cut: bool,
}

impl Look {
    fn next(&mut self, at: Timestamp) {
        self.first = Some(self.first.map_or(at, |first| first.min(at)));
    }
}

impl Guards {
    /// Which guards went silent and are not recorded as such, by account.
    pub(crate) async fn collect(
        &self,
        message: &CollectSilentGuards,
        deadline: Instant,
    ) -> ManageReply<CollectedEvents> {
        let Ok(Ok(_turn)) = timeout_at(deadline, self.lists.acquire()).await else { return ManageReply::Busy };
        let (under, cursor) = (index_prefix(), message.cursor.as_deref());
        let page = match self.records.state_store.list(&under, cursor, MAX_ACCOUNTS, deadline).await {
            Ok(page) => page,
            Err(ListError::Cursor) => return invalid("cursor", "must be the `next_cursor` of an earlier page"),
            Err(error @ ListError::Read(_)) => {
                metrics::guards_failed();
                tracing::warn!(error = &error as &dyn std::error::Error, "accounts with guards cannot be listed");
                return ManageReply::Failed;
            }
        };
        let now = self.records.now();
        let mut due = Vec::new();
        for (word, record) in page.records {
            let Ok(account) = AccountId::parse(&word) else { continue };
            match serde_json::from_slice::<GuardIndex>(&record.value) {
                Ok(index) if index.is_due(now) => due.push(account),
                Ok(_) => {}
                Err(_) => drop(failed::<()>(&account, &RecordError::Malformed)),
            }
        }
        let (mut accounts, mut left, count) = (Vec::new(), MAX_EVENTS, due.len());
        for (at, account) in due.into_iter().enumerate() {
            // None of them waits for ever behind one that has much to tell.
            let share = left.checked_div(count - at).unwrap_or_default().clamp(1, MAX_EVENTS_OF_ACCOUNT);
            if let Some(found) = self.collect_of(account, share, deadline).await {
                left = left.saturating_sub(found.events.len());
                accounts.push(found);
            }
        }
        ManageReply::Done(CollectedEvents { accounts, next_cursor: page.next })
    }

    /// Looks at an account's guards. What was handed out is returned, even where a later one could not be read.
    async fn collect_of(&self, account: AccountId, most: usize, deadline: Instant) -> Option<AccountEvents> {
        let mut look = Look::default();
        if let Err(error) = self.look(&account, most, &mut look, deadline).await {
            failed::<()>(&account, &error);
        }
        for handed_out in look.events.iter().filter(|handed_out| handed_out.is_new) {
            metrics::guard_silent();
            let guard_id = handed_out.event.guard_id.as_ref().map(tracing::field::display);
            tracing::warn!(%account, guard_id, "guard is silent");
        }
        let (retention_days, unconfirmed) = (look.retention_days, Vec::new());
        let events: Vec<_> = look.events.into_iter().map(|handed_out| handed_out.event).collect();
        (!events.is_empty()).then(|| AccountEvents { account, retention_days, events, unconfirmed })
    }

    async fn look(
        &self,
        account: &AccountId,
        most: usize,
        look: &mut Look,
        deadline: Instant,
    ) -> Result<(), RecordError> {
        let key = key_of_index(account);
        let found: Found<GuardIndex> = self.records.read(&key, deadline).await?;
        let now = self.records.now();
        // Another evaluator may have looked meanwhile.
        let Some(mut index) = found.value.filter(|index| index.is_due(now)) else { return Ok(()) };
        let (under, mut cursor) = (account_prefix(account), None);
        loop {
            let (guards, next) = self.guards(account, &under, cursor.as_deref(), PAGE, deadline).await?;
            for (guard, revision) in guards {
                self.look_at(account, guard, revision, most, look, deadline).await?;
            }
            cursor = next;
            if cursor.is_none() || look.is_cut {
                break;
            }
        }
        if look.is_cut {
            // The index stays as it is, so that the next round goes on.
            return Ok(());
        }
        index.looked(look.count, look.first, now);
        // On a conflict a report has changed it: then it is looked at again.
        self.records.write(&key, &index, found.revision, INDEX_TTL, deadline).await.map(drop)
    }

    async fn look_at(
        &self,
        account: &AccountId,
        mut guard: StoredGuard,
        revision: Revision,
        most: usize,
        look: &mut Look,
        deadline: Instant,
    ) -> Result<(), RecordError> {
        let now = self.records.now();
        look.count += 1;
        if look.events.len() >= most && guard.look_at().is_some_and(|at| at <= now) {
            look.is_cut = true;
            return Ok(());
        }
        let handed_out = guard.hand_out(now);
        if let Some(handed_out) = handed_out {
            let ttl = until(now, guard.ends_at());
            let key = key_of(account, guard.id());
            if !self.records.write(&key, &guard, Some(revision), ttl, deadline).await? {
                // It has just reported, or another evaluator hands its event out.
                look.next(now);
                return Ok(());
            }
            look.retention_days = guard.retention_days;
            look.events.push(handed_out);
        }
        if let Some(at) = guard.look_at() {
            look.next(at);
        }
        Ok(())
    }

    /// Some of an account's guards. One record that is malformed, or does not belong there, does not hide the others.
    pub(super) async fn guards(
        &self,
        account: &AccountId,
        under: &str,
        after: Option<&str>,
        most: usize,
        deadline: Instant,
    ) -> Result<GuardPage, RecordError> {
        let listed = self.records.state_store.list(under, after, most, deadline).await.map_err(RecordError::List)?;
        let mut guards = Vec::with_capacity(listed.records.len());
        for (word, record) in listed.records {
            match serde_json::from_slice::<StoredGuard>(&record.value) {
                Ok(guard) if guard.belongs(account, &word) => {
                    if !guard.forgotten {
                        guards.push((guard, record.revision));
                    }
                }
                _ => drop(failed::<()>(account, &RecordError::Malformed)),
            }
        }
        Ok((guards, listed.next))
    }

    /// What came of recording.
    pub(crate) async fn settle(&self, message: &SettleEvents, deadline: Instant) -> Result<(), ManageReply<()>> {
        let SettleEvents { account, recorded, .. } = message;
        let mut outcome = Ok(());
        for event in recorded {
            let Some(guard_id) = &event.guard_id else { continue };
            outcome = outcome.and(self.confirm(account, guard_id, event.event_id, deadline).await);
        }
        outcome.map_err(|error| failed(account, &error))
    }

    async fn confirm(
        &self,
        account: &AccountId,
        guard_id: &GuardId,
        event_id: uuid::Uuid,
        deadline: Instant,
    ) -> Result<(), RecordError> {
        while Instant::now() < deadline {
            let found = self.guard(account, guard_id, deadline).await?;
            let Some(mut guard) = found.value.filter(|guard| !guard.forgotten) else { return Ok(()) };
            if !guard.confirm(event_id) {
                return Ok(());
            }
            let ttl = until(self.records.now(), guard.ends_at());
            if self.records.write(&key_of(account, guard_id), &guard, found.revision, ttl, deadline).await? {
                return Ok(());
            }
            pause().await;
        }
        Err(RecordError::Contended)
    }
}
