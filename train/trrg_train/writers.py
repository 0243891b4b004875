"""Two ways to have reports written for evaluation: a checkpoint in PyTorch, a bundle in the runtime.

Both read one image of a study, ``Study.image``: the frontal one that its reader chose (``data.study.frontal_index``:
the first PA, else AP, else frontal of unknown direction), whatever other views the study has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor

from trrg_sdk import Reporter
from trrg_sdk.errors import InputError
from trrg_train.data.pixels import cached_pixels, is_plain, read_plain
from trrg_train.data.study import Study
from trrg_train.models.checkpoint import Checkpoint, load_checkpoint
from trrg_train.models.clue_bank import clue_inputs, embed_bank
from trrg_train.models.tokenizer import EOS_ID
from trrg_train.models.trrg import EncodedImages

BATCH = 32


@dataclass(frozen=True)
class Written:
    """One report.

    Attributes:
        text: As the labeler reads it.
        probabilities: float64 (14,), calibrated clue probabilities as perceived or forced.
    """

    text: str
    probabilities: NDArray[np.float64]


class Writer(Protocol):
    """Anything that writes reports."""

    def write(
        self, studies: Sequence[Study], *, clue_scores: Mapping[str, float] | None = None
    ) -> list[Written | None]:
        """Write one report a study, in order; None where the input is refused."""
        ...


def is_bundle(model: Path) -> bool:
    """Whether a folder is a bundle; else it is taken for a checkpoint."""
    return (model / "manifest.json").is_file()


def open_writer(model: Path, cache: Path) -> Writer:
    """Open a stage-2 checkpoint or a bundle.

    Args:
        model: Its folder.
        cache: Keeps the preprocessed pixels of a checkpoint's studies.

    Raises:
        UsageError: The folder is no checkpoint of stage 2.
        BundleError: The bundle is damaged.
    """
    return BundleWriter(model) if is_bundle(model) else CheckpointWriter(model, cache)


class CheckpointWriter:
    """The PyTorch model, in batches, on the accelerator where there is one."""

    def __init__(self, folder: Path, cache: Path) -> None:
        """Load a stage-2 checkpoint; ``cache`` keeps preprocessed pixels."""
        self.checkpoint = load_checkpoint(folder)
        self.cache = cache
        model = self.checkpoint.trrg()
        with torch.no_grad():
            positive, negative = embed_bank(
                self.checkpoint.meta.clues,
                model.perceiver,
                self.checkpoint.tokenizer,
                max_length=self.checkpoint.config.max_text_length,
            )
        device = PartialState().device
        model.to(device)
        self.embedded = (positive.to(device), negative.to(device))

    def write(
        self, studies: Sequence[Study], *, clue_scores: Mapping[str, float] | None = None
    ) -> list[Written | None]:
        """Write reports; nothing is refused here, the gate belongs to the runtime."""
        pixels = cached_pixels(studies, self.checkpoint.preprocess, self.cache)
        results: list[Written | None] = []
        for start in range(0, len(studies), BATCH):
            chunk = torch.from_numpy(pixels[start : start + BATCH].astype(np.float32))
            results.extend(write_batch(self.checkpoint, self.embedded, chunk, clue_scores or {}))
        return results


class BundleWriter:
    """The runtime as a hospital runs it: file in, report or refusal out."""

    def __init__(self, folder: Path) -> None:
        """Open the bundle."""
        self.reporter = Reporter(folder, device="cpu")

    def write(
        self, studies: Sequence[Study], *, clue_scores: Mapping[str, float] | None = None
    ) -> list[Written | None]:
        """Write reports one by one."""
        return [self._write(study, clue_scores) for study in studies]

    def _write(self, study: Study, clue_scores: Mapping[str, float] | None) -> Written | None:
        source = read_plain(study.image) if is_plain(study.image) else study.image
        try:
            report = self.reporter.report(source, clue_scores=clue_scores)
        except InputError:
            return None
        return Written(report.text, np.array([clue.probability for clue in report.clues]))


@torch.no_grad()
def write_batch(
    checkpoint: Checkpoint, embedded: tuple[Tensor, Tensor], pixels: Tensor, clue_scores: Mapping[str, float]
) -> list[Written]:
    """Write reports for preprocessed pixels (B, C, S, S) with embedded prompts, each (C, De), where the model is."""
    model, device = checkpoint.trrg(), embedded[0].device
    clues = checkpoint.meta.clues
    scores = [clue_scores.get(clue.name, -1.0) for clue in clues]
    override = torch.tensor(scores, device=device).expand(len(pixels), -1)
    images = EncodedImages(*model.perceiver.encode_images(pixels.to(device)))
    ids, logits = model.generate(
        images, clue_inputs(clues, *embedded, override), max_new_tokens=checkpoint.meta.max_new_tokens
    )
    probabilities = torch.where(override >= 0, override, torch.sigmoid(logits)).double().cpu().numpy()
    texts = [checkpoint.tokenizer.decode(until_end(row.tolist())) for row in ids]
    return [Written(text, p) for text, p in zip(texts, probabilities, strict=True)]


def until_end(ids: Sequence[int]) -> list[int]:
    """Token ids before the end token."""
    return list(ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids)
