//! Every public refusal: its status, code, text and headers, in one row each.
//!
//! A text is lower case, without a full stop, and never quotes a request. The cause is logged
//! where it is known. A new error needs a variant of [`ApiError`], its row, and its line in the API's documentation.

use std::fmt;
use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use jiff::Timestamp;
use stage0_backplane::{ClockError, RequestError};
use stage0_contract::{
    ErrorBody, ErrorCode, FieldError, JsonError, MAX_BODY_BYTES, MAX_VALUES, PolicyVersion, Refusal, Request,
    RequestId, Role, Scope, request_route,
};

use crate::approval_waits::WaitsOf;
use crate::in_flight::ByteLimit;
use crate::metrics::{self, Throttle};
use crate::throttle::{Blocked, CallsBy, LoginsBy, TooManyCalls};

/// In seconds, like those below; a per-second limit is full again by then.
const RATE_RETRY_AFTER: u64 = 1;
/// Most downloads and verifications have ended by then.
const SCAN_RETRY_AFTER: u64 = 5;
const BYTES_RETRY_AFTER: u64 = 1;
const UNAVAILABLE_RETRY_AFTER: u64 = 1;
const WAITS_RETRY_AFTER: u64 = 5;
/// The others are counted: otherwise a body of a few bytes per field would get an answer many times as large.
const MAX_NAMED_ERRORS: usize = 200;

/// Why a request gets no 2xx. Handlers return it; the middleware adds the request id and sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ApiError {
    Json(JsonError),
    NotAnObject,
    BrokenBody,
    /// HTTP without TLS: the only answer that it gets.
    PlainHttp,
    /// One and the same for every kind of bad key.
    Unauthorized,
    PlanWithoutPro,
    ScopeMissing(Scope),
    NotFound,
    /// There is no such thing, and the text says what there is instead.
    NoSuch(String),
    MethodNotAllowed(Arc<str>),
    BodyTooSlow,
    Conflict(String),
    BodyTooLarge,
    NotJsonType,
    Invalid(Vec<FieldError>),
    QuotaUsedUp {
        monthly: bool,
        limit: u64,
        again: Timestamp,
    },
    TooManyRuns {
        limit: u64,
        again: Timestamp,
    },
    TooManyCalls(TooManyCalls),
    RateLimited {
        limit: u64,
        seconds: u64,
    },
    TooManyFailedLogins(Blocked),
    TooManyRequests,
    TooManyScans,
    /// Reads of the account in this second, or at the same time.
    TooManyReads,
    TooManyBytesOfAccount,
    TooManyBytesOfAddress,
    Overloaded,
    Clock(ClockError),
    Missing(Part),
    /// A change of an approval, grant, stop or policy, and what is known about its record.
    NotRecorded(Change),
    TooManyWaits(WaitsOf),
    /// The caller asks for a later version than the one that decides, or for one of another pack.
    OtherPolicy {
        wanted: PolicyVersion,
        active: PolicyVersion,
    },
    /// The published policy that would decide is not at the evaluator.
    PolicyMissing {
        version: PolicyVersion,
        is_loading: bool,
    },
    /// The account has a published policy, and this evaluator would decide by its own.
    OldEvaluator(String),
    /// What the key may do, or the rules of its account, were changed while the request was in flight.
    Changed,
    /// Two policies could not be compared, so that neither takes the place of the other.
    NotCompared(Part),
    /// Recorded decisions could not be decided again, so that what a policy would change is not known.
    NotReplayed(Part),
    /// Something of the service failed, and it is not known what.
    Unavailable,
}

/// What the public sees of an error.
struct Row {
    code: ErrorCode,
    message: String,
    /// In the header `Retry-After`; on a 429 also in the body.
    retry_after: Option<u64>,
    throttle: Option<Throttle>,
}

