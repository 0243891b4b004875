"""Preprocessed pixels of many studies in one memory-mapped array, built once."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from trrg_sdk import dicom
from trrg_sdk.errors import UsageError
from trrg_sdk.preprocess import Preprocess
from trrg_train.data.array_file import create_array, open_array
from trrg_train.data.study import Study

WORKERS = 2
PLAIN_IMAGES = (".jpg", ".jpeg", ".png")
"""What is read as an 8-bit image; everything else is DICOM."""


def cached_pixels(studies: Sequence[Study], preprocess: Preprocess, cache: Path) -> NDArray[np.float16]:
    """Read, preprocess and keep the images of all studies.

    Args:
        studies: K studies.
        preprocess: Steps of the manifest, the same as at run time.
        cache: Folder of cached arrays; one file a list of studies and preprocessing, renamed when complete.

    Returns:
        Read-only memory map, float16 (K, C, S, S).
    """
    key = json.dumps([preprocess.to_manifest(), [str(s.image.resolve()) for s in studies]], sort_keys=True)
    path = cache / f"pixels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _build(studies, preprocess, path)
    return open_array(path)


def read_pixels(image: Path, preprocess: Preprocess) -> NDArray[np.float32]:
    """Read one DICOM or 8-bit image file and preprocess it to float32 (C, S, S).

    Raises:
        UsageError: The image file is missing or unreadable.
        DicomError: The DICOM file cannot be decoded.
    """
    if is_plain(image):
        return preprocess.apply(read_plain(image))
    radiograph = dicom.load(image)
    return preprocess.apply(radiograph.pixels, spacing_mm=radiograph.pixel_size)


def is_plain(image: Path) -> bool:
    """Whether a file is read as an 8-bit image, by its name."""
    return image.suffix.lower() in PLAIN_IMAGES


def read_plain(image: Path) -> NDArray[np.float32]:
    """Read an 8-bit image file as grey values float32 (H, W), 0 to 255.

    Raises:
        UsageError: It is missing or unreadable.
    """
    try:
        with Image.open(image) as opened:
            return np.asarray(opened.convert("L"), dtype=np.float32)
    except OSError as error:
        raise UsageError(f"cannot read the image {image.name}: {error}") from error


def _build(studies: Sequence[Study], preprocess: Preprocess, path: Path) -> None:
    aside = path.with_name(path.name + ".writing")
    shape = (len(studies), preprocess.channels, preprocess.size, preprocess.size)
    array = create_array(aside, dtype=np.float16, shape=shape)
    jobs = [(study.image, preprocess) for study in studies]
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        done = pool.imap(_read_job, jobs, chunksize=16)
        for row, pixels in enumerate(tqdm(done, total=len(jobs), desc="reading images", mininterval=5.0)):
            array[row] = pixels
    del array  # writes what is left
    aside.rename(path)


def _read_job(job: tuple[Path, Preprocess]) -> NDArray[np.float32]:
    return read_pixels(*job)
