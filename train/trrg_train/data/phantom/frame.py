"""Drawing tools of the phantom: a frame that lays anatomy on the film, filled shapes, strokes, blurs and noise fields.

Anatomy coordinates: x runs from the midline, positive towards the patient's left (the image's right); y runs from 0
at the top of an upright film to 1 at its bottom. One unit is ``UNIT_MM`` millimetres of the patient.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

UNIT_MM = 400.0
"""Millimetres per unit of anatomy coordinates."""

Field = NDArray[np.float32]
"""A value per film pixel, float32 (H, W)."""
Points = NDArray[np.float64]
"""Anatomy points, float64 (N, 2) as x, y."""
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the film."""


def stream(*key: object) -> np.random.Generator:
    """Return the random stream that belongs to a key, the same on every machine and in every process."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


@dataclass(frozen=True)
class Frame:
    """How the anatomy lies on a square film.

    Attributes:
        size: Rows and columns of the film.
        angle: Rotation in radians.
        zoom: Film widths per anatomy unit.
        shift: Offset in film widths, x then y.
    """

    size: int
    angle: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)

    def to_film(self, points: Points) -> Points:
        """Map anatomy points (N, 2) to film fractions (N, 2)."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        centred = (np.asarray(points, dtype=np.float64) - (0.0, 0.5)) * self.zoom
        rotated = centred @ np.array([[cos, sin], [-sin, cos]])
        return np.asarray(rotated + (0.5 + self.shift[0], 0.5 + self.shift[1]))

    @cached_property
    def grid(self) -> tuple[Field, Field]:
        """Anatomy x and y of every pixel, each (H, W)."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        line = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size
        column = ((line - 0.5 - self.shift[0]) / self.zoom)[None, :]
        row = ((line - 0.5 - self.shift[1]) / self.zoom)[:, None]
        x = (cos * column + sin * row).astype(np.float32)
        y = (cos * row - sin * column + 0.5).astype(np.float32)
        return x, y

    def pixels(self, length: float) -> float:
        """Convert an anatomy length to pixels."""
        return length * self.zoom * self.size

    def fill(self, *shapes: Points) -> Field:
        """Return 1 inside the closed shapes and 0 outside."""
        image = Image.new("L", (self.size, self.size))
        pen = ImageDraw.Draw(image)
        for path in self._paths(shapes):
            pen.polygon(path, fill=255)
        return np.asarray(image, dtype=np.float32) / np.float32(255)

    def stroke(self, lines: Sequence[tuple[Points, float]]) -> Field:
        """Return the ink of lines, each with its width in anatomy units; thinner than a pixel means fainter."""
        image = Image.new("L", (self.size, self.size))
        pen = ImageDraw.Draw(image)
        for path, (_, width) in zip(self._paths([points for points, _ in lines]), lines, strict=True):
            thick = self.pixels(width)
            ink = int(255 * min(1.0, max(thick, 0.15)))
            pen.line(path, fill=ink, width=max(1, round(thick)))
        return np.asarray(image, dtype=np.float32) / np.float32(255)

    def _paths(self, shapes: Sequence[Points]) -> list[list[float]]:
        """Return each line's pixel coordinates as x, y, x, y, ...; mapped all at once, for there are many."""
        if not shapes:
            return []
        flat = (self.to_film(np.concatenate(shapes)) * self.size - 0.5).ravel().tolist()
        ends = (2 * np.cumsum([len(points) for points in shapes])).tolist()
        return [flat[end - 2 * len(points) : end] for end, points in zip(ends, shapes, strict=True)]

    def box(self, points: Points, *, margin: float = 0.0) -> Box:
        """Return the film box around anatomy points, widened by a margin in film widths and cut to the film."""
        film = self.to_film(points)
        low = np.clip(film.min(axis=0) - margin, 0.0, 1.0)
        high = np.clip(film.max(axis=0) + margin, 0.0, 1.0)
        return (float(low[0]), float(low[1]), float(high[0]), float(high[1]))

    def blur(self, mask: Field, *, sigma: float) -> Field:
        """Blur a mask, 0..1, by sigma anatomy units; in 256 steps, which is fast and enough for masks."""
        wide = self.pixels(sigma)
        image = Image.fromarray((mask * np.float32(255)).astype(np.uint8))
        if wide < 1.6:  # one box of the same spread instead of the three that approach a gaussian
            soft = image.filter(ImageFilter.BoxBlur(0.5 * math.sqrt(12 * wide * wide + 1) - 0.5))
        elif wide < 6:
            soft = image.filter(ImageFilter.GaussianBlur(wide))
        else:
            small = image.reduce(int(wide // 3))
            radius = wide * small.width / image.width
            soft = small.filter(ImageFilter.GaussianBlur(radius)).resize(image.size, Image.Resampling.BICUBIC)
        return np.asarray(soft, dtype=np.float32) / np.float32(255)

    def clouds(self, rng: np.random.Generator, *, cells: Sequence[int], falloff: float = 0.6) -> Field:
        """Return smooth noise of about unit spread, coarse to fine: one octave per number of cells across the film."""
        total = np.zeros((self.size, self.size), dtype=np.float32)
        weight, power = 1.0, 0.0
        for count in cells:
            coarse = Image.fromarray(rng.standard_normal((count + 3, count + 3), dtype=np.float32))
            octave = coarse.resize((self.size, self.size), Image.Resampling.BICUBIC)
            total += np.float32(weight) * np.asarray(octave, dtype=np.float32)
            power += weight * weight
            weight *= falloff
        return total / np.float32(np.sqrt(power))


def soften(field: Field, *, sigma: float) -> Field:
    """Blur by a gaussian of sigma pixels; wide blurs run on a reduced copy, which nobody can tell apart."""
    if sigma < 0.2:
        return field
    factor = int(sigma // 3)
    if factor < 2:
        return np.asarray(gaussian_filter(field, sigma, mode="nearest", truncate=2.5), dtype=np.float32)
    image = Image.fromarray(field)
    small = np.asarray(image.reduce(factor), dtype=np.float32)
    soft = gaussian_filter(small, sigma / factor, mode="nearest", truncate=2.5)
    back = Image.fromarray(soft).resize(image.size, Image.Resampling.BICUBIC)
    return np.asarray(back, dtype=np.float32)


def curve(points: Sequence[tuple[float, float]], *, closed: bool = False, steps: int = 10) -> Points:
    """Return a smooth line (Catmull-Rom) through points, (N, 2)."""
    knots = np.asarray(points, dtype=np.float64)
    if closed:
        padded = np.concatenate([knots[-1:], knots, knots[:2]])
    else:
        padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    a, b, c, d = padded[:-3, None], padded[1:-2, None], padded[2:-1, None], padded[3:, None]
    path = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    line = path.reshape(-1, 2)
    return line if closed else np.concatenate([line, knots[-1:]])


def smoothstep(field: Field, *, low: float, high: float) -> Field:
    """Return 0 below low, 1 above high and a smooth rise between (low may exceed high for a fall)."""
    t = np.clip((field - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)
