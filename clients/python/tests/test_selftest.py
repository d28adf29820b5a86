"""The selftest passes code that is safe, and finds code that is not."""

from __future__ import annotations

import contextlib
import datetime
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from stage0 import AsyncClient, Client, NotAllowed, Probe, SelftestFailed, Undecided, selftest, selftest_async
from stage0._faults import FAULTS
from stage0._misbehave import AUTHORITY, CERTIFICATES

OPTIONS = Client("https://127.0.0.1:1", "a-key", agent="agent-7")


def guarded(client: Client, probe: Probe) -> None:
    client.guarded(tool="selftest", effects=["read"])(probe.acted)()


def test_a_guarded_function_passes_and_every_fault_is_listed() -> None:
    report = selftest(guarded, OPTIONS, timeout=0.2)
    assert [row.fault for row in report.rows] == ["ALLOW", *(fault.name for fault in FAULTS), "ALLOW"]
    assert {row.raised for row in report.rows} == {"", "Denied", "Deferred", "Undecided"}
    assert "slow body" in str(report)


def test_an_async_guarded_function_passes() -> None:
    async def act(client: AsyncClient, probe: Probe) -> None:
        async with client.action(tool="selftest"):
            probe.acted()

    options = AsyncClient("https://127.0.0.1:1", "a-key")
    report = anyio.run(lambda: selftest_async(act, options, timeout=0.2))
    assert not report.problems


def acts_always(client: Client, probe: Probe) -> None:
    with contextlib.suppress(NotAllowed):
        client.check("x")
    probe.acted()


def acts_when_undecided(client: Client, probe: Probe) -> None:
    try:
        client.check("x")
    except Undecided:
        pass
    except NotAllowed:
        return
    probe.acted()


def acts_never(client: Client, probe: Probe) -> None:
    client.check("x")


def asks_once(client: Client, probe: Probe, answers: list[Any] = []) -> None:  # noqa: B006 - it is a cache
    if not answers:
        answers.append(client.check("x"))
    if len(answers) > 1:
        raise RuntimeError
    answers.append(None)
    probe.acted()


@pytest.mark.parametrize(
    ("act", "problem"),
    [
        (acts_always, "DENY: it acted without an ALLOW"),
        (acts_when_undecided, "500: it acted without an ALLOW"),
        (acts_never, "it did not act on a correct ALLOW"),
        (asks_once, "DENY: it did not ask the server"),
    ],
)
def test_code_that_is_not_safe_is_found(act: Callable[[Client, Probe], None], problem: str) -> None:
    with pytest.raises(SelftestFailed) as caught:
        selftest(act, OPTIONS, timeout=0.2)
    assert problem in str(caught.value)


def test_the_selftest_runs_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "stage0", "selftest", "--timeout", "0.2"]
    environment = {"STAGE0_URL": "https://127.0.0.1:1", "STAGE0_API_KEY": "a-key"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "does not act without an ALLOW" in done.stdout


def test_the_certificates_last_and_only_the_selftest_trusts_them() -> None:
    def decoded(file: Path) -> dict[str, Any]:
        found: dict[str, Any] = ssl._ssl._test_decode_cert(str(file))  # type: ignore[attr-defined]
        return found

    for file in CERTIFICATES.iterdir():
        ends = datetime.datetime.strptime(decoded(file)["notAfter"], "%b %d %H:%M:%S %Y GMT")
        assert ends > datetime.datetime(2120, 1, 1), file
    assert decoded(CERTIFICATES / "server.pem")["subjectAltName"] == (("IP Address", "127.0.0.1"),)
    assert "PRIVATE KEY" not in AUTHORITY.read_text()
    source = Path(__file__).parents[1] / "src" / "stage0"
    users = [file.name for file in source.glob("*.py") if "AUTHORITY" in file.read_text()]
    assert sorted(users) == ["_misbehave.py", "_selftest.py"]
