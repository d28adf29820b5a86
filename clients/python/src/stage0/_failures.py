"""Why no whole answer arrived, in words that say what to do, and whether asking again can help."""

from __future__ import annotations

import ssl

import httpx

from ._flows import Answer, Failure
from ._wire import MAX_ANSWER_BYTES

TOO_LARGE = Failure(f"the answer is longer than {MAX_ANSWER_BYTES} bytes", may_retry=False)


def timed_out(seconds: float) -> Failure:
    return Failure(f"the server did not answer within {seconds:.1f} s", may_retry=True)


def failure(error: Exception, url: str, seconds: float) -> Failure:
    fault = _tls_fault(error)
    if isinstance(fault, ssl.SSLCertVerificationError):
        why = f"`{url}` is not trusted: {fault.verify_message}; `ca=` or STAGE0_CA names the authority to trust"
        return Failure(why, may_retry=False)
    if fault is not None:
        return Failure(f"no TLS connection to `{url}`: {fault.reason or 'the handshake failed'}", may_retry=True)
    if isinstance(error, httpx.ConnectTimeout):
        return Failure(f"cannot connect to `{url}` in time", may_retry=True)
    if isinstance(error, httpx.TimeoutException):
        return timed_out(seconds)
    if isinstance(error, httpx.ConnectError):
        return Failure(f"cannot connect to `{url}`: {error}", may_retry=True)
    if isinstance(error, httpx.ProtocolError):
        # Its text would quote what the server sent.
        return Failure(f"the answer of `{url}` broke off, or is not HTTP", may_retry=True)
    if isinstance(error, httpx.TransportError):
        return Failure(f"the connection to `{url}` broke off: {error}", may_retry=True)
    return Failure(f"the request to `{url}` failed: {type(error).__name__}", may_retry=False)


def answer(response: httpx.Response, body: bytes) -> Answer | Failure:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return Failure("the answer is compressed, which was not asked for", may_retry=False)
    return Answer(response.status_code, dict(response.headers), body)


def _tls_fault(error: BaseException | None) -> ssl.SSLError | None:
    for _ in range(10):
        if error is None or isinstance(error, ssl.SSLError):
            return error
        error = error.__cause__ or error.__context__
    return None
