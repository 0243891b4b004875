"""The evaluation of a model: figures of perception and of its reports for each data set, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trrg_train.evaluation.tables import NOTHING, TextEvaluation, table

EACH = "each"
OBSERVATION_HEAD = (
    "observation",
    "positive",
    "clue AUC",
    "within AP",
    "within PA",
    "with findings",
    "F1 of the reports' labels",
)


@dataclass(frozen=True)
class SourceEvaluation:
    """One data set.

    Attributes:
        figures: As ``trrg_train.evaluate.evaluate`` gives them.
        text: Of the written reports beside those of people; None where the data set has none.
    """

    figures: Mapping[str, Any]
    text: TextEvaluation | None

    def to_plain(self, *, short: bool = False) -> dict[str, Any]:
        """Mappings, lists, texts and numbers; the texts' part is ``text``, left out where there is none.

        Args:
            short: Leave out the text part's scores of single observations.
        """
        if self.text is None:
            return dict(self.figures)
        text = self.text.to_plain()
        return {**self.figures, "text": {k: v for k, v in text.items() if not (short and k == "observations")}}

    def to_markdown(self) -> str:
        """Tables."""
        parts = [
            table(("figure", "value"), [(name, _shown(value)) for name, value in _flat(self.figures, "")]),
            table(OBSERVATION_HEAD, _observations(self.figures)),
        ]
        if self.text:
            parts.append(self.text.to_markdown())
        return "\n\n".join(parts)


@dataclass(frozen=True)
class ModelEvaluation:
    """Everything that is printed.

    Attributes:
        facts: What was measured on what.
        sources: By name of the data set.
    """

    facts: Mapping[str, str]
    sources: Mapping[str, SourceEvaluation]

    def to_plain(self, *, short: bool = False) -> dict[str, Any]:
        """The facts, and beside them each data set; ``short`` as there, for a checkpoint and its bundle's manifest."""
        return {**self.facts, **{name: source.to_plain(short=short) for name, source in self.sources.items()}}

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(self.to_plain(), indent=1, allow_nan=False)

    def to_markdown(self) -> str:
        """A chapter for each data set."""
        facts = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in self.facts.items())
        return "\n\n".join([facts, *(f"## {name}\n\n{one.to_markdown()}" for name, one in self.sources.items())])


def _flat(figures: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Every figure but those of single observations, nested names joined."""
    for name, value in figures.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping) and name != EACH:
            yield from _flat(value, f"{label}: ")
        elif name != EACH:
            yield label, value


def _observations(figures: Mapping[str, Any]) -> list[list[str]]:
    seen, written = figures["clue_auc"][EACH], figures["report_labels"][EACH]
    names = [*seen, *(name for name in written if name not in seen)]
    columns = ("positives", "auc", "within_AP", "within_PA", "within_abnormal")
    return [
        [name, *(_shown(seen.get(name, {}).get(column)) for column in columns), _shown(written.get(name))]
        for name in names
    ]


def _shown(value: Any) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if isinstance(value, float) else str(value)
