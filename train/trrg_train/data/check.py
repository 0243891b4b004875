"""What is in a data set, and what would spoil a score: read before training, by ``trrg-train data check``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from trrg_sdk.labeler import NO_FINDING, OBSERVATIONS, State, label_sentence, split_sentences
from trrg_train.data.cleaning import comparable
from trrg_train.data.study import SPLITS, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAMED = 5
"""How many studies with missing images are named."""

Polarity = Literal["asserts", "is uncertain", "denies", "says nothing"]
POLARITIES: tuple[Polarity, ...] = get_args(Polarity)
_COLOURS = ("#c44e52", "#dd8452", "#4c72b0", "#c8c8c8")


class Balance(NamedTuple):
    """How many studies have an observation, have it not, or do not say."""

    present: int
    absent: int
    unknown: int


@dataclass(frozen=True)
class DatasetCheck:
    """Figures of a data set. No patient and no report text is in it.

    Attributes:
        studies: Split to number of studies; only splits that have any, here and below.
        patients: Split to number of patients.
        images: Number of images, all views.
        missing_images: How many of them are not on disk.
        missing_in: Ids of at most five studies with a missing image.
        repeated_ids: Number of studies whose id another study has already.
        shared_patients: Number of patients in more than one split.
        empty_reports: Number of studies without a report.
        repeated_in_train: ``"val"`` and ``"test"`` to the number of their reports that stand word for word in
            train, white space and case aside.
        balance: Split to observation to counts of studies.
        polarity: Split to number of sentences of each polarity (see ``polarity_of``).
    """

    studies: Mapping[str, int]
    patients: Mapping[str, int]
    images: int
    missing_images: int
    missing_in: tuple[str, ...]
    repeated_ids: int
    shared_patients: int
    empty_reports: int
    repeated_in_train: Mapping[str, int]
    balance: Mapping[str, Mapping[str, Balance]]
    polarity: Mapping[str, Mapping[Polarity, int]]

    def to_markdown(self) -> str:
        """The figures as Markdown: tables, then a list of what to look at."""
        return "\n".join([*self._counts(), "", *self._polarity(), "", *self._balance(), "", *self._notes(), ""])

    def write_plot(self, path: Path) -> None:
        """Draw label balance and sentence polarity of each split.

        Args:
            path: The file to write; its suffix says what it becomes (``.png``, ``.svg``, ``.pdf``).

        Raises:
            ModuleNotFoundError: matplotlib is missing; it belongs to the extra ``train``.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4 + 3 * len(self.studies), 5.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(self.studies) + 1, squeeze=False)[0]
        for axis, (split, table) in zip(axes, self.balance.items(), strict=False):
            _stack(axis, list(table), list(zip(*table.values(), strict=True)), Balance._fields, (0, 2, 3))
            axis.set_title(f"{split}: share of {self.studies[split]} studies")
        for axis in axes[1:-1]:
            axis.set_yticklabels([])
        counts = [[table[p] for table in self.polarity.values()] for p in POLARITIES]
        _stack(axes[-1], list(self.polarity), counts, POLARITIES, (0, 1, 2, 3))
        axes[-1].set_title("share of sentences")
        figure.savefig(path, dpi=120)

    def _counts(self) -> Iterator[str]:
        yield "| split | studies | patients | report stands in train |"
        yield "|---|---|---|---|"
        for split, count in self.studies.items():
            again = self.repeated_in_train.get(split)
            yield f"| {split} | {count} | {self.patients[split]} | {'' if again is None else _share(again, count)} |"

    def _polarity(self) -> Iterator[str]:
        yield f"| sentences | {' | '.join(POLARITIES)} |"
        yield "|---" * (len(POLARITIES) + 1) + "|"
        for split, table in self.polarity.items():
            total = sum(table.values())
            yield f"| {split} | {' | '.join(_share(table[p], total) for p in POLARITIES)} |"

    def _balance(self) -> Iterator[str]:
        yield f"| present / absent / unknown | {' | '.join(self.balance)} |"
        yield "|---" * (len(self.balance) + 1) + "|"
        for name in OBSERVATIONS:
            yield f"| {name} | {' | '.join(' / '.join(map(str, table[name])) for table in self.balance.values())} |"

    def _notes(self) -> Iterator[str]:
        named = f" (studies {', '.join(self.missing_in)}{', …' if len(self.missing_in) == MAX_NAMED else ''})"
        yield f"- missing images: {self.missing_images} of {self.images}{named if self.missing_in else ''}"
        yield f"- patients in more than one split: {self.shared_patients}"
        yield f"- studies whose id is taken: {self.repeated_ids}"
        yield f"- studies without a report: {self.empty_reports}"


