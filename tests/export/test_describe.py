"""What the manifest says made a bundle."""

from __future__ import annotations

import importlib.metadata

import pytest

pytest.importorskip("onnxruntime_genai")

from trrg_export import describe


def test_packages_for_gpus_are_named_as_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.distribution
    assert {"onnxruntime", "onnxruntime-genai"} < set(describe.creators())

    def without(name: str) -> importlib.metadata.Distribution:
        if name in ("onnxruntime", "onnxruntime-genai"):
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "distribution", without)
    names = set(describe.creators())
    assert {"onnxruntime-gpu", "onnxruntime-genai-cuda"} < names
    assert not {"onnxruntime", "onnxruntime-genai"} & names
