"""The TensorRT targets: graphs, profiles and engines of every graph, built on a machine without a GPU."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_genai")
pytest.importorskip("tensorrt_rtx")

from tests.sdk.fake_tensorrt import Code, install
from trrg_export import build, engine_builder, engine_kernels, engines, onnx_file
from trrg_export.cli import main
from trrg_export.engine_builder import LIBRARIES, axis_ranges, build_engines, build_profile
from trrg_export.parity import LIMITS, ParityError, ParityLimits
from trrg_export.sbom_renewal import SBOM_FILE
from trrg_export.targets import tensorrt, tensorrt_graphs, tensorrt_rtx
from trrg_export.targets.base import ProvenSite
from trrg_sdk import Reporter
from trrg_sdk.backends import open_backend
from trrg_sdk.backends import tensorrt as runtime
from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.engines import RUNNERS, engine_for
from trrg_sdk.errors import DeviceError, UsageError
from trrg_sdk.manifest import GRAPH_NAMES, MANIFEST_FILE, SIGNATURE_FILE, TargetSpec, parse_manifest
from trrg_train.models.tokenizer import EOS_ID

pytestmark = pytest.mark.torch

RTX = LIBRARIES["tensorrt-rtx"]
ANYTHING = ParityLimits(value=None, differing_texts=None, label_agreement=0.0, clue_flips=1.0)


@pytest.fixture(scope="module")
def site_of(tiny_checkpoint: Path, fp32_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A copy of the fp32 bundle as a bundle under construction, with graphs traced as an export does."""
    from trrg_export.pytorch_run import run_pytorch
    from trrg_export.to_onnx import checkpoint_plans, write_trace
    from trrg_train.models.checkpoint import load_checkpoint

    loaded = load_checkpoint(tiny_checkpoint)
    reference = run_pytorch(loaded, loaded.parity_pixels())
    planned = checkpoint_plans(loaded, loaded.trrg)

    def make(folder: Path, precision: str, limits: ParityLimits | None = None) -> ProvenSite:
        shutil.copytree(fp32_bundle, folder)
        feeds, own = reference.feeds(), limits or LIMITS[precision]
        bundle = Bundle.load(folder)
        sizes = bundle.manifest.decoder
        return ProvenSite(folder, loaded, traces, planned, sizes, reference, feeds, precision, (), bundle, own)

    traces = tmp_path_factory.mktemp("traces")
    for plan in planned:
        (traces / plan.name).mkdir()
        write_trace(plan, traces / plan.name)
    return make


