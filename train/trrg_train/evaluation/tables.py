"""One evaluation as a table: text scores never without the clinical ones, no score without its floor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trrg_train.evaluation.scores import Score

DIGITS = 6
NOTHING = "–"
SCORE_HEAD = (
    *("score", "value", "95 %", "constant report", "lead over it, 95 %", "constant labels"),
    *("not in train", "constant report there"),
)
OBSERVATION_HEAD = (
    *("observation", "references", "written", "precision", "recall", "F1", "95 %", "constant report"),
    *("F1 not in train", "constant report there"),
)


@dataclass(frozen=True)
class Facts:
    """What was compared.

    Attributes:
        studies: Scored.
        patients: None where not known; studies are resampled then.
        empty_predictions: Without a word.
        distinct_predictions: Different texts, case and punctuation aside.
        most_frequent_prediction: Share of the studies that got the most frequent text.
        in_train: Share of the references that stand word for word in train.
        train_reports: That the references were looked for in.
        floor_reports: That the constant report was made from, all or some of those.
        floor_kind: Kind of the constant report.
        floor_share: Share of those that are this very text.
    """

    studies: int
    patients: int | None
    empty_predictions: int
    distinct_predictions: int
    most_frequent_prediction: float
    in_train: float
    train_reports: int
    floor_reports: int
    floor_kind: str
    floor_share: float


@dataclass(frozen=True)
class Observation:
    """One observation's scores.

    Attributes:
        name: One of ``trrg_sdk.labeler.OBSERVATIONS``.
        support: References that assert it.
        asserted: Written reports that assert it.
        precision: Beside its floor.
        recall: Beside its floor.
        f1: Beside its floor.
    """

    name: str
    support: int
    asserted: int
    precision: Score
    recall: Score
    f1: Score


@dataclass(frozen=True)
class TextEvaluation:
    """Everything that is printed.

    Attributes:
        facts: What was compared.
        choices: Named choices and conventions, name to value.
        text: BLEU-1 to 4, METEOR, ROUGE-L, CIDEr.
        clinical: Micro, macro and example-based, 14 and 5 observations; RadGraph F1 where it was asked for.
        observations: One a row of the class table.
    """

    facts: Facts
    choices: dict[str, str]
    text: tuple[Score, ...]
    clinical: tuple[Score, ...]
    observations: tuple[Observation, ...]

    def score(self, name: str) -> Score:
        """A score by its name, such as ``"micro F1 (14)"``; KeyError where there is none."""
        return {score.name: score for score in (*self.text, *self.clinical)}[name]

    def to_json(self) -> str:
        """All of it, text and clinical scores together."""
        return json.dumps(self.to_plain(), indent=1, allow_nan=False)

    def to_plain(self) -> dict[str, Any]:
        """All of it as mappings, lists, texts and numbers."""
        plain: dict[str, Any] = _rounded(asdict(self))
        return plain

    def to_markdown(self) -> str:
        """Tables of all of it, text and clinical scores together."""
        return _render(self)


def _render(evaluation: TextEvaluation) -> str:
    """Facts, text and clinical scores, observations and conventions, in this order."""
    return "\n\n".join(
        [
            _facts(evaluation.facts),
            table(SCORE_HEAD, [_score(score) for score in (*evaluation.text, *evaluation.clinical)]),
            table(OBSERVATION_HEAD, [_observation(row) for row in evaluation.observations]),
            "\n".join(f"- {name}: {value}" for name, value in evaluation.choices.items()),
        ]
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def _facts(facts: Facts) -> str:
    patients = "patients unknown" if facts.patients is None else f"{facts.patients} patients"
    return (
        f"{facts.studies} studies, {patients}. {facts.distinct_predictions} distinct reports were written, the most "
        f"frequent one for {facts.most_frequent_prediction:.1%} of the studies; {facts.empty_predictions} are empty. "
        f"{facts.in_train:.1%} of the references stand word for word among {facts.train_reports} train reports. "
        f"The constant report ({facts.floor_kind}) is made from {facts.floor_reports} of these and is "
        f"{facts.floor_share:.1%} of them word for word."
    )


def _score(score: Score) -> list[str]:
    if score.note:
        return [score.name, score.note, *[NOTHING] * (len(SCORE_HEAD) - 2)]
    return [
        *(score.name, _number(score.value), _range(score.low, score.high), _number(score.floor)),
        *(_range(score.lead_low, score.lead_high, signed=True), _number(score.label_floor)),
        *(_number(score.new), _number(score.new_floor)),
    ]


def _observation(row: Observation) -> list[str]:
    f1 = row.f1
    return [
        *(row.name, str(row.support), str(row.asserted), _number(row.precision.value), _number(row.recall.value)),
        *(_number(f1.value), _range(f1.low, f1.high), _number(f1.floor), _number(f1.new), _number(f1.new_floor)),
    ]


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _range(low: float | None, high: float | None, *, signed: bool = False) -> str:
    if low is None or high is None:
        return NOTHING
    return f"{low:+.3f} to {high:+.3f}" if signed else f"{low:.3f} to {high:.3f}"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
