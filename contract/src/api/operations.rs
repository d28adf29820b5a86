//! Every operation of the HTTP API, declared once. The gateway's routes, the `Allow` lists, the OpenAPI document and
//! its tests follow from the table.
//!
//! A row's first line is its summary, the rest its description, in the document as in these docs. The request type of a
//! row defines the fields of body, path and query.

use crate::api::responses::ErrorResponse::{
    Conflict, NotFound, NothingToReport, NothingToSettle, PaymentRequired, ScopeMissing, TooManyChecks,
    TooManyDownloads, Unavailable,
};
use crate::api::row::{Access, Row};
use crate::api::schemas::{HookAnswer, HookEvent, OpenapiDocument, PolicyVocabulary};
use crate::{
    AcceptInvitation, Approval, CreateGrant, CreateStop, DecideApproval, DelegateMember, GiveReason, Grant,
    GrantReason, InviteMember, ListApprovals, ListGrants, ListMembers, ListStops, OfAllAccounts, ReadApprovalHistory,
    RegisterExternal, ReinviteMember, RemoveMember, ReportOutcome, ResumeStop, ShowApproval, UpdateMember,
};
use crate::{
    ActivatePolicy, Activation, ActivationAnswer, ActivationProposed, CheckRequest, CheckResponse, CreateAccount,
    CreateKey, CreateWebhook, DecisionPath, DecisionQuery, DeleteDecisions, DeleteWebhook, DenyProposal, DiffPolicies,
    EnableWebhook, EndRun, ExportQuery, ForgetPolicy, GetWebhook, ListAccounts, ListDeliveries, ListKeys, ListPolicies,
    ListProposals, ListRuns, ListWebhooks, Liveness, Page, PolicyComparison, PolicyProposal, ProposalReason,
    PublicKeys, PublishPolicy, PublishedPolicy, ReadActivePolicies, ReadPolicyHistory, ReadinessReport, ReplayWebhook,
    Report, RevokeKey, RollbackPolicy, RotateKey, RotateWebhookSecret, Scope, SettleRun, ShowPolicy, ShowProposal,
    ShowRun, ShownPolicy, Status, TestWebhook, UpdateAccount, UpdateWebhook, Usage, VerifyQuery,
};
use crate::{Candidates, ListCandidates, PolicyReplay, ReplayPolicy, ShadowPolicy, WithdrawCandidate};
use crate::{ForgetGuard, Guard, HookPath, ListGuards, Probe, ProbeTools, ReportDecisionOutcome, ReportGuard};
use crate::{ReportedOutcome, ShownDecision};

const OPEN: Access = Access::Open;
const ANY_KEY: Access = Access::AnyKey;
const CHECK: Access = Access::Scopes(&[Scope::Check]);
const READ: Access = Access::Scopes(&[Scope::DecisionsRead]);
const DELETE: Access = Access::Scopes(&[Scope::DecisionsDelete]);
const OUTCOMES: Access = Access::Scopes(&[Scope::OutcomesReport]);
const MANAGE_KEYS: Access = Access::Scopes(&[Scope::KeysManage]);
const RUNS: Access = Access::Scopes(&[Scope::Check, Scope::RunsManage]);
const MANAGE_RUNS: Access = Access::Scopes(&[Scope::RunsManage]);
const KEYS: Access = Access::Scopes(&[Scope::KeysManage, Scope::Operator]);
const WEBHOOKS: Access = Access::Scopes(&[Scope::WebhooksManage, Scope::Operator]);
const MEMBERS: Access = Access::Scopes(&[Scope::MembersManage, Scope::Operator]);
const APPROVALS: Access = Access::Scopes(&[Scope::Check, Scope::ApprovalsDecide, Scope::DecisionsRead]);
const DECIDE: Access = Access::Scopes(&[Scope::ApprovalsDecide]);
const REGISTER: Access = Access::Scopes(&[Scope::ApprovalsGrant]);
const STOPS: Access = Access::Scopes(&[Scope::StopsManage, Scope::Operator]);
const POLICIES: Access = Access::Scopes(&[Scope::PoliciesManage, Scope::Operator]);
const OPERATOR: Access = Access::Scopes(&[Scope::Operator]);

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../../fixtures/", $name, ".json"))
    };
}

