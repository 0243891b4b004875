"""The JSON Schema of report schema 2, derived from the dataclasses that read and write it.

``report.schema.json`` beside this file is its result, for programs that are not in Python; a test holds both together.
After a change of ``trrg_sdk.report``: ``python -m trrg_sdk.outputs.json_schema``.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trrg_sdk.report import SCHEMA_VERSION, ClueScore, ClueScores, Report

SCHEMA_PATH = Path(__file__).with_name("report.schema.json")
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}
_PROBABILITIES = ("probability", "threshold")


def report_schema() -> dict[str, Any]:
    """The schema (draft 2020-12): every key required, no other allowed."""
    definitions: dict[str, Any] = {}
    schema = _record(Report, definitions)
    schema["properties"] = {"schema_version": {"const": SCHEMA_VERSION}, **schema["properties"]}
    schema["required"] = ["schema_version", *schema["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:trrg-sdk:report:{SCHEMA_VERSION}",
        "title": "Draft report of a chest radiograph",
        **schema,
        "$defs": dict(sorted(definitions.items())),
    }


def schema_text() -> str:
    """The schema as it stands in the file."""
    return json.dumps(report_schema(), indent=2, ensure_ascii=False) + "\n"


def _record(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    properties = {field.name: _value(hints[field.name], definitions) for field in dataclasses.fields(kind)}
    for name in _PROBABILITIES:
        if name in properties:
            properties[name] |= {"minimum": 0, "maximum": 1}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _value(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is ClueScores:
        return _value(tuple[ClueScore, ...], definitions)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = _record(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin is tuple:
        return {"type": "array", "items": _value(arguments[0], definitions)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _value(arguments[1], definitions)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_value(arguments[0], definitions), {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(arguments)}
    return {"type": _SCALARS[hint]}


if __name__ == "__main__":
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
