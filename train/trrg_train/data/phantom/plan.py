"""What a phantom study shows: which findings, on which side, where and how much."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from trrg_train.data.finding import Finding, Severity, Side

NORMAL_SHARE = 0.48
"""Share of the studies without a finding (devices aside)."""

WEIGHTS: dict[str, float] = {
    "cardiomegaly": 1.0,
    "widened mediastinum": 1.1,
    "opacity": 0.9,
    "consolidation": 1.1,
    "pneumonia": 1.1,
    "edema": 1.35,
    "atelectasis": 1.1,
    "nodule": 0.7,
    "mass": 0.55,
    "pneumothorax": 0.8,
    "pleural effusion": 1.1,
    "pleural thickening": 1.15,
    "rib fracture": 0.95,
}
"""How often each kind is drawn, relative to the others, where no pattern of ``PATTERNS`` is followed."""

PATTERNS: tuple[tuple[str, ...], ...] = (
    ("edema", "pleural effusion", "cardiomegaly"),
    ("edema", "cardiomegaly"),
    ("edema", "pleural effusion"),
    ("pneumonia", "pleural effusion"),
    ("consolidation", "pleural effusion"),
    ("pneumothorax", "rib fracture"),
    ("pneumothorax", "rib fracture", "chest tube"),
    ("pneumothorax", "chest tube"),
    ("mass", "widened mediastinum"),
    ("atelectasis", "pleural effusion"),
    ("nodule", "pleural thickening"),
    ("opacity", "atelectasis"),
)
"""Findings that come together in patients; a fifth to a third of the abnormal studies follow one."""

PATTERN_SHARE = 0.3
COUNT_SHARES = (0.38, 0.34, 0.20, 0.08)
"""How often an abnormal study that follows no pattern has one, two, three or four findings."""

DEVICES: dict[str, float] = {
    "pacemaker": 0.25,
    "central venous catheter": 0.3,
    "endotracheal tube": 0.18,
    "nasogastric tube": 0.17,
    "chest tube": 0.1,
}

# An edema veils both lungs: what lies inside it could not be told apart. A nodule beside a mass adds no label.
EXCLUDES: dict[str, frozenset[str]] = {
    "edema": frozenset({"opacity", "pneumonia", "consolidation", "nodule", "pneumothorax", "atelectasis"}),
    "nodule": frozenset({"mass"}),
}
ZONES = ("upper", "mid", "lower")
LUNG_KINDS = frozenset({"opacity", "consolidation", "pneumonia", "nodule", "mass"})
SIDES: tuple[Side, Side] = ("right", "left")
Spot = tuple[Side, str]
"""A side and a zone, ``"base"`` or ``"rim"``."""


@dataclass
class _Room:
    """Which places of the chest are still free, so that no finding hides another."""

    rng: np.random.Generator
    free: set[Spot] = field(default_factory=lambda: {(s, place) for s in SIDES for place in (*ZONES, "base", "rim")})

    def take(self, places: list[list[Spot]]) -> list[Spot] | None:
        """Take one of the wanted sets of places that is entirely free; None where none is."""
        open_sets = [want for want in places if all(place in self.free for place in want)]
        if not open_sets:
            return None
        chosen = open_sets[int(self.rng.integers(len(open_sets)))]
        self.free -= set(chosen)
        return chosen


def plan_findings(rng: np.random.Generator, *, view: str) -> list[Finding]:
    """Draw a study's findings without boxes; devices come last."""
    normal = rng.random() < NORMAL_SHARE
    kinds = [] if normal else _choose_kinds(rng)
    share = (0.45 if view == "AP" else 0.12) if normal else (0.55 if view == "AP" else 0.15)
    if rng.random() < share and "chest tube" not in kinds:
        names = list(DEVICES)
        count = 1 if view == "PA" else int(rng.integers(1, 4))
        kinds += [str(k) for k in rng.choice(names, size=count, replace=False, p=list(DEVICES.values()))]
    return _place_all(kinds, rng)


