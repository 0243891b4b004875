"""CheXbert (Smit et al. 2020) from local weights, as a labeler of the clinical scores.

BERT-base reads a report; 14 linear heads on its first token say blank, positive, negative or uncertain, the last one,
No Finding, only blank or positive. Neither the weights nor BERT's vocabulary are ours to ship: both are given by path.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS, State
from trrg_train.evaluation.clinical import Labeler

LOG = logging.getLogger(__name__)

# The released code lists its conditions in the order of OBSERVATIONS and its classes in this one.
CLASSES: tuple[State | None, ...] = (None, "present", "absent", "uncertain")
MAX_TOKENS = 512
BATCH = 16
PREFIX = "module."
"""The released weights were saved from ``nn.DataParallel``."""
WITHOUT_WEIGHT = "bert.embeddings.position_ids"
"""A constant that some versions of transformers saved."""


class ChexbertModel(nn.Module):
    """BERT with 14 heads; its parameters are named as in the released checkpoint."""

    def __init__(self, config: BertConfig) -> None:
        """Build with random weights."""
        super().__init__()
        self.bert = BertModel(config)
        sizes = [len(CLASSES)] * (len(OBSERVATIONS) - 1) + [2]
        self.linear_heads = nn.ModuleList(nn.Linear(config.hidden_size, size) for size in sizes)

    def forward(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Logits of 14 heads, 13 × (B, 4) and (B, 2), from token ids and mask, int64 (B, T)."""
        first = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]  # (B, D)
        return [head(first) for head in self.linear_heads]


def load_chexbert(
    checkpoint: Path, vocabulary: Path, *, config: BertConfig | None = None, device: str = "cpu"
) -> Labeler:
    """Load CheXbert.

    Args:
        checkpoint: ``chexbert.pth``: a mapping with ``model_state_dict``.
        vocabulary: ``vocab.txt`` of ``bert-base-uncased``.
        config: None is BERT-base, which the released weights fit.
        device: Where PyTorch runs it.

    Raises:
        UsageError: A file is missing or does not fit; names what differs.
    """
    if not vocabulary.is_file():
        raise UsageError(f"{vocabulary} is no file; give the vocab.txt of bert-base-uncased")
    model = ChexbertModel(config or BertConfig())
    _load_strictly(model, _state(checkpoint), checkpoint)
    tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    words, rows = tokenizer.get_vocab_size(), model.bert.config.vocab_size
    if words != rows:
        raise UsageError(f"{vocabulary} has {words} tokens, the weights {rows}: give the vocabulary of the weights")
    tokenizer.enable_padding(pad_id=model.bert.config.pad_token_id)
    tokenizer.enable_truncation(MAX_TOKENS)
    model.eval().to(device)
    return Labeler(f"CheXbert ({checkpoint.name})", lambda texts: _label(model, tokenizer, texts))


def _state(checkpoint: Path) -> dict[str, Tensor]:
    if not checkpoint.is_file():
        raise UsageError(f"{checkpoint} is no file; give CheXbert's weights, chexbert.pth")
    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)  # runs no code of the file
    except Exception as error:  # torch documents no error of a bad file, and raises pickle's, zipfile's and its own
        raise UsageError(f"{checkpoint} is no PyTorch checkpoint of plain tensors: {type(error).__name__}") from error
    state = loaded.get("model_state_dict") if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise UsageError(f"{checkpoint} has no model_state_dict, which CheXbert's checkpoint has")
    return {name.removeprefix(PREFIX): value for name, value in state.items() if not name.endswith(WITHOUT_WEIGHT)}


def _load_strictly(model: ChexbertModel, state: Mapping[str, Tensor], checkpoint: Path) -> None:
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    extra = sorted(state.keys() - wanted.keys())
    shaped = sorted(name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape)
    for names, problem in ((missing, "are missing"), (extra, "are unknown"), (shaped, "have another shape")):
        if names:
            raise UsageError(f"{checkpoint}: {len(names)} weights of CheXbert {problem}, first {names[0]}")
    model.load_state_dict(state)


@torch.no_grad()
def _label(model: ChexbertModel, tokenizer: BertWordPieceTokenizer, texts: Sequence[str]) -> list[dict[str, State]]:
    labels: list[dict[str, State]] = []
    device = model.bert.device
    cut = 0
    for start in range(0, len(texts), BATCH):
        encoded = tokenizer.encode_batch([" ".join(text.split()) for text in texts[start : start + BATCH]])
        cut += sum(bool(one.overflowing) for one in encoded)
        ids = torch.tensor([one.ids for one in encoded], device=device)
        mask = torch.tensor([one.attention_mask for one in encoded], device=device)
        chosen = torch.stack([logits.argmax(dim=1) for logits in model(ids, mask)], dim=1)  # (B, 14)
        labels.extend(_states(row) for row in chosen.tolist())
    if cut:
        LOG.warning("CheXbert reads %d tokens: %d of %d reports are longer", MAX_TOKENS, cut, len(texts))
    return labels


def _states(row: Sequence[int]) -> dict[str, State]:
    found: dict[str, Any] = {name: CLASSES[at] for name, at in zip(OBSERVATIONS, row, strict=True)}
    return {name: state for name, state in found.items() if state is not None}
