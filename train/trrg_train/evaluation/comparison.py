"""Comparison of written reports with their references: every score, its floors and its interval in one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.data.cleaning import comparable
from trrg_train.evaluation import clinical
from trrg_train.evaluation.clinical import SENTENCE_LABELER, UNCERTAIN, Labeler, Uncertain
from trrg_train.evaluation.floors import RULE, Floor, constant_report, in_train
from trrg_train.evaluation.graphs import GraphReader, graph_statistics
from trrg_train.evaluation.meteor import NEEDS_JAVA, java_is_here
from trrg_train.evaluation.scores import Score, Weighting
from trrg_train.evaluation.tables import Facts, Observation, TextEvaluation
from trrg_train.evaluation.text import TEXT_SCORES, TOKENIZERS, Tokenizer, text_statistics, tokenize

LABEL_SAMPLE = 2000


@dataclass(frozen=True)
class EvaluationOptions:
    """Named choices, all printed with the result.

    Attributes:
        tokenizer: Of the text scores, see ``trrg_train.evaluation.text.tokenize``.
        uncertain: What a doubt counts as in the clinical scores.
        resamples: Of patients, for the intervals.
        seed: Of the resamples and of the samples that choose the floors.
        meteor: False leaves METEOR out.
        labeler: Reads observations out of reports.
        graphs: Reads entities and relations out of reports; None leaves RadGraph F1 out.
    """

    tokenizer: Tokenizer = "plain"
    uncertain: Uncertain = "absent"
    resamples: int = 1000
    seed: int = 7
    meteor: bool = True
    labeler: Labeler = SENTENCE_LABELER
    graphs: GraphReader | None = None

    def __post_init__(self) -> None:
        """Refuse what is not offered."""
        for name, value, offered in (
            ("tokenizer", self.tokenizer, TOKENIZERS),
            ("uncertain", self.uncertain, UNCERTAIN),
        ):
            if value not in offered:
                raise UsageError(f"{name} is one of {', '.join(offered)}, not {value!r}")
        if self.resamples < 2:
            raise UsageError(f"an interval needs at least 2 resamples, not {self.resamples}")


def evaluate_texts(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    train_reports: Sequence[str],
    also_seen: Sequence[str] = (),
    patients: Sequence[str] | None = None,
    options: EvaluationOptions | None = None,
) -> TextEvaluation:
    """Score written reports against their references.

    Args:
        predictions: K texts.
        references: K texts, scored whole.
        train_reports: What the writer was trained on; makes the floors and tells which references are new.
        also_seen: What else it was trained on, reports of other data sets: tells which references are new, no more.
        patients: One a study; None resamples studies.
        options: None takes the defaults.

    Raises:
        UsageError: Counts differ, a reference or all of train has no word, or a tokenizer cannot run here.
    """
    chosen = options or EvaluationOptions()
    _check(predictions, references, patients)
    floor = constant_report(train_reports, seed=chosen.seed)
    seen = [*train_reports, *also_seen]
    known = in_train(references, seen)
    clusters = list(patients) if patients else [str(row) for row in range(len(references))]
    weighting = Weighting.of(clusters, ~known, resamples=chosen.resamples, seed=chosen.seed)
    said = _said(predictions, references, floor, chosen)
    return TextEvaluation(
        facts=_facts(predictions, patients, known, len(seen), floor),
        choices=_choices(chosen),
        text=_text_scores(predictions, references, floor, weighting, chosen),
        clinical=(
            *_clinical_scores(said, train_reports, weighting, chosen),
            *_graph_scores(predictions, references, floor, weighting, chosen.graphs),
        ),
        observations=_observations(said, weighting),
    )


def _check(predictions: Sequence[str], references: Sequence[str], patients: Sequence[str] | None) -> None:
    if not references or len(predictions) != len(references):
        raise UsageError(f"{len(predictions)} predictions for {len(references)} references: give one each")
    if patients and len(patients) != len(references):
        raise UsageError(f"{len(patients)} patients for {len(references)} references: give one each, or none")
    wordless = [row for row, text in enumerate(references) if not comparable(text)]
    if wordless:
        raise UsageError(f"{len(wordless)} references have no word, first number {wordless[0]} (from 0)")


def _said(
    predictions: Sequence[str], references: Sequence[str], floor: Floor, options: EvaluationOptions
) -> dict[str, NDArray[np.bool_]]:
    """What the model, the references and the constant report assert, bool (K, 14) each."""
    said = {
        name: clinical.asserted(texts, options.labeler, uncertain=options.uncertain)
        for name, texts in (("model", predictions), ("truth", references), ("floor", [floor.text]))
    }
    return {**said, "floor": np.broadcast_to(said["floor"], said["truth"].shape)}


def _text_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    floor: Floor,
    weighting: Weighting,
    options: EvaluationOptions,
) -> tuple[Score, ...]:
    count = len(references)
    cut = tokenize([*predictions, *references, floor.text], tokenizer=options.tokenizer)
    systems = [cut[:count], [cut[-1]] * count]
    missing = "" if options.meteor else "not asked for"
    if options.meteor and not java_is_here():
        missing = NEEDS_JAVA
    model, constant = text_statistics(systems, cut[count : 2 * count], meteor=not missing)
    return tuple(
        weighting.score(model[name], constant[name]) if name in model else Score(name, note=missing)
        for name in TEXT_SCORES
    )


def _clinical_scores(
    said: dict[str, NDArray[np.bool_]],
    train_reports: Sequence[str],
    weighting: Weighting,
    options: EvaluationOptions,
) -> tuple[Score, ...]:
    drawn = np.random.default_rng(options.seed).permutation(len(train_reports))[:LABEL_SAMPLE]
    train = clinical.asserted([train_reports[row] for row in drawn], options.labeler, uncertain=options.uncertain)
    return weighting.scores(
        clinical.clinical_statistics(said["model"], said["truth"]),
        clinical.clinical_statistics(said["floor"], said["truth"]),
        labels=clinical.best_constant_labels(train, said["truth"]),
    )


def _graph_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    floor: Floor,
    weighting: Weighting,
    reader: GraphReader | None,
) -> tuple[Score, ...]:
    if reader is None:
        return ()
    systems = [predictions, [floor.text] * len(references)]
    return weighting.scores(*graph_statistics(systems, references, reader))


def _observations(said: dict[str, NDArray[np.bool_]], weighting: Weighting) -> tuple[Observation, ...]:
    model = clinical.observation_statistics(said["model"], said["truth"])
    constant = clinical.observation_statistics(said["floor"], said["truth"])
    support, asserted = said["truth"].sum(axis=0), said["model"].sum(axis=0)
    return tuple(
        Observation(name, int(support[at]), int(asserted[at]), *weighting.scores(model[name], constant[name]))
        for at, name in enumerate(OBSERVATIONS)
    )


def _facts(
    predictions: Sequence[str],
    patients: Sequence[str] | None,
    known: NDArray[np.bool_],
    seen: int,
    floor: Floor,
) -> Facts:
    counts = Counter(comparable(text) for text in predictions)
    return Facts(
        studies=len(predictions),
        patients=len(set(patients)) if patients else None,
        empty_predictions=counts[""],
        distinct_predictions=len(counts),
        most_frequent_prediction=max(counts.values()) / len(predictions),
        in_train=float(known.mean()),
        train_reports=seen,
        floor_reports=floor.reports,
        floor_kind=floor.kind,
        floor_share=floor.share,
    )


def _choices(options: EvaluationOptions) -> dict[str, str]:
    return {
        "tokenizer": options.tokenizer,
        "references": "whole, never shortened",
        "cider": "document frequencies of all references, also on a part and in a resample",
        "labeler": options.labeler.name,
        "graphs": options.graphs.name if options.graphs else "not asked for",
        "uncertain": f"counts as {options.uncertain}",
        "macro": "over the observations that the references assert",
        "example": clinical.EXAMPLE_CONVENTION,
        "interval": f"95 %, percentile, {options.resamples} resamples of patients (studies where unknown)",
        "seed": str(options.seed),
        "constant report": RULE,
        "constant labels": "the k most frequent observations of train for every study, k chosen there for each score",
    }
