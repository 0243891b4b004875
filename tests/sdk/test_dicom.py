"""Reading DICOM: the pixel chain against a slow reference, every encoding, the elements we vouch for, a study."""

from __future__ import annotations

import copy
import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.sdk.dicom_builder import BIG, CHAINS, DEFLATED, EXPLICIT, IMPLICIT, WINDOW, build, image, jpeg, to_bytes
from trrg_sdk.dicom import Radiograph, load, load_study, pick_frontal
from trrg_sdk.errors import InputError


def reference(value: float, tags: dict[str, Any]) -> float:
    """One pixel through PS3.3 C.11.1, C.11.2 and C.7.6.3.1.2, written from the clauses."""
    if "ModalityLUTSequence" in tags:
        item = tags["ModalityLUTSequence"][0]
        value = item.LUTData[min(max(int(value) - item.LUTDescriptor[1], 0), len(item.LUTData) - 1)]
    else:
        value = value * float(tags.get("RescaleSlope", 1)) + float(tags.get("RescaleIntercept", 0))
    if "VOILUTSequence" in tags:
        item = tags["VOILUTSequence"][0]
        index = min(max(int(value) - item.LUTDescriptor[1], 0), len(item.LUTData) - 1)
        shown = item.LUTData[index] / (2 ** item.LUTDescriptor[2] - 1)
    else:
        center, width = float(tags["WindowCenter"]), float(tags["WindowWidth"])
        function = tags.get("VOILUTFunction", "LINEAR")
        if function == "SIGMOID":
            shown = 1 / (1 + math.exp(-4 * (value - center) / width))
        elif function == "LINEAR_EXACT":
            shown = (
                0
                if value <= center - width / 2
                else 1
                if value > center + width / 2
                else (value - center) / width + 0.5
            )
        elif value <= center - 0.5 - (width - 1) / 2:
            shown = 0
        elif value > center - 0.5 + (width - 1) / 2:
            shown = 1
        else:
            shown = (value - (center - 0.5)) / (width - 1) + 0.5
    shown = float(shown)
    return 1 - shown if tags.get("PhotometricInterpretation") == "MONOCHROME1" else shown


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_pixel_chain(name: str) -> None:
    values = image()
    shown = load(to_bytes(build(values, **CHAINS[name])))
    expected = np.vectorize(lambda value: reference(value, CHAINS[name]), otypes=[float])(values)
    np.testing.assert_allclose(shown.pixels, expected, atol=1e-6)
    assert shown.pixels.dtype == np.float32
    assert shown.window == ("voi_lut" if "VOILUTSequence" in CHAINS[name] else "window")


@pytest.mark.parametrize(("dtype", "bits"), [("i2", 12), ("i2", 16), ("u1", 8), ("i1", 8), ("u4", 20), ("i4", 24)])
def test_sign_and_depth(dtype: str, bits: int) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype[0] == "i" else (0, 2**bits - 1)
    values = image(low=low, high=high)
    shown = load(build(values, dtype=dtype, bits=bits))
    np.testing.assert_allclose(shown.pixels, (values - low) / (high - low), atol=1e-6)
    assert shown.window == "stored_range" and any("range" in note for note in shown.notes)


def test_overlay_bits_above_the_cell_are_dropped() -> None:
    values = image(low=-2048, high=2047)
    dirty = (values & 0x0FFF) | (np.random.default_rng(1).integers(0, 16, values.shape) << 12)
    dataset = build(dirty, bits=12, PixelRepresentation=1)
    np.testing.assert_allclose(load(dataset).pixels, (values + 2048) / 4095, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_out_of_the_range(photometric: str) -> None:
    values = image(low=1000, high=3000)
    values[:, :5], values[:, -3:] = 0, 40
    tags: dict[str, Any] = {
        "PixelPaddingValue": 0,
        "PixelPaddingRangeLimit": 50,
        "PhotometricInterpretation": photometric,
    }
    pixels = load(build(values, **tags)).pixels
    inner = (values[:, 5:-3] - 1000) / 2000
    assert (pixels[:, :5] == 0).all() and (pixels[:, -3:] == 0).all()
    np.testing.assert_allclose(pixels[:, 5:-3], 1 - inner if photometric == "MONOCHROME1" else inner, atol=1e-3)


@pytest.mark.parametrize(
    "tags", [{"WindowCenter": "90000", "WindowWidth": "10"}, {"WindowCenter": "5", "WindowWidth": "0"}]
)
def test_a_window_that_shows_nothing_is_not_used(tags: dict[str, Any]) -> None:
    shown = load(build(image(), **tags))
    assert shown.window == "stored_range" and any("window shows nothing" in note for note in shown.notes)


def test_contradicting_presentation_shape_is_noted() -> None:
    assert any("contradicts" in note for note in load(build(image(), PresentationLUTShape="INVERSE")).notes)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, BIG])
