"""The batches of stage 2: whose image, which clue scores, and which words count."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trrg_sdk.errors import UsageError
from trrg_train.augment import augment
from trrg_train.config import Stage2Config
from trrg_train.data.sides import side_matrix
from trrg_train.data.study import Study, label_matrix
from trrg_train.draws import Draw, draw_random
from trrg_train.encodings import Encodings
from trrg_train.models.padding import pad_batch
from trrg_train.models.tokenizer import EOS_ID
from trrg_train.trainer import STUDIES_KEY

FORCED_PRESENT, FORCED_ABSENT = (0.6, 1.0), (0.0, 0.4)
AS_PERCEIVED = -1.0
"""In place of a clue score: the model takes what it perceives (see ClueInputs)."""

SEEN = re.compile(
    r"\b(left|right|both|bilateral|upper|mid|lower|bas\w+|apical|apex|apices|zones?|small|moderate|large|mild|severe)"
    r"(ly)?\b",
    re.IGNORECASE,
)
"""Words for side, place and severity: only the image says them, no clue score does."""


class Pairing(NamedTuple):
    """One row of a batch: whose report, whose image in which view, and clue scores float32 (C,)."""

    report: int
    image: int
    view: int
    scores: NDArray[np.float32]


class Stage2Batches:
    """Collator: encodings, clue scores and report tokens of a batch."""

    def __init__(
        self,
        studies: Sequence[Study],
        images: Encodings | NDArray[np.float16],
        config: Stage2Config,
        tokenizer: Any,
        *,
        seed: int,
    ) -> None:
        """Tokenise all reports once.

        Args:
            studies: K training studies.
            images: Encodings of the same studies; or, where the encoders are trained too, their pixels (K, C, S, S).
            config: Of the stage.
            tokenizer: ``tokenizers.Tokenizer``.
            seed: Of views, swaps and noise.
        """
        self.images = images
        self.config = config
        encoded = [tokenizer.encode(study.report) for study in studies]
        self.reports = [[*text.ids, EOS_ID] for text in encoded]
        self.seen = [
            [*seen_tokens(study.report, text.offsets), False] for study, text in zip(studies, encoded, strict=True)
        ]
        too_long = [s.study_id for s, r in zip(studies, self.reports, strict=True) if len(r) > config.max_new_tokens]
        if too_long:
            raise UsageError(
                f"{len(too_long)} reports are longer than max_new_tokens = {config.max_new_tokens}, first {too_long[0]}"
            )
        self.study_ids = [study.study_id for study in studies]
        self.labels = label_matrix(studies)
        self.sides = side_matrix(studies)
        self.seed = seed

    def __call__(self, draws: Sequence[Draw]) -> dict[str, Any]:
        """Make a batch."""
        chosen = [self._choose(draw) for draw in draws]
        reports, images, views = (np.array([getattr(c, name) for c in chosen]) for name in ("report", "image", "view"))
        ids, mask = pad_batch([self.reports[i] for i in reports], max_length=self.config.max_new_tokens)
        counted = mask.bool()
        for row in np.flatnonzero(images != reports):
            seen = torch.tensor(self.seen[reports[row]])
            counted[row, : len(seen)] &= ~seen
        return {
            STUDIES_KEY: [self.study_ids[i] for i in reports],
            "images": self._images(views, images, draws),
            "override": torch.from_numpy(np.stack([c.scores for c in chosen])),
            "report": (ids, mask, counted),
            "labels": torch.from_numpy(self.labels[reports]),
            "sides": torch.from_numpy(np.where((images != reports)[:, None, None], np.nan, self.sides[reports])),
        }

    def _choose(self, draw: Draw) -> Pairing:
        """Take the study's own image and scores, or another's image and the scores of its own labels."""
        rng, _ = draw_random(draw, seed=self.seed)
        view = int(rng.integers(self.config.views))
        if rng.random() < self.config.clue_swap:
            return Pairing(
                draw.study, int(rng.integers(len(self.labels))), view, forced_scores(self.labels[draw.study], rng)
            )
        if isinstance(self.images, np.ndarray):
            return Pairing(draw.study, draw.study, view, np.full_like(self.labels[draw.study], AS_PERCEIVED))
        gate_logits = self.images.gate_logits[view, draw.study]
        noisy = gate_logits + rng.normal(scale=self.config.gate_noise, size=gate_logits.shape)
        return Pairing(draw.study, draw.study, view, (1.0 / (1.0 + np.exp(-noisy))).astype(np.float32))

    def _images(self, views: NDArray[np.int64], images: NDArray[np.int64], draws: Sequence[Draw]) -> tuple[Tensor, ...]:
        if not isinstance(self.images, np.ndarray):
            return self.images.batch(views, images)
        (plain,) = unchanged(self.images, images)
        return (augment(plain, [draw_random(draw, seed=self.seed)[1] for draw in draws]),)


def unchanged(images: Encodings | NDArray[np.float16], rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
    """Make ``images`` of a batch, float32: the first view of studies (B,), or their pixels (B, C, S, S)."""
    if isinstance(images, np.ndarray):
        return (torch.from_numpy(images[rows].astype(np.float32)),)
    return images.batch(np.zeros_like(rows), rows)


def seen_tokens(report: str, offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Tell which tokens, given by the first and last character of each, belong to a word of ``SEEN``."""
    spans = [match.span() for match in SEEN.finditer(report)]
    return [any(first < end and start < last for first, last in spans) for start, end in offsets]


def forced_scores(labels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Clue scores (C,) that say what the labels (C,) say: high where present, low where absent or not known."""
    high, low = (rng.uniform(*limits, size=labels.shape) for limits in (FORCED_PRESENT, FORCED_ABSENT))
    return np.where(np.nan_to_num(labels) > 0.5, high, low).astype(np.float32)
