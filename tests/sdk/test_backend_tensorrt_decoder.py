"""The decoder of the TensorRT backend against a fake of the GPU: positions, failed passes, memory."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from tests.sdk.fake_decoder import RTX, VOCAB, decoder_code, mixing
from tests.sdk.fake_tensorrt import FakeTrt, install
from trrg_sdk.backends import open_backend
from trrg_sdk.backends.tensorrt_decoder import TrtDecoder
from trrg_sdk.errors import BundleError, DeviceError, UsageError
from trrg_sdk.manifest import DecoderSpec

SMALL = DecoderSpec(layers=2, kv_heads=2, head_size=4, hidden_size=8, max_length=12)


@pytest.fixture(params=["float32", "float16"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    fake = install(monkeypatch, {b"small": decoder_code(SMALL, request.param)})
    (tmp_path / "small.engine").write_bytes(b"small")
    return fake, open_backend(device=RTX).decoder(tmp_path / "small.engine", SMALL)


def embeds(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Multiples of 1/8: sums of them are exact, whatever their order and in float16 too."""
    return (np.random.default_rng(seed).integers(-8, 8, size=(count, SMALL.hidden_size)) / 8).astype(np.float32)


def expected(read: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits after each position of a sequence, in one piece."""
    factor = sum(range(1, 2 * SMALL.layers + 1))
    return np.asarray((factor * read.cumsum(0)) @ mixing(SMALL), np.float32)


def test_a_decoder_reads_on_from_what_it_has_read(small: tuple[FakeTrt, TrtDecoder]) -> None:
    _, decoder = small
    sequence = embeds(12)
    wanted = expected(sequence)
    for start in (0, 0):  # the second time over what the first left behind
        np.testing.assert_allclose(decoder.prefill(sequence[start:5])[0], wanted[4], rtol=1e-5, atol=1e-4)
        assert (decoder.length, decoder.free) == (5, 7)
        for place in range(5, 8):
            np.testing.assert_allclose(decoder.step(sequence[place : place + 1]), wanted[place], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(decoder.read(sequence[8:]), wanted[8:], rtol=1e-5, atol=1e-4)
        assert (decoder.free, decoder.all_rows) == (0, True)
    with pytest.raises(UsageError, match="at most 0 more positions"):
        decoder.step(sequence[:1])
    decoder.reset()
    assert decoder.free == 12


@pytest.mark.parametrize("kept", [0, 1, 6, 7])
def test_forgotten_positions_leave_no_trace(small: tuple[FakeTrt, TrtDecoder], kept: int) -> None:
    _, decoder = small
    sequence, other = embeds(7), embeds(4, seed=9)
    decoder.prefill(sequence)
    decoder.truncate(kept)
    assert decoder.length == kept
    wanted = expected(np.concatenate([sequence[:kept], other]))[kept:]
    np.testing.assert_allclose(decoder.read(other), wanted, rtol=1e-5, atol=1e-4)
    with pytest.raises(UsageError, match=f"keep 0 to {kept + 4} positions, got -1"):
        decoder.truncate(-1)


def test_a_failed_pass_can_be_tried_again(small: tuple[FakeTrt, TrtDecoder]) -> None:
    fake, decoder = small
    sequence = embeds(6)
    decoder.prefill(sequence[:5])
    fake.refuses.add("execute_async_v3")
    with pytest.raises(DeviceError, match="small.engine: tensorrt-rtx 1.7.1 failed while running: execute.*went wrong"):
        decoder.step(sequence[5:])
    fake.refuses.clear()
    fake.cuda.broken = "cudaStreamSynchronize"
    with pytest.raises(DeviceError, match="cudaStreamSynchronize: words about 700, cudaErrorIllegalAddress"):
        decoder.step(sequence[5:])
    fake.cuda.broken = ""
    assert decoder.length == 5
    np.testing.assert_allclose(decoder.step(sequence[5:]), expected(sequence)[5], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 8), (3, 7), (13, 8)])
def test_a_prompt_that_does_not_fit_is_refused(small: tuple[FakeTrt, TrtDecoder], shape: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="small.engine: expected"):
        small[1].prefill(np.zeros(shape, np.float32))


def test_the_memory_is_allocated_once_and_given_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = install(monkeypatch, {b"small": decoder_code(SMALL)})
    (tmp_path / "small.engine").write_bytes(b"small")
    decoder = open_backend(device=RTX).decoder(tmp_path / "small.engine", SMALL)
    decoder.prefill(embeds(4))
    before = dict(fake.cuda.blocks)
    for place in range(8):
        decoder.step(embeds(1, seed=place))
    assert fake.cuda.blocks.keys() == before.keys()
    assert sum(map(len, before.values())) < 2 * 8 * 4 * 12 * 4 * 2 + 12 * 8 * 4 + 12 * 8 + 4 * VOCAB * 4 + 1
    del decoder
    gc.collect()
    assert not fake.cuda.blocks


def test_a_decoder_of_other_sizes_is_refused(small: tuple[FakeTrt, TrtDecoder], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected a decoder graph with DecoderSpec"):
        open_backend(device=RTX).decoder(tmp_path / "small.engine", replace(SMALL, kv_heads=1))


def test_a_gpu_without_room_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, {b"small": decoder_code(SMALL)}, room=2000)
    (tmp_path / "small.engine").write_bytes(b"small")
    with pytest.raises(DeviceError, match="cudaMalloc: words about 2, cudaErrorMemoryAllocation"):
        open_backend(device=RTX).decoder(tmp_path / "small.engine", SMALL)
