"""The decoder on ONNX Runtime's CUDA provider: each pass is one captured CUDA graph, so the GPU waits for nobody.

A pass over one position of a 1.1 B Llama is some 250 kernels of a few microseconds; started one by one they took
2.0 ms on an H200, captured 1.6 (fp16). What is captured has fixed sizes and addresses: the mask is as long as the
buffers, with zeros behind the text, and each number of positions has an input, an output and a graph of its own. The
first pass of a number of positions takes some three times as long, which would teach a drafter that long drafts are
dear: so all are made before the first draft is read.

ONNX Runtime keeps a graph for the thread that captured it, and capturing all of a small decoder takes 0.3 to 1.2 s. So
the first thread makes its passes itself, and one more thread makes those of all others.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends.ort_decoder import OrtDecoder
from trrg_sdk.backends.ort_session import translated
from trrg_sdk.manifest import GraphSpec

_WIDEST = 17  # positions of a pass that comes again and again: a token and the longest draft
_NOT_CAPTURED = "-1"  # ONNX Runtime's number for a run that is neither captured nor replayed
HALF = "float16"


class _Pass(NamedTuple):
    """What a pass over a number of positions is bound to, on the GPU."""

    binding: Any
    embeds: Any
    logits: Any
    options: Any


def unfit_reason(decoder: GraphSpec) -> str | None:
    """Say why a decoder cannot run on a GPU, or return ``None`` when it can.

    Its attention (GroupQueryAttention) has no CUDA kernel in float32. ONNX Runtime would take the CPU's, which does not
    see that past and present are one buffer of the GPU, and write a text that has nothing to do with the image.

    Args:
        decoder: Of the manifest.
    """
    dtypes = {tensor.dtype for tensor in decoder.inputs if tensor.name == "inputs_embeds"}
    if dtypes == {HALF}:
        return None
    return (
        f"{decoder.file}: expected a decoder that computes in {HALF}, since ONNX Runtime has its attention on a GPU in "
        f"no other type, got {' and '.join(sorted(dtypes))} ({decoder.precision}). Export the bundle with --fp16 or "
        "--int4-fp16, or use device cpu."
    )


class CudaDecoder(OrtDecoder):
    """A decoder whose keys, values, mask, embeddings and logits stay at their place on the GPU."""

    _DEVICE = "cuda"

    def _prepare(self) -> None:
        from onnxruntime import OrtValue

        self._written = np.zeros((1, self._spec.max_length), np.int64)
        self._mask_there = OrtValue.ortvalue_from_numpy(self._written, self._DEVICE, 0)
        self._passes: dict[int, _Pass] = {}
        self._first: threading.Thread | None = None
        self._others = ThreadPoolExecutor(1, thread_name_prefix="trrg-cuda")
        self._captured_by: set[threading.Thread] = set()

    def _skim(self, embeds: NDArray[np.floating]) -> None:
        """Read a prompt but for its last positions: logits of the others stay on the GPU."""
        if count := len(embeds):
            with translated(self._label):
                self._passed(np.ascontiguousarray(embeds[None], self._dtype), count)
            self._length = count

    def batch(self, slots: int) -> None:
        """Decoders of several sequences are the CPU's."""

    def _run(self, feed: NDArray[Any], total: int) -> NDArray[Any]:
        rows: NDArray[Any] = self._passed(feed, total).logits.numpy()[0]
        return rows

    def _passed(self, feed: NDArray[Any], total: int) -> _Pass:
        """Make one pass, in the first thread that asked for one or in that of all others; its logits are on the GPU."""
        thread = threading.current_thread()
        self._first = self._first or thread
        if thread is self._first:
            return self._captured(feed, total)
        return self._others.submit(self._captured, feed, total).result()

    def _captured(self, feed: NDArray[Any], total: int) -> _Pass:
        """Make one pass; before the first one over several positions, make one of every number of them.

        What those write behind the text is written over by the next pass.
        """
        width, thread = feed.shape[1], threading.current_thread()
        if 1 < width <= _WIDEST and thread not in self._captured_by:
            self._captured_by.add(thread)
            length = total - width
            for other in range(2, min(_WIDEST, self._spec.max_length - length) + 1):
                self._made(np.zeros((1, other, self._spec.hidden_size), self._dtype), length + other)
        return self._made(feed, total)

    def _made(self, feed: NDArray[Any], total: int) -> _Pass:
        one = self._pass_over(feed.shape[1])
        self._written[:, :total], self._written[:, total:] = 1, 0
        self._mask_there.update_inplace(self._written)
        one.embeds.update_inplace(feed)
        self._session.run_with_iobinding(one.binding, one.options)
        return one

    def _pass_over(self, width: int) -> _Pass:
        if width in self._passes:
            return self._passes[width]
        one = self._bound_pass(width)
        if width <= _WIDEST:  # a prompt's is made anew for each: it is large, and read once a report
            self._passes[width] = one
        return one

    def _bound_pass(self, width: int) -> _Pass:
        from onnxruntime import OrtValue, RunOptions

        _, _, vocab = self._logits.shape
        embeds, logits = (
            OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._DEVICE, 0)
            for shape, dtype in (
                ((1, width, self._spec.hidden_size), self._dtype),
                ((1, width if self.all_rows else 1, vocab), self._logits.dtype),
            )
        )
        binding, options = self._bound_to_buffers(), RunOptions()
        binding.bind_ortvalue_input("inputs_embeds", embeds)
        binding.bind_ortvalue_input("attention_mask", self._mask_there)
        binding.bind_ortvalue_output("logits", logits)
        options.add_run_config_entry("gpu_graph_id", str(width) if width <= _WIDEST else _NOT_CAPTURED)
        return _Pass(binding, embeds, logits, options)
