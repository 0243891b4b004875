"""A Llama as the stateful graph that OpenVINO GenAI expects: what its exporter makes, which needs older transformers.

Inputs ``input_ids``, ``attention_mask``, ``position_ids`` and ``beam_idx``; keys and values are state of the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import AutoTokenizer, DynamicCache, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

INPUTS = ("input_ids", "attention_mask", "position_ids")


class _Decoder(nn.Module):
    """Keys and values in, keys and values out."""

    def __init__(self, llm: LlamaForCausalLM) -> None:
        super().__init__()
        self.llm = llm

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, past: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        cache: Any = DynamicCache()
        for keys, values in zip(past[::2], past[1::2], strict=True):
            layer: Any = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        out: Any = self.llm(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        return out.logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def stateful_graph(llm: LlamaForCausalLM) -> Any:
    """Trace the model with attention as one operator and turn its cache into state.

    Returns:
        An ``openvino.Model``.
    """
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    model = openvino.convert_model(_traced(llm))
    names = [f"{layer}.{part}" for layer in range(llm.config.num_hidden_layers) for part in ("key", "value")]
    inputs, outputs = list(model.inputs), list(model.outputs)
    for port, name in zip(inputs, [*INPUTS, *(f"past_key_values.{name}" for name in names)], strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
    for port, name in zip(outputs, ["logits", *(f"present.{name}" for name in names)], strict=True):
        port.get_tensor().set_names({name})
    _add_beams(model, inputs[len(INPUTS) :])
    apply_make_stateful_transformation(model, {f"past_key_values.{name}": f"present.{name}" for name in names})
    _start_empty(model, llm.config)
    model.validate_nodes_and_infer_types()
    return model


def _traced(llm: LlamaForCausalLM) -> Any:
    layers, heads, size = llm.config.num_hidden_layers, llm.config.num_key_value_heads, llm.config.head_dim
    batch, read, before = 2, 3, 4
    positions = torch.arange(before, before + read).expand(batch, read).contiguous()
    past = tuple(torch.randn(batch, heads, before, size) for _ in range(2 * layers))
    ids, mask = torch.zeros_like(positions), torch.ones(batch, before + read, dtype=torch.int64)
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    shapes = (free, free, free, tuple({0: Dim.DYNAMIC, 2: Dim.DYNAMIC} for _ in past))
    with torch.no_grad():
        return torch.export.export(_Decoder(llm), (ids, mask, positions, past), dynamic_shapes=shapes, strict=False)


def _add_beams(model: Any, past: list[Any]) -> None:
    """Reorder the cache by ``beam_idx``, which the runtime insists on."""
    from openvino import opset13 as ops

    beams = ops.parameter([-1], np.int32, name="beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([beams])
    for port in past:
        users = port.get_target_inputs()
        gathered = ops.gather(port, beams, ops.constant(np.int64(0)))
        for user in users:
            user.replace_source_output(gathered.output(0))
    model.validate_nodes_and_infer_types()


def _start_empty(model: Any, config: Any) -> None:
    """Begin with keys and values of no position for each sequence of the batch."""
    from openvino import opset13 as ops

    ids = ops.shape_of(model.input(INPUTS[0]), output_type="i64")
    batch = ops.gather(ids, ops.constant(np.array([0], np.int64)), ops.constant(np.int64(0)))
    rest = [ops.constant(np.array([size], np.int64)) for size in (config.num_key_value_heads, 0, config.head_dim)]
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            shape = ops.concat([batch, *rest], 0)
            node.set_arguments([ops.broadcast(ops.constant(np.float32(0)), shape)])


def compress(model: Any, precision: str) -> None:
    """Quantize all weights in place, as our exports do: int4 in blocks of 32, the matrix of the logits included.

    Args:
        model: Stateful.
        precision: ``"int8"`` or ``"int4"``.
    """
    import nncf

    if precision == "int8":
        nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    else:
        mode = nncf.CompressWeightsMode.INT4_SYM
        nncf.compress_weights(model, mode=mode, group_size=32, ratio=1.0, all_layers=True)


def save_tokenizer(source: Path, target: Path) -> None:
    """Write the tokenizer graphs without which the runtime does not open a folder.

    Args:
        source: Hugging Face folder.
        target: Of the model.
    """
    import openvino
    from openvino_tokenizers import convert_tokenizer

    graphs = convert_tokenizer(AutoTokenizer.from_pretrained(source), with_detokenizer=True)
    for graph, name in zip(graphs, ("openvino_tokenizer", "openvino_detokenizer"), strict=True):
        openvino.save_model(graph, target / f"{name}.xml")
