"""RadGraph's loader on random weights of the released names and shapes, and its scores by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("pycocoevalcap")

import torch
from transformers import BertConfig

from trrg_sdk.errors import UsageError
from trrg_train.evaluation.comparison import EvaluationOptions, evaluate_texts
from trrg_train.evaluation.graphs import LEVELS, Entity, GraphReader, f1, graph_statistics
from trrg_train.evaluation.radgraph import RadGraphModel, Sizes, cut_words, load_radgraph, released_name

pytestmark = pytest.mark.torch

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "heart", "is", "large", "."),
    *("left", "##ward", "effusion", "small", "##er", "no", "edema"),
]
BERT = BertConfig(
    vocab_size=len(WORDS),
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
)
ENTITIES = ("", "ANAT-DP", "OBS-DP", "OBS-DA")
RELATIONS = ("modify", "located_at", "suggestive_of")
SIZES = Sizes("radgraph-xl", ENTITIES, RELATIONS, (12, 12), 3, 5, 0.5, 64)
TEXTS = ["The heart is large.", "no edema. smaller leftward effusion", "edema", ""]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RadGraphModel(BERT, SIZES).eval()


def write_archive(folder, model, *, changes=None, **of_model):
    """As the released archive unpacks, with weights of tasks that are not read."""
    kind = model.sizes.kind
    labels = folder / "vocabulary"
    labels.mkdir(parents=True, exist_ok=True)
    (labels / f"{kind}__ner_labels.txt").write_text("\n".join(ENTITIES) + "\n", encoding="utf-8")
    (labels / f"{kind}__relation_labels.txt").write_text("\n".join(RELATIONS) + "\n", encoding="utf-8")
    config = {
        "dataset_reader": {"token_indexers": {"bert": {"model_name": "bert", "max_length": 64}}},
        "model": {
            "feature_size": 5,
            "max_span_width": 3,
            "feedforward_params": {"num_layers": 2, "hidden_dims": 12, "dropout": 0.4},
            "modules": {"coref": {"coref_prop": 0}, "relation": {"spans_per_word": 0.5}},
            **of_model,
        },
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    state = {released_name(name, kind): value for name, value in model.state_dict().items()}
    state |= {"_coref._antecedent_scorer.weight": torch.zeros(2), f"_ner._ner_scorers.other.0.{kind}": torch.zeros(1)}
    torch.save({**state, **(changes or {})}, folder / "weights.th")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return folder, folder / "vocab.txt"


def test_names_and_shapes_are_those_of_the_released_file():
    """Names as the package radgraph 0.1.18 builds them; sizes of DyGIE++'s template, BERT-base."""
    sizes = replace(SIZES, kind="radgraph", hidden=(150, 150), max_span=8, width_dim=20)
    with torch.device("meta"):
        model = RadGraphModel(BertConfig(), sizes)
    shapes = {released_name(name, "radgraph"): tuple(value.shape) for name, value in model.state_dict().items()}
    bert = "_embedder.token_embedder_bert._matched_embedder.transformer_model"
    mentions = "_relation._mention_pruners.radgraph__relation_labels._scorer"
    assert shapes[f"{bert}.embeddings.word_embeddings.weight"] == (30522, 768)
    assert shapes[f"{bert}.encoder.layer.11.output.dense.bias"] == (768,)
    assert shapes["_endpoint_span_extractor._span_width_embedding.weight"] == (8, 20)
    assert shapes["_ner._ner_scorers.radgraph__ner_labels.0._module._linear_layers.0.weight"] == (150, 1556)
    assert shapes["_ner._ner_scorers.radgraph__ner_labels.1._module.weight"] == (3, 150)
    assert shapes[f"{mentions}.0._module._linear_layers.1.weight"] == (150, 150)
    assert shapes[f"{mentions}.1._module.bias"] == (1,)
    assert shapes["_relation._relation_feedforwards.radgraph__relation_labels._linear_layers.0.weight"] == (150, 4668)
    assert shapes["_relation._relation_scorers.radgraph__relation_labels.weight"] == (3, 150)
    assert len(shapes) == 5 + 12 * 16 + 2 + 1 + 3 * 6


