"""OpenVINO says what ONNX Runtime says, in the precision that it was told, and takes no input that does not fit."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

from tests.sdk.chest_dicom import chest_bytes
from tests.sdk.imitated_bf16 import HAS_BF16, computed_in_fp32, imitated
from trrg_sdk import Clue, Reporter
from trrg_sdk.backends import open_backend, open_decoder, open_graphs
from trrg_sdk.backends import openvino as backend
from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.doctor import examine
from trrg_sdk.errors import BundleError, DeviceError, RefusedError, UsageError
from trrg_sdk.manifest import Manifest, TargetSpec
from trrg_sdk.processors import physical_cores

HERE = Path(__file__).parent
TINY = HERE / "tiny_bundle"
EXPECTED = np.load(HERE / "tiny_bundle_expected.npz")  # what torch computed with the same weights
THREE = ("vision", "clue_encoder", "fusion")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(TINY)


@pytest.fixture(scope="module")
def opened() -> backend.OpenVinoBackend:
    return backend.open_backend(threads=1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What OpenVINO is told for each graph."""
    seen: list[dict[str, Any]] = []
    properties = backend._properties

    def keep(*arguments: Any) -> dict[str, Any]:
        seen.append(properties(*arguments))
        return seen[-1]

    monkeypatch.setattr(backend, "_properties", keep)
    yield seen


def bf16_bundle(precision: str = "bf16") -> Bundle:
    """The tiny bundle as if its graphs had been proven in bf16, or with products of integers in it."""
    own = Bundle.load(TINY)
    graphs = {name: replace(own.manifest.graphs[name], precision=precision) for name in THREE}
    spec = TargetSpec("openvino", "1", graphs=graphs, engines=())
    return replace(own, manifest=replace(own.manifest, targets={backend.TARGET: spec}))


def test_it_has_the_names_of_a_backend(opened: backend.OpenVinoBackend) -> None:
    assert backend.__name__.rsplit(".", 1)[1] == backend.NAME == opened.name == opened.device
    assert backend.unavailable_reason() is None
    assert open_backend(device="openvino", threads=2).target == backend.TARGET


def test_vision_is_what_torch_computed(bundle: Bundle, opened: backend.OpenVinoBackend) -> None:
    seen = open_graphs(opened, bundle, ["vision"])["vision"].run({"pixels": EXPECTED["pixels"]})
    for name in ("patches", "global_joint"):
        np.testing.assert_allclose(seen[name], EXPECTED[name], atol=1e-5)


def test_the_tiny_bundle_reads_and_writes_like_on_onnxruntime() -> None:
    pixels = np.random.default_rng(5).normal(size=(4, 1, 16, 16)).astype(np.float32)
    custom = Clue("Hiatal Hernia", "There is a hernia.", "There is no hernia.")
    engines = [Reporter(TINY, device=name, clues=[custom])._engine for name in ("cpu", "openvino")]
    texts = []
    for image in pixels:
        override = engines[0].clues.override(None)
        ours, theirs = (engine.perceive(image, override=override) for engine in engines)
        np.testing.assert_allclose(ours.prompt, theirs.prompt, atol=1e-5)
        assert [clue.present for clue in ours.scores] == [clue.present for clue in theirs.scores]
        written = [engine.write(seen.prompt).ids for engine, seen in zip(engines, (ours, theirs), strict=True)]
        assert written[0] == written[1]
        texts.append(written[0])
    assert len(set(texts)) > 1, "the same text for every image proves little"


def test_the_embedded_bundle_writes_the_same_report() -> None:
    example = HERE.parents[1] / "examples" / "data" / "phantom_pa.dcm"
    ours, theirs = (Reporter(device=name).report(example) for name in ("openvino", "cpu"))
    assert ours.text == theirs.text
    assert ours.sentences == theirs.sentences or [s.verdict for s in ours.sentences] == [
        s.verdict for s in theirs.sentences
    ]
    assert (ours.provenance.device, ours.provenance.precision) == ("openvino", "int8")


