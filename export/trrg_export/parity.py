"""No conversion without proof: the exported graphs against PyTorch on the checkpoint's held-out studies.

In this order: names, axes (with sizes that the export did not see), values of each graph fed with PyTorch's own
inputs, greedy tokens of the whole chain, labels of the reports and clue scores. The exported side runs through a
runtime that hospitals run: ONNX Runtime, or the one of a target. Every failure is listed, not only the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trrg_export.comparing_backend import comparing_backend
from trrg_export.graph_plan import GraphPlan
from trrg_export.memory import released
from trrg_export.reference import UNSEEN_SIZES, Feeds, Reference, Run
from trrg_sdk.backends import Backend, Decoder, Graph, open_decoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.engine import Engine
from trrg_sdk.errors import TrrgError
from trrg_sdk.labeler import OBSERVATIONS, label_report
from trrg_sdk.manifest import DecoderSpec, GraphSpec, Manifest

Array = NDArray[Any]
_OF_REPORTS = ("vision", "fusion")
"""Graphs that a report is written with, beside the decoder."""


class ParityError(TrrgError):
    """The exported graphs do not do what the PyTorch model does; no bundle was written.

    Attributes:
        failures: All of them.
    """

    exit_code = 6

    def __init__(self, failures: Sequence[str]) -> None:
        """Keep and join the failures."""
        head = f"the graphs differ from PyTorch, no bundle was written ({len(failures)} failures):"
        super().__init__("\n  ".join((head, *failures)))
        self.failures = tuple(failures)

    def __reduce__(self) -> tuple[type[ParityError], tuple[tuple[str, ...]]]:
        """Come whole out of another process, where it is made anew of its arguments."""
        return type(self), (self.failures,)


@dataclass(frozen=True)
class ParityLimits:
    """What may differ at most.

    Attributes:
        value: Largest difference of a number, times the largest number where that is above 1; None for no limit.
        differing_texts: How many studies' greedy tokens may differ; None for no limit.
        label_agreement: Share of study-observation pairs whose state in the report must be the same, 0 to 1.
        clue_flips: Share of study-clue pairs that may fall on the other side of the clue's threshold, 0 to 1.
    """

    value: float | None
    differing_texts: int | None
    label_agreement: float
    clue_flips: float


LIMITS: Mapping[str, ParityLimits] = {
    "fp32": ParityLimits(value=1e-3, differing_texts=0, label_agreement=1.0, clue_flips=0.0),
    # Ten bits of mantissa are 5e-4 a rounding; a graph is a few dozen of them one after the other.
    "fp16": ParityLimits(value=1e-2, differing_texts=None, label_agreement=0.99, clue_flips=0.01),
    "int8": ParityLimits(value=None, differing_texts=None, label_agreement=0.99, clue_flips=0.01),
    # OpenVINO's bf16 on the mini checkpoint: up to 0.003, with forced clues 0.016; Swin-B: 0.014.
    "bf16": ParityLimits(value=0.1, differing_texts=None, label_agreement=0.99, clue_flips=0.01),
    "int8-bf16": ParityLimits(value=None, differing_texts=None, label_agreement=0.99, clue_flips=0.01),
    "int8-vnni": ParityLimits(value=None, differing_texts=None, label_agreement=0.99, clue_flips=0.01),
    "int4": ParityLimits(value=None, differing_texts=None, label_agreement=0.99, clue_flips=0.01),
    "int4-fp16": ParityLimits(value=None, differing_texts=None, label_agreement=0.99, clue_flips=0.01),
}


@dataclass(frozen=True)
class ParityReport:
    """The outcome.

    Attributes:
        table: For the manifest.
        failures: Empty when every limit held.
    """

    table: Mapping[str, Any]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Exported:
    """The exported side of a comparison.

    Attributes:
        bundle: The folder and its draft manifest.
        precision: A key of ``LIMITS``.
        backend: Where it runs; None takes ONNX Runtime on the CPU.
        worst_layers: Graph → the layer that makes the largest error, where that was measured.
    """

    bundle: Bundle
    precision: str
    backend: Backend | None = None
    worst_layers: Mapping[str, str] = field(default_factory=dict)


def compare(
    exported: Exported, plans: Sequence[GraphPlan], reference: Reference, *, limits: ParityLimits
) -> ParityReport:
    """Compare an exported folder with PyTorch.

    Args:
        exported: What was made of it.
        plans: What the three graphs that come from PyTorch take and give.
        reference: What PyTorch gives for the parity studies.
        limits: What may differ.

    Returns:
        Table and failures.
    """
    bundle, precision = exported.bundle, exported.precision
    chosen = exported.backend or comparing_backend(precision)
    opened = _OpenedOnce(chosen)
    found = _Found([], [], {})
    # What no report needs is closed before the others open, and the largest of these is the first: to open one takes
    # several times what it holds then.
    for plan in (plan for plan in plans if plan.name not in _OF_REPORTS):
        _look(plan, chosen, bundle, reference, limits.value, found)
    with released():
        first = _first_logits(open_decoder(opened, bundle), reference)
    for plan in (plan for plan in plans if plan.name in _OF_REPORTS):
        _look(plan, opened, bundle, reference, limits.value, found)
    if found.differing:
        return ParityReport({"precision": precision}, tuple(found.differing))
    values = {**found.values, "decoder": {"logits": Difference.of(first, reference.first_logits)}}
    failures = found.failures + _value_failures(values, limits.value, exported.worst_layers)
    outcome = _reports(Engine(bundle, opened), reference)
    failures += report_failures(outcome, len(reference.ids), limits)
    graph_table = {name: {k: d.table() for k, d in outputs.items()} for name, outputs in values.items()}
    table = {"precision": precision, "studies": len(reference.ids), "graphs": graph_table, **outcome}
    return ParityReport(table, tuple(failures))


class _Found(NamedTuple):
    """What was seen of the graphs that come from PyTorch: other names, other values, and how far all of them are."""

    differing: list[str]
    failures: list[str]
    values: dict[str, Mapping[str, Difference]]


def _look(
    plan: GraphPlan, opener: Backend, bundle: Bundle, reference: Reference, limit: float | None, found: _Found
) -> None:
    spec = bundle.manifest.graph(plan.name, target=opener.target)
    with released():
        graph = opener.graph(bundle.folder / spec.file, spec=spec)
        found.differing.extend(lines := _interface_failures(bundle, plan, graph))
        if not lines:  # nothing runs with other names
            found.failures.extend(_axis_failures(plan, graph, reference.unseen[plan.name], limit))
            found.values[plan.name] = _values(graph, reference.feeds()[plan.name], reference.outputs(plan.name))
        del graph


class _OpenedOnce:
    """A backend that opens a file once, however many ask for it: each session holds the weights again."""

    def __init__(self, backend: Backend) -> None:
        self.name, self.device, self.target = backend.name, backend.device, backend.target
        self._backend = backend
        self._graphs: dict[Path, Graph] = {}
        self._decoders: dict[Path, Decoder] = {}

    def file(self, name: str, manifest: Manifest) -> str:
        return self._backend.file(name, manifest)

    def graph(self, path: Path, *, spec: GraphSpec | None = None) -> Graph:
        if path not in self._graphs:
            self._graphs[path] = self._backend.graph(path, spec=spec)
        return self._graphs[path]

    def decoder(self, path: Path, spec: DecoderSpec) -> Decoder:
        """Open a decoder; who gets the same one again starts with a prompt, which forgets all before it."""
        if path not in self._decoders:
            self._decoders[path] = self._backend.decoder(path, spec)
        return self._decoders[path]


@dataclass(frozen=True)
class Difference:
    """How far two arrays are apart."""

    max_abs: float
    mean_abs: float
    peak: float

    @classmethod
    def of(cls, got: Array, expected: Array) -> Difference:
        """Compare arrays of one shape."""
        gap = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        return cls(float(gap.max()), float(gap.mean()), float(np.abs(expected).max()))

    def within(self, limit: float) -> bool:
        """True when the difference holds the limit; NaN never does."""
        return self.max_abs <= limit * max(1.0, self.peak)

    def table(self) -> dict[str, float]:
        """Three figures, three digits each."""
        relative = self.max_abs / self.peak if self.peak else self.max_abs
        return {"max_abs": _short(self.max_abs), "mean_abs": _short(self.mean_abs), "relative": _short(relative)}


def _interface_failures(bundle: Bundle, plan: GraphPlan, graph: Graph) -> list[str]:
    """Compare names, dtypes and order with the plan, and with what the draft manifest says."""
    try:
        bundle.check_graph_specs(plan.name, graph.inputs, graph.outputs)
    except TrrgError as error:
        return [str(error)]
    planned = [spec.name for spec in plan.inputs] + list(plan.outputs)
    got = [spec.name for spec in (*graph.inputs, *graph.outputs)]
    return [] if planned == got else [f"{plan.name}: expected the inputs and outputs {planned}, got {got}"]


def _axis_failures(plan: GraphPlan, graph: Graph, run: Run, limit: float | None) -> list[str]:
    """Run with sizes that the export did not see: a free axis that was frozen fails or gives other values."""
    try:
        got = graph.run(run.inputs)
    except TrrgError as error:
        return [f"{plan.name} does not run with the sizes {UNSEEN_SIZES}: {error}"]
    failures = []
    for name, wanted in run.outputs.items():
        if got[name].shape != wanted.shape or got[name].dtype != wanted.dtype:
            came = f"{got[name].dtype} {got[name].shape}"
            failures.append(f"{plan.name}.{name}: expected {wanted.dtype} {wanted.shape}, got {came}")
        elif limit is not None and not (gap := Difference.of(got[name], wanted)).within(limit):
            failures.append(f"{plan.name}.{name}: differs by {gap.max_abs:.3g} with the sizes {UNSEEN_SIZES}")
    return failures


def _values(graph: Graph, feeds: Feeds, expected: Mapping[str, Array]) -> dict[str, Difference]:
    """Feed a graph with PyTorch's inputs, one study at a time as at run time, and compare its outputs."""
    runs = [graph.run(feed) for feed in feeds]
    return {name: Difference.of(np.concatenate([run[name] for run in runs]), expected[name]) for name in runs[0]}


