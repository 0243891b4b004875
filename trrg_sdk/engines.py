"""Compiled engines of a bundle: which one fits this GPU, and where what the driver compiles from it is kept.

An engine runs on the kinds of GPU that it was built for, in the library version that built it. Anything else is refused
here, before the library is asked: its own answer is a log line and no engine.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

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


def jit_cache_file(manifest_sha256: str, target: TargetSpec, *, compute_capability: str) -> Path:
    """Say where the runtime keeps what it compiled on this machine from the engines of one bundle.

    It lies outside the bundle, because it changes with each shape that is seen first, and a bundle never does. The name
    changes with the bundle, the library and the GPU, so that a cache of something else is never read.

    Args:
        manifest_sha256: Of the bundle.
        target: Whose engines.
        compute_capability: Of the GPU.

    Returns:
        A file in ``$XDG_CACHE_HOME``, else in ``~/.cache``; neither it nor its folder has to exist.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "trrg-sdk" / manifest_sha256 / f"{target.runtime}-{target.version}-{compute_capability}.cache"
