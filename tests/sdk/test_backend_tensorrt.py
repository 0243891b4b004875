"""The TensorRT backend against a fake of the GPU: engines see what graphs see; refusals, and words without a GPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from tests.sdk.fake_decoder import RTX, decoder_code
from tests.sdk.fake_tensorrt import VERSION, Cache, Code, Config, Context, Engine, FakeTrt, Runtime, install
from trrg_sdk import Reporter
from trrg_sdk.backends import DEVICES, cuda_device, open_backend, open_decoder, open_graphs
from trrg_sdk.backends import tensorrt as backend
from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.doctor import examine
from trrg_sdk.engines import RUNNERS, EngineLibrary
from trrg_sdk.errors import DeviceError, UsageError
from trrg_sdk.manifest import MANIFEST_FILE, EngineSpec, GraphSpec, TargetSpec, TensorSpec, parse_manifest

TINY = Path(__file__).parent / "tiny_bundle"
THREE = ("vision", "clue_encoder", "fusion")
LARGEST = {"batch": 4, "prompts": 28, "length": 64, "clues": 40}


def graph_code(name: str, spec: GraphSpec) -> Code:
    """A graph of the tiny bundle, on ONNX Runtime."""
    graph = open_backend(device="cpu", threads=1).graph(TINY / "graphs" / f"{name}.onnx")

    def axes(tensor: TensorSpec, free: Callable[[str], int]) -> tuple[int, ...]:
        return tuple(free(axis) if isinstance(axis, str) else axis for axis in tensor.axes)

    inputs = {tensor.name: (tensor.dtype, axes(tensor, lambda _: -1)) for tensor in spec.inputs}
    outputs = {tensor.name: (tensor.dtype, axes(tensor, lambda _: -1)) for tensor in spec.outputs}
    ranges = {t.name: (axes(t, lambda _: 1), axes(t, lambda axis: LARGEST[axis])) for t in spec.inputs}
    return Code(inputs, outputs, ranges, lambda feed: graph.run(dict(feed)))


def explicit(code: Code) -> GraphSpec:
    """The decoder as the manifest would describe it."""

    def specs(tensors: Any) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, dtype, tuple("?" if size < 0 else size for size in axes))
            for name, (dtype, axes) in tensors.items()
        )

    return GraphSpec("graphs/decoder.onnx", "fp32", specs(code.inputs), specs(code.outputs))


@pytest.fixture(scope="module")
def codes() -> dict[bytes, Code]:
    """Content of an engine's file → what it computes."""
    manifest = Bundle.load(TINY).manifest
    made = {name.encode(): graph_code(name, manifest.graphs[name]) for name in THREE}
    return {**made, b"decoder": decoder_code(manifest.decoder)}


@pytest.fixture
def bundle(tmp_path: Path, codes: dict[bytes, Code]) -> Path:
    """The tiny bundle with engines of both libraries for one kind of GPU."""
    folder = Path(shutil.copytree(TINY, tmp_path / "bundle"))
    manifest = Bundle.load(folder).manifest
    targets = dict(manifest.targets)
    for target in RUNNERS:
        (folder / "engines" / target).mkdir(parents=True)
        engines = []
        for name in (*THREE, "decoder"):
            file = f"engines/{target}/{name}.engine"
            (folder / file).write_bytes(name.encode())
            engines.append(EngineSpec(name, file, "8.9", {}))
        graphs = {"decoder": explicit(codes[b"decoder"])}
        targets[target] = TargetSpec(target, VERSION, graphs=graphs, engines=tuple(engines))
    write_manifest(folder, replace(manifest, targets=targets))
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, codes: dict[bytes, Code]) -> FakeTrt:
    return install(monkeypatch, codes)


def test_it_has_the_names_of_a_backend(fake: FakeTrt) -> None:
    assert backend.__name__.rsplit(".", 1)[1] == backend.NAME
    assert set(RUNNERS) < set(DEVICES)
    for device in RUNNERS:
        opened = open_backend(device=device, threads=2)
        assert (opened.name, opened.device, opened.target) == (backend.NAME, device, device)
    assert backend.unavailable_reason() is None
    assert backend.open_backend().device == "tensorrt"
    with pytest.raises(UsageError, match="expected auto, tensorrt or tensorrt-rtx, got 'cpu'"):
        backend.open_backend(device="cpu")
    with pytest.raises(UsageError, match="threads"):
        backend.open_backend(threads=0)


