"""Text scores against direct calls of the reference package."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pycocoevalcap")

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from trrg_sdk.errors import UsageError
from trrg_train.evaluation import meteor, text
from trrg_train.evaluation.text import text_statistics, tokenize

REFERENCES = [
    "The heart is normal in size. The lungs are clear! No pleural effusion, or pneumothorax.",
    "There is a moderate right pleural effusion with adjacent atelectasis. The heart is enlarged.",
    "The lungs are hyperexpanded and clear. No acute osseous abnormality is seen in the thoracic spine today.",
    "Mild pulmonary edema, and the heart is enlarged. Possible small pleural effusion.",
    "There is a left lower lobe consolidation.",
    "No pneumothorax. The lungs are clear.",
]
PREDICTIONS = [
    "The heart is normal in size. The lungs are clear. No pneumothorax.",
    "There is a small right pleural effusion. The heart is enlarged.",
    "The lungs are clear. No acute abnormality.",
    "The heart is enlarged. No pleural effusion.",
    "The lungs are clear. No acute abnormality.",
    "",
]
needs_java = pytest.mark.skipif(not meteor.java_is_here(), reason="no java command")


def rows(texts):
    return {row: [one] for row, one in enumerate(texts)}


def direct(predictions, references):
    """What the package says when it is called without us."""
    bleus, _ = Bleu(4).compute_score(rows(references), rows(predictions), verbose=0)
    scores = {f"BLEU-{order}": value for order, value in enumerate(bleus, start=1)}
    scores["ROUGE-L"], _ = Rouge().compute_score(rows(references), rows(predictions))
    scores["CIDEr"], _ = Cider().compute_score(rows(references), rows(predictions))
    return scores


def ours(predictions, references, *, meteor=False):
    (scores,) = text_statistics([predictions], references, meteor=meteor)
    return {name: float(one.at(np.ones((1, len(references))))[0]) for name, one in scores.items()}


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 1], [2, 2, 4, 0, 1]])
def test_scores_equal_the_package(order, capfd):
    predictions = tokenize([PREDICTIONS[i] for i in order], tokenizer="plain")
    references = tokenize([REFERENCES[i] for i in order], tokenizer="plain")
    wanted = direct(predictions, references)
    got = ours(predictions, references)
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, abs=1e-9), name
    assert capfd.readouterr().out == ""


def test_nothing_written_scores_nothing():
    references = tokenize(REFERENCES, tokenizer="plain")
    assert list(ours([""] * len(references), references).values()) == pytest.approx([0.0] * 6, abs=1e-6)


def test_the_reference_itself_scores_one():
    references = tokenize(REFERENCES, tokenizer="plain")
    scores = ours(references, references)
    assert scores["BLEU-4"] == pytest.approx(1) and scores["ROUGE-L"] == pytest.approx(1)


def test_a_reference_is_never_shortened():
    long = " ".join(f"word{number}" for number in range(3000))
    assert tokenize([long], tokenizer="plain") == [long]
    scores = ours([long, "a b c d"], [long, "a b c d"])
    assert scores["BLEU-4"] == pytest.approx(1)
    assert ours([" ".join(long.split()[:100]), "a b c d"], [long, "a b c d"])["BLEU-1"] < 0.01


def test_weights_count_a_study_as_often_as_they_say():
    order = [0, 1, 1, 3]
    predictions = tokenize(PREDICTIONS, tokenizer="plain")
    references = tokenize(REFERENCES, tokenizer="plain")
    weights = np.bincount(order, minlength=len(references))[None].astype(float)
    (scores,) = text_statistics([predictions], references, meteor=False)
    wanted = direct([predictions[i] for i in order], [references[i] for i in order])
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"):
        assert scores[name].at(weights)[0] == pytest.approx(wanted[name], abs=1e-9)


def test_without_java_the_message_names_it(monkeypatch):
    monkeypatch.setattr(meteor.shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match="needs Java"):
        tokenize(["a b"], tokenizer="ptb")
    with pytest.raises(UsageError, match="METEOR needs Java"):
        text_statistics([["a b"]], ["a b"], meteor=True)


def test_ptb_that_gives_too_few_lines_stops(monkeypatch):
    monkeypatch.setattr(text, "java_is_here", lambda: True)
    monkeypatch.setattr(text.PTBTokenizer, "tokenize", lambda self, captions: {0: ["a"]})
    with pytest.raises(UsageError, match="1 lines for 2 texts"):
        tokenize(["a", "b"], tokenizer="ptb")


def test_meteor_formula_gives_what_the_program_gave():
    """Counts and scores of METEOR 1.5 (`-l en -norm`) for five pairs, the fourth identical, the third empty."""
    nothing = [0.0] * 12
    counts = np.array(
        [
            [9, 12, 4, 7, 5, 5, 4, 4, *nothing, 5, 9, 9],
            [7, 10, 3, 4, 2, 2, 0, 0, *nothing, 2, 2, 2],
            [0, 2, 0, 1, 0, 0, 0, 0, *nothing, 0, 0, 0],
            [3, 3, 0, 0, 3, 3, 0, 0, *nothing, 0, 3, 3],  # its one chunk is not counted
            [3, 3, 1, 2, 0, 0, 0, 0, *nothing, 0, 0, 0],
        ]
    )
    each = [0.4113401061760056, 0.11455847255369929, 0.0, 1.0, 0.0]
    assert meteor.score(counts) == pytest.approx(each, abs=1e-9)
    weights = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 1]])
    assert meteor.score(weights @ counts) == pytest.approx([0.2697802077866954, 0.28592902304153284], abs=1e-9)


@needs_java
@pytest.mark.slow
def test_meteor_equals_the_package(capfd):
    """All four kinds of match: exact, stem, synonym, paraphrase."""
    extra = ("the opacities are increasing near both lungs", "the opacity increased close to both lungs")
    predictions = [*tokenize(PREDICTIONS, tokenizer="plain"), extra[0], "same words here"]
    references = [*tokenize(REFERENCES, tokenizer="plain"), extra[1], "same words here"]
    got = ours(predictions, references, meteor=True)["METEOR"]
    program = Meteor()
    wanted, _ = program.compute_score(rows(references), rows(predictions))
    program.meteor_p.stdout.close()
    program.meteor_p.stderr.close()
    assert got == pytest.approx(wanted, abs=1e-6)
    assert capfd.readouterr().out == ""


@needs_java
@pytest.mark.slow
def test_ptb_equals_the_package():
    texts = [*REFERENCES, "", "Heart-size: 1.5 cm (normal); don't know?\nNext line."]
    got = tokenize(texts, tokenizer="ptb")
    captions = {row: [{"caption": one}] for row, one in enumerate(texts)}
    assert got == [cut for (cut,) in PTBTokenizer().tokenize(captions).values()]
    assert got[0] == "the heart is normal in size the lungs are clear no pleural effusion or pneumothorax"
