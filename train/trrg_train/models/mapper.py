"""The visual mapper: patches become tokens of the language model's width."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class VisualMapper(nn.Module):
    """A two-layer projection with a learned position for each patch.

    Positions matter here: "left" and "lower" are read from where a patch lies.
    """

    def __init__(self, *, patches: int, vision_width: int, width: int) -> None:
        """Build for N patches of width Dv and tokens of width D."""
        super().__init__()
        self.project = nn.Sequential(
            nn.LayerNorm(vision_width), nn.Linear(vision_width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.position = nn.Parameter(torch.randn(patches, width) * 0.02)

    def forward(self, patches: Tensor) -> Tensor:
        """Map (B, N, Dv) to (B, N, D)."""
        return torch.as_tensor(self.project(patches) + self.position)
