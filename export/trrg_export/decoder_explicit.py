"""The language model as a graph of standard operators, whose past comes in and whose present goes out.

For runtimes that know no operator with a cache of its own (TensorRT, OpenVINO): a step takes the keys and values of all
positions so far and gives back those of all positions including its own. Any causal model of the Llama family.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from trrg_export.dummy_cache import dummy_cache
from trrg_export.memory import released
from trrg_export.quiet import quiet
from trrg_export.to_onnx import Call, tidy_trace, twin, write_program
from trrg_sdk.errors import UsageError
from trrg_train.models.checkpoint import load_checkpoint
from trrg_train.models.llm import merge_adapters

_TOTAL = "past + sequence"
_TRACED = {"batch": 2, "sequence": 3, "past": 4}  # sizes seen while tracing, all different


class DecoderGraph(nn.Module):
    """``decoder``: embeddings and past to logits and present.

    Inputs and outputs stand in float32 but for the cache, which has the model's own dtype.
    """

    def __init__(self, llm: Any) -> None:
        """Take a causal model without adapters."""
        super().__init__()
        self.llm = llm

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, past: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Read S positions after P.

        Args:
            inputs_embeds: float32 (B, S, Dl).
            attention_mask: int64 (B, P + S), 1 for a position and 0 for padding on either side.
            past: Keys and values of each layer in turn, (B, kv_heads, P, head_size); P may be 0.

        Returns:
            ``logits`` float32 (B, S, V), then keys and values of each layer in turn, (B, kv_heads, P + S, head_size).
        """
        cache: Any = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        # Positions count what is attended to, so that padding shifts nothing.
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, past[0].shape[2] :]
        out = self.llm(
            inputs_embeds=inputs_embeds.to(past[0].dtype),
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return out.logits.float(), *present


def trace_explicit_decoder(llm: Any, folder: Path, *, half: bool = False) -> None:
    """Trace the decoder graph to a file, and its large weights to another one.

    It is named as the bundle's decoder: ``inputs_embeds``, ``attention_mask``, ``past_key_values.N.key`` and
    ``.value``; ``logits``, ``present.N.key`` and ``.value``.

    Args:
        llm: A causal model of the Llama family; adapters are merged.
        folder: An empty one, which :func:`trrg_export.trace.read_trace` reads.
        half: Weights, cache and arithmetic in float16; norms, softmax and logits as the model itself computes them, in
            float32. Needs a copy of the model in memory, in float16.

    Raises:
        UsageError: The model keeps a cache of another kind.
    """
    merged = merge_adapters(llm).eval()
    _check_family(merged.config)
    with released(), quiet(), torch.no_grad():
        model = twin(merged)
        write_program(DecoderGraph(model.half() if half else model), _call(merged.config, half), folder)
    tidy_trace(folder, _name_axes)


def write_explicit_decoder(checkpoint: Path, folder: Path, half: bool) -> None:
    """Trace the decoder of a checkpoint, see :func:`trace_explicit_decoder`.

    Args:
        checkpoint: Folder of a stage-2 checkpoint.
        folder: An empty one.
        half: In float16.
    """
    trace_explicit_decoder(load_checkpoint(checkpoint).trrg().llm, folder, half=half)


def _call(config: Any, half: bool) -> Call:
    layers = int(config.num_hidden_layers)
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return Call(
        _example(config, torch.float16 if half else torch.float32),
        ["inputs_embeds", "attention_mask", *(f"past_key_values.{part}" for part in parts)],
        ["logits", *(f"present.{part}" for part in parts)],
        _dynamic_shapes(layers),
    )


def _check_family(config: Any) -> None:
    """Refuse a model with a layer that does not see the whole past: its cache is of another shape."""
    kinds = sorted({type(layer).__name__ for layer in DynamicCache(config=config).layers} - {DynamicLayer.__name__})
    if kinds:
        raise UsageError(
            f"the language model is of the family {config.model_type!r} and keeps a cache of {', '.join(kinds)}: "
            "expected layers that all attend to the whole past (the Llama family), train with one of those"
        )


def _example(config: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    batch, sequence, past = _TRACED.values()
    layers = dummy_cache(config, batch=batch, past=past).generate("past_key_values")
    return (
        torch.randn(batch, sequence, int(config.hidden_size)),
        torch.ones(batch, past + sequence, dtype=torch.int64),
        tuple(tensor.to(dtype) for layer in layers for tensor in layer),
    )


def _dynamic_shapes(layers: int) -> tuple[Any, ...]:
    """Leave the names to the exporter: the length of the mask is a sum, which no named ``Dim`` can say."""
    free = Dim.DYNAMIC
    return {0: free, 1: free}, {0: free, 1: free}, tuple({0: free, 2: free} for _ in range(2 * layers))


def _name_axes(model: onnx.ModelProto) -> None:
    """Call the free axes what they are, the sum included, in place of the exporter's numbered symbols."""
    cache = ("batch", None, "{}", None)
    read = ("batch", "sequence")
    names = {"inputs_embeds": read, "attention_mask": ("batch", _TOTAL), "logits": read}
    for value in (*model.graph.input, *model.graph.output):
        length = "past" if value.name.startswith("past") else _TOTAL
        axes = names.get(value.name, tuple(name and name.format(length) for name in cache))
        for axis, name in zip(value.type.tensor_type.shape.dim, axes, strict=False):
            if name:
                axis.dim_param = name
