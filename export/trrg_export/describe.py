"""The manifest's facts about a checkpoint: sizes, prompt, clues, provenance. No time, no machine path."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trrg_export.onnx_file import tensor_specs
from trrg_sdk.bundle import sha256_file
from trrg_sdk.gate_specs import PopulationSpec
from trrg_sdk.labeler import OBSERVATIONS
from trrg_sdk.manifest import (
    ENGINES,
    GRAPH_NAMES,
    SCHEMA_VERSION,
    ArraySpec,
    ClueSpec,
    CustomClueSpec,
    DecoderSpec,
    DecodingSpec,
    GraphSpec,
    Manifest,
    ModelSpec,
    PromptSpec,
    ProvenanceSpec,
    TokenizerSpec,
)
from trrg_sdk.version import __version__
from trrg_train.models.clue import BankedClue
from trrg_train.models.stored import StoredCheckpoint
from trrg_train.models.tokenizer import BOS_ID, EOS_ID, PAD_ID

TOKENIZER = "tokenizer.json"
TOKEN_EMBEDDING = "token_embedding.npy"
CLUE_BANK = "clue_bank.npz"
_WARNING = (
    "Not for clinical use: not a medical device, not validated on patients of your site; every draft is to be read by "
    "a radiologist together with the image."
)
_ADULT = 18
_CREATED_BY = (
    *("torch", "transformers", "optimum", "onnx", "onnxscript", "onnxruntime", "onnxruntime-genai"),
    *("numpy", "tokenizers"),
)
_FOR_GPUS = {"onnxruntime": "onnxruntime-gpu", "onnxruntime-genai": "onnxruntime-genai-cuda"}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return package → installed version, in alphabetical order.

    Args:
        packages: Names as pip has them, all installed.
    """
    return {name: importlib.metadata.version(name) for name in sorted(packages)}


def creators() -> tuple[str, ...]:
    """The packages that make every bundle, ONNX Runtime's under the names that they have here."""
    return tuple(_FOR_GPUS[name] if name in _FOR_GPUS and not _installed(name) else name for name in _CREATED_BY)


def _installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.distribution(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def graph_file(name: str) -> str:
    """Where a graph lies in the bundle."""
    return f"graphs/{name}.onnx"


def draft_manifest(checkpoint: StoredCheckpoint, folder: Path, decoder: DecoderSpec, *, precision: str) -> Manifest:
    """Describe a folder that holds everything but what targets add, the model card and the manifest.

    Args:
        checkpoint: Of stage 2.
        folder: Graphs, arrays and tokenizer.
        decoder: Sizes of its cache.
        precision: ``"fp32"`` or ``"int8"``.

    Returns:
        A manifest without files, targets and parity.
    """
    config, meta = checkpoint.config, checkpoint.meta
    vocab, width = np.load(folder / TOKEN_EMBEDDING, mmap_mode="r").shape
    return Manifest(
        schema_version=SCHEMA_VERSION,
        bundle_id=bundle_id(config.name, folder),
        model=ModelSpec(config.name, config.sha256()),
        files={},
        graphs={name: _graph_spec(folder, name, precision) for name in GRAPH_NAMES},
        preprocess=checkpoint.preprocess.to_manifest(),
        population=meta.population,
        distance=None,
        patch_grid=config.patch_grid,
        prompt=PromptSpec(meta.prefix_ids, meta.suffix_ids, ("prefix", "visual", "clues", "suffix")),
        tokenizer=TokenizerSpec(TOKENIZER, BOS_ID, EOS_ID, PAD_ID, vocab),
        token_embedding=ArraySpec(TOKEN_EMBEDDING, "float32", (vocab, width)),
        observations=OBSERVATIONS,
        clues=tuple(ClueSpec(c.name, c.positive, c.negative, c.scale, c.offset, c.threshold) for c in meta.clues),
        custom_clue=_custom_clue(meta.clues, config.max_text_length),
        clue_bank=ArraySpec(CLUE_BANK, "float32", ("clues", config.joint_dim)),
        decoding=DecodingSpec("greedy", meta.max_new_tokens),
        drafts=None,
        decoder=decoder,
        targets={},
        provenance=_provenance(checkpoint),
        evaluation=dict(meta.evaluation),
        parity={},
        intended_use=intended_use(meta.population),
    )


def intended_use(population: PopulationSpec) -> str:
    """Say what a bundle may be used for.

    Args:
        population: Whom and what it was trained on.
    """
    age = population.minimum_age
    people = "patients of any age" if age is None else f"patients of at least {age:g} years"
    views = "frontal and lateral" if population.laterals else "frontal"
    whom = "adults" if age == _ADULT else people
    return f"Research on draft reports of {views} chest radiographs of {whom}. {_WARNING}"


def prompt_length(checkpoint: StoredCheckpoint) -> int:
    """Count the positions of the prompt with the bundled clues."""
    meta = checkpoint.meta
    return len(meta.prefix_ids) + checkpoint.config.patches + len(meta.clues) + len(meta.suffix_ids)


def run_sizes(checkpoint: StoredCheckpoint, decoder: DecoderSpec) -> dict[str, int]:
    """Give the free axes of the graphs in the run that is counted: one study, one clue prompt, the decoder's prompt."""
    prompt = prompt_length(checkpoint)
    return {
        "batch": 1,
        "clues": len(checkpoint.meta.clues),
        "prompts": 1,
        "length": checkpoint.config.max_text_length,
        "batch_size": 1,
        "sequence_length": prompt,
        "past_sequence_length": 0,
        "total_sequence_length": prompt,
        "kv_cache_dim": decoder.head_size,
    }


def bundle_id(name: str, folder: Path) -> str:
    """Name a bundle by its model and what its files hold."""
    return f"{name}-{_content_hash(folder)[:8]}"


def checkpoint_sha256(folder: Path) -> str:
    """Hash a checkpoint: names and contents of its files, in the order of their names."""
    lines = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def code_version() -> str:
    """Name the code: the commit when this package lies in a git checkout, else the installed version.

    A commit with changes on top ends in ``-dirty``.
    """
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return importlib.metadata.version("trrg-sdk")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def shipped_hashes(folder: Path) -> dict[str, str]:
    """Hash what a bundle under construction holds, but for ``engines/``, which a site builds anew.

    Returns:
        Path below the folder → sha256.
    """
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name.as_posix(): sha256_file(path) for name, path in files.items() if name.parts[0] != ENGINES}


def _content_hash(folder: Path) -> str:
    return hashlib.sha256(json.dumps(shipped_hashes(folder), sort_keys=True).encode()).hexdigest()


def _graph_spec(folder: Path, name: str, precision: str) -> GraphSpec:
    return GraphSpec(graph_file(name), precision, *tensor_specs(folder / graph_file(name)))


def _custom_clue(bank: Sequence[BankedClue], max_length: int) -> CustomClueSpec:
    """A clue that nobody calibrated reads like the median clue of the bank: better than not calibrated at all."""
    scale, offset, threshold = (statistics.median(values) for values in _figures(bank))
    return CustomClueSpec(scale, offset, threshold, max_length)


def _figures(bank: Sequence[BankedClue]) -> tuple[list[float], list[float], list[float]]:
    return [c.scale for c in bank], [c.offset for c in bank], [c.threshold for c in bank]


def _provenance(checkpoint: StoredCheckpoint) -> ProvenanceSpec:
    return ProvenanceSpec(
        sdk_version=__version__,
        code_version=code_version(),
        checkpoint_sha256=checkpoint_sha256(checkpoint.folder),
        data=checkpoint.meta.data,
        created_by=versions(creators()),
    )
