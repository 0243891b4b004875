"""Every real DICOM file at hand passes the gate or is refused for the reason that stands here, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trrg_sdk.dicom import Radiograph, load
from trrg_sdk.errors import DicomError
from trrg_sdk.gate import check
from trrg_sdk.preprocess import Preprocess

PASSED = "passed"
EXPECTED = {
    "pydicom-data__693_J2KR.dcm": "wrong_modality",
    "pydicom-data__693_UNCI.dcm": "wrong_modality",
    "pydicom-data__HTJ2KLossless_08_RGB.dcm": "colour",
    "pydicom-data__JLSL_08_07_0_1F.dcm": "modality_missing",
    "pydicom-data__JLSL_16_15_1_1F.dcm": "modality_missing",
    "pydicom-data__JPEG-LL.dcm": "wrong_modality",
    "pydicom-data__JPGLosslessP14SV1_1s_1f_8b.dcm": "wrong_modality",
    "pydicom-data__OT-PAL-8-face.dcm": "colour",
    "pydicom-data__RG1_J2KI.dcm": PASSED,
    "pydicom-data__RG3_J2KI.dcm": "wrong_body_part",
    "pydicom-data__RG3_J2KR.dcm": "wrong_body_part",
    "pydicom-data__SC_rgb_16bit.dcm": "colour",
    "pydicom-data__bad_sequence.dcm": "wrong_modality",
    "pydicom-data__color-pl.dcm": "colour",
    "pydicom-data__eCT_Supplemental.dcm": "multi_frame",
    "pydicom-data__emri_small.dcm": "multi_frame",
    "pydicom-data__emri_small_RLE.dcm": "multi_frame",
    "pydicom-data__explicit_VR-UN.dcm": "wrong_modality",
    "pydicom__6154": "wrong_body_part",
    "pydicom__693_J2KI.dcm": "wrong_modality",
    "pydicom__CT_small.dcm": "wrong_modality",
    "pydicom__ExplVR_BigEnd.dcm": "colour",
    "pydicom__ExplVR_BigEndNoMeta.dcm": "no_pixels",
    "pydicom__ExplVR_LitEndNoMeta.dcm": "no_pixels",
    "pydicom__J2K_pixelrep_mismatch.dcm": "wrong_modality",
    "pydicom__JPEG-lossy.dcm": "undecodable",
    "pydicom__JPEG2000-embedded-sequence-delimiter.dcm": "bad_size",
    "pydicom__JPEG2000.dcm": "wrong_modality",
    "pydicom__JPEGLSNearLossless_08.dcm": "modality_missing",
    "pydicom__JPEGLSNearLossless_16.dcm": "modality_missing",
    "pydicom__JPGExtended.dcm": "wrong_modality",
    "pydicom__MR_small_RLE.dcm": "wrong_modality",
    "pydicom__MR_small_bigendian.dcm": "wrong_modality",
    "pydicom__MR_small_implicit.dcm": "wrong_modality",
    "pydicom__MR_small_jp2klossless.dcm": "wrong_modality",
    "pydicom__MR_small_jpeg_ls_lossless.dcm": "wrong_modality",
    "pydicom__MR_small_padded.dcm": "wrong_modality",
    "pydicom__MR_truncated.dcm": "truncated",
    "pydicom__SC_rgb_jpeg_dcmtk.dcm": "colour",
    "pydicom__SC_rgb_rle_2frame.dcm": "multi_frame",
    "pydicom__SC_ybr_full_422_uncompressed.dcm": "colour",
    "pydicom__UN_sequence.dcm": "no_pixels",
    "pydicom__badVR.dcm": "bad_value",
    "pydicom__chrJapMulti.dcm": "no_pixels",
    "pydicom__chrX2.dcm": "wrong_modality",
    "pydicom__empty_charset_LEI.dcm": "no_pixels",
    "pydicom__examples_jpeg2k.dcm": "colour",
    "pydicom__examples_overlay.dcm": "wrong_modality",
    "pydicom__examples_palette.dcm": "colour",
    "pydicom__image_dfl.dcm": "wrong_modality",
    "pydicom__liver_1frame.dcm": "wrong_modality",
    "pydicom__meta_missing_tsyntax.dcm": "missing_tag",
    "pydicom__nested_priv_SQ.dcm": "missing_tag",
    "pydicom__no_meta.dcm": "not_dicom",
    "pydicom__reportsi.dcm": "no_pixels",
    "pydicom__rtdose.dcm": "multi_frame",
    "pydicom__rtplan_truncated.dcm": "no_pixels",
    "pydicom__test-SR.dcm": "no_pixels",
    "pydicom__waveform_ecg.dcm": "no_pixels",
    "torchxrayvision__1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm": PASSED,
    "torchxrayvision__Fake_MONOHR1.dcm": "inverted",
}


def outcome(path: Path) -> str:
    try:
        radiograph = load(path)
    except DicomError as error:
        assert len(str(error)) > 40, f"no reason that a technician understands: {error}"
        return error.code
    reasons = check(radiograph)
    return reasons[0].code if reasons else PASSED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_outcome(name: str, shared_data: Path) -> None:
    assert outcome(shared_data / "dicom" / name) == EXPECTED[name]


def test_the_table_is_complete(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "dicom").iterdir()} - {"index.csv"} == set(EXPECTED)


def passing(shared_data: Path) -> list[Radiograph]:
    return [load(shared_data / "dicom" / name) for name, code in EXPECTED.items() if code == PASSED]


def test_what_passes_is_a_film_of_the_right_polarity(shared_data: Path) -> None:
    for radiograph in passing(shared_data):
        tensor = Preprocess(mean=0, std=1).apply(radiograph.pixels, spacing_mm=radiograph.pixel_size)[0]
        assert 0.2 < tensor.mean() < 0.8 and tensor.std() > 0.1
        lungs = np.concatenate([tensor[60:110, 40:75].ravel(), tensor[60:110, 120:155].ravel()])
        assert lungs.mean() < tensor[60:160, 88:104].mean() - 0.1, "the lungs are brighter than the spine"
        assert lungs.mean() < tensor[150:180, 40:152].mean() - 0.1, "the lungs are brighter than the abdomen"


def test_the_same_film_as_array_passes(shared_data: Path) -> None:
    for radiograph in passing(shared_data):
        assert check(load(radiograph.pixels)) == ()
        assert [reason.code for reason in check(load(1 - radiograph.pixels))] == ["inverted"]


def test_one_image_in_many_encodings_is_one_image(shared_data: Path) -> None:
    """The MR_small files hold the same slice natively, big endian, as RLE, as JPEG 2000 and as JPEG-LS."""
    names = [name for name in EXPECTED if "MR_small" in name]
    images = [load(shared_data / "dicom" / name).pixels for name in names]
    assert len(images) == 6
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])
