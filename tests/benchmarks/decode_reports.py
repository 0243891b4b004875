"""The workloads ``mini`` and ``iu`` of ``decode.py``: reports without and with drafts, by our own loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from decode_llama import WIDTHS, bandwidth_of
from decode_process import EngineFailed, EngineProcess
from numpy.typing import NDArray

from trrg_sdk.backends import open_backend, open_decoder
from trrg_sdk.backends.base import Backend, Decoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding.alike import passes_agree
from trrg_sdk.decoding.choice import NEAR_TIE
from trrg_sdk.decoding.drafts import StoreDrafter
from trrg_sdk.decoding.greedy import Drafts, Generation, generate
from trrg_sdk.decoding.store import ReportStore, StoreArrays, build_store
from trrg_sdk.dicom import load
from trrg_sdk.engine import Engine
from trrg_sdk.labeler import label_sentence
from trrg_sdk.preprocess import Preprocess

_CURVE_TURNS = 40
KINDS = {
    "own": "What the decoder writes",
    "human": "What people wrote, replayed through real passes",
    "random": "What the decoder writes, with drafts that are always wrong",
}
_GOALS = tuple((name, name, 2.0) for name in ("ONNX Runtime fp32", "OpenVINO bf16", "ONNX Runtime fp16"))
Prompt = NDArray[np.float32]


class Task(NamedTuple):
    """One report to write.

    Attributes:
        prompt: float32 (P, Dl).
        present: Observations whose clues are present, one bit each.
        absent: Those that are absent.
        text: What is replayed; None lets the model write.
    """

    prompt: Prompt
    present: int = 0
    absent: int = 0
    text: tuple[int, ...] | None = None


class Turn(NamedTuple):
    """All reports once without and once with drafts.

    Attributes:
        without: Seconds.
        drafted: Seconds, with drafts.
        tokens: Written, end tokens counted.
        passes: With drafts.
        equal: Reports whose tokens are the same both ways.
        distinct: Reports; those with the same tokens as another count once.
    """

    without: float
    drafted: float
    tokens: int
    passes: int
    equal: int
    distinct: int


class Wrong(StoreDrafter):
    """Guesses that are as sure as the store's, and wrong."""

    def line(self, written: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Look up as always, and propose something else."""
        return ((token + 1 if token > 3 else 5, confidence) for token, confidence in super().line(written))


@dataclass
class Writer:
    """A decoder with reports to write, in a process of its own.

    Attributes:
        decoder: It.
        table: (V, Dl), token embeddings.
        tasks: Reports to write.
        eos: The end token.
        limit: The most tokens of a report.
        near_tie: Below which lead a token is decided again; 0 where passes of any width agree.
        drafter: Learns from turn to turn, as it does in a process that writes reports.
        weights: Bytes that a pass reads.
    """

    decoder: Decoder
    table: NDArray[Any]
    tasks: list[Task]
    eos: int
    limit: int
    near_tie: float
    drafter: StoreDrafter
    weights: int

    def turn(self) -> Turn:
        """Write all reports both ways, report by report; a text that comes again does not count."""
        drafts = Drafts(self.drafter, self.near_tie)
        totals, passes, equal, tokens, texts = [0.0, 0.0], 0, 0, 0, set[tuple[int, ...]]()
        for task in self.tasks:
            self.drafter.about(present=task.present, absent=task.absent)
            (plain, text), (drafted, same) = (self._written(task, used) for used in (None, drafts))
            if text.ids in texts:
                continue
            texts.add(text.ids)
            totals[0] += plain
            totals[1] += drafted
            equal += text.ids == same.ids
            passes += same.passes
            tokens += len(text.ids) + 1
        return Turn(totals[0], totals[1], tokens, passes, equal, len(texts))

    def _written(self, task: Task, drafts: Drafts | None) -> tuple[float, Generation]:
        decoder = self.decoder
        if task.text is not None:
            from iu_workload import Replay

            decoder = Replay(decoder, self.eos)
            decoder.about_to_write(task.text)
        start = time.perf_counter()
        text = generate(decoder, task.prompt, self.table, eos=self.eos, max_new_tokens=self.limit, drafts=drafts)
        return time.perf_counter() - start, text

    def curve(self) -> dict[int, float]:
        """Milliseconds of a pass after a prompt by the number of positions, widths taking turns."""
        rng, times = np.random.default_rng(0), {width: list[float]() for width in WIDTHS}
        prompt = self.tasks[0].prompt
        self.decoder.prefill(prompt)
        for _ in range(_CURVE_TURNS + 2):
            for width in WIDTHS:
                embeds = self.table[rng.integers(0, len(self.table), width)]
                start = time.perf_counter()
                self.decoder.read(embeds)
                times[width].append((time.perf_counter() - start) * 1e3)
                self.decoder.truncate(len(prompt))
        return {width: statistics.median(values[2:]) for width, values in times.items()}

    def noise(self) -> str:
        """How far leads move when a text is read several positions a pass: what ``NEAR_TIE`` rests on."""
        worst, leads, flips = 0.0, list[float](), 0
        for task in self.tasks:
            _, text = self._written(task._replace(text=None), None)
            ids, table = list(text.ids), self.table
            self.decoder.prefill(task.prompt)
            single = np.stack([self.decoder.step(table[token : token + 1]).copy() for token in ids])
            best = single.argmax(axis=1)[:, None]
            ordered = np.sort(single, axis=1)
            leads += (ordered[:, -1] - ordered[:, -2]).tolist()
            for width in WIDTHS[1:]:
                self.decoder.prefill(task.prompt)
                chunks = [ids[start : start + width] for start in range(0, len(ids), width)]
                rows = np.concatenate([self.decoder.read(table[chunk]).copy() for chunk in chunks])
                change = np.abs((rows - single) - np.take_along_axis(rows - single, best, axis=1))
                worst = max(worst, float(change.max()))
                flips += int((rows.argmax(axis=1)[:, None] != best).sum())
        below = float(np.mean(np.array(leads) < self.near_tie))
        ties = f"{below:.2%} of {len(leads)} below {self.near_tie:g}" if self.near_tie else "passes of any width agree"
        return f"{worst:.2g} | {flips} | {ties}"

    def size(self) -> int:
        """Bytes that a pass reads."""
        return self.weights


def open_mini(folder: Path | None, files: list[Path], *, device: str, threads: int) -> Writer:
    """Open a bundle's decoder; half of the images make a store where the bundle has none, the others are written.

    Args:
        folder: Of the bundle; None is the embedded one.
        files: DICOM files.
        device: ``"cpu"`` or ``"cuda"``.
        threads: For each graph.
    """
    bundle = Bundle.load(folder) if folder else Bundle.embedded()
    backend = open_backend(device=device, threads=threads)
    graph = bundle.manifest.graph("decoder", target=backend.target)
    decoder, table = open_decoder(backend, bundle), np.asarray(bundle.token_embedding())
    eos, limit = bundle.manifest.tokenizer.eos_token_id, bundle.manifest.decoding.max_new_tokens
    prompts = _prompts(bundle, backend, files)
    half = len(prompts) // 2
    if spec := bundle.manifest.drafts:
        store = ReportStore(StoreArrays(*(bundle.array(array) for array in spec.arrays())), ends=spec.ends)
        near_tie = max(spec.near_tie, NEAR_TIE[graph.precision])
    else:
        texts = [generate(decoder, prompt, table, eos=eos, max_new_tokens=limit) for prompt in prompts[:half]]
        store, near_tie = _own_store(bundle, texts), NEAR_TIE[graph.precision]
    weights = (bundle.folder / graph.file).stat().st_size
    near_tie = 0.0 if passes_agree(decoder, table) else near_tie
    return Writer(
        decoder, table, [Task(prompt) for prompt in prompts[half:]], eos, limit, near_tie, StoreDrafter(store), weights
    )


def _prompts(bundle: Bundle, backend: Backend, files: list[Path]) -> list[Prompt]:
    """What the decoder reads for each image."""
    engine, preprocess = Engine(bundle, backend), Preprocess.from_manifest(bundle.preprocess)
    override, prompts = engine.clues.override(None), []
    for file in files:
        image = load(file)
        pixels = preprocess.apply(image.pixels, spacing_mm=image.pixel_size)
        prompts.append(engine.perceive(pixels, override=override).prompt)
    return prompts


def _own_store(bundle: Bundle, texts: list[Generation]) -> ReportStore:
    """A store of what the bundle wrote itself."""
    from tokenizers import Tokenizer

    tokenizer, names = Tokenizer.from_file(str(bundle.tokenizer_path)), bundle.manifest.observations
    eos, vocab = bundle.manifest.tokenizer.eos_token_id, bundle.manifest.tokenizer.vocab_size
    ends = (eos, *(token for token in range(vocab) if tokenizer.decode([token]).strip().endswith((".", ":"))))

    def findings(sentence: tuple[int, ...]) -> tuple[int, int]:
        labels = label_sentence(tokenizer.decode(list(sentence)))
        return (
            sum(1 << bit for bit, name in enumerate(names) if labels.get(name) == "present"),
            sum(1 << bit for bit, name in enumerate(names) if labels.get(name) == "absent"),
        )

    reports = [[*text.ids, eos] for text in texts]
    return ReportStore(build_store(reports, ends=ends, least=1, findings=findings), ends=ends)


def open_iu(folder: Path, name: str, kind: str, *, device: str, studies: int, threads: int) -> Writer:
    """Open a decoder of the IU reports.

    Args:
        folder: Of ``iu_decoder.py``.
        name: One of ``iu_workload.decoders``.
        kind: A key of ``KINDS``.
        device: ``"cpu"`` or ``"cuda"``.
        studies: At most: what the decoder writes once for each condition, what people wrote as it comes.
        threads: For the graph.
    """
    from iu_workload import UNTRIED, decoders, load_workload

    workload = load_workload(folder)
    precision, opened = next(
        (precision, opened) for known, precision, opened in decoders(workload, device, threads) if known == name
    )
    decoder = opened()
    human = kind == "human"
    tasks = [
        Task(one.prompt, one.present, one.absent, one.text[: workload.limit] if human else None)
        for one in (workload.studies if human else workload.distinct())[:studies]
    ]
    near_tie = 0.0 if passes_agree(decoder, workload.table) else NEAR_TIE.get(precision, UNTRIED)
    drafter = (Wrong if kind == "random" else StoreDrafter)(workload.store)
    stored = workload.file(precision if name.startswith("ONNX") else "explicit").stat().st_size
    weights = stored // 2 if precision == "bf16" else stored
    return Writer(decoder, workload.table, tasks, workload.eos, workload.limit, near_tie, drafter, weights)


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
    yield from pages(opened, bandwidth_of(device, threads), threads=threads, turns=turns, goals=False, noise=True)


def iu_page(folder: Path, *, device: str, threads: int, turns: int, studies: int) -> Iterator[str]:
    """Write the tables of real report text."""
    from iu_workload import decoders, load_workload

    workload = load_workload(folder)
    names = [name for name, _, _ in decoders(workload, device, threads)]
    weights = workload.file("fp32").stat().st_size / 4e6
    bandwidth = bandwidth_of(device, threads)
    yield "## iu: real report text"
    yield (
        f"A decoder that reads {weights:.0f} M weights a pass, trained on the train reports, writes about val studies, "
        "one for each condition (it writes the same about the others); people's reports are those of val in their "
        "order, and a text that comes again does not count. The report store is of train alone. Weights that fit the "
        "processor's cache are not held up by memory."
    )
    for kind, title in KINDS.items():
        yield f"### {title}"
        sizes = {"device": device, "studies": studies, "threads": threads}
        opened = {name: partial(open_iu, folder, name, kind, **sizes) for name in names}
        yield from pages(opened, bandwidth, threads=threads, turns=turns, goals=kind != "random")


def pages(
    opened: Mapping[str, Callable[[], Writer]],
    bandwidth: float,
    *,
    threads: int,
    turns: int,
    goals: bool = True,
    noise: bool = False,
) -> Iterator[str]:
    """Let all writers take turns and describe them.

    Args:
        opened: What opens each, by its name.
        bandwidth: Bytes a second that are read from memory.
        threads: For each.
        turns: That count; one more comes before them.
        goals: Whether to compare with them.
        noise: Whether to measure how far leads move.
    """
    processes, failed = dict[str, EngineProcess](), dict[str, str]()
    try:
        for name, make in opened.items():
            try:
                processes[name] = EngineProcess(make, threads=threads)
            except EngineFailed as error:
                failed[name] = str(error)
        collected: dict[str, list[Turn]] = {name: [] for name in processes}
        for number in range(turns + 1):
            for name, process in processes.items():
                turn = process.call("turn").result
                if number:  # the first one does not count
                    collected[name].append(turn)
        yield "\n".join(_table(collected, processes, failed, bandwidth))
        yield "\n".join(_curves(processes, noise=noise))
        if collected and goals:
            yield "\n".join(_claims(collected))
    finally:
        for process in processes.values():
            process.close()


def _table(
    collected: dict[str, list[Turn]], processes: dict[str, EngineProcess], failed: dict[str, str], bandwidth: float
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
        limit = bandwidth / processes[name].call("size").result  # tokens a second, one a pass
        yield (
            f"| {name} | {one.distinct} | {one.tokens / without:.0f} | {one.tokens / drafted:.0f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {one.tokens / one.passes:.2f} "
            f"| {without / one.distinct * 1e3:.1f}, {drafted / one.distinct * 1e3:.1f} "
            f"| {one.tokens / without / limit:.2f}, {one.tokens / drafted / limit:.2f} "
            f"| {min(turn.equal for turn in turns)} | {processes[name].call('peak').result / 1e6:.0f} |"
        )
    for name, reason in failed.items():
        yield f"| {name} | did not run: {reason} | | | | | | | | |"


def _claims(collected: dict[str, list[Turn]]) -> Iterator[str]:
    """Compare with drafts as the goals do, turn by turn."""
    yield "| with drafts | against, without drafts | times as fast (least to most) | goal |"
    yield "|---|---|---|---|"
    fastest = [min(collected, key=lambda name: _typical(collected[name], cost)) for cost in (_drafted, _plain)]
    for ours, other, goal in (*_GOALS, (fastest[0], fastest[1], 1.5)):
        if ours in collected and other in collected:
            pairs = zip(collected[ours], collected[other], strict=True)
            ratios = sorted(_plain(theirs) / _drafted(mine) for mine, theirs in pairs)
            typical = statistics.median(ratios)
            verdict = "reached" if typical >= goal else "**missed**"
            yield f"| {ours} | {other} | {typical:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {goal}: {verdict} |"


def _typical(turns: Sequence[Turn], cost: Callable[[Turn], float]) -> float:
    return statistics.median(map(cost, turns))


def _plain(turn: Turn) -> float:
    return turn.without / turn.tokens


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
