"""Which saved step a run goes on from: only a complete one, only when asked, and only of the same run.

The folder of a stage's steps holds ``settings.json``: everything of the configuration that the result depends on.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trrg_sdk.errors import UsageError
from trrg_train.config import RunConfig
from trrg_train.distributed import join_processes, processes

log = logging.getLogger(__name__)

COMPLETE_FILE = "complete"
SETTINGS_FILE = "settings.json"

FREE = frozenset({"save_steps", "logging_steps", "activation_checkpointing"})
"""Keys of ``optim`` that a resumed run may change: the weights do not depend on them."""


def step_to_resume(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> Path | None:
    """Find the step to go on from; every process must call it.

    Args:
        folder: Of the stage's steps; ``settings`` are written there when it holds no complete one.
        settings: See :func:`settings_of`.
        resume: Whether the user asked to go on.

    Returns:
        The newest complete step; None for a start from the beginning.

    Raises:
        UsageError: An earlier run's steps are there and were not asked for (a later --resume would take them for its
            own), or they are of other settings.
    """
    with join_processes().main_process_first():
        last = last_complete(folder)
        if last is None and join_processes().is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            aside = folder / (SETTINGS_FILE + ".writing")
            aside.write_text(json.dumps(settings, indent=1, sort_keys=True), encoding="utf-8")
            aside.replace(folder / SETTINGS_FILE)
    if last is None:
        return None
    if not resume:
        raise UsageError(f"{folder} holds steps of an earlier run: go on with --resume, or remove the folder")
    _refuse_other_settings(folder, settings)
    return last


def settings_of(config: RunConfig, stage: str, **more: str) -> dict[str, Any]:
    """List what the result of a stage depends on, as nested dicts that JSON can hold.

    Args:
        config: Whole run; its model, sources and seed count.
        stage: ``"stage1"`` or ``"stage2"``: its settings count, but those of :data:`FREE`. The batch size is the sum
            over processes.
        more: Anything else, such as the hash of a checkpoint.
    """
    values = json.loads(
        json.dumps(dataclasses.asdict(config), default=_whole_path)
    )  # tuples become lists, as when read
    settings = {name: value for name, value in values[stage]["optim"].items() if name not in FREE}
    settings["batch_size"] *= processes()
    return {
        "model": values["model"],
        "sources": {source["name"]: source | {"made_by": ""} for source in values["sources"]},
        "seed": values["seed"],
        stage: values[stage] | {"optim": settings},
        **more,
    }


def last_complete(folder: Path) -> Path | None:
    """Return the newest saved step that was written to its end, and remove those that were not."""
    steps = sorted(folder.glob("checkpoint-*"), key=step_of)
    for step in steps:
        if not (step / COMPLETE_FILE).is_file():
            log.warning("%s was not written to its end and is removed", step.name)
            shutil.rmtree(step)
    whole = [step for step in steps if step.is_dir()]
    return whole[-1] if whole else None


def step_of(folder: Path) -> int:
    """Read the number of a saved step from its name."""
    return int(folder.name.rpartition("-")[2])


def _whole_path(path: Path) -> str:
    return str(path.resolve())


def _refuse_other_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    try:
        saved = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} does not say of which settings its steps are: remove it to start again") from None
    before, now = _flat(saved), _flat(settings)
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if names:
        raise UsageError(
            f"the steps in {folder} are of a run with other settings: {', '.join(names)}. Give those back to go on "
            "with --resume, or remove the folder"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
