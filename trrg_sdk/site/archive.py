"""ZIP archives, read in memory and within bounds; nothing is ever unpacked to a path, so no name in them matters."""

from __future__ import annotations

import os
import struct
import threading
import zipfile
import zlib
from collections import Counter, OrderedDict
from pathlib import Path

MAX_MEMBERS = 20_000
MAX_MEMBER = 512 << 20
MAX_RATIO = 200  # a radiograph has 1.5 to 10
ALWAYS_ALLOWED = 16 << 20  # bytes of a whole archive, however well they were packed
MAX_DIRECTORY = 16 << 20

_OPEN = 2
_END = b"PK\x05\x06"
_END_BYTES = 22
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # bz2 and lzma unpack further and take more memory
_ENCRYPTED = 0x1


class BadArchive(Exception):
    """An archive that is not read; ``code`` says why."""

    def __init__(self, code: str) -> None:
        """Keep the reason."""
        super().__init__(code)
        self.code = code


class Archives:
    """The archives that were opened last; may be used from several threads."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._opened: OrderedDict[tuple[Path, int, int], zipfile.ZipFile] = OrderedDict()
        self._lock = threading.Lock()

    def members(self, path: Path, *, left_out: Counter[str]) -> list[tuple[int, int]]:
        """List what may be read.

        Args:
            path: The archive.
            left_out: Is told why other members are passed over.

        Returns:
            Place and bytes of each.

        Raises:
            BadArchive: ``archive_broken``, or ``archive_bomb`` for one that unpacks to more than an export does.
            OSError: It cannot be opened.
        """
        archive = self._open(path)
        members = archive.infolist()
        unpacked, packed = sum(item.file_size for item in members), sum(item.compress_size for item in members)
        size = path.stat().st_size
        if packed > size or unpacked > max(ALWAYS_ALLOWED, MAX_RATIO * size):  # the first: members share their bytes
            raise BadArchive("archive_bomb")
        found = []
        for place, item in enumerate(members):
            code = _why_not(item)
            if code:
                left_out[code] += 1
            elif not item.is_dir():
                found.append((place, item.file_size))
        return found

    def read(self, path: Path, place: int) -> bytes:
        """Unpack one member in memory.

        Raises:
            OSError: The archive or the member is broken, or has changed.
        """
        try:
            archive = self._open(path)
            item = archive.infolist()[place]
            with archive.open(item) as stream:
                content = stream.read(item.file_size + 1)
        except (BadArchive, IndexError, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise OSError("the member cannot be read") from error
        except (zipfile.BadZipFile, zlib.error, struct.error) as error:
            raise OSError("the member is broken") from error
        if len(content) != item.file_size:
            raise OSError("the member is not as long as the archive says")
        return content

    def _open(self, path: Path) -> zipfile.ZipFile:
        seen = path.stat()
        key = (path, seen.st_size, seen.st_mtime_ns)
        with self._lock:
            archive = self._opened.pop(key, None)
            if archive is None:
                _check_end(path, seen.st_size)
                try:
                    archive = zipfile.ZipFile(path)
                except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
                    raise BadArchive("archive_broken") from error
            self._opened[key] = archive  # those that fall out close with their last reader
            while len(self._opened) > _OPEN:
                self._opened.popitem(last=False)
        return archive


def is_archive(path: Path) -> bool:
    """True when the file begins like an archive; ``OSError`` when it cannot be opened."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
        return stream.read(4) in (b"PK\x03\x04", _END)


def _check_end(path: Path, size: int) -> None:
    """Read the end record (APPNOTE 4.3.16) before zipfile reads as much directory as it says."""
    with path.open("rb") as stream:
        stream.seek(max(0, size - 65_535 - _END_BYTES))
        tail = stream.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise BadArchive("archive_broken")
    _, members, directory = struct.unpack_from("<HHL", tail, at + 8)
    if members > MAX_MEMBERS or directory > MAX_DIRECTORY:
        raise BadArchive("archive_bomb")


def _why_not(item: zipfile.ZipInfo) -> str:
    if item.flag_bits & _ENCRYPTED:
        return "archive_encrypted"
    if item.compress_type not in _METHODS:
        return "archive_method"
    if item.filename.lower().endswith(".zip"):
        return "archive_nested"
    if item.file_size > MAX_MEMBER:
        return "too_large"
    return "empty" if not item.file_size and not item.is_dir() else ""
