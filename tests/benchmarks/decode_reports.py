"""Pages of the workloads ``mini`` and ``iu`` of ``decode.py``: all writers take turns, tables say what came of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from decode_fidelity import Fidelity, fidelity_table, judge
from decode_llama import WIDTHS, bandwidth_of
from decode_process import EngineFailed, EngineProcess
from decode_rival import RIVALS, Rival, RivalTurn, open_rival
from decode_writer import Turn, Writer, open_iu, open_mini

KINDS = {
    "own": "What the decoder writes",
    "human": "What people wrote, replayed through real passes",
    "random": "What the decoder writes, with drafts that are always wrong",
}
_DOUBLED = ("ONNX Runtime fp32", "OpenVINO bf16", "ONNX Runtime fp16")


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
    yield from pages(opened, partial(bandwidth_of, device, threads), threads=threads, turns=turns, goals={}, noise=True)


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
    engines = partial(_engines, folder, names, device=device, threads=threads, least=least)
    exact = {"device": "cpu", "studies": None, "threads": threads, "least": least}
    reference = partial(open_iu, folder, "ONNX Runtime fp32", "own", **exact)
    judged, failed = judge(engines("own", studies=None), reference, workload.tokenizer, threads=threads)
    yield "### Which engines say what fp32 says"
    yield "\n".join(fidelity_table(judged, failed))
    for kind, title in KINDS.items():
        yield f"### {title}"
        goals = judged if kind != "random" else {}
        yield from pages(engines(kind, studies=studies), bandwidth, threads=threads, turns=turns, goals=goals)


def _engines(
    folder: Path, names: Sequence[str], kind: str, *, studies: int | None, threads: int, **more: Any
) -> dict[str, Callable[[], Writer | Rival]]:
    """What opens each engine on the reports of one kind: ours by name, on a CPU llama.cpp too."""
    rivals = RIVALS if more["device"] == "cpu" and kind != "random" else {}
    effort = {"studies": studies, "threads": threads}
    return {
        **{name: partial(open_iu, folder, name, kind, **effort, **more) for name in names},
        **{name: partial(open_rival, folder, name, kind, **effort) for name in rivals},
    }


def pages(
    opened: Mapping[str, Callable[[], Writer | Rival]],
    bandwidth: Callable[[], float],
    *,
    threads: int,
    turns: int,
    goals: Mapping[str, Fidelity],
    noise: bool = False,
) -> Iterator[str]:
    """Let all writers take turns and describe them.

    Args:
        opened: What opens each, by its name.
        bandwidth: Measures bytes a second that are read from memory; before and after, and the larger one counts.
        threads: For each.
        turns: That count; one more comes before them.
        goals: What was found of each engine; empty where nothing is compared.
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
            yield "\n".join(_claims(ours, {**ours, **rivals}, goals))
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


def _claims(
    ours: dict[str, list[Turn]], everyone: Mapping[str, list[Turn] | list[RivalTurn]], judged: Mapping[str, Fidelity]
) -> Iterator[str]:
    """Compare with drafts as the goals do, turn by turn; the best are the fastest that an export would take."""
    yield "| with drafts | against, without drafts | times as fast (least to most) | goal |"
    yield "|---|---|---|---|"
    for name in (name for name in _DOUBLED if name in ours):
        yield _claim(ours, name, everyone, name, 2.0)
    taken = [name for name in everyone if name in judged and judged[name].passes]
    if not (own := [name for name in taken if name in ours]):
        yield "| none of ours keeps the limit on labels | | | **missed** |"
        return
    best = min(own, key=lambda name: _typical(ours[name], _drafted))
    yield _claim(ours, best, everyone, _fastest(everyone, taken), 1.5)
    if (other := _fastest(everyone, judged.keys() & everyone.keys())) not in taken:
        yield _claim(ours, best, everyone, other, None)


def _fastest(everyone: Mapping[str, Sequence[Any]], names: Iterable[str]) -> str:
    return min(names, key=lambda name: _typical(everyone[name], _plain))


def _claim(
    ours: dict[str, list[Turn]], best: str, everyone: Mapping[str, Sequence[Any]], other: str, goal: float | None
) -> str:
    ratios = sorted(_plain(theirs) / _drafted(mine) for mine, theirs in zip(ours[best], everyone[other], strict=True))
    typical = statistics.median(ratios)
    verdict = "none: its labels miss the limit"
    if goal:
        verdict = f"{goal}: {'reached' if typical >= goal else '**missed**'}"
    return f"| {best} | {other} | {typical:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {verdict} |"


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
