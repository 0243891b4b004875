"""Checkpoints: a folder with weights (safetensors), configuration, tokenizer and facts. No pickle.

config.json        ModelConfig
model.safetensors  every weight
tokenizer.json
meta.json          stage, clue bank, preprocessing, prompt, data description, evaluation; written last
parity.safetensors preprocessed pixels of held-out studies, for the export's comparison (stage 2)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from trrg_sdk.errors import UsageError
from trrg_sdk.preprocess import Preprocess
from trrg_train.models.clue_bank import BankedClue
from trrg_train.models.config import ModelConfig
from trrg_train.models.llm import merge_adapters
from trrg_train.models.perceiver import Perceiver
from trrg_train.models.tokenizer import load_tokenizer
from trrg_train.models.trrg import Prompt, Trrg

SCHEMA = 1


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint knows about itself.

    Attributes:
        stage: 1 (perceiver) or 2 (whole model).
        clues: The clue bank.
        preprocess: ``Preprocess.to_manifest()``.
        prefix_ids: Instruction tokens before the visual tokens.
        suffix_ids: Instruction tokens after the clue tokens.
        max_new_tokens: Hard limit of a report.
        data: One paragraph: which studies it was trained on.
        commands: The commands that made it, in order.
        seed: Of the training.
        evaluation: Figures on held-out studies.
    """

    stage: int
    clues: tuple[BankedClue, ...]
    preprocess: Mapping[str, Any]
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    max_new_tokens: int = 192
    data: str = ""
    commands: tuple[str, ...] = ()
    seed: int = 0
    evaluation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; ``model`` is a :class:`Perceiver` (stage 1) or a :class:`Trrg` (stage 2)."""

    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    meta: CheckpointMeta
    model: nn.Module

    @property
    def preprocess(self) -> Preprocess:
        """How a radiograph becomes the model's input."""
        return Preprocess.from_manifest(dict(self.meta.preprocess))

    def trrg(self) -> Trrg:
        """Return the whole model.

        Raises:
            UsageError: This is a stage-1 checkpoint.
        """
        if not isinstance(self.model, Trrg):
            raise UsageError(f"{self.folder} is a stage-{self.meta.stage} checkpoint, a stage-2 one is needed")
        return self.model

    def perceiver(self) -> Perceiver:
        """Return the encoders of either stage."""
        return self.model if isinstance(self.model, Perceiver) else self.trrg().perceiver

    def parity_pixels(self) -> torch.Tensor:
        """Return preprocessed pixels float32 (K, C, S, S) of held-out studies."""
        return load_file(self.folder / "parity.safetensors")["pixels"].float()


def save_checkpoint(
    folder: Path, *, model: nn.Module, config: ModelConfig, tokenizer: Tokenizer, meta: CheckpointMeta
) -> None:
    """Write a checkpoint beside its place and rename it, so that a half-written one is never found.

    Args:
        folder: Replaced when it exists.
        model: Adapters are merged first.
        config: Of the model.
        tokenizer: Shared by both text models.
        meta: Facts.
    """
    aside = folder.with_name(folder.name + ".writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if isinstance(model, Trrg):
        model.llm = merge_adapters(model.llm)
        config = dataclasses.replace(config, lora_rank=0)
    config = _self_contained(config, model)
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, aside / "model.safetensors")
    (aside / "config.json").write_text(config.to_json(), encoding="utf-8")
    tokenizer.save(str(aside / "tokenizer.json"))
    facts = {"schema": SCHEMA, **dataclasses.asdict(meta)}
    (aside / "meta.json").write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint; every weight must be there and no other.

    Raises:
        UsageError: The folder is no checkpoint, or of an unknown schema.
    """
    missing = [
        n for n in ("meta.json", "config.json", "model.safetensors", "tokenizer.json") if not (folder / n).is_file()
    ]
    if missing:
        raise UsageError(f"{folder} is no TRRG checkpoint: it lacks {', '.join(missing)}")
    config = ModelConfig.from_mapping(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    meta = _read_meta(folder)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    vocab_size = tokenizer.get_vocab_size()
    model: nn.Module
    if meta.stage == 1:
        model = Perceiver(config, vocab_size=vocab_size)
    else:
        model = Trrg(config, vocab_size=vocab_size, prompt=Prompt(meta.prefix_ids, meta.suffix_ids))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return Checkpoint(folder, config, tokenizer, meta, model.eval())


def weights_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights file."""
    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def update_evaluation(folder: Path, evaluation: Mapping[str, Any]) -> None:
    """Store figures in ``meta.json``, written aside and renamed."""
    path = folder / "meta.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["evaluation"] = dict(evaluation)
    aside = path.with_suffix(".writing")
    aside.write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")
    aside.replace(path)


def _self_contained(config: ModelConfig, model: nn.Module) -> ModelConfig:
    """Replace local folders by the configurations found there: the weights are in the checkpoint now."""
    perceiver = model.perceiver if isinstance(model, Trrg) else model
    parts: dict[str, Any] = {"llm": getattr(model, "llm", None)}
    if isinstance(perceiver, Perceiver):
        parts |= {"vision": perceiver.vision.backbone, "clue_encoder": perceiver.clue_encoder.encoder}
    changes: dict[str, Any] = {}
    for name, part in parts.items():
        if getattr(config, f"{name}_path") and part is not None:
            changes |= {name: json.loads(part.config.to_json_string()), f"{name}_path": ""}
    return dataclasses.replace(config, **changes)


def _read_meta(folder: Path) -> CheckpointMeta:
    facts = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    schema = facts.pop("schema", None)
    if schema != SCHEMA:
        raise UsageError(f"{folder / 'meta.json'}: schema {SCHEMA} expected, {schema!r} found")
    facts["clues"] = tuple(BankedClue(**clue) for clue in facts["clues"])
    for key in ("prefix_ids", "suffix_ids", "commands"):
        facts[key] = tuple(facts[key])
    return CheckpointMeta(**facts)
