"""The normal chest: soft tissue, lungs with vessels, heart, bones and airways as attenuation on a film."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from trrg_train.data.phantom.anatomy import SIGN, Anatomy, Break
from trrg_train.data.phantom.frame import Field, Frame, Points, curve, soften, stream

AIR = 0.60
"""Attenuation that a lung full of air takes away from the chest (a chest without lungs attenuates about 1)."""
VESSEL = 0.20
"""Attenuation of the thickest lung vessels."""


@dataclass
class Scene:
    """The film while it is drawn; findings change it in place.

    Attributes:
        frame: How the anatomy lies on the film.
        anatomy: The patient.
        lungs: Per side 1 inside the lung's outline, soft at the edge, (H, W).
        air: How much of the lung's air shows at each pixel, 0..1, (H, W).
        vessels: Ink of the lung vessels, 0..1, (H, W).
        density: Attenuation of everything that is not air, (H, W).
        heart: 1 inside the heart, (H, W).
    """

    frame: Frame
    anatomy: Anatomy
    lungs: dict[str, Field]
    air: Field
    vessels: Field
    density: Field
    heart: Field

    def attenuation(self) -> Field:
        """Return the line integral at every pixel, (H, W)."""
        air = np.clip(self.air, 0, 1.15)
        return np.asarray(self.density + air * (VESSEL * self.vessels - AIR), dtype=np.float32)


def draw_body(frame: Frame, anatomy: Anatomy, *, view: str) -> Scene:
    """Draw a patient without findings."""
    lungs = {side: frame.blur(frame.fill(anatomy.lung(side)), sigma=0.0022) for side in SIGN}
    heart = frame.blur(frame.fill(anatomy.heart()), sigma=0.0035)
    middle = frame.blur(frame.fill(anatomy.mediastinum_outline()), sigma=0.003)
    scene = Scene(
        frame=frame,
        anatomy=anatomy,
        lungs=lungs,
        air=_air(frame, anatomy, lungs, covers=(heart, middle)),
        vessels=_vessels(frame, anatomy),
        density=_soft_tissue(frame, anatomy, view=view),
        heart=heart,
    )
    scene.density += 0.05 * heart + 0.03 * middle
    _draw_abdomen(scene)
    _draw_spine(scene)
    _draw_airways(scene)
    _draw_ribs(scene)
    _draw_shoulders(scene)
    return scene


def _air(frame: Frame, anatomy: Anatomy, lungs: dict[str, Field], *, covers: tuple[Field, Field]) -> Field:
    """Return the lungs' air: thinner towards the edges, hidden where the heart and the mediastinum lie before it."""
    heart, middle = covers
    both = np.minimum(lungs["right"] + lungs["left"], 1)
    depth = 0.66 + 0.34 * frame.blur(both, sigma=0.045)
    texture = frame.clouds(stream(anatomy.seed, "texture"), cells=(40, 80, 160), falloff=0.8)
    seen = (1 - 0.86 * heart) * (1 - 0.93 * middle)
    return np.asarray(both * depth * seen * (1 + 0.022 * texture), dtype=np.float32)


def _torso(anatomy: Anatomy, *, view: str) -> list[Points]:
    """Return the outlines of trunk with shoulders and, where they hang beside it, the arms."""
    side = anatomy.half_width + 0.055 + anatomy.fat
    shoulder = 0.02 if view == "AP" else 0.05
    half = [
        (0.085, -0.1),
        (0.09, 0.02),
        (0.13, shoulder + 0.02),
        (0.28, shoulder + 0.05),
        (0.42, shoulder + 0.07),
        (0.60, shoulder + 0.17),
        (0.64, 0.34),
        (0.52, 0.40),
        (side + 0.035, 0.36),
        (side + 0.005, 0.5),
        (side, 0.75),
        (side + 0.01, 1.15),
    ]
    right = curve([(-x, y) for x, y in reversed(half)], steps=6)
    shapes = [np.concatenate([curve(half, steps=6), right])]
    if view == "AP":
        for sign in SIGN.values():
            arm = [(side + 0.03, 0.2), (side + 0.14, 0.2), (side + 0.17, 0.6), (side + 0.15, 1.1), (side + 0.05, 1.1)]
            shapes.append(np.array(arm) * (sign, 1.0))
    return shapes


