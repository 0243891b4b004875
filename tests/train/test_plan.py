"""What a configuration costs is counted as it will be spent."""

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_train.cli import main
from trrg_train.config import read_config
from trrg_train.models.perceiver import Perceiver
from trrg_train.plan import GIB, StagePlan, kept_bytes, plan_run

CONFIGS = Path(__file__).parents[2] / "train" / "configs"


@pytest.fixture
def mini():
    return read_config(CONFIGS / "mini.toml")


def small(config, model, *, batch=3, **optim):
    optim = {"precision": "fp32", **optim}
    stage1 = dataclasses.replace(
        config.stage1, optim=dataclasses.replace(config.stage1.optim, batch_size=batch, **optim)
    )
    return dataclasses.replace(config, model=model, stage1=stage1)


def test_parameters_and_activations_are_those_of_the_real_model(mini, tiny_config):
    config = small(mini, tiny_config)
    plan = plan_run(config)
    real = Perceiver(tiny_config, vocab_size=config.stage1.vocab_size)
    stage = plan.stages[0]
    assert stage.parameters == sum(p.numel() for p in real.parameters())

    def step():
        real.encode_images(torch.zeros(3, 1, 64, 64))
        ids = torch.zeros(3 * config.stage1.sentences_per_study + 28, 32, dtype=torch.long)
        real.encode_texts(ids, torch.ones_like(ids))

    assert stage.activations == pytest.approx(kept_bytes(step, real, config.stage1.optim), rel=0.02)


def test_what_autograd_keeps_is_counted_once_and_without_the_weights(mini):
    layer = torch.nn.Linear(8, 2)
    inputs = torch.randn(4, 8, requires_grad=True)

    def step():
        layer(inputs)
        layer(inputs)

    optim = dataclasses.replace(mini.stage1.optim, precision="fp32")
    assert kept_bytes(step, layer, optim) == 4 * 8 * 4


def test_activations_grow_with_the_batch_and_halve_with_bf16(mini, tiny_config):
    one, two = (plan_run(small(mini, tiny_config, batch=b)).stages[0].activations for b in (8, 16))
    assert 1.3 < two / one < 2.0, "the prompts do not grow"
    half = plan_run(small(mini, tiny_config, batch=8, precision="bf16")).stages[0].activations
    assert half == pytest.approx(one / 2, rel=1e-3)


def test_adapters_leave_the_language_model_frozen(mini, tiny_config):
    whole = plan_run(small(mini, tiny_config)).stages[1]
    adapted = plan_run(small(mini, dataclasses.replace(tiny_config, lora_rank=2))).stages[1]
    assert adapted.parameters > whole.parameters
    assert adapted.trainable < whole.trainable


def test_fsdp_divides_the_states_and_not_the_activations():
    stage = StagePlan("stage", parameters=4 * GIB, trainable=GIB, activations=3 * GIB)
    assert stage.states == (16 + 12) * GIB
    assert stage.bytes_per_gpu(4, sharded=False) == 31 * GIB
    assert stage.bytes_per_gpu(4, sharded=True) == 10 * GIB


def test_the_command_says_where_fsdp_is_needed(capsys):
    assert main(["plan", str(CONFIGS / "mini.toml"), "--gpu-gib", "0.25"]) == 0
    text = capsys.readouterr().out
    assert "| vision encoder | 4.2 M |" in text
    rows = {tuple(row.split(" | ")[:2]): row.split(" | ")[-1] for row in text.splitlines() if row.startswith("| stage")}
    assert rows["| stage 2", "1"].startswith("a smaller batch")
    assert main(["plan", str(CONFIGS / "mini.toml")]) == 0
    assert "| stage 2 | 8 | " in capsys.readouterr().out
