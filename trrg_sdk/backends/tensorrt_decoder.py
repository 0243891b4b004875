"""The decoder as an engine: the past goes in, the present comes out, and both stay on the GPU.

The graph writes keys and values of all positions anew with each pass, without gaps, so that past and present cannot
share memory: there are two halves of it, allocated once, and after each pass they change places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends.base import check_kept
from trrg_sdk.backends.checks import check_decoder, check_embeds
from trrg_sdk.backends.cuda_device import Buffer, filled
from trrg_sdk.backends.tensorrt_engine import TrtEngine, nbytes
from trrg_sdk.errors import UsageError
from trrg_sdk.manifest import DecoderSpec, TensorSpec


class TrtDecoder:
    """One sequence being written by an engine; see :class:`trrg_sdk.backends.base.Decoder`.

    Attributes:
        inputs: What the library says about the inputs.
        outputs: The same of the outputs.
        all_rows: Whether the engine gives the logits of every position.
    """

    def __init__(self, engine: TrtEngine, spec: DecoderSpec) -> None:
        """Check the sizes and allocate both halves.

        Args:
            engine: Of a decoder with an explicit past.
            spec: The sizes.

        Raises:
            BundleError: The engine is no decoder of these sizes.
            DeviceError: The GPU has no room for the keys and values.
        """
        self._engine, self._spec, self._label = engine, spec, engine.label
        self.inputs: tuple[TensorSpec, ...] = engine.inputs
        self.outputs: tuple[TensorSpec, ...] = engine.outputs
        check_decoder(engine.label, spec, engine.inputs, engine.outputs)
        dtypes = {tensor.name: tensor.dtype for tensor in (*engine.inputs, *engine.outputs)}
        _, rows, vocab = next(tensor.axes for tensor in engine.outputs if tensor.name == "logits")
        self.all_rows, self._vocab = rows != 1, int(vocab)
        self._dtype, self._logits_dtype = np.dtype(dtypes["inputs_embeds"]), dtypes["logits"]
        self._cache_dtype = dtypes["past_key_values.0.key"]
        self._parts = [f"{layer}.{part}" for layer in range(spec.layers) for part in ("key", "value")]
        largest = nbytes(self._cache_dtype, self._cache_shape(spec.max_length))
        self._past, self._present = ({part: Buffer(largest) for part in self._parts} for _ in range(2))
        self._embeds = Buffer(nbytes(str(self._dtype), (spec.max_length, spec.hidden_size)))
        self._mask = filled(np.ones(spec.max_length, dtypes["attention_mask"]))  # a pass sees the start of it
        self._logits = Buffer(nbytes(self._logits_dtype, (1, self._vocab)))
        self._length = 0

    @property
    def length(self) -> int:
        """How many positions were read and not forgotten."""
        return self._length

    @property
    def free(self) -> int:
        """How many more positions fit."""
        return self._spec.max_length - self._length

    def reset(self) -> None:
        """Forget everything that was read; the buffers keep their memory."""
        self._length = 0

    def prefill(self, embeds: NDArray[np.floating], *, rows: int = 1) -> NDArray[np.float32]:
        """Forget everything, then read a prompt.

        Args:
            embeds: (S, Dl) floating.
            rows: Of the last positions.

        Returns:
            float32 (rows, V), the logits after each.

        Raises:
            UsageError: The shape is wrong, or the prompt is longer than ``max_length``.
            DeviceError: The engine failed.
        """
        self.reset()
        return self._pass(embeds, rows=rows)

    def step(self, embed: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append one position.

        Args:
            embed: (1, Dl) floating.

        Returns:
            float32 (V,), the logits after it.

        Raises:
            UsageError: The shape is wrong, or no position is free.
            DeviceError: The engine failed.
        """
        if len(embed) != 1:
            raise UsageError(f"{self._label}: expected one position, got {len(embed)}.")
        return np.asarray(self._pass(embed, rows=1)[-1])

    def read(self, embeds: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append several positions in one pass.

        Args:
            embeds: (S, Dl) floating.

        Returns:
            float32 (S, V), the logits after each; (1, V) where ``all_rows`` is false.

        Raises:
            UsageError: The shape is wrong, or fewer positions are free.
            DeviceError: The engine failed.
        """
        return self._pass(embeds, rows=len(embeds) if self.all_rows else 1)

    def truncate(self, length: int) -> None:
        """Forget the last positions; what is kept is copied on the GPU, because an engine knows no gaps.

        Args:
            length: How many positions to keep.

        Raises:
            UsageError: It is negative or more than were read.
            DeviceError: The GPU failed.
        """
        check_kept(self._label, length, self._length)
        if 0 < length < self._length:
            position = nbytes(self._cache_dtype, (self._spec.head_size,))
            kept = (self._spec.kv_heads, length * position)
            for part in self._parts:
                source, stream = self._past[part], self._engine.stream
                self._present[part].take_rows(source, kept, self._length * position, stream)
            self._engine.stream.synchronize()
            self._past, self._present = self._present, self._past
        self._length = length

    def kernels(self) -> bytes:
        """Return the kernels that the library compiled so far, for the file beside the engine."""
        return self._engine.kernels()

    def _pass(self, embeds: NDArray[np.floating], *, rows: int) -> NDArray[np.float32]:
        """Run the engine over new positions and copy the last rows of logits; a failure leaves the length as it was."""
        check_embeds(self._label, embeds, self._spec, self.free)
        count, stream = len(embeds), self._engine.stream
        total = self._length + count
        feed = np.ascontiguousarray(embeds[None], self._dtype)  # (1, S, Dl)
        shapes = {f"past_key_values.{part}": self._cache_shape(self._length) for part in self._parts}
        made = self._engine.shaped({"inputs_embeds": feed.shape, "attention_mask": (1, total), **shapes})
        written = nbytes(self._logits_dtype, made["logits"])
        if written > self._logits.nbytes:
            self._logits = Buffer(written)
        self._embeds.write(feed, stream)
        self._engine.run(self._buffers())
        logits = np.empty((rows, self._vocab), self._logits_dtype)
        self._logits.read(logits, stream, offset=written - logits.nbytes)
        stream.synchronize()
        self._past, self._present = self._present, self._past
        self._length = total
        return np.asarray(logits, np.float32)

    def _buffers(self) -> dict[str, Any]:
        own = {"inputs_embeds": self._embeds, "attention_mask": self._mask, "logits": self._logits}
        past = {f"past_key_values.{part}": buffer for part, buffer in self._past.items()}
        return {**own, **past, **{f"present.{part}": buffer for part, buffer in self._present.items()}}

    def _cache_shape(self, length: int) -> tuple[int, ...]:
        return (1, self._spec.kv_heads, length, self._spec.head_size)
