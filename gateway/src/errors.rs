//! Every public refusal: its status, code, text and headers, in one row each.
//!
//! Owns contract section 4. A text is lower case, without a full stop, and never quotes a request. The cause is logged
//! where it is known; this file only says what the caller may know. A new error needs a variant of [`ApiError`], its
//! row in [`ApiError::row`], and its line in the API's documentation.

use std::fmt;
use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use jiff::Timestamp;
use stage0_backplane::ClockError;
use stage0_contract::{
    ErrorBody, ErrorCode, FieldError, JsonError, MAX_BODY_BYTES, MAX_VALUES, Refusal, RequestId, Scope,
};

use crate::in_flight::ByteLimit;
use crate::metrics::{self, Throttle};
use crate::throttle::{Blocked, CallsBy, LoginsBy, TooManyCalls};

mod part;

pub(crate) use part::{How, Part};

/// Seconds until a per-second limit is full again.
const RATE_RETRY_AFTER: u64 = 1;
/// Seconds that most downloads and verifications take at most.
const SCAN_RETRY_AFTER: u64 = 5;
/// Seconds until bytes in flight are taken.
const BYTES_RETRY_AFTER: u64 = 1;
/// Seconds after which a 503 may be retried.
const UNAVAILABLE_RETRY_AFTER: u64 = 1;
/// Bad fields that an answer names; the others are counted. Otherwise a body of a few bytes per field would get an
/// answer many times as large.
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
    /// With the methods that the path has.
    MethodNotAllowed(Arc<str>),
    BodyTooSlow,
    Conflict(String),
    BodyTooLarge,
    NotJsonType,
    Invalid(Vec<FieldError>),
    /// With the time at which the window starts again.
    QuotaUsedUp {
        monthly: bool,
        limit: u64,
        again: Timestamp,
    },
    /// One more run than the account may start today.
    TooManyRuns {
        limit: u64,
        again: Timestamp,
    },
    TooManyCalls(TooManyCalls),
    /// The account's checks of this minute.
    RateLimited {
        limit: u64,
        seconds: u64,
    },
    TooManyFailedLogins(Blocked),
    /// Requests of one address in this second.
    TooManyRequests,
    /// Downloads or verifications of the account at the same time.
    TooManyScans,
    /// Reads of the account in this second, or at the same time.
    TooManyReads,
    TooManyBytesOfAccount,
    TooManyBytesOfAddress,
    /// Too many bytes of the whole gateway are in flight.
    Overloaded,
    /// This host's clock differs from the state store's.
    Clock(ClockError),
    /// This part of the service failed or was too slow.
    Missing(Part),
    /// Something of the service failed, and it is not known what.
    Unavailable,
}

/// What the public sees of an error.
struct Row {
    code: ErrorCode,
    message: String,
    /// In the header `Retry-After`; on a 429 also in the body.
    retry_after: Option<u64>,
    /// The limit that refused, for its metric.
    throttle: Option<Throttle>,
}

impl Row {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let retry_after = (code == ErrorCode::Unavailable).then_some(UNAVAILABLE_RETRY_AFTER);
        Self { code, message: message.into(), retry_after, throttle: None }
    }

    fn throttled(code: ErrorCode, by: Throttle, retry_after: u64, message: impl fmt::Display) -> Self {
        let message = format!("{message}, try again in {retry_after} s");
        Self { code, message, retry_after: Some(retry_after), throttle: Some(by) }
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
    /// The table of errors.
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
                let text = format!("the {window} quota of {limit} checks is used up, it starts again at {again}");
                Row { throttle: Some(Throttle::Quota), ..Row::new(Code::QuotaExceeded, text) }
            }
            Self::TooManyRuns { limit, again } => {
                let text = format!(
                    "the daily quota of {limit} runs (`max_runs`) is used up, it starts again at {again}; end runs \
                     that are done, or ask the operator to raise it"
                );
                Row { throttle: Some(Throttle::Quota), ..Row::new(Code::QuotaExceeded, text) }
            }
            Self::ScopeMissing(scope) => Row::new(Code::ScopeMissing, format!("the API key lacks the scope `{scope}`")),
            Self::NotFound => Row::new(Code::NotFound, "there is nothing here"),
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
                Row::throttled(Code::TooManyFailedLogins, Throttle::Logins(*by), *seconds, text)
            }
            Self::TooManyCalls(TooManyCalls { by, seconds }) => {
                let text = match by {
                    CallsBy::Key => "too many management calls with this key",
                    CallsBy::Account => "too many management calls with the keys of this account",
                };
                Row::throttled(Code::RateLimited, Throttle::Rate, *seconds, text)
            }
            Self::RateLimited { limit, seconds } => {
                let text = format!("the account's {limit} checks of this minute are used up");
                Row::throttled(Code::RateLimited, Throttle::Rate, *seconds, text)
            }
            Self::TooManyRequests => {
                let text = "too many requests from this address";
                Row::throttled(Code::RateLimited, Throttle::Burst, RATE_RETRY_AFTER, text)
            }
            Self::TooManyReads => {
                let text = "too many reads of this account";
                Row::throttled(Code::RateLimited, Throttle::Reads, RATE_RETRY_AFTER, text)
            }
            Self::TooManyScans => {
                let text = "the account makes as many downloads or verifications as it may";
                Row::throttled(Code::RateLimited, Throttle::Reads, SCAN_RETRY_AFTER, text)
            }
            Self::TooManyBytesOfAccount => {
                let text = "too many bytes of this account are in flight";
                Row::throttled(Code::RateLimited, Throttle::Bytes, BYTES_RETRY_AFTER, text)
            }
            Self::TooManyBytesOfAddress => {
                let text = "too many bytes from this address are in flight";
                Row::throttled(Code::RateLimited, Throttle::Bytes, BYTES_RETRY_AFTER, text)
            }
            Self::Overloaded => {
                let text = "too much is in flight at this gateway: the action must not run, try again";
                Row { throttle: Some(Throttle::Bytes), ..Row::new(Code::Unavailable, text) }
            }
            Self::Clock(error) => Row::new(Code::Unavailable, clock_text(error)),
            Self::Missing(part) => Row::new(Code::Unavailable, format!("{part}: the action must not run, try again")),
            Self::Unavailable => {
                Row::new(Code::Unavailable, "the service could not answer in time: the action must not run, try again")
            }
        }
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

impl Row {
    fn count(&self) {
        metrics::refused(self.code);
        self.throttle.into_iter().for_each(metrics::throttled);
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.row().message)
    }
}

/// Lets handlers return the error. What is made of it here has no request id: the middleware replaces it by
/// [`ApiError::response`].
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
            Refusal::ScopeMissing(scope) => Self::ScopeMissing(scope),
            Refusal::Invalid(errors) => Self::Invalid(errors),
            Refusal::Conflict(text) => Self::Conflict(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
