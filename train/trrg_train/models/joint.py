"""The joint space of patches, whole images and texts, all of unit norm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize


class JointHeads(nn.Module):
    """Three projections into one space of width De."""

    def __init__(self, *, vision_width: int, text_width: int, joint_dim: int) -> None:
        """Build the heads for Dv, Dt and De."""
        super().__init__()
        self.patch = nn.Sequential(nn.LayerNorm(vision_width), nn.Linear(vision_width, joint_dim))
        self.whole = nn.Sequential(nn.LayerNorm(vision_width), nn.Linear(vision_width, joint_dim))
        self.text = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, joint_dim))

    def image(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Project patches.

        Args:
            patches: float32 (B, N, Dv).

        Returns:
            ``patch_joint`` (B, N, De) and ``global_joint`` (B, De).
        """
        return normalize(self.patch(patches), dim=-1), normalize(self.whole(patches.mean(1)), dim=-1)

    def texts(self, encoded: Tensor) -> Tensor:
        """Project encoded texts (K, Dt) to (K, De)."""
        return normalize(self.text(encoded), dim=-1)
