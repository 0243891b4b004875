"""The loss curve of a run that is killed again and again, on top of that of a run that nobody disturbs.

    python tests/benchmarks/resume_curve.py --out tests/benchmarks/results

Two runs of one configuration (small parts, generated phantoms) go through both stages as ``trrg-train`` processes. One
is left alone. The other is sent SIGKILL at random moments of random steps and started again with ``--resume``, which
goes on from the last step that was saved to its end; the steps since then are taken a second time. Every loss is
written down in full by the process itself, so nothing is rounded.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from matplotlib.figure import Figure

from trrg_train.data.phantom import write_dataset

STAGES = ("stage1", "stage2")

CONFIG = """
out = "{out}"
seed = 7
[[sources]]
name = "phantom"
kind = "annotation"
path = "{data}"
[model]
name = "small"
image_size = 64
patch_grid = [2, 2]
joint_dim = 64
interaction_layers = 1
interaction_heads = 2
[model.vision]
model_type = "resnet"
num_channels = 1
embedding_size = 16
hidden_sizes = [16, 32, 48, 64]
depths = [1, 1, 1, 1]
layer_type = "basic"
[model.clue_encoder]
model_type = "bert"
hidden_size = 64
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 128
max_position_embeddings = 64
[model.llm]
model_type = "llama"
hidden_size = 96
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
intermediate_size = 192
max_position_embeddings = 512
[stage1]
vocab_size = 500
[stage1.optim]
epochs = {epochs}
batch_size = 8
learning_rate = 2e-3
warmup_steps = 10
save_steps = 10
eval_steps = 0
[stage2]
views = 2
parity_studies = 4
max_new_tokens = 512
[stage2.optim]
epochs = {epochs}
batch_size = 8
learning_rate = 2e-3
warmup_steps = 10
save_steps = 10
eval_steps = 0
"""
"""BERT keeps its dropout, so that the state of random numbers has to be resumed too."""

LAST = 5
"""So many steps before the end nobody is killed any more: the process could be faster."""

WATCHED = """
import sys
from trrg_train.cli import main
from trrg_train.trainer import StudyTrainer
compute = StudyTrainer.compute_loss
def watched(trainer, *args, **kwargs):
    given = compute(trainer, *args, **kwargs)
    loss = given[0] if isinstance(given, tuple) else given
    with open({losses!r}, "a") as file:
        file.write(f"{{trainer.state.global_step + 1}} {{loss.item()!r}}\\n")
    return given
StudyTrainer.compute_loss = watched
sys.exit(main({command!r}))
"""


@dataclass
class Curve:
    """One stage of one run.

    Attributes:
        losses: Of each step, as it was taken last.
        killed: The step that each killed process had begun last.
        again: How many steps were taken more than once.
    """

    losses: dict[int, float] = field(default_factory=dict)
    killed: list[int] = field(default_factory=list)
    again: int = 0


def main(argv: list[str] | None = None) -> int:
    """Train, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for resume_curve.png and resume_curve.md")
    parser.add_argument("--studies", type=int, default=100, help="phantoms to render; four of five are trained on")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--kills", type=int, default=4, help="of each stage")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    args = parser.parse_args(argv)
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "data", count=args.studies, seed=5, size=96)
        whole, broken = (run_folder(folder / run, folder / "data", args.epochs) for run in ("whole", "broken"))
        curves = {}
        for stage in STAGES:
            alone = undisturbed(whole, stage)
            steps = sorted(moments.sample(range(2, len(alone.losses) - LAST), args.kills))
            curves[stage] = (alone, disturbed(broken, stage, steps, moments))
    args.out.mkdir(parents=True, exist_ok=True)
    draw(curves, args.out / "resume_curve.png")
    command = f"--studies {args.studies} --epochs {args.epochs} --kills {args.kills} --seed {args.seed}"
    page = "\n".join(page_of(curves, command)) + "\n"
    (args.out / "resume_curve.md").write_text(page, encoding="utf-8")
    sys.stdout.write(page)
    return 0


def run_folder(folder: Path, data: Path, epochs: int) -> Path:
    """Make the folder of a run with its configuration."""
    folder.mkdir()
    text = CONFIG.format(out=(folder / "out").as_posix(), data=data.as_posix(), epochs=epochs)
    (folder / "run.toml").write_text(text, encoding="utf-8")
    return folder


