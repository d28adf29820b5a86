"""An HTTPS transport whose deadline is total.

The timeouts of HTTP libraries apply to each read, so a server that sends a byte now and then holds its caller for ever.
Here each operation gets only what is left until one moment: finding the address, connecting, the handshake, every
write and every read. Finding an address cannot be interrupted, so it runs in a thread that is left behind.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

CONNECT_TIMEOUT = 2.0
_current = threading.local()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Every operation of this thread's requests ends within this time."""
    _current.ends = time.monotonic() + seconds
    try:
        yield
    finally:
        _current.ends = None


def _left(timeout: float | None, error: type[Exception]) -> float | None:
    ends = getattr(_current, "ends", None)
    if ends is None:
        return timeout
    left: float = ends - time.monotonic()
    if left <= 0:
        raise error("the deadline has passed")
    return left if timeout is None else min(timeout, left)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # Python's TLS applies the timeout to the whole buffer, not to each packet.
        self._inner.write(buffer, _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            left = _left(timeout, httpcore.ConnectTimeout)
        except httpcore.ConnectTimeout:
            # The pool does not close a connection whose handshake has not begun.
            self.close()
            raise
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        ends = time.monotonic() + (CONNECT_TIMEOUT if timeout is None else timeout)
        failure: Exception = httpcore.ConnectError("the host has no address")
        for address in _addresses(host, port, _left(ends - time.monotonic(), httpcore.ConnectTimeout)):
            left = _left(ends - time.monotonic(), httpcore.ConnectTimeout)
            if left is None or left <= 0:
                raise httpcore.ConnectTimeout("the deadline has passed")
            try:
                return _Stream(super().connect_tcp(address, port, left, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def _addresses(host: str, port: int, timeout: float | None) -> list[str]:
    try:
        ipaddress.ip_address(host)
        return [host]
    except ValueError:
        pass
    found: list[str] = []
    failure: list[OSError] = []

    def look_up() -> None:
        try:
            for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                if str(address[0]) not in found:
                    found.append(str(address[0]))
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=look_up, name="stage0-resolver", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise httpcore.ConnectTimeout("the name service did not answer in time")
    if failure:
        raise httpcore.ConnectError("the host is not known") from failure[0]
    return found


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx():
            yield from self._stream

    def close(self) -> None:
        self._stream.close()


@contextmanager
def _as_httpx() -> Iterator[None]:
    try:
        yield
    except httpcore.ConnectTimeout as error:
        raise httpx.ConnectTimeout(str(error)) from error
    except httpcore.TimeoutException as error:
        raise httpx.ReadTimeout(str(error)) from error
    except httpcore.ConnectError as error:
        raise httpx.ConnectError(str(error)) from error
    except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
        raise httpx.RemoteProtocolError(str(error)) from error
    except (httpcore.NetworkError, httpcore.ProxyError) as error:
        raise httpx.ReadError(str(error)) from error


class DeadlineTransport(httpx.BaseTransport):
    """Keeps connections open between requests, as httpx's own transport does, under the deadline of each thread."""

    def __init__(self, tls: ssl.SSLContext, proxy: str | None) -> None:
        options: dict[str, Any] = {
            "ssl_context": tls,
            "max_connections": 100,
            "max_keepalive_connections": 20,
            # Below the server's own 75 s, so that it rarely closes a connection just as it is used.
            "keepalive_expiry": 30.0,
            "network_backend": _Backend(),
        }
        self._pool = httpcore.HTTPProxy(proxy, **options) if proxy else httpcore.ConnectionPool(**options)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        sent = httpcore.Request(
            request.method, url, headers=request.headers.raw, content=request.stream, extensions=request.extensions
        )
        with _as_httpx():
            answer = self._pool.handle_request(sent)
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer.stream))

    def close(self) -> None:
        self._pool.close()
