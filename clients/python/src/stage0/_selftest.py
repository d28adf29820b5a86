"""Proves that your code does not act without an ALLOW.

`selftest` starts a misbehaving HTTPS server for each fault, points a client at it, and calls your code with that client
and a `Probe`. Your code calls `probe.acted()` in the place of the real tool. A correct ALLOW before and after the
faults proves that it acts at all. `python -m stage0 selftest` runs it with a guarded function of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from . import _misbehave
from ._faults import FAULTS, Fault, allows
from .aio import AsyncClient
from .client import Client
from .errors import NotAllowed

_ALLOW: Final = Fault("ALLOW", allows, "")
_TIMEOUT: Final = 1.0


class Probe:
    """Stands for the tool. It does nothing except count."""

    def __init__(self) -> None:
        self.times = 0

    def acted(self) -> None:
        self.times += 1


@dataclass(frozen=True)
class Row:
    fault: str
    raised: str
    acted: int
    seconds: float
    problem: str | None


@dataclass(frozen=True)
class SelftestReport:
    rows: list[Row] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        return [f"{row.fault}: {row.problem}" for row in self.rows if row.problem]

    def __str__(self) -> str:
        lines = [f"{'fault':<40} {'raised':<16} acted  seconds"]
        lines += [f"{r.fault:<40} {r.raised or '-':<16} {r.acted:>5}  {r.seconds:>7.2f}" for r in self.rows]
        return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in self.problems)])


class SelftestFailed(AssertionError):
    def __init__(self, report: SelftestReport) -> None:
        super().__init__(f"the guard is not safe\n{report}")
        self.report = report


def selftest(
    act: Callable[[Client, Probe], object], client: Client | None = None, timeout: float = _TIMEOUT
) -> SelftestReport:
    """Raises `SelftestFailed` if `act` acts on anything except an ALLOW. `client` gives the options to test with."""
    options = client or Client()
    report = SelftestReport()
    for fault, server, probe in _cases():
        with options._aimed(server.url, _misbehave.AUTHORITY, timeout) as aimed:
            started, raised = time.monotonic(), None
            try:
                act(aimed, probe)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is shown
                raised = error
        report.rows.append(_row(fault, server, probe, raised, time.monotonic() - started))
        if fault is _ALLOW and report.problems:
            break
    return _judged(report)


async def selftest_async(
    act: Callable[[AsyncClient, Probe], Awaitable[object]], client: AsyncClient | None = None, timeout: float = _TIMEOUT
) -> SelftestReport:
    """The same for an asynchronous client."""
    options = client or AsyncClient()
    report = SelftestReport()
    for fault, server, probe in _cases():
        async with options._aimed(server.url, _misbehave.AUTHORITY, timeout) as aimed:
            started, raised = time.monotonic(), None
            try:
                await act(aimed, probe)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is shown
                raised = error
        report.rows.append(_row(fault, server, probe, raised, time.monotonic() - started))
        if fault is _ALLOW and report.problems:
            break
    return _judged(report)


def _cases() -> Iterator[tuple[Fault, _misbehave.Server, Probe]]:
    for fault in (_ALLOW, *FAULTS, _ALLOW):
        with fault.start() as server:
            yield fault, server, Probe()


def _row(fault: Fault, server: _misbehave.Server, probe: Probe, raised: Exception | None, seconds: float) -> Row:
    was_asked = any(request.path.endswith("/check") for request in server.requests)
    problem = None
    if fault is _ALLOW:
        if not probe.times:
            problem = f"it did not act on a correct ALLOW, so the rest proves nothing ({raised})"
    elif probe.times:
        problem = "it acted without an ALLOW"
    elif fault.is_asked and not was_asked:
        problem = f"it did not ask the server ({raised})"
    elif isinstance(raised, NotAllowed) and fault.expected not in _names(raised):
        problem = f"the client raised another exception than {fault.expected}: {raised}"
    return Row(fault.name, type(raised).__name__ if raised else "", probe.times, seconds, problem)


def _names(error: Exception) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def _judged(report: SelftestReport) -> SelftestReport:
    if report.problems:
        raise SelftestFailed(report)
    return report


def _act(client: Client, probe: Probe) -> None:
    @client.guarded(tool="selftest", effects=["read"])
    def tool() -> None:
        probe.acted()

    tool()


def main(timeout: float) -> int:
    try:
        print(selftest(_act, timeout=timeout))
    except SelftestFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    print("the guard does not act without an ALLOW")
    return 0
