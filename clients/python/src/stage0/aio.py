"""The asynchronous client, for asyncio and trio. It has the shape of `Client`."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, ParamSpec, TypeVar, cast

import anyio
import anyio.lowlevel
import httpx

from . import _failures, _flows
from ._deadline import CONNECT_TIMEOUT
from ._settings import Settings, as_undecided
from ._wire import MAX_ANSWER_BYTES
from .errors import Deferred, NotAllowed, Undecided
from .guard import Goal, Guard, Members, Texts, guard_coroutine, milliseconds_since, note_unreported, outcome_of
from .types import Decision, OutcomeStatus, ReportedOutcome, RunSettled

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# Event loops, as in programs that call `asyncio.run` again and again.
MAX_LOOPS = 8


class AsyncClient(Settings[httpx.AsyncClient]):
    """Asks the server that the arguments, the environment, or `stage0 dev`'s data directory name."""

    async def check(
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
        return await self._run(_flows.check(body, self.timeout, idempotency_key))

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
        """Asks before each call of the coroutine function, and does not call it without an ALLOW."""
        guard = Guard(tool, effects, goal, context, arguments, targets, ignore, constraints, success_criteria)
        return lambda function: guard_coroutine(guard, function, lambda: self, report, wait)

    @asynccontextmanager
    async def action(
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
    ) -> AsyncIterator[Decision]:
        """The block runs only after an ALLOW. `arguments` are bound to the decision by their digest, not sent."""
        guard = Guard(tool, effects, goal, context, (), targets, (), constraints, success_criteria)
        decision = await self._allowed({**guard.request(arguments or {}), "run_id": run_id}, wait)
        started = time.monotonic()
        try:
            yield decision
        except BaseException as error:
            await self._note_outcome(report, decision, outcome_of(error), tool_call_id, started)
            raise
        await self._note_outcome(report, decision, "succeeded", tool_call_id, started)

    async def wait_for_approval(self, deferred: Deferred, timeout: float = 600.0) -> Decision:
        """Waits until people have decided, and checks the same request again: only that can allow it."""
        return await self._run(_flows.wait_for_approval(deferred, timeout, self.timeout))

    async def report_outcome(
        self,
        request_id: str,
        status: OutcomeStatus,
        tool_call_id: str | None = None,
        duration_ms: int | None = None,
        cost_usd: float | None = None,
    ) -> ReportedOutcome:
        body = _flows.outcome_body(status, tool_call_id, duration_ms, cost_usd)
        return await self._run(_flows.report_outcome(request_id, self.timeout, body))

    async def settle(self, run_id: str, request_id: str, actual_cost_usd: float) -> RunSettled:
        """Replaces the estimate of an allowed check by what the action cost."""
        return await self._run(_flows.settle(run_id, request_id, actual_cost_usd, self.timeout))

    async def approval(self, approval_id: str) -> Mapping[str, Any]:
        return await self._run(_flows.approval(approval_id, self.timeout))

    async def decision(self, request_id: str) -> Mapping[str, Any]:
        """The record of a decision; its key needs `decisions:read`."""
        return await self._run(_flows.decision(request_id, self.timeout))

    async def aclose(self) -> None:
        http = self._connections.pop(_owner(), None)
        if http is not None:
            await http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _allowed(self, request: Mapping[str, Any], wait: float | None) -> Decision:
        try:
            return await self.check(**request)
        except Deferred as deferred:
            if wait is None or deferred.approval is None:
                raise
            return await self.wait_for_approval(deferred, wait)

    async def _note_outcome(
        self, report: bool, decision: Decision, status: OutcomeStatus, tool_call_id: str | None, started: float
    ) -> None:
        """What came of an action is reported if possible, also when the task is being cancelled."""
        if not (report and self._may_report):
            return
        duration = milliseconds_since(started)
        try:
            with anyio.CancelScope(shield=True):
                await self.report_outcome(decision.request_id, status, tool_call_id, duration)
        except Undecided as error:
            self._may_report = note_unreported(error, decision.request_id)

    async def _run(self, flow: Generator[_flows.Step, _flows.Reply, T]) -> T:
        reply: _flows.Reply = None
        try:
            while True:
                step = flow.send(reply)
                if isinstance(step, _flows.Send):
                    reply = await self._send(step)
                else:
                    await anyio.sleep(step.seconds)
                    reply = None
        except StopIteration as done:
            value: T = done.value
            return value
        except NotAllowed:
            raise
        except Exception as error:
            raise as_undecided(error) from error

    async def _send(self, sent: _flows.Send) -> _flows.Reply:
        url = self._find().url
        limits = httpx.Timeout(sent.timeout, connect=min(CONNECT_TIMEOUT, sent.timeout))
        http = self._connected()
        request = http.build_request(
            sent.method, url + sent.path, content=sent.body, headers=self._headers(sent), timeout=limits
        )
        try:
            # The limits apply to each read; the scope to all of them together.
            with anyio.move_on_after(sent.timeout):
                return await _receive(http, request)
        except httpx.HTTPError as error:
            return _failures.failure(error, url, sent.timeout)
        return _failures.timed_out(sent.timeout)

    def _connected(self) -> httpx.AsyncClient:
        owner = _owner()
        http = self._connections.get(owner)
        if http is None:
            http = httpx.AsyncClient(
                verify=self._find().tls(), trust_env=False, follow_redirects=False, proxy=self._proxy
            )
            self._connections[owner] = http
            # Of loops that have ended, only the garbage collector can close what is open.
            for ended in list(self._connections)[:-MAX_LOOPS]:
                del self._connections[ended]
        return http


def _owner() -> object:
    """Connections belong to one event loop of one process: another gets its own."""
    return os.getpid(), anyio.lowlevel.current_token()


async def _receive(http: httpx.AsyncClient, request: httpx.Request) -> _flows.Reply:
    response = await http.send(request, stream=True)
    try:
        body = bytearray()
        async with aclosing(cast(AsyncGenerator[bytes, None], response.aiter_raw())) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    return _failures.TOO_LARGE
        return _failures.answer(response, bytes(body))
    finally:
        with anyio.CancelScope(shield=True):
            await response.aclose()
