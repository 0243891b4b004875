"""A checkpoint's folder without its weights: facts, tokenizer and arrays, read without PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from trrg_sdk.errors import UsageError
from trrg_sdk.gate_specs import ADULTS, PopulationSpec
from trrg_sdk.preprocess import Preprocess
from trrg_train.models.clue import BankedClue
from trrg_train.models.config import ModelConfig
from trrg_train.models.tokenizer import load_tokenizer

SCHEMA = 1
WEIGHTS = "model.safetensors"
FILMS = "films.safetensors"
REPORTS = "reports.safetensors"


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
class StoredCheckpoint:
    """What the files of a checkpoint say."""

    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    meta: CheckpointMeta

    @property
    def preprocess(self) -> Preprocess:
        """How a radiograph becomes the model's input."""
        return Preprocess.from_manifest(dict(self.meta.preprocess))

    def parity_pixels(self) -> NDArray[np.float32]:
        """Return preprocessed pixels float32 (K, C, S, S) of held-out studies.

        Raises:
            UsageError: They are not there.
        """
        path = self.folder / "parity.safetensors"
        if not path.is_file():
            raise UsageError(
                f"{self.folder} lacks {path.name}, the studies to compare on: `trrg-train stage2` writes it"
            )
        return read_arrays(path)["pixels"].astype(np.float32, copy=False)

    def films(self, path: Path | None = None) -> dict[str, NDArray[np.uint8]] | None:
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
        path = self.folder / REPORTS
        if not path.is_file():
            return None
        stored = read_arrays(path)
        return [report.tolist() for report in np.split(stored["tokens"], stored["lengths"].cumsum()[:-1])]


def read_stored(folder: Path) -> StoredCheckpoint:
    """Read all but the weights, which must be there.

    Raises:
        UsageError: The folder is no checkpoint, of an unknown schema or damaged.
    """
    missing = [
        name for name in ("meta.json", "config.json", WEIGHTS, "tokenizer.json") if not (folder / name).is_file()
    ]
    if missing:
        raise UsageError(
            f"{folder} is no TRRG checkpoint: it lacks {', '.join(missing)}; name a folder that trrg-train wrote"
        )
    config = ModelConfig.from_mapping(_read_json(folder / "config.json"))
    meta = _read_meta(folder)
    return StoredCheckpoint(folder, config, load_tokenizer(folder / "tokenizer.json"), meta)


def read_films(path: Path, preprocess: Preprocess) -> dict[str, NDArray[np.uint8]]:
    """Read a file of films; see :meth:`StoredCheckpoint.films`."""
    if not path.is_file():
        raise UsageError(f"{path}: expected the films that `trrg-train films CONFIG --out {path.name}` writes, no file")
    films = read_arrays(path)
    with safe_open(path, "np") as opened:
        made_with = (opened.metadata() or {}).get("preprocess")
    if made_with != json.dumps(preprocess.to_manifest(), sort_keys=True):
        raise UsageError(f"{path}: its films were preprocessed otherwise than the model's; write them with its TOML")
    return films


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read a file of safetensors.

    Raises:
        UsageError: It is damaged.
    """
    try:
        arrays: dict[str, NDArray[Any]] = load_file(path)
    except SafetensorError as error:
        raise UsageError(damaged(path, error)) from error
    return arrays


def damaged(path: Path, error: SafetensorError) -> str:
    """Say that a file of safetensors cannot be read."""
    return f"{path} is cut off or damaged ({error}); copy the checkpoint again"


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
