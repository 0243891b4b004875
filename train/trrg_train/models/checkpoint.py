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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from trrg_sdk.errors import UsageError
from trrg_sdk.gate_specs import ADULTS, PopulationSpec
from trrg_sdk.preprocess import Preprocess
from trrg_train.models.clue_bank import BankedClue
from trrg_train.models.config import ModelConfig
from trrg_train.models.llm import merge_adapters
from trrg_train.models.perceiver import Perceiver
from trrg_train.models.tokenizer import load_tokenizer
from trrg_train.models.trrg import Prompt, Trrg

SCHEMA = 1
FILMS = "films.safetensors"
_REPORTS = "reports.safetensors"


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
        population: Whom and what it was trained on, for the gate of its bundle.
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
    population: PopulationSpec = ADULTS


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
        """Return preprocessed pixels float32 (K, C, S, S) of held-out studies.

        Raises:
            UsageError: They are not there.
        """
        path = self.folder / "parity.safetensors"
        if not path.is_file():
            raise UsageError(
                f"{self.folder} lacks {path.name}, the studies to compare on: `trrg-train stage2` writes it"
            )
        return _read_tensors(path)["pixels"].float()

    def films(self, path: Path | None = None) -> dict[str, torch.Tensor] | None:
        """Return a sample of the films it was trained on and held out.

        Args:
            path: A file of ``trrg-train films``; None takes the checkpoint's own.

        Returns:
            Split and source, such as ``"train/nih"``, to uint8 (K, S, S), the model's input before mean and deviation,
            0 to 255; None where no path is given and the checkpoint has none.

        Raises:
            UsageError: The file is missing, damaged, or of films that were preprocessed in another way.
        """
        if path is None and not (self.folder / FILMS).is_file():
            return None
        return read_films(path or self.folder / FILMS, self.preprocess)

    def train_reports(self) -> list[list[int]] | None:
        """Return the token ids of the training reports, each with its end token; None where they were not kept."""
        path = self.folder / _REPORTS
        if not path.is_file():
            return None
        stored = _read_tensors(path)
        return [report.tolist() for report in stored["tokens"].split(stored["lengths"].tolist())]


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


def read_films(path: Path, preprocess: Preprocess) -> dict[str, torch.Tensor]:
    """Read a file of films; see :meth:`Checkpoint.films`."""
    if not path.is_file():
        raise UsageError(f"{path}: expected the films that `trrg-train films CONFIG --out {path.name}` writes, no file")
    films = _read_tensors(path)
    with safe_open(path, "pt") as opened:
        made_with = (opened.metadata() or {}).get("preprocess")
    if made_with != json.dumps(preprocess.to_manifest(), sort_keys=True):
        raise UsageError(f"{path}: its films were preprocessed otherwise than the model's; write them with its TOML")
    return films


def save_reports(folder: Path, reports: Sequence[Sequence[int]]) -> None:
    """Add the token ids of the training reports to a checkpoint.

    Args:
        folder: Of the checkpoint.
        reports: Each with its end token.
    """
    tokens = torch.tensor([token for report in reports for token in report], dtype=torch.int32)
    lengths = torch.tensor([len(report) for report in reports], dtype=torch.int64)
    save_file({"tokens": tokens, "lengths": lengths}, folder / _REPORTS)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint; every weight must be there and no other.

    The weights are mapped from the file (a write to one makes a copy of its page), so that they are in memory once.

    Raises:
        UsageError: The folder is no checkpoint, of an unknown schema or damaged, or its parts do not fit each other.
    """
    missing = [
        n for n in ("meta.json", "config.json", "model.safetensors", "tokenizer.json") if not (folder / n).is_file()
    ]
    if missing:
        raise UsageError(
            f"{folder} is no TRRG checkpoint: it lacks {', '.join(missing)}; name a folder that trrg-train wrote"
        )
    config = ModelConfig.from_mapping(_read_json(folder / "config.json"))
    meta = _read_meta(folder)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    vocab_size = tokenizer.get_vocab_size()
    model: nn.Module
    with init_empty_weights(include_buffers=False):  # buffers that no file holds are computed
        if meta.stage == 1:
            model = Perceiver(config, vocab_size=vocab_size)
        else:
            model = Trrg(config, vocab_size=vocab_size, prompt=Prompt(meta.prefix_ids, meta.suffix_ids))
    _load_weights(model, folder / "model.safetensors", lora_rank=config.lora_rank)
    if isinstance(model, Trrg):
        model.llm.tie_weights()  # the file holds tied weights twice
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
    path = folder / "meta.json"
    facts = dict(_read_json(path))
    schema = facts.pop("schema", None)
    if schema != SCHEMA:
        raise UsageError(f"{path}: schema {SCHEMA} expected, {schema!r} found")
    try:
        facts["clues"] = tuple(BankedClue(**clue) for clue in facts["clues"])
        for key in ("prefix_ids", "suffix_ids", "commands"):
            facts[key] = tuple(facts[key])
        if "population" in facts:  # checkpoints from before it was stated are of adults
            views = tuple(facts["population"].pop("views"))
            facts["population"] = PopulationSpec(views=views, **facts["population"])
        return CheckpointMeta(**facts)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not what trrg-train wrote ({error}); copy the checkpoint again") from error


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is no JSON ({error}); copy the checkpoint again") from error
    if not isinstance(value, Mapping):
        raise UsageError(f"{path}: an object expected, {type(value).__name__} found; copy the checkpoint again")
    return value


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path} is cut off or damaged ({error}); copy the checkpoint again") from error
    return tensors


def _load_weights(model: nn.Module, path: Path, *, lora_rank: int) -> None:
    """Load every weight and no other; what does not fit is one sentence and not a page of names."""
    weights = _read_tensors(path)
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
