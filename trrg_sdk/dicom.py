"""A file, a folder of one study, bytes, a Dataset or an array to `Radiograph`: what the rest of the SDK works on.

Everything that pydicom and its decoders can raise is translated here into ``DicomError`` with a code of
``trrg_sdk.gate_codes``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trrg_sdk import dicom_tags as tags
from trrg_sdk import pixel_data
from trrg_sdk.context import StudyContext, read_context
from trrg_sdk.dicom_stream import read_all
from trrg_sdk.errors import DicomError, InputError
from trrg_sdk.gate_codes import reason
from trrg_sdk.pixels import Window, show
from trrg_sdk.report import GateReason

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Source: TypeAlias = "str | os.PathLike[str] | bytes | Callable[[], bytes] | Dataset | NDArray[Any] | Radiograph"

MAGIC = {
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"GIF8": "a GIF picture",
    b"II*\x00": "a TIFF picture",
    b"MM\x00*": "a TIFF picture",
}
_LATERAL = ("LATERAL", "LL", "RL", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # arrays have no single truth value
class Radiograph:
    """One decoded image and the elements that the SDK vouches for. The ``repr`` shows no identifier and no pixels.

    Attributes:
        pixels: float32 (H, W), 0 to 1, larger is brighter; bone is bright and air is dark in a correct film.
        spacing_mm: Distance of rows and of columns in mm, or None when the file does not say.
        aspect: Height of a pixel divided by its width; from the spacing, else from Pixel Aspect Ratio, else 1.
        sop_instance_uid: (0008,0018).
        study_instance_uid: (0020,000D).
        series_instance_uid: (0020,000E).
        sop_class_uid: (0008,0016).
        modality: (0008,0060), such as "DX".
        body_part: (0018,0015), such as "CHEST".
        view_position: "PA", "AP", "LATERAL", ... from (0018,5101), else from (0054,0220) or (0020,0020).
        photometric_interpretation: (0028,0004); the pixels are already inverted when it is MONOCHROME1.
        window: What made the grey values: "voi_lut", "window" or "stored_range".
        frames: Always 1: more are refused.
        patient_age_years: From (0010,1010), else from Patient's Birth Date and Study Date.
        notes: What had to be assumed, one sentence each.
        context: The patient's and the study's attributes; None for an array.

    Every string is "" when the file does not hold it (or holds no valid code).
    """

    pixels: NDArray[np.float32] = field(repr=False)
    spacing_mm: tuple[float, float] | None = None
    aspect: float = 1.0
    sop_instance_uid: str = field(default="", repr=False)
    study_instance_uid: str = field(default="", repr=False)
    series_instance_uid: str = field(default="", repr=False)
    sop_class_uid: str = ""
    modality: str = ""
    body_part: str = ""
    view_position: str = ""
    photometric_interpretation: str = ""
    window: Window = "stored_range"
    frames: int = 1
    patient_age_years: float | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    context: StudyContext | None = field(default=None, repr=False)

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Height and width of a pixel: in mm when ``spacing_mm`` is known, else relative to each other."""
        return self.spacing_mm or (self.aspect, 1.0)


def load(source: Source) -> Radiograph:
    """Read one image.

    Args:
        source: A path, the bytes of a file, a function that fetches them when their turn has come (``OSError`` when
            they cannot be had), a pydicom Dataset (it is not changed) or a 2-D numpy array of numbers (H, W) in which
            **larger is brighter**; an array's range is scaled to 0..1. A Radiograph is one already.

    Raises:
        DicomError: It cannot be read as one grey image; ``code`` says why (see the module).
    """
    if isinstance(source, Radiograph):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    content = _fetched(source) if callable(source) else source
    with tags.quiet():
        try:
            return _from_dataset(_read(content))
        except InputError:
            raise
        except Exception as error:  # pydicom converts elements late, so a damaged one may raise anywhere above
            raise DicomError(
                f"an element of the file is damaged ({type(error).__name__}). Send the file again.", code="corrupt"
            ) from error