macro_rules! operations {
    ($($(#[doc = $doc:literal])+ $name:ident = $row:expr;)+) => {
        /// An operation of the HTTP API: one method at one path.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Operation { $($(#[doc = $doc])+ $name,)+ }

        impl Operation {
            /// Every operation, in the order of the document.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            pub(super) fn row(self) -> &'static Row {
                match self {
                    $(Self::$name => {
                        const ROW: Row = Row { name: stringify!($name), doc: &[$($doc),+], ..$row };
                        &ROW
                    })+
                }
            }
        }
    };
}

operations! {
    /// May this action run?
    ///
    /// Needs the scope `check`. Refusals come in this order: 404/405, 429 for an address over its failed logins, 401,
    /// 403, 429 (key, scope and rate are judged before the body is read), 413/415, 400, 402, 422. The decision is
    /// recorded before the answer leaves (see `meta.audit`). After a 503 a record may exist all the same; the answer's
    /// `X-Request-Id` is then its `request_id`. With `context.run_id` the server counts the run, and the stricter of
    /// its count and the caller's holds; what cannot be counted is a 503, and so is every check at a gateway whose
    /// clock is more than 10 s from the state store's. An amount above 1,000,000,000 US dollars is a 422, and so is a
    /// control or blank character in the name of a run, a tool or an environment.
    Check = Row::post("/check", "check", CHECK)
        .body::<CheckRequest>()
        .replies::<CheckResponse>("A decision.")
        .or(&[PaymentRequired, TooManyChecks, NotFound])
        .body_example(
            r#"{"goal": "Deploy the payments service to production",
                "success_criteria": ["deployment completes safely"],
                "constraints": ["approval required", "required_role: platform_admin"],
                "tools": ["argo_cd"],
                "side_effects": ["deployment"],
                "context": {"actor_role": "platform_admin", "approval_status": "approved",
                    "approved_by": "ops-lead@example.com", "environment": "production"}}"#,
        )
        .example(fixture!("check_response_ignored"));

    /// Read what the account has used
    ///
    /// Any valid key may ask. The call itself is not counted. Windows are UTC. Minutes count every `/check` with a
    /// valid key; days and months count decisions, repeated ones not. Checks that other gateways have leased and not
    /// made yet count as used.
    GetUsage = Row::get("/usage", "usage", ANY_KEY)
        .replies::<Usage>("The key's account.")
        .example(fixture!("usage_stored_bytes"));

    /// Read the words of the policy in force
    ///
    /// Any valid key may ask. Words of side effects and tools by class, constraints with their forms and aliases,
    /// environments with aliases, members of `context` with their types, and every code with meaning and remedy.
    /// `stage0 policy vocabulary` prints the same of a pack's folder.
    GetVocabulary = Row::get("/v1/policy/vocabulary", "usage", ANY_KEY)
        .replies::<PolicyVocabulary>("The words of the account's active policy.");

    /// List accounts
    ///
    /// Needs the scope `operator`.
    ListAccounts = Row::get("/v1/accounts", "accounts", OPERATOR)
        .request::<ListAccounts>(200, "A page.")
        .example(fixture!("account_page"));

    /// Create an account
    ///
    /// Needs the scope `operator`.
    CreateAccount = Row::post("/v1/accounts", "accounts", OPERATOR)
        .request::<CreateAccount>(201, "Created.")
        .or(&[Conflict])
        .idempotent()
        .example(fixture!("account_reply_done"));

    /// Change plan, limits, retention or the run-id requirement
    ///
    /// Needs the scope `operator`. A change holds at once where it was made, and within a second everywhere. A shorter
    /// `retention_days` counts at once, also for what is recorded already. A longer one counts for decisions recorded
    /// from now on: each record keeps the `expires_at` that it was written with.
    UpdateAccount = Row::patch("/v1/accounts/{id}", "accounts", OPERATOR)
        .request::<UpdateAccount>(200, "The account.")
        .or(&[NotFound, Conflict])
        .body_example(
            r#"{"plan": "pro", "retention_days": 90, "per_minute": 1200, "monthly": null, "require_run_id": true}"#,
        )
        .example(fixture!("account_reply_limits"));

    /// List keys
    ///
    /// Needs `keys:manage`, or `operator`.
    ListKeys = Row::get("/v1/keys", "keys", KEYS)
        .request::<ListKeys>(200, "A page.")
        .or(&[NotFound])
        .example(fixture!("key_page_last_used"));

    /// Create a key
    ///
    /// Needs `keys:manage`, or `operator`. The new key may do no more than the caller's and ends no later. An account
    /// has at most `max_keys` keys that live (409).
    CreateKey = Row::post("/v1/keys", "keys", KEYS)
        .request::<CreateKey>(201, "Created; the only answer that shows the key.")
        .or(&[NotFound, Conflict])
        .idempotent()
        .example(fixture!("key_created"));

    /// Revoke a key
    ///
    /// Refused everywhere within a second. Revoking twice is no error. The caller must hold all scopes of the key, or
    /// be the operator. What the key granted lives on. Revocations are done before other changes, and have a rate limit
    /// of their own.
    RevokeKey = Row::delete("/v1/keys/{id}", "keys", KEYS)
        .request_without_content::<RevokeKey>("Revoked.")
        .or(&[NotFound]);

    /// Replace a key
    ///
    /// The new key has the old one's name, scopes and end. The caller must hold all its scopes and live as long, or be
    /// the operator.
    RotateKey = Row::post("/v1/keys/{id}/rotate", "keys", KEYS)
        .request::<RotateKey>(201, "The new key.")
        .or(&[NotFound, Conflict])
        .idempotent()
        .example(fixture!("key_rotated"));

    /// Delete decisions on demand
    ///
    /// Needs the scope `decisions:delete`; an operator's key deletes none. Removes the account's decisions that were
    /// recorded before a time. First a signed mark (`decisions.deleted`) is put into the log, which says how many, from
    /// when to when, and the last one of each writer; then they are removed. Events of them that no webhook got yet are
    /// not delivered; the mark is. Answered within 60 s. After a 503 the deletion may have happened or may be finished
    /// later; calling again does no harm.
    DeleteDecisions = Row::delete("/v1/decisions", "decisions", DELETE)
        .request::<DeleteDecisions>(200, "They are gone. A `count` of 0: nothing was deleted, and no mark written.")
        .example(fixture!("decisions_deleted"));

    /// List decisions
    ///
    /// Needs the scope `decisions:read`; an operator's key reads no decisions. The oldest first, or the newest with
    /// `order=desc`. A page costs a bounded piece of log (16 MiB) and holds at most some 4 MiB of it, so it may be
    /// short, with filters even empty, and still have a `next_cursor`: go on until that is null. A page that was filled
    /// to its limit has a `next_cursor` even when nothing follows. The filters are joined by *and*. Only decisions, not
    /// marks.
    ListDecisions = Row::get("/v1/decisions", "decisions", READ)
        .parameters::<DecisionQuery>()
        .replies::<Page<ShownDecision>>("A page.");

    /// Download the log
    ///
    /// Needs the scope `decisions:read`; an operator's key reads no decisions. The lines of the log as they were
    /// written, marks between the decisions, in the order of the log, one JSON object a line (`application/x-ndjson`).
    /// The bytes of a line, without its line feed, are what is hashed and signed. A mark covers what stands before it,
    /// so leave `to` out when the end is to be proven. A download that breaks off ends without the last HTTP chunk: a
    /// client that checks this, such as curl (exit code 18), notices. It goes on with `after`: throw an unfinished line
    /// away, take the `request_id` of the last decision that arrived whole, and ask again with it and the same filters;
    /// marks behind that decision come again. It lives as long as its client takes 64 KiB in 30 s. At most 2 at a time
    /// for one account on one gateway.
    ExportDecisions = Row::get("/v1/decisions/export", "decisions", READ)
        .parameters::<ExportQuery>()
        .sends("application/x-ndjson", "The lines.")
        .or(&[TooManyDownloads]);

    /// Judge the chain
    ///
    /// Needs the scope `decisions:read`; an operator's key reads no decisions. Walks through the account's log and says
    /// whether any line is missing, altered, out of order, there twice or not signed as it should be. Lines that
    /// expired, or that a signed deletion names, are not missed. A report with findings is a 200 as well: read `ok`.
    /// Walks through the log: at most 1 such call at a time for one account on one gateway. It may take long; nothing
    /// but the client's own time-out ends it.
    VerifyDecisions = Row::get("/v1/decisions/verify", "decisions", READ)
        .parameters::<VerifyQuery>()
        .replies::<Report>("What was found.")
        .or(&[TooManyDownloads])
        .example(fixture!("report_good"));

    /// Read one decision
    ///
    /// Needs the scope `decisions:read`; an operator's key reads no decisions. 404 also for a decision of another
    /// account, one past the account's retention, one that was deleted, and what is no UUID.
    GetDecision = Row::get("/v1/decisions/{request_id}", "decisions", READ)
        .parameters::<DecisionPath>()
        .replies::<ShownDecision>("The record.")
        .or(&[NotFound])
        .example(fixture!("decision_record"));

    /// Report what came of an allowed action
    ///
    /// Needs `outcomes:report`. A status and no output. Once: the same report again has the same answer, another one is
    /// a 409, except that `unknown` may be replaced by what it turned out to be. 409 also where the decision was not
    /// ALLOW. `cost_usd` settles the check in its run, under the rules of `POST /v1/runs/{run_id}/settle`; where it
    /// may not, nothing is reported. Where the decision used an approval, its outcome is this one. Recorded
    /// (`decision.outcome`) before the answer leaves; after a 503, report again.
    ReportDecisionOutcome = Row::post("/v1/decisions/{request_id}/outcome", "decisions", OUTCOMES)
        .parameters::<ReportDecisionOutcome>()
        .replies::<ReportedOutcome>("What is kept.")
        .or(&[NotFound, NothingToReport])
        .body_example(r#"{"status": "succeeded", "tool_call_id": "toolu_01", "duration_ms": 420, "cost_usd": 0.42}"#)
        .example(fixture!("reported_outcome"));

    /// Which tools can never be allowed?
    ///
    /// Needs the scope `check`. For guards that hide from a model what is of no use to it. `never`: rules deny the tool
    /// with these effects whatever a call's arguments, its run, the time and approvals are. All else is `maybe`: each
    /// call is decided again. Recorded (`tools.probed`), limited by the rate of checks, and not counted in any quota;
    /// it advances no run and uses no approval.
    ProbeTools = Row::post("/v1/probes", "check", CHECK)
        .parameters::<ProbeTools>()
        .replies::<Probe>("What the policy says of each tool.")
        .or(&[TooManyChecks])
        .body_example(
            r#"{"environment": "production", "tools": [
                {"tool": "read_file", "side_effects": ["read"]}, {"tool": "drop_table", "side_effects": ["delete"]}]}"#,
        )
        .example(fixture!("probe"));

    /// Ask as a coding agent's hook
    ///
    /// Needs the scope `check`. The body is the event that the agent hands to its hooks, and the answer is what the
    /// agent expects of a hook, for `claude-code`, `codex`, `cursor`, `gemini` and `opencode`. The event is mapped to a
    /// check by the built-in table of tools. **Always 200 with a body that denies** where the tool must not run, also
    /// where this API answers 401, 404, 413, 422, 429 or 503 elsewhere: agents read the body alone. Each key and agent
    /// that asks is kept as a guard that is alive.
    AskAsHook = Row::post("/v1/hooks/{agent}", "check", CHECK)
        .parameters::<HookPath>()
        .body::<HookEvent>()
        .replies::<HookAnswer>("The answer in the agent's own form.")
        .body_example(
            r#"{"hook_event_name": "PreToolUse", "session_id": "s-1", "cwd": "/work", "tool_name": "Bash",
                "tool_input": {"command": "ls"}, "tool_use_id": "toolu_01"}"#,
        )
        .example("{}");

    /// Report that a guard is alive
    ///
    /// Needs the scope `check`. The report says when the next one is due; a guard that is later is `silent`, which is
    /// recorded once (`guard.silent`) and sent to webhooks that name it. It is a sign of life, and no proof that
    /// nothing runs past the guard. At most 10,000 guards an account (409).
    ReportGuard = Row::post("/v1/guards", "guards", CHECK)
        .parameters::<ReportGuard>()
        .replies::<Guard>("The guard as it is kept.")
        .or(&[Conflict])
        .body_example(
            r#"{"guard_id": "laptop-7-claude-code", "kind": "claude-code", "version": "0.1.0",
                "agent_version": "2.1.332", "host": "laptop-7", "next_within_seconds": 900,
                "asked": 12, "refused": 1}"#,
        )
        .example(fixture!("guard_reply_done"));

    /// List guards
    ///
    /// Needs the scope `decisions:read`. In no promised order. A guard is forgotten 30 days after its last report.
    ListGuards = Row::get("/v1/guards", "guards", READ)
        .request::<ListGuards>(200, "A page.")
        .example(fixture!("guard_page"));

    /// Forget a guard
    ///
    /// Needs the scope `keys:manage`: for a machine that is gone. It comes back with its next report.
    ForgetGuard = Row::delete("/v1/guards/{guard_id}", "guards", MANAGE_KEYS)
        .request_without_content::<ForgetGuard>("Forgotten.")
        .or(&[NotFound]);

    /// List the account's runs
    ///
    /// Needs the scope `check` or `runs:manage`; an operator's key has no runs. In no promised order. A page looks at
    /// `limit` records and about 256 KB of them, so that it may hold fewer runs, none too, and yet not be the last:
    /// only a null `next_cursor` says so. A run that goes on while pages are read may be seen twice. A run is listed
    /// once a check without a secret in it has named it.
    ListRuns = Row::get("/v1/runs", "runs", RUNS)
        .request::<ListRuns>(200, "A page.")
        .example(fixture!("run_page"));

    /// End a run
    ///
    /// Needs the scope `runs:manage`. What was counted is forgotten: the next check with this name begins a new run.
    EndRun = Row::delete("/v1/runs/{run_id}", "runs", MANAGE_RUNS)
        .request_without_content::<EndRun>("Ended.")
        .or(&[NotFound]);

    /// Read what a run has counted
    ///
    /// Needs the scope `check` or `runs:manage`; an operator's key has no runs. 404 also for a run that was ended or
    /// forgotten, and for another account's.
    GetRun = Row::get("/v1/runs/{run_id}", "runs", RUNS)
        .request::<ShowRun>(200, "The run.")
        .or(&[NotFound])
        .example(fixture!("run_view"));

    /// Say what an allowed check has cost
    ///
    /// Needs the scope `check` or `runs:manage`; to settle for less than was estimated, `runs:manage`. The cost takes
    /// the place of the estimate that was reserved. Each check is settled once, within an hour unless the deployment
    /// says otherwise: afterwards its estimate counts as spent.
    SettleRun = Row::post("/v1/runs/{run_id}/settle", "runs", RUNS)
        .request::<SettleRun>(200, "Settled.")
        .or(&[NotFound, NothingToSettle])
        .body_example(r#"{"request_id": "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55", "actual_cost_usd": 0.42}"#)
        .example(fixture!("run_settled"));

    /// Which processes are there?
    ///
    /// Needs the scope `operator`. Every process says every two seconds how it is; this is what the answering gateway
    /// has heard. It decides nothing: a process that is not listed may still serve.
    Status = Row::get("/v1/status", "service", OPERATOR)
        .replies::<Status>("Every process that was seen in the last 15 minutes.")
        .example(fixture!("status"));

    /// List the public keys of marks
    ///
    /// No key is needed. The keys that sign marks, or signed them once, the newest first. Keep a copy outside: an
    /// attacker who can change the log may be able to change this list too.
    ListSigningKeys = Row::get("/v1/signing-keys", "decisions", OPEN)
        .replies::<PublicKeys>("All of them.")
        .or(&[Unavailable])
        .example(fixture!("public_keys"));

    /// List endpoints
    ///
    /// Needs `webhooks:manage`, or `operator`. Without secrets.
    ListWebhooks = Row::get("/v1/webhooks", "webhooks", WEBHOOKS)
        .request::<ListWebhooks>(200, "A page.")
        .or(&[NotFound])
        .example(fixture!("webhook_page"));

    /// Create an endpoint
    ///
    /// Needs `webhooks:manage`, or `operator`. It gets what is recorded from now on. The URL's syntax is checked here;
    /// where it leads is checked at every delivery. The URL is kept and shown as it is connected to (host in lower case
    /// and ASCII, default port and dot segments gone). At most `max_endpoints` endpoints an account, 100 by default
    /// (409).
    CreateWebhook = Row::post("/v1/webhooks", "webhooks", WEBHOOKS)
        .request::<CreateWebhook>(201, "Created; the only answer that shows this secret.")
        .or(&[NotFound, Conflict])
        .idempotent()
        .body_example(
            r#"{"url": "https://hooks.example.com/stage0", "verdicts": ["DENY", "DEFER"], "description": "SIEM"}"#,
        )
        .example(fixture!("webhook_created"));

    /// Delete an endpoint
    ///
    /// Needs `webhooks:manage`, or `operator`. Nothing more is sent to it; what waited for it is dropped. Deleting
    /// twice is no error.
    DeleteWebhook = Row::delete("/v1/webhooks/{id}", "webhooks", WEBHOOKS)
        .request_without_content::<DeleteWebhook>("Deleted.")
        .or(&[NotFound]);

    /// Read an endpoint
    ///
    /// Needs `webhooks:manage`, or `operator`.
    GetWebhook = Row::get("/v1/webhooks/{id}", "webhooks", WEBHOOKS)
        .request::<GetWebhook>(200, "The endpoint, without its secret.")
        .or(&[NotFound])
        .example(fixture!("webhook_reply_done"));

    /// Change an endpoint
    ///
    /// Needs `webhooks:manage`, or `operator`. What is absent stays as it is. `verdicts` and `environments` are changed
    /// each on its own; null means all again. `rate_limit` null or 0 takes the limit away. Null in `url`, `description`
    /// or `enabled` changes nothing.
    UpdateWebhook = Row::patch("/v1/webhooks/{id}", "webhooks", WEBHOOKS)
        .request::<UpdateWebhook>(200, "The endpoint as it is now.")
        .or(&[NotFound, Conflict])
        .body_example(r#"{"verdicts": null, "rate_limit": 50}"#)
        .example(fixture!("webhook_reply_done"));

    /// Give an endpoint a new secret
    ///
    /// Needs `webhooks:manage`, or `operator`. Until the overlap ends, each delivery carries one signature for each
    /// secret. At most 5 secrets sign at a time (409).
    RotateWebhookSecret = Row::post("/v1/webhooks/{id}/rotate-secret", "webhooks", WEBHOOKS)
        .request::<RotateWebhookSecret>(201, "The endpoint with its new secret, which is shown here only.")
        .or(&[NotFound, Conflict])
        .idempotent()
        .example(fixture!("webhook_created"));

    /// Enable an endpoint again
    ///
    /// Needs `webhooks:manage`, or `operator`. Takes `disabled_reason` away. If it had been disabled by its failures,
    /// what waited is tried at once.
    EnableWebhook = Row::post("/v1/webhooks/{id}/enable", "webhooks", WEBHOOKS)
        .request::<EnableWebhook>(200, "The endpoint.")
        .or(&[NotFound, Conflict])
        .example(fixture!("webhook_reply_done"));

    /// Send a test event now
    ///
    /// Needs `webhooks:manage`, or `operator`. One attempt with an event of type `webhook.test`, also to a disabled
    /// endpoint. It is not recorded, has no place in the endpoint's numbers and disables nothing. A receiver that fails
    /// is a 200 here as well: read `delivered`. At most 8 tests of an account run at a time (409).
    TestWebhook = Row::post("/v1/webhooks/{id}/test", "webhooks", WEBHOOKS)
        .request::<TestWebhook>(200, "What came of it.")
        .or(&[NotFound, Conflict])
        .example(fixture!("webhook_tested_failed"));

    /// Send once more
    ///
    /// Needs `webhooks:manage`, or `operator`. Sends what was recorded in a time, is still kept and passes the
    /// endpoint's filters, marks included. A replayed event has its old `webhook-id`, a new `data.sequence`, and
    /// otherwise its old bytes. At most 32 replays wait (409). A disabled endpoint gets them once it is enabled, within
    /// 30 days.
    ReplayWebhook = Row::post("/v1/webhooks/{id}/replay", "webhooks", WEBHOOKS)
        .request::<ReplayWebhook>(202, "It will be sent.")
        .or(&[NotFound, Conflict])
        .body_example(r#"{"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"}"#)
        .example(fixture!("replay_started"));

    /// See how deliveries stand
    ///
    /// Needs `webhooks:manage`, or `operator`. The highest `sequence` first, all on one page: every event that waits
    /// for another attempt (little more than 1,000 at most), the last 1,000 exhausted ones and the last 100 delivered
    /// ones.
    ListDeliveries = Row::get("/v1/webhooks/{id}/deliveries", "webhooks", WEBHOOKS)
        .request::<ListDeliveries>(200, "All that is remembered.")
        .or(&[NotFound])
        .example(fixture!("delivery_page"));

    /// Invite a person
    ///
    /// Needs `members:manage`, or `operator`. Answers the only sight of the invitation's code: give it to the person
    /// alone, who makes the key with it (`POST /v1/invitations/accept`). Who invites somebody is not another person for
    /// what the own workloads ask, the operator excepted. At most 1,000 members an account (409).
    InviteMember = Row::post("/v1/members", "members", MEMBERS)
        .request::<InviteMember>(201, "Invited; the only answer that shows this code.")
        .or(&[NotFound, Conflict])
        .idempotent()
        .body_example(r#"{"name": "Ada", "mail": "ada@example.com", "groups": ["release-managers"]}"#)
        .example(fixture!("member_invited"));

    /// List members
    ///
    /// Needs `members:manage`, or `operator`.
    ListMembers = Row::get("/v1/members", "members", MEMBERS)
        .request::<ListMembers>(200, "A page.")
        .or(&[NotFound])
        .example(fixture!("member_page"));

    /// Change a member's name, mail or groups
    ///
    /// Needs `members:manage`, or `operator`. Groups are replaced as a whole. Who changes them is not another person
    /// for that member afterwards, the operator excepted. A member cannot change its own groups.
    UpdateMember = Row::patch("/v1/members/{id}", "members", MEMBERS)
        .request::<UpdateMember>(200, "The member as it is now.")
        .or(&[NotFound, Conflict])
        .body_example(r#"{"groups": ["release-managers", "on-call"]}"#)
        .example(fixture!("member_reply_done"));

    /// Remove a member
    ///
    /// Needs `members:manage`, or `operator`. Name and mail are deleted, keys revoked, and votes that were given no
    /// longer count for approvals that are not used. Removing twice is no error.
    RemoveMember = Row::delete("/v1/members/{id}", "members", MEMBERS)
        .request_without_content::<RemoveMember>("Removed.")
        .or(&[NotFound]);

    /// Invite a member again
    ///
    /// Needs `members:manage`, or `operator`. For a member who lost the code or the key. Earlier codes end
    /// at once, earlier keys when the new code is accepted.
    ReinviteMember = Row::post("/v1/members/{id}/invite", "members", MEMBERS)
        .request::<ReinviteMember>(201, "Invited; the only answer that shows this code.")
        .or(&[NotFound, Conflict])
        .idempotent()
        .example(fixture!("member_invited"));

    /// Let another member decide meanwhile
    ///
    /// A member does so for itself with any of its keys, or the operator. The other one may then decide for the groups
    /// of the one who is away, and is not that person: one vote is one person's.
    DelegateMember = Row::post("/v1/members/{id}/delegate", "members", ANY_KEY)
        .request::<DelegateMember>(200, "The member as it is now.")
        .or(&[ScopeMissing, NotFound, Conflict])
        .body_example(r#"{"to": "mem_2", "until": "2026-12-24T08:00:00Z"}"#)
        .example(fixture!("member_reply_done"));

    /// Make the key of an invited member
    ///
    /// Needs no key: the code is the proof. It works once. An unknown, used or expired code is a 404; many of them from
    /// one address are a 429.
    AcceptInvitation = Row::post("/v1/invitations/accept", "members", OPEN)
        .request::<AcceptInvitation>(201, "The member with its key, which is shown here only.")
        .or(&[NotFound])
        .body_example(r#"{"code": "inv_0123456789abcdefghjkmnpqrstvwxyz"}"#)
        .example(fixture!("invitation_accepted"));

    /// List approvals
    ///
    /// A key with `approvals:decide` or `decisions:read` sees those of its account, a key with `check` those that its
    /// own workload asked for. The newest first on each page, pages in no order of time; `action` is null here.
    ListApprovals = Row::get("/v1/approvals", "approvals", APPROVALS)
        .request::<ListApprovals>(200, "A page.")
        .example(fixture!("approval_page"));

    /// Read an approval
    ///
    /// As the list. With `wait` the answer comes as soon as the approval changes, or after that time. `action` is there
    /// for the workload that asked and for members who may decide about it.
    ShowApproval = Row::get("/v1/approvals/{id}", "approvals", APPROVALS)
        .request::<ShowApproval>(200, "The approval.")
        .or(&[NotFound])
        .example(fixture!("approval_reply_done"));

    /// Read what happened to an approval
    ///
    /// As the list. Each item is a line of the decision log as well.
    ReadApprovalHistory = Row::get("/v1/approvals/{id}/history", "approvals", APPROVALS)
        .request::<ReadApprovalHistory>(200, "All that happened, the oldest first.")
        .or(&[NotFound])
        .example(fixture!("approval_history"));

    /// Approve an action
    ///
    /// Needs `approvals:decide`, which only keys of members have. `action_digest` is that of the approval as it was
    /// read: one approves what one saw (409 for another). Never counts: the workload that asked, who owns or made it,
    /// and members whom such a person invited. Deciding again, too late, or while a stop covers the action is a 409.
    ApproveAction = Row::post("/v1/approvals/{id}/approve", "approvals", DECIDE)
        .parameters::<DecideApproval>()
        .replies::<Approval>("The approval as it is now.")
        .or(&[NotFound, Conflict])
        .example(fixture!("approval_reply_done"));

    /// Deny an action
    ///
    /// As approving; `reason` is required. One person is enough. For an hour the same action is then DENY, and no
    /// approval is opened for it.
    DenyAction = Row::post("/v1/approvals/{id}/deny", "approvals", DECIDE)
        .parameters::<DecideApproval>()
        .replies::<Approval>("The approval as it is now.")
        .or(&[NotFound, Conflict])
        .example(fixture!("approval_reply_done"));

    /// Register an approval that a system outside gave
    ///
    /// Needs `approvals:grant`, which only the operator gives. The names count as people who were eligible there; the
    /// evidence is kept.
    RegisterApproval = Row::post("/v1/approvals/{id}/register", "approvals", REGISTER)
        .parameters::<RegisterExternal>()
        .replies::<Approval>("The approval as it is now.")
        .or(&[NotFound, Conflict])
        .example(fixture!("approval_reply_done"));

    /// Take an approval back
    ///
    /// While it is pending or approved and not used: the workload that asked, or a member who may decide about it.
    CancelApproval = Row::post("/v1/approvals/{id}/cancel", "approvals", APPROVALS)
        .parameters::<GiveReason>()
        .replies::<Approval>("The approval as it is now.")
        .or(&[NotFound, Conflict])
        .example(fixture!("approval_reply_done"));

    /// Let a used approval be used again
    ///
    /// Needs `approvals:decide`; `reason` is required. For a check whose answer was lost: look first whether the action
    /// ran.
    ReopenApproval = Row::post("/v1/approvals/{id}/reopen", "approvals", DECIDE)
        .parameters::<GiveReason>()
        .replies::<Approval>("The approval as it is now.")
        .or(&[NotFound, Conflict])
        .example(fixture!("approval_reply_done"));

    /// Report what came of an approved action
    ///
    /// Needs `check`, by the workload that used it. Once.
    ReportOutcome = Row::post("/v1/approvals/{id}/outcome", "approvals", CHECK)
        .parameters::<ReportOutcome>()
        .replies::<Approval>("The approval as it is now.")
        .or(&[NotFound, Conflict])
        .example(fixture!("approval_reply_done"));

    /// Make a wider grant
    ///
    /// Needs `approvals:decide`. The workload then needs no new approval for what the grant covers, where people who
    /// approved it are as many, and of the groups, that the policy asks for at that moment. At most 8 hours, at most
    /// 100 grants an account (409). Each use is recorded.
    CreateGrant = Row::post("/v1/grants", "approvals", DECIDE)
        .parameters::<CreateGrant>()
        .status(201)
        .replies::<Grant>("Made.")
        .or(&[NotFound, Conflict])
        .body_example(
            r#"{"key_id": "0w3ge1r70w3ge1r7", "run_id": "nightly-7", "tool": "psql",
                "until": "2026-11-27T20:00:00Z", "reason": "migration, reviewed in CHG-12"}"#,
        )
        .example(fixture!("grant"));

    /// List wider grants
    ///
    /// As the list of approvals.
    ListGrants = Row::get("/v1/grants", "approvals", APPROVALS)
        .request::<ListGrants>(200, "Those that have not ended.")
        .example(fixture!("grants"));

    /// Approve a wider grant
    ///
    /// Needs `approvals:decide`: for grants that more than one person must approve.
    ApproveGrant = Row::post("/v1/grants/{id}/approve", "approvals", DECIDE)
        .parameters::<GrantReason>()
        .replies::<Grant>("The grant as it is now.")
        .or(&[NotFound, Conflict])
        .example(fixture!("grant"));

    /// Revoke a wider grant
    ///
    /// Needs `approvals:decide`. It holds for every check that is not answered yet. Revoking twice is no error.
    RevokeGrant = Row::post("/v1/grants/{id}/revoke", "approvals", DECIDE)
        .parameters::<GrantReason>()
        .replies::<Grant>("The grant as it is now.")
        .or(&[NotFound, Conflict])
        .example(fixture!("grant"));

    /// Stop checks
    ///
    /// Needs `stops:manage`, or `operator`. Every check in the scope is DENY `STOPPED` at every gateway within a
    /// second, and approvals that it covers cannot be given. At most 100 stops an account at a time (409).
    CreateStop = Row::post("/v1/stops", "stops", STOPS)
        .request::<CreateStop>(201, "It holds.")
        .or(&[NotFound, Conflict])
        .idempotent()
        .body_example(r#"{"scope": "environment", "value": "production", "reason": "incident 12"}"#)
        .example(fixture!("stop_reply_done"));

    /// List stops
    ///
    /// Any valid key may ask.
    ListStops = Row::get("/v1/stops", "stops", ANY_KEY)
        .request::<ListStops>(200, "Those that hold.")
        .or(&[NotFound])
        .example(fixture!("stop_page"));

    /// Resume what was stopped
    ///
    /// Needs `stops:manage` in a member's key, or `operator`.
    ResumeStop = Row::post("/v1/stops/{id}/resume", "stops", STOPS)
        .request::<ResumeStop>(200, "The stop as it was.")
        .or(&[NotFound, Conflict])
        .example(fixture!("stop_reply_done"));

    /// Publish a policy
    ///
    /// Needs `policies:manage`, or `operator`. The pack is loaded and its cases are
    /// run; each fault is an entry of `errors` with file, line and rule (422). What is published never changes: the
    /// same version with the same content is no change, the same name and number with other content is a 409.
    /// At most 768 KiB, 512 KiB of rules and 100 files a pack; 100 versions and 16 MiB an account (409).
    PublishPolicy = Row::post("/v1/policies", "policies", POLICIES)
        .parameters::<OfAllAccounts<PublishPolicy>>()
        .replies::<PublishedPolicy>("It is published.")
        .status(201)
        .or_unchanged("It had been published before, and nothing changed.")
        .or(&[NotFound, Conflict])
        .body_example(
            r#"{"packs": [{"files": {"pack.toml": "name = \"acme\"\nversion = \"1.0.0\"\n"}}]}"#,
        )
        .example(fixture!("published_policy"));

    /// List published policies
    ///
    /// Needs `policies:manage`, or `operator`. The account's own and the operator's, by version.
    ListPolicies = Row::get("/v1/policies", "policies", POLICIES)
        .request::<ListPolicies>(200, "One page.")
        .parameters::<OfAllAccounts<ListPolicies>>()
        .or(&[NotFound])
        .example(fixture!("policy_page"));

    /// Read what is active
    ///
    /// Needs `policies:manage`, or `operator`.
    ReadActivePolicies = Row::get("/v1/policies/active", "policies", POLICIES)
        .request::<ReadActivePolicies>(200, "What decides for the account.")
        .parameters::<OfAllAccounts<ReadActivePolicies>>()
        .or(&[NotFound])
        .example(fixture!("policies_in_force"));

    /// List the policies that are tried
    ///
    /// Needs `policies:manage`, or `operator`, who names an account. Shadows and canaries, with how often each of them
    /// and the active policy differ, and in what.
    ListCandidates = Row::get("/v1/policies/candidates", "policies", POLICIES)
        .parameters::<ListCandidates>()
        .replies::<Candidates>("Each with what was found.")
        .or(&[NotFound])
        .example(fixture!("candidates"));

    /// Withdraw the policy that is tried at a place
    ///
    /// Needs `policies:manage`, or `operator`, who names an account. What is active decides all checks at that place
    /// again.
    WithdrawCandidate = Row::post("/v1/policies/withdraw", "policies", POLICIES)
        .parameters::<WithdrawCandidate>()
        .replies::<Activation>("It is tried no longer.")
        .or(&[NotFound, Conflict])
        .body_example(r#"{"reason": "it denies too many refunds"}"#)
        .example(fixture!("activation_withdrawn"));

    /// Read what was active when
    ///
    /// Needs `policies:manage`, or `operator`. The newest 1,000 changes of the account.
    ReadPolicyHistory = Row::get("/v1/policies/history", "policies", POLICIES)
        .request::<ReadPolicyHistory>(200, "The newest change first.")
        .parameters::<OfAllAccounts<ReadPolicyHistory>>()
        .or(&[NotFound])
        .example(fixture!("policy_history"));

    /// Roll a policy back
    ///
    /// Needs `policies:manage`, or `operator`. Makes active what was active before the last activation; ten of them can
    /// be rolled back, one after the other (409). Send `expected`, so that a repeated call does not go back twice.
    RollbackPolicy = Row::post("/v1/policies/rollback", "policies", POLICIES)
        .parameters::<OfAllAccounts<RollbackPolicy>>()
        .replies::<Activation>("What is active now.")
        .or(&[NotFound, Conflict])
        .body_example(r#"{"reason": "refunds of partners were denied"}"#)
        .example(fixture!("activation_rolled_back"));

    /// List proposed activations
    ///
    /// Needs `policies:manage`, or `operator`. Those that wait for a second member, and the last that have ended; the
    /// newest first.
    ListProposals = Row::get("/v1/policies/proposals", "policies", POLICIES)
        .request::<ListProposals>(200, "One page.")
        .or(&[NotFound])
        .example(fixture!("proposal_page"));

    /// Show a proposed activation
    ///
    /// Needs `policies:manage`, or `operator`.
    ShowProposal = Row::get("/v1/policies/proposals/{id}", "policies", POLICIES)
        .request::<ShowProposal>(200, "The proposal.")
        .or(&[NotFound])
        .example(fixture!("proposal_reply"));

    /// Approve a proposed activation
    ///
    /// Needs the key of a member with `policies:manage` who is another person than the one that proposed it (409):
    /// never who owns or made that key, and no member whom such a person invited. It activates what was proposed. If
    /// another version is in force than when it was proposed, nothing is activated and the proposal ends (409).
    ApproveProposal = Row::post("/v1/policies/proposals/{id}/approve", "policies", POLICIES)
        .parameters::<ProposalReason>()
        .replies::<Activation>("It is active.")
        .or(&[NotFound, Conflict])
        .body_example(r#"{"reason": "the limit is what we agreed on"}"#)
        .example(fixture!("activation_approved"));

    /// Deny a proposed activation
    ///
    /// Needs the key of a member with `policies:manage`. `reason` is required.
    DenyProposal = Row::post("/v1/policies/proposals/{id}/deny", "policies", POLICIES)
        .parameters::<DenyProposal>()
        .replies::<PolicyProposal>("The proposal as it is now.")
        .or(&[NotFound, Conflict])
        .example(fixture!("proposal_denied"));

    /// Take a proposed activation back
    ///
    /// Needs `policies:manage`, or `operator`: the workload that proposed it, any member, or the operator.
    CancelProposal = Row::post("/v1/policies/proposals/{id}/cancel", "policies", POLICIES)
        .parameters::<ProposalReason>()
        .replies::<PolicyProposal>("The proposal as it is now.")
        .or(&[NotFound, Conflict])
        .example(fixture!("proposal_cancelled"));

    /// Show a published policy
    ///
    /// Needs `policies:manage`, or `operator`.
    ShowPolicy = Row::get("/v1/policies/{version}", "policies", POLICIES)
        .parameters::<OfAllAccounts<ShowPolicy>>()
        .replies::<ShownPolicy>("The version, and which evaluators have it.")
        .or(&[NotFound])
        .example(fixture!("shown_policy"));

    /// Compare a policy with another
    ///
    /// Needs `policies:manage`, or `operator`. What changes if the version takes the place of `from`, or of what
    /// decides now: cases with another verdict, rules, words and values, at most 100 of each and 256 KiB; `left_out`
    /// counts the others. `flips` is what an activation there has to accept. Without a floor there is nothing to
    /// compare `floor` with (409).
    DiffPolicies = Row::get("/v1/policies/{version}/diff", "policies", POLICIES)
        .parameters::<OfAllAccounts<DiffPolicies>>()
        .replies::<PolicyComparison>("What changes.")
        .or(&[NotFound, Conflict])
        .example(fixture!("policy_comparison"));

    /// Forget a published policy
    ///
    /// Needs `policies:manage`, or `operator`. One that is active, or to which a rollback leads, is a 409. It is
    /// recorded as `policy.deleted` before it is done. Its number stays taken: only the same content can be
    /// published under it.
    ForgetPolicy = Row::delete("/v1/policies/{version}", "policies", POLICIES)
        .request_without_content::<ForgetPolicy>("It is kept no longer.")
        .parameters::<OfAllAccounts<ForgetPolicy>>()
        .or(&[NotFound, Conflict]);

    /// Activate a policy
    ///
    /// Needs `policies:manage`, or `operator`, who alone activates for every account and sets the floor. It decides
    /// every check of the account at every gateway within a second. What is active already is no change.
    ///
    /// The version is compared with what decides at that place now. What is looser must be accepted: a 409 says how
    /// much it is, and `accept_flips` with that number and a `reason` accepts it. Without a comparison nothing is
    /// activated (503). Where the account's decisions are recorded with their facts, the newest of them are replayed
    /// too, and count.
    ///
    /// With `canary` it decides a share of the runs, until it is activated as a whole, withdrawn, or differs too often
    /// from what is active: then it ends by itself.
    ///
    /// Where the account wants a second member (`policy_changes`), nothing is activated: it is proposed, the answer is
    /// a 202 with `proposal`, and a member who is another person approves it within 24 hours. What the operator
    /// activates needs none.
    ActivatePolicy = Row::post("/v1/policies/{version}/activate", "policies", POLICIES)
        .parameters::<OfAllAccounts<ActivatePolicy>>()
        .replies::<ActivationAnswer>("It is active.")
        .or_accepts::<ActivationProposed>("It waits for a second member.")
        .or(&[NotFound, Conflict])
        .body_example(r#"{"environment": "staging", "reason": "try the limit of refunds"}"#)
        .example(fixture!("activation"));

    /// Try a policy as a shadow
    ///
    /// Needs `policies:manage`, or `operator`, who names an account. From then on the version judges checks at that
    /// place beside the active one. It has no effect on any answer, and no answer waits for it. It takes the place of
    /// a candidate that is tried there.
    ShadowPolicy = Row::post("/v1/policies/{version}/shadow", "policies", POLICIES)
        .parameters::<ShadowPolicy>()
        .replies::<Activation>("It judges.")
        .or(&[NotFound, Conflict])
        .body_example(r#"{"percent": 20}"#)
        .example(fixture!("activation_shadow"));

    /// Replay recorded decisions by a policy
    ///
    /// Needs `policies:manage`. Decisions of the key's own account that were recorded with their facts (`record_facts`
    /// of the account) are decided again by the version. What could not be replayed is counted, and why.
    ReplayPolicy = Row::get("/v1/policies/{version}/replay", "policies", POLICIES)
        .parameters::<ReplayPolicy>()
        .replies::<PolicyReplay>("What it would have decided.")
        .or(&[NotFound, TooManyDownloads])
        .example(fixture!("policy_replay"));

    /// Does this process run?
    Alive = Row::get("/healthz", "service", OPEN).replies::<Liveness>("It does.").probe(None);

    /// Can it decide and record now?
    Ready = Row::get("/readyz", "service", OPEN)
        .replies::<ReadinessReport>("It can.")
        .probe(Some("It cannot; `reasons` says why."));

    /// This document
    Openapi = Row::get("/openapi.json", "service", OPEN).replies::<OpenapiDocument>("OpenAPI 3.1.");

    /// The guide for people
    Docs = Row::get("/docs", "service", OPEN).sends("text/html", "HTML.");

    /// A page of the guide, or a file that pages need
    DocsPage = Row::get("/docs/{page}", "service", OPEN).undescribed();

    /// The redirect for a page whose address ends with a slash
    DocsBelow = Row::get("/docs/{folder}/{page}", "service", OPEN).undescribed();
}