def test_loaded_weights_decide(tmp_path, model):
    """Scorers of bias alone: every span is an observation, and every kept pair is related."""
    with torch.no_grad():
        for scorer, bias in ((model.entities, [0.0, 1.0, 0.0]), (model.relations, [0.0, 0.0, 1.0])):
            scorer.out.weight.zero_()
            scorer.out.bias.copy_(torch.tensor(bias))
        model.mentions.out.weight.zero_()
        model.mentions.out.bias.zero_()
    reader = load_radgraph(*write_archive(tmp_path / "radgraph-xl", model), config=BERT)
    assert reader.name == "RadGraph-XL (radgraph-xl)"
    (three, nothing) = reader.read(["The heart large", " "])
    assert nothing == ()
    assert [e.text for e in three] == ["the", "the heart", "the heart large", "heart", "heart large", "large"]
    assert {e.label for e in three} == {"OBS-DP"}
    related = [e for e in three if e.relations]  # half a span a word, rounded up
    assert len(related) == 2
    assert all(e.relations == tuple(("suggestive_of", other.text) for other in related) for e in related)


def test_a_word_is_the_mean_of_its_pieces_and_a_long_text_is_read_in_parts(model):
    pieces = [[5], [13, 14], [], [6]]
    with torch.no_grad():
        read = model.bert(torch.tensor([[2, 5, 13, 14, 6, 3]])).last_hidden_state[0]
        words = model.embed(pieces, first=2, last=3)
        wanted = torch.stack([read[1], (read[2] + read[3]) / 2, torch.zeros(16), read[4]])
        assert torch.allclose(words, wanted, atol=1e-6)
        model.sizes = replace(SIZES, max_pieces=4)
        ends = model.bert(torch.tensor([[2, 14, 6, 3]])).last_hidden_state[0]
        assert torch.allclose(model.embed(pieces, first=2, last=3)[3], ends[2], atol=1e-6)


def test_relations_read_the_pair_in_its_order(model):
    """Scores of each pair computed one by one."""
    torch.manual_seed(1)
    words = torch.randn(5, 16)
    with torch.no_grad():
        for layer in (*model.relations.hidden, model.relations.out):
            layer.weight.mul_(5)  # else one label wins everywhere
        spans, labels, kept, relations = model(words)
        assert spans.tolist()[:4] == [[0, 0], [0, 1], [0, 2], [1, 1]] and len(spans) == 12
        assert len(kept) == 3 and kept.tolist() == sorted(kept.tolist())
        vectors = [torch.cat([words[a], words[b], model.widths.weight[b - a]]) for a, b in spans.tolist()]
        mentions = torch.stack([model.mentions(v)[0] for v in vectors])
        assert (relations != relations.T).any()
        assert set(kept.tolist()) == set(mentions.argsort(descending=True)[:3].tolist())
        for at, v in enumerate(vectors):
            scores = model.entities(v)
            assert labels[at] == (scores.argmax() + 1 if scores.max() > 0 else 0)
        for row, a in enumerate(kept.tolist()):
            for column, b in enumerate(kept.tolist()):
                pair = torch.cat([vectors[a], vectors[b], vectors[a] * vectors[b]])
                scores = model.relations(pair) + mentions[a] + mentions[b]
                assert relations[row, column] == (scores.argmax() + 1 if scores.max() > 0 else 0)


