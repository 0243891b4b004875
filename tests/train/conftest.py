import pytest

from trrg_sdk.labeler import OBSERVATIONS

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
