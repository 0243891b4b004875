"""One phantom study: a patient, findings drawn at known places, and the film as a detector stores it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trrg_train.data.finding import Finding, study_labels
from trrg_train.data.phantom import device_findings, lung_findings, pleura_findings
from trrg_train.data.phantom.anatomy import sample_anatomy
from trrg_train.data.phantom.body import Scene, draw_body
from trrg_train.data.phantom.exposure import expose, sample_exposure
from trrg_train.data.phantom.frame import UNIT_MM, Box, Frame, stream
from trrg_train.data.phantom.plan import plan_findings

Drawer = Callable[[Scene, Finding, np.random.Generator], Box]

DRAWERS: dict[str, Drawer] = {
    "cardiomegaly": pleura_findings.draw_cardiomegaly,
    "widened mediastinum": pleura_findings.draw_widened_mediastinum,
    "opacity": lung_findings.draw_opacity,
    "consolidation": lung_findings.draw_consolidation,
    "pneumonia": lung_findings.draw_pneumonia,
    "edema": lung_findings.draw_edema,
    "atelectasis": lung_findings.draw_atelectasis,
    "nodule": lung_findings.draw_nodule,
    "mass": lung_findings.draw_mass,
    "pneumothorax": pleura_findings.draw_pneumothorax,
    "pleural effusion": pleura_findings.draw_effusion,
    "pleural thickening": pleura_findings.draw_thickening,
    "rib fracture": pleura_findings.draw_rib_fracture,
    "pacemaker": device_findings.draw_pacemaker,
    "central venous catheter": device_findings.draw_central_line,
    "endotracheal tube": device_findings.draw_endotracheal_tube,
    "nasogastric tube": device_findings.draw_nasogastric_tube,
    "chest tube": device_findings.draw_chest_tube,
}
"""How each kind of ``finding.KINDS`` is drawn."""

AP_SHARE = 0.3


@dataclass(frozen=True)
class PhantomStudy:
    """A rendered study with its truth.

    Attributes:
        seed: Seed of the data set.
        index: Number of the study in it.
        patient: Number of the patient; some patients have two studies.
        view: ``"PA"`` or ``"AP"``.
        findings: What was drawn, with boxes.
        pixels: Stored values, uint16 (size, size).
        photometric: ``"MONOCHROME1"`` or ``"MONOCHROME2"``.
        bits_stored: 10, 12, 14 or 16.
        spacing_mm: Distance between pixels, rows and columns alike.
        age_years: Age of the patient.
        sex: ``"F"`` or ``"M"``.
    """

    seed: int
    index: int
    patient: int
    view: str
    findings: tuple[Finding, ...]
    pixels: NDArray[np.uint16]
    photometric: str
    bits_stored: int
    spacing_mm: float
    age_years: int
    sex: str

    @property
    def name(self) -> str:
        """The study's name, unique for a seed."""
        return f"phantom-{self.seed}-{self.index:05d}"

    @property
    def labels(self) -> dict[str, bool]:
        """Present or absent for each of the 14 observations."""
        return study_labels(self.findings)

    def bright(self) -> NDArray[np.float32]:
        """Return the picture as a person looks at it, float32 (size, size), 0 (dark) to 1 (bright)."""
        top = np.float32(2**self.bits_stored - 1)
        shown = self.pixels.astype(np.float32) / top
        return np.asarray(1 - shown if self.photometric == "MONOCHROME1" else shown, dtype=np.float32)


def patient_of(index: int) -> int:
    """Return the patient of a study: of five studies in a row the first two are of one patient."""
    group, place = divmod(index, 5)
    return 4 * group + max(place - 1, 0)


def make_study(seed: int, index: int, *, size: int) -> PhantomStudy:
    """Render study number ``index`` of data set ``seed``; the same arguments give the same bytes.

    Args:
        seed: Names the data set.
        index: Number of the study, from 0.
        size: Rows and columns of the film in pixels, at least 64.

    Raises:
        ValueError: If index is negative or size is below 64.
    """
    if index < 0 or size < 64:
        raise ValueError(f"a study needs an index >= 0 and a size >= 64, got index {index} and size {size}")
    rng = stream("phantom", seed, "study", index)
    view = "AP" if rng.random() < AP_SHARE else "PA"
    return draw_study(seed, index, size=size, view=view, findings=plan_findings(rng, view=view))


def draw_study(seed: int, index: int, *, size: int, view: str, findings: Sequence[Finding]) -> PhantomStudy:
    """Render a study with the findings of the caller's choice; body, exposure and noise follow seed and index."""
    rng = stream("phantom", seed, "film", index)
    patient = patient_of(index)
    zoom = rng.uniform(0.94, 1.12)
    frame = Frame(size, rng.normal(0, 0.025), zoom, (rng.normal(0, 0.015), rng.normal(0, 0.015)))
    exposure = sample_exposure(rng, view=view)
    scene, drawn = _draw_scene(frame, (seed, index), view=view, findings=findings)
    pixels = expose(scene.attenuation(), exposure=exposure, rng=rng)
    person = stream("phantom", seed, "person", patient)
    return PhantomStudy(
        seed=seed,
        index=index,
        patient=patient,
        view=view,
        findings=drawn,
        pixels=pixels,
        photometric="MONOCHROME1" if exposure.inverted else "MONOCHROME2",
        bits_stored=exposure.bits,
        spacing_mm=round(UNIT_MM / (zoom * size), 4),
        age_years=int(person.integers(21, 88)),
        sex="F" if sample_anatomy(seed, patient, view=view).breast else "M",
    )


def _draw_scene(
    frame: Frame, key: tuple[int, int], *, view: str, findings: Sequence[Finding]
) -> tuple[Scene, tuple[Finding, ...]]:
    """Draw body and findings; return the findings with their boxes.

    Each finding has a random stream of its own, so that leaving one out changes nothing else.
    """
    seed, index = key
    anatomy = sample_anatomy(seed, patient_of(index), view=view)
    for finding in findings:
        anatomy = pleura_findings.reshape(anatomy, finding, stream("phantom", seed, index, "shape", finding.kind))
    scene = draw_body(frame, anatomy, view=view)
    drawn = []
    for finding in findings:
        box = DRAWERS[finding.kind](scene, finding, stream("phantom", seed, index, "draw", finding.kind))
        x0, y0, x1, y1 = (round(edge, 4) for edge in box)
        drawn.append(replace(finding, box=(x0, y0, x1, y1)))
    return scene, tuple(drawn)
