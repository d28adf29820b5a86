"""The hook as a process: whatever goes wrong, the agent's tool does not run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stage0._faults import FAULTS, Fault
from stage0._misbehave import AUTHORITY, Behaviour, Server
from stage0.hook import FORMS, Refused

from .conftest import each_fault

SPECIFIC = {"hookEventName": "PreToolUse"}
EVENTS: dict[str, dict[str, Any]] = {
    "claude-code": {"hook_event_name": "PreToolUse", "tool_name": "Bash", "tool_input": {"command": "ls"}},
    "codex": {"hook_event_name": "PreToolUse", "tool_name": "shell", "tool_input": {"command": "ls"}},
    "cursor": {"hook_event_name": "beforeShellExecution", "command": "ls"},
    "gemini": {"hook_event_name": "BeforeTool", "tool_name": "run_shell_command", "tool_input": {"command": "ls"}},
}
ALLOWS: dict[str, dict[str, Any]] = {
    "claude-code": {"hookSpecificOutput": SPECIFIC},
    "codex": {"hookSpecificOutput": SPECIFIC},
    "cursor": {"continue": True},
    "gemini": {"decision": "allow"},
}
DENIES: dict[str, dict[str, Any]] = {
    "claude-code": {
        "hookSpecificOutput": {**SPECIFIC, "permissionDecision": "deny", "permissionDecisionReason": "DENY: no"}
    },
    "cursor": {"permission": "deny", "user_message": "DENY: no", "agent_message": "DENY: no"},
    "gemini": {"decision": "deny", "reason": "DENY: no"},
}
DENIES["codex"] = DENIES["claude-code"]
AGENTS = list(FORMS)


class Ran:
    def __init__(self, agent: str, code: int, out: bytes, err: bytes) -> None:
        self.agent, self.code, self.out, self.err = agent, code, out.decode(), err.decode()

    def denies(self, event: str = "PreToolUse") -> str:
        """The reason. A denial is one by exit code, by body and by text."""
        assert self.code == 2, (self.code, self.out, self.err)
        reason = self.err.removeprefix("stage0: ").removesuffix("\n")
        expected = json.dumps(DENIES[self.agent]).replace("PreToolUse", event)
        assert json.loads(self.out) == json.loads(expected.replace('"DENY: no"', json.dumps(reason)))
        assert reason and "a-key" not in self.out + self.err
        return reason

    def allows(self) -> Any:
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)


def start(agent: str, url: str, *arguments: str, **changed: Any) -> subprocess.Popen[bytes]:
    environment = {"STAGE0_URL": url, "STAGE0_API_KEY": "a-key", "STAGE0_CA": str(AUTHORITY)}
    command = [sys.executable, "-m", "stage0.hook", agent, "--timeout", "1", *arguments]
    options: dict[str, Any] = {"stdin": -1, "stdout": -1, "stderr": -1, "env": environment, **changed}
    return subprocess.Popen(command, **options)


def run(agent: str, url: str, event: bytes | Mapping[str, Any] | None = None, *arguments: str, **changed: Any) -> Ran:
    data = event if isinstance(event, bytes) else json.dumps(event or EVENTS[agent]).encode()
    with start(agent, url, *arguments, **changed) as process:
        out, err = process.communicate(data, timeout=10)
    return Ran(agent, process.returncode, out, err)


def answering(answer: Mapping[str, Any]) -> Behaviour:
    return lambda exchange: exchange.json(200, answer)


@pytest.mark.parametrize("agent", AGENTS)
def test_an_allow_is_passed_on_and_the_event_arrives_as_it_came(agent: str) -> None:
    event = b' {"hook_event_name" : ' + json.dumps(EVENTS[agent]["hook_event_name"]).encode() + b', "x": 1.50 }\n'
    with Server(answering(ALLOWS[agent])) as server:
        assert run(agent, server.url, event).allows() == ALLOWS[agent]
    (request,) = server.requests
    assert (request.path, request.body, request.headers["x-api-key"]) == (f"/v1/hooks/{agent}", event, "a-key")


@pytest.mark.parametrize("agent", AGENTS)
def test_a_deny_is_passed_on(agent: str) -> None:
    with Server(answering(DENIES[agent])) as server:
        assert run(agent, server.url).denies() == "DENY: no"


def test_every_fault_denies() -> None:
    def test(fault: Fault) -> None:
        with fault.start() as server:
            started = time.monotonic()
            run("claude-code", server.url).denies()
            assert time.monotonic() - started < 3.0

    each_fault(test)


@pytest.mark.parametrize("agent", [agent for agent in AGENTS if agent != "claude-code"])
def test_faults_deny_in_the_form_of_each_agent(agent: str) -> None:
    def test(fault: Fault) -> None:
        with fault.start() as server:
            run(agent, server.url).denies()

    names = ("DENY", "503, no decision in time", "garbage", "empty body", "nothing listens")
    each_fault(test, [fault for fault in FAULTS if fault.name in names])


def specific(**members: Any) -> dict[str, Any]:
    return {"hookSpecificOutput": {**SPECIFIC, **members}}


WRONG: list[tuple[str, dict[str, Any]]] = [
    *((agent, {}) for agent in AGENTS),
    *((agent, {"permission": "ask", "decision": "ask"}) for agent in AGENTS),
    ("claude-code", {"hookSpecificOutput": {"hookEventName": "PostToolUse"}}),
    ("claude-code", {"hookSpecificOutput": "allow"}),
    ("claude-code", specific(permissionDecision="ask")),
    ("claude-code", specific(permissionDecision="defer")),
    ("claude-code", {"decision": "block", **specific()}),
    ("claude-code", {"continue": False, **specific()}),
    ("codex", specific(permissionDecision="allow", permissionDecisionReason="x")),
    ("codex", specific(permissionDecision="ask")),
    ("cursor", {"continue": False}),
    ("cursor", {"continue": True, "permission": "ask"}),
    ("gemini", {"decision": "approve"}),
    ("gemini", {"continue": True}),
]


@pytest.mark.parametrize(("agent", "answer"), WRONG)
def test_an_answer_that_is_none_of_the_agents_own_is_refused(agent: str, answer: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        FORMS[agent].read(EVENTS[agent]["hook_event_name"], answer)
    assert FORMS[agent].read(EVENTS[agent]["hook_event_name"], ALLOWS[agent]) == ALLOWS[agent]


@pytest.mark.parametrize("agent", AGENTS)
def test_an_empty_answer_denies(agent: str) -> None:
    with Server(answering({})) as server:
        run(agent, server.url).denies()


@pytest.mark.parametrize("status", [201, 403, 500])
def test_an_allow_with_another_status_denies(status: int) -> None:
    with Server(lambda exchange: exchange.json(status, ALLOWS["gemini"])) as server:
        assert f"answers {status}" in run("gemini", server.url).denies()


def test_a_fault_of_the_hook_itself_denies(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import socket\nsocket.create_connection = lambda *_: 1 / 0\n")
    environment = {"STAGE0_URL": "https://127.0.0.1:1", "STAGE0_API_KEY": "a-key", "PYTHONPATH": str(tmp_path)}
    assert "fault of the hook itself" in run("claude-code", "", env=environment).denies()


def test_what_the_hook_does_not_understand_is_not_passed_on() -> None:
    with Server(answering(specific(updatedInput={"command": "rm"}))) as server:
        assert run("claude-code", server.url).allows() == ALLOWS["claude-code"]
    granted = specific(permissionDecision="allow", permissionDecisionReason="allowed by Stage0")
    with Server(answering(granted)) as server:
        assert run("claude-code", server.url).allows() == granted


@pytest.mark.parametrize("event", [b"", b"  \n", b"{}" + b" " * 999_999], ids=["empty", "blank", "too long"])
@pytest.mark.parametrize("agent", ["claude-code", "gemini"])
def test_an_event_that_is_none_denies_without_asking(agent: str, event: bytes) -> None:
    with Server(answering(ALLOWS[agent])) as server:
        run(agent, server.url, event).denies()
        assert server.requests == []


def test_an_event_of_a_million_bytes_is_sent() -> None:
    event = json.dumps({**EVENTS["gemini"], "x": ""}).encode()
    event = event[:-2] + b"x" * (1_000_000 - len(event)) + event[-2:]
    with Server(answering(ALLOWS["gemini"])) as server:
        run("gemini", server.url, event).allows()
        assert len(server.requests[0].body) == 1_000_000


@pytest.mark.parametrize("event", [b"{", b"[]", b"\xff\xfe", b"null", b'{"hook_event_name": 1}', b"[" * 100_000])
def test_an_event_that_cannot_be_read_is_left_to_the_server_and_denied_without_it(event: bytes) -> None:
    with Server(answering(DENIES["claude-code"])) as server:
        assert run("claude-code", server.url, event).denies() == "DENY: no"
    run("claude-code", server.url, event).denies()


@pytest.mark.parametrize(("agent", "name"), [("claude-code", "PostToolUse"), ("cursor", "afterShellExecution")])
def test_a_report_asks_nothing_and_is_never_denied(agent: str, name: str) -> None:
    with Server(answering({})) as server:
        ran = run(agent, server.url, {"hook_event_name": name})
        assert (ran.code, ran.out, ran.err, len(server.requests)) == (0, "", "", 1)
    ran = run(agent, server.url, {"hook_event_name": name})
    assert (ran.code, ran.out) == (0, "") and "not reported" in ran.err


def test_an_event_that_is_not_known_is_denied_without_the_server() -> None:
    ran = run("gemini", "https://127.0.0.1:1", {"hook_event_name": "BeforeNextInvention"})
    assert "cannot be asked" in ran.denies()


@pytest.mark.parametrize("agent", ["codex", "cursor"])
def test_an_input_that_never_ends_is_denied_at_the_deadline(agent: str) -> None:
    started = time.monotonic()
    with start(agent, "https://127.0.0.1:1") as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"{")
        process.stdin.flush()
        code = process.wait(5)
        ran = Ran(agent, code, process.stdout.read(), process.stderr.read())
    assert "no decision within 1 s" in ran.denies()
    assert 0.9 < time.monotonic() - started < 2.5


def test_a_name_service_that_hangs_is_denied_at_the_deadline(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, time\nsocket.getaddrinfo = lambda *a, **k: time.sleep(60)\n"
    )
    environment = {"STAGE0_URL": "https://slow.example", "STAGE0_API_KEY": "a-key", "PYTHONPATH": str(tmp_path)}
    assert "no decision within" in run("codex", "", env=environment).denies()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_hook_that_is_stopped_denies(number: signal.Signals) -> None:
    with start("claude-code", "https://127.0.0.1:1") as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"{")
        process.stdin.flush()
        time.sleep(0.4)
        process.send_signal(number)
        code = process.wait(5)
        ran = Ran("claude-code", code, process.stdout.read(), process.stderr.read())
    assert ran.denies() == "the hook was stopped"


def test_an_allow_that_cannot_be_printed_denies() -> None:
    with Server(answering(ALLOWS["gemini"])) as server:
        read, write = os.pipe()
        os.close(read)
        with start("gemini", server.url, stdout=write) as process:
            process.communicate(json.dumps(EVENTS["gemini"]).encode(), timeout=10)
        os.close(write)
        assert process.returncode == 2


def test_without_a_server_or_with_an_exposed_key_the_hook_denies_and_says_why(tmp_path: Path) -> None:
    assert "set STAGE0_URL, STAGE0_CA and STAGE0_KEY_FILE" in run("claude-code", "", env={}, cwd=tmp_path).denies()
    dev = tmp_path / ".stage0" / "dev.json"
    dev.parent.mkdir()
    dev.write_text(json.dumps({"url": "https://127.0.0.1:1", "api_key": "a-key", "ca_file": str(AUTHORITY)}))
    dev.chmod(0o644)
    environment = {"STAGE0_DATA_DIR": str(dev.parent)}
    assert "chmod 600" in run("claude-code", "", env=environment, cwd=tmp_path).denies()
    dev.chmod(0o600)
    assert "cannot be asked" in run("claude-code", "", env=environment, cwd=tmp_path).denies()


def project_of(server: Server, path: Path, mode: int) -> Path:
    """A directory that an agent works in, with a data directory that names this server."""
    (path / ".stage0").mkdir(parents=True)
    dev = path / ".stage0" / "dev.json"
    dev.write_text(json.dumps({"url": server.url, "ca_file": str(AUTHORITY), "api_key": "a-key"}))
    dev.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_dev_json_of_the_working_directory_chooses_neither_server_nor_authority_nor_key(
    tmp_path: Path, mode: int
) -> None:
    key_file = tmp_path / "agent.key"
    key_file.write_text("a-key")
    key_file.chmod(0o600)
    with Server(answering(ALLOWS["gemini"])) as server:
        changed: dict[str, Any] = {"env": {}, "cwd": project_of(server, tmp_path / "project", mode)}
        url, ca, key = ("--url", server.url), ("--ca", str(AUTHORITY)), ("--key-file", str(key_file))
        assert "no server is named" in run("gemini", "", None, **changed).denies()
        assert "certificate verify failed" in run("gemini", "", None, *url, *key, **changed).denies()
        environment = {"STAGE0_URL": server.url, "STAGE0_API_KEY": "a-key"}
        of_variables = run("gemini", "", None, **{**changed, "env": environment})
        assert "certificate verify failed" in of_variables.denies()
        assert "no key for" in run("gemini", "", None, *url, *ca, **changed).denies()
        assert server.requests == []
        run("gemini", "", None, *url, *ca, *key, **changed).allows()


def test_a_data_directory_that_is_named_counts_and_no_variable_leads_away_from_it(tmp_path: Path) -> None:
    with Server(answering(ALLOWS["gemini"])) as server, Server(answering(ALLOWS["gemini"])) as other:
        named = str(project_of(server, tmp_path / "named", 0o600) / ".stage0")
        cwd = project_of(other, tmp_path / "project", 0o600)
        run("gemini", "", None, env={"STAGE0_DATA_DIR": named}, cwd=cwd).allows()
        away = {"STAGE0_URL": other.url, "STAGE0_API_KEY": "x", "STAGE0_CA": "/no", "STAGE0_DATA_DIR": "/no"}
        run("gemini", "", None, "--data-dir", named, env=away, cwd=cwd).allows()
        assert (len(server.requests), len(other.requests)) == (2, 0)
        relative = run("gemini", "", None, "--data-dir", ".stage0", env={}, cwd=cwd)
        assert "must be an absolute path" in relative.denies()


@pytest.mark.parametrize("arguments", [["--help"], ["claude-code", "--help"], ["-h"]])
def test_help_is_no_allow(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stage0.hook", *arguments], capture_output=True, timeout=10, check=False
    )
    assert (done.returncode, done.stdout) == (2, b"") and b"--key-file" in done.stderr


def test_a_working_directory_that_was_deleted_denies(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f'cd "{gone}" && rmdir "{gone}" && exec "$0" -m stage0.hook claude-code'
    done = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable], input=b"{}", capture_output=True, env={}, timeout=10, check=False
    )
    Ran("claude-code", done.returncode, done.stdout, done.stderr).denies()


@pytest.mark.parametrize("arguments", [[], ["opencode"], ["codex", "--timeout", "0"], ["codex", "--timeout", "x"]])
def test_wrong_arguments_end_with_2_and_a_text(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "stage0.hook", *arguments]
    done = subprocess.run(command, input=b"{}", capture_output=True, timeout=10, check=False)
    assert done.returncode == 2 and b"stage0-hook" in done.stderr


def test_the_hook_loads_no_library_except_pythons_own() -> None:
    code = "import stage0.hook, stage0._find, stage0._wire, sys; print([m for m in sys.modules if 'http' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_console_script_is_the_hook() -> None:
    script = Path(sys.executable).parent / "stage0-hook"
    done = subprocess.run([script, "claude-code"], input=b"", capture_output=True, timeout=10, check=False)
    Ran("claude-code", done.returncode, done.stdout, done.stderr).denies()
