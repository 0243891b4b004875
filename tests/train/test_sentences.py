import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.data.sentences import SentenceSampler, labelled_sentences, relations, report_states
from trrg_train.losses import Relation

REPORT = (
    "FINDINGS: There is a small left pleural effusion. No pneumothorax. The heart size is normal. "
    "IMPRESSION: Left pleural effusion."
)


def states(**values):
    row = np.zeros(len(OBSERVATIONS), dtype=np.int8)
    for name, value in values.items():
        row[OBSERVATIONS.index(name.replace("_", " "))] = value
    return row


def related(studies, sentences, *, owner):
    own = torch.arange(len(studies))[:, None] == torch.tensor(owner)
    return relations(*(torch.from_numpy(np.stack(rows)) for rows in (studies, sentences)), own)


def test_sentences_carry_what_they_say():
    first, second, *_ = labelled_sentences(REPORT)
    assert first.asserts
    assert first.states[OBSERVATIONS.index("Pleural Effusion")] == 1
    assert not second.asserts
    assert second.states[OBSERVATIONS.index("Pneumothorax")] == -1


def test_the_sampler_prefers_assertions_by_its_ratio():
    sentences = labelled_sentences(REPORT)
    rng = np.random.default_rng(0)
    even, steep = SentenceSampler(assertion_ratio=1.0, count=1), SentenceSampler(assertion_ratio=9.0, count=1)
    share = {
        s.assertion_ratio: np.mean([s.draw(sentences, rng)[0].asserts for _ in range(2000)]) for s in (even, steep)
    }
    assert share[1.0] == pytest.approx(0.5, abs=0.05)
    assert share[9.0] == pytest.approx(0.9, abs=0.03)
    assert len(SentenceSampler(assertion_ratio=1.0, count=99).draw(sentences, rng)) == len(sentences)


def test_relations_of_a_batch():
    effusion, denied, unknown = states(Pleural_Effusion=1, Edema=-1), states(Pleural_Effusion=-1), states()
    sentences = [states(Pleural_Effusion=1), states(Pleural_Effusion=-1), states(Edema=1), states()]
    relation = related([effusion, denied, unknown], sentences, owner=[0, 1, 2, 2])
    positive, negative, hard, ignored = Relation.POSITIVE, Relation.NEGATIVE, Relation.HARD_NEGATIVE, Relation.IGNORED
    assert relation.tolist() == [
        [positive, negative, hard, ignored],
        [hard, positive, ignored, ignored],
        [ignored, ignored, positive, positive],
    ]


def test_another_report_that_asserts_the_same_is_positive_and_that_denies_the_same_is_ignored():
    both = [states(Pleural_Effusion=1, Edema=-1)] * 2
    relation = related(both, [states(Pleural_Effusion=1), states(Edema=-1)], owner=[0, 0])
    assert relation[1].tolist() == [Relation.POSITIVE, Relation.IGNORED]


def test_unknown_labels_are_zero():
    row = report_states({"Edema": True, "Fracture": False})
    assert row[OBSERVATIONS.index("Edema")] == 1
    assert row[OBSERVATIONS.index("Fracture")] == -1
    assert row[OBSERVATIONS.index("Pneumonia")] == 0
