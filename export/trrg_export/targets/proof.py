"""Compares a target's own graphs with PyTorch: values of each, then the reports that they write together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_export.comparing_backend import comparing_backend
from trrg_export.parity import Difference, ParityError, report_failures
from trrg_export.targets.base import ProvenSite
from trrg_sdk.backends.base import Graph
from trrg_sdk.clues import sigmoid
from trrg_sdk.labeler import OBSERVATIONS, label_report
from trrg_sdk.manifest import GraphSpec, TensorSpec

Array = NDArray[Any]
_LOG = logging.getLogger(__name__)


def prove(site: ProvenSite, name: str, graphs: Mapping[str, GraphSpec]) -> None:
    """Run the graphs on ONNX Runtime as a report does, and hold them against the limits.

    Args:
        site: The bundle under construction.
        name: Of the target, for messages.
        graphs: All four; the decoder with an explicit past.

    Raises:
        ParityError: A limit was passed; the message lists all of them.
    """
    opened = {graph: comparing_backend(spec.precision).graph(site.folder / spec.file) for graph, spec in graphs.items()}
    chain = _Chain(site, opened)
    gaps = chain.values()
    reports = [chain.report(index) for index in range(len(site.reference.ids))]
    pairs = list(zip((ids for ids, _ in reports), site.reference.ids, strict=True))
    same = sum(ids == expected for ids, expected in pairs)
    agreement = _label_agreement(pairs, site.checkpoint.tokenizer)
    flips, count = _clue_flips(np.concatenate([logits for _, logits in reports]), site)
    furthest = max(gaps, key=lambda key: gaps[key].max_abs)
    _LOG.info(
        "%s: %d of %d reports token-identical to PyTorch's, labels agree in %.4f, clue flips %d, largest difference "
        "%.3g (%s)",
        *(name, same, len(pairs), agreement, flips, gaps[furthest].max_abs, furthest),
    )
    outcome = {
        "greedy_identical": same,
        "label_agreement": round(agreement, 5),
        "clue_flips": flips,
        "clue_pairs": count,
    }
    table = {"studies": len(pairs), **outcome, "graphs": _by_graph(gaps)}
    site.tables[f"{site.precision} on {name}"] = table
    failures = _value_failures(name, gaps, site.limits.value)
    failures += [f"{name}: {line}" for line in report_failures(outcome, len(pairs), site.limits)]
    if failures:
        raise ParityError(failures)


class _Chain:
    """The four graphs of a target, run one study at a time."""

    def __init__(self, site: ProvenSite, graphs: Mapping[str, Graph]) -> None:
        self._site, self._graphs = site, graphs
        self._table: Array = site.bundle.token_embedding()
        self._eos = site.bundle.manifest.tokenizer.eos_token_id

    def values(self) -> dict[str, Difference]:
        """Compare each graph's outputs where it is fed with PyTorch's inputs."""
        reference = self._site.reference
        expected = {"vision": reference.vision, "fusion": reference.fusion}
        gaps = {}
        for name, wanted in (*expected.items(), ("clue_encoder", {"clue_joint": reference.clue_joint})):
            runs = [self._graphs[name].run(feed) for feed in self._site.feeds[name]]
            for key, value in wanted.items():
                gaps[f"{name}.{key}"] = Difference.of(np.concatenate([run[key] for run in runs]), value)
        first = [self._read(prompt[None], {})[0] for prompt in reference.prompts]
        gaps["decoder.logits"] = Difference.of(np.stack(first), reference.first_logits)
        return gaps

    def report(self, index: int) -> tuple[tuple[int, ...], Array]:
        """Write greedily from the pixels on; token ids, and the clue logits (1, C) seen on the way."""
        reference, meta = self._site.reference, self._site.checkpoint.meta
        seen = self._graphs["vision"].run({"pixels": reference.pixels[index : index + 1]})
        saw = self._graphs["fusion"].run({**seen, **reference.clue_inputs})
        fused = saw["prompt_embeds"]
        start = len(meta.prefix_ids)
        embeds = reference.prompts[index : index + 1].copy()
        embeds[:, start : start + fused.shape[1]] = fused
        ids: list[int] = []
        past: dict[str, Array] = {}
        for _ in range(meta.max_new_tokens):
            logits, past = self._read(embeds, past)
            token = int(logits.argmax())
            if token == self._eos:
                break
            ids.append(token)
            embeds = self._table[None, token : token + 1]
        return tuple(ids), saw["clue_logits"]

    def _read(self, embeds: Array, past: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        """Read (1, S, Dl) after a past; the logits (V,) after the last position, and the new past."""
        decoder = self._graphs["decoder"]
        if not past:
            specs = [spec for spec in decoder.inputs if spec.name.startswith("past_key_values.")]
            past = {spec.name: np.zeros(_empty(spec), spec.dtype) for spec in specs}
        length = next(iter(past.values())).shape[2] + embeds.shape[1]
        mask = np.ones((1, length), np.int64)
        out = decoder.run({"inputs_embeds": embeds, "attention_mask": mask, **past})
        logits: Array = out.pop("logits")[0, -1]
        return logits, {name.replace("present.", "past_key_values."): value for name, value in out.items()}


def _value_failures(name: str, gaps: Mapping[str, Difference], limit: float | None) -> list[str]:
    return [
        f"{name} {key}: differs by {gap.max_abs:.3g} where numbers reach {gap.peak:.3g}, the limit is {limit:g}"
        for key, gap in gaps.items()
        if limit is not None and not gap.within(limit)
    ]


def _by_graph(gaps: Mapping[str, Difference]) -> dict[str, dict[str, dict[str, float]]]:
    table: dict[str, dict[str, dict[str, float]]] = {}
    for key, gap in gaps.items():
        graph, _, output = key.partition(".")
        table.setdefault(graph, {})[output] = gap.table()
    return table


def _empty(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of a past of no positions: (1, kv_heads, 0, head_size)."""
    _, heads, _, size = spec.axes
    return 1, int(heads), 0, int(size)


def _clue_flips(logits: Array, site: ProvenSite) -> tuple[int, int]:
    """How many of the clue scores (K, C) lie on the other side of their thresholds than PyTorch's, and of how many."""
    thresholds = np.asarray([clue.threshold for clue in site.checkpoint.meta.clues]).round(6)
    ours, theirs = (sigmoid(each).round(6) >= thresholds for each in (logits, site.reference.fusion["clue_logits"]))
    return int((ours != theirs).sum()), ours.size


def _label_agreement(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], tokenizer: Any) -> float:
    """Share of study-observation pairs whose state in the report is the same."""
    same = 0
    for got, expected in pairs:
        labels, wanted = (label_report(str(tokenizer.decode(list(ids)))) for ids in (got, expected))
        same += sum(labels.get(name) == wanted.get(name) for name in OBSERVATIONS)
    return same / (len(pairs) * len(OBSERVATIONS))
