"""What the clients do, without doing it: generators that yield a `Send` or a `Sleep` and are handed the reply.

The synchronous and the asynchronous client run the same generators, so deadline, retries and the reading of answers
exist once. A `Send` is answered with an `Answer`, or with a `Failure` if none arrived.
"""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

from ._wire import Unreadable, read_decision, read_object, read_outcome, read_settled
from .errors import Deferred, Denied, Undecided
from .types import Decision, OutcomeStatus, ReportedOutcome, RunSettled

MAX_ATTEMPTS = 3
# Of the whole deadline, so that a lost answer can still be asked for again.
ATTEMPT_SHARE = 0.6
BACKOFF = (0.2, 0.4)
LONG_POLL = 30.0
_APPROVAL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    method: str
    path: str
    body: bytes | None
    headers: Mapping[str, str]
    timeout: float


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Failure:
    """No whole answer arrived."""

    why: str
    may_retry: bool


Step = Send | Sleep
Reply = Answer | Failure | None
Flow = Generator[Step, Reply, T]


@dataclass(frozen=True)
class Request:
    """A call before it is sent. `once` is the Idempotency-Key: every attempt has the same one."""

    method: str
    path: str
    body: bytes | None = None
    once: str | None = None
    slack: float = field(default=0.0)


def encode(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Undecided(f"the request cannot be written as JSON: {error}") from error


def exchange(request: Request, timeout: float) -> Flow[Answer]:
    """The answer with a status that a retry does not change. One deadline holds for all attempts."""
    ends = time.monotonic() + timeout + request.slack
    headers = {"idempotency-key": request.once} if request.once else {}
    why, sent = "there was no time to ask", 0
    for attempt in range(MAX_ATTEMPTS):
        left = ends - time.monotonic()
        if left <= 0:
            break
        is_last = attempt == MAX_ATTEMPTS - 1
        allowed = left if is_last else min(left, timeout * ATTEMPT_SHARE + request.slack)
        sent += 1
        reply = yield Send(request.method, request.path, request.body, headers, allowed)
        delay = BACKOFF[min(attempt, len(BACKOFF) - 1)] * random.uniform(1.0, 1.5)  # noqa: S311 - no secret
        if isinstance(reply, Failure):
            why = reply.why
            if not reply.may_retry:
                raise Undecided(why)
        elif isinstance(reply, Answer):
            if reply.status not in (429, 503):
                return reply
            refusal = refused(reply)
            delay = max(delay, _retry_after(reply))
            if is_last or time.monotonic() + delay >= ends:
                raise refusal
            why = str(refusal)
        if is_last or time.monotonic() + delay >= ends:
            break
        yield Sleep(delay)
    raise Undecided(f"no answer in {attempts(sent)} within {timeout + request.slack:g} s: {why}")


def attempts(count: int) -> str:
    return "1 attempt" if count == 1 else f"{count} attempts"


def _retry_after(answer: Answer) -> float:
    text = answer.headers.get("retry-after", "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0


def refused(answer: Answer) -> Undecided:
    """The server's own words, if the body has the contract's form; a page of some other program is not quoted."""
    try:
        members = read_object(answer.body)
    except Unreadable:
        members = {}
    message, request_id = members.get("message"), members.get("request_id")
    text = f"the server answers {answer.status}"
    if isinstance(message, str) and isinstance(request_id, str):
        text += f": {_printable(message)} (request {_printable(request_id)})"
        return Undecided(text, answer.status, request_id)
    if 300 <= answer.status < 400:
        text += ": a redirect is not followed, the URL must be the server's own"
    return Undecided(text, answer.status)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text[:4000])


def check(body: Mapping[str, Any], timeout: float, once: str | None = None) -> Flow[Decision]:
    """Returns only on a complete ALLOW."""
    answer = yield from exchange(Request("POST", "/check", encode(body), once or str(uuid.uuid4())), timeout)
    decision = _read(answer, read_decision)
    if decision.verdict == "DENY":
        raise Denied(decision, body)
    if decision.verdict == "DEFER":
        raise Deferred(decision, body)
    if decision.verdict != "ALLOW" or decision.decision != "GO":
        raise Undecided("the answer is none of ALLOW, DENY and DEFER", 200, decision.request_id)
    return decision


def _read(answer: Answer, reader: Callable[[bytes], T]) -> T:
    if answer.status != 200:
        raise refused(answer)
    try:
        return reader(answer.body)
    except Unreadable as error:
        raise Undecided(f"the answer cannot be trusted: {error}", 200) from None


def call(
    method: str, path: str, timeout: float, body: Mapping[str, Any] | None, reader: Callable[[bytes], T]
) -> Flow[T]:
    """A call that may be repeated: it reads, or the server does it once."""
    request = Request(method, path, None if body is None else encode(body))
    answer = yield from exchange(request, timeout)
    return _read(answer, reader)


def report_outcome(request_id: str, timeout: float, body: Mapping[str, Any]) -> Flow[ReportedOutcome]:
    path = f"/v1/decisions/{quote(request_id, safe='')}/outcome"
    return (yield from call("POST", path, timeout, body, read_outcome))


def settle(run_id: str, request_id: str, actual_cost_usd: float, timeout: float) -> Flow[RunSettled]:
    body = {"request_id": request_id, "actual_cost_usd": actual_cost_usd}
    path = f"/v1/runs/{quote(run_id, safe='')}/settle"
    return (yield from call("POST", path, timeout, body, read_settled))


def approval(approval_id: str, timeout: float, wait: float = 0.0) -> Flow[Mapping[str, Any]]:
    path = f"/v1/approvals/{quote(approval_id, safe='')}"
    if wait >= 1:
        path += f"?wait={int(wait)}s"
    answer = yield from exchange(Request("GET", path, slack=wait), timeout)
    return _read(answer, read_object)


def decision(request_id: str, timeout: float) -> Flow[Mapping[str, Any]]:
    return (yield from call("GET", f"/v1/decisions/{quote(request_id, safe='')}", timeout, None, read_object))


def wait_for_approval(deferred: Deferred, within: float, timeout: float) -> Flow[Decision]:
    """Waits until people have decided, then checks again: the approval's state alone allows nothing.

    Votes can stop counting before the approval is used; then the check defers again, and the wait goes on.
    """
    ends = time.monotonic() + within
    while True:
        body, approval_id = _awaited(deferred)
        status = yield from _decided(deferred, approval_id, ends, timeout)
        if status in ("expired", "cancelled"):
            raise Deferred(deferred.decision, body, f"approval {approval_id} is {status}; asking again opens a new one")
        if status in ("reserved", "consumed"):
            raise Deferred(deferred.decision, body, f"approval {approval_id} was used by another request")
        if status not in ("approved", "denied"):
            raise Undecided(f"approval {approval_id} has a state that this version does not know")
        # After `denied` too: the server's DENY says who refused it and why, and is recorded.
        try:
            return (yield from check(body, timeout))
        except Deferred as again:
            if status == "denied" or again.approval is None or time.monotonic() >= ends:
                raise
            deferred = again


def _awaited(deferred: Deferred) -> tuple[Mapping[str, Any], str]:
    approval_id = deferred.approval.id if deferred.approval is not None else None
    if approval_id is None or not _APPROVAL_ID.match(approval_id):
        raise Deferred(deferred.decision, deferred._request, "no approval was opened: something else is missing")
    if deferred._request is None:
        raise Undecided("the request is not known: wait with the exception that `check` raised")
    return deferred._request, approval_id


def _decided(deferred: Deferred, approval_id: str, ends: float, timeout: float) -> Flow[str]:
    """The approval's status once it is not pending. A server that is restarted is asked again until the end."""
    while True:
        left = ends - time.monotonic()
        if left <= 0:
            note = f"approval {approval_id} is still pending: wait longer, or ask again later"
            raise Deferred(deferred.decision, deferred._request, note)
        try:
            found = yield from approval(approval_id, timeout, min(LONG_POLL, left))
        except Undecided as error:
            if error.status not in (None, 429, 503) or time.monotonic() + 1 >= ends:
                raise
            yield Sleep(1.0)
            continue
        status = str(found.get("status"))
        if status != "pending":
            return status
        yield Sleep(0.05)


def context_of(parts: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Later parts take precedence. None of them: the request has no context."""
    present = [part for part in parts if part]
    return {name: value for part in present for name, value in part.items()} if present else None


def outcome_body(
    status: OutcomeStatus, tool_call_id: str | None, duration_ms: int | None, cost_usd: float | None
) -> dict[str, Any]:
    members = {"status": status, "tool_call_id": tool_call_id, "duration_ms": duration_ms, "cost_usd": cost_usd}
    return {name: value for name, value in members.items() if value is not None}
