"""The programs of the README run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Dev

README = (Path(__file__).parents[1] / "README.md").read_text()
PROGRAMS = {
    name: program
    for program in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for name in re.findall(r"\A# (\w+)\.py\n", program)
}
PRINTED = {
    "agent": r"the log of build\nDEFER: APPROVAL_REQUIRED: .*\n- approval apr_\w+ is pending until .*; a person",
    "prove": r"slow body +Undecided +0",
}


@pytest.mark.parametrize("name", PRINTED)
def test_a_program_of_the_readme_prints_what_it_says(name: str, dev: Dev, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(PROGRAMS[name])
    environment = {"STAGE0_DATA_DIR": str(dev.data_dir)}
    command = [sys.executable, f"{name}.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(PRINTED[name], done.stdout, re.DOTALL), done.stdout


def test_every_program_of_the_readme_is_run() -> None:
    assert set(PROGRAMS) == set(PRINTED)