def _soft_tissue(frame: Frame, anatomy: Anatomy, *, view: str) -> Field:
    """Return the attenuation of a body that is thick in the middle and thin at the skin."""
    coarse = Frame(160, frame.angle, frame.zoom, frame.shift)
    inside = coarse.fill(*_torso(anatomy, view=view)) > 0.5
    # The rim counts as inside, or a body that fills the film would look thin where the film ends.
    padded = np.pad(inside, 30, mode="edge")
    away = distance_transform_edt(padded)[30:-30, 30:-30].astype(np.float32) / coarse.pixels(1.0)
    reach = 0.15
    thick = np.sqrt(1 - (1 - np.clip(away / reach, 0, 1)) ** 2)
    fine = Image.fromarray(soften(thick.astype(np.float32), sigma=1.2)).resize(
        (frame.size, frame.size), Image.Resampling.BICUBIC
    )
    x, y = frame.grid
    body = np.clip(np.asarray(fine, dtype=np.float32), 0, 1)
    shape = 0.80 + 0.2 * np.exp(-((x / 0.26) ** 2)) + 0.12 * np.clip(y - 0.35, -0.35, 0.5) + 0.8 * anatomy.fat
    muscle = frame.clouds(stream(anatomy.seed, "muscle"), cells=(6, 12, 24))
    body = body * shape * (1 + 0.018 * muscle)
    return np.asarray(body + _breasts(frame, anatomy), dtype=np.float32)


def _breasts(frame: Frame, anatomy: Anatomy) -> Field:
    """Return the two breast shadows: densest at their lower border, which fades towards the midline."""
    total = np.zeros((frame.size, frame.size), dtype=np.float32)
    if anatomy.breast == 0:
        return total
    x, y = frame.grid
    for sign in SIGN.values():
        away = ((sign * x - 0.225) / 0.155) ** 2 + ((y - 0.63) / 0.16) ** 2
        dome = np.sqrt(np.clip(1 - away, 0, None))
        total += np.float32(anatomy.breast) * dome * np.clip(0.4 + (y - 0.55) * 3, 0.1, 1)
    return soften(total, sigma=frame.pixels(0.004))


def _draw_abdomen(scene: Scene) -> None:
    """Thicken what lies under the diaphragm and put gas into the stomach."""
    frame, anatomy = scene.frame, scene.anatomy
    x = np.linspace(0.0, anatomy.half_width, 40)
    halves = []
    for side, sign in SIGN.items():
        floor = np.stack([sign * x, anatomy.dome(x, side=side)], axis=1)
        corners = np.array([[sign * anatomy.half_width, 1.2], [0.0, 1.2]])
        halves.append(np.concatenate([floor, corners]))
    scene.density += 0.13 * frame.blur(frame.fill(*halves), sigma=0.004)
    if anatomy.gas:
        top = float(anatomy.dome(0.17, side="left")) + 0.035
        size = 0.055 * anatomy.gas
        spots = [(0.10, top + 0.01), (0.17, top), (0.24, top + 0.02), (0.17 + size, top + size), (0.13, top + size)]
        scene.density -= 0.26 * frame.blur(frame.fill(curve(spots, closed=True)), sigma=0.008)


