"""Radiograph to model tensor. Training and the runtime run this same code, with the manifest's parameters.

The steps, so that another language can repeat them to the last bit but rounding:

1. **Clip.** Two order statistics of a sample of the pixels (every k-th row and column, k the smallest stride that
   leaves at most 262,144 of them): the values at index ``floor(q / 100 * (n - 1))`` of the sorted sample, with no
   interpolation. Everything is clipped to that range.
2. **Resize** to ``round(side * size / longest side)`` in both directions, sides measured in millimetres when the
   pixels are not square, so that one resampling squares the pixels and shrinks the image. Pillow's mode "F":
   a triangle ("bilinear") or rectangle ("box") filter whose support grows with the reduction (anti-aliased),
   columns first and then rows, weights normalised at the border.
3. **Scale** the clipped range to [0, 1], **pad** to a square in the middle of the canvas (the odd row or column goes
   below or to the right) with 0, the darkest value, and **normalise**: ``(x - mean) / std``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.errors import BundleError, InputError

_SAMPLE_LIMIT = 512 * 512  # pixels the two percentiles are read from
_RESAMPLE = ("bilinear", "box")
_PADDING = ("edge_min",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """The parameters of the way from pixels to a tensor, as they stand in the manifest.

    Attributes:
        size: Side of the square result in pixels.
        channels: 1, or 3 equal ones for an encoder that expects colour.
        lower_percentile: Becomes 0, in percent.
        upper_percentile: Becomes 1, in percent.
        mean: Subtracted after scaling to [0, 1].
        std: Divided by after that.
        resample: The filter, "bilinear" (triangle) or "box".
        padding: "edge_min" is the only one: the missing edges get the darkest value, like air.
    """

    size: int = 192
    channels: int = 1
    lower_percentile: float = 0.5
    upper_percentile: float = 99.5
    mean: float = 0.5
    std: float = 0.25
    resample: Literal["bilinear", "box"] = "bilinear"
    padding: Literal["edge_min"] = "edge_min"

    def __post_init__(self) -> None:
        """Refuse parameters that make no sense.

        Raises:
            ValueError: One of them is out of its range; the message names it.
        """
        _require(1 <= self.size <= 4096, f"size must be 1 to 4096 pixels, got {self.size}")
        _require(self.channels in (1, 3), f"channels must be 1 or 3, got {self.channels}")
        _require(
            0 <= self.lower_percentile < self.upper_percentile <= 100,
            f"percentiles must rise within 0 to 100, got {self.lower_percentile} and {self.upper_percentile}",
        )
        _require(math.isfinite(self.mean), f"mean must be finite, got {self.mean}")
        _require(math.isfinite(self.std) and self.std > 0, f"std must be above 0, got {self.std}")
        _require(self.resample in _RESAMPLE, f"resample must be one of {_RESAMPLE}, got {self.resample!r}")
        _require(self.padding in _PADDING, f"padding must be one of {_PADDING}, got {self.padding!r}")

    @classmethod
    def from_manifest(cls, values: Mapping[str, object]) -> Preprocess:
        """Read the manifest's ``preprocess`` object; nothing is assumed and nothing ignored.

        Args:
            values: Every field of this class, and no other key.

        Raises:
            BundleError: A key is missing or unknown, or a value has the wrong type or range.
        """
        kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(cls)}
        missing, unknown = sorted(kinds.keys() - values.keys()), sorted(values.keys() - kinds.keys())
        if missing or unknown:
            raise BundleError(
                f"the manifest's preprocess must hold {sorted(kinds)}; missing: {missing}, unknown: {unknown}. "
                "Export the bundle with the version of this SDK that reads it."
            )
        checked: dict[str, Any] = {name: _checked(name, values[name], kind) for name, kind in kinds.items()}
        try:
            return cls(**checked)
        except ValueError as error:
            raise BundleError(f"the manifest's preprocess is invalid: {error}. Export the bundle again.") from error

    def to_manifest(self) -> dict[str, Any]:
        """The manifest's ``preprocess`` object, JSON types only."""
        return asdict(self)

    def apply(
        self, pixels: NDArray[np.float32], *, spacing_mm: tuple[float, float] | None = None
    ) -> NDArray[np.float32]:
        """Make the model's input from one radiograph.

        Args:
            pixels: float32 (H, W), finite, larger is brighter; any linear unit.
            spacing_mm: Row and column distance; only their ratio counts. ``None`` means square pixels.

        Returns:
            float32 (channels, size, size), contiguous.

        Raises:
            InputError: No 2-D array of finite numbers (code ``bad_array``), a spacing that is not above 0
                (``bad_spacing``), or an image without contrast (``blank``).
        """
        if pixels.ndim != 2 or min(pixels.shape) < 2:
            raise InputError(
                f"one grey image of (rows, columns) was expected, an array of shape {pixels.shape} came",
                code="bad_array",
            )
        low, high = self._range(pixels)
        rows, columns = self._fitted(pixels.shape, spacing_mm)
        clipped = np.clip(pixels, low, high, dtype=np.float32)
        small = (_resized(clipped, rows, columns, self.resample) - low) / (high - low)
        if not np.isfinite(small).all():
            raise InputError("the pixels hold values that are no numbers; send finite ones", code="bad_array")
        canvas = np.zeros((self.size, self.size), np.float32)
        top, left = (self.size - rows) // 2, (self.size - columns) // 2
        canvas[top : top + rows, left : left + columns] = np.clip(small, 0.0, 1.0)
        canvas = (canvas - np.float32(self.mean)) / np.float32(self.std)
        return np.repeat(canvas[None], self.channels, axis=0)

    def fitted_box(
        self, shape: tuple[int, int], *, spacing_mm: tuple[float, float] | None = None
    ) -> tuple[int, int, int, int]:
        """Where an image of this shape lies on the square, to draw a heat map back onto it.

        Args:
            shape: Rows and columns of the image.
            spacing_mm: As for ``apply``.

        Returns:
            Top, left, rows and columns, in pixels of the square.
        """
        rows, columns = self._fitted(shape, spacing_mm)
        return (self.size - rows) // 2, (self.size - columns) // 2, rows, columns

    def _range(self, pixels: NDArray[np.float32]) -> tuple[np.float32, np.float32]:
        """The values at the two percentiles (step 1)."""
        stride = 1
        while math.ceil(pixels.shape[0] / stride) * math.ceil(pixels.shape[1] / stride) > _SAMPLE_LIMIT:
            stride += 1
        sample = pixels[::stride, ::stride].ravel()
        ranks = [math.floor(q / 100 * (sample.size - 1)) for q in (self.lower_percentile, self.upper_percentile)]
        low, high = np.partition(sample, ranks)[ranks]
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError("the pixels hold values that are no numbers; send finite ones", code="bad_array")
        if high <= low:
            raise InputError(
                "the image has no contrast: nearly all of its pixels are equal. Send the image again.", code="blank"
            )
        return np.float32(low), np.float32(high)

    def _fitted(self, shape: tuple[int, ...], spacing_mm: tuple[float, float] | None) -> tuple[int, int]:
        """Rows and columns of the resized image (step 2)."""
        row_mm, column_mm = spacing_mm or (1.0, 1.0)
        if not (math.isfinite(row_mm) and math.isfinite(column_mm) and row_mm > 0 and column_mm > 0):
            raise InputError(
                f"pixel spacing must be two numbers above 0, got {spacing_mm}; give None if unknown", code="bad_spacing"
            )
        height, width = shape[0] * row_mm, shape[1] * column_mm
        scale = self.size / max(height, width)
        return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def _resized(pixels: NDArray[np.float32], rows: int, columns: int, resample: str) -> NDArray[np.float32]:
    """Pillow's anti-aliased resize of float32 (H, W) to (rows, columns)."""
    from PIL import Image  # late, so that `import trrg_sdk` stays fast

    kind = {"bilinear": Image.Resampling.BILINEAR, "box": Image.Resampling.BOX}[resample]
    return np.asarray(Image.fromarray(pixels).resize((columns, rows), kind), dtype=np.float32)


def _checked(name: str, value: object, kind: type) -> object:
    """The value, when its JSON type is the field's (a whole number may stand for a float)."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise BundleError(
            f"the manifest's preprocess.{name} must be of type {kind.__name__}, got {type(value).__name__}. "
            "Export the bundle again."
        )
    return value


def _require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)
