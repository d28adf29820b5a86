"""Why an action must not run.

Everything that is not a complete, recorded ALLOW is one of these, faults of this client included. Each text says what
the agent or its developer can do next, and holds no key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .types import ApprovalRef, Decision


class NotAllowed(Exception):
    """The action must not run. Catch this one to handle every reason."""

    decision: Decision | None = None
    request_id: str | None = None
    policy_version: str | None = None


class _Decided(NotAllowed):
    def __init__(self, decision: Decision, request: Mapping[str, Any] | None = None, note: str | None = None) -> None:
        text = explain(decision)
        super().__init__(f"{note}\n{text}" if note else text)
        self.decision: Decision = decision
        self.request_id = decision.request_id
        self.policy_version = decision.policy_version
        self._request = request

    @property
    def codes(self) -> Sequence[str]:
        """The codes of the issues, which stay the same from one release of the server to the next."""
        return [issue.code for issue in self.decision.issues]


class Denied(_Decided):
    """The policy, or a person, said no. The same request will not pass."""


class Deferred(_Decided):
    """Evidence, an approval or time is missing: get it, then ask again."""

    @property
    def questions(self) -> Sequence[str]:
        return self.decision.defer_questions

    @property
    def approval(self) -> ApprovalRef | None:
        """Where an approval is the only thing missing: what `wait_for_approval` waits for."""
        return self.decision.approval


class Undecided(NotAllowed):
    """No decision was made, or none that can be trusted. What was decided, if anything, is unknown."""

    def __init__(self, why: str, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.status = status
        self.request_id = request_id


class NotConfigured(Undecided):
    """There is no server, key or certificate to ask with, or one that must not be used."""


def explain(decision: Decision) -> str:
    """A decision in words for a person or a model: what is wrong, and what to do about it."""
    lines = [f"{decision.verdict}: {decision.reason}"]
    lines += [
        f"- {issue.code}: {issue.message} (next: {issue.next_action}{_changes(issue.details)})"
        for issue in decision.issues
    ]
    approval = decision.approval if decision.verdict == "DEFER" else None
    is_open = approval is not None and approval.id is not None
    lines += [
        f"- answer first: {question}" for question in decision.defer_questions if not is_open or _is_other(question)
    ]
    if approval is not None and is_open:
        how = f"`stage0 approvals approve {approval.id} --key-file YOUR.key`"
        lines.append(
            f"- approval {approval.id} is {approval.status} until {approval.expires_at}; a person decides: {how}"
        )
    else:
        lines += [f"- no approval was opened: {why}" for why in _no_approval(decision)]
    lines.append(f"(request {decision.request_id}, policy {decision.policy_version})")
    return "\n".join(lines)


def _is_other(question: str) -> bool:
    """Not the one that an open approval answers. An agent could take that one for an invitation to state it itself."""
    return "context.approval_status" not in question


def _no_approval(decision: Decision) -> Sequence[str]:
    """Why an approval that would help was not opened, as the server says it."""
    found = [issue.details.get("approval") for issue in decision.issues]
    return [why for why in found if isinstance(why, str)]


def _changes(details: Mapping[str, Any]) -> str:
    changes = [_change(change) for change in details.get("write") or [] if isinstance(change, Mapping)]
    return "; " + ", ".join(changes) if changes else ""


def _change(change: Mapping[str, Any]) -> str:
    if change.get("by"):
        return f"a {change['by']} must give `{change.get('path')}`"
    return f"{change.get('op')} `{change.get('path')}`: {change.get('value')!r}"
