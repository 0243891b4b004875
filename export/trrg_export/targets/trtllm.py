"""TensorRT-LLM: the language model as a Hugging Face folder, and how its prompt is put together.

TensorRT-LLM loads such a folder by itself and takes what the graph ``fusion`` gives as a *prompt-embedding table*:
token ids from the vocabulary's size on name rows of the table. ``trtllm/prompt_embedding.json`` says which ids, in
which order. The other graphs are the bundle's own. Needs no package, and running it is TensorRT-LLM's part.
"""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

from trrg_export.parity import LIMITS, Difference, ParityError
from trrg_export.targets.base import ProvenSite
from trrg_export.with_pytorch import with_pytorch
from trrg_sdk.manifest import Axes, TargetSpec
from trrg_train.models.stored import StoredCheckpoint
from trrg_train.models.tokenizer import EOS_ID, PAD_ID

NAME = "trtllm"
TARGET = "trtllm"
PRECISIONS = tuple(LIMITS)
PACKAGES: tuple[str, ...] = ()
FOLDER = "trtllm"
CONTRACT = f"{FOLDER}/prompt_embedding.json"
_MODEL = "trrg_export.trtllm_model"
_DTYPES = {"fp32": "float32"}  # any other precision: float16, which TensorRT-LLM quantizes further itself
_LIMITS = {"float32": 1e-3, "float16": 2e-2}  # of logits, times the largest where that is above 1


def unavailable_reason(_precision: str) -> str | None:
    """Return ``None``: what is written needs nothing that an export does not have."""
    return None


def add(site: ProvenSite) -> TargetSpec:
    """Write the folder and the contract, read both back, and compare the logits after each study's prompt.

    Raises:
        ParityError: The folder does not give PyTorch's logits.
    """
    dtype = _DTYPES.get(site.precision, "float16")
    with_pytorch(_MODEL, "write_model", site.checkpoint.folder, site.folder / FOLDER, dtype)
    contract = prompt_contract(site.checkpoint, site.bundle.manifest.token_embedding.axes, dtype=dtype)
    (site.folder / CONTRACT).write_text(json.dumps(contract, indent=1) + "\n", encoding="utf-8")
    _prove(site, dtype)
    return TargetSpec(NAME, importlib.metadata.version("transformers"), graphs={}, engines=())


def prompt_contract(checkpoint: StoredCheckpoint, words: Axes, *, dtype: str) -> dict[str, Any]:
    """Say how ids and table make the prompt.

    Args:
        checkpoint: Of stage 2.
        words: Shape of the token embedding, (V, Dl).
        dtype: Of the table, as numpy names it.

    Returns:
        ``input_ids``, which hold the instruction's tokens and, from ``virtual_token_start`` on, the rows of the table
        in order; ``table``: where it comes from, its dtype, and its shape with the bundled clues. Each clue that a
        site adds is one more row and one more virtual id after the others.
    """
    meta, patches = checkpoint.meta, checkpoint.config.patches
    vocab, width = map(int, words)
    rows = patches + len(meta.clues)
    return {
        "vocab_size": vocab,
        "virtual_token_start": vocab,
        "order": ["prefix", "visual", "clues", "suffix"],
        "input_ids": [*meta.prefix_ids, *range(vocab, vocab + rows), *meta.suffix_ids],
        "table": {"source": "fusion.prompt_embeds", "dtype": dtype, "shape": [rows, width]},
        "visual_rows": patches,
        "clue_rows": len(meta.clues),
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "max_new_tokens": meta.max_new_tokens,
    }


def _prove(site: ProvenSite, dtype: str) -> None:
    """Compare what the folder gives after each study's prompt, put together as the contract says."""
    rows = site.reference.fusion["prompt_embeds"]
    logits = with_pytorch(_MODEL, "first_logits", site.folder / FOLDER, site.folder / CONTRACT, rows, dtype)
    gap = Difference.of(logits, site.reference.first_logits)
    limit = _LIMITS[dtype]
    if not gap.within(limit):
        said = f"logits differ by {gap.max_abs:.3g} where they reach {gap.peak:.3g}, the limit is {limit:g}"
        raise ParityError([f"{FOLDER}: {said}"])
