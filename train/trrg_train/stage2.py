"""Stage 2: clue-enhanced instruction tuning of fusion and language model over frozen encoders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from trrg_sdk.errors import UsageError
from trrg_train.config import RunConfig
from trrg_train.data.pixels import cached_pixels
from trrg_train.data.sources import read_sources, repeated
from trrg_train.data.study import Study
from trrg_train.distributed import join_processes
from trrg_train.draws import Draws
from trrg_train.encodings import Encodings, Views, cached_encodings
from trrg_train.films import save_films
from trrg_train.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_reports, weights_hash
from trrg_train.models.clue import BankedClue
from trrg_train.models.clue_bank import clue_inputs, embed_bank, tokenize
from trrg_train.models.fusion import ClueInputs
from trrg_train.models.stored import FILMS, CheckpointMeta
from trrg_train.models.tokenizer import BOS_ID, EOS_ID
from trrg_train.models.trrg import EncodedImages, Prompt, ReportTokens, Trrg
from trrg_train.resume import settings_of, step_to_resume
from trrg_train.stage2_batches import Stage2Batches, unchanged
from trrg_train.trainer import checkpoint_activations, fit, training_arguments
from trrg_train.watching.reports import Limits, ReportValidation
from trrg_train.watching.summary import stage_record, sum_up
from trrg_train.watching.validation import held_out
from trrg_train.watching.watch import Watch


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
        images: tuple[Tensor, ...],
        override: Tensor,
        report: tuple[Tensor, Tensor, Tensor],
        labels: Tensor,
        sides: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            images: What :meth:`encoded` takes.
            override: (B, C), clue scores.
            report: The fields of :class:`ReportTokens`.
            labels: (B, C), 1, 0 or NaN.
            sides: (B, C, 2), 1, 0 or NaN.

        Returns:
            Keys ``loss``, ``language_loss``, ``consistency_loss``, ``side_loss``.
        """
        output = self.model(self.encoded(images), self.clues(override), ReportTokens(*report), labels, sides)
        return {
            "loss": output.loss,
            "language_loss": output.language_loss.detach(),
            "consistency_loss": output.consistency_loss.detach(),
            "side_loss": output.side_loss.detach(),
        }

    def encoded(self, images: tuple[Tensor, ...]) -> EncodedImages:
        """Name patches (B, N, Dv), ``patch_joint`` (B, N, De) and ``global_joint`` (B, De)."""
        return EncodedImages(*images)

    def clues(self, override: Tensor) -> ClueInputs:
        """Join the bank with the scores (B, C) of a batch."""
        return clue_inputs(self.bank, self.get_buffer("positive"), self.get_buffer("negative"), override)

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Called by the Trainer when the configuration asks for it."""
        checkpoint_activations((self.model.llm,), settings)


class EndToEndTask(Stage2Task):
    """The same losses with both encoders in the loop, and trained by them."""

    def __init__(self, model: Trrg, bank: Sequence[BankedClue], prompts: tuple[Tensor, Tensor]) -> None:
        """Hold the model and the tokenised prompts, int64 (2 C, L): the positive ones, then the negative ones."""
        nothing = torch.empty(0)
        super().__init__(model, bank, (nothing, nothing))
        self.register_buffer("prompt_ids", prompts[0], persistent=False)
        self.register_buffer("prompt_mask", prompts[1], persistent=False)

    def encoded(self, images: tuple[Tensor, ...]) -> EncodedImages:
        """Encode pixels (B, C, S, S)."""
        return EncodedImages(*self.model.perceiver.encode_images(*images))

    def clues(self, override: Tensor) -> ClueInputs:
        """Embed the bank as the clue encoder now sees it."""
        embedded = self.model.perceiver.encode_texts(self.get_buffer("prompt_ids"), self.get_buffer("prompt_mask"))
        positive, negative = embedded.chunk(2)
        return clue_inputs(self.bank, positive, negative, override)


def run_stage2(config: RunConfig, *, commands: tuple[str, ...], resume: bool = False) -> Path:
    """Train on the stage-1 checkpoint of the same run and save the whole model.

    Args:
        config: Whole run.
        commands: What the user typed, kept for the model card.
        resume: Continue from the last saved step.

    Returns:
        Folder of the stage-2 checkpoint.

    Raises:
        UsageError: There is no stage-1 checkpoint, or its scores are those of other views of an image.
    """
    run = join_processes()
    torch.manual_seed(config.seed)
    first = _first(config)
    studies = read_sources(config.sources)
    train = [s for s in studies if s.split == "train"]
    images = images_of(config, first, train, views=config.stage2.views)
    validation = _validation(config, first, studies)
    optim, steps = config.stage2.optim, config.out / "stage2-steps"
    settings = settings_of(config, "stage2", stage1_weights=weights_hash(first.folder))
    fitted = fit(
        _task(config, first, _model(config, first)),
        Draws(repeated(train, config.sources), epochs=optim.epochs, seed=config.seed),
        Stage2Batches(train, images, config.stage2, first.tokenizer, seed=config.seed),
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


def images_of(
    config: RunConfig, first: Checkpoint, studies: Sequence[Study], *, views: int
) -> Encodings | NDArray[np.float16]:
    """Give what the training of a stage-2 model starts from: encodings, or pixels where the encoders are trained too.

    Every process must call it: the main one reads the images, all encode.

    Args:
        config: Whole run; both are kept in its cache.
        first: The stage-1 checkpoint that encodes.
        studies: K studies.
        views: How many versions of each are encoded.

    Returns:
        Encodings, or pixels (K, C, S, S).
    """
    cache = config.out / "cache"
    with PartialState().main_process_first():
        pixels = cached_pixels(studies, first.preprocess, cache)
    if config.stage2.train_perceiver:
        return pixels
    return cached_encodings(first, _embedded(config, first), pixels, views=Views(views, config.seed), cache=cache)


def _validation(config: RunConfig, first: Checkpoint, studies: Sequence[Study]) -> ReportValidation:
    val = held_out(studies, config.stage2.validation_studies)
    images = partial(unchanged, images_of(config, first, val, views=1))
    limits = Limits(config.stage2.max_new_tokens, config.stage2.samples)
    return ReportValidation(val, images, first.tokenizer, limits=limits)


@torch.no_grad()
def _embedded(config: RunConfig, first: Checkpoint) -> tuple[Tensor, Tensor]:
    bank, longest = first.meta.clues, config.model.max_text_length
    return embed_bank(bank, first.perceiver(), first.tokenizer, max_length=longest)


def _first(config: RunConfig) -> Checkpoint:
    """Load the stage-1 checkpoint of the run; see :func:`run_stage2`."""
    first, asked = load_checkpoint(config.out / "stage1"), config.model.shift
    if first.config.shift != asked:
        raise UsageError(
            f"[model] shift = {asked}, and stage 1 calibrated its scores with shift = {first.config.shift}: "
            "give both stages the same, or run stage 1 again"
        )
    return first


def _task(config: RunConfig, first: Checkpoint, model: Trrg) -> Stage2Task:
    bank = first.meta.clues
    if not config.stage2.train_perceiver:
        return Stage2Task(model, bank, _embedded(config, first))
    ordered = [*(clue.positive for clue in bank), *(clue.negative for clue in bank)]
    prompts = tokenize(ordered, first.tokenizer, max_length=config.model.max_text_length)
    return EndToEndTask(model, bank, prompts)


def _model(config: RunConfig, first: Checkpoint) -> Trrg:
    model = Trrg(
        config.model,
        vocab_size=first.tokenizer.get_vocab_size(),
        prompt=instruction_prompt(config.model.instruction, first.tokenizer),
        consistency_weight=config.stage2.consistency_weight,
    )
    model.perceiver.load_state_dict(first.perceiver().state_dict())
    if config.stage2.train_perceiver:
        model.perceiver.perception.requires_grad_(False)  # fusion's is the one that is trained
    else:
        model.freeze_perceiver()
    return model


def _save(
    model: Trrg, config: RunConfig, first: Checkpoint, studies: Sequence[Study], commands: tuple[str, ...]
) -> CheckpointMeta:
    if config.stage2.train_perceiver:
        model.perceiver.perception.load_state_dict(model.fusion.perception.state_dict())  # fusion's was trained
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
        population=config.population,
    )
    folder = config.out / "stage2"
    save_checkpoint(folder, model=model, config=config.model, tokenizer=first.tokenizer, meta=meta)
    kept = [s for s in studies if s.split == "val"][:: max(1, _stride(studies, config.stage2.parity_studies))]
    pixels = cached_pixels(kept[: config.stage2.parity_studies], first.preprocess, config.out / "cache")
    save_file({"pixels": torch.from_numpy(np.array(pixels))}, folder / "parity.safetensors")
    save_films(studies, first.preprocess, config.out / "cache", folder / FILMS)
    train = [study.report for study in studies if study.split == "train"]
    save_reports(folder, [[*first.tokenizer.encode(report).ids, EOS_ID] for report in train])
    return meta


def _stride(studies: Sequence[Study], count: int) -> int:
    return sum(s.split == "val" for s in studies) // max(count, 1)
