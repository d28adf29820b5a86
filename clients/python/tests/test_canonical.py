"""The digest of a call's arguments: RFC 8785, known answers, and what is refused."""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stage0._canonical import NoCanonicalForm, canonical, digest, plain


def double(bits: str) -> float:
    value: float = struct.unpack(">d", bytes.fromhex(bits))[0]
    return value


# The numbers of RFC 8785, appendix B.
@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("ffefffffffffffff", "-1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_numbers_are_written_as_in_rfc_8785(bits: str, text: str) -> None:
    assert canonical(double(bits)) == text


def test_members_are_in_the_order_of_utf_16() -> None:
    members = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}
    names = ["\\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    text = canonical(plain(members))
    assert [text.index(f'"{name}"') for name in names] == sorted(text.index(f'"{name}"') for name in names)


def test_texts_are_escaped_as_in_rfc_8785() -> None:
    assert canonical('€$\x0f\nA\'B"\\\\"/') == '"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'


def test_known_digests() -> None:
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert digest({"b": [1, 2.0, True, None], "a": "x"}) == digest({"a": "x", "b": (1.0, 2, True, None)})
    assert canonical(plain({"b": [1, 2.0, True, None], "a": "x"})) == '{"a":"x","b":[1,2,true,null]}'


def test_values_of_python_have_a_form() -> None:
    class Colour(enum.Enum):
        RED = "red"

    @dataclass
    class Point:
        x: int

    class Model:
        def model_dump(self, mode: str) -> dict[str, str]:
            return {"mode": mode}

    ident = uuid.uuid4()
    values = [Colour.RED, Point(1), Model(), ident, decimal.Decimal("1.10"), Path("/a"), b"\x00", {2, 1}]
    assert plain(values) == ["red", {"x": 1}, {"mode": "json"}, str(ident), "1.10", "/a", "AA==", [1, 2]]
    assert plain(datetime.date(2026, 1, 2)) == "2026-01-02"


@pytest.mark.parametrize("pair", [(1, True), (1, "1"), (None, "null"), ([1], [1, 1]), ({"a": 1}, {"a": 2})])
def test_different_arguments_have_different_digests(pair: tuple[Any, Any]) -> None:
    assert digest(pair[0]) != digest(pair[1])


@pytest.mark.parametrize(
    "value",
    [object(), math.nan, math.inf, {1: 2}, 2**53 + 1, 10**400, "\ud800", {"\ud800": 1}, lambda: 1, object],
)
def test_a_value_without_a_form_is_refused(value: Any) -> None:
    with pytest.raises(NoCanonicalForm):
        digest([value])


def test_a_value_without_an_end_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(NoCanonicalForm, match="deep"):
        digest(endless)
