"""Stage 1: sentence-level contrastive pretraining of the perceiver."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS
from trrg_sdk.preprocess import Preprocess
from trrg_train.augment import augment
from trrg_train.averaging import average_steps
from trrg_train.calibration import calibrate
from trrg_train.config import RunConfig, Stage1Config
from trrg_train.data.grammar import prompts
from trrg_train.data.pixels import cached_pixels
from trrg_train.data.sentences import SentenceSampler, labelled_report, labelled_sentences, relations, report_states
from trrg_train.data.sources import read_sources, repeated
from trrg_train.data.study import Study, label_matrix
from trrg_train.distributed import gather_rows, gradient_of_whole, join_processes
from trrg_train.draws import Draw, Draws, draw_random
from trrg_train.losses import prompt_contrast, sentence_contrast
from trrg_train.metrics import macro
from trrg_train.models.checkpoint import load_checkpoint, save_checkpoint, weights_hash
from trrg_train.models.clue import BankedClue
from trrg_train.models.clue_bank import tokenize
from trrg_train.models.perceiver import Perceiver
from trrg_train.models.stored import CheckpointMeta
from trrg_train.models.tokenizer import train_tokenizer
from trrg_train.resume import settings_of, step_to_resume
from trrg_train.trainer import STUDIES_KEY, checkpoint_activations, fit, training_arguments
from trrg_train.watching.record import Fitted, Perceived
from trrg_train.watching.summary import stage_record, sum_up
from trrg_train.watching.validation import PerceptionValidation, aucs
from trrg_train.watching.watch import Watch

log = logging.getLogger(__name__)


class Stage1Batches:
    """Collator: draws sentences, augments images, says what relates both."""

    def __init__(
        self, studies: Sequence[Study], pixels: NDArray[np.float16], config: RunConfig, tokenizer: Any
    ) -> None:
        """Label all sentences once.

        Args:
            studies: Training studies.
            pixels: (K, C, S, S) of the same studies.
            config: Of the run.
            tokenizer: ``tokenizers.Tokenizer``.
        """
        self.max_length = config.model.max_text_length
        self.studies = studies
        self.pixels = pixels
        labelled = {"sentence": labelled_sentences, "report": labelled_report}[config.stage1.contrast]
        self.sentences = [labelled(study.report) for study in studies]
        self.states = np.stack([report_states(study.labels) for study in studies])
        self.labels = torch.from_numpy(label_matrix(studies))
        self.text_tokenizer = tokenizer  # not "tokenizer": Trainer would save it its own way
        stage = config.stage1
        self.sampler = SentenceSampler(assertion_ratio=stage.assertion_ratio, count=stage.sentences_per_study)
        self.strength = {source.name: source.augmentation for source in config.sources}
        self.seed = config.seed

    def __call__(self, draws: Sequence[Draw]) -> dict[str, Any]:
        """Make a batch."""
        indices = [draw.study for draw in draws]
        words, grain = zip(*(draw_random(draw, seed=self.seed) for draw in draws), strict=True)
        drawn = [(row, s) for row, i in enumerate(indices) for s in self.sampler.draw(self.sentences[i], words[row])]
        facts = (
            torch.tensor([draw.number for draw in draws]),
            torch.from_numpy(self.states[indices]),
            torch.tensor([draws[row].number for row, _ in drawn]),
            torch.from_numpy(np.stack([sentence.states for _, sentence in drawn])),
        )
        ids, mask = tokenize([s.text for _, s in drawn], self.text_tokenizer, max_length=self.max_length)
        plain = torch.from_numpy(np.stack([self.pixels[i] for i in indices]).astype(np.float32))
        return {
            STUDIES_KEY: [self.studies[i].study_id for i in indices],
            "pixels": augment(plain, grain, strength=[self.strength[self.studies[i].source] for i in indices]),
            "sentence_ids": ids,
            "sentence_mask": mask,
            "facts": facts,
            "labels": self.labels[indices],
        }


class Stage1Task(nn.Module):
    """The perceiver with the losses of stage 1, as ``transformers.Trainer`` wants it."""

    def __init__(
        self, perceiver: Perceiver, config: Stage1Config, *, prompts: tuple[Tensor, Tensor], balance: Tensor
    ) -> None:
        """Hold the model and the tokenised prompts.

        Args:
            perceiver: To be trained.
            config: Of the stage.
            prompts: Token ids and mask, int64 (2 C, L): the positive prompts, then the negative ones.
            balance: (C,), weight of a present observation.
        """
        super().__init__()
        self.perceiver = perceiver
        self.settings = config
        self.register_buffer("prompt_ids", prompts[0], persistent=False)
        self.register_buffer("prompt_mask", prompts[1], persistent=False)
        self.register_buffer("balance", balance, persistent=False)

    def forward(
        self,
        pixels: Tensor,
        sentence_ids: Tensor,
        sentence_mask: Tensor,
        facts: tuple[Tensor, Tensor, Tensor, Tensor],
        labels: Tensor,
    ) -> dict[str, Tensor]:
        """Compute both contrasts, over the batches of all processes (see :mod:`trrg_train.distributed`).

        Args:
            pixels: float32 (B, C, S, S), preprocessed.
            sentence_ids: int64 (K, L).
            sentence_mask: int64 (K, L).
            facts: Numbers of the draws, int64 (B,); states of their reports, int8 (B, 14); number of the draw that each
                sentence is from, int64 (K,); states of the sentences, int8 (K, 14).
            labels: float32 (B, 14), 1, 0 or NaN.

        Returns:
            Keys ``loss``, ``prompt_loss``, ``contrast_loss``, ``logits`` (B, 14).
        """
        _, patch_joint, global_joint = self.perceiver.encode_images(pixels)
        sentences = self.perceiver.encode_texts(sentence_ids, sentence_mask)
        prompts_ids, prompts_mask = self.get_buffer("prompt_ids"), self.get_buffer("prompt_mask")
        positive, negative = self.perceiver.encode_texts(prompts_ids, prompts_mask).chunk(2)
        logits, _ = self.perceiver.perception(patch_joint, global_joint, positive, negative)
        contrast = self._contrast(global_joint, sentences, facts)
        prompt = prompt_contrast(logits, labels, positive_weight=self.get_buffer("balance"))
        loss = prompt + self.settings.contrast_weight * contrast
        return {"loss": loss, "prompt_loss": prompt, "contrast_loss": contrast, "logits": logits}

    def _contrast(self, images: Tensor, sentences: Tensor, facts: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        draws, states, owners, sentence_states = (gather_rows(rows) for rows in facts)
        loss = sentence_contrast(
            gather_rows(images),
            gather_rows(sentences),
            relations(states, sentence_states, draws[:, None] == owners),
            temperature=self.settings.temperature,
            hard_negative_weight=self.settings.hard_negative_weight,
        )
        return gradient_of_whole(loss)

    @torch.no_grad()
    def perceive(self, pixels: NDArray[np.float16]) -> NDArray[np.float64]:
        """Uncalibrated clue logits (K, C) of preprocessed pixels (K, 1, S, S)."""
        embedded = self.perceiver.encode_texts(self.get_buffer("prompt_ids"), self.get_buffer("prompt_mask"))
        positive, negative = embedded.chunk(2)
        return clue_logits(self.perceiver, (positive, negative), pixels)

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Called by the Trainer when the configuration asks for it."""
        checkpoint_activations((self.perceiver.vision.backbone, self.perceiver.clue_encoder.encoder), settings)


