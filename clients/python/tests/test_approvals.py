"""Waiting for people, against a real server and a real approver."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from stage0 import Client, Deferred, Denied, Undecided
from stage0._faults import allows
from stage0._misbehave import Exchange, allow

from .conftest import DEPLOYING, READING, Asking, Dev, misbehaving


@pytest.fixture(scope="module")
def approver(verified_dev: Dev, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The key file of a person who may approve."""
    key = tmp_path_factory.mktemp("approver") / "me.key"
    invited = json.loads(verified_dev.stage0("members", "invite", "dana", "--json"))
    verified_dev.stage0("members", "accept", invited["invitation_code"], "--key-file", str(key))
    return str(key)


def later(dev: Dev, approver: str, client: Client, verb: str, deferred: Deferred) -> threading.Thread:
    """A person decides while the client is waiting."""
    assert deferred.approval is not None and deferred.approval.id is not None
    approval_id, digest = deferred.approval.id, deferred.approval.action_digest

    def decide() -> None:
        time.sleep(0.3)
        dev.stage0(
            "approvals", verb, approval_id, "--key-file", approver, "--reason", "a test", "--yes", "--digest", digest
        )

    thread = threading.Thread(target=decide)
    thread.start()
    return thread


def deferred_by(asking: Asking, client: Any, goal: str) -> Deferred:
    with pytest.raises(Deferred) as caught:
        asking.call(client.check, **{**DEPLOYING, "goal": goal})
    return caught.value


def test_an_approved_action_is_checked_again_and_allowed(verified_dev: Dev, approver: str, asking: Asking) -> None:
    client = asking.client(data_dir=verified_dev.data_dir)
    deferred = deferred_by(asking, client, f"Deploy, approved, {asking.name}")
    thread = later(verified_dev, approver, client, "approve", deferred)
    decision = asking.call(client.wait_for_approval, deferred, timeout=20)
    thread.join()
    assert decision.verdict == "ALLOW" and decision.request_id != deferred.request_id
    assert deferred.approval is not None
    assert (decision.approval.id, decision.approval.status) == (deferred.approval.id, "consumed")
    assert asking.call(client.approval, decision.approval.id)["used_by"] == decision.request_id
    with pytest.raises(Deferred):
        asking.call(client.wait_for_approval, deferred, timeout=1)


def test_a_denied_action_raises_denied(verified_dev: Dev, approver: str, asking: Asking) -> None:
    client = asking.client(data_dir=verified_dev.data_dir)
    deferred = deferred_by(asking, client, f"Deploy, denied, {asking.name}")
    thread = later(verified_dev, approver, client, "deny", deferred)
    with pytest.raises(Denied):
        asking.call(client.wait_for_approval, deferred, timeout=20)
    thread.join()


def test_a_guard_that_waits_runs_the_function_once_it_is_approved(verified_dev: Dev, approver: str) -> None:
    with Client(data_dir=verified_dev.data_dir) as client:
        ran: list[str] = []
        guard: dict[str, Any] = {
            "tool": "kubectl",
            "effects": ["deploy"],
            "constraints": ["approval required", "allowed_tools: kubectl"],
            "success_criteria": ["error rate below 1 %"],
            "context": {"environment": "production"},
            "report": False,
        }
        with pytest.raises(Deferred) as caught:
            client.guarded(**guard)(ran.append)("v7")
        assert ran == []
        thread = later(verified_dev, approver, client, "approve", caught.value)
        client.guarded(**guard, wait=20)(ran.append)("v7")
        thread.join()
        assert ran == ["v7"]
        with pytest.raises(Deferred):
            client.guarded(**guard)(ran.append)("v8")
        assert ran == ["v7"], "the approval was for other arguments"


def test_the_wait_ends_when_its_time_is_over(verified_dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=verified_dev.data_dir)
    deferred = deferred_by(asking, client, f"Deploy, forgotten, {asking.name}")
    started = time.monotonic()
    with pytest.raises(Deferred, match="still pending"):
        asking.call(client.wait_for_approval, deferred, timeout=1.2)
    assert 1.0 < time.monotonic() - started < 3.0


def test_without_an_approval_there_is_nothing_to_wait_for(dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=dev.data_dir, run_id=f"short-{asking.name}")
    once = {**READING, "constraints": ["max_iterations: 1"], "success_criteria": ["it is read"]}
    asking.call(client.check, **once)
    with pytest.raises(Deferred) as caught:
        asking.call(client.check, **once)
    assert caught.value.approval is None and caught.value.codes == ["LOOP_THRESHOLD_EXCEEDED"]
    with pytest.raises(Deferred, match="something else is missing"):
        asking.call(client.wait_for_approval, caught.value, timeout=1)


def approval_that_is(*states: str) -> Any:
    """Answers checks with a DEFER while the approval is not approved, and polls with the states in turn."""
    following = iter(states)
    pending = {"id": "apr_1", "status": "pending", "action_digest": "0" * 64, "quorum": 1, "groups": []}
    reference = {**pending, "expires_at": "2126-01-01T00:00:00Z", "url": "/v1/approvals/apr_1"}
    last = [""]

    def behave(exchange: Exchange) -> None:
        if exchange.path.startswith("/v1/approvals/"):
            last[0] = next(following)
            if last[0] == "503":
                exchange.json(503, {"message": "no", "error": "unavailable", "request_id": "r"})
            else:
                exchange.json(200, {"id": "apr_1", "status": last[0]})
        elif last[0] == "approved":
            allows(exchange)
        else:
            exchange.json(200, {**allow(), "decision": "DEFER", "verdict": "DEFER", "approval": reference})

    return behave


@pytest.mark.parametrize("state", ["expired", "cancelled", "reserved", "consumed", "denied", "unheard-of"])
def test_no_state_except_approved_allows(state: str, asking: Asking) -> None:
    with misbehaving(asking, approval_that_is("pending", state)) as (client, server):
        with pytest.raises(Deferred) as caught:
            asking.call(client.check, **READING)
        with pytest.raises((Deferred, Undecided)):
            asking.call(client.wait_for_approval, caught.value, timeout=5)
        assert [r.path for r in server.requests].count("/v1/approvals/apr_1?wait=4s") >= 1


def test_the_second_check_has_the_same_body_and_another_idempotency_key(asking: Asking) -> None:
    states = approval_that_is("pending", "503", "pending", "approved")
    with misbehaving(asking, states) as (client, server):
        with pytest.raises(Deferred) as caught:
            asking.call(client.check, **READING)
        assert asking.call(client.wait_for_approval, caught.value, timeout=10).verdict == "ALLOW"
        first, second = [request for request in server.requests if request.path == "/check"]
    assert first.body == second.body
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]
