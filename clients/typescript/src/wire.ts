// Written by tools/wire.mjs from docs/openapi.json: the bodies that the client sends and reads.

/** An approval. */
export interface Approval {
  /** The approval's id. */
  readonly id: string;
  /** Where it stands. */
  readonly status: ApprovalStatus;
  /** What exactly is approved: to approve or deny, send this. */
  readonly action_digest: string;
  /** The policy that deferred it. Under another one the action has another digest. */
  readonly policy_version: string;
  /** The operator's floor that was evaluated beside it; absent: none. */
  readonly floor_version?: string;
  /** Where the action would run; empty when unknown. */
  readonly environment: string;
  /** The key that asked. */
  readonly key_id: string;
  /** The workload that asked: the first key of its rotations. Only it can use the approval. */
  readonly workload: string;
  /** The check that opened it. */
  readonly request_id: string;
  /** What the policy found, the gravest first. */
  readonly issues: readonly ApprovalIssue[];
  /** What the policy demands. */
  readonly terms: ApprovalTerms;
  /** How many people may approve it now; null where that was not asked. */
  readonly eligible: number | null;
  /** Every answer, the oldest first. */
  readonly votes: readonly Vote[];
  /** When it was opened. */
  readonly created_at: string;
  /** Until when people may decide. */
  readonly expires_at: string;
  /** When it was approved, denied, expired or cancelled. */
  readonly decided_at: string | null;
  /** Until when it may be used; null where it is not approved. */
  readonly usable_until: string | null;
  /** The check that uses or used it. */
  readonly used_by: string | null;
  /** When that was. */
  readonly used_at: string | null;
  /** What came of the action, as its workload reported; null: nothing was reported. */
  readonly outcome: Outcome | null;
  /** Why it is held up while a stop covers it; null: none does. */
  readonly stopped: string | null;
  /** Where it is read. */
  readonly url: string;
  /** The whole action, for its workload and for members who may decide about it; null for others, and once the text
   * is deleted. */
  readonly action: Readonly<Record<string, unknown>> | null;
}

/** An issue of the decision that opened an approval. */
export interface ApprovalIssue {
  /** A stable reason code. */
  readonly code: string;
  /** How grave. */
  readonly severity: Severity;
  /** For people; no value of the request in it. */
  readonly message: string;
  /** Absent: the policy that decides raised it. */
  readonly details?: ApprovalIssueDetails;
}

/** Of an issue that the floor raised. */
export interface ApprovalIssueDetails {
  /** The floor's version. */
  readonly policy: string;
}

/** The approval that a decision opened, waits for, or used. */
export interface ApprovalRef {
  /** The approval's id; null where a wider grant was used. */
  readonly id: string | null;
  /** The wider grant that was used; absent: none. */
  readonly grant_id?: string;
  /** `pending` on DEFER, or `approved` where it cannot be used yet; `consumed` on ALLOW. */
  readonly status: ApprovalStatus;
  /** What exactly is approved. */
  readonly action_digest: string;
  /** How many people must approve. */
  readonly quorum: number;
  /** Members of which groups may; empty: every member whose key may decide. */
  readonly groups: readonly string[];
  /** Until when people may decide; of an approved one, until when it may be used. */
  readonly expires_at: string;
  /** Where the approval is read. */
  readonly url: string;
}

/** Where an approval counts from. `caller`: the caller says so in `context`. `approval`: people approved this very
 * action here. `grant`: a wider grant covers it. */
export type ApprovalSource = "caller" | "approval" | "grant";

/** Where an approval stands. Each end is reached once. `pending`: it waits for people. `approved`: it may be used
 * once, until `usable_until`. `denied`: a person said no. `expired`: its time was over before it was decided, or
 * before it was used. `cancelled`: it was taken back. `reserved`: a check uses it, and whether that was recorded is
 * not confirmed yet: it counts as used. `consumed`: it was used. */
export type ApprovalStatus = "pending" | "approved" | "denied" | "expired" | "cancelled" | "reserved" | "consumed";

