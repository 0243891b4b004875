"""From what the frozen encoders saw to the prompt of the language model: stage 2's trainable bridge."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trrg_train.models.config import ModelConfig
from trrg_train.models.injection import ClueInjection
from trrg_train.models.interaction import CrossModalInteraction
from trrg_train.models.mapper import VisualMapper
from trrg_train.models.perception import CluePerception


class ClueInputs(NamedTuple):
    """The clues of a batch and how their scores are read.

    Attributes:
        positive: (C, De) embeddings of the positive prompts.
        negative: (C, De) of the negative ones.
        scale: (C,) calibration: probability = sigmoid(scale * logit + offset).
        offset: (C,).
        threshold: (C,) probability from which on a clue counts as present.
        override: (B, C): a probability forces the score of that clue, -1 leaves it as perceived.
    """

    positive: Tensor
    negative: Tensor
    scale: Tensor
    offset: Tensor
    threshold: Tensor
    override: Tensor


class FusionOutput(NamedTuple):
    """What fusion gives.

    Attributes:
        prompt_embeds: (B, N + C, Dl), visual tokens first; (B, N, Dl) without clue injection.
        clue_logits: (B, C), calibrated: probability = sigmoid.
        clue_heat: (B, C, N), calibrated probability per patch.
        clue_tokens: (B, C, Dl) after interaction.
    """

    prompt_embeds: Tensor
    clue_logits: Tensor
    clue_heat: Tensor
    clue_tokens: Tensor


class Fusion(nn.Module):
    """Perceive, inject, interact, map."""

    def __init__(self, config: ModelConfig, *, vision_width: int, llm_width: int) -> None:
        """Build for the widths of the encoders and of the language model."""
        super().__init__()
        self.clue_injection = config.clue_injection
        self.perception = CluePerception()
        self.mapper = VisualMapper(patches=config.patches, vision_width=vision_width, width=llm_width)
        self.injection = ClueInjection(patches=config.patches, joint_dim=config.joint_dim, width=llm_width)
        self.interaction = CrossModalInteraction(
            width=llm_width, heads=config.interaction_heads, layers=config.interaction_layers
        )
        self.out = nn.Sequential(nn.LayerNorm(llm_width), nn.Linear(llm_width, llm_width))

    def forward(
        self,
        patches: Tensor,
        patch_joint: Tensor,
        global_joint: Tensor,
        clues: ClueInputs,
        clue_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Build the prompt.

        Args:
            patches: (B, N, Dv).
            patch_joint: (B, N, De).
            global_joint: (B, De).
            clues: See :class:`ClueInputs`.
            clue_mask: bool (B, C), False where a clue is padding; None when none is.

        Returns:
            See :class:`FusionOutput`.
        """
        logits, patch_logits = self.perception(patch_joint, global_joint, clues.positive, clues.negative)
        logits = logits * clues.scale + clues.offset
        heat = torch.sigmoid(patch_logits * clues.scale[:, None] + clues.offset[:, None])
        perceived = torch.sigmoid(logits - torch.logit(clues.threshold))  # 0.5 exactly where the clue is present
        gate = torch.where(clues.override >= 0.0, clues.override, perceived)
        tokens = self.injection(patch_joint, clues.positive - clues.negative, gate)
        visual, tokens = self.interaction(self.mapper(patches), tokens, clue_mask)
        prompt = torch.cat((visual, tokens), dim=1) if self.clue_injection else visual
        return FusionOutput(self.out(prompt), logits, heat, tokens)
