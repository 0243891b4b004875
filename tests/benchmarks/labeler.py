"""Compare the sentence labeler with the indexers of the Indiana University reports, and time it.

    python tests/benchmarks/labeler.py --reports ../shared/data/reports/iu_reports.jsonl.gz \\
        --write tests/benchmarks/results/labeler_iu.md

The reference ("gold") is a report-level NIH set made from the MeSH terms that people gave each report. It is no
reading of the image. It has no uncertain class, so four readings stand beside each other: doubt counts as a finding;
doubt is none; doubtful mentions are left out; and only open doubt is none ("may", "possible", "cannot exclude"), while
what the writer leans to ("probable", "A versus B", "borderline") counts, which is what the gold does.

The first rules were tuned on all of these reports. The present ones were mended by reading the train part of the
R2Gen split alone; of the other parts (its val part, and the reports that are in no part) only figures were looked at.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trrg_sdk.labeler import label_report, label_sentence, split_sentences


class Mapped(NamedTuple):
    """A row of the mapping: the gold's terms, whether the micro and macro figures count it, and why."""

    terms: tuple[str, ...]
    counts: bool
    why: str


MAPPING: Mapping[str, Mapped] = {
    "Atelectasis": Mapped(("Atelectasis",), True, "same meaning"),
    "Cardiomegaly": Mapped(
        ("Cardiomegaly",), True, "same meaning, but an enlarged cardiac shadow is another term there"
    ),
    "Pleural Effusion": Mapped(("Effusion",), True, "same meaning"),
    "Pneumothorax": Mapped(("Pneumothorax",), True, "same meaning"),
    "Consolidation": Mapped(("Consolidation",), True, "same meaning"),
    "Pneumonia": Mapped(("Pneumonia",), True, "same meaning, but an infection is no pneumonia there"),
    "Edema": Mapped(("Edema",), True, "same meaning, but heart failure is another term there"),
    "Lung Lesion": Mapped(
        ("Mass", "Nodule"), False, "a nodular opacity or density is indexed as a round opacity, not as a nodule"
    ),
    "Pleural Other": Mapped(
        ("Pleural_Thickening",), False, "every thickening counts there, of bronchi too; scars of the pleura do not"
    ),
    "Lung Opacity": Mapped(("Infiltration",), False, "only the word infiltrate counts there, opacity is another term"),
    "No Finding": Mapped(("normal",), False, "normal there also means no old bone, vessel or upper abdominal finding"),
}
"""Our observation → what it is compared with. The gold has no Enlarged Cardiomediastinum, Fracture, Support Devices."""

LEFT_OUT: Mapping[str, str] = {
    "Emphysema": "none of the 14",
    "Fibrosis": "none of the 14",
    "Hernia": "none of the 14",
}
"""Terms of the gold that nothing of ours stands for."""

READINGS = ("doubt counts", "doubt is none", "doubt left out", "open doubt is none")
PARTS = {"train": "train", "val": "val", None: "in no part"}
"""The R2Gen split; reports whose films it does not use are in no part."""

OPEN = re.compile(
    r"\b(?:may|maybe|might|could|possib|perhaps|question|concern|worrisome|suspicious|suspect|exclud|differential|consider)"
)
"""Words of open doubt: the writer does not lean to the finding."""

DOUBTS = {
    "open doubt: may, could, possible, question, concern, cannot exclude": OPEN,
    "probable, likely": re.compile(r"\b(?:probab|likely|presum)"),
    "suggests, favored": re.compile(r"\b(?:suggest|favor)"),
    "versus": re.compile(r"\b(?:versus|vs)\b"),
    "or, between two findings": re.compile(r"\bor\b"),
    "borderline, upper limits or enlarged": re.compile(r"\bborderline|upper limits"),
    "another doubt": re.compile(""),
}
"""What makes a mention uncertain: the first that the doubtful sentence holds."""

DIFFERENCES: tuple[tuple[str, str, str, str, str], ...] = (
    # observation, extra or missed, pattern of the MeSH terms, pattern of the sentences that assert it, in words
    ("Cardiomegaly", "extra", r"cardiac shadow/enlarged", "", "indexed as an enlarged cardiac shadow"),
    ("Pleural Effusion", "extra", "", r"(?:hydro|hemo)pneumothorax", "hydro- or hemopneumothorax has its own term"),
    ("Pneumothorax", "extra", "", r"(?:hydro|hemo)pneumothorax", "hydro- or hemopneumothorax has its own term"),
    ("Pneumonia", "extra", "", r"infecti", "infection that is not called pneumonia"),
    ("Edema", "extra", r"heart failure", "", "heart failure has its own term"),
    ("Cardiomegaly", "missed", r"pericardial effusion", "", "indexed beside a pericardial effusion"),
    ("Pleural Effusion", "missed", r"pericardial effusion", "", "a pericardial effusion counts there"),
    ("Lung Lesion", "extra", r"/round|granuloma", "", "indexed as a round opacity or a granuloma"),
    ("Pleural Other", "extra", r"cicatrix/pleura|calcinosis/pleura", "", "indexed as a scar or a calcified pleura"),
    ("Pleural Other", "missed", r"thickening(?!/pleura)", "", "thickening of something else"),
    ("Lung Opacity", "extra", r"opacity|density|airspace disease", "", "indexed as opacity, density, airspace disease"),
)

