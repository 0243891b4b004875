"""Stands for a GPU: the part of CUDA and of TensorRT that our code calls, in memory of this process. A fake.

It computes nothing that a GPU computes: an "engine" is a function in numpy. What it has is the order of things: work is
done when a stream is synchronized and not before, memory ends where it ends, an engine takes no shape outside its
profile and runs only when everything was said. So it tests how the backend talks to both libraries, and
``test_the_fake_has_no_name_that_the_libraries_lack`` holds its names against theirs.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import pytest

from trrg_sdk.backends import cuda_device, tensorrt_engine
from trrg_sdk.engines import EngineLibrary

VERSION = "1.7.1"
Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Code:
    """What a fake engine computes: input and output → dtype and axes (-1 is free), range of inputs, function."""

    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    function: Callable[[Arrays], Arrays]


class FakeCuda:
    """Stands for ``cuda.bindings.runtime``."""

    cudaError_t = Enum(
        "cudaError_t",
        {
            "cudaSuccess": 0,
            "cudaErrorMemoryAllocation": 2,
            "cudaErrorInsufficientDriver": 35,
            "cudaErrorNoDevice": 100,
            "cudaErrorIllegalAddress": 700,
        },
    )
    cudaMemcpyKind = Enum(
        "cudaMemcpyKind", ["cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaMemcpyDeviceToDevice"]
    )
    cudaDeviceAttr = Enum("cudaDeviceAttr", ["cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor"])

    def __init__(self, *, capability: str = "8.9", room: int = 2**28, start: str = "cudaSuccess") -> None:
        self.capability, self.room, self.start = capability, room, self.cudaError_t[start]
        self.driver, self.broken = 13050, ""
        self.blocks: dict[int, bytearray] = {}
        self.queues: dict[int, list[Callable[[], None]]] = {}
        self._next, self._lock = 4096, threading.Lock()
        self.threads: set[int] = set()  # those that may talk to the GPU

    def _done(self, *values: Any, name: str = "") -> tuple[Any, ...]:
        failed = name and name == self.broken
        return (self.cudaError_t["cudaErrorIllegalAddress" if failed else "cudaSuccess"], *values)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return self._done(f"words about {error.value}".encode())

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self.start, 1

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return self._done(self.driver)

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return self._done(13050)

    def cudaDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[Any, ...]:
        major, minor = self.capability.split(".")
        assert device == 0
        return self._done(int(major if attribute.name.endswith("Major") else minor))

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        assert device == 0
        self.threads.add(threading.get_ident())
        return self._done()

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        with self._lock:
            self.queues[handle := len(self.queues) + 1] = []
        return self._done(handle)

    def cudaStreamDestroy(self, handle: int) -> tuple[Any, ...]:
        return self._done()

    def cudaStreamSynchronize(self, handle: int) -> tuple[Any, ...]:
        work, self.queues[handle] = self.queues[handle], []
        for each in work:
            each()
        return self._done(name="cudaStreamSynchronize")

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        assert size > 0
        with self._lock:
            address = self._next
            self._next += -(-size // 256) * 256 + 256  # a gap: what is written past the end hits nothing
        if sum(map(len, list(self.blocks.values()))) + size > self.room:
            return self.cudaError_t["cudaErrorMemoryAllocation"], None
        self.blocks[address] = bytearray(b"\xff" * size)  # not-a-numbers: what nobody wrote shows
        return self._done(address)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.blocks[address]
        return self._done()

    def cudaMemcpyAsync(self, to: int, source: int, count: int, kind: Any, stream: int) -> tuple[Any, ...]:
        def copy() -> None:
            if kind.name == "cudaMemcpyHostToDevice":
                self.memory(to, count)[:] = ctypes.string_at(source, count)
            else:
                ctypes.memmove(to, bytes(self.memory(source, count)), count)

        self.queues[stream].append(copy)
        return self._done()

    def cudaMemcpy2DAsync(self, *arguments: Any) -> tuple[Any, ...]:
        to, to_pitch, source, pitch, width, height, kind, stream = arguments
        assert kind.name == "cudaMemcpyDeviceToDevice" and width <= pitch and width <= to_pitch

        def copy() -> None:
            for row in range(height):
                self.memory(to + row * to_pitch, width)[:] = self.memory(source + row * pitch, width)

        self.queues[stream].append(copy)
        return self._done()

    def memory(self, address: int, size: int) -> memoryview:
        for start, block in list(self.blocks.items()):
            if start <= address <= start + len(block):
                assert address + size <= start + len(block), "past the end of a buffer"
                return memoryview(block)[address - start : address - start + size]
        raise AssertionError(f"no buffer at {address}")


class FakeTrt:
    """Stands for ``tensorrt_rtx``, and without the names of a cache for ``tensorrt``."""

    __version__ = VERSION
    TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])
    TensorLocation = Enum("TensorLocation", ["DEVICE", "HOST"])
    DynamicShapesKernelSpecializationStrategy = Enum("Strategy", ["LAZY", "EAGER", "NONE"])

    class ILogger:
        ERROR = 1

    def __init__(self, cuda: FakeCuda, engines: Mapping[bytes, Code]) -> None:
        self.cuda, self.engines = cuda, engines
        self.refuses: set[str] = set()  # names of calls that fail
        self.contexts: list[Context] = []
        self.loggers: list[Any] = []

    def Runtime(self, logger: Any) -> Runtime:
        self.loggers.append(logger)
        return Runtime(self)

    def says(self, call: str) -> bool:
        """Whether a call succeeds; where not, the log says why."""
        assert threading.get_ident() in self.cuda.threads, "a thread that has not talked to CUDA"
        if call in self.refuses:
            self.loggers[-1].log(1, f"{call} went\nwrong")
        return call not in self.refuses


class Runtime:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt

    def deserialize_cuda_engine(self, serialized: bytes) -> Engine | None:
        return Engine(self._trt, self._trt.engines[serialized]) if self._trt.says("deserialize_cuda_engine") else None


class Engine:
    num_optimization_profiles = 1

    def __init__(self, trt: FakeTrt, code: Code) -> None:
        self._trt, self._code = trt, code
        self._tensors = {**code.inputs, **code.outputs}
        self.num_io_tensors = len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode["INPUT" if name in self._code.inputs else "OUTPUT"]

    def get_tensor_location(self, name: str) -> Any:
        return self._trt.TensorLocation["DEVICE" if self._trt.says("get_tensor_location") else "HOST"]

    def get_tensor_dtype(self, name: str) -> Any:
        names = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}
        return Enum("DataType", list(names.values()))[names[self._tensors[name][0]]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][1]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert profile == 0
        least, most = self._code.ranges[name]
        return [least, most, most]

    def create_runtime_config(self) -> Config:
        return Config()

    def create_execution_context(self, config: Config | None = None) -> Context:
        self._trt.contexts.append(Context(self._trt, self._code, config))
        return self._trt.contexts[-1]


class Config:
    dynamic_shapes_kernel_specialization_strategy: Any = None
    cache: Any = None

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.cache = cache
        return True


class Cache:
    """Fits where it says so."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        self.content = blob if (fits := blob.startswith(b"fits")) else b""
        return fits

    def serialize(self) -> bytes:
        return self.content or b"fits, compiled"


