"""A sample of the films of a run, preprocessed, for the gate's distance (films.safetensors).

Tensors are called ``split/source`` and hold uint8 (K, S, S): the model's input without mean and deviation, 0 to 255.
They are images of patients: keep them where the checkpoint is kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from trrg_sdk.errors import UsageError
from trrg_sdk.preprocess import Preprocess
from trrg_train.config import RunConfig
from trrg_train.data.pixels import cached_pixels
from trrg_train.data.sources import read_sources
from trrg_train.data.study import Study

MOST = {"train": 1500, "val": 400}
"""Films of a source and split that are kept, evenly over its studies."""


def write_films(config: RunConfig, path: Path) -> None:
    """Write the films of a run that was trained before.

    Args:
        config: Of the run.
        path: File to write.

    Raises:
        UsageError: A source is unreadable, or the folder of the file does not exist.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist, make it first")
    preprocess = Preprocess(size=config.model.image_size, channels=1)
    save_films(read_sources(config.sources), preprocess, config.out / "cache", path)


def save_films(studies: Sequence[Study], preprocess: Preprocess, cache: Path, path: Path) -> None:
    """Write a sample of the films, aside and renamed.

    Args:
        studies: Of all splits.
        preprocess: Of the checkpoint.
        cache: Folder of cached arrays.
        path: File to write.
    """
    tensors = {}
    for split, most in MOST.items():
        of_split = [study for study in studies if study.split == split]
        pixels = cached_pixels(of_split, preprocess, cache)  # all of them: training has cached the same list
        for source in sorted({study.source for study in of_split}):
            rows = [row for row, study in enumerate(of_split) if study.source == source]
            tensors[f"{split}/{source}"] = torch.from_numpy(_bytes(pixels, _evenly(rows, most), preprocess))
    aside = path.with_name(path.name + ".writing")
    save_file(tensors, aside, metadata={"preprocess": json.dumps(preprocess.to_manifest(), sort_keys=True)})
    aside.replace(path)


def _evenly(rows: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly over the list."""
    count = min(len(rows), most)
    return [rows[index * len(rows) // count] for index in range(count)]


def _bytes(pixels: NDArray[np.float16], rows: Sequence[int], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Preprocessed films (K, C, S, S) as uint8 (len(rows), S, S)."""
    films = np.empty((len(rows), *pixels.shape[2:]), np.uint8)
    for place, row in enumerate(rows):
        shown = pixels[row, 0].astype(np.float32) * preprocess.std + preprocess.mean
        films[place] = np.round(shown * 255)
    return films