def started(folder: Path, stage: str, *, resume: bool) -> subprocess.Popen[bytes]:
    """Start a stage in a process of its own."""
    command = [stage, str(folder / "run.toml"), *(["--resume"] if resume else [])]
    code = WATCHED.format(losses=str(folder / f"{stage}.txt"), command=command)
    with (folder / f"{stage}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)


def finished(process: subprocess.Popen[bytes], folder: Path, stage: str) -> None:
    """Wait for a process that nobody kills."""
    if process.wait():
        raise RuntimeError((folder / f"{stage}.log").read_text(encoding="utf-8")[-3000:])


def undisturbed(folder: Path, stage: str) -> Curve:
    """Train a stage from start to end."""
    finished(started(folder, stage, resume=False), folder, stage)
    return Curve(dict(taken(folder, stage)))


def disturbed(folder: Path, stage: str, steps: list[int], moments: random.Random) -> Curve:
    """Train a stage that is killed in each of ``steps``, counted over the whole run, and resumed each time."""
    curve = Curve()
    for number, step in enumerate(steps):
        before = len(taken(folder, stage))
        process = started(folder, stage, resume=number > 0)
        while len(taken(folder, stage)) == before or last_step(folder, stage) < step:
            if process.poll() is not None:
                finished(process, folder, stage)
                raise RuntimeError(f"{stage} ended before step {step}")
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.03))  # somewhere in the step, its update, or the saving of it
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError(f"{stage} ended before it was killed in step {step}")
        curve.killed.append(last_step(folder, stage))
    finished(started(folder, stage, resume=True), folder, stage)
    lines = taken(folder, stage)
    curve.losses = dict(lines)
    curve.again = len(lines) - len(curve.losses)
    return curve


def taken(folder: Path, stage: str) -> list[tuple[int, float]]:
    """Step and loss of every step that was taken, in the order of time."""
    path = folder / f"{stage}.txt"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    whole = (line.split() for line in lines if line.endswith("\n"))
    return [(int(step), float(loss)) for step, loss in whole]


def last_step(folder: Path, stage: str) -> int:
    """The step that was begun last; 0 before the first."""
    lines = taken(folder, stage)
    return lines[-1][0] if lines else 0


def apart(curves: tuple[Curve, Curve]) -> float:
    """Largest difference of the loss of any step."""
    whole, broken = (curve.losses for curve in curves)
    if whole.keys() != broken.keys():
        raise RuntimeError(f"the runs took other steps: {sorted(whole.keys() ^ broken.keys())}")
    return max(abs(whole[step] - broken[step]) for step in whole)


def draw(curves: dict[str, tuple[Curve, Curve]], path: Path) -> None:
    """Draw both curves of each stage, and where the second was killed."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, (stage, pair) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        whole, broken = pair
        axes.plot(list(whole.losses), list(whole.losses.values()), color="#9ecae1", linewidth=5, label="undisturbed")
        ordered = dict(sorted(broken.losses.items()))
        axes.plot(list(ordered), list(ordered.values()), color="#08306b", linewidth=1.2, label="killed and resumed")
        for index, step in enumerate(broken.killed):
            label = "SIGKILL" if index == 0 else None
            axes.axvline(step, color="#d94801", linestyle=":", linewidth=1.2, label=label)
        axes.set(xlabel="step", ylabel="loss", title=f"{stage}: largest difference {apart(pair):.1e}")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def page_of(curves: dict[str, tuple[Curve, Curve]], command: str) -> Iterator[str]:
    """The lines of the page."""
    yield "# A killed and resumed run on top of an undisturbed one\n\nMade by (do not edit):\n\n```bash"
    yield f"python tests/benchmarks/resume_curve.py --out tests/benchmarks/results \\\n    {command}\n```\n"
    yield (__doc__ or "").split("\n\n", 2)[2]
    packages = ("torch", "transformers", "accelerate")
    yield f"{', '.join(f'{name} {version(name)}' for name in packages)}.\n"
    yield "| | steps | SIGKILL in step | taken again | loss, first and last ten steps | largest difference of a loss |"
    yield "|---|---|---|---|---|---|"
    for stage, pair in curves.items():
        losses = [pair[0].losses[step] for step in sorted(pair[0].losses)]
        ends = f"{statistics.mean(losses[:10]):.2f} → {statistics.mean(losses[-10:]):.2f}"
        killed = ", ".join(map(str, pair[1].killed))
        yield f"| {stage} | {len(losses)} | {killed} | {pair[1].again} steps | {ends} | {apart(pair):.1e} |"
    yield "\n![Both loss curves](resume_curve.png)"


if __name__ == "__main__":
    sys.exit(main())
