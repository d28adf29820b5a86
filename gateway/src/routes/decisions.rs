//! `/v1/decisions`: what was recorded for the caller's account, and nothing else.
//!
//! The gateway reads the log itself, on threads apart from those that serve checks (`read_pool.rs`). Only the
//! exporter's credentials can delete. An operator reads no decisions. A download has the log's own bytes, so that its
//! receiver can verify the chain, and can be resumed after any decision that it contained.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::body::MessageBody as _;
use actix_web::http::header::{CONTENT_DISPOSITION, ContentType};
use actix_web::web::{Bytes, Path};
use jiff::Timestamp;
use serde_json::Value;
use stage0_backplane::{ReadError, Seek};
use stage0_contract::{
    DeleteDecisions, FieldError, IssueCode, KeyIdentity, MAX_OUTCOMES_READ, MarkRef, OutcomeFilter, PermitDeletion,
    PublicKeys, RequestId, Scope, SigningKeys, Verdict,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::management::{Call, send_within};
use crate::address::Client;
use crate::auth::{authenticate, require_any_scope};
use crate::errors::{ApiError, Part};
use crate::idle_timeout::ConnectionState;
use crate::in_flight::Hold;
use crate::log_reader::{Cursor, Filter, LogReader, Order, Resume, VerifyRequest};
use crate::read_pool::ReadPermit;
use crate::response_body::{CutOff, HeldBody};
use crate::state::AppState;

mod outcomes;

/// A deletion reads what it deletes.
const DELETE_TIMEOUT: Duration = Duration::from_secs(60);
/// Memory of one download: a chunk of the log, its lines, and the next chunk's lines.
pub(super) const DOWNLOAD_BYTES: usize = 1 << 20;
const MAX_CHUNKS_AHEAD: usize = 1;

pub(super) async fn get(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let (identity, _) = authenticate_reader(&call).await?;
    let id = RequestId::parse(&id).map_err(|_| ApiError::NotFound)?;
    let (decision, permit) = find_decision(&call.state, &identity, id).await?;
    let decision = decision.ok_or(ApiError::NotFound)?;
    let json = serde_json::to_vec(&decision).map_err(|error| read_failed(&error))?;
    let json = outcomes::show(&call, &identity, id, &decision, json).await?;
    large_json(&call, &identity, json, permit)
}

pub(super) async fn list(call: Call) -> Result<HttpResponse, ApiError> {
    let (identity, account) = authenticate_reader(&call).await?;
    let mut fields = call.query_fields();
    let filter = Filter {
        from: fields.timestamp("from"),
        to: fields.timestamp("to"),
        verdict: fields.word("verdict", "must be `ALLOW`, `DENY` or `DEFER`", Verdict::parse),
        environment: fields.text("environment"),
        code: fields.word("code", "must be an issue code", |text| IssueCode::parse(text).ok()),
        run_id: fields.text("run_id"),
        outcome: fields.word("outcome", outcomes::FILTER_MUST, OutcomeFilter::parse),
    };
    let cursor = fields.word("cursor", "must be the `next_cursor` of an earlier page", Cursor::parse);
    let order = fields.word("order", "must be `asc` (the oldest first) or `desc` (the newest first)", Order::parse);
    // A cursor contains its order; a different `order` beside it is a mistake.
    let cursor_order = cursor.as_ref().map(|cursor| cursor.order);
    if cursor_order.zip(order).is_some_and(|(of_cursor, order)| of_cursor != order) {
        fields.refuse("cursor", "was made with the other `order`: keep the order, or begin without a cursor");
    }
    let order = order.or(cursor_order).unwrap_or_default();
    let limit = usize::try_from(fields.page_limit()).unwrap_or(usize::MAX);
    fields.finish()?;
    let log = LogReader::new(&call.state.reading.log, &identity);
    let outcomes = outcomes::Outcomes::of(&call.state, &identity);
    let page = async move {
        let failed = |error: ReadError| read_failed(&error);
        let (items, next) = match filter.outcome {
            None => log.page(&filter, order, cursor, limit).await.map_err(failed)?,
            Some(wanted) => {
                let looked_at = if wanted == OutcomeFilter::Any { limit } else { MAX_OUTCOMES_READ };
                let (items, next) = log.page(&filter, order, cursor, looked_at).await.map_err(failed)?;
                let known = outcomes.read(items.allowed()).await?;
                let (items, cut) = items.with_outcomes(wanted, &known, limit).map_err(failed)?;
                (items, cut.or(next))
            }
        };
        items.page(next.map(|next| next.to_string()).as_deref()).map_err(failed)
    };
    let (page, permit) = call.state.read_pool.page(account, read_deadline(&call.state), page).await?;
    large_json(&call, &identity, page?, permit)
}

pub(super) async fn verify(call: Call) -> Result<HttpResponse, ApiError> {
    let (identity, account) = authenticate_reader(&call).await?;
    let mut fields = call.query_fields();
    let from = fields.timestamp("from");
    let to = fields.timestamp("to");
    let kept = fields.word("kept", "must be `number:hash` of a mark", |text| MarkRef::parse(text).ok());
    fields.finish()?;
    let _permit = call.state.read_pool.verification(account)?;
    let signing_keys = SigningKeys { account: Some(identity.account.clone()) };
    let PublicKeys { items: keys, last_mark } = call.send(&signing_keys).await?;
    let signed = last_mark.as_deref().and_then(|line| MarkRef::of(line.as_bytes()));
    let log = LogReader::new(&call.state.reading.log, &identity);
    let verify = VerifyRequest { from, to, kept, signed };
    let report = call.state.read_pool.run(async move { log.verify(verify, keys).await }).await?;
    Ok(HttpResponse::Ok().json(report.map_err(|error| read_failed(&error))?))
}

pub(super) async fn export(call: Call) -> Result<HttpResponse, ApiError> {
    let (identity, account) = authenticate_reader(&call).await?;
    let mut fields = call.query_fields();
    let from = fields.timestamp("from");
    let to = fields.timestamp("to");
    let after = fields.word("after", "must be the `request_id` of a decision", |text| RequestId::parse(text).ok());
    fields.finish()?;
    let permit = call.state.read_pool.download(account)?;
    let hold = hold_bytes(&call, &identity, DOWNLOAD_BYTES)?;
    let log = LogReader::new(&call.state.reading.log, &identity);
    // The first chunk is read before the headers are sent, so that a log that does not answer is a 503 and not a
    // download that breaks off.
    let first = call.state.read_pool.run(async move {
        let resume = match after {
            None => None,
            Some(id) => {
                let resume = log.resume_after(id).await.map_err(|error| read_failed(&error))?;
                Some(resume.ok_or_else(|| {
                    let message = "must be the `request_id` of a decision that the log still has, begin without it";
                    ApiError::Invalid(vec![FieldError::new("after", message)])
                })?)
            }
        };
        let seek = resume.map_or_else(|| log.start_at(from), Resume::seek);
        let download = Download { log, from, to, seek: Some(seek), resume };
        download.next().await.map_err(|error| read_failed(&error))
    });
    let (first, download) = first.await??;
    let (sender, chunks) = mpsc::channel(MAX_CHUNKS_AHEAD);
    let task = call.state.read_pool.spawn(download.run(sender))?;
    let stream = DownloadStream { first: Some(first), chunks, hold, _task: task, _permit: permit };
    let body = futures_util::stream::try_unfold(stream, DownloadStream::next);
    Ok(HttpResponse::Ok()
        .content_type("application/x-ndjson")
        .insert_header((CONTENT_DISPOSITION, "attachment; filename=\"decisions.ndjson\""))
        .streaming(body))
}

pub(super) async fn delete(call: Call) -> Result<HttpResponse, ApiError> {
    let identity = authenticate(&call.state, &call.request).await?;
    require_any_scope(&identity, &[Scope::DecisionsDelete])?;
    let mut fields = call.query_fields();
    let before = fields.timestamp("before");
    if before.is_none() {
        fields.refuse("before", "is required, as a time such as `2026-01-31T12:00:00Z` (RFC 3339)");
    }
    if before.is_some_and(|before| before > Timestamp::now()) {
        fields.refuse("before", "must not be in the future");
    }
    fields.finish()?;
    let before = before.unwrap_or(Timestamp::UNIX_EPOCH);
    let caller = call.caller_of(&identity)?;
    let permit = Some(call.send(&PermitDeletion { caller, before }).await?);
    let account = identity.account.clone();
    let requested_by = identity.key_id.clone();
    let delete = DeleteDecisions { account, before, requested_by, permit };
    Ok(HttpResponse::Ok().json(send_within(call.state.requests(), &delete, DELETE_TIMEOUT).await?))
}

/// The public keys of checkpoints. Not a secret: anyone who verifies a chain needs them, so no API key is required.
pub(super) async fn signing_keys(call: Call) -> Result<HttpResponse, ApiError> {
    let keys = call.state.signing_keys.try_get_with((), call.send(&SigningKeys::default())).await;
    keys.map(|keys| HttpResponse::Ok().json(keys)).map_err(|error| ApiError::clone(&error))
}

/// Authenticates a caller that may read decisions and counts the read; with the account's number in the read pool.
async fn authenticate_reader(call: &Call) -> Result<(Arc<KeyIdentity>, u64), ApiError> {
    let identity = authenticate(&call.state, &call.request).await?;
    require_any_scope(&identity, &[Scope::DecisionsRead])?;
    let account = admit_read(&call.state, &identity)?;
    Ok((identity, account))
}

/// Counts a read, or a call that costs as much, of the account. Returns the account's number in the read pool.
pub(super) fn admit_read(state: &AppState, identity: &KeyIdentity) -> Result<u64, ApiError> {
    let account = state.bytes.key_of(&identity.account);
    state.read_pool.admit(account)?;
    Ok(account)
}

/// Looks a decision of the account up, within the account's limit of concurrent reads. The read was admitted before.
pub(super) async fn find_decision(
    state: &AppState,
    identity: &KeyIdentity,
    id: RequestId,
) -> Result<(Option<Value>, ReadPermit), ApiError> {
    let account = state.bytes.key_of(&identity.account);
    let log = LogReader::new(&state.reading.log, identity);
    let decision = async move { log.decision(id).await };
    let (decision, permit) = state.read_pool.page(account, read_deadline(state), decision).await?;
    Ok((decision.map_err(|error| read_failed(&error))?, permit))
}

fn read_deadline(state: &AppState) -> Instant {
    Instant::now() + state.config.request_budget
}

/// Counts the bytes of an answer against its account until the client has taken them.
pub(super) fn hold_bytes(call: &Call, identity: &KeyIdentity, bytes: usize) -> Result<Hold, ApiError> {
    let now = std::time::Instant::now();
    let net = Client::of_request(&call.request).map(Client::net);
    let hold = call.state.bytes.begin(Some(&identity.account), net, now);
    hold.grow(bytes, now)?;
    // A client that reads nothing would not notice that its answer was cut off: its connection is closed.
    if let Some(handle) = call.request.conn_data::<ConnectionState>().and_then(ConnectionState::handle) {
        hold.close_when_cut(handle.clone());
    }
    Ok(hold)
}

pub(super) fn large_json(
    call: &Call,
    identity: &KeyIdentity,
    body: Vec<u8>,
    permit: ReadPermit,
) -> Result<HttpResponse, ApiError> {
    let hold = hold_bytes(call, identity, body.len())?;
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(HeldBody::new(body.into(), hold, permit).boxed()))
}