impl Row {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let retry_after = (code == ErrorCode::Unavailable).then_some(UNAVAILABLE_RETRY_AFTER);
        Self { code, message: message.into(), retry_after, throttle: None }
    }

    fn throttled(by: Throttle, retry_after: u64, message: &str) -> Self {
        let message = format!("{message}, try again in {retry_after} s");
        Self { code: ErrorCode::RateLimited, message, retry_after: Some(retry_after), throttle: Some(by) }
    }

    fn used_up(message: String) -> Self {
        Self { throttle: Some(Throttle::Quota), ..Self::new(ErrorCode::QuotaExceeded, message) }
    }

    fn count(&self) {
        metrics::refused(self.code);
        self.throttle.into_iter().for_each(metrics::throttled);
    }
}

fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidJson | ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
        ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::PlanRequired | ErrorCode::QuotaExceeded => StatusCode::PAYMENT_REQUIRED,
        ErrorCode::ScopeMissing => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        ErrorCode::Conflict => StatusCode::CONFLICT,
        ErrorCode::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ErrorCode::ValidationFailed => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::RateLimited | ErrorCode::TooManyFailedLogins => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

impl ApiError {
    fn row(&self) -> Row {
        use ErrorCode as Code;
        match self {
            Self::Json(error) => Row::new(Code::InvalidJson, error.to_string()),
            Self::NotAnObject => Row::new(Code::InvalidJson, "the body must be a JSON object"),
            Self::BrokenBody => Row::new(Code::BadRequest, "the body ended early or is not framed as HTTP asks"),
            Self::PlainHttp => {
                Row::new(Code::BadRequest, "this port speaks HTTPS only, write `https://` in place of `http://`")
            }
            Self::Unauthorized => Row::new(Code::Unauthorized, "the API key is missing or not valid"),
            Self::PlanWithoutPro => Row::new(Code::PlanRequired, "the account's plan does not include `pro`"),
            Self::QuotaUsedUp { monthly, limit, again } => {
                let window = if *monthly { "monthly" } else { "daily" };
                Row::used_up(format!("the {window} quota of {limit} checks is used up, it starts again at {again}"))
            }
            Self::TooManyRuns { limit, again } => Row::used_up(format!(
                "the daily quota of {limit} runs (`max_runs`) is used up, it starts again at {again}; end runs \
                 that are done, or ask the operator to raise it"
            )),
            Self::ScopeMissing(scope) => Row::new(Code::ScopeMissing, format!("the API key lacks the scope `{scope}`")),
            Self::NotFound => Row::new(Code::NotFound, "there is nothing here"),
            Self::NoSuch(text) => Row::new(Code::NotFound, text),
            Self::MethodNotAllowed(allowed) => {
                Row::new(Code::MethodNotAllowed, format!("the method is not allowed here, use {allowed}"))
            }
            Self::BodyTooSlow => Row::new(Code::RequestTimeout, "the body did not arrive in time"),
            Self::Conflict(text) => Row::new(Code::Conflict, text),
            Self::BodyTooLarge => {
                Row::new(Code::BodyTooLarge, format!("the body is larger than {MAX_BODY_BYTES} bytes"))
            }
            Self::NotJsonType => Row::new(
                Code::UnsupportedMediaType,
                "the body must be sent as `application/json` in UTF-8, without a content encoding",
            ),
            Self::Invalid(errors) => Row::new(Code::ValidationFailed, field_errors_text(errors)),
            Self::TooManyFailedLogins(Blocked { by, seconds }) => {
                let text = match by {
                    LoginsBy::Address => "too many failed logins from this address",
                    LoginsBy::Key => "too many failed logins with this key",
                };
                Row { code: Code::TooManyFailedLogins, ..Row::throttled(Throttle::Logins(*by), *seconds, text) }
            }
            Self::TooManyCalls(TooManyCalls { by, seconds }) => {
                let text = match by {
                    CallsBy::Key => "too many management calls with this key",
                    CallsBy::Account => "too many management calls with the keys of this account",
                };
                Row::throttled(Throttle::Rate, *seconds, text)
            }
            Self::RateLimited { limit, seconds } => {
                let text = format!("the account's {limit} checks of this minute are used up");
                Row::throttled(Throttle::Rate, *seconds, &text)
            }
            Self::TooManyRequests => {
                Row::throttled(Throttle::Burst, RATE_RETRY_AFTER, "too many requests from this address")
            }
            Self::TooManyReads => Row::throttled(Throttle::Reads, RATE_RETRY_AFTER, "too many reads of this account"),
            Self::TooManyScans => {
                let text = "the account has as many downloads, verifications or replays as it may";
                Row::throttled(Throttle::Reads, SCAN_RETRY_AFTER, text)
            }
            Self::TooManyBytesOfAccount => {
                Row::throttled(Throttle::Bytes, BYTES_RETRY_AFTER, "too many bytes of this account are in flight")
            }
            Self::TooManyBytesOfAddress => {
                Row::throttled(Throttle::Bytes, BYTES_RETRY_AFTER, "too many bytes from this address are in flight")
            }
            Self::Overloaded => {
                let text = "too much is in flight at this gateway: the action must not run, try again";
                Row { throttle: Some(Throttle::Bytes), ..Row::new(Code::Unavailable, text) }
            }
            Self::Clock(error) => Row::new(Code::Unavailable, clock_text(error)),
            Self::Missing(part) => Row::new(Code::Unavailable, format!("{part}: the action must not run, try again")),
            Self::NotRecorded(change) => Row::new(Code::Unavailable, change.text()),
            Self::OtherPolicy { wanted, active } => {
                let text = format!(
                    "the check asks for `{wanted}` or a later version, and `{active}` decides: the action must not \
                     run, try again once it is active"
                );
                Row::new(Code::Unavailable, text)
            }
            Self::PolicyMissing { version, is_loading: true } => Row::new(
                Code::Unavailable,
                format!("policy `{version}` is still being loaded: the action must not run, try again"),
            ),
            Self::PolicyMissing { version, is_loading: false } => Row::new(
                Code::Unavailable,
                format!("policy `{version}` cannot be loaded by the evaluator: the action must not run"),
            ),
            Self::OldEvaluator(instance) => Row::new(
                Code::Unavailable,
                format!(
                    "the evaluator `{instance}` is of a release that knows of no published policies: the action must \
                     not run; stop that evaluator, and try again"
                ),
            ),
            Self::TooManyWaits(of) => {
                let text = match of {
                    WaitsOf::Key => "too many calls with this key wait for approvals",
                    WaitsOf::Account => "too many calls of this account wait for approvals",
                };
                Row::throttled(Throttle::Waits, WAITS_RETRY_AFTER, text)
            }
            Self::Changed => {
                let text = "the key or the rules of its account changed meanwhile: the action must not run, try again";
                Row::new(Code::Unavailable, text)
            }
            Self::NotCompared(part) => Row::new(
                Code::Unavailable,
                format!("nothing was changed, because the policies could not be compared: {part}, try again"),
            ),
            Self::NotReplayed(part) => Row::new(
                Code::Unavailable,
                format!("nothing was changed, because recorded decisions could not be replayed: {part}, try again"),
            ),
            Self::Unavailable => {
                Row::new(Code::Unavailable, "the service could not answer in time: the action must not run, try again")
            }
        }
    }

