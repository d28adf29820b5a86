//! The answers that are no success, as the document of the HTTP API describes them.
//!
//! Which operation can give which of them follows from its row in `operations`; which condition leads to which of them
//! is the gateway's `errors`.

#![expect(clippy::indexing_slicing, reason = "every index is a name in an object that is built here")]

use serde_json::{Value, json};

use crate::{ErrorBody, ErrorCode};

/// One example of an error's body: its code, its message and the seconds to wait.
pub(super) type Example = (ErrorCode, &'static str, Option<u64>);

macro_rules! retry {
    () => {
        None
    };
    ($seconds:literal) => {
        Some($seconds)
    };
}

macro_rules! error_responses {
    ($($(#[doc = $doc:literal])+ $name:ident = $status:literal [
        $($code:ident $message:literal $(, retry $seconds:literal)?;)+
    ];)+) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum ErrorResponse { $($(#[doc = $doc])+ $name,)+ }

        impl ErrorResponse {
            pub(super) const ALL: &'static [Self] = &[$(Self::$name),+];

            pub(super) const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)+ }
            }

            pub(super) const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            const fn doc(self) -> &'static [&'static str] {
                match self { $(Self::$name => &[$($doc),+],)+ }
            }

            const fn examples(self) -> &'static [Example] {
                match self { $(Self::$name => &[$((ErrorCode::$code, $message, retry!($($seconds)?))),+],)+ }
            }
        }
    };
}

error_responses! {
    /// Not JSON, not an object, a member named twice, nested deeper than 32 levels, a number that does not fit, or a
    /// body that ends early. Plain HTTP on the TLS port gets `bad_request` with a text that says `https://`, whatever
    /// it asks for, and the connection is closed. What is no HTTP request gets a 400 or 408 without a body.
    BadJson = 400 [
        InvalidJson "the body is nested deeper than 32 levels";
    ];
    /// The key is missing, malformed, unknown, revoked or expired: one and the same answer.
    Unauthorized = 401 [
        Unauthorized "the API key is missing or not valid";
    ];
    /// `pro: true` without a plan that has it (`plan_required`), or the account's quota of this day or month, or of the
    /// runs that its checks may name today (`max_runs`), is used up (`quota_exceeded`, the text says when it starts
    /// again).
    PaymentRequired = 402 [
        PlanRequired "the account's plan does not include `pro`";
        QuotaExceeded "the daily quota of 1000 checks is used up, it starts again at 2026-01-02T00:00:00Z";
    ];
    /// The key is valid but lacks the scope that the text names; of a key that is to be rotated or revoked, one that it
    /// holds.
    ScopeMissing = 403 [
        ScopeMissing "the API key lacks the scope `check`";
    ];
    /// Unknown, or another account's.
    NotFound = 404 [
        NotFound "there is nothing here";
    ];
    /// The header `Allow` names the methods that there are.
    MethodNotAllowed = 405 [
        MethodNotAllowed "the method is not allowed here, use POST";
    ];
    /// The body did not arrive in time.
    RequestTimeout = 408 [
        RequestTimeout "the body did not arrive in time";
    ];
    /// The state does not allow it: a key that ended cannot be rotated, nor one that lives longer than the key that
    /// asks; an account has as many keys and webhook endpoints as its caps `max_keys` and `max_endpoints` allow, an
    /// endpoint at most 5 secrets that sign and 32 replays that wait; on a keystore whose disk is nearly full keys can
    /// be revoked and endpoints deleted, and nothing else changes. Under an `Idempotency-Key`: an earlier call may have
    /// been done, and its answer was lost.
    Conflict = 409 [
        Conflict "the key is revoked; create a new one instead";
    ];
    /// The check was settled already, was not allowed, is of another run, or is too long ago: its estimate counts as
    /// spent.
    NothingToSettle = 409 [
        Conflict "the check was settled already, with 0.42 USD";
    ];
    /// The check was not allowed, so nothing came of it; or another outcome was reported already; or its cost was
    /// settled already.
    NothingToReport = 409 [
        Conflict "another outcome was reported already: `succeeded`";
    ];
    /// More than 1,000,000 bytes.
    BodyTooLarge = 413 [
        BodyTooLarge "the body is larger than 1000000 bytes";
    ];
    /// Not `application/json` in UTF-8, or with a content encoding.
    UnsupportedMediaType = 415 [
        UnsupportedMediaType "the body must be sent as `application/json` in UTF-8, without a content encoding";
    ];
    /// Every bad field is named in `message` and in `errors`.
    ValidationFailed = 422 [
        ValidationFailed "goal: must not be blank; constraints[1]: `max_retries` is not a number: write `max_retries: \
            <whole number>`";
    ];
    /// Too many failed logins from this address, or with this key's id, in a minute: `too_many_failed_logins`; keys
    /// that are in use are not affected. Or more requests of this address, or reads of the log of this account, than a
    /// second may have, or more bytes of request bodies and of answers that are not taken, of this account or this
    /// address, than may be in flight: `rate_limited`, to be tried again after 1 s. Or more calls of the control API
    /// with this key, or with all keys of its account, than a minute may have: `rate_limited`.
    TooManyRequests = 429 [
        TooManyFailedLogins "too many failed logins from this address, try again in 42 s", retry 42;
        TooManyFailedLogins "too many failed logins with this key, try again in 42 s", retry 42;
        RateLimited "too many requests from this address, try again in 1 s", retry 1;
    ];
    /// The account's checks of this minute are used up (`rate_limited`). Or one of the reasons for which every call may
    /// get a 429.
    TooManyChecks = 429 [
        RateLimited "the account's 60 checks of this minute are used up, try again in 18 s", retry 18;
    ];
    /// Two downloads, a verification, or a replay of this account are under way at the gateway: `rate_limited`, to be
    /// tried again after 5 s. Or one of the reasons for which every call may get a 429.
    TooManyDownloads = 429 [
        RateLimited "the account has as many downloads, verifications or replays as it may, try again in 5 s", retry 5;
    ];
    /// Something on our side failed or was too slow; the text names the part where that is known. There is no decision:
    /// **the action must not run.** Of a `/check`, a record may exist all the same. Of another call that changes
    /// something, the change may have been made: ask before you repeat it, unless repeating does no harm or it has an
    /// `Idempotency-Key`.
    Unavailable = 503 [
        Unavailable "no evaluator serves: the action must not run, try again";
        Unavailable "the decision log cannot be written: the action must not run, try again";
        Unavailable "the service could not answer in time: the action must not run, try again";
    ];
}

