"""Findings at the lung's rim and of its frame: pneumothorax, effusion, thickening, heart, mediastinum and ribs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trrg_train.data.finding import Finding
from trrg_train.data.phantom.anatomy import SIGN, Anatomy, Break
from trrg_train.data.phantom.body import Scene, rib_pieces
from trrg_train.data.phantom.frame import Box, Points, smoothstep
from trrg_train.data.phantom.lung_findings import fill_air


def reshape(anatomy: Anatomy, finding: Finding, rng: np.random.Generator) -> Anatomy:
    """Return the patient with the change of shape that a finding brings: heart, mediastinum, diaphragm or ribs."""
    if finding.kind == "cardiomegaly":
        low = {"small": 0.57, "moderate": 0.62, "large": 0.68}[finding.severity]
        return replace(anatomy, heart_ratio=rng.uniform(low, low + 0.05))
    if finding.kind == "widened mediastinum":
        grow = {"small": 1.65, "moderate": 1.95, "large": 2.3}[finding.severity] * rng.uniform(0.97, 1.05)
        right, left = anatomy.mediastinum
        return replace(anatomy, mediastinum=(right * grow, left * grow), knob=anatomy.knob * 1.1)
    if finding.kind == "atelectasis":
        lift = {"small": 0.03, "moderate": 0.045, "large": 0.06}[finding.severity]
        right, left = anatomy.dome_y
        raised = (right - lift, left) if finding.side == "right" else (right, left - lift)
        return replace(anatomy, dome_y=raised)
    if finding.kind == "rib fracture":
        return replace(anatomy, breaks=anatomy.breaks + _breaks(anatomy, finding, rng))
    return anatomy


def _breaks(anatomy: Anatomy, finding: Finding, rng: np.random.Generator) -> tuple[Break, ...]:
    """Choose two or three neighbouring ribs to break in a finding's zone."""
    first = {"upper": 2, "mid": 4, "lower": 6}[finding.place]
    step = rng.uniform(1.3, 1.7) * anatomy.rib_width
    at = rng.uniform(0.45, 0.68)
    return tuple(
        Break(finding.side, first + k, float(at + rng.uniform(-0.03, 0.03)), step)
        for k in range(int(rng.integers(2, 4)))
    )