def _draw_spine(scene: Scene) -> None:
    """Draw the vertebrae, their discs and pedicles behind the mediastinum."""
    frame = scene.frame
    bodies, rims, pedicles = [], [], []
    for y in np.arange(0.0, 1.1, 0.056):
        half = 0.034 + 0.008 * y
        bodies.append(np.array([[-half, y], [half, y], [half, y + 0.045], [-half, y + 0.045]]))
        rims.append((np.array([[-half, y], [half, y]]), 0.005))
        pedicles += [(np.array([[s * half * 0.62, y + 0.012], [s * half * 0.62, y + 0.026]]), 0.012) for s in (-1, 1)]
    ink = 0.4 * frame.fill(*bodies) + 0.3 * frame.stroke(rims) + 0.3 * frame.stroke(pedicles)
    scene.density += 0.16 * frame.blur(np.asarray(ink, dtype=np.float32), sigma=0.003)


def _draw_airways(scene: Scene) -> None:
    """Draw the trachea and the main bronchi as dark bands."""
    frame, x = scene.frame, scene.anatomy.trachea_x
    carina = 0.355
    ink = frame.stroke(
        [
            (curve([(0.0, -0.05), (x, 0.15), (x, carina)]), 0.042),
            (curve([(x, carina - 0.01), (-0.035, carina + 0.03), (-0.075, carina + 0.065)]), 0.028),
            (curve([(x, carina - 0.01), (0.04, carina + 0.035), (0.085, carina + 0.06)]), 0.024),
        ]
    )
    scene.density -= 0.14 * frame.blur(ink, sigma=0.004)


def rib_pieces(anatomy: Anatomy, side: str, number: int) -> list[Points]:
    """Return the back part of a rib, in two stepped pieces with a gap between them where it is broken."""
    back, _ = anatomy.rib(side, number)
    broken = [b for b in anatomy.breaks if b.side == side and b.rib == number]
    if not broken:
        return [back]
    return list(_split(back, broken[0]))


def _split(back: Points, broken: Break) -> tuple[Points, Points]:
    """Cut a rib in two; the outer piece steps off and tilts."""
    run = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(back, axis=0).T))])
    even = np.linspace(0.0, run[-1], 120)
    path = np.stack([np.interp(even, run, back[:, axis]) for axis in (0, 1)], axis=1)
    cut, gap = int(broken.at * len(path)), int(0.5 + 0.005 / even[1])
    inner, outer = path[: cut - gap], path[cut + gap :].copy()
    outer[:, 1] += broken.step * np.linspace(1.0, 0.1, len(outer))
    return inner, outer


def _draw_ribs(scene: Scene) -> None:
    """Draw the ribs: backs bright with brighter margins, fronts fainter."""
    frame, anatomy = scene.frame, scene.anatomy
    backs, fronts = [], []
    for side in SIGN:
        for number in range(10):
            width = anatomy.rib_width * (0.85 if number < 2 else 1.0)
            backs += [(piece, width) for piece in rib_pieces(anatomy, side, number)]
            if number < 7:
                fronts.append((anatomy.rib(side, number)[1], width * 1.05))
    ink = frame.stroke(backs)
    sharp, wide = frame.blur(ink, sigma=0.0018), frame.blur(ink, sigma=0.006)
    bone = 0.62 * sharp + 1.1 * np.abs(sharp - wide)
    ink = frame.stroke(fronts)
    sharp, wide = frame.blur(ink, sigma=0.0025), frame.blur(ink, sigma=0.006)
    bone = bone + 0.34 * sharp + 0.5 * np.abs(sharp - wide)
    scene.density += np.float32(anatomy.rib_density) * bone


