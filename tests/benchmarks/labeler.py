"""Compare the sentence labeler with the indexers of the Indiana University reports, and time it.

    python tests/benchmarks/labeler.py --reports ../shared/data/reports/iu_reports.jsonl.gz

The reference is a report-level NIH set made from the MeSH terms that people gave each report. They read the whole
report and note doubtful findings too, so a finding counts as said when the labeler calls it present or uncertain
("present only" is printed beside it). It is no reading of the image.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from pathlib import Path
from typing import Any

from trrg_sdk.labeler import OBSERVATIONS, label_report, label_sentence, split_sentences

SAME = {
    "Atelectasis": ("Atelectasis",),
    "Cardiomegaly": ("Cardiomegaly",),
    "Pleural Effusion": ("Effusion",),
    "Pneumothorax": ("Pneumothorax",),
    "Consolidation": ("Consolidation",),
    "Pneumonia": ("Pneumonia",),
    "Edema": ("Edema",),
}
LOOSE = {
    "Lung Lesion": ("Mass", "Nodule"),
    "Pleural Other": ("Pleural_Thickening",),
    "Lung Opacity": ("Infiltration",),
    "No Finding": ("normal",),
}
"""Here the two sets do not mean the same: the figures are for reading, not for the micro F1."""

Counts = dict[str, list[int]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, required=True, help="iu_reports.jsonl.gz")
    parser.add_argument("--show", default="", help="print the disagreements of one observation")
    args = parser.parse_args()
    with gzip.open(args.reports, "rt", encoding="utf-8") as file:
        records = [record for record in map(json.loads, file) if record["gold14"]]
    print(f"{len(records)} reports")
    lenient = compare(records, counted=("present", "uncertain"), show=args.show)
    strict = compare(records, counted=("present",), show="")
    print(f"{'':26}{'present or uncertain':^26}{'present only':^24}")
    print(f"{'':18}{'n':>6}{'P':>8}{'R':>8}{'F1':>8}{'P':>10}{'R':>8}{'F1':>8}")
    for group in (SAME, LOOSE):
        for name in group:
            positives = lenient[name][0] + lenient[name][2]
            print(f"{name:18}{positives:6d}" + row(lenient[name]) + "  " + row(strict[name]))
        if group is SAME:
            sums = [[sum(c) for c in zip(*(t[name] for name in SAME), strict=True)] for t in (lenient, strict)]
            print(f"{'micro':18}{sums[0][0] + sums[0][2]:6d}" + row(sums[0]) + "  " + row(sums[1]))
    measure(records)
    return 0


def text_of(record: dict[str, Any]) -> str:
    return f"FINDINGS: {record['findings']} IMPRESSION: {record['impression']}"


def compare(records: list[dict[str, Any]], *, counted: tuple[str, ...], show: str) -> Counts:
    """True positives, false positives, false negatives of each observation."""
    counts: Counts = {name: [0, 0, 0] for name in OBSERVATIONS}
    for record in records:
        said = label_report(text_of(record))
        for name, terms in (SAME | LOOSE).items():
            truth = any(record["gold14"][term] for term in terms)
            found = said.get(name) in counted
            counts[name][0] += truth and found
            counts[name][1] += found and not truth
            counts[name][2] += truth and not found
            if name == show and truth != found:
                print(
                    f"{'MISSED' if truth else 'EXTRA'} {said.get(name)} | {text_of(record)} | {record['mesh_major']}\n"
                )
    return counts


def row(counts: list[int]) -> str:
    hit, extra, missed = counts
    precision = hit / (hit + extra) if hit + extra else float("nan")
    recall = hit / (hit + missed) if hit + missed else float("nan")
    f1 = 2 * hit / (2 * hit + extra + missed) if hit + extra + missed else float("nan")
    return f"{precision:8.3f}{recall:8.3f}{f1:8.3f}"


def measure(records: list[dict[str, Any]]) -> None:
    """Sentences a second on one core; nothing is cached between sentences. The best of five, the median beside it."""
    texts = [text_of(record) for record in records]
    sentences = [span.text for text in texts for span in split_sentences(text)]
    speeds = sorted(len(sentences) / timed(lambda: [label_sentence(s) for s in sentences]) for _ in range(5))
    splitting = sorted(len(sentences) / timed(lambda: [split_sentences(t) for t in texts]) for _ in range(5))
    print(f"{len(sentences)} sentences; label: {speeds[-1]:,.0f}/s (median {speeds[2]:,.0f}); ", end="")
    print(f"split: {splitting[-1]:,.0f}/s (median {splitting[2]:,.0f})")


def timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
