"""Compare the sentence labeler with the indexers of the Indiana University reports, and time it.

    python tests/benchmarks/labeler.py --reports ../shared/data/reports/iu_reports.jsonl.gz

The reference is a report-level NIH set made from the MeSH terms that people gave each report. They noted some doubtful
findings and left out others, so three readings stand beside each other: doubt counts as a finding, doubt is none, and
doubtful mentions are left out. It is no reading of the image.
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

READINGS = ("doubt counts", "doubt is none", "doubt left out")

Counts = dict[str, list[int]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, required=True, help="iu_reports.jsonl.gz")
    parser.add_argument("--limit", type=int, help="only the first reports")
    parser.add_argument("--show", default="", help="print the disagreements of one observation")
    args = parser.parse_args()
    with gzip.open(args.reports, "rt", encoding="utf-8") as file:
        records = [record for record in map(json.loads, file) if record["gold14"]][: args.limit]
    say(f"{len(records)} reports")
    tables = [compare(records, reading=reading, show=args.show if not i else "") for i, reading in enumerate(READINGS)]
    say(" " * 24 + "".join(f"{reading:^25}" for reading in READINGS))
    say(f"{'':18}{'n':>6}" + f"{'P':>9}{'R':>8}{'F1':>8}" * len(READINGS))
    for group in (SAME, LOOSE):
        for name in group:
            say(f"{name:18}{tables[0][name][0] + tables[0][name][2]:6d}" + "".join(row(t[name]) for t in tables))
        if group is SAME:
            sums = [[sum(c) for c in zip(*(t[name] for name in SAME), strict=True)] for t in tables]
            say(f"{'micro':18}{sums[0][0] + sums[0][2]:6d}" + "".join(row(s) for s in sums))
    measure(records)
    return 0


def text_of(record: dict[str, Any]) -> str:
    return f"FINDINGS: {record['findings']} IMPRESSION: {record['impression']}"


def compare(records: list[dict[str, Any]], *, reading: str, show: str) -> Counts:
    """True positives, false positives, false negatives of each observation."""
    counts: Counts = {name: [0, 0, 0] for name in OBSERVATIONS}
    for record in records:
        said = label_report(text_of(record))
        for name, terms in (SAME | LOOSE).items():
            state = said.get(name)
            if state == "uncertain" and reading == "doubt left out":
                continue
            truth = any(record["gold14"][term] for term in terms)
            found = state == "present" or (state == "uncertain" and reading == "doubt counts")
            counts[name][0] += truth and found
            counts[name][1] += found and not truth
            counts[name][2] += truth and not found
            if name == show and truth != found:
                say(f"{'missed' if truth else 'extra'} {state} | {text_of(record)} | {record['mesh_major']}\n")
    return counts


def row(counts: list[int]) -> str:
    hit, extra, missed = counts
    precision = hit / (hit + extra) if hit + extra else float("nan")
    recall = hit / (hit + missed) if hit + missed else float("nan")
    f1 = 2 * hit / (2 * hit + extra + missed) if hit + extra + missed else float("nan")
    return f"{precision:9.3f}{recall:8.3f}{f1:8.3f}"


def measure(records: list[dict[str, Any]]) -> None:
    """Sentences a second on one core; nothing is cached between sentences. The best of five, the median beside it."""
    texts = [text_of(record) for record in records]
    sentences = [span.text for text in texts for span in split_sentences(text)]
    label_sentence("No effusion.")  # makes the tables
    for name, work in (
        ("label_sentence", lambda: [label_sentence(s) for s in sentences]),
        ("split_sentences", lambda: [split_sentences(t) for t in texts]),
    ):
        speeds = sorted(len(sentences) / timed(work) for _ in range(5))
        say(f"{name}: {speeds[-1]:,.0f} sentences/s of CPU time (median {speeds[2]:,.0f}, {len(sentences)} sentences)")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def timed(work: Any) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
