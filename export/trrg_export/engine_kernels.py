"""The kernels that TensorRT-RTX compiles for a GPU when it opens an engine, kept beside the engine.

Without them a runtime compiles them anew at every start. They are compiled here by running each engine once, on the
GPU of the site and nowhere else: for the usual shapes, and the decoder for a prompt and a step after it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trrg_export.engine_builder import Heartbeat
from trrg_sdk.backends import cuda_device
from trrg_sdk.backends import tensorrt as backend
from trrg_sdk.engines import CACHE_SUFFIX, EngineLibrary
from trrg_sdk.errors import DeviceError
from trrg_sdk.manifest import DecoderSpec, EngineSpec, GraphSpec

_LOG = logging.getLogger(__name__)


def keep_kernels(
    library: EngineLibrary,
    engines: Sequence[EngineSpec],
    graphs: Mapping[str, GraphSpec],
    decoder: DecoderSpec,
    *,
    folder: Path,
) -> None:
    """Run each engine that is for this GPU and keep its kernels; a bundle is whole without them.

    Args:
        library: That built the engines.
        engines: Of all graphs.
        graphs: The clean graphs by name.
        decoder: The sizes of the decoder's buffers.
        folder: Of the bundle.
    """
    if not library.compiles:
        return
    if reason := cuda_device.unavailable_reason():
        _LOG.info("%s: no kernels are kept: %s", library.name, reason)
        return
    opened = backend.open_backend(device=library.name)
    fitting = [engine for engine in engines if engine.compute_capability == opened.compute_capability]
    for number, engine in enumerate(fitting, 1):
        label = f"{library.name} kernels {number} of {len(fitting)}, {engine.graph}"
        _LOG.info("%s: compiling for this GPU", label)
        path = folder / engine.file
        try:
            with Heartbeat(label):
                kernels = _compiled(opened, path, engine, graphs[engine.graph], decoder)
        except DeviceError as error:
            _LOG.warning("%s: the engine was built but does not run here: %s", label, error)
        else:
            path.with_suffix(CACHE_SUFFIX).write_bytes(kernels)


def _compiled(opened: backend.TrtBackend, path: Path, engine: EngineSpec, graph: GraphSpec, spec: DecoderSpec) -> bytes:
    """Run an engine as a report does, on zeros, and return what the library compiled for it."""
    if engine.graph != "decoder":
        model = opened.graph(path, spec=graph)
        model.run({each.name: np.zeros(engine.profile[each.name][1], each.dtype) for each in graph.inputs})
        return model.kernels()
    _, total = engine.profile["attention_mask"][1]  # a prompt, and a position after it
    decoder = opened.decoder(path, spec)
    decoder.prefill(np.zeros((total - 1, spec.hidden_size), np.float32))
    decoder.step(np.zeros((1, spec.hidden_size), np.float32))
    return decoder.kernels()
