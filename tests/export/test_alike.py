"""Attention of one position in the arithmetic of several: what the rewritten operator gives and leaves alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from trrg_export.alike import make_rows_alike

HEADS, SIZE, ROOM = 2, 16, 33
Cache = tuple[np.ndarray, np.ndarray]


def attention(batch: int, *, alike: bool) -> onnxruntime.InferenceSession:
    """One GroupQueryAttention with rotary embedding of as many positions as a text may have; all three packed."""
    angles = np.arange(ROOM - 1)[:, None] * 10000.0 ** (-np.arange(0, SIZE, 2) / SIZE)
    constants = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    inputs = ["inputs_embeds", "", "", "key", "value", "seqlens", "total", "cos", "sin"]
    sizes = {"num_heads": HEADS, "kv_num_heads": HEADS, "do_rotary": 1}
    node = helper.make_node("GroupQueryAttention", inputs, ["y", "k", "v"], domain="com.microsoft", **sizes)
    cache = [batch, HEADS, None, SIZE]
    described = {
        "inputs_embeds": (TensorProto.FLOAT, [batch, None, 3 * HEADS * SIZE]),
        "key": (TensorProto.FLOAT, cache),
        "value": (TensorProto.FLOAT, cache),
        "seqlens": (TensorProto.INT32, [batch]),
        "total": (TensorProto.INT32, []),
    }
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(name, *kind) for name, kind in described.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "k", "v")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if alike:
        make_rows_alike(model, Path())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, rows: np.ndarray, cache: Cache, read: int) -> tuple[np.ndarray, Cache]:
    """Read rows (B, S, W) after so many positions."""
    total = read + rows.shape[1]
    feed = {
        "inputs_embeds": rows,
        "key": cache[0],
        "value": cache[1],
        "seqlens": np.full(len(rows), total - 1, np.int32),
        "total": np.array(total, np.int32),
    }
    y, *present = session.run(None, feed)
    return y, (present[0], present[1])


def empty(batch: int) -> Cache:
    return np.zeros((batch, HEADS, ROOM, SIZE), np.float32), np.zeros((batch, HEADS, ROOM, SIZE), np.float32)


def drawn(batch: int, count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(batch, count, 3 * HEADS * SIZE)).astype(np.float32)


def test_one_position_gives_what_it_gives_in_a_pass_over_several() -> None:
    """Bit for bit, up to the last position of the buffer that a text may use, and the cache as well."""
    alike, plain, rows = attention(1, alike=True), attention(1, alike=False), drawn(1, ROOM - 1)
    _, cache = run(plain, rows[:, :9], empty(1), 0)
    wide, expected = run(plain, rows[:, 9:], cache, 9)
    for place in range(9, ROOM - 1):
        y, cache = run(alike, rows[:, place : place + 1], cache, place)
        assert y.shape == (1, 1, HEADS * SIZE)
        assert np.array_equal(y[:, 0], wide[:, place - 9])
    for mine, theirs in zip(cache, expected, strict=True):
        assert np.array_equal(mine[:, :, : ROOM - 1], theirs[:, :, : ROOM - 1])


@pytest.mark.parametrize("width", [2, 5, 16])
def test_passes_over_several_positions_are_as_before(width: int) -> None:
    alike, plain, rows = attention(1, alike=True), attention(1, alike=False), drawn(1, 5 + width)
    _, cache = run(plain, rows[:, :5], empty(1), 0)
    (mine, kept), (theirs, expected) = (run(session, rows[:, 5:], cache, 5) for session in (alike, plain))
    assert np.array_equal(mine, theirs)
    assert np.array_equal(kept[0], expected[0])


def test_a_batch_is_as_before() -> None:
    """The operator refuses several positions of several sequences with a past."""
    alike, plain, rows = attention(3, alike=True), attention(3, alike=False), drawn(3, 6)
    _, cache = run(plain, rows[:, :5], empty(3), 0)
    (mine, kept), (theirs, expected) = (run(session, rows[:, 5:], cache, 5) for session in (alike, plain))
    assert np.array_equal(mine, theirs)
    assert np.array_equal(kept[1], expected[1])
