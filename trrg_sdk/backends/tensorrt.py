"""TensorRT and TensorRT-RTX on an NVIDIA GPU: they run the engines of a bundle, the decoder's among them.

The devices ``"tensorrt"`` and ``"tensorrt-rtx"`` are two libraries with one interface. Each runs the engines that
``trrg-export`` made for it, on the kind of GPU and in the version that they were made for, and nothing else: no graph
runs elsewhere instead.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends import cuda_device
from trrg_sdk.backends.base import check_threads
from trrg_sdk.backends.checks import check_inputs
from trrg_sdk.backends.cuda_device import Buffer
from trrg_sdk.backends.tensorrt_decoder import TrtDecoder
from trrg_sdk.backends.tensorrt_engine import ANY_SHAPE, EVERY_SHAPE, TrtEngine
from trrg_sdk.engines import RUNNERS, EngineLibrary, engine_for
from trrg_sdk.errors import DeviceError, UsageError
from trrg_sdk.manifest import DecoderSpec, GraphSpec, Manifest, TensorSpec

NAME = "tensorrt"


def unavailable_reason() -> str | None:
    """Say why neither library can be used here, or return ``None`` when one can."""
    reasons = {name: _reason(library) for name, library in RUNNERS.items()}
    if not all(reasons.values()):
        return None
    return " ".join(f"{name}: {reason}" for name, reason in reasons.items())


def open_backend(*, device: str = "auto", threads: int | None = None) -> TrtBackend:
    """Open one of the libraries.

    Args:
        device: ``"tensorrt"`` or ``"tensorrt-rtx"``; ``"auto"`` takes the one that works.
        threads: Taken for the sake of the same signature; the work is the GPU's.

    Raises:
        UsageError: The device is none of these, or the number of threads is below 1.
        DeviceError: The library, the driver or the GPU is missing.
    """
    check_threads(threads)
    if device not in ("auto", *RUNNERS):
        raise UsageError(f"device: expected auto, {' or '.join(RUNNERS)}, got {device!r}.")
    if device == "auto":
        device = next((name for name, library in RUNNERS.items() if _reason(library) is None), next(iter(RUNNERS)))
    if reason := _reason(RUNNERS[device]):
        raise DeviceError(f"device {device}: {reason}")
    return TrtBackend(RUNNERS[device])


def _reason(library: EngineLibrary) -> str | None:
    try:
        library.load()
    except DeviceError as error:
        return f"{error}."
    return cuda_device.unavailable_reason()


class TrtBackend:
    """One of the libraries on the first GPU.

    Attributes:
        name: ``"tensorrt"``.
        device: ``"tensorrt"`` or ``"tensorrt-rtx"``.
        target: The same.
        compute_capability: Of the GPU.
    """

    def __init__(self, library: EngineLibrary) -> None:
        """Keep a library that is known to work; :func:`open_backend` finds out.

        Raises:
            DeviceError: The GPU does not answer.
        """
        self.name = NAME
        self.device = library.name
        self.target = library.name
        self.compute_capability = cuda_device.compute_capability()
        self._library = library

    def file(self, name: str, manifest: Manifest) -> str:
        """Pick the engine of a graph.

        Args:
            name: One of ``GRAPH_NAMES``.
            manifest: Of the bundle.

        Raises:
            DeviceError: There is none for this GPU and this version.
        """
        target = manifest.targets.get(self.target)
        if target is None or not target.engines:
            raise DeviceError(
                f"device {self.device}: this bundle has no engines for it, only the targets "
                f"{', '.join(sorted(manifest.targets))}: export it with --target {self.target}, or use another device."
            )
        version = self._library.version
        return engine_for(target, name, compute_capability=self.compute_capability, version=version).file

    def graph(self, path: Path, *, spec: GraphSpec | None = None) -> TrtGraph:
        """Open an engine.

        Args:
            path: The ``.engine`` file.
            spec: What the manifest says about its graph: one name of axes is one size, which an engine has forgotten.

        Raises:
            BundleError: The file cannot be read.
            DeviceError: The library refuses it.
        """
        return TrtGraph(TrtEngine(self._library, path, kernels=EVERY_SHAPE), named=spec.inputs if spec else None)

    def decoder(self, path: Path, spec: DecoderSpec) -> TrtDecoder:
        """Open the engine of a decoder and allocate its keys and values on the GPU.

        Args:
            path: The ``.engine`` file.
            spec: The sizes of the buffers.

        Raises:
            BundleError: The engine is no decoder of these sizes.
            DeviceError: The library refuses it, or the GPU has no room.
        """
        return TrtDecoder(TrtEngine(self._library, path, kernels=ANY_SHAPE), spec)


class TrtGraph:
    """An engine without state; threads that run it at once wait for each other, as the GPU would make them."""

    def __init__(self, engine: TrtEngine, *, named: tuple[TensorSpec, ...] | None = None) -> None:
        """Keep an opened engine.

        Args:
            engine: The engine.
            named: The inputs with names for their free axes.
        """
        self._engine = engine
        self._expected = named or engine.inputs
        self._buffers: dict[str, Buffer] = {}
        self._lock = threading.Lock()
        self.inputs = engine.inputs
        self.outputs = engine.outputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see :class:`trrg_sdk.backends.base.Graph`.

        Raises:
            UsageError: An input is missing, unknown, of the wrong dtype, or of a shape that the engine does not take.
            DeviceError: The GPU or the library failed.
        """
        check_inputs(self._engine.label, self._expected, inputs)
        feed = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        with self._lock:
            shapes = self._engine.shaped({name: array.shape for name, array in feed.items()})
            made = {spec.name: np.empty(shapes[spec.name], spec.dtype) for spec in self.outputs}
            for name, array in {**feed, **made}.items():
                self._make_room(name, array.nbytes)
            stream = self._engine.stream
            for name, array in feed.items():
                self._buffers[name].write(array, stream)
            self._engine.run(self._buffers)
            for name, array in made.items():
                self._buffers[name].read(array, stream)
            stream.synchronize()
        return made

    def kernels(self) -> bytes:
        """Return the kernels that the library compiled so far, for the file beside the engine."""
        return self._engine.kernels()

    def _make_room(self, name: str, size: int) -> None:
        """Keep the memory of the run before where it is large enough."""
        if name not in self._buffers or self._buffers[name].nbytes < size:
            self._buffers[name] = Buffer(size)
