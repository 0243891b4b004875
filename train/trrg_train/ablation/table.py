"""The ablation as one Markdown table and one picture."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trrg_sdk.version import __version__
from trrg_train.ablation.measure import Outcome
from trrg_train.ablation.variants import FULL, VARIANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS: Mapping[str, str] = {
    "macro_f1": "clinical macro-F1",
    "clue_auc": "clue macro AUC",
    "recall": "recall of findings",
    "laterality": "side as in the reference",
    "forced_up": "asserted when forced up",
    "forced_down": "not asserted when forced down",
    "shuffled_f1": "macro-F1, images shuffled",
}
"""Field of an outcome to the head of its column."""

PLOTTED = ("macro_f1", "clue_auc", "recall", "laterality", "forced_up")
FLOORED = ("clue_auc", "laterality")
PACKAGES = ("torch", "transformers", "accelerate", "numpy")
COMPARED = ("macro_f1", "recall", "laterality", "forced_up", "forced_down")
CHANCE = 0.5
"""Of an AUC, and of a side told by a coin."""


@dataclass(frozen=True)
class Report:
    """Everything that the table says.

    Attributes:
        outcomes: Of all runs.
        constant_f1: Floor: macro-F1 of one report for everybody.
        data: Where the studies are from.
        command: What was typed.
        minutes: Wall time of the call.
        made: How many of the runs this call trained; the others were there.
        jobs: Processes side by side, of one thread each.
    """

    outcomes: Sequence[Outcome]
    constant_f1: float
    data: str
    command: str
    minutes: float
    made: int
    jobs: int

    def to_markdown(self) -> str:
        """The table with its notes."""
        return "\n".join([*self._head(), "", *self._table(), "", *self._effects(), "", *self._notes(), ""])

    def write_plot(self, path: Path) -> None:
        """Draw every run as a dot, means as bars, floors as dashed lines; the suffix of ``path`` is the format."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        names = self._names()
        figure = Figure(figsize=(3 + 2.6 * len(PLOTTED), 1.6 + 0.45 * len(names)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(PLOTTED), sharey=True, squeeze=False)[0]
        for axis, field in zip(axes, PLOTTED, strict=True):
            floor = self.constant_f1 if field == "macro_f1" else CHANCE if field in FLOORED else None
            _dots(axis, [self._values(name, field) for name in names], floor)
            axis.set_title(COLUMNS[field], fontsize="medium")
        axes[0].set_yticks(range(len(names)), [VARIANTS[name].title for name in names])
        axes[0].invert_yaxis()
        figure.savefig(path, dpi=120)

    def _names(self) -> list[str]:
        return list(dict.fromkeys(outcome.variant for outcome in self.outcomes))

    def _values(self, name: str, field: str) -> list[float]:
        """Values of a variant, in the order of the seeds; a figure that a run has not is left out."""
        runs = sorted((o for o in self.outcomes if o.variant == name), key=lambda o: o.seed)
        return [value for run in runs if (value := getattr(run, field)) is not None]

    def _head(self) -> Iterator[str]:
        seeds = sorted({outcome.seed for outcome in self.outcomes})
        yield "# What each part is worth"
        yield ""
        yield f"`{self.command}`"
        yield ""
        yield (
            f"{self.data} Each run was measured on the same {self.outcomes[0].studies} test studies, seeds "
            f"{', '.join(map(str, seeds))}. A cell is mean ± standard deviation over the seeds, and every value. "
            "Phantoms say what a part does in this code; they say nothing about patients."
        )

    def _table(self) -> Iterator[str]:
        yield f"| variant | {' | '.join(COLUMNS.values())} | distinct reports |"
        yield "|---" * (len(COLUMNS) + 2) + "|"
        for name in self._names():
            cells = [_cell(self._values(name, field)) for field in COLUMNS]
            distinct = statistics.mean(self._values(name, "distinct_reports"))
            yield f"| {VARIANTS[name].title} | {' | '.join(cells)} | {distinct:.0f} |"
        floors = {"macro_f1": f"{self.constant_f1:.3f}", **dict.fromkeys(FLOORED, f"{CHANCE}")}
        cells = [floors.get(field, "") for field in COLUMNS]
        yield f"| floor: one report for all, chance, a coin | {' | '.join(cells)} | 1 |"

    def _effects(self) -> Iterator[str]:
        """Differences within each seed, which all variants of a seed share most randomness of."""
        if FULL not in self._names():
            return
        heads = " | ".join(COLUMNS[field] for field in COMPARED)
        yield f"| without it, against full with the same seed | {heads} | seeds with a lower F1 |"
        yield "|---" * (len(COMPARED) + 2) + "|"
        for name in self._names():
            if name != FULL:
                gaps = {field: self._gaps(name, field) for field in COMPARED}
                lower = sum(gap < 0 for gap in gaps["macro_f1"])
                cells = " | ".join(_cell(values, sign="+") for values in gaps.values())
                yield f"| {VARIANTS[name].title} | {cells} | {lower} of {len(gaps['macro_f1'])} |"

    def _gaps(self, name: str, field: str) -> list[float]:
        full = {o.seed: getattr(o, field) for o in self.outcomes if o.variant == FULL}
        runs = sorted((o for o in self.outcomes if o.variant == name), key=lambda o: o.seed)
        pairs = [(getattr(run, field), full.get(run.seed)) for run in runs]
        return [own - whole for own, whole in pairs if own is not None and whole is not None]

    def _notes(self) -> Iterator[str]:
        for name in self._names():
            yield f"- {VARIANTS[name].title}: {VARIANTS[name].done}."
        yield "- clinical macro-F1: what the labeler reads in the written reports against the labels of the phantoms."
        yield "- recall of findings: share of the present findings, all observations but No Finding together, asserted."
        yield (
            "- side: of the findings that report and reference both assert, and that the reference puts on one side, "
            "the share with that side; a report may also name the other side, both or none."
        )
        yield (
            "- forced up, forced down: one clue at a time is set to present or absent, whatever the image shows; the "
            "share of reports that follow. Where no report follows, the text cannot be held to the clues."
        )
        yield "- clue AUC is that of the frozen encoders: variants that share a stage 1 have the same."
        yield "- images shuffled: the same reports dealt out to other studies."
        yield "- one report for all: it asserts the k most frequent observations, k as is best on the train studies."
        yield f"- {self._made()}"
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
        yield f"- trrg-sdk {__version__}, Python {platform.python_version()}, {versions}; {os.cpu_count()} cores."

    def _made(self) -> str:
        total = len(self.outcomes)
        text = f"{self.made} of {total} runs in {self.minutes:.0f} min of wall time, {self.jobs} one-thread processes"
        return f"{text}; the others were made by earlier calls." if self.made < total else f"{text}."


def _cell(values: Sequence[float], *, sign: str = "") -> str:
    if not values:
        return "none"
    each = " ".join(f"{value:{sign}.3f}" for value in values)
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{spread}<br>{each}"


def _dots(axis: Axes, rows: Sequence[Sequence[float]], floor: float | None) -> None:
    for row, values in enumerate(rows):
        if values:
            axis.barh(row, statistics.mean(values), color="#4c72b0" if row == 0 else "#c8d3e6", height=0.6)
            axis.plot(values, [row] * len(values), "o", color="#c44e52", markersize=4)
    if floor is not None:
        axis.axvline(floor, color="#555555", linestyle="--", linewidth=1)
    axis.set_xlim(0, 1)
    axis.grid(axis="x", alpha=0.3)
