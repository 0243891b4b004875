"""TensorRT-LLM: the language model as a Hugging Face folder, and how its prompt is put together.

TensorRT-LLM loads such a folder by itself and takes what the graph ``fusion`` gives as a *prompt-embedding table*:
token ids from the vocabulary's size on name rows of the table. ``trtllm/prompt_embedding.json`` says which ids, in
which order. The other graphs are the bundle's own. Needs no package, and running it is TensorRT-LLM's part.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from trrg_export.parity import LIMITS, Difference, ParityError
from trrg_export.targets.base import ProvenSite
from trrg_export.to_onnx import quiet
from trrg_sdk.manifest import TargetSpec
from trrg_train.models.checkpoint import Checkpoint
from trrg_train.models.llm import merge_adapters
from trrg_train.models.tokenizer import BOS_ID, EOS_ID, PAD_ID

NAME = "trtllm"
TARGET = "trtllm"
PRECISIONS = tuple(LIMITS)
PACKAGES: tuple[str, ...] = ()
FOLDER = "trtllm"
CONTRACT = f"{FOLDER}/prompt_embedding.json"
_DTYPES = {"fp32": torch.float32}  # any other precision: float16, which TensorRT-LLM quantizes further itself
_LIMITS = {torch.float32: 1e-3, torch.float16: 2e-2}  # of logits, times the largest where that is above 1


def unavailable_reason(_precision: str) -> str | None:
    """Return ``None``: what is written needs nothing that an export does not have."""
    return None


def add(site: ProvenSite) -> TargetSpec:
    """Write the folder and the contract, read both back, and compare the logits after each study's prompt.

    Raises:
        ParityError: The folder does not give PyTorch's logits.
    """
    dtype = _DTYPES.get(site.precision, torch.float16)
    folder = site.folder / FOLDER
    with quiet():
        _write_model(site.checkpoint, folder, dtype)
    contract = prompt_contract(site.checkpoint, dtype=str(dtype).removeprefix("torch."))
    (site.folder / CONTRACT).write_text(json.dumps(contract, indent=1) + "\n", encoding="utf-8")
    _prove(site, folder, dtype)
    return TargetSpec(NAME, importlib.metadata.version("transformers"), graphs={}, engines=())


def prompt_contract(checkpoint: Checkpoint, *, dtype: str) -> dict[str, Any]:
    """Say how ids and table make the prompt.

    Args:
        checkpoint: Of stage 2.
        dtype: Of the table, as numpy names it.

    Returns:
        ``input_ids``, which hold the instruction's tokens and, from ``virtual_token_start`` on, the rows of the table
        in order; ``table``: where it comes from, its dtype, and its shape with the bundled clues. Each clue that a
        site adds is one more row and one more virtual id after the others.
    """
    meta, patches = checkpoint.meta, checkpoint.config.patches
    vocab, width = checkpoint.trrg().llm.get_input_embeddings().weight.shape
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


def _write_model(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype) -> None:
    llm = merge_adapters(checkpoint.trrg().llm)
    if dtype != torch.float32:
        llm = copy.deepcopy(llm).to(dtype)
    llm.save_pretrained(folder)
    names = {
        f"{kind}_token": checkpoint.tokenizer.id_to_token(token)
        for kind, token in (("bos", BOS_ID), ("eos", EOS_ID), ("pad", PAD_ID))
    }
    PreTrainedTokenizerFast(tokenizer_object=checkpoint.tokenizer, **names).save_pretrained(folder)


@torch.no_grad()
def _prove(site: ProvenSite, folder: Path, dtype: torch.dtype) -> None:
    """Assemble each study's prompt as the contract says, from the folder's own table and fusion's output."""
    contract = json.loads((site.folder / CONTRACT).read_text(encoding="utf-8"))
    with quiet():
        llm: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    ids, start = torch.tensor(contract["input_ids"]), contract["virtual_token_start"]
    virtual = ids >= start
    logits = []
    for rows in torch.from_numpy(site.reference.fusion["prompt_embeds"]):
        embeds = llm.get_input_embeddings()(ids.where(~virtual, torch.tensor(0)))
        embeds[virtual] = rows[ids[virtual] - start].to(dtype).float()
        logits.append(llm(inputs_embeds=embeds[None], use_cache=False).logits[0, -1].numpy())
    gap = Difference.of(np.stack(logits), site.reference.first_logits)
    limit = _LIMITS[dtype]
    if not gap.within(limit):
        said = f"logits differ by {gap.max_abs:.3g} where they reach {gap.peak:.3g}, the limit is {limit:g}"
        raise ParityError([f"{FOLDER}: {said}"])