@pytest.fixture(scope="module")
def fp16(site_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the target in fp16, as an export leaves it; read only."""
    folder = tmp_path_factory.mktemp("fp16") / "bundle"
    spec = tensorrt_rtx.add(site_of(folder, "fp16"))
    manifest = parse_manifest((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    write_manifest(folder, dataclasses.replace(manifest, targets={**manifest.targets, tensorrt_rtx.TARGET: spec}))
    return folder


@pytest.fixture
def bundle(fp16: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fp16, tmp_path / "bundle"))


def target(folder: Path) -> TargetSpec:
    return Bundle.load(folder).manifest.targets[tensorrt_rtx.TARGET]


def test_every_graph_has_an_engine_in_fp16(fp16: Path) -> None:
    spec = target(fp16)
    assert spec.graphs.keys() == set(GRAPH_NAMES)
    assert {graph.precision for graph in spec.graphs.values()} == {"fp16"}
    built = {(engine.graph, engine.compute_capability) for engine in spec.engines}
    assert built == {(name, capability) for name in GRAPH_NAMES for capability in RTX.capabilities}
    assert spec.version == RTX.version
    for engine in spec.engines:
        assert (fp16 / engine.file).stat().st_size > 100_000


def test_weights_of_more_than_a_message_holds_lie_beside_their_graph(
    site_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a large decoder do: PyTorch is compared with that, and TensorRT reads it."""
    monkeypatch.setattr(onnx_file, "INLINE_LIMIT", 2**16)
    spec = tensorrt_rtx.add(site_of(tmp_path / "bundle", "fp16"))
    weights = Path(tmp_path, "bundle", f"{spec.graphs['decoder'].file}.data").stat().st_size
    engine = next(one.file for one in spec.engines if one.graph == "decoder")
    assert 2**16 < weights < Path(tmp_path, "bundle", engine).stat().st_size, "the engine holds them"


def test_the_graphs_hold_standard_operators_and_fp16_weights(fp16: Path) -> None:
    for name, graph in target(fp16).graphs.items():
        model = onnx.load(str(fp16 / graph.file))
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        large = [tensor for tensor in model.graph.initializer if len(tensor.dims) >= 2 and max(tensor.dims) > 8]
        half = [tensor for tensor in large if tensor.data_type == onnx.TensorProto.FLOAT16]
        assert len(half) > 0.8 * len(large), name


def test_profiles_cover_the_free_axes_of_the_manifest(fp16: Path) -> None:
    manifest = Bundle.load(fp16).manifest
    ranges = axis_ranges(manifest)
    spec = target(fp16)
    free = {axis for graph in spec.graphs.values() for tensor in graph.inputs for axis in tensor.axes}
    assert {axis for axis in free if isinstance(axis, str)} == ranges.keys()
    most = ranges["clues"][2]
    assert manifest.prompt_length(most) + 1 == manifest.decoder.max_length
    assert ranges["clues"][:2] == (1, len(manifest.clues))
    assert ranges["past"][0] == 0 and ranges["past"][2] == ranges["sequence"][2] == manifest.decoder.max_length
    assert ranges["length"][2] == manifest.custom_clue.max_length
    for which in range(3):
        assert ranges["past"][which] + ranges["sequence"][which] == ranges["past + sequence"][which]
    for engine in spec.engines:
        graph = spec.graphs[engine.graph]
        assert engine.profile == build_profile(graph, ranges)
        for tensor in graph.inputs:
            smallest, usual, largest = engine.profile[tensor.name]
            for axis, sizes in zip(tensor.axes, zip(smallest, usual, largest, strict=True), strict=True):
                assert sizes == (ranges[axis] if isinstance(axis, str) else (axis,) * 3)


def test_the_decoder_in_4_bits(site_of: Any, tmp_path: Path) -> None:
    """Random weights: that they write the same text in 4 bits nobody can ask."""
    site = site_of(tmp_path / "bundle", "int4", ANYTHING)
    spec = tensorrt_rtx.add(site)
    assert spec.graphs["decoder"].precision == "int4"
    assert spec.graphs["vision"].precision == "fp16"
    model = onnx.load(str(site.folder / spec.graphs["decoder"].file))
    whole = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT4}
    assert len(whole) == 2 * 7, "seven products a layer"
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph.node) == 2 * 7
    assert {engine.graph for engine in spec.engines} == set(GRAPH_NAMES)


def product(rows: int) -> Any:
    """A graph of two products, the first of that many rows."""
    from onnx import TensorProto, helper, numpy_helper

    weights = {"w": np.ones((rows, 64), np.float32), "head": np.ones((64, 8), np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product"), helper.make_node("MatMul", ["y", "head"], ["z"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", rows), ("z", 8))]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(value, name) for name, value in weights.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize(("rows", "blocks"), [(96, 3), (688, 43)])
def test_blocks_of_4_bits_are_whole(rows: int, blocks: int) -> None:
    """688 is 21.5 times 32: TensorRT refuses a block that is cut off."""
    scales = [
        tensor for tensor in tensorrt_graphs.quantize_4bit(product(rows)).graph.initializer if "scales" in tensor.name
    ]
    assert [list(tensor.dims) for tensor in scales] == [[blocks, 64]]


def test_a_width_without_whole_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match=r"multiples of 16, the model has \[64, 100\]"):
        tensorrt_graphs.quantize_4bit(product(100))


