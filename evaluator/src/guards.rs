//! Guards: when each reported last, and which went silent.
//!
//! The rules are pure (`record`, `index`); around them are the state store and the served requests. A guard has a
//! record of its own, and an account an index of when its guards must be looked at, so that a round of maintenance
//! reads only accounts with something due. Does no recording: a silence is handed out until a gateway has recorded it.
//! INVARIANT: the index is written before the record, so no guard is missed for longer than a look takes.

mod index;
mod record;
mod silent;

use std::sync::Arc;
use std::time::Duration;

use stage0_backplane::{ListError, MAX_CONCURRENT_LISTS, StateStore};
use stage0_contract::{
    AccountId, FieldError, ForgetGuard, GUARD_RECORDS, GUARD_TTL_DAYS, Guard, GuardForgotten, GuardId, ListGuards,
    MAX_GUARD_TEXT_CHARS, MAX_GUARDS, MAX_NEXT_WITHIN_SECONDS, ManageReply, Page, Refusal, ReportGuard, is_guard_text,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::metrics;
use crate::records::{Found, MIN_TTL, RecordError, Records, pause, until};
use index::{Arrival, GuardIndex, TooMany};
use record::StoredGuard;

const MAX_PAGE: u32 = 1_000;
/// Records that one page of a list looks at.
const MAX_SCANNED: usize = 2_000;
/// The index is written at each look, and outlives every guard.
const INDEX_TTL: Duration = Duration::from_secs((GUARD_TTL_DAYS as u64 + 8) * 86_400);

/// One shard's guards.
pub(crate) struct Guards {
    records: Records,
    /// One permit per request that lists.
    lists: Semaphore,
}

fn account_prefix(account: &AccountId) -> String {
    format!("{GUARD_RECORDS}.g.{account}")
}

fn key_of(account: &AccountId, guard_id: &GuardId) -> String {
    format!("{GUARD_RECORDS}.g.{account}.{guard_id}")
}

fn key_of_index(account: &AccountId) -> String {
    format!("{GUARD_RECORDS}.i.{account}")
}

fn index_prefix() -> String {
    format!("{GUARD_RECORDS}.i")
}

/// Logs a failure.
fn failed<T>(account: &AccountId, error: &RecordError) -> ManageReply<T> {
    metrics::guards_failed();
    tracing::warn!(%account, error = error as &dyn std::error::Error, "guards failed");
    ManageReply::Failed
}

fn invalid<T>(path: &str, message: impl Into<String>) -> ManageReply<T> {
    ManageReply::Refused(Refusal::Invalid(vec![FieldError::new(path, message.into())]))
}

impl Guards {
    pub(crate) fn new(state_store: Arc<dyn StateStore>) -> Self {
        Self { records: Records { state_store }, lists: Semaphore::new(MAX_CONCURRENT_LISTS) }
    }

    /// `POST /v1/guards`.
    pub(crate) async fn report(&self, message: &ReportGuard, deadline: Instant) -> ManageReply<Guard> {
        if let Some(error) = fault(message) {
            return ManageReply::Refused(Refusal::Invalid(vec![error]));
        }
        match self.reported(message, deadline).await {
            Ok(Ok(guard)) => ManageReply::Done(guard),
            Ok(Err(TooMany)) => {
                let text = format!("the account has {MAX_GUARDS} guards already: forget those that are gone");
                ManageReply::Refused(Refusal::Conflict(text))
            }
            Err(error) => failed(&message.account, &error),
        }
    }

    async fn reported(&self, message: &ReportGuard, deadline: Instant) -> Result<Result<Guard, TooMany>, RecordError> {
        let ReportGuard { account, guard_id, .. } = message;
        while Instant::now() < deadline {
            let found = self.guard(account, guard_id, deadline).await?;
            let before = found.value.filter(|guard| !guard.forgotten);
            let now = self.records.now();
            let guard = StoredGuard::reported(before.as_ref(), message, now);
            let (look_at, looked_at) = (guard.look_at(), before.as_ref().and_then(StoredGuard::look_at));
            let is_sooner = look_at.is_some_and(|at| looked_at.is_none_or(|before| at < before));
            let arrival = Arrival { is_new: before.is_none(), is_sooner, look_at };
            if let Err(too_many) = self.admit(account, arrival, deadline).await? {
                return Ok(Err(too_many));
            }
            let ttl = until(now, guard.ends_at());
            if self.records.write(&key_of(account, guard_id), &guard, found.revision, ttl, deadline).await? {
                return Ok(Ok(guard.view(now)));
            }
            pause().await;
        }
        Err(RecordError::Contended)
    }

    async fn admit(
        &self,
        account: &AccountId,
        arrival: Arrival,
        deadline: Instant,
    ) -> Result<Result<(), TooMany>, RecordError> {
        let now = self.records.now();
        self.change_index(account, deadline, |index| index.admit(arrival, now)).await
    }

    /// Changes the account's index; a refusal changes nothing.
    async fn change_index<E>(
        &self,
        account: &AccountId,
        deadline: Instant,
        change: impl Fn(&mut GuardIndex) -> Result<(), E>,
    ) -> Result<Result<(), E>, RecordError> {
        let key = key_of_index(account);
        while Instant::now() < deadline {
            let found: Found<GuardIndex> = self.records.read(&key, deadline).await?;
            let before = found.value.unwrap_or_default();
            let mut index = before.clone();
            if let Err(refused) = change(&mut index) {
                return Ok(Err(refused));
            }
            if index == before || self.records.write(&key, &index, found.revision, INDEX_TTL, deadline).await? {
                return Ok(Ok(()));
            }
            pause().await;
        }
        Err(RecordError::Contended)
    }

    async fn guard(
        &self,
        account: &AccountId,
        guard_id: &GuardId,
        deadline: Instant,
    ) -> Result<Found<StoredGuard>, RecordError> {
        let found = self.records.read::<StoredGuard>(&key_of(account, guard_id), deadline).await?;
        if found.value.as_ref().is_some_and(|guard| !guard.belongs(account, guard_id.as_str())) {
            return Err(RecordError::Malformed);
        }
        Ok(found)
    }

    /// `DELETE /v1/guards/{guard_id}`.
    pub(crate) async fn forget(&self, message: &ForgetGuard, deadline: Instant) -> ManageReply<GuardForgotten> {
        match self.forgotten(message, deadline).await {
            Ok(true) => ManageReply::Done(GuardForgotten {}),
            Ok(false) => ManageReply::Refused(Refusal::NotFound),
            Err(error) => failed(&message.account, &error),
        }
    }

    async fn forgotten(&self, message: &ForgetGuard, deadline: Instant) -> Result<bool, RecordError> {
        let ForgetGuard { account, guard_id } = message;
        while Instant::now() < deadline {
            let found = self.guard(account, guard_id, deadline).await?;
            let Some(mut gone) = found.value.filter(|guard| !guard.forgotten) else { return Ok(false) };
            gone.forgotten = true;
            if self.records.write(&key_of(account, guard_id), &gone, found.revision, MIN_TTL, deadline).await? {
                tracing::info!(%account, %guard_id, "guard forgotten");
                let one_less = |index: &mut GuardIndex| {
                    index.count = index.count.saturating_sub(1);
                    Ok::<_, std::convert::Infallible>(())
                };
                // Where this fails the guards are counted again within the hour.
                if let Err(error) = self.change_index(account, deadline, one_less).await {
                    failed::<()>(account, &error);
                }
                return Ok(true);
            }
            pause().await;
        }
        Err(RecordError::Contended)
    }

    /// `GET /v1/guards`.
    pub(crate) async fn list(&self, message: &ListGuards, deadline: Instant) -> ManageReply<Page<Guard>> {
        let ListGuards { account, limit, .. } = message;
        // The gateway has validated this, but any process may send a request.
        if !(1..=MAX_PAGE).contains(limit) {
            return invalid("limit", format!("must be 1 to {MAX_PAGE}"));
        }
        let Ok(Ok(_turn)) = timeout_at(deadline, self.lists.acquire()).await else { return ManageReply::Busy };
        match self.page(message, deadline).await {
            Ok(page) => ManageReply::Done(page),
            Err(RecordError::List(ListError::Cursor)) => {
                invalid("cursor", "must be the `next_cursor` of an earlier page")
            }
            Err(error) => failed(account, &error),
        }
    }

    async fn page(&self, message: &ListGuards, deadline: Instant) -> Result<Page<Guard>, RecordError> {
        let ListGuards { account, state, cursor, limit } = message;
        let (under, now) = (account_prefix(account), self.records.now());
        let most = usize::try_from(*limit).unwrap_or(usize::MAX);
        let (mut items, mut cursor, mut scanned) = (Vec::new(), cursor.clone(), 0);
        loop {
            let (guards, next) = self.guards(account, &under, cursor.as_deref(), most - items.len(), deadline).await?;
            scanned += most;
            let shown = guards.into_iter().map(|(guard, _)| guard);
            let shown = shown.filter(|guard| state.is_none_or(|state| guard.state(now) == state));
            items.extend(shown.map(|guard| guard.view(now)));
            cursor = next;
            if cursor.is_none() || items.len() >= most || scanned >= MAX_SCANNED {
                break;
            }
        }
        items.sort_by(|one, other| one.guard_id.cmp(&other.guard_id));
        Ok(Page { items, next_cursor: cursor })
    }
}

/// The gateway has validated this, but any process may send a request.
fn fault(message: &ReportGuard) -> Option<FieldError> {
    let ReportGuard { kind, version, agent_version, host, next_within_seconds, .. } = message;
    let texts = [("kind", Some(kind)), ("version", Some(version))];
    let optional = [("agent_version", agent_version.as_ref()), ("host", host.as_ref())];
    let is_wrong = |(_, text): &(&str, Option<&String>)| text.is_some_and(|text| !is_guard_text(text));
    if let Some((path, _)) = texts.into_iter().chain(optional).find(is_wrong) {
        let message = format!("must be 1 to {MAX_GUARD_TEXT_CHARS} letters, digits or one of `._-/@+`");
        return Some(FieldError::new(path, message));
    }
    let is_too_long = *next_within_seconds > MAX_NEXT_WITHIN_SECONDS;
    is_too_long.then(|| FieldError::new("next_within_seconds", format!("must be at most {MAX_NEXT_WITHIN_SECONDS}")))
}
