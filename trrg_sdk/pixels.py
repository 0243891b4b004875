"""Pixel data to displayed values, in the order that the standard fixes.

    stored value → modality LUT or rescale (PS3.3 C.11.1) → VOI LUT or window (C.11.2)
                 → inversion for MONOCHROME1 (C.7.6.3.1.2)

Every step maps one value to one value. So the chain runs over the table of possible stored values (65,536 at most
for 16 bits) and the image is one look-up: exact in float64, and a 4-megapixel film takes milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from trrg_sdk import dicom_tags as tags
from trrg_sdk.errors import DicomError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Window = Literal["voi_lut", "window", "stored_range"]


@dataclass(frozen=True, slots=True)
class Shown:
    """An image as a viewer would show it.

    Attributes:
        pixels: float32 (H, W), 0 black to 1 white.
        window: What made the grey values.
        notes: What had to be assumed.
    """

    pixels: NDArray[np.float32]
    window: Window
    notes: tuple[str, ...]


def show(stored: NDArray[Any], dataset: Dataset) -> Shown:
    """Run the whole chain.

    Args:
        stored: Integers (H, W) as decoded.
        dataset: The elements that describe them; it is not changed.

    Raises:
        DicomError: A look-up table or a VOI function is unusable (``bad_value``), or nothing but one value and
            padding is there (``blank``).
    """
    domain, levels, used = _domain(stored)
    padding = _padding(domain, dataset)
    used &= ~padding
    values = _modality(domain.astype(np.float64), dataset)
    if not used.any() or np.ptp(values[used]) == 0:
        raise DicomError(
            "every pixel has the same value, which is how a failed decoding looks. Send the image again.", code="blank"
        )
    shown, window, notes = _voi(values, used, dataset)
    inverted, polarity_notes = _inverted(dataset)
    if inverted:
        shown = 1.0 - shown
    shown[padding] = 0.0  # C.7.5.1.1.2: padding is no image; black, like air
    return Shown(shown.astype(np.float32)[levels], window, notes + polarity_notes)


def unpack(stored: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Bring Bits Stored of a native (uncompressed) cell down to bit 0 and extend its sign (PS3.5 8.1.1).

    Older objects keep overlays in the bits above (PS3.5 8.1.2, retired), which are no part of the value.

    Args:
        stored: Integers (H, W) of Bits Allocated bits.
        dataset: Bits Stored, High Bit and Pixel Representation.
    """
    allocated = stored.dtype.itemsize * 8
    bits = tags.integer(dataset, "BitsStored", low=1, high=64)
    high = tags.integer(dataset, "HighBit", default=bits - 1, high=63)
    if bits >= allocated or high >= allocated or high < bits - 1:
        return stored
    unsigned = stored.view(f"{stored.dtype.byteorder}u{stored.dtype.itemsize}").astype(f"u{stored.dtype.itemsize}")
    cell = (unsigned >> (high - bits + 1)) << (allocated - bits)  # the top of the cell, so that a signed shift extends
    return np.asarray(cell.view(f"{stored.dtype.kind}{stored.dtype.itemsize}") >> (allocated - bits))


def _domain(stored: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """All values a pixel can have, the index of each pixel's value (H, W), and which values occur."""
    if stored.dtype.itemsize > 2:
        domain, levels = np.unique(stored, return_inverse=True)
        return domain, levels.reshape(stored.shape), np.ones(domain.shape, np.bool_)
    native = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("="))
    kind = np.dtype(f"u{native.dtype.itemsize}")
    levels = native.view(kind)
    domain = np.arange(2 ** (8 * kind.itemsize), dtype=np.uint32).astype(kind).view(native.dtype)
    return domain, levels, np.bincount(levels.ravel(), minlength=domain.size) > 0


def _padding(domain: NDArray[Any], dataset: Dataset) -> NDArray[np.bool_]:
    """Which stored values are padding: one value, or the range to its limit (PS3.3 C.7.5.1.1.2)."""
    first = tags.numbers(dataset, "PixelPaddingValue")
    if not first:
        return np.zeros(domain.shape, np.bool_)
    last = tags.numbers(dataset, "PixelPaddingRangeLimit") or first
    low, high = sorted((_signed(first[0], domain), _signed(last[0], domain)))
    return np.asarray((domain >= low) & (domain <= high))


def _signed(value: float, domain: NDArray[Any]) -> float:
    """Undo reading a 16-bit US or SS element with the other sign; its VR depends on Pixel Representation."""
    if domain.min() < 0 and value > 32767:
        return value - 65536
    return value + 65536 if domain.min() >= 0 and value < 0 else value


def _modality(values: NDArray[np.float64], dataset: Dataset) -> NDArray[np.float64]:
    """Stored values to the modality's (C.11.1): a table, or slope and intercept."""
    item = _item(dataset, "ModalityLUTSequence")
    if item is not None:
        return _looked_up(values, item, dataset)[0]
    slope, intercept = tags.numbers(dataset, "RescaleSlope"), tags.numbers(dataset, "RescaleIntercept")
    if slope and slope[0] == 0:
        raise tags.bad_value("RescaleSlope", "a number other than 0")
    return values * (slope[0] if slope else 1.0) + (intercept[0] if intercept else 0.0)


