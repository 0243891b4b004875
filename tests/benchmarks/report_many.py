"""``report_many`` against a loop over ``report``, on DICOM files: time, where it goes, and memory over many studies.

    trrg-train phantom --count 200 --seed 7 --size 512 --out phantom
    python tests/benchmarks/report_many.py --studies phantom --soak 5000 --write tests/benchmarks/results/report_many.md
    python tests/benchmarks/report_many.py --studies phantom --bundle mini_fp16 --device cuda         # on a GPU

Both run in one process with one reporter, of the embedded bundle unless another is named, over the same files, and take
turns, so that a noisy machine hurts both alike; each turn gives one ratio. Every turn compares the outcomes. The steps
are timed in the turns of the loop by the reports themselves, so they do not overlap. CPU time is that of all threads,
which other processes change least: where it is the same for both, the gain is that of the second core.

The soak runs ``report_many`` over the files again and again and reads the resident memory on the way. This is no
timed test.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trrg_sdk import InputError, Report, Reporter
from trrg_sdk.processors import processors

GOAL = 1.6
_STEPS = ("load", "gate", "preprocess", "perceive", "decode", "verify")


class Turn(NamedTuple):
    """One pass over the files; milliseconds a study."""

    wall: float
    cpu: float
    answers: list[Report | str]  # an error's code where there is no report


def loop(reporter: Reporter, files: Sequence[Path]) -> Turn:
    """Report one file after the other."""
    answers: list[Report | str] = []
    started, cpu = time.perf_counter(), time.process_time()
    for file in files:
        try:
            answers.append(reporter.report(file))
        except InputError as error:
            answers.append(error.code)
    return _turn(started, cpu, answers)


def many(reporter: Reporter, files: Sequence[Path]) -> Turn:
    """Report all with ``report_many``."""
    started, cpu = time.perf_counter(), time.process_time()
    answers = [one.report or (one.error.code if one.error else "") for one in reporter.report_many(files)]
    return _turn(started, cpu, answers)


def _turn(started: float, cpu: float, answers: list[Report | str]) -> Turn:
    count = len(answers) / 1e3
    return Turn((time.perf_counter() - started) / count, (time.process_time() - cpu) / count, answers)


def said(answer: Report | str) -> tuple[Any, ...]:
    """What must be the same: all but timings, and log-probabilities, which agree to rounding."""
    if isinstance(answer, str):
        return (answer,)
    sentences = [(one.text, one.section, one.labels, one.verdict, one.evidence) for one in answer.sentences]
    return answer.text, sentences, answer.clues, answer.omissions, answer.gate, answer.images, answer.generation


def resident() -> float:
    """Resident memory of this process in MB; Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(reporter: Reporter, files: Sequence[Path], count: int) -> list[tuple[int, float]]:
    """Studies and megabytes, ten times on the way."""
    points = []
    sources = itertools.islice(itertools.cycle(files), count)
    for outcome in reporter.report_many(sources):
        if (outcome.index + 1) % max(1, count // 10) == 0:
            points.append((outcome.index + 1, resident()))
    return points


def page(pairs: list[tuple[Turn, Turn]], points: list[tuple[int, float]], command: str, beside: str) -> Iterator[str]:
    """The page in Markdown."""
    import torch  # late, with mini_run: it would stand in the memory
    from mini_run import machine, spread

    yield from ("# report_many", "", "Made by (do not edit):", "", "```bash", command, "```", "")
    yield from ((__doc__ or "").split("\n\n", 2)[2].rstrip(), "")
    found, load = processors(), os.getloadavg()
    torch.set_num_threads(found.threads)  # machine() says as many; nothing here runs on it
    yield from machine(("onnxruntime", "numpy", "pydicom"))
    busy = f"{load[1]:.1f} processes wanted to run (mean of 5 minutes, at the end)"
    yield f"{found.logical} processors; {busy}.{f' Beside it ran {beside}.' if beside else ''}"
    yield ""
    answers = pairs[0][0].answers
    reports = [answer for answer in answers if isinstance(answer, Report)]
    tokens = statistics.mean(report.generation.tokens for report in reports)
    same = all(list(map(said, one.answers)) == list(map(said, two.answers)) for one, two in pairs)
    yield f"{len(answers)} studies, {len(reports)} reports of {tokens:.0f} tokens on average, {len(pairs)} turns."
    yield f"Outcomes of both {'are equal in every turn' if same else 'DIFFER'}. Median (least to most):"
    yield from ("", "| | ms a study, wall clock | ms a study, CPU |", "|---|---|---|")
    for name, turns in (
        ("loop over `report`", [one for one, _ in pairs]),
        ("`report_many`", [two for _, two in pairs]),
    ):
        yield f"| {name} | {spread([turn.wall for turn in turns], 1)} | {spread([turn.cpu for turn in turns], 1)} |"
    ratios = [one.wall / two.wall for one, two in pairs]
    verdict = "reached" if statistics.median(ratios) >= GOAL else "missed"
    yield from ("", f"Ratio of each turn: {spread(ratios, 2)}; the goal of {GOAL} is {verdict}.", "")
    yield from ("Where the loop's time goes, median of its reports:", "")
    yield from ("| " + " | ".join(_STEPS) + " |", "|" + "---|" * len(_STEPS))
    every = [answer.timings_ms for one, _ in pairs for answer in one.answers if isinstance(answer, Report)]
    yield "| " + " | ".join(f"{statistics.median(times[step] for times in every):.1f}" for step in _STEPS) + " |"
    if points:
        yield from ("", "Resident memory of the process during the soak:", "", "| studies | MB |", "|---|---|")
        yield from (f"| {studies} | {memory:.0f} |" for studies, memory in points)


def main() -> int:
    """Measure, print and perhaps write the page."""
    parser = argparse.ArgumentParser(description="report_many against a loop over report")
    parser.add_argument("--studies", required=True, type=Path, help="a folder of DICOM files")
    parser.add_argument("--bundle", type=Path, help="default: the embedded one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="studies of the soak (default: none)")
    parser.add_argument("--beside", default="", metavar="TEXT", help="what ran on the machine meanwhile, for the page")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="where the page goes")
    args = parser.parse_args()
    files = sorted(args.studies.rglob("*.dcm"))
    reporter = Reporter(args.bundle, device=args.device)
    many(reporter, files[:20])  # opens everything
    pairs = []
    for turn in range(args.turns):
        first, second = (loop, many) if turn % 2 == 0 else (many, loop)
        made = {first: first(reporter, files), second: second(reporter, files)}
        pairs.append((made[loop], made[many]))
        print(f"turn {turn + 1}: {made[loop].wall:.1f} and {made[many].wall:.1f} ms", file=sys.stderr, flush=True)
    points = soak(reporter, files, args.soak)
    if points:
        print(f"soak: {points}", file=sys.stderr, flush=True)
    options = [f"--studies phantom --turns {args.turns}", *([f"--soak {args.soak}"] if args.soak else [])]
    if args.bundle:
        options += [f"--bundle {args.bundle.name} --device {reporter.device}"]
    command = f"python tests/benchmarks/report_many.py {' '.join(options)}"
    text = "\n".join(page(pairs, points, command, args.beside)) + "\n"
    print(text)
    if args.write:
        args.write.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