    /// Whether what was asked for was judged and is refused: it surely does not happen.
    pub(crate) fn is_refusal(&self) -> bool {
        status(self.row().code).is_client_error()
    }

    /// The answer; counts it as a refusal.
    pub(crate) fn response(&self, request_id: RequestId) -> HttpResponse {
        let row = self.row();
        row.count();
        let mut body = ErrorBody::new(row.code, row.message, request_id.to_string());
        let mut response = HttpResponse::build(status(row.code));
        if let Some(seconds) = row.retry_after {
            response.insert_header((RETRY_AFTER, seconds.to_string()));
            if row.code != ErrorCode::Unavailable {
                body = body.retry_after(seconds);
            }
        }
        if let Self::Unauthorized = self {
            response.insert_header((WWW_AUTHENTICATE, "ApiKey realm=\"stage0\", header=\"x-api-key\""));
        }
        if let Self::MethodNotAllowed(allowed) = self {
            response.insert_header((ALLOW, allowed.as_ref()));
        }
        if let Self::Invalid(errors) = self {
            body.errors = errors.iter().take(MAX_NAMED_ERRORS).cloned().collect();
        }
        response.json(body)
    }

    /// The answer as bytes, for a connection that no HTTP server reads; counts it as a refusal.
    pub(crate) fn raw(&self, request_id: RequestId) -> Vec<u8> {
        let row = self.row();
        row.count();
        let status = status(row.code);
        let body = ErrorBody::new(row.code, row.message, request_id.to_string());
        let body = serde_json::to_string(&body).unwrap_or_default();
        let reason = status.canonical_reason().unwrap_or_default();
        format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             x-request-id: {request_id}\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\n\
             connection: close\r\n\r\n{body}",
            status.as_str(),
            body.len()
        )
        .into_bytes()
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.row().message)
    }
}

