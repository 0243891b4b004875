"""Which engine fits a GPU, and what the driver says about it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trrg_sdk.engines import engine_for, gpu_compute_capability
from trrg_sdk.errors import DeviceError
from trrg_sdk.manifest import EngineSpec, TargetSpec


def target(version: str = "1.7.1", capabilities: tuple[str, ...] = ("8.6", "8.9")) -> TargetSpec:
    engines = tuple(
        EngineSpec(graph, f"engines/tensorrt-rtx/{graph}.engine", capability, {})
        for graph in ("vision", "decoder")
        for capability in capabilities
    )
    return TargetSpec("tensorrt-rtx", version, graphs={}, engines=engines)


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_engine_of_this_gpu_is_picked() -> None:
    engine = engine_for(target(), "decoder", compute_capability="8.9", version="1.7.1")
    assert (engine.graph, engine.compute_capability) == ("decoder", "8.9")


@pytest.mark.parametrize(
    ("capability", "version", "graph"),
    [("9.0", "1.7.1", "vision"), ("8.9", "1.8.0", "vision"), ("8.9", "1.7.1", "fusion")],
)
def test_any_other_is_refused_in_one_sentence(capability: str, version: str, graph: str) -> None:
    with pytest.raises(DeviceError) as caught:
        engine_for(target(), graph, compute_capability=capability, version=version)
    said = str(caught.value)
    assert said.count("\n") == 0
    built = "no GPU" if graph == "fusion" else "8.6, 8.9"
    for part in (f"built for compute capability {built} by version 1.7.1", f"GPU has {capability}", version, graph):
        assert part in said
    assert "trrg-export --rebuild-engines BUNDLE" in said
    assert caught.value.exit_code == 5


def test_the_driver_names_the_first_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(
        tmp_path, monkeypatch, 'test "$*" = "--query-gpu=compute_cap --format=csv,noheader" && printf "8.9\\n8.6\\n"'
    )
    assert gpu_compute_capability() == "8.9"


@pytest.mark.parametrize("script", ["exit 9", "echo '[N/A]'", "true"])
def test_no_gpu_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    driver(tmp_path, monkeypatch, script)
    with pytest.raises(DeviceError, match=r"nvidia-smi .*\.$") as caught:
        gpu_compute_capability()
    assert "\n" not in str(caught.value)


def test_no_driver_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="no NVIDIA GPU"):
        gpu_compute_capability()
