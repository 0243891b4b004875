"""The benchmark scripts of training run, say what they measured, and compare like with like."""

import importlib
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_train.draws import Draws
from trrg_train.trainer import STUDIES_KEY

SCRIPTS = Path(__file__).parents[1] / "benchmarks"

STAGE = """
import sys, time
from pathlib import Path
losses, kept, resume, hang = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True", int(sys.argv[4])
first = int(kept.read_text()) if resume and kept.is_file() else 0
for step in range(first + 1, 31):
    with losses.open("a") as file:
        file.write(f"{step} {1 / step!r}\\n")
    if step == hang:
        time.sleep(600)
    if step == 10:
        kept.write_text("10")
"""
"""Looks like a stage: 30 steps, of which the tenth is saved; hangs in a step until it is killed."""


@pytest.fixture
def script(monkeypatch):
    """Import a script as it is when it is run: its own folder comes first."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


@pytest.fixture
def toy(toy_run, tmp_path, script):
    return script("mini_run").mini_run(toy_run(tmp_path, epochs=1), None, studies=24)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_the_encoder_in_the_loop_gives_what_the_cache_gives(toy_run, tmp_path, script, capsys):
    page = tmp_path / "page.md"
    config = str(toy_run(tmp_path, epochs=1))
    arguments = ["--config", config, "--studies", "40", "--repeats", "1", "--views", "2", "--write", str(page)]
    assert script("stage2_cache").main(arguments) == 0
    text = page.read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert float(re.search(r"loss between the two: (\d\.\de[+-]\d+)", text).group(1)) < 1e-4
    assert "| encoder in the loop | " in text
    assert "40 studies (5 steps)" in text
    assert str(tmp_path) not in text, "nothing of one machine"


def test_the_plain_loop_trains_on_the_same_studies_and_pads_to_one_length(toy, script):
    plain = script("training_speed").PlainStage2(toy, toy.pixels)
    draws = Draws(range(24), epochs=1, seed=1)
    batches = [plain([draws[k] for k in range(start, start + 8)]) for start in (0, 8, 16)]
    assert {batch["report"][0].shape for batch in batches} == {(8, plain.longest)}
    lengths = torch.cat([batch["report"][1].sum(1) for batch in batches])
    expected = [len(toy.first.tokenizer.encode(toy.studies[draws[k].study].report).ids) + 1 for k in range(24)]
    assert lengths.tolist() == expected, "no report is cut"
    taken = {name: value for name, value in batches[0].items() if name != STUDIES_KEY}
    assert torch.isfinite(script("mini_run").stage2_task(toy)(**taken)["loss"])
    read = script("training_speed").FilePixels(toy)[3]
    assert torch.from_numpy(read).allclose(torch.from_numpy(toy.pixels[3]).float(), atol=1e-2)


def test_a_rate_counts_the_steps_between_the_first_and_the_last(script):
    class Task(torch.nn.Module):
        def forward(self, pixels):
            return {"loss": pixels.mean()}

    task, clock = Task(), iter([0.0, 5.0, 6.0, 8.0, 9.0])
    mini_run = script("mini_run")
    watch = mini_run.Stopwatch(task, lambda batch: len(batch["pixels"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini_run.time, "perf_counter", lambda: next(clock))
        for size in (9, 9, 3, 6, 99):
            task(pixels=torch.zeros(size))
    watch.stop()
    task(pixels=torch.zeros(1))
    assert watch.seconds_per_step == pytest.approx(1.5)
    assert watch.units_per_second == pytest.approx(4.5 / 1.5)
    assert len(watch.losses) == 5


def test_a_resumed_curve_is_compared_step_by_step(script):
    resume_curve = script("resume_curve")
    whole = resume_curve.Curve({1: 2.0, 2: 1.0, 3: 0.5})
    assert resume_curve.apart((whole, resume_curve.Curve({1: 2.0, 3: 0.75, 2: 1.0}))) == 0.25
    with pytest.raises(RuntimeError, match=r"other steps: \[3\]"):
        resume_curve.apart((whole, resume_curve.Curve({1: 2.0, 2: 1.0})))


def test_a_process_is_killed_in_its_step_and_started_again(script, tmp_path, monkeypatch):
    resume_curve = script("resume_curve")
    hangs, resumed = [0, 7, 22, 0], []

    def started(folder, stage, *, resume):
        resumed.append(resume)
        files = [str(folder / f"{stage}.txt"), str(folder / f"{stage}-kept")]
        return subprocess.Popen([sys.executable, "-c", STAGE, *files, str(resume), str(hangs.pop(0))])

    monkeypatch.setattr(resume_curve, "started", started)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    pair = (
        resume_curve.undisturbed(whole, "stage1"),
        resume_curve.disturbed(broken, "stage1", [7, 22], random.Random(1)),
    )
    assert pair[1].killed == [7, 22]
    assert pair[1].again == 7 + 12, "the first kill was before anything was kept"
    assert resumed == [False, False, True, True]
    assert resume_curve.apart(pair) == 0.0
    resume_curve.draw({"stage1": pair}, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    page = "\n".join(resume_curve.page_of({"stage1": pair}, "--kills 2"))
    assert "| stage1 | 30 | 7, 22 | 19 steps | 0.29 → 0.04 | 0.0e+00 |" in page
