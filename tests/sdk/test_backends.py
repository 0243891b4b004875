"""Graphs run as the manifest says, a decoder keeps its own past, and a device is never replaced silently."""

from __future__ import annotations

import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trrg_sdk.backends import Backend, fake, onnxruntime, open_backend, open_decoder, open_graphs
from trrg_sdk.backends.ort_session import EXACT_SUMS, foreign_errors, open_session, waiting
from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.decoding import generate
from trrg_sdk.errors import BundleError, DeviceError, UsageError
from trrg_sdk.processors import physical_cores

HERE = Path(__file__).parent
TINY = HERE / "tiny_bundle"
EXPECTED = np.load(HERE / "tiny_bundle_expected.npz")  # what torch computed with the same weights
THREE = ("vision", "clue_encoder", "fusion")
MODULES = (onnxruntime, fake)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(TINY)


@pytest.fixture(scope="module", params=MODULES, ids=lambda module: module.NAME)
def backend(request: pytest.FixtureRequest) -> Backend:
    opened: Backend = request.param.open_backend(device="cpu", threads=1)
    return opened


@pytest.fixture(scope="module")
def ort() -> Backend:
    return open_backend(device="cpu", threads=1)


def fusion_inputs(bundle: Bundle, seen: dict[str, np.ndarray], clues: int) -> dict[str, np.ndarray]:
    bank = bundle.clue_bank()
    return {
        **seen,
        "clue_positive": bank.positive[:clues],
        "clue_negative": bank.negative[:clues],
        "clue_scale": np.full(clues, 4, np.float32),
        "clue_offset": np.zeros(clues, np.float32),
        "clue_threshold": np.full(clues, 0.5, np.float32),
        "clue_override": np.full((len(seen["patches"]), clues), -1, np.float32),
    }


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_backends_look_alike(module: types.ModuleType) -> None:
    assert module.__name__.rsplit(".", 1)[1] == module.NAME
    assert module.unavailable_reason() is None
    opened = module.open_backend(device="auto", threads=2)
    assert opened.name == module.NAME
    assert opened.device == "cpu"


def test_graphs_fit_together(bundle: Bundle, backend: Backend) -> None:
    graphs = open_graphs(backend, bundle, THREE)
    for batch, clues in ((1, 14), (3, 5)):
        pixels = np.random.default_rng(batch).normal(size=(batch, 1, 16, 16)).astype(np.float32)
        seen = graphs["vision"].run({"pixels": pixels})
        fused = graphs["fusion"].run(fusion_inputs(bundle, seen, clues))
        shapes = {name: value.shape for name, value in {**seen, **fused}.items()}
        assert shapes == {
            "patches": (batch, 4, 12),
            "patch_joint": (batch, 4, 8),
            "global_joint": (batch, 8),
            "prompt_embeds": (batch, 4 + clues, 16),
            "clue_logits": (batch, clues),
            "clue_heat": (batch, clues, 4),
        }
        assert all(value.dtype == np.float32 for value in {**seen, **fused}.values())
        assert ((fused["clue_heat"] > 0) & (fused["clue_heat"] < 1)).all()
        np.testing.assert_allclose(np.linalg.norm(seen["global_joint"], axis=-1), 1, atol=1e-5)


def test_a_forced_score_is_followed(bundle: Bundle, backend: Backend) -> None:
    graphs = open_graphs(backend, bundle, THREE)
    seen = graphs["vision"].run({"pixels": np.zeros((1, 1, 16, 16), np.float32)})
    inputs = fusion_inputs(bundle, seen, 3)
    perceived = graphs["fusion"].run(inputs)
    inputs["clue_override"] = np.array([[0.9, -1, 0.1]], np.float32)
    forced = graphs["fusion"].run(inputs)
    probability = 1 / (1 + np.exp(-forced["clue_logits"][0]))
    np.testing.assert_allclose(probability[[0, 2]], [0.9, 0.1], atol=1e-4)
    assert forced["clue_logits"][0, 1] == perceived["clue_logits"][0, 1]
    assert not np.array_equal(forced["prompt_embeds"], perceived["prompt_embeds"])


