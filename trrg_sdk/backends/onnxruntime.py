"""ONNX Runtime on the CPU and on NVIDIA GPUs.

``onnxruntime`` and ``onnxruntime-gpu`` are two packages with one import name, so an installation has one of
them: the extra ``cpu`` or ``gpu``. ONNX Runtime falls back to the CPU by itself when a GPU does not work;
here every session is asked what it really runs on, and a named device that does not work is an error.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from trrg_sdk.backends.base import check_threads
from trrg_sdk.backends.ort_cuda import CudaDecoder, unfit_reason
from trrg_sdk.backends.ort_decoder import OrtDecoder
from trrg_sdk.backends.ort_session import EXACT_SUMS, PROVIDERS, OrtGraph, open_session
from trrg_sdk.errors import DeviceError, TrrgError, UsageError
from trrg_sdk.manifest import DecoderSpec, GraphSpec, Manifest
from trrg_sdk.processors import VNNI, instructions, physical_cores

NAME = "onnxruntime"

_LOG = logging.getLogger(__name__)
_INSTALL = "Install one of the two: pip install 'trrg-sdk[cpu]', or 'trrg-sdk[gpu]' for an NVIDIA GPU"

# Below this width one decoding step is a chain of products of about 10 us each, and waking a second thread costs more
# than it saves. Width 256, 6 layers, two cores that other processes use too, ms a step with 1 and 2 threads:
# fp32 1.7 and 3.5, int8 0.7 and 1.7, int4 0.7 and 1.3.
NARROW = 512

# The smallest ONNX model, y = Identity(x) over float32 (1,), IR version 8, opset 13: opening it on a device shows
# whether the device works before a large graph is read. Written out as protocol buffer bytes (onnx.proto).
_PROBE = (
    b"\x08\x08:7\n\x10\n\x01x\x12\x01y\x22\x08Identity\x12\x01p"
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    b"B\x04\n\x00\x10\r"
)


def unavailable_reason() -> str | None:
    """Say why this backend cannot be used here, or return ``None`` when it can."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"ONNX Runtime cannot be imported ({error}). {_INSTALL}."
    if not hasattr(onnxruntime, "InferenceSession"):
        # What removing one of two packages that share a folder leaves behind: an empty namespace.
        return f"ONNX Runtime is damaged: uninstall onnxruntime and onnxruntime-gpu. {_INSTALL}."
    return None


def open_backend(*, device: str = "auto", threads: int | None = None) -> OrtBackend:
    """Open ONNX Runtime on a device.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        threads: Threads that one graph may use; ``None`` takes the physical cores that this process may use.

    Raises:
        UsageError: The device is none of these, or the number of threads is below 1.
        DeviceError: ONNX Runtime is not installed, or the named device does not work.
    """
    check_threads(threads)
    if device not in ("auto", *PROVIDERS):
        raise UsageError(f"device: expected auto, cpu or cuda, got {device!r}.")
    if reason := unavailable_reason():
        raise DeviceError(reason)
    count = threads or physical_cores()
    if device == "auto":
        chosen = "cpu" if _device_failure("cuda") else "cuda"
        _LOG.info("device auto: %s", chosen)
        return OrtBackend(chosen, count)
    if failure := _device_failure(device):
        raise DeviceError(failure)
    return OrtBackend(device, count)


def _device_failure(device: str) -> str | None:
    """Say why a device does not work here, or return ``None`` when it does."""
    import onnxruntime

    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        return (
            f"device {device}: the installed ONNX Runtime {onnxruntime.__version__} has no {provider}. Uninstall "
            "onnxruntime, then: pip install 'trrg-sdk[gpu]'. Or use device cpu."
        )
    try:
        OrtGraph(open_session(_PROBE, "device test", device, 1), "device test").run({"x": np.zeros(1, np.float32)})
    except TrrgError as error:
        return f"device {device} does not work: {error}"
    return None


class OrtBackend:
    """ONNX Runtime on one device.

    Attributes:
        name: ``"onnxruntime"``.
        device: ``"cpu"`` or ``"cuda"``.
        target: ``"ort-cpu"`` or ``"ort-cuda"``.
        threads: Threads that one graph may use.
    """

    def __init__(self, device: str, threads: int) -> None:
        """Keep a device that is known to work; :func:`open_backend` finds out."""
        self.name = NAME
        self.device = device
        self.target = f"ort-{device}"
        self.threads = threads

    def single(self) -> OrtBackend | None:
        """The CPU with one thread a graph, for graphs that run at once; see ``trrg_sdk.backends.base.Divisible``."""
        return OrtBackend(self.device, 1) if self.device == "cpu" and self.threads > 1 else None

    def file(self, name: str, manifest: Manifest) -> str:
        """Say which file of a bundle it opens for a graph.

        Raises:
            DeviceError: A GPU does not compute the bundle's decoder.
        """
        spec = manifest.graph(name, target=self.target)
        if self.device == "cuda" and name == "decoder" and (reason := unfit_reason(spec)):
            raise DeviceError(reason)
        return spec.file

    def graph(self, path: Path, *, spec: GraphSpec | None = None) -> OrtGraph:
        """Open a graph.

        Args:
            path: The ``.onnx`` file; external data lies beside it.
            spec: Has no say: ONNX Runtime computes what the file says, and compares the shapes itself.

        Raises:
            BundleError: The file is no ONNX graph that this version runs.
            DeviceError: The device refuses it.
        """
        return OrtGraph(self.session(path, self.threads), path.name)

    def decoder(self, path: Path, spec: DecoderSpec) -> OrtDecoder:
        """Open a decoder and allocate its keys and values on the device.

        Args:
            path: The ``.onnx`` file; external data lies beside it.
            spec: The sizes of the buffers.

        Raises:
            BundleError: The file is no decoder of these sizes.
            DeviceError: The device refuses it.
        """
        if self.device == "cuda":
            session = open_session(str(path), path.name, self.device, self.threads, captured=True)
            return CudaDecoder(session, path.name, spec)
        threads = 1 if spec.hidden_size < NARROW else self.threads
        options = self.options()
        if not VNNI & instructions():
            options.add_session_config_entry(*EXACT_SUMS)
        return OrtDecoder(self.session(path, threads, options), path.name, spec)

    def session(self, path: Path, threads: int, options: Any = None) -> Any:
        """Open an ``onnxruntime.InferenceSession`` for either of them."""
        return open_session(str(path), path.name, self.device, threads, options or self.options())

    def options(self) -> Any:
        """The ``onnxruntime.SessionOptions`` that a session starts from, new each time."""
        import onnxruntime

        return onnxruntime.SessionOptions()
