"""Backends run the graphs of a bundle. This module picks one and opens graphs that fit the manifest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from trrg_sdk.backends.base import Backend, Decoder, Graph
from trrg_sdk.bundle import Bundle
from trrg_sdk.errors import DeviceError, UsageError
from trrg_sdk.manifest import Manifest

__all__ = ["DEVICES", "Backend", "Decoder", "Graph", "open_backend", "open_decoder", "open_graphs", "suited"]

_LOG = logging.getLogger(__name__)

DEVICES = ("cpu", "cuda", "openvino", "tensorrt", "tensorrt-rtx")
"""What can be asked for by name, beside ``"auto"``."""


def open_backend(*, device: str = "auto", threads: int | None = None) -> Backend:
    """Open the runtime on a device.

    Args:
        device: ``"auto"`` takes ONNX Runtime on the best device that works (``backend.device`` says which); one of
            ``DEVICES`` takes exactly that one or fails. OpenVINO and TensorRT are used only when they are named.
        threads: Processor threads that one graph may use; ``None`` takes the physical cores that this process may use.

    Raises:
        UsageError: The device or the number of threads makes no sense.
        DeviceError: The device does not work here, or no runtime is installed.
    """
    if device not in ("auto", *DEVICES):
        raise UsageError(f"device: expected auto, {', '.join(DEVICES[:-1])} or {DEVICES[-1]}, got {device!r}.")
    if device == "openvino":
        from trrg_sdk.backends import openvino

        return openvino.open_backend(device=device, threads=threads)
    if device.startswith("tensorrt"):
        from trrg_sdk.backends import tensorrt

        return tensorrt.open_backend(device=device, threads=threads)
    from trrg_sdk.backends import onnxruntime

    return onnxruntime.open_backend(device=device, threads=threads)


def suited(backend: Backend, manifest: Manifest, *, device: str, threads: int | None = None) -> Backend:
    """Refuse a device that cannot run the decoder of a bundle; where the choice was ours, take the CPU instead.

    Args:
        backend: What :func:`open_backend` opened.
        manifest: Of the bundle.
        device: What was asked for; with ``"auto"`` the CPU is as good, and the log says why it was taken.
        threads: As for :func:`open_backend`.

    Returns:
        The backend, or ONNX Runtime on the CPU.

    Raises:
        DeviceError: A named device cannot run it.
    """
    try:
        backend.file("decoder", manifest)
    except DeviceError as error:
        if device != "auto":
            raise
        _LOG.info("device auto: cpu, since %s", error)
        return open_backend(device="cpu", threads=threads)
    return backend


def open_graphs(backend: Backend, bundle: Bundle, names: Sequence[str]) -> dict[str, Graph]:
    """Open graphs of a bundle side by side, in the form that the backend's target has, and compare with the manifest.

    Args:
        backend: Where they will run.
        bundle: Where they come from.
        names: Any of ``"vision"``, ``"clue_encoder"`` and ``"fusion"``.

    Returns:
        The graphs by name.

    Raises:
        BundleError: A file is no graph, or it is not what the manifest says.
        DeviceError: The device refuses one.
    """

    def opened(name: str) -> Graph:
        spec = bundle.manifest.graph(name, target=backend.target)
        graph = backend.graph(bundle.folder / backend.file(name, bundle.manifest), spec=spec)
        bundle.check_graph_specs(name, graph.inputs, graph.outputs, target=backend.target)
        return graph

    with ThreadPoolExecutor(max(1, len(names))) as pool:
        return dict(zip(names, pool.map(opened, names), strict=True))


def open_decoder(backend: Backend, bundle: Bundle) -> Decoder:
    """Open the decoder of a bundle and compare it with the manifest.

    Args:
        backend: Where it will run.
        bundle: Where it comes from.

    Raises:
        BundleError: The file is no decoder, or it is not what the manifest says.
        DeviceError: The device refuses it.
    """
    decoder = backend.decoder(bundle.folder / backend.file("decoder", bundle.manifest), bundle.manifest.decoder)
    bundle.check_graph_specs("decoder", decoder.inputs, decoder.outputs, target=backend.target)
    return decoder
