"""Several sequences in one pass on ONNX Runtime's CPU provider: one buffer for the keys and values of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends.ort_session import tensor_specs, translated
from trrg_sdk.errors import UsageError
from trrg_sdk.manifest import DecoderSpec


class OrtBatch:
    """Sequences of different lengths that grow together; see :class:`trrg_sdk.backends.batch.BatchDecoder`.

    A slot is one entry of the first axis of the buffers (slots, kv_heads, max_length, head_size), so it is contiguous:
    a prompt is read by a pass of batch 1 over its slot alone (GroupQueryAttention takes no batch of prompts when
    there is a past), a step by a pass over the first n slots. The graph sums each row of the attention mask to find
    how far that row is filled, so a mask padded on the right lets every sequence keep its own length and rotary
    positions.
    """

    def __init__(self, session: Any, label: str, spec: DecoderSpec, slots: int) -> None:
        """Allocate the buffers: slots · layers · 2 · kv_heads · (max_length + 1) · head_size numbers.

        Args:
            session: The ``onnxruntime.InferenceSession`` of a checked decoder graph whose batch axis is free.
            label: The file's name, for messages.
            spec: The sizes of the buffers.
            slots: The most sequences.
        """
        self.slots = slots
        self._session, self._label, self._spec = session, label, spec
        inputs = {tensor.name: tensor for tensor in tensor_specs(session.get_inputs())}
        logits = {tensor.name: tensor for tensor in tensor_specs(session.get_outputs())}["logits"]
        self._dtype = np.dtype(inputs["inputs_embeds"].dtype)
        self._last_only, self._vocab = logits.axes[1] == 1, int(logits.axes[2])
        # What a step reads and writes, always at the same place and as long as the buffers: see OrtDecoder.
        self._embeds = np.empty((slots, 1, spec.hidden_size), self._dtype)
        self._mask = np.zeros((slots, spec.max_length), np.int64)
        self._logits = np.empty((slots, 1, self._vocab), logits.dtype)
        # One position more than a text can have: some graphs give attention an empty one behind a single one.
        shape = (slots, spec.kv_heads, spec.max_length + 1, spec.head_size)
        dtype = inputs["past_key_values.0.key"].dtype
        self._buffers = {
            f"{layer}.{part}": np.zeros(shape, dtype) for layer in range(spec.layers) for part in ("key", "value")
        }
        self._lengths = np.zeros(slots, np.int64)
        self._places = np.arange(spec.max_length)
        self._steps: dict[int, Any] = {}  # bindings by the sequences of a step

    def free(self, slot: int) -> int:
        """How many more positions fit into a slot."""
        return self._spec.max_length - int(self._lengths[slot])

    def prefill(self, slot: int, embeds: NDArray[np.floating]) -> NDArray[np.float32]:
        """Forget what the slot holds, then read a prompt into it.

        Args:
            slot: From 0.
            embeds: (S, Dl) floating.

        Returns:
            float32 (V,), the logits after the last position.

        Raises:
            UsageError: The shape is wrong, or the prompt is longer than ``max_length``.
            DeviceError: The runtime failed.
        """
        self._check(embeds, most=self._spec.max_length)
        length = len(embeds)
        rows = np.empty((1, 1 if self._last_only else length, self._vocab), self._logits.dtype)
        self._lengths[slot] = 0
        feed, mask = np.ascontiguousarray(embeds[None], self._dtype), np.ones((1, length), np.int64)
        with translated(self._label):
            self._session.run_with_iobinding(self._bound(slot, slot + 1, feed, mask, rows))
        self._lengths[slot] = length
        return np.asarray(rows[0, -1], np.float32)

    def step(self, embeds: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append one position to each of the first n slots.

        Args:
            embeds: (n, Dl) floating, a token's embedding for each slot from 0.

        Returns:
            float32 (n, V), the logits after each; valid until the next call.

        Raises:
            UsageError: The shape is wrong, or a slot is full.
            DeviceError: The runtime failed.
        """
        self._check(embeds, most=self.slots)
        count = len(embeds)
        lengths = self._lengths[:count] + 1
        if lengths.max() > self._spec.max_length:
            raise UsageError(f"{self._label}: no position is free (max_length {self._spec.max_length}).")
        self._embeds[:count, 0] = embeds
        self._mask[:count] = self._places < lengths[:, None]  # padded on the right
        with translated(self._label):
            if count not in self._steps:
                arrays = (self._embeds[:count], self._mask[:count], self._logits[:count])
                self._steps[count] = self._bound(0, count, *arrays)
            self._session.run_with_iobinding(self._steps[count])
        self._lengths[:count] = lengths
        return np.asarray(self._logits[:count, 0], np.float32)

    def move(self, source: int, target: int) -> None:
        """Copy a slot over another one, so that those in use lie side by side."""
        length = self._lengths[target] = self._lengths[source]
        for buffer in self._buffers.values():
            buffer[target, :, :length] = buffer[source, :, :length]

    def _bound(self, first: int, end: int, embeds: NDArray[Any], mask: NDArray[Any], logits: NDArray[Any]) -> Any:
        """A binding of a range of slots, past and present the same memory; these arrays have to live as long."""
        binding = self._session.io_binding()
        caches = {name: buffer[first:end] for name, buffer in self._buffers.items()}
        read = {"inputs_embeds": embeds, "attention_mask": mask}
        read |= {f"past_key_values.{name}": cache for name, cache in caches.items()}
        written = {"logits": logits} | {f"present.{name}": cache for name, cache in caches.items()}
        for bind, arrays in ((binding.bind_input, read), (binding.bind_output, written)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding

    def _check(self, embeds: NDArray[np.floating], *, most: int) -> None:
        width = self._spec.hidden_size
        if embeds.ndim != 2 or embeds.shape[1] != width or not 0 < len(embeds) <= most:
            raise UsageError(f"{self._label}: expected embeddings (1 to {most}, {width}), got {embeds.shape}.")
