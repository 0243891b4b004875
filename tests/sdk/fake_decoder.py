"""A decoder for the fake of TensorRT: each of its logits shows which positions it has read."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.sdk.fake_tensorrt import Arrays, Code
from trrg_sdk.manifest import DecoderSpec

RTX = "tensorrt-rtx"
VOCAB = 320


def decoder_code(spec: DecoderSpec, dtype: str = "float32") -> Code:
    """A "language model" whose logits are sums over all positions so far: a lost or foreign position shows."""
    cache = (-1, spec.kv_heads, -1, spec.head_size)
    parts = [f"{layer}.{part}" for layer in range(spec.layers) for part in ("key", "value")]

    def function(feed: Arrays) -> Arrays:
        new = np.tile(feed["inputs_embeds"][0], (1, spec.kv_heads * spec.head_size // spec.hidden_size))
        new = new.reshape(-1, spec.kv_heads, spec.head_size).swapaxes(0, 1)[None].astype(dtype)
        scale = {part: float(index + 1) for index, part in enumerate(parts)}
        present = {
            part: np.concatenate([feed[f"past_key_values.{part}"], (scale[part] * new).astype(dtype)], axis=2)
            for part in parts
        }
        sums = sum(array.astype(np.float32).cumsum(2) for array in present.values())
        sums = np.asarray(sums)[0, :, -feed["inputs_embeds"].shape[1] :].swapaxes(0, 1)
        mixed = sums.reshape(len(sums), -1) @ mixing(spec) * feed["attention_mask"].mean()
        return {"logits": mixed[None].astype(np.float32), **{f"present.{part}": present[part] for part in parts}}

    longest = spec.max_length
    inputs: dict[str, Any] = {
        "inputs_embeds": ("float32", (-1, -1, spec.hidden_size)),
        "attention_mask": ("int64", (-1, -1)),
        **{f"past_key_values.{part}": (dtype, cache) for part in parts},
    }
    ranges: dict[str, Any] = {
        "inputs_embeds": ((1, 1, spec.hidden_size), (4, longest, spec.hidden_size)),
        "attention_mask": ((1, 1), (4, 2 * longest)),
    }
    for part in parts:
        ranges[f"past_key_values.{part}"] = tuple(
            (b, spec.kv_heads, n, spec.head_size) for b, n in ((1, 0), (4, longest))
        )
    outputs = {"logits": ("float32", (-1, -1, VOCAB)), **{f"present.{part}": (dtype, cache) for part in parts}}
    return Code(inputs, outputs, ranges, function)


def mixing(spec: DecoderSpec) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(3).normal(size=(spec.kv_heads * spec.head_size, VOCAB))
    return values.astype(np.float32)
