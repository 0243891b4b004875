"""Checkpoints: a folder with weights (safetensors), configuration, tokenizer and facts. No pickle.

config.json        ModelConfig
model.safetensors  every weight
tokenizer.json
meta.json          stage, clue bank, preprocessing, prompt, data description, evaluation; written last
parity.safetensors preprocessed pixels of held-out studies, for the export's comparison (stage 2)
films.safetensors  a sample of the films that it was trained on and held out, for the gate of a bundle (stage 2)
reports.safetensors token ids of the training reports, for the drafts of a bundle (stage 2): this is their text
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from trrg_sdk.errors import UsageError
from trrg_train.models.config import ModelConfig
from trrg_train.models.llm import merge_adapters
from trrg_train.models.perceiver import Perceiver
from trrg_train.models.stored import (
    REPORTS,
    SCHEMA,
    WEIGHTS,
    CheckpointMeta,
    StoredCheckpoint,
    damaged,
    read_stored,
)
from trrg_train.models.trrg import Prompt, Trrg


@dataclass(frozen=True)
class Checkpoint(StoredCheckpoint):
    """A loaded checkpoint; ``model`` is a :class:`Perceiver` (stage 1) or a :class:`Trrg` (stage 2)."""

    model: nn.Module

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
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, aside / WEIGHTS)
    (aside / "config.json").write_text(config.to_json(), encoding="utf-8")
    tokenizer.save(str(aside / "tokenizer.json"))
    facts = {"schema": SCHEMA, **dataclasses.asdict(meta)}
    (aside / "meta.json").write_text(json.dumps(facts, indent=1, sort_keys=True), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def save_reports(folder: Path, reports: Sequence[Sequence[int]]) -> None:
    """Add the token ids of the training reports to a checkpoint.

    Args:
        folder: Of the checkpoint.
        reports: Each with its end token.
    """
    tokens = torch.tensor([token for report in reports for token in report], dtype=torch.int32)
    lengths = torch.tensor([len(report) for report in reports], dtype=torch.int64)
    save_file({"tokens": tokens, "lengths": lengths}, folder / REPORTS)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint; every weight must be there and no other.

    The weights are mapped from the file (a write to one makes a copy of its page), so that they are in memory once.

    Raises:
        UsageError: The folder is no checkpoint, of an unknown schema or damaged, or its parts do not fit each other.
    """
    stored = read_stored(folder)
    config, meta = stored.config, stored.meta
    vocab_size = stored.tokenizer.get_vocab_size()
    model: nn.Module
    with init_empty_weights(include_buffers=False):  # buffers that no file holds are computed
        if meta.stage == 1:
            model = Perceiver(config, vocab_size=vocab_size)
        else:
            model = Trrg(config, vocab_size=vocab_size, prompt=Prompt(meta.prefix_ids, meta.suffix_ids))
    _load_weights(model, folder / WEIGHTS, lora_rank=config.lora_rank)
    if isinstance(model, Trrg):
        model.llm.tie_weights()  # the file holds tied weights twice
    return Checkpoint(folder, config, stored.tokenizer, meta, model.eval())


def weights_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights file."""
    with (folder / WEIGHTS).open("rb") as file:
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


def _load_weights(model: nn.Module, path: Path, *, lora_rank: int) -> None:
    """Load every weight and no other; what does not fit is one sentence and not a page of names."""
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise UsageError(damaged(path, error)) from error
    expected = model.state_dict()
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unknown": sorted(weights.keys() - expected.keys()),
        "of another shape": sorted(
            name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape
        ),
    }
    if any(problems.values()):
        told = ", ".join(f"{len(names)} {what} (such as {names[0]})" for what, names in problems.items() if names)
        adapters = f"; config.json asks for adapters of lora_rank {lora_rank}" if lora_rank else ""
        raise UsageError(f"{path} does not fit the config.json and tokenizer.json beside it: {told}{adapters}")
    model.load_state_dict(weights, strict=True, assign=True)
