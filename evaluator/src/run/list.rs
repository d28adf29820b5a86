//! `GET /v1/runs`: an account's runs, page by page, from the state store.
//!
//! Few pages are read at a time, and they are decoded on another thread. A run of an earlier version, whose name is not
//! stored, is listed from its next check on.

use stage0_backplane::{ListError, RecordPage};
use stage0_contract::{FieldError, ListRuns, ManageReply, Page, RUN_RECORDS, Refusal, RunView};
use tokio::time::{Instant, timeout_at};

use super::RunCoordinator;
use super::coordinator::seconds;
use super::journal::{Journals, RunRecord};
use crate::metrics;

const MAX_PAGE: u32 = 1_000;

#[derive(Debug, thiserror::Error)]
enum ListRunsError {
    #[error("the runs cannot be read: {0}")]
    Read(String),
    #[error("too many lists are read at a time")]
    Busy,
    #[error("the cursor is not of an earlier page")]
    Cursor,
}

impl RunCoordinator {
    /// `GET /v1/runs`.
    pub(crate) async fn list(&self, message: &ListRuns, deadline: Instant) -> ManageReply<Page<RunView>> {
        let ListRuns { account, cursor, limit } = message;
        // The gateway has validated this, but any process may send a request.
        if !(1..=MAX_PAGE).contains(limit) {
            let message = format!("must be 1 to {MAX_PAGE}");
            return ManageReply::Refused(Refusal::Invalid(vec![FieldError::new("limit", message)]));
        }
        match self.page(&format!("{RUN_RECORDS}.{account}"), cursor.as_deref(), *limit, deadline).await {
            Ok(page) => ManageReply::Done(page),
            Err(ListRunsError::Cursor) => {
                let error = FieldError::new("cursor", "must be the `next_cursor` of an earlier page");
                ManageReply::Refused(Refusal::Invalid(vec![error]))
            }
            Err(ListRunsError::Busy) => ManageReply::Busy,
            Err(error @ ListRunsError::Read(_)) => {
                metrics::ledger_failed();
                tracing::warn!(%account, error = &error as &dyn std::error::Error, "runs cannot be listed");
                ManageReply::Failed
            }
        }
    }

    async fn page(
        &self,
        under: &str,
        cursor: Option<&str>,
        limit: u32,
        deadline: Instant,
    ) -> Result<Page<RunView>, ListRunsError> {
        let Ok(Ok(_turn)) = timeout_at(deadline, self.lists.acquire()).await else { return Err(ListRunsError::Busy) };
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        let listed = self.state_store.list(under, cursor, most, deadline).await.map_err(|error| match error {
            ListError::Cursor => ListRunsError::Cursor,
            ListError::Read(error) => ListRunsError::Read(error.0.to_string()),
        })?;
        let journals = Journals::read(&*self.state_store, &listed, deadline).await;
        let journals = journals.map_err(|error| ListRunsError::Read(error.to_string()))?;
        let (now, reserved_for, under) = (self.now(), seconds(self.config.reserved_for), under.to_owned());
        let views = tokio::task::spawn_blocking(move || views(listed, &under, &journals, now, reserved_for)).await;
        views.map_err(|error| ListRunsError::Read(error.to_string()))?
    }
}

/// Leaves out counters and ended runs. A run that its journal gives up meanwhile may be listed as it was before.
fn views(
    listed: RecordPage,
    under: &str,
    journals: &Journals,
    now: i64,
    reserved_for: i64,
) -> Result<Page<RunView>, ListRunsError> {
    let unparsed =
        |error: serde_json::Error| ListRunsError::Read(format!("line {} column {}", error.line(), error.column()));
    let RecordPage { records, next } = listed;
    let mut items = Vec::with_capacity(records.len());
    for (word, record) in records {
        // Keys of daily counters begin with `n`, which no hash contains.
        if word.starts_with('n') {
            continue;
        }
        let mut state = match RunRecord::parse(&record.value).map_err(unparsed)? {
            RunRecord::Own(state) => state,
            RunRecord::Held(held) => {
                let last = journals.state(&format!("{under}.{word}"), record.revision, &held);
                last.map_err(|error| ListRunsError::Read(error.to_string()))?.unwrap_or(held.run)
            }
        };
        let Some(name) = state.name.clone().filter(|_| !state.ended) else { continue };
        state.expire(now, reserved_for);
        items.push(state.view(name, now, reserved_for));
    }
    Ok(Page { items, next_cursor: next })
}
