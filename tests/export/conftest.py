"""A tiny random checkpoint and its exported bundles, made once: tracing and building are what take the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage-2 checkpoint with random weights and 6 parity studies."""
    pytest.importorskip("torch")
    from tests.export.tiny import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def fp32_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of the tiny checkpoint, exported through the command; read only."""
    pytest.importorskip("onnxruntime_genai")
    from trrg_export.cli import main

    out = tmp_path_factory.mktemp("fp32") / "bundle"
    assert main([str(tiny_checkpoint), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def site_of(tiny_checkpoint: Path, fp32_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A copy of the fp32 bundle as a bundle under construction, with graphs traced as an export does."""
    pytest.importorskip("tensorrt_rtx")
    from tests.export.rtx_target import site_maker

    return site_maker(tiny_checkpoint, fp32_bundle, tmp_path_factory.mktemp("traces"))


@pytest.fixture(scope="session")
def fp16(site_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the target for TensorRT RTX in fp16, as an export leaves it; read only."""
    from tests.export.rtx_target import add_target

    return add_target(site_of(tmp_path_factory.mktemp("fp16") / "bundle", "fp16"))


@pytest.fixture
def traced(fp32_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, Any], None]], None]:
    """Take the three graphs that were traced before; the returned function sets what is done to each first."""
    import onnx

    from trrg_export import pytorch_side

    changes: list[Callable[[str, Any], None]] = []

    def write(plan: Any, folder: Path) -> None:
        model = onnx.load(str(fp32_bundle / "graphs" / f"{plan.name}.onnx"))
        for change in changes:
            change(plan.name, model)
        onnx.save_model(model, str(folder / "graph.onnx"))

    monkeypatch.setattr(pytorch_side, "write_trace", write)
    return changes.append
