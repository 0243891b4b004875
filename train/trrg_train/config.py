"""One TOML is one run: data, model, both stages. Unknown keys are refused."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trrg_sdk.errors import UsageError
from trrg_sdk.gate_specs import ADULTS, PopulationSpec
from trrg_train.models.config import ModelConfig

T = TypeVar("T")

PRECISIONS = ("fp32", "bf16")
CONTRASTS = ("sentence", "report")

LAST = "last"
SELECT_STAGE1 = ("macro_auc", LAST)
SELECT_STAGE2 = ("clinical_f1", "loss", LAST)


@dataclass(frozen=True)
class SourceConfig:
    """One data set.

    Attributes:
        name: Goes into figures ("phantom", "nih").
        kind: ``"annotation"`` (annotation.json beside images), ``"labelled_images"`` (labels.csv beside images),
            ``"mimic_cxr"`` (a MIMIC-CXR-JPG folder), ``"rexrank"`` (its JSON file) or ``"dicom_folder"`` (DICOM files
            with a reports.csv).
        path: Folder (a file for ``"rexrank"``), relative to the TOML's folder unless absolute.
        prefix: For ``labelled_images``: only files whose path starts with this.
        repeat: How often a training study is seen in one epoch.
        augmentation: Times the ranges by which stage 1 turns, shifts, zooms and recolours a training image. Above 1
            for a small set that is seen often.
        made_by: The command that makes the data set, for the model card; empty where it was not made here.
    """

    name: str
    kind: str
    path: Path
    prefix: str = ""
    repeat: int = 1
    augmentation: float = 1.0
    made_by: str = ""


@dataclass(frozen=True)
class OptimConfig:
    """What both stages hand to ``transformers.TrainingArguments``.

    Attributes:
        epochs: Passes over the training studies, repeats included; 0 in stage 1 leaves the encoders untrained
            (ablation).
        batch_size: Studies a step.
        learning_rate: Peak, after warm-up; cosine decay to zero.
        weight_decay: Of AdamW.
        warmup_steps: Linear.
        save_steps: A resumable checkpoint every so many steps.
        logging_steps: An entry in the log every so many steps.
        eval_steps: Held-out studies are measured every so many steps and after the last; 0 means after the last only.
            ``save_steps`` must be a multiple of it.
        patience: The stage ends after so many evaluations in a row without a better one; 0 means that it does not.
        accumulation_steps: Batches whose gradients make one step.
        precision: ``"fp32"``, or ``"bf16"``: autocast over weights that stay fp32.
        activation_checkpointing: Compute activations twice instead of keeping them.
    """

    epochs: float
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.05
    warmup_steps: int = 100
    save_steps: int = 200
    logging_steps: int = 20
    eval_steps: int = 200
    patience: int = 0
    accumulation_steps: int = 1
    precision: str = "fp32"
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Refuse a precision that is none, and evaluations that do not fit."""
        if self.eval_steps < 0 or (self.eval_steps and self.save_steps % self.eval_steps):
            raise UsageError(f"save_steps = {self.save_steps} must be a multiple of eval_steps = {self.eval_steps}")
        if self.patience and not self.eval_steps:
            raise UsageError(f"patience = {self.patience} needs eval_steps above 0")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")


@dataclass(frozen=True)
class Stage1Config:
    """Sentence-level contrastive pretraining.

    Attributes:
        optim: See there.
        vocab_size: Upper limit of the tokenizer.
        contrast: What is held against an image: ``"sentence"``, or ``"report"``, the whole report (ablation).
        sentences_per_study: Drawn for each study and step.
        assertion_ratio: How much likelier a sentence that asserts a disease is drawn than one that denies.
        temperature: Of InfoNCE.
        hard_negative_weight: Of a sentence that asserts what the image's report denies.
        contrast_weight: Of the sentence contrast beside the prompt contrast.
        max_positive_weight: Limit of the class balance of the prompt contrast.
        start: Folder of a checkpoint whose encoders and tokenizer this stage goes on from, relative to the working
            folder like ``out``; empty for new ones. ``vocab_size`` does nothing then.
        average: The mean of the weights of so many last saved steps is kept (``save_steps`` apart), instead of one
            step's; 0 switches it off. It helps small sets, whose last steps differ by chance.
        select_by: Which step is kept, unless ``eval_steps`` is 0: that of the best ``"macro_auc"`` on the held-out
            studies (mean over sources of the mean over observations), or the ``"last"``.
    """

    optim: OptimConfig
    vocab_size: int = 1500
    contrast: str = "sentence"
    sentences_per_study: int = 2
    assertion_ratio: float = 4.0
    temperature: float = 0.1
    hard_negative_weight: float = 2.0
    contrast_weight: float = 0.3
    max_positive_weight: float = 6.0
    start: str = ""
    average: int = 0
    select_by: str = "macro_auc"

    def __post_init__(self) -> None:
        """Refuse a choice that is none."""
        _check_choice(self.select_by, SELECT_STAGE1, self.optim)
        if self.average < 0 or (self.average and self.optim.eval_steps and self.select_by != LAST):
            raise UsageError(
                f"average = {self.average} must not be negative, and asks for eval_steps = 0 or select_by = {LAST!r}: "
                "the mean of several steps or the best of them is kept, not both"
            )
        if self.contrast not in CONTRASTS:
            raise UsageError(f"contrast must be one of {', '.join(CONTRASTS)}, not {self.contrast!r}")


