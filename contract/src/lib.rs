//! The wire contract as types: what crosses a process boundary, and the rules a value must keep to cross it.
//!
//! Owns every wire type, id, code, message subject and the grammar of constraint strings; each is defined once, here.
//! Refuses all input and output: no sockets, files, clocks or randomness. Callers hand bytes and time in.
//! INVARIANT: a released shape is frozen; additions are optional fields. Golden fixtures in `fixtures/` hold that.

mod check;
mod code;
mod constraint;
mod decision;
mod error;
mod id;
mod json;
mod key;
mod manage;
mod message;
mod number;
mod word;

pub use check::{CheckRequest, FieldError, MAX_BODY_BYTES, MAX_GOAL_CHARS, MAX_ITEM_CHARS, MAX_ITEMS, RejectedRequest};
pub use code::{Effect, IssueCode, NextAction, Severity, Verdict};
pub use constraint::{Constraint, ConstraintError, FlagName};
pub use decision::{AuditMode, CheckResponse, CostEstimate, Decision, GuardrailCheck, Issue, ResponseMeta, Signal};
pub use error::{ErrorBody, ErrorCode, ErrorDetail};
pub use id::{AccountId, ClientRequestId, IdError, KeyId, PolicyVersion, RequestId};
pub use json::{JsonError, MAX_DEPTH, parse_strict};
pub use key::{ApiKey, ApiKeyError, KEY_ALPHABET};
pub use manage::{
    Account, AccountCreated, Caller, CreateAccount, CreateKey, KeyCreated, KeyIdentity, KeySummary, ListAccounts,
    ListKeys, ManageReply, Page, Plan, Refusal, RevokeKey, Revoked, RotateKey, Scope, Scopes,
};
pub use message::{
    EvaluateReply, EvaluateRequest, EvaluatorStatus, EvaluatorStatusReply, KeyChanged, KeystoreStatus,
    KeystoreStatusReply, Notice, RefreshKey, RefreshKeyReply, Request, ReviewReply, ReviewRequest, VerifyKey,
    VerifyKeyReply,
};
pub use number::{Micros, NumberError};
pub use word::{Word, is_blank, plain, visible};
