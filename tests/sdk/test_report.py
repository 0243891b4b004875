from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.sdk.handmade_reports import SOP_UID, full_report
from trrg_sdk.errors import UsageError
from trrg_sdk.report import Report


def test_json_reads_back_equal() -> None:
    report = full_report()
    assert Report.from_json(report.to_json()) == report
    assert Report.from_json(report.to_json(indent=None).encode()) == report


def test_json_has_the_keys_of_schema_1() -> None:
    value = json.loads(full_report().to_json())
    assert list(value) == [
        "schema_version",
        "text",
        "sentences",
        "clues",
        "omissions",
        "gate",
        "images",
        "notes",
        "generation",
        "timings_ms",
        "provenance",
        "draft",
    ]
    assert value["schema_version"] == 2
    assert value["draft"] is True
    assert set(value["sentences"][0]) == {"text", "section", "labels", "verdict", "evidence", "logprob"}
    assert set(value["sentences"][0]["evidence"][0]) == {"clue", "probability", "threshold", "forced", "heat_peak"}
    assert value["clues"][1] == {
        "name": "Edema",
        "probability": 0.875,
        "threshold": 0.4,
        "present": True,
        "forced": True,
    }
    assert set(value["images"][0]) == {"sop_instance_uid", "view", "used", "reason"}
    assert set(value["gate"]["reasons"][0]) == {"code", "message", "action"}


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


def _drop(*path: Any) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("schema_version", to=1), "schema 2 expected, 1 came; .* report the study again"),
        (_set("schema_version", to=3), "schema 2 expected, 3 came; update trrg-sdk"),
        (_set("schema_version", to=True), "schema 2 expected"),
        (_drop("schema_version"), "schema 2 expected"),
        (_set("patient", to="x"), "unknown keys patient"),
        (_set("sentences", 0, "extra", to=1), r"sentences\[0\]: unknown keys extra"),
        (_drop("provenance", "device"), "provenance: missing keys device"),
        (_drop("clues", 0, "forced"), r"clues\[0\]: missing keys forced"),
        (_set("draft", to=False), "report.draft"),
        (_set("draft", to=1), "report.draft"),
        (_set("sentences", 0, "verdict", to="fine"), "verdict: one of 'supported'"),
        (_set("sentences", 0, "labels", "Edema", to="maybe"), "labels.Edema"),
        (_set("clues", 0, "present", to=1), "present: bool expected"),
        (_set("clues", 0, "probability", to=True), "probability: float expected"),
        (_set("sentences", to={}), "sentences: a list expected"),
        (_set("images", 0, to="x"), r"images\[0\]: an object expected"),
        (_set("generation", "tokens", to=1.5), "tokens: int expected"),
    ],
)
def test_from_dict_refuses_what_it_does_not_know(change: Callable[[Any], None], message: str) -> None:
    value = json.loads(full_report().to_json())
    change(value)
    with pytest.raises(UsageError, match=message):
        Report.from_dict(value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", b"\xff", '{"schema_version": NaN}'])
def test_from_json_refuses_other_texts(text: str | bytes) -> None:
    with pytest.raises(UsageError):
        Report.from_json(text)


def test_refusals_do_not_repeat_values() -> None:
    value = json.loads(full_report().to_json())
    value["draft"] = "DOE^JANE"
    with pytest.raises(UsageError) as caught:
        Report.from_dict(value)
    assert "DOE" not in str(caught.value)


def test_nan_is_not_written() -> None:
    report = dataclasses.replace(full_report(), timings_ms={"load": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        report.to_json()


def test_whole_numbers_are_read_as_floats() -> None:
    value = json.loads(full_report().to_json())
    value["timings_ms"]["total"] = 98
    assert type(Report.from_dict(value).timings_ms["total"]) is float


def test_clues_are_found_by_name_and_iterated_in_order() -> None:
    clues = full_report().clues
    assert clues["Pleural Effusion"].probability == 0.93
    assert [clue.name for clue in clues] == ["Pleural Effusion", "Edema"]
    assert "Edema" in clues
    assert "Fracture" not in clues
    assert len(clues) == 2
    with pytest.raises(KeyError, match="Pleural Effusion, Edema"):
        clues["Fracture"]


def test_repr_shows_no_uid_and_no_text() -> None:
    report = full_report()
    assert SOP_UID not in repr(report)
    assert SOP_UID not in repr(report.images)
    assert "left pleural effusion." not in repr(report)
    assert "Pleural Effusion" in repr(report)


def test_values_are_frozen_and_hashable() -> None:
    report = full_report()
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.text = "other"  # type: ignore[misc]  # that this is refused is what the test is about
    assert hash(report) == hash(full_report())
