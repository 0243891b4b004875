"""CheXbert's loader on random weights of the released names and shapes."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

import torch
from transformers import BertConfig

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.evaluation.chexbert import ChexbertModel, load_chexbert

pytestmark = pytest.mark.torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "heart", "is", "large", ".", "edema"]
CONFIG = BertConfig(
    vocab_size=len(WORDS),
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=512,
)
TEXTS = ["The heart is large.", "edema", ""]


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS), encoding="utf-8")
    return path


def saved_weights(model):
    """As the released file: from DataParallel, beside other entries."""
    return {f"module.{name}": value for name, value in model.state_dict().items()}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ChexbertModel(CONFIG).eval()


def save(path, state):
    torch.save({"epoch": 3, "model_state_dict": state}, path)
    return path


def test_names_and_shapes_are_those_of_the_released_file():
    with torch.device("meta"):
        released = ChexbertModel(BertConfig()).state_dict()
    assert released["bert.embeddings.word_embeddings.weight"].shape == (30522, 768)
    assert released["bert.encoder.layer.11.output.LayerNorm.bias"].shape == (768,)
    assert released["bert.pooler.dense.weight"].shape == (768, 768)
    heads = [released[f"linear_heads.{row}.weight"].shape for row in range(14)]
    assert heads == [(4, 768)] * 13 + [(2, 768)]
    assert len(released) == 5 + 12 * 16 + 2 + 14 * 2


def test_loaded_weights_decide(tmp_path, vocabulary, model):
    state = saved_weights(model)
    for row, name in enumerate(OBSERVATIONS):  # a head of bias alone always says its class
        state[f"module.linear_heads.{row}.weight"].zero_()
        wanted = {"Edema": 1, "Fracture": 2, "Pneumonia": 3, "No Finding": 1}.get(name, 0)
        bias = state[f"module.linear_heads.{row}.bias"]
        bias.copy_(torch.eye(len(bias))[wanted])
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]  # some versions saved it
    labeler = load_chexbert(save(tmp_path / "chexbert.pth", state), vocabulary, config=CONFIG)
    says = {"Edema": "present", "Pneumonia": "uncertain", "Fracture": "absent", "No Finding": "present"}
    assert labeler.label(TEXTS) == [says] * 3
    assert labeler.name == "CheXbert (chexbert.pth)"


def test_labels_equal_the_model_one_text_at_a_time(tmp_path, vocabulary, model):
    """Padding of a batch changes nothing."""
    labeler = load_chexbert(save(tmp_path / "chexbert.pth", saved_weights(model)), vocabulary, config=CONFIG)
    together = labeler.label(TEXTS)
    assert together == [labeler.label([text])[0] for text in TEXTS]
    ids = torch.tensor([[2, 5, 6, 7, 8, 9, 3]])  # [CLS] the heart is large . [SEP]
    with torch.no_grad():
        chosen = [int(logits.argmax()) for logits in model(ids, torch.ones_like(ids))]
    states = [None, "present", "absent", "uncertain"]
    wanted = {name: states[at] for name, at in zip(OBSERVATIONS, chosen, strict=True) if at}
    assert together[0] == wanted


def test_a_long_report_is_cut_and_said(tmp_path, vocabulary, model, caplog):
    labeler = load_chexbert(save(tmp_path / "chexbert.pth", saved_weights(model)), vocabulary, config=CONFIG)
    assert len(labeler.label(["heart " * 600, "edema"])) == 2
    assert "1 of 2 reports are longer" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("module.linear_heads.13.bias"), r"1 weights of CheXbert are missing, first linear_heads\.13"),
        (lambda s: s.update(other=torch.zeros(1)), "1 weights of CheXbert are unknown, first other"),
        (
            lambda s: s.update({"module.linear_heads.13.weight": torch.zeros(4, 16)}),
            r"1 weights of CheXbert have another shape, first linear_heads\.13\.weight",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, vocabulary, model, change, message):
    state = saved_weights(model)
    change(state)
    with pytest.raises(UsageError, match=message):
        load_chexbert(save(tmp_path / "chexbert.pth", state), vocabulary, config=CONFIG)


def test_other_files_are_refused(tmp_path, vocabulary, model):
    with pytest.raises(UsageError, match="no file"):
        load_chexbert(tmp_path / "none.pth", vocabulary, config=CONFIG)
    with pytest.raises(UsageError, match="vocab.txt"):
        load_chexbert(tmp_path / "none.pth", tmp_path / "none.txt", config=CONFIG)
    path = tmp_path / "text.pth"
    path.write_text(json.dumps({"model_state_dict": 1}), encoding="utf-8")
    with pytest.raises(UsageError, match="no PyTorch checkpoint"):
        load_chexbert(path, vocabulary, config=CONFIG)
    torch.save({"weights": {}}, path)
    with pytest.raises(UsageError, match="no model_state_dict"):
        load_chexbert(path, vocabulary, config=CONFIG)
    vocabulary.write_text("\n".join(WORDS[:-1]), encoding="utf-8")
    with pytest.raises(UsageError, match="has 10 tokens, the weights 11"):
        load_chexbert(save(path, saved_weights(model)), vocabulary, config=CONFIG)


def test_code_in_a_checkpoint_is_not_run(tmp_path, vocabulary):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"model_state_dict": Harmful()}, tmp_path / "chexbert.pth")
    with pytest.raises(UsageError, match="no PyTorch checkpoint of plain tensors"):
        load_chexbert(tmp_path / "chexbert.pth", vocabulary, config=CONFIG)
    assert not (tmp_path / "harm").exists()
