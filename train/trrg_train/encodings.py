"""What the frozen encoders say of the training studies, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from trrg_train.augment import augment
from trrg_train.data.array_file import create_array, open_array
from trrg_train.draws import generators
from trrg_train.models.checkpoint import Checkpoint

log = logging.getLogger(__name__)

BATCH = 64
SAVE_EVERY = 8
PROGRESS_FILE = "progress.json"


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


NAMES = tuple(field.name for field in fields(Encodings))


@dataclass(frozen=True)
class Views:
    """Each study as it is and in ``count - 1`` augmented versions, which ``seed`` fixes."""

    count: int
    seed: int


def cached_encodings(
    checkpoint: Checkpoint, embedded: tuple[Tensor, Tensor], pixels: NDArray[np.float16], *, views: Views, cache: Path
) -> Encodings:
    """Encode all studies, or read what an earlier run encoded.

    A folder in the cache belongs to one content of encoder, clues, pixels and views. It is written beside its name and
    renamed when it is complete; a killed run goes on where it was.

    Args:
        checkpoint: Its perceiver is used.
        embedded: Positive and negative prompts, each (C, De).
        pixels: float16 (K, 1, S, S), preprocessed.
        views: How many versions of each study.
        cache: Folder of cached arrays.

    Returns:
        Read-only memory maps.

    Raises:
        UsageError: The disk has not enough space.
    """
    folder = cache / f"encodings-{_key(checkpoint, embedded, pixels, views)}"
    if folder.is_dir():
        log.info("the encodings of this encoder and these images are there: %s", folder.name)
    else:
        aside = folder.with_name(folder.name + ".writing")
        aside.mkdir(parents=True, exist_ok=True)
        _build(aside, checkpoint, embedded, pixels, views)
        (aside / PROGRESS_FILE).unlink()
        aside.rename(folder)
    return Encodings(**{name: open_array(folder / f"{name}.npy") for name in NAMES})


def gate_logits(checkpoint: Checkpoint, logits: Tensor) -> Tensor:
    """Calibrated logits minus the logit of each threshold, from uncalibrated logits (B, C)."""
    clues = checkpoint.meta.clues
    scale, offset = torch.tensor([c.scale for c in clues]), torch.tensor([c.offset for c in clues])
    return logits * scale + offset - torch.logit(torch.tensor([c.threshold for c in clues]))


def encode_batch(
    checkpoint: Checkpoint, embedded: tuple[Tensor, Tensor], pixels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Patches (B, N, Dv), ``patch_joint`` (B, N, De), ``global_joint`` (B, De), gate logits (B, C); all float32."""
    perceiver = checkpoint.perceiver()
    encoded = perceiver.encode_images(pixels)
    logits, _ = perceiver.perception(*encoded[1:], *embedded)
    return (*encoded, gate_logits(checkpoint, logits))


def _key(checkpoint: Checkpoint, embedded: tuple[Tensor, Tensor], pixels: NDArray[np.float16], views: Views) -> str:
    """Hash of everything that the encodings depend on."""
    digest = hashlib.sha256(json.dumps([views.count, views.seed, pixels.shape]).encode())
    for name, weight in sorted(checkpoint.perceiver().state_dict().items()):
        digest.update(name.encode() + weight.contiguous().numpy().tobytes())
    clues = [(c.scale, c.offset, c.threshold) for c in checkpoint.meta.clues]
    for array in (*(e.numpy() for e in embedded), np.array(clues)):
        digest.update(array.tobytes())
    for start in range(0, len(pixels), BATCH):
        digest.update(pixels[start : start + BATCH].tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _build(
    folder: Path, checkpoint: Checkpoint, embedded: tuple[Tensor, Tensor], pixels: NDArray[np.float16], views: Views
) -> None:
    done, arrays = _opened(folder, checkpoint, len(pixels), views)
    chunks = list(_chunks(len(pixels), views))
    progress = tqdm(chunks[done:], initial=done, total=len(chunks), desc="encoding images", mininterval=5.0)
    for index, (view, start) in enumerate(progress, start=done):
        rows = slice(start, start + BATCH)
        chunk = torch.from_numpy(pixels[rows].astype(np.float32))
        if view:
            chunk = augment(chunk, [generators(views.seed, view, start + row)[1] for row in range(len(chunk))])
        for array, encoded in zip(arrays, encode_batch(checkpoint, embedded, chunk), strict=True):
            array[view, rows] = encoded.numpy()
        if index % SAVE_EVERY == SAVE_EVERY - 1:
            _save_progress(folder, arrays, index + 1)
    _save_progress(folder, arrays, len(chunks))


def _chunks(studies: int, views: Views) -> Iterator[tuple[int, int]]:
    """View and first study of each batch, in the order in which they are encoded."""
    return ((view, start) for view in range(views.count) for start in range(0, studies, BATCH))


def _opened(
    folder: Path, checkpoint: Checkpoint, studies: int, views: Views
) -> tuple[int, tuple[NDArray[np.float16] | NDArray[np.float32], ...]]:
    """How many batches are on disk, and the arrays in the order of :class:`Encodings`."""
    progress = folder / PROGRESS_FILE
    if progress.is_file():
        maps = tuple(np.lib.format.open_memmap(folder / f"{name}.npy", mode="r+") for name in NAMES)
        return int(json.loads(progress.read_text())), maps
    config, width = checkpoint.config, checkpoint.perceiver().vision.width
    sizes = ((config.patches, width), (config.patches, config.joint_dim), (config.joint_dim,))
    shapes = [*((size, np.float16) for size in sizes), ((len(checkpoint.meta.clues),), np.float32)]
    return 0, tuple(
        create_array(folder / f"{name}.npy", dtype=dtype, shape=(views.count, studies, *size))
        for name, (size, dtype) in zip(NAMES, shapes, strict=True)
    )


def _save_progress(folder: Path, arrays: tuple[NDArray[np.float16] | NDArray[np.float32], ...], batches: int) -> None:
    for array in arrays:
        if isinstance(array, np.memmap):
            array.flush()
    aside = folder / (PROGRESS_FILE + ".writing")
    aside.write_text(json.dumps(batches))
    aside.replace(folder / PROGRESS_FILE)
