"""Typed access to DICOM elements, and the silence around pydicom.

The texts of pydicom's exceptions and warnings may hold element values, and so patient data. They never reach a
message of ours: an error names the element and says what was expected of it.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import math
import re
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trrg_sdk.errors import DicomError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

_CODE_STRING = re.compile(r"[A-Z0-9 _]{1,16}")  # PS3.5 6.2, VR CS
_AGE = re.compile(r"(\d{1,3})([YMWD])")  # PS3.5 6.2, VR AS, which asks for three digits
_DAYS = {"Y": 365.2425, "M": 365.2425 / 12, "W": 7.0, "D": 1.0}
_MAX_VALUE = 256 << 10  # bytes; a lookup table of 65,536 entries has half of it
_MAX_SEQUENCE = 1 << 20
_UID = re.compile(r"[0-9.]{1,64}")  # PS3.5 6.2, VR UI
_LOGGERS = tuple(map(logging.getLogger, ("pydicom", "highdicom")))


def _import_pydicom() -> None:
    """Load pydicom whole, in one thread while the others wait.

    Its modules import each other in a circle, so threads that begin at different ones meet half of a module: an
    ``ImportError``, which would look like a damaged file.
    """
    import pydicom.encaps
    import pydicom.filereader
    import pydicom.pixels.decoders.base
    import pydicom.uid  # noqa: F401


class _Silence:
    """Counts who is inside, so that threads that overlap restore the filters once and in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()
        self._before: list[tuple[bool, int]] = []

    def enter(self) -> None:
        """Keep the libraries' warnings off the screen, out of the logs and from becoming errors."""
        with self._lock:
            _import_pydicom()
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
                self._before = [(logger.disabled, logger.level) for logger in _LOGGERS]
                for logger in _LOGGERS:
                    logger.disabled = True
                    logger.setLevel(logging.CRITICAL + 1)  # holds for the loggers below it too
            self._inside += 1

    def leave(self) -> None:
        """Restore both when the last one leaves."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)
                for logger, (disabled, level) in zip(_LOGGERS, self._before, strict=True):
                    logger.disabled = disabled
                    logger.setLevel(level)


_SILENCE = _Silence()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While inside, pydicom and highdicom neither warn nor log: both would show element values."""
    _SILENCE.enter()
    try:
        yield
    finally:
        _SILENCE.leave()


def label(keyword: str) -> str:
    """How an element is called in a message: name, number and keyword."""
    from pydicom.datadict import dictionary_description, tag_for_keyword

    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return f"{dictionary_description(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X}, {keyword})"


@functools.cache
def _tag(keyword: str) -> BaseTag:
    from pydicom.tag import Tag

    return Tag(keyword)


def raw(dataset: Dataset, keyword: str) -> Any:
    """The element's value, or None when it is absent or empty.

    Raises:
        DicomError: The element's bytes do not fit its VR (code ``bad_value``).
    """
    tag = _tag(keyword)  # pydicom would look a keyword up in its dictionary several times for each element
    try:
        if tag not in dataset:
            return None
        _check_length(dataset.get_item(tag), keyword)
        value = dataset[tag].value
    except DicomError:
        raise
    except Exception as error:  # pydicom converts values late, with whatever exception its VR's parser raises
        raise bad_value(keyword, "a value that fits its VR") from error
    return None if value is None or value == "" or value == [] else value


def _check_length(element: object, keyword: str) -> None:
    """A value is converted only when its length makes sense: pydicom would turn 50 MB of backslashes into a list."""
    limit = _MAX_SEQUENCE if getattr(element, "VR", None) == "SQ" else _MAX_VALUE
    if keyword != "PixelData" and (getattr(element, "length", None) or 0) > limit:  # only raw elements have a length
        raise bad_value(keyword, f"at most {limit >> 10} KiB")


def bad_value(keyword: str, expected: str) -> DicomError:
    """The error for an element whose value cannot be used; the value itself is not shown."""
    return DicomError(
        f"{label(keyword)} must hold {expected}, and this file's does not. Export the image again at the modality.",
        code="bad_value",
    )


def integer(dataset: Dataset, keyword: str, *, default: int | None = None, low: int = 0, high: int = 65535) -> int:
    """One whole number.

    Args:
        dataset: Where to look.
        keyword: The element's keyword.
        default: Taken when the element is absent or empty; without one it is required.
        low: Smallest value that makes sense.
        high: Largest value that makes sense.

    Raises:
        DicomError: Required and absent (``missing_tag``), or no whole number in the range (``bad_value``).
    """
    value = raw(dataset, keyword)
    if value is None:
        if default is None:
            raise missing(keyword)
        return default
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise bad_value(keyword, "one whole number") from error
    if number != value or not low <= number <= high:
        raise bad_value(keyword, f"one whole number from {low} to {high}")
    return number


def missing(keyword: str) -> DicomError:
    """The error for a required element that is absent or empty."""
    return DicomError(
        f"{label(keyword)} is missing; the pixels cannot be read without it. Export the image again at the modality.",
        code="missing_tag",
    )


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """All finite numbers of an element; empty when it is absent or is no list of numbers."""
    try:
        value = raw(dataset, keyword)
        values = () if value is None else tuple(float(v) for v in ([value] if _scalar(value) else value))
    except (DicomError, TypeError, ValueError, OverflowError):
        return ()
    return values if all(math.isfinite(v) for v in values) else ()


def code(dataset: Dataset, keyword: str) -> str:
    """One code string in capitals; "" when it is absent or no code string (free text never passes)."""
    try:
        value = raw(dataset, keyword)
    except DicomError:
        return ""
    text = str(value if value is None or _scalar(value) else value[0]).strip().upper()
    return text if value is not None and _CODE_STRING.fullmatch(text) else ""


def age_years(dataset: Dataset) -> float | None:
    """Patient's Age in years, else the whole years from Patient's Birth Date to Study Date.

    Returns:
        Years, or None when neither is there in its form, or the study was before the birth.
    """
    if said := _AGE.fullmatch(code(dataset, "PatientAge")):
        return round(int(said[1]) * _DAYS[said[2]] / _DAYS["Y"], 2)
    born, made = date(dataset, "PatientBirthDate"), date(dataset, "StudyDate")
    if born is None or made is None or made < born:
        return None
    return float(made.year - born.year - ((made.month, made.day) < (born.month, born.day)))


def date(dataset: Dataset, keyword: str) -> datetime.date | None:
    """One date; None when it is absent or malformed."""
    digits = code(dataset, keyword)
    try:
        return datetime.datetime.strptime(digits, "%Y%m%d").date() if len(digits) == 8 else None
    except ValueError:
        return None


def uid(dataset: Dataset, keyword: str) -> str:
    """One UID; "" when it is absent or malformed."""
    try:
        text = str(raw(dataset, keyword) or "").strip("\0 ")
    except DicomError:
        return ""
    return text if _UID.fullmatch(text) else ""


def _scalar(value: object) -> bool:
    """True for a single value, as opposed to a multi-valued one."""
    return isinstance(value, (str, bytes, int, float)) or not hasattr(value, "__getitem__")
