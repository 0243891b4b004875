"""Lines, tubes and the pacemaker: metal and plastic that lies on or in the patient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trrg_train.data.finding import Finding
from trrg_train.data.phantom.anatomy import SIGN
from trrg_train.data.phantom.body import Scene
from trrg_train.data.phantom.frame import Box, Points, curve


def _line(scene: Scene, path: Points, *, width: float, strength: float) -> Box:
    """Draw one bright line and return its box."""
    frame = scene.frame
    scene.density += np.float32(strength) * frame.blur(frame.stroke([(path, width)]), sigma=0.0008)
    return frame.box(path, margin=0.008)


def _mirror(points: Sequence[tuple[float, float]], side: str) -> Points:
    """Return a smooth path given for the patient's left, on the wanted side."""
    return curve(points) * (SIGN[side], 1.0)


def draw_pacemaker(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw a generator under the clavicle and two leads into the right heart."""
    frame, side = scene.frame, finding.side
    x, y = 0.25 + rng.uniform(-0.02, 0.02), 0.215 + rng.uniform(-0.02, 0.02)
    turn = np.linspace(0, 2 * np.pi, 40)
    squircle = np.stack([np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** 0.6, np.sin(turn)], axis=1)
    can = (squircle * (0.055, 0.048) + (x, y)) * (SIGN[side], 1.0)
    scene.density += 0.85 * frame.blur(frame.fill(can), sigma=0.0015)
    head = can * 0.4 + can.mean(axis=0) * 0.6 - (0.0, 0.03)
    scene.density -= 0.15 * frame.blur(frame.fill(head), sigma=0.0015)
    floor = scene.anatomy.dome_y[1]
    start = [(x - 0.03, y - 0.04), (0.14, 0.155), (0.05, 0.19)]
    inner = curve([(SIGN[side] * a, b) for a, b in start] + [(-0.045, 0.30), (-0.05, 0.48)])
    atrial = np.concatenate([inner, curve([(-0.05, 0.48), (-0.065, 0.56), (-0.05, 0.525)])])
    apex = 0.30 * scene.anatomy.half_width
    ventricle = np.concatenate([inner, curve([(-0.05, 0.48), (-0.025, floor - 0.05), (apex, floor - 0.03)])])
    frames = [_line(scene, path, width=0.006, strength=0.35) for path in (atrial, ventricle)]
    return _union([*frames, frame.box(can)])


def draw_central_line(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw a thin catheter from the neck or the clavicle into the superior vena cava."""
    tip = rng.uniform(0.40, 0.48)
    sign = SIGN[finding.side]
    if rng.random() < 0.5:
        start = [(sign * 0.12, -0.02), (sign * 0.085, 0.08), (sign * 0.06, 0.17)]
    else:
        start = [(sign * 0.40, 0.30), (sign * 0.32, 0.17), (sign * 0.19, 0.135), (sign * 0.075, 0.17)]
    path = curve([*start, (-0.035, 0.26), (-0.045, 0.34), (-0.045, tip)])
    return _line(scene, path, width=0.008, strength=0.4)


def draw_endotracheal_tube(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw a tube with a radiopaque stripe that ends above the carina."""
    x, tip = scene.anatomy.trachea_x, rng.uniform(0.25, 0.31)
    path = curve([(0.0, -0.05), (x * 0.7, 0.1), (x, tip)])
    walls = [path + (0.011, 0), path - (0.011, 0)]
    boxes = [_line(scene, wall, width=0.006, strength=0.22) for wall in walls]
    boxes.append(_line(scene, path + (0.004, 0), width=0.006, strength=0.5))
    return _union(boxes)


def draw_nasogastric_tube(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw a long tube down the midline into the stomach."""
    floor = scene.anatomy.dome_y[1]
    x = rng.uniform(0.01, 0.02)
    path = [(0.01, -0.05), (x, 0.2), (x + 0.006, 0.5), (0.025, floor + 0.03), (0.07, floor + 0.09)]
    path += [(0.15, floor + 0.12), (0.19, floor + rng.uniform(0.11, 0.16))]
    return _line(scene, curve(path), width=0.011, strength=0.42)


def draw_chest_tube(scene: Scene, finding: Finding, rng: np.random.Generator) -> Box:
    """Draw a thick tube with a stripe through the side wall up along the pleura."""
    anatomy = scene.anatomy
    low = rng.uniform(0.52, 0.60)
    wall = float(anatomy.wall(low))
    tip = rng.uniform(0.17, 0.24)
    stops = [(wall + 0.14, low + 0.10), (wall + 0.01, low), (wall - 0.05, low - 0.10)]
    stops += [(float(anatomy.wall(0.3)) - 0.07, 0.30), (float(anatomy.wall(tip)) - 0.09, tip)]
    path = _mirror(stops, finding.side)
    box = _line(scene, path, width=0.017, strength=0.17)
    _line(scene, path + (0.004, 0.0), width=0.006, strength=0.42)
    return box


def _union(boxes: Sequence[Box]) -> Box:
    """Return the box around boxes."""
    sides = np.array(boxes)
    low, high = sides[:, :2].min(axis=0), sides[:, 2:].max(axis=0)
    return (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
