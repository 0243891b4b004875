from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_sdk.errors import UsageError
from trrg_sdk.gate_specs import ADULTS, PopulationSpec
from trrg_train.config import read_config

MINI = Path(__file__).parents[2] / "train" / "configs" / "mini.toml"


def edited(tmp_path, old, new):
    text = MINI.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "run.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


def test_the_mini_configuration_reads():
    config = read_config(MINI)
    assert config.model.name == "mini"
    assert config.model.patches == 36
    assert config.sources[0].path.parts[-2:] == ("data", "phantom")
    assert config.population == ADULTS


def test_the_population_is_as_it_is_stated_and_else_adults(tmp_path):
    whole = '[population]\nminimum_age = 18\nviews = ["PA", "AP"]\n'
    stated = edited(tmp_path, whole, '[population]\nviews = ["PA", "LL"]\n')
    assert read_config(stated).population == PopulationSpec(None, ("PA", "LL"))
    assert read_config(edited(tmp_path, whole, "")).population == ADULTS


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("views = 2", "veiws = 2", "veiws"),
        ("joint_dim = 128", "joint_dims = 128", "joint_dims"),
        ("seed = 1", "sede = 1", "sede"),
        ("prefix = ", "prefixes = ", "prefixes"),
        ("learning_rate = 1e-3", "learning_rates = 1e-3", "learning_rates"),
        ("patch_grid = [6, 6]", "", "patch_grid"),
        ('model_type = "resnet"', "", "model_type"),
        ("seed = 1", "seed = ", "TOML"),
        ("minimum_age = 18", "minimum_age = -1", "minimum_age"),
        ("minimum_age = 18", "maximum_age = 18", "maximum_age"),
        ('views = ["PA", "AP"]', 'views = ["LATERAL"]', "LATERAL"),
        ('views = ["PA", "AP"]', "", "views"),
    ],
)
def test_what_is_unknown_or_missing_is_refused_by_name(tmp_path, old, new, words):
    with pytest.raises(UsageError, match=words):
        read_config(edited(tmp_path, old, new))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="nowhere.toml"):
        read_config(tmp_path / "nowhere.toml")
