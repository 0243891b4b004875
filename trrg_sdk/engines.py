"""Compiled engines of a bundle: which one fits this GPU.

An engine runs on the kinds of GPU that it was built for, in the library version that built it. Anything else is refused
here, before the library is asked: its own answer is a log line and no engine.
"""

from __future__ import annotations

import subprocess

from trrg_sdk.errors import DeviceError
from trrg_sdk.manifest import EngineSpec, TargetSpec

REMEDY = "run `trrg-export --rebuild-engines BUNDLE` on this machine"


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
