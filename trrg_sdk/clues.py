"""Clues: what the model is asked to look for, how its answers become probabilities, and where it saw them.

A clue is a name with a positive and a negative prompt. The bundle brings its own, already encoded; a site may
add any number, which are encoded once by the clue encoder of the same bundle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.errors import UsageError
from trrg_sdk.report import ClueScore, ClueScores, HeatPeak

Float32 = NDArray[np.float32]
PERCEIVED = -1.0
"""In ``clue_override``: take what the image says. Any value from 0 to 1 replaces it."""


@dataclass(frozen=True, slots=True)
class Clue:
    """Something to look for.

    Attributes:
        name: Shown in the report; for a custom clue, a name that the bundle does not use.
        positive: What a sentence says when it is there: ``"There is a hiatal hernia."``
        negative: What a sentence says when it is not: ``"There is no hiatal hernia."``
        threshold: Probability from which on it counts as present, between 0 and 1; None takes the bundle's.
    """

    name: str
    positive: str
    negative: str
    threshold: float | None = None

    def __post_init__(self) -> None:
        """Refuse a clue that cannot be asked.

        Raises:
            UsageError: An empty text, equal prompts, or a threshold outside (0, 1).
        """
        if not (self.name.strip() and self.positive.strip() and self.negative.strip()):
            raise UsageError("a clue needs a name, a positive and a negative prompt; one of them is empty")
        if self.positive.strip() == self.negative.strip():
            raise UsageError(f"clue {self.name!r}: the positive and the negative prompt must differ")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UsageError(f"clue {self.name!r}: a threshold between 0 and 1 expected, {self.threshold} came")


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a similarity becomes a probability: ``sigmoid(scale * logit + offset)``.

    Attributes:
        scale: Factor, above 0.
        offset: In logits.
        threshold: Probability from which on a clue counts as present.
    """

    scale: float
    offset: float
    threshold: float


@dataclass(frozen=True, slots=True, eq=False)
class EncodedClues:
    """All clues of a reporter, encoded.

    Attributes:
        names: C names, each once.
        positive: float32 (C, De), unit norm: the positive prompts in joint space.
        negative: float32 (C, De), unit norm.
        scale: float32 (C,).
        offset: float32 (C,).
        threshold: float32 (C,).
    """

    names: tuple[str, ...]
    positive: Float32
    negative: Float32
    scale: Float32
    offset: Float32
    threshold: Float32

    def extended(
        self, clues: Sequence[Clue], *, encode: Callable[[Sequence[str]], Float32], calibration: Calibration
    ) -> EncodedClues:
        """Add custom clues.

        Args:
            clues: K clues with new names.
            encode: K texts → float32 (K, De), unit norm.
            calibration: The bundle's for custom clues; a clue's own threshold wins.

        Returns:
            A new bank of C + K clues.

        Raises:
            UsageError: A name is taken.
        """
        names = self.names + tuple(clue.name for clue in clues)
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"every clue needs a name of its own; used twice: {', '.join(doubled)}")
        encoded = encode([clue.positive for clue in clues] + [clue.negative for clue in clues])  # (2K, De)
        thresholds = [calibration.threshold if clue.threshold is None else clue.threshold for clue in clues]
        return EncodedClues(
            names,
            np.concatenate([self.positive, encoded[: len(clues)]]),
            np.concatenate([self.negative, encoded[len(clues) :]]),
            _append(self.scale, [calibration.scale] * len(clues)),
            _append(self.offset, [calibration.offset] * len(clues)),
            _append(self.threshold, thresholds),
        )

    def override(self, forced: Mapping[str, float] | None) -> Float32:
        """Turn forced probabilities into the fusion graph's input.

        Args:
            forced: Clue name → probability, 0 to 1; the others are perceived.

        Returns:
            float32 (1, C), ``PERCEIVED`` where nothing is forced.

        Raises:
            UsageError: An unknown clue, or a value outside 0 to 1.
        """
        values = np.full((1, len(self.names)), PERCEIVED, dtype=np.float32)
        for name, probability in (forced or {}).items():
            if name not in self.names:
                raise UsageError(f"no clue {name!r} to force; there are {', '.join(self.names)}")
            if isinstance(probability, bool) or not _is_probability(probability):
                raise UsageError(f"clue {name!r}: a probability from 0 to 1 expected, {probability!r} came")
            values[0, self.names.index(name)] = probability
        return values

    def fusion_inputs(self, override: Float32) -> dict[str, Float32]:
        """The clue inputs of the fusion graph, for ``override`` float32 (1, C)."""
        return {
            "clue_positive": self.positive,
            "clue_negative": self.negative,
            "clue_scale": self.scale,
            "clue_offset": self.offset,
            "clue_threshold": self.threshold,
            "clue_override": override,
        }

    def scores(self, logits: Float32, *, override: Float32) -> ClueScores:
        """Read the scores.

        Args:
            logits: float32 (C,), calibrated, of the fusion graph.
            override: float32 (1, C) that the graph was given.

        Returns:
            The C scores in order, forced ones as they were forced.
        """
        forced = override[0] >= 0
        perceived = np.where(forced, override[0], sigmoid(logits))
        # Six digits are what float32 holds: 0.9 that was forced reads 0.9, and "present" agrees with what is shown.
        rows = zip(self.names, perceived.round(6), self.threshold.astype(np.float64).round(6), forced, strict=True)
        return ClueScores(
            tuple(ClueScore(name, float(p), float(t), bool(p >= t), bool(by_hand)) for name, p, t, by_hand in rows)
        )


