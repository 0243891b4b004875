"""Mutated DICOM files and hand-made hostile ones: a reason each, in bounded time and memory."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest

from tests.sdk.chest_dicom import chest_bytes
from tests.sdk.dicom_builder import DEFLATED, build, image
from tests.sdk.dicom_fuzzer import corpus, fuzz, mutate
from trrg_sdk import dicom_stream, dicom_tags
from trrg_sdk.dicom import load
from trrg_sdk.dicom_header import read_header
from trrg_sdk.errors import DicomError


def check(count: int, folder: Path | None) -> None:
    result = fuzz(seed=6, count=count, folder=folder)
    assert not result["failures"], result
    assert sum(result["codes"].values()) == count
    assert len(result["codes"]) > 5, "the mutations do not reach far"


def test_some_hundred_mutations_are_survived() -> None:
    check(400, None)


@pytest.mark.slow
def test_ten_thousand_mutations_are_survived(shared_data: Path) -> None:
    check(10_000, shared_data / "dicom")


def test_a_case_can_be_made_again() -> None:
    files = corpus(None)
    assert mutate(files, seed=1, number=7) == mutate(files, seed=1, number=7) != mutate(files, seed=1, number=8)


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return struct.pack("<HH2sHL", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def before_modality(extra: bytes) -> bytes:
    """A chest radiograph with ``extra`` elements of a low group in its header."""
    content = chest_bytes()
    at = content.index(struct.pack("<HH", 0x0008, 0x0016))
    return content[:at] + extra + content[at:]


def deflated(data_set: bytes) -> bytes:
    stream = io.BytesIO()
    build(image(), syntax=DEFLATED).save_as(stream, enforce_file_format=True)
    content = stream.getvalue()
    meta = 144 + struct.unpack_from("<L", content, 140)[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return content[:meta] + packer.compress(data_set) + packer.flush()


def refused(content: bytes) -> set[str]:
    codes = set()
    for read in (lambda: load(content), lambda: read_header(io.BytesIO(content))):
        with pytest.raises(DicomError) as caught:
            read()
        codes.add(caught.value.code)
    return codes


def test_a_million_elements_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_stream, "MAX_READS", 5000)
    assert refused(before_modality(element(8, 1, b"LO", b"") * 6000)) == {"too_complex"}


def test_a_header_of_megabytes_is_skipped_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    big = before_modality(element(8, 1, b"OB", bytes(6 << 20)))
    assert read_header(io.BytesIO(big)).rows == 256  # nobody asked for that value
    monkeypatch.setattr(dicom_stream, "MAX_HEADER_BYTES", 1 << 20)
    endless = before_modality(struct.pack("<HH2sHL", 8, 1, b"UN", 0, 0xFFFFFFFF) + bytes(2 << 20))
    with pytest.raises(DicomError) as caught:
        read_header(io.BytesIO(endless))
    assert caught.value.code == "too_complex"


def test_a_deflated_bomb_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_stream, "MAX_INFLATED", 1 << 20)
    assert refused(deflated(element(8, 1, b"OB", bytes(2 << 20)))) == {"too_complex"}


def test_a_million_elements_in_a_deflated_data_set_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_stream, "MAX_READS", 5000)
    assert refused(deflated(element(8, 1, b"LO", b"") * 6000)) == {"too_complex"}


def test_sequences_without_end_are_a_broken_structure() -> None:
    opened = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    assert refused(before_modality(opened * 5000)) <= {"corrupt", "too_complex"}


def test_a_value_that_is_far_too_long_is_not_converted() -> None:
    content = before_modality(element(8, 0x8, b"UN", b"A\\" * 200_000))  # Image Type
    dataset = dicom_stream.read_elements(io.BytesIO(content), ("ImageType",))
    with pytest.raises(DicomError, match="at most 256 KiB"):
        dicom_tags.raw(dataset, "ImageType")


def test_hostile_uids_are_no_uids() -> None:
    content = chest_bytes(study="2.25.1001").replace(b"2.25.1001", b"../../etc")
    assert read_header(io.BytesIO(content)).described.study_instance_uid == ""
