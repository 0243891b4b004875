"""base.toml takes ten steps of each stage: its own widths, few layers of each part, random weights, generated films.

Only what decides time and memory is smaller: layers, batches, accumulation and, since few CPUs multiply in bf16, the
precision (``test_resume.py`` trains in bf16). The 15 GB of weights and moments at the end of stage 2 are not written:
``test_stages.py`` saves and loads a Swin with adapters.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_train import stage1, stage2
from trrg_train.config import read_config
from trrg_train.data.phantom import write_dataset
from trrg_train.models.stored import CheckpointMeta
from trrg_train.trainer import StudyTrainer

BASE = Path(__file__).parents[2] / "train" / "configs" / "base.toml"
STEPS, STUDIES = 10, 20
NEEDED_GIB = 18
TOTAL_GIB = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
UNREAD = ".pooler."
"""BERT's own pooling of the first token: this project takes the mean of all tokens."""


def of_few_layers(model):
    """Two where layers differ or pass something on to each other; one of the language model takes half of the time."""
    return replace(
        model,
        vision={**model.vision, "depths": [2, 2, 2, 2]},
        clue_encoder={**model.clue_encoder, "num_hidden_layers": 2},
        llm={**model.llm, "num_hidden_layers": 1},
    )


def short(optim, *, batch, studies):
    return replace(
        optim,
        epochs=STEPS * batch / studies,
        batch_size=batch,
        warmup_steps=2,
        logging_steps=1,
        eval_steps=0,
        accumulation_steps=1,
        precision="fp32",
    )


@pytest.fixture
def base(tmp_path):
    """The configuration, shortened, with a data set of its own."""
    config = read_config(BASE)
    write_dataset(tmp_path / "data", count=STUDIES, seed=3, size=96, workers=1)
    sources = (replace(config.sources[0], path=tmp_path / "data"),)
    studies = sum(study.split == "train" for study in stage1.read_sources(sources))
    return replace(
        config,
        out=tmp_path / "out",
        sources=sources,
        model=of_few_layers(config.model),
        stage1=replace(config.stage1, optim=short(config.stage1.optim, batch=2, studies=studies)),
        stage2=replace(
            config.stage2,
            views=1,
            validation_studies=1,
            optim=short(config.stage2.optim, batch=1, studies=studies),
        ),
    )


class Watched:
    """Losses of the steps of one stage, weights before the first, and which parameters no gradient has reached."""

    def __init__(self, monkeypatch):
        self.losses, self.task, self.before, self.unreached = [], None, {}, set()
        step = StudyTrainer.training_step

        def watched(trainer, task, *args, **kwargs):
            parameters = dict(task.named_parameters())
            if not self.losses:
                self.task = task
                self.before = {name: p.detach().clone() for name, p in some_of(parameters)}
                self.unreached = {name for name, p in parameters.items() if p.requires_grad}
            loss = step(trainer, task, *args, **kwargs)
            self.losses.append(float(loss))
            grads = {name: parameters[name].grad for name in self.unreached}
            self.unreached -= {name for name, grad in grads.items() if grad is not None and bool(grad.any())}
            return loss

        monkeypatch.setattr(StudyTrainer, "training_step", watched)

    def changed(self):
        """Names of the parameters whose first numbers are no longer what they were."""
        return {name for name, p in some_of(dict(self.task.named_parameters())) if not p.equal(self.before[name])}

    def parts(self, depth):
        """First names of the parameters that changed."""
        return {".".join(name.split(".")[:depth]) for name in self.changed()}

    def trainable(self):
        return {name for name, p in self.task.named_parameters() if p.requires_grad}


def some_of(parameters):
    """The first numbers of each parameter: enough to see a change, and no second copy of the model."""
    return [(name, p.detach().flatten()[:256]) for name, p in parameters.items()]


def check(seen):
    assert len(seen.losses) == STEPS
    assert np.isfinite(seen.losses).all(), seen.losses
    assert {name for name in seen.unreached if UNREAD not in name} == set(), "no gradient has reached these"
    assert seen.changed() <= seen.trainable(), "these are frozen"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.skipif(TOTAL_GIB < NEEDED_GIB, reason=f"layers of base.toml train in {NEEDED_GIB} GiB of memory")
def test_base_takes_ten_steps_of_each_stage(base, monkeypatch):
    first = Watched(monkeypatch)
    stage1.run_stage1(base, commands=())
    check(first)
    assert first.parts(2) == {f"perceiver.{part}" for part in ("vision", "clue_encoder", "joint", "perception")}
    monkeypatch.undo()

    second = Watched(monkeypatch)
    monkeypatch.setattr(stage2, "training_arguments", without_saving(stage2.training_arguments))
    monkeypatch.setattr(stage2, "_save", lambda *_: CheckpointMeta(2, (), {}))
    stage2.run_stage2(base, commands=())
    check(second)
    fusion = {f"model.fusion.{part}" for part in ("mapper", "injection", "interaction", "out")}
    heads = {f"model.consistency.{part}" for part in ("clue", "report", "bias", "side")}
    assert second.parts(3) == {"model.llm.base_model"} | fusion | heads
    adapters = {name for name in second.changed() if name.startswith("model.llm")}
    assert {name.rpartition(".lora_")[2] for name in adapters} == {"A.default.weight", "B.default.weight"}
    assert sum(".lora_B." in name for name in adapters) == 7, "each projection of the layer"
    widths = second.task.model.llm_width, second.task.model.perceiver.vision.width
    assert widths == (4096, 1024)


def without_saving(arguments):
    def made(*args, **kwargs):
        made_here = arguments(*args, **kwargs)
        made_here.save_strategy = type(made_here.save_strategy)("no")
        return made_here

    return made
