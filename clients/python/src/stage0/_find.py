"""The choice of server, key and trusted authority, as the `stage0` command line makes it.

INVARIANT: a key that was found in a data directory is sent to that directory's own server only, never to a URL that an
argument or the environment names. `.stage0` in the working directory counts only for a client that names no server, and
never for a guard: a guard runs in the project that an agent works on, and that project must not choose who decides. A
file with a key that others can read is not used.
"""

from __future__ import annotations

import json
import os
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .errors import NotConfigured

DEFAULT_DATA_DIR = ".stage0"
_URL_VARIABLES = ("STAGE0_URL", "STAGE0_BASE_URL", "STAGE0_API_BASE")


class Secret:
    """A key that no `repr`, log or error shows."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Secret(…)"

    def expose(self) -> str:
        return self._text


@dataclass(frozen=True)
class Target:
    url: str
    key: Secret
    ca: Path | None

    def tls(self) -> ssl.SSLContext:
        """Verifies the certificate and the host name, always."""
        if self.ca is None:
            return ssl.create_default_context()
        try:
            return ssl.create_default_context(cafile=str(self.ca))
        except OSError as error:  # ssl.SSLError is one.
            raise NotConfigured(f"cannot use the CA file `{self.ca}`: {error.strerror or 'it is not PEM'}") from error


@dataclass(frozen=True)
class _Dev:
    file: Path
    url: str
    ca: Path | None
    key: str | None
    mode: int


def find_target(
    url: str | None = None,
    key: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    key_file: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    is_guard: bool = False,
) -> Target:
    environ = os.environ if environ is None else environ
    named = url or next((environ[name] for name in _URL_VARIABLES if environ.get(name)), None)
    directory = data_dir or environ.get("STAGE0_DATA_DIR") or None
    if is_guard:
        _refuse_relative("the data directory", directory)
    dev = _find_dev(directory, is_needed=named is None, is_guard=is_guard)
    chosen = https_url(named) if named is not None else dev.url if dev is not None else ""
    if dev is not None and dev.url != chosen:
        dev = None
    found_ca = ca or environ.get("STAGE0_CA") or (dev.ca if dev is not None else None)
    file = key_file or environ.get("STAGE0_KEY_FILE") or None
    if is_guard:
        _refuse_relative("the CA file", found_ca)
        _refuse_relative("the key's file", file)
    return Target(chosen, _find_key(chosen, key, file, environ, dev), Path(found_ca) if found_ca else None)


def _find_dev(directory: str | os.PathLike[str] | None, is_needed: bool, is_guard: bool) -> _Dev | None:
    """The `dev.json` that may count. One that is needed and not there is an error."""
    if directory is None and is_guard and is_needed:
        raise NotConfigured(
            "no server is named: give `--url`, `--ca` and `--key-file`, or set STAGE0_URL, STAGE0_CA and "
            "STAGE0_KEY_FILE (`.stage0` in the working directory does not count here)"
        )
    if directory is None and not is_needed:
        return None
    file = Path(directory or DEFAULT_DATA_DIR) / "dev.json"
    dev = _read_dev(file, is_needed)
    if dev is None and is_needed:
        raise NotConfigured(
            f"no server: start `stage0 dev`, or name one with `url=` or STAGE0_URL (there is no `{file}`)"
        )
    return dev


def _refuse_relative(what: str, path: str | os.PathLike[str] | None) -> None:
    if path and not Path(path).is_absolute():
        raise NotConfigured(f"{what} must be an absolute path, because a guard runs in many directories: `{path}`")


def _find_key(
    url: str, key: str | None, file: str | os.PathLike[str] | None, environ: Mapping[str, str], dev: _Dev | None
) -> Secret:
    if key:
        return _key(key, "`key=`")
    if file:
        return _read_key(Path(file))
    if environ.get("STAGE0_API_KEY"):
        return _key(environ["STAGE0_API_KEY"], "STAGE0_API_KEY")
    if dev is not None and dev.key:
        _refuse_exposed(dev.file, dev.mode)
        return _key(dev.key, f"`{dev.file}`")
    raise NotConfigured(f"no key for `{url}`: set STAGE0_API_KEY or STAGE0_KEY_FILE, or give `key=` or `key_file=`")


def https_url(text: str) -> str:
    """The URL without a slash at its end. Its faults are named without quoting it, since it may hold a password."""
    try:
        parts = urlsplit(text.strip())
        is_usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_usable = False
    if not is_usable:
        raise NotConfigured("the server's URL cannot be read: it is `https://host:port`")
    if parts.scheme != "https":
        raise NotConfigured(f"the server's URL must begin with https://, not with {parts.scheme}://")
    if parts.username is not None or parts.password is not None:
        raise NotConfigured("the server's URL must not hold a user or a password")
    if parts.query or parts.fragment:
        raise NotConfigured("the server's URL must end with its host, port or path")
    return parts._replace(path=parts.path.rstrip("/")).geturl()


def _read_dev(file: Path, is_needed: bool) -> _Dev | None:
    """A broken file stops only a client that needs it. Its text is never quoted: it holds keys."""
    try:
        text, mode = _read(file)
        members: Any = json.loads(text)
        url, ca, key = (members.get(name) for name in ("url", "ca_file", "api_key"))
        if not isinstance(url, str):
            raise TypeError
        return _Dev(file, https_url(url), Path(ca) if ca else None, key if isinstance(key, str) else None, mode)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, NotConfigured) as error:
        if not is_needed:
            return None
        why = error.strerror if isinstance(error, OSError) else "it was not written by `stage0 dev`"
        raise NotConfigured(f"cannot use `{file}`: {why}") from None


def _read_key(file: Path) -> Secret:
    try:
        text, mode = _read(file)
    except OSError as error:
        raise NotConfigured(f"cannot use `{file}`: {error.strerror}") from None
    except ValueError:
        raise NotConfigured(f"cannot use `{file}`: its content is not an API key") from None
    _refuse_exposed(file, mode)
    return _key(text, f"`{file}`")


def _read(file: Path) -> tuple[str, int]:
    with file.open("rb") as opened:
        mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
        return opened.read(1_000_000).decode(), mode


def _refuse_exposed(file: Path, mode: int) -> None:
    if os.name == "posix" and mode & 0o077:
        raise NotConfigured(f"cannot use `{file}`: others can read it (mode {mode:04o}); type `chmod 600 {file}`")


def _key(text: str, origin: str) -> Secret:
    text = text.strip()
    if not text or not all("!" <= character <= "~" for character in text):
        raise NotConfigured(f"the key in {origin} cannot be sent: it holds characters that no key has")
    return Secret(text)
