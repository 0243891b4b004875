"""Stage 2: clue-enhanced instruction tuning of fusion and language model over frozen encoders."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from trrg_sdk.errors import UsageError
from trrg_train.config import RunConfig, Stage2Config
from trrg_train.data.pixels import cached_pixels
from trrg_train.data.sides import side_matrix
from trrg_train.data.sources import read_sources, repeated
from trrg_train.data.study import Study, label_matrix
from trrg_train.distributed import join_processes
from trrg_train.draws import Draw, Draws, draw_random
from trrg_train.encodings import Encodings, Views, cached_encodings
from trrg_train.models.checkpoint import Checkpoint, CheckpointMeta, load_checkpoint, save_checkpoint, weights_hash
from trrg_train.models.clue_bank import BankedClue, clue_inputs, embed_bank
from trrg_train.models.fusion import ClueInputs
from trrg_train.models.tokenizer import BOS_ID, EOS_ID, pad_batch
from trrg_train.models.trrg import EncodedImages, Prompt, ReportTokens, Trrg
from trrg_train.resume import settings_of, step_to_resume
from trrg_train.trainer import STUDIES_KEY, checkpoint_activations, fit, training_arguments
from trrg_train.watching.reports import Limits, ReportValidation
from trrg_train.watching.summary import stage_record, sum_up
from trrg_train.watching.validation import held_out
from trrg_train.watching.watch import Watch

log = logging.getLogger(__name__)

FORCED_PRESENT, FORCED_ABSENT = (0.6, 1.0), (0.0, 0.4)

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
        self, studies: Sequence[Study], encodings: Encodings, config: Stage2Config, tokenizer: Any, *, seed: int
    ) -> None:
        """Tokenise all reports once.

        Args:
            studies: K training studies.
            encodings: Of the same studies.
            config: Of the stage.
            tokenizer: ``tokenizers.Tokenizer``.
            seed: Of views, swaps and noise.
        """
        self.encodings = encodings
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
            "images": self.encodings.batch(views, images),
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
        gate_logits = self.encodings.gate_logits[view, draw.study]
        noisy = gate_logits + rng.normal(scale=self.config.gate_noise, size=gate_logits.shape)
        return Pairing(draw.study, draw.study, view, (1.0 / (1.0 + np.exp(-noisy))).astype(np.float32))


def seen_tokens(report: str, offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Tell which tokens, given by the first and last character of each, belong to a word of ``SEEN``."""
    spans = [match.span() for match in SEEN.finditer(report)]
    return [any(first < end and start < last for first, last in spans) for start, end in offsets]


