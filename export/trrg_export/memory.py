"""Memory that an export is done with goes back to the system, so that its steps do not add up.

What Python frees stays with the C library, which keeps it for the next allocation; weights of hundreds of megabytes
are then counted with those of the next step. On the export of a 318 M model 1.8 GiB were held at the end that nobody
used. It also learns from what is freed: after the first weight of 30 MB it takes weights from the pieces that it keeps,
and what ONNX Runtime frees while it opens a graph stays (Swin-B with weights in int8: .75 GiB when open, .36 without).
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE = 2**18  # bytes


def return_large() -> None:
    """Let the C library take what is large from the system and give it back when it is freed, from now on."""
    if limit := getattr(ctypes.CDLL(None), "mallopt", None):  # of the GNU C library
        limit(_MMAP_THRESHOLD, _LARGE)


def few_runs() -> Any:
    """Options of ONNX Runtime for a graph that runs as it is, a few times: nothing is kept for a next run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # By default what reads weights alone, or measures a tensor, runs first or last, and all of that waits.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def few_half_runs() -> Any:
    """Options of ONNX Runtime's CPU for a graph in fp16 that runs a few times: no weight is there in fp16 and in fp32.

    It computes such products in fp32. By default it turns all weights into that while it opens the graph, with those in
    fp16 beside them. One level lower it turns a weight when a run comes to it; or all first of all, unless it goes by
    priority. A decoder of 272 M took .61 GiB in place of 1.53, 1 s to open in place of 3.3, and 104 ms of CPU a token
    in place of 56.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    return options


def few_stored_runs() -> Any:
    """Options of ONNX Runtime for a graph that stores weights in eight bits and runs a few times: none waits in fp32.

    By default it turns all weights into fp32 while it opens the graph, with a cast and a scaled copy of each there at
    once; here a run turns a weight when it comes to it. By a script that was not kept, Swin-B took .21 GiB in place of
    .78, and .70 s a run in place of .49; by priority it would take .49 GiB, and with planned memory .28.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")
    options.enable_mem_pattern = False
    return options


@contextmanager
def apart() -> Iterator[None]:
    """Leave what is there before out of what :func:`release` looks through: mostly libraries, .3 s of them each time.

    Where the program has put objects aside itself (``gc.freeze``), these stay there with them.
    """
    had_some = gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not had_some:
            gc.unfreeze()


@contextmanager
def released() -> Iterator[None]:
    """Run one step of an export, and give its memory back afterwards, also when it fails."""
    try:
        yield
    finally:
        release()


def release() -> None:
    """Collect what lies in reference cycles, as graphs and modules do, and give free memory back to the system."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of the GNU C library
        trim(0)
