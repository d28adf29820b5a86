"""`guarded`: a function that does not run without an ALLOW.

The decision is bound to the call: the digest of all its arguments is part of the request, so an approval is for exactly
these. The values themselves are sent only where `arguments` or `targets` name them.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from ._canonical import NoCanonicalForm, digest, plain
from .errors import NotAllowed, Undecided
from .types import OutcomeStatus

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .client import Client

P = ParamSpec("P")
R = TypeVar("R")
Goal = str | Callable[..., str] | None
Members = Mapping[str, Any] | Callable[..., Mapping[str, Any]] | None
Texts = Sequence[str] | Callable[..., Sequence[str]] | None

_log = logging.getLogger("stage0")


@dataclass(frozen=True)
class Guard:
    """What is asked before a call. Callables are called with the function's own arguments."""

    tool: str
    effects: Sequence[str] = ()
    goal: Goal = None
    context: Members = None
    arguments: Sequence[str] = ()
    targets: Texts = None
    ignore: Sequence[str] = ()
    constraints: Sequence[str] | None = None
    success_criteria: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("effects", "arguments", "ignore"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"`{name}` is a list of texts, not one text")

    def of_call(self, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `check` for a call of the function."""
        called = _bound(signature, args, kwargs)
        first = next(iter(signature.parameters), None)
        if first in ("self", "cls"):
            del called[first]
        goal = self.goal(*args, **kwargs) if callable(self.goal) else self.goal
        context = self.context(*args, **kwargs) if callable(self.context) else self.context
        targets = self.targets(*args, **kwargs) if callable(self.targets) else self._named_targets(called)
        return self._request({n: v for n, v in called.items() if n not in self.ignore}, goal, context, targets)

    def request(self, called: Mapping[str, Any]) -> dict[str, Any]:
        """The same for a block of code. Here `targets` are the targets themselves."""
        if callable(self.goal) or callable(self.context) or callable(self.targets):
            raise TypeError("goal, context and targets of an action are values")
        with _as_undecided():
            return self._request(called, self.goal, self.context, self.targets)

    def _named_targets(self, called: Mapping[str, Any]) -> list[str] | None:
        """`targets` names arguments, each with one target or a list of them."""
        if self.targets is None or callable(self.targets):
            return None
        values = [called[name] for name in self.targets if called.get(name) is not None]
        return [str(item) for value in values for item in (value if isinstance(value, (list, tuple)) else [value])]

    def _request(
        self,
        called: Mapping[str, Any],
        goal: str | None,
        context: Mapping[str, Any] | None,
        targets: Sequence[str] | None,
    ) -> dict[str, Any]:
        own: dict[str, Any] = {"arguments_sha256": self._digest(called)}
        if self.arguments:
            own["arguments"] = {name: plain(called[name]) for name in self.arguments}
        if targets is not None:
            own["target_resources"] = list(targets)
        return {
            "goal": goal or f"Call the tool {self.tool}",
            "tools": [self.tool],
            "side_effects": list(self.effects),
            "constraints": self.constraints,
            "success_criteria": self.success_criteria,
            # What binds the decision to the call is not to be replaced by the caller's context.
            "context": {**(context or {}), **own},
        }

    def _digest(self, called: Mapping[str, Any]) -> str:
        values = {}
        for name, value in called.items():
            try:
                digest(value)
                values[name] = plain(value)
            except NoCanonicalForm as error:
                text = f"the argument `{name}` cannot be bound to the decision: {error}; `ignore=` leaves it out"
                raise NoCanonicalForm(text) from None
        return digest(values)


def guard_function(
    guard: Guard, function: Callable[P, R], client: Callable[[], Client], report: bool, wait: float | None
) -> Callable[P, R]:
    if inspect.iscoroutinefunction(function):
        raise TypeError("an async function is guarded by an AsyncClient, or by `stage0.guarded`")
    _refuse_generator(function)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        asked = client()
        decision = asked._allowed(_asked(guard, signature, args, kwargs), wait)
        started = time.monotonic()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            asked._note_outcome(report, decision, outcome_of(error), None, started)
            raise
        status: OutcomeStatus = "unknown" if inspect.isawaitable(result) else "succeeded"
        asked._note_outcome(report, decision, status, None, started)
        return result

    return guarded


def guard_coroutine(
    guard: Guard, function: Callable[P, R], client: Callable[[], AsyncClient], report: bool, wait: float | None
) -> Callable[P, R]:
    if not inspect.iscoroutinefunction(function):
        raise TypeError("only an async function is guarded by an AsyncClient; for others use a Client")
    signature = inspect.signature(function)

    @functools.wraps(function)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> Any:
        asked = client()
        decision = await asked._allowed(_asked(guard, signature, args, kwargs), wait)
        started = time.monotonic()
        try:
            result = await cast(Awaitable[Any], function(*args, **kwargs))
        except BaseException as error:
            await asked._note_outcome(report, decision, outcome_of(error), None, started)
            raise
        await asked._note_outcome(report, decision, "succeeded", None, started)
        return result

    return cast(Callable[P, R], guarded)


def _bound(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _asked(
    guard: Guard, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    # Arguments that do not fit raise the TypeError that the function itself would raise.
    signature.bind(*args, **kwargs)
    with _as_undecided():
        return guard.of_call(signature, args, kwargs)


@contextmanager
def _as_undecided() -> Iterator[None]:
    try:
        yield
    except NotAllowed:
        raise
    except Exception as error:
        raise Undecided(f"the request could not be made: {error}") from error


def _refuse_generator(function: Callable[..., Any]) -> None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("a generator runs after its call has returned: guard the function that does the work")


def outcome_of(error: BaseException) -> OutcomeStatus:
    """After a cancellation or a timeout the action may still have happened, which is not a failure."""
    is_timeout = any("timeout" in kind.__name__.lower() for kind in type(error).__mro__)
    return "failed" if isinstance(error, Exception) and not is_timeout else "unknown"


def milliseconds_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)


def note_unreported(error: Undecided, request_id: str) -> bool:
    """Logs that an outcome was not reported. Returns whether it is any use to report the next one."""
    if error.status in (403, 405):
        _log.warning("outcomes are not reported any more: %s", error)
        return False
    _log.warning("the outcome of request %s was not reported: %s", request_id, error)
    return True
