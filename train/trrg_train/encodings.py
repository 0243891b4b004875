"""What the frozen encoders say of the training studies, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from trrg_train.augment import augment
from trrg_train.data.array_file import create_array, open_array
from trrg_train.distributed import on_accelerator, processes, rank, wait_for_all
from trrg_train.draws import generators
from trrg_train.models.checkpoint import Checkpoint

log = logging.getLogger(__name__)

BATCH = 64
SAVE_EVERY = 8
PROGRESS_FILES = "progress-*.json"


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


@dataclass(frozen=True)
class Part:
    """The batches that process ``index`` of ``count`` encodes: every ``count``-th."""

    index: int
    count: int

    @property
    def progress_file(self) -> str:
        """Name of the file that says how many of them are on disk."""
        return f"progress-{self.index}-of-{self.count}.json"


def cached_encodings(
    checkpoint: Checkpoint, embedded: tuple[Tensor, Tensor], pixels: NDArray[np.float16], *, views: Views, cache: Path
) -> Encodings:
    """Encode all studies, or read what an earlier run encoded; every process must call it and encodes its part.

    A folder in the cache belongs to one content of encoder, clues, pixels and views. It is written beside its name and
    renamed when it is complete; a killed run goes on where it was, if
    it has as many processes again.

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
    wait_for_all()
    if folder.is_dir():
        log.info("the encodings of this encoder and these images are there: %s", folder.name)
    else:
        aside = folder.with_name(folder.name + ".writing")
        if rank() == 0:
            _prepare(aside, checkpoint, len(pixels), views, parts=processes())
        wait_for_all()
        with on_accelerator(checkpoint.perceiver()):
            build_part(aside, checkpoint, embedded, pixels, views=views, part=Part(rank(), processes()))
        wait_for_all()
        if rank() == 0:
            _complete(aside, folder)
    wait_for_all()
    return Encodings(**{name: open_array(folder / f"{name}.npy") for name in NAMES})


def gate_logits(checkpoint: Checkpoint, logits: Tensor) -> Tensor:
    """Calibrated logits minus the logit of each threshold, from uncalibrated logits (B, C)."""
    clues = checkpoint.meta.clues
    figures = torch.tensor([(c.scale, c.offset, c.threshold) for c in clues], device=logits.device)
    scale, offset, threshold = figures.unbind(1)
    return logits * scale + offset - torch.logit(threshold)


def encode_batch(
    checkpoint: Checkpoint, embedded: tuple[Tensor, Tensor], pixels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Patches (B, N, Dv), ``patch_joint`` (B, N, De), ``global_joint`` (B, De), gate logits (B, C); all float32."""
    perceiver = checkpoint.perceiver()
    device = next(perceiver.parameters()).device
    encoded = perceiver.encode_images(pixels.to(device))
    logits, _ = perceiver.perception(*encoded[1:], *(prompts.to(device) for prompts in embedded))
    return (*encoded, gate_logits(checkpoint, logits))


def _key(checkpoint: Checkpoint, embedded: tuple[Tensor, Tensor], pixels: NDArray[np.float16], views: Views) -> str:
    """Hash of everything that the encodings depend on."""
    digest = hashlib.sha256(json.dumps([views.count, views.seed, checkpoint.config.shift, pixels.shape]).encode())
    for name, weight in sorted(checkpoint.perceiver().state_dict().items()):
        digest.update(name.encode() + weight.contiguous().numpy().tobytes())
    clues = [(c.scale, c.offset, c.threshold) for c in checkpoint.meta.clues]
    for array in (*(e.numpy() for e in embedded), np.array(clues)):
        digest.update(array.tobytes())
    for start in range(0, len(pixels), BATCH):
        digest.update(pixels[start : start + BATCH].tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def build_part(
    folder: Path,
    checkpoint: Checkpoint,
    embedded: tuple[Tensor, Tensor],
    pixels: NDArray[np.float16],
    *,
    views: Views,
    part: Part,
) -> None:
    """Encode what is one process's to encode, into arrays that are there; go on where a killed process was."""
    progress_file = folder / part.progress_file
    done = int(json.loads(progress_file.read_text())) if progress_file.is_file() else 0
    arrays = [np.lib.format.open_memmap(folder / f"{name}.npy", mode="r+") for name in NAMES]
    chunks = list(_chunks(len(pixels), views))[part.index :: part.count]
    progress = tqdm(
        chunks[done:], initial=done, total=len(chunks), desc="encoding images", mininterval=5.0, disable=part.index > 0
    )
    for index, (view, start) in enumerate(progress, start=done):
        rows = slice(start, start + BATCH)
        chunk = torch.from_numpy(pixels[rows].astype(np.float32))
        if view:
            chunk = augment(chunk, [generators(views.seed, view, start + row)[1] for row in range(len(chunk))])
        for array, encoded in zip(arrays, encode_batch(checkpoint, embedded, chunk), strict=True):
            array[view, rows] = encoded.cpu().numpy()
        if index % SAVE_EVERY == SAVE_EVERY - 1:
            _save_progress(progress_file, arrays, index + 1)
    _save_progress(progress_file, arrays, len(chunks))


def _chunks(studies: int, views: Views) -> Iterator[tuple[int, int]]:
    """View and first study of each batch, in the order in which they are encoded."""
    return ((view, start) for view in range(views.count) for start in range(0, studies, BATCH))


def _prepare(folder: Path, checkpoint: Checkpoint, studies: int, views: Views, *, parts: int) -> None:
    """Make the arrays, unless as many processes as now have begun to fill them."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {path.name for path in folder.glob(PROGRESS_FILES)}
    if found and found <= {Part(index, parts).progress_file for index in range(parts)}:
        return
    _forget_progress(folder)
    config, width = checkpoint.config, checkpoint.perceiver().vision.width
    sizes = ((config.patches, width), (config.patches, config.joint_dim), (config.joint_dim,))
    shapes = [*((size, np.float16) for size in sizes), ((len(checkpoint.meta.clues),), np.float32)]
    for name, (size, dtype) in zip(NAMES, shapes, strict=True):
        create_array(folder / f"{name}.npy", dtype=dtype, shape=(views.count, studies, *size))


def _complete(aside: Path, folder: Path) -> None:
    _forget_progress(aside)
    aside.rename(folder)


def _forget_progress(folder: Path) -> None:
    for path in folder.glob(PROGRESS_FILES):
        path.unlink()


def _save_progress(path: Path, arrays: Sequence[NDArray[Any]], batches: int) -> None:
    for array in arrays:
        if isinstance(array, np.memmap):
            array.flush()
    aside = path.with_suffix(".writing")
    aside.write_text(json.dumps(batches))
    aside.replace(path)
