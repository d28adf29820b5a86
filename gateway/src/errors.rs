//! Every public refusal: its status, machine code, text and headers, in the one place where they stand.
//!
//! Owns contract section 4. A text is lower case, without a full stop, and never quotes a request. Logging happens where the
//! cause is known; this file only says what the caller may know.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use jiff::Timestamp;
use stage0_backplane::ClockError;
use stage0_contract::{
    ErrorBody, ErrorCode, FieldError, JsonError, MAX_BODY_BYTES, MAX_VALUES, Refusal, RequestId, Scope,
};

use crate::in_flight::Over;
use crate::metrics::{self, Throttle};
use crate::throttle::{Blocked, CallsBy, LoginsBy, TooManyCalls};

mod part;

pub(crate) use part::{How, Part};

/// Seconds: a bucket is full again then.
const BURST_AGAIN_AFTER: u64 = 1;
/// Seconds; most walks take less.
const WALK_AGAIN_AFTER: u64 = 5;
/// Seconds; bodies that arrive and requests in hand end sooner.
const BYTES_AGAIN_AFTER: u64 = 1;

/// Bad fields that an answer names; the others are counted. A body of a few bytes a field must not have an answer many
/// times as large.
const MAX_NAMED_ERRORS: usize = 200;

/// Why a request gets no 2xx.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ApiError {
    /// 400.
    Json(JsonError),
    /// 400.
    NotAnObject,
    /// 400.
    BrokenBody,
    /// 400: HTTP without TLS; it has no other answer.
    PlainHttp,
    /// 401: one and the same for every kind of bad key.
    Unauthorized,
    /// 402.
    PlanWithoutPro,
    /// 403.
    ScopeMissing(Scope),
    /// 404.
    NotFound,
    /// 405, with the methods that there are.
    MethodNotAllowed(&'static str),
    /// 408.
    BodyTooSlow,
    /// 409.
    Conflict(String),
    /// 413.
    BodyTooLarge,
    /// 415.
    NotJsonType,
    /// 422.
    Invalid(Vec<FieldError>),
    /// 402, with when it starts again.
    QuotaUsedUp { monthly: bool, limit: u64, again: Timestamp },
    /// 402: a run more than the account may name today, with when it may again.
    TooManyRuns { limit: u64, again: Timestamp },
    /// 429, with who made too many calls of the control API and the seconds to wait.
    TooManyCalls(TooManyCalls),
    /// 429, with the seconds to wait.
    RateLimited { limit: u64, seconds: u64 },
    /// 429, with what failed and the seconds to wait.
    TooManyFailedLogins(Blocked),
    /// 429: more requests of one address than a second may have.
    TooManyRequests,
    /// 429: as many downloads or verifications as the account may make at a time are under way.
    TooManyWalks,
    /// 429: more reads of one account than a second may have, or more at a time.
    TooManyReads,
    /// 429: more bytes of requests and answers of the account are in flight than one may have.
    TooManyBytesOfAccount,
    /// 429: the same of an address.
    TooManyBytesOfAddress,
    /// 503: the same of the gateway.
    Overloaded,
    /// 503: this host's clock is not the state store's.
    Clock(ClockError),
    /// 503: this part of ours failed, or was too slow.
    Missing(Part),
    /// 503: something of ours did, and it is not known what.
    Unavailable,
}

impl ApiError {
    /// The answer.
    pub(crate) fn response(&self, request_id: RequestId) -> HttpResponse {
        let (status, code) = self.kind();
        self.count(code);
        let mut body = ErrorBody::new(code, self.message(), request_id.to_string());
        let mut response = HttpResponse::build(status);
        match self {
            Self::Unauthorized => {
                response.insert_header((WWW_AUTHENTICATE, "ApiKey realm=\"stage0\", header=\"x-api-key\""));
            }
            Self::MethodNotAllowed(allowed) => {
                response.insert_header((ALLOW, *allowed));
            }
            Self::TooManyFailedLogins(Blocked { seconds, .. })
            | Self::TooManyCalls(TooManyCalls { seconds, .. })
            | Self::RateLimited { seconds, .. } => {
                response.insert_header((RETRY_AFTER, seconds.to_string()));
                body = body.retry_after(*seconds);
            }
            Self::TooManyRequests | Self::TooManyReads => {
                response.insert_header((RETRY_AFTER, BURST_AGAIN_AFTER.to_string()));
                body = body.retry_after(BURST_AGAIN_AFTER);
            }
            Self::TooManyBytesOfAccount | Self::TooManyBytesOfAddress => {
                response.insert_header((RETRY_AFTER, BYTES_AGAIN_AFTER.to_string()));
                body = body.retry_after(BYTES_AGAIN_AFTER);
            }
            Self::TooManyWalks => {
                response.insert_header((RETRY_AFTER, WALK_AGAIN_AFTER.to_string()));
                body = body.retry_after(WALK_AGAIN_AFTER);
            }
            Self::Overloaded | Self::Clock(_) | Self::Missing(_) | Self::Unavailable => {
                response.insert_header((RETRY_AFTER, "1"));
            }
            Self::Invalid(errors) => body.errors = errors.iter().take(MAX_NAMED_ERRORS).cloned().collect(),
            Self::Json(_)
            | Self::NotAnObject
            | Self::BrokenBody
            | Self::PlainHttp
            | Self::PlanWithoutPro
            | Self::QuotaUsedUp { .. }
            | Self::TooManyRuns { .. }
            | Self::ScopeMissing(_)
            | Self::NotFound
            | Self::BodyTooSlow
            | Self::Conflict(_)
            | Self::BodyTooLarge
            | Self::NotJsonType => {}
        }
        response.json(body)
    }

