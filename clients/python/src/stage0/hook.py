"""`stage0-hook AGENT`: what a coding agent runs before each call of a tool, where `stage0` itself is not installed.

It sends the agent's event to the server as it came, and passes on an answer of that agent's form. INVARIANT: everything
else is a denial in that form: JSON on standard output, the reason on standard error, and exit code 2, which each of
these agents takes for "do not run it" even if the JSON is lost. It never ends with 1, which they take for "run it".

The working directory is the project that the agent works on, so no file in it chooses server, authority or key.

One deadline holds for all of it. A thread ends the process when it is over, whatever the rest is doing. Only the
standard library is loaded, because this runs once for each call of a tool.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from . import __version__

MAX_EVENT_BYTES: Final = 1_000_000
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
DEFAULT_TIMEOUT: Final = 5.0

# They follow a call or a session, and ask nothing.
_REPORTS: Final = frozenset(
    {
        "PostToolUse", "PostToolUseFailure", "SessionStart", "SessionEnd", "AfterTool",
        "postToolUse", "postToolUseFailure", "afterShellExecution", "afterMCPExecution", "sessionStart", "sessionEnd",
    }
)  # fmt: skip


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

    def run(self, given: argparse.Namespace) -> NoReturn:
        threading.Thread(target=self._watch, name="stage0-hook-watchdog", daemon=True).start()
        for name in ("SIGTERM", "SIGINT", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), lambda *_: self.deny("the hook was stopped"))
        try:
            event = _read_event()
            self.event = _event_name(event) or self.event
            answer = self._ask(event, given)
            if self.event in _REPORTS:
                self.end({}, "", 0)
            self.end(self.form.read(self.event, answer), "", 0)
        except Refused as refused:
            self.deny(str(refused))
        except BaseException as error:  # noqa: BLE001 - an exception would end with 1, and the tool would run
            self.deny(f"a fault of the hook itself: {type(error).__name__}")

    def deny(self, why: str) -> NoReturn:
        if self.event in _REPORTS:
            # Nothing waits for it: a denial would only disturb the agent.
            self.end({}, f"stage0: not reported: {why}\n", 0)
        self.end(self.form.deny(self.event, why), f"stage0: {why}\n", 2)

    def end(self, answer: Mapping[str, Any], text: str, code: int) -> NoReturn:
        if not self._answering.acquire(timeout=0.5):
            # Another thread has begun to answer and does not get on: its output must not count.
            os._exit(2)
        try:
            _write(2, text)
            _write(1, json.dumps(answer, ensure_ascii=True) + "\n" if answer else "")
        except BaseException:  # noqa: BLE001 - the agent may not have read the answer
            os._exit(2)
        os._exit(code)

    def _watch(self) -> None:
        time.sleep(max(0.0, self.ends - time.monotonic()))
        self.deny(f"no decision within {self.timeout:g} s: the tool must not run")

    def _ask(self, event: bytes, given: argparse.Namespace) -> Mapping[str, Any]:
        from ._find import find_target
        from ._wire import Unreadable, read_object
        from .errors import NotConfigured

        try:
            # A data directory that the command line names is the whole choice: no variable adds to it or replaces it.
            environ: dict[str, str] | None = {} if given.data_dir else None
            target = find_target(
                given.url, None, given.ca, given.data_dir, given.key_file, environ=environ, is_guard=True
            )
            status, body = self._post(target, event)
        except NotConfigured as error:
            raise Refused(f"not decided: {error}") from None
        except OSError as error:  # Of the network and of TLS, timeouts too.
            raise Refused(f"not decided: the server cannot be asked: {error}") from None
        if status != 200:
            raise Refused(f"not decided: the server answers {status}")
        try:
            return read_object(body)
        except Unreadable as error:
            raise Refused(f"not decided: the answer cannot be read: {error}") from None

    def _post(self, target: Any, event: bytes) -> tuple[int, bytes]:
        import http.client
        from urllib.parse import urlsplit

        url = urlsplit(target.url)
        left = max(0.1, self.ends - time.monotonic())
        connection = http.client.HTTPSConnection(url.hostname or "", url.port, timeout=left, context=target.tls())
        headers = {
            "x-api-key": target.key.expose(),
            "content-type": "application/json",
            "user-agent": f"stage0-python-hook/{__version__}",
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
        return response.status, body


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


def _event_name(event: bytes) -> str | None:
    """An event that cannot be read is sent all the same: the server says what is wrong with it."""
    try:
        members = json.loads(event)
    except (ValueError, RecursionError):
        return None
    name = members.get("hook_event_name") if isinstance(members, dict) else None
    return name if isinstance(name, str) and name else None


def _write(descriptor: int, text: str) -> None:
    data = text.encode()
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
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT, help="seconds for everything (default: 5)")
    # What cannot be parsed ends with 2 and a text on standard error, which is a denial.
    given = parser.parse_args()
    if not 0 < given.timeout <= 600:
        parser.error("--timeout is above 0 and at most 600")
    Hook(given.agent, given.timeout).run(given)


if __name__ == "__main__":
    try:
        main()
    except Exception:  # noqa: BLE001 - see the invariant above
        sys.stderr.write("stage0: the hook cannot start\n")
        sys.exit(2)
