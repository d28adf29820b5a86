"""Reads the server's answers, and decides what a complete ALLOW is.

INVARIANT: `read_decision` returns an ALLOW only if every member that makes it a recorded decision of this service is
there and agrees with the others. Whatever else arrives raises `Unreadable`, which the caller turns into `Undecided`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

from .types import (
    ApprovalRef,
    CostEstimate,
    Decision,
    GuardrailCheck,
    Issue,
    ReportedOutcome,
    ResponseMeta,
    RunCost,
    RunSettled,
)

MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_PAIRS: Final = {"ALLOW": "GO", "DENY": "NO_GO", "DEFER": "DEFER"}
T = TypeVar("T")


class Unreadable(ValueError):
    """The answer is not of the contract. The text says which member, and quotes nothing of the body."""


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object without duplicate members: two readers could take different ones."""
    try:
        value = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except Unreadable:
        raise
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except ValueError:
        raise Unreadable("it is not JSON") from None
    if not isinstance(value, dict):
        raise Unreadable("it is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Unreadable("it has a member twice")
    return members


def _refuse_constant(_: str) -> None:
    raise Unreadable("it holds a number that is not JSON")


def read_decision(body: bytes) -> Decision:
    """The decision of an answer with status 200. An ALLOW that is not complete is an error."""
    members = read_object(body)
    verdict, signal = members.get("verdict"), members.get("decision")
    if not isinstance(verdict, str) or _PAIRS.get(verdict) != signal:
        raise Unreadable("`verdict` and `decision` are missing or contradict each other")
    request_id = members.get("request_id")
    if not isinstance(request_id, str) or not _UUID.match(request_id):
        raise Unreadable("`request_id` is missing: there is no record of it")
    policy_version = members.get("policy_version")
    if not isinstance(policy_version, str) or not policy_version.strip():
        raise Unreadable("`policy_version` is missing")
    meta = members.get("meta")
    if not isinstance(meta, dict):
        raise Unreadable("`meta` is missing")
    if verdict == "ALLOW":
        _refuse_unrecorded(meta)
    return _decision(members)


def _refuse_unrecorded(meta: Mapping[str, Any]) -> None:
    if meta.get("source") != "stage0":
        raise Unreadable("`meta.source` is not `stage0`: another program made this answer")
    if meta.get("test_mode") is not False:
        raise Unreadable("`meta.test_mode` is not false: it is no decision")
    if meta.get("audit") not in ("required", "best-effort"):
        raise Unreadable("`meta.audit` says that the decision was not recorded")


def _decision(members: Mapping[str, Any]) -> Decision:
    checks = _member(members, "guardrail_checks", dict, {})
    approval, cost = members.get("approval"), members.get("cost_estimate")
    return Decision(
        decision=members["decision"],
        verdict=members["verdict"],
        reason=_member(members, "reason", str, ""),
        issues=[_issue(issue) for issue in _member(members, "issues", list, [])],
        risk_score=_integer(members, "risk_score"),
        value_risk=_integer(members, "value_risk"),
        waste_risk=_integer(members, "waste_risk"),
        high_risk=_member(members, "high_risk", bool, False),
        clarifying_questions=_texts(members, "clarifying_questions"),
        defer_questions=_texts(members, "defer_questions"),
        guardrails=_texts(members, "guardrails"),
        constraints_applied=_texts(members, "constraints_applied"),
        constraints_ignored=_texts(members, "constraints_ignored"),
        value_findings=_texts(members, "value_findings"),
        guardrail_checks={group: _checks(_object(named, "guardrail_checks")) for group, named in checks.items()},
        cost_estimate=None if cost is None else _fill(CostEstimate, _object(cost, "cost_estimate")),
        policy_version=members["policy_version"],
        environment=_member(members, "environment", str, ""),
        decision_trace_summary=_member(members, "decision_trace_summary", str, ""),
        approval=None if approval is None else _fill(ApprovalRef, _object(approval, "approval")),
        request_id=members["request_id"],
        task_hash=_member(members, "task_hash", str, ""),
        policy_pack_version=_member(members, "policy_pack_version", str, ""),
        timestamp=_integer(members, "timestamp"),
        evaluated_at=_integer(members, "evaluated_at"),
        cached=_member(members, "cached", bool, False),
        meta=_meta(members["meta"]),
        floor_version=_member(members, "floor_version", str, None),
        raw=members,
    )


def _meta(meta: Mapping[str, Any]) -> ResponseMeta:
    """Of a DENY or DEFER, members may be missing: it allows nothing, and its reasons are worth showing."""
    defaults = {"source": "", "test_mode": False, "client_request_id": None, "audit": "none"}
    return _fill(ResponseMeta, {**defaults, **meta})


def _issue(value: Any) -> Issue:
    return _fill(Issue, {"rule": "", "next_action": "stop", "details": {}, **_object(value, "issues")})


def _checks(named: Mapping[str, Any]) -> dict[str, GuardrailCheck]:
    return {name: _fill(GuardrailCheck, _object(check, "guardrail_checks")) for name, check in named.items()}


def read_settled(body: bytes) -> RunSettled:
    return _settled(read_object(body))


def _settled(members: Mapping[str, Any]) -> RunSettled:
    cost = _fill(RunCost, _object(members.get("cost"), "cost"))
    return _fill(RunSettled, {**members, "cost": cost})


def read_outcome(body: bytes) -> ReportedOutcome:
    members = read_object(body)
    settled = members.get("settled")
    found = None if settled is None else _settled(_object(settled, "settled"))
    return _fill(ReportedOutcome, {**members, "settled": found})


def _fill(kind: type[T], members: Mapping[str, Any]) -> T:
    """A dataclass from members of the same names. Members that it does not have are ignored."""
    values = {}
    for field in dataclasses.fields(cast(Any, kind)):
        if field.name in members:
            values[field.name] = members[field.name]
        elif field.default is dataclasses.MISSING:
            raise Unreadable(f"`{field.name}` is missing")
    return kind(**values)


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unreadable(f"`{name}` holds something that is not an object")
    return value


def _member(members: Mapping[str, Any], name: str, kind: type[T], default: Any) -> Any:
    value = members.get(name, default)
    if value is not default and not isinstance(value, kind):
        raise Unreadable(f"`{name}` has the wrong type")
    return value


def _integer(members: Mapping[str, Any], name: str) -> int:
    value = members.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Unreadable(f"`{name}` has the wrong type")
    return value


def _texts(members: Mapping[str, Any], name: str) -> list[str]:
    value: list[str] = _member(members, name, list, [])
    if not all(isinstance(item, str) for item in value):
        raise Unreadable(f"`{name}` has the wrong type")
    return value