    /// The answer as it is written to a connection that no server reads, and the end of it.
    pub(crate) fn raw(&self, request_id: RequestId) -> Vec<u8> {
        let (status, code) = self.kind();
        self.count(code);
        let body = ErrorBody::new(code, self.message(), request_id.to_string());
        let body = serde_json::to_string(&body).unwrap_or_default();
        let reason = status.canonical_reason().unwrap_or_default();
        format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nx-request-id: {request_id}\r\n\
             cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n{body}",
            status.as_str(),
            body.len()
        )
        .into_bytes()
    }

    fn kind(&self) -> (StatusCode, ErrorCode) {
        match self {
            Self::Json(_) | Self::NotAnObject => (StatusCode::BAD_REQUEST, ErrorCode::InvalidJson),
            Self::BrokenBody | Self::PlainHttp => (StatusCode::BAD_REQUEST, ErrorCode::BadRequest),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
            Self::PlanWithoutPro => (StatusCode::PAYMENT_REQUIRED, ErrorCode::PlanRequired),
            Self::QuotaUsedUp { .. } | Self::TooManyRuns { .. } => {
                (StatusCode::PAYMENT_REQUIRED, ErrorCode::QuotaExceeded)
            }
            Self::ScopeMissing(_) => (StatusCode::FORBIDDEN, ErrorCode::ScopeMissing),
            Self::NotFound => (StatusCode::NOT_FOUND, ErrorCode::NotFound),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::MethodNotAllowed),
            Self::BodyTooSlow => (StatusCode::REQUEST_TIMEOUT, ErrorCode::RequestTimeout),
            Self::Conflict(_) => (StatusCode::CONFLICT, ErrorCode::Conflict),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::BodyTooLarge),
            Self::NotJsonType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, ErrorCode::UnsupportedMediaType),
            Self::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::ValidationFailed),
            Self::TooManyFailedLogins(_) => (StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyFailedLogins),
            Self::RateLimited { .. }
            | Self::TooManyCalls(_)
            | Self::TooManyRequests
            | Self::TooManyWalks
            | Self::TooManyReads
            | Self::TooManyBytesOfAccount
            | Self::TooManyBytesOfAddress => (StatusCode::TOO_MANY_REQUESTS, ErrorCode::RateLimited),
            Self::Overloaded | Self::Clock(_) | Self::Missing(_) | Self::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable)
            }
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Json(error) => error.to_string(),
            Self::NotAnObject => "the body must be a JSON object".into(),
            Self::BrokenBody => "the body ended early or is not framed as HTTP asks".into(),
            Self::PlainHttp => "this port speaks HTTPS only, write `https://` in place of `http://`".into(),
            Self::Unauthorized => "the API key is missing or not valid".into(),
            Self::PlanWithoutPro => "the account's plan does not include `pro`".into(),
            Self::QuotaUsedUp { monthly, limit, again } => {
                let window = if *monthly { "monthly" } else { "daily" };
                format!("the {window} quota of {limit} checks is used up, it starts again at {again}")
            }
            Self::TooManyRuns { limit, again } => format!(
                "the daily quota of {limit} runs (`max_runs`) is used up, it starts again at {again}; end runs that are done, or \
                 ask the operator to raise it"
            ),
            Self::TooManyCalls(TooManyCalls { by, seconds }) => {
                let by = match by {
                    CallsBy::Key => "with this key",
                    CallsBy::Account => "with the keys of this account",
                };
                format!("too many management calls {by}, try again in {seconds} s")
            }
            Self::RateLimited { limit, seconds } => {
                format!("the account's {limit} checks of this minute are used up, try again in {seconds} s")
            }
            Self::ScopeMissing(scope) => format!("the API key lacks the scope `{scope}`"),
            Self::NotFound => "there is nothing here".into(),
            Self::MethodNotAllowed(allowed) => format!("the method is not allowed here, use {allowed}"),
            Self::BodyTooSlow => "the body did not arrive in time".into(),
            Self::Conflict(text) => text.clone(),
            Self::BodyTooLarge => format!("the body is larger than {MAX_BODY_BYTES} bytes"),
            Self::NotJsonType => {
                "the body must be sent as `application/json` in UTF-8, without a content encoding".into()
            }
            Self::Invalid(errors) => {
                let named = errors.iter().take(MAX_NAMED_ERRORS);
                let mut told = named.map(|e| format!("{}: {}", e.path, e.message)).collect::<Vec<_>>().join("; ");
                if let more @ 1.. = errors.len().saturating_sub(MAX_NAMED_ERRORS) {
                    told.push_str(&format!("; and {more} more"));
                }
                told
            }
            Self::TooManyFailedLogins(Blocked { by, seconds }) => {
                let by = match by {
                    LoginsBy::Address => "from this address",
                    LoginsBy::Key => "with this key",
                };
                format!("too many failed logins {by}, try again in {seconds} s")
            }
            Self::TooManyRequests => {
                format!("too many requests from this address, try again in {BURST_AGAIN_AFTER} s")
            }
            Self::TooManyWalks => {
                format!(
                    "the account makes as many downloads or verifications as it may, try again in {WALK_AGAIN_AFTER} s"
                )
            }
            Self::TooManyReads => {
                format!("too many reads of this account, try again in {BURST_AGAIN_AFTER} s")
            }
            Self::TooManyBytesOfAccount => {
                format!("too many bytes of this account are in flight, try again in {BYTES_AGAIN_AFTER} s")
            }
            Self::TooManyBytesOfAddress => {
                format!("too many bytes from this address are in flight, try again in {BYTES_AGAIN_AFTER} s")
            }
            Self::Overloaded => "too much is in flight at this gateway: the action must not run, try again".into(),
            Self::Clock(error) => match error {
                ClockError::Unknown => {
                    "the state store's clock could not be read: the action must not run, try again".into()
                }
                ClockError::Ahead(seconds) => clock_text(*seconds, "ahead of"),
                ClockError::Behind(seconds) => clock_text(*seconds, "behind"),
            },
            Self::Missing(part) => format!("{part}: the action must not run, try again"),
            Self::Unavailable => "the service could not answer in time: the action must not run, try again".into(),
        }
    }

    /// Every refusal passes here once, on its way out.
    fn count(&self, code: ErrorCode) {
        metrics::refused(code);
        let throttle = match self {
            Self::TooManyFailedLogins(Blocked { by, .. }) => Throttle::Logins(*by),
            Self::TooManyRequests => Throttle::Burst,
            Self::TooManyReads | Self::TooManyWalks => Throttle::Reads,
            Self::TooManyBytesOfAccount | Self::TooManyBytesOfAddress | Self::Overloaded => Throttle::Bytes,
            Self::RateLimited { .. } | Self::TooManyCalls(_) => Throttle::Rate,
            Self::QuotaUsedUp { .. } | Self::TooManyRuns { .. } => Throttle::Quota,
            Self::Json(_)
            | Self::NotAnObject
            | Self::BrokenBody
            | Self::PlainHttp
            | Self::Unauthorized
            | Self::PlanWithoutPro
            | Self::ScopeMissing(_)
            | Self::NotFound
            | Self::MethodNotAllowed(_)
            | Self::BodyTooSlow
            | Self::Conflict(_)
            | Self::BodyTooLarge
            | Self::NotJsonType
            | Self::Invalid(_)
            | Self::Clock(_)
            | Self::Missing(_)
            | Self::Unavailable => return,
        };
        metrics::throttled(throttle);
    }
}