pub(super) fn read_failed(error: &(dyn Error + 'static)) -> ApiError {
    tracing::error!(error, "decisions could not be read");
    ApiError::Missing(Part::LogUnread)
}

struct Download {
    log: LogReader,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    /// Where the next chunk begins; none after the last.
    seek: Option<Seek>,
    /// The end of an earlier download that this one continues.
    resume: Option<Resume>,
}

impl Download {
    async fn next(mut self) -> Result<(Bytes, Self), ReadError> {
        let Some(seek) = self.seek else { return Ok((Bytes::new(), self)) };
        let (lines, next) = self.log.read_range(seek, self.resume, self.from, self.to).await?;
        self.seek = next;
        Ok((lines.into(), self))
    }

    /// Reads as far ahead as the channel allows, until the end of the log or of the receiver.
    async fn run(mut self, chunks: mpsc::Sender<Result<Bytes, ReadError>>) {
        while self.seek.is_some() {
            let chunk = match self.next().await {
                Ok((chunk, next)) => {
                    self = next;
                    Ok(chunk)
                }
                Err(error) => {
                    read_failed(&error);
                    // The receiver may be gone; there is nothing left to do either way.
                    let _ = chunks.send(Err(error)).await;
                    return;
                }
            };
            if chunks.send(chunk).await.is_err() {
                return;
            }
        }
    }
}

/// A download while it is sent. Its account's permit and bytes are released when it ends, and the reading stops.
struct DownloadStream {
    first: Option<Bytes>,
    chunks: mpsc::Receiver<Result<Bytes, ReadError>>,
    hold: Hold,
    _task: AbortOnDropHandle<()>,
    _permit: ReadPermit,
}

#[derive(Debug, thiserror::Error)]
enum DownloadError {
    #[error("the log could not be read on")]
    Read(#[from] ReadError),
    #[error(transparent)]
    CutOff(#[from] CutOff),
}

impl DownloadStream {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, DownloadError> {
        if self.hold.is_cut() {
            return Err(CutOff.into());
        }
        let chunk = match self.first.take() {
            Some(first) => Some(first),
            None => self.chunks.recv().await.transpose()?,
        };
        let Some(chunk) = chunk else { return Ok(None) };
        self.hold.progressed(chunk.len(), std::time::Instant::now());
        Ok(Some((chunk, self)))
    }
}
