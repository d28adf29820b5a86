"""A real `stage0 dev` for the tests, and both clients in one shape."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest

from stage0 import AsyncClient, Client, _flows
from stage0._faults import FAULTS, Fault
from stage0._misbehave import AUTHORITY, Behaviour, Server

ROOT = Path(__file__).parents[3]
READING: dict[str, Any] = {"goal": "Read the build log", "tools": ["reader"], "side_effects": ["read"]}
DEPLOYING: dict[str, Any] = {
    "goal": "Deploy the hotfix to production",
    "success_criteria": ["error rate below 1 %"],
    "tools": ["kubectl"],
    "side_effects": ["deploy"],
    "constraints": ["approval required"],
    "context": {"environment": "production"},
}


def binary() -> Path:
    """Without the server the tests fail; they do not skip."""
    path = Path(os.environ.get("STAGE0_BIN", ROOT / "target" / "debug" / "stage0"))
    assert path.is_file(), f"there is no {path}: build it, or set STAGE0_BIN"
    return path


def clean_environment() -> dict[str, str]:
    """Without this machine's settings for the server under test."""
    return {name: value for name, value in os.environ.items() if not name.startswith("STAGE0_")}


@dataclass(frozen=True)
class Dev:
    data_dir: Path
    process: subprocess.Popen[bytes]

    def members(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.data_dir / "dev.json").read_text())
        return found

    def stage0(self, *arguments: str) -> str:
        command = [str(binary()), *arguments, "--data-dir", str(self.data_dir)]
        environment = clean_environment()
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def started_dev(data_dir: Path, *arguments: str) -> Iterator[Dev]:
    command = [str(binary()), "dev", "--listen", "127.0.0.1:0", "--data-dir", str(data_dir), *arguments]
    with (data_dir.parent / f"{data_dir.name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=clean_environment())
        try:
            ends = time.monotonic() + 30
            while not (data_dir / "dev.json").exists():
                assert process.poll() is None and time.monotonic() < ends, Path(log.name).read_text()
                time.sleep(0.05)
            yield Dev(data_dir, process)
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with started_dev(tmp_path_factory.mktemp("dev") / "data") as dev:
        yield dev


@pytest.fixture(scope="session")
def verified_dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with started_dev(tmp_path_factory.mktemp("verified") / "data", "--approvals", "verified") as dev:
        yield dev


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the machine's environment or the working directory names must not decide a test."""
    for name in [name for name in os.environ if name.startswith("STAGE0_") and name != "STAGE0_BIN"]:
        monkeypatch.delenv(name)
    # Retries as in life, with shorter pauses.
    monkeypatch.setattr(_flows, "BACKOFF", (0.05, 0.1))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


class Sync:
    """Runs a test's calls on the synchronous client."""

    name = "sync"

    def __init__(self) -> None:
        self._clients: list[Client] = []

    def client(self, *args: Any, **options: Any) -> Client:
        self._clients.append(Client(*args, **options))
        return self._clients[-1]

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    def action(self, context: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
        return context

    def tool(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def close(self) -> None:
        for client in self._clients:
            client.close()


class Async:
    """Runs the same calls on the asynchronous client, in an event loop of another thread."""

    def __init__(self, backend: str) -> None:
        self.name = backend
        self._clients: list[AsyncClient] = []
        self._running = anyio.from_thread.start_blocking_portal(backend)
        self._portal = self._running.__enter__()

    def client(self, *args: Any, **options: Any) -> Any:
        self._clients.append(AsyncClient(*args, **options))
        return self._clients[-1]

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        async def run() -> Any:
            return await function(*args, **kwargs)

        return self._portal.call(run)

    def action(self, context: Any) -> Any:
        return self._portal.wrap_async_context_manager(context)

    def tool(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def tool(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        tool.__name__ = function.__name__
        tool.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return tool

    def close(self) -> None:
        for client in self._clients:
            self.call(client.aclose)
        self._running.__exit__(None, None, None)


Asking = Sync | Async


@pytest.fixture(params=["sync", "asyncio"])
def asking(request: pytest.FixtureRequest) -> Iterator[Asking]:
    asking: Asking = Sync() if request.param == "sync" else Async(request.param)
    yield asking
    asking.close()


def each_fault(test: Callable[[Fault], None], faults: Sequence[Fault] = FAULTS) -> None:
    """Tests all of them side by side, since most of the time is spent waiting, and names those that failed."""

    def run(fault: Fault) -> str | None:
        try:
            test(fault)
        except BaseException as error:  # noqa: BLE001 - pytest's own failures too
            return f"{fault.name}: {type(error).__name__}: {error}"
        return None

    with ThreadPoolExecutor(8) as pool:
        failed = [failure for failure in pool.map(run, faults) if failure]
    assert not failed, "\n".join(failed)


@contextmanager
def misbehaving(
    asking: Asking, behave: Behaviour, timeout: float = 1.0, options: dict[str, Any] | None = None, **server: Any
) -> Iterator[tuple[Any, Server]]:
    """A client of `asking`, and the server that it asks."""
    with Server(behave, **server) as started:
        yield asking.client(started.url, "a-key", AUTHORITY, timeout=timeout, **(options or {})), started
