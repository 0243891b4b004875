"""From PyTorch to ONNX: three graphs with the bundle's names and axes, the same bytes every time.

Standard operators of opset 20 only, so that ONNX Runtime, OpenVINO and TensorRT can all read them. Nothing that the
exporter notes about its own run (stack traces with machine paths, module names) stays in the file.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel

from trrg_export.graph_plan import GraphPlan
from trrg_export.hollow import check, is_large, take_inside
from trrg_export.memory import released
from trrg_export.onnx_file import clean
from trrg_export.quiet import quiet
from trrg_export.trace import GRAPH, read_trace, whole_trace
from trrg_export.wrappers import ClueEncoderGraph, FusionGraph, VisionGraph
from trrg_sdk.manifest import TensorSpec
from trrg_train.models.checkpoint import Checkpoint
from trrg_train.models.trrg import Trrg

OPSET = 20
_EXAMPLE = {"batch": 2, "clues": 5, "prompts": 3, "length": 7}  # sizes seen while tracing, all different


@dataclass(frozen=True)
class ModulePlan(GraphPlan):
    """A graph with what it is traced from.

    Attributes:
        module: Makes what takes the inputs in order and returns the outputs in order. Its weights are in memory as long
            as what it gives is held.
    """

    module: Callable[[], nn.Module]


class Call(NamedTuple):
    """How a module is called while it is traced.

    Attributes:
        arguments: In order; tensors, or tuples of them.
        inputs: Names of the tensors among them.
        outputs: Names of what it returns.
        dynamic_shapes: Free axes of each argument, as ``torch.onnx.export`` takes them.
    """

    arguments: tuple[Any, ...]
    inputs: list[str]
    outputs: list[str]
    dynamic_shapes: tuple[Any, ...]


def checkpoint_plans(checkpoint: Checkpoint, load: Callable[[], Trrg]) -> tuple[ModulePlan, ...]:
    """Plan the graphs of a checkpoint.

    Args:
        checkpoint: Of stage 2.
        load: Gives its model, in evaluation mode, adapters merged.

    Returns:
        See :func:`plans`.
    """
    config = checkpoint.config
    return plans(
        load,
        width=checkpoint.trrg().perceiver.vision.width,
        channels=checkpoint.preprocess.channels,
        size=config.image_size,
        patches=config.patches,
        joint_dim=config.joint_dim,
    )


def plans(
    load: Callable[[], Trrg], *, width: int, channels: int, size: int, patches: int, joint_dim: int
) -> tuple[ModulePlan, ...]:
    """Plan the graphs of a model.

    Args:
        load: Gives the model, in evaluation mode, adapters merged.
        width: Dv.
        channels: Of the pixels.
        size: Side of the input in pixels.
        patches: N.
        joint_dim: De.

    Returns:
        Plans for ``vision``, ``clue_encoder`` and ``fusion``.
    """
    vision = (_f32("pixels", "batch", channels, size, size),)
    prompts = tuple(TensorSpec(name, "int64", ("prompts", "length")) for name in ("input_ids", "attention_mask"))
    fusion = (
        _f32("patches", "batch", patches, width),
        _f32("patch_joint", "batch", patches, joint_dim),
        _f32("global_joint", "batch", joint_dim),
        _f32("clue_positive", "clues", joint_dim),
        _f32("clue_negative", "clues", joint_dim),
        *(_f32(f"clue_{name}", "clues") for name in ("scale", "offset", "threshold")),
        _f32("clue_override", "batch", "clues"),
    )
    return (
        ModulePlan("vision", vision, ("patches", "patch_joint", "global_joint"), lambda: VisionGraph(load().perceiver)),
        ModulePlan("clue_encoder", prompts, ("clue_joint",), lambda: ClueEncoderGraph(load().perceiver)),
        ModulePlan("fusion", fusion, ("prompt_embeds", "clue_logits", "clue_heat"), lambda: FusionGraph(load().fusion)),
    )


def export_graph(plan: ModulePlan) -> onnx.ModelProto:
    """Trace one graph.

    Args:
        plan: What to export.

    Returns:
        A checked, cleaned model in fp32 with all of its weights.
    """
    with tempfile.TemporaryDirectory(prefix=".traced-") as folder:
        write_trace(plan, Path(folder))
        return whole_trace(Path(folder))


def write_trace(plan: ModulePlan, folder: Path) -> None:
    """Trace one graph to a file, and its large weights to another one: checked, cleaned and in fp32.

    Args:
        plan: What to export.
        folder: An empty one, which :func:`trrg_export.trace.read_trace` reads.
    """
    with released(), quiet(), torch.no_grad():  # what was traced lies in cycles
        module = twin(plan.module().eval())
        _use_exportable_attention(module)
        write_program(module, _call(plan), folder)
    tidy_trace(folder)


def _call(plan: ModulePlan) -> Call:
    free = {axis: Dim(axis) for spec in plan.inputs for axis in spec.axes if isinstance(axis, str)}
    return Call(
        tuple(_example(spec) for spec in plan.inputs),
        [spec.name for spec in plan.inputs],
        list(plan.outputs),
        tuple({i: free[a] for i, a in enumerate(s.axes) if isinstance(a, str)} for s in plan.inputs),
    )


def write_program(module: nn.Module, call: Call, folder: Path) -> None:
    """Trace a module to files, as the exporter writes them.

    Args:
        module: In evaluation mode; its weights are gone afterwards, see :func:`twin`.
        call: How it is called.
        folder: Where to, see :func:`tidy_trace`.
    """
    # Through files: a message made of the program would copy all weights while PyTorch still holds them.
    program = torch.onnx.export(
        module,
        call.arguments,
        None,
        input_names=call.inputs,
        output_names=call.outputs,
        dynamic_shapes=call.dynamic_shapes,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.save(str(folder / GRAPH), external_data=True)
    # The library's rewriting rules hold the last graphs that they saw.
    for weight in module.parameters():
        weight.data = torch.empty(0)
    for value in program.model.graph.initializers.values():
        value.const_value = None


def tidy_trace(folder: Path, change: Callable[[onnx.ModelProto], None] = lambda _: None) -> None:
    """Clean and check what :func:`write_program` wrote.

    Args:
        folder: Of the graph; :func:`trrg_export.trace.read_trace` reads it then.
        change: What else to do to the graph, in place.
    """
    model = clean(read_trace(folder))
    change(model)
    for tensor in model.graph.initializer:
        if not is_large(tensor):
            take_inside(tensor, folder)
    check(model)
    (folder / GRAPH).write_bytes(model.SerializeToString(deterministic=True))


def twin(module: nn.Module) -> nn.Module:
    """Copy a module; the copy shares the weights, until they are taken from it.

    Args:
        module: Left as it is.
    """
    return copy.deepcopy(module, {id(weight): nn.Parameter(weight.detach(), False) for weight in module.parameters()})


def example_inputs(plan: ModulePlan, *, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Make random inputs of given sizes, to compare a graph away from the sizes it was traced with.

    Args:
        plan: The graph.
        sizes: Free axis to size.
        seed: Of the random numbers.

    Returns:
        One array for each input.
    """
    torch.manual_seed(seed)
    return {spec.name: _example(spec, {**_EXAMPLE, **sizes}).numpy() for spec in plan.inputs}


def _f32(name: str, *axes: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", axes)


def _example(spec: TensorSpec, sizes: Mapping[str, int] = _EXAMPLE) -> Tensor:
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]
    if spec.dtype == "int64":
        return torch.ones(shape, dtype=torch.int64)
    if spec.name in ("clue_threshold", "clue_override"):
        return torch.rand(shape) * 0.8 + 0.1  # probabilities
    values = torch.randn(shape)
    if "joint" in spec.name or spec.name in ("clue_positive", "clue_negative"):  # of unit norm wherever they come from
        return torch.nn.functional.normalize(values, dim=-1)
    return values


def _use_exportable_attention(module: nn.Module) -> None:
    """Swin's shifted windows do not trace with the fused attention (facts: eager works, values are equal)."""
    for part in module.modules():
        if isinstance(part, PreTrainedModel) and part.config.model_type in ("swin", "swinv2"):
            part.set_attn_implementation("eager")
