"""Findings inside the lung: opacity, consolidation, pneumonia, edema, atelectasis, nodule and mass.

Each ``draw_*`` changes the scene and returns the film box of what it drew.
"""

from __future__ import annotations

import numpy as np

from trrg_train.data.finding import Finding
from trrg_train.data.phantom.anatomy import SIGN
from trrg_train.data.phantom.body import Scene
from trrg_train.data.phantom.frame import UNIT_MM, Box, Field, Points, curve, smoothstep, soften

ZONES = {"upper": (0.20, 0.36), "mid": (0.44, 0.60), "lower": (0.72, 0.86)}
"""Heights of a zone's centre between apex (0) and dome (1)."""


def zone_point(scene: Scene, finding: Finding, rng: np.random.Generator, *, u: tuple[float, float]) -> Points:
    """Return a random anatomy point (2,) in a finding's zone; u bounds how far out it lies."""
    low, high = ZONES[finding.place]
    return np.array(scene.anatomy.point(finding.side, rng.uniform(*u), rng.uniform(low, high)))


def fill_air(scene: Scene, amount: Field, *, side: str = "") -> None:
    """Replace a share of the lung's air (0..1) by water: of one lung, or of both."""
    lungs = scene.lungs[side] if side else np.minimum(scene.lungs["left"] + scene.lungs["right"], 1)
    # Twice the mask: a soft lung edge must not keep a dark rim of air around what is full of water.
    scene.air *= 1 - np.clip(amount, 0, 1) * np.minimum(2 * lungs, 1)


def ball(scene: Scene, centre: Points, *, radii: tuple[float, float]) -> Field:
    """Return the distance from a centre in radii: 1 on the ellipse, (H, W)."""
    x, y = scene.frame.grid
    squares = ((x - np.float32(centre[0])) / radii[0]) ** 2 + ((y - np.float32(centre[1])) / radii[1]) ** 2
    return np.asarray(np.sqrt(squares), dtype=np.float32)


def around(scene: Scene, centre: Points, *, radii: tuple[float, float]) -> Box:
    """Return the film box around an ellipse."""
    turn = np.linspace(0, 2 * np.pi, 24)
    return scene.frame.box(centre + np.stack([np.cos(turn) * radii[0], np.sin(turn) * radii[1]], axis=1))


