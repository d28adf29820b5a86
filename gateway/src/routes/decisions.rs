//! `/v1/decisions`: what was recorded of the caller's account, and nothing else.
//!
//! Reading is the gateway's own, straight from the log, on threads apart from those that serve checks (`readers.rs`);
//! deleting is asked of the exporter, whose credentials alone may. An operator reads none. A download is the log's own
//! bytes, so that a chain can be verified where it arrives, and one that was cut goes on behind any decision that it
//! brought.

use actix_web::body::MessageBody as _;
use actix_web::http::header::{CONTENT_DISPOSITION, ContentType};
use actix_web::web::{Bytes, Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use stage0_backplane::{Backplane, ReadError, Seek};
use stage0_contract::{
    AccountId, Caller, DeleteDecisions, FieldError, IssueCode, KeyIdentity, MarkRef, PermitDeletion, PublicKeys,
    RequestId, Scope, SigningKeys, Verdict,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fields::Fields;
use super::keys::{manage, manage_within};
use super::{answer, authenticate};
use crate::address::Client;
use crate::auth::presented;
use crate::errors::{ApiError, Part};
use crate::in_flight::Hold;
use crate::patience::Patience;
use crate::reader::{Asked, Cursor, Filter, Order, Resume, Shelf};
use crate::readers::{Task, Turn};
use crate::sending::{CutOff, Held};
use crate::state::Gate;

/// Items of a page at most.
const MOST_ITEMS: u32 = 1_000;
/// A deletion walks through what it deletes.
const DELETE_WITHIN: std::time::Duration = std::time::Duration::from_secs(60);

/// What a download holds at most: a piece of the log, its lines, and the next piece's lines.
const DOWNLOAD_BYTES: usize = 1 << 20;
/// Of a download, pieces that wait for its client.
const PIECES_AHEAD: usize = 1;

pub(super) async fn get(gate: Data<Gate>, request: HttpRequest, id: Path<String>) -> HttpResponse {
    let found = async {
        let (identity, _) = reader(&gate, &request).await?;
        let id = RequestId::parse(&id).map_err(|_| ApiError::NotFound)?;
        let (found, turn) = recorded(&gate, &identity, id).await?;
        let found = found.ok_or(ApiError::NotFound)?;
        let found = serde_json::to_vec(&found).map_err(|error| unread(&ReadError(error.to_string())))?;
        json(&gate, &request, &identity, found, turn)
    };
    answer(&request, found.await)
}

pub(super) async fn list(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let listed = async {
        let (identity, key) = reader(&gate, &request).await?;
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
        let order = fields.word("order", "must be `asc` (the oldest first) or `desc` (the newest first)", Order::parse);
        // A cursor says which way it goes; another word beside it is a mistake.
        let held = cursor.as_ref().map(Cursor::order);
        if held.zip(order).is_some_and(|(held, order)| held != order) {
            fields.refuse("cursor", "was made with the other `order`: keep the order, or begin without a cursor");
        }
        let order = order.or(held).unwrap_or_default();
        let limit = fields.limit();
        if limit == 0 || limit > MOST_ITEMS {
            fields.refuse("limit", "must be 1 to 1000");
        }
        fields.finish()?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let log = Log::of(&gate, &identity);
        let page = async move {
            let (items, next) = log.shelf().page(&filter, order, cursor, limit).await?;
            items.page(next.map(|next| next.to_string()).as_deref())
        };
        let (page, turn) = gate.readers.page(key, soon(&gate), page).await?;
        json(&gate, &request, &identity, page.map_err(|error| unread(&error))?, turn)
    };
    answer(&request, listed.await)
}

pub(super) async fn verify(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let verified = async {
        let (identity, key) = reader(&gate, &request).await?;
        let mut fields = Fields::of_query(&request);
        let (from, to) = (fields.timestamp("from"), fields.timestamp("to"));
        let kept = fields.word("kept", "must be `number:hash` of a mark", |text| MarkRef::parse(text).ok());
        fields.finish()?;
        let _turn = gate.readers.verification(key)?;
        let asked = SigningKeys { account: Some(identity.account.clone()) };
        let PublicKeys { items: keys, last_mark } = manage(&gate, &asked).await?;
        let signed = last_mark.as_deref().and_then(|line| MarkRef::of(line.as_bytes()));
        let log = Log::of(&gate, &identity);
        let asked = Asked { from, to, kept, signed };
        let report = gate.readers.run(async move { log.shelf().verify(asked, keys).await }).await?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(report.map_err(|error| unread(&error))?))
    };
    answer(&request, verified.await)
}

pub(super) async fn export(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let begun = async {
        let (identity, key) = reader(&gate, &request).await?;
        let mut fields = Fields::of_query(&request);
        let (from, to) = (fields.timestamp("from"), fields.timestamp("to"));
        let after = fields.word("after", "must be the `request_id` of a decision", |text| RequestId::parse(text).ok());
        fields.finish()?;
        let turn = gate.readers.download(key)?;
        let hold = hold(&gate, &request, &identity, DOWNLOAD_BYTES)?;
        let log = Log::of(&gate, &identity);
        // The first piece before the headers: a log that does not answer is a 503, and not a download that breaks.
        let first = gate.readers.run(async move {
            let behind = match after {
                None => None,
                Some(id) => Some(log.shelf().behind(id).await?.ok_or(NotBegun::Unknown)?),
            };
            let seek = behind.map_or_else(|| log.shelf().begin(from), Resume::seek);
            Download { log, from, to, seek: Some(seek), behind }.next().await.map_err(NotBegun::Unread)
        });
        let (first, download) = first.await?.map_err(ApiError::from)?;
        let (pieces, ready) = mpsc::channel(PIECES_AHEAD);
        let task = gate.readers.spawn(download.run(pieces))?;
        let leaving = Leaving { first: Some(first), ready, hold, _task: task, _turn: turn };
        let rest = futures_util::stream::try_unfold(leaving, Leaving::next);
        Ok::<_, ApiError>(
            HttpResponse::Ok()
                .content_type("application/x-ndjson")
                .insert_header((CONTENT_DISPOSITION, "attachment; filename=\"decisions.ndjson\""))
                .streaming(rest),
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
        // It was judged a moment ago, and so it is there.
        let key = presented(&request).ok_or(ApiError::Unauthorized)?;
        let caller = Caller::new(&identity, &key);
        let permit = Some(manage(&gate, &PermitDeletion { caller, before }).await?);
        let (account, requested_by) = (identity.account.clone(), identity.key_id.clone());
        let delete = DeleteDecisions { account, before, requested_by, permit };
        let deleted = manage_within(&gate, &delete, DELETE_WITHIN).await?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(deleted))
    };
    answer(&request, deleted.await)
}

/// Not a secret, and for whoever verifies a chain: no key is needed.
pub(super) async fn signing_keys(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let asked = gate.signing_keys.try_get_with((), manage(&gate, &SigningKeys::default())).await;
    let listed = asked.map(|keys| HttpResponse::Ok().json(keys)).map_err(|error| ApiError::clone(&error));
    answer(&request, listed)
}

/// Who reads, and what stands for the account among readers.
async fn reader(gate: &Gate, request: &HttpRequest) -> Result<(std::sync::Arc<KeyIdentity>, u64), ApiError> {
    let identity = authenticate(gate, request, Instant::now() + gate.config.request_budget).await?;
    allow(&identity, Scope::DecisionsRead)?;
    let key = admit(gate, &identity)?;
    Ok((identity, key))
}

/// Counts one read, or what costs as much, against its account's second; what stands for the account among readers.
pub(super) fn admit(gate: &Gate, identity: &KeyIdentity) -> Result<u64, ApiError> {
    let key = gate.bytes.key_of(&identity.account);
    gate.readers.admit(key)?;
    Ok(key)
}

/// A decision of an account, read in its turn among readers, beside checks. Who asks was admitted.
pub(super) async fn recorded(
    gate: &Gate,
    identity: &KeyIdentity,
    id: RequestId,
) -> Result<(Option<Value>, Turn), ApiError> {
    let (key, log) = (gate.bytes.key_of(&identity.account), Log::of(gate, identity));
    let (found, turn) = gate.readers.page(key, soon(gate), async move { log.shelf().decision(id).await }).await?;
    Ok((found.map_err(|error| unread(&error))?, turn))
}

/// How long a read waits for its turn.
fn soon(gate: &Gate) -> Instant {
    Instant::now() + gate.config.request_budget
}

/// Bytes of an answer, which count against its account until they are taken.
fn hold(gate: &Gate, request: &HttpRequest, identity: &KeyIdentity, bytes: usize) -> Result<Hold, ApiError> {
    let now = std::time::Instant::now();
    let hold = gate.bytes.begin(Some(&identity.account), Client::of_request(request).map(Client::net), now);
    hold.grow(bytes, now)?;
    // A client that takes nothing would not notice that its answer was cut.
    if let Some(seat) = request.conn_data::<Patience>().and_then(Patience::seat) {
        hold.ends_with(seat.clone());
    }
    Ok(hold)
}

/// An answer that may be megabytes.
pub(super) fn json(
    gate: &Gate,
    request: &HttpRequest,
    identity: &KeyIdentity,
    body: Vec<u8>,
    turn: Turn,
) -> Result<HttpResponse, ApiError> {
    let hold = hold(gate, request, identity, body.len())?;
    Ok(HttpResponse::Ok().content_type(ContentType::json()).body(Held::new(body.into(), hold, turn).boxed()))
}

/// An operator neither checks nor reads decisions, whatever else its key was granted.
fn allow(identity: &KeyIdentity, scope: Scope) -> Result<(), ApiError> {
    let may = identity.scopes.contains(&scope) && !identity.scopes.contains(&Scope::Operator);
    if may { Ok(()) } else { Err(ApiError::ScopeMissing(scope)) }
}

/// For what a check needs to know; others have [`Log`].
pub(super) fn shelf<'a>(gate: &'a Gate, identity: &'a KeyIdentity) -> Shelf<'a> {
    let now = Timestamp::now();
    Shelf { log: gate.log(), account: &identity.account, horizon: horizon(identity, now), now }
}

fn horizon(identity: &KeyIdentity, now: Timestamp) -> Timestamp {
    let kept = SignedDuration::from_hours(24 * i64::from(identity.retention_days));
    now.checked_sub(kept).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn unread(error: &ReadError) -> ApiError {
    tracing::error!(error = error as &dyn std::error::Error, "decisions could not be read");
    ApiError::Missing(Part::LogUnread)
}

/// An account's log, for a reader of its own.
struct Log {
    backplane: Backplane,
    account: AccountId,
    horizon: Timestamp,
    now: Timestamp,
}

impl Log {
    fn of(gate: &Gate, identity: &KeyIdentity) -> Self {
        let now = Timestamp::now();
        let (backplane, account) = (gate.reading.clone(), identity.account.clone());
        Self { backplane, account, horizon: horizon(identity, now), now }
    }

    fn shelf(&self) -> Shelf<'_> {
        Shelf { log: &*self.backplane.log, account: &self.account, horizon: self.horizon, now: self.now }
    }
}

/// Why a download does not begin.
enum NotBegun {
    Unread(ReadError),
    /// There is no decision with the id in `after`.
    Unknown,
}

impl From<ReadError> for NotBegun {
    fn from(error: ReadError) -> Self {
        Self::Unread(error)
    }
}

impl From<NotBegun> for ApiError {
    fn from(why: NotBegun) -> Self {
        match why {
            NotBegun::Unread(error) => unread(&error),
            NotBegun::Unknown => {
                let message = "must be the `request_id` of a decision that the log still has, begin without it";
                Self::Invalid(vec![FieldError::new("after", message)])
            }
        }
    }
}

/// A download as it is read.
struct Download {
    log: Log,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    /// Where the next piece begins; none after the last.
    seek: Option<Seek>,
    /// What an earlier download brought.
    behind: Option<Resume>,
}

impl Download {
    async fn next(mut self) -> Result<(Bytes, Self), ReadError> {
        let Some(seek) = self.seek else { return Ok((Bytes::new(), self)) };
        let (lines, next) = self.log.shelf().stretch(seek, self.behind, self.from, self.to).await?;
        self.seek = next;
        Ok((lines.into(), self))
    }

    /// Reads as far ahead as the channel takes, until the end or until nobody listens.
    async fn run(mut self, pieces: mpsc::Sender<Result<Bytes, ReadError>>) {
        while self.seek.is_some() {
            let next = match self.next().await {
                Ok((piece, next)) => {
                    self = next;
                    Ok(piece)
                }
                Err(error) => {
                    unread(&error);
                    let _ = pieces.send(Err(error)).await;
                    return;
                }
            };
            if pieces.send(next).await.is_err() {
                return;
            }
        }
    }
}

/// A download on its way out. Its account's turn and bytes end with it, and so does the reading.
struct Leaving {
    first: Option<Bytes>,
    ready: mpsc::Receiver<Result<Bytes, ReadError>>,
    hold: Hold,
    _task: Task<()>,
    _turn: Turn,
}

/// A download that ends before its end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the log could not be read on")]
    Unread(#[from] ReadError),
    #[error(transparent)]
    CutOff(#[from] CutOff),
}

impl Leaving {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Broken> {
        if self.hold.is_cut() {
            return Err(CutOff.into());
        }
        let piece = match self.first.take() {
            Some(first) => Some(first),
            None => self.ready.recv().await.transpose()?,
        };
        let Some(piece) = piece else { return Ok(None) };
        self.hold.progressed(piece.len(), std::time::Instant::now());
        Ok(Some((piece, self)))
    }
}
