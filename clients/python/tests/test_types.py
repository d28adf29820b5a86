"""The types against the OpenAPI document: every member is there, of that type, and none beyond."""

from __future__ import annotations

import dataclasses
import json
import types as builtin_types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from stage0 import types

from .conftest import ROOT

SCHEMAS: dict[str, Any] = json.loads((ROOT / "docs" / "openapi.json").read_text())["components"]["schemas"]
ENUMS = {
    "Signal": types.Signal,
    "Verdict": types.Verdict,
    "Severity": types.Severity,
    "NextAction": types.NextAction,
    "ApprovalStatus": types.ApprovalStatus,
    "ApprovalSource": types.ApprovalSource,
    "AuditMode": types.AuditMode,
    "OutcomeStatus": types.OutcomeStatus,
}
CLASSES: dict[str, Any] = {
    "CheckResponse": types.Decision,
    "Issue": types.Issue,
    "ApprovalRef": types.ApprovalRef,
    "GuardrailCheck": types.GuardrailCheck,
    "CostEstimate": types.CostEstimate,
    "ResponseMeta": types.ResponseMeta,
    "RunSettled": types.RunSettled,
    "RunCost": types.RunCost,
    "ReportedOutcome": types.ReportedOutcome,
}
# They are mappings, since their members depend on the issue.
OPEN = {"IssueDetails"}


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum_has_the_values_of_the_document(name: str) -> None:
    assert set(typing.get_args(ENUMS[name])) == set(SCHEMAS[name]["enum"])


@pytest.mark.parametrize("name", CLASSES)
def test_a_type_has_the_members_of_the_document_and_none_beyond(name: str) -> None:
    properties = SCHEMAS[name]["properties"]
    members = {f.name: f for f in dataclasses.fields(CLASSES[name]) if f.name != "raw"}
    assert set(members) == set(properties)
    required = {n for n, member in members.items() if member.default is dataclasses.MISSING}
    assert required == set(SCHEMAS[name]["required"])


@pytest.mark.parametrize("name", CLASSES)
def test_each_member_has_the_type_of_the_document(name: str) -> None:
    annotations = typing.get_type_hints(CLASSES[name])
    required = SCHEMAS[name]["required"]
    for member, schema in SCHEMAS[name]["properties"].items():
        found, expected = kinds(annotations[member]), kinds_of_schema(schema)
        if member not in required and "array" not in expected:
            expected = expected | {"null"}
        assert found == expected, member


def kinds(annotation: Any) -> set[str]:
    """The annotation in words of JSON schema; enums and classes by the names of their schemas."""
    for name, kind in [*CLASSES.items(), *ENUMS.items()]:
        if annotation == kind:
            return {name}
    origin = typing.get_origin(annotation)
    if origin in (builtin_types.UnionType, typing.Union):
        return set().union(*(kinds(part) for part in typing.get_args(annotation)))
    if origin is typing.Literal:
        return {"string"}
    if origin in (Sequence, Mapping):
        return {"array" if origin is Sequence else "object"}
    plain = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    return {plain[annotation]}


def kinds_of_schema(schema: Mapping[str, Any]) -> set[str]:
    if "anyOf" in schema:
        return set().union(*(kinds_of_schema(part) for part in schema["anyOf"]))
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return {"object"} if name in OPEN else {name}
    stated = schema["type"]
    return {stated} if isinstance(stated, str) else set(stated)
