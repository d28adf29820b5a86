"""The asynchronous client runs on trio too."""

from __future__ import annotations

import time

import pytest
import trio

from stage0 import AsyncClient, Deferred, Undecided
from stage0._faults import FAULTS
from stage0._misbehave import AUTHORITY

from .conftest import DEPLOYING, READING, Dev


def test_decisions_are_those_of_asyncio(dev: Dev) -> None:
    async def ask() -> None:
        async with AsyncClient(data_dir=dev.data_dir) as client:
            assert (await client.check(**READING)).verdict == "ALLOW"
            with pytest.raises(Deferred):
                await client.check(**DEPLOYING)
            async with client.action(tool="reader", effects=["read"], report=False) as decision:
                assert decision.verdict == "ALLOW"

    trio.run(ask)


# httpx leaves a generator of its own to the garbage collector when trio cancels a request.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["slow body", "slow headers", "no answer"])
def test_the_deadline_is_total(name: str) -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url, "a-key", AUTHORITY, timeout=0.5) as client:
            with pytest.raises(Undecided):
                await client.check(**READING)

    with next(fault for fault in FAULTS if fault.name == name).start() as server:
        started = time.monotonic()
        trio.run(ask, server.url)
        assert time.monotonic() - started < 1.0