/** What the policy demands of an approval: the rules that deferred, taken together. */
export interface ApprovalTerms {
  /** Each of them must be met. */
  readonly requirements: readonly Requirement[];
  /** How long people may take, in seconds. */
  readonly within_seconds: number;
  /** How long it may be used once it is approved, in seconds. */
  readonly valid_seconds: number;
  /** Whether an approval needs a reason, as a denial always does. */
  readonly reason_required?: boolean;
  /** After a time, members of these groups may decide as well, for each requirement. */
  readonly escalation?: Escalation;
}

/** Whether the decision was recorded before it was released. `none`: nothing was recorded. Only answers of earlier
 * releases have it. `required`: recorded before release. `best-effort`: released even when recording failed. */
export type AuditMode = "none" | "required" | "best-effort";

/** A proposed action. Unknown members are tolerated. At most 1,000,000 bytes, 50,000 JSON values, 32 levels deep. */
export interface CheckRequest {
  /** What the agent wants to do. */
  readonly goal: string;
  /** How it will know that it is done. */
  readonly success_criteria?: readonly string[] | null;
  /** Limits it declares, such as `approval required`, `required_role: admin` or `max_cost_usd: 5`. */
  readonly constraints?: readonly string[] | null;
  /** Tools it will use. */
  readonly tools?: readonly string[] | null;
  /** What changes outside, such as `deploy` or `external_notification`. A word that the policy does not know counts
   * as high risk. */
  readonly side_effects?: readonly string[] | null;
  /** Facts: `actor_role`, `approval_status`, `environment`, `run_id`, … Absent differs from empty. */
  readonly context?: Context | null;
  /** The same as `context.environment`; both given and different is refused. */
  readonly environment?: string | null;
  /** Advice of MEDIUM severity denies as well. */
  readonly pro?: boolean;
  /** Empty: the account's active version. */
  readonly policy_pack_version?: string | null;
  /** Only when true is the request's text recorded, with secrets masked, as `input` of the decision's record. */
  readonly debug_store_input?: boolean;
}

/** The body of a 200 answer to `POST /check`. */
export interface CheckResponse {
  /** Paired with `verdict`. */
  readonly decision: Signal;
  /** ALLOW, DEFER or DENY. */
  readonly verdict: Verdict;
  /** The deciding issues as `CODE: message; …`, or why the action is allowed. */
  readonly reason: string;
  /** All satisfied rules, the gravest first. */
  readonly issues: readonly Issue[];
  /** 0 to 100; an ALLOW has at most 99. */
  readonly risk_score: number;
  /** From 0 to 100: how doubtful its worth is. */
  readonly value_risk: number;
  /** From 0 to 100: how likely it is to waste effort. */
  readonly waste_risk: number;
  /** `risk_score` of 61 or more. */
  readonly high_risk: boolean;
  /** Questions that would help; on DEFER never empty. */
  readonly clarifying_questions: readonly string[];
  /** On DEFER the same, non-empty list as `clarifying_questions`; else empty. */
  readonly defer_questions: readonly string[];
  /** Guardrails that the request declares. */
  readonly guardrails: readonly string[];
  /** Recognised constraints, normalised. */
  readonly constraints_applied: readonly string[];
  /** Constraints without effect, as sent; masked where the request holds a secret. Empty in records and in answers
   * that are given again. */
  readonly constraints_ignored: readonly string[];
  /** What was found about the task's worth. */
  readonly value_findings: readonly string[];
  /** Family → check → state. */
  readonly guardrail_checks: Readonly<Record<string, Readonly<Record<string, GuardrailCheck>>>>;
  /** When the request names a cost. */
  readonly cost_estimate: CostEstimate | null;
  /** `<pack>@<semver>+<digest>`: names the content that decided. */
  readonly policy_version: string;
  /** The operator's pack that was evaluated beside it; absent: none was. */
  readonly floor_version?: string;
  /** Empty when unknown. */
  readonly environment: string;
  /** Rules evaluated, matched, deciding. */
  readonly decision_trace_summary: string;
  /** The approval that this decision opened, waits for, or used. Null where there is none; on DEFER also where
   * something else is missing as well, and the questions say what. */
  readonly approval: ApprovalRef | null;
  /** Ours, a UUIDv7, unique per check; also in the header `X-Request-Id`. */
  readonly request_id: string;
  /** SHA-256 of the canonical request, in hex: equal tasks have equal hashes. */
  readonly task_hash: string;
  /** The same as `policy_version`. */
  readonly policy_pack_version: string;
  /** Whole seconds since the epoch. */
  readonly timestamp: number;
  /** Whole seconds since the epoch. */
  readonly evaluated_at: number;
  /** Whether this is a recorded decision again, under its own `request_id` and times, because its `Idempotency-Key`
   * was used before. */
  readonly cached: boolean;
  /** About the answer itself. */
  readonly meta: ResponseMeta;
}

