"""Outcomes and hooks, with a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from stage0 import Client, Undecided

from .conftest import READING, Asking, Dev
from .test_hook import EVENTS, Ran


def test_an_outcome_is_reported_once_and_kept(dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=dev.data_dir)
    decision = asking.call(client.check, **READING)
    first = asking.call(client.report_outcome, decision.request_id, "unknown", tool_call_id="call-1")
    assert (first.status, first.late, first.tool_call_id, first.settled) == ("unknown", False, "call-1", None)
    resolved = asking.call(client.report_outcome, decision.request_id, "failed")
    assert resolved.status == asking.call(client.report_outcome, decision.request_id, "failed").status == "failed"
    with pytest.raises(Undecided) as caught:
        asking.call(client.report_outcome, decision.request_id, "succeeded")
    assert caught.value.status == 409
    assert asking.call(client.decision, decision.request_id)["outcome"]["status"] == "failed"


def test_a_cost_that_is_reported_settles_the_run(dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=dev.data_dir, run_id=f"cost-{asking.name}")
    decision = asking.call(client.check, **READING, context={"estimated_cost_usd": 0.5})
    reported = asking.call(client.report_outcome, decision.request_id, "succeeded", duration_ms=12, cost_usd=0.75)
    assert (reported.duration_ms, reported.cost_usd, reported.settled.actual_cost_usd) == (12, 0.75, 0.75)


@pytest.mark.parametrize(("error", "status"), [(None, "succeeded"), (ValueError, "failed"), (TimeoutError, "unknown")])
def test_a_guarded_function_reports_its_outcome(dev: Dev, asking: Asking, error: Any, status: str) -> None:
    def tool(path: str) -> str:
        if error is not None:
            raise error
        return path

    run_id = f"guard-{asking.name}-{status}"
    client = asking.client(data_dir=dev.data_dir, run_id=run_id)
    guarded = client.guarded(tool="reader", effects=["read"])(asking.tool(tool))
    if error is None:
        assert asking.call(guarded, "a") == "a"
    else:
        with pytest.raises(error):
            asking.call(guarded, "a")
    listed = dev.stage0("decisions", "list", "--run-id", run_id, "--json")
    (request_id,) = [item["request_id"] for item in json.loads(listed)["items"]]
    assert asking.call(client.decision, request_id)["outcome"]["status"] == status


def hook(dev: Dev, agent: str, event: dict[str, Any]) -> Ran:
    command = [sys.executable, "-m", "stage0.hook", "--data-dir", str(dev.data_dir), agent]
    event = {"session_id": "s-1", "conversation_id": "s-1", "cwd": "/work", **event}
    done = subprocess.run(command, input=json.dumps(event).encode(), capture_output=True, timeout=20, check=False)
    return Ran(agent, done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("agent", EVENTS)
def test_the_server_answers_the_hook_in_the_form_of_each_agent(dev: Dev, agent: str) -> None:
    assert hook(dev, agent, EVENTS[agent]).allows()
    harmful = json.loads(json.dumps(EVENTS[agent]).replace('"ls"', '"rm -rf /srv"'))
    assert "APPROVAL_REQUIRED" in hook(dev, agent, harmful).denies()
    assert "not know" in hook(dev, agent, {**EVENTS[agent], "hook_event_name": "Invented"}).denies("Invented")


def test_a_key_that_was_revoked_denies(dev: Dev) -> None:
    created = json.loads(dev.stage0("keys", "create", "--name", "t", "--scope", "check", "--json"))
    with Client(key=created["key"], data_dir=dev.data_dir, timeout=2.0) as client:
        assert client.check(**READING).verdict == "ALLOW"
        dev.stage0("keys", "revoke", created["id"])
        with pytest.raises(Undecided) as caught:
            for _ in range(50):
                client.check(**READING)
    assert caught.value.status == 401