def run_stage1(config: RunConfig, *, commands: tuple[str, ...], resume: bool = False) -> Path:
    """Train, calibrate and save.

    Args:
        config: Whole run.
        commands: What the user typed, kept for the model card.
        resume: Continue from the last saved step.

    Returns:
        Folder of the stage-1 checkpoint.
    """
    run = join_processes()
    torch.manual_seed(config.seed)
    studies = read_sources(config.sources)
    train = [s for s in studies if s.split == "train"]
    preprocess = Preprocess(size=config.model.image_size, channels=1)
    bank = tuple(BankedClue(name, *prompts(name)) for name in OBSERVATIONS)
    ordered = [clue.positive for clue in bank] + [clue.negative for clue in bank]
    corpus = [*(s.report for s in train), *ordered, config.model.instruction]
    perceiver, tokenizer, before = _begin(config, preprocess, corpus)
    tokens = tokenize(ordered, tokenizer, max_length=config.model.max_text_length)
    with run.main_process_first():
        pixels = cached_pixels(train, preprocess, config.out / "cache")
        seen = HeldOut(studies, preprocess, config.out / "cache")
    batches = Stage1Batches(train, pixels, config, tokenizer)
    fitted = _fit(perceiver, config, prompts=tokens, batches=batches, held_out=seen, resume=resume)
    if run.is_main_process:
        meta = _meta(config, bank, preprocess, data=describe(studies), commands=(*before, *commands))
        _save(fitted, config, tokenizer, meta, seen)
    run.wait_for_everyone()
    return config.out / "stage1"


