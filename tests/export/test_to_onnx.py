"""The traced graphs: clean, reproducible, free where the manifest says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from trrg_export.onnx_file import clean, save, tensor_specs
from trrg_export.to_onnx import ModulePlan, checkpoint_plans, example_inputs, export_graph
from trrg_sdk.backends.onnxruntime import open_backend

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def planned(tiny_checkpoint: Path) -> dict[str, ModulePlan]:
    from trrg_train.models.checkpoint import load_checkpoint

    loaded = load_checkpoint(tiny_checkpoint)
    return {plan.name: plan for plan in checkpoint_plans(loaded, loaded.trrg)}


@pytest.mark.slow
def test_two_exports_give_the_same_bytes(fp32_bundle: Path, planned: dict[str, ModulePlan], tmp_path: Path) -> None:
    for name, plan in planned.items():
        save(export_graph(plan), tmp_path / f"{name}.onnx")
        assert (tmp_path / f"{name}.onnx").read_bytes() == (fp32_bundle / "graphs" / f"{name}.onnx").read_bytes(), name


def test_graphs_use_standard_operators_only(fp32_bundle: Path) -> None:
    for name in ("vision", "clue_encoder", "fusion"):
        model = onnx.load(str(fp32_bundle / "graphs" / f"{name}.onnx"))
        onnx.checker.check_model(model, full_check=True)
        assert {opset.domain: opset.version for opset in model.opset_import} == {"": 20}
        assert not model.functions


def test_normalisation_is_folded_into_the_convolutions(fp32_bundle: Path) -> None:
    model = onnx.load(str(fp32_bundle / "graphs" / "vision.onnx"))
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_axes_are_those_of_the_contract(fp32_bundle: Path) -> None:
    inputs, outputs = tensor_specs(fp32_bundle / "graphs" / "fusion.onnx")
    axes = {spec.name: spec.axes for spec in inputs}
    assert axes["patches"] == ("batch", 4, 32)
    assert axes["clue_positive"] == ("clues", 16)
    assert axes["clue_threshold"] == ("clues",)
    assert axes["clue_override"] == ("batch", "clues")
    assert [spec.name for spec in outputs] == ["prompt_embeds", "clue_logits", "clue_heat"]
    assert {spec.dtype for spec in tensor_specs(fp32_bundle / "graphs" / "clue_encoder.onnx")[0]} == {"int64"}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("clues", [1, 14, 17])
def test_fusion_takes_any_number_of_clues_and_images(
    fp32_bundle: Path, planned: dict[str, ModulePlan], batch: int, clues: int
) -> None:
    got, expected = _both(fp32_bundle, planned["fusion"], {"batch": batch, "clues": clues})
    assert got["prompt_embeds"].shape == (batch, 4 + clues, 64)
    assert got["clue_heat"].shape == (batch, clues, 4)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("prompts", "length"), [(1, 1), (5, 32)])
def test_clue_encoder_takes_any_number_of_prompts(
    fp32_bundle: Path, planned: dict[str, ModulePlan], prompts: int, length: int
) -> None:
    got, expected = _both(fp32_bundle, planned["clue_encoder"], {"prompts": prompts, "length": length})
    np.testing.assert_allclose(got["clue_joint"], expected["clue_joint"], atol=1e-4)


def test_padding_changes_no_clue(fp32_bundle: Path) -> None:
    graph = open_backend(device="cpu").graph(fp32_bundle / "graphs" / "clue_encoder.onnx")
    ids, mask = np.array([[40, 41, 42]]), np.ones((1, 3), np.int64)
    padded = np.pad(ids, ((0, 0), (0, 4))), np.pad(mask, ((0, 0), (0, 4)))
    plain = graph.run({"input_ids": ids, "attention_mask": mask})["clue_joint"]
    long = graph.run({"input_ids": padded[0], "attention_mask": padded[1]})["clue_joint"]
    np.testing.assert_allclose(plain, long, atol=1e-5)


def test_a_forced_clue_changes_the_prompt_and_not_the_score(fp32_bundle: Path, planned: dict[str, ModulePlan]) -> None:
    graph = open_backend(device="cpu").graph(fp32_bundle / "graphs" / "fusion.onnx")
    inputs = example_inputs(planned["fusion"], sizes={"batch": 1, "clues": 3}, seed=1)
    inputs["clue_override"] = np.full((1, 3), -1, np.float32)
    perceived = graph.run(inputs)
    gate = 1 / (
        1 + np.exp(-(perceived["clue_logits"] - np.log(inputs["clue_threshold"] / (1 - inputs["clue_threshold"]))))
    )
    same = graph.run({**inputs, "clue_override": gate.astype(np.float32)})
    np.testing.assert_allclose(same["prompt_embeds"], perceived["prompt_embeds"], atol=1e-4)
    forced = graph.run({**inputs, "clue_override": np.array([[0.0, 1.0, -1.0]], np.float32)})
    assert np.abs(forced["prompt_embeds"] - perceived["prompt_embeds"]).max() > 1e-3
    np.testing.assert_array_equal(forced["clue_logits"], perceived["clue_logits"])


def test_clean_drops_every_note_of_the_exporter() -> None:
    node = onnx.helper.make_node("Identity", ["x"], ["y"], doc_string="File /somewhere")
    node.metadata_props.add(key="stack_trace", value="/somewhere")
    values = [onnx.helper.make_tensor_value_info(name, 1, [1], doc_string="/somewhere") for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], doc_string="/somewhere")
    model = onnx.helper.make_model(graph, doc_string="/somewhere")
    model.metadata_props.add(key="path", value="/somewhere")
    assert b"/somewhere" not in clean(model).SerializeToString()


def _both(bundle: Path, plan: ModulePlan, sizes: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch

    inputs = example_inputs(plan, sizes=sizes, seed=3)
    with torch.no_grad():
        expected: Any = plan.module().eval()(*map(torch.from_numpy, inputs.values()))
    expected = (expected,) if isinstance(expected, torch.Tensor) else expected
    got = open_backend(device="cpu").graph(bundle / "graphs" / f"{plan.name}.onnx").run(inputs)
    return got, {name: value.numpy() for name, value in zip(plan.outputs, expected, strict=True)}


def test_example_embeddings_are_of_unit_norm_as_real_ones_are(planned: dict[str, ModulePlan]) -> None:
    inputs = example_inputs(planned["fusion"], sizes={"batch": 2, "clues": 5}, seed=0)
    for name in ("patch_joint", "global_joint", "clue_positive", "clue_negative"):
        np.testing.assert_allclose(np.linalg.norm(inputs[name], axis=-1), 1.0, rtol=1e-5)
