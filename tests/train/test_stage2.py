"""The batches of stage 2: whose image, which clue scores, and which words count."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.config import OptimConfig, Stage2Config
from trrg_train.data.study import Study
from trrg_train.draws import Draw
from trrg_train.encodings import Encodings
from trrg_train.models.clue import BankedClue
from trrg_train.models.tokenizer import train_tokenizer
from trrg_train.models.trrg import Prompt, Trrg
from trrg_train.stage2 import Stage2Task
from trrg_train.stage2_batches import Stage2Batches, seen_tokens

REPORTS = [
    "There is a small left pleural effusion. The heart size is normal.",
    "Patchy opacities in the right upper zone, consistent with pneumonia.",
]


@pytest.fixture
def tokenizer():
    return train_tokenizer(REPORTS, vocab_size=500)


def batch(tokenizer, *, clue_swap):
    studies = [
        Study(f"s{i}", f"p{i}", "toy", "train", Path(f"{i}.png"), report, {"Pleural Effusion": i == 0})
        for i, report in enumerate(REPORTS)
    ]
    shapes = ((4, 16), (4, 8), (8,), (len(OBSERVATIONS),))
    encodings = Encodings(*(np.zeros((1, 2, *shape), dtype=np.float32) for shape in shapes))
    config = Stage2Config(OptimConfig(1, 2, 1e-3), views=1, clue_swap=clue_swap, gate_noise=0.0)
    return Stage2Batches(studies, encodings, config, tokenizer, seed=1)([Draw(0, 0), Draw(1, 1)])


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (REPORTS[0], "small left"),
        (REPORTS[1], "right upper zone"),
        ("Moderate cardiomegaly, mildly enlarged.", "Moderate mildly"),
        ("The lung bases and both apices are clear.", "bases both apices"),
        ("The largest bone is smaller than the leftover.", ""),
    ],
)
def test_the_words_that_only_the_image_says(report, words, tokenizer):
    encoded = tokenizer.encode(report)
    found = [i for i, seen in zip(encoded.ids, seen_tokens(report, encoded.offsets), strict=True) if seen]
    assert tokenizer.decode(found).replace(" ", "") == words.replace(" ", "")


def test_a_report_with_its_own_image_counts_whole(tokenizer):
    made = batch(tokenizer, clue_swap=0.0)
    _, mask, counted = made["report"]
    assert counted.tolist() == mask.bool().tolist()
    effusion, pneumonia = (OBSERVATIONS.index(name) for name in ("Pleural Effusion", "Pneumonia"))
    assert made["sides"][0, effusion].tolist() == [1.0, 0.0]
    assert made["sides"][1, pneumonia].tolist() == [0.0, 1.0]
    assert torch.isnan(made["sides"][0, pneumonia]).all()
    assert torch.allclose(made["override"], torch.full((2, len(OBSERVATIONS)), 0.5)), "perceived: a logit of zero"


def test_a_report_with_the_image_of_another_does_not_teach_sides(tokenizer):
    made = batch(tokenizer, clue_swap=1.0)
    ids, mask, counted = made["report"]
    left_out = ids[0][mask[0].bool() & ~counted[0]].tolist()
    assert tokenizer.decode(left_out).split() == ["small", "left"]
    assert torch.isnan(made["sides"][0]).all()
    assert bool(counted[0][mask[0].bool()][-1]), "the end of the report counts"
    effusion = OBSERVATIONS.index("Pleural Effusion")
    assert made["override"][0, effusion] > 0.5 > made["override"][1, effusion], "forced to the labels of the report"


def test_the_task_teaches_sides(tiny_config, tokenizer):
    torch.manual_seed(0)
    size, clues = tokenizer.get_vocab_size(), len(OBSERVATIONS)
    model = Trrg(tiny_config, vocab_size=size, prompt=Prompt((1,), (1,))).eval()
    bank = [BankedClue(name, "there is", "there is no") for name in OBSERVATIONS]
    task = Stage2Task(model, bank, tuple(torch.randn(clues, tiny_config.joint_dim) for _ in range(2)))
    made = batch(tokenizer, clue_swap=0.0)
    joint = tiny_config.joint_dim
    made["images"] = tuple(torch.randn(2, *shape) for shape in ((4, 16), (4, joint), (joint,)))
    del made["studies"]
    with torch.no_grad():
        here, there = task(**made), task(**{**made, "sides": 1.0 - made["sides"]})
    assert here["side_loss"].item() != pytest.approx(there["side_loss"].item(), abs=1e-4)
    assert here["loss"].item() != pytest.approx(there["loss"].item(), abs=1e-4)
    assert here["language_loss"].item() == pytest.approx(there["language_loss"].item(), abs=1e-6)