def _choose_kinds(rng: np.random.Generator) -> list[str]:
    """Draw the kinds of an abnormal study."""
    if rng.random() < PATTERN_SHARE:
        return list(PATTERNS[int(rng.integers(len(PATTERNS)))])
    count = int(rng.choice(4, p=COUNT_SHARES)) + 1
    weights = np.array(list(WEIGHTS.values()))
    drawn = rng.choice(list(WEIGHTS), size=count, replace=False, p=weights / weights.sum())
    kept: list[str] = []
    for kind in map(str, drawn):
        clash = any(kind in EXCLUDES.get(other, ()) or other in EXCLUDES.get(kind, ()) for other in kept)
        if not clash:
            kept.append(kind)
    return kept


def _place_all(kinds: list[str], rng: np.random.Generator) -> list[Finding]:
    """Give each kind a free place: what needs most room first; what finds none is left out."""
    order = (
        "edema",
        "pneumothorax",
        "pleural effusion",
        "atelectasis",
        "pleural thickening",
        "consolidation",
        "pneumonia",
    )
    ranked = sorted(kinds, key=lambda kind: order.index(kind) if kind in order else len(order))
    room = _Room(rng)
    placed = [finding for kind in ranked if (finding := _place(kind, room))]
    torn = next((finding.side for finding in placed if finding.kind == "pneumothorax"), None)
    return [
        Finding(f.kind, torn, f.place, f.severity) if torn and f.kind in {"chest tube", "rib fracture"} else f
        for f in placed
    ]


def _severity(rng: np.random.Generator, *, shares: tuple[float, float, float] = (0.25, 0.45, 0.3)) -> Severity:
    """Draw how much there is of a finding; little is rare, or the eye would search in vain."""
    grades: tuple[Severity, Severity, Severity] = ("small", "moderate", "large")
    return grades[int(rng.choice(3, p=shares))]


def _place(kind: str, room: _Room) -> Finding | None:
    """Give one kind a side, a place and a severity; None where the chest has no room for it."""
    rng = room.rng
    side = SIDES[int(rng.integers(2))]
    if kind in {"cardiomegaly", "widened mediastinum"}:
        return Finding(kind, severity=_severity(rng))
    if kind == "edema":
        taken = room.take([[(s, z) for s in SIDES for z in ("upper", "mid")]])
        return Finding(kind, "bilateral", "", _severity(rng)) if taken else None
    if kind in DEVICES:
        return Finding(kind, "" if kind in {"endotracheal tube", "nasogastric tube"} else side)
    if kind == "rib fracture":
        return Finding(kind, side, ZONES[int(rng.integers(3))])
    if kind in LUNG_KINDS:
        taken = room.take([[(s, z)] for s in SIDES for z in ZONES])
        if not taken:
            return None
        return Finding(kind, taken[0][0], taken[0][1], "" if kind in {"nodule", "mass"} else _severity(rng))
    return _place_at_rim(kind, room)


def _place_at_rim(kind: str, room: _Room) -> Finding | None:
    """Place what lies at the base or the wall of one lung, or of both for an effusion."""
    rng = room.rng
    severity = _severity(rng)
    if kind == "pleural effusion" and rng.random() < 0.25:
        both: list[Spot] = [(s, z) for s in SIDES for z in ("base", "lower", "rim")]
        if room.take([both]):
            return Finding(kind, "bilateral", "base", severity)
    needs = {
        "pneumothorax": ("rim", "upper", "mid", "lower", "base"),
        "pleural effusion": ("base", "lower", "rim", "mid") if severity == "large" else ("base", "lower", "rim"),
        "atelectasis": ("base", "lower"),
        "pleural thickening": ("rim",),
    }[kind]
    taken = room.take([[(s, place) for place in needs] for s in SIDES])
    if not taken and severity == "large" and kind == "pleural effusion":
        severity = "moderate"
        taken = room.take([[(s, place) for place in needs[:3]] for s in SIDES])
    if not taken:
        return None
    places = {"pneumothorax": "apex", "pleural effusion": "base", "atelectasis": "base"}
    place = places.get(kind) or ("apex" if rng.random() < 0.35 else "mid")
    return Finding(kind, taken[0][0], place, severity)
