"""Whom and what the bundle was trained on: too young a patient and a view that it does not know are refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.sdk.chest_dicom import chest_bytes
from tests.sdk.site_folder import TEXT, TINY, put
from trrg_sdk import BundleError, RefusedError, Report, Reporter
from trrg_sdk.backends import fake
from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.cli import main
from trrg_sdk.dicom import load
from trrg_sdk.gate import check
from trrg_sdk.gate_specs import ADULTS, PopulationSpec
from trrg_sdk.manifest import parse_manifest
from trrg_sdk.study import select

BOTH = PopulationSpec(minimum_age=None, views=("PA", "AP", "LL"))
PA_ONLY = PopulationSpec(minimum_age=None, views=("PA",))


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[PopulationSpec], Path]:
    """A tiny bundle that says to have been trained on these, opened with the fake backend."""
    script = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    opened = fake.open_backend(script=script)
    monkeypatch.setattr("trrg_sdk.reporter.open_backend", lambda **_: opened)

    def make(population: PopulationSpec) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(TINY, folder)
        write_manifest(folder, dataclasses.replace(Bundle.load(TINY).manifest, population=population))
        return folder

    return make


def codes(population: PopulationSpec, **elements: Any) -> list[str]:
    return [found.code for found in check(load(chest_bytes(**elements)), population=population)]


def test_only_a_patient_who_is_known_to_be_too_young_is_refused() -> None:
    unknown = {"PatientAge": None, "PatientBirthDate": None}
    assert codes(ADULTS, PatientAge="017Y") == ["paediatric_age"]
    assert codes(ADULTS, PatientAge="018Y") == codes(ADULTS, **unknown) == codes(BOTH, PatientAge="002M") == []
    assert codes(ADULTS, PatientAge=None, PatientBirthDate="19810808", StudyDate="19990807") == ["paediatric_age"]
    assert codes(ADULTS, PatientAge=None, PatientBirthDate="19810807", StudyDate="19990807") == []


def test_the_age_is_said_nowhere(bundle: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    child = chest_bytes(PatientAge="007Y", PatientBirthDate="19920101")
    reporter = Reporter(bundle(ADULTS))
    with pytest.raises(RefusedError) as caught:
        reporter.report(child)
    assert caught.value.code == "paediatric_age"
    said = f"{caught.value} {caught.value.reasons} {caplog.text}"
    assert "younger than 18 years" in said
    assert not {"007", "7 years", "7Y", "1992"} & set(said.split())
    assert "7" not in caplog.text.replace(str(reporter.bundle.folder), "")


def test_an_accepted_child_is_reported_and_the_report_says_so(bundle: Callable[..., Path]) -> None:
    report = Reporter(bundle(ADULTS), accept=["paediatric_age"]).report(chest_bytes(PatientAge="007Y"))
    assert report.gate.status == "overridden"
    assert [found.code for found in report.gate.overridden] == ["paediatric_age"]


@pytest.mark.parametrize("view", ["LL", "RL", "LATERAL"])
def test_a_lateral_is_left_out_unless_the_bundle_was_trained_on_them(view: str) -> None:
    assert codes(ADULTS, ViewPosition=view) == ["lateral_view"]
    assert codes(BOTH, ViewPosition=view) == []


def test_an_oblique_and_a_view_that_the_bundle_does_not_know_are_refused() -> None:
    assert codes(BOTH, ViewPosition="RAO") == ["lateral_view"]
    assert codes(BOTH, ViewPosition="LLD") == codes(PA_ONLY, ViewPosition="AP") == ["unsupported_view"]
    assert codes(PA_ONLY, ViewPosition="PA") == codes(PA_ONLY, ViewPosition=None) == []


def test_the_frontal_image_comes_first_and_a_lateral_stands_in_for_it() -> None:
    frontal, lateral = load(chest_bytes(ViewPosition="AP")), load(chest_bytes(ViewPosition="LL"))
    chosen = select([lateral, frontal], population=BOTH)
    assert chosen.radiograph is frontal and [found.code for found in chosen.gate.reasons] == ["other_frontal"]
    chosen = select([lateral], population=BOTH)
    assert chosen.radiograph is lateral and chosen.gate.status == "accepted"
    with pytest.raises(RefusedError):
        select([lateral], population=ADULTS)


@pytest.mark.parametrize("population", [BOTH, ADULTS])
def test_a_batch_takes_laterals_as_the_bundle_says(
    bundle: Callable[..., Path], tmp_path: Path, population: PopulationSpec
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    put(folder / "a", chest_bytes(uid="2.25.1", study="2.25.8", ViewPosition="LL"))
    put(folder / "b", chest_bytes(uid="2.25.2", study="2.25.8", ViewPosition="AP"))
    put(folder / "c", chest_bytes(uid="2.25.3", study="2.25.9", ViewPosition="LL"))
    words = ["batch", folder, "--out", out, "--format", "json", "--bundle", bundle(population)]
    assert main([str(word) for word in words]) == (0 if population.laterals else 3)
    reports = [Report.from_json(path.read_bytes()) for path in sorted((out / "reports").iterdir())]
    used = {image.sop_instance_uid for report in reports for image in report.images if image.used}
    assert used == ({"2.25.2", "2.25.3"} if population.laterals else {"2.25.2"})
    left_out = {found.code for report in reports for found in report.gate.reasons}
    assert left_out == ({"other_frontal"} if population.laterals else {"lateral_view"})
    assert {report.gate.status for report in reports} == {"accepted"}


@pytest.mark.parametrize(
    ("population", "said"),
    [
        ({"minimum_age": 0, "views": ["PA"]}, "minimum_age"),
        ({"minimum_age": None, "views": []}, "each once"),
        ({"minimum_age": None, "views": ["PA", "PA"]}, "each once"),
        ({"minimum_age": None, "views": ["LATERAL"]}, "population.views"),
        ({"minimum_age": True, "views": ["PA"]}, "population.minimum_age"),
        ({"views": ["PA"]}, "minimum_age"),
    ],
)
def test_a_manifest_with_a_population_that_makes_no_sense_is_refused(population: dict[str, Any], said: str) -> None:
    plain = json.loads((TINY / "manifest.json").read_text())
    with pytest.raises(BundleError, match=said):
        parse_manifest(json.dumps({**plain, "population": population}))
