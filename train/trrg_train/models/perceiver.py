"""What stage 1 trains: the encoders, the joint space and the perception of clues."""

from __future__ import annotations

from torch import Tensor, nn

from trrg_train.models.clue_encoder import ClueEncoder
from trrg_train.models.config import ModelConfig
from trrg_train.models.joint import JointHeads
from trrg_train.models.perception import CluePerception
from trrg_train.models.vision import VisionEncoder


class Perceiver(nn.Module):
    """Vision encoder, clue encoder and joint heads; frozen in stage 2."""

    def __init__(self, config: ModelConfig, *, vocab_size: int) -> None:
        """Build the parts.

        Args:
            config: Sizes.
            vocab_size: Of the shared tokenizer.
        """
        super().__init__()
        self.vision = VisionEncoder(config)
        self.clue_encoder = ClueEncoder(config, vocab_size=vocab_size)
        self.joint = JointHeads(
            vision_width=self.vision.width, text_width=self.clue_encoder.width, joint_dim=config.joint_dim
        )
        self.perception = CluePerception()

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode (B, C, S, S) to ``patches`` (B, N, Dv), ``patch_joint`` (B, N, De), ``global_joint`` (B, De)."""
        patches = self.vision(pixels)
        patch_joint, global_joint = self.joint.image(patches)
        return patches, patch_joint, global_joint

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode token ids and mask, both int64 (K, L), to ``clue_joint`` (K, De) of unit norm."""
        return self.joint.texts(self.clue_encoder(input_ids, attention_mask))