/** Who asked. */
export interface ClientOrigin {
  /** The client's IP address: the peer's, or what a proxy that the deployment trusts says of it. */
  readonly address: string | null;
  /** At most 256 characters, secrets masked. */
  readonly user_agent: string | null;
}

/** Facts about the situation. Absent differs from empty. Other members are allowed: no rule reads them, and the
 * decision's record keeps them where the request asks for it. An array has at most 1,000 entries. */
export interface Context {
  /** The role of who acts; before `user_role` and `requester_role`. */
  readonly actor_role?: string | null;
  /** The role of the user; before `requester_role`. */
  readonly user_role?: string | null;
  /** The role of who asked for it. */
  readonly requester_role?: string | null;
  /** Approved, pending, missing, none or rejected. */
  readonly approval_status?: string | null;
  /** Who approved it; never who acts or asked for it. */
  readonly approved_by?: string | null;
  /** When it was approved: a time such as `2026-01-31T12:00:00Z` (RFC 3339). */
  readonly approved_at?: string | null;
  /** Why it was approved. */
  readonly approval_reason?: string | null;
  /** Whether it is approved to be seen by customers. */
  readonly customer_visible_approved?: boolean | null;
  /** Where it will run. */
  readonly environment?: string | null;
  /** What it will change. */
  readonly target_environment?: string | null;
  /** How the request came in. */
  readonly request_channel?: string | null;
  /** The resources that it touches, as one name. */
  readonly resource_scope?: string | null;
  /** The resources that it touches. */
  readonly target_resources?: readonly string[] | null;
  /** The MCP servers that it can reach. */
  readonly active_mcp_servers?: readonly string[] | null;
  /** Whose data the agent works for. */
  readonly tenant_id?: string | null;
  /** Whose data it touches. */
  readonly target_tenants?: readonly string[] | null;
  /** What may leave. */
  readonly output_policy?: string | null;
  /** The ticket of the change. */
  readonly ticket_id?: string | number | null;
  /** Whether there is a plan to undo it. */
  readonly rollback_plan?: boolean | null;
  /** Whether the person has passed a second factor. */
  readonly mfa_verified?: boolean | null;
  /** How many records it touches. */
  readonly record_count?: number | null;
  /** The run that this check belongs to. */
  readonly run_id?: string | number | null;
  /** The iteration that comes next. */
  readonly current_iteration?: number | null;
  /** How many retries there were. */
  readonly retry_count?: number | null;
  /** How long the run has taken. */
  readonly elapsed_seconds?: number | null;
  /** What this will cost, in US dollars. */
  readonly estimated_cost_usd?: number | null;
  /** What the run has cost, in US dollars. */
  readonly cumulative_cost_usd?: number | null;
  /** The tool that is called next. */
  readonly current_tool?: string | null;
  /** The tools that were called, the oldest first. */
  readonly recent_tools?: readonly string[] | null;
  /** What the agent's loop has counted. */
  readonly loop_state?: {
    readonly run_id?: string | number | null;
    readonly retry_count?: number | null;
    readonly elapsed_seconds?: number | null;
    readonly repeated_tools?: readonly string[] | null;
    readonly current_iteration?: number | null;
    readonly cumulative_cost_usd?: number | null;
  } & Readonly<Record<string, unknown>> | null;
  /** Who acts. */
  readonly actor_id?: string | number | null;
  /** The agent that acts. */
  readonly agent_id?: string | number | null;
  /** Who asked for it. */
  readonly requested_by?: string | number | null;
  readonly [member: string]: unknown;
}

