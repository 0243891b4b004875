"""The decoder on ONNX Runtime: keys and values in buffers that are allocated once, here on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends.base import check_kept
from trrg_sdk.backends.checks import check_decoder, check_embeds
from trrg_sdk.backends.ort_batch import OrtBatch
from trrg_sdk.backends.ort_session import foreign_errors, tensor_specs, translated, translation
from trrg_sdk.errors import UsageError
from trrg_sdk.manifest import DecoderSpec

_KEPT = 32  # positions of passes that come again and again; a longer one, a prompt's, gets memory of its own for once


class OrtDecoder:
    """A decoder graph whose keys and values stay in buffers allocated once.

    GroupQueryAttention takes the same buffer as past and as present (batch, kv_heads, max_length, head_size) and
    writes the new positions in place: nothing is copied or allocated while a text grows. How far a buffer is filled
    is read from the ones of the attention mask. It is as long as the buffers, so that all passes over one number of
    positions are alike to ONNX Runtime, which plans its memory by the sizes of the inputs, and none binds anything.
    """

    _DEVICE = "cpu"  # where the buffers live

    def __init__(self, session: Any, label: str, spec: DecoderSpec) -> None:
        """Check the sizes and bind the buffers.

        Args:
            session: An ``onnxruntime.InferenceSession`` of a graph by onnxruntime-genai's model builder without its
                embeddings.
            label: The file's name, for messages.
            spec: The sizes of the buffers.

        Raises:
            BundleError: The graph is no decoder of these sizes.
        """
        self._session = session
        self._label = label
        self._spec = spec
        self.inputs = tensor_specs(session.get_inputs())
        self.outputs = tensor_specs(session.get_outputs())
        inputs = {tensor.name: tensor for tensor in self.inputs}
        outputs = {tensor.name: tensor for tensor in self.outputs}
        check_decoder(label, spec, self.inputs, self.outputs)
        self._dtype = np.dtype(inputs["inputs_embeds"].dtype)
        _, rows, vocab = outputs["logits"].axes
        self.all_rows = rows != 1  # 1: the builder's prune_lm_head, logits of the last position, however many it reads
        self._logits = np.empty((1, 0, int(vocab)), np.dtype(outputs["logits"].dtype))
        self._length = 0
        with translated(label):
            self._buffers = self._allocated(np.dtype(inputs["past_key_values.0.key"].dtype))
            self._prepare()

    def _allocated(self, dtype: np.dtype[Any]) -> dict[str, Any]:
        """Keys and values, as ``0.key``; kept here, because a binding does not keep them."""
        from onnxruntime import OrtValue

        spec = self._spec
        # One position more than a text can have: some graphs give attention an empty one behind a single one.
        empty = np.zeros((1, spec.kv_heads, spec.max_length + 1, spec.head_size), dtype)
        names = [f"{layer}.{part}" for layer in range(spec.layers) for part in ("key", "value")]
        # On a CPU the OrtValue borrows the array's memory, so one array each.
        return {name: OrtValue.ortvalue_from_numpy(empty.copy(), self._DEVICE, 0) for name in names}

    def _prepare(self) -> None:
        """Get ready for the first pass."""
        spec, vocab = self._spec, self._logits.shape[2]
        self._mask = np.zeros((1, spec.max_length), np.int64)
        self._embeds = np.empty((1, _KEPT, spec.hidden_size), self._dtype)
        self._logits = np.empty((1, _KEPT if self.all_rows else 1, vocab), self._logits.dtype)
        self._bindings: dict[int, Any] = {}  # by the positions of a pass: binding costs as much as a small product

    def _bound_to_buffers(self) -> Any:
        """A new binding with keys and values."""
        binding = self._session.io_binding()
        for name, buffer in self._buffers.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", buffer)
            binding.bind_ortvalue_output(f"present.{name}", buffer)
        return binding

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
        """Forget everything, then read a prompt; see :class:`trrg_sdk.backends.base.Decoder`.

        Args:
            embeds: (S, Dl) floating.
            rows: Of the last positions.

        Returns:
            float32 (rows, V), valid until the next call.

        Raises:
            UsageError: The shape is wrong, or the prompt is longer than ``max_length``.
            DeviceError: The runtime failed.
        """
        self.reset()
        self._check_embeds(embeds)
        self._skim(embeds[:-rows])
        return self.read(embeds[self._length :])[-rows:]

    def _skim(self, embeds: NDArray[np.floating]) -> None:
        """Read as much of a prompt as is cheaper to read without its logits; here nothing, since they lie here."""

    def step(self, embed: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append one position; see :class:`trrg_sdk.backends.base.Decoder`.

        Args:
            embed: (1, Dl) floating.

        Returns:
            float32 (V,), valid until the next call.

        Raises:
            UsageError: The shape is wrong, or no position is free.
            DeviceError: The runtime failed.
        """
        if len(embed) != 1:
            raise UsageError(f"{self._label}: expected one position, got {len(embed)}.")
        row: NDArray[np.float32] = self.read(embed)[-1]
        return row

    def truncate(self, length: int) -> None:
        """Forget the last positions: GroupQueryAttention looks no further than the mask reaches.

        Args:
            length: How many positions to keep.

        Raises:
            UsageError: It is negative or more than were read.
        """
        check_kept(self._label, length, self._length)
        self._length = length

    def read(self, embeds: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append several positions in one pass; a failure leaves the length as it was.

        Args:
            embeds: (S, Dl) floating.

        Returns:
            float32 (S, V), or (1, V) where ``all_rows`` is false; valid until the next call.

        Raises:
            UsageError: The shape is wrong, or fewer positions are free.
            DeviceError: The runtime failed.
        """
        self._check_embeds(embeds)
        total = self._length + len(embeds)
        feed = np.ascontiguousarray(embeds[None], self._dtype)  # (1, S, Dl)
        try:  # entering and leaving a context manager would take as long as two steps of the choice
            rows = self._run(feed, total)
        except foreign_errors() as error:
            raise translation(self._label, error) from error
        self._length = total
        return rows if rows.dtype == np.float32 else rows.astype(np.float32)

    def _run(self, feed: NDArray[Any], total: int) -> NDArray[Any]:
        """Make one pass over (1, S, Dl) that ends at a position; the rows (S, V), or (1, V) where there is one only."""
        count = feed.shape[1]
        rows = count if self.all_rows else 1
        if count > _KEPT:
            mask, logits = np.ones((1, total), np.int64), np.empty((1, rows, self._logits.shape[2]), self._logits.dtype)
            binding = self._bound(feed, mask, logits)
        else:
            logits = self._logits[:, :rows]
            self._embeds[:, :count] = feed
            self._mask[:, :total], self._mask[:, total:] = 1, 0
            binding = self._bindings.get(count)
            if binding is None:
                binding = self._bindings[count] = self._bound(self._embeds[:, :count], self._mask, logits)
        self._session.run_with_iobinding(binding)
        made: NDArray[Any] = logits[0]
        return made

    def _bound(self, embeds: NDArray[Any], mask: NDArray[Any], logits: NDArray[Any]) -> Any:
        """A binding that reads and writes these arrays, which have to live as long."""
        binding = self._bound_to_buffers()
        for bind, name, array in (
            (binding.bind_input, "inputs_embeds", embeds),
            (binding.bind_input, "attention_mask", mask),
            (binding.bind_output, "logits", logits),
        ):
            bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding

    def batch(self, slots: int) -> OrtBatch | None:
        """Open a decoder of several sequences on the same session; see :class:`trrg_sdk.backends.batch.Batchable`.

        Args:
            slots: The most sequences.

        Returns:
            It, or None where the graph's batch axis is fixed.
        """
        if any(isinstance(tensor.axes[0], int) for tensor in (*self.inputs, *self.outputs)):
            return None
        return OrtBatch(self._session, self._label, self._spec, slots)

    def _check_embeds(self, embeds: NDArray[np.floating]) -> None:
        check_embeds(self._label, embeds, self._spec, self.free)
