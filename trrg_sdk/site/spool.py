"""The spool: objects as they arrive, studies as they fill, and complete ones, each in its place on one disk.

``incoming`` holds objects that are not whole yet, ``open`` studies that may still grow, ``ready`` complete studies.
Everything moves by an atomic rename after it was synced, so a kill at any moment loses nothing that was acknowledged
and leaves no half of anything in ``ready``. Names are hashes: a UID never becomes a path, and tells nothing there.
"""

from __future__ import annotations

import fcntl
import filecmp
import hashlib
import logging
import os
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from trrg_sdk.errors import UsageError

_LOG = logging.getLogger(__name__)
READY = "ready"


class Carrier(Protocol):
    """What brings objects: an association, which is a thread."""

    def is_alive(self) -> bool:
        """True until it has ended."""
        ...


def hashed(uid: str) -> str:
    """A name for a UID: always the same, of 32 hexadecimal digits."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def sync_folder(folder: Path) -> None:
    """Make what was renamed into a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass
class _Open:
    """A study that may still grow."""

    changed: float
    carriers: set[Carrier] = field(default_factory=set)


class Spool:
    """The three folders, used by one process at a time."""

    def __init__(self, folder: Path, *, study_timeout_s: float, free_bytes: int = 0) -> None:
        """Take possession of a spool and of what a former process left in it.

        Args:
            folder: Made when absent, for its owner only.
            study_timeout_s: How long a study must have been quiet to be complete.
            free_bytes: :meth:`room` is false when the disk has less.

        Raises:
            UsageError: It cannot be written, or another process uses it.
        """
        self.folder, self._timeout, self._free = folder, study_timeout_s, free_bytes
        self.incoming, self.open, self.ready = folder / "incoming", folder / "open", folder / READY
        self._mutex = threading.Lock()
        try:
            for each in (folder, self.incoming, self.open, self.ready):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(folder / ".lock")
            for leftover in self.incoming.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            for study in self.open.iterdir():
                if not any(study.iterdir()):  # made for an object that did not come to it
                    study.rmdir()
            now = time.monotonic()
            self._studies = {study.name: _Open(now) for study in self.open.iterdir()}
        except OSError as error:
            raise UsageError(f"cannot use the spool {folder}: {error.strerror}; choose a folder to write in") from error
        if self._studies:
            _LOG.info("resuming %d studies that were not complete", len(self._studies))

    def room(self) -> bool:
        """True while the disk has the free space that it must keep."""
        return shutil.disk_usage(self.folder).free >= self._free

    def place(self, landed: Path, study_uid: str, instance_uid: str, carrier: Carrier) -> bool:
        """Take a synced object into its study.

        Args:
            landed: A file in ``incoming``; it is moved, or deleted when the same bytes are already there.
            study_uid: Study Instance UID.
            instance_uid: SOP Instance UID; an object with the same one is replaced.
            carrier: The association that brought it.

        Returns:
            False when the object, byte by byte, was there already.

        Raises:
            OSError: The disk is full or broken; nothing was changed.
        """
        study, name = hashed(study_uid), f"{hashed(instance_uid)}.dcm"
        with self._mutex:
            if any(_same(landed, folder / name) for folder in (self.open / study, *self._generations(study))):
                landed.unlink()
                if study in self._studies:
                    self._note(study, carrier)
                return False
            target = self.open / study
            if not target.is_dir():
                target.mkdir(mode=0o700)
                sync_folder(self.open)
            os.replace(landed, target / name)
            sync_folder(target)
            self._note(study, carrier)
        return True

    def complete(self) -> list[Path]:
        """Hand over each study that has been quiet long enough and whose carriers have ended.

        Returns:
            Their folders in ``ready``. A study that was handed over before comes back as another folder, with the
            objects that are new.
        """
        with self._mutex:
            quiet_since = time.monotonic() - self._timeout
            done = [
                name
                for name, study in self._studies.items()
                if study.changed <= quiet_since and not any(carrier.is_alive() for carrier in study.carriers)
            ]
            return [self._hand_over(name) for name in done]

    def expire(self, days: float) -> int:
        """Delete the studies that were handed over and whose last object came more than so many days ago.

        Returns:
            How many.
        """
        before, old = time.time() - days * 86_400, []
        with self._mutex:
            for folder in self.ready.iterdir():
                if folder.stat().st_mtime < before:
                    old.append(self.incoming / f"{folder.name}.old")
                    os.rename(folder, old[-1])  # a reader sees all of a study or nothing of it
        for folder in old:
            shutil.rmtree(folder)
        return len(old)

    def waiting(self) -> int:
        """The number of studies that are not complete."""
        return len(self._studies)

    def close(self) -> None:
        """Let another process use the spool."""
        self._lock.close()

    def _note(self, study: str, carrier: Carrier) -> None:
        entry = self._studies.setdefault(study, _Open(0.0))
        entry.changed = time.monotonic()
        entry.carriers.add(carrier)

    def _hand_over(self, name: str) -> Path:
        generations = self._generations(name)
        target = self.ready / (f"{name}.{len(generations) + 1}" if generations else name)
        os.rename(self.open / name, target)
        sync_folder(self.ready)
        sync_folder(self.open)
        del self._studies[name]
        return target

    def _generations(self, study: str) -> list[Path]:
        """The folders under which a study was handed over, as far as they are still there."""
        found = [self.ready / study]
        while found[-1].exists():
            found.append(self.ready / f"{study}.{len(found) + 1}")
        return found[:-1]


def _same(first: Path, second: Path) -> bool:
    return second.is_file() and filecmp.cmp(first, second, shallow=False)


def _locked(path: Path) -> IO[str]:
    """A file that no other process can lock while it is open."""
    handle = path.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise UsageError(f"another process receives into {path.parent}; give each receiver its own spool") from None
    return handle