/** What the action may cost. */
export interface CostEstimate {
  /** ISO 4217. */
  readonly currency: string;
  /** In units of the currency. */
  readonly min: number;
  /** In units of the currency. */
  readonly max: number;
  /** Where the numbers come from. */
  readonly assumptions: readonly string[];
}

/** What came of an allowed action. */
export interface DecisionOutcome {
  /** The decision. */
  readonly request_id: string;
  /** How the action ended. */
  readonly status: OutcomeStatus;
  /** When it was reported. */
  readonly reported_at: string;
  /** Reported more than an hour after the decision. */
  readonly late: boolean;
  /** The key that reported it. */
  readonly key_id: string;
  /** The tool call as the agent names it; null: not reported. */
  readonly tool_call_id: string | null;
  /** How long the action took, in milliseconds; null: not reported. */
  readonly duration_ms: number | null;
  /** What it cost, in US dollars; null: not reported. */
  readonly cost_usd: number | null;
}

/** Times in milliseconds. */
export interface Durations {
  /** From asking an evaluator to its answer, tries included; milliseconds. */
  readonly evaluation_ms: number;
  /** From the request's arrival to the moment before it was recorded; milliseconds. */
  readonly total_ms: number;
}

/** Every error's body. */
export interface ErrorBody {
  /** For people. */
  readonly message: string;
  /** For programs. */
  readonly error: ErrorCode;
  /** For one public client. */
  readonly detail: ErrorDetail;
  /** Of this answer; also in the header `X-Request-Id`. */
  readonly request_id: string;
  /** On 429. */
  readonly retry_after_seconds?: number;
  /** On 422: every bad field. */
  readonly errors?: readonly FieldError[];
}

/** The machine-readable kind of an error. `invalid_json`: 400: not acceptable JSON. `bad_request`: 400: the HTTP
 * request itself is broken. `unauthorized`: sent with status 401. `plan_required`: 402: the plan lacks the feature.
 * `quota_exceeded`: 402: the quota is used up. `scope_missing`: sent with status 403. `not_found`: sent with status
 * 404. `method_not_allowed`: sent with status 405. `request_timeout`: 408: the body did not arrive in time.
 * `conflict`: 409: the state does not allow it. `body_too_large`: sent with status 413. `unsupported_media_type`:
 * sent with status 415. `validation_failed`: sent with status 422. `rate_limited`: 429: too many requests.
 * `too_many_failed_logins`: 429: too many failed logins from the address. `unavailable`: 503: no decision could be
 * made or recorded in time. */
export type ErrorCode =
  | "invalid_json"
  | "bad_request"
  | "unauthorized"
  | "plan_required"
  | "quota_exceeded"
  | "scope_missing"
  | "not_found"
  | "method_not_allowed"
  | "request_timeout"
  | "conflict"
  | "body_too_large"
  | "unsupported_media_type"
  | "validation_failed"
  | "rate_limited"
  | "too_many_failed_logins"
  | "unavailable";

/** The nested form that one public client reads. */
export interface ErrorDetail {
  /** The same text as `message`. */
  readonly detail: string;
  /** The same id. */
  readonly request_id: string;
  /** On 429. */
  readonly retry_after_seconds?: number;
}

/** Which further groups may decide after a time without a decision. */
export interface Escalation {
  /** How long after the request, in seconds. */
  readonly after_seconds: number;
  /** Members of these groups may then decide as well. */
  readonly groups: readonly string[];
}

/** What a system outside says of an approval that it gave. */
export interface ExternalApproval {
  /** Who approved there: 1 to 10 names, each counts as one person. */
  readonly approved_by: readonly string[];
  /** What proves it there, such as a ticket's address; at most 2,000 characters. */
  readonly evidence: string;
}

/** One bad field: where, and what it must be. Never quotes the value. */
export interface FieldError {
  /** `goal`, `constraints[3]`, … */
  readonly path: string;
  /** Lower case, no full stop. */
  readonly message: string;
}

/** Whether a declared or needed guardrail holds. */
export interface GuardrailCheck {
  /** The request or the policy asks for it. */
  readonly required: boolean;
  /** The evidence meets it. */
  readonly satisfied: boolean;
}