def forced_scores(labels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Clue scores (C,) that say what the labels (C,) say: high where present, low where absent or not known."""
    high, low = (rng.uniform(*limits, size=labels.shape) for limits in (FORCED_PRESENT, FORCED_ABSENT))
    return np.where(np.nan_to_num(labels) > 0.5, high, low).astype(np.float32)


class Stage2Task(nn.Module):
    """The whole model with its losses, as ``transformers.Trainer`` wants it."""

    def __init__(self, model: Trrg, bank: Sequence[BankedClue], embedded: tuple[Tensor, Tensor]) -> None:
        """Hold the model and the embedded clues, each (C, De)."""
        super().__init__()
        self.model = model
        self.bank = tuple(bank)
        self.register_buffer("positive", embedded[0], persistent=False)
        self.register_buffer("negative", embedded[1], persistent=False)

    def forward(
        self,
        images: tuple[Tensor, Tensor, Tensor],
        override: Tensor,
        report: tuple[Tensor, Tensor, Tensor],
        labels: Tensor,
        sides: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            images: Patches (B, N, Dv), ``patch_joint`` (B, N, De) and ``global_joint`` (B, De).
            override: (B, C), clue scores.
            report: The fields of :class:`ReportTokens`.
            labels: (B, C), 1, 0 or NaN.
            sides: (B, C, 2), 1, 0 or NaN.

        Returns:
            Keys ``loss``, ``language_loss``, ``consistency_loss``, ``side_loss``.
        """
        output = self.model(EncodedImages(*images), self.clues(override), ReportTokens(*report), labels, sides)
        return {
            "loss": output.loss,
            "language_loss": output.language_loss.detach(),
            "consistency_loss": output.consistency_loss.detach(),
            "side_loss": output.side_loss.detach(),
        }

    def clues(self, override: Tensor) -> ClueInputs:
        """Join the bank with the scores (B, C) of a batch."""
        return clue_inputs(self.bank, self.get_buffer("positive"), self.get_buffer("negative"), override)

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Called by the Trainer when the configuration asks for it."""
        checkpoint_activations((self.model.llm,), settings)


def run_stage2(config: RunConfig, *, commands: tuple[str, ...], resume: bool = False) -> Path:
    """Train on the stage-1 checkpoint of the same run and save the whole model.

    Args:
        config: Whole run.
        commands: What the user typed, kept for the model card.
        resume: Continue from the last saved step.

    Returns:
        Folder of the stage-2 checkpoint.
    """
    run = join_processes()
    torch.manual_seed(config.seed)
    first = load_checkpoint(config.out / "stage1")
    studies = read_sources(config.sources)
    train = [s for s in studies if s.split == "train"]
    with torch.no_grad():
        embedded = embed_bank(
            first.meta.clues, first.perceiver(), first.tokenizer, max_length=config.model.max_text_length
        )
    with run.main_process_first():
        encodings = _encodings(config, first, embedded, train, views=config.stage2.views)
        validation = _validation(config, first, embedded, studies)
    optim, steps = config.stage2.optim, config.out / "stage2-steps"
    settings = settings_of(config, "stage2", stage1_weights=weights_hash(first.folder))
    fitted = fit(
        Stage2Task(_model(config, first), first.meta.clues, embedded),
        Draws(repeated(train, config.sources), epochs=optim.epochs, seed=config.seed),
        Stage2Batches(train, encodings, config.stage2, first.tokenizer, seed=config.seed),
        arguments=training_arguments(optim, steps, seed=config.seed, select_by=config.stage2.select_by),
        resume=step_to_resume(steps, settings, resume=resume),
        watch=Watch(validation, config.out, "stage2", patience=optim.patience),
    )
    if run.is_main_process:
        task: Any = fitted.task.eval()
        written = validation.asserted(task, step=fitted.step)
        meta = _save(task.model, config, first, studies, (*first.meta.commands, *commands))
        sum_up(config.out, stage_record(config, meta, fitted, written))
    run.wait_for_everyone()
    return config.out / "stage2"


def instruction_prompt(instruction: str, tokenizer: Any) -> Prompt:
    """Start token and instruction before the visual tokens; a second start token after the clues begins the report."""
    return Prompt((BOS_ID, *tokenizer.encode(instruction).ids), (BOS_ID,))


def _encodings(
    config: RunConfig, first: Checkpoint, embedded: tuple[Tensor, Tensor], studies: Sequence[Study], *, views: int
) -> Encodings:
    cache = config.out / "cache"
    pixels = cached_pixels(studies, first.preprocess, cache)
    return cached_encodings(first, embedded, pixels, views=Views(views, config.seed), cache=cache)


def _validation(
    config: RunConfig, first: Checkpoint, embedded: tuple[Tensor, Tensor], studies: Sequence[Study]
) -> ReportValidation:
    val = held_out(studies, config.stage2.validation_studies)
    encodings = _encodings(config, first, embedded, val, views=1)
    limits = Limits(config.stage2.max_new_tokens, config.stage2.samples)
    return ReportValidation(val, encodings, first.tokenizer, limits=limits)


def _model(config: RunConfig, first: Checkpoint) -> Trrg:
    model = Trrg(
        config.model,
        vocab_size=first.tokenizer.get_vocab_size(),
        prompt=instruction_prompt(config.model.instruction, first.tokenizer),
        consistency_weight=config.stage2.consistency_weight,
    )
    model.perceiver.load_state_dict(first.perceiver().state_dict())
    model.freeze_perceiver()
    return model


def _save(
    model: Trrg, config: RunConfig, first: Checkpoint, studies: Sequence[Study], commands: tuple[str, ...]
) -> CheckpointMeta:
    meta = CheckpointMeta(
        stage=2,
        clues=first.meta.clues,
        preprocess=first.meta.preprocess,
        prefix_ids=model.prompt.prefix_ids,
        suffix_ids=model.prompt.suffix_ids,
        max_new_tokens=config.stage2.max_new_tokens,
        data=first.meta.data,
        commands=commands,
        seed=config.seed,
    )
    folder = config.out / "stage2"
    save_checkpoint(folder, model=model, config=config.model, tokenizer=first.tokenizer, meta=meta)
    kept = [s for s in studies if s.split == "val"][:: max(1, _stride(studies, config.stage2.parity_studies))]
    pixels = cached_pixels(kept[: config.stage2.parity_studies], first.preprocess, config.out / "cache")
    save_file({"pixels": torch.from_numpy(np.array(pixels))}, folder / "parity.safetensors")
    return meta


def _stride(studies: Sequence[Study], count: int) -> int:
    return sum(s.split == "val" for s in studies) // max(count, 1)