def _voi(
    values: NDArray[np.float64], used: NDArray[np.bool_], dataset: Dataset
) -> tuple[NDArray[np.float64], Window, tuple[str, ...]]:
    """The modality's values to 0..1 (C.11.2): first VOI LUT, else first window, else the range that is there."""
    item = _item(dataset, "VOILUTSequence")
    centers, widths = tags.numbers(dataset, "WindowCenter"), tags.numbers(dataset, "WindowWidth")
    notes: tuple[str, ...] = ()
    if item is not None:
        table, top = _looked_up(values, item, dataset)
        if np.ptp(table[used]) > 0:
            return np.clip(table / top, 0.0, 1.0), "voi_lut", ()
        notes = ("the file's VOI LUT shows nothing and was not used",)
    if centers and widths:
        shown = _windowed(values, centers[0], widths[0], tags.code(dataset, "VOILUTFunction") or "LINEAR")
        if shown is not None and np.ptp(shown[used]) > 0:
            return shown, "window", notes
        notes += ("the file's window shows nothing and was not used",)
    low, high = values[used].min(), values[used].max()
    notes += ("no usable window: the range of the stored values is shown",)
    return np.clip((values - low) / (high - low), 0.0, 1.0), "stored_range", notes


def _windowed(values: NDArray[np.float64], center: float, width: float, function: str) -> NDArray[np.float64] | None:
    """One window; None when its width is out of the range that the function allows."""
    if function == "LINEAR":  # C.11.2.1.2.1
        if width < 1:
            return None
        if width == 1:
            return (values > center - 0.5).astype(np.float64)
        return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)
    if function not in ("LINEAR_EXACT", "SIGMOID"):
        raise tags.bad_value("VOILUTFunction", "LINEAR, LINEAR_EXACT or SIGMOID")
    if width <= 0:
        return None
    if function == "LINEAR_EXACT":  # C.11.2.1.3.2
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    exponent = np.clip(-4.0 * (values - center) / width, -700.0, 700.0)  # exp() of more overflows
    return np.asarray(1.0 / (1.0 + np.exp(exponent)))  # C.11.2.1.3.1


def _inverted(dataset: Dataset) -> tuple[bool, tuple[str, ...]]:
    """Whether the lowest value is white.

    Photometric Interpretation decides (C.7.6.3.1.2). Presentation LUT Shape only repeats it: INVERSE goes with
    MONOCHROME1 (C.8.11.3.1.2), so it must not invert a second time.
    """
    inverted = tags.code(dataset, "PhotometricInterpretation") == "MONOCHROME1"
    shape = tags.code(dataset, "PresentationLUTShape")
    if shape in ("IDENTITY", "INVERSE") and inverted != (shape == "INVERSE"):
        return inverted, ("Presentation LUT Shape contradicts Photometric Interpretation, which was followed",)
    return inverted, ()


def _item(dataset: Dataset, keyword: str) -> Dataset | None:
    """The first item of a sequence of look-up tables, if it holds one."""
    sequence = tags.raw(dataset, keyword)
    try:
        item: Dataset | None = sequence[0] if sequence else None
        return item if item is not None and "LUTDescriptor" in item and "LUTData" in item else None
    except (TypeError, IndexError, KeyError) as error:
        raise tags.bad_value(keyword, "items with a look-up table") from error


def _looked_up(values: NDArray[np.float64], item: Dataset, dataset: Dataset) -> tuple[NDArray[np.float64], float]:
    """Values through a table (C.11.1.1, C.11.2.1.1), and the largest value that its entries can have."""
    descriptor = tags.numbers(item, "LUTDescriptor")
    if len(descriptor) != 3 or not 8 <= descriptor[2] <= 16:
        raise tags.bad_value("LUTDescriptor", "three numbers, the last one from 8 to 16")
    count = int(descriptor[0]) % 65536 or 65536  # 0 stands for 65,536; a negative count was read with the wrong sign
    first = descriptor[1] - 65536 if values.min() < 0 and descriptor[1] > 32767 else descriptor[1]
    table = _entries(item, count, dataset)
    index = np.clip(np.rint(values - first), 0, table.size - 1).astype(np.intp)
    return table[index], float(2 ** int(descriptor[2]) - 1)


def _entries(item: Dataset, count: int, dataset: Dataset) -> NDArray[np.float64]:
    """LUT Data as numbers; its VR is US or OW, and 8-bit entries may be packed two to a word."""
    data = tags.raw(item, "LUTData")
    if isinstance(data, bytes):
        word = "u1" if len(data) < 2 * count else "<u2" if _little_endian(dataset) else ">u2"
        entries = np.frombuffer(data[: len(data) // np.dtype(word).itemsize * np.dtype(word).itemsize], word)
    else:
        entries = np.atleast_1d(np.asarray(data))
    if entries.size < count or entries.dtype.kind not in "ui":
        raise tags.bad_value("LUTData", "as many entries as LUT Descriptor says")
    return np.asarray(entries[:count].astype(np.int64) & 0xFFFF, np.float64)


def _little_endian(dataset: Dataset) -> bool:
    """Byte order of the file that the dataset came from; little endian when it came from none."""
    meta = getattr(dataset, "file_meta", None)
    syntax = getattr(meta, "TransferSyntaxUID", None)
    if syntax is not None:
        return str(syntax) != "1.2.840.10008.1.2.2"
    return getattr(dataset, "original_encoding", (None, None))[1] is not False
