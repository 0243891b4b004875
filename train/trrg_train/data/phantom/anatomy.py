"""The patient of the phantom: a few dozen numbers, and the outlines that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_train.data.phantom.frame import Points, curve, stream

SIGN = {"right": -1.0, "left": 1.0}
"""Direction of a side in anatomy coordinates: the patient's left lies on the image's right."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Break:
    """A broken rib: which one, where along it, and how far the outer piece has stepped off (anatomy units)."""

    side: str
    rib: int
    at: float
    step: float


@dataclass(frozen=True)
class Anatomy:
    """What a normal chest is made of; lengths in anatomy units (``frame.UNIT_MM``), ratios without unit.

    Attributes:
        half_width: Half of the inner width of the thorax.
        apex_y: Height of the lung apices.
        dome_y: Height of the right and the left diaphragm dome.
        angle_drop: Depth of the costophrenic angles below the domes.
        heart_ratio: Cardiothoracic ratio.
        heart_left: Share of the heart's width that lies left of the midline.
        mediastinum: Width of the upper mediastinum to the right and to the left of the midline.
        knob: Radius of the aortic knob.
        rib_gap: Distance between ribs along the spine.
        rib_drop: How much lower a rib's outer end lies than its root.
        rib_width: Width of a rib.
        rib_density: Attenuation of a rib.
        breast: Attenuation of the breasts; 0 for none.
        fat: Thickness of the chest wall.
        clavicle_y: Height of the inner ends of the clavicles.
        clavicle_rise: How much higher the outer ends lie.
        scapula: How far the shoulder blades cover the lungs.
        trachea_x: Offset of the trachea.
        gas: Size of the stomach bubble; 0 for none.
        vessels: Strength of the vessel markings.
        seed: Names the patient's own random streams (vessels, texture).
        breaks: Broken ribs.
    """

    half_width: float
    apex_y: float
    dome_y: tuple[float, float]
    angle_drop: float
    heart_ratio: float
    heart_left: float
    mediastinum: tuple[float, float]
    knob: float
    rib_gap: float
    rib_drop: float
    rib_width: float
    rib_density: float
    breast: float
    fat: float
    clavicle_y: float
    clavicle_rise: float
    scapula: float
    trachea_x: float
    gas: float
    vessels: float
    seed: str
    breaks: tuple[Break, ...] = ()

    def wall(self, y: Array | float) -> Array:
        """Return the distance of the inner chest wall from the midline at a height."""
        t = np.clip((np.asarray(y) - self.apex_y) / (0.62 - self.apex_y), 0.0, 1.0)
        return np.asarray(0.075 + (self.half_width - 0.075) * np.sqrt(1 - (1 - t) ** 2))

    def dome(self, x: Array | float, *, side: str) -> Array:
        """Return the height of the diaphragm at a distance from the midline."""
        top = self.dome_y[0 if side == "right" else 1]
        peak = 0.47 * self.half_width
        away = np.asarray(x) - peak
        outer = np.clip(away / (self.half_width - peak), 0.0, None) ** 2.3 * self.angle_drop
        inner = np.clip(-away / peak, 0.0, None) ** 2 * 0.035
        return np.asarray(top + outer + inner)

    def lung(self, side: str) -> Points:
        """Return the closed outline of a lung as far as the midline tissue, (N, 2)."""
        base = float(self.dome(self.half_width, side=side))
        y = np.linspace(base, self.apex_y, 60)
        outer = np.stack([self.wall(y), y], axis=1)
        x = np.linspace(0.02, self.half_width, 40)
        floor = np.stack([x, self.dome(x, side=side)], axis=1)
        inner = np.array([[0.055, self.apex_y + 0.03], [0.035, self.apex_y + 0.1], [0.02, 0.5]])
        outline = np.concatenate([outer, inner, floor])
        return outline * (SIGN[side], 1.0)

    def point(self, side: str, u: float, v: float) -> tuple[float, float]:
        """Return the anatomy point at u from inner (0) to outer (1) border and v from apex (0) to dome (1)."""
        floor = float(self.dome(u * self.half_width, side=side))
        y = self.apex_y + v * (floor - self.apex_y)
        inner = 0.075
        return SIGN[side] * (inner + u * (float(self.wall(y)) - inner)), y

    def hilum(self, side: str) -> tuple[float, float]:
        """Return the centre of a hilum; the left one lies a little higher."""
        return SIGN[side] * 0.075, (0.43 if side == "right" else 0.415)

    def heart(self) -> Points:
        """Return the closed outline of the heart."""
        width = self.heart_ratio * 2 * self.half_width
        left, right = width * self.heart_left, width * (1 - self.heart_left)
        floor = self.dome_y[1] + 0.03
        top = min(0.44, floor - 0.2)
        tall = floor - top
        return curve(
            [
                (-0.045, top),
                (-right * 0.82, top + 0.25 * tall),
                (-right, top + 0.55 * tall),
                (-right * 0.85, top + 0.86 * tall),
                (-0.02, floor + 0.02),
                (left * 0.6, floor + 0.015),
                (left * 0.96, floor - 0.10 * tall),
                (left * 0.97, floor - 0.30 * tall),
                (left * 0.78, top + 0.42 * tall),
                (left * 0.48, top + 0.15 * tall),
                (0.045, top - 0.02),
            ],
            closed=True,
        )

    def mediastinum_outline(self) -> Points:
        """Return the closed outline of the upper mediastinum with the aortic knob and the pulmonary trunk."""
        right, left = self.mediastinum
        knob_y = self.apex_y + 0.23
        return curve(
            [
                (-right * 0.9, self.apex_y - 0.06),
                (-right * 0.95, self.apex_y + 0.08),
                (-right, knob_y),
                (-right * 0.95, 0.45),
                (-0.06, 0.56),
                (0.08, 0.56),
                (left + 0.015, 0.45),
                (left * 0.9, knob_y + self.knob + 0.02),
                (left + self.knob * 0.55, knob_y + self.knob * 0.4),
                (left + self.knob * 0.5, knob_y - self.knob * 0.5),
                (left * 0.85, knob_y - self.knob - 0.03),
                (left * 0.85, self.apex_y - 0.06),
            ],
            closed=True,
        )

    def rib(self, side: str, number: int) -> tuple[Points, Points]:
        """Return the back and the front part of a rib, each (N, 2) from its inner back end outwards and on."""
        root = self.apex_y + 0.015 + self.rib_gap * number
        end = root + self.rib_drop * (0.55 + 0.05 * number)
        outer = float(self.wall(end)) + 0.008
        t = np.linspace(0.0, 1.0, 40)
        x = 0.03 + (outer - 0.03) * np.sin(t * np.pi / 2) ** 0.9
        y = root - 0.012 * np.sin(np.pi * np.clip(1.5 * t, 0, 1)) + (end - root) * t**2.2
        back = np.stack([SIGN[side] * x, y], axis=1)
        reach = max(0.45 * outer, 0.07)
        s = np.linspace(0.0, 1.0, 30)
        x = outer - (outer - reach) * (1 - np.cos(s * np.pi / 2)) ** 0.9
        y = end + (0.05 + 0.011 * number) * s**0.8 * 1.3
        return back, np.stack([SIGN[side] * x, y], axis=1)


