"""OpenVINO on the CPU for vision encoder, clue encoder and fusion; the decoder stays on ONNX Runtime.

A text is written one position at a time, and there ONNX Runtime is the faster one (a 100 M Llama, two threads, ms a
position: ONNX Runtime int8 5.7 and int4 3.7, OpenVINO 8.9 and 7.5), with its keys and values in place. An image is
many positions at once; there OpenVINO is, on a processor that multiplies in bf16. So the device ``"openvino"`` is both.

OpenVINO guesses where this runtime must know, so what it could guess is said or refused: the precision, which is also
asked back, as is what the processor has (by itself OpenVINO takes bf16 where the processor has it; asked for bf16
elsewhere it computes in float32 without a word, or with AVX-512 imitates bf16: before this was refused, Swin-B took
17 s in place of 0.3 s on a Cascade Lake), the quantization of activations, and the inputs (it reshapes and converts
arrays, computes with sizes that contradict each other, and takes the arrays of the run before for missing ones). Its
telemetry belongs to its model converter, which is never called here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends import onnxruntime
from trrg_sdk.backends.base import check_threads
from trrg_sdk.backends.checks import check_inputs
from trrg_sdk.backends.ort_decoder import OrtDecoder
from trrg_sdk.errors import BundleError, DeviceError, UsageError
from trrg_sdk.manifest import DecoderSpec, GraphSpec, Manifest, TensorSpec
from trrg_sdk.processors import VNNI, instructions, physical_cores

NAME = "openvino"
TARGET = "openvino-cpu"

INT8_BF16 = "int8-bf16"
INT8_VNNI = "int8-vnni"
BF16 = ("bf16", INT8_BF16)
"""Precisions in which this computes in bfloat16 what a graph does not do in integers."""
_INSTALL = "Install it: pip install 'trrg-sdk[cpu,openvino]'"
_BATCH = "batch"
_DTYPES = {"f32": "float32", "f16": "float16", "i64": "int64"}
# What OpenVINO raises, in C++ or in its Python layer; it has no exception of its own.
_FOREIGN = (RuntimeError, ValueError, TypeError)


def unavailable_reason() -> str | None:
    """Say why this backend cannot be used here, or return ``None`` when it can."""
    if reason := onnxruntime.unavailable_reason():
        return f"the decoder beside OpenVINO runs on ONNX Runtime. {reason}"
    try:
        from openvino import Core

        devices = Core().available_devices
    except (ImportError, *_FOREIGN) as error:
        return f"OpenVINO cannot be used ({error}). {_INSTALL}."
    return None if "CPU" in devices else f"OpenVINO finds no CPU, only {devices}. {_INSTALL}."


def unfit_reason(precision: str) -> str | None:
    """Say which arithmetic this processor lacks for a graph, or return ``None`` when it has all.

    Args:
        precision: Of the graph, as the manifest names it.
    """
    from openvino import Core

    if precision in BF16 and "BF16" not in Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return f"{precision}: expected a processor with bf16 arithmetic, and this one has none."
    if precision == INT8_VNNI and not VNNI & instructions():
        return f"{precision}: expected a processor with VNNI (Linux: {' or '.join(sorted(VNNI))}), and found none."
    return None


def open_backend(*, device: str = "auto", threads: int | None = None) -> OpenVinoBackend:
    """Open OpenVINO, and ONNX Runtime for the decoder.

    Args:
        device: ``"auto"`` or ``"openvino"``.
        threads: Threads that one graph may use; ``None`` takes the physical cores that this process may use.

    Raises:
        UsageError: The device is none of these, or the number of threads is below 1.
        DeviceError: One of the two is not installed or does not work.
    """
    check_threads(threads)
    if device not in ("auto", NAME):
        raise UsageError(f"device: expected auto or openvino, got {device!r}.")
    if reason := unavailable_reason():
        raise DeviceError(f"device openvino: {reason}")
    return OpenVinoBackend(threads or physical_cores())


class OpenVinoBackend:
    """OpenVINO on the CPU with ONNX Runtime's decoder.

    Attributes:
        name: ``"openvino"``.
        device: ``"openvino"``.
        target: ``"openvino-cpu"``.
        threads: Threads that one graph may use.
    """

    def __init__(self, threads: int) -> None:
        """Open the library; :func:`open_backend` finds out whether it works."""
        from openvino import Core

        self.name = NAME
        self.device = NAME
        self.target = TARGET
        self.threads = threads
        self._core = Core()
        self._decoders = onnxruntime.open_backend(device="cpu", threads=threads)

    def file(self, name: str, manifest: Manifest) -> str:
        """Say which file of a bundle it opens for a graph."""
        return manifest.graph(name, target=self.target).file

    def graph(self, path: Path, *, spec: GraphSpec | None = None) -> OpenVinoGraph:
        """Read an ONNX file and compile it for this CPU.

        Args:
            path: The ``.onnx`` file; external data lies beside it.
            spec: What the manifest says about it. A precision of :data:`BF16` computes in bfloat16, every other one,
                and none, in float32, whatever the weights are stored in; products of integers stay such.

        Raises:
            BundleError: The file is no ONNX graph that this version runs.
            DeviceError: The precision asks for bf16 or VNNI, and the processor has none.
        """
        import openvino

        if spec and (reason := unfit_reason(spec.precision)):
            raise DeviceError(
                f"{path.name}: {reason} Use device cpu, or a bundle whose target {TARGET} is fp32 or int8."
            )
        asked = openvino.Type.bf16 if spec and spec.precision in BF16 else openvino.Type.f32
        try:
            model = self._core.read_model(path)
            declared = (_tensor_specs(model.inputs), _tensor_specs(model.outputs))
            by_row = _fix_batch(model, spec.inputs if spec else ())
            compiled = self._core.compile_model(model, "CPU", _properties(asked, self.threads))
        except _FOREIGN as error:
            raise BundleError(
                f"{path.name}: expected an ONNX graph that OpenVINO {openvino.__version__} runs, got: {error}. Restore "
                "the bundle from its source, or install the version that its manifest names."
            ) from error
        _check_precision(path.name, asked, compiled.get_property("INFERENCE_PRECISION_HINT"))
        return OpenVinoGraph(compiled, path.name, declared, named=spec.inputs if spec else None, by_row=by_row)

    def decoder(self, path: Path, spec: DecoderSpec) -> OrtDecoder:
        """Open a decoder on ONNX Runtime and allocate its keys and values.

        Args:
            path: The ``.onnx`` file; external data lies beside it.
            spec: The sizes of the buffers.

        Raises:
            BundleError: The file is no decoder of these sizes.
            DeviceError: ONNX Runtime refuses it.
        """
        return self._decoders.decoder(path, spec)


class OpenVinoGraph:
    """One compiled graph; every run has an inference request to itself, so several threads may run it at once."""

    def __init__(
        self,
        compiled: Any,
        label: str,
        declared: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
        *,
        named: tuple[TensorSpec, ...] | None,
        by_row: bool,
    ) -> None:
        """Keep a compiled graph.

        Args:
            compiled: The ``openvino.CompiledModel``.
            label: The file's name, for messages.
            declared: Inputs and outputs as the file has them; in the compiled graph a tensor also has the names of
                those that became one with it.
            named: The inputs with names for their free axes, which OpenVINO forgets: one name is one size.
            by_row: It was compiled for a batch of one: several rows are run one after the other.
        """
        self._compiled = compiled
        self._label = label
        self._idle: deque[Any] = deque()  # requests that no thread uses
        self._by_row = by_row
        self.inputs, self.outputs = declared
        self._expected = named or self.inputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see :class:`trrg_sdk.backends.base.Graph`.

        Raises:
            UsageError: An input is missing, unknown or of the wrong dtype or shape.
            DeviceError: The runtime failed.
        """
        check_inputs(self._label, self._expected, inputs)
        if self._by_row and not len(inputs[self.inputs[0].name]):
            raise UsageError(f"{self._label}: expected at least one row, got none.")
        feed = {index: inputs[spec.name] for index, spec in enumerate(self.inputs)}
        with _translated(self._label), self._request() as request:
            runs = [request.infer(each, share_inputs=False, share_outputs=False) for each in self._feeds(feed)]
        arrays = [[run[index] for run in runs] for index in range(len(self.outputs))]
        return {
            spec.name: parts[0] if len(parts) == 1 else np.concatenate(parts)
            for spec, parts in zip(self.outputs, arrays, strict=True)
        }

    def _feeds(self, feed: dict[int, NDArray[Any]]) -> list[dict[int, NDArray[Any]]]:
        """What is run one after the other."""
        if not self._by_row:
            return [feed]
        return [{index: array[row : row + 1] for index, array in feed.items()} for row in range(len(feed[0]))]

    @contextmanager
    def _request(self) -> Iterator[Any]:
        """Lend a request that no other thread has."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            yield request
        finally:
            self._idle.append(request)


def _properties(precision: Any, threads: int) -> dict[str, Any]:
    """What OpenVINO would otherwise decide by the look of the machine."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # 32 by default: int8 activations where weights are stored in int8
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # On by default: two processes of a few threads each would sit on the same cores and leave the others idle.
        "ENABLE_CPU_PINNING": False,
    }