/** The last line of a writer at some moment. */
export interface Head {
  /** The writer. */
  readonly writer: string;
  /** Its number in the writer's chain. */
  readonly sequence: number;
  /** The hash of its line. */
  readonly hash: string;
  /** When it was written. */
  readonly recorded_at: string;
  /** It may be removed from this second on (Unix time). */
  readonly expires_at: number;
}

/** One rule that was satisfied. */
export interface Issue {
  /** A stable reason code, on which clients may branch. */
  readonly code: string;
  /** How grave. */
  readonly severity: Severity;
  /** For people and agents; no value of the request in it. */
  readonly message: string;
  /** The rule's id in the policy pack. */
  readonly rule: string;
  /** What the caller can do. */
  readonly next_action: NextAction;
  /** Where the matter lies and what would settle it. An issue that no change of the request settles has no `write`.
   * `found`, `allowed`, `write` and `did_you_mean` stand in the answer alone: records, webhooks and answers that are
   * given again have only the rest. */
  readonly details: IssueDetails;
}

/** Where the matter lies and what would settle it. An issue that no change of the request settles has no `write`.
 * `found`, `allowed`, `write` and `did_you_mean` are in the answer alone: records, webhooks and answers that are
 * given again have only the rest. */
export interface IssueDetails {
  /** JSON paths of the culprits. */
  readonly at?: readonly string[];
  /** Words and numbers of the request, in its own units. Empty where the request holds a secret. */
  readonly found?: readonly unknown[];
  /** What they were compared with. */
  readonly allowed?: readonly unknown[];
  /** What to write instead. */
  readonly write?: readonly SuggestedChange[];
  /** Known words that are near to one that is not known. */
  readonly did_you_mean?: readonly string[];
  readonly run?: IssueRun;
  readonly [member: string]: unknown;
}

/** Where a rule of the loop family defers because of what the server remembers of the run: which run, what is
 * counted beside its limit, and how to end it. */
export interface IssueRun {
  /** The run's name. */
  readonly run_id: string;
  /** What was counted. */
  readonly counted: Readonly<Record<string, number>>;
  /** How to end the run. */
  readonly end: string;
}

/** The facts that a decision was made from, as they are recorded with it. No goal, argument or other free text:
 * texts are canonical names of tools, effects, targets, environments and roles, and members of `context` that the
 * policy declares. Where the request holds a secret, none are kept. */
export interface KeptFacts {
  /** The form of what is kept; 1. */
  readonly v: number;
  /** Whether the request said `pro`. */
  readonly pro?: boolean;
  /** Whether a person had denied this very action: then every policy denies it. */
  readonly denied?: boolean;
  /** How the operator's floor judged it; absent where there is none. */
  readonly floor?: Verdict;
  /** The environment by which the policy was selected; absent where the request named none. */
  readonly place?: string;
  /** By what its facts were read: digests of the policy's words, windows and counted tools. Another policy can
   * decide by these facts only where its own are the same. */
  readonly read_by: ReadBy;
  /** Facts by their names in rules. Optional ones that were absent are left out. A member of `custom` that was sent
   * as the text of a decimal is `{"decimal": "19.99"}`, and one whose value is not kept `{"other": "text"}`. */
  readonly values: Readonly<Record<string, unknown>>;
  /** Facts that were not read, such as those of a run whose history was not counted, or that hold a longer text or
   * the arguments of a tool; sorted. */
  readonly unread?: readonly string[];
  /** Whole numbers, decimals and Booleans among the members of `context` that the policy does not declare. A name
   * that no policy can declare is not kept. */
  readonly members?: Readonly<Record<string, unknown>>;
  /** Other members of `context` that the policy does not declare: their names, without their values; sorted. */
  readonly unkept?: readonly string[];
}

/** A line's place in its writer's chain for one account. */
export interface Link {
  /** The chain that it belongs to. */
  readonly writer: string;
  /** Counts from 1 without gaps. */
  readonly sequence: number;
  /** The writer's line before this one; null only for its first. */
  readonly previous: Previous | null;
  /** Of a writer's first line only: the last line of another writer that was there already; absent when there was
   * none. */
  readonly after?: Head;
  /** Of a writer's first line only: the last mark of the account that was there already; absent when there was none. */
  readonly mark?: MarkRef;
}

