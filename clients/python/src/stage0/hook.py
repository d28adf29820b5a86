"""`stage0-hook AGENT`: what a coding agent runs before each call of a tool, where `stage0` itself is not installed.

It sends the agent's event to the server as it came, and passes on an answer of that agent's form. INVARIANT: everything
else is a denial in that form: JSON on standard output, the reason on standard error, and exit code 2, which each of
these agents takes for "do not run it" even if the JSON is lost. It never ends with 1, which they take for "run it".

When an allowed call has ended, the agent's event about that is sent with the id of its decision, which `_hook_state`
has kept, and the server records the outcome. That is done after the answer, and no fault of it changes one.

The working directory is the project that the agent works on, so no file in it chooses server, authority or key.

One deadline holds for all of it. A thread ends the process when it is over, whatever the rest is doing. Only the
standard library is loaded, because this runs once for each call of a tool.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from . import __version__

if TYPE_CHECKING:
    import http.client

MAX_EVENT_BYTES: Final = 1_000_000
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
DEFAULT_TIMEOUT: Final = 5.0
# How long the process stays, once its answer is out, to keep what the call's end will need.
STATE_TIMEOUT: Final = 0.5

# They say how a call has ended.
_ENDS: Final = frozenset(
    {
        "PostToolUse", "PostToolUseFailure", "AfterTool",
        "postToolUse", "postToolUseFailure", "afterShellExecution", "afterMCPExecution",
    }
)  # fmt: skip
# They follow a call or a session, and ask nothing.
_REPORTS: Final = _ENDS | {"SessionStart", "SessionEnd", "sessionStart", "sessionEnd"}


class Refused(Exception):
    """The tool must not run; the text says why."""


@dataclass(frozen=True)
class Form:
    """How an agent is answered. `read` raises `Refused` for a denial, and for all that it does not understand."""

    first_event: str
    deny: Callable[[str, str], Mapping[str, Any]]
    read: Callable[[str, Mapping[str, Any]], Mapping[str, Any]]


def _specific(event: str, **members: str) -> Mapping[str, Any]:
    return {"hookSpecificOutput": {"hookEventName": event, **members}}


def _deny_specific(event: str, why: str) -> Mapping[str, Any]:
    return _specific(event, permissionDecision="deny", permissionDecisionReason=why)


def _read_specific(event: str, answer: Mapping[str, Any], may_grant: bool) -> Mapping[str, Any]:
    inner = answer.get("hookSpecificOutput")
    if not isinstance(inner, dict):
        raise Refused("the server's answer is none that this agent has")
    decision, why = inner.get("permissionDecision"), inner.get("permissionDecisionReason")
    if decision == "deny":
        raise Refused(_reason(why))
    if inner.get("hookEventName") != event:
        raise Refused("the server's answer is not one to this event")
    if decision is None and answer.get("decision") is None and answer.get("continue") is not False:
        return _specific(event)
    if decision == "allow" and may_grant:
        return _specific(event, permissionDecision="allow", permissionDecisionReason=_reason(why))
    raise Refused("the server's answer is none that this agent has")


def _read_claude(event: str, answer: Mapping[str, Any]) -> Mapping[str, Any]:
    return _read_specific(event, answer, may_grant=True)


def _read_codex(event: str, answer: Mapping[str, Any]) -> Mapping[str, Any]:
    # Codex does not know `allow`, and runs the tool after an answer that it does not know.
    return _read_specific(event, answer, may_grant=False)


def _deny_cursor(_: str, why: str) -> Mapping[str, Any]:
    return {"permission": "deny", "user_message": why, "agent_message": why}


def _read_cursor(_: str, answer: Mapping[str, Any]) -> Mapping[str, Any]:
    if answer.get("permission") == "allow":
        return {"permission": "allow"}
    if "permission" not in answer and answer.get("continue") is True:
        return {"continue": True}
    if answer.get("permission") == "deny":
        raise Refused(_reason(answer.get("agent_message")))
    raise Refused("the server's answer is none that this agent has")


def _deny_gemini(_: str, why: str) -> Mapping[str, Any]:
    return {"decision": "deny", "reason": why}


def _read_gemini(_: str, answer: Mapping[str, Any]) -> Mapping[str, Any]:
    if answer.get("decision") == "allow":
        return {"decision": "allow"}
    if answer.get("decision") == "deny":
        raise Refused(_reason(answer.get("reason")))
    raise Refused("the server's answer is none that this agent has")


def _reason(text: Any) -> str:
    return text if isinstance(text, str) and text.strip() else "Stage0 gave no reason"


FORMS: Final[Mapping[str, Form]] = {
    "claude-code": Form("PreToolUse", _deny_specific, _read_claude),
    "codex": Form("PreToolUse", _deny_specific, _read_codex),
    "cursor": Form("preToolUse", _deny_cursor, _read_cursor),
    "gemini": Form("BeforeTool", _deny_gemini, _read_gemini),
}


class Hook:
    """One run. `end` is called by the main thread, the watchdog or a signal; the first of them answers."""

    def __init__(self, agent: str, timeout: float) -> None:
        self.agent = agent
        self.form = FORMS[agent]
        self.timeout = timeout
        self.ends = time.monotonic() + timeout
        self.event = self.form.first_event
        self._answering = threading.Lock()
        # Set once an answer was written whole.
        self._code: int | None = None

    def run(self, given: argparse.Namespace) -> NoReturn:
        threading.Thread(target=self._watch, name="stage0-hook-watchdog", daemon=True).start()
        for name in ("SIGTERM", "SIGINT", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), lambda *_: self.deny("the hook was stopped"))
        try:
            event = _read_event()
            members = _members(event)
            self.event = _event_name(members) or self.event
            decision, trouble = self._take(members, given) if self.event in _ENDS else (None, "")
            answer, request_id = self._ask(event, given, decision)
            if self.event in _REPORTS:
                self.end({}, trouble, 0)
            allowed = self.form.read(self.event, answer)
            self.end(allowed, "", 0, lambda: self._keep(members, given, request_id))
        except Refused as refused:
            self.deny(str(refused))
        except BaseException as error:  # noqa: BLE001 - an exception would end with 1, and the tool would run
            self.deny(f"a fault of the hook itself: {type(error).__name__}")

    def deny(self, why: str) -> NoReturn:
        if self.event in _REPORTS:
            # Nothing waits for it: a denial would only disturb the agent.
            self.end({}, f"stage0: not reported: {why}\n", 0)
        self.end(self.form.deny(self.event, why), f"stage0: {why}\n", 2)

    def end(self, answer: Mapping[str, Any], text: str, code: int, then: Callable[[], None] | None = None) -> NoReturn:
        if not self._answering.acquire(timeout=0.5 if self._code is None else 0):
            # An answer that is out holds. One that was begun and does not get on must not count.
            os._exit(2 if self._code is None else self._code)
        try:
            _write(2, text)
            _write(1, json.dumps(answer, ensure_ascii=True) + "\n" if answer else "")
        except BaseException:  # noqa: BLE001 - the agent may not have read the answer
            os._exit(2)
        self._code = code
        if then is not None:
            # A thread that hangs ends with the process, and one that cannot start changes no answer.
            with contextlib.suppress(BaseException):
                thread = threading.Thread(target=then, name="stage0-hook-state", daemon=True)
                thread.start()
                thread.join(max(0.0, min(STATE_TIMEOUT, self.ends - time.monotonic())))
        os._exit(code)

    def _watch(self) -> None:
        time.sleep(max(0.0, self.ends - time.monotonic()))
        self.deny(f"no decision within {self.timeout:g} s: the tool must not run")

    def _take(self, members: Mapping[str, Any], given: argparse.Namespace) -> tuple[str | None, str]:
        """The decision that allowed the call which has ended, and what went wrong."""
        try:
            from ._hook_state import State, call_name

            call = call_name(self.agent, members)
            return (None if call is None else State(_state_dir(given), self.agent).take(call)), ""
        except Exception as error:  # noqa: BLE001 - the event is sent all the same
            return None, f"stage0: the outcome of this call is not reported: {error}\n"

    def _keep(self, members: Mapping[str, Any], given: argparse.Namespace, request_id: str | None) -> None:
        try:
            from ._hook_state import State, call_name, is_request_id

            call = call_name(self.agent, members)
            if call is not None and request_id is not None and is_request_id(request_id):
                State(_state_dir(given), self.agent).keep(call, request_id)
        except Exception as error:  # noqa: BLE001 - the call was allowed, whatever can be kept of it
            with contextlib.suppress(OSError):
                _write(2, f"stage0: the outcome of this call will not be reported: {error}\n")

    def _ask(
        self, event: bytes, given: argparse.Namespace, decision: str | None
    ) -> tuple[Mapping[str, Any], str | None]:
        from ._find import find_target
        from ._wire import Unreadable, read_object
        from .errors import NotConfigured

        try:
            # A data directory that the command line names is the whole choice: no variable adds to it or replaces it.
            environ: dict[str, str] | None = {} if given.data_dir else None
            target = find_target(
                given.url, None, given.ca, given.data_dir, given.key_file, environ=environ, is_guard=True
            )
            response, body = self._post(target, event, decision)
        except NotConfigured as error:
            raise Refused(f"not decided: {error}") from None
        except OSError as error:  # Of the network and of TLS, timeouts too.
            raise Refused(f"not decided: the server cannot be asked: {error}") from None
        if response.status != 200:
            raise Refused(f"not decided: the server answers {response.status}")
        try:
            return read_object(body), response.getheader("x-request-id")
        except Unreadable as error:
            raise Refused(f"not decided: the answer cannot be read: {error}") from None

    def _post(self, target: Any, event: bytes, decision: str | None) -> tuple[http.client.HTTPResponse, bytes]:
        import http.client
        from urllib.parse import urlsplit

        url = urlsplit(target.url)
        left = max(0.1, self.ends - time.monotonic())
        connection = http.client.HTTPSConnection(url.hostname or "", url.port, timeout=left, context=target.tls())
        headers = {
            "x-api-key": target.key.expose(),
            "content-type": "application/json",
            "user-agent": f"stage0-python-hook/{__version__}",
            **({"stage0-decision": decision} if decision is not None else {}),
        }
        try:
            connection.request("POST", f"{url.path}/v1/hooks/{self.agent}", event, headers)
            response = connection.getresponse()
            body = response.read(MAX_ANSWER_BYTES + 1)
        except http.client.HTTPException as error:
            raise Refused(f"not decided: the answer cannot be read: {type(error).__name__}") from None
        finally:
            connection.close()
        if len(body) > MAX_ANSWER_BYTES:
            raise Refused("not decided: the answer is too long")
        return response, body


def _read_event() -> bytes:
    event = b""
    while len(event) <= MAX_EVENT_BYTES:
        more = os.read(0, 65536)
        if not more:
            break
        event += more
    if len(event) > MAX_EVENT_BYTES:
        raise Refused(f"the event is longer than {MAX_EVENT_BYTES} bytes")
    if not event.strip():
        raise Refused("there is no event on standard input")
    return event


def _members(event: bytes) -> Mapping[str, Any]:
    """An event that cannot be read is sent all the same: the server says what is wrong with it."""
    try:
        members = json.loads(event)
    except (ValueError, RecursionError):
        return {}
    return members if isinstance(members, dict) else {}


def _event_name(members: Mapping[str, Any]) -> str | None:
    name = members.get("hook_event_name")
    return name if isinstance(name, str) and name else None


def _state_dir(given: argparse.Namespace) -> Path | None:
    from ._hook_state import default_dir

    return Path(given.state_dir) if given.state_dir is not None else default_dir(os.environ)


def _write(descriptor: int, text: str) -> None:
    # A path in it may have bytes that are no UTF-8.
    data = text.encode(errors="backslashreplace")
    while data:
        data = data[os.write(descriptor, data) :]


class _Parser(argparse.ArgumentParser):
    """Ends with 2 whatever it prints: an agent runs the tool after a 0 with a help text."""

    def print_help(self, file: Any = None) -> None:
        super().print_help(file or sys.stderr)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        super().exit(2, message)


def main() -> NoReturn:
    parser = _Parser(prog="stage0-hook", description="Asks Stage0 before a coding agent runs a tool.")
    parser.add_argument("agent", choices=sorted(FORMS))
    parser.add_argument("--url", help="server to ask (else STAGE0_URL)")
    parser.add_argument("--ca", help="absolute path of the authority's certificate (else STAGE0_CA, else the system's)")
    parser.add_argument("--key-file", help="absolute path of the key's file (else STAGE0_KEY_FILE, STAGE0_API_KEY)")
    parser.add_argument(
        "--data-dir",
        help="instead of the others: absolute path of a `stage0 dev`'s data directory (else STAGE0_DATA_DIR)",
    )
    parser.add_argument(
        "--state-dir",
        help="absolute path of the directory that keeps which calls were allowed, until they end"
        " (else stage0/hook in XDG_STATE_HOME or ~/.local/state)",
    )
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT, help="seconds for everything (default: 5)")
    # What cannot be parsed ends with 2 and a text on standard error, which is a denial.
    given = parser.parse_args()
    if not 0 < given.timeout <= 600:
        parser.error("--timeout is above 0 and at most 600")
    if given.state_dir is not None and not Path(given.state_dir).is_absolute():
        # It would be one of the project that the agent works on.
        parser.error("--state-dir must be an absolute path")
    # What it creates is its user's alone.
    os.umask(0o077)
    Hook(given.agent, given.timeout).run(given)


if __name__ == "__main__":
    try:
        main()
    except Exception:  # noqa: BLE001 - see the invariant above
        sys.stderr.write("stage0: the hook cannot start\n")
        sys.exit(2)