def load_study(folder: str | os.PathLike[str]) -> list[Radiograph | InputError]:
    """Read every DICOM file under a folder, in the order of their paths; other files are passed over.

    Args:
        folder: Searched with its subfolders.

    Returns:
        For each DICOM file its image, or the error that says why there is none.

    Raises:
        InputError: No DICOM file is there (code ``empty_study``), or images of several studies (``several_studies``).
    """
    outcomes: list[Radiograph | InputError] = []
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name.upper() != "DICOMDIR"):
        try:
            outcomes.append(load(path))
        except DicomError as error:
            if error.code != "not_dicom":
                outcomes.append(error)
    if not outcomes:
        raise InputError("the folder holds no DICOM file; give the folder of one study", code="empty_study")
    studies = {item.study_instance_uid for item in outcomes if isinstance(item, Radiograph)}
    if len(studies) > 1:
        raise InputError(
            f"the folder holds images of {len(studies)} studies, one was expected; give each study its own folder",
            code="several_studies",
        )
    return outcomes


def pick_frontal(
    radiographs: Sequence[Radiograph], *, laterals: bool = False
) -> tuple[Radiograph, list[tuple[Radiograph, GateReason]]]:
    """Choose the image to report: PA before AP before an unknown view, the larger one among equals.

    Args:
        radiographs: Images of one study; give those that the gate lets pass.
        laterals: Take a lateral one where there is no other: the bundle knows them, or the caller overrides the gate.

    Returns:
        The chosen one, and every other with the reason why it was not.

    Raises:
        InputError: None of them is frontal (code ``no_frontal``).
    """
    usable = (r for r in radiographs if laterals or not is_lateral(r))
    ranked = sorted(usable, key=lambda r: (is_lateral(r), rank(r), -r.pixels.size))
    if not ranked:
        raise InputError("the study holds no frontal chest image; send the PA or AP view", code="no_frontal")
    chosen = ranked[0]
    return chosen, [(other, why_not(chosen.view_position)) for other in radiographs if other is not chosen]


def is_lateral(radiograph: Radiograph) -> bool:
    """True when the file says that the view is lateral or oblique."""
    return radiograph.view_position in _LATERAL


def rank(radiograph: Radiograph) -> int:
    """Order the views: 0 for PA, 1 for AP, 2 for any other view."""
    return {"PA": 0, "AP": 1}.get(radiograph.view_position, 2)


def why_not(chosen: str) -> GateReason:
    """Say why an image of the study that the gate lets pass was not reported and one of the view ``chosen`` was."""
    return reason("other_frontal", better=chosen or "larger")


def _from_array(array: NDArray[Any]) -> Radiograph:
    """An array as a radiograph: larger is brighter, the range is scaled to 0..1."""
    if array.ndim != 2 or min(array.shape) < 2:
        raise DicomError(
            f"one grey image (rows, columns) was expected, an array of shape {array.shape} came", code="bad_array"
        )
    if array.dtype.kind not in "uif":
        raise DicomError(f"an array of numbers was expected, one of {array.dtype} came", code="bad_array")
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise DicomError("the array holds values that are no finite numbers; replace them", code="bad_array")
    low, high = values.min(), values.max()
    if low == high:
        raise DicomError("every pixel of the array has the same value; there is nothing to report", code="blank")
    pixels = ((values - low) / (high - low)).astype(np.float32)
    return Radiograph(pixels=pixels, notes=("an array says nothing of itself: larger is taken as brighter",))


def _fetched(fetch: Callable[[], object]) -> bytes:
    """Call what gives the bytes. What it raises beyond ``OSError`` is its caller's bug, and no damaged file."""
    try:
        content = fetch()
    except OSError as error:
        raise _unreadable(error) from error
    if not isinstance(content, bytes):
        came = type(content).__name__
        raise DicomError(f"a function that gives the bytes of a file was expected, it gave {came}", code="not_dicom")
    return content


def _unreadable(error: Exception) -> DicomError:
    return DicomError(
        f"the file cannot be opened ({type(error).__name__}); check the path and the rights", code="unreadable"
    )


