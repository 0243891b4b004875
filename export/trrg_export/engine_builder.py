"""Builds TensorRT engines from clean ONNX graphs, with what TensorRT 10.16, 11 and TensorRT-RTX have in common.

Networks are strongly typed: the precision stands in the graph, no builder flag changes it. What differs is the GPU.
TensorRT-RTX builds on a machine without one, for the compute capabilities that it is told, all in one file of the size
of one; TensorRT measures on the GPU of the machine and builds for that kind alone. Needs neither PyTorch nor ONNX, so
that it works on a workstation.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from trrg_sdk.backends import cuda_device
from trrg_sdk.engines import RUNNERS, EngineLibrary, gpu_compute_capability, library_logger
from trrg_sdk.errors import DeviceError, UsageError
from trrg_sdk.manifest import ENGINES, EngineSpec, GraphSpec, Manifest

_LOG = logging.getLogger(__name__)
_MAX_BATCH = 4
_LOG_EVERY = 5.0  # seconds between two lines of progress

Range = tuple[int, int, int]
"""Smallest, usual and largest size of a free axis."""
Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Input → smallest, usual and largest shape, as an ``EngineSpec`` holds it."""


@dataclass(frozen=True)
class BuildLibrary(EngineLibrary):
    """One of the libraries, as a builder.

    Attributes:
        capabilities: Built for where nothing is asked for; empty where only the GPU of the machine can be built for.
    """

    capabilities: tuple[str, ...]

    def unavailable_reason(self) -> str | None:
        """Say why no engine can be built here, or return ``None``."""
        try:
            self.load()
            if not self.capabilities:
                present_capability()
        except DeviceError as error:
            return str(error)
        return None

    def chosen(self, asked: Sequence[str]) -> tuple[str, ...]:
        """Decide what to build for.

        Args:
            asked: Compute capabilities; empty takes the library's own.

        Returns:
            At least one, such as ``"8.9"``.

        Raises:
            UsageError: The library cannot build for one of them.
            DeviceError: It builds only for the GPU of this machine, and there is none.
        """
        if not self.capabilities:
            present = present_capability()
            if unfit := sorted(set(asked) - {present}):
                raise UsageError(f"{self.name} builds only for the GPU of this machine ({present}), not for {unfit}")
            return (present,)
        members = self.load().ComputeCapability.__members__
        known = sorted((f"{name[2:-1]}.{name[-1]}" for name in members if name.startswith("SM")), key=float)
        if unknown := sorted(set(asked) - set(known)):
            raise UsageError(f"{self.name} builds for the compute capabilities {', '.join(known)}, not for {unknown}")
        return tuple(dict.fromkeys(asked)) or self.capabilities


_CAPABILITIES = {"tensorrt": (), "tensorrt-rtx": ("8.6", "8.9", "12.0")}
LIBRARIES: Mapping[str, BuildLibrary] = {
    name: BuildLibrary(**vars(library), capabilities=_CAPABILITIES[name]) for name, library in RUNNERS.items()
}


def present_capability() -> str:
    """Return that of the GPU which CUDA shows first: the one that builds, and that runs what was built.

    ``nvidia-smi`` may count in another order; it is asked where cuda-bindings is missing.

    Raises:
        DeviceError: There is no NVIDIA GPU, or no driver for it.
    """
    return gpu_compute_capability() if cuda_device.unavailable_reason() else cuda_device.compute_capability()


def axis_ranges(manifest: Manifest) -> dict[str, Range]:
    """Say how large each free axis of a bundle's graphs can be.

    Args:
        manifest: Of the bundle.

    Returns:
        By the axis' name in the clean graphs. Largest past and largest sequence add up to the largest sum, because
        TensorRT looks at all the largest shapes together.
    """
    bundled, longest = len(manifest.clues), manifest.decoder.max_length
    prompt = manifest.prompt_length(bundled)
    clues = max(bundled, longest - 1 - manifest.prompt_length(0))  # a prompt must leave room for a token
    length = manifest.custom_clue.max_length
    return {
        "batch": (1, 1, _MAX_BATCH),
        "clues": (1, bundled, clues),
        "prompts": (1, 2 * bundled, 2 * clues),
        "length": (1, length, length),
        "sequence": (1, 1, longest),
        "past": (0, prompt, longest),
        "past + sequence": (1, prompt + 1, 2 * longest),
    }