fn clock_text(seconds: u64, how: &str) -> String {
    format!(
        "the clock of this gateway is {seconds} s {how} the state store's: the action must not run, ask another gateway"
    )
}

impl From<Over> for ApiError {
    fn from(over: Over) -> Self {
        match over {
            Over::Account => Self::TooManyBytesOfAccount,
            Over::Address => Self::TooManyBytesOfAddress,
            Over::Gateway => Self::Overloaded,
        }
    }
}

impl From<JsonError> for ApiError {
    fn from(error: JsonError) -> Self {
        match error {
            // The body is JSON, and asks for too much.
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
    fn a_body_with_too_many_values_is_bad_input_and_no_bad_json() {
        let error = ApiError::from(JsonError::TooManyValues);
        assert_eq!(error.kind(), (StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::ValidationFailed));
        assert_eq!(error.message(), "body: has more than 50000 JSON values");
        assert_eq!(ApiError::from(JsonError::TooDeep).kind().0, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn so_many_bad_fields_are_named_and_the_others_counted() {
        let errors = |count: usize| (0..count).map(|n| FieldError::new(format!("f{n}"), "is bad")).collect();
        let all = ApiError::Invalid(errors(MAX_NAMED_ERRORS)).message();
        assert!(all.starts_with("f0: is bad; f1: is bad; ") && all.ends_with("f199: is bad"), "{all}");
        let some = ApiError::Invalid(errors(20_000)).message();
        assert!(some.starts_with(&all) && some.ends_with("f199: is bad; and 19800 more"), "{some}");
    }
}