def test_padding_of_a_clue_changes_nothing(bundle: Bundle, backend: Backend) -> None:
    encoder = open_graphs(backend, bundle, ["clue_encoder"])["clue_encoder"]
    ids = np.array([[1, 7, 9, 2, 0, 0], [1, 7, 9, 2, 5, 5]])
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]])
    rows = encoder.run({"input_ids": ids, "attention_mask": mask})["clue_joint"]
    np.testing.assert_array_equal(rows[0], rows[1])


def test_vision_is_what_torch_computed(bundle: Bundle, ort: Backend) -> None:
    seen = open_graphs(ort, bundle, ["vision"])["vision"].run({"pixels": EXPECTED["pixels"]})
    for name in ("patches", "global_joint"):
        np.testing.assert_allclose(seen[name], EXPECTED[name], atol=1e-5)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 1, 16, 16), np.float64),
        np.zeros((1, 16, 16), np.float32),
    ],
)
def test_wrong_inputs_are_refused(bundle: Bundle, backend: Backend, pixels: np.ndarray) -> None:
    vision = open_graphs(backend, bundle, ["vision"])["vision"]
    for inputs in ({"pixels": pixels}, {}, {"pixel": pixels}):
        with pytest.raises(UsageError, match="vision"):
            vision.run(inputs)


def test_one_graph_runs_in_many_threads(bundle: Bundle, ort: Backend) -> None:
    vision = open_graphs(ort, bundle, ["vision"])["vision"]
    pixels = np.random.default_rng(0).normal(size=(16, 1, 1, 16, 16)).astype(np.float32)
    alone = [vision.run({"pixels": item})["patches"] for item in pixels]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda item: vision.run({"pixels": item})["patches"], pixels))
    np.testing.assert_array_equal(alone, together)


def test_greedy_text_is_torchs(bundle: Bundle, ort: Backend) -> None:
    decoder = open_decoder(ort, bundle)
    assert len(set(EXPECTED["ids"])) > 20, "the text must be varied to prove anything"
    for _ in range(2):  # the second text must not see the first
        text = generate(decoder, EXPECTED["prompt"], bundle.token_embedding(), eos=2, max_new_tokens=48)
        assert text.ids == tuple(EXPECTED["ids"])
        np.testing.assert_allclose(text.logprobs, EXPECTED["logprobs"], atol=1e-4)


def test_steps_equal_one_prefill(bundle: Bundle, ort: Backend) -> None:
    first, second = open_decoder(ort, bundle), open_decoder(ort, bundle)
    embeds = np.random.default_rng(3).normal(size=(bundle.manifest.decoder.max_length, 16)).astype(np.float32)
    first.prefill(embeds[:5])
    second.prefill(embeds[::-1])  # two decoders share nothing
    for position in range(5, len(embeds)):
        stepped = first.step(embeds[position : position + 1])
    assert first.free == 0
    whole = open_decoder(ort, bundle).prefill(embeds)[0]
    np.testing.assert_allclose(stepped, whole, atol=2e-4)
    with pytest.raises(UsageError, match="at most 0 more"):
        first.step(embeds[:1])


def test_decoder_counts_positions(bundle: Bundle, backend: Backend) -> None:
    decoder = open_decoder(backend, bundle)
    limit = bundle.manifest.decoder.max_length
    embeds = np.zeros((limit + 1, 16), np.float32)
    assert decoder.free == limit
    assert decoder.prefill(embeds[:3]).shape == (1, 320)
    assert decoder.prefill(embeds[:3], rows=3).shape == (3, 320)
    decoder.step(embeds[:1].astype(np.float64))
    assert decoder.free == limit - 4
    for wrong in (embeds[:2], embeds[:1, :8], embeds[0]):
        with pytest.raises(UsageError):
            decoder.step(wrong)
    assert decoder.free == limit - 4
    for wrong in (embeds, embeds[:0]):
        with pytest.raises(UsageError):
            decoder.prefill(wrong)
    decoder.prefill(embeds[:2])
    assert decoder.free == limit - 2
    decoder.reset()
    assert decoder.free == limit