const REQUEST_ID: &str = "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55";

impl ErrorResponse {
    pub(super) fn describe(self) -> Value {
        let mut headers = json!({"X-Request-Id": {"$ref": "#/components/headers/RequestId"}});
        if self == Self::Unauthorized {
            headers["WWW-Authenticate"] = json!({"description": "How to send a key.", "schema": {"type": "string"}});
        }
        if self == Self::MethodNotAllowed {
            headers["Allow"] = json!({"description": "The methods of this path.", "schema": {"type": "string"}});
        }
        if matches!(self.status(), 429 | 503) {
            headers["Retry-After"] = json!({"$ref": "#/components/headers/RetryAfter"});
        }
        if matches!(self, Self::PaymentRequired | Self::TooManyChecks) {
            add_rate_limit(&mut headers);
        }
        let mut content = json!({"schema": {"$ref": "#/components/schemas/ErrorBody"}});
        match self.examples() {
            [one] => content["example"] = body(one),
            several => {
                for (index, example) in several.iter().enumerate() {
                    let name = format!("example{}", index + 1);
                    content["examples"][name] = json!({"summary": example.1, "value": body(example)});
                }
            }
        }
        json!({
            "description": super::document::text(self.doc()),
            "headers": headers,
            "content": {"application/json": content},
        })
    }
}

/// The headers that say what is left of the account's checks.
pub(super) fn add_rate_limit(headers: &mut Value) {
    for name in ["Limit", "Remaining", "Reset"] {
        headers[format!("RateLimit-{name}")] = json!({"$ref": format!("#/components/headers/RateLimit{name}")});
    }
}

fn body(example: &Example) -> Value {
    let (code, message, retry) = *example;
    let mut body = ErrorBody::new(code, message.to_owned(), REQUEST_ID.to_owned());
    if let Some(seconds) = retry {
        body = body.retry_after(seconds);
    }
    if let ErrorCode::ValidationFailed = code {
        let errors = message.split("; ").filter_map(|error| error.split_once(": "));
        body.errors = errors.map(|(path, message)| crate::FieldError::new(path, message)).collect();
    }
    json!(body)
}
