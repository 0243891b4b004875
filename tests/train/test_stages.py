"""Both stages end to end, at a size that a test can afford: two kinds of picture, two kinds of report."""

import json

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_train.cli import main
from trrg_train.models.checkpoint import load_checkpoint


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_both_stages_learn_to_see_and_to_say(toy_run, tmp_path, capsys):
    config = toy_run(tmp_path, epochs=20)
    config.write_text(config.read_text().replace("[model]", "[model]\nshift = 2"))
    assert main(["stage1", str(config)]) == 0
    assert main(["stage2", str(config)]) == 0
    folder = tmp_path / "out" / "stage2"
    assert load_checkpoint(folder).perceiver().vision.shift == 2
    assert load_checkpoint(folder).parity_pixels().shape == (4, 1, 64, 64)
    assert {report[-1] for report in load_checkpoint(folder).train_reports()} == {2}
    capsys.readouterr()
    assert main(["evaluate", str(folder), str(config), "--store", str(folder), "--json", "--no-meteor"]) == 0
    figures = json.loads(capsys.readouterr().out)["toy"]
    assert figures["studies"] == 20
    assert figures["clue_auc"]["each"]["Pleural Effusion"]["auc"] > 0.95
    assert figures["report_labels"]["each"]["Pleural Effusion"] > 0.9
    assert figures["report_labels"]["macro_f1_images_shuffled"] < 0.8 * figures["report_labels"]["macro_f1"]
    assert figures["forced_clues"]["tries_each"] == 12 * 13
    (f1,) = [score for score in figures["text"]["clinical"] if score["name"] == "micro F1 (14)"]
    assert f1["value"] > 0.9 > f1["floor"]
    meta = load_checkpoint(folder).meta
    assert meta.evaluation["toy"]["studies"] == 20
    assert [c.split()[1] for c in meta.commands] == ["stage1", "stage2"]


def test_stage_2_without_stage_1_says_so(toy_run, tmp_path, capsys):
    assert main(["stage2", str(toy_run(tmp_path, epochs=1))]) == 2
    assert "stage1" in capsys.readouterr().err


def test_both_stages_look_at_the_same_views(toy_run, tmp_path, capsys):
    config = toy_run(tmp_path, epochs=0)
    assert main(["stage1", str(config)]) == 0
    config.write_text(config.read_text().replace("[model]", "[model]\nshift = 6"))
    assert main(["stage2", str(config)]) == 2
    assert "shift = 6, and stage 1 calibrated its scores with shift = 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_another_backbone_and_low_rank_adapters_train(toy_run, tmp_path):
    """The parts of base.toml, a Swin encoder and an adapted language model, through both stages."""
    config = toy_run(tmp_path, epochs=2)
    text = config.read_text()
    resnet = text[text.index('model_type = "resnet"') : text.index("[model.clue_encoder]")]
    swin = """model_type = "swin"
num_channels = 1
image_size = 64
embed_dim = 8
depths = [2, 2]
num_heads = [1, 2]
window_size = 4
"""
    text = text.replace(resnet, swin).replace("patch_grid = [2, 2]", "patch_grid = [8, 8]\nlora_rank = 2")
    config.write_text(text)
    assert main(["stage1", str(config)]) == 0
    assert main(["stage2", str(config)]) == 0
    checkpoint = load_checkpoint(tmp_path / "out" / "stage2")
    assert checkpoint.config.lora_rank == 0, "adapters are merged into the weights that are saved"
    assert checkpoint.perceiver().vision.width == 16
    assert not any("lora" in name for name in checkpoint.model.state_dict())
