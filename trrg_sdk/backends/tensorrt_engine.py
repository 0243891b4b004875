"""One engine of TensorRT or TensorRT-RTX, opened: shapes in, work on the GPU, shapes out.

Only what TensorRT 10.16, 11 and TensorRT-RTX have in common is called, but for the kernels that TensorRT-RTX compiles
for the GPU when it opens an engine: those are kept in a file beside the engine. A shape that the engine was not built
for is refused here; a library says so in its log alone.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from trrg_sdk.backends.cuda_device import Buffer, Stream, enter
from trrg_sdk.engines import CACHE_SUFFIX, REMEDY, EngineLibrary, library_logger
from trrg_sdk.errors import BundleError, DeviceError, UsageError
from trrg_sdk.manifest import TensorSpec

EVERY_SHAPE = "EAGER"
"""TensorRT-RTX compiles kernels for each shape that comes, at once: some seconds, and then the same numbers always."""
ANY_SHAPE = "NONE"
"""It uses kernels that take any shape: for a decoder, where every step has another one."""

_LOG = logging.getLogger(__name__)
_PROFILE = 0  # our engines have one
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32"}
_FOREIGN = (RuntimeError, ValueError, TypeError)  # of the libraries' Python layer

Shape = tuple[int, ...]


class TrtEngine:
    """An opened engine with one execution context; one thread at a time.

    Attributes:
        label: The file's name, for messages.
        inputs: What the library says about the inputs; a free axis is ``"?"``.
        outputs: The same of the outputs.
        stream: Where it works.
    """

    def __init__(self, library: EngineLibrary, path: Path, *, kernels: str) -> None:
        """Open an engine.

        Args:
            library: Which runs it.
            path: Its file; kernels that were kept lie beside it.
            kernels: :data:`EVERY_SHAPE` or :data:`ANY_SHAPE`.

        Raises:
            BundleError: The file cannot be read.
            DeviceError: The library refuses it, or the GPU has no room for it.
        """
        self.label, self._library, self._trt = path.name, library, library.load()
        self._logger, self._errors = _log(library)
        self._cache: Any = None
        enter()
        self.stream = Stream()
        with self._translated("does not open it"):
            self._runtime = self._trt.Runtime(self._logger)
            self._engine = self._given(self._runtime.deserialize_cuda_engine(_content(path)))
            self._context = self._given(self._opened(path.with_suffix(CACHE_SUFFIX), kernels))
            self._require(self._context.set_optimization_profile_async(_PROFILE, self.stream.handle))
            names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
            modes = {name: self._engine.get_tensor_mode(name) for name in names}
            mode = self._trt.TensorIOMode
            self.inputs = tuple(self._spec(name) for name in names if modes[name] == mode.INPUT)
            self.outputs = tuple(self._spec(name) for name in names if modes[name] == mode.OUTPUT)
            self._limits = {spec.name: self._range(spec.name) for spec in self.inputs}
        self.stream.synchronize()

    def shaped(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Say which shapes the inputs of the next run have.

        Args:
            shapes: Every input's.

        Returns:
            Every output's.

        Raises:
            UsageError: One lies outside what the engine was built for.
            DeviceError: The library refuses them.
        """
        for name, shape in shapes.items():
            least, most = self._limits[name]
            if len(shape) != len(least) or not all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True)):
                raise UsageError(
                    f"{self.label}: {name}: the engine was built for shapes from {least} to {most}, got {shape}."
                )
        enter()  # another thread may have opened it
        with self._translated("failed with these shapes"):
            for name, shape in shapes.items():
                self._require(self._context.set_input_shape(name, shape))
            self._require(not self._context.infer_shapes())
            return {spec.name: tuple(self._context.get_tensor_shape(spec.name)) for spec in self.outputs}

    def run(self, buffers: Mapping[str, Buffer]) -> None:
        """Put one run with the shapes that were said into the stream.

        Args:
            buffers: Of every input and output; they live until the stream is synchronized.

        Raises:
            DeviceError: A buffer is too small, or the library failed.
        """
        with self._translated("failed while running"):
            for spec in (*self.inputs, *self.outputs):
                buffer, shape = buffers[spec.name], tuple(self._context.get_tensor_shape(spec.name))
                if (needed := nbytes(spec.dtype, shape)) > buffer.nbytes:
                    raise DeviceError(
                        f"{self.label}: {spec.name}: expected a buffer for {shape}, {needed} bytes, got {buffer.nbytes}"
                    )
                self._require(self._context.set_tensor_address(spec.name, buffer.address))
            self._require(self._context.execute_async_v3(self.stream.handle))

    def kernels(self) -> bytes:
        """Return the kernels that the library compiled so far; empty where it keeps none.

        Raises:
            DeviceError: The library does not give them.
        """
        if self._cache is None:
            return b""
        with self._translated("does not give its kernels"):
            return bytes(self._given(self._cache.serialize()))

    def _opened(self, cache: Path, kernels: str) -> Any:
        """Make the execution context, of TensorRT-RTX with the kernels that fit."""
        if not self._library.compiles:
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        strategy = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(strategy, kernels)
        self._cache = config.create_runtime_cache()
        if cache.is_file() and not self._cache.deserialize(_content(cache)):
            _LOG.info("%s: the kept kernels are of another GPU, driver or version; they are compiled anew", self.label)
        self._require(config.set_runtime_cache(self._cache))
        return self._engine.create_execution_context(config)

    def _spec(self, name: str) -> TensorSpec:
        if self._engine.get_tensor_location(name) != self._trt.TensorLocation.DEVICE:
            raise DeviceError(f"{self.label}: {name}: expected a tensor on the GPU, got a host one: {REMEDY}.")
        kind = self._engine.get_tensor_dtype(name).name
        axes = tuple("?" if size < 0 else int(size) for size in self._engine.get_tensor_shape(name))
        return TensorSpec(name, _DTYPES.get(kind, kind), axes)

    def _range(self, name: str) -> tuple[Shape, Shape]:
        """Smallest and largest shape of an input."""
        least, _, most = self._engine.get_tensor_profile_shape(name, _PROFILE)
        return tuple(least), tuple(most)

    def _given(self, made: Any) -> Any:
        """Refuse nothing where an object was asked for."""
        self._require(made is not None)
        return made

    def _require(self, done: bool) -> None:
        if not done:
            raise RuntimeError("; ".join(self._errors) or "the library gives no reason")

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Turn a library's refusals into ours."""
        self._errors.clear()
        try:
            yield
        except _FOREIGN as error:
            said = " ".join(str(error).split()).rstrip(".")
            library = f"{self._library.name} {self._library.version}"
            raise DeviceError(f"{self.label}: {library} {what}: {said}. If it stays so, {REMEDY}.") from error


def nbytes(dtype: str, shape: Shape) -> int:
    """Return how much memory a contiguous tensor takes."""
    return int(np.dtype(dtype).itemsize) * math.prod(shape)


@functools.cache
def _log(library: EngineLibrary) -> tuple[Any, deque[str]]:
    """One for the whole process, whoever asks: a library keeps the first one that it is given."""
    errors: deque[str] = deque(maxlen=3)
    return library_logger(library.load(), errors), errors


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read ({error.strerror}). Restore the bundle.") from error
