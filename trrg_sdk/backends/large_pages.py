"""Weights in large pages, where Linux gives them only to who asks.

A token reads every weight once, and in pages of 4 KiB the processor spends time on looking up where they lie: a decoder
of 100 M weights in int4 took a third more time a token (``tests/benchmarks/large_pages.py``). Where
``/sys/kernel/mm/transparent_hugepage/enabled`` is ``madvise``, the libraries that allocate the weights do not ask.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

LEAST_WEIGHTS = 16 << 20
"""Bytes. By ``tests/benchmarks/large_pages.py`` a decoder of 18 MB (int4) takes 12 % less time a token after 0.04 s of
asking, one of 32 MB 15 % after 0.2 s; the embedded bundle, of 14 MB, 2 to 5 % (by a script that was not kept)."""

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(\[heap\])?$")
_FIELD = re.compile(r"(Rss|AnonHugePages): +(\d+) kB$")
_SETTINGS = {
    "always": "given without asking",
    "madvise": f"asked for, for weights of {LEAST_WEIGHTS >> 20} MB and more",
    "never": f"never given ({_SETTING}): a large decoder may take a third longer",
}
_HUGEPAGE, _COLLAPSE = 14, 25  # madvise(2); the second one since Linux 6.1
_PAGE = 2 << 20
_LEAST = 2 * _PAGE
_FULL = 0.75  # of a mapping that is in memory: a stack or a buffer that is hardly used stays small


class LargePages:
    """Decides when: a single text ends before the pages are in place, a gigabyte takes one to three seconds."""

    def __init__(self, weights: int) -> None:
        """Take the size of the weights, in bytes; small ones gain little."""
        self._wanted = weights >= LEAST_WEIGHTS
        self._texts = 0
        self._lock = threading.Lock()

    def before(self, texts: int) -> None:
        """Be told of texts that are about to be written; from any thread."""
        with self._lock:
            self._texts += texts
            if self._wanted and self._texts > 1:
                self._wanted = False
                use_large_pages()


def setting() -> str:
    """Say in some words whether this machine gives large pages."""
    said = re.search(r"\[(\w+)\]", _read(_SETTING))
    return _SETTINGS.get(said[1] if said else "", "not known on this system")


def use_large_pages() -> None:
    """Ask for large pages for all large memory that is in use now. Where they are not to be had, nothing happens."""
    if sys.platform != "linux" or "[madvise]" not in _read(_SETTING):
        return
    madvise = ctypes.CDLL(None).madvise
    for start, end in _candidates(_read(_MAPS)):
        first, last = -(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE
        for advice in (_HUGEPAGE, _COLLAPSE):
            madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


def _candidates(maps: str) -> Iterator[tuple[int, int]]:
    """Start and end of private memory that is large, filled, and not yet in large pages."""
    start = end = 0
    kilobytes: dict[str, int] = {}
    for line in maps.splitlines():
        if field := _FIELD.match(line):
            kilobytes[field[1]] = int(field[2])
        elif "-" in line.split(" ", 1)[0]:
            mapping = _MAPPING.match(line)
            start, end = (int(mapping[1], 16), int(mapping[2], 16)) if mapping else (0, 0)
        elif line.startswith("VmFlags") and _is_worth_it(end - start, kilobytes):
            yield start, end


def _is_worth_it(size: int, kilobytes: dict[str, int]) -> bool:
    filled, large = kilobytes["Rss"] << 10, kilobytes["AnonHugePages"] << 10
    return size >= _LEAST and filled >= _FULL * size and large < _FULL * size


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