def _meta(
    config: RunConfig, bank: tuple[BankedClue, ...], preprocess: Preprocess, *, data: str, commands: tuple[str, ...]
) -> CheckpointMeta:
    return CheckpointMeta(
        1,
        bank,
        preprocess.to_manifest(),
        data=data,
        commands=tuple(dict.fromkeys([*(source.made_by for source in config.sources if source.made_by), *commands])),
        seed=config.seed,
        population=config.population,
    )


def _begin(config: RunConfig, preprocess: Preprocess, corpus: Sequence[str]) -> tuple[Perceiver, Any, tuple[str, ...]]:
    """Make new encoders and a tokenizer of the corpus, or take both from the checkpoint that the stage goes on from.

    Returns:
        Encoders, tokenizer, and the commands that made them.

    Raises:
        UsageError: The checkpoint is none, or its encoders are of other sizes or see other images than this run's.
    """
    if not config.stage1.start:
        tokenizer = train_tokenizer(corpus, vocab_size=config.stage1.vocab_size)
        return Perceiver(config.model, vocab_size=tokenizer.get_vocab_size()), tokenizer, ()
    start, named = load_checkpoint(Path(config.stage1.start)), f"[stage1] start = {config.stage1.start!r}"
    for part in ("vision", "clue_encoder", "joint_dim", "patch_grid"):
        if getattr(start.config, part) != getattr(config.model, part):
            raise UsageError(f"{named}: its {part} is not that of [model]; copy {part} from the config.json there")
    if start.preprocess != preprocess:
        raise UsageError(
            f"{named} was trained on images of {start.preprocess.size} pixels a side, [model] image_size is "
            f"{preprocess.size}"
        )
    perceiver = Perceiver(config.model, vocab_size=start.tokenizer.get_vocab_size())
    perceiver.load_state_dict(start.perceiver().state_dict())
    return perceiver, start.tokenizer, start.meta.commands


class HeldOut:
    """The studies of the split ``val`` with their pixels."""

    def __init__(self, studies: Sequence[Study], preprocess: Preprocess, cache: Path) -> None:
        """Read the pixels.

        Raises:
            UsageError: There is no such study; calibration and thresholds need some.
        """
        self.studies = [s for s in studies if s.split == "val"]
        if not self.studies:
            raise UsageError("no study is in the split val; look at the sources with trrg-train data check")
        self.pixels = cached_pixels(self.studies, preprocess, cache)
        self.labels = label_matrix(self.studies).astype(np.float64)


