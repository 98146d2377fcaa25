"""The published schema: every document satisfies it, nothing else does, and it does not drift."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from moeplan.api import estimate
from moeplan.estimation.estimate import SCHEMA_VERSION
from moeplan.report.schema import EstimateDocument, json_schema
from tests.reading import READABLE, spec_of
from tests.test_cli import same

SCENARIOS: list[dict[str, Any]] = [
    {},
    {"context": 131_072, "batch": 16, "gpu": "rtx-4090", "attention": "full", "cache": "fp8"},
    {"weights": "nvfp4", "price": "$4/h", "gpu": "gb200", "imbalance": 2.5, "policy": "copies"},
]


@pytest.mark.parametrize("name", READABLE)
def test_every_preset(name: str) -> None:
    """Without conversions: a count is a whole number, not one that could be made one."""
    EstimateDocument.model_validate_json(estimate(spec_of(name)).to_json(), strict=True)


@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3", "llama-3.1-8b", "switch-base-8"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_schema_agrees_with_the_model(name: str, scenario: dict[str, Any]) -> None:
    """What stands in the file that others validate with is what we check ourselves."""
    jsonschema = pytest.importorskip("jsonschema")
    text = estimate(name, **scenario).to_json()
    EstimateDocument.model_validate_json(text, strict=True)
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(json.loads(text))
    assert not validator.is_valid(json.loads(text) | {"surprise": 1})


def test_text_and_dictionary_are_one_document() -> None:
    e = estimate("deepseek-v3")
    assert json.loads(e.to_json()) == e.to_dict()
    assert json.loads(e.to_json(indent=None)) == e.to_dict()
    assert json.loads(e.to_json())["params"]["total"] == 671_026_404_352


# ----------------------------------------------------------------------- what it does not allow
@pytest.fixture
def document() -> dict[str, Any]:
    """A valid document to spoil."""
    found: dict[str, Any] = json.loads(estimate("mixtral").to_json())
    return found


def places(here: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every object of a document whose keys are fixed (not a table of components or formats)."""
    if isinstance(here, dict):
        if not path or not re.match("by_component|.*_by_component|by_row|peaks", str(path[-1])):
            yield path
        for key, below in here.items():
            yield from places(below, (*path, key))
    elif isinstance(here, list) and here:
        yield from places(here[0], (*path, 0))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        document = document[part]
    return document


def test_an_unknown_key_anywhere_is_refused(document: dict[str, Any]) -> None:
    found = list(places(document))
    assert len(found) > 25
    for path in found:
        spoilt = copy.deepcopy(document)
        at(spoilt, path)["surprise"] = 1
        with pytest.raises(ValidationError, match="surprise"):
            EstimateDocument.model_validate(spoilt)


def test_a_missing_key_is_refused(document: dict[str, Any]) -> None:
    """All but those that only some models have: the experts' shape, the MTP module's FLOPs."""
    optional = {"experts", "top_k", "expert_width", "shared_width", "router"}
    optional |= {"n_group", "topk_group", "causal", "full"}  # one mask is the main one
    for path in places(document):
        for key in at(document, path):
            if key in optional:
                continue
            spoilt = copy.deepcopy(document)
            del at(spoilt, path)[key]
            with pytest.raises(ValidationError, match="Field required"):
                EstimateDocument.model_validate(spoilt)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("params", "total"), 1.5),
        (("params", "total"), "46702792704"),
        (("model", "layers"), None),
        (("flops", "attention"), "causl"),
        (("time", "kind"), "measured"),
        (("schema_version",), "one"),
        (("assumptions",), {}),
    ],
)
def test_a_wrong_value_is_refused(
    document: dict[str, Any], path: tuple[str, ...], value: Any
) -> None:
    at(document, path[:-1])[path[-1]] = value
    with pytest.raises(ValidationError):
        EstimateDocument.model_validate_json(json.dumps(document), strict=True)


def test_a_sweep_is_not_a_document() -> None:
    """Lists of numbers are what an estimate over arrays gives; the schema is of one design."""
    swept = json.loads(estimate("mixtral", context=np.array([1000, 2000])).to_json())
    with pytest.raises(ValidationError):
        EstimateDocument.model_validate(swept)


# -------------------------------------------------------------------------------------- drift
def test_the_schema_itself() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["version"] == SCHEMA_VERSION
    described = [d for d in schema["$defs"].values() if "description" not in d]
    assert described == []


def test_a_change_of_the_schema_is_meant() -> None:
    """One line a key. A key that goes, or changes its type, needs a new major version."""
    same("schema", "\n".join([f"version {SCHEMA_VERSION}", *_lines(json_schema(), json_schema())]))


def _lines(schema: dict[str, Any], root: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, of in schema.get("properties", {}).items():
        here = f"{path}.{key}" if path else key
        needed = "" if key in schema["required"] else " (optional)"
        yield f"{here}: {_type(of)}{needed}"
        for below in _objects(of, root):
            yield from _lines(below, root, here)


def _type(of: dict[str, Any]) -> str:
    if "anyOf" in of:
        return " or ".join(dict.fromkeys(_type(one) for one in of["anyOf"]))
    if "$ref" in of:
        return "object"
    if "enum" in of or "const" in of:
        return " or ".join(repr(word) for word in of.get("enum", [of.get("const")]))
    if of.get("type") == "array":
        return f"list of {_type(of['items'])}"
    if isinstance(of.get("additionalProperties"), dict):
        return f"mapping to {_type(of['additionalProperties'])}"
    return str(of["type"])


def _objects(of: dict[str, Any], root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for one in (of, of.get("items", {}), *of.get("anyOf", [])):
        if "$ref" in one:
            yield root["$defs"][one["$ref"].rpartition("/")[2]]