def sample_anatomy(seed: int, patient: int, *, view: str) -> Anatomy:
    """Draw a patient; the same patient has the same body in both views, seen differently."""
    rng = stream("phantom", seed, "patient", patient)
    draw = rng.uniform
    dome = draw(0.66, 0.74)
    female = rng.random() < 0.5
    values: dict[str, Any] = {
        "half_width": draw(0.325, 0.38),
        "apex_y": draw(0.09, 0.125),
        "angle_drop": draw(0.085, 0.12),
        "heart_ratio": draw(0.40, 0.465),
        "heart_left": draw(0.64, 0.72),
        "knob": draw(0.022, 0.036),
        "rib_gap": draw(0.057, 0.066),
        "rib_drop": draw(0.09, 0.17),
        "rib_width": draw(0.016, 0.021),
        "rib_density": draw(0.15, 0.23),
        "breast": draw(0.05, 0.15) if female else 0.0,
        "fat": draw(0.0, 0.06),
        "clavicle_y": draw(0.155, 0.19),
        "clavicle_rise": draw(0.05, 0.10),
        "scapula": draw(0.0, 0.02),
        "trachea_x": draw(-0.008, 0.006),
        "gas": draw(0.5, 1.2) if rng.random() < 0.7 else 0.0,
        "vessels": draw(0.8, 1.2),
    }
    domes = (dome, dome + draw(0.0, 0.03))
    middle = (draw(0.048, 0.066), draw(0.042, 0.058))
    if view == "AP":  # nearer tube, patient less upright: heart magnified, diaphragm high, shoulders not rolled away
        values["heart_ratio"] = min(values["heart_ratio"] * 1.05, 0.485)
        values["clavicle_y"] -= 0.04
        values["clavicle_rise"] *= 0.4
        values["scapula"] += draw(0.05, 0.08)
        domes = (domes[0] - 0.035, domes[1] - 0.035)
        middle = (middle[0] * 1.1, middle[1] * 1.1)
    return Anatomy(dome_y=domes, mediastinum=middle, seed=f"{seed}/{patient}", **values)
