"""Pages of the workloads ``mini`` and ``iu`` of ``decode.py``: all writers take turns, tables say what came of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from decode_llama import WIDTHS, bandwidth_of
from decode_process import EngineFailed, EngineProcess
from decode_rival import RIVALS, Rival, RivalTurn, open_rival
from decode_writer import Turn, Writer, open_iu, open_mini

KINDS = {
    "own": "What the decoder writes",
    "human": "What people wrote, replayed through real passes",
    "random": "What the decoder writes, with drafts that are always wrong",
}
_GOALS = tuple((name, name, 2.0) for name in ("ONNX Runtime fp32", "OpenVINO bf16", "ONNX Runtime fp16"))


def mini_page(
    bundles: Sequence[Path | None], files: Sequence[Path], *, device: str, threads: int, turns: int
) -> Iterator[str]:
    """Write the tables of bundles on phantoms."""
    opened = {
        str(folder.name if folder else "embedded"): partial(
            open_mini, folder, list(files), device=device, threads=threads
        )
        for folder in bundles
    }
    yield "## mini: bundles on phantoms"
    yield (
        f"{len(files) - len(files) // 2} of {len(files)} images. A bundle without a report store is given one of what "
        "it writes about the other half. Such small weights stay in the processor's cache: memory is no limit."
    )
    yield from pages(
        opened, partial(bandwidth_of, device, threads), threads=threads, turns=turns, goals=False, noise=True
    )


def iu_page(folder: Path, *, device: str, threads: int, turns: int, studies: int, least: int) -> Iterator[str]:
    """Write the tables of real report text."""
    from iu_workload import decoders, load_workload

    workload = load_workload(folder)
    names = [name for name, _, _ in decoders(workload, device, threads)]
    weights = workload.file("fp32").stat().st_size / 4e6
    bandwidth = partial(bandwidth_of, device, threads)
    yield "## iu: real report text"
    yield (
        f"A decoder that reads {weights:.0f} M weights a pass, trained on the train reports, writes about val studies, "
        "one for each condition (it writes the same about the others); people's reports are those of val in their "
        "order, and a text that comes again does not count. Drafts are made of runs of tokens that stand in at least "
        f"{least} of the train reports. Weights that fit the processor's cache are not held up by memory."
    )
    for kind, title in KINDS.items():
        yield f"### {title}"
        sizes = {"device": device, "studies": studies, "threads": threads, "least": least}
        opened = {name: partial(open_iu, folder, name, kind, **sizes) for name in names}
        rivals: dict[str, Callable[[], Rival]] = {}
        if device == "cpu" and kind != "random":
            sizes = {"studies": studies, "threads": threads}
            rivals = {name: partial(open_rival, folder, name, kind, **sizes) for name in RIVALS}
        yield from pages({**opened, **rivals}, bandwidth, threads=threads, turns=turns, goals=kind != "random")


def pages(
    opened: Mapping[str, Callable[[], Writer | Rival]],
    bandwidth: Callable[[], float],
    *,
    threads: int,
    turns: int,
    goals: bool = True,
    noise: bool = False,
) -> Iterator[str]:
    """Let all writers take turns and describe them.

    Args:
        opened: What opens each, by its name.
        bandwidth: Measures bytes a second that are read from memory; before and after, and the larger one counts.
        threads: For each.
        turns: That count; one more comes before them.
        goals: Whether to compare with them.
        noise: Whether to measure how far leads move.
    """
    before, processes, failed = bandwidth(), dict[str, EngineProcess](), dict[str, str]()
    try:
        for name, make in opened.items():
            try:
                processes[name] = EngineProcess(make, threads=threads)
            except EngineFailed as error:
                failed[name] = str(error)
        collected: dict[str, list[Turn | RivalTurn]] = {name: [] for name in processes}
        for number in range(turns + 1):
            for name, process in processes.items():
                turn = process.call("turn").result
                if number:  # the first one does not count
                    collected[name].append(turn)
        rivals = {name: turns for name, turns in collected.items() if isinstance(turns[0], RivalTurn)}
        ours = {name: turns for name, turns in collected.items() if name not in rivals}
        measured = max(before, bandwidth())
        limits = {name: measured / processes[name].call("size").result for name in collected}
        yield "\n".join([*_table(ours, processes, limits), *_rivals(rivals, processes, limits), *_failures(failed)])
        yield "\n".join(_curves({name: processes[name] for name in ours}, noise=noise))
        if ours and goals:
            yield "\n".join(_claims(ours, rivals))
    finally:
        for process in processes.values():
            process.close()


def _table(
    collected: dict[str, list[Turn]], processes: dict[str, EngineProcess], limits: dict[str, float]
) -> Iterator[str]:
    yield (
        "| | distinct reports | tokens/s without drafts | with | ratio (least to most) | tokens a pass "
        "| ms a report without, with | of the memory limit without, with | identical | peak MB |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, turns in collected.items():
        without, drafted = (
            statistics.median(values) for values in zip(*((t.without, t.drafted) for t in turns), strict=True)
        )
        ratios = sorted(turn.without / turn.drafted for turn in turns)
        one = turns[-1]
        limit = limits[name]  # tokens a second, one a pass
        yield (
            f"| {name} | {one.distinct} | {one.tokens / without:.0f} | {one.tokens / drafted:.0f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {one.tokens / one.passes:.2f} "
            f"| {without / one.distinct * 1e3:.1f}, {drafted / one.distinct * 1e3:.1f} "
            f"| {one.tokens / without / limit:.2f}, {one.tokens / drafted / limit:.2f} "
            f"| {min(turn.equal for turn in turns)} | {processes[name].call('peak').result / 1e6:.0f} |"
        )


def _rivals(
    collected: dict[str, list[RivalTurn]], processes: dict[str, EngineProcess], limits: dict[str, float]
) -> Iterator[str]:
    for name, turns in collected.items():
        one, seconds = turns[-1], statistics.median(turn.seconds for turn in turns)
        yield (
            f"| {name} | {one.distinct} | {one.tokens / seconds:.0f} | | | | {seconds / one.distinct * 1e3:.1f} "
            f"| {one.tokens / seconds / limits[name]:.2f} | | {processes[name].call('peak').result / 1e6:.0f} |"
        )


def _failures(failed: dict[str, str]) -> Iterator[str]:
    for name, reason in failed.items():
        yield f"| {name} | did not run: {reason} | | | | | | | | |"


def _claims(collected: dict[str, list[Turn]], rivals: dict[str, list[RivalTurn]]) -> Iterator[str]:
    """Compare with drafts as the goals do, turn by turn."""
    yield "| with drafts | against, without drafts | times as fast (least to most) | goal |"
    yield "|---|---|---|---|"
    everyone = {**collected, **rivals}
    best = min(collected, key=lambda name: _typical(collected[name], _drafted))
    fastest = [min(group, key=lambda name: _typical(group[name], _plain)) for group in (collected, everyone)]
    for ours, other, goal in dict.fromkeys((*_GOALS, *((best, name, 1.5) for name in fastest))):
        if ours in collected and other in everyone:
            pairs = zip(collected[ours], everyone[other], strict=True)
            ratios = sorted(_plain(theirs) / _drafted(mine) for mine, theirs in pairs)
            typical = statistics.median(ratios)
            verdict = "reached" if typical >= goal else "**missed**"
            yield f"| {ours} | {other} | {typical:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {goal}: {verdict} |"


def _typical(turns: Sequence[Any], cost: Callable[[Any], float]) -> float:
    return statistics.median(map(cost, turns))


def _plain(turn: Turn | RivalTurn) -> float:
    return (turn.without if isinstance(turn, Turn) else turn.seconds) / turn.tokens


def _drafted(turn: Turn) -> float:
    return turn.drafted / turn.tokens


def _curves(processes: dict[str, EngineProcess], *, noise: bool) -> Iterator[str]:
    more = " largest change of a lead | other likeliest token | leads |" if noise else ""
    yield f"| ms of a pass over | {' | '.join(map(str, WIDTHS))} |{more}"
    yield "|---|" + "---|" * (len(WIDTHS) + 3 * noise)
    for name, process in processes.items():
        curve = process.call("curve").result
        cells = " | ".join(f"{curve[width]:.3f}" for width in WIDTHS)
        yield f"| {name} | {cells} |" + (f" {process.call('noise').result} |" if noise else "")
