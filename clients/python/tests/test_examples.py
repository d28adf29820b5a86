"""Each example runs as it stands: its harmless tool runs, its payment does not, and without a server nothing does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Dev

EXAMPLES = Path(__file__).parents[1] / "examples"
# What each prints for the tool that is allowed, and what it would print if the other one ran.
PRINTED = {
    "plain_loop": ("read_invoice: invoice 8841", "PAYS"),
    "langgraph_agent": ("read_invoice: success: invoice 8841", "PAYS"),
    "openai_agents": ("tool: invoice 8841", "PAYS"),
    "pydantic_ai_agent": ("read_invoice: invoice 8841", "PAYS"),
    "claude_agent": ("Read: RUNS", "Bash: RUNS"),
}
# Those that need a library beside this one run with the marker.
MARKED = [pytest.param(name, marks=() if name == "plain_loop" else pytest.mark.examples, id=name) for name in PRINTED]


def run(name: str, environment: dict[str, str], directory: Path) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(
        command, env=environment, cwd=directory, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", MARKED)
def test_an_example_runs_its_harmless_tool_only(name: str, dev: Dev, tmp_path: Path) -> None:
    ran, harmful = PRINTED[name]
    printed = run(name, {"STAGE0_DATA_DIR": str(dev.data_dir)}, tmp_path)
    assert ran in printed and harmful not in printed
    assert "DEFER: APPROVAL_REQUIRED" in printed and "approval apr_" in printed


@pytest.mark.parametrize("name", MARKED)
def test_an_example_without_a_server_does_nothing(name: str, tmp_path: Path) -> None:
    ran, harmful = PRINTED[name]
    environment = {"STAGE0_URL": "https://127.0.0.1:1", "STAGE0_API_KEY": "a-key"}
    printed = run(name, environment, tmp_path)
    assert ran not in printed and harmful not in printed
    assert "no answer in 3 attempts within 5 s: cannot connect" in printed


def test_every_example_is_run() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == set(PRINTED)
