import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import math

from torch.nn.functional import normalize

from trrg_train.losses import Relation, prompt_contrast, sentence_contrast
from trrg_train.models.consistency import bernoulli_kl, consistency_loss, side_loss


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_with_one_positive_a_row_it_is_the_usual_info_nce():
    image, sentence = unit(5, 8), unit(5, 8, seed=1)
    relation = torch.eye(5, dtype=torch.long)
    ours = sentence_contrast(image, sentence, relation, temperature=0.1, hard_negative_weight=3.0)
    logits = image @ sentence.t() / 0.1
    target = torch.arange(5)
    usual = (
        torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.t(), target)
    ) / 2
    assert ours.item() == pytest.approx(usual.item(), rel=1e-5)


def test_an_ignored_sentence_changes_nothing():
    image, sentence = unit(3, 8), unit(4, 8, seed=1)
    relation = torch.zeros(3, 4, dtype=torch.long)
    relation[range(3), range(3)] = int(Relation.POSITIVE)
    relation[:, 3] = int(Relation.IGNORED)
    with_it = sentence_contrast(image, sentence, relation, temperature=0.1, hard_negative_weight=1.0)
    without = sentence_contrast(image, sentence[:3], relation[:, :3], temperature=0.1, hard_negative_weight=1.0)
    assert with_it.item() == pytest.approx(without.item(), rel=1e-6)


def test_a_hard_negative_counts_as_often_as_its_weight():
    image, sentence = unit(1, 8), unit(2, 8, seed=1)
    relation = torch.tensor([[int(Relation.POSITIVE), int(Relation.HARD_NEGATIVE)]])
    loss = sentence_contrast(image, sentence, relation, temperature=1.0, hard_negative_weight=3.0)
    p, n = (image @ sentence.t()).exp()[0]
    assert loss.item() == pytest.approx(0.5 * math.log((p + 3 * n) / p), rel=1e-5)


def test_a_batch_without_any_positive_gives_zero_and_no_nan():
    relation = torch.zeros(2, 2, dtype=torch.long)
    loss = sentence_contrast(unit(2, 4), unit(2, 4), relation, temperature=0.1, hard_negative_weight=2.0)
    assert loss.item() == 0.0


def test_prompt_contrast_leaves_out_what_is_not_known():
    logits = torch.tensor([[2.0, -1.0], [0.5, 100.0]], requires_grad=True)
    labels = torch.tensor([[1.0, 0.0], [0.0, float("nan")]])
    loss = prompt_contrast(logits, labels, positive_weight=torch.tensor([2.0, 1.0]))
    expected = (2 * math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(0.5))) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert logits.grad[1, 1] == 0.0


def test_kl_is_zero_only_for_equal_distributions():
    a, b = torch.tensor([0.3, -2.0]), torch.tensor([0.3, 1.0])
    kl = bernoulli_kl(a, b)
    assert kl[0].item() == pytest.approx(0.0, abs=1e-6)
    p, q = torch.sigmoid(a[1]).item(), torch.sigmoid(b[1]).item()
    assert kl[1].item() == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), rel=1e-5)


def test_consistency_is_least_when_both_readings_agree_with_the_labels():
    labels = torch.tensor([[1.0, 0.0]])
    right, wrong = torch.tensor([[4.0, -4.0]]), torch.tensor([[-4.0, 4.0]])
    assert consistency_loss(right, right, labels) < consistency_loss(right, wrong, labels)
    assert consistency_loss(right, wrong, labels) > consistency_loss(wrong, wrong, labels) / 2
    unknown = torch.full((1, 2), float("nan"))
    assert consistency_loss(right, right, unknown).item() == pytest.approx(0.0, abs=1e-6)
    assert consistency_loss(right, wrong, unknown).item() > 1.0


def test_the_side_loss_asks_for_what_is_known_only():
    sides = torch.tensor([[[1.0, 0.0], [float("nan"), float("nan")]]])
    right = torch.tensor([[[4.0, -4.0], [9.0, 9.0]]])
    assert side_loss(right, sides).item() == pytest.approx(0.018, abs=1e-3)
    assert side_loss(-right, sides).item() == pytest.approx(4.018, abs=1e-3)
    assert side_loss(right, torch.full_like(sides, float("nan"))).item() == 0.0