/// Lets handlers return the error. The middleware replaces what is made of it here by [`ApiError::response`].
impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        status(self.row().code)
    }

    fn error_response(&self) -> HttpResponse {
        HttpResponse::new(self.status_code())
    }
}

fn field_errors_text(errors: &[FieldError]) -> String {
    let named = errors.iter().take(MAX_NAMED_ERRORS);
    let mut text = named.map(|error| format!("{}: {}", error.path, error.message)).collect::<Vec<_>>().join("; ");
    if let more @ 1.. = errors.len().saturating_sub(MAX_NAMED_ERRORS) {
        text.push_str(&format!("; and {more} more"));
    }
    text
}

fn clock_text(error: &ClockError) -> String {
    let (seconds, difference) = match error {
        ClockError::Unknown => {
            return "the state store's clock could not be read: the action must not run, try again".into();
        }
        ClockError::Ahead(seconds) => (seconds, "ahead of"),
        ClockError::Behind(seconds) => (seconds, "behind"),
    };
    format!(
        "the clock of this gateway is {seconds} s {difference} the state store's: the action must not run, ask another \
         gateway"
    )
}

impl From<ByteLimit> for ApiError {
    fn from(limit: ByteLimit) -> Self {
        match limit {
            ByteLimit::Account => Self::TooManyBytesOfAccount,
            ByteLimit::Address => Self::TooManyBytesOfAddress,
            ByteLimit::Gateway => Self::Overloaded,
        }
    }
}

impl From<JsonError> for ApiError {
    fn from(error: JsonError) -> Self {
        match error {
            // Such a body is valid JSON that asks for too much.
            JsonError::TooManyValues => {
                let message = format!("has more than {MAX_VALUES} JSON values");
                Self::Invalid(vec![FieldError::new("body", message)])
            }
            other => Self::Json(other),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound => Self::NotFound,
            Refusal::Missing(text) => Self::NoSuch(text),
            Refusal::ScopeMissing(scope) => Self::ScopeMissing(scope),
            Refusal::Invalid(errors) => Self::Invalid(errors),
            Refusal::Conflict(text) => Self::Conflict(text),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Service(Role, How),
    Backplane,
    LogUnwritten,
    LogUnread,
    StateStore,
}

/// A change that is in the log before its caller hears of it, and that is not known to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Not made: a process of an earlier version could not read its line.
    NotReadable,
    /// Made, and recorded later: it does not count before.
    Pending,
    /// The stop holds, without a line yet.
    Stopped,
    /// The stop holds on.
    NotResumed,
    /// A delegation, or the end of a proposed activation, which holds without a line.
    Delegated,
    /// The policy is not published.
    NotPublished,
    /// The policy is not deleted.
    NotDeleted,
    /// The policy that was active still is.
    NotActivated,
    /// An activation waits for a second member, without a line.
    Proposed,
}

impl Change {
    fn text(self) -> &'static str {
        match self {
            Self::NotReadable => {
                "nothing was changed: not every process of the deployment is known to read the record of it, \
                 see `stage0 status` for one with an older version, and try again"
            }
            Self::Pending => "it could not be recorded, and does not count until it is: try again",
            Self::Stopped => "the stop holds, and could not be recorded: look at `GET /v1/stops` before you try again",
            Self::NotResumed => "the stop still holds, because its end could not be recorded: try again",
            Self::NotPublished => "nothing was published, because it could not be recorded: try again",
            Self::NotDeleted => "nothing was deleted, because it could not be recorded: try again",
            Self::NotActivated => "nothing was activated, because it could not be recorded: try again",
            Self::Proposed => "it is proposed, and that could not be recorded: send it again",
            Self::Delegated => "the change holds, and could not be recorded: try again",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Absent,
    Silent,
    /// It refused the request because it is overloaded.
    Busy,
    /// It answered with a failure or unintelligibly.
    Failed,
}

impl Part {
    /// The service that serves `M`, which gave no answer.
    pub(crate) fn asked<M: Request>(error: &RequestError) -> Self {
        Self::of_service(role_of::<M>(), error)
    }