def _read(source: str | os.PathLike[str] | bytes | Dataset) -> Dataset:
    """Parse the source; what comes back looks like DICOM."""
    from pydicom.dataset import Dataset

    if isinstance(source, Dataset):
        return source
    if isinstance(source, bytes):
        return _parse(source)
    if not isinstance(source, (str, os.PathLike)):
        raise DicomError(
            "a path, bytes, a function that gives them, a pydicom Dataset or a numpy array was expected, "
            f"{type(source).__name__} came",
            code="not_dicom",
        )
    try:
        return _parse(Path(source).read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(error) from error


def _parse(content: bytes) -> Dataset:
    """The bytes of a file as a Dataset; also of a file without preamble and file meta (PS3.10 7.1)."""
    from io import BytesIO

    is_part10 = content[128:132] == b"DICM"
    for magic, kind in () if is_part10 else MAGIC.items():
        if content.startswith(magic):
            raise DicomError(f"a DICOM file was expected, {kind} came; export the image as DICOM", code="not_dicom")
    try:
        dataset = read_all(BytesIO(content))
        plausible = is_part10 or looks_like_dicom(dataset)
    except DicomError:
        raise
    except Exception as error:  # a broken structure raises whatever the parser trips over
        if is_part10:
            raise DicomError(
                f"the file's structure is broken ({type(error).__name__}); it may be cut off. Send it again.",
                code="corrupt",
            ) from error
        plausible = False
    if not plausible:
        raise DicomError("a DICOM file was expected, something else came; check which file was sent", code="not_dicom")
    return dataset


def looks_like_dicom(dataset: Dataset) -> bool:
    """Say whether it is one: without the "DICM" mark, only a known SOP class or an image's elements make one."""
    from pydicom.uid import UID

    known = UID(tags.uid(dataset, "SOPClassUID")).type == "SOP Class"
    return known or ("PixelData" in dataset and "Rows" in dataset)


def _from_dataset(dataset: Dataset) -> Radiograph:
    """Decode the pixels and read the elements we vouch for."""
    stored, decode_notes = pixel_data.stored_values(dataset)
    shown = show(stored, dataset)
    spacing, aspect, spacing_notes = _spacing(dataset)
    context = read_context(dataset)
    return Radiograph(
        pixels=shown.pixels,
        spacing_mm=spacing,
        aspect=aspect,
        sop_instance_uid=tags.uid(dataset, "SOPInstanceUID"),
        study_instance_uid=tags.uid(dataset, "StudyInstanceUID"),
        series_instance_uid=tags.uid(dataset, "SeriesInstanceUID"),
        sop_class_uid=tags.uid(dataset, "SOPClassUID"),
        modality=tags.code(dataset, "Modality"),
        body_part=tags.code(dataset, "BodyPartExamined"),
        view_position=view_position(dataset),
        photometric_interpretation=tags.code(dataset, "PhotometricInterpretation"),
        window=shown.window,
        patient_age_years=tags.age_years(dataset),
        notes=decode_notes + shown.notes + spacing_notes + context.notes,
        context=context,
    )


def _spacing(dataset: Dataset) -> tuple[tuple[float, float] | None, float, tuple[str, ...]]:
    """Row and column distance in mm, the pixel's height over its width, and what was assumed.

    Pixel Spacing is calibrated where it is there (PS3.3 10.7.1.3), Imager Pixel Spacing is measured at the detector,
    Nominal Scanned Pixel Spacing at the digitised film.
    """
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        values = tags.numbers(dataset, keyword)
        if len(values) == 2 and min(values) > 0:
            return (values[0], values[1]), values[0] / values[1], ()
    ratio = tags.numbers(dataset, "PixelAspectRatio")
    if len(ratio) == 2 and min(ratio) > 0:
        return None, ratio[0] / ratio[1], ("pixel spacing unknown",)
    return None, 1.0, ("pixel spacing unknown: pixels are taken as square",)


def view_position(dataset: Dataset) -> str:
    """The view: View Position, else the meaning of View Code Sequence, else Patient Orientation."""
    position = tags.code(dataset, "ViewPosition")
    if position:
        return position
    sequence = tags.raw(dataset, "ViewCodeSequence")
    meaning = str(tags.raw(sequence[0], "CodeMeaning") or "").lower().replace("-", "") if sequence else ""
    for word, view in (("posteroanterior", "PA"), ("anteroposterior", "AP"), ("lateral", "LATERAL")):
        if word in meaning:
            return view
    # PS3.3 C.7.6.1.1.1: rows that run to the front or the back of the patient are a lateral view
    return "LATERAL" if tags.code(dataset, "PatientOrientation")[:1] in ("A", "P") else ""
