"""Does an image look like an upright frontal chest film of the right polarity? Linear scores on its coarse shape.

The image is trimmed of flat borders, shrunk and reduced to the lowest 6 x 6 cosine coefficients of its grey values,
without the mean. On them stand, fitted by ``tests/benchmarks/gate_photometry.py`` and stored in ``photometry.json``:

- **polarity**, from the 17 left-right symmetric ones: positive when lungs and air are dark. Its sign turns with the
  polarity by construction.
- **upright**: positive when the head is up.
- **distance** from the chest films it was fitted on: root mean square of the whitened coefficients, 1 is typical.

None of the three can tell left from right, and an image of another body part may well look like a chest to them:
what the file says of itself counts first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

COEFFICIENTS = 6  # in each direction
_THUMB = 128
_SIDE = 64
_FLAT = 0.06  # a border row or column whose grey values span less than this part of the range is no anatomy
_MOST = 0.3  # at most this part of each side is trimmed


@dataclass(frozen=True, slots=True)
class Look:
    """How a film looks; all numbers are without unit.

    Attributes:
        polarity: Below 0 the grey values are probably inverted.
        upright: Well below 0 the film is probably upside down or on its side.
        distance: From the chest films the scores were fitted on; 1 is typical.
        distance_inverted: The same after inversion.
        distance_turned: The smallest one after turning by 90, 180 or 270 degrees.
        detail: The part of the variance that the coarse shape leaves over; near 1 for noise.
        flat: The largest part of the pixels that have one grey value (within a hundredth of the range).
        dark: The part of the pixels in the darkest twentieth of the range.
        bright: The part in the brightest twentieth.
    """

    polarity: float
    upright: float
    distance: float
    distance_inverted: float
    distance_turned: float
    detail: float
    flat: float
    dark: float
    bright: float


@dataclass(frozen=True, slots=True)
class Fit:
    """The fitted numbers.

    Attributes:
        polarity: float64 (17,), for the left-right symmetric coefficients.
        upright: float64 (36,), for all 35 and the constant, which is last.
        mean: float64 (35,).
        whiten: float64 (35, 35), lower triangle; its product with the centred coefficients has unit covariance.
    """

    polarity: NDArray[np.float64]
    upright: NDArray[np.float64]
    mean: NDArray[np.float64]
    whiten: NDArray[np.float64]

    def distance(self, shape: NDArray[np.float64]) -> float:
        """Root mean square of the whitened coefficients.

        Args:
            shape: float64 (35,), from ``coefficients``.
        """
        return float(np.sqrt(np.mean((self.whiten @ (shape - self.mean)) ** 2)))


def look(pixels: NDArray[np.float32], *, fit: Fit | None = None) -> Look:
    """Score one image.

    Args:
        pixels: float32 (H, W), at least 2 x 2, larger is brighter, any linear unit.
        fit: Other numbers than the shipped ones, to measure a fit on films it has not seen.
    """
    fit = fit or shipped_fit()
    thumb = standardised(thumbnail(pixels))
    shape = coefficients(thumb)
    turned = (np.rot90(thumb, quarter) for quarter in (1, 2, 3))
    return Look(
        polarity=float(fit.polarity @ symmetric(shape)),
        upright=float(fit.upright[:-1] @ shape + fit.upright[-1]),
        distance=fit.distance(shape),
        distance_inverted=fit.distance(-shape),
        distance_turned=min(fit.distance(coefficients(image)) for image in turned),
        detail=_detail(thumb, shape),
        **_shares(pixels),
    )


def thumbnail(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The image at 128 x 128, its sides stretched: float32 (128, 128)."""
    return _resized(pixels, _THUMB)


def standardised(thumb: NDArray[np.float32]) -> NDArray[np.float64]:
    """Trim flat borders, clip at the 1st and 99th percentile, and bring to mean 0 and deviation 1.

    Args:
        thumb: float32 (128, 128).

    Returns:
        float64 (64, 64).
    """
    clipped = _clipped(thumb.astype(np.float64))
    small = _clipped(_resized(_trimmed(clipped).astype(np.float32), _SIDE).astype(np.float64))
    centred = small - small.mean()
    return np.asarray(centred / (centred.std() + 1e-9))


def coefficients(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lowest cosine coefficients without the mean: float64 (35,), row frequency first.

    Args:
        image: float64 (64, 64), standardised.
    """
    steps = (np.arange(_SIDE) + 0.5) / _SIDE
    basis = np.cos(np.pi * np.outer(np.arange(COEFFICIENTS), steps)) * 2 / _SIDE  # (6, 64)
    return np.asarray((basis @ image @ basis.T).ravel()[1:])


def symmetric(shape: NDArray[np.float64]) -> NDArray[np.float64]:
    """Those of the 35 coefficients that a left-right mirror leaves alone: float64 (..., 17)."""
    column = np.arange(COEFFICIENTS**2)[1:] % COEFFICIENTS
    return np.asarray(shape[..., column % 2 == 0])


def _detail(thumb: NDArray[np.float64], shape: NDArray[np.float64]) -> float:
    """The part of the thumbnail's variance outside its coarse shape."""
    norm = np.where(np.arange(COEFFICIENTS) == 0, 1.0, 2.0) * _SIDE / 4  # squared length of each basis row, inverted
    energy = float(np.sum(shape**2 * np.outer(norm, norm).ravel()[1:]))
    return 1.0 - energy / float(np.sum(thumb**2) + 1e-9)


def _shares(pixels: NDArray[np.float32]) -> dict[str, float]:
    """How much of a sample of the pixels has one grey value, and lies at the ends of the range."""
    sample = pixels[:: max(1, pixels.shape[0] // 256), :: max(1, pixels.shape[1] // 256)]
    counts = np.histogram(sample, 100)[0] / sample.size
    return {"flat": float(counts.max()), "dark": float(counts[:5].sum()), "bright": float(counts[-5:].sum())}


def _clipped(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """The 1st to the 99th percentile as 0 to 1."""
    low, high = np.percentile(image, (1, 99))
    return np.asarray(np.clip((image - low) / (high - low + 1e-9), 0.0, 1.0))


def _trimmed(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the flat rows and columns at its borders (collimator, detector edge, padding)."""
    rows = np.ptp(np.percentile(image, (5, 95), axis=1), axis=0)
    image = image[_edge(rows) : len(rows) - _edge(rows[::-1])]
    columns = np.ptp(np.percentile(image, (5, 95), axis=0), axis=0)
    return image[:, _edge(columns) : len(columns) - _edge(columns[::-1])]


def _edge(spans: NDArray[np.float64]) -> int:
    """How many of the first rows are flat."""
    most = int(len(spans) * _MOST)
    structured = np.flatnonzero(spans[:most] >= _FLAT)
    return int(structured[0]) if structured.size else most


def _resized(pixels: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Pillow's anti-aliased triangle filter, to (side, side)."""
    from PIL import Image  # late, so that `import trrg_sdk` stays fast

    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32)


def unpacked(values: Mapping[str, Any]) -> Fit:
    """The fitted numbers from their JSON form, in which the triangle is a flat list."""
    mean = np.array(values["mean"], np.float64)
    whiten = np.zeros((mean.size, mean.size))
    whiten[np.tril_indices(mean.size)] = values["whiten"]
    return Fit(np.array(values["polarity"], np.float64), np.array(values["upright"], np.float64), mean, whiten)


@cache
def shipped_fit() -> Fit:
    """The numbers that come with the SDK."""
    return unpacked(json.loads(resources.files("trrg_sdk").joinpath("photometry.json").read_text(encoding="utf-8")))