Counts = list[int]
Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, required=True, help="iu_reports.jsonl.gz")
    parser.add_argument("--limit", type=int, help="only the first reports")
    parser.add_argument("--show", default="", help="print the disagreements of one observation in the train part")
    parser.add_argument("--write", type=Path, help="write the page to this file too")
    args = parser.parse_args()
    with gzip.open(args.reports, "rt", encoding="utf-8") as file:
        records = [record for record in map(json.loads, file) if record["gold14"]][: args.limit]
    label(records)
    if args.show:
        sys.stdout.writelines(disagreements(records, args.show))
    page = "\n".join(page_of(records)) + "\n"
    sys.stdout.write(page)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(page, encoding="utf-8")
    return 0


def page_of(records: list[Record]) -> Iterator[str]:
    """The lines of the page, without a word of any report."""
    yield "# The sentence labeler against the indexers of the IU reports\n"
    yield "Made by (do not edit):\n\n```bash"
    yield "python tests/benchmarks/labeler.py --reports ../shared/data/reports/iu_reports.jsonl.gz \\"
    yield "    --write tests/benchmarks/results/labeler_iu.md\n```\n"
    yield (__doc__ or "").split("\n\n", 2)[2]
    yield "## Mapping\n\n| ours | gold | in micro and macro | why |\n|---|---|---|---|"
    for name, row in MAPPING.items():
        yield f"| {name} | {', '.join(row.terms)} | {'yes' if row.counts else 'no'} | {row.why} |"
    for term, why in LEFT_OUT.items():
        yield f"| – | {term} | no | {why} |"
    for part in [*PARTS, "all"]:
        chosen = [record for record in records if part == "all" or record["r2gen_split"] == part]
        if chosen:
            yield from table(chosen, "all" if part == "all" else PARTS[part])
    yield from doubts(records)
    yield from differences(records)
    yield "\n## Speed\n"
    yield from speeds(records)


def label(records: list[Record]) -> None:
    """Add what the labeler says of each report, and whether its doubts are open ones."""
    for record in records:
        record["said"] = label_report(text_of(record))
        record["open"] = {name: is_open(record, name) for name, state in record["said"].items() if state == "uncertain"}


def text_of(record: Record) -> str:
    return f"FINDINGS: {record['findings']} IMPRESSION: {record['impression']}"


def truth_of(record: Record, name: str) -> bool:
    return any(record["gold14"][term] for term in MAPPING[name].terms)


def least_doubtful(record: Record, name: str) -> str:
    """The doubtful sentence to judge by: the first without open doubt, else the first; "" where the report has none."""
    said = sentences(record, name, "uncertain")
    return next((text for text in said if not OPEN.search(text)), said[0] if said else "")


def is_open(record: Record, name: str) -> bool:
    """True where every sentence that doubts does so openly."""
    return bool(OPEN.search(least_doubtful(record, name)))


def compare(records: list[Record], name: str, reading: str) -> Counts:
    """True positives, false positives, false negatives of one observation."""
    counts = [0, 0, 0]
    for record in records:
        state = record["said"].get(name)
        if state == "uncertain" and reading == "doubt left out":
            continue
        truth = truth_of(record, name)
        counts_too = reading == "doubt counts" or (reading == "open doubt is none" and not record["open"].get(name))
        found = state == "present" or (state == "uncertain" and counts_too)
        for place, hit in enumerate((truth and found, found and not truth, truth and not found)):
            counts[place] += hit
    return counts