def check_dataset(studies: Sequence[Study]) -> DatasetCheck:
    """Count what is in a data set. Images are looked for, not opened.

    Args:
        studies: As a reader gives them, before ``check_splits``.
    """
    by_split = {split: [s for s in studies if s.split == split] for split in SPLITS}
    by_split = {split: group for split, group in by_split.items() if group}
    patients = {split: {(s.source, s.patient) for s in group} for split, group in by_split.items()}
    missing = [study for study in studies for image in study.images if not image.is_file()]
    spread = Counter(patient for group in patients.values() for patient in group)
    return DatasetCheck(
        studies={split: len(group) for split, group in by_split.items()},
        patients={split: len(group) for split, group in patients.items()},
        images=sum(len(study.images) for study in studies),
        missing_images=len(missing),
        missing_in=tuple(dict.fromkeys(study.study_id for study in missing))[:MAX_NAMED],
        repeated_ids=len(studies) - len({study.study_id for study in studies}),
        shared_patients=sum(count > 1 for count in spread.values()),
        empty_reports=sum(not study.report.strip() for study in studies),
        repeated_in_train=_repeated_in_train(by_split),
        balance={split: _balance_of(group) for split, group in by_split.items()},
        polarity=_polarity_of(by_split),
    )


def polarity_of(sentence: str) -> Polarity:
    """What a sentence does with the observations it mentions: asserts one, else doubts one, else denies.

    "No Finding" counts the other way round: calling the study normal denies, calling it abnormal asserts.

    Args:
        sentence: One sentence, without its heading.
    """
    states: set[State] = set()
    for name, state in label_sentence(sentence).items():
        opposite: Mapping[State, State] = {"present": "absent", "absent": "present", "uncertain": "uncertain"}
        states.add(opposite[state] if name == NO_FINDING else state)
    if "present" in states:
        return "asserts"
    if "uncertain" in states:
        return "is uncertain"
    return "denies" if states else "says nothing"


def _repeated_in_train(by_split: Mapping[str, Sequence[Study]]) -> dict[str, int]:
    train = {comparable(study.report) for study in by_split.get("train", ())}
    return {
        split: sum(comparable(study.report) in train for study in group)
        for split, group in by_split.items()
        if split != "train"
    }


def _balance_of(studies: Sequence[Study]) -> dict[str, Balance]:
    table = {}
    for name in OBSERVATIONS:
        known = Counter(study.labels[name] for study in studies if name in study.labels)
        table[name] = Balance(known[True], known[False], len(studies) - known.total())
    return table


def _polarity_of(by_split: Mapping[str, Sequence[Study]]) -> dict[str, dict[Polarity, int]]:
    polarity: dict[str, Polarity] = {}  # most sentences come again and again
    tables: dict[str, dict[Polarity, int]] = {}
    for split, group in by_split.items():
        sentences = Counter(span.text for study in group for span in split_sentences(study.report))
        tables[split] = dict.fromkeys(POLARITIES, 0)
        for text, count in sentences.items():
            if text not in polarity:
                polarity[text] = polarity_of(text)
            tables[split][polarity[text]] += count
    return tables


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.1%})" if whole else "0"


def _stack(
    axis: Axes, rows: Sequence[str], counts: Sequence[Sequence[int]], names: Iterable[str], colours: Sequence[int]
) -> None:
    """Horizontal bars of shares, one a row; ``counts`` has one list a name."""
    totals = [max(1, sum(column)) for column in zip(*counts, strict=True)]
    left = [0.0] * len(rows)
    for name, values, colour in zip(names, counts, colours, strict=True):
        shares = [value / total for value, total in zip(values, totals, strict=True)]
        axis.barh(range(len(rows)), shares, left=left, label=name, color=_COLOURS[colour])
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2)