def test_native_encodings(syntax: str) -> None:
    values = image(low=-500, high=2047)
    expected = load(build(values, dtype="i2", **WINDOW)).pixels
    np.testing.assert_array_equal(load(to_bytes(build(values, dtype="i2", syntax=syntax, **WINDOW))).pixels, expected)


@pytest.mark.parametrize(
    ("name", "needs"), [("RLELossless", ""), ("JPEG2000Lossless", ""), ("JPEGLSLossless", "jpeg_ls")]
)
def test_compressed_encodings(name: str, needs: str) -> None:
    if needs:
        pytest.importorskip(needs)
    dataset = build(image(), **WINDOW)
    expected = load(dataset).pixels
    dataset.compress(getattr(pydicom.uid, name))
    np.testing.assert_array_equal(load(to_bytes(dataset)).pixels, expected)


def test_jpeg_baseline() -> None:
    expected = np.add.outer(np.arange(64), 2 * np.arange(64)) / 189
    assert np.abs(load(to_bytes(jpeg())).pixels - expected).mean() < 0.02


def test_without_file_meta() -> None:
    whole = build(image(), **WINDOW)
    expected = load(whole).pixels
    for implicit in (True, False):
        buffer = io.BytesIO()
        bare = copy.deepcopy(whole)
        del bare.file_meta
        pydicom.dcmwrite(buffer, bare, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        shown = load(buffer.getvalue())
        np.testing.assert_array_equal(shown.pixels, expected)
        assert any("transfer syntax" in note for note in shown.notes)


def test_a_dataset_is_not_changed() -> None:
    dataset = build(image(), **CHAINS["VOI LUT before window"])
    before = copy.deepcopy(dataset)
    load(dataset)
    assert dataset == before and dataset.file_meta == before.file_meta


def test_elements_we_vouch_for() -> None:
    shown = load(build(image(), PatientAge="018M", BodyPartExamined="CHEST ", SOPInstanceUID="1.2.3"))
    assert (shown.modality, shown.body_part, shown.view_position) == ("CR", "CHEST", "PA")
    assert (shown.sop_instance_uid, shown.patient_age_years, shown.frames) == ("1.2.3", 1.5, 1)
    assert load(build(image(), PatientAge=None)).patient_age_years is None


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom's, of values that are meant to be wrong
@pytest.mark.parametrize(
    ("age", "born", "made", "years"),
    [
        ("018Y", "20200101", "20260101", 18.0),
        ("6Y", None, None, 6.0),
        ("006M", None, None, 0.5),
        ("010D", None, None, 0.03),
        (None, "20080229", "20260228", 17.0),
        (None, "20080229", "20260301", 18.0),
        ("old", "19800601", "20260531", 45.0),
        (None, "20260101", "20251231", None),
        (None, "20081399", "20260101", None),
        (None, "2008", "20260101", None),
        (None, None, "20260101", None),
        (None, "20080101", None, None),
    ],
)
def test_age_is_said_or_follows_from_the_dates(
    age: str | None, born: str | None, made: str | None, years: float | None
) -> None:
    shown = load(build(image(), PatientAge=age, PatientBirthDate=born, StudyDate=made))
    assert shown.patient_age_years == years


def test_spacing_precedence() -> None:
    every: dict[str, Any] = {
        "PixelSpacing": [0.1, 0.2],
        "ImagerPixelSpacing": [0.3, 0.3],
        "NominalScannedPixelSpacing": [0.4, 0.4],
        "PixelAspectRatio": ["3", "2"],
    }
    found = []
    for keyword in every:
        shown = load(build(image(), **every))
        found.append((shown.spacing_mm, shown.pixel_size))
        every = every | {keyword: None}
    assert found[:3] == [((0.1, 0.2), (0.1, 0.2)), ((0.3, 0.3), (0.3, 0.3)), ((0.4, 0.4), (0.4, 0.4))]
    assert found[3] == (None, (1.5, 1.0))
    zero = load(build(image(), PixelSpacing=[0, 0]))
    assert zero.spacing_mm is None and any("spacing unknown" in note for note in zero.notes)


def view_item(meaning: str) -> Sequence:
    item = Dataset()
    item.CodeMeaning = meaning
    return Sequence([item])


@pytest.mark.parametrize(
    ("tags", "view"),
    [
        ({"ViewPosition": "LL"}, "LL"),
        ({"ViewPosition": None, "ViewCodeSequence": view_item("postero-anterior")}, "PA"),
        ({"ViewPosition": None, "ViewCodeSequence": view_item("left lateral")}, "LATERAL"),
        ({"ViewPosition": None, "PatientOrientation": ["A", "F"]}, "LATERAL"),
        ({"ViewPosition": None, "PatientOrientation": ["L", "F"]}, ""),
    ],
)
def test_view(tags: dict[str, Any], view: str) -> None:
    assert load(build(image(), **tags)).view_position == view


def test_array() -> None:
    values = image().astype(np.uint16)
    shown = load(values)
    np.testing.assert_allclose(shown.pixels, values / 4095, atol=1e-6)
    assert shown.modality == "" and shown.notes


def write_study(folder: Path, *datasets: Dataset) -> None:
    for number, dataset in enumerate(datasets):
        (folder / f"{number}.dcm").write_bytes(to_bytes(dataset))


def test_study_is_read_whole(tmp_path: Path) -> None:
    report = build(image(), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Rows=None)
    del report.PixelData
    (tmp_path / "sub").mkdir()
    write_study(tmp_path / "sub", build(image(), ViewPosition="LL"), build(image(), ViewPosition="AP"), report)
    write_study(tmp_path, build(image()))
    (tmp_path / "readme.txt").write_text("no image")
    (tmp_path / "DICOMDIR").write_bytes(b"index")
    outcomes = load_study(tmp_path)
    kinds = [item.view_position if isinstance(item, Radiograph) else item.code for item in outcomes]
    assert kinds == ["PA", "LL", "AP", "no_pixels"]
    chosen, others = pick_frontal([item for item in outcomes if isinstance(item, Radiograph)])
    assert chosen.view_position == "PA"
    assert [reason.code for _, reason in others] == ["other_frontal", "other_frontal"]


def test_two_studies_are_refused(tmp_path: Path) -> None:
    write_study(tmp_path, build(image()), build(image(), StudyInstanceUID="1.2.9"))
    with pytest.raises(InputError) as caught:
        load_study(tmp_path)
    assert caught.value.code == "several_studies"


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_study(tmp_path)
    assert caught.value.code == "empty_study"


def test_choice_of_the_frontal_view() -> None:
    small, large = (Radiograph(pixels=np.zeros((n, n), np.float32)) for n in (4, 8))
    ap = Radiograph(pixels=small.pixels, view_position="AP")
    assert pick_frontal([small, large])[0] is large
    assert pick_frontal([large, ap])[0] is ap
    with pytest.raises(InputError) as caught:
        pick_frontal([Radiograph(pixels=small.pixels, view_position="LATERAL")])
    assert caught.value.code == "no_frontal"


def test_pydicom_is_whole_before_threads_read() -> None:
    """Threads that import its modules at once meet half of one: a good file was called damaged."""
    inside = "sorted(name for name in sys.modules if name in names)"
    names = ["pydicom.encaps", "pydicom.filereader", "pydicom.pixels.decoders.base", "pydicom.uid"]
    code = f"import sys; from trrg_sdk.dicom_tags import quiet; names = {names}; print({inside})\n"
    code += f"with quiet(): print({inside})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", str(names)]
