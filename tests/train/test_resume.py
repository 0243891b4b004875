"""A run that is killed goes on as if nothing had happened; one that cannot go on says why."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_sdk.errors import UsageError
from trrg_train.cli import main
from trrg_train.config import OptimConfig, read_config
from trrg_train.draws import Draws, draw_random
from trrg_train.resume import last_complete, settings_of, step_to_resume
from trrg_train.stage1 import Stage1Task
from trrg_train.trainer import StudyTrainer, disk_is_full, training_arguments


@pytest.fixture
def run(toy_run, tmp_path):
    def make(name, epochs=5):
        (tmp_path / name).mkdir()
        config = toy_run(tmp_path / name, epochs=epochs)
        config.write_text(config.read_text().replace("save_steps = 10", "save_steps = 10\nlogging_steps = 1"))
        return config

    return make


def losses(config, stage):
    steps = config.parent / "out" / f"{stage}-steps"
    state = json.loads((last_complete(steps) / "trainer_state.json").read_text())
    return {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}


def killed(config, stage, *, after):
    """Start a stage in a process of its own and kill it when it has saved the step ``after`` and gone on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trrg_train.cli", stage, str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    mark = config.parent / "out" / f"{stage}-steps" / f"checkpoint-{after}" / "complete"
    while not mark.is_file():
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_a_killed_and_resumed_run_has_the_losses_of_an_uninterrupted_one(run, monkeypatch):
    whole, broken = run("whole"), run("broken")
    steps, compute_loss = [], StudyTrainer.compute_loss
    monkeypatch.setattr(StudyTrainer, "compute_loss", lambda *a, **k: steps.append(1) or compute_loss(*a, **k))
    for stage in ("stage1", "stage2"):
        assert main([stage, str(whole)]) == 0
        killed(broken, stage, after=10)
        half = broken.parent / "out" / f"{stage}-steps" / "checkpoint-17"
        half.mkdir()
        (half / "model.safetensors").write_bytes(b"half")
        steps.clear()
        assert main([stage, str(broken), "--resume"]) == 0
        assert len(steps) <= 20, "the first ten steps are not taken again"
        assert not half.exists(), "a step that was not written to its end is never loaded"
        expected = losses(whole, stage)
        assert sorted(expected) == list(range(1, 31))
        assert losses(broken, stage) == pytest.approx(expected, abs=2e-4), "logs hold four digits"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_studies(run, monkeypatch, capsys):
    forward, calls = Stage1Task.forward, []

    def broken_in_step_3(self, **batch):
        calls.append(1)
        outputs = forward(self, **batch)
        return {**outputs, "loss": outputs["loss"] * float("nan")} if len(calls) == 3 else outputs

    monkeypatch.setattr(Stage1Task, "forward", broken_in_step_3)
    assert main(["stage1", str(run("nan"))]) == UsageError.exit_code
    message = capsys.readouterr().err
    assert "the loss is nan in step 3" in message
    named = message.partition("the studies ")[2].partition(".")[0].split(", ")
    assert len(named) == 8
    assert all(name[0] == "s" and int(name[1:]) < 48 for name in named)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_a_full_disk_keeps_the_last_good_step(run, monkeypatch, capsys):
    config, save, calls = run("full"), torch.save, []

    def full_at_the_second_step(*args, **kwargs):
        calls.append(1)
        if len(list((config.parent / "out" / "stage1-steps").glob("checkpoint-*"))) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full_at_the_second_step)
    assert main(["stage1", str(config)]) == UsageError.exit_code
    assert "is full; checkpoint-10 is complete and whole" in capsys.readouterr().err
    monkeypatch.setattr(torch, "save", save)
    assert main(["stage1", str(config), "--resume"]) == 0
    assert sorted(losses(config, "stage1")) == list(range(1, 31))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_a_new_run_never_finds_the_steps_of_an_old_one(run, capsys):
    config = run("again", epochs=2)
    assert main(["stage1", str(config)]) == 0
    assert main(["stage1", str(config)]) == UsageError.exit_code
    assert "go on with --resume, or remove the folder" in capsys.readouterr().err