@dataclass(frozen=True)
class Stage2Config:
    """Clue-enhanced instruction tuning.

    Attributes:
        optim: See there.
        views: Encodings kept of each training study: the first as it is, the others augmented.
        consistency_weight: Of the disease-aware consistency loss, sides included; 0 switches it off (ablation).
        clue_swap: Share of training studies that get the image of another study and the clue scores forced to
            their own report's labels. It teaches the language model to follow the clues. Words for side, place and
            severity do not count in such reports: the image is another's.
        gate_noise: Standard deviation of the noise on the clue logits.
        max_new_tokens: Hard limit of a report.
        parity_studies: Held-out studies that travel with the checkpoint for the export's comparison.
        train_perceiver: Train the encoders too, on augmented images instead of kept encodings: what stage 2 needs
            where there was no stage 1 (ablation). ``views`` and ``gate_noise`` then do nothing.
        select_by: Which step is kept, unless ``eval_steps`` is 0: that of the best ``"clinical_f1"`` of reports
            written of held-out studies (mean over sources of the macro F1), of the lowest ``"loss"`` of their
            references, or the ``"last"``.
        validation_studies: At most so many held-out studies are measured in an evaluation, evenly over the sources.
        samples: So many of the reports are shown beside their references.
    """

    optim: OptimConfig
    views: int = 2
    consistency_weight: float = 0.5
    clue_swap: float = 0.25
    gate_noise: float = 0.7
    max_new_tokens: int = 192
    parity_studies: int = 64
    train_perceiver: bool = False
    select_by: str = "clinical_f1"
    validation_studies: int = 96
    samples: int = 6

    def __post_init__(self) -> None:
        """Refuse a choice that is none."""
        _check_choice(self.select_by, SELECT_STAGE2, self.optim)
        if self.validation_studies < 1 or self.samples < 0:
            raise UsageError(
                "validation_studies must be at least 1 and samples at least 0, not "
                f"{self.validation_studies} and {self.samples}"
            )


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
        out: Folder of checkpoints and caches, relative to the working folder.
        seed: Of everything random.
        model: Sizes.
        sources: Data sets.
        stage1: First stage.
        stage2: Second stage.
        population: Whom and what the sources show; the gate of the bundle refuses others. ``[population]`` may be left
            out: then it is adults from the front.
    """

    out: Path
    seed: int
    model: ModelConfig
    sources: tuple[SourceConfig, ...]
    stage1: Stage1Config
    stage2: Stage2Config
    population: PopulationSpec = ADULTS


def _check_choice(select_by: str, known: tuple[str, ...], optim: OptimConfig) -> None:
    if select_by not in known:
        raise UsageError(f"select_by must be one of {', '.join(known)}, not {select_by!r}")
    if optim.patience and select_by == LAST:
        raise UsageError(f"patience = {optim.patience} needs a figure to look at: select_by is {LAST!r}")


def read_config(path: Path) -> RunConfig:
    """Read and check a TOML.

    Raises:
        UsageError: The file is missing, no TOML, or a key is unknown, missing or of the wrong type.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no valid TOML: {error}") from error
    known = {"out", "seed", "model", "sources", "stage1", "stage2"}
    population = values.pop("population", None)
    if set(values) != known:
        raise UsageError(
            f"{path} must have exactly the keys {sorted(known)} and may have population, it has {sorted(values)}"
        )
    return RunConfig(
        out=Path(values["out"]),
        seed=int(values["seed"]),
        model=ModelConfig.from_mapping(values["model"]),
        sources=tuple(_source(table, path.parent) for table in values["sources"]),
        stage1=_stage(Stage1Config, values["stage1"], "stage1"),
        stage2=_stage(Stage2Config, values["stage2"], "stage2"),
        population=ADULTS if population is None else _population(population, path),
    )


def _population(table: Mapping[str, Any], path: Path) -> PopulationSpec:
    """Read ``[population]``: ``minimum_age`` (left out: any age) and ``views``."""
    try:
        return _table(
            PopulationSpec, {"minimum_age": None, **table, "views": tuple(table.get("views", ()))}, "population"
        )
    except ValueError as error:
        raise UsageError(f"{path}: [population]: {error}") from error


def _source(table: Mapping[str, Any], base: Path) -> SourceConfig:
    return _table(SourceConfig, {**table, "path": base / str(table.get("path", ""))}, "sources")


def _stage(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    optim = _table(OptimConfig, table.get("optim", {}), f"{where}.optim")
    return _table(cls, {**table, "optim": optim}, where)


def _table(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is one of the dataclasses above
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(f"unknown keys in [{where}]: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    try:
        return cls(**values)
    except TypeError as error:
        raise UsageError(f"[{where}] is incomplete: {error}") from error
