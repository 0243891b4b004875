"""A decoder on OpenVINO for ``decode.py iu``: what bf16 and a flat cost curve are worth to drafts. No bundle uses it.

It runs the graph of standard operators whose past comes in and whose present goes out. Two requests take turns: what
one gives out is what the other takes in, without a copy; forgetting positions copies what is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends.checks import check_embeds
from trrg_sdk.backends.openvino import unfit_reason
from trrg_sdk.errors import DeviceError
from trrg_sdk.manifest import DecoderSpec, TensorSpec


class OpenVinoDecoder:
    """One sequence; see :class:`trrg_sdk.backends.base.Decoder`."""

    all_rows = True

    def __init__(self, path: Path, spec: DecoderSpec, *, precision: str, threads: int) -> None:
        """Compile a graph.

        Args:
            path: ``decoder_explicit.onnx``.
            spec: Its sizes.
            precision: ``"bf16"`` or ``"fp32"``.
            threads: That a pass may use.
        """
        import openvino

        wanted = {"bf16": openvino.Type.bf16, "fp32": openvino.Type.f32}[precision]
        properties = {
            "INFERENCE_PRECISION_HINT": wanted,
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
        }
        if reason := unfit_reason(precision):
            raise DeviceError(reason)
        compiled = openvino.Core().compile_model(path, "CPU", properties)
        self._requests = [compiled.create_infer_request() for _ in range(2)]
        self._spec = spec
        self._names = [port.any_name for port in compiled.inputs]
        self._present = [port.any_name.replace("present", "past_key_values") for port in compiled.outputs]
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        empty = np.zeros((1, self._spec.kv_heads, 0, self._spec.head_size), np.float32)
        self._past: dict[str, NDArray[Any]] = {name: empty for name in self._names if name.startswith("past")}
        self._length = 0

    @property
    def length(self) -> int:
        """Positions read."""
        return self._length

    @property
    def free(self) -> int:
        """Positions that fit."""
        return self._spec.max_length - self._length

    def prefill(self, embeds: NDArray[np.floating], *, rows: int = 1) -> NDArray[np.float32]:
        """Forget everything, then read a prompt."""
        self.reset()
        return self.read(embeds)[-rows:]

    def step(self, embed: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append one position."""
        return self.read(embed)[-1]

    def read(self, embeds: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append several positions in one pass."""
        check_embeds("decoder", embeds, self._spec, self.free)
        total = self._length + len(embeds)
        feed = {
            "inputs_embeds": np.ascontiguousarray(embeds[None], np.float32),
            "attention_mask": np.ones((1, total), np.int64),
            **self._past,
        }
        self._requests.reverse()
        values = self._requests[0].infer(feed, share_inputs=True, share_outputs=True)
        self._past = {name: values[place] for place, name in enumerate(self._present) if name != "logits"}
        self._length = total
        logits: NDArray[np.float32] = values[self._present.index("logits")][0].copy()
        return logits

    def truncate(self, length: int) -> None:
        """Forget the last positions."""
        if length < self._length:
            self._past = {name: np.ascontiguousarray(kept[:, :, :length]) for name, kept in self._past.items()}
            self._length = length
