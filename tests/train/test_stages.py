"""Both stages end to end, at a size that a test can afford: two kinds of picture, two kinds of report."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from PIL import Image  # noqa: E402  # after the skip

from trrg_sdk.labeler import OBSERVATIONS  # noqa: E402
from trrg_train.cli import main  # noqa: E402
from trrg_train.models.checkpoint import load_checkpoint  # noqa: E402

NORMAL = (
    "FINDINGS: The lungs are clear. There is no pleural effusion. IMPRESSION: No acute cardiopulmonary abnormality."
)
EFFUSION = "FINDINGS: There is a pleural effusion. There is no pneumothorax. IMPRESSION: Pleural effusion."

CONFIG = """
out = "{out}"
seed = 3
[[sources]]
name = "toy"
kind = "annotation"
path = "{data}"
[model]
name = "tiny"
image_size = 64
patch_grid = [2, 2]
joint_dim = 32
interaction_layers = 1
interaction_heads = 2
[model.vision]
model_type = "resnet"
num_channels = 1
embedding_size = 8
hidden_sizes = [8, 8, 16, 32]
depths = [1, 1, 1, 1]
layer_type = "basic"
[model.clue_encoder]
model_type = "bert"
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 64
hidden_dropout_prob = 0.0
attention_probs_dropout_prob = 0.0
[model.llm]
model_type = "llama"
hidden_size = 48
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
intermediate_size = 96
max_position_embeddings = 256
[stage1]
vocab_size = 400
[stage1.optim]
epochs = {epochs}
batch_size = 8
learning_rate = 3e-3
warmup_steps = 5
save_steps = 10
[stage2]
views = 1
max_new_tokens = 64
parity_studies = 4
[stage2.optim]
epochs = {epochs}
batch_size = 8
learning_rate = 5e-3
warmup_steps = 5
save_steps = 10
"""


def make_data(folder):
    """Effusion: the lower third is bright."""
    rng = np.random.default_rng(0)
    records = {"train": [], "val": [], "test": []}
    for index in range(88):
        sick = index % 2 == 1
        picture = rng.integers(20, 90, (64, 64))
        picture[44:] += 130 if sick else 0
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{index}.png")
        split = "train" if index < 48 else "val" if index < 68 else "test"
        present = {"Pleural Effusion"} if sick else {"No Finding"}
        records[split].append(
            {
                "id": f"s{index}",
                "image_path": [f"{index}.png"],
                "report": EFFUSION if sick else NORMAL,
                "labels": {o: o in present for o in OBSERVATIONS},
                "view": "PA",
            }
        )
    (folder / "annotation.json").write_text(json.dumps(records))


def write_config(folder, data, epochs):
    path = folder / "run.toml"
    path.write_text(CONFIG.format(out=(folder / "out").as_posix(), data=data.as_posix(), epochs=epochs))
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_both_stages_learn_to_see_and_to_say(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    make_data(data)
    config = write_config(tmp_path, data, epochs=20)
    assert main(["stage1", str(config)]) == 0
    assert main(["stage2", str(config)]) == 0
    folder = tmp_path / "out" / "stage2"
    assert load_checkpoint(folder).parity_pixels().shape == (4, 1, 64, 64)
    capsys.readouterr()
    assert main(["evaluate", str(folder), str(config), "--store", str(folder)]) == 0
    figures = json.loads(capsys.readouterr().out)["toy"]
    assert figures["studies"] == 20
    assert figures["clue_auc"]["each"]["Pleural Effusion"]["auc"] > 0.95
    assert figures["report_labels"]["each"]["Pleural Effusion"] > 0.9
    assert figures["report_labels"]["macro_f1_images_shuffled"] < 0.8 * figures["report_labels"]["macro_f1"]
    assert figures["forced_clues"]["tries_each"] == 12 * 13
    meta = load_checkpoint(folder).meta
    assert meta.evaluation["toy"]["studies"] == 20
    assert [c.split()[1] for c in meta.commands] == ["stage1", "stage2"]


def test_stage_2_without_stage_1_says_so(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    make_data(data)
    assert main(["stage2", str(write_config(tmp_path, data, epochs=1))]) == 2
    assert "stage1" in capsys.readouterr().err