/** A mark by number and hash. Kept outside, it shows whether the log that is looked at later still holds it. */
export interface MarkRef {
  /** Its number in the writer's chain. */
  readonly number: number;
  /** The hash of its line. */
  readonly hash: string;
}

/** What the caller can do about an issue. `fix_request`: send another request: this one will never pass.
 * `provide_context`: send the missing facts. `request_approval`: get a person's approval. `wait`: try later. `stop`:
 * give the task back. */
export type NextAction = "fix_request" | "provide_context" | "request_approval" | "wait" | "stop";

/** How an action ended. */
export interface Outcome {
  /** How the action ended. */
  readonly status: OutcomeStatus;
  /** When it was reported. */
  readonly at: string;
}

/** How an action ended. `succeeded`: it did what it was to do. `failed`: it did not. `unknown`: its workload cannot
 * tell. `skipped`: it was allowed, and did not run. */
export type OutcomeStatus = "succeeded" | "failed" | "unknown" | "skipped";

/** What a line says of the one before it; the times tell whether that one may be gone by now. */
export interface Previous {
  /** The hash of its line. */
  readonly hash: string;
  /** When it was written. */
  readonly recorded_at: string;
  /** It may be removed from this second on (Unix time). */
  readonly expires_at: number;
}

/** Digests of what a policy reads facts by: 16 hex digits each. */
export interface ReadBy {
  /** Words, terms and the edition of the pack. */
  readonly words: string;
  /** Windows of time. */
  readonly windows: string;
  /** What is counted of a run. */
  readonly run: string;
}

/** Only when the request said `debug_store_input: true`: its text, secrets masked. Unknown top-level members are not
 * kept. */
export interface RecordedInput {
  /** What the agent wanted to do. */
  readonly goal: string;
  /** As sent. */
  readonly success_criteria: readonly string[];
  /** As sent. */
  readonly constraints: readonly string[];
  /** As sent. */
  readonly tools: readonly string[];
  /** As sent. */
  readonly side_effects: readonly string[];
  /** As sent, unknown members included. */
  readonly context?: Readonly<Record<string, unknown>>;
  /** As sent. */
  readonly environment?: string;
}

/** `POST /v1/decisions/{request_id}/outcome`: gateway to evaluator. */
export interface ReportDecisionOutcomeRequest {
  /** How the action ended. `unknown`: its workload cannot tell, which is not the same as `failed`. `skipped`: it did
   * not run. */
  readonly status: OutcomeStatus;
  /** The tool call as the agent names it: 1 to 256 characters. Secrets in it are masked. */
  readonly tool_call_id?: string | null;
  /** How long the action took, in milliseconds. */
  readonly duration_ms?: number | null;
  /** What the action cost, in US dollars: settles the check in its run. Less than was estimated takes `runs:manage`. */
  readonly cost_usd?: number | null;
}

/** The answer to a report. */
export interface ReportedOutcome {
  /** The decision. */
  readonly request_id: string;
  /** How the action ended. */
  readonly status: OutcomeStatus;
  /** When it was reported. */
  readonly reported_at: string;
  /** Reported more than an hour after the decision. */
  readonly late: boolean;
  /** The key that reported it. */
  readonly key_id: string;
  /** The tool call as the agent names it; null: not reported. */
  readonly tool_call_id: string | null;
  /** How long the action took, in milliseconds; null: not reported. */
  readonly duration_ms: number | null;
  /** What it cost, in US dollars; null: not reported. */
  readonly cost_usd: number | null;
  /** The run's money, where this report settled the check; null: it did not. */
  readonly settled: RunSettled | null;
}

/** How many members of which groups. */
export interface Requirement {
  /** A member of any of them may approve; empty: every member whose key may decide. */
  readonly groups: readonly string[];
  /** How many people. */
  readonly quorum: number;
  /** After a time, members of these groups may decide as well, for this requirement alone. Absent where all
   * requirements have the same, which then stands beside them. */
  readonly escalation?: Escalation;
}

