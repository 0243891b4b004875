"""Compiled engines of a bundle: the libraries that run them, and which engine fits this GPU.

An engine runs on the kinds of GPU that it was built for, in the library version that built it. Anything else is refused
here, before the library is asked: its own answer is a log line and no engine.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import subprocess
from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import Any

from trrg_sdk.errors import DeviceError
from trrg_sdk.manifest import EngineSpec, TargetSpec

REMEDY = "run `trrg-export --rebuild-engines BUNDLE` on this machine"
CACHE_SUFFIX = ".cache"
"""Of the file beside an engine that holds the kernels which its library compiled for this GPU; never required."""

_EXTRA = "'trrg-sdk[tensorrt]'"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLibrary:
    """One of the libraries.

    Attributes:
        name: Of the target and the device, and of its folder below ``graphs/`` and ``engines/``.
        module: What is imported.
        package: The distribution's name.
        install: How to get it, with what it needs beside it to run engines.
        compiles: Whether it compiles kernels for the GPU when it opens an engine, and can keep them.
    """

    name: str
    module: str
    package: str
    install: str
    compiles: bool

    def load(self) -> Any:
        """Import the library.

        Raises:
            DeviceError: It is not installed, or its parts do not find each other.
        """
        if importlib.util.find_spec(self.module) is None:
            raise DeviceError(f"{self.package} is not installed: {self.install}")
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError, RuntimeError) as error:
            raise DeviceError(f"{self.package} is installed but does not load ({error}): install it again") from error

    @property
    def version(self) -> str:
        """Of the installed library; an engine runs in no other."""
        return str(self.load().__version__)


RUNNERS = {
    library.name: library
    for library in (
        EngineLibrary("tensorrt", "tensorrt", "tensorrt", f"pip install tensorrt {_EXTRA}", compiles=False),
        EngineLibrary("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx", f"pip install {_EXTRA}", compiles=True),
    )
}
"""By name; TensorRT 10.16 and 11, and TensorRT-RTX, which runs on workstations."""


def library_logger(trt: Any, errors: MutableSequence[str]) -> Any:
    """Make a library's log ours: errors are kept for the exception, the rest is for who asks.

    Args:
        trt: The imported library.
        errors: Takes what the library says about errors, one line each.

    Returns:
        The object that its ``Runtime`` and ``Builder`` are given.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]  # a base of a library that is imported late
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                errors.append(" ".join(message.split()))
            _LOG.debug("%s", message)

    return Logger()


def engine_for(target: TargetSpec, graph: str, *, compute_capability: str, version: str) -> EngineSpec:
    """Pick the engine of a graph that this GPU and this library can run.

    Args:
        target: Of the manifest, with engines.
        graph: One of ``GRAPH_NAMES``.
        compute_capability: Of the GPU, such as ``"8.9"``.
        version: Of the installed library.

    Raises:
        DeviceError: There is none; the message says what there is.
    """
    engines = [engine for engine in target.engines if engine.graph == graph]
    for engine in engines:
        if engine.compute_capability == compute_capability and target.version == version:
            return engine
    built = ", ".join(engine.compute_capability for engine in engines) or "no GPU"
    raise DeviceError(
        f"the {target.runtime} engine of {graph} was built for compute capability {built} by version {target.version}, "
        f"but this GPU has {compute_capability} and the installed version is {version}: {REMEDY}."
    )


def gpu_compute_capability() -> str:
    """Ask the driver for the compute capability of the first GPU.

    Returns:
        Such as ``"8.9"``.

    Raises:
        DeviceError: There is no NVIDIA GPU, or no driver for it.
    """
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError("this machine has no NVIDIA GPU with a driver (nvidia-smi does not run).") from error
    lines = done.stdout.split()
    if not lines or not lines[0].replace(".", "", 1).isdigit():
        raise DeviceError(f"nvidia-smi names no compute capability, but {done.stdout[:80]!r}: update the driver.")
    return lines[0]
