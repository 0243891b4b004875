"""The phantom draws what its labels say, the same every time."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.data.finding import KINDS, Finding, study_labels
from trrg_train.data.phantom import draw_study, exposure, make_study, write_dataset
from trrg_train.data.phantom.dataset import patient_name, split_of
from trrg_train.data.phantom.dicom_file import to_dataset, write_dicom
from trrg_train.data.phantom.frame import stream
from trrg_train.data.phantom.plan import plan_findings
from trrg_train.data.phantom.study import DRAWERS, PhantomStudy, patient_of

SIZE = 192

EXAMPLES: dict[str, Finding] = {
    "cardiomegaly": Finding("cardiomegaly", severity="moderate"),
    "widened mediastinum": Finding("widened mediastinum", severity="moderate"),
    "opacity": Finding("opacity", "left", "mid", "moderate"),
    "consolidation": Finding("consolidation", "right", "upper", "moderate"),
    "pneumonia": Finding("pneumonia", "left", "lower", "moderate"),
    "edema": Finding("edema", "bilateral", "", "moderate"),
    "atelectasis": Finding("atelectasis", "right", "base", "moderate"),
    "nodule": Finding("nodule", "right", "mid"),
    "mass": Finding("mass", "left", "upper"),
    "pneumothorax": Finding("pneumothorax", "left", "apex", "moderate"),
    "pleural effusion": Finding("pleural effusion", "right", "base", "moderate"),
    "pleural thickening": Finding("pleural thickening", "left", "mid", "moderate"),
    "rib fracture": Finding("rib fracture", "right", "mid"),
    "pacemaker": Finding("pacemaker", "left"),
    "central venous catheter": Finding("central venous catheter", "right"),
    "endotracheal tube": Finding("endotracheal tube"),
    "nasogastric tube": Finding("nasogastric tube"),
    "chest tube": Finding("chest tube", "left"),
}


@cache
def _drawn(finding: Finding | None, *, index: int = 4, view: str = "PA") -> PhantomStudy:
    return draw_study(3, index, size=SIZE, view=view, findings=[finding] if finding else [])


def _inside(finding: Finding) -> tuple[slice, slice]:
    assert finding.box is not None
    x0, y0, x1, y1 = (round(edge * SIZE) for edge in finding.box)
    return slice(y0, y1), slice(x0, x1)


def test_every_kind_has_a_drawer_and_an_example() -> None:
    assert set(DRAWERS) == set(KINDS) == set(EXAMPLES)


def test_the_same_seed_and_index_give_the_same_bytes() -> None:
    first, again = make_study(11, 7, size=SIZE), make_study(11, 7, size=SIZE)
    assert first.pixels.tobytes() == again.pixels.tobytes()
    assert first.findings == again.findings
    assert to_dataset(first) == to_dataset(again)
    assert make_study(12, 7, size=SIZE).pixels.tobytes() != first.pixels.tobytes()
    assert make_study(11, 8, size=SIZE).pixels.tobytes() != first.pixels.tobytes()


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("view", ["PA", "AP"])
def test_a_finding_changes_the_film_inside_its_box_more_than_outside(kind: str, view: str) -> None:
    healthy = _drawn(None, view=view).bright()
    study = _drawn(EXAMPLES[kind], view=view)
    change = np.abs(study.bright() - healthy)
    (found,) = study.findings
    rows, columns = _inside(found)
    outside = np.ones_like(change, dtype=bool)
    outside[rows, columns] = False
    inside = ~outside
    assert found.box is not None and found.box[0] < found.box[2] and found.box[1] < found.box[3]
    assert all(0 <= edge <= 1 for edge in found.box)
    # The strongest changes (the brightest percent of the box) are what the eye sees of a thin line.
    assert np.quantile(change[inside], 0.99) > 0.06
    assert (change[inside] ** 2).sum() > (change[outside] ** 2).sum()


@pytest.mark.parametrize("kind", ["opacity", "consolidation", "pneumonia", "nodule", "mass", "pleural thickening"])
def test_sides_are_the_patients_sides(kind: str) -> None:
    place = "mid"
    for side in ("left", "right"):
        (found,) = _drawn(Finding(kind, side, place, "moderate")).findings
        assert found.box is not None
        centre = (found.box[0] + found.box[2]) / 2
        assert (centre > 0.5) == (side == "left")


def test_zones_lie_above_each_other() -> None:
    heights = []
    for place in ("upper", "mid", "lower"):
        (found,) = _drawn(Finding("nodule", "left", place)).findings
        assert found.box is not None
        heights.append(found.box[1])
    assert heights == sorted(heights)


def test_large_hearts_are_wider_than_normal_ones() -> None:
    widths = {}
    for kind in ("cardiomegaly", "widened mediastinum"):
        scene = _drawn(EXAMPLES[kind]).findings[0].box
        assert scene is not None
        widths[kind] = scene[2] - scene[0]
    assert widths["cardiomegaly"] > 1.3 * widths["widened mediastinum"]


def test_labels_follow_the_findings() -> None:
    for index in range(6):
        study = make_study(5, index, size=64)
        assert study.labels == study_labels(study.findings)
        assert set(study.labels) == set(OBSERVATIONS)
        assert all(finding.box is not None for finding in study.findings)


@pytest.mark.parametrize("index", range(8))
def test_files_decode_to_the_drawn_pixels(index: int, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    study = make_study(2, index, size=SIZE)
    path = tmp_path / "study.dcm"
    write_dicom(study, path)
    read = pydicom.dcmread(path)
    assert np.array_equal(read.pixel_array, study.pixels)
    assert read.pixel_array.max() < 2**read.BitsStored
    assert read.HighBit == read.BitsStored - 1
    assert read.PhotometricInterpretation == study.photometric
    assert read.ViewPosition == study.view
    assert str(read.PatientName).startswith("PHANTOM^")
    assert not read.PatientBirthDate
    assert read.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    write_dicom(study, tmp_path / "again.dcm")
    assert (tmp_path / "again.dcm").read_bytes() == path.read_bytes()


def test_both_photometric_interpretations_look_alike() -> None:
    looks = {}
    for index in range(24):
        study = make_study(8, index, size=64)
        corner = study.bright()[:8, :8].mean()
        middle = np.median(study.bright()[40:60, 24:40])
        looks.setdefault(study.photometric, []).append(middle - corner)
    assert set(looks) == {"MONOCHROME1", "MONOCHROME2"}
    # The abdomen is brighter than the air beside the neck however the values are stored.
    assert all(np.median(differences) > 0.3 for differences in looks.values())


def test_inverted_values_are_the_complement() -> None:
    attenuation = np.linspace(0, 1.2, 64 * 64, dtype=np.float32).reshape(64, 64)
    taken = replace(exposure.sample_exposure(stream("test"), view="PA"), inverted=False)
    plain = exposure.expose(attenuation, exposure=taken, rng=stream("noise"))
    inverted = exposure.expose(attenuation, exposure=replace(taken, inverted=True), rng=stream("noise"))
    assert np.array_equal(inverted, 2**taken.bits - 1 - plain)


def test_prevalence_is_high_enough_to_learn_from() -> None:
    counts: Counter[str] = Counter()
    total = 3000
    for index in range(total):
        rng = stream("phantom", 1, "study", index)
        view = "AP" if rng.random() < 0.3 else "PA"
        labels = study_labels(plan_findings(rng, view=view))
        counts.update(name for name, present in labels.items() if present)
    assert all(counts[name] / total >= 0.06 for name in OBSERVATIONS)
    assert 0.42 <= counts["No Finding"] / total <= 0.58


def test_no_two_lung_findings_share_a_place() -> None:
    focal = {"opacity", "consolidation", "pneumonia", "nodule", "mass"}
    for index in range(2000):
        findings = plan_findings(stream("plan", index), view="PA")
        places = [(f.side, f.place) for f in findings if f.kind in focal]
        assert len(places) == len(set(places))
        assert len({f.kind for f in findings}) == len(findings)


def test_patients_stay_in_one_split() -> None:
    splits: dict[str, set[str]] = {}
    sizes: Counter[str] = Counter()
    for index in range(5000):
        patient = patient_name(9, index)
        split = split_of(9, patient)
        splits.setdefault(patient, set()).add(split)
        sizes[split] += 1
    assert all(len(found) == 1 for found in splits.values())
    assert len(splits) == patient_of(4999) + 1 == 4000
    assert 0.75 < sizes["train"] / 5000 < 0.85
    assert sizes["val"] > 350 and sizes["test"] > 350


def test_a_data_set_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    first = write_dataset(tmp_path / "one", count=6, seed=4, size=64, workers=1)
    second = write_dataset(tmp_path / "two", count=6, seed=4, size=64, workers=2)
    assert first.read_bytes() == second.read_bytes()
    records = [record for split in json.loads(first.read_text()).values() for record in split]
    assert len(records) == 6
    for record in records:
        image = record["image_path"][0]
        assert (first.parent / image).read_bytes() == (second.parent / image).read_bytes()
        assert record["report"].startswith("FINDINGS:")
        assert set(record["labels"]) == set(OBSERVATIONS)
    with pytest.raises(FileExistsError, match="annotation.json"):
        write_dataset(tmp_path / "one", count=6, seed=4, size=64, workers=1)


@pytest.mark.parametrize(("index", "size"), [(-1, 192), (0, 32)])
def test_impossible_studies_are_refused(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="index"):
        make_study(0, index, size=size)


def test_the_example_study_is_a_phantom_that_anyone_can_render_again() -> None:
    pydicom = pytest.importorskip("pydicom")
    path = Path(__file__).resolve().parents[2] / "examples" / "data" / "phantom_pa.dcm"
    assert path.stat().st_size <= 600_000
    read = pydicom.dcmread(path)
    _, seed, patient = str(read.PatientID).split("-")
    index = int(read.StudyID)
    assert patient_of(index) == int(patient)
    study = make_study(int(seed), index, size=read.Rows)
    assert [finding.kind for finding in study.findings] == ["pleural effusion"]
    assert read.ViewPosition == study.view == "PA"
    # Not byte for byte: another numpy may round a value in sixty thousand the other way.
    apart = np.abs(read.pixel_array.astype(np.int64) - study.pixels)
    assert np.median(apart) <= 2
