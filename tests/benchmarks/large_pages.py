"""What large pages give a decoder of 100 M random weights, and what they take.

    python tests/benchmarks/large_pages.py --threads 2 --turns 3

Each turn is a process of its own: texts in the pages that the libraries got, then ``use_large_pages``, then texts
again. Milliseconds a token and seconds of asking are medians of the turns. This is no timed test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from decode_llama import PROMPT, WRITTEN, Maker
from decode_peers import Ours
from decode_process import EngineProcess

from trrg_sdk.backends.large_pages import LargePages, use_large_pages
from trrg_sdk.manifest import DecoderSpec

_TEXTS = 5


class Probe:
    """Our loop, which does not ask by itself here."""

    def __init__(self, folder: Path, *, spec: DecoderSpec, table: Path, threads: int) -> None:
        self._ours = Ours(folder, spec=spec, table=table, threads=threads)
        self._ours.pages = LargePages(0)

    def measure(self) -> dict[str, float]:
        """Milliseconds a token before and after, and seconds of asking."""
        before = self._token()
        start = time.perf_counter()
        use_large_pages()
        seconds = time.perf_counter() - start
        return {"small pages, ms": before, "large pages, ms": self._token(), "asking, s": seconds}

    def _token(self) -> float:
        prompt, times = list(range(5, 5 + PROMPT)), []
        for _ in range(_TEXTS):
            start = time.perf_counter()
            self._ours.write(prompt, 1)
            first = time.perf_counter()
            self._ours.write(prompt, WRITTEN + 1)
            times.append((time.perf_counter() - first - (first - start)) / WRITTEN * 1e3)
        return statistics.median(times[1:])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="large-pages-") as home:
        folder = Path(home)
        maker = EngineProcess(Maker, threads=args.threads, patience=3600)
        try:
            spec, *_ = maker.call("make", folder, "llama100m", args.layers, "cpu").result
        finally:
            maker.close()
        found = {}
        for kind in ("fp32", "int8", "int4"):
            make = partial(Probe, folder / "ours" / kind, spec=spec, table=folder / "table.npy", threads=args.threads)
            turns = [_turn(make, args.threads) for _ in range(args.turns)]
            found[kind] = {name: round(statistics.median(turn[name] for turn in turns), 2) for name in turns[0]}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def _turn(make: partial[Probe], threads: int) -> dict[str, float]:
    process = EngineProcess(make, threads=threads)
    try:
        measured: dict[str, float] = process.call("measure").result
        return measured
    finally:
        process.close()


if __name__ == "__main__":
    main()
