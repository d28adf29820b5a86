"""The synchronous client. It may be shared by threads; each call has its own deadline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import httpx

from . import _failures, _flows
from ._deadline import CONNECT_TIMEOUT, DeadlineTransport, deadline
from ._settings import Settings, as_undecided
from ._wire import MAX_ANSWER_BYTES
from .errors import Deferred, NotAllowed, Undecided
from .guard import Goal, Guard, Members, Texts, guard_function, milliseconds_since, note_unreported, outcome_of
from .types import Decision, OutcomeStatus, ReportedOutcome, RunSettled

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Client(Settings[httpx.Client]):
    """Asks the server that the arguments, the environment, or `stage0 dev`'s data directory name."""

    def check(
        self,
        goal: str,
        tools: Sequence[str] | None = None,
        side_effects: Sequence[str] | None = None,
        constraints: Sequence[str] | None = None,
        success_criteria: Sequence[str] | None = None,
        context: Mapping[str, Any] | None = None,
        environment: str | None = None,
        run_id: str | None = None,
        *,
        idempotency_key: str | None = None,
        **further: Any,
    ) -> Decision:
        """Returns only if the action may run. Raises `Denied`, `Deferred` or `Undecided` otherwise."""
        body = self._body(
            goal, tools, side_effects, constraints, success_criteria, context, environment, run_id, further
        )
        return self._run(_flows.check(body, self.timeout, idempotency_key))

    def guarded(
        self,
        tool: str,
        effects: Sequence[str] = (),
        goal: Goal = None,
        context: Members = None,
        *,
        arguments: Sequence[str] = (),
        targets: Texts = None,
        ignore: Sequence[str] = (),
        constraints: Sequence[str] | None = None,
        success_criteria: Sequence[str] | None = None,
        report: bool = True,
        wait: float | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Asks before each call of the function, and does not call it without an ALLOW."""
        guard = Guard(tool, effects, goal, context, arguments, targets, ignore, constraints, success_criteria)
        return lambda function: guard_function(guard, function, lambda: self, report, wait)

    @contextmanager
    def action(
        self,
        tool: str,
        effects: Sequence[str] = (),
        goal: str | None = None,
        context: Mapping[str, Any] | None = None,
        *,
        arguments: Mapping[str, Any] | None = None,
        targets: Sequence[str] | None = None,
        constraints: Sequence[str] | None = None,
        success_criteria: Sequence[str] | None = None,
        report: bool = True,
        wait: float | None = None,
        tool_call_id: str | None = None,
        run_id: str | None = None,
    ) -> Iterator[Decision]:
        """The block runs only after an ALLOW. `arguments` are bound to the decision by their digest, not sent."""
        guard = Guard(tool, effects, goal, context, (), targets, (), constraints, success_criteria)
        decision = self._allowed({**guard.request(arguments or {}), "run_id": run_id}, wait)
        started = time.monotonic()
        try:
            yield decision
        except BaseException as error:
            self._note_outcome(report, decision, outcome_of(error), tool_call_id, started)
            raise
        self._note_outcome(report, decision, "succeeded", tool_call_id, started)

    def wait_for_approval(self, deferred: Deferred, timeout: float = 600.0) -> Decision:
        """Waits until people have decided, and checks the same request again: only that can allow it."""
        return self._run(_flows.wait_for_approval(deferred, timeout, self.timeout))

    def report_outcome(
        self,
        request_id: str,
        status: OutcomeStatus,
        tool_call_id: str | None = None,
        duration_ms: int | None = None,
        cost_usd: float | None = None,
    ) -> ReportedOutcome:
        body = _flows.outcome_body(status, tool_call_id, duration_ms, cost_usd)
        return self._run(_flows.report_outcome(request_id, self.timeout, body))

    def settle(self, run_id: str, request_id: str, actual_cost_usd: float) -> RunSettled:
        """Replaces the estimate of an allowed check by what the action cost."""
        return self._run(_flows.settle(run_id, request_id, actual_cost_usd, self.timeout))

    def approval(self, approval_id: str) -> Mapping[str, Any]:
        return self._run(_flows.approval(approval_id, self.timeout))

    def decision(self, request_id: str) -> Mapping[str, Any]:
        """The record of a decision; its key needs `decisions:read`."""
        return self._run(_flows.decision(request_id, self.timeout))

    def close(self) -> None:
        http = self._connections.pop(os.getpid(), None)
        if http is not None:
            http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _allowed(self, request: Mapping[str, Any], wait: float | None) -> Decision:
        try:
            return self.check(**request)
        except Deferred as deferred:
            if wait is None or deferred.approval is None:
                raise
            return self.wait_for_approval(deferred, wait)

    def _note_outcome(
        self, report: bool, decision: Decision, status: OutcomeStatus, tool_call_id: str | None, started: float
    ) -> None:
        """What came of an action is reported if possible. A report that fails changes nothing for the caller."""
        if not (report and self._may_report):
            return
        try:
            self.report_outcome(decision.request_id, status, tool_call_id, milliseconds_since(started))
        except Undecided as error:
            self._may_report = note_unreported(error, decision.request_id)

    def _run(self, flow: Generator[_flows.Step, _flows.Reply, T]) -> T:
        reply: _flows.Reply = None
        try:
            while True:
                step = flow.send(reply)
                if isinstance(step, _flows.Send):
                    reply = self._send(step)
                else:
                    time.sleep(step.seconds)
                    reply = None
        except StopIteration as done:
            value: T = done.value
            return value
        except NotAllowed:
            raise
        except Exception as error:
            raise as_undecided(error) from error

    def _send(self, sent: _flows.Send) -> _flows.Reply:
        url = self._find().url
        limits = httpx.Timeout(sent.timeout, connect=min(CONNECT_TIMEOUT, sent.timeout))
        request = self._connected().build_request(
            sent.method, url + sent.path, content=sent.body, headers=self._headers(sent), timeout=limits
        )
        try:
            with deadline(sent.timeout):
                response = self._connected().send(request, stream=True)
                try:
                    body = bytearray()
                    for chunk in response.iter_raw():
                        body += chunk
                        if len(body) > MAX_ANSWER_BYTES:
                            return _failures.TOO_LARGE
                    return _failures.answer(response, bytes(body))
                finally:
                    response.close()
        except httpx.HTTPError as error:
            return _failures.failure(error, url, sent.timeout)

    def _connected(self) -> httpx.Client:
        """A process that was forked must not write to its parent's connections."""
        process = os.getpid()
        http = self._connections.get(process)
        if http is None:
            transport = DeadlineTransport(self._find().tls(), self._proxy)
            made = httpx.Client(transport=transport, trust_env=False, follow_redirects=False)
            http = self._connections.setdefault(process, made)
            if http is not made:
                # Another thread was faster.
                made.close()
        return http