def test_words_are_cut_as_in_training():
    text = "No edema. Small (2 cm) left-sided effusion, 50%. T/L ok)."
    assert cut_words(text, kind="radgraph") == (
        "No edema . Small ( 2 cm ) left-sided effusion , 50% . T / L ok ) .".split()
    )
    assert cut_words(text, kind="radgraph-xl") == (
        "No edema . Small ( 2 cm ) left - sided effusion , 50 % . T / L ok ) .".split()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"other": torch.zeros(1)}, "1 weights of RadGraph are unknown, first other"),
        (
            {"_endpoint_span_extractor._span_width_embedding.weight": torch.zeros(3, 6)},
            "1 weights of RadGraph have another shape, first _endpoint",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, model, changes, message):
    with pytest.raises(UsageError, match=message):
        load_radgraph(*write_archive(tmp_path, model, changes=changes), config=BERT)


def test_another_archive_is_refused(tmp_path, model):
    folder, words = write_archive(tmp_path / "a", model)
    with pytest.raises(UsageError, match="are missing, first"):
        load_radgraph(folder, words, config=BertConfig(vocab_size=17, num_hidden_layers=3))
    words.write_text("\n".join(WORDS[:-1]), encoding="utf-8")
    with pytest.raises(UsageError, match="has 16 tokens, the weights 17"):
        load_radgraph(folder, words, config=BERT)
    with pytest.raises(UsageError, match="coref_prop"):
        load_radgraph(*write_archive(folder, model, modules={"coref": {"coref_prop": 2}}), config=BERT)
    with pytest.raises(UsageError, match="no configuration of RadGraph: KeyError 'relation'"):
        load_radgraph(*write_archive(folder, model, modules={}), config=BERT)
    write_archive(folder, model)
    (folder / "weights.th").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="no PyTorch file"):
        load_radgraph(folder, words, config=BERT)
    (folder / "vocabulary" / "radgraph-xl__ner_labels.txt").unlink()
    with pytest.raises(UsageError, match="one of radgraph, radgraph-xl, it holds none"):
        load_radgraph(folder, words, config=BERT)
    with pytest.raises(UsageError, match="no file; RadGraph needs"):
        load_radgraph(tmp_path, words, config=BERT)


EFFUSION = Entity("effusion", "OBS-DP", (("located_at", "left"),))
LEFT, RIGHT, EDEMA = Entity("left", "ANAT-DP"), Entity("right", "ANAT-DP"), Entity("edema", "OBS-DA")
GRAPHS = {
    "a": (EFFUSION, LEFT),
    "b": (replace(EFFUSION, relations=(("located_at", "right"),)), RIGHT),
    "c": (replace(EFFUSION, relations=()), LEFT, EDEMA),
    "": (),
}


@pytest.mark.parametrize(
    ("pair", "scores"), [("aa", (1, 1, 1)), ("ab", (1 / 2, 1 / 2, 0)), ("ac", (4 / 5, 2 / 5, 2 / 5)), ("a", (0, 0, 0))]
)
def test_the_three_levels(pair, scores):
    one, two = GRAPHS[pair[0]], GRAPHS[pair[1:]]
    assert [f1(one, two, level) for _, level in LEVELS] == pytest.approx(scores)


def test_graphs_are_scored_beside_the_floor():
    asked = []
    reader = GraphReader("made up", lambda texts: [asked.append(text) or GRAPHS[text] for text in texts])
    (scores,) = graph_statistics([["a", "b", "a"]], ["a", "a", "c"], reader)
    assert scores["RG_E F1"].at(torch.ones(1, 3).numpy())[0] == pytest.approx((1 + 1 / 2 + 4 / 5) / 3)
    assert sorted(asked) == ["a", "b", "c"], "equal texts are read once"
    options = EvaluationOptions(meteor=False, resamples=10, graphs=reader)
    got = evaluate_texts(["a", "b", "a"], ["a", "a", "c"], train_reports=["a"], options=options)
    score = got.score("RG_ER_bar F1")
    assert score.value == pytest.approx((1 + 0 + 2 / 5) / 3) and score.floor == pytest.approx((1 + 1 + 2 / 5) / 3)
    assert score.low is not None and "graphs: made up" in got.to_markdown()
