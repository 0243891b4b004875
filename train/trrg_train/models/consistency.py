"""The disease-aware consistency loss: clue tokens, written report and labels tell one story, sides included."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from trrg_train.distributed import whole_mean


class ConsistencyHeads(nn.Module):
    """Two readings of the disease distribution and one of the sides, for any number of clues.

    The reading of sides is our addition. What tells left from right in the patches differs from clue to clue, and the
    language model alone hardly learnt it: reports had the side right in 62 % of one-sided findings. Read by one head
    for all clues, the side becomes one direction in every clue token.
    """

    def __init__(self, *, width: int, joint_dim: int) -> None:
        """Build for tokens of width Dl and clue embeddings of width De."""
        super().__init__()
        self.clue = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        self.report = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, joint_dim))
        self.bias = nn.Parameter(torch.zeros(()))
        self.side = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))

    def from_clues(self, clue_tokens: Tensor) -> Tensor:
        """Read logits (B, C) from clue tokens (B, C, Dl)."""
        return torch.as_tensor(self.clue(clue_tokens)).squeeze(-1)

    def sides_from_clues(self, clue_tokens: Tensor) -> Tensor:
        """Read logits (B, C, 2) of left and right from clue tokens (B, C, Dl)."""
        return torch.as_tensor(self.side(clue_tokens))

    def from_report(self, hidden: Tensor, mask: Tensor, clue: Tensor) -> Tensor:
        """Read logits from the language model's states over the report.

        Args:
            hidden: (B, T, Dl), last layer.
            mask: (B, T), 1 where a token is no padding.
            clue: (C, De), the clues to ask about.

        Returns:
            Logits (B, C).
        """
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)  # (B, Dl)
        return torch.as_tensor(self.report(mean)) @ clue.t() + self.bias


def consistency_loss(from_clues: Tensor, from_report: Tensor, labels: Tensor) -> Tensor:
    """Symmetric KL between both readings plus the cross entropy of each with the labels.

    Args:
        from_clues: Logits (B, C).
        from_report: Logits (B, C).
        labels: float32 (B, C), NaN where not known: those count for the agreement only.

    Returns:
        A scalar, see :func:`~trrg_train.distributed.whole_mean`.
    """
    target = labels.nan_to_num(0.0)
    cross = binary_cross_entropy_with_logits(from_clues, target, reduction="none")
    cross = cross + binary_cross_entropy_with_logits(from_report, target, reduction="none")
    agreement = bernoulli_kl(from_clues, from_report) + bernoulli_kl(from_report, from_clues)
    return whole_mean(cross, ~torch.isnan(labels)) + 0.5 * agreement.mean()


def side_loss(from_clues: Tensor, sides: Tensor) -> Tensor:
    """Cross entropy of the sides that are known.

    Args:
        from_clues: Logits (B, C, 2).
        sides: float32 (B, C, 2), 1, 0 or NaN, see :func:`~trrg_train.data.sides.side_matrix`.

    Returns:
        A scalar, see :func:`~trrg_train.distributed.whole_mean`.
    """
    losses = binary_cross_entropy_with_logits(from_clues, sides.nan_to_num(0.0), reduction="none")
    return whole_mean(losses, ~torch.isnan(sides))


def bernoulli_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) of Bernoulli distributions given by logits, element-wise, in nats."""
    p = torch.sigmoid(p_logits)
    positive = p * (logsigmoid(p_logits) - logsigmoid(q_logits))
    return positive + (1.0 - p) * (logsigmoid(-p_logits) - logsigmoid(-q_logits))