def test_provenance_says_what_each_graph_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    computed_in_fp32(monkeypatch)
    reporter = Reporter(bf16_bundle(), device="openvino")
    try:
        made = reporter.report(chest_bytes()).provenance
    except RefusedError:  # random weights write anything, also no sentence
        made = reporter._provenance()
    assert made.precision == "vision bf16, clue_encoder bf16, fusion bf16, decoder fp32"
    assert made.device == "openvino"


@pytest.mark.parametrize("threads", [1, 2, None])
def test_nothing_is_left_to_openvino(bundle: Bundle, asked: list[dict[str, Any]], threads: int | None) -> None:
    opened = backend.open_backend(threads=threads)
    graphs = open_graphs(opened, bundle, THREE)
    assert len(asked) == 3
    for told in asked:
        assert told["INFERENCE_PRECISION_HINT"] == ov.Type.f32
        assert told["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 0
        assert told["INFERENCE_NUM_THREADS"] == opened.threads == (threads or physical_cores())
        assert told["ENABLE_CPU_PINNING"] is False
    vision = graphs["vision"]
    assert isinstance(vision, backend.OpenVinoGraph)
    compiled = vision._compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
    assert compiled.get_property("INFERENCE_NUM_THREADS") == opened.threads
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0


@pytest.mark.parametrize("precision", ["bf16", "int8-bf16"])
def test_bf16_comes_from_the_manifest_alone(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    imitated(monkeypatch)
    open_graphs(backend.open_backend(threads=1), bf16_bundle(precision), THREE)
    assert [told["INFERENCE_PRECISION_HINT"] for told in asked] == [ov.Type.bf16] * 3


@pytest.mark.skipif(HAS_BF16, reason="this processor has bf16")
def test_bf16_that_the_processor_lacks_is_refused(opened: backend.OpenVinoBackend) -> None:
    """OpenVINO itself computes in float32 then, or imitates bf16 at many times the time."""
    with pytest.raises(DeviceError, match=r"vision\.onnx: bf16: expected a processor with bf16 arith.*device cpu"):
        open_graphs(opened, bf16_bundle(), ["vision"])


@pytest.mark.parametrize(
    ("precision", "missing"), [("bf16", "bf16"), ("int8-bf16", "bf16"), ("int8-vnni", "VNNI"), ("int8", None)]
)
def test_arithmetic_that_the_processor_lacks_is_named(
    opened: backend.OpenVinoBackend, monkeypatch: pytest.MonkeyPatch, precision: str, missing: str | None
) -> None:
    """A processor with AVX-512 and neither bf16 nor VNNI, on which OpenVINO would compute all of these."""
    monkeypatch.setattr(backend, "instructions", lambda: frozenset({"avx2", "avx512f"}))
    monkeypatch.setattr(ov.Core, "get_property", lambda *_: ["FP32", "INT8"])
    if missing is None:
        open_graphs(opened, bf16_bundle(precision), ["vision"])
        return
    with pytest.raises(DeviceError, match=rf"vision\.onnx: {precision}: expected a processor with {missing}"):
        open_graphs(opened, bf16_bundle(precision), ["vision"])


def test_vnni_of_either_kind_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("avx_vnni", "avx512_vnni"):
        monkeypatch.setattr(backend, "instructions", lambda name=name: frozenset({"avx2", name}))
        assert backend.unfit_reason("int8-vnni") is None


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bf16")
def test_bf16_is_near_fp32_and_not_equal(opened: backend.OpenVinoBackend) -> None:
    seen = open_graphs(opened, bf16_bundle(), ["vision"])["vision"].run({"pixels": EXPECTED["pixels"]})
    gap = np.abs(seen["patches"] - EXPECTED["patches"]).max() / np.abs(EXPECTED["patches"]).max()
    assert 1e-5 < gap < 0.05


def test_a_batch_of_several_is_what_each_alone_is(bundle: Bundle, opened: backend.OpenVinoBackend) -> None:
    """The vision graph is compiled for one; its inputs and outputs are still those of the file."""
    vision = open_graphs(opened, bundle, ["vision"])["vision"]
    assert isinstance(vision, backend.OpenVinoGraph)
    assert vision._compiled.input(0).partial_shape.is_static
    assert vision.inputs[0].axes == ("?", 1, 16, 16)
    pixels = np.random.default_rng(0).normal(size=(3, 1, 16, 16)).astype(np.float32)
    together = vision.run({"pixels": pixels})
    for name, array in together.items():
        alone = [vision.run({"pixels": pixels[row : row + 1]})[name] for row in range(3)]
        np.testing.assert_array_equal(array, np.concatenate(alone))
    assert not np.array_equal(together["patches"][0], together["patches"][1])
    with pytest.raises(UsageError, match="at least one row"):
        vision.run({"pixels": pixels[:0]})


def test_a_graph_with_other_free_axes_stays_free(bundle: Bundle, opened: backend.OpenVinoBackend) -> None:
    for name, graph in open_graphs(opened, bundle, ["clue_encoder", "fusion"]).items():
        assert isinstance(graph, backend.OpenVinoGraph)
        assert all(port.partial_shape.is_dynamic for port in graph._compiled.inputs), name


@pytest.mark.parametrize("content", [b"", b"no graph", None])
def test_a_damaged_graph_is_refused(tmp_path: Path, opened: backend.OpenVinoBackend, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes((TINY / "graphs" / "vision.onnx").read_bytes()[:-500] if content is None else content)
    with pytest.raises(BundleError, match=r"broken\.onnx: expected an ONNX graph that OpenVINO"):
        opened.graph(path)
    with pytest.raises(BundleError):
        opened.graph(tmp_path / "none.onnx")


def test_a_graph_unlike_the_manifest_is_refused(tmp_path: Path, opened: backend.OpenVinoBackend) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "bundle"))
    shutil.copy(folder / "graphs" / "fusion.onnx", folder / "graphs" / "vision.onnx")
    write_manifest(folder, Bundle.load(TINY).manifest)
    with pytest.raises(BundleError, match=r"vision\.onnx is not what"):
        open_graphs(opened, Bundle.load(folder), ["vision"])


def test_a_tensor_of_several_names_keeps_the_declared_one(tmp_path: Path, opened: backend.OpenVinoBackend) -> None:
    """OpenVINO compiles Identity away and gives what is left the names of both sides."""
    onnx = pytest.importorskip("onnx")
    nodes = [
        onnx.helper.make_node("Relu", ["z"], ["inner"]),
        *(onnx.helper.make_node("Identity", ["inner"], [name]) for name in ("y", "x")),
    ]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2]) for name in ("z", "x", "y")]
    graph = onnx.helper.make_graph(nodes, "test", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "names.onnx")
    opened_graph = opened.graph(tmp_path / "names.onnx")
    assert [spec.name for spec in opened_graph.outputs] == ["x", "y"]
    assert opened_graph.inputs[0].axes == ("?", 2)
    got = opened_graph.run({"z": np.array([[-1, 2]], np.float32)})
    np.testing.assert_array_equal(got["x"], [[0, 2]])
    np.testing.assert_array_equal(got["y"], [[0, 2]])


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"pixel": np.zeros((1, 1, 16, 16), np.float32)},
        {"pixels": np.zeros((1, 1, 16, 16), np.float64)},
        {"pixels": np.zeros((1, 16, 16), np.float32)},
        {"pixels": np.zeros((1, 1, 17, 16), np.float32)},
        {"pixels": np.zeros((1, 1, 16, 16), np.float32), "more": np.zeros(1, np.float32)},
    ],
    ids=["missing", "unknown", "dtype", "axes", "size", "one more"],
)
def test_what_openvino_would_make_fit_is_refused(
    bundle: Bundle, opened: backend.OpenVinoBackend, inputs: dict[str, np.ndarray]
) -> None:
    """All but the unknown names run in OpenVINO: a missing array is that of the run before, another patient's."""
    vision = open_graphs(opened, bundle, ["vision"])["vision"]
    vision.run({"pixels": EXPECTED["pixels"]})
    with pytest.raises(UsageError, match=r"vision\.onnx"):
        vision.run(inputs)