def test_the_fake_has_no_name_that_the_libraries_lack(fake: FakeTrt) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    runtime = pytest.importorskip("cuda.bindings.runtime")
    real = {
        Runtime: trt.Runtime,
        Engine: trt.ICudaEngine,
        Context: trt.IExecutionContext,
        Config: trt.IRuntimeConfig,
        Cache: trt.IRuntimeCache,
    }
    ours = {"runs", "config", "cache", "content"}  # what tests look at
    for stands, library in real.items():
        assert {name for name in vars(stands) if name[0] != "_"} - ours <= set(dir(library)), stands
    for name in ("TensorIOMode", "TensorLocation", "DynamicShapesKernelSpecializationStrategy"):
        assert set(getattr(FakeTrt, name).__members__) <= set(getattr(trt, name).__members__)
    assert trt.ILogger.ERROR and trt.__version__
    for name in (name for name in vars(type(fake.cuda)) if name.startswith("cuda")):
        assert hasattr(runtime, name), name
        for member in getattr(getattr(fake.cuda, name), "__members__", ()):
            assert hasattr(getattr(runtime, name), member), member


@pytest.mark.parametrize("device", list(RUNNERS))
def test_engines_see_what_the_graphs_see(bundle: Path, fake: FakeTrt, device: str) -> None:
    reporters = [Reporter(bundle, device=name) for name in ("cpu", device)]
    override = reporters[0]._engine.clues.override(None)
    pixels = np.random.default_rng(5).normal(size=(2, 1, 16, 16)).astype(np.float32)
    for image in pixels:
        ours, theirs = (reporter._engine.perceive(image, override=override) for reporter in reporters)
        np.testing.assert_array_equal(ours.prompt, theirs.prompt)
        written = reporters[1]._engine.write(theirs.prompt)
        assert written.ids
    assert reporters[1]._provenance().device == device
    assert all(context.runs for context in fake.contexts)


def test_a_text_is_what_the_same_decoder_writes_alone(bundle: Path, fake: FakeTrt) -> None:
    loaded = Bundle.load(bundle)
    decoder = open_decoder(open_backend(device=RTX), loaded)
    code, spec = fake.engines[b"decoder"], loaded.manifest.decoder
    prompt = np.random.default_rng(1).normal(size=(20, spec.hidden_size)).astype(np.float32)
    table = loaded.token_embedding()
    got = [int(decoder.prefill(prompt)[0].argmax())]
    read = prompt
    for _ in range(10):
        got.append(int(decoder.step(table[got[-1]][None]).argmax()))
    wanted: list[int] = []
    for _ in got:
        feed = {
            name: np.zeros((1, spec.kv_heads, 0, spec.head_size), np.float32) for name in code.inputs if "past" in name
        }
        mask = np.ones((1, len(read)), np.int64)
        logits = code.function({"inputs_embeds": read[None], "attention_mask": mask, **feed})["logits"]
        wanted.append(int(logits[0, -1].argmax()))
        read = np.concatenate([read, table[wanted[-1]][None]])
    assert got == wanted


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((5, 1, 16, 16), np.float32), r"pixels: the engine was built for shapes from \(1, 1, .*got \(5, 1"),
        (np.zeros((1, 1, 16, 15), np.float32), r"pixels: expected float32 \('batch', 1, 16, 16\)"),
        (np.zeros((1, 1, 16, 16)), "pixels: expected float32 .*got float64"),
        (None, "expected the inputs"),
    ],
)
def test_an_input_that_the_engine_does_not_take_is_refused(
    bundle: Path, fake: FakeTrt, pixels: np.ndarray[Any, Any] | None, message: str
) -> None:
    vision = open_graphs(open_backend(device=RTX), Bundle.load(bundle), ["vision"])["vision"]
    with pytest.raises(UsageError, match=message):
        vision.run({} if pixels is None else {"pixels": pixels})
    assert not fake.contexts[0].runs


def test_runs_of_several_sizes_share_memory_that_grows(bundle: Path, fake: FakeTrt) -> None:
    loaded = Bundle.load(bundle)
    ours = open_graphs(open_backend(device=RTX), loaded, ["vision"])["vision"]
    theirs = open_graphs(open_backend(device="cpu"), loaded, ["vision"])["vision"]
    for count in (1, 3, 2):
        pixels = np.random.default_rng(count).normal(size=(count, 1, 16, 16)).astype(np.float32)[:, :, ::-1]
        wanted = theirs.run({"pixels": pixels})
        for name, array in ours.run({"pixels": pixels}).items():
            np.testing.assert_array_equal(array, wanted[name])


