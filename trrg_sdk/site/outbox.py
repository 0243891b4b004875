"""Files that are either there as a whole or not at all, whatever ends the process or the machine."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

from trrg_sdk.errors import UsageError

PARTIAL = ".partial"
_SYNCING = 4  # files that wait for the disk at once
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


def syncing() -> ThreadPoolExecutor:
    """Make the threads that wait for the disk; to begin them anew for each study takes longer than to write it."""
    return ThreadPoolExecutor(_SYNCING, thread_name_prefix="trrg-sync")


def write(files: Mapping[Path, bytes], pool: Executor) -> None:
    """Write all files aside, bring them onto the disk, then give them their names.

    Args:
        files: Path → content.
        pool: Of :func:`syncing`.

    Raises:
        UsageError: One could not be written: then none is half-written.
    """
    aside = {path: path.with_name(f".{path.name}{PARTIAL}") for path in files}
    try:
        with ExitStack() as opened:
            numbers = [_written(aside[path], content, opened) for path, content in files.items()]
            _sync(numbers, pool)
            for path, partial in aside.items():
                os.replace(partial, path)
            _sync([_opened(folder, opened) for folder in {path.parent for path in files}], pool)
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


def _written(path: Path, content: bytes, opened: ExitStack) -> int:
    number = _private(str(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    opened.callback(os.close, number)
    with open(number, "wb", closefd=False) as stream:
        stream.write(content)
    return number


def _opened(folder: Path, opened: ExitStack) -> int:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    opened.callback(os.close, number)
    return number


def _sync(numbers: Iterable[int], pool: Executor) -> None:
    """Wait until the disk has them all; asked for several at once it brings them there in one go."""
    asked = [pool.submit(os.fsync, number) for number in numbers]
    wait(asked)  # also after one that fails: the others' files are closed next
    for done in asked:
        done.result()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _forget(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # a read-only folder; the next run cleans
