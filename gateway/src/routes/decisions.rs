//! `/v1/decisions`: what was recorded of the caller's account, and nothing else.
//!
//! Reading is the gateway's own, straight from the log; deleting is asked of the exporter, whose credentials alone may. An operator
//! reads none. A download is the log's own bytes, so that a chain can be verified where it arrives.

use actix_web::http::header::CONTENT_DISPOSITION;
use actix_web::web::{Bytes, Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;
use stage0_backplane::{Backplane, ReadError, Seek};
use stage0_contract::{
    AccountId, DeleteDecisions, IssueCode, KeyIdentity, MarkRef, PublicKeys, RequestId, Scope, SigningKeys, Verdict,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::fields::Fields;
use super::keys::{manage, manage_within};
use super::{answer, authenticate};
use crate::errors::ApiError;
use crate::reader::{Cursor, Filter, Shelf};
use crate::state::Gate;

/// Items of a page at most.
const MOST_ITEMS: u32 = 1_000;
/// A deletion walks through what it deletes.
const DELETE_WITHIN: std::time::Duration = std::time::Duration::from_secs(60);

/// One page.
#[derive(Serialize)]
struct Items {
    items: Vec<Value>,
    next_cursor: Option<String>,
}

pub(super) async fn get(gate: Data<Gate>, request: HttpRequest, id: Path<String>) -> HttpResponse {
    let found = async {
        let identity = reader(&gate, &request).await?;
        let id = RequestId::parse(&id).map_err(|_| ApiError::NotFound)?;
        let found = shelf(&gate, &identity).decision(id).await.map_err(|error| unread(&error))?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(found.ok_or(ApiError::NotFound)?))
    };
    answer(&request, found.await)
}

pub(super) async fn list(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let listed = async {
        let identity = reader(&gate, &request).await?;
        let mut fields = Fields::of_query(&request);
        let filter = Filter {
            from: fields.timestamp("from"),
            to: fields.timestamp("to"),
            verdict: fields.word("verdict", "must be `ALLOW`, `DENY` or `DEFER`", Verdict::parse),
            environment: fields.text("environment"),
            code: fields.word("code", "must be an issue code", |text| IssueCode::parse(text).ok()),
            run_id: fields.text("run_id"),
        };
        let cursor = fields.word("cursor", "must be the `next_cursor` of an earlier page", Cursor::parse);
        let limit = fields.limit();
        if limit == 0 || limit > MOST_ITEMS {
            fields.refuse("limit", "must be 1 to 1000");
        }
        fields.finish()?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let page = shelf(&gate, &identity).page(&filter, cursor, limit).await;
        let (items, next) = page.map_err(|error| unread(&error))?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(Items { items, next_cursor: next.map(|next| next.to_string()) }))
    };
    answer(&request, listed.await)
}

pub(super) async fn verify(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let verified = async {
        let identity = reader(&gate, &request).await?;
        let mut fields = Fields::of_query(&request);
        let (from, to) = (fields.timestamp("from"), fields.timestamp("to"));
        let kept = fields.word("kept", "must be `number:hash` of a mark", |text| MarkRef::parse(text).ok());
        fields.finish()?;
        let _turn = walk(&gate)?;
        let PublicKeys { items: keys } = manage(&gate, &SigningKeys {}).await?;
        let report = shelf(&gate, &identity).verify(from, to, kept, keys).await.map_err(|error| unread(&error))?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(report))
    };
    answer(&request, verified.await)
}

pub(super) async fn export(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let begun = async {
        let identity = reader(&gate, &request).await?;
        let mut fields = Fields::of_query(&request);
        let (from, to) = (fields.timestamp("from"), fields.timestamp("to"));
        fields.finish()?;
        let turn = walk(&gate)?;
        let shelf = shelf(&gate, &identity);
        let download = Download {
            backplane: gate.backplane.clone(),
            account: identity.account.clone(),
            horizon: shelf.horizon,
            now: shelf.now,
            from,
            to,
            seek: Some(shelf.begin(from)),
            _turn: turn,
        };
        // The first piece before the headers: a log that does not answer is a 503, and not a download that breaks.
        let (first, download) = download.next().await.map_err(|error| unread(&error))?;
        let rest = futures_util::stream::try_unfold(download, async |download| match download.seek {
            Some(_) => download.next().await.map(Some),
            None => Ok(None),
        });
        let body = futures_util::StreamExt::chain(futures_util::stream::iter([Ok::<_, ReadError>(first)]), rest);
        Ok::<_, ApiError>(
            HttpResponse::Ok()
                .content_type("application/x-ndjson")
                .insert_header((CONTENT_DISPOSITION, "attachment; filename=\"decisions.ndjson\""))
                .streaming(body),
        )
    };
    answer(&request, begun.await)
}

