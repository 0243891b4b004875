"""What exported graphs are held against, also with sizes that their export did not see."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")

import torch

from trrg_export.parity import LIMITS, Exported, compare
from trrg_export.pytorch_run import run_pytorch
from trrg_export.reference import UNSEEN_SIZES, Reference
from trrg_export.to_onnx import checkpoint_plans
from trrg_sdk.backends.onnxruntime import OrtBackend
from trrg_sdk.backends.ort_session import OrtGraph
from trrg_sdk.bundle import Bundle
from trrg_sdk.manifest import GraphSpec
from trrg_train.models.checkpoint import Checkpoint, load_checkpoint

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> Reference:
    return run_pytorch(checkpoint, checkpoint.parity_pixels()[:4])


def test_other_sizes_are_run_on_what_the_studies_gave(checkpoint: Checkpoint, reference: Reference) -> None:
    batch, clues = UNSEEN_SIZES["batch"], UNSEEN_SIZES["clues"]
    vision, fusion = reference.unseen["vision"], reference.unseen["fusion"]
    assert np.array_equal(vision.inputs["pixels"], reference.pixels[:batch])
    assert np.array_equal(fusion.inputs["patches"], reference.vision["patches"][:batch])
    known = reference.clue_inputs["clue_positive"]
    assert np.array_equal(fusion.inputs["clue_positive"], np.concatenate([known, known])[:clues])
    override = fusion.inputs["clue_override"]
    assert override.shape == (batch, clues)
    assert ((override[:, ::2] >= 0.1) & (override[:, ::2] <= 0.9)).all()
    assert (override[:, 1::2] == -1).all()
    for plan in checkpoint_plans(checkpoint, checkpoint.trrg):
        run = reference.unseen[plan.name]
        assert list(run.outputs) == list(plan.outputs)
        for spec in plan.inputs:
            assert run.inputs[spec.name].shape == tuple(UNSEEN_SIZES.get(str(axis), axis) for axis in spec.axes)
            assert run.inputs[spec.name].dtype == spec.dtype
        with torch.no_grad():
            made: Any = plan.module()(*map(torch.from_numpy, run.inputs.values()))
        first = made if isinstance(made, torch.Tensor) else made[0]
        assert np.array_equal(run.outputs[plan.outputs[0]], first.numpy())


def test_the_reference_itself_is_left_as_it_is(reference: Reference) -> None:
    assert (reference.clue_inputs["clue_override"] == -1).all()


def test_few_studies_are_taken_again(checkpoint: Checkpoint) -> None:
    one = run_pytorch(checkpoint, checkpoint.parity_pixels()[:1])
    assert one.unseen["vision"].inputs["pixels"].shape[0] == UNSEEN_SIZES["batch"]


@pytest.mark.parametrize(("name", "output"), [("vision", "patches"), ("fusion", "prompt_embeds")])
def test_an_axis_that_was_frozen_is_found(
    fp32_bundle: Path, checkpoint: Checkpoint, reference: Reference, name: str, output: str
) -> None:
    exported = Exported(Bundle.load(fp32_bundle), "fp32", _Frozen(name))
    planned = checkpoint_plans(checkpoint, checkpoint.trrg)
    report = compare(exported, planned, reference, limits=LIMITS["fp32"])
    assert any(
        line.startswith(f"{name}.{output}: differs by") and line.endswith(f"with the sizes {UNSEEN_SIZES}")
        for line in report.failures
    ), report.failures


class _Frozen(OrtBackend):
    """One of its graphs answers for the first study whatever else is asked."""

    def __init__(self, name: str) -> None:
        super().__init__("cpu", 1)
        self._name = name

    def graph(self, path: Path, *, spec: GraphSpec | None = None) -> OrtGraph:
        session = self.session(path, 1)
        return (_OfTheFirst if path.stem == self._name else OrtGraph)(session, path.name)


class _OfTheFirst(OrtGraph):
    """Repeats its first row."""

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: np.repeat(value[:1], len(value), axis=0) for name, value in super().run(inputs).items()}
