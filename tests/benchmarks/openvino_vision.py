"""Swin-B on one radiograph: PyTorch, ONNX Runtime and OpenVINO side by side, in one run.

    python tests/benchmarks/openvino_vision.py --write tests/benchmarks/results/openvino_vision.md

The encoder is that of train/configs/base.toml with random weights, exported as ``trrg-export`` does, and run through
the runtime's own backends with batch 1. All take turns, so that a noisy machine hurts all alike. OpenVINO computes in
bf16 only on a processor that has it (AVX-512 BF16 or AMX): elsewhere the page says so and has no such row. This is no
timed test.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mini_run import machine, spread
from numpy.typing import NDArray
from torch import nn

from trrg_export.to_onnx import GraphPlan, export_graph, save
from trrg_sdk.backends import Graph, onnxruntime, openvino
from trrg_sdk.errors import DeviceError
from trrg_sdk.manifest import GraphSpec, TensorSpec
from trrg_train.config import read_config
from trrg_train.models.vision import VisionEncoder

CONFIG = Path(__file__).parents[2] / "train" / "configs" / "base.toml"
BASELINE = "ONNX Runtime fp32"
Run = Callable[[], NDArray[Any]]


def swin() -> GraphPlan:
    """The vision encoder of the configuration, as one graph."""
    torch.manual_seed(0)
    config = read_config(CONFIG).model
    side = config.image_size
    pixels = TensorSpec("pixels", "float32", ("batch", 1, side, side))
    return GraphPlan("vision", VisionEncoder(config).eval(), (pixels,), ("patches",))


def contestants(
    plan: GraphPlan, module: nn.Module, path: Path, image: NDArray[np.float32]
) -> tuple[dict[str, Run], list[str]]:
    """What is timed, and what cannot be here."""
    tensor = torch.from_numpy(image)

    def pytorch() -> NDArray[Any]:
        with torch.no_grad():
            patches: NDArray[Any] = module(tensor).numpy()
        return patches

    runs: dict[str, Run] = {"PyTorch fp32": pytorch}
    notes = []
    opened = openvino.open_backend()
    graphs: dict[str, Callable[[], Any]] = {
        BASELINE: lambda: onnxruntime.open_backend(device="cpu").graph(path),
        **{
            f"OpenVINO {precision}": lambda precision=precision: opened.graph(
                path, spec=GraphSpec(path.name, precision, plan.inputs, ())
            )
            for precision in ("fp32", "bf16")
        },
    }
    for name, opening in graphs.items():
        try:
            graph = opening()
        except DeviceError as error:
            notes.append(f"No row for {name}: {error}")
            continue
        runs[name] = partial(patches_of, graph, image)
    return runs, notes


def patches_of(graph: Graph, image: NDArray[np.float32]) -> NDArray[Any]:
    """Run the encoder once."""
    return graph.run({"pixels": image})["patches"]


def timed(runs: Mapping[str, Run], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each, in turns, after one turn that does not count."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                took[name].append((time.perf_counter() - start) * 1e3)
    return took


def page(runs: Mapping[str, Run], took: Mapping[str, list[float]], notes: list[str]) -> Iterator[str]:
    """The outcome as Markdown."""
    truth = runs["PyTorch fp32"]()
    base = statistics.median(took[BASELINE])
    yield "# Swin-B, 224 x 224, batch 1\n"
    yield from machine(("torch", "transformers", "onnxruntime", "openvino", "numpy"))
    yield f"\n{len(took[BASELINE])} turns; median (least to most).\n"
    yield f"| runtime | ms | of {BASELINE} | largest difference from PyTorch, relative |\n|---|---|---|---|"
    for name, run in runs.items():
        gap = np.abs(run() - truth).max() / np.abs(truth).max()
        yield f"| {name} | {spread(took[name], 1)} | {statistics.median(took[name]) / base:.2f} | {gap:.1e} |"
    for note in notes:
        yield f"\n{note}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--write", type=Path, help="also write the page here")
    args = parser.parse_args()
    torch.set_num_threads(onnxruntime.physical_cores())
    plan = swin()
    side = int(plan.inputs[0].axes[-1])
    image = np.random.default_rng(0).normal(size=(1, 1, side, side)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vision.onnx"
        untouched = copy.deepcopy(plan.module)  # the export sets the attention that it can trace
        save(export_graph(plan), path)
        runs, notes = contestants(plan, untouched, path, image)
        lines = list(page(runs, timed(runs, args.repeats), notes))
    sys.stdout.write("\n".join(lines) + "\n")
    if args.write:
        args.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
