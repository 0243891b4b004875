"""What drafts are worth on real report text, and what they cost where they are worth nothing.

    python tests/benchmarks/iu_decoder.py --reports iu_reports.jsonl.gz --out runs/iu
    python tests/benchmarks/iu_drafts.py runs/iu --write tests/benchmarks/results/iu_drafts.md

Each val study with a condition of its own is written with and without drafts in turn, in each precision: fp32, int8 and
int4 on ONNX Runtime, fp32 and bf16 on OpenVINO. Texts that come out the same count once. Then what people wrote about
the same studies is replayed: every pass is made, but its likeliest token is the person's. Last,
drafts of wrong tokens.
Tokens must be identical. Prompts are part of every time. ``--clock cpu`` counts processor time around each text, for a
machine that does other work; a drafter measures by the wall all the same (asking for processor time in every pass is a
call of the kernel, at which a busy machine takes the processor away: 0.4 ms a pass of 0.7 ms).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from iu_workload import PRECISIONS, Replay, Study, Workload, load_workload
from openvino_decoder import OpenVinoDecoder

from trrg_sdk.backends.base import Decoder
from trrg_sdk.decoding.alike import passes_agree
from trrg_sdk.decoding.choice import NEAR_TIE
from trrg_sdk.decoding.drafts import StoreDrafter
from trrg_sdk.decoding.greedy import Drafter, Drafts, generate

WIDTHS = (1, 2, 4, 8, 16)
UNTRIED = 0.3
"""Lead that a pass must have in a precision whose noise was never measured: bf16 where passes do not agree."""
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class WrongDrafts(StoreDrafter):
    """Guesses that are as sure as the store's, and wrong."""

    def guess(self, written: Sequence[int], *, most: int) -> tuple[list[int], list[float]]:
        """Look up as always, and propose something else."""
        tokens, confidences = super().guess(written, most=most)
        return [token + 1 if token > 3 else 5 for token in tokens], confidences


@dataclass
class Arm:
    """What was measured of one way of writing."""

    seconds: float = 0.0
    passes: int = 0


@dataclass
class Row:
    """One decoder on one kind of text."""

    decoder: str
    text: str
    tokens: int = 0
    studies: int = 0
    arms: dict[str, Arm] = field(default_factory=lambda: {"plain": Arm(), "drafts": Arm()})

    def cells(self) -> list[str]:
        """For the table."""
        plain, drafts = self.arms["plain"], self.arms["drafts"]
        rates = [self.tokens / arm.seconds for arm in (plain, drafts)]
        ratio = plain.seconds / drafts.seconds
        shown = [f"{rates[0]:.0f}", f"{rates[1]:.0f}", f"{ratio:.2f}", f"{self.tokens / drafts.passes:.2f}"]
        return [self.decoder, self.text, str(self.studies), str(self.tokens), *shown]


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    workload: Workload
    studies: list[Study]
    clock: Callable[[], float]
    repeats: int

    def measure(self, name: str, text: str, decoder: Decoder, drafter: Drafter, near_tie: float) -> Row:
        """Write all studies with and without drafts in turn; identical texts count once."""
        row, drafts = Row(name, text), Drafts(drafter, near_tie)
        for repeat in range(self.repeats + 1):  # the first round is left out: the drafter learns in it
            seen = set[tuple[int, ...]]()
            for study in self.studies:
                made = {arm: self._written(decoder, study, drafts if arm == "drafts" else None) for arm in row.arms}
                texts = {ids for ids, _, _ in made.values()}
                if len(texts) != 1:
                    raise SystemExit(f"{name}, {text}: drafts changed a report")
                (ids,) = texts
                if repeat == 0 or ids in seen:
                    continue
                seen.add(ids)
                row.tokens += len(ids) + 1
                row.studies = len(seen)
                for arm, (_, seconds, passes) in made.items():
                    row.arms[arm].seconds += seconds
                    row.arms[arm].passes += passes
        return row

    def _written(self, decoder: Decoder, study: Study, drafts: Drafts | None) -> tuple[tuple[int, ...], float, int]:
        if drafts and isinstance(drafts.drafter, StoreDrafter):
            drafts.drafter.about(present=study.present, absent=study.absent)
        if isinstance(decoder, Replay):
            decoder.about_to_write(study.text)
        work = self.workload
        start = self.clock()
        text = generate(decoder, study.prompt, work.table, eos=work.eos, max_new_tokens=work.limit, drafts=drafts)
        return text.ids, self.clock() - start, text.passes

    def curve(self, decoder: Decoder) -> dict[int, float]:
        """Milliseconds of a pass by its width, widths taking turns."""
        prompt, table = self.studies[0].prompt, self.workload.table
        times: dict[int, list[float]] = {width: [] for width in WIDTHS}
        for _ in range(22):
            for width in WIDTHS:
                decoder.prefill(prompt)
                start = self.clock()
                decoder.read(table[3 : 3 + width])
                times[width].append((self.clock() - start) * 1e3)
        return {width: statistics.median(values[2:]) for width, values in times.items()}


