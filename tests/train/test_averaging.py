"""The mean of the last saved steps."""

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from safetensors.torch import load_file, save_file

from trrg_sdk.errors import UsageError
from trrg_train.averaging import average_steps
from trrg_train.cli import main
from trrg_train.config import read_config
from trrg_train.models.checkpoint import load_checkpoint
from trrg_train.resume import COMPLETE_FILE


class Task(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.norm = torch.nn.BatchNorm1d(1)


def saved(folder, step, value, *, complete=True):
    task = Task()
    with torch.no_grad():
        for tensor in task.state_dict().values():
            tensor.fill_(value)
    place = folder / f"checkpoint-{step}"
    place.mkdir()
    save_file(task.state_dict(), place / "model.safetensors")
    if complete:
        (place / COMPLETE_FILE).touch()


def test_the_mean_is_of_the_last_complete_steps_in_their_order(tmp_path):
    for step, value in ((80, 100), (90, 1), (100, 2), (110, 6)):
        saved(tmp_path, step, value)
    saved(tmp_path, 120, 1000, complete=False)
    task = Task()
    average_steps(task, tmp_path, count=3)
    assert torch.equal(task.layer.weight, torch.full((1, 2), 3.0))
    assert torch.equal(task.norm.running_mean, torch.full((1,), 3.0))
    assert task.norm.num_batches_tracked.item() == 6, "a count is that of the last step"


def test_fewer_saved_steps_than_asked_for_are_refused(tmp_path):
    saved(tmp_path, 10, 1)
    with pytest.raises(UsageError, match=r"average = 2 needs so many steps .* 1 are there"):
        average_steps(Task(), tmp_path, count=2)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_stage_1_keeps_the_mean_of_its_last_steps(toy_run, tmp_path):
    config = toy_run(tmp_path, epochs=5)  # 30 steps, saved every 10
    config.write_text(config.read_text().replace("[stage1]\n", "[stage1]\naverage = 2\n"))
    assert main(["stage1", str(config)]) == 0
    steps = [
        load_file(tmp_path / "out" / "stage1-steps" / f"checkpoint-{step}" / "model.safetensors") for step in (20, 30)
    ]
    for name, value in load_checkpoint(tmp_path / "out" / "stage1").model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (steps[0][f"perceiver.{name}"] + steps[1][f"perceiver.{name}"]) / 2)


@pytest.mark.parametrize("changes", ["average = -1", "average = 2\nselect_by = 'macro_auc'"])
def test_a_mean_and_a_best_step_exclude_each_other(toy_run, tmp_path, changes):
    config = toy_run(tmp_path, epochs=1)
    text = config.read_text().replace("[stage1]\n", f"[stage1]\n{changes}\n")
    config.write_text(text.replace("eval_steps = 0", "eval_steps = 10", 1))
    with pytest.raises(UsageError, match="not both"):
        read_config(config)
