"""Every key of a configuration is read by code outside the module that declares it; every key of every TOML is known.

The reads are found in the syntax tree. A key may have the name of something else (`name`, `path`), so it counts only
where the object before the dot is called what an object of its class is called: `source.prefix`, `config.model.name`.
"""

import ast
import dataclasses
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from transformers import AutoConfig

from trrg_train.config import OptimConfig, RunConfig, SourceConfig, Stage1Config, Stage2Config, read_config
from trrg_train.models.config import ModelConfig

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "train" / "configs").glob("*.toml"))
DECLARED = {"train/trrg_train/config.py", "train/trrg_train/models/config.py"}
CALLED = {
    RunConfig: {"config"},
    SourceConfig: {"source"},
    OptimConfig: {"optim"},
    Stage1Config: {"stage1", "stage", "settings"},
    Stage2Config: {"stage2", "stage", "config"},
    ModelConfig: {"model", "config", "sizes"},
}
"""How objects of each class are called."""


@cache
def reads():
    """Object and attribute of every attribute that is read where no configuration is declared."""
    found = set()
    for package in ("train/trrg_train", "export/trrg_export"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            if path.relative_to(REPOSITORY).as_posix() not in DECLARED:
                nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                loads = (n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load))
                found |= {(getattr(n.value, "attr", getattr(n.value, "id", "")), n.attr) for n in loads}
    return found


@pytest.mark.parametrize("cls", CALLED, ids=lambda cls: cls.__name__)
def test_every_key_is_read_by_code(cls):
    read = {attribute for owner, attribute in reads() if owner in CALLED[cls]}
    unread = {field.name for field in dataclasses.fields(cls)} - read
    assert not unread, f"declared in {cls.__name__} and read nowhere: {sorted(unread)}"


def test_every_class_of_a_configuration_is_looked_at():
    """Follow the fields from RunConfig: a new table cannot escape the test above."""
    seen, waiting = set(), [RunConfig]
    while waiting:
        cls = waiting.pop()
        seen.add(cls)
        named = " ".join(str(field.type) for field in dataclasses.fields(cls))
        waiting += [other for other in CALLED if other.__name__ in named and other not in seen]
        tables = {word for word in re.findall(r"\w+", named) if word.endswith("Config")}
        assert tables <= {other.__name__ for other in CALLED}, "say how objects of these are called"
    assert seen == set(CALLED)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_committed_configuration_reads_and_names_known_keys_of_transformers(path):
    read_config(path)
    model = tomllib.loads(path.read_text(encoding="utf-8"))["model"]
    for part in ("vision", "clue_encoder", "llm"):
        table = dict(model[part])
        known = AutoConfig.for_model(table.pop("model_type")).to_dict()
        aliases = AutoConfig.for_model(model[part]["model_type"]).attribute_map
        assert not set(table) - set(known) - set(aliases), f"[model.{part}] of {path.name}"
