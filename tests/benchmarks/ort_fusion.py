"""Does ONNX Runtime's transformer optimizer make our graphs faster than ONNX Runtime makes them when it opens them?

    OMP_NUM_THREADS=1 python tests/benchmarks/ort_fusion.py --write tests/benchmarks/results/ort_fusion.md

Each graph is exported as ``trrg-export`` does, with random weights, and once more through
``onnxruntime.transformers.optimizer.optimize_model`` with nothing and with ONNX Runtime's basic level (``opt_level`` 0
and 1) before its own fusions. All files are opened with the runtime's own session options, so that ONNX Runtime fuses
what it finds in either. They take turns on one thread and their CPU time counts: other processes hurt all alike. The
plain file is opened twice, and what lies between the two is noise.

Rule: the optimizer is worth it from a median that is 3 % lower, beyond that noise, on, where ONNX Runtime executes
another computation for it. Whether it does is hashed: every operator with its attributes, weights and inputs, from the
inputs of the graph to its outputs. The second condition came after a first run, which had shown ratios of 0.92 and 0.91
for two files of the base clue encoder with the same operators as the plain one (15 turns, a busy machine).

The row "attention written out" is no fusion: it is the plain export with transformers' ``eager`` attention in place of
``sdpa``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import io
import logging
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from mini_run import machine, spread
from numpy.typing import NDArray
from onnx import numpy_helper
from transformers import PreTrainedModel

from trrg_export.onnx_file import save
from trrg_export.to_onnx import ModulePlan, example_inputs, export_graph, plans
from trrg_sdk.backends.ort_session import OrtGraph, open_session
from trrg_train.config import read_config
from trrg_train.models.config import ModelConfig
from trrg_train.models.fusion import Fusion
from trrg_train.models.perceiver import Perceiver

CONFIGS = Path(__file__).parents[2] / "train" / "configs"
VIT = {
    "model_type": "vit",
    "num_channels": 1,
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
}
SIZES = {"batch": 1, "clues": 14, "prompts": 1, "length": 16}
PLAIN, AGAIN, WRITTEN_OUT = "as exported", "as exported, again", "attention written out"
FUSED = ("com.microsoft:Attention", "com.microsoft:MultiHeadAttention", "com.microsoft:SkipLayerNormalization")
SHOWN = (*FUSED, "com.microsoft:BiasGelu", "com.microsoft:FusedMatMul", "LayerNormalization")


@dataclass(frozen=True)
class Case:
    """One graph to try.

    Attributes:
        title: For the page.
        config: Of the model.
        graph: Its name in the bundle.
        model_type: What the optimizer is told.
        heads: Attention heads and width, where the optimizer wants them; 0 lets it find out.
        vocabulary: Tokens.
        llm_width: Of the language model that fusion writes for.
    """

    title: str
    config: ModelConfig
    graph: str
    model_type: str
    heads: tuple[int, int] = (0, 0)
    vocabulary: int = 1500
    llm_width: int = 256


@dataclass(frozen=True)
class Variant:
    """One file of a graph: nodes in it, nodes that ONNX Runtime executes, the hash of these, and a session."""

    stored: Counter[str]
    executed: Counter[str]
    computation: tuple[str, ...]
    session: OrtGraph


def cases() -> list[Case]:
    """Every graph that the page shows."""
    mini, base = (read_config(CONFIGS / f"{name}.toml").model for name in ("mini", "base"))
    vit = replace(mini, image_size=224, patch_grid=(14, 14), vision=VIT)
    return [
        Case("mini vision, ResNet", mini, "vision", "vit"),
        Case("mini clue encoder, BERT 4 x 192", mini, "clue_encoder", "bert", (4, 192)),
        Case("mini fusion", mini, "fusion", "bert"),
        Case("vision, ViT 12 x 384, 224 x 224", vit, "vision", "vit", (6, 384)),
        Case("base clue encoder, BERT 12 x 768", base, "clue_encoder", "bert", (12, 768), vocabulary=32000),
        Case("base fusion for a language model of width 1024", base, "fusion", "bert", llm_width=1024),
        Case("base vision, Swin-B, 224 x 224", base, "vision", "swin"),
    ]


def plan_of(case: Case) -> ModulePlan:
    """Build the model around one graph, every weight random."""
    torch.manual_seed(0)
    perceiver = Perceiver(case.config, vocab_size=case.vocabulary).eval()
    fusion = Fusion(case.config, vision_width=perceiver.vision.width, llm_width=case.llm_width).eval()
    for parameter in fusion.interaction.parameters():
        if not parameter.any():  # its branches start silent
            torch.nn.init.normal_(parameter, std=0.02)
    config = case.config
    model: Any = SimpleNamespace(perceiver=perceiver, fusion=fusion)
    planned = plans(
        lambda: model,
        width=perceiver.vision.width,
        channels=1,
        size=config.image_size,
        patches=config.patches,
        joint_dim=config.joint_dim,
    )
    return next(plan for plan in planned if plan.name == case.graph)


def files(case: Case, plan: ModulePlan, folder: Path) -> dict[str, Path]:
    """Write every form of the graph."""
    plain = folder / "plain.onnx"
    save(export_graph(plan), plain)
    found = {PLAIN: plain, AGAIN: plain}
    for level in (0, 1):
        found[f"optimizer, {case.model_type}, opt_level {level}"] = _optimized(case, plain, level)
    eager = _written_out(plan)
    if eager is not None:
        found[WRITTEN_OUT] = folder / "eager.onnx"
        save(export_graph(eager), found[WRITTEN_OUT])
    return found


def _optimized(case: Case, plain: Path, level: int) -> Path:
    """Let the optimizer write a file; what it prints about its own progress stays silent."""
    from onnxruntime.transformers.optimizer import optimize_model

    heads, width = case.heads
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model = optimize_model(
            str(plain), model_type=case.model_type, num_heads=heads, hidden_size=width, opt_level=level
        )
    path = plain.with_name(f"level{level}.onnx")
    save(model.model, path)
    return path


def _written_out(plan: ModulePlan) -> ModulePlan | None:
    """The plan with eager attention, where the export would take another one."""
    module = copy.deepcopy(plan.module())
    changed = False
    for part in module.modules():
        if isinstance(part, PreTrainedModel) and part.config._attn_implementation == "sdpa":
            part.set_attn_implementation("eager")
            changed = True
    return replace(plan, module=lambda: module) if changed and plan.name != "fusion" else None


def opened(path: Path) -> Variant:
    """Open a file as the runtime does, and once more to see what ONNX Runtime makes of it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".executed"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session = OrtGraph(open_session(str(path), path.name, "cpu", 1), path.name)
    made = Path(options.optimized_model_filepath)
    return Variant(operators(path), operators(made), computation(made), session)