def test_a_graph_that_differs_is_no_target(site_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = tensorrt_graphs.to_half

    def wrong(model: Any, *args: Any, **kwargs: Any) -> Any:
        made = half(model, *args, **kwargs)
        for tensor in made.model.graph.initializer:
            if len(tensor.dims) == 2:
                tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
        return made

    monkeypatch.setattr(tensorrt_graphs, "to_half", wrong)
    limits = ParityLimits(value=0.05, differing_texts=0, label_agreement=1.0, clue_flips=0.0)
    site = site_of(tmp_path / "bundle", "fp16", limits)
    with pytest.raises(ParityError) as caught:
        tensorrt_rtx.add(site)
    assert "fusion.prompt_embeds: differs" in str(caught.value)
    assert "greedy tokens differ" in str(caught.value)
    assert "clue scores change sides of their thresholds, the limit is 0%" in str(caught.value)
    assert not (site.folder / "engines").exists()


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_precision_that_it_has_not_is_refused_before_anything_is_built(name: str) -> None:
    with pytest.raises(UsageError, match=f"--target {name}: expected a precision of fp32, fp16, int8, int4, got bf16"):
        build.ExportOptions("bf16", targets=("ort", "openvino", name))
    assert build.allowed_precisions(("ort", name)) == ("fp32", "fp16", "int8", "int4")


def test_int8_is_what_tensorrt_reads(site_of: Any, tmp_path: Path) -> None:
    site = site_of(tmp_path / "bundle", "int8", ANYTHING)
    spec = tensorrt_rtx.add(site)
    assert {name: graph.precision for name, graph in spec.graphs.items()} == {
        **dict.fromkeys(("vision", "clue_encoder", "fusion"), "int8"),
        "decoder": "fp16",
    }
    rounded = 0
    for name in ("vision", "clue_encoder", "fusion"):
        model = onnx.load(str(site.folder / spec.graphs[name].file))
        zeros = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert zeros[node.input[2]].dtype == np.int8 and not zeros[node.input[2]].any()
                rounded += node.op_type == "QuantizeLinear"
    assert rounded > 5
    table = site.tables["int8 on tensorrt-rtx"]
    assert (table["studies"], table["clue_pairs"]) == (6, 6 * 14)
    assert table["clue_flips"] <= 0.1 * table["clue_pairs"]
    assert {engine.graph for engine in spec.engines} == set(GRAPH_NAMES)


@pytest.mark.skipif(tensorrt.unavailable_reason("fp16") is None, reason="TensorRT and a GPU are here")
def test_an_unavailable_target_is_exit_5_and_one_sentence(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="target tensorrt: .*(pip install tensorrt|no NVIDIA GPU)") as caught:
        build.export_bundle(tiny_checkpoint, tmp_path / "b", build.ExportOptions(targets=("ort", "tensorrt")))
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_engine_of_another_gpu_is_refused(fp16: Path) -> None:
    spec = target(fp16)
    fitting = engine_for(spec, "vision", compute_capability="8.9", version=RTX.version)
    assert (fitting.graph, fitting.compute_capability) == ("vision", "8.9")
    with pytest.raises(DeviceError, match=r"built for compute capability 8.6, 8.9, 12.0 .*this GPU has 9.0.*--rebuild"):
        engine_for(spec, "vision", compute_capability="9.0", version=RTX.version)
    with pytest.raises(DeviceError, match="installed version is 1.6.0"):
        engine_for(spec, "vision", compute_capability="8.9", version="1.6.0")


def test_a_capability_that_the_library_has_not_is_refused() -> None:
    with pytest.raises(UsageError, match=r"8\.6, 8\.9.*not for \['3\.5'\]"):
        RTX.chosen(["8.6", "3.5"])


def test_a_graph_that_the_library_refuses_is_one_sentence(tmp_path: Path, fp16: Path) -> None:
    spec = target(fp16).graphs["vision"]
    model = onnx.load(str(fp16 / spec.file))
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "SkipLayerNormalization", "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(tmp_path / "vision.onnx"))
    graphs = {"vision": dataclasses.replace(spec, file="vision.onnx")}
    ranges = axis_ranges(Bundle.load(fp16).manifest)
    with pytest.raises(DeviceError, match="vision: does not read vision.onnx") as caught:
        build_engines(RTX, graphs, ranges, source=tmp_path, out=tmp_path)
    assert "\n" not in str(caught.value)


def test_engines_are_built_anew_for_this_gpu(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Bundle.load(bundle)
    (bundle / SIGNATURE_FILE).write_bytes(b"signed")
    monkeypatch.setattr(engines, "present_capability", lambda: "8.0")
    monkeypatch.setattr(engine_builder, "_LOG_EVERY", 0.05)
    assert main(["--rebuild-engines", str(bundle)]) == 0
    said = capsys.readouterr()
    assert "tensorrt-rtx" in said.out and "compute capability 8.0" in said.out
    after = Bundle.load(bundle)
    spec = target(bundle)
    assert {(engine.graph, engine.compute_capability) for engine in spec.engines} == {(n, "8.0") for n in GRAPH_NAMES}
    assert not (bundle / SIGNATURE_FILE).exists()
    changed = {name for name in after.manifest.files if after.manifest.files[name] != before.manifest.files[name]}
    assert changed == {engine.file for engine in spec.engines} | {SBOM_FILE}
    assert spec.version == RTX.version == after.manifest.provenance.created_by["tensorrt-rtx"]
    assert f"pkg:pypi/tensorrt-rtx@{importlib.metadata.version('tensorrt-rtx')}" in (bundle / SBOM_FILE).read_text()
    assert after.manifest_sha256 != before.manifest_sha256
    assert list(bundle.parent.iterdir()) == [bundle]


def test_progress_is_shown_while_an_engine_is_built(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_builder, "_LOG_EVERY", 0.05)
    caplog.set_level("INFO", "trrg_export")
    (bundle / SIGNATURE_FILE).write_bytes(b"signed")
    engines.rebuild_engines(bundle, compute_capabilities=["8.9"])
    lines = [record.getMessage() for record in caplog.records]
    assert "engine 4 of 4, decoder: building" in " ".join(lines)
    assert any("decoder" in line and "s so far" in line for line in lines), "minutes of silence look hung"
    assert any("sign the bundle again" in line for line in lines)


def test_a_rebuild_that_fails_leaves_the_bundle_alone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Bundle.load(bundle).manifest_sha256

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match="No space left on device") as caught:
        engines.rebuild_engines(bundle, compute_capabilities=["8.9"])
    assert "\n" not in str(caught.value)
    assert Bundle.load(bundle).manifest_sha256 == before
    assert list(bundle.parent.iterdir()) == [bundle]


def test_without_its_library_a_rebuild_is_exit_5(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = dataclasses.replace(RTX, module="no_such_module")
    monkeypatch.setattr(engines, "LIBRARIES", {RTX.name: missing})
    before = Bundle.load(bundle).manifest_sha256
    assert main(["--rebuild-engines", str(bundle)]) == 5
    error = capsys.readouterr().err
    assert "pip install 'trrg-sdk[tensorrt]'" in error and error.count("\n") == 1
    assert Bundle.load(bundle).manifest_sha256 == before


def test_an_export_for_the_target_is_a_bundle_with_engines(
    tiny_checkpoint: Path, site_of: Any, traced: Any, tmp_path: Path
) -> None:
    options = build.ExportOptions(targets=("ort", "tensorrt-rtx"), compute_capabilities=("8.9",))
    build.export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    spec = target(tmp_path / "bundle")
    assert {(engine.graph, engine.compute_capability) for engine in spec.engines} == {(n, "8.9") for n in GRAPH_NAMES}
    assert {graph.precision for graph in spec.graphs.values()} == {"fp32"}
    files = Bundle.load(tmp_path / "bundle").manifest.files
    varying = {name for name, file in files.items() if not file.reproducible}
    assert varying == {engine.file for engine in spec.engines}, "the manifest says which bytes another export has not"


def test_a_bundle_without_engines_has_nothing_to_rebuild(fp32_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rebuild-engines", str(fp32_bundle)]) == 2
    error = capsys.readouterr().err
    assert "no target with engines" in error
    assert error.count("\n") == 1


def test_rebuilding_needs_neither_torch_nor_onnx() -> None:
    code = "import sys, trrg_export.engines; print(*({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == ""


def codes(folder: Path) -> dict[bytes, Code]:
    """The fake's engines: each is the clean graph that the real one was built from, on ONNX Runtime."""
    made, spec = {}, target(folder)
    for engine in spec.engines:
        graph = spec.graphs[engine.graph]
        session = open_backend(device="cpu", threads=1).graph(folder / graph.file)
        tensors = (
            {
                each.name: (each.dtype, tuple(-1 if isinstance(axis, str) else axis for axis in each.axes))
                for each in specs
            }
            for specs in (graph.inputs, graph.outputs)
        )
        ranges = {name: (shapes[0], shapes[2]) for name, shapes in engine.profile.items()}
        content = (folder / engine.file).read_bytes()
        made[content] = Code(*tensors, ranges, lambda feed, session=session: session.run(dict(feed)))
    return made


def check_reports(folder: Path, site: ProvenSite, *, atol: float) -> None:
    """The engines see and write what PyTorch sees and writes, prompt by prompt and token by token."""
    engine = Reporter(folder, device=RTX.name)._engine
    override = engine.clues.override(None)
    for index, pixels in enumerate(site.checkpoint.parity_pixels()):
        seen = engine.perceive(pixels, override=override)
        logits = [clue.probability for clue in seen.scores]
        assert np.isfinite(logits).all()
        written = engine.write(seen.prompt)
        np.testing.assert_allclose(seen.prompt, site.reference.prompts[index], atol=atol)
        expected = site.reference.ids[index]
        assert list(written.ids) == [token for token in expected if token != EOS_ID]


def test_the_decoder_reads_its_graph_as_an_engine(
    fp16: Path, site_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake GPU, the real graphs: past and present, profile, dtypes and the last row of logits."""
    site, version = site_of(tmp_path / "site", "fp16"), RTX.version
    fake = install(monkeypatch, codes(fp16))
    monkeypatch.setattr(fake, "__version__", version, raising=False)
    check_reports(fp16, site, atol=0.05)
    assert sum(context.runs for context in fake.contexts) > 3 * len(site.reference.ids)


def test_kernels_are_kept_where_the_gpu_runs_the_engines(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec, manifest = target(bundle), Bundle.load(bundle).manifest
    fake = install(monkeypatch, codes(bundle))
    caplog.set_level("INFO", "trrg_export")
    engine_kernels.keep_kernels(RTX, spec.engines, spec.graphs, manifest.decoder, folder=bundle)
    folder = bundle / "engines" / RTX.name
    assert {path.name for path in folder.glob("*.cache")} == {f"{name}.cache" for name in GRAPH_NAMES}
    assert (folder / "decoder.cache").read_bytes() == b"fits, compiled"
    assert sorted(context.runs for context in fake.contexts) == [1, 1, 1, 2], "the decoder a prompt and a step"
    assert any("kernels 4 of 4, decoder: compiling" in record.getMessage() for record in caplog.records)
    fake.refuses.add("execute_async_v3")
    for path in folder.glob("*.cache"):
        path.unlink()
    engine_kernels.keep_kernels(RTX, spec.engines, spec.graphs, manifest.decoder, folder=bundle)
    assert any("does not run here" in record.getMessage() for record in caplog.records)
    assert not list(folder.glob("*.cache"))


def test_kernels_of_old_engines_go_with_them(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Bundle.load(bundle).manifest
    cache = bundle / "engines" / RTX.name / "vision.cache"
    cache.write_bytes(b"old")
    write_manifest(bundle, manifest)
    monkeypatch.setattr(engines, "keep_kernels", lambda *_, **__: None)
    engines.rebuild_engines(bundle, compute_capabilities=["8.9"])
    assert Bundle.load(bundle).manifest.files.keys() == manifest.files.keys()
    assert not cache.exists()


@pytest.mark.gpu
def test_real_engines_write_what_pytorch_writes(bundle: Path, site_of: Any, tmp_path: Path) -> None:
    """Engines for the GPU of this machine, on it: values near PyTorch's, tokens the same, kernels kept."""
    if reason := runtime._reason(RUNNERS[RTX.name]):
        pytest.skip(f"no engine can be run: {reason}")
    try:
        engines.rebuild_engines(bundle)
    except UsageError as error:
        pytest.skip(f"no engine can be built: {error}")
    check_reports(bundle, site_of(tmp_path / "site", "fp16"), atol=0.05)
    assert len(list((bundle / "engines" / RTX.name).glob("*.cache"))) == len(GRAPH_NAMES)


def test_the_gpu_is_the_one_that_cuda_shows_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_builder, "gpu_compute_capability", lambda: "7.5")
    install(monkeypatch, {}, capability="12.0")
    assert engine_builder.present_capability() == "12.0"
    install(monkeypatch, {}, start="cudaErrorNoDevice")
    assert engine_builder.present_capability() == "7.5"
