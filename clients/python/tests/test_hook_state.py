"""What the hook keeps of allowed calls, and the outcomes that come of it. No fault of it lets a tool run or denies."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stage0 import Client
from stage0._hook_state import CALL_TTL, MAX_LOOKED_AT, State, Unusable, call_name, default_dir, is_request_id
from stage0._misbehave import AUTHORITY, Behaviour, Exchange, Server

from .conftest import Dev
from .test_hook import ALLOWS, DENIES, EVENTS, Ran, answering, run, start

DECISION = "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55"
OTHER = "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e56"
ENDS = {"claude-code": "PostToolUse", "codex": "PostToolUse", "cursor": "postToolUse", "gemini": "AfterTool"}
HOSTILE = ["../x", "/etc/passwd", "x" * 100_000, "a\0b", "\ud800", ".", "né", "a\nb"]


def call(agent: str, call_id: str | None = "call-1", session: str | None = "s-1", **members: Any) -> dict[str, Any]:
    ids = {("tool_call_id" if agent == "gemini" else "tool_use_id"): call_id}
    return {**EVENTS[agent], "session_id": session, **ids, **members}


def ended(agent: str, call_id: str | None = "call-1", session: str | None = "s-1") -> dict[str, Any]:
    return call(agent, call_id, session, hook_event_name=ENDS[agent], tool_response={})


def allowing(agent: str, decision: str | None = DECISION) -> Behaviour:
    """Allows calls, and answers the end of one with nothing."""
    header = "" if decision is None else f"x-request-id: {decision}\r\n"

    def behave(exchange: Exchange) -> None:
        is_end = json.loads(exchange.body)["hook_event_name"] == ENDS[agent]
        exchange.json(200, {} if is_end else ALLOWS[agent], header)

    return behave


def hook(agent: str, url: str, event: dict[str, Any], state: Path, *arguments: str, **changed: Any) -> Ran:
    return run(agent, url, event, "--state-dir", str(state), *arguments, **changed)


def named(server: Server) -> list[str | None]:
    """The decisions that the requests name."""
    return [request.headers.get("stage0-decision") for request in server.requests]


def kept(state: Path) -> list[Path]:
    return [path for path in state.rglob("*") if not path.is_dir()]


def silent_end(agent: str, url: str, event: dict[str, Any], state: Path) -> None:
    ran = hook(agent, url, event, state)
    assert (ran.code, ran.out, ran.err) == (0, "", "")


@pytest.mark.parametrize("agent", ENDS)
def test_the_end_of_an_allowed_call_names_its_decision_once(agent: str, tmp_path: Path) -> None:
    state = tmp_path / "a" / "state"
    with Server(allowing(agent)) as server:
        assert hook(agent, server.url, call(agent), state).allows() == ALLOWS[agent]
        (file,) = kept(state)
        assert file.parent == state / agent and file.read_text() == DECISION
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        for directory in (tmp_path / "a", state, state / agent):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        silent_end(agent, server.url, ended(agent), state)
        assert kept(state) == []
        silent_end(agent, server.url, ended(agent), state)
    assert named(server) == [None, DECISION, None]


def test_a_call_without_an_id_leaves_no_file(tmp_path: Path) -> None:
    for agent in ENDS:
        for event in (EVENTS[agent], call(agent, None), call(agent, " "), {**call(agent), **dict.fromkeys(IDS, 7)}):
            with Server(allowing(agent)) as server:
                hook(agent, server.url, event, tmp_path / "state").allows()
                silent_end(agent, server.url, {**event, "hook_event_name": ENDS[agent]}, tmp_path / "state")
            assert named(server) == [None, None]
    assert not (tmp_path / "state").exists()


IDS = ("tool_use_id", "tool_call_id")


@pytest.mark.parametrize("event", ["PostToolUseFailure", "AfterTool", "afterShellExecution", "afterMCPExecution"])
def test_each_event_that_ends_a_call_names_its_decision(event: str, tmp_path: Path) -> None:
    with Server(answering({})) as server:
        State(tmp_path, "claude-code").keep(call_name("claude-code", call("claude-code")) or "", DECISION)
        ran = hook("claude-code", server.url, call("claude-code", hook_event_name=event), tmp_path)
        assert (ran.code, named(server), kept(tmp_path)) == (0, [DECISION], [])


@pytest.mark.parametrize("event", ["SessionStart", "SessionEnd"])
def test_events_of_a_session_take_nothing(event: str, tmp_path: Path) -> None:
    with Server(answering({})) as server:
        State(tmp_path, "claude-code").keep(call_name("claude-code", call("claude-code")) or "", DECISION)
        hook("claude-code", server.url, call("claude-code", hook_event_name=event), tmp_path)
        assert (named(server), len(kept(tmp_path))) == ([None], 1)


@pytest.mark.parametrize("call_id", HOSTILE, ids=range(len(HOSTILE)))
def test_an_id_of_any_form_names_a_file_in_its_folder_and_leads_to_its_own_decision(
    call_id: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    with Server(allowing("claude-code")) as server:
        hook("claude-code", server.url, call("claude-code", call_id), state).allows()
        (file,) = kept(tmp_path)
        assert file.parent == state / "claude-code" and len(file.name) == 64 and file.read_text() == DECISION
        silent_end("claude-code", server.url, ended("claude-code", "another"), state)
        silent_end("claude-code", server.url, ended("claude-code", call_id), state)
    assert named(server) == [None, None, DECISION]


def test_two_sessions_with_one_call_id_are_two_calls(tmp_path: Path) -> None:
    for session, decision in (("s-1", DECISION), ("s-2", OTHER), (None, DECISION)):
        with Server(allowing("codex", decision)) as server:
            hook("codex", server.url, call("codex", "c", session), tmp_path).allows()
    assert len(kept(tmp_path)) == 3
    with Server(allowing("codex")) as server:
        for session in ("s-2", "s-3", "s-1", "s-1"):
            silent_end("codex", server.url, ended("codex", "c", session), tmp_path)
    assert named(server) == [OTHER, None, DECISION, None]


def test_names_are_unambiguous_and_the_same_in_every_client() -> None:
    def name(session: Any, call_id: Any, agent: str = "claude-code") -> str | None:
        return call_name(agent, {"session_id": session, "tool_use_id": call_id})

    pairs = [("a", "bc"), ("ab", "c"), (None, "abc"), ("a,b", "c"), ("a", "b,c"), ('a","b', "c"), ("a", 'b","c')]
    assert len({name(*pair) for pair in pairs}) == len(pairs)
    assert name("", "c") == name(None, "c") == name(7, "c") != name("7", "c")
    # Known answers; the TypeScript client's tests have the same.
    assert name("s-1", "call-1") == "ded9f10da6de22f4c05dba90817cc9cd8f80ab09c0c8ab2492c61975a04b0214"
    assert name('é"\\', "\x7f\n\U0001f600\ud800") == "d1a84789a4a2e20296376cf5514ea4a1403ff89f08f8ab5e236217c5bccf36d5"
    cursor = {"conversation_id": "c-1", "session_id": "s-1", "tool_use_id": "call-1"}
    assert call_name("cursor", cursor) == name("c-1", "call-1")
    assert call_name("cursor", {**cursor, "conversation_id": ""}) == name("s-1", "call-1")
    assert call_name("gemini", cursor) is None


GARBAGE = ["", "x", "../../x", DECISION.upper(), DECISION[:-1], DECISION + "0", DECISION.replace("-7", "-4")]


@pytest.mark.parametrize("header", [None, *GARBAGE, f"{DECISION}\r\nx-request-id: {OTHER}"])
def test_an_allow_without_the_id_of_a_decision_is_an_allow_and_leaves_no_file(
    header: str | None, tmp_path: Path
) -> None:
    with Server(allowing("gemini", header)) as server:
        hook("gemini", server.url, call("gemini"), tmp_path).allows()
    assert kept(tmp_path) == []


@pytest.mark.parametrize("text", [*GARBAGE, f"{DECISION}\n", f"{DECISION}\r\nx-evil: 1", "é" * 40, "x" * 5_000_000])
def test_what_is_no_id_of_a_decision_is_not_sent(text: str, tmp_path: Path) -> None:
    assert is_request_id(DECISION) and not is_request_id(text)
    name = call_name("gemini", call("gemini")) or ""
    State(tmp_path, "gemini").keep(name, DECISION)
    (tmp_path / "gemini" / name).write_text(text)
    with Server(allowing("gemini")) as server:
        silent_end("gemini", server.url, ended("gemini"), tmp_path)
    assert (named(server), kept(tmp_path)) == ([None], [])


def refusing(status: int, answer: dict[str, Any]) -> Behaviour:
    return lambda exchange: exchange.json(status, answer, f"x-request-id: {DECISION}\r\n")


@pytest.mark.parametrize("agent", ENDS)
def test_a_call_that_is_not_allowed_leaves_no_file(agent: str, tmp_path: Path) -> None:
    refusals: list[tuple[int, dict[str, Any]]] = [(200, DENIES[agent]), (200, {}), (500, ALLOWS[agent])]
    for status, answer in refusals:
        with Server(refusing(status, answer)) as server:
            hook(agent, server.url, call(agent), tmp_path / "state").denies()
    hook(agent, "https://127.0.0.1:1", call(agent), tmp_path / "state").denies()
    assert not (tmp_path / "state").exists()


def test_an_allow_that_cannot_be_printed_leaves_no_file(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with Server(allowing("gemini")) as server:
        code, *_ = raw("gemini", server.url, call("gemini"), tmp_path / "state", stdout=write)
    os.close(write)
    assert code == 2 and not (tmp_path / "state").exists()


def raw(agent: str, url: str, event: dict[str, Any], state: Path, **changed: Any) -> tuple[int, Any, Any]:
    with start(agent, url, "--state-dir", str(state), **changed) as process:
        out, err = process.communicate(json.dumps(event).encode(), timeout=10)
    return process.returncode, out, err


def a_file(base: Path) -> Path:
    (base / "state").write_text("mine")
    return base / "state"


def below_a_file(base: Path) -> Path:
    return a_file(base) / "deeper"


def a_link(base: Path) -> Path:
    (base / "elsewhere").mkdir()
    (base / "state").symlink_to(base / "elsewhere")
    return base / "state"


def a_dangling_link(base: Path) -> Path:
    (base / "state").symlink_to(base / "elsewhere")
    return base / "state"


def a_link_as_folder(base: Path) -> Path:
    (base / "elsewhere").mkdir()
    (base / "state").mkdir()
    (base / "state" / "claude-code").symlink_to(base / "elsewhere")
    return base / "state"


def open_to_all(base: Path) -> Path:
    (base / "state" / "claude-code").mkdir(parents=True)
    (base / "state" / "claude-code").chmod(0o777)
    return base / "state"


def read_only(base: Path) -> Path:
    (base / "state" / "claude-code").mkdir(parents=True)
    (base / "state" / "claude-code").chmod(0o500)
    return base / "state"


def a_directory_in_its_place(base: Path) -> Path:
    name = call_name("claude-code", call("claude-code")) or ""
    (base / "state" / "claude-code" / name / "deeper").mkdir(parents=True)
    return base / "state"


def a_link_whose_name_is_not_text(base: Path) -> Path:
    path = base / os.fsdecode(b"state\xff")
    (base / "elsewhere").mkdir()
    path.symlink_to(base / "elsewhere")
    return path


UNUSABLE = [a_file, below_a_file, a_link, a_dangling_link, a_link_as_folder, open_to_all, a_directory_in_its_place]
if sys.platform == "linux":
    # Other systems refuse such a name.
    UNUSABLE.append(a_link_whose_name_is_not_text)
if hasattr(os, "geteuid") and os.geteuid() != 0:
    # Modes keep nothing from root.
    UNUSABLE.append(read_only)


@pytest.mark.parametrize("make", UNUSABLE)
@pytest.mark.parametrize("answer", ["ALLOW", "DENY"])
def test_a_state_that_cannot_be_kept_changes_no_decision(make: Any, answer: str, tmp_path: Path) -> None:
    state = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    behave = allowing("claude-code") if answer == "ALLOW" else answering(DENIES["claude-code"])
    with Server(behave) as server:
        ran = hook("claude-code", server.url, call("claude-code"), state)
        if answer == "ALLOW":
            assert (ran.code, json.loads(ran.out)) == (0, ALLOWS["claude-code"])
            assert ran.err.startswith("stage0: the outcome of this call will not be reported: ")
            assert ran.err.count("\n") == 1
        else:
            assert ran.denies() == "DENY: no"
        end = hook("claude-code", server.url, ended("claude-code"), state)
        assert (end.code, named(server)[1:]) == (0, [None])
    assert sorted(tmp_path.rglob("*")) == before


def test_the_same_state_without_the_fault_is_used(tmp_path: Path) -> None:
    (tmp_path / "claude-code").mkdir(mode=0o755)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "parent").symlink_to(tmp_path / "elsewhere")
    for state in (tmp_path, tmp_path / "parent" / "state"):
        with Server(allowing("claude-code")) as server:
            hook("claude-code", server.url, call("claude-code"), state).allows()
            silent_end("claude-code", server.url, ended("claude-code"), state)
        assert named(server) == [None, DECISION]


def of_test(server: Server, **more: str) -> dict[str, str]:
    return {"STAGE0_URL": server.url, "STAGE0_API_KEY": "a-key", "STAGE0_CA": str(AUTHORITY), **more}


def hanging(path: Path) -> Path:
    """A directory of modules with which nothing can be kept in time."""
    (path / "sitecustomize.py").write_text(
        "import os, time\nreal = os.urandom\nos.urandom = lambda n: time.sleep(60) if n == 8 else real(n)\n"
    )
    return path


@pytest.mark.parametrize("timeout", ["5", "1"])
def test_a_state_that_hangs_delays_no_answer_beyond_its_time_and_changes_none(timeout: str, tmp_path: Path) -> None:
    with Server(allowing("gemini")) as server:
        environment = of_test(server, PYTHONPATH=str(hanging(tmp_path)))
        started = time.monotonic()
        ran = hook("gemini", "", call("gemini"), tmp_path / "state", "--timeout", timeout, env=environment)
        assert ran.allows() == ALLOWS["gemini"]
        assert time.monotonic() - started < 3.0
    assert kept(tmp_path / "state") == []


def test_a_hook_that_is_stopped_after_its_answer_keeps_to_it(tmp_path: Path) -> None:
    with Server(allowing("gemini")) as server:
        environment = of_test(server, PYTHONPATH=str(hanging(tmp_path)))
        with start("gemini", "", "--state-dir", str(tmp_path / "state"), env=environment) as process:
            assert process.stdin and process.stdout and process.stderr
            process.stdin.write(json.dumps(call("gemini")).encode())
            process.stdin.close()
            assert json.loads(process.stdout.readline()) == ALLOWS["gemini"]
            time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert (process.wait(5), process.stdout.read(), process.stderr.read()) == (0, b"", b"")


def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path: Path) -> None:
    name = call_name("codex", call("codex")) or ""
    (tmp_path / "codex").mkdir()
    os.mkfifo(tmp_path / "codex" / name)
    with Server(allowing("codex")) as server:
        ran = hook("codex", server.url, ended("codex"), tmp_path)
        assert (ran.code, ran.out, named(server)) == (0, "", [None])
        assert "is not a file" in ran.err
        hook("codex", server.url, call("codex"), tmp_path).allows()
    assert (tmp_path / "codex" / name).read_text() == DECISION


def test_a_fault_of_the_state_itself_changes_no_decision(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import hashlib\nhashlib.sha256 = lambda *_: 1 / 0\n")
    with Server(allowing("claude-code")) as server:
        environment = of_test(server, PYTHONPATH=str(tmp_path))
        ran = hook("claude-code", "", call("claude-code"), tmp_path / "state", env=environment)
        assert (ran.code, json.loads(ran.out)) == (0, ALLOWS["claude-code"]) and "division" in ran.err
        end = hook("claude-code", "", ended("claude-code"), tmp_path / "state", env=environment)
        assert (end.code, end.out, named(server)) == (0, "", [None, None])


def test_the_directory_is_of_the_user_and_never_of_the_project(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    assert default_dir({"XDG_STATE_HOME": "/x", "HOME": "/h"}) == Path("/x/stage0/hook")
    assert default_dir({"XDG_STATE_HOME": "x", "HOME": "/h"}) == Path("/h/.local/state/stage0/hook")
    assert default_dir({"HOME": "."}) is default_dir({}) is None
    with Server(allowing("codex")) as server:
        home = of_test(server, HOME=str(tmp_path / "home"), XDG_STATE_HOME="relative")
        run("codex", "", call("codex"), env=home, cwd=project).allows()
        assert [file.parent for file in kept(tmp_path)] == [tmp_path / "home/.local/state/stage0/hook/codex"]
        without = run("codex", "", call("codex"), env=of_test(server, HOME="."), cwd=project)
        assert (without.code, json.loads(without.out)) == (0, ALLOWS["codex"]) and "--state-dir" in without.err
        relative = hook("codex", server.url, call("codex"), Path("state"), cwd=project)
        assert (relative.code, relative.out) == (2, "") and "must be an absolute path" in relative.err
    assert list(project.iterdir()) == []


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_old_calls_are_forgotten_and_other_files_are_not(tmp_path: Path) -> None:
    state = State(tmp_path, "codex")
    old, young, taken = ("a" * 64, "b" * 64, "c" * 64)
    for name in (old, young, taken):
        state.keep(name, DECISION)
    folder = tmp_path / "codex"
    others = [folder / "notes.txt", folder / ("d" * 64 + ".txt"), folder / ("e" * 63)]
    for other in others:
        other.write_text("mine")
    torn = folder / f"{old}.{'0' * 16}.new"
    torn.write_text("")
    (folder / ("f" * 64)).symlink_to(others[0])
    for path in (folder / old, folder / taken, torn, *others):
        age(path, CALL_TTL + 60)
    age(folder / young, CALL_TTL - 60)
    assert state.take(taken) is None and not (folder / taken).exists()
    state.keep("9" * 64, DECISION)
    assert {path.name for path in folder.iterdir()} == {young, "9" * 64, "f" * 64, *(path.name for path in others)}
    assert state.take(young) == DECISION


def test_forgetting_looks_at_a_bounded_number_of_files(tmp_path: Path) -> None:
    state = State(tmp_path, "codex")
    state.keep("a" * 64, DECISION)
    for number in range(3 * MAX_LOOKED_AT):
        path = tmp_path / "codex" / f"{number:064x}"
        path.write_text(DECISION)
        age(path, CALL_TTL + 60)
    state.keep("a" * 64, DECISION)
    assert len(kept(tmp_path)) >= 2 * MAX_LOOKED_AT
    for _ in range(4):
        state.keep("a" * 64, DECISION)
    assert [path.name for path in kept(tmp_path)] == ["a" * 64]


def test_a_later_call_with_the_same_id_replaces_the_earlier_one(tmp_path: Path) -> None:
    state = State(tmp_path, "codex")
    state.keep("a" * 64, DECISION)
    state.keep("a" * 64, OTHER)
    assert (state.take("a" * 64), state.take("a" * 64)) == (OTHER, None)


def test_without_a_directory_nothing_can_be_kept() -> None:
    with pytest.raises(Unusable, match="--state-dir"):
        State(None, "codex")


def of_dev(dev: Dev, agent: str, event: dict[str, Any], state: Path) -> Ran:
    command = [sys.executable, "-m", "stage0.hook", "--data-dir", str(dev.data_dir), "--state-dir", str(state), agent]
    done = subprocess.run(command, input=json.dumps(event).encode(), capture_output=True, timeout=20, check=False)
    return Ran(agent, done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("agent", "end", "status"),
    [
        ("claude-code", {"hook_event_name": "PostToolUse", "tool_response": {}}, "succeeded"),
        ("claude-code", {"hook_event_name": "PostToolUseFailure", "error": "no"}, "failed"),
        ("codex", {"hook_event_name": "PostToolUse", "tool_response": {}}, "unknown"),
    ],
)
def test_a_real_server_records_the_outcome_of_a_call_that_it_allowed(
    dev: Dev, agent: str, end: dict[str, Any], status: str, tmp_path: Path
) -> None:
    session = f"hook-{agent}-{status}"
    event = {**call(agent, "toolu-1", session), "cwd": "/work"}
    of_dev(dev, agent, event, tmp_path).allows()
    (file,) = kept(tmp_path)
    decision = file.read_text()
    listed = json.loads(dev.stage0("decisions", "list", "--run-id", session, "--json"))
    assert [item["request_id"] for item in listed["items"]] == [decision]
    ran = of_dev(dev, agent, {**event, **end}, tmp_path)
    assert (ran.code, ran.out, ran.err, kept(tmp_path)) == (0, "", "", [])
    with Client(data_dir=dev.data_dir) as client:
        outcome = client.decision(decision)["outcome"]
    assert (outcome["status"], outcome["tool_call_id"]) == (status, "toolu-1")
