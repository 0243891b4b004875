"""Large arrays in files: their disk space is taken when they are made, so that a full disk is an error and no crash."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trrg_sdk.errors import UsageError


def create_array(path: Path, *, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Make a ``.npy`` file and map it for writing.

    A sparse map of numpy would end the process by a signal (SIGBUS) when the disk is full in the middle of it.

    Args:
        path: Of the file; what is there is replaced.
        dtype: Of the elements.
        shape: Of the array.

    Returns:
        A writable memory map of zeros.

    Raises:
        UsageError: The disk has not enough space; nothing is left behind.
    """
    array: NDArray[Any] = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        path.unlink()
        raise UsageError(
            f"no space for {path.name}: {array.nbytes / 2**20:.0f} MiB are needed in {path.parent}; "
            "free some, or choose another folder as `out`"
        ) from error
    return array


def open_array(path: Path) -> NDArray[Any]:
    """Map a complete ``.npy`` file for reading."""
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
