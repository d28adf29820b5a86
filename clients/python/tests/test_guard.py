"""A guarded function does not run without an ALLOW, and its outcome is reported."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import stage0
from stage0 import AsyncClient, Client, Deferred, Denied, NotAllowed, Undecided, _default
from stage0._canonical import digest
from stage0._faults import Fault, allows
from stage0._misbehave import AUTHORITY, Exchange, Server

from .conftest import Asking, Dev, each_fault, misbehaving


def asked(server: Server) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(next(r.body for r in server.requests if r.path == "/check"))
    return body


def outcomes(server: Server) -> list[str]:
    return [json.loads(r.body)["status"] for r in server.requests if r.path.endswith("/outcome")]


def test_a_guarded_function_runs_after_an_allow_of_a_real_server(dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=dev.data_dir)
    read = client.guarded(tool="reader", effects=["read"], report=False)(asking.tool(lambda path: f"read {path}"))
    assert asking.call(read, "build.log") == "read build.log"


def test_a_guarded_function_does_not_run_after_a_deny_or_defer_of_a_real_server(dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=dev.data_dir)
    ran: list[int] = []
    tool = asking.tool(ran.append)
    context = {"environment": "production", "approval_status": "rejected"}
    guard: dict[str, Any] = {"tool": "kubectl", "effects": ["deploy"], "constraints": ["approval required"]}
    with pytest.raises(Denied):
        asking.call(client.guarded(**guard, context=context)(tool), 1)
    with pytest.raises(Deferred):
        asking.call(client.guarded(**guard, context={"environment": "production"})(tool), 1)
    assert ran == []
    allowed = client.guarded(tool="reader", effects=["read"], report=False)(tool)
    asking.call(allowed, 1)
    assert ran == [1]


def test_neither_form_of_guard_acts_on_a_fault(asking: Asking) -> None:
    ran: list[int] = []

    def test(fault: Fault) -> None:
        with misbehaving(asking, fault.behave, timeout=0.4, **fault.server) as (client, _):
            with pytest.raises(NotAllowed):
                asking.call(client.guarded(tool="t")(asking.tool(ran.append)), 1)
            with pytest.raises(NotAllowed), asking.action(client.action(tool="t")):
                ran.append(2)

    each_fault(test)
    assert ran == []


def test_arguments_are_bound_by_their_digest_and_not_sent(asking: Asking) -> None:
    with misbehaving(asking, allows) as (client, server):

        def pay(to: str, amount: int = 5) -> None: ...

        asking.call(client.guarded(tool="bank", effects=["payment"])(asking.tool(pay)), "secret-iban")
        body = asked(server)
    assert body["context"] == {"arguments_sha256": digest({"to": "secret-iban", "amount": 5})}
    assert (body["tools"], body["side_effects"], body["goal"]) == (["bank"], ["payment"], "Call the tool bank")
    assert "secret-iban" not in json.dumps(body)


def test_arguments_and_targets_that_are_named_are_sent(asking: Asking) -> None:
    with misbehaving(asking, allows, options={"context": {"tenant_id": "t1"}, "agent": "a1"}) as (client, server):

        def delete(paths: list[str], token: str, why: str) -> None: ...

        guard = client.guarded(
            tool="files",
            goal=lambda paths, token, why: f"Delete {len(paths)} files",
            context=lambda paths, token, why: {"record_count": len(paths), "arguments_sha256": "forged"},
            arguments=["why"],
            targets=["paths"],
            ignore=["token"],
        )
        asking.call(guard(asking.tool(delete)), ["/a", "/b"], token="t", why="old")
        body = asked(server)
    assert body["goal"] == "Delete 2 files"
    assert body["context"] == {
        "tenant_id": "t1",
        "agent_id": "a1",
        "record_count": 2,
        "arguments": {"why": "old"},
        "target_resources": ["/a", "/b"],
        "arguments_sha256": digest({"paths": ["/a", "/b"], "why": "old"}),
    }


def test_an_argument_that_cannot_be_bound_is_undecided_unless_it_is_ignored(asking: Asking) -> None:
    ran: list[object] = []
    tool = asking.tool(lambda session: ran.append(session))
    with misbehaving(asking, allows) as (client, server):
        with pytest.raises(Undecided, match=r"the argument `session` .* `ignore=`"):
            asking.call(client.guarded(tool="t")(tool), threading.Lock())
        assert server.requests == [] and ran == []
        guard = client.guarded(tool="t", ignore=["session"])
        asking.call(guard(tool), threading.Lock())
        assert len(ran) == 1


def test_a_goal_that_fails_is_undecided(asking: Asking) -> None:
    with misbehaving(asking, allows) as (client, server):
        guard = client.guarded(tool="t", goal=lambda amount: f"{1 / amount}")
        with pytest.raises(Undecided, match="division by zero"):
            asking.call(guard(asking.tool(lambda amount: None)), 0)
        assert server.requests == []


def test_a_method_is_guarded_and_its_object_is_not_an_argument() -> None:
    with Server(allows) as server, Client(server.url, "a-key", AUTHORITY) as client:

        class Bank:
            @client.guarded(tool="bank")
            def pay(self, amount: int) -> int:
                return amount

        assert Bank().pay(3) == 3
        assert asked(server)["context"]["arguments_sha256"] == digest({"amount": 3})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "succeeded"),
        (ValueError(), "failed"),
        (TimeoutError(), "unknown"),
        (type("ReadTimeout", (Exception,), {})(), "unknown"),
        (KeyboardInterrupt(), "unknown"),
    ],
)
def test_the_outcome_is_reported_and_the_exception_passed_on(error: BaseException | None, status: str) -> None:
    def tool() -> str:
        if error is not None:
            raise error
        return "done"

    with Server(allows) as server, Client(server.url, "a-key", AUTHORITY) as client:
        guarded = client.guarded(tool="t")(tool)
        if error is None:
            assert guarded() == "done"
        else:
            with pytest.raises(type(error)):
                guarded()
        assert outcomes(server) == [status]
        report = json.loads(server.requests[-1].body)
        assert set(report) == {"status", "duration_ms"} and report["duration_ms"] >= 0


def test_a_block_reports_its_outcome_and_its_call_id(asking: Asking) -> None:
    with misbehaving(asking, allows) as (client, server):
        with asking.action(client.action(tool="t", tool_call_id="call-1", arguments={"to": "x"})) as decision:
            assert decision.verdict == "ALLOW"
        with pytest.raises(ValueError), asking.action(client.action(tool="t")):
            raise ValueError
        assert outcomes(server) == ["succeeded", "failed"]
        assert json.loads(server.requests[1].body)["tool_call_id"] == "call-1"


def test_a_cancelled_task_has_an_unknown_outcome_that_is_reported() -> None:
    async def run(url: str) -> None:
        async with AsyncClient(url, "a-key", AUTHORITY) as client:
            started = asyncio.Event()

            @client.guarded(tool="t")
            async def tool() -> None:
                started.set()
                await asyncio.sleep(10)

            task = asyncio.ensure_future(tool())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with Server(allows) as server:
        asyncio.run(run(server.url))
        assert outcomes(server) == ["unknown"]


def refuses_reports(status: int) -> Callable[[Exchange], None]:
    def behave(exchange: Exchange) -> None:
        if exchange.path == "/check":
            allows(exchange)
        else:
            exchange.json(status, {"message": "no", "error": "scope_missing", "request_id": "r"})

    return behave


def test_a_key_that_may_not_report_is_warned_of_once(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    with misbehaving(asking, refuses_reports(403)) as (client, server):
        tool = client.guarded(tool="t")(asking.tool(lambda: 1))
        assert [asking.call(tool) for _ in range(3)] == [1, 1, 1]
        assert len(outcomes(server)) == 1
    assert [r.levelno for r in caplog.records if r.name == "stage0"] == [logging.WARNING]


def test_a_report_that_fails_otherwise_changes_nothing_and_the_next_is_tried(asking: Asking) -> None:
    with misbehaving(asking, refuses_reports(500)) as (client, server):
        tool = client.guarded(tool="t")(asking.tool(lambda: 1))
        assert [asking.call(tool) for _ in range(2)] == [1, 1]
        assert len(outcomes(server)) == 2


def test_reports_can_be_switched_off(asking: Asking) -> None:
    with misbehaving(asking, allows) as (client, server):
        asking.call(client.guarded(tool="t", report=False)(asking.tool(lambda: 1)))
        assert outcomes(server) == []


def test_a_function_that_cannot_be_guarded_is_refused_at_once() -> None:
    def generator() -> Any:
        yield 1

    async def coroutine() -> None: ...

    client = Client("https://127.0.0.1:1", "a-key")
    refused: list[tuple[Any, Any]] = [
        (generator, client.guarded(tool="t")),
        (coroutine, client.guarded(tool="t")),
        (generator, AsyncClient("https://127.0.0.1:1", "a-key").guarded(tool="t")),
        (print, AsyncClient("https://127.0.0.1:1", "a-key").guarded(tool="t")),
    ]
    for function, guard in refused:
        with pytest.raises(TypeError):
            guard(function)
    with pytest.raises(TypeError, match="`effects` is a list"):
        client.guarded(tool="t", effects="payment")


def test_wrong_arguments_raise_what_the_function_itself_would_raise(asking: Asking) -> None:
    with misbehaving(asking, allows) as (client, server):
        with pytest.raises(TypeError, match="missing a required argument"):
            asking.call(client.guarded(tool="t")(asking.tool(lambda amount: None)))
        assert server.requests == []


def test_the_decorator_of_the_package_finds_the_server_and_fits_both_kinds(dev: Dev, monkeypatch: Any) -> None:
    monkeypatch.setenv("STAGE0_DATA_DIR", str(dev.data_dir))
    _default._client.cache_clear()
    _default._async_client.cache_clear()

    @stage0.guarded(tool="reader", effects=["read"], report=False)
    def read(path: str) -> str:
        """Reads."""
        return path

    @stage0.guarded(tool="reader", effects=["read"], report=False)
    async def read_async(path: str) -> str:
        return path

    assert (read("a"), read.__name__, read.__doc__) == ("a", "read", "Reads.")
    assert anyio.run(read_async, "b") == "b"

    @stage0.guarded(tool="reader", client=Client("https://127.0.0.1:1", "a-key", timeout=0.2))
    def unreachable() -> None: ...

    with pytest.raises(Undecided):
        unreachable()
    _default._client().close()