def decoders(workload: Workload, threads: int) -> list[tuple[str, str, Callable[[], Decoder]]]:
    """Name, precision and how to open each."""
    explicit = workload.file("explicit")
    ours: list[tuple[str, str, Callable[[], Decoder]]] = [
        (f"ONNX Runtime {name}", name, lambda name=name: workload.decoder(name, threads=threads)) for name in PRECISIONS
    ]
    theirs: list[tuple[str, str, Callable[[], Decoder]]] = [
        (
            f"OpenVINO {name}",
            name,
            lambda name=name: OpenVinoDecoder(explicit, workload.spec, precision=name, threads=threads),
        )
        for name in ("fp32", "bf16")
    ]
    return [*ours, *theirs]


def report(bench: Bench, threads: int, only: Sequence[str]) -> list[str]:
    """Lines of the page."""
    curves, rows, notes = [], list[Row](), []
    for name, precision, opened in decoders(bench.workload, threads):
        if only and name.split()[-1] not in only:
            continue
        decoder = opened()
        alike = passes_agree(decoder, bench.workload.table)
        near_tie = 0.0 if alike else NEAR_TIE.get(precision, UNTRIED)
        curve = bench.curve(decoder)
        agreed = "yes" if alike else "no"
        curves.append([name, *(f"{curve[width]:.2f}" for width in WIDTHS), f"{curve[8] / curve[1]:.2f}", agreed])
        store = bench.workload.store
        rows.append(bench.measure(name, "own", decoder, StoreDrafter(store), near_tie))
        rows.append(bench.measure(name, "human", Replay(decoder, bench.workload.eos), StoreDrafter(store), near_tie))
        rows.append(bench.measure(name, "own, wrong drafts", decoder, WrongDrafts(store), near_tie))
        for row in rows[-3:]:
            print(*row.cells(), flush=True)
    best = {arm: max(rows[::3], key=lambda row: row.tokens / row.arms[arm].seconds) for arm in ("plain", "drafts")}
    fastest = [best[arm].tokens / best[arm].arms[arm].seconds for arm in ("plain", "drafts")]
    notes.append(
        f"Fastest without drafts: {best['plain'].decoder}; with: {best['drafts'].decoder}, "
        f"{fastest[1] / fastest[0]:.2f} times as fast (own text)."
    )
    return [
        *_table(["decoder", *map(str, WIDTHS), "8 to 1", "passes agree"], curves),
        "",
        *_table(
            ["decoder", "text", "studies", "tokens", "tokens/s plain", "drafts", "ratio", "tokens a pass"],
            [row.cells() for row in rows],
        ),
        "",
        *notes,
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of iu_decoder.py")
    parser.add_argument("--studies", type=int, default=120, help="with conditions of their own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--only", nargs="*", default=(), help="precisions, such as fp32 int4")
    parser.add_argument("--write", type=Path, help="the page")
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]
    workload = load_workload(arguments.folder)
    bench = Bench(workload, workload.distinct()[: arguments.studies], clock, arguments.repeats)
    lines = [
        "# Drafts on real report text",
        "",
        f"`python tests/benchmarks/iu_drafts.py`: {platform.machine()}, {os.cpu_count()} processors, "
        f"{arguments.threads} threads, {arguments.clock} clock, ONNX Runtime {version('onnxruntime')}, OpenVINO "
        f"{version('openvino')}; {len(bench.studies)} val studies with conditions of their own, {arguments.repeats} "
        "rounds, all reports identical with and without drafts. Milliseconds of a pass by its positions:",
        "",
        *report(bench, arguments.threads, arguments.only),
    ]
    print("\n".join(lines))
    if arguments.write:
        arguments.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
