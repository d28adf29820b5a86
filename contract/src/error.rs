//! The body of every answer that is not a 2xx. It never carries a verdict.
//!
//! Which condition gives which status and text is the gateway's `errors` file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::FieldError;

/// The machine-readable kind of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: not acceptable JSON.
    InvalidJson,
    /// 400: the HTTP request itself is broken.
    BadRequest,
    /// Sent with status 401.
    Unauthorized,
    /// 402: the plan lacks the feature.
    PlanRequired,
    /// 402: the quota is used up.
    QuotaExceeded,
    /// Sent with status 403.
    ScopeMissing,
    /// Sent with status 404.
    NotFound,
    /// Sent with status 405.
    MethodNotAllowed,
    /// 408: the body did not arrive in time.
    RequestTimeout,
    /// 409: the state does not allow it.
    Conflict,
    /// Sent with status 413.
    BodyTooLarge,
    /// Sent with status 415.
    UnsupportedMediaType,
    /// Sent with status 422.
    ValidationFailed,
    /// 429: too many requests.
    RateLimited,
    /// 429: too many failed logins from the address.
    TooManyFailedLogins,
    /// 503: no decision could be made or recorded in time.
    Unavailable,
}

/// The nested form that one public client reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDetail {
    /// The same text as `message`.
    pub detail: String,
    /// The same id.
    pub request_id: String,
    /// On 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

/// Every error's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// For people.
    pub message: String,
    /// For programs.
    pub error: ErrorCode,
    /// For one public client.
    pub detail: ErrorDetail,
    /// Of this answer; also in the header `X-Request-Id`.
    pub request_id: String,
    /// On 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
    /// On 422: every bad field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

impl ErrorBody {
    /// A body with its text in both places.
    pub fn new(error: ErrorCode, message: String, request_id: String) -> Self {
        let detail = ErrorDetail { detail: message.clone(), request_id: request_id.clone(), retry_after_seconds: None };
        Self { message, error, detail, request_id, retry_after_seconds: None, errors: Vec::new() }
    }

    /// With the seconds to wait, in both places.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self.detail.retry_after_seconds = Some(seconds);
        self
    }
}
