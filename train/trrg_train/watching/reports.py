"""Validation of stage 2: losses, and what the reports that the model writes say of their references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.data.study import Study, label_matrix
from trrg_train.evaluation.bootstrap import Statistic
from trrg_train.evaluation.clinical import SENTENCE_LABELER, asserted, clinical_statistics, observation_statistics
from trrg_train.models.fusion import ClueInputs
from trrg_train.models.padding import pad_batch
from trrg_train.models.tokenizer import EOS_ID
from trrg_train.models.trrg import EncodedImages, ReportTokens, Trrg
from trrg_train.stage2_batches import AS_PERCEIVED
from trrg_train.watching.record import Asserted
from trrg_train.watching.samples import Sample, samples_to_markdown
from trrg_train.watching.validation import mean_of, rows_of
from trrg_train.writers import until_end

BATCH = 32
LOSSES = ("loss", "language_loss", "consistency_loss")


class ReportTask(Protocol):
    """What stage 2 trains."""

    @property
    def model(self) -> Any:
        """A :class:`~trrg_train.models.trrg.Trrg`."""
        ...

    def encoded(self, images: tuple[Tensor, ...]) -> EncodedImages:
        """Make of ``images`` of a batch what the model takes."""
        ...

    def clues(self, override: Tensor) -> ClueInputs:
        """Join the bank with the scores (B, C) of a batch."""
        ...


class Limits(NamedTuple):
    """How long a report may be, in tokens, and how many of them are shown."""

    max_new_tokens: int
    samples: int


class ReportValidation:
    """Writes a report of each held-out study, with the clues as they are perceived."""

    def __init__(
        self,
        studies: Sequence[Study],
        images: Callable[[NDArray[np.int64]], tuple[Tensor, ...]],
        tokenizer: Tokenizer,
        *,
        limits: Limits,
    ) -> None:
        """Keep the references.

        Args:
            studies: K held-out studies.
            images: Rows (B,) of the same studies to what the task's ``encoded`` takes.
            tokenizer: Shared by both text models.
            limits: See there.
        """
        self.images = images
        self.tokenizer = tokenizer
        self.limits = limits
        self.sources = [study.source for study in studies]
        self.references = [study.report for study in studies]
        self.labels = torch.from_numpy(label_matrix(studies))
        self.tokens = [[*tokenizer.encode(report).ids, EOS_ID] for report in self.references]
        self.written: list[str] = []
        self.step = -1

    def measure(self, task: ReportTask, *, step: int) -> dict[str, float]:
        """Give the losses, ``clinical_f1`` and ``f1/SOURCE/OBSERVATION`` of what the written reports assert.

        ``clinical_f1`` is the mean over sources of the macro F1 over 14 observations, ``distinct`` the share of
        written reports that no other equals. Reports over the limit of length have no loss here.
        """
        if not self.references:
            return {}
        texts = self.reports(task, step=step)
        return self._losses(task) | report_metrics(texts, self.references, self.sources)

    def reports(self, task: ReportTask, *, step: int) -> list[str]:
        """Write the reports of a step, or return them where they were written already."""
        if step != self.step:
            self.written = [
                text for rows in self._batches(range(len(self.references))) for text in self._write(task, rows)
            ]
            self.step = step
        return self.written

    def asserted(self, task: ReportTask, *, step: int) -> Asserted:
        """Give what the reports of a step and their references assert, with the samples."""
        both = (self.reports(task, step=step), self.references)
        said, truth = (asserted(texts, SENTENCE_LABELER, uncertain="absent") for texts in both)
        return Asserted(tuple(self.sources), said, truth, tuple(self.samples()))

    def scalars(self, task: ReportTask) -> dict[str, float]:
        """Nothing: the temperature is frozen in this stage."""
        return {}

    def sample_text(self) -> str:
        """Sample reports beside their references, as Markdown."""
        return samples_to_markdown(self.samples()) if self.written else ""

    def samples(self) -> list[Sample]:
        """Pick sample reports, evenly over the studies."""
        count = min(self.limits.samples, len(self.written))
        rows = np.arange(count) * len(self.written) // max(count, 1)
        return [Sample(self.sources[row], self.references[row], self.written[row]) for row in rows]

    @torch.no_grad()
    def _write(self, task: ReportTask, rows: NDArray[np.int64]) -> list[str]:
        ids, _ = task.model.generate(*self._inputs(task, rows), max_new_tokens=self.limits.max_new_tokens)
        return [self.tokenizer.decode(until_end(row)) for row in ids.tolist()]

    @torch.no_grad()
    def _losses(self, task: ReportTask) -> dict[str, float]:
        fitting = [row for row, ids in enumerate(self.tokens) if len(ids) <= self.limits.max_new_tokens]
        sums = dict.fromkeys(LOSSES, 0.0)
        for rows in self._batches(fitting):
            ids, mask = pad_batch([self.tokens[row] for row in rows], max_length=self.limits.max_new_tokens)
            device = device_of(task.model)
            report = ReportTokens(ids.to(device), mask.to(device), mask.bool().to(device))
            output = task.model(*self._inputs(task, rows), report, self.labels[rows].to(device))
            for name in LOSSES:
                sums[name] += float(getattr(output, name)) * len(rows)
        return {name: value / len(fitting) for name, value in sums.items()} if fitting else {}

    def _inputs(self, task: ReportTask, rows: NDArray[np.int64]) -> tuple[EncodedImages, ClueInputs]:
        device = device_of(task.model)
        images = tuple(part.to(device) for part in self.images(rows))
        override = torch.full((len(rows), len(OBSERVATIONS)), AS_PERCEIVED, device=device)
        return task.encoded(images), task.clues(override)

    @staticmethod
    def _batches(rows: Sequence[int]) -> list[NDArray[np.int64]]:
        return [np.array(rows[start : start + BATCH], dtype=np.int64) for start in range(0, len(rows), BATCH)]


def device_of(model: Trrg) -> torch.device:
    """Where the weights are."""
    return next(model.parameters()).device


def report_metrics(written: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> dict[str, float]:
    """Clinical F1 of K reports, by source and observation and as a mean, and the share of distinct ones."""
    said, truth = (asserted(texts, SENTENCE_LABELER, uncertain="absent") for texts in (written, references))
    found: dict[str, float] = {"distinct": len(set(written)) / len(written)}
    macros = []
    for source, rows in rows_of(sources).items():
        macros.append(_value(clinical_statistics(said[rows], truth[rows])["macro F1 (14)"], len(rows)))
        for name, statistics in observation_statistics(said[rows], truth[rows]).items():
            found |= mean_of(f"f1/{source}/{name}", [_value(statistics["F1"], len(rows))])
    return found | mean_of("clinical_f1", macros)


def _value(statistic: Statistic, studies: int) -> float:
    return float(statistic.at(np.ones((1, studies)))[0])