def build_profile(graph: GraphSpec, ranges: Mapping[str, Range]) -> Profile:
    """Make the shapes of a graph's inputs from the ranges of its axes."""

    def shape(axes: Sequence[int | str], which: int) -> tuple[int, ...]:
        return tuple(ranges[axis][which] if isinstance(axis, str) else axis for axis in axes)

    return {spec.name: (shape(spec.axes, 0), shape(spec.axes, 1), shape(spec.axes, 2)) for spec in graph.inputs}


def build_engines(
    library: BuildLibrary,
    graphs: Mapping[str, GraphSpec],
    ranges: Mapping[str, Range],
    *,
    source: Path,
    out: Path,
    capabilities: Sequence[str] = (),
) -> tuple[EngineSpec, ...]:
    """Build one engine file for each graph; progress goes to the log.

    Args:
        library: Which one.
        graphs: The clean graphs by name.
        ranges: Of their free axes.
        source: The bundle's folder, which holds the graphs.
        out: The folder below which ``engines/NAME/GRAPH.engine`` are written.
        capabilities: Of the GPUs to build for; empty takes the library's own.

    Returns:
        One entry for each graph and compute capability; those of one graph name one file.

    Raises:
        UsageError: The library cannot build for a compute capability.
        DeviceError: The library refuses a graph; the message holds what it said.
    """
    chosen = library.chosen(capabilities)
    folder = Path(ENGINES, library.name)
    (out / folder).mkdir(parents=True)
    found = []
    for number, (name, graph) in enumerate(graphs.items(), 1):
        label = f"{library.name} engine {number} of {len(graphs)}, {name}"
        profile = build_profile(graph, ranges)
        file = folder / f"{name}.engine"
        (out / file).write_bytes(_Build(library, label).run(source / graph.file, profile, chosen))
        found += [EngineSpec(name, file.as_posix(), capability, profile) for capability in chosen]
    return tuple(found)


class _Build:
    """One engine being built: the library's objects and what it says meanwhile."""

    def __init__(self, library: BuildLibrary, label: str) -> None:
        self._trt, self._label = library.load(), label
        self._errors: list[str] = []
        self._logger = library_logger(self._trt, self._errors)
        self._builder = self._trt.Builder(self._logger)

    def run(self, path: Path, profile: Profile, capabilities: Sequence[str]) -> memoryview:
        _LOG.info("%s: building for compute capability %s", self._label, ", ".join(capabilities))
        trt, started = self._trt, time.monotonic()
        network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(path)):
            said = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
            raise self._refused(f"does not read {path.name}", said)
        config = self._builder.create_builder_config()
        self._set_shapes(config, profile)
        self._set_capabilities(config, capabilities)
        with Heartbeat(self._label) as heart:
            monitor = _monitor(trt, heart)  # the library does not keep it alive
            config.progress_monitor = monitor
            engine = self._builder.build_serialized_network(network, config)
        if engine is None:
            raise self._refused("was not built", "; ".join(self._errors[-3:]))
        _LOG.info("%s: done in %.0f s", self._label, time.monotonic() - started)
        return memoryview(engine)

    def _set_shapes(self, config: Any, profile: Profile) -> None:
        shapes = self._builder.create_optimization_profile()
        for name, sizes in profile.items():
            shapes.set_shape(name, *sizes)
        if config.add_optimization_profile(shapes) < 0:
            raise self._refused("does not take its profile", "; ".join(self._errors))

    def _set_capabilities(self, config: Any, capabilities: Sequence[str]) -> None:
        """Name the GPUs where the library can; TensorRT builds for the one of the machine."""
        if not hasattr(config, "set_compute_capability"):
            return
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            member = getattr(self._trt.ComputeCapability, f"SM{capability.replace('.', '')}")
            if not config.set_compute_capability(member, index):
                raise self._refused(f"cannot be built for {capability}", "; ".join(self._errors))

    def _refused(self, what: str, said: str) -> DeviceError:
        return DeviceError(f"{self._label}: {what}: {said or 'the library gives no reason'}")


class Heartbeat:
    """A line now and then while a library is busy for minutes, so that it does not look hung.

    The library's own monitor alone would not do: its longest phase has a single step.
    """

    def __init__(self, label: str) -> None:
        """Take what the lines begin with."""
        self.label, self.phase = label, "starting"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Say no more."""
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        started = time.monotonic()
        while not self._done.wait(_LOG_EVERY):
            _LOG.info("%s: %s, %.0f s so far", self.label, self.phase, time.monotonic() - started)


def _monitor(trt: Any, heart: Heartbeat) -> Any:
    """Make the object that the library tells of its phases."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # see above
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            heart.phase = phase_name

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            heart.phase = f"after {phase_name}"

    return Monitor()