def _fix_batch(model: Any, named: tuple[TensorSpec, ...]) -> bool:
    """Let OpenVINO know all sizes of a graph in which only the batch is free, and say whether it is one.

    A report is a batch of one. For sizes that it knows OpenVINO fuses more: Swin-B in int8 and bf16 took 5 % less time.
    """
    own = [spec for spec in _tensor_specs(model.inputs) if spec.axes[:1] == ("?",) and "?" not in spec.axes[1:]]
    if not own or [replace(spec, axes=(_BATCH, *spec.axes[1:])) for spec in own] != list(named):
        return False
    model.reshape({spec.name: [1, *spec.axes[1:]] for spec in own})
    return True


def _check_precision(label: str, asked: Any, got: Any) -> None:
    """Refuse a graph that was compiled in another precision than the one that was asked for."""
    if asked != got:
        raise DeviceError(
            f"{label}: expected OpenVINO to compute in {_type_name(asked)}, got {_type_name(got)}: this processor has "
            f"no {_type_name(asked)} arithmetic. Use device cpu, or a bundle whose target {TARGET} is fp32."
        )


def _tensor_specs(ports: Iterable[Any]) -> tuple[TensorSpec, ...]:
    return tuple(map(_tensor_spec, ports))


def _tensor_spec(port: Any) -> TensorSpec:
    """Describe an input or output by its name in the file; a free axis becomes ``"?"``."""
    return TensorSpec(
        name=port.any_name,
        dtype=_DTYPES.get(name := _type_name(port.element_type), name),
        axes=tuple(axis.get_length() if axis.is_static else "?" for axis in port.partial_shape),
    )


def _type_name(kind: Any) -> str:
    return str(kind.get_type_name())


@contextmanager
def _translated(label: str) -> Iterator[None]:
    """Turn OpenVINO's exceptions while running into ours; wrong inputs were refused before."""
    try:
        yield
    except _FOREIGN as error:
        raise DeviceError(f"{label}: OpenVINO failed while running: {error}") from error
