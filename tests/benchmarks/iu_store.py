"""How long the report store of many reports takes to build, how large it is, and what a look-up takes.

    python tests/benchmarks/iu_store.py --folder runs/iu

The reports are drawn from the train reports of ``iu_decoder.py``'s folder: each has as many sentences as one of them,
and each sentence is one that stands first, second and so on in some report, so runs across sentences are as many and as
rare as those of so many different reports. Building is timed once for each number, the look-up as the median of all.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from trrg_sdk.decoding.drafts import StoreDrafter
from trrg_sdk.decoding.store import ReportStore, build_store

COUNTS = (12_500, 25_000, 50_000, 100_000)
DRAFT = 6
ASKED = 200


def drawn(reports: Sequence[Sequence[int]], ends: frozenset[int], count: int) -> list[list[int]]:
    """Draw so many reports.

    Args:
        reports: Tokens of real ones with their end token.
        ends: Tokens that end a sentence, the end token too.
        count: How many.
    """
    rng, cut = np.random.default_rng(0), [list(sentences(report, ends)) for report in reports]
    by_place = [[one[place] for one in cut if len(one) > place] for place in range(max(map(len, cut)))]
    made = []
    for number in rng.integers(0, len(cut), count):
        places = range(len(cut[number]) - 1)
        picked = (by_place[place][rng.integers(len(by_place[place]))] for place in places)
        made.append([token for one in picked for token in one if token != reports[0][-1]] + [reports[0][-1]])
    return made


def sentences(report: Sequence[int], ends: frozenset[int]) -> list[list[int]]:
    """Cut a report after every token that ends a sentence."""
    cut: list[list[int]] = [[]]
    for token in report:
        cut[-1].append(token)
        if token in ends:
            cut.append([])
    return [one for one in cut if one]


def lookup(store: ReportStore, reports: Sequence[Sequence[int]]) -> float:
    """Microseconds of a draft."""
    drafter, times = StoreDrafter(store), []
    for report in reports[:ASKED]:
        for place in range(0, len(report), 3):
            start = time.perf_counter()
            list(islice(drafter.line(report[:place]), DRAFT))
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of iu_decoder.py")
    parser.add_argument("--draft-reports", type=int, default=2, metavar="N", help="as of trrg-export")
    arguments = parser.parse_args()
    from tokenizers import Tokenizer

    train = np.load(arguments.folder / "reports.npz")
    real = [one.tolist() for one in np.split(train["tokens"], train["ends"][:-1])]
    tokenizer = Tokenizer.from_file(str(arguments.folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    ends = frozenset(token for token in range(size) if tokenizer.decode([token]).strip().endswith("."))
    print("| reports | tokens | seconds | runs | in at least so many reports | MB | us a draft of 6 | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for count in COUNTS:
        reports = drawn(real, ends | {real[0][-1]}, count)
        start = time.perf_counter()
        arrays, held_by = build_store(reports, least=arguments.draft_reports)
        seconds = time.perf_counter() - start
        store = ReportStore(arrays, vocabulary=size)
        megabytes = sum(array.nbytes for array in arrays) / 1e6
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        cells = (count, sum(map(len, reports)), f"{seconds:.1f}", len(store), held_by, f"{megabytes:.1f}")
        print(f"| {' | '.join(map(str, cells))} | {lookup(store, reports):.0f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
