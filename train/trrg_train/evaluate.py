"""Figures on held-out studies: perception, the labels of what is written, and what both are worth.

Every score stands beside its floor (one constant report), the score with the images shuffled, and how many distinct
reports were written. Phantoms and each set of real patients are kept apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.labeler import OBSERVATIONS, label_report
from trrg_train.config import RunConfig
from trrg_train.data.sides import asserted_sides
from trrg_train.data.sources import read_sources
from trrg_train.data.study import Study, label_matrix
from trrg_train.evaluation.clinical import SENTENCE_LABELER, asserted
from trrg_train.metrics import auc, f1_per_class, macro
from trrg_train.models.checkpoint import update_evaluation
from trrg_train.writers import BundleWriter, CheckpointWriter, Writer, Written

FORCED_STUDIES = 12
FORCED_HIGH, FORCED_LOW = 0.98, 0.02
SHUFFLE_SEED = 7


def evaluate_path(path: Path, config: RunConfig, *, split: str, limit: int | None, store: Path | None) -> str:
    """Evaluate a checkpoint or a bundle on the configured sources.

    Args:
        path: A stage-2 checkpoint (``meta.json``) or a bundle (``manifest.json``).
        config: Names the sources.
        split: ``"val"`` or ``"test"``.
        limit: At most so many studies a source; None means all.
        store: Checkpoint that keeps the figures, so that its next export prints them on the model card.

    Returns:
        The figures as JSON text.
    """
    bundle = (path / "manifest.json").is_file()
    writer: Writer = BundleWriter(path) if bundle else CheckpointWriter(path, config.out / "cache")
    studies = [s for s in read_sources(config.sources) if s.split == split]
    measured = "the exported bundle in the runtime" if bundle else "the checkpoint in PyTorch"
    figures: dict[str, Any] = {"split": split, "measured_on": measured}
    for source in config.sources:
        part = [s for s in studies if s.source == source.name][:limit]
        if part:
            figures[source.name] = evaluate(writer, part)
    if store is not None:
        update_evaluation(store, figures)
    return json.dumps(figures, indent=1)


def evaluate(writer: Writer, studies: Sequence[Study]) -> dict[str, Any]:
    """Compute all figures of one source.

    Args:
        writer: Writes a report and clue probabilities for each study.
        studies: K studies of one source.

    Returns:
        A nested mapping of plain numbers; what cannot be computed (one class only) is None.
    """
    written = writer.write(studies)
    kept = [(s, w) for s, w in zip(studies, written, strict=True) if w is not None]
    labels = label_matrix([s for s, _ in kept]).astype(np.float64)
    probabilities = np.stack([w.probabilities for _, w in kept])
    said = asserted([w.text for _, w in kept], SENTENCE_LABELER, uncertain="absent")
    views = np.array([s.view for s, _ in kept])
    return {
        "studies": len(studies),
        "patients": len({s.patient for s in studies}),
        "refused": len(studies) - len(kept),
        "clue_auc": clue_auc(probabilities, labels, views),
        "report_labels": report_figures(said, labels),
        "laterality": laterality([w.text for _, w in kept], [s.report for s, _ in kept]),
        "distinct_reports": len({w.text for _, w in kept}),
        "forced_clues": forced_figures(writer, studies[:FORCED_STUDIES]),
    }


def clue_auc(
    probabilities: NDArray[np.float64], labels: NDArray[np.float64], views: NDArray[np.str_]
) -> dict[str, Any]:
    """AUC of each observation, overall and within each view; (K, 14), (K, 14), (K,)."""

    def column(name: str, rows: NDArray[np.bool_]) -> float | None:
        at = OBSERVATIONS.index(name)
        return _plain(auc(probabilities[rows, at], labels[rows, at]))

    everyone = np.ones(len(views), dtype=bool)
    each: dict[str, Any] = {}
    for name in OBSERVATIONS:
        overall = column(name, everyone)
        if overall is not None:
            positives = int(np.nansum(labels[:, OBSERVATIONS.index(name)]))
            within = {f"within_{view}": column(name, views == view) for view in ("AP", "PA")}
            each[name] = {"positives": positives, "auc": overall, **within}
    return {"macro": _plain(macro(np.array([v["auc"] for v in each.values()]))), "each": each}


def report_figures(said: NDArray[np.bool_], labels: NDArray[np.float64]) -> dict[str, Any]:
    """F1 of what the reports assert, with the floors it must be read against; both (K, 14)."""
    f1 = f1_per_class(said, labels)
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(said))
    normal = np.zeros_like(said)
    normal[:, OBSERVATIONS.index("No Finding")] = True
    return {
        "macro_f1": _plain(macro(f1)),
        "macro_f1_images_shuffled": _plain(macro(f1_per_class(said[order], labels))),
        "macro_f1_constant_normal_report": _plain(macro(f1_per_class(normal, labels))),
        "each": {o: _plain(v) for o, v in zip(OBSERVATIONS, f1, strict=True) if not math.isnan(v)},
    }


def laterality(written: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """How often a finding that both texts assert is on the same side, of those that the reference puts on one side.

    Args:
        written: K reports.
        references: Of the same studies.

    Returns:
        ``findings`` (how many), and the shares of them with the ``same`` side, the ``other`` (or both) and ``none``.
    """
    outcomes: list[str] = []
    for text, reference in zip(written, references, strict=True):
        said = asserted_sides(text)
        for observation, sides in asserted_sides(reference).items():
            if len(sides) == 1 and observation in said:
                mine = said[observation]
                outcomes.append("same" if mine == sides else "other" if mine else "none")
    names = ("same", "other", "none")
    shares = {name: round(outcomes.count(name) / len(outcomes), 4) if outcomes else None for name in names}
    return {"findings": len(outcomes), **shares}


def forced_figures(writer: Writer, studies: Sequence[Study]) -> dict[str, Any]:
    """Force each clue up and down, one at a time, and count how often the report follows."""
    followed: dict[str, list[bool]] = {"up": [], "down": []}
    for name in OBSERVATIONS:
        if name == "No Finding":
            continue
        for direction, score in (("up", FORCED_HIGH), ("down", FORCED_LOW)):
            scores: Mapping[str, float] = {name: score, "No Finding": 0.0} if direction == "up" else {name: score}
            for result in _written(writer.write(studies, clue_scores=scores)):
                says = label_report(result.text).get(name) == "present"
                followed[direction].append(says == (direction == "up"))
    return {
        "asserted_when_forced_up": _plain(float(np.mean(followed["up"]))),
        "not_asserted_when_forced_down": _plain(float(np.mean(followed["down"]))),
        "tries_each": len(followed["up"]),
    }


def _written(results: Sequence[Written | None]) -> list[Written]:
    return [result for result in results if result is not None]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
