"""A decoder in fp16 that would overflow on a GPU, found where ONNX Runtime's CPU computes on with wider numbers.

The builder of onnxruntime-genai makes the graph, with the norms' sums inside one operator, so there is nothing to keep
in fp32: a layer that overflows is named, and the model needs another precision.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from trrg_export.memory import few_half_runs
from trrg_export.onnx_file import add_outputs, read_hollow
from trrg_export.precision.half import SAFE
from trrg_sdk.backends.ort_session import open_session
from trrg_sdk.manifest import DecoderSpec


def overflow_failures(decoder: Path, sequences: Iterable[NDArray[np.floating]], spec: DecoderSpec) -> list[str]:
    """Read whole reports and look at every number on the way.

    Args:
        decoder: In fp16, as :func:`trrg_export.decoder.write_decoder` makes it; a second file lies beside it meanwhile.
        sequences: Embeddings (S, Dl) of prompt and report, one for each study.
        spec: The sizes of keys and values.

    Returns:
        Nothing, or one line that names the first layer whose numbers come near the end of fp16.
    """
    session, makers = _watched(decoder)
    half = {output.name for output in session.get_outputs() if output.type == "tensor(float16)"}
    names = [name for name in makers if name in half]  # in the graph's order
    peaks = np.zeros(len(names))
    for embeds in sequences:
        values = session.run(names, _feed(embeds, spec))
        peaks = np.maximum(peaks, [np.abs(value.astype(np.float64)).max() for value in values])  # NaN stays
    for name, peak in zip(names, peaks, strict=True):
        if not peak <= SAFE:
            layer = f"{makers[name].name} ({makers[name].op_type})"
            return [f"decoder: {layer} reaches {peak:.3g} in fp16, where {SAFE:g} is safe: export in fp32 or int8"]
    return []


def logits_in_fp32(model: onnx.ModelProto) -> None:
    """Let a decoder write its logits in fp32, in place.

    The choice of a token reads them in fp32: what a GPU converts in no time takes NumPy 1.7 ms for 16 rows of 32,000,
    as long as the pass that made them.

    Args:
        model: In fp16.
    """
    (output,) = (value for value in model.graph.output if value.name == "logits")
    (maker,) = (node for node in model.graph.node if output.name in node.output)
    half = f"{output.name}_half"
    maker.output[list(maker.output).index(output.name)] = half
    model.graph.node.append(helper.make_node("Cast", [half], [output.name], name=half, to=onnx.TensorProto.FLOAT))
    output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _watched(decoder: Path) -> tuple[Any, dict[str, onnx.NodeProto]]:
    """Open the decoder so that it gives every tensor; and the node that writes each, in the graph's order."""
    graph = read_hollow(decoder).graph
    declared = {output.name for output in graph.output}
    makers = {name: node for node in graph.node for name in node.output if name}
    path = decoder.with_name(f"watched_{decoder.name}")  # beside the weights, where they are looked for
    try:
        shutil.copyfile(decoder, path)
        add_outputs(path, [helper.make_empty_tensor_value_info(name) for name in makers if name not in declared])
        return open_session(str(path), "decoder", "cpu", 0, few_half_runs()), makers
    finally:
        path.unlink(missing_ok=True)


def _feed(embeds: NDArray[np.floating], spec: DecoderSpec) -> dict[str, NDArray[Any]]:
    empty = np.zeros((1, spec.kv_heads, 0, spec.head_size), np.float16)
    past = {f"past_key_values.{layer}.{part}": empty for layer in range(spec.layers) for part in ("key", "value")}
    mask = np.ones((1, len(embeds)), np.int64)
    return {"inputs_embeds": embeds[None].astype(np.float16), "attention_mask": mask, **past}