def operators(path: Path) -> Counter[str]:
    """Count the nodes of a file by operator, with its domain where that is not ONNX's own."""
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return Counter(f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in nodes)


def computation(path: Path) -> tuple[str, ...]:
    """Hash what each output is computed by; names of nodes and tensors, and their order, do not count."""
    graph = onnx.load(str(path)).graph
    known = {"": b"", **{tensor.name: tensor.name.encode() for tensor in graph.input}}
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        known[tensor.name] = _digest(str((array.dtype, array.shape)).encode(), array.tobytes())
    for node in graph.node:  # ONNX wants them in an order that can be run
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        parts = (f"{node.domain}:{node.op_type}".encode(), *attributes, *(known[name] for name in node.input))
        known |= {name: _digest(str(index).encode(), *parts) for index, name in enumerate(node.output)}
    return tuple(known[output.name].hex() for output in graph.output)


def _digest(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def timed(
    variants: Mapping[str, Variant], feed: Mapping[str, NDArray[Any]], seconds: float, least: int
) -> dict[str, list[float]]:
    """CPU milliseconds of each, in turns that start with another one each time; the first turn does not count."""
    took: dict[str, list[float]] = {name: [] for name in variants}
    names, turn, start = list(variants), 0, time.perf_counter()
    while turn <= least or time.perf_counter() - start < seconds:
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            before = time.process_time()
            variants[name].session.run(feed)
            if turn:
                took[name].append((time.process_time() - before) * 1e3)
        turn += 1
    return took


def section(case: Case, seconds: float, least: int) -> Iterator[str]:
    """Measure one graph and describe it."""
    plan = plan_of(case)
    feed = example_inputs(plan, sizes=SIZES, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        variants = {name: opened(path) for name, path in files(case, plan, Path(folder)).items()}
    took = timed(variants, feed, seconds, least)
    truth, base = variants[PLAIN].session.run(feed), statistics.median(took[PLAIN])
    yield f"\n## {case.title}\n\n{len(took[PLAIN])} turns.\n"
    yield "| file | fused in the file | executed nodes | of them | ms | ratio | largest difference |"
    yield "|---|---|---|---|---|---|---|"
    for name, variant in variants.items():
        given = variant.session.run(feed)
        gap = max(float(np.abs(given[key] - truth[key]).max()) for key in truth)
        cells = (name, shown(variant.stored, FUSED + SHOWN[3:5]), variant.executed.total(), shown(variant.executed))
        ratio = statistics.median(took[name]) / base
        yield f"| {' | '.join(map(str, cells))} | {spread(took[name], 2)} | {ratio:.3f} | {gap:.1e} |"
    same = [name for name, variant in variants.items() if variant.computation == variants[PLAIN].computation]
    yield f"\nThe same computation: {'; '.join(same)}."


def shown(counts: Counter[str], names: tuple[str, ...] = SHOWN) -> str:
    """The counts of the operators that a fusion makes."""
    found = [f"{name.partition(':')[2] or name} {counts[name]}" for name in names if counts[name]]
    return ", ".join(found) or "none"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="to time each graph for at least (default 15)")
    parser.add_argument("--turns", type=int, default=15, help="at least so many (default 15)")
    parser.add_argument("--write", type=Path, help="also write the page here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # the optimizer names each pattern that it does not find
    lines = ["# ONNX Runtime's transformer optimizer on our graphs\n\nMade by (do not edit):\n\n```bash"]
    lines += [f"OMP_NUM_THREADS=1 python tests/benchmarks/ort_fusion.py {' '.join(sys.argv[1:])}"]
    lines += ["```\n", (__doc__ or "").split("\n\n", 2)[2]]
    lines += machine(("torch", "transformers", "onnx", "onnxruntime", "numpy"))
    for case in cases():
        lines += section(case, args.seconds, args.turns)
        sys.stderr.write(f"{case.title}: done\n")
    page = "\n".join(lines) + "\n"
    sys.stdout.write(page)
    if args.write:
        args.write.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
