"""`stage0.guarded`: the decorator for programs that ask one server with one key."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from .aio import AsyncClient
from .client import Client
from .guard import Goal, Guard, Members, guard_coroutine, guard_function

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def _client() -> Client:
    return Client()


@functools.cache
def _async_client() -> AsyncClient:
    return AsyncClient()


def guarded(
    tool: str,
    effects: Sequence[str] = (),
    goal: Goal = None,
    context: Members = None,
    *,
    client: Client | AsyncClient | None = None,
    report: bool = True,
    wait: float | None = None,
    **further: Any,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Asks before each call of a function, sync or async, and does not call it without an ALLOW.

    Without `client`, the server and the key are found at the first call, as `Client()` finds them. `further` are the
    other arguments of `Client.guarded`.
    """
    guard = Guard(tool, effects, goal, context, **further)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if isinstance(client, AsyncClient) or (client is None and inspect.iscoroutinefunction(function)):
            asks: AsyncClient | None = client if isinstance(client, AsyncClient) else None
            return guard_coroutine(guard, function, lambda: asks or _async_client(), report, wait)
        sync: Client | None = client if isinstance(client, Client) else None
        return guard_function(guard, function, lambda: sync or _client(), report, wait)

    return decorate
