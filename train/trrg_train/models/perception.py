"""Zero-shot perception: how much does this image look like "there is X" against "there is no X"?"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class CluePerception(nn.Module):
    """Clue logits from similarities in the joint space, with no weights of any one clue.

    A softmax over the two similarities (positive and negative prompt) at a learned temperature is the sigmoid of
    their scaled difference, the *margin*. The margin of the whole image and that of its most telling patches are
    added, since a nodule fills one patch of 36. Our choice; the sources do not give it.
    """

    POOL_SHARPNESS = 12.0

    def __init__(self) -> None:
        """Start at the temperature 1/10 and with no preference for either prompt."""
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.zeros(()))

    def scale(self) -> Tensor:
        """What margins are multiplied by, at most 100: one over the temperature."""
        return self.log_scale.clamp(max=math.log(100.0)).exp()

    def forward(
        self, patch_joint: Tensor, global_joint: Tensor, positive: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compare.

        Args:
            patch_joint: (B, N, De), unit norm.
            global_joint: (B, De), unit norm.
            positive: (C, De), unit norm, embeddings of the positive prompts.
            negative: (C, De), those of the negative ones.

        Returns:
            Uncalibrated clue logits (B, C) and patch logits (B, C, N).
        """
        direction = positive - negative  # (C, De)
        patch_margin = torch.matmul(direction, patch_joint.transpose(1, 2))  # (B, C, N)
        whole_margin = torch.matmul(global_joint, direction.t())  # (B, C)
        weights = torch.softmax(self.POOL_SHARPNESS * patch_margin, dim=-1)
        pooled = (weights * patch_margin).sum(-1)  # (B, C)
        scale = self.scale()
        return scale * (whole_margin + pooled) + self.bias, 2.0 * scale * patch_margin + self.bias
