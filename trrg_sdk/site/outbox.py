"""Files that are either there as a whole or not at all, whatever ends the process or the machine."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from trrg_sdk.errors import UsageError

PARTIAL = ".partial"
_NEVER_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EROFS: "it is read-only"}


def stopped(error: OSError) -> UsageError:
    """The one sentence for a folder that cannot be written to."""
    why = _NEVER_FULL.get(error.errno or 0, error.strerror or type(error).__name__)
    return UsageError(
        f"--out: cannot write into this folder ({why}). Nothing half-written was left; make room or choose another "
        "one, and run again: it goes on where it stopped"
    )


def make_folder(folder: Path) -> None:
    """Make a folder for this user alone; ``UsageError`` when that is impossible."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise stopped(error) from error


def write(files: Mapping[Path, bytes]) -> None:
    """Write all files aside, bring them onto the disk, then give them their names.

    Args:
        files: Path → content.

    Raises:
        UsageError: One could not be written: then none is half-written.
    """
    aside = {path: path.with_name(f".{path.name}{PARTIAL}") for path in files}
    try:
        for path, content in files.items():
            _write_through(aside[path], content)
        for path, partial in aside.items():
            os.replace(partial, path)
        for folder in {path.parent for path in files}:
            _sync_folder(folder)
    except OSError as error:
        for partial in aside.values():
            _forget(partial)
        raise stopped(error) from error


def clean(folder: Path) -> None:
    """Remove what an earlier run that was killed left behind; the caller holds the folder's lock."""
    try:
        for partial in folder.glob(f".*{PARTIAL}"):
            partial.unlink()
    except OSError as error:
        raise stopped(error) from error


def remove(paths: Iterable[Path]) -> None:
    """Remove files that do not hold any more; ``UsageError`` when that is impossible."""
    try:
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise stopped(error) from error


def _write_through(path: Path, content: bytes) -> None:
    with open(path, "wb", opener=_private) as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _forget(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # a read-only folder; the next run cleans
