"""The clue injection module: Hadamard product, flatten, one token per clue."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HEAT_STRENGTH = 4.0
"""Of the rows that start as heat, beside the random rows, whose entries lie in ±1 over the same root."""


class ClueInjection(nn.Module):
    """Turns each clue into one token of what the patches say about it.

    The patch embeddings in the joint space are multiplied element-wise (Hadamard) by the clue's embedding,
    flattened over patches and width, and projected. All clues share these weights, so their number is free.
    The product of two unit vectors is tiny beside everything else, so the evidence is normalised. The projection
    starts with one row a patch that sums the product over the width: that is the clue's heat, which says where a
    disease is. From random rows alone the reports learnt whether it is there and had the side right as often as a
    coin has (the heat tells left from right in 19 of 20 findings).
    The clue's score gates the evidence; a polarity vector says the score itself and a projection of the clue's
    embedding says which clue it is, so that a score near zero still reads as "no X" (both our choice).
    """

    def __init__(self, *, patches: int, joint_dim: int, width: int) -> None:
        """Build for N patches, joint width De and token width D."""
        super().__init__()
        self.project = nn.Linear(patches * joint_dim, width)
        with torch.no_grad():
            heat = torch.eye(patches).repeat_interleave(joint_dim, dim=1)[:width]  # (N, N De)
            self.project.weight[: len(heat)] = HEAT_STRENGTH * (patches * joint_dim) ** -0.5 * heat
        self.evidence_norm = nn.LayerNorm(width)
        nn.init.constant_(self.evidence_norm.weight, 0.6)  # beside the polarity's 0.5
        self.identity = nn.Linear(joint_dim, width)
        self.polarity = nn.Parameter(torch.randn(width) * 0.5)
        self.norm = nn.LayerNorm(width)

    def forward(self, patch_joint: Tensor, clue: Tensor, gate: Tensor) -> Tensor:
        """Inject.

        Args:
            patch_joint: (B, N, De).
            clue: (C, De), the direction from the negative to the positive prompt.
            gate: (B, C) in [0, 1], 0.5 where the clue is just present.

        Returns:
            Clue tokens (B, C, D).
        """
        product = patch_joint.unsqueeze(1) * clue.unsqueeze(1)  # (B, C, N, De)
        evidence = self.evidence_norm(self.project(product.flatten(2)))  # (B, C, D)
        score = gate.unsqueeze(-1)  # (B, C, 1)
        token = score * evidence + self.identity(clue) + (2.0 * score - 1.0) * self.polarity
        return torch.as_tensor(self.norm(token))
