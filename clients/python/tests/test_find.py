"""Which server is asked with which key; a key never reaches a server that it was not found for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stage0 import NotConfigured
from stage0._find import find_target

KEY = "s0_key-of-dev"


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def dev_dir(tmp_path: Path, mode: int = 0o600, **changed: Any) -> Path:
    members = {"url": "https://localhost:8443", "ca_file": "/ca.pem", "api_key": KEY, **changed}
    written(tmp_path / "dev.json", json.dumps(members), mode)
    return tmp_path


def test_a_dev_server_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".stage0").mkdir()
    dev_dir(tmp_path / ".stage0")
    monkeypatch.chdir(tmp_path)
    target = find_target()
    assert (target.url, target.key.expose(), target.ca) == ("https://localhost:8443", KEY, Path("/ca.pem"))


def test_a_client_that_names_its_server_takes_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".stage0").mkdir()
    dev_dir(tmp_path / ".stage0")
    monkeypatch.chdir(tmp_path)
    url = "https://localhost:8443"
    for given in ({"url": url, "environ": {}}, {"environ": {"STAGE0_URL": url}}):
        arguments: dict[str, Any] = given
        with pytest.raises(NotConfigured, match="no key for"):
            find_target(**arguments)
        assert find_target(key="k", **arguments).ca is None
    named = find_target(url=url, data_dir=".stage0", environ={})
    assert (named.key.expose(), named.ca) == (KEY, Path("/ca.pem"))


def test_a_guard_takes_nothing_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".stage0").mkdir()
    directory = dev_dir(tmp_path / ".stage0")
    key_file = str(written(tmp_path / "a.key", "k"))
    monkeypatch.chdir(tmp_path)
    url = "https://localhost:8443"
    for mode in (0o600, 0o644):
        (directory / "dev.json").chmod(mode)
        with pytest.raises(NotConfigured, match="no server is named"):
            find_target(environ={}, is_guard=True)
        with pytest.raises(NotConfigured, match="no key for"):
            find_target(url=url, environ={}, is_guard=True)
        assert find_target(url=url, key_file=key_file, environ={}, is_guard=True).ca is None
    directory.joinpath("dev.json").chmod(0o600)
    for environ in ({"STAGE0_DATA_DIR": str(directory)}, {"STAGE0_DATA_DIR": str(directory), "STAGE0_URL": url}):
        assert find_target(environ=environ, is_guard=True).key.expose() == KEY, "one that is named counts"


def test_a_guard_refuses_a_path_that_depends_on_the_working_directory(tmp_path: Path) -> None:
    url, key_file = "https://localhost:8443", str(written(tmp_path / "a.key", "k"))
    cases: list[dict[str, Any]] = [
        {"data_dir": ".stage0", "environ": {}},
        {"environ": {"STAGE0_DATA_DIR": ".stage0"}},
        {"url": url, "key_file": key_file, "ca": "ca.pem", "environ": {}},
        {"url": url, "key_file": key_file, "environ": {"STAGE0_CA": "ca.pem"}},
        {"url": url, "key_file": "a.key", "environ": {}},
        {"url": url, "environ": {"STAGE0_KEY_FILE": "a.key"}},
        {"data_dir": dev_dir(tmp_path, ca_file="ca.pem"), "environ": {}},
    ]
    for arguments in cases:
        with pytest.raises(NotConfigured, match="must be an absolute path"):
            find_target(is_guard=True, **arguments)
    found = find_target(url=url, key_file=key_file, ca="/ca.pem", environ={}, is_guard=True)
    assert (found.url, found.ca) == (url, Path("/ca.pem"))


def test_the_data_directory_is_an_argument_or_a_variable(tmp_path: Path) -> None:
    directory = str(dev_dir(tmp_path))
    assert find_target(data_dir=directory, environ={}).key.expose() == KEY
    assert find_target(environ={"STAGE0_DATA_DIR": directory}).key.expose() == KEY


def test_a_key_of_the_data_directory_is_sent_to_no_other_server(tmp_path: Path) -> None:
    directory = dev_dir(tmp_path)
    for given in ({"url": "https://elsewhere.example"}, {"environ": {"STAGE0_URL": "https://elsewhere.example"}}):
        arguments: dict[str, Any] = {"environ": {}, **given}
        with pytest.raises(NotConfigured, match=r"no key for `https://elsewhere\.example`"):
            find_target(data_dir=directory, **arguments)
    same = find_target(url="https://localhost:8443/", data_dir=directory, environ={})
    assert (same.key.expose(), same.ca) == (KEY, Path("/ca.pem"))
    other = find_target(url="https://elsewhere.example", key="k", data_dir=directory, environ={})
    assert other.ca is None, "nor does its authority vouch for another server"


def test_the_url_is_taken_in_this_order(tmp_path: Path) -> None:
    environ = {"STAGE0_API_KEY": "k"}
    found = []
    for name in ("STAGE0_API_BASE", "STAGE0_BASE_URL", "STAGE0_URL"):
        environ[name] = f"https://{name.lower().replace('_', '-')}.example"
        found.append(find_target(environ=environ).url)
    assert found == [environ["STAGE0_API_BASE"], environ["STAGE0_BASE_URL"], environ["STAGE0_URL"]]
    assert find_target(url="https://argument.example", environ=environ).url == "https://argument.example"


def test_the_key_is_taken_in_this_order(tmp_path: Path) -> None:
    directory = dev_dir(tmp_path)
    environ: dict[str, str] = {}

    def key(**arguments: Any) -> str:
        return find_target(data_dir=directory, environ=environ, **arguments).key.expose()

    assert key() == KEY
    environ["STAGE0_API_KEY"] = "of-variable"
    assert key() == "of-variable"
    environ["STAGE0_KEY_FILE"] = str(written(tmp_path / "variable.key", "of-variable-file\n"))
    assert key() == "of-variable-file"
    assert key(key_file=written(tmp_path / "argument.key", "of-file")) == "of-file"
    assert key(key="of-argument") == "of-argument"


def test_the_authority_is_taken_in_this_order(tmp_path: Path) -> None:
    directory = dev_dir(tmp_path)
    assert find_target(data_dir=directory, environ={"STAGE0_CA": "/variable.pem"}).ca == Path("/variable.pem")
    given = find_target(data_dir=directory, ca="/argument.pem", environ={"STAGE0_CA": "/variable.pem"})
    assert given.ca == Path("/argument.pem")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_file_with_a_key_that_others_can_read_is_refused_with_the_chmod_that_mends_it(
    tmp_path: Path, mode: int
) -> None:
    directory = dev_dir(tmp_path, mode)
    with pytest.raises(NotConfigured, match=f"chmod 600 {tmp_path}/dev.json"):
        find_target(data_dir=directory, environ={})
    key_file = written(tmp_path / "a.key", "k", mode)
    with pytest.raises(NotConfigured, match=f"chmod 600 {key_file}"):
        find_target(data_dir=directory, key_file=key_file, environ={})
    assert find_target(data_dir=directory, key="k", environ={}).ca == Path("/ca.pem"), "its key is not used"


def test_a_broken_file_stops_only_a_client_that_needs_it(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"url": 1}', '{"url": "http://localhost:1", "api_key": "s0_hunter2"}', ""):
        written(tmp_path / "dev.json", text)
        with pytest.raises(NotConfigured) as caught:
            find_target(data_dir=tmp_path, environ={})
        assert "hunter2" not in repr(caught.value)
        assert find_target(url="https://a.example", key="k", data_dir=tmp_path, environ={}).url == "https://a.example"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://localhost:8443", "https://"),
        ("localhost:8443", "read"),
        ("https://", "read"),
        ("https://a.example:x", "read"),
        ("https://user:hunter2@a.example", "password"),
        ("https://a.example/?key=hunter2", "end with"),
        ("https://a.example/#x", "end with"),
    ],
)
def test_a_url_that_is_not_https_or_holds_more_than_the_server_is_refused(url: str, why: str) -> None:
    with pytest.raises(NotConfigured, match=why) as caught:
        find_target(url=url, key="k", environ={})
    assert "hunter2" not in str(caught.value)


def test_a_path_before_the_routes_is_kept() -> None:
    assert find_target(url="https://a.example/stage0/", key="k", environ={}).url == "https://a.example/stage0"


@pytest.mark.parametrize("key", ["hunter2 hunter2", "hunter2\nx: y", "hünter2", "hunter2\x00"])
def test_a_key_that_cannot_be_sent_is_not_quoted(key: str, tmp_path: Path) -> None:
    file = written(tmp_path / "a.key", key)
    for arguments in ({"key": key}, {"key_file": file}, {"environ": {"STAGE0_API_KEY": key}}):
        given: dict[str, Any] = {"environ": {}, **arguments}
        with pytest.raises(NotConfigured) as caught:
            find_target(url="https://a.example", **given)
        assert "nter2" not in repr(caught.value)


def test_a_ca_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    for file in (tmp_path / "absent.pem", written(tmp_path / "empty.pem", "no certificate")):
        target = find_target(url="https://a.example", key="k", ca=file, environ={})
        with pytest.raises(NotConfigured, match=str(file)):
            target.tls()