/** What the answer says about itself. */
export interface ResponseMeta {
  /** Always `stage0`. */
  readonly source: "stage0";
  /** Always false: there are no simulated verdicts. */
  readonly test_mode: boolean;
  /** The caller's `X-Request-Id`. */
  readonly client_request_id: string | null;
  /** How decisions are recorded here. `required`: this one was recorded before the answer left. `best-effort`: the
   * answer left even if it could not be recorded. `none`: this deployment records nothing. */
  readonly audit: AuditMode;
  /** Only where `debug_store_input` was true: whether the request's text was kept. It was not when the account's
   * `stored_bytes` of today are used up, or could not be counted; the decision is recorded all the same. */
  readonly input_stored?: boolean;
  /** Members of the request that nothing reads, by name, sorted; `*` for a name that is no plain one, and for all of
   * them where the request holds a secret. Absent when there are none. In the answer alone, never recorded. */
  readonly ignored_fields?: readonly string[];
  /** Where the approval that counted came from; absent where none counted. `caller`: only the caller says so. */
  readonly approval_source?: ApprovalSource;
}

/** US dollars. */
export interface RunCost {
  /** Settled, expired, or reported. */
  readonly spent_usd: number;
  /** Estimated for allowed checks that are not settled. */
  readonly reserved_usd: number;
  /** Both: what `max_cost_usd` is compared with, with the next check's estimate. */
  readonly total_usd: number;
}

/** The estimate is replaced by the cost. */
export interface RunSettled {
  /** The run's name. */
  readonly run_id: string;
  /** The check. */
  readonly request_id: string;
  /** US dollars. */
  readonly estimated_cost_usd: number;
  /** US dollars. */
  readonly actual_cost_usd: number;
  /** The run's money afterwards. */
  readonly cost: RunCost;
}

/** `POST /v1/runs/{run_id}/settle`: gateway to evaluator. */
export interface SettleRunRequest {
  /** The check's `request_id`. */
  readonly request_id: string;
  /** What it cost: in the message millionths of a US dollar, in the body US dollars, to a millionth. Never negative. */
  readonly actual_cost_usd: number;
}

/** How grave an issue is. `LOW`: worth knowing. `MEDIUM`: worth acting on; `pro` denies on it. `HIGH`: never
 * together with an ALLOW. `CRITICAL`: never together with an ALLOW. */
export type Severity = "LOW" | "MEDIUM" | "HIGH" | "CRITICAL";

