"""Draws radiographs of other body parts from ellipses and capsules: hands, knees, skulls, pelves, mammograms.

There is no such file among the shared ones that may be used, so these stand in for them. They are drawings: what is
found on them says how the gate treats images that are laid out like a hand or a skull, not how it treats real ones.
Nothing of the gate is fitted on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]
SIDE = 256


class Sheet:
    """A film on which attenuation adds up, in units of the side, row first."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Start with air."""
        self.rng = rng
        self.row, self.column = np.mgrid[0:SIDE, 0:SIDE] / SIDE
        self.depth = np.zeros((SIDE, SIDE))

    def ellipse(self, center: tuple[float, float], radii: tuple[float, float], *, turn: float = 0.0) -> Array:
        """Thickness of an ellipsoid of height 1, (256, 256)."""
        y, x = self.row - center[0], self.column - center[1]
        along, across = y * np.cos(turn) + x * np.sin(turn), x * np.cos(turn) - y * np.sin(turn)
        return np.asarray(np.sqrt(np.clip(1 - (along / radii[0]) ** 2 - (across / radii[1]) ** 2, 0, None)))

    def capsule(self, start: tuple[float, float], end: tuple[float, float], radius: float) -> Array:
        """Thickness of a rod with round ends of height 1, (256, 256)."""
        a, b = np.array(start), np.array(end)
        along = b - a
        place = np.clip(((self.row - a[0]) * along[0] + (self.column - a[1]) * along[1]) / (along @ along + 1e-9), 0, 1)
        y, x = self.row - a[0] - place * along[0], self.column - a[1] - place * along[1]
        return np.asarray(np.sqrt(np.clip(1 - (y**2 + x**2) / radius**2, 0, None)))

    def bone(self, start: tuple[float, float], end: tuple[float, float], radius: float, *, density: float) -> None:
        """Add a long bone: thick ends, a dense cortex and a lighter marrow."""
        self.depth += density * (self.capsule(start, end, radius) - 0.7 * self.capsule(start, end, 0.6 * radius))
        for place in (start, end):
            self.depth += 0.5 * density * self.ellipse(place, (1.25 * radius, 1.25 * radius))

    def film(self, *, saturated: bool = False) -> NDArray[np.float32]:
        """Expose: blur, noise, sometimes a collimator and a marker; larger is brighter."""
        rng = self.rng
        depth = self.depth.clip(0)
        values = 1 - np.exp(-depth * rng.uniform(0.8, 1.6)) if saturated else depth ** rng.uniform(0.6, 1.0)
        small = Image.fromarray(values.astype(np.float32)).resize((int(rng.integers(90, 250)),) * 2)
        film = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float64)
        film = film + rng.normal(0, rng.uniform(0.003, 0.02) * float(film.max()), film.shape)
        if rng.random() < 0.3:
            row, column = rng.integers(5, 30), rng.integers(5, 220)
            film[row : row + 12, column : column + 7] = film.max()
        if rng.random() < 0.3:
            cut = int(rng.integers(5, 30))
            film[:cut], film[-cut:] = film.min(), film.min()
        return np.asarray(film, dtype=np.float32)


def hand(rng: np.random.Generator) -> NDArray[np.float32]:
    """One hand, fingers up, spread or closed, either side."""
    sheet = Sheet(rng)
    spread, scale, side = rng.uniform(0.5, 1.4), rng.uniform(0.8, 1.15), rng.choice([-1, 1])
    palm = (0.62, 0.5)
    sheet.depth += 0.5 * sheet.ellipse(palm, (0.2 * scale, 0.16 * scale))
    sheet.depth += 0.5 * sheet.capsule((0.75, 0.5), (1.05, 0.5 + rng.uniform(-0.05, 0.05)), 0.11 * scale)
    sheet.bone((0.82, 0.46), (1.05, 0.45), 0.035, density=0.7)
    sheet.bone((0.82, 0.54), (1.05, 0.55), 0.03, density=0.7)
    for row, column in rng.uniform((0.72, 0.42), (0.8, 0.58), (8, 2)):
        sheet.depth += 0.4 * sheet.ellipse((row, column), (0.03 * scale, 0.03 * scale))
    for finger, (angle, length) in enumerate([(-1.0, 0.8), (-0.35, 1.0), (-0.08, 1.1), (0.17, 1.02), (0.42, 0.8)]):
        lean = side * angle * spread
        at = np.array([0.72, 0.5 + side * (finger - 2) * 0.045 * scale])
        step = np.array([-np.cos(lean), np.sin(lean)]) * scale * length
        for part, thick in zip((0.19, 0.13, 0.085, 0.06), (0.022, 0.019, 0.016, 0.013), strict=True):
            end = at + step * part
            sheet.depth += 0.28 * sheet.capsule(tuple(at), tuple(end), 2.0 * thick * scale)
            sheet.bone(tuple(at), tuple(end - step * 0.01), thick * scale, density=0.6)
            at = end + step * 0.012
    return sheet.film()


