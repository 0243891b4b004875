"""The X-ray machine of the phantom: noise, tone, borders and markers, and the detector's integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trrg_train.data.phantom.frame import Field, Frame, soften


@dataclass(frozen=True)
class Exposure:
    """How a film was taken.

    Attributes:
        noise: Quantum noise behind one unit of attenuation.
        grain: Electronic noise.
        blur: Unsharpness in film widths (sigma).
        gamma: Bend of the tone curve.
        scatter: Share of scattered radiation, 0..1.
        detail: Strength of edge enhancement.
        low: Darkest stored value as a share of the range.
        high: Brightest stored value as a share of the range.
        bits: Bits stored.
        inverted: Whether large stored values mean dark (MONOCHROME1).
        border: ``""``, ``"black"`` or ``"white"`` shutters.
        shutters: Widths of the left, top, right and bottom shutter in film widths.
        marker: ``""``, ``"L"`` or ``"R"``.
        marker_at: Where the marker lies, as film fractions.
    """

    noise: float
    grain: float
    blur: float
    gamma: float
    scatter: float
    detail: float
    low: float
    high: float
    bits: int
    inverted: bool
    border: str
    shutters: tuple[float, float, float, float]
    marker: str
    marker_at: tuple[float, float]


def sample_exposure(rng: np.random.Generator, *, view: str) -> Exposure:
    """Draw how a film was taken; bedside films (AP) are noisier, softer and flatter."""
    bedside = view == "AP"
    marker = str(rng.choice(["", "L", "R"], p=[0.3, 0.45, 0.25]))
    x = rng.uniform(0.86, 0.93) if marker == "L" else rng.uniform(0.05, 0.12)
    return Exposure(
        noise=rng.uniform(0.006, 0.016) * (1.5 if bedside else 1.0),
        grain=rng.uniform(0.001, 0.004),
        blur=rng.uniform(0.0003, 0.0010) * (1.4 if bedside else 1.0),
        gamma=rng.uniform(0.85, 1.3),
        scatter=rng.uniform(0.08, 0.2) + (0.1 if bedside else 0.0),
        detail=rng.uniform(0.0, 0.5),
        low=rng.uniform(0.0, 0.08),
        high=rng.uniform(0.85, 1.0),
        bits=int(rng.choice([10, 12, 12, 14, 16])),
        inverted=bool(rng.random() < 0.3),
        border=str(rng.choice(["", "black", "white"], p=[0.75, 0.17, 0.08])),
        shutters=(rng.uniform(0, 0.045), rng.uniform(0, 0.045), rng.uniform(0, 0.045), rng.uniform(0, 0.045)),
        marker=marker,
        marker_at=(float(x), float(rng.uniform(0.07, 0.16))),
    )


def expose(attenuation: Field, *, exposure: Exposure, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Turn attenuation into stored integers, (H, W) uint16."""
    tone = develop(attenuation, exposure=exposure, rng=rng)
    top = 2**exposure.bits - 1
    stored = np.round(tone * top)
    if exposure.inverted:
        stored = top - stored
    return np.asarray(stored, dtype=np.uint16)


def develop(attenuation: Field, *, exposure: Exposure, rng: np.random.Generator) -> Field:
    """Return the film before the detector's integers, 0 (dark) to 1 (bright), (H, W)."""
    size = attenuation.shape[0]
    veil = soften(attenuation, sigma=0.08 * size)
    film = attenuation + exposure.scatter * (veil - attenuation)
    film = soften(film, sigma=exposure.blur * size)
    if exposure.detail > 0.1:
        film = film + exposure.detail * (film - soften(film, sigma=0.012 * size))
    # Quanta behind an attenuation A number exp(-kA): the logarithm's noise grows as exp(kA/2) (Poisson).
    noise = exposure.noise * np.exp(1.1 * (film - 1)) + exposure.grain
    film = film + noise * rng.standard_normal(film.shape, dtype=np.float32)
    bottom, top = 0.02, 1.22
    tone = np.clip((film - bottom) / (top - bottom), 0, 1) ** exposure.gamma
    tone = exposure.low + (exposure.high - exposure.low) * tone
    return np.clip(_furnish(tone.astype(np.float32), exposure), 0, 1)


def _furnish(tone: Field, exposure: Exposure) -> Field:
    """Add shutters and the side marker."""
    size = tone.shape[0]
    if exposure.border:
        value = exposure.high if exposure.border == "white" else exposure.low
        left, top, right, bottom = (int(width * size) for width in exposure.shutters)
        tone[:top], tone[size - bottom :] = value, value
        tone[:, :left], tone[:, size - right :] = value, value
    if exposure.marker:
        ink = soften(Frame(size).stroke(_letter(exposure)), sigma=0.0012 * size)
        tone = tone + ink * (exposure.high - tone)
    return tone


def _letter(exposure: Exposure) -> list[tuple[NDArray[np.float64], float]]:
    """Return the strokes of the marker's letter in the coordinates of an upright film."""
    strokes: dict[str, list[list[tuple[float, float]]]] = {
        "L": [[(0, 0), (0, 1), (0.6, 1)]],
        "R": [[(0, 1), (0, 0), (0.5, 0.05), (0.6, 0.25), (0.5, 0.48), (0, 0.5)], [(0.25, 0.5), (0.62, 1)]],
    }
    x, y = exposure.marker_at
    return [(np.array(path) * 0.045 + (x - 0.5, y), 0.008) for path in strokes[exposure.marker]]
