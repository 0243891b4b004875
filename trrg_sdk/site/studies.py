"""From files to studies: which belong together, which image is tried first, and why others are left out.

Only headers are read here, and those of unchanged files only once: what they said is remembered as an ``Entry``.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

from trrg_sdk.dicom import rank
from trrg_sdk.dicom_header import Header, read_header
from trrg_sdk.errors import DicomError
from trrg_sdk.gate import declared
from trrg_sdk.site.walk import Found, Tree

NO_FILE_OF_OURS = ("not_dicom", "dicomdir")
"""Codes of files that belong to no study."""

_CHUNK = 256  # files between two questions whether to stop
_TRIED = 8  # of them, read by one thread first


class Entry(NamedTuple):
    """What is remembered of a file; no value of an element, and no UID that is not hashed.

    Attributes:
        size: Bytes when it was read.
        mtime_ns: Its last change when it was read.
        study: SHA-256 of the Study Instance UID; where there is none, of the file.
        instance: SHA-256 of the SOP Instance UID, b"" when there is none.
        code: Why the image cannot be reported, as far as the header says: all codes, with commas; "" for a candidate.
        order: The smaller, the earlier it is tried: original before derived, PA before AP, larger before smaller.
    """

    size: int
    mtime_ns: int
    study: bytes
    instance: bytes
    code: str
    order: int


class Image(NamedTuple):
    """A file of a study; no value of an element is in it.

    Attributes:
        found: Where it is.
        entry: What its header said.
        code: The first reason to leave it out that is not overridden; "" for a candidate.
    """

    found: Found
    entry: Entry
    code: str


@dataclass(frozen=True, slots=True)
class Study:
    """All files with one Study Instance UID.

    Attributes:
        key: SHA-256 of the UID.
        candidates: Images to try, the best first.
        left_out: The others.
    """

    key: bytes
    candidates: tuple[Image, ...]
    left_out: tuple[Image, ...]

    @property
    def name(self) -> str:
        """What its files are called: nothing can be read from it."""
        return self.key.hex()[:16]

    @property
    def images(self) -> tuple[Image, ...]:
        """All files."""
        return self.candidates + self.left_out

    def newest_ns(self) -> int:
        """When the study last changed."""
        return max(image.found.mtime_ns for image in self.images)

    def quick(self) -> bytes:
        """Change whenever a file that matters does; costs no reading."""
        state = hashlib.sha256()
        for image in sorted(self.candidates or self.left_out, key=lambda image: image.found.key):
            state.update(b"%s %d %d\n" % (image.found.key, image.found.size, image.found.mtime_ns))
        return state.digest()


def read_entries(
    tree: Tree, files: Sequence[Found], known: Mapping[bytes, Entry], pool: Executor, stopped: Callable[[], bool]
) -> dict[bytes, Entry]:
    """Read the headers of new and changed files.

    Args:
        tree: Where they are.
        files: As walked.
        known: File's key → what was remembered.
        pool: Reads several at a time where the disk keeps one waiting.
        stopped: Asked now and then; the rest is left when it says so.

    Returns:
        The new entries by the file's key. A file that vanished has none.
    """
    changed = [found for found in files if not _is_known(found, known.get(found.key))]
    entries: dict[bytes, Entry] = {}
    for start in range(0, len(changed), _CHUNK):
        if stopped():
            break
        part = changed[start : start + _CHUNK]
        for found, entry in zip(part, _read(tree, part, pool), strict=True):
            if entry is not None:
                entries[found.key] = entry
    return entries


def _read(tree: Tree, part: Sequence[Found], pool: Executor) -> Iterator[Entry | None]:
    """Read headers in this thread; with the pool when most of the time went to waiting for the first few.

    To parse a header takes Python's lock: of files that are in memory four threads read no more than one, and spend
    twice the processor time on it.
    """
    start, busy = time.perf_counter(), time.thread_time()
    yield from [_entry(tree, found) for found in part[:_TRIED]]
    waiting = time.perf_counter() - start > 2 * (time.thread_time() - busy)
    yield from (pool.map if waiting else map)(lambda found: _entry(tree, found), part[_TRIED:])


def group(
    files: Iterable[Found], entries: Mapping[bytes, Entry], *, left_out: Counter[str], accept: AbstractSet[str]
) -> list[Study]:
    """Put files together by study, in the order in which the studies were found first.

    Args:
        files: As walked.
        entries: File's key → what its header said; files without one are passed over.
        left_out: Is told of files that belong to no study.
        accept: Codes of the gate that are overridden; images that need it are tried after those that do not.
    """
    members: dict[bytes, list[tuple[Found, Entry]]] = {}
    for found in files:
        entry = entries.get(found.key)
        if entry is None:
            left_out["unreadable"] += 1
        elif entry.code in NO_FILE_OF_OURS:
            left_out[entry.code] += 1
        else:
            members.setdefault(entry.study, []).append((found, entry))
    return [_study(key, items, accept) for key, items in members.items()]


def _study(key: bytes, items: list[tuple[Found, Entry]], accept: AbstractSet[str]) -> Study:
    candidates: list[Image] = []
    left_out: list[Image] = []
    seen: set[bytes] = set()
    for found, entry in sorted(items, key=_place):
        duplicate = bool(entry.instance) and entry.instance in seen
        seen.add(entry.instance)
        against = next((code for code in entry.code.split(",") if code not in accept), "")
        code = against or ("duplicate" if duplicate else "")
        (left_out if code else candidates).append(Image(found, entry, code))
    return Study(key, tuple(candidates), tuple(left_out))


def _place(item: tuple[Found, Entry]) -> tuple[bool, int, str, int]:
    found, entry = item
    return bool(entry.code), entry.order, str(found.path), found.member or 0


def _is_known(found: Found, entry: Entry | None) -> bool:
    return entry is not None and (entry.size, entry.mtime_ns) == (found.size, found.mtime_ns)


def _entry(tree: Tree, found: Found) -> Entry | None:
    try:
        with closing(tree.open(found)) as stream:
            return entry_of(found, read_header(stream))
    except OSError:
        return None
    except DicomError as error:  # corrupt, or no DICOM: where it belongs is unknown
        return Entry(found.size, found.mtime_ns, found.key, b"", error.code, 0)


def entry_of(found: Found, header: Header) -> Entry:
    """Keep of a header what decides over the image."""
    described = header.described
    uid = described.study_instance_uid or described.sop_instance_uid
    study = hashlib.sha256(uid.encode()).digest() if uid else found.key
    instance = hashlib.sha256(described.sop_instance_uid.encode()).digest() if described.sop_instance_uid else b""
    order = (header.derived * 10 + rank(described)) * 2**33 - header.rows * header.columns
    return Entry(found.size, found.mtime_ns, study, instance, _code(header), order)


def _code(header: Header) -> str:
    if header.directory:
        return "dicomdir"
    if not header.rows:
        return "no_pixels"
    return ",".join(reason.code for reason in declared(header.described))
