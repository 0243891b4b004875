"""Swin-B on one radiograph: PyTorch, ONNX Runtime and OpenVINO side by side, in one run.

    python tests/benchmarks/openvino_vision.py --threads 2 --checkpoint runs/mini/stage2 \\
        --write tests/benchmarks/results/openvino_vision.md

The encoder is that of train/configs/base.toml with random weights, exported as ``trrg-export`` does, and run through
the runtime's own backends with batch 1. All take turns, so that a noisy machine hurts all alike. With one thread CPU
time counts, which other processes on the machine change least; with more, wall-clock time. This is no timed test.

int8 is ONNX Runtime's own quantizer on the whole encoder, calibrated on random images where it is static: it tells
the speed, and nothing about quality, since random weights have no outliers. OpenVINO reads the same static QDQ file.

OpenVINO computes in bf16 only on a processor that has it (AVX-512 BF16 or AMX): elsewhere the page says so and has no
such row. What bf16 does to labels is then counted with PyTorch's bf16, see ``bf16_arithmetic.py``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from bf16_arithmetic import outcomes
from mini_run import machine, spread
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from torch import Tensor, nn

from trrg_export.to_onnx import GraphPlan, export_graph, quiet, save
from trrg_sdk.backends import Graph, onnxruntime, openvino
from trrg_sdk.errors import DeviceError
from trrg_sdk.manifest import GraphSpec, TensorSpec
from trrg_sdk.processors import physical_cores
from trrg_train.config import read_config
from trrg_train.models.vision import VisionEncoder

CONFIG = Path(__file__).parents[2] / "train" / "configs" / "base.toml"
BASELINE = "ONNX Runtime fp32"
GOAL = 0.3  # of the baseline's time, asked of OpenVINO's bf16
CALIBRATION = 4  # random images
Run = Callable[[], NDArray[Any]]


def swin() -> GraphPlan:
    """The vision encoder of the configuration, as one graph."""
    torch.manual_seed(0)
    config = read_config(CONFIG).model
    side = config.image_size
    pixels = TensorSpec("pixels", "float32", ("batch", 1, side, side))
    encoder = VisionEncoder(config).eval()
    return GraphPlan("vision", lambda: encoder, (pixels,), ("patches",))


def contestants(
    plan: GraphPlan, module: nn.Module, path: Path, image: NDArray[np.float32]
) -> tuple[dict[str, Run], list[str]]:
    """What is timed, and what cannot be here."""
    threads = torch.get_num_threads()
    runs: dict[str, Run] = pytorch(module, image)
    notes = []
    runtime = onnxruntime.open_backend(device="cpu", threads=threads)
    opened = openvino.open_backend(threads=threads)
    dynamic, static = quantized(path)
    graphs: dict[str, Callable[[], Any]] = {
        BASELINE: lambda: runtime.graph(path),
        "ONNX Runtime int8, dynamic": lambda: runtime.graph(dynamic),
        "ONNX Runtime int8, static QDQ": lambda: runtime.graph(static),
        "OpenVINO fp32": partial(opened.graph, path, spec=GraphSpec(path.name, "fp32", plan.inputs, ())),
        "OpenVINO bf16": partial(opened.graph, path, spec=GraphSpec(path.name, "bf16", plan.inputs, ())),
        "OpenVINO int8, the same static QDQ": lambda: opened.graph(static),
    }
    for name, opening in graphs.items():
        try:
            graph = opening()
        except DeviceError as error:
            notes.append(f"**{name} was not measured here**: {error}")
            continue
        runs[name] = partial(patches_of, graph, image)
    return runs, notes


def pytorch(module: nn.Module, image: NDArray[np.float32]) -> dict[str, Run]:
    """The encoder in PyTorch, in fp32 and with its weights in bf16."""
    tensor = torch.from_numpy(image)
    half = copy.deepcopy(module).bfloat16()

    def run(chosen: nn.Module, pixels: Tensor) -> NDArray[Any]:
        with torch.no_grad():
            patches: NDArray[Any] = chosen(pixels).float().numpy()
        return patches

    return {"PyTorch fp32": partial(run, module, tensor), "PyTorch bf16": partial(run, half, tensor.bfloat16())}


class RandomImages(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Calibration without data."""

    def __init__(self, side: int) -> None:
        """Draw images of a side in pixels."""
        images = np.random.default_rng(1).normal(size=(CALIBRATION, 1, 1, side, side)).astype(np.float32)
        self._feeds = iter([{"pixels": image} for image in images])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Give the next image, or None after the last."""
        return next(self._feeds, None)


def quantized(path: Path) -> tuple[Path, Path]:
    """Write the encoder in int8, with dynamic and with static activations."""
    side = onnx.load(str(path), load_external_data=False).graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    dynamic, static = (path.with_name(f"{kind}.onnx") for kind in ("dynamic", "static"))
    with quiet():
        quantize_dynamic(path, dynamic, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"])
        quantize_static(
            path, static, RandomImages(side), per_channel=True, op_types_to_quantize=["MatMul", "Gemm", "Conv"]
        )
    return dynamic, static


def patches_of(graph: Graph, image: NDArray[np.float32]) -> NDArray[Any]:
    """Run the encoder once."""
    return graph.run({"pixels": image})["patches"]


def timed(runs: Mapping[str, Run], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each, in turns, after one turn that does not count."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    took: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if turn:
                took[name].append((clock() - start) * 1e3)
    return took


def page(runs: Mapping[str, Run], took: Mapping[str, list[float]], notes: list[str]) -> Iterator[str]:
    """The speed as Markdown."""
    truth = runs["PyTorch fp32"]()
    base = statistics.median(took[BASELINE])
    yield from machine(("torch", "transformers", "onnxruntime", "openvino", "numpy"))
    kind = "CPU time" if torch.get_num_threads() == 1 else "wall-clock time"
    yield f"\n{len(took[BASELINE])} turns; {kind}, median (least to most).\n"
    yield f"| runtime | ms | of {BASELINE} | largest difference from PyTorch fp32, relative |\n|---|---|---|---|"
    for name, run in runs.items():
        gap = np.abs(run() - truth).max() / np.abs(truth).max()
        yield f"| {name} | {spread(took[name], 1)} | {statistics.median(took[name]) / base:.2f} | {gap:.1e} |"
    for note in notes:
        yield f"\n{note}"
    yield f"\nThe goal, OpenVINO bf16 in at most {GOAL} of the time of {BASELINE}: {verdict(took, base)}"


def verdict(took: Mapping[str, Sequence[float]], base: float) -> str:
    """Whether the goal is reached, as far as this machine can tell."""
    if "OpenVINO bf16" not in took:
        return "**open**. Run the command above on a processor with AMX, with nothing else running."
    ratio = statistics.median(took["OpenVINO bf16"]) / base
    return f"**{'reached' if ratio <= GOAL else 'missed'}** ({ratio:.2f})."


def label_page(checkpoint: Path) -> Iterator[str]:
    """What bf16 does to labels, as Markdown."""
    yield "\n## bf16 and labels\n"
    gate = "The parity studies of the mini checkpoint through the gate of `trrg-export --bf16`"
    yield f"{gate}, with **PyTorch's** bf16 in"
    yield "the three graphs and the decoder in fp32 on ONNX Runtime: the arithmetic, not OpenVINO's kernels.\n"
    counted = "clue flips | of | largest change of a probability | equal texts | equal report labels"
    yield f"| bf16 | studies | {counted} | gate |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, table in outcomes(checkpoint).items():
        cells = [table[key] for key in ("studies", "clue_flips", "clue_pairs", "max_probability_difference")]
        cells += [table["greedy_identical"], table["label_agreement"], "; ".join(table["failures"]) or "passed"]
        yield f"| {name} | {' | '.join(map(str, cells))} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, help="of every runtime (default: the physical cores)")
    parser.add_argument("--checkpoint", type=Path, help="a stage-2 checkpoint, to count what bf16 does to labels")
    parser.add_argument("--write", type=Path, help="also write the page here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or physical_cores())
    given = " ".join(sys.argv[1:])
    lines = ["# Swin-B, 224 x 224, batch 1\n\nMade by (do not edit):\n\n```bash"]
    lines += [f"python tests/benchmarks/openvino_vision.py {given}\n```\n", (__doc__ or "").split("\n\n", 2)[2]]
    lines += vision_page(args.repeats)
    if args.checkpoint:
        lines += label_page(args.checkpoint)
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.write:
        args.write.write_text(text, encoding="utf-8")


def vision_page(repeats: int) -> list[str]:
    """Export the encoder, time it, describe it."""
    plan = swin()
    side = int(plan.inputs[0].axes[-1])
    image = np.random.default_rng(0).normal(size=(1, 1, side, side)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vision.onnx"
        untouched = copy.deepcopy(plan.module())  # the export sets the attention that it can trace
        save(export_graph(plan), path)
        runs, notes = contestants(plan, untouched, path, image)
        return list(page(runs, timed(runs, repeats), notes))


if __name__ == "__main__":
    main()
