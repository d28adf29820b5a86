//! The parameters of the operations that read the decision log, which the gateway answers itself.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{IssueCode, OutcomeFilter, RequestId, Verdict};

/// `GET /v1/decisions/{request_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionPath {
    /// The answer's `request_id`.
    pub request_id: RequestId,
}

/// `POST /v1/hooks/{agent}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HookPath {
    /// The coding agent: `claude-code`, `codex`, `cursor`, `gemini` or `opencode`.
    #[schemars(extend("enum" = ["claude-code", "codex", "cursor", "gemini", "opencode"]))]
    pub agent: String,
}

/// `GET /v1/decisions`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct DecisionQuery {
    /// Recorded at this moment or later. RFC 3339; a `+` in an offset must be written `%2B` in a query.
    pub from: Option<Timestamp>,
    /// Recorded at this moment or earlier. RFC 3339; a `+` in an offset must be written `%2B` in a query.
    pub to: Option<Timestamp>,
    /// Exactly this verdict.
    pub verdict: Option<Verdict>,
    /// The `environment` of the answer, in any case, or another name of the same: `prod`, `prd` and `live` find
    /// `production` too, `stage` and `stg` `staging`, `dev` `development`, and the other way round. Records show what
    /// was sent. May be empty.
    pub environment: Option<String>,
    /// One of the decision's issues has this code.
    pub code: Option<IssueCode>,
    /// Exactly the `run_id` of the record.
    pub run_id: Option<String>,
    /// By what came of the action. `none`: allowed, and nothing was reported. `any`: all decisions, each with its
    /// `outcome`, which a list without this filter does not look up.
    pub outcome: Option<OutcomeFilter>,
    /// `asc`: the oldest first, and what is recorded meanwhile follows. `desc`: the newest first; what is recorded
    /// meanwhile is in none of the later pages.
    #[schemars(extend("enum" = ["asc", "desc"], "default" = "asc"))]
    pub order: Option<String>,
    /// `next_cursor` of the page before; with the same filters. It reveals only a time of the account's own log and
    /// the order of the list: without `order` it goes on in its own, with the other one it is 422. Older cursors,
    /// two numbers, are 422.
    pub cursor: Option<String>,
    /// Most items of the page.
    #[schemars(extend("minimum" = 1, "maximum" = 1000, "default" = 100))]
    pub limit: Option<u32>,
}

/// `GET /v1/decisions/export`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ExportQuery {
    /// Recorded at this moment or later. RFC 3339; a `+` in an offset must be written `%2B` in a query.
    pub from: Option<Timestamp>,
    /// Recorded at this moment or earlier. RFC 3339; a `+` in an offset must be written `%2B` in a query.
    pub to: Option<Timestamp>,
    /// The `request_id` of the last decision that an earlier download brought: this one begins behind it. One that the
    /// log no longer has is a 422.
    pub after: Option<RequestId>,
}

/// `GET /v1/decisions/verify`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct VerifyQuery {
    /// Decisions recorded before are not judged. RFC 3339; a `+` in an offset must be written `%2B` in a query.
    pub from: Option<Timestamp>,
    /// Decisions recorded after are not judged. RFC 3339; a `+` in an offset must be written `%2B` in a query.
    pub to: Option<Timestamp>,
    /// `number:hash` of a mark that you kept outside (`last_mark` of an earlier report): it must still be there.
    #[schemars(extend("pattern" = "^[0-9]+:[0-9a-f]{64}$"))]
    pub kept: Option<String>,
}