pub(super) async fn delete(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let deleted = async {
        let identity = authenticate(&gate, &request, Instant::now() + gate.config.request_budget).await?;
        allow(&identity, Scope::DecisionsDelete)?;
        let mut fields = Fields::of_query(&request);
        let before = fields.timestamp("before");
        if before.is_none() {
            fields.refuse("before", "is required, as a time such as `2026-01-31T12:00:00Z` (RFC 3339)");
        }
        if before.is_some_and(|before| before > Timestamp::now()) {
            fields.refuse("before", "must not be in the future");
        }
        fields.finish()?;
        let before = before.unwrap_or(Timestamp::UNIX_EPOCH);
        let (account, requested_by) = (identity.account.clone(), identity.key_id.clone());
        let deleted = manage_within(&gate, &DeleteDecisions { account, before, requested_by }, DELETE_WITHIN).await?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(deleted))
    };
    answer(&request, deleted.await)
}

/// Not a secret, and for whoever verifies a chain: no key is needed.
pub(super) async fn signing_keys(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let asked = gate.signing_keys.try_get_with((), manage(&gate, &SigningKeys {})).await;
    let listed = asked.map(|keys| HttpResponse::Ok().json(keys)).map_err(|error| ApiError::clone(&error));
    answer(&request, listed)
}

async fn reader(gate: &Gate, request: &HttpRequest) -> Result<std::sync::Arc<KeyIdentity>, ApiError> {
    let identity = authenticate(gate, request, Instant::now() + gate.config.request_budget).await?;
    allow(&identity, Scope::DecisionsRead)?;
    Ok(identity)
}

/// An operator neither checks nor reads decisions, whatever else its key was granted.
fn allow(identity: &KeyIdentity, scope: Scope) -> Result<(), ApiError> {
    let may = identity.scopes.contains(&scope) && !identity.scopes.contains(&Scope::Operator);
    if may { Ok(()) } else { Err(ApiError::ScopeMissing(scope)) }
}

pub(super) fn shelf<'a>(gate: &'a Gate, identity: &'a KeyIdentity) -> Shelf<'a> {
    let now = Timestamp::now();
    let kept = SignedDuration::from_hours(24 * i64::from(identity.retention_days));
    let horizon = now.checked_sub(kept).unwrap_or(Timestamp::UNIX_EPOCH);
    Shelf { log: gate.log(), account: &identity.account, horizon, now }
}

fn walk(gate: &Gate) -> Result<OwnedSemaphorePermit, ApiError> {
    std::sync::Arc::clone(&gate.walks).try_acquire_owned().map_err(|_| ApiError::TooManyWalks)
}

fn unread(error: &ReadError) -> ApiError {
    tracing::error!(error = error as &dyn std::error::Error, "decisions could not be read");
    ApiError::Unavailable
}

/// A download under way.
struct Download {
    backplane: Backplane,
    account: AccountId,
    horizon: Timestamp,
    now: Timestamp,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    /// Where the next piece begins; none after the last.
    seek: Option<Seek>,
    _turn: OwnedSemaphorePermit,
}

impl Download {
    async fn next(mut self) -> Result<(Bytes, Self), ReadError> {
        let Some(seek) = self.seek else { return Ok((Bytes::new(), self)) };
        let (log, account) = (&*self.backplane.log, &self.account);
        let shelf = Shelf { log, account, horizon: self.horizon, now: self.now };
        let (lines, next) = shelf.stretch(seek, self.from, self.to).await?;
        self.seek = next;
        Ok((lines.into(), self))
    }
}
