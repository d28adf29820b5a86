"""What both clients share: the server they ask, and what every request of theirs says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import __version__, _flows
from ._find import Target, find_target
from .errors import Undecided

if TYPE_CHECKING:
    from typing_extensions import Self

H = TypeVar("H")
USER_AGENT = f"stage0-python/{__version__}"


class Settings(Generic[H]):
    """The server is looked for at the first call, so that importing a guarded function needs none."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        *,
        timeout: float = 5.0,
        data_dir: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        proxy: str | None = None,
        run_id: str | None = None,
        environment: str | None = None,
        agent: str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 < timeout <= 600:
            raise ValueError("`timeout` is above 0 and at most 600 seconds")
        self.timeout = timeout
        self.run_id = run_id
        self.environment = environment
        self.agent = agent
        self.context: Mapping[str, Any] = dict(context or {})
        self._given = (url, key, ca, data_dir, key_file)
        self._proxy = proxy
        self._target: Target | None = None
        self._may_report = True
        self._connections: dict[object, H] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(url={self._target.url if self._target else self._given[0]!r})"

    def _aimed(self, url: str, ca: os.PathLike[str], timeout: float) -> Self:
        """A client with the same options for another server, which does not get this one's key."""
        return type(self)(
            url,
            "selftest",
            ca,
            timeout=timeout,
            run_id=self.run_id,
            environment=self.environment,
            agent=self.agent,
            context=self.context,
        )

    def _find(self) -> Target:
        if self._target is None:
            self._target = find_target(*self._given)
        return self._target

    def _headers(self, sent: _flows.Send) -> dict[str, str]:
        headers = {"x-api-key": self._find().key.expose(), "user-agent": USER_AGENT, "accept-encoding": "identity"}
        if sent.body is not None:
            headers["content-type"] = "application/json"
        return {**headers, **sent.headers}

    def _body(
        self,
        goal: str,
        tools: Sequence[str] | None,
        side_effects: Sequence[str] | None,
        constraints: Sequence[str] | None,
        success_criteria: Sequence[str] | None,
        context: Mapping[str, Any] | None,
        environment: str | None,
        run_id: str | None,
        further: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Lists are sent as they are: the server names a text in the place of a list, and is not second-guessed."""
        if context is not None and not isinstance(context, Mapping):
            raise Undecided("`context` is a mapping")
        run = run_id if run_id is not None else self.run_id
        own = {"agent_id": self.agent, "run_id": run}
        members = {
            "goal": goal,
            "tools": _listed(tools),
            "side_effects": _listed(side_effects),
            "constraints": _listed(constraints),
            "success_criteria": _listed(success_criteria),
            "context": _flows.context_of([self.context, _present(own), context]),
            "environment": environment if environment is not None else self.environment,
            **further,
        }
        return _present(members)


def _listed(value: Sequence[str] | None) -> Any:
    return list(value) if isinstance(value, (tuple, set, frozenset)) else value


def _present(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def as_undecided(error: Exception) -> Undecided:
    """A fault of this client allows nothing either."""
    return Undecided(f"a fault of the client itself: {type(error).__name__}: {error}")
