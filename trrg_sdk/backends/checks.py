"""What every backend that does not check by itself refuses: inputs that do not fit, and graphs that are no decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.errors import BundleError, UsageError
from trrg_sdk.manifest import DecoderSpec, TensorSpec


def check_inputs(label: str, specs: tuple[TensorSpec, ...], inputs: Mapping[str, NDArray[Any]]) -> None:
    """Refuse arrays that a runtime would convert, reshape, or replace by what the run before left behind.

    Args:
        label: The graph, for messages.
        specs: What it takes; axes of one name have one size, and ``"?"`` is any.
        inputs: Name → array.

    Raises:
        UsageError: One is missing, unknown, or of another dtype or shape.
    """
    if differing := sorted({spec.name for spec in specs} ^ inputs.keys()):
        raise UsageError(f"{label}: expected the inputs {[spec.name for spec in specs]}, got {differing} differing.")
    sizes: dict[int | str, int] = {}  # of the free axes, by name
    for spec in specs:
        array = inputs[spec.name]
        fits = array.ndim == len(spec.axes) and all(
            size == axis or axis == "?" or (isinstance(axis, str) and size == sizes.setdefault(axis, size))
            for axis, size in zip(spec.axes, array.shape, strict=True)
        )
        if str(array.dtype) != spec.dtype or not fits:
            given = f" with {sizes}" if sizes else ""
            raise UsageError(
                f"{label}: {spec.name}: expected {spec.dtype} {spec.axes}{given}, got {array.dtype} {array.shape}."
            )


def check_embeds(label: str, embeds: NDArray[np.floating], spec: DecoderSpec, free: int) -> None:
    """Refuse embeddings that a decoder has no room for.

    Args:
        label: The decoder, for messages.
        embeds: (S, Dl) floating.
        spec: Of the decoder.
        free: How many more positions fit.

    Raises:
        UsageError: The shape is wrong, or fewer positions are free.
    """
    width, count = spec.hidden_size, len(embeds)
    if embeds.ndim != 2 or embeds.shape[1] != width or count == 0:
        raise UsageError(f"{label}: expected embeddings (positions, {width}), got {embeds.shape}.")
    if count > free:
        raise UsageError(
            f"{label}: expected at most {free} more positions (max_length {spec.max_length}), got {count}. Use fewer "
            "clues, or a bundle with a larger decoder.max_length."
        )


def check_decoder(
    label: str, spec: DecoderSpec, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """Refuse a graph whose tensors are not those of a decoder of these sizes: a wrong buffer would be overrun.

    Args:
        label: The graph, for messages.
        spec: The sizes.
        inputs: What the runtime says about the inputs.
        outputs: The same of the outputs.

    Raises:
        BundleError: Anything differs; the message lists all of it.
    """
    given, made = ({tensor.name: tensor for tensor in tensors} for tensors in (inputs, outputs))
    parts = [f"{layer}.{part}" for layer in range(spec.layers) for part in ("key", "value")]
    wanted_in = {"inputs_embeds", "attention_mask", *(f"past_key_values.{part}" for part in parts)}
    wanted_out = {"logits", *(f"present.{part}" for part in parts)}
    differing = sorted((wanted_in ^ given.keys()) | (wanted_out ^ made.keys()))
    problems = [f"missing or unknown tensors {differing}"]
    if not differing:
        buffer = (1, spec.kv_heads, spec.max_length, spec.head_size)
        shapes: dict[str, tuple[int, ...]] = {name: buffer for name in wanted_in if name.startswith("past")}
        shapes["inputs_embeds"] = (1, spec.max_length, spec.hidden_size)
        problems = [
            f"{name}: expected axes that take {shape}, got {given[name].axes}"
            for name, shape in shapes.items()
            if not _takes(given[name], shape)
        ]
        axes = made["logits"].axes
        if len(axes) != 3 or not isinstance(axes[-1], int):
            problems.append(f"logits: expected 3 axes, the last one fixed, got {axes}")
    if problems:
        raise BundleError(
            f"{label}: expected a decoder graph with {spec}, got: {'; '.join(problems)}. Export the bundle again."
        )


def _takes(tensor: TensorSpec, shape: tuple[int, ...]) -> bool:
    """Tell whether a tensor of this shape fits."""
    axes = tensor.axes
    return len(axes) == len(shape) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(axes, shape, strict=True)
    )
