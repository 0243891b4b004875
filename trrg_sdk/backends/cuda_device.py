"""The GPU through NVIDIA's cuda-bindings: what is there, its memory, and a stream of work.

Everything happens on the first GPU that CUDA shows; ``CUDA_VISIBLE_DEVICES`` chooses which one that is. Every function
of the CUDA runtime says whether it succeeded, and here that becomes an exception.
"""

from __future__ import annotations

import weakref
from typing import Any

from numpy.typing import NDArray

from trrg_sdk.errors import DeviceError

_INSTALL = "Install it: pip install 'trrg-sdk[tensorrt]'"


def unavailable_reason() -> str | None:
    """Say why there is no GPU to use here, or return ``None`` when there is one."""
    try:
        runtime = _runtime()
    except ImportError as missing:
        return f"cuda-bindings cannot be imported ({missing}). {_INSTALL}."
    error, count = runtime.cudaGetDeviceCount()
    codes = runtime.cudaError_t
    if error == codes.cudaErrorInsufficientDriver:
        if not (driver := call("cudaDriverGetVersion")):
            return "this machine has no NVIDIA driver (libcuda does not load)."
        return f"the NVIDIA driver has CUDA {_version(driver)}, expected {_version(call('cudaRuntimeGetVersion'))}."
    if error == codes.cudaErrorNoDevice or (error == codes.cudaSuccess and not count):
        return "the NVIDIA driver finds no GPU (CUDA_VISIBLE_DEVICES may hide it)."
    return None if error == codes.cudaSuccess else f"CUDA does not start: {_words(error)}."


def compute_capability() -> str:
    """Return that of the GPU, such as ``"8.9"``.

    Raises:
        DeviceError: CUDA does not answer.
    """
    attributes = _runtime().cudaDeviceAttr
    major = call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, 0)
    minor = call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, 0)
    return f"{major}.{minor}"


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime.

    Args:
        name: Of the function.
        arguments: Its arguments.

    Returns:
        Its value, where it has one.

    Raises:
        DeviceError: It failed.
    """
    runtime = _runtime()
    error, *values = getattr(runtime, name)(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        raise DeviceError(f"the GPU failed ({name}: {_words(error)}).")
    return values[0] if values else None


def enter() -> None:
    """Let this thread talk to the GPU; a library that is called before CUDA itself takes it for granted.

    Raises:
        DeviceError: The GPU refuses.
    """
    call("cudaSetDevice", 0)


class Stream:
    """Work for the GPU in order.

    Attributes:
        handle: What CUDA and TensorRT know it by.
    """

    def __init__(self) -> None:
        """Make one.

        Raises:
            DeviceError: The GPU refuses.
        """
        self.handle = int(call("cudaStreamCreate"))
        weakref.finalize(self, _runtime().cudaStreamDestroy, self.handle)

    def synchronize(self) -> None:
        """Wait until all of it is done.

        Raises:
            DeviceError: Some of it failed.
        """
        call("cudaStreamSynchronize", self.handle)


class Buffer:
    """Memory of the GPU, given back with the object.

    Attributes:
        nbytes: How much.
        address: Where; a multiple of 256, and unlike that of every other buffer even where this one is empty.
    """

    def __init__(self, nbytes: int) -> None:
        """Allocate.

        Raises:
            DeviceError: The GPU has not so much left.
        """
        self.nbytes = nbytes
        self.address = int(call("cudaMalloc", max(nbytes, 1)))
        weakref.finalize(self, _runtime().cudaFree, self.address)

    def write(self, array: NDArray[Any], stream: Stream) -> None:
        """Copy a contiguous array to the start; it must live until the stream is synchronized.

        Raises:
            DeviceError: It is larger than the buffer, or the GPU failed.
        """
        self._check(array.nbytes)
        kind = _runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", self.address, array.ctypes.data, array.nbytes, kind, stream.handle)

    def read(self, array: NDArray[Any], stream: Stream, *, offset: int = 0) -> None:
        """Fill a contiguous array from some byte on; it is full when the stream is synchronized.

        Raises:
            DeviceError: There is not so much in the buffer, or the GPU failed.
        """
        self._check(offset + array.nbytes)
        kind = _runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", array.ctypes.data, self.address + offset, array.nbytes, kind, stream.handle)

    def take_rows(self, source: Buffer, shape: tuple[int, int], pitch: int, stream: Stream) -> None:
        """Copy the start of each row of another buffer, so that they lie one after the other here.

        Args:
            source: Where they are.
            shape: How many rows, and how many bytes of each.
            pitch: Bytes from one row to the next in ``source``.
            stream: When.

        Raises:
            DeviceError: They do not fit, or the GPU failed.
        """
        rows, width = shape
        self._check(rows * width)
        source._check((rows - 1) * pitch + width)
        kind = _runtime().cudaMemcpyKind.cudaMemcpyDeviceToDevice
        place, size = (self.address, width, source.address, pitch), (width, rows)
        call("cudaMemcpy2DAsync", *place, *size, kind, stream.handle)

    def _check(self, nbytes: int) -> None:
        """Refuse to touch what is not ours."""
        if nbytes > self.nbytes:
            raise DeviceError(f"expected at most the {self.nbytes} bytes of a GPU buffer, got {nbytes}.")


def filled(array: NDArray[Any]) -> Buffer:
    """Return a buffer that holds a contiguous array.

    Raises:
        DeviceError: The GPU has not so much left.
    """
    buffer, stream = Buffer(array.nbytes), Stream()
    buffer.write(array, stream)
    stream.synchronize()
    return buffer


def _runtime() -> Any:
    from cuda.bindings import runtime

    return runtime


def _words(error: Any) -> str:
    _, text = _runtime().cudaGetErrorString(error)
    return f"{text.decode()}, {error.name}"


def _version(number: int) -> str:
    """13050 is 13.5."""
    return f"{number // 1000}.{number % 1000 // 10}"