def test_sizes_that_contradict_each_other_are_refused(bundle: Bundle, opened: backend.OpenVinoBackend) -> None:
    """OpenVINO computes something from 5 positive and 4 negative prompts, and says nothing."""
    fusion = open_graphs(opened, bundle, ["fusion"])["fusion"]
    bank = bundle.clue_bank()
    seen = open_graphs(opened, bundle, ["vision"])["vision"].run({"pixels": EXPECTED["pixels"]})
    five = {name: np.full(5, 0.5, np.float32) for name in ("clue_scale", "clue_offset", "clue_threshold")}
    clues = {"clue_positive": bank.positive[:5], "clue_negative": bank.negative[:4]}  # 5 is not 4
    with pytest.raises(UsageError, match=r"clue_negative: expected float32 \('clues', 8\) with .*'clues': 5"):
        fusion.run({**seen, **clues, **five, "clue_override": np.full((len(seen["patches"]), 5), -1, np.float32)})


def test_what_fails_inside_is_a_device_error(bundle: Bundle, opened: backend.OpenVinoBackend) -> None:
    class Broken:
        def infer(self, *_: object, **__: object) -> None:
            raise RuntimeError("out of memory")

    vision = opened.graph(bundle.path("vision"))
    vision._idle.append(Broken())
    with pytest.raises(DeviceError, match=r"vision\.onnx: OpenVINO failed while running: out of memory"):
        vision.run({"pixels": EXPECTED["pixels"]})


