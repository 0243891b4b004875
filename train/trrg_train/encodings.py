"""What the frozen encoders say of the training studies, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from trrg_train.augment import augment
from trrg_train.models.checkpoint import Checkpoint

BATCH = 64


@dataclass(frozen=True)
class Encodings:
    """Encodings of K studies in several views each.

    Attributes:
        patches: float16 (V, K, N, Dv).
        patch_joint: float16 (V, K, N, De).
        global_joint: float16 (V, K, De).
        gate_logits: float32 (V, K, C): calibrated clue logit minus the logit of the threshold, so 0 is just present.
    """

    patches: NDArray[np.float16]
    patch_joint: NDArray[np.float16]
    global_joint: NDArray[np.float16]
    gate_logits: NDArray[np.float32]

    def batch(self, views: NDArray[np.int64], studies: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Patches and joint embeddings, float32, of B studies in the given views, both (B,)."""
        parts = (self.patches, self.patch_joint, self.global_joint)
        patches, patch_joint, global_joint = (torch.from_numpy(p[views, studies].astype(np.float32)) for p in parts)
        return patches, patch_joint, global_joint


@torch.no_grad()
def encode_studies(
    checkpoint: Checkpoint, embedded: tuple[Tensor, Tensor], pixels: NDArray[np.float16], *, views: int, seed: int
) -> Encodings:
    """Encode each study as it is and in ``views - 1`` augmented versions.

    Args:
        checkpoint: Its perceiver is used.
        embedded: Positive and negative prompts, each (C, De).
        pixels: float16 (K, 1, S, S), preprocessed.
        views: Versions of each study, 1 or more.
        seed: Of the augmentation.
    """
    generator = torch.Generator().manual_seed(seed)
    per_view = []
    for view in range(views):
        chunks = []
        for start in tqdm(range(0, len(pixels), BATCH), desc=f"encoding view {view + 1}/{views}", mininterval=5.0):
            chunk = torch.from_numpy(pixels[start : start + BATCH].astype(np.float32))
            chunks.append(_encode(checkpoint, embedded, augment(chunk, generator) if view else chunk))
        per_view.append([np.concatenate(parts) for parts in zip(*chunks, strict=True)])
    patches, patch_joint, global_joint, gate_logits = (np.stack(parts) for parts in zip(*per_view, strict=True))
    return Encodings(patches, patch_joint, global_joint, gate_logits)


def gate_logits(checkpoint: Checkpoint, logits: Tensor) -> Tensor:
    """Calibrated logits minus the logit of each threshold, from uncalibrated logits (B, C)."""
    clues = checkpoint.meta.clues
    scale, offset = torch.tensor([c.scale for c in clues]), torch.tensor([c.offset for c in clues])
    return logits * scale + offset - torch.logit(torch.tensor([c.threshold for c in clues]))


def _encode(
    checkpoint: Checkpoint, embedded: tuple[Tensor, Tensor], pixels: Tensor
) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.float16], NDArray[np.float32]]:
    perceiver = checkpoint.perceiver()
    patches, patch_joint, global_joint = perceiver.encode_images(pixels)
    logits, _ = perceiver.perception(patch_joint, global_joint, *embedded)
    halves = (patches.half().numpy(), patch_joint.half().numpy(), global_joint.half().numpy())
    return (*halves, gate_logits(checkpoint, logits).numpy())
