"""One look at a folder: which studies are there, which of them are to be reported, which are still arriving."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from trrg_sdk.bundle import Bundle
from trrg_sdk.outputs import Output
from trrg_sdk.site.ledger import Mark
from trrg_sdk.site.studies import Entry, Study, group, read_entries
from trrg_sdk.site.walk import Found, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to do with what is found.

    Attributes:
        outputs: Formats to write.
        workers: Threads that read headers and hash files.
        limit: Studies to report in a round at most; None for all.
        settle_s: Files that changed less than so many seconds ago are left for the next round.
        key: Secret to de-identify the outputs with; b"" leaves them as they are.
        accept: Codes of the gate that are overridden.
        filed: Is given a study's new files before the ledger says done: to send them, say. It may be given the same
            files again after a kill, so it must not mind.
    """

    outputs: Sequence[Output]
    workers: int = 4
    limit: int | None = None
    settle_s: float = 5.0
    key: bytes = field(default=b"", repr=False)
    accept: frozenset[str] = frozenset()
    filed: Callable[[Sequence[Path]], None] | None = None

    @property
    def formats(self) -> str:
        """Names of the formats, sorted; whether they are de-identified, with which key; what is overridden."""
        parts = [",".join(sorted(output.NAME for output in self.outputs))]
        if self.key:
            parts.append(f"deidentified-{hashlib.sha256(self.key).hexdigest()[:8]}")
        if self.accept:
            parts.append(f"accept-{','.join(sorted(self.accept))}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger holds.

    Attributes:
        entries: File's key → what its header said.
        marks: Study's key → what was reported of it.
    """

    entries: Mapping[bytes, Entry]
    marks: Mapping[bytes, Mark]


@dataclass(frozen=True, slots=True)
class Look:
    """What lies in the folder.

    Attributes:
        studies: All of them, but those that are still arriving.
        todo: Those among them that have to be reported.
        waiting: How many are still arriving.
        left_out: Why files were passed over → how many.
        read: New entries for the ledger.
        gone: Keys of entries whose files are not there any more.
    """

    studies: list[Study]
    todo: list[Study]
    waiting: int
    left_out: Counter[str]
    read: dict[bytes, Entry]
    gone: AbstractSet[bytes]


class Settling:
    """Remembers how files looked the last time, to tell a file at rest from one that is being copied."""

    def __init__(self, settle_s: float) -> None:
        """Name the time a file must have been at rest."""
        self._settle_ns = int(settle_s * 1e9)
        self._seen: dict[bytes, tuple[int, int, int]] = {}

    def young(self, files: Sequence[Found]) -> set[bytes]:
        """Keys of the files that changed within the settle time, by their own time or since an earlier look.

        Both are asked: a file server's clock that runs ahead would make every file look young for ever.
        """
        now, clock = time.time_ns(), time.monotonic_ns()
        young: set[bytes] = set()
        seen: dict[bytes, tuple[int, int, int]] = {}
        for found in files:
            if now - found.mtime_ns >= self._settle_ns:
                continue
            size, mtime_ns, since = self._seen.get(found.key, (-1, -1, clock))
            if (size, mtime_ns) != (found.size, found.mtime_ns):
                since = clock
            seen[found.key] = (found.size, found.mtime_ns, since)
            if clock - since < self._settle_ns:
                young.add(found.key)
        self._seen = seen
        return young


def look(
    tree: Tree, options: Options, bundle: Bundle, known: Known, *, settling: Settling, stopped: Callable[[], bool]
) -> Look:
    """Walk the tree and say what has to be done; nothing is written.

    Args:
        tree: Where to look.
        options: Formats and workers.
        bundle: What reports them.
        known: What was done before.
        settling: Knows the looks before.
        stopped: Asked now and then.
    """
    files = list(tree.walk())
    left_out = Counter(tree.left_out)
    young = settling.young(files)
    with ThreadPoolExecutor(options.workers, thread_name_prefix="trrg-header") as pool:
        read = read_entries(tree, files, known.entries, pool, stopped)
    if stopped():  # what was not read is not unreadable
        files = [found for found in files if found.key in read or found.key in known.entries]
    # what a header says is remembered for any bundle, so laterals of one that knows them are let pass here
    accept = options.accept | ({"lateral_view"} if bundle.manifest.population.laterals else set())
    studies = group(files, {**known.entries, **read}, left_out=left_out, accept=accept)
    settled = [study for study in studies if not young or not any(i.found.key in young for i in study.images)]
    formats, manifest = options.formats, bundle.manifest_sha256
    todo = [study for study in settled if not _is_done(study, known.marks.get(study.key), formats, manifest)]
    entries = {key: entry for key, entry in read.items() if key not in young}
    gone = known.entries.keys() - {found.key for found in files}
    return Look(settled, todo, len(studies) - len(settled), left_out, entries, gone)


def _is_done(study: Study, mark: Mark | None, formats: str, manifest: str) -> bool:
    return mark is not None and (mark.manifest, mark.formats, mark.quick) == (manifest, formats, study.quick())