/** A decision, with what came of it. */
export interface ShownDecision {
  /** Always `LineType::Decision`. */
  readonly type: "decision.recorded";
  /** Its place in its writer's chain. */
  readonly chain: Link;
  /** When it was written; RFC 3339. */
  readonly recorded_at: string;
  /** From this second on it is not shown any more, since the epoch. */
  readonly expires_at: number;
  /** Paired with `verdict`. */
  readonly decision: Signal;
  /** ALLOW, DEFER or DENY. */
  readonly verdict: Verdict;
  /** The deciding issues as `CODE: message; …`, or why the action is allowed. */
  readonly reason: string;
  /** All satisfied rules, the gravest first. */
  readonly issues: readonly Issue[];
  /** 0 to 100; an ALLOW has at most 99. */
  readonly risk_score: number;
  /** From 0 to 100: how doubtful its worth is. */
  readonly value_risk: number;
  /** From 0 to 100: how likely it is to waste effort. */
  readonly waste_risk: number;
  /** `risk_score` of 61 or more. */
  readonly high_risk: boolean;
  /** Questions that would help; on DEFER never empty. */
  readonly clarifying_questions: readonly string[];
  /** On DEFER the same, non-empty list as `clarifying_questions`; else empty. */
  readonly defer_questions: readonly string[];
  /** Guardrails that the request declares. */
  readonly guardrails: readonly string[];
  /** Recognised constraints, normalised. */
  readonly constraints_applied: readonly string[];
  /** Constraints without effect, as sent; masked where the request holds a secret. Empty in records and in answers
   * that are given again. */
  readonly constraints_ignored: readonly string[];
  /** What was found about the task's worth. */
  readonly value_findings: readonly string[];
  /** Family → check → state. */
  readonly guardrail_checks: Readonly<Record<string, Readonly<Record<string, GuardrailCheck>>>>;
  /** When the request names a cost. */
  readonly cost_estimate: CostEstimate | null;
  /** `<pack>@<semver>+<digest>`: names the content that decided. */
  readonly policy_version: string;
  /** The operator's pack that was evaluated beside it; absent: none was. */
  readonly floor_version?: string;
  /** Empty when unknown. */
  readonly environment: string;
  /** Rules evaluated, matched, deciding. */
  readonly decision_trace_summary: string;
  /** The approval that this decision opened, waits for, or used. Null where there is none; on DEFER also where
   * something else is missing as well, and the questions say what. */
  readonly approval: ApprovalRef | null;
  /** Ours, a UUIDv7, unique per check; also in the header `X-Request-Id`. */
  readonly request_id: string;
  /** SHA-256 of the canonical request, in hex: equal tasks have equal hashes. */
  readonly task_hash: string;
  /** The same as `policy_version`. */
  readonly policy_pack_version: string;
  /** Whole seconds since the epoch. */
  readonly timestamp: number;
  /** Whole seconds since the epoch. */
  readonly evaluated_at: number;
  /** Whether this is a recorded decision again, under its own `request_id` and times, because its `Idempotency-Key`
   * was used before. */
  readonly cached: boolean;
  /** About the answer itself. */
  readonly meta: ResponseMeta;
  /** Whose decision it is. */
  readonly account: string;
  /** The id of the key that asked; not a secret. */
  readonly key_id: string;
  /** `context.run_id`, else that of `context.loop_state`; at most 256 characters, secrets masked. */
  readonly run_id: string | null;
  /** Risk classes of the declared side effects, sorted; absent where there are none. */
  readonly effect_classes?: readonly string[];
  /** Names of the proposed tools, normalised, at most 20, secrets masked; absent where there are none. */
  readonly tools?: readonly string[];
  /** How many constraints had no effect; absent where there were none. */
  readonly constraints_ignored_count?: number;
  /** Who asked, as the connection says. */
  readonly client: ClientOrigin;
  /** How long it took. */
  readonly durations: Durations;
  /** Only when the request said `debug_store_input: true`: its text, secrets masked. Unknown top-level members are
   * not kept. */
  readonly input?: RecordedInput;
  /** The facts of the decision: only where the account wants them recorded (`record_facts`). */
  readonly facts?: KeptFacts;
  /** What came of the action; null: nothing was reported. Absent: it was not looked up. A list that does not filter
   * by `outcome` never looks it up; one record is shown without it where no evaluator answers at the moment. */
  readonly outcome?: DecisionOutcome | null;
}

/** The traffic-light word that is paired with a `Verdict`. `GO`: with ALLOW. `NO_GO`: with DENY. `DEFER`: with
 * DEFER. */
export type Signal = "GO" | "NO_GO" | "DEFER";

/** One thing to change in the request. With `op` and `value` it may be written as it stands. With `by` it is
 * evidence that a person or another system must give: never make it up. */
export interface SuggestedChange {
  /** What to do at `path`. */
  readonly op?: "add" | "replace";
  /** `constraints`: append; `constraints[1]`: that item. */
  readonly path: string;
  /** What to write there. */
  readonly value?: string;
  /** Who must give the evidence. */
  readonly by?: "person" | "system";
}

/** What the check came to. Ordered by strength: DENY outranks DEFER outranks ALLOW. `ALLOW`: the action may run.
 * `DEFER`: something is missing: ask, wait or provide it, then check again. `DENY`: the action must not run. */
export type Verdict = "ALLOW" | "DEFER" | "DENY";

/** One person's answer. */
export interface Vote {
  /** Who; null where a system outside registered it. */
  readonly member_id: string | null;
  /** The key that was used. */
  readonly key_id: string;
  /** True: approved. */
  readonly approve: boolean;
  /** When it was given. */
  readonly at: string;
  /** Why, secrets masked; empty where no reason was given. */
  readonly reason: string;
  /** The member in whose place it was given; absent: none. */
  readonly on_behalf_of?: string;
  /** Of a system outside: who approved there, and its evidence. */
  readonly external?: ExternalApproval;
}
