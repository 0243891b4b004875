"""The language model as a Hugging Face folder, and what that folder gives when it is read back."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from trrg_export.quiet import quiet
from trrg_train.models.checkpoint import load_checkpoint
from trrg_train.models.llm import merge_adapters
from trrg_train.models.tokenizer import BOS_ID, EOS_ID, PAD_ID


def write_model(checkpoint: Path, folder: Path, dtype: str) -> None:
    """Write model and tokenizer.

    Args:
        checkpoint: Folder of a stage-2 checkpoint; adapters are merged.
        folder: For :meth:`transformers.AutoModelForCausalLM.from_pretrained`.
        dtype: Of the weights, as PyTorch names it.
    """
    loaded = load_checkpoint(checkpoint)
    names = {
        f"{kind}_token": loaded.tokenizer.id_to_token(token)
        for kind, token in (("bos", BOS_ID), ("eos", EOS_ID), ("pad", PAD_ID))
    }
    with quiet():
        llm: Any = merge_adapters(loaded.trrg().llm)
        if dtype != "float32":
            llm = copy.deepcopy(llm).to(getattr(torch, dtype))
        llm.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=loaded.tokenizer, **names).save_pretrained(folder)


@torch.no_grad()
def first_logits(folder: Path, contract: Path, tables: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Assemble each study's prompt as the contract says, from the folder's own table and fusion's output.

    Args:
        folder: As written.
        contract: File that says how ids and table make the prompt.
        tables: float32 (K, rows, Dl), what ``fusion`` gives for each study.
        dtype: That a table is stored in.

    Returns:
        float32 (K, V), after the prompts.
    """
    said = json.loads(contract.read_text(encoding="utf-8"))
    with quiet():
        llm: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    ids, start = torch.tensor(said["input_ids"]), said["virtual_token_start"]
    virtual = ids >= start
    logits = []
    for rows in torch.from_numpy(tables):
        embeds = llm.get_input_embeddings()(ids.where(~virtual, torch.tensor(0)))
        embeds[virtual] = rows[ids[virtual] - start].to(getattr(torch, dtype)).float()
        logits.append(llm(inputs_embeds=embeds[None], use_cache=False).logits[0, -1].numpy())
    return np.stack(logits)
