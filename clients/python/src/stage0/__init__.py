"""Asks a Stage0 server before an agent acts, and does not act without its answer.

    from stage0 import guarded

    @guarded(tool="mailer", effects=["send_email"])
    def send(to: str, text: str) -> None: ...

A call of `send` raises `Denied`, `Deferred` or `Undecided` unless the server allows it.

The names are loaded when they are first used: the hook, which runs once for each call of a tool, needs few of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._default import guarded
    from ._selftest import Probe, SelftestFailed, SelftestReport, selftest, selftest_async
    from .aio import AsyncClient
    from .client import Client
    from .errors import Deferred, Denied, NotAllowed, NotConfigured, Undecided
    from .types import ApprovalRef, Decision, Issue, ReportedOutcome, RunSettled

__version__ = "0.1.0"

_MODULES = {
    "_default": ("guarded",),
    "_selftest": ("Probe", "SelftestFailed", "SelftestReport", "selftest", "selftest_async"),
    "aio": ("AsyncClient",),
    "client": ("Client",),
    "errors": ("Deferred", "Denied", "NotAllowed", "NotConfigured", "Undecided"),
    "types": ("ApprovalRef", "Decision", "Issue", "ReportedOutcome", "RunSettled"),
}

__all__ = [
    "ApprovalRef",
    "AsyncClient",
    "Client",
    "Decision",
    "Deferred",
    "Denied",
    "Issue",
    "NotAllowed",
    "NotConfigured",
    "Probe",
    "ReportedOutcome",
    "RunSettled",
    "SelftestFailed",
    "SelftestReport",
    "Undecided",
    "guarded",
    "selftest",
    "selftest_async",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module `{__name__}` has no attribute `{name}`")


def __dir__() -> list[str]:
    return __all__