class Context:
    def __init__(self, trt: FakeTrt, code: Code, config: Config | None) -> None:
        self._trt, self._code, self.config = trt, code, config
        self._profile = False
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._made: dict[str, tuple[int, ...]] = {}
        self.runs = 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile == 0 and stream in self._trt.cuda.queues
        return self._trt.says("set_optimization_profile_async")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile, "a shape before the profile"
        least, most = self._code.ranges[name]
        assert all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True)), "outside the profile"
        self._shapes[name] = shape
        self._made = {}
        return self._trt.says("set_input_shape")

    def infer_shapes(self) -> list[str]:
        if not self._trt.says("infer_shapes"):
            raise RuntimeError("shape inference failed")
        return sorted(self._code.inputs.keys() - self._shapes.keys())

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        if not self._made:
            zeros = {key: np.zeros(self._shapes[key], dtype) for key, (dtype, _) in self._code.inputs.items()}
            self._made = {key: array.shape for key, array in self._code.function(zeros).items()}
        return self._made[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address and address % 256 == 0
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        tensors = {**self._code.inputs, **self._code.outputs}
        assert self._addresses.keys() == tensors.keys(), "an address is missing"
        assert len(set(self._addresses.values())) == len(tensors), "two tensors share memory"
        if not self._trt.says("execute_async_v3"):
            return False
        shapes = {name: self.get_tensor_shape(name) for name in tensors}
        addresses = dict(self._addresses)

        def memory(name: str) -> memoryview:
            size = np.dtype(tensors[name][0]).itemsize * math.prod(shapes[name])
            return self._trt.cuda.memory(addresses[name], size)

        def work() -> None:
            read = {n: np.frombuffer(memory(n), tensors[n][0]).reshape(shapes[n]) for n in self._code.inputs}
            for name, array in self._code.function(read).items():
                assert array.dtype == tensors[name][0] and array.shape == shapes[name], name
                memory(name)[:] = np.ascontiguousarray(array).tobytes()
            self.runs += 1

        self._trt.cuda.queues[stream].append(work)
        return True


def install(monkeypatch: pytest.MonkeyPatch, engines: Mapping[bytes, Code], **cuda: Any) -> FakeTrt:
    """Put the fake in the place of both libraries until the test ends.

    Args:
        monkeypatch: Of the test.
        engines: Content of an engine's file → what it computes.
        cuda: Of :class:`FakeCuda`.
    """
    fake = FakeTrt(FakeCuda(**cuda), engines)
    monkeypatch.setattr(cuda_device, "_runtime", lambda: fake.cuda)
    monkeypatch.setattr(EngineLibrary, "load", lambda self: fake)
    monkeypatch.setattr(tensorrt_engine, "_log", functools.cache(tensorrt_engine._log.__wrapped__))
    return fake
