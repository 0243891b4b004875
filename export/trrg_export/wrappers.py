"""The three PyTorch graphs with flat tensor inputs, named as the bundle names them (design section 4)."""

from __future__ import annotations

from torch import Tensor, nn

from trrg_train.models.fusion import ClueInputs, Fusion
from trrg_train.models.perceiver import Perceiver


class VisionGraph(nn.Module):
    """``vision``: pixels to patches and joint embeddings."""

    def __init__(self, perceiver: Perceiver) -> None:
        """Take the image half of a perceiver."""
        super().__init__()
        self.vision = perceiver.vision
        self.joint = perceiver.joint

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images.

        Args:
            pixels: float32 (B, C, S, S), preprocessed.

        Returns:
            ``patches`` (B, N, Dv), ``patch_joint`` (B, N, De) and ``global_joint`` (B, De), the last two of unit
            norm.
        """
        patches = self.vision(pixels)
        patch_joint, global_joint = self.joint.image(patches)
        return patches, patch_joint, global_joint


class ClueEncoderGraph(nn.Module):
    """``clue_encoder``: prompts to the joint space."""

    def __init__(self, perceiver: Perceiver) -> None:
        """Take the text half of a perceiver."""
        super().__init__()
        self.clue_encoder = perceiver.clue_encoder
        self.joint = perceiver.joint

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode prompts.

        Args:
            input_ids: int64 (K, L), padded on the right.
            attention_mask: int64 (K, L), 1 for a token and 0 for padding.

        Returns:
            ``clue_joint`` float32 (K, De), unit norm.
        """
        return self.joint.texts(self.clue_encoder(input_ids, attention_mask))


class FusionGraph(nn.Module):
    """``fusion``: what was seen and the clues to the prompt of the language model.

    Calibration, thresholds and forced scores are inputs, because the number of clues is free.
    """

    def __init__(self, fusion: Fusion) -> None:
        """Take the fusion of a model."""
        super().__init__()
        self.fusion = fusion

    def forward(  # noqa: PLR0913 - the inputs of the graph, one flat tensor each
        self,
        patches: Tensor,
        patch_joint: Tensor,
        global_joint: Tensor,
        clue_positive: Tensor,
        clue_negative: Tensor,
        clue_scale: Tensor,
        clue_offset: Tensor,
        clue_threshold: Tensor,
        clue_override: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fuse; all tensors float32.

        Args:
            patches: (B, N, Dv).
            patch_joint: (B, N, De).
            global_joint: (B, De).
            clue_positive: (C, De).
            clue_negative: (C, De).
            clue_scale: (C,).
            clue_offset: (C,).
            clue_threshold: (C,), probabilities.
            clue_override: (B, C), a probability that forces the score, or -1.

        Returns:
            ``prompt_embeds`` (B, N + C, Dl), ``clue_logits`` (B, C) calibrated, ``clue_heat`` (B, C, N) probabilities.
        """
        clues = ClueInputs(clue_positive, clue_negative, clue_scale, clue_offset, clue_threshold, clue_override)
        fused = self.fusion(patches, patch_joint, global_joint, clues)
        return fused.prompt_embeds, fused.clue_logits, fused.clue_heat