def test_a_pass_that_fails_is_said_and_counts_nothing(bundle: Bundle, ort: Backend) -> None:
    """Here because the mask of a short pass is longer than the tables of the rotary embedding."""
    embeds = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    expected = open_decoder(ort, bundle).prefill(embeds)
    decoder = ort.decoder(bundle.path("decoder"), replace(bundle.manifest.decoder, max_length=100_000))
    for wrong in (embeds[:3], embeds[:1]):
        with pytest.raises(DeviceError, match=r"decoder\.onnx: ONNX Runtime failed while running: .*cos_cache"):
            decoder.read(wrong)
        assert decoder.length == 0
    np.testing.assert_allclose(decoder.prefill(embeds), expected, atol=1e-5)


@pytest.mark.parametrize("sizes", [{"layers": 3}, {"layers": 1}, {"kv_heads": 4}, {"hidden_size": 32}])
def test_a_decoder_of_other_sizes_is_refused(bundle: Bundle, ort: Backend, sizes: dict[str, int]) -> None:
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        ort.decoder(bundle.path("decoder"), replace(bundle.manifest.decoder, **sizes))


def test_another_graph_is_no_decoder(bundle: Bundle, ort: Backend) -> None:
    with pytest.raises(BundleError, match=r"vision\.onnx: expected a decoder"):
        ort.decoder(bundle.path("vision"), bundle.manifest.decoder)


def test_a_graph_unlike_the_manifest_is_refused(tmp_path: Path, ort: Backend) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "bundle"))
    shutil.copy(folder / "graphs" / "fusion.onnx", folder / "graphs" / "vision.onnx")
    bundle = Bundle.load(TINY)
    write_manifest(folder, bundle.manifest)
    with pytest.raises(BundleError, match=r"vision\.onnx is not what"):
        open_graphs(ort, Bundle.load(folder), ["vision"])