def _draw_shoulders(scene: Scene) -> None:
    """Draw clavicles, shoulder blades and the heads of the arms."""
    frame, anatomy = scene.frame, scene.anatomy
    y, rise = anatomy.clavicle_y, anatomy.clavicle_rise
    clavicles, blades, heads = [], [], []
    for sign in SIGN.values():
        path = [(0.028, y), (0.10, y - 0.25 * rise - 0.006), (0.22, y - 0.8 * rise), (0.36, y - rise - 0.004)]
        clavicles.append((curve(path) * (sign, 1.0), 0.024))
        edge = anatomy.half_width - anatomy.scapula
        blade = [(edge + 0.06, 0.12), (edge, 0.2), (edge - 0.005, 0.3), (edge + 0.035, 0.43), (edge + 0.06, 0.40)]
        blades.append(curve([*blade, (edge + 0.10, 0.2)], closed=True) * (sign, 1.0))
        turn = np.linspace(0, 2 * np.pi, 24)
        head = np.stack([0.46 + 0.045 * np.cos(turn), 0.165 + 0.05 * np.sin(turn)], axis=1)
        shaft = np.array([[0.445, 0.18], [0.50, 0.17], [0.57, 0.5], [0.53, 0.52]])
        heads += [head * (sign, 1.0), shaft * (sign, 1.0)]
    ink = frame.stroke(clavicles)
    sharp, wide = frame.blur(ink, sigma=0.002), frame.blur(ink, sigma=0.008)
    scene.density += np.float32(anatomy.rib_density) * (0.8 * sharp + 0.9 * np.abs(sharp - wide))
    flat = frame.fill(*blades)
    sharp, wide = frame.blur(flat, sigma=0.003), frame.blur(flat, sigma=0.01)
    scene.density += 0.05 * sharp + 0.12 * np.abs(sharp - wide)
    scene.density += 0.12 * frame.blur(frame.fill(*heads), sigma=0.005)


Twig = tuple[list[tuple[float, float]], float]
"""A piece of vessel: points and width."""


def _vessels(frame: Frame, anatomy: Anatomy) -> Field:
    """Return the ink of the vessel trees that branch from both hila and thin out towards the wall."""
    rng = stream(anatomy.seed, "vessels")
    twigs: list[Twig] = []
    for side in SIGN:
        fan = np.linspace(-1, 1, 9)
        for angle in 1.42 * np.sign(fan) * np.abs(fan) ** 0.75 + rng.normal(0, 0.1, 9):
            _grow(rng, twigs, anatomy.hilum(side), sign=SIGN[side], angle=float(angle), width=0.0105)
    thick = frame.stroke([(np.array(path), width) for path, width in twigs if width > 0.0045])
    thin = frame.stroke([(np.array(path), width) for path, width in twigs if width <= 0.0045])
    hila = frame.stroke([(_hilum_path(anatomy, side), 0.045) for side in SIGN])
    ink = 0.85 * frame.blur(thick, sigma=0.002) + 0.42 * frame.blur(thin, sigma=0.0013)
    ink = ink + 0.45 * frame.blur(hila, sigma=0.012)
    return np.asarray(anatomy.vessels * np.minimum(ink, 1.1), dtype=np.float32)


def _hilum_path(anatomy: Anatomy, side: str) -> Points:
    """Return the stem of the hilar vessels, (3, 2)."""
    x, y = anatomy.hilum(side)
    return np.array([[x, y - 0.035], [x + SIGN[side] * 0.012, y], [x, y + 0.06]])


def _grow(
    rng: np.random.Generator, twigs: list[Twig], start: tuple[float, float], *, sign: float, angle: float, width: float
) -> None:
    """Grow a vessel and its branches; angle is measured below the horizontal."""
    if width < 0.0019:
        return
    a, b, c, d, stretch, spread, skew, thin, thinner = rng.random(9).tolist()
    length = (0.05 + 1.2 * width) * (0.8 + 0.5 * stretch)
    path = [start]
    for turn in (a, b, c, d):
        angle += 0.38 * (turn - 0.5)
        x, y = path[-1]
        path.append((x + sign * math.cos(angle) * length / 4, y + math.sin(angle) * length / 4))
    twigs.append((path, width))
    spread = 0.18 + 0.32 * spread
    _grow(rng, twigs, path[-1], sign=sign, angle=angle - spread, width=width * (0.58 + 0.2 * thin))
    right = spread * (0.5 + 0.7 * skew)
    _grow(rng, twigs, path[-1], sign=sign, angle=angle + right, width=width * (0.58 + 0.2 * thinner))
