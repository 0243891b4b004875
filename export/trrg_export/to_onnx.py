"""From PyTorch to ONNX: three graphs with the bundle's names and axes, the same bytes every time.

Standard operators of opset 20 only, so that ONNX Runtime, OpenVINO and TensorRT can all read them. Nothing that the
exporter notes about its own run (stack traces with machine paths, module names) stays in the file.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import external_data_helper, helper
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel

from trrg_export.hollow import check, is_large, take_inside
from trrg_export.memory import released
from trrg_export.onnx_file import pieces, read_hollow
from trrg_export.wrappers import ClueEncoderGraph, FusionGraph, VisionGraph
from trrg_sdk.manifest import Axes, TensorSpec
from trrg_train.models.checkpoint import Checkpoint
from trrg_train.models.trrg import Trrg

OPSET = 20
INLINE_LIMIT = 2**31 - 2**20  # protobuf's limit of 2 GiB, and room for the graph itself
_EXAMPLE = {"batch": 2, "clues": 5, "prompts": 3, "length": 7}  # sizes seen while tracing, all different
_EXTERNAL_FROM = 1024  # bytes; smaller tensors stay inside also when the rest is external
_TALKATIVE = (
    "torch.onnx",
    "torch.export",
    "transformers",
    "onnxscript",
    "onnxruntime.quantization",
    "neural_compressor",
)


@dataclass(frozen=True)
class GraphPlan:
    """One graph to export.

    Attributes:
        name: As the manifest calls it.
        module: Makes what takes the inputs in order and returns the outputs in order. Its weights are in memory as long
            as what it gives is held.
        inputs: What the manifest will say; free axes by name.
        outputs: Names of the outputs in order.
    """

    name: str
    module: Callable[[], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]


def checkpoint_plans(checkpoint: Checkpoint, load: Callable[[], Trrg]) -> tuple[GraphPlan, ...]:
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
) -> tuple[GraphPlan, ...]:
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
        GraphPlan("vision", lambda: VisionGraph(load().perceiver), vision, ("patches", "patch_joint", "global_joint")),
        GraphPlan("clue_encoder", lambda: ClueEncoderGraph(load().perceiver), prompts, ("clue_joint",)),
        GraphPlan("fusion", lambda: FusionGraph(load().fusion), fusion, ("prompt_embeds", "clue_logits", "clue_heat")),
    )


def export_graph(plan: GraphPlan, scratch: Path | None = None) -> onnx.ModelProto:
    """Trace one graph.

    Args:
        plan: What to export.
        scratch: Where a file of the size of the weights may lie meanwhile; None takes the system's folder for that.

    Returns:
        A checked, cleaned model in fp32.
    """
    with traced(plan, scratch) as (model, outside):
        for tensor in model.graph.initializer:
            take_inside(tensor, outside)
    return model


@contextlib.contextmanager
def traced(plan: GraphPlan, scratch: Path | None = None) -> Iterator[tuple[onnx.ModelProto, Path]]:
    """Trace one graph, and leave its large weights in a file, which is there until the end of the block.

    Args:
        plan: What to export.
        scratch: Where that file may lie; None takes the system's folder for that.

    Yields:
        A checked, cleaned model in fp32, and the folder of its external data.
    """
    # Through a file: a message made of the program would copy all weights while PyTorch still holds them.
    with tempfile.TemporaryDirectory(prefix=".traced-", dir=scratch) as folder:
        path = Path(folder, "graph.onnx")
        with released(), quiet(), torch.no_grad():  # what was traced lies in cycles
            _trace(plan, path)
        model = clean(onnx.load(str(path), load_external_data=False))
        for tensor in model.graph.initializer:
            if not is_large(tensor):
                take_inside(tensor, path.parent)
        check(model)
        yield model, path.parent


def _trace(plan: GraphPlan, path: Path) -> None:
    module = _twin(plan.module().eval())
    _use_exportable_attention(module)
    free = {axis: Dim(axis) for spec in plan.inputs for axis in spec.axes if isinstance(axis, str)}
    program = torch.onnx.export(
        module,
        tuple(_example(spec) for spec in plan.inputs),
        None,
        input_names=[spec.name for spec in plan.inputs],
        output_names=list(plan.outputs),
        dynamic_shapes=tuple({i: free[a] for i, a in enumerate(s.axes) if isinstance(a, str)} for s in plan.inputs),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.save(str(path), external_data=True)
    # The library's rewriting rules hold the last graphs that they saw.
    for weight in module.parameters():
        weight.data = torch.empty(0)
    for value in program.model.graph.initializers.values():
        value.const_value = None


def _twin(module: nn.Module) -> nn.Module:
    """A copy that shares the weights, until they are taken from it."""
    return copy.deepcopy(module, {id(weight): nn.Parameter(weight.detach(), False) for weight in module.parameters()})


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop doc strings, metadata and inferred shapes in place; names of people's folders are among them.

    Args:
        model: As an exporter wrote it.

    Returns:
        The same model.
    """
    # Inferred shapes hold symbols that are numbered anew in each run; every runtime infers them itself.
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    holders: list[Any] = [graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *model.functions]
    for holder in holders:
        holder.ClearField("doc_string")
        holder.ClearField("metadata_props")
    return model


def save(model: onnx.ModelProto, path: Path, outside: Path | None = None) -> None:
    """Write a model: one file below 2 GiB, else with ``<name>.data`` beside it.

    Args:
        model: Its weights are inside, or external.
        path: A ``.onnx`` file.
        outside: Folder of external data that goes inside; None leaves it external.
    """
    if weight_bytes(model, outside=outside is not None) < INLINE_LIMIT:
        with path.open("wb") as file:
            file.writelines(pieces(model, outside))
        return
    if outside is not None:
        for tensor in model.graph.initializer:
            take_inside(tensor, outside)
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        size_threshold=_EXTERNAL_FROM,
    )


def weight_bytes(model: onnx.ModelProto, *, outside: bool) -> int:
    """Sum up the weights; ``ByteSize`` fails above 2 GiB.

    Args:
        model: With or without external data.
        outside: Whether that counts too.
    """
    counted = (t for t in model.graph.initializer if outside or not external_data_helper.uses_external_data(t))
    return sum(math.prod(t.dims) * helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for t in counted)


def tensor_specs(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Read what a graph declares.

    Args:
        path: A ``.onnx`` file.

    Returns:
        Inputs and outputs, in the graph's order.
    """
    graph = read_hollow(path).graph
    return tuple(map(_spec, graph.input)), tuple(map(_spec, graph.output))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters that print and warn about what is no concern of the user; errors still come out."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def example_inputs(plan: GraphPlan, *, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray[Any, Any]]:
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


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    axes: Axes = tuple(axis.dim_param or int(axis.dim_value) for axis in kind.shape.dim)
    return TensorSpec(value.name, str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), axes)
