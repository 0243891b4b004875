"""Stage 1 that goes on from another checkpoint: its weights, its tokenizer, its history."""

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_train.cli import main
from trrg_train.models.checkpoint import load_checkpoint


@pytest.fixture
def begun(toy_run, tmp_path):
    """A config whose stage 1 is done, and the same one going on from it without a step."""
    config = toy_run(tmp_path, epochs=0)
    assert main(["stage1", str(config)]) == 0
    text = config.read_text().replace(f'out = "{tmp_path / "out"}"', f'out = "{tmp_path / "more"}"')
    assert str(tmp_path / "more") in text
    start = tmp_path / "out" / "stage1"
    later = config.with_name("later.toml")
    later.write_text(text.replace("seed = 3", "seed = 4").replace("vocab_size = 400", f'start = "{start}"'))
    return later, start


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_goes_on_from_the_weights_and_the_tokenizer_of_another(begun, tmp_path):
    later, start = begun
    assert main(["stage1", str(later)]) == 0
    first, second = load_checkpoint(start), load_checkpoint(tmp_path / "more" / "stage1")
    weights = second.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.model.state_dict().items())
    assert second.tokenizer.to_str() == first.tokenizer.to_str()
    assert second.meta.commands == (f"trrg-train stage1 {later.with_name('run.toml')}", f"trrg-train stage1 {later}")


def test_trains_from_there(begun, tmp_path):
    later, start = begun
    later.write_text(later.read_text().replace("epochs = 0", "epochs = 1", 1))
    assert main(["stage1", str(later)]) == 0
    first, second = load_checkpoint(start).model.state_dict(), load_checkpoint(tmp_path / "more" / "stage1")
    moved = [name for name, value in second.model.state_dict().items() if not torch.equal(value, first[name])]
    assert len(moved) > len(first) / 2


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("image_size = 64", "image_size = 32", "images of 64 pixels"),
        ("joint_dim = 32", "joint_dim = 16", "its joint_dim is not that of [model]"),
        ("hidden_sizes = [8, 8, 16, 32]", "hidden_sizes = [8, 8, 16, 40]", "its vision is not that of [model]"),
        ("/out/stage1", "/nowhere", "is no TRRG checkpoint"),
    ],
)
def test_refuses_what_does_not_fit(begun, capsys, old, new, says):
    later, _ = begun
    assert old in later.read_text()
    later.write_text(later.read_text().replace(old, new))
    assert main(["stage1", str(later)]) == 2
    assert says in capsys.readouterr().err