def draw_opacity(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw one haze through which the vessels still show, without any sharp border."""
    centre = zone_point(scene, finding, rng, u=(0.4, 0.65))
    grow = {"small": 0.85, "moderate": 1.0, "large": 1.2}[finding.severity]
    radii = (0.115 * grow * rng.uniform(0.9, 1.1), 0.095 * grow * rng.uniform(0.9, 1.1))
    haze = smoothstep(ball(scene, centre, radii=radii), low=1.2, high=0.35)
    haze *= 0.66 + 0.05 * scene.frame.clouds(rng, cells=(12,))
    fill_air(scene, haze, side=finding.side)
    return around(scene, centre, radii=radii)


def draw_consolidation(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw a lobe full of water: a sharp straight fissure on one side, air bronchograms inside."""
    anatomy, frame, side = scene.anatomy, scene.frame, finding.side
    low, high = {"upper": (0.03, 0.42), "mid": (0.42, 0.72), "lower": (0.60, 1.06)}[finding.place]
    low, high = low + rng.uniform(-0.02, 0.03), high + rng.uniform(-0.03, 0.03)
    reach = rng.uniform(0.9, 1.05)
    tilt = rng.uniform(-0.05, 0.05)
    upper = [anatomy.point(side, u, low + tilt * (u - 0.5)) for u in np.linspace(-0.05, reach, 8)]
    lower = [anatomy.point(side, u, high - tilt * (u - 0.5)) for u in np.linspace(reach, -0.05, 8)]
    outline = np.array(upper + lower)
    lobe = frame.fill(outline)
    soft = frame.blur(lobe, sigma=0.02)
    # The fissure (lower border of an upper lobe, upper border of the others) stays a sharp line.
    x, y = frame.grid
    edge = np.array(lower if finding.place == "upper" else upper)
    order = np.argsort(edge[:, 0])
    line = np.interp(x[frame.size // 2], edge[order, 0], edge[order, 1]).astype(np.float32)[None, :]
    near = np.exp(-(((y - line) / 0.04) ** 2))
    amount = near * frame.blur(lobe, sigma=0.002) + (1 - near) * soft
    dense = {"small": 0.78, "moderate": 0.86, "large": 0.93}[finding.severity]
    amount = np.clip(amount * (dense + 0.05 * frame.clouds(rng, cells=(14, 28))), 0, 1)
    amount *= 1 - 0.35 * _bronchi(scene, finding, rng, towards=outline.mean(axis=0))
    fill_air(scene, amount, side=side)
    return frame.box(outline)


def _bronchi(scene: Scene, finding: Finding, rng: np.random.Generator, *, towards: Points) -> Field:
    """Return the dark branching tubes that stay open in a consolidated lobe."""
    start = np.array(scene.anatomy.hilum(finding.side))
    lines = []
    for turn in (-0.35, 0.0, 0.35):
        cos, sin = np.cos(turn), np.sin(turn)
        way = (towards - start) @ np.array([[cos, sin], [-sin, cos]])
        stops = [start + way * t + rng.normal(0, 0.006, 2) for t in (0.1, 0.5, 0.9, 1.3)]
        lines.append((curve([(float(a), float(b)) for a, b in stops]), 0.009))
    return scene.frame.blur(scene.frame.stroke(lines), sigma=0.002)


def draw_pneumonia(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw patches of several sizes with frayed borders, some run together, in one zone."""
    low, high = ZONES[finding.place]
    count = {"small": 7, "moderate": 9, "large": 12}[finding.severity]
    fray = scene.frame.clouds(rng, cells=(50, 100), falloff=0.7)
    total = np.zeros_like(scene.air)
    points = []
    for _ in range(count):
        u, v = rng.uniform(0.15, 0.9), rng.uniform(low - 0.10, high + 0.10)
        centre = np.array(scene.anatomy.point(finding.side, u, v))
        radius = rng.uniform(0.020, 0.040)
        patch = smoothstep(ball(scene, centre, radii=(radius * 1.15, radius)) + 0.18 * fray, low=1.6, high=0.25)
        total = np.maximum(total, patch * np.float32(rng.uniform(0.6, 0.9)))
        points += [centre - radius, centre + radius]
    veil = scene.frame.blur(np.minimum(total, 1), sigma=0.03)
    fill_air(scene, np.maximum(total, 0.9 * veil), side=finding.side)
    return scene.frame.box(np.array(points))


def draw_edema(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw water around both hila (bat's wings), thick blurred vessels and Kerley lines at the bases."""
    strength = {"small": 0.42, "moderate": 0.55, "large": 0.70}[finding.severity]
    anatomy, frame = scene.anatomy, scene.frame
    mottle = frame.clouds(rng, cells=(24, 48, 96), falloff=0.8)
    lines = []
    corners = []
    for side, sign in SIGN.items():
        x, y = anatomy.hilum(side)
        centre, radii = np.array([x + sign * 0.055, y + 0.06]), (0.135, 0.19)
        wing = smoothstep(ball(scene, centre, radii=radii), low=1.3, high=0.2)
        fill_air(scene, wing * (1 + np.float32(0.22) * mottle) * np.float32(strength), side=side)
        corners += [centre - radii, centre + radii]
        for v in np.linspace(0.62, 1.0, 7):
            outer = np.array(anatomy.point(side, 0.99, v + rng.uniform(-0.02, 0.02)))
            lines.append((np.stack([outer, outer + (-sign * rng.uniform(0.03, 0.05), 0.008)]), 0.004))
    scene.vessels = soften(scene.vessels, sigma=frame.pixels(0.002)) * (1.3 + 0.5 * strength)
    scene.vessels += 0.8 * frame.blur(frame.stroke(lines), sigma=0.001)
    return frame.box(np.array(corners))


def draw_atelectasis(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw plates of collapsed lung above a raised diaphragm."""
    anatomy, side = scene.anatomy, finding.side
    plates = []
    count = {"small": 1, "moderate": 2, "large": 3}[finding.severity]
    for number in range(count):
        v = 0.90 - 0.10 * number + rng.uniform(-0.015, 0.015)
        inner = np.array(anatomy.point(side, rng.uniform(0.15, 0.25) + (0.15 if side == "left" else 0), v))
        outer = np.array(anatomy.point(side, rng.uniform(0.80, 0.98), v + rng.uniform(-0.07, 0.02)))
        bend = (inner + outer) / 2 + (0.0, rng.uniform(-0.008, 0.008))
        path = curve([(float(x), float(y)) for x, y in (inner, bend, outer)])
        plates.append(_lens(path, width=rng.uniform(0.017, 0.024)))
    ink = scene.frame.blur(scene.frame.fill(*plates), sigma=0.003)
    fill_air(scene, 0.85 * ink, side=side)
    veil = scene.frame.blur(ink, sigma=0.025)
    fill_air(scene, 0.8 * veil, side=side)
    floor = np.array([anatomy.point(side, u, 1.0) for u in (0.1, 0.5, 0.9)])
    return scene.frame.box(np.concatenate([*plates, floor]))


def _lens(path: Points, *, width: float) -> Points:
    """Return the closed outline of a plate along a path: thick in its middle, running out at both ends."""
    half = 0.5 * width * np.sqrt(np.sin(np.linspace(0, np.pi, len(path))))
    return np.concatenate([path - np.outer(half, (0, 1)), (path + np.outer(half, (0, 1)))[::-1]])


def draw_nodule(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw a round shadow of 14 to 26 mm."""
    return _draw_round(scene, finding, rng, millimetres=(14, 26))


def draw_mass(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw a round, slightly lobed shadow of 32 to 60 mm."""
    return _draw_round(scene, finding, rng, millimetres=(32, 60))


def _draw_round(scene: Scene, finding: Finding, rng: np.random.Generator, *, millimetres: tuple[float, float]) -> Box:
    """Draw a solid ball with a clear border; large ones are lobed."""
    diameter = rng.uniform(*millimetres)
    radius = diameter / 2 / UNIT_MM
    centre = zone_point(scene, finding, rng, u=(0.38, 0.72))
    radii = (radius * rng.uniform(0.92, 1.08), radius * rng.uniform(0.92, 1.08))
    away = ball(scene, centre, radii=radii)
    lobes = scene.frame.clouds(rng, cells=(int(0.7 / radius),)) * min(0.15, radius * 2.5)
    rim = 0.12 if diameter > 30 else 0.16
    solid = smoothstep(away + lobes, low=1 + rim, high=1 - rim)
    # A ball is thicker in its middle.
    thick = np.float32(0.68) + np.float32(0.22) * np.sqrt(np.clip(1 - away**2, 0, 1))
    fill_air(scene, solid * thick, side=finding.side)
    scene.density += np.float32(0.05 if diameter < 30 else 0.03) * solid * scene.lungs[finding.side]
    return around(scene, centre, radii=radii)
