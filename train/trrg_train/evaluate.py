"""Figures on held-out studies: perception, the labels of what is written, and what both are worth.

Every score stands beside its floor (one constant report), the score with the images shuffled, and how many distinct
reports were written. Where a source has reports, the text scores of ``evaluation.comparison`` come on top. Phantoms and
each set of real patients are kept apart. One image of a study is read, the frontal one: see ``writers``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import NO_FINDING, OBSERVATIONS, label_report
from trrg_train.config import RunConfig, SourceConfig
from trrg_train.data.cleaning import comparable
from trrg_train.data.sides import asserted_sides
from trrg_train.data.sources import read_sources
from trrg_train.data.study import Study, label_matrix
from trrg_train.evaluation.clinical import SENTENCE_LABELER, asserted
from trrg_train.evaluation.comparison import EvaluationOptions, evaluate_texts
from trrg_train.evaluation.model import ModelEvaluation, SourceEvaluation
from trrg_train.evaluation.text import tokenize
from trrg_train.metrics import auc, f1_per_class, macro
from trrg_train.models.checkpoint import update_evaluation
from trrg_train.writers import Writer, Written, is_bundle, open_writer

LOG = logging.getLogger(__name__)

FORCED_STUDIES = 12
FORCED_HIGH, FORCED_LOW = 0.98, 0.02
SHUFFLE_SEED = 7
COMPOSED_REPORTS = ("labelled_images",)
"""Kinds of data sets without reports: our grammar made their texts from labels, so no text score is taken of them."""


@dataclass(frozen=True)
class Scope:
    """What a model is evaluated on.

    Attributes:
        split: ``"val"`` or ``"test"``.
        limit: At most so many studies a source; None means all.
        train_reports: What the model was trained on, for the floors and the share of known references; None takes the
            train part of the configured sources.
    """

    split: str = "test"
    limit: int | None = None
    train_reports: Sequence[str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Training:
    """The reports that a writer was trained on, as ``evaluate_texts`` wants them.

    Attributes:
        own: Of the data set, or of all where it has none; make the floors.
        others: All others.
    """

    own: tuple[str, ...] = field(repr=False)
    others: tuple[str, ...] = field(default=(), repr=False)


def evaluate_path(
    path: Path, config: RunConfig, *, scope: Scope, options: EvaluationOptions, store: Path | None
) -> ModelEvaluation:
    """Evaluate a checkpoint or a bundle on the configured sources.

    Args:
        path: A stage-2 checkpoint (``meta.json``) or a bundle (``manifest.json``).
        config: Names the sources.
        scope: Which studies.
        options: Of the scores of written reports.
        store: Checkpoint that keeps the figures, so that its next export prints them on the model card.

    Raises:
        UsageError: There is no study to evaluate, no train report for the floors, or the tokenizer cannot run here.
    """
    tokenize(["a"], tokenizer=options.tokenizer)  # fails now rather than when all reports are written
    studies = read_sources(config.sources)
    parts = {source: _part(studies, source, scope) for source in config.sources}
    if not any(parts.values()):
        raise UsageError(f"none of the sources has a study of the split {scope.split}")
    training = {source: training_of(source, studies, scope) for source in config.sources if with_text(source, parts)}
    writer = open_writer(path, config.out / "cache")
    measured = "the exported bundle in the runtime" if is_bundle(path) else "the checkpoint in PyTorch"
    sources = {
        source.name: evaluate_source(writer, part, training=training.get(source), options=options)
        for source, part in parts.items()
        if part
    }
    result = ModelEvaluation({"split": scope.split, "measured_on": measured}, sources)
    if store is not None:
        update_evaluation(store, result.to_plain(short=True))
    return result


def _part(studies: Sequence[Study], source: SourceConfig, scope: Scope) -> list[Study]:
    return [s for s in studies if s.source == source.name and s.split == scope.split][: scope.limit]


def with_text(source: SourceConfig, parts: Mapping[SourceConfig, Sequence[Study]]) -> bool:
    """Whether written reports of a source can be compared with reports of people."""
    if source.kind in COMPOSED_REPORTS:
        LOG.info("%s has labels and no reports: no text scores", source.name)
        return False
    return any(comparable(study.report) for study in parts[source])


def training_of(source: SourceConfig, studies: Sequence[Study], scope: Scope) -> Training:
    """The train reports of a source and those of all others.

    Raises:
        UsageError: There is none at all.
    """
    if scope.train_reports is not None:
        return Training(tuple(scope.train_reports))
    train = [(s.source == source.name, s.report) for s in studies if s.split == "train" and comparable(s.report)]
    own, others = (tuple(report for mine, report in train if mine == wanted) for wanted in (True, False))
    if not own and not others:
        message = f"{source.name}: no source has a train report, which the floors are made from"
        raise UsageError(f"{message}; name a csv of what the model was trained on with --train")
    return Training(own, others) if own else Training(others)


def evaluate_source(
    writer: Writer, studies: Sequence[Study], *, training: Training | None, options: EvaluationOptions
) -> SourceEvaluation:
    """Have the reports of one source written and compute everything about them.

    Args:
        writer: Writes a report and clue probabilities for each study.
        studies: K studies of one source; one without a report, or refused, is left out of the text scores.
        training: None leaves the text scores out.
        options: Of the text scores.
    """
    written = writer.write(studies)
    figures = evaluate(writer, studies, written)
    pairs = [(s, w.text) for s, w in zip(studies, written, strict=True) if w is not None and comparable(s.report)]
    if training is None or not pairs:
        return SourceEvaluation(figures, None)
    text = evaluate_texts(
        [text for _, text in pairs],
        [study.report for study, _ in pairs],
        train_reports=training.own,
        also_seen=training.others,
        patients=[study.patient for study, _ in pairs],
        options=options,
    )
    return SourceEvaluation(figures, text)


def evaluate(writer: Writer, studies: Sequence[Study], written: Sequence[Written | None]) -> dict[str, Any]:
    """Compute the figures of one source but the text scores.

    Args:
        writer: Wrote the reports; writes more, with forced clues.
        studies: K studies of one source.
        written: Their K reports, None where refused.

    Returns:
        A nested mapping of plain numbers; what cannot be computed (one class only) is None.

    Raises:
        UsageError: Every study was refused.
    """
    kept = [(s, w) for s, w in zip(studies, written, strict=True) if w is not None]
    if not kept:
        raise UsageError(f"all {len(studies)} studies of {studies[0].source} are refused by the gate of the bundle")
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
    """AUC of each observation, overall, within each view and among studies with findings; (K, 14), (K, 14), (K,).

    A score that only tells the sick from the well is no better than chance among studies with findings.
    """

    def column(name: str, rows: NDArray[np.bool_]) -> float | None:
        at = OBSERVATIONS.index(name)
        return _plain(auc(probabilities[rows, at], labels[rows, at]))

    everyone, abnormal = np.ones(len(views), dtype=bool), labels[:, OBSERVATIONS.index(NO_FINDING)] == 0
    each: dict[str, Any] = {}
    for name in OBSERVATIONS:
        overall = column(name, everyone)
        if overall is not None:
            positives = int(np.nansum(labels[:, OBSERVATIONS.index(name)]))
            within = {f"within_{view}": column(name, views == view) for view in ("AP", "PA")}
            each[name] = {"positives": positives, "auc": overall, **within, "within_abnormal": column(name, abnormal)}
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
