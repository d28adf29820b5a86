//! The wire contract as types: what crosses a process boundary, and the rules a value must keep to cross it.
//!
//! Owns every wire type, id, code, message subject and the grammar of constraint strings; each is defined once, here.
//! Refuses all input and output: no sockets, files, clocks or randomness. Callers hand bytes and time in.
//! INVARIANT: a released shape is frozen; additions are optional fields. Golden fixtures in `fixtures/` hold that.

mod api;
mod audit;
mod canonical;
mod chain;
mod check;
mod code;
mod constraint;
mod decision;
mod envelope;
mod environment;
mod error;
mod id;
mod instance;
mod json;
mod key;
mod manage;
mod message;
mod number;
mod record;
mod run;
mod traffic;
mod usage;
mod webhook;
mod webhook_url;
mod word;

pub use api::{
    Access, DELIVERED_MEMBERS, DecisionPath, DecisionQuery, ExportQuery, Liveness, LivenessStatus, Method, Operation,
    ReadinessReport, VerifyQuery, openapi,
};
pub use audit::{
    DecisionsDeleted, DecisionsRecorded, DeleteDecisions, DeletionPermit, Delivery, DeliveryState, ListDeliveries,
    PermitDeletion, ReplayStarted, ReplayWebhook, TestWebhook, WebhookTested,
};
pub use canonical::canonical_hash;
pub use chain::{
    ChainVerifier, Finding, FindingKind, Head, LineHash, Link, MarkRef, Previous, PublicKey, Report, SigningKeyId,
    Unsigned, Window, WriterId, signed_part,
};
pub use check::{
    CONTEXT_MEMBERS, CheckRequest, FieldError, LOOP_STATE_MEMBERS, MAX_BODY_BYTES, MAX_CONTEXT_ENTRIES, MAX_GOAL_CHARS,
    MAX_ITEM_CHARS, MAX_ITEMS, Member, REQUEST_MEMBERS, RejectedRequest, is_plain_name,
};
pub use code::{Effect, IssueCode, NextAction, Severity, Verdict};
pub use constraint::{
    Constraint, ConstraintError, ConstraintName, FlagName, MAX_LIST_ENTRIES, NameFault, Names, Reading,
};
pub use decision::{AuditMode, CheckResponse, CostEstimate, Decision, GuardrailCheck, Issue, ResponseMeta, Signal};
pub use envelope::Envelope;
pub use environment::is_same_environment;
pub use error::{ErrorBody, ErrorCode, ErrorDetail};
pub use id::{AccountId, ClientRequestId, IdError, KeyId, PolicyVersion, RequestId, WebhookId};
pub use instance::{DeliveryLag, InstanceHeartbeat, InstanceState, InstanceStatus, Status};
pub use json::{JsonError, MAX_DEPTH, MAX_VALUES, parse_strict};
pub use key::{ApiKey, ApiKeyError, KEY_ALPHABET};
pub use manage::{
    Account, AccountCreated, Caller, CapChanges, Change, CreateAccount, CreateKey, DEFAULT_RETENTION_DAYS, KeyCreated,
    KeyIdentity, KeySummary, ListAccounts, ListKeys, ManageReply, Page, Plan, Refusal, RevokeKey, Revoked, RotateKey,
    Scope, Scopes, UpdateAccount,
};
pub use message::{
    CallerTexts, EvaluateReply, EvaluateRequest, Evaluation, EvaluatorStatus, EvaluatorStatusReply, KeyChanged,
    KeystoreStatus, KeystoreStatusReply, NoteKeyUses, NoteKeyUsesReply, Notice, RedactedTexts, RefreshKey,
    RefreshKeyReply, Request, ReviewReply, ReviewRequest, TestMessage, VerifyKey, VerifyKeyReply, VocabularyReply,
    VocabularyRequest,
};
pub use number::{MAX_USD, Micros, NumberError, whole_text};
pub use record::{
    ClientOrigin, DecisionRecord, Deletion, Durations, Expiry, LineHeader, LineType, Mark, MarkBody, RecordMetadata,
    recordable,
};
pub use run::{EndRun, ListRuns, Reservation, RunCost, RunEnded, RunId, RunSettled, RunView, SettleRun, ShowRun};
pub use traffic::{
    CURSOR_RECORDS, EVENTS, EventRoute, IDEMPOTENCY_RECORDS, KEYSTORE_RECORDS, RECORDS, REPLAY_RECORDS, REQUESTS,
    RUN_RECORDS, Records, RequestRoute, Role, Sealing, USAGE_RECORDS, event, owner_of_record, question,
};
pub use usage::{Caps, Limits, StoredBytes, UNLIMITED, Usage};
pub use webhook::{
    CreateWebhook, DeleteWebhook, DisableWebhook, EnableWebhook, Endpoint, EndpointsPage, GetWebhook, ListEndpoints,
    ListRetentions, ListWebhooks, MarkSigned, PublicKeys, RetentionsPage, RotateWebhookSecret, SecondClock, SignMark,
    SigningKeys, UpdateWebhook, Webhook, WebhookChanged, WebhookCreated, WebhookDeleted, WebhookDisabled,
    WebhookFilters, WebhookSecret,
};
pub use webhook_url::{Host, MAX_URL_CHARS, WebhookUrl, WebhookUrlError};
pub use word::{Spelling, Word, hidden, is_blank, is_invisible, parts, plain, visible};
