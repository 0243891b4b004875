import json

import numpy as np
import pytest
from PIL import Image

from trrg_sdk.labeler import OBSERVATIONS

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
eval_steps = 0
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
eval_steps = 0
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


TINY = {
    "name": "tiny",
    "image_size": 64,
    "patch_grid": [2, 2],
    "joint_dim": 16,
    "interaction_layers": 1,
    "interaction_heads": 2,
    "vision": {
        "model_type": "resnet",
        "num_channels": 1,
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    },
    "clue_encoder": {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    },
    "llm": {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
    },
}


@pytest.fixture
def tiny_config():
    pytest.importorskip("torch")
    from trrg_train.models.config import ModelConfig

    return ModelConfig.from_mapping(TINY)


@pytest.fixture
def tiny_model_table():
    return TINY


@pytest.fixture
def labels_of():
    def make(*present):
        return {o: o in present for o in OBSERVATIONS}

    return make


@pytest.fixture
def toy_run(tmp_path_factory):
    """Configurations of runs on pictures that two epochs can learn; all of one test share the pictures."""
    data = tmp_path_factory.mktemp("toy")
    make_data(data)

    def make(folder, *, epochs):
        return write_config(folder, data, epochs)

    return make
