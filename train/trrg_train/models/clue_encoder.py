"""The clue encoder: a sentence or a disease prompt becomes one vector."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers import AutoModel

from trrg_train.models.backbone import backbone_config
from trrg_train.models.config import ModelConfig


class ClueEncoder(nn.Module):
    """Any Hugging Face text encoder, mean-pooled over the tokens that are not padding."""

    def __init__(self, config: ModelConfig, *, vocab_size: int) -> None:
        """Build from a local folder or from the configuration alone.

        Args:
            config: ``clue_encoder`` or ``clue_encoder_path`` is read.
            vocab_size: Of the tokenizer that both text models share.
        """
        super().__init__()
        if config.clue_encoder_path:
            loaded = AutoModel.from_pretrained(config.clue_encoder_path, local_files_only=True)
            self.encoder = cast(nn.Module, loaded)
        else:
            settings = backbone_config(config.clue_encoder, "clue_encoder", vocab_size=vocab_size)
            self.encoder = AutoModel.from_config(settings)
        built: Any = self.encoder.config
        self.width = int(built.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode texts.

        Args:
            input_ids: int64 (K, L).
            attention_mask: int64 (K, L), 1 for a token and 0 for padding.

        Returns:
            float32 (K, Dt).
        """
        hidden: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (K, L, 1)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)
