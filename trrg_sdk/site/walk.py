"""Every file of a tree that could be an image, also inside ZIP archives; nothing outside of the tree is touched.

Names of files and folders often hold the patient's: they stay inside, what comes out is the SHA-256 of a path.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from trrg_sdk.errors import UsageError
from trrg_sdk.site.archive import MAX_MEMBER, Archives, BadArchive, is_archive

MAX_FILE = MAX_MEMBER
"""Bytes of a file that is read at all: the largest image that is decoded has 200 MB."""

MAX_DEPTH = 64


class Found(NamedTuple):
    """A file, or a member of an archive. A tuple, because there are a hundred thousand of them.

    Attributes:
        path: The file, or the archive. Not in the ``repr``: it may hold a patient's name.
        key: SHA-256 of the path below the folder, and of the member's place.
        size: Bytes.
        mtime_ns: When it was last changed; of a member: when its archive was.
        member: Place of the member in its archive; None for a file.
    """

    path: str
    key: bytes
    size: int
    mtime_ns: int
    member: int | None = None

    def __repr__(self) -> str:
        """Say which file without its name."""
        return f"<Found: {self.key.hex()[:16]}, {self.size} bytes>"


class Tree:
    """A folder that is walked again and again.

    Attributes:
        folder: Its real path.
        left_out: Why something was not looked at → how often, of the last walk.
    """

    def __init__(self, folder: str | os.PathLike[str], *, without: Path | None = None) -> None:
        """Name the folder.

        Args:
            folder: Where to look.
            without: A folder inside that is passed over: that of our own files.

        Raises:
            UsageError: It is no folder.
        """
        self.folder = Path(folder).resolve()
        if not self.folder.is_dir():
            raise UsageError("FOLDER is no folder that can be read; check the path and the rights")
        self._without = None if without is None else str(without.resolve())
        self._below = len(os.path.join(self.folder, ""))
        self._archives = Archives()
        self.left_out: Counter[str] = Counter()

    def walk(self) -> Iterator[Found]:
        """Go through all files in a fixed order.

        Symbolic links are never followed: what they name inside the tree is found anyway, the rest is not ours.
        """
        self.left_out.clear()
        pending = [(str(self.folder), 0)]
        while pending:
            folder, depth = pending.pop()
            entries = self._entries(folder)
            folders = []
            for entry in entries:
                kind = _kind(entry)
                if kind == "file":
                    yield from self._file(entry)
                elif kind == "folder" and depth < MAX_DEPTH:
                    folders.append((entry.path, depth + 1))
                else:
                    self.left_out["too_deep" if kind == "folder" else kind] += 1
            pending += [item for item in reversed(folders) if item[0] != self._without]

    def open(self, found: Found) -> io.BufferedReader | io.BytesIO:
        """Open for reading; the caller closes it.

        Raises:
            OSError: It is gone, may not be read, or is no file any more.
        """
        if found.member is not None:
            return io.BytesIO(self._archives.read(Path(found.path), found.member))
        # O_NONBLOCK: a pipe that took the file's place since must not make us wait for a writer.
        number = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        stream = os.fdopen(number, "rb")
        if not stat.S_ISREG(os.fstat(number).st_mode):
            stream.close()
            raise OSError("no regular file")
        return stream

    def read(self, found: Found) -> bytes:
        """Read all of it, ``MAX_FILE`` bytes at most; ``OSError`` as of ``open``."""
        with closing(self.open(found)) as stream:
            content = stream.read(found.size + 1)  # asked for much more, Python clears new memory for every file
            if len(content) > found.size:
                content += stream.read(MAX_FILE + 1 - len(content))
        if len(content) > MAX_FILE:
            raise OSError("the file has grown")
        return content

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError:  # the folder is gone or closed to us
            self.left_out["unreadable"] += 1
            return []

    def _file(self, entry: os.DirEntry[str]) -> Iterator[Found]:
        try:
            seen = entry.stat(follow_symlinks=False)
            archive = seen.st_size and _may_be_archive(entry.name) and is_archive(Path(entry.path))
        except OSError:
            self.left_out["unreadable"] += 1
            return
        if archive:
            yield from self._members(Path(entry.path), seen)
        elif not seen.st_size or seen.st_size > MAX_FILE:
            self.left_out["too_large" if seen.st_size else "empty"] += 1
        else:
            yield Found(entry.path, self._key(entry.path), seen.st_size, seen.st_mtime_ns)

    def _members(self, path: Path, seen: os.stat_result) -> Iterator[Found]:
        try:
            members = self._archives.members(path, left_out=self.left_out)
        except BadArchive as error:
            self.left_out[error.code] += 1
            return
        except OSError:
            self.left_out["unreadable"] += 1
            return
        for place, size in members:
            yield Found(str(path), self._key(str(path), place), size, seen.st_mtime_ns, place)

    def _key(self, path: str, member: int | None = None) -> bytes:
        place = os.fsencode(path[self._below :]) + (b"" if member is None else b"\0%d" % member)
        return hashlib.sha256(place).digest()


def _kind(entry: os.DirEntry[str]) -> str:
    """``"file"``, ``"folder"``, or why it is passed over."""
    try:
        if entry.is_symlink():
            return "symbolic_link"
        if entry.is_file(follow_symlinks=False):
            return "file"
        return "folder" if entry.is_dir(follow_symlinks=False) else "special_file"
    except OSError:
        return "unreadable"


def _may_be_archive(name: str) -> bool:
    """By its name, so that the first bytes of a hundred thousand images need not be read at every look."""
    return name.lower().endswith(".zip")
