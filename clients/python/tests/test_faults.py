"""Deadlines and retries, over real TLS, against a server that misbehaves."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stage0 import Client, Deferred, Denied, NotAllowed, Undecided, _flows
from stage0._faults import FAULTS, Fault, allows
from stage0._misbehave import AUTHORITY, Exchange, Server, allow

from .conftest import READING, Asking, each_fault, misbehaving

KINDS = {"Denied": Denied, "Deferred": Deferred, "Undecided": Undecided}


def named(name: str) -> Fault:
    return next(fault for fault in FAULTS if fault.name == name)


def in_turn(*behaviours: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    """Each request is answered by the next behaviour."""
    following: Iterator[Callable[[Exchange], None]] = iter(behaviours)
    return lambda exchange: next(following)(exchange)


def test_no_fault_is_an_allow_and_none_outlasts_the_deadline(asking: Asking) -> None:
    def test(fault: Fault) -> None:
        with misbehaving(asking, fault.behave, timeout=0.5, **fault.server) as (client, server):
            started = time.monotonic()
            with pytest.raises(KINDS[fault.expected]) as caught:
                asking.call(client.check, **READING)
            assert time.monotonic() - started < 1.0
            assert bool(server.requests) == fault.is_asked
        assert isinstance(caught.value, NotAllowed) and "a-key" not in str(caught.value)
        assert "ALLOW" not in str(caught.value), "what a server sends is not quoted, except in the contract's form"

    each_fault(test)


def test_a_complete_allow_of_the_same_server_is_returned(asking: Asking) -> None:
    with misbehaving(asking, allows) as (client, _):
        assert asking.call(client.check, **READING).request_id == allow()["request_id"]


def test_best_effort_recording_is_an_allow_and_none_is_not(asking: Asking) -> None:
    def recorded(audit: str) -> Callable[[Exchange], None]:
        return lambda exchange: exchange.json(200, {**allow(), "meta": {**allow()["meta"], "audit": audit}})

    with misbehaving(asking, in_turn(recorded("best-effort"), recorded("none"))) as (client, _):
        assert asking.call(client.check, **READING).meta.audit == "best-effort"
        with pytest.raises(Undecided, match="not recorded"):
            asking.call(client.check, **READING)


@pytest.mark.parametrize("name", ["503, no decision in time", "closed after the request", "no HTTP"])
def test_a_passing_fault_is_asked_again_with_the_same_idempotency_key(name: str, asking: Asking) -> None:
    fault = named(name).behave
    with misbehaving(asking, in_turn(fault, fault, allows, allows), timeout=5.0) as (client, server):
        asking.call(client.check, **READING)
        keys = [request.headers["idempotency-key"] for request in server.requests]
        assert len(keys) == 3 and len(set(keys)) == 1
        assert len({request.body for request in server.requests}) == 1
        asking.call(client.check, **READING)
        assert server.requests[-1].headers["idempotency-key"] != keys[0], "another call is another action"


def test_a_silent_server_is_asked_again_within_the_deadline(asking: Asking) -> None:
    with misbehaving(asking, in_turn(named("no answer").behave, allows), timeout=2.0) as (client, server):
        asking.call(client.check, **READING)
        assert len(server.requests) == 2


@pytest.mark.parametrize("name", ["500", "401, the key was revoked", "422, the request is wrong", "garbage", "DENY"])
def test_what_a_retry_does_not_change_is_asked_once(name: str, asking: Asking) -> None:
    with misbehaving(asking, named(name).behave, timeout=5.0) as (client, server):
        with pytest.raises(NotAllowed):
            asking.call(client.check, **READING)
        assert len(server.requests) == 1


@pytest.mark.parametrize("certificate", ["server_of_other_authority", "server_of_other_name"])
def test_a_wrong_certificate_is_refused_at_once_and_never_gets_the_key(certificate: Any, asking: Asking) -> None:
    with misbehaving(asking, allows, timeout=5.0, certificate=certificate) as (client, server):
        with pytest.raises(Undecided, match="not trusted"):
            asking.call(client.check, **READING)
        assert (server.connections, server.requests) == (1, [])


def test_three_attempts_are_the_most(asking: Asking) -> None:
    with misbehaving(asking, named("503, no decision in time").behave, timeout=5.0) as (client, server):
        with pytest.raises(Undecided) as caught:
            asking.call(client.check, **READING)
        assert len(server.requests) == 3
    assert caught.value.status == 503 and caught.value.request_id == allow()["request_id"]


def test_the_pauses_between_attempts_grow_and_vary() -> None:
    pauses = []
    for _ in range(20):
        flow = _flows.exchange(_flows.Request("GET", "/"), 60.0)
        first = [flow.send(None), flow.send(_flows.Failure("broken", True)), flow.send(None)]
        steps = [*first, flow.send(_flows.Failure("broken", True))]
        pauses.append([step.seconds for step in steps if isinstance(step, _flows.Sleep)])
    shortest, longest = [_flows.BACKOFF[0], _flows.BACKOFF[1]], [1.5 * pause for pause in _flows.BACKOFF]
    assert all(s <= pause <= m for pair in pauses for s, pause, m in zip(shortest, pair, longest, strict=True))
    assert len({pair[0] for pair in pauses}) > 10


def refuses_for(seconds: int) -> Callable[[Exchange], None]:
    error = {"message": "too many", "error": "rate_limited", "request_id": allow()["request_id"]}
    return lambda exchange: exchange.json(429, error, f"retry-after: {seconds}\r\n")


def test_retry_after_is_waited_for_if_it_fits(asking: Asking) -> None:
    with misbehaving(asking, in_turn(refuses_for(1), allows), timeout=3.0) as (client, _):
        started = time.monotonic()
        asking.call(client.check, **READING)
        assert 1.0 <= time.monotonic() - started < 2.0


def test_retry_after_that_does_not_fit_is_not_waited_for(asking: Asking) -> None:
    with misbehaving(asking, in_turn(refuses_for(9), allows), timeout=3.0) as (client, server):
        started = time.monotonic()
        with pytest.raises(Undecided) as caught:
            asking.call(client.check, **READING)
        assert time.monotonic() - started < 0.5 and caught.value.status == 429 and len(server.requests) == 1


def test_a_redirect_is_not_followed(asking: Asking) -> None:
    with misbehaving(asking, named("redirect to an ALLOW").behave) as (client, server):
        with pytest.raises(Undecided, match="redirect"):
            asking.call(client.check, **READING)
        assert [request.path for request in server.requests] == ["/check"]


def test_connections_are_used_again(asking: Asking) -> None:
    with misbehaving(asking, allows) as (client, server):
        for _ in range(3):
            asking.call(client.check, **READING)
        assert (len(server.requests), server.connections) == (3, 1)


def test_no_proxy_of_the_environment_sees_a_request(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with misbehaving(asking, allows) as (client, _):
        asking.call(client.check, **READING)
    with misbehaving(asking, allows, options={"proxy": "http://127.0.0.1:9"}) as (client, server):
        with pytest.raises(Undecided):
            asking.call(client.check, **READING)
        assert server.connections == 0, "a proxy that is named is used"


def test_a_name_service_that_hangs_does_not_outlast_the_deadline(asking: Asking, monkeypatch: Any) -> None:
    real, released = socket.getaddrinfo, threading.Event()

    def hangs(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:  # noqa: A002
        if host not in ("slow.example", b"slow.example"):
            return real(host, port, family, type, proto, flags)
        # trio asks for a numeric address first, which needs no name service.
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not a numeric address")
        released.wait(10)
        return real("127.0.0.1", port, family, type, proto, flags)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    client = asking.client("https://slow.example", "a-key", AUTHORITY, timeout=0.6)
    started = time.monotonic()
    with pytest.raises(Undecided):
        asking.call(client.check, **READING)
    assert time.monotonic() - started < 1.2
    released.set()


def test_a_handshake_that_hangs_does_not_outlast_the_deadline(asking: Asking) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = asking.client(f"https://127.0.0.1:{listener.getsockname()[1]}", "a-key", AUTHORITY, timeout=0.6)
        started = time.monotonic()
        with pytest.raises(Undecided):
            asking.call(client.check, **READING)
        assert time.monotonic() - started < 1.0


def test_a_server_that_does_not_read_does_not_outlast_the_deadline(asking: Asking) -> None:
    class Deaf(Server):
        def _read(self, connection: socket.socket) -> None:
            self._is_over.wait()

    with Deaf(allows) as server:
        client = asking.client(server.url, "a-key", AUTHORITY, timeout=0.6)
        started = time.monotonic()
        with pytest.raises(Undecided):
            asking.call(client.check, **READING, context={"note": "x" * 20_000_000})
        assert time.monotonic() - started < 2.0


def test_a_server_that_reads_slowly_does_not_outlast_the_deadline(asking: Asking) -> None:
    class Sipping(Server):
        def _read(self, connection: socket.socket) -> None:
            while not self._is_over.wait(0.05):
                connection.recv(16_384)

    with Sipping(allows) as server:
        client = asking.client(server.url, "a-key", AUTHORITY, timeout=0.6)
        started = time.monotonic()
        with pytest.raises(Undecided):
            asking.call(client.check, **READING, context={"note": "x" * 20_000_000})
        assert time.monotonic() - started < 2.0


def test_an_attempt_to_which_the_server_falls_silent_late_does_not_outlast_its_time(asking: Asking) -> None:
    def falls_silent(exchange: Exchange) -> None:
        exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        exchange.drip(b" " * 12)
        exchange.is_over.wait()

    with misbehaving(asking, falls_silent) as (client, _):
        started = time.monotonic()
        reply = asking.call(client._send, _flows.Send("GET", "/", None, {}, 0.8))
        assert isinstance(reply, _flows.Failure) and time.monotonic() - started < 1.1


def test_threads_share_a_client_and_each_has_its_own_deadline() -> None:
    def by_goal(exchange: Exchange) -> None:
        (named("slow body").behave if b"slow" in exchange.body else allows)(exchange)

    with Server(by_goal) as server, Client(server.url, "a-key", AUTHORITY, timeout=1.0) as client:
        slow: list[Exception] = []

        def ask_slowly() -> None:
            try:
                client.check("slow")
            except Undecided as error:
                slow.append(error)

        thread = threading.Thread(target=ask_slowly)
        thread.start()
        for _ in range(20):
            client.check("quick")
        thread.join(5)
        assert len(slow) == 1