    /// The service that serves `M`, which answered.
    pub(crate) fn answered<M: Request>(how: How) -> Self {
        Self::Service(role_of::<M>(), how)
    }

    pub(crate) fn of_service(role: Role, error: &RequestError) -> Self {
        match error {
            RequestError::NoResponders => Self::Service(role, How::Absent),
            RequestError::Timeout => Self::Service(role, How::Silent),
            RequestError::Disconnected => Self::Backplane,
            RequestError::TooLarge | RequestError::Malformed => Self::Service(role, How::Failed),
        }
    }
}

/// INVARIANT: every request has a row in the contract's table of messages.
fn role_of<M: Request>() -> Role {
    request_route(M::SUBJECT).map_or(Role::Keystore, |route| route.to)
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(role, How::Absent) => write!(f, "no {role} serves"),
            Self::Service(role, How::Silent) => write!(f, "the {role} does not answer"),
            Self::Service(role, How::Busy) => write!(f, "the {role} has too much to do"),
            Self::Service(role, How::Failed) => write!(f, "the {role} failed"),
            Self::Backplane => f.write_str("the connection to the other services is lost"),
            Self::LogUnwritten => f.write_str("the decision log cannot be written"),
            Self::LogUnread => f.write_str("the decision log cannot be read"),
            Self::StateStore => f.write_str("the state store does not answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage0_contract::{EvaluateRequest, REQUESTS, VerifyKey};

    #[test]
    fn a_body_with_too_many_values_fails_validation_and_not_json_parsing() {
        let error = ApiError::from(JsonError::TooManyValues);
        assert_eq!(
            (error.status_code(), error.row().code),
            (StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::ValidationFailed)
        );
        assert_eq!(error.to_string(), "body: has more than 50000 JSON values");
        assert_eq!(ApiError::from(JsonError::TooDeep).status_code(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn an_error_text_names_200_bad_fields_and_counts_the_others() {
        let errors = |count: usize| (0..count).map(|n| FieldError::new(format!("f{n}"), "is bad")).collect();
        let all = ApiError::Invalid(errors(MAX_NAMED_ERRORS)).to_string();
        assert!(all.starts_with("f0: is bad; f1: is bad; ") && all.ends_with("f199: is bad"), "{all}");
        let some = ApiError::Invalid(errors(20_000)).to_string();
        assert!(some.starts_with(&all) && some.ends_with("f199: is bad; and 19800 more"), "{some}");
    }

    #[test]
    fn a_503_names_the_role_that_failed() {
        let absent = Part::asked::<EvaluateRequest>(&RequestError::NoResponders);
        assert_eq!(absent.to_string(), "no evaluator serves");
        let silent = Part::asked::<VerifyKey>(&RequestError::Timeout);
        assert_eq!(silent.to_string(), "the keystore does not answer");
        let lost = Part::asked::<VerifyKey>(&RequestError::Disconnected);
        assert!(!lost.to_string().contains("keystore"), "it is unknown whether it serves");
        assert!(REQUESTS.iter().all(|route| !route.subject.is_empty()));
    }
}
