"""Every way in which an answer can fail to be an ALLOW, as a server that behaves like it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._misbehave import Behaviour, Exchange, Server, allow
from ._wire import MAX_ANSWER_BYTES


@dataclass(frozen=True)
class Fault:
    """`expected` is what the client raises. `is_asked`: the request reaches the server."""

    name: str
    behave: Behaviour
    expected: str = "Undecided"
    is_asked: bool = True
    server: Mapping[str, Any] = field(default_factory=dict)

    def start(self) -> Server:
        return Server(self.behave, **self.server)


def allows(exchange: Exchange) -> None:
    """What a correct server does."""
    if exchange.path.endswith("/outcome"):
        report = {"tool_call_id": None, "duration_ms": None, "cost_usd": None, **json.loads(exchange.body)}
        kept = {"request_id": allow()["request_id"], "reported_at": "2026-01-01T00:00:00Z", "late": False}
        exchange.json(200, {**kept, **report, "key_id": "selftest", "settled": None})
    else:
        exchange.json(200, allow())


def _with(_status: int = 200, **changed: Any) -> Behaviour:
    return lambda exchange: exchange.json(_status, {**allow(), **changed})


def _without(name: str) -> Behaviour:
    return lambda exchange: exchange.json(200, {n: v for n, v in allow().items() if n != name})


def _with_meta(**changed: Any) -> Behaviour:
    meta = {name: value for name, value in {**allow()["meta"], **changed}.items() if value is not ...}
    return _with(meta=meta)


def _error(status: int, code: str, headers: str = "") -> Behaviour:
    request_id = allow()["request_id"]
    members = {"message": f"the selftest's {status}", "error": code, "request_id": request_id}
    return lambda exchange: exchange.json(status, members, headers)


def _body(body: bytes, kind: str = "application/json") -> Behaviour:
    return lambda exchange: exchange.answer(200, body, kind=kind)


def _redirects(exchange: Exchange) -> None:
    """To an ALLOW, which a client that follows would take."""
    if exchange.path.startswith("/elsewhere"):
        allows(exchange)
    else:
        exchange.answer(307, b"", f"location: {exchange.base}/elsewhere/check\r\n")


def _breaks_off(exchange: Exchange) -> None:
    exchange.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
    exchange.write(json.dumps(allow()).encode())
    exchange.connection.close()


def _slow_headers(exchange: Exchange) -> None:
    exchange.drip(b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-filler-%d: 0123456789\r\n" % n for n in range(1000)))


def _slow_body(exchange: Exchange) -> None:
    body = json.dumps(allow()).encode() + b" " * 10_000
    exchange.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode())
    exchange.drip(body)


def _silent(exchange: Exchange) -> None:
    exchange.is_over.wait()


_ALLOW = json.dumps(allow()).encode()
_TWICE = b'{"verdict":"DENY",' + _ALLOW[1:]
_REFUSAL: Mapping[str, Any] = {
    "code": "SELFTEST",
    "severity": "HIGH",
    "message": "the selftest refuses",
    "rule": "selftest",
    "next_action": "stop",
    "details": {},
}
_DENY: Mapping[str, Any] = {"decision": "NO_GO", "verdict": "DENY", "reason": "SELFTEST: no", "issues": [_REFUSAL]}
_DEFER: Mapping[str, Any] = {
    "decision": "DEFER",
    "verdict": "DEFER",
    "reason": "SELFTEST: not yet",
    "defer_questions": ["Which one?"],
}

FAULTS = (
    Fault("DENY", _with(**_DENY), "Denied"),
    Fault("DEFER", _with(**_DEFER), "Deferred"),
    Fault("400", _error(400, "bad_request")),
    Fault("401, the key was revoked", _error(401, "unauthorized")),
    Fault("402, the quota is used up", _error(402, "quota_exceeded")),
    Fault("403, the key lacks a scope", _error(403, "scope_missing")),
    Fault("404, the URL is wrong", _error(404, "not_found")),
    Fault("422, the request is wrong", _error(422, "invalid_request")),
    Fault("429, too many requests", _error(429, "rate_limited", "retry-after: 60\r\n")),
    Fault("500", _error(500, "internal")),
    Fault("503, no decision in time", _error(503, "unavailable")),
    Fault("500 with an ALLOW", _with(500)),
    Fault("201 with an ALLOW", _with(201)),
    Fault("redirect to an ALLOW", _redirects),
    Fault("garbage", _body(bytes(range(256)))),
    Fault("no HTTP", lambda exchange: exchange.write(b"\x00\x01ALLOW\r\n\r\n")),
    Fault("truncated JSON", _body(_ALLOW[: len(_ALLOW) // 2])),
    Fault("ALLOW in a body that breaks off", _breaks_off),
    Fault("HTML page", _body(b"<html><body>ALLOW</body></html>", "text/html")),
    Fault("empty body", _body(b"")),
    Fault("ALLOW as a text", _body(b'"ALLOW"')),
    Fault("ALLOW in a list", _body(b"[" + _ALLOW + b"]")),
    Fault("ALLOW that is nested too deeply", _body(b'{"meta":' + b"[" * 200_000)),
    Fault("ALLOW with a member twice", _body(_TWICE)),
    Fault("ALLOW that is too long", _body(_ALLOW + b" " * MAX_ANSWER_BYTES)),
    Fault("ALLOW with NO_GO", _with(decision="NO_GO")),
    Fault("DENY with GO", _with(verdict="DENY")),
    Fault("ALLOW without a decision", _without("decision")),
    Fault("GO without a verdict", _without("verdict")),
    Fault("ALLOW without request_id", _without("request_id")),
    Fault("ALLOW with a request_id that is none", _with(request_id="none")),
    Fault("ALLOW without policy_version", _without("policy_version")),
    Fault("ALLOW with an empty policy_version", _with(policy_version=" ")),
    Fault("ALLOW without meta", _without("meta")),
    Fault("ALLOW that was not recorded", _with_meta(audit="none")),
    Fault("ALLOW without meta.audit", _with_meta(audit=...)),
    Fault("ALLOW in test mode", _with_meta(test_mode=True)),
    Fault("ALLOW without meta.test_mode", _with_meta(test_mode=...)),
    Fault("ALLOW of another program", _with_meta(source="mock")),
    Fault("no answer", _silent),
    Fault("slow headers", _slow_headers),
    Fault("slow body", _slow_body),
    Fault("closed after the request", lambda exchange: exchange.connection.close()),
    Fault("reset after the request", Exchange.reset),
    Fault("closed before the request", allows, is_asked=False, server={"closes_at_once": True}),
    Fault("plain HTTP", allows, is_asked=False, server={"is_tls": False}),
    Fault(
        "certificate of another authority", allows, is_asked=False, server={"certificate": "server_of_other_authority"}
    ),
    Fault("certificate for another name", allows, is_asked=False, server={"certificate": "server_of_other_name"}),
    Fault("nothing listens", allows, is_asked=False, server={"listens": False}),
)