def test_threads_run_one_graph_side_by_side(bundle: Path, fake: FakeTrt) -> None:
    vision = open_graphs(open_backend(device=RTX), Bundle.load(bundle), ["vision"])["vision"]
    inputs = [np.full((1 + index % 4, 1, 16, 16), index, np.float32) for index in range(24)]
    alone = [vision.run({"pixels": pixels})["patches"] for pixels in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pixels: vision.run({"pixels": pixels})["patches"], inputs))
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "call", ["deserialize_cuda_engine", "set_optimization_profile_async", "get_tensor_location", "infer_shapes"]
)
def test_a_refusal_of_the_library_is_one_sentence(bundle: Path, fake: FakeTrt, call: str) -> None:
    fake.refuses.add(call)
    with pytest.raises(DeviceError, match="vision.engine: .*trrg-export --rebuild-engines") as caught:
        vision = open_graphs(open_backend(device=RTX), Bundle.load(bundle), ["vision"])["vision"]
        vision.run({"pixels": np.zeros((1, 1, 16, 16), np.float32)})
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 5


def test_a_bundle_without_engines_is_refused(fake: FakeTrt) -> None:
    with pytest.raises(DeviceError, match=r"no engines for it, only the targets ort-cpu: export it with --target tens"):
        Reporter(TINY, device=RTX)._engine.wait()


@pytest.mark.parametrize(("capability", "version"), [("9.0", VERSION), ("8.9", "1.8.0")])
def test_an_engine_of_another_gpu_or_version_is_refused(
    bundle: Path, fake: FakeTrt, monkeypatch: pytest.MonkeyPatch, capability: str, version: str
) -> None:
    fake.cuda.capability = capability
    monkeypatch.setattr(fake, "__version__", version, raising=False)
    with pytest.raises(DeviceError, match=f"built for compute capability 8.9 by version {VERSION}, but this GPU has "):
        Reporter(bundle, device=RTX)._engine.wait()


@pytest.mark.parametrize(("kept", "used"), [(b"fits, kept", b"fits, kept"), (b"of another GPU", b""), (None, b"")])
def test_kept_kernels_are_used_where_they_fit(bundle: Path, fake: FakeTrt, kept: bytes | None, used: bytes) -> None:
    if kept is not None:
        (bundle / "engines" / RTX / "decoder.cache").write_bytes(kept)
        write_manifest(bundle, parse_manifest((bundle / MANIFEST_FILE).read_text(encoding="utf-8")))
    decoder = open_decoder(open_backend(device=RTX), Bundle.load(bundle))
    (context,) = fake.contexts
    assert context.config is not None and context.config.cache.content == used
    assert context.config.dynamic_shapes_kernel_specialization_strategy.name == "NONE"
    assert decoder.free == Bundle.load(bundle).manifest.decoder.max_length


def test_tensorrt_itself_keeps_no_kernels(bundle: Path, fake: FakeTrt) -> None:
    open_decoder(open_backend(device="tensorrt"), Bundle.load(bundle))
    assert fake.contexts[0].config is None


@pytest.mark.parametrize(
    ("start", "driver", "reason"),
    [
        ("cudaErrorInsufficientDriver", 0, "no NVIDIA driver"),
        ("cudaErrorInsufficientDriver", 12040, "driver has CUDA 12.4, expected 13.5"),
        ("cudaErrorNoDevice", 13050, "finds no GPU"),
        ("cudaErrorIllegalAddress", 13050, "CUDA does not start: words about 700"),
    ],
)
def test_a_machine_without_a_gpu_says_why(
    monkeypatch: pytest.MonkeyPatch, start: str, driver: int, reason: str
) -> None:
    install(monkeypatch, {}, start=start).cuda.driver = driver
    with pytest.raises(DeviceError, match=f"^device {RTX}: .*{reason}") as caught:
        open_backend(device=RTX)
    assert caught.value.exit_code == 5
    rows = dict(examine())
    assert reason in rows["backend tensorrt"] and reason in rows[f"device {RTX}"]


def test_missing_packages_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNNERS, RTX, replace(RUNNERS[RTX], module="no_such_module"))
    with pytest.raises(DeviceError, match=r"device tensorrt-rtx: tensorrt-rtx is not installed: .*\[tensorrt\]"):
        open_backend(device=RTX)

    def missing() -> None:
        raise ImportError("No module named 'cuda'")

    monkeypatch.setattr(EngineLibrary, "load", lambda self: json)
    monkeypatch.setattr(cuda_device, "_runtime", missing)
    with pytest.raises(DeviceError, match=r"cuda-bindings cannot be imported .*trrg-sdk\[tensorrt\]"):
        open_backend(device=RTX)


@pytest.mark.skipif(cuda_device.unavailable_reason() is None, reason="a GPU is here")
def test_this_machine_says_why() -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(DeviceError, match=f"device {RTX}: ") as caught:
        open_backend(device=RTX)
    assert str(caught.value).endswith(str(cuda_device.unavailable_reason()))
