"""Several processes train as one would with all their studies in its batch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_train.cli import main
from trrg_train.config import read_config
from trrg_train.models.checkpoint import load_checkpoint
from trrg_train.resume import last_complete

VIT = """model_type = "vit"
num_channels = 1
image_size = 64
patch_size = 32
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 32

"""
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = tuple(
    "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port 0".split()  # its launcher for CPUs has one process, or wants MPI
)
FSDP = Path(__file__).parents[2] / "train" / "configs" / "fsdp.yaml"
TAKE_THE_CPU_FOR_AN_ACCELERATOR = """
import sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType

made = PartialState.__init__

def pretending(self, *args, **kwargs):
    made(self, *args, **kwargs)
    if self.distributed_type is DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_XPU  # accelerate shards on accelerators only

if __name__ == "__main__":  # the processes that read images are spawned from this file
    PartialState.__init__ = pretending
    from trrg_train.cli import main

    sys.exit(main())
"""

TOLERANCE = 1e-4
"""Relative, of each loss term over twelve steps: sums in another order in fp32, and what training makes of them."""


PARTS = """
import torch
import torch.distributed as dist
from trrg_train.distributed import gather_rows, gradient_of_whole, join_processes, mean_over_processes, whole_mean

rank = join_processes().process_index
torch.manual_seed(0)
weight, images, sentences = torch.randn(4, 3), torch.randn(6, 4), torch.randn(5, 4)
known = torch.rand(6, 3) > 0.4
image_rows, sentence_rows = ((slice(0, 4), slice(4, 6))[rank], (slice(0, 2), slice(2, 5))[rank])

def gradient(images, sentences, known):
    own = weight.clone().requires_grad_()
    contrast = (gather_rows(images @ own) @ gather_rows(sentences @ own).t()).logsumexp(1).mean()
    labels = whole_mean((images @ own) ** 2, known)
    (gradient_of_whole(contrast) + labels).backward()
    return torch.cat((own.grad.flatten(), torch.stack((contrast, labels)).detach()))

part = gradient(images[image_rows], sentences[sentence_rows], known[image_rows])
dist.all_reduce(part)
states = gather_rows(torch.full((rank + 1, 2), rank, dtype=torch.int8))
figures = mean_over_processes({"a": float(rank), "b": 3.0})
dist.destroy_process_group()
torch.testing.assert_close(part / 2, gradient(images, sentences, known))
assert states[:, 0].tolist() == [0, 1, 1]
assert figures == {"a": 0.5, "b": 3.0}
"""


def uneven(folder):
    """Reports of one sentence and labels that are not known, so that no two processes have the same counts."""
    path = folder / "annotation.json"
    records = json.loads(path.read_text())
    for index, record in enumerate(records["train"]):
        if index % 3 == 0:
            record["report"] = record["report"].partition(". ")[0] + "."
        if index % 5 == 0:
            record["labels"] = dict(list(record["labels"].items())[index % 14 :])
    path.write_text(json.dumps(records))


@pytest.fixture
def run(toy_run, tmp_path):
    """A configuration with an encoder without BatchNorm: twelve steps of eight studies."""

    def make(name, *, batch_size):
        (tmp_path / name).mkdir()
        config = toy_run(tmp_path / name, epochs=2)
        text = config.read_text()
        resnet = text[text.index('model_type = "resnet"') : text.index("[model.clue_encoder]")]
        text = text.replace(resnet, VIT).replace("batch_size = 8", f"batch_size = {batch_size}")
        text = text.replace("joint_dim = 32", "joint_dim = 32\nlora_rank = 2")
        config.write_text(text.replace("save_steps = 10", "save_steps = 6\nlogging_steps = 1"))
        return config

    return make


def launched(*command):
    """Run a command of Python in two processes."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def terms(config, stage):
    """Each loss term and the norm of the gradient in each step, unrounded."""
    state = json.loads((last_complete(config.parent / "out" / f"{stage}-steps") / "trainer_state.json").read_text())
    names = ("prompt_loss", "contrast_loss", "language_loss", "consistency_loss", "grad_norm")
    return {f"{entry['step']} {name}": entry[name] for entry in state["log_history"] for name in names if name in entry}


def test_the_mean_gradient_of_the_parts_is_that_of_the_whole(tmp_path):
    script = tmp_path / "parts.py"
    script.write_text(PARTS)
    launched(*TORCHRUN, script)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_two_processes_have_the_losses_of_one_with_twice_the_batch(run):
    one, two = run("one", batch_size=8), run("two", batch_size=4)
    uneven(read_config(one).sources[0].path)
    for stage, launcher in (("stage1", TORCHRUN), ("stage2", ACCELERATE)):
        assert main([stage, str(one)]) == 0
        printed = launched(*launcher, "-m", "trrg_train.cli", stage, two)
        assert printed.split().count(str(two.parent / "out" / stage)) == 1, "one process prints"
        expected = terms(one, stage)
        assert len(expected) == 36
        assert terms(two, stage) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_weights_spread_by_fsdp_are_saved_whole_and_are_those_of_one_process(run, tmp_path):
    script = tmp_path / "on_cpu.py"
    script.write_text(TAKE_THE_CPU_FOR_AN_ACCELERATOR)
    sharded = ("accelerate.commands.launch", "--config_file", FSDP, "--num_processes", 2, "--main_process_port", 0)
    one, two = run("one", batch_size=8), run("two", batch_size=4)
    for stage in ("stage1", "stage2"):
        assert main([stage, str(one)]) == 0
        launched(*sharded, script, stage, two)
        assert terms(two, stage) == pytest.approx(terms(one, stage), rel=TOLERANCE)
        expected = load_checkpoint(one.parent / "out" / stage).model.state_dict()
        for name, weight in load_checkpoint(two.parent / "out" / stage).model.state_dict().items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-3, msg=name)
    shutil.rmtree(two.parent / "out" / "stage1-steps" / "checkpoint-12")
    launched(*sharded, script, "stage1", two, "--resume")
    assert terms(two, "stage1") == pytest.approx(terms(one, "stage1"), rel=TOLERANCE)
