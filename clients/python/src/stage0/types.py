"""The answers of the server as types.

Every member of the OpenAPI document's schemas is here under its own name, and none beyond; a test compares them. A
member that this version does not know is kept in `Decision.raw`. Times are texts, as the server writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Signal = Literal["GO", "NO_GO", "DEFER"]
Verdict = Literal["ALLOW", "DEFER", "DENY"]
Severity = Literal["LOW", "MEDIUM", "HIGH", "CRITICAL"]
NextAction = Literal["fix_request", "provide_context", "request_approval", "wait", "stop"]
ApprovalStatus = Literal["pending", "approved", "denied", "expired", "cancelled", "reserved", "consumed"]
ApprovalSource = Literal["caller", "approval", "grant"]
AuditMode = Literal["none", "required", "best-effort"]
OutcomeStatus = Literal["succeeded", "failed", "unknown", "skipped"]


@dataclass(frozen=True)
class Issue:
    """One objection of the policy. `details` says where it lies (`at`) and what to change (`write`)."""

    code: str
    severity: Severity
    message: str
    rule: str
    next_action: NextAction
    details: Mapping[str, Any]


@dataclass(frozen=True)
class ApprovalRef:
    """The approval that a check opened, waits for, or used."""

    id: str | None
    status: ApprovalStatus
    action_digest: str
    quorum: int
    groups: Sequence[str]
    expires_at: str
    url: str
    grant_id: str | None = None


@dataclass(frozen=True)
class GuardrailCheck:
    required: bool
    satisfied: bool


@dataclass(frozen=True)
class CostEstimate:
    currency: str
    min: float
    max: float
    assumptions: Sequence[str]


@dataclass(frozen=True)
class ResponseMeta:
    """How the answer was made. `audit` says whether it was recorded before it left."""

    source: Literal["stage0"]
    test_mode: bool
    client_request_id: str | None
    audit: AuditMode
    input_stored: bool | None = None
    ignored_fields: Sequence[str] = ()
    approval_source: ApprovalSource | None = None


@dataclass(frozen=True)
class Decision:
    """The answer to a check. `Client.check` returns one only if it is a complete, recorded ALLOW."""

    decision: Signal
    verdict: Verdict
    reason: str
    issues: Sequence[Issue]
    risk_score: int
    value_risk: int
    waste_risk: int
    high_risk: bool
    clarifying_questions: Sequence[str]
    defer_questions: Sequence[str]
    guardrails: Sequence[str]
    constraints_applied: Sequence[str]
    constraints_ignored: Sequence[str]
    value_findings: Sequence[str]
    guardrail_checks: Mapping[str, Mapping[str, GuardrailCheck]]
    cost_estimate: CostEstimate | None
    policy_version: str
    environment: str
    decision_trace_summary: str
    approval: ApprovalRef | None
    request_id: str
    task_hash: str
    policy_pack_version: str
    timestamp: int
    evaluated_at: int
    cached: bool
    meta: ResponseMeta
    floor_version: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class RunCost:
    spent_usd: float
    reserved_usd: float
    total_usd: float


@dataclass(frozen=True)
class RunSettled:
    run_id: str
    request_id: str
    estimated_cost_usd: float
    actual_cost_usd: float
    cost: RunCost


@dataclass(frozen=True)
class ReportedOutcome:
    """What the server keeps of an action's end. `settled` is the run's money, where the report settled the check."""

    request_id: str
    status: OutcomeStatus
    reported_at: str
    late: bool
    key_id: str
    tool_call_id: str | None
    duration_ms: int | None
    cost_usd: float | None
    settled: RunSettled | None
