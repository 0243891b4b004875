"""Engines of a bundle: built anew for the GPU that is here, with their kernels, and run."""

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

from tests.export.rtx_target import RTX, target
from tests.sdk.fake_tensorrt import Code, install
from trrg_export import engine_builder, engine_kernels, engines
from trrg_export.cli import main
from trrg_export.engine_builder import axis_ranges, build_engines
from trrg_export.sbom_renewal import SBOM_FILE
from trrg_export.targets.base import ProvenSite
from trrg_sdk import Reporter
from trrg_sdk.backends import open_backend
from trrg_sdk.backends import tensorrt as runtime
from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.engines import RUNNERS, engine_for
from trrg_sdk.errors import DeviceError, UsageError
from trrg_sdk.manifest import GRAPH_NAMES, SIGNATURE_FILE
from trrg_train.models.tokenizer import EOS_ID

pytestmark = pytest.mark.torch


@pytest.fixture
def bundle(fp16: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fp16, tmp_path / "bundle"))


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
        RTX.chosen([engine_builder.present_capability()])
    except UsageError as error:  # a GPU that the library is not for; whatever else building refuses is a failure
        pytest.skip(f"no engine can be built: {error}")
    engines.rebuild_engines(bundle)
    check_reports(bundle, site_of(tmp_path / "site", "fp16"), atol=0.05)
    assert len(list((bundle / "engines" / RTX.name).glob("*.cache"))) == len(GRAPH_NAMES)


def test_the_gpu_is_the_one_that_cuda_shows_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_builder, "gpu_compute_capability", lambda: "7.5")
    install(monkeypatch, {}, capability="12.0")
    assert engine_builder.present_capability() == "12.0"
    install(monkeypatch, {}, start="cudaErrorNoDevice")
    assert engine_builder.present_capability() == "7.5"
