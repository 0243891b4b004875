"""The workloads ``llama…`` of ``decode.py``: one model with random weights through every engine, without drafts."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from decode_peers import Arm, arms, gpu_arms
from decode_process import EngineFailed, EngineProcess, Timed

from trrg_sdk.manifest import DecoderSpec

WIDTHS = (1, 2, 4, 8, 16)
PROMPT, WRITTEN = 64, 96
_CURVE_TURNS = 9
_READ = 1 << 30
_MAKING = 3600.0  # seconds that making the models may take on a busy machine
_SETTINGS = {
    "cpu": (
        "Ours and onnxruntime-genai run the same graphs (genai's with the token table in front), int4 in blocks of 32 "
        "with the matrix of the logits. genai has past and present in one buffer and threads that spin, its default. "
        "llama.cpp computes through its C interface with its greedy sampler, compiled for this processor. OpenVINO "
        "GenAI has its stateful backend (the paged one refuses this graph), keys and values in 8 bits, its default, "
        "and activations in bf16 but for fp32, where the processor has it. Hugging Face is `generate` with its "
        "dynamic cache, uncompiled."
    ),
    "cuda": (
        "Ours and onnxruntime-genai run the same graphs (genai's with the token table in front), int4 in blocks of 32 "
        "with the matrix of the logits, both with captured CUDA graphs and one buffer for past and present. Hugging "
        "Face is `generate` with its dynamic cache, and with its static one, which it compiles."
    ),
}
REFERENCE = {
    "cpu": ("Hugging Face generate, eager", "fp32"),
    "cuda": ("Hugging Face generate, static cache, compiled", "fp16"),
}
_GOALS = {
    "cpu": [
        (("ours", "int4"), ("onnxruntime-genai", "int4"), 1.0),
        (("ours", "int8"), ("onnxruntime-genai", "int8"), 1.0),
        (("ours", "fp32"), ("onnxruntime-genai", "fp32"), 1.0),
        (("ours", "int4"), REFERENCE["cpu"], 6.0),
    ],
    "cuda": [
        (("ours", "fp16"), ("onnxruntime-genai", "fp16"), 1.0),
        (("ours", "int4-fp16"), ("onnxruntime-genai", "int4-fp16"), 1.0),
        (("ours", "fp16"), REFERENCE["cuda"], 1.0),
    ],
}


@dataclass
class Row:
    """What is known of one engine at one precision.

    Attributes:
        arm: It.
        first: Times of the prompt with the first token, one a turn.
        whole: Times of the prompt with ``1 + WRITTEN`` tokens.
        curve: Milliseconds of a pass by its positions.
        ids: What it wrote.
        peak: Bytes of its process.
        failed: Why it does not work, or no longer.
    """

    arm: Arm
    first: list[Timed] = field(default_factory=list)
    whole: list[Timed] = field(default_factory=list)
    curve: dict[int, float] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    peak: int = 0
    failed: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Engine and precision."""
        return self.arm.name, self.arm.precision

    def tokens(self) -> list[float]:
        """Seconds of a token in each turn, without the prompt."""
        return [(whole.seconds - first.seconds) / WRITTEN for whole, first in zip(self.whole, self.first, strict=True)]

    def busy(self) -> float:
        """CPU seconds of a token, the median."""
        pairs = zip(self.whole, self.first, strict=True)
        return statistics.median((whole.cpu - first.cpu) / WRITTEN for whole, first in pairs)