def _first_logits(decoder: Decoder, reference: Reference) -> Array:
    return np.stack([decoder.prefill(prompt)[0].copy() for prompt in reference.prompts])


def _value_failures(
    values: Mapping[str, Mapping[str, Difference]], limit: float | None, layers: Mapping[str, str]
) -> list[str]:
    return [
        f"{graph}.{name}: differs by {gap.max_abs:.3g} where numbers reach {gap.peak:.3g}, the limit is {limit:g}"
        + (f"; the error grows most in the layer {layers[graph]}" if layers.get(graph) else "")
        for graph, outputs in values.items()
        for name, gap in outputs.items()
        if limit is not None and not gap.within(limit)
    ]


def _reports(engine: Engine, reference: Reference) -> dict[str, int | float]:
    """Run the whole chain as the runtime does and count what came out differently."""
    override = engine.clues.override(None)
    identical = same = flips = pairs = 0
    furthest = 0.0
    for pixels, logits, expected in zip(reference.pixels, reference.fusion["clue_logits"], reference.ids, strict=True):
        seen = engine.perceive(pixels, override=override)
        ids = engine.write(seen.prompt).ids
        identical += ids == expected
        labels, wanted = (label_report(engine.text(text)) for text in (ids, expected))
        same += sum(labels.get(name) == wanted.get(name) for name in OBSERVATIONS)
        for score, true in zip(seen.scores, engine.clues.scores(logits, override=override), strict=True):
            flips += score.present != true.present
            pairs += 1
            furthest = max(furthest, abs(score.probability - true.probability))
    return {
        "greedy_identical": identical,
        "label_agreement": _short(same / (len(reference.ids) * len(OBSERVATIONS)), digits=5),
        "clue_flips": flips,
        "clue_pairs": pairs,
        "max_probability_difference": _short(furthest),
    }


def report_failures(outcome: Mapping[str, int | float], studies: int, limits: ParityLimits) -> list[str]:
    """Say which limits whole reports pass.

    Args:
        outcome: ``greedy_identical``, ``label_agreement``, ``clue_flips`` and ``clue_pairs``.
        studies: How many reports.
        limits: What may differ.

    Returns:
        A line for each.
    """
    failures = []
    differing = studies - int(outcome["greedy_identical"])
    if limits.differing_texts is not None and differing > limits.differing_texts:
        failures.append(
            f"greedy tokens differ in {differing} of {studies} studies, the limit is {limits.differing_texts}"
        )
    if outcome["label_agreement"] < limits.label_agreement:
        failures.append(
            f"labels of the reports agree in {outcome['label_agreement']:.4f} of the study-observation pairs, "
            f"the limit is {limits.label_agreement:g}"
        )
    flips, pairs = int(outcome["clue_flips"]), int(outcome["clue_pairs"])
    if flips > limits.clue_flips * pairs:
        failures.append(
            f"{flips} of {pairs} clue scores change sides of their thresholds, the limit is {limits.clue_flips:.0%}"
        )
    return failures


def _short(value: float, *, digits: int = 3) -> float:
    return float(f"{value:.{digits}g}")