def _fit(
    perceiver: Perceiver,
    config: RunConfig,
    *,
    prompts: tuple[Tensor, Tensor],
    batches: Stage1Batches,
    held_out: HeldOut,
    resume: bool,
) -> Fitted:
    indices = repeated(batches.studies, config.sources)
    balance = class_balance(batches.labels.numpy()[indices], limit=config.stage1.max_positive_weight)
    optim, steps = config.stage1.optim, config.out / "stage1-steps"
    begun = {"start": weights_hash(Path(config.stage1.start))} if config.stage1.start else {}
    task = Stage1Task(perceiver, config.stage1, prompts=prompts, balance=balance)
    if not optim.epochs:
        return Fitted(task, 0, [])
    validation = PerceptionValidation(held_out.studies, lambda task: task.perceive(held_out.pixels))
    keep, select_by = config.stage1.average, config.stage1.select_by
    fitted = fit(
        task,
        Draws(indices, epochs=optim.epochs, seed=config.seed),
        batches,
        arguments=training_arguments(optim, steps, seed=config.seed, select_by=select_by, keep=max(2, keep)),
        resume=step_to_resume(steps, settings_of(config, "stage1", **begun), resume=resume),
        watch=Watch(validation, config.out, "stage1", patience=optim.patience),
    )
    if keep and PartialState().is_main_process:
        average_steps(fitted.task, steps, count=keep)
    return fitted


def _save(fitted: Fitted, config: RunConfig, tokenizer: Any, meta: CheckpointMeta, held_out: HeldOut) -> None:
    task: Any = fitted.task.eval()
    logits = task.perceive(held_out.pixels)
    clues = _calibrated(logits, meta.clues, held_out) if config.stage1.optim.epochs else meta.clues
    save_checkpoint(
        config.out / "stage1",
        model=task.perceiver,
        config=config.model,
        tokenizer=tokenizer,
        meta=dataclasses.replace(meta, clues=clues),
    )
    scale, offset, thresholds = (np.array([getattr(c, n) for c in clues]) for n in ("scale", "offset", "threshold"))
    perceived = Perceived(
        tuple(s.source for s in held_out.studies), expit(logits * scale + offset), thresholds, held_out.labels
    )
    sum_up(config.out, stage_record(config, meta, fitted, perceived))


def class_balance(labels: NDArray[np.float32], *, limit: float) -> Tensor:
    """Weight of a present observation: negatives over positives among the known, in [1/limit, limit]; (C,)."""
    positives = np.nansum(labels, axis=0)
    negatives = (~np.isnan(labels)).sum(0) - positives
    return torch.from_numpy(np.clip(negatives / np.maximum(positives, 1), 1 / limit, limit).astype(np.float32))


@torch.no_grad()
def clue_logits(
    perceiver: Perceiver, embedded: tuple[Tensor, Tensor], pixels: NDArray[np.float16], *, batch: int = 64
) -> NDArray[np.float64]:
    """Uncalibrated clue logits (K, C) of preprocessed pixels (K, 1, S, S) for embedded prompts, each (C, De)."""
    rows = []
    for start in range(0, len(pixels), batch):
        chunk = torch.from_numpy(pixels[start : start + batch].astype(np.float32)).to(embedded[0].device)
        _, patch_joint, global_joint = perceiver.encode_images(chunk)
        rows.append(perceiver.perception(patch_joint, global_joint, *embedded)[0].cpu().numpy())
    return np.concatenate(rows).astype(np.float64)


def describe(studies: Sequence[Study]) -> str:
    """One sentence a source: how many studies and patients in each split."""
    lines = []
    for source in sorted({s.source for s in studies}):
        counts = []
        for split in ("train", "val", "test"):
            part = [s for s in studies if s.source == source and s.split == split]
            counts.append(f"{len(part)} studies of {len({s.patient for s in part})} patients for {split}")
        lines.append(f"{source}: {', '.join(counts)}.")
    return " ".join(lines)


def _calibrated(logits: NDArray[np.float64], bank: tuple[BankedClue, ...], held_out: HeldOut) -> tuple[BankedClue, ...]:
    for source, each in aucs(logits, held_out.labels, [s.source for s in held_out.studies]).items():
        named = {name: round(value, 3) for name, value in each.items()}
        log.info("validation AUC, %s: macro %.3f, %s", source, macro(np.array(list(each.values()))), named)
    return calibrate(bank, logits, held_out.labels)
