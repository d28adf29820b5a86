"""What the hook keeps between its processes: which decision allowed a call that has not ended yet.

One file for each such call, which holds the decision's id. Its name is a hash of the session and the call's id, so no
text of a call is kept, and whatever stands in an event names a file of this folder and no other.

INVARIANT: nothing of it decides a call. All that can go wrong raises `Unusable` or `OSError`; then an outcome is not
reported, and that is all. Files are read and removed only if they have a name and an age of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

# A call whose end was not seen by then is forgotten.
CALL_TTL: Final = 24 * 3600.0
# The most files that one process looks at to forget old ones.
MAX_LOOKED_AT: Final = 100
_MAX_FILE_BYTES: Final = 64

# A UUID of version 7, as the server writes it.
_REQUEST_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_OWN_NAME: Final = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{16}\.new)?")


class Unusable(Exception):
    """Nothing can be kept there; the text says why."""


def is_request_id(text: str | None) -> bool:
    return text is not None and _REQUEST_ID.fullmatch(text) is not None


def call_name(agent: str, event: Mapping[str, Any]) -> str | None:
    """Stands for the event's call. None: the event has no id of a call."""
    call = _text(event, "tool_call_id" if agent == "gemini" else "tool_use_id")
    session = _text(event, "session_id")
    if agent == "cursor":
        session = _text(event, "conversation_id") or session
    if call is None:
        return None
    # As JSON, so that no two pairs are the same bytes; escaped, because halves of surrogate pairs have no UTF-8.
    named = json.dumps([session, call], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(named.encode("ascii")).hexdigest()


def _text(event: Mapping[str, Any], name: str) -> str | None:
    value = event.get(name)
    return value if isinstance(value, str) and value.strip() else None


def default_dir(environ: Mapping[str, str]) -> Path | None:
    """A relative path would be one of the project that the agent works on."""
    state, home = environ.get("XDG_STATE_HOME", ""), environ.get("HOME", "")
    if Path(state).is_absolute():
        return Path(state) / "stage0" / "hook"
    return Path(home) / ".local" / "state" / "stage0" / "hook" if Path(home).is_absolute() else None


class State:
    """The folder of one agent. Reading creates nothing."""

    def __init__(self, directory: Path | None, agent: str) -> None:
        if directory is None:
            raise Unusable("name a directory with --state-dir, or set HOME")
        self._base = directory
        self._folder = directory / agent

    def keep(self, call: str, request_id: str) -> None:
        """A later call with the same id replaces an earlier one."""
        self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._refuse_link(self._base)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._check()
        path = self._folder / call
        beside = self._folder / f"{call}.{os.urandom(8).hex()}.new"
        try:
            # A new file of our own: it follows no link, and waits for no reader.
            opened = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(opened, "wb") as file:
                file.write(request_id.encode("ascii"))
            beside.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        self._forget_old()

    def take(self, call: str) -> str | None:
        """The decision that allowed the call. Of several processes that ask, one gets it."""
        path = self._folder / call
        try:
            self._refuse_link(self._base)
            self._check()
            text, age = _read(path)
            path.unlink()
        except FileNotFoundError:
            return None
        return text if age <= CALL_TTL and is_request_id(text) else None

    def _refuse_link(self, path: Path) -> os.stat_result:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise Unusable(f"`{path}` is not a directory")
        return found

    def _check(self) -> None:
        found = self._refuse_link(self._folder)
        if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
            raise Unusable(f"another user may write to `{self._folder}`")

    def _forget_old(self) -> None:
        """What is not looked at now is looked at when the files before it have become old and were removed."""
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in islice(entries, MAX_LOOKED_AT):
                if _OWN_NAME.fullmatch(entry.name) and _is_old(entry.stat(follow_symlinks=False)):
                    # Another process may have removed it.
                    (self._folder / entry.name).unlink(missing_ok=True)


def _is_old(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > CALL_TTL


def _read(path: Path) -> tuple[str, float]:
    """The text, and its age in seconds. A pipe that stands there is not waited for."""
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(opened, "rb") as file:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            raise Unusable(f"`{path}` is not a file")
        return file.read(_MAX_FILE_BYTES).decode("ascii", "replace"), time.time() - found.st_mtime