def skull(rng: np.random.Generator) -> NDArray[np.float32]:
    """A skull from the front: vault, orbits, sinuses, jaw and teeth, upper neck."""
    sheet = Sheet(rng)
    scale, top = rng.uniform(0.85, 1.1), rng.uniform(0.33, 0.42)
    vault = ((top, 0.5), (0.33 * scale, 0.27 * scale))
    sheet.depth += 0.9 * sheet.ellipse(*vault) + 0.8 * (
        sheet.ellipse(*vault) - sheet.ellipse((top, 0.5), (0.31 * scale, 0.25 * scale))
    ).clip(0)
    sheet.depth += 0.6 * sheet.ellipse((top + 0.3 * scale, 0.5), (0.22 * scale, 0.17 * scale))
    for side in (-1, 1):
        sheet.depth -= 0.45 * sheet.ellipse((top + 0.13 * scale, 0.5 + side * 0.11 * scale), (0.06, 0.075))
        sheet.depth -= 0.3 * sheet.ellipse((top + 0.27 * scale, 0.5 + side * 0.08 * scale), (0.06, 0.045))
        sheet.bone((top + 0.2, 0.5 + side * 0.2 * scale), (top + 0.45 * scale, 0.5 + side * 0.1), 0.03, density=0.5)
    sheet.depth -= 0.35 * sheet.ellipse((top + 0.22 * scale, 0.5), (0.07, 0.03))
    for tooth in np.linspace(-0.09, 0.09, 9):
        sheet.depth += 0.5 * sheet.ellipse((top + 0.38 * scale, 0.5 + tooth * scale), (0.03, 0.01))
    sheet.depth += 0.5 * sheet.capsule((top + 0.4, 0.5), (1.1, 0.5), 0.14) + 0.4 * sheet.capsule(
        (top + 0.4, 0.5), (1.1, 0.5), 0.05
    )
    return sheet.film(saturated=bool(rng.random() < 0.5))


def skull_from_the_side(rng: np.random.Generator) -> NDArray[np.float32]:
    """A skull from the side, facing either way."""
    sheet = Sheet(rng)
    scale, side = rng.uniform(0.85, 1.1), rng.choice([-1, 1])
    sheet.depth += 0.8 * sheet.ellipse((0.4, 0.5 + side * 0.05), (0.3 * scale, 0.37 * scale))
    sheet.depth += 0.7 * (
        sheet.ellipse((0.4, 0.5 + side * 0.05), (0.3 * scale, 0.37 * scale))
        - sheet.ellipse((0.4, 0.5 + side * 0.05), (0.28 * scale, 0.35 * scale))
    ).clip(0)
    sheet.depth += 0.7 * sheet.ellipse((0.62, 0.5 - side * 0.16), (0.2 * scale, 0.14 * scale))
    sheet.depth += 0.9 * sheet.ellipse((0.58, 0.5), (0.05, 0.12))
    sheet.bone((0.66, 0.5), (0.82, 0.5 - side * 0.28), 0.04, density=0.6)
    for vertebra in range(5):
        sheet.depth += 0.5 * sheet.ellipse((0.7 + 0.07 * vertebra, 0.52 + side * 0.05), (0.03, 0.05))
    sheet.depth += 0.4 * sheet.capsule((0.65, 0.5), (1.1, 0.5), 0.15)
    return sheet.film(saturated=bool(rng.random() < 0.5))