def test_one_graph_runs_in_many_threads(bundle: Bundle) -> None:
    vision = open_graphs(backend.open_backend(threads=2), bundle, ["vision"])["vision"]
    pixels = np.random.default_rng(0).normal(size=(64, 1, 1, 16, 16)).astype(np.float32)
    alone = [vision.run({"pixels": item})["patches"] for item in pixels]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda item: vision.run({"pixels": item})["patches"], pixels))
    np.testing.assert_array_equal(alone, together)


def test_results_belong_to_the_caller(bundle: Bundle, opened: backend.OpenVinoBackend) -> None:
    vision = open_graphs(opened, bundle, ["vision"])["vision"]
    first = vision.run({"pixels": EXPECTED["pixels"]})
    before = {name: value.copy() for name, value in first.items()}
    vision.run({"pixels": -EXPECTED["pixels"]})
    for name, value in before.items():
        np.testing.assert_array_equal(first[name], value)


def test_the_decoder_is_onnxruntimes(bundle: Bundle, opened: backend.OpenVinoBackend) -> None:
    decoder = open_decoder(opened, bundle)
    assert type(decoder).__name__ == "OrtDecoder"
    assert decoder.free == bundle.manifest.decoder.max_length


def test_senseless_arguments() -> None:
    with pytest.raises(UsageError, match="tpu"):
        backend.open_backend(device="tpu")
    with pytest.raises(UsageError, match=r"auto, cpu, cuda, openvino, tensorrt or tensorrt-rtx.*tpu"):
        open_backend(device="tpu")
    with pytest.raises(UsageError, match="threads"):
        backend.open_backend(threads=0)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match=r"device openvino: .*pip install 'trrg-sdk\[cpu,openvino\]'"):
        Reporter(TINY, device="openvino")
    assert Reporter(TINY).device == "cpu", "auto never needs it"
    rows = dict(examine())
    assert rows["device openvino"].startswith("device openvino: OpenVINO cannot be used")


def test_without_onnxruntime_there_is_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match="decoder beside OpenVINO runs on ONNX Runtime"):
        open_backend(device="openvino")


def test_auto_stays_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_backend(device="auto", threads=1)
    assert (opened.name, opened.target) == ("onnxruntime", f"ort-{opened.device}")


def test_a_manifest_gives_a_target_its_own_graphs() -> None:
    manifest: Manifest = bf16_bundle().manifest
    assert manifest.graph("vision", target=backend.TARGET).precision == "bf16"
    assert manifest.graph("decoder", target=backend.TARGET) == manifest.graphs["decoder"]
    assert manifest.graph("vision", target="ort-cpu") == manifest.graphs["vision"]
