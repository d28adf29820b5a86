"""Both clients against a real server."""

from __future__ import annotations

import json
import logging
import uuid
from typing import Any

import pytest

from stage0 import Client, Deferred, Denied, NotAllowed, NotConfigured, Undecided

from .conftest import DEPLOYING, READING, Asking, Dev


def test_an_allow_returns_the_decision(dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=dev.data_dir, agent="agent-7", run_id="run-1", environment="development")
    decision = asking.call(client.check, **READING)
    assert (decision.verdict, decision.decision, decision.environment) == ("ALLOW", "GO", "development")
    assert uuid.UUID(decision.request_id) and decision.policy_version.startswith("baseline@")
    assert decision.raw["request_id"] == decision.request_id
    record = asking.call(client.decision, decision.request_id)
    assert (record["run_id"], record["verdict"]) == ("run-1", "ALLOW")


def test_a_deny_raises_denied_and_says_what_to_do(dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=dev.data_dir)
    rejected = {**DEPLOYING, "context": {"environment": "production", "approval_status": "rejected"}}
    with pytest.raises(Denied) as caught:
        asking.call(client.check, **rejected)
    assert caught.value.codes[0] == "APPROVAL_STATUS_INVALID"
    text = str(caught.value)
    assert "(next: stop)" in text
    assert str(caught.value.request_id) in text and str(caught.value.policy_version) in text


def test_a_defer_raises_deferred_with_questions_and_approval(dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=dev.data_dir)
    with pytest.raises(Deferred) as caught:
        asking.call(client.check, **DEPLOYING)
    assert caught.value.questions and caught.value.codes[0] == "APPROVAL_REQUIRED"
    assert caught.value.approval is not None and caught.value.approval.status == "pending"
    assert f"approval {caught.value.approval.id} is pending" in str(caught.value)
    assert f"`stage0 approvals approve {caught.value.approval.id} --key-file YOUR.key`" in str(caught.value)
    assert "It belongs in `context.approval_status`" in str(caught.value.questions)
    assert "It belongs in" not in str(caught.value), "the agent could state its own approval"
    assert "only 0 who may approve" in str(caught.value), "no approval of anybody else is possible here"
    assert "a person must give `context.approval_status`" in str(caught.value)


def test_a_wrong_request_is_undecided_and_every_wrong_member_is_named(dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=dev.data_dir)
    with pytest.raises(Undecided) as caught:
        asking.call(client.check, goal="", tools="reader")
    assert caught.value.status == 422 and caught.value.request_id
    assert "goal" in str(caught.value) and "tools" in str(caught.value)


def test_a_request_that_is_no_json_is_undecided(dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=dev.data_dir)
    for context in ({"amount": float("nan")}, {"session": object()}, "text"):
        with pytest.raises(Undecided):
            asking.call(client.check, **READING, context=context)


def test_a_key_that_the_server_does_not_know_is_undecided_and_stays_secret(dev: Dev, asking: Asking) -> None:
    key = dev.members()["api_key"][:-4] + "0000"
    client = asking.client(key=key, data_dir=dev.data_dir)
    with pytest.raises(Undecided) as caught:
        asking.call(client.check, **READING)
    assert caught.value.status == 401
    assert key not in f"{caught.value!r} {client!r} {client._find()!r} {vars(client)['_target']!r}"


def test_no_key_appears_in_logs(dev: Dev, asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = asking.client(data_dir=dev.data_dir)
    asking.call(client.check, **READING)
    assert dev.members()["api_key"] not in caplog.text


def test_without_a_server_the_error_names_stage0_dev(asking: Asking) -> None:
    with pytest.raises(NotConfigured, match="stage0 dev"):
        asking.call(asking.client().check, **READING)
    assert issubclass(NotConfigured, Undecided) and issubclass(Undecided, NotAllowed)


def test_the_same_idempotency_key_brings_the_same_decision(dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=dev.data_dir)
    once = str(uuid.uuid4())
    first = asking.call(client.check, **READING, idempotency_key=once)
    again = asking.call(client.check, **READING, idempotency_key=once)
    assert (first.cached, again.cached, again.request_id) == (False, True, first.request_id)
    assert asking.call(client.check, **READING).request_id != first.request_id


def test_a_run_is_settled(dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=dev.data_dir, run_id=f"report/{uuid.uuid4()}")
    decision = asking.call(client.check, **READING, context={"estimated_cost_usd": 0.6})
    settled = asking.call(client.settle, client.run_id, decision.request_id, 0.7)
    assert (settled.run_id, settled.actual_cost_usd, settled.cost.spent_usd) == (client.run_id, 0.7, 0.7)
    with pytest.raises(Undecided) as caught:
        asking.call(client.settle, client.run_id, decision.request_id, 0.7)
    assert caught.value.status == 409


def test_further_members_are_sent(dev: Dev, asking: Asking) -> None:
    client = asking.client(data_dir=dev.data_dir)
    decision = asking.call(client.check, **READING, debug_store_input=True)
    assert decision.meta.input_stored is True
    assert asking.call(client.decision, decision.request_id)["input"]["goal"] == READING["goal"]


def test_a_client_survives_a_new_event_loop_and_a_restart_of_the_server(dev: Dev) -> None:
    import anyio

    from stage0 import AsyncClient

    client = AsyncClient(data_dir=dev.data_dir)

    async def ask() -> Any:
        decision = await client.check(**READING)
        await client.aclose()
        return decision

    assert anyio.run(ask).request_id != anyio.run(ask).request_id


def test_a_forked_process_uses_a_connection_of_its_own(dev: Dev) -> None:
    import os

    with Client(data_dir=dev.data_dir) as client:
        first = client.check(**READING).request_id
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, client.check(**READING).request_id.encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as answer:
            of_child = answer.read()
        os.waitpid(child, 0)
        assert len({first, of_child, client.check(**READING).request_id}) == 3 and uuid.UUID(of_child)


def test_the_answer_is_kept_as_it_came(dev: Dev) -> None:
    with Client(data_dir=dev.data_dir) as client:
        decision = client.check(**READING)
    assert json.dumps(decision.raw)
    assert decision.raw["meta"]["audit"] == decision.meta.audit == "required"
