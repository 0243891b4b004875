"""The decoder for GPUs, on the CPU: what it binds and forgets; `tests/export/test_cuda.py` has the GPU's part."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trrg_sdk import Reporter
from trrg_sdk.backends import onnxruntime, open_backend, open_decoder, suited
from trrg_sdk.backends.onnxruntime import OrtBackend
from trrg_sdk.backends.ort_cuda import CudaDecoder, unfit_reason
from trrg_sdk.backends.ort_session import open_session
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding import generate
from trrg_sdk.errors import DeviceError, UsageError
from trrg_sdk.manifest import Manifest, TensorSpec

HERE = Path(__file__).parent
EXPECTED = np.load(HERE / "tiny_bundle_expected.npz")


class OnTheCpu(CudaDecoder):
    """Its buffers are arrays: nothing is captured, all else is the same."""

    _DEVICE = "cpu"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(HERE / "tiny_bundle")


@pytest.fixture
def decoder(bundle: Bundle) -> OnTheCpu:
    path = bundle.path("decoder")
    return OnTheCpu(open_session(str(path), path.name, "cpu", 1), path.name, bundle.manifest.decoder)


def in_half(manifest: Manifest) -> Manifest:
    """A manifest whose decoder computes in float16."""
    spec = manifest.graphs["decoder"]
    inputs = tuple(
        TensorSpec(one.name, "float16" if one.dtype == "float32" else one.dtype, one.axes) for one in spec.inputs
    )
    return replace(manifest, graphs={**manifest.graphs, "decoder": replace(spec, inputs=inputs, precision="fp16")})


def test_it_writes_what_the_cpus_decoder_writes(bundle: Bundle, decoder: OnTheCpu) -> None:
    for _ in range(2):  # a text leaves nothing behind for the next one
        text = generate(decoder, EXPECTED["prompt"], bundle.token_embedding(), eos=2, max_new_tokens=48)
        assert text.ids == tuple(EXPECTED["ids"])


def test_passes_of_every_width_continue_the_text(bundle: Bundle, decoder: OnTheCpu) -> None:
    """Widths come again, above and below the widest that is captured; what was forgotten is not seen."""
    other, table = open_decoder(open_backend(device="cpu", threads=1), bundle), np.asarray(bundle.token_embedding())
    prompt = EXPECTED["prompt"]
    for one in (decoder, other):
        one.prefill(prompt)
    for start, width in ((0, 1), (3, 4), (20, 1), (30, 4), (50, 19), (70, 2)):
        embeds = table[np.arange(start, start + width) % len(table)]
        mine, theirs = decoder.read(embeds).copy(), other.read(embeds).copy()
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
        kept = other.length - width // 2
        for one in (decoder, other):
            one.truncate(kept)
        assert (decoder.length, decoder.free) == (other.length, other.free)
    assert set(decoder._passes) == set(range(1, 18)), "one of 19 positions is not kept"


def test_passes_are_made_in_two_threads_at_most(
    bundle: Bundle, decoder: OnTheCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is captured belongs to a thread: the first one's and that of all others, each with every width once."""
    made: list[tuple[str, int]] = []
    real = decoder._made
    monkeypatch.setattr(
        decoder,
        "_made",
        lambda feed, total: made.append((threading.current_thread().name, feed.shape[1])) or real(feed, total),
    )
    table = np.asarray(bundle.token_embedding())

    def text() -> tuple[tuple[int, ...], np.ndarray[Any, Any]]:
        written = generate(decoder, EXPECTED["prompt"], table, eos=2, max_new_tokens=48)
        return written.ids, decoder.read(table[:4]).copy()

    first = text()
    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            ids, rows = pool.submit(text).result()
        assert ids == first[0] == tuple(EXPECTED["ids"])
        np.testing.assert_array_equal(rows, first[1])
    threads = {name for name, _ in made}
    assert len(threads) == 2
    assert any(name.startswith("trrg-cuda") for name in threads)
    for name in threads:
        widths = [width for thread, width in made if thread == name and width > 1]
        assert set(widths) >= set(range(2, 18))
        assert widths.count(17) == 1, "captured once, not for each text or thread"


def test_a_prompt_is_read_without_a_look_at_its_logits(decoder: OnTheCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    run = decoder._run
    monkeypatch.setattr(decoder, "_run", lambda feed, total: looked.append(feed.shape[1]) or run(feed, total))
    decoder.prefill(EXPECTED["prompt"])
    assert looked == [1]
    assert decoder.length == len(EXPECTED["prompt"])
    decoder.prefill(EXPECTED["prompt"][:1])
    assert decoder.length == 1


def test_a_prompt_that_does_not_fit_is_refused_whole(bundle: Bundle, decoder: OnTheCpu) -> None:
    limit = bundle.manifest.decoder.max_length
    with pytest.raises(UsageError, match=f"at most {limit} more positions"):
        decoder.prefill(np.zeros((limit + 1, bundle.manifest.decoder.hidden_size), np.float32))
    assert decoder.length == 0


def test_it_takes_one_text_at_a_time(decoder: OnTheCpu) -> None:
    assert decoder.batch(4) is None


def test_a_decoder_in_float32_is_no_decoder_for_a_gpu(bundle: Bundle) -> None:
    cuda, manifest = OrtBackend("cuda", 1), bundle.manifest
    wanted = r"decoder\.onnx: expected a decoder that computes in float16.*got float32 \(fp32\).*--fp16 or --int4-fp16"
    with pytest.raises(DeviceError, match=wanted):
        cuda.file("decoder", manifest)
    assert cuda.file("vision", manifest) == manifest.graphs["vision"].file
    assert unfit_reason(in_half(manifest).graphs["decoder"]) is None
    assert suited(cuda, in_half(manifest), device="cuda") is cuda


def test_auto_takes_the_cpu_where_the_gpu_cannot_write(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU that works, imitated: by name it is refused for this bundle, by itself it is not chosen."""
    monkeypatch.setattr(onnxruntime, "_device_failure", lambda _: None)
    assert open_backend(device="auto").device == "cuda"
    caplog.set_level("INFO", "trrg_sdk")
    assert Reporter(bundle, device="auto", threads=1).device == "cpu"
    assert any("device auto: cpu, since" in record.getMessage() for record in caplog.records)
    with pytest.raises(DeviceError, match="expected a decoder that computes in float16"):
        Reporter(bundle, device="cuda")


def test_a_backend_of_a_named_device_stays(bundle: Bundle) -> None:
    backend: Any = open_backend(device="cpu", threads=1)
    assert suited(backend, bundle.manifest, device="cpu") is backend
    assert suited(backend, bundle.manifest, device="auto") is backend