@pytest.mark.parametrize("content", [b"", b"no graph", None])
def test_a_damaged_graph_is_refused(tmp_path: Path, ort: Backend, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes((TINY / "graphs" / "vision.onnx").read_bytes()[:-500] if content is None else content)
    with pytest.raises(BundleError, match=r"broken\.onnx"):
        ort.graph(path)


def test_fake_refuses_a_file_of_no_bundle(tmp_path: Path, bundle: Bundle) -> None:
    for path in (tmp_path / "vision.onnx", TINY / "graphs" / "other.onnx"):
        with pytest.raises(BundleError, match="no manifest names"):
            fake.open_backend().graph(path)


@pytest.mark.parametrize("opener", [open_backend, fake.open_backend, onnxruntime.open_backend])
def test_senseless_arguments(opener: Callable[..., Backend]) -> None:
    with pytest.raises((UsageError, DeviceError), match="tpu"):
        opener(device="tpu")
    for threads in (0, -1):
        with pytest.raises(UsageError, match="threads"):
            opener(threads=threads)


@pytest.mark.parametrize("left_over", [None, types.ModuleType("onnxruntime")])
def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch, left_over: types.ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", left_over)
    for device in ("auto", "cpu", "cuda"):
        with pytest.raises(DeviceError, match=r"trrg-sdk\[cpu\].*trrg-sdk\[gpu\]"):
            open_backend(device=device)


def test_cuda_without_the_gpu_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as library

    monkeypatch.setattr(library, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match=r"trrg-sdk\[gpu\]"):
        open_backend(device="cuda")
    assert open_backend(device="auto").device == "cpu"


@pytest.mark.parametrize("failure", [None, RuntimeError("no driver")])
def test_a_silent_fallback_is_noticed(monkeypatch: pytest.MonkeyPatch, failure: Exception | None) -> None:
    """ONNX Runtime opens a session on the CPU when CUDA does not work: imitated, as this machine may have no CUDA."""
    import onnxruntime as library

    class Session:
        def __init__(self, *_: Any, **__: Any) -> None:
            if failure:
                raise failure

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(library, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(library, "InferenceSession", Session)
    with pytest.raises(DeviceError, match="cuda"):
        open_backend(device="cuda")
    assert open_backend(device="auto").device == "cpu"


def test_foreign_errors_are_onnxruntimes() -> None:
    names = {error.__name__ for error in foreign_errors()}
    assert {"Fail", "InvalidArgument", "NoSuchFile", "InvalidProtobuf", "InvalidGraph", "RuntimeException"} <= names


def test_threads_default_to_the_cores() -> None:
    assert onnxruntime.open_backend(device="cpu").threads == physical_cores() >= 1


def test_threads_wait_for_work_but_not_for_long(bundle: Bundle) -> None:
    session = open_session(str(bundle.path("decoder")), "decoder", "cpu", 2)
    name, microseconds = waiting("1.27.0")
    assert session.get_session_options().get_session_config_entry(name) == microseconds
    assert 0 < int(microseconds) <= 1000
    assert waiting("1.26.1") == ("session.intra_op.allow_spinning", "0")


@pytest.mark.parametrize(("flags", "asked"), [("avx2 avx512_vnni", False), ("avx2 avx_vnni", False), ("avx2", True)])
def test_a_decoder_is_exact_without_vnni(
    bundle: Bundle, flags: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With VNNI kernels are exact, and those that the option chooses slower."""
    name, value = EXACT_SUMS
    seen: list[str] = []

    def watched(*arguments: Any) -> Any:
        session = open_session(*arguments)
        try:
            seen.append(session.get_session_options().get_session_config_entry(name))
        except RuntimeError as error:
            assert name in str(error)
        return session

    monkeypatch.setattr(onnxruntime, "instructions", lambda: frozenset(flags.split()))
    monkeypatch.setattr(onnxruntime, "open_session", watched)
    open_decoder(onnxruntime.OrtBackend("cpu", 1), bundle)
    assert seen == [value] * asked


def test_a_pruned_head_gives_the_same_logits(tmp_path: Path, bundle: Bundle, ort: Backend) -> None:
    """The model builder's ``prune_lm_head`` makes logits (batch, 1, V); imitated by a node that keeps the last row."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(bundle.path("decoder"))
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "logits":
                node.output[index] = "all_logits"
    last = onnx.helper.make_tensor("last", onnx.TensorProto.INT64, [1], [-1])
    model.graph.initializer.append(last)
    model.graph.node.append(onnx.helper.make_node("Gather", ["all_logits", "last"], ["logits"], axis=1))
    output = next(value for value in model.graph.output if value.name == "logits")
    output.type.tensor_type.shape.dim[1].dim_value = 1
    onnx.save(model, tmp_path / "pruned.onnx")
    pruned, full = ort.decoder(tmp_path / "pruned.onnx", bundle.manifest.decoder), open_decoder(ort, bundle)
    embeds = EXPECTED["prompt"]
    np.testing.assert_array_equal(pruned.prefill(embeds), full.prefill(embeds))
    np.testing.assert_array_equal(pruned.step(embeds[:1]), full.step(embeds[:1]))


@pytest.mark.torch
@pytest.mark.slow
def test_a_new_bundle_writes_torchs_text(tmp_path: Path) -> None:
    for package in ("torch", "onnx", "onnxruntime_genai"):
        pytest.importorskip(package)
    folder = tmp_path / "tiny_bundle"
    subprocess.run([sys.executable, HERE / "make_tiny_bundle.py", folder], check=True, capture_output=True)
    bundle = Bundle.load(folder)
    expected = np.load(tmp_path / "tiny_bundle_expected.npz")
    decoder = open_decoder(open_backend(device="cpu"), bundle)
    text = generate(decoder, expected["prompt"], bundle.token_embedding(), eos=2, max_new_tokens=48)
    assert text.ids == tuple(expected["ids"])