def read_bandwidth(threads: int) -> float:
    """Bytes a second that threads read together from a gibibyte of memory: the best of seven passes."""
    parts = np.array_split(np.ones(_READ // 8, np.int64), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(7):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - start)
    return _READ / best


class Gpu:
    def read_bandwidth(self) -> float:
        """Bytes a second that the GPU reads of two gibibytes: the best of ten passes."""
        import torch

        values = torch.randint(0, 9, (_READ // 4,), device="cuda")  # int64
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        best = float("inf")
        for _ in range(10):
            start.record()
            values.max()
            end.record()
            torch.cuda.synchronize()
            best = min(best, start.elapsed_time(end) / 1e3)
        return 2 * _READ / best


def bandwidth_of(device: str, threads: int) -> float:
    """Bytes a second that are read from the memory of a device."""
    if device == "cpu":
        return read_bandwidth(threads)
    process = EngineProcess(Gpu, threads=threads)
    try:
        found: float = process.call("read_bandwidth").result
        return found
    finally:
        process.close()


def llama_page(
    shape: str,
    *,
    device: str,
    threads: int,
    turns: int,
    layers: int | None,
    drafted: Callable[[Path, DecoderSpec], Iterator[str]] | None = None,
) -> Iterator[str]:
    """Make the models, let all engines take turns, and write the tables.

    Args:
        shape: One of ``decode_models.SHAPES``.
        device: ``"cpu"`` or ``"cuda"``.
        threads: Of each engine.
        turns: That count; one more comes before them.
        layers: Of the model, where they are not the shape's.
        drafted: Writes what follows while the models are there.
    """
    bandwidth = bandwidth_of(device, threads)
    with tempfile.TemporaryDirectory(prefix="decode-") as name:
        folder = Path(name)
        made = EngineProcess(Maker, threads=threads, patience=_MAKING)  # a process: torch and the weights go with it
        try:
            spec, weights, failed = made.call("make", folder, shape, layers, device).result
        finally:
            made.close()
        known = (arms if device == "cpu" else gpu_arms)(folder, spec, threads=threads)
        rows = [Row(arm, failed=failed.get(arm.form, "")) for arm in known]
        _measure(rows, threads=threads, turns=turns)
        yield f"## {shape}: {weights['hf/fp16'] / 2e6:.0f} M random weights a pass, speed only"
        yield (
            f"Prompt {PROMPT}, then {WRITTEN} tokens, batch 1, {threads} threads, {turns} turns. A token's time is "
            f"that of {WRITTEN + 1} tokens less that of the first, over {WRITTEN}. The memory limit is weights / "
            f"{bandwidth / 1e9:.1f} GB/s, measured. Peak memory is that of the engine's process, loading included, "
            "without a GPU's."
        )
        yield _SETTINGS[device]
        yield "\n".join(_table(rows, weights, bandwidth, REFERENCE[device]))
        yield "### Milliseconds of a pass over several positions, all logits"
        yield "\n".join(_curves(rows))
        yield "### What it must show"
        yield "\n".join(claims(rows, device))
        if drafted:
            yield from drafted(folder, spec)


class Maker:
    def make(
        self, folder: Path, shape: str, layers: int | None, device: str
    ) -> tuple[DecoderSpec, dict[str, int], dict[str, str]]:
        """Make the models; plain values go back, so that the parent need not import torch to read them."""
        from decode_models import make_models

        models = make_models(folder, shape=shape, layers=layers, device=device)
        return models.spec, models.bytes, models.failed


def _measure(rows: Sequence[Row], *, threads: int, turns: int) -> None:
    """Open every engine that can be, let them take turns, then measure their curves."""
    processes: dict[tuple[str, str], EngineProcess] = {}
    prompt = np.random.default_rng(0).integers(3, 20_000, PROMPT).tolist()
    try:
        for row in rows:
            with _noting(row) as works:
                if works:
                    processes[row.key] = EngineProcess(row.arm.open, threads=threads)
        for turn in range(turns + 1):
            for row in rows:
                with _noting(row) as works:
                    if works:
                        _turn(row, processes[row.key], prompt, counts=turn > 0)
        for row in rows:
            with _noting(row) as works:
                if works and row.arm.passes:
                    _curve(row, processes[row.key], prompt[: WIDTHS[-1]])
    finally:
        for process in processes.values():
            process.close()


@contextmanager
def _noting(row: Row) -> Iterator[bool]:
    """Say whether an engine works so far, and note it when it stops to."""
    try:
        yield not row.failed
    except EngineFailed as error:
        row.failed = str(error)


def _turn(row: Row, process: EngineProcess, prompt: list[int], *, counts: bool) -> None:
    first, whole = (process.call("write", prompt, count) for count in (1, 1 + WRITTEN))
    row.ids, row.peak = whole.result, process.call("peak").result
    if counts:
        row.first.append(first)
        row.whole.append(whole)


def _curve(row: Row, process: EngineProcess, tokens: list[int]) -> None:
    times: dict[int, list[float]] = {width: [] for width in WIDTHS}
    for turn in range(_CURVE_TURNS + 1):
        for width in WIDTHS:
            process.call("rewind")
            timed = process.call("read", tokens[:width])
            if turn:
                times[width].append(timed.seconds * 1e3)
    row.curve = {width: statistics.median(values) for width, values in times.items()}


def _table(rows: Sequence[Row], weights: dict[str, int], bandwidth: float, like: tuple[str, str]) -> Iterator[str]:
    reference = next((row for row in rows if row.key == like), None)
    yield (
        "| engine | precision | tokens/s (least to most) | CPU ms a token | prompt and first token, ms "
        f"| of the memory limit | peak MB | tokens like {' '.join(like)} |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        if not row.whole:
            yield f"| {row.arm.name} | {row.arm.precision} | did not run: {row.failed} | | | | | |"
            continue
        times = row.tokens()
        typical = statistics.median(times)
        share = weights[row.arm.form] / bandwidth / typical
        first = statistics.median(one.seconds for one in row.first)
        yield (
            f"| {row.arm.name} | {row.arm.precision} "
            f"| {1 / typical:.0f} ({1 / max(times):.0f} to {1 / min(times):.0f}) "
            f"| {row.busy() * 1e3:.1f} | {first * 1e3:.0f} | {share:.2f} | {row.peak / 1e6:.0f} "
            f"| {_alike(row.ids, reference.ids if reference else [])} |"
        )


def _alike(ids: Sequence[int], others: Sequence[int]) -> str:
    same = next((place for place, pair in enumerate(zip(ids, others, strict=False)) if pair[0] != pair[1]), len(ids))
    return "all" if len(others) and same == len(ids) else f"first {same}"


def _curves(rows: Sequence[Row]) -> Iterator[str]:
    yield f"| engine | precision | {' | '.join(map(str, WIDTHS))} | 8 in passes over one |"
    yield "|---|---|" + "---|" * (len(WIDTHS) + 1)
    for row in rows:
        if row.curve:
            cells = " | ".join(f"{row.curve[width]:.2f}" for width in WIDTHS)
            yield f"| {row.arm.name} | {row.arm.precision} | {cells} | {row.curve[8] / row.curve[1]:.2f} |"
        elif row.whole and row.arm.passes:
            yield f"| {row.arm.name} | {row.arm.precision} | no figures: {row.failed} |" + " |" * len(WIDTHS)


def claims(rows: Sequence[Row], device: str) -> Iterator[str]:
    """Compare without drafts as the goals do: the ratio of each turn, and its median."""
    known = {row.key: row for row in rows if row.whole}
    yield "| ours | against | times as fast (least to most) | goal | equal tokens |"
    yield "|---|---|---|---|---|"
    for ours, other, goal in _GOALS[device]:
        if ours in known and other in known:
            pairs = zip(known[ours].tokens(), known[other].tokens(), strict=False)  # one may have failed on the way
            ratios = sorted(theirs / mine for mine, theirs in pairs)
            typical = statistics.median(ratios)
            verdict = "reached" if typical >= goal else "**missed**"
            equal = _alike(known[ours].ids, known[other].ids)
            line = f"{typical:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {goal:.1f}: {verdict} | {equal}"
        else:
            line = "not measured: one of the two did not run | |"
        yield f"| {ours[1]} | {other[0]} {other[1]} | {line} |"