def test_what_a_full_disk_looks_like():
    assert disk_is_full(OSError(errno.ENOSPC, "x"))
    assert disk_is_full(RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"))
    assert not disk_is_full(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not disk_is_full(OSError(errno.EACCES, "Permission denied"))


def test_each_epoch_draws_every_study_as_often_as_it_stands_there():
    draws = Draws([4, 7, 7, 9], epochs=2.5, seed=1)
    studies = [draws[k].study for k in range(len(draws))]
    assert len(studies) == 10
    assert sorted(studies[:4]) == sorted(studies[4:8]) == [4, 7, 7, 9]
    assert [draws[k].number for k in range(10)] == list(range(10))
    with pytest.raises(UsageError, match="no study"):
        Draws([], epochs=1, seed=1)
    for epochs in (0, -1, 0.1):
        with pytest.raises(UsageError, match=rf"epochs = {epochs} draws none of 4 studies"):
            Draws([4, 7, 7, 9], epochs=epochs, seed=1)
    assert studies == [d.study for d in (Draws([4, 7, 7, 9], epochs=2.5, seed=1)[k] for k in range(10))]
    assert any(Draws(range(40), epochs=1, seed=s)[0] != Draws(range(40), epochs=1, seed=1)[0] for s in range(2, 9))


def test_the_randomness_of_a_draw_follows_from_seed_and_number():
    draws = Draws(range(8), epochs=1, seed=1)

    def numbers(draw, seed):
        rng, generator = draw_random(draws[draw], seed=seed)
        return np.array([rng.random(), torch.rand((), generator=generator).item()])

    np.testing.assert_array_equal(numbers(2, 5), numbers(2, 5))
    assert (numbers(2, 5) != numbers(4, 5)).all()
    assert (numbers(2, 5) != numbers(2, 6)).all()


def test_every_option_of_a_stage_reaches_the_trainer(tmp_path):
    optim = OptimConfig(
        2, 4, 3e-4, 0.01, 7, 11, 13, eval_steps=0, accumulation_steps=5, precision="bf16", activation_checkpointing=True
    )
    arguments = training_arguments(optim, tmp_path, seed=9)
    reached = (arguments.per_device_train_batch_size, arguments.learning_rate, arguments.weight_decay)
    assert reached == (4, 3e-4, 0.01)
    assert (arguments.warmup_steps, arguments.save_steps, arguments.logging_steps) == (7, 11, 13)
    assert (arguments.gradient_accumulation_steps, arguments.bf16, arguments.seed) == (5, True, 9)
    assert arguments.activation_checkpointing


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_bf16_accumulation_and_checkpointed_activations_train(run, capsys):
    config = run("options", epochs=2)
    options = 'precision = "bf16"\naccumulation_steps = 2\n'
    text = config.read_text().replace("logging_steps = 1", f"logging_steps = 1\n{options}")
    head, _, tail = text.rpartition(options)
    config.write_text(head + options + "activation_checkpointing = true\n" + tail)
    assert main(["stage1", str(config)]) == 0
    assert main(["stage2", str(config)]) == 0
    assert sorted(losses(config, "stage1")) == list(range(1, 7))
    assert all(np.isfinite(list(losses(config, "stage2").values())))
    everywhere = config.read_text().replace(options, options + "activation_checkpointing = true\n", 1)
    config.write_text(everywhere.replace((config.parent / "out").as_posix(), (config.parent / "other").as_posix()))
    assert main(["stage1", str(config)]) == UsageError.exit_code, "ResNet cannot"
    assert "set activation_checkpointing = false" in capsys.readouterr().err


def test_steps_of_other_settings_are_refused_by_name(run, tmp_path):
    config, steps = read_config(run("settings")), tmp_path / "steps"

    def go_on(other, *, resume=True, weights="w"):
        return step_to_resume(steps, settings_of(other, "stage1", stage1_weights=weights), resume=resume)

    assert go_on(config, resume=False) is None, "nothing is there yet"
    step = steps / "checkpoint-10"
    step.mkdir()
    (step / "complete").touch()
    assert go_on(config) == step
    optim = dataclasses.replace(config.stage1.optim, save_steps=7, logging_steps=3, activation_checkpointing=True)
    assert go_on(dataclasses.replace(config, stage1=dataclasses.replace(config.stage1, optim=optim))) == step
    assert go_on(dataclasses.replace(config, stage2=dataclasses.replace(config.stage2, views=9))) == step
    optim = dataclasses.replace(config.stage1.optim, learning_rate=1.0)
    other = dataclasses.replace(
        config,
        seed=9,
        model=dataclasses.replace(config.model, joint_dim=64),
        sources=(dataclasses.replace(config.sources[0], repeat=2),),
        stage1=dataclasses.replace(config.stage1, optim=optim),
    )
    named = "model.joint_dim, seed, sources.toy.repeat, stage1.optim.learning_rate, stage1_weights"
    with pytest.raises(UsageError, match=named):
        go_on(other, weights="v")
    with pytest.raises(UsageError, match="go on with --resume"):
        go_on(config, resume=False)
    (steps / "settings.json").unlink()
    with pytest.raises(UsageError, match="does not say"):
        go_on(config)
