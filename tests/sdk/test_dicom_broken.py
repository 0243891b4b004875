"""Every way a DICOM file can be broken ends in one error with a code, and never in patient data on the screen."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.encaps import encapsulate

from tests.sdk.dicom_builder import CHAINS, DEFLATED, EXPLICIT, SECRET, WINDOW, build, image, jpeg, table, to_bytes
from trrg_sdk import dicom_tags
from trrg_sdk.dicom import load
from trrg_sdk.errors import DicomError


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.zeros((8, 8)), "blank"),
        (np.zeros((8, 8, 3)), "bad_array"),
        (np.zeros((8, 8), complex), "bad_array"),
        (np.zeros((8, 8), bool), "bad_array"),
        (np.full((8, 8), np.inf), "bad_array"),
        (np.zeros((0, 8)), "bad_array"),
    ],
)
def test_arrays_refused(array: NDArray[Any], code: str) -> None:
    assert refusal(array).code == code


def refusal(source: Any) -> DicomError:
    with pytest.raises(DicomError) as caught:
        load(source)
    assert "ZEBRA" not in str(caught.value) and "QUAGGA" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("tags", "code", "names"),
    [
        ({"Rows": None}, "missing_tag", "(0028,0010, Rows)"),
        ({"Columns": None}, "missing_tag", "(0028,0011, Columns)"),
        ({"BitsAllocated": None}, "missing_tag", "(0028,0100, BitsAllocated)"),
        ({"BitsStored": None}, "missing_tag", "(0028,0101, BitsStored)"),
        ({"PixelRepresentation": None}, "missing_tag", "(0028,0103, PixelRepresentation)"),
        ({"PhotometricInterpretation": None}, "missing_tag", "(0028,0004, PhotometricInterpretation)"),
        ({"BitsAllocated": 12}, "bad_value", "BitsAllocated"),
        ({"Rows": 0}, "bad_value", "Rows"),
        ({"PixelRepresentation": 7}, "bad_value", "PixelRepresentation"),
        ({"RescaleSlope": "0"}, "bad_value", "RescaleSlope"),
        (WINDOW | {"VOILUTFunction": "CUBIC"}, "bad_value", "VOILUTFunction"),
        ({"VOILUTSequence": table(0, [1, 2, 3], 5)}, "bad_value", "LUTDescriptor"),
        ({"PhotometricInterpretation": "RGB"}, "colour", "RGB"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour", "PALETTE COLOR"),
        ({"NumberOfFrames": "2"}, "multi_frame", "2"),
        ({"Rows": 65000, "Columns": 65000}, "bad_size", "65000 x 65000"),
        ({"Rows": 9000, "Columns": 9000}, "bad_size", "9000 x 9000"),
        ({"Rows": 50}, "truncated", "4000 bytes"),
    ],
)
def test_elements_refused(tags: dict[str, Any], code: str, names: str) -> None:
    error = refusal(build(image(), **tags))
    assert error.code == code and names in str(error)


def test_short_lut_is_refused() -> None:
    sequence = table(0, [1, 2, 3], 8)
    sequence[0].LUTDescriptor = [300, 0, 8]
    assert "LUTData" in str(refusal(build(image(), VOILUTSequence=sequence)))


@pytest.mark.parametrize("value", [0, 7, 4095])
def test_constant_image_is_a_failed_decoding(value: int) -> None:
    assert refusal(build(np.full((20, 20), value))).code == "blank"


def test_only_padding_is_blank() -> None:
    values = np.zeros((20, 20), int)
    values[3:] = 900
    assert refusal(build(values, PixelPaddingValue=0)).code == "blank"


def test_wrong_vr_names_the_element_and_not_its_value() -> None:
    content = to_bytes(build(image(), NumberOfFrames="7"))
    error = refusal(content.replace(b"IS\x02\x007 ", b"IS\x02\x00QX"))
    assert error.code == "bad_value" and "(0028,0008, NumberOfFrames)" in str(error) and "QX" not in str(error)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 200, b"%PDF-1.7 " + b"x" * 300, b"\xff\xd8\xff\xe0" + b"x" * 300, b"\x89PNG\r\n", b"hello " * 100],
)
def test_other_files_are_not_dicom(content: bytes) -> None:
    assert refusal(content).code == "not_dicom"


def test_random_bytes_are_not_dicom() -> None:
    rng = np.random.default_rng(0)
    assert {refusal(rng.bytes(2000)).code for _ in range(50)} == {"not_dicom"}


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "film.dcm"
    path.write_bytes(to_bytes(build(image())))
    assert load(path).pixels.shape == load(str(path)).pixels.shape == (48, 40)
    missing = refusal(tmp_path / "ZEBRA.dcm")
    assert missing.code == "unreadable"
    assert refusal(tmp_path).code == "unreadable"
    assert refusal(17).code == "not_dicom"


def test_object_without_image_says_what_it_is() -> None:
    dataset = build(image(), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Rows=None)
    del dataset.PixelData
    error = refusal(dataset)
    assert error.code == "no_pixels" and "Basic Text SR" in str(error)


def test_unknown_codec_is_named() -> None:
    dataset = build(image(), syntax="1.2.840.10008.1.2.4.102")  # MPEG-4
    dataset.PixelData = encapsulate([b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 4])
    error = refusal(dataset)
    assert error.code == "undecodable" and "MPEG-4" in str(error) and "1.2.840.10008.1.2.4.102" in str(error)


def test_compressed_frame_of_another_size() -> None:
    dataset = jpeg()
    dataset.Rows = 63
    error = refusal(dataset)
    assert error.code == "bad_size" and "64 x 64" in str(error)


def test_little_data_for_a_giant_frame() -> None:
    dataset = build(image(), syntax="1.2.840.10008.1.2.5", Rows=9000, Columns=9000)
    dataset.PixelData = encapsulate([b"\2\0\0\0" + bytes(100)])
    assert refusal(dataset).code == "bad_size"


@pytest.mark.parametrize("kind", ["native", "jpeg", "JPEG2000Lossless", "RLELossless", "deflated"])
def test_cut_anywhere_is_an_error_or_the_same_image(kind: str) -> None:
    dataset = jpeg() if kind == "jpeg" else build(image(), syntax=DEFLATED if kind == "deflated" else EXPLICIT)
    if kind[0].isupper():
        dataset.compress(getattr(pydicom.uid, kind))
    content = to_bytes(dataset)
    whole = load(content).pixels
    for end in [*range(0, len(content), 41), *range(len(content) - 20, len(content))]:
        try:
            assert (load(content[:end]).pixels == whole).all(), f"another image from the first {end} bytes"
        except DicomError as error:
            assert SECRET not in str(error)


@pytest.mark.parametrize("kind", ["native", "jpeg", "JPEG2000Lossless", "RLELossless"])
def test_damaged_bytes_raise_nothing_else(kind: str) -> None:
    dataset = jpeg() if kind == "jpeg" else build(image(), **CHAINS["VOI LUT before window"])
    if kind[0].isupper():
        dataset.compress(getattr(pydicom.uid, kind))
    content, rng = to_bytes(dataset), np.random.default_rng(3)
    for _ in range(150):
        damaged = bytearray(content)
        for at in rng.integers(132, len(content), 3):
            damaged[at] = rng.integers(256)
        with contextlib.suppress(DicomError):
            assert np.isfinite(load(bytes(damaged)).pixels).all()


def test_repr_shows_no_identifier() -> None:
    text = repr(load(build(image(), SOPInstanceUID="1.2.3.4.5", StudyInstanceUID="1.2.3.4.6", PatientAge="093Y")))
    assert not any(secret in text for secret in ("1.2.3.4.5", "1.2.3.4.6", "93", "ZEBRA", "array"))


def test_free_text_never_passes_as_a_code() -> None:
    dataset = build(image())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.BodyPartExamined = "chest of Mr Zebra, ward 7"
        assert load(dataset).body_part == ""


def test_pydicom_is_silent_and_its_logger_restored(caplog: pytest.LogCaptureFixture) -> None:
    content = to_bytes(build(image(), SpecificCharacterSet="ISO_IR 100")).replace(b"ISO_IR 100", b"ISO_IR 999")
    with pytest.warns(UserWarning, match="encoding"):  # what pydicom says when nobody silences it
        str(pydicom.dcmread(io.BytesIO(content)).PatientName)
    caplog.clear()
    logger = logging.getLogger("pydicom")
    before = (logger.disabled, list(warnings.filters))
    with caplog.at_level(logging.DEBUG):
        assert load(content).body_part == "CHEST"
        logger.warning("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]
    assert (logger.disabled, list(warnings.filters)) == before


def test_overlapping_threads_restore_the_filters() -> None:
    before = list(warnings.filters)
    first, second = dicom_tags.quiet(), dicom_tags.quiet()
    first.__enter__()
    thread = threading.Thread(target=second.__enter__)
    thread.start()
    thread.join()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert list(warnings.filters) == before and not logging.getLogger("pydicom").disabled