def draw_cardiomegaly(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Return the box of the heart, which ``reshape`` has already enlarged."""
    return scene.frame.box(scene.anatomy.heart())


def draw_widened_mediastinum(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Return the box of the upper mediastinum, which ``reshape`` has already widened."""
    outline = scene.anatomy.mediastinum_outline()
    return scene.frame.box(outline[outline[:, 1] < 0.46])


def draw_rib_fracture(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Brighten the stepped ends that ``reshape`` and the body have already drawn."""
    frame, anatomy = scene.frame, scene.anatomy
    ends, points = [], []
    for broken in anatomy.breaks:
        if broken.side != finding.side:
            continue
        inner, outer = rib_pieces(anatomy, broken.side, broken.rib)
        for end in (inner[-5:], outer[:5]):
            ends.append((end, anatomy.rib_width * 1.45))
            points.append(end)
    scene.density += 0.24 * frame.blur(frame.stroke(ends), sigma=0.0028)
    return frame.box(np.concatenate(points), margin=0.025)


def draw_pneumothorax(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw black air without vessels between the wall and a retracted lung with its thin pleural line."""
    frame, anatomy, side = scene.frame, scene.anatomy, finding.side
    gap = {"small": 0.15, "moderate": 0.26, "large": 0.48}[finding.severity] * rng.uniform(0.92, 1.1)
    border, closed = _retracted(anatomy, side, gap=gap)
    inside = frame.blur(frame.fill(closed), sigma=0.0015)
    free = scene.lungs[side] * (1 - inside)
    seen = smoothstep(scene.air, low=0.25, high=0.6)
    scene.vessels *= 1 - free
    scene.air += seen * (free * 0.30 - 0.14 * gap / 0.3 * scene.lungs[side] * inside)
    line = frame.blur(frame.stroke([(border, 0.0065)]), sigma=0.0012)
    scene.density += 0.22 * line * seen * scene.lungs[side]
    outer = anatomy.lung(side)
    outer = outer[(np.abs(outer[:, 0]) > 0.06) & (outer[:, 1] <= border[:, 1].max())]
    return frame.box(np.concatenate([outer, border]) if len(outer) else border)


def _retracted(anatomy: Anatomy, side: str, *, gap: float) -> tuple[Points, Points]:
    """Return the visible outer border of the retracted lung from base to apex, and its closed outline, each (N, 2)."""
    if gap > 0.35:  # the whole lung has shrunk to a lump at the hilum
        turn = np.linspace(0.5 * np.pi, -0.5 * np.pi, 50)
        high = 0.34 - 0.25 * gap
        lump = np.stack([0.04 + (0.20 - 0.15 * gap) * np.cos(turn) ** 0.8, 0.47 + high * np.sin(turn)], axis=1)
        lump *= (SIGN[side], 1.0)
        return lump, lump
    outline = anatomy.lung(side)[:60]  # the wall from base to apex
    root = np.array(anatomy.hilum(side))
    height = (outline[:, 1] - anatomy.apex_y) / (outline[0, 1] - anatomy.apex_y)
    # Air rises: the gap is widest at the apex of an upright patient and closes towards the base.
    share = gap * (1.25 - 0.75 * height**1.3) * np.clip((1 - height) / 0.3, 0, 1) ** 0.7
    border = np.asarray(root + (outline - root) * (1 - share)[:, None])
    below = np.array([[0.0, border[-1, 1] + 0.02], [0.0, 1.0], [SIGN[side] * anatomy.half_width, 1.0]])
    return border, np.concatenate([border, below])


def draw_effusion(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw fluid that fills the costophrenic angle up to a meniscus which climbs along the wall."""
    boxes = []
    for side in SIGN if finding.side == "bilateral" else (finding.side,):
        boxes.append(_draw_fluid(scene, side, severity=finding.severity, rng=rng))
    low, high = np.array(boxes)[:, :2].min(axis=0), np.array(boxes)[:, 2:].max(axis=0)
    return (float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def _draw_fluid(scene: Scene, side: str, *, severity: str, rng: np.random.Generator) -> Box:
    """Draw the fluid of one side and return its box."""
    anatomy, frame = scene.anatomy, scene.frame
    dome = anatomy.dome_y[0 if side == "right" else 1]
    level = dome + {"small": 0.035, "moderate": -0.06, "large": -0.19}[severity] + rng.uniform(-0.02, 0.015)
    climb = {"small": 0.09, "moderate": 0.11, "large": 0.13}[severity] * rng.uniform(0.9, 1.15)
    x = np.linspace(0.0, anatomy.half_width + 0.01, 50)
    share = x / x[-1]
    top = level - climb * share**3.2 - 0.25 * climb * (1 - share) ** 4
    surface = np.stack([SIGN[side] * x, top], axis=1)
    floor = anatomy.half_width + 0.01, float(anatomy.dome(anatomy.half_width, side=side)) + 0.02
    shape = np.concatenate([surface, [[SIGN[side] * floor[0], floor[1]], [0.0, floor[1]]]])
    water = frame.blur(frame.fill(shape), sigma=0.006)
    wet = water * scene.lungs[side]
    fill_air(scene, 0.97 * water, side=side)
    scene.density += 0.15 * wet * (1 - 0.8 * scene.heart)
    visible = surface[surface[:, 1] < anatomy.dome(x, side=side)]
    return frame.box(np.concatenate([visible, [[SIGN[side] * anatomy.half_width, floor[1] - 0.02]]]))


def draw_thickening(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw a knobbly band of thick pleura: a cap over the apex, or along the wall with chalky plaques."""
    anatomy, frame, side = scene.anatomy, scene.frame, finding.side
    thick = {"small": 0.030, "moderate": 0.040, "large": 0.052}[finding.severity]
    outline = anatomy.lung(side)[:60]
    height = (outline[:, 1] - anatomy.apex_y) / (outline[0, 1] - anatomy.apex_y)
    if finding.place == "apex":
        part = outline[height < 0.22]
        part = np.concatenate([part, anatomy.lung(side)[60:62]])
        thick *= 1.25
    else:
        start = rng.uniform(0.16, 0.26)
        part = outline[(height > start) & (height < start + rng.uniform(0.50, 0.60))]
    centre = np.array([SIGN[side] * 0.12, 0.45])
    inward = centre - part
    inward /= np.linalg.norm(inward, axis=1, keepdims=True)
    bumps = 1 + 0.25 * np.sin(np.linspace(0, rng.uniform(8, 16), len(part)) + rng.uniform(0, 6))
    run = np.linspace(0, 1, len(part))
    taper = np.clip(run * 3 if finding.place == "apex" else np.sin(run * np.pi) * 3, 0, 1)
    inner = part + inward * (thick * bumps * taper)[:, None]
    band = frame.blur(frame.fill(np.concatenate([part - inward * 0.01, inner[::-1]])), sigma=0.002)
    fill_air(scene, 0.85 * band, side=side)
    if finding.place != "apex":
        rim = frame.blur(frame.stroke([(part + inward * thick * 0.35, 0.008)]), sigma=0.002)
        chalk = smoothstep(frame.clouds(rng, cells=(14,)), low=-0.6, high=0.5)
        scene.density += 0.30 * rim * chalk * scene.lungs[side]
    return frame.box(np.concatenate([part, inner]))
