"""The canonical JSON of a call's arguments (RFC 8785) and its digest.

An approval is bound to the digest, so two calls with equal arguments have the same one in every language. A value that
has no JSON form is an error, never left out: otherwise two different calls would share an approval.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import hashlib
import json
import math
import os
import uuid
from collections.abc import Mapping
from typing import Any

_MAX_DEPTH = 64


class NoCanonicalForm(ValueError):
    pass


def digest(value: Any) -> str:
    """The SHA-256 of the canonical JSON, in hexadecimal digits."""
    return hashlib.sha256(canonical(plain(value)).encode()).hexdigest()


def plain(value: Any, depth: int = 0) -> Any:
    """The value in terms of JSON. Dates, ids, decimals and paths become texts; bytes become base64."""
    if depth > _MAX_DEPTH:
        raise NoCanonicalForm(f"it is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, enum.Enum):
        return plain(value.value, depth + 1)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NoCanonicalForm("a number is not finite")
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise NoCanonicalForm("a mapping has keys that are not texts")
        return {str(name): plain(member, depth + 1) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    return _special(value, depth)


def _special(value: Any, depth: int) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item, depth + 1) for item in value), key=canonical)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, uuid.UUID, os.PathLike)):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), depth + 1) for f in dataclasses.fields(value)}
    model_dump = getattr(value, "model_dump", None)
    if callable(model_dump) and not isinstance(value, type):
        return plain(model_dump(mode="json"), depth + 1)
    raise NoCanonicalForm(f"a `{type(value).__name__}` has no JSON form")


def canonical(value: Any) -> str:
    """The canonical text of what `plain` returned."""
    if value is None or isinstance(value, (bool, str)):
        text = json.dumps(value, ensure_ascii=False)
        _refuse_lone_surrogates(text)
        return text
    if isinstance(value, int):
        return str(value) if abs(value) <= 2**53 else _number(_as_double(value))
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list):
        return "[" + ",".join(canonical(item) for item in value) + "]"
    names = sorted(value, key=_utf16)
    return "{" + ",".join(f"{canonical(name)}:{canonical(value[name])}" for name in names) + "}"


def _utf16(name: str) -> bytes:
    try:
        return name.encode("utf-16-be")
    except UnicodeEncodeError as error:
        raise NoCanonicalForm("a text holds half of a surrogate pair") from error


def _refuse_lone_surrogates(text: str) -> None:
    _utf16(text)


def _as_double(value: int) -> float:
    """JSON's numbers are doubles: a longer integer would share its text, and so its approval, with its neighbours."""
    try:
        double = float(value)
    except OverflowError as error:
        raise NoCanonicalForm("an integer is too large for JSON") from error
    if int(double) != value:
        raise NoCanonicalForm("an integer is too large for JSON to hold exactly: pass it as a text")
    return double


def _number(value: float) -> str:
    """As ECMAScript writes a double, which RFC 8785 demands."""
    if value == 0:
        return "0"
    sign, digits, exponent = decimal.Decimal(repr(value)).as_tuple()
    text = "".join(map(str, digits)).rstrip("0")
    assert isinstance(exponent, int)  # noqa: S101 - the value is finite
    point = len(digits) + exponent
    if len(text) <= point <= 21:
        body = text + "0" * (point - len(text))
    elif 0 < point <= 21:
        body = f"{text[:point]}.{text[point:]}"
    elif -6 < point <= 0:
        body = "0." + "0" * -point + text
    else:
        mantissa = text[0] + (f".{text[1:]}" if len(text) > 1 else "")
        body = f"{mantissa}e{point - 1:+d}"
    return f"-{body}" if sign else body