def mammogram(rng: np.random.Generator) -> NDArray[np.float32]:
    """One breast, pressed, at the left or right edge; from above or obliquely with the muscle."""
    sheet = Sheet(rng)
    height, width, middle = rng.uniform(0.3, 0.46), rng.uniform(0.35, 0.7), rng.uniform(0.42, 0.58)
    inside = sheet.ellipse((middle, 0.0), (height, width))
    sheet.depth += 0.5 * np.minimum(inside * 2.2, 1.0)
    for row, column, size in rng.uniform((-0.6, 0.15, 0.02), (0.6, 0.8, 0.09), (45, 3)):
        place = (middle + row * height * 0.8, column * width)
        gland = sheet.ellipse(place, (size, size * rng.uniform(0.4, 1.5)), turn=float(rng.uniform(0, 3)))
        sheet.depth += rng.uniform(0.1, 0.5) * gland * (inside > 0.2)
    if rng.random() < 0.5:
        sheet.depth += 0.7 * np.clip(0.5 - sheet.row * 0.9 - sheet.column * 1.6, 0, 0.25) * 4
    film = sheet.film()
    return film if rng.random() < 0.5 else np.ascontiguousarray(film[:, ::-1])


def knee(rng: np.random.Generator) -> NDArray[np.float32]:
    """A knee from the front, or both."""
    sheet = Sheet(rng)
    for middle in (0.27, 0.73) if rng.random() < 0.4 else (0.5,):
        scale = 0.6 if middle != 0.5 else rng.uniform(0.9, 1.2)
        sheet.depth += 0.6 * sheet.capsule((-0.1, middle), (1.1, middle), 0.26 * scale)
        sheet.bone((-0.1, middle), (0.42, middle), 0.09 * scale, density=1.0)
        sheet.bone((0.58, middle), (1.1, middle), 0.08 * scale, density=1.0)
        sheet.bone((0.62, middle + 0.13 * scale), (1.1, middle + 0.12 * scale), 0.03 * scale, density=0.8)
        for side in (-1, 1):
            sheet.depth += 0.7 * sheet.ellipse((0.42, middle + side * 0.07 * scale), (0.08, 0.09 * scale))
            sheet.depth += 0.6 * sheet.ellipse((0.57, middle + side * 0.07 * scale), (0.05, 0.1 * scale))
    return sheet.film(saturated=bool(rng.random() < 0.5))


def pelvis(rng: np.random.Generator) -> NDArray[np.float32]:
    """A pelvis from the front with the hips."""
    sheet = Sheet(rng)
    scale = rng.uniform(0.9, 1.1)
    sheet.depth += 1.0 * sheet.ellipse((0.45, 0.5), (0.7, 0.52)) ** 0.5
    for side in (-1, 1):
        wing = sheet.ellipse((0.3, 0.5 + side * 0.25 * scale), (0.2, 0.13), turn=side * 0.5)
        sheet.depth += 0.5 * wing + 0.5 * sheet.ellipse((0.6, 0.5 + side * 0.27 * scale), (0.07, 0.07))
        ring = sheet.ellipse((0.7, 0.5 + side * 0.12), (0.11, 0.09))
        sheet.depth += 0.6 * (ring - sheet.ellipse((0.7, 0.5 + side * 0.12), (0.07, 0.055))).clip(0)
        sheet.bone((0.66, 0.5 + side * 0.36 * scale), (1.1, 0.5 + side * 0.34), 0.06, density=0.8)
    for vertebra in range(4):
        sheet.depth += 0.6 * sheet.ellipse((0.02 + 0.09 * vertebra, 0.5), (0.04, 0.07))
    sheet.depth += 0.5 * sheet.ellipse((0.4, 0.5), (0.12, 0.09))
    return sheet.film(saturated=True)


BODIES: Mapping[str, Callable[[np.random.Generator], NDArray[np.float32]]] = {
    "hand": hand,
    "skull, from the front": skull,
    "skull, from the side": skull_from_the_side,
    "mammogram": mammogram,
    "knee": knee,
    "pelvis": pelvis,
}
"""Body part → what draws one."""