class ClueEncoder:
    """Texts → joint space, with the bundle's own tokenizer and graph."""

    def __init__(
        self,
        run: Callable[[Mapping[str, NDArray[np.int64]]], Mapping[str, Float32]],
        *,
        tokenize: Callable[[str], Sequence[int]],
        pad_id: int,
        max_length: int,
    ) -> None:
        """Keep what is needed to encode.

        Args:
            run: The ``clue_encoder`` graph.
            tokenize: Text → token ids, as in training.
            pad_id: Fills short texts on the right, masked.
            max_length: A longer text is an error: a prompt cut in the middle would ask something else.
        """
        self._run = run
        self._tokenize = tokenize
        self._pad_id = pad_id
        self._max_length = max_length

    def encode(self, texts: Sequence[str]) -> Float32:
        """Encode K texts.

        Args:
            texts: Prompts.

        Returns:
            float32 (K, De), unit norm.

        Raises:
            UsageError: A text has more tokens than the encoder was trained for.
        """
        rows = [self._tokenize(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if not 0 < len(row) <= self._max_length:
                raise UsageError(
                    f"a prompt of 1 to {self._max_length} tokens expected, {text!r} has {len(row)}; shorten it"
                )
        length = max(map(len, rows))
        ids = np.full((len(rows), length), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return self._run({"input_ids": ids, "attention_mask": mask})["clue_joint"]


def heat_maps(heat: Float32, *, names: Sequence[str], grid: tuple[int, int]) -> dict[str, Float32]:
    """Lay per-patch probabilities out as pictures.

    Args:
        heat: float32 (C, N), probability of each clue in each patch, row by row.
        names: C names.
        grid: Rows and columns, N together.

    Returns:
        Name → float32 (rows, columns).
    """
    return dict(zip(names, heat.reshape(len(names), *grid), strict=True))


def heat_peaks(maps: Mapping[str, Float32]) -> dict[str, HeatPeak]:
    """Find where each clue is strongest; ``maps``: name → float32 (rows, columns)."""
    return {name: _peak(heat) for name, heat in maps.items()}


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logits of any shape → probabilities, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))


def _peak(heat: Float32) -> HeatPeak:
    rows, columns = heat.shape
    row, column = divmod(int(heat.argmax()), columns)
    return HeatPeak(row, column, rows, columns, round(float(heat[row, column]), 6))


def _append(values: Float32, more: Iterable[float]) -> Float32:
    return np.concatenate([values, np.asarray(list(more), dtype=np.float32)])


def _is_probability(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= 1
