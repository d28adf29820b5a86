"""A real HTTPS server on the loopback address that misbehaves in one way: for the selftest and for tests.

It speaks over plain sockets and `ssl`, so that it can also do what no HTTP server does. Its certificates are made by
scripts/selftest_certificates.sh.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CERTIFICATES = Path(__file__).parent / "_certificates"
AUTHORITY = CERTIFICATES / "authority.pem"
_MAX_REQUEST_BYTES = 4_000_000
_DRIP_SECONDS = 0.05

Certificate = Literal["server", "server_of_other_authority", "server_of_other_name"]


@dataclass
class Exchange:
    """One request, and the connection on which to answer it."""

    connection: socket.socket
    path: str
    headers: Mapping[str, str]
    body: bytes
    base: str
    is_over: threading.Event

    def write(self, data: bytes) -> None:
        self.connection.sendall(data)

    def answer(self, status: int, body: bytes, headers: str = "", kind: str = "application/json") -> None:
        head = f"HTTP/1.1 {status} {'OK' if status < 300 else 'No'}\r\ncontent-type: {kind}\r\n{headers}"
        self.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    def json(self, status: int, members: Mapping[str, Any], headers: str = "") -> None:
        self.answer(status, json.dumps(members).encode(), headers)

    def drip(self, data: bytes) -> None:
        """A byte now and then: each single read is quick, the whole takes minutes."""
        for index in range(len(data)):
            if self.is_over.wait(_DRIP_SECONDS):
                return
            self.write(data[index : index + 1])

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


Behaviour = Callable[[Exchange], None]


class Server:
    """Answers every request with `behave`, until it is closed. `closes_at_once` ends connections before TLS."""

    def __init__(
        self,
        behave: Behaviour,
        certificate: Certificate = "server",
        is_tls: bool = True,
        closes_at_once: bool = False,
        listens: bool = True,
    ) -> None:
        self._behave = behave
        self._closes_at_once = closes_at_once
        self._tls: ssl.SSLContext | None = None
        if is_tls:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(CERTIFICATES / f"{certificate}.pem")
        self._is_over = threading.Event()
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.requests: list[Exchange] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        if listens:
            self._listener.listen()
            self._start(self._accept)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="stage0-selftest", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._is_over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._closes_at_once:
                connection.close()
            else:
                self._open.add(connection)
                self._start(self._serve, connection)

    def _serve(self, plain: socket.socket) -> None:
        connection = plain
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(plain, server_side=True)
                self._open.add(connection)
            elif connection.recv(65536):
                # The first bytes of a TLS handshake, answered as a server of plain HTTP would.
                self._behave(Exchange(connection, "/check", {}, b"", self.url, self._is_over))
                return
            while not self._is_over.is_set():
                exchange = self._read(connection)
                if exchange is None:
                    return
                self.requests.append(exchange)
                self._behave(exchange)
        except (OSError, ValueError):
            return
        finally:
            self._open -= {plain, connection}
            connection.close()
            plain.close()

    def _read(self, connection: socket.socket) -> Exchange | None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more or len(data) > _MAX_REQUEST_BYTES:
                return None
            data += more
        head, body = data.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = min(int(headers.get("content-length", "0")), _MAX_REQUEST_BYTES)
        while len(body) < length:
            more = connection.recv(65536)
            if not more:
                return None
            body += more
        return Exchange(connection, first.split(" ")[1], headers, body, self.url, self._is_over)


def allow() -> dict[str, Any]:
    """A complete ALLOW. Each fault changes one thing of it."""
    return {
        "decision": "GO",
        "verdict": "ALLOW",
        "reason": "no rule of the policy objects",
        "issues": [],
        "risk_score": 0,
        "value_risk": 0,
        "waste_risk": 0,
        "high_risk": False,
        "clarifying_questions": [],
        "defer_questions": [],
        "guardrails": [],
        "constraints_applied": [],
        "constraints_ignored": [],
        "value_findings": [],
        "guardrail_checks": {},
        "cost_estimate": None,
        "policy_version": "selftest@1.0.0+000000000000",
        "environment": "",
        "decision_trace_summary": "",
        "approval": None,
        "request_id": "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55",
        "task_hash": "0" * 64,
        "policy_pack_version": "selftest@1.0.0+000000000000",
        "timestamp": 1,
        "evaluated_at": 1,
        "cached": False,
        "meta": {"source": "stage0", "test_mode": False, "client_request_id": None, "audit": "required"},
    }