def table(records: list[Record], part: str) -> Iterator[str]:
    """Precision, recall and F1 of one part of the reports in the three readings."""
    yield f"\n## {part[0].upper()}{part[1:]}: {len(records)} reports\n"
    yield "| | n |" + "".join(f" {reading}: P | R | F1 |" for reading in READINGS)
    yield "|---|---:|" + "---:|" * 3 * len(READINGS)
    counted: dict[str, list[Counts]] = {}
    for name, row in MAPPING.items():
        counts = [compare(records, name, reading) for reading in READINGS]
        if row.counts:
            counted[name] = counts
        yield f"| {name}{'' if row.counts else ' (not counted)'} |" + cells(counts)
    sums = [[sum(c) for c in zip(*of_reading, strict=True)] for of_reading in zip(*counted.values(), strict=True)]
    yield "| **micro** |" + cells(sums)
    macros = [[scores(c) for c in of_reading] for of_reading in zip(*counted.values(), strict=True)]
    means = [sum(column) / len(column) for of_reading in macros for column in zip(*of_reading, strict=True)]
    yield f"| **macro** | {sums[0][0] + sums[0][2]} |" + "".join(f" {mean:.3f} |" for mean in means)


def scores(counts: Counts) -> tuple[float, float, float]:
    """Precision, recall, F1; 0 where nothing was found, or nothing was there to find."""
    hit, extra, missed = counts
    return hit / max(hit + extra, 1), hit / max(hit + missed, 1), 2 * hit / max(2 * hit + extra + missed, 1)


def cells(counts: list[Counts]) -> str:
    support = counts[0][0] + counts[0][2]
    return f" {support} |" + "".join(f" {value:.3f} |" for reading in counts for value in scores(reading))


def doubts(records: list[Record]) -> Iterator[str]:
    """How often the gold counts what the labeler calls uncertain, by what makes it so."""
    asked: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for record in records:
        for name in (name for name, row in MAPPING.items() if row.counts and record["said"].get(name) == "uncertain"):
            text = least_doubtful(record, name)
            cue = next(cue for cue, pattern in DOUBTS.items() if pattern.search(text))
            asked[cue] += 1
            counted[cue] += truth_of(record, name)
    yield "\n## Doubt: what the gold makes of it (all reports, counted observations)\n"
    yield "| the sentence says | uncertain | of these in the gold |\n|---|---:|---:|"
    yield from (f"| {cue} | {asked[cue]} | {counted[cue]} |" for cue in DOUBTS)


def differences(records: list[Record]) -> Iterator[str]:
    """Certain statements that the gold contradicts, by kind."""
    tally: Counter[tuple[str, str, str]] = Counter()
    for record in records:
        for name in MAPPING:
            found, truth = record["said"].get(name), truth_of(record, name)
            if found != "uncertain" and (found == "present") != truth and name != "No Finding":
                side = "missed" if truth else "extra"
                tally[name, side, kind_of(record, name, side)] += 1
    yield "\n## Certain statements on which the two differ (all reports)\n"
    yield "Extra: present for the labeler, not in the gold. Missed: in the gold, denied or not named for it.\n"
    yield "| | | kind | reports |\n|---|---|---|---:|"
    for (name, side, kind), number in sorted(tally.items(), key=lambda item: [*MAPPING].index(item[0][0])):
        yield f"| {name} | {side} | {kind} | {number} |"


def kind_of(record: Record, name: str, side: str) -> str:
    terms = " ".join(record["mesh_major"]).lower()
    text = " ".join(sentences(record, name, "present"))
    for observation, where, indexed, said, words in DIFFERENCES:
        if (observation, where) == (name, side) and re.search(indexed, terms) and re.search(said, text):
            return words
    if side == "missed":
        return "denied in the text" if record["said"].get(name) == "absent" else "not named in the text"
    return "asserted in the text, not indexed"


def sentences(record: Record, name: str, state: str) -> list[str]:
    """The sentences of a report that give an observation this state, in small letters."""
    spans = [span.text for span in split_sentences(text_of(record))]
    return [text.lower() for text in spans if label_sentence(text).get(name) == state]


def disagreements(records: list[Record], name: str) -> Iterator[str]:
    for record in records:
        state, truth = record["said"].get(name), truth_of(record, name)
        if record["r2gen_split"] == "train" and truth != (state == "present"):
            yield f"{'missed' if truth else 'extra'} {state} | {text_of(record)} | {record['mesh_major']}\n\n"


def speeds(records: list[Record]) -> Iterator[str]:
    """Sentences a second on one core; nothing is cached between sentences. The best of five, the median beside it."""
    texts = [text_of(record) for record in records]
    spans = [span.text for text in texts for span in split_sentences(text)]
    work: dict[str, Callable[[], object]] = {
        "label_sentence": lambda: [label_sentence(text) for text in spans],
        "split_sentences": lambda: [split_sentences(text) for text in texts],
    }
    for name, task in work.items():
        runs = sorted(len(spans) / timed(task) for _ in range(5))
        yield (
            f"- `{name}`: {runs[-1]:,.0f} sentences/s of CPU time on one core "
            f"(median of five {runs[2]:,.0f}, {len(spans)} sentences)"
        )


def timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
