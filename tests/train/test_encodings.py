"""The cache of what the frozen encoders say: right, kept, resumed after a kill, refused on a full disk."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_sdk.errors import UsageError
from trrg_train import encodings
from trrg_train.encodings import NAMES, Part, Views, build_part, cached_encodings, encode_batch
from trrg_train.models.checkpoint import Checkpoint
from trrg_train.models.clue import BankedClue
from trrg_train.models.perceiver import Perceiver
from trrg_train.models.stored import CheckpointMeta

STUDIES = 21


@pytest.fixture
def first(tiny_config, monkeypatch):
    monkeypatch.setattr(encodings, "BATCH", 4)
    monkeypatch.setattr(encodings, "SAVE_EVERY", 2)
    torch.manual_seed(0)
    clues = tuple(BankedClue(name, "yes", "no", 2.0, -0.5, 0.3) for name in ("A", "B", "C"))
    model = Perceiver(tiny_config, vocab_size=40).eval()
    return Checkpoint(Path(), tiny_config, None, CheckpointMeta(1, clues, {}), model)


@pytest.fixture
def embedded(tiny_config):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(3, tiny_config.joint_dim, generator=generator) for _ in range(2))


@pytest.fixture
def pixels():
    return np.random.default_rng(2).normal(size=(STUDIES, 1, 64, 64)).astype(np.float16)


def test_cached_encodings_are_those_of_the_encoder(first, embedded, pixels, tmp_path):
    kept = cached_encodings(first, embedded, pixels, views=Views(2, 5), cache=tmp_path)
    with torch.no_grad():
        direct = encode_batch(first, embedded, torch.from_numpy(pixels.astype(np.float32)))
    for name, value in zip(NAMES, direct, strict=True):
        np.testing.assert_allclose(getattr(kept, name)[0], value.numpy(), atol=2e-3)
    assert kept.patches.shape == (2, STUDIES, 4, 16)
    assert not np.allclose(kept.patches[0], kept.patches[1], atol=1e-2), "the second view is augmented"
    assert [p.name.partition("-")[0] for p in tmp_path.iterdir()] == ["encodings"]


def test_the_encoder_runs_once_for_one_content(first, embedded, pixels, tmp_path, monkeypatch):
    cached_encodings(first, embedded, pixels, views=Views(1, 5), cache=tmp_path)
    calls = []
    monkeypatch.setattr(encodings, "encode_batch", lambda *a: calls.append(1) or encode_batch(*a))
    cached_encodings(first, embedded, pixels, views=Views(1, 5), cache=tmp_path)
    assert not calls
    with torch.no_grad():
        next(first.model.vision.parameters()).add_(0.01)
    cached_encodings(first, embedded, pixels, views=Views(1, 5), cache=tmp_path)
    assert len(calls) == -(-STUDIES // 4), "another encoder has another cache"
    cached_encodings(
        replace(first, config=replace(first.config, shift=8)), embedded, pixels, views=Views(1, 5), cache=tmp_path
    )
    assert len(calls) == 2 * -(-STUDIES // 4), "and one that looks at moved images too"


def test_a_killed_build_goes_on_where_it_was(first, embedded, pixels, tmp_path, monkeypatch):
    whole = cached_encodings(first, embedded, pixels, views=Views(2, 5), cache=tmp_path / "whole")
    calls = []

    def killed_at_nine(*arguments):
        calls.append(1)
        if len(calls) in (9, 12):
            raise KeyboardInterrupt
        return encode_batch(*arguments)

    monkeypatch.setattr(encodings, "encode_batch", killed_at_nine)
    with pytest.raises(KeyboardInterrupt):
        cached_encodings(first, embedded, pixels, views=Views(2, 5), cache=tmp_path / "killed")
    assert [p.suffix for p in (tmp_path / "killed").iterdir()] == [".writing"], "no half-written cache has the name"
    progress = tmp_path / "killed" / os.listdir(tmp_path / "killed")[0] / Part(0, 1).progress_file
    assert json.loads(progress.read_text()) == 8
    with pytest.raises(KeyboardInterrupt):
        cached_encodings(first, embedded, pixels, views=Views(2, 5), cache=tmp_path / "killed")
    assert json.loads(progress.read_text()) == 10, "the second start counts on from the first"
    resumed = cached_encodings(first, embedded, pixels, views=Views(2, 5), cache=tmp_path / "killed")
    assert len(calls) == 12 + 12 - 10, "ten batches were kept"
    for name in NAMES:
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))


def test_two_processes_encode_half_each_and_go_on_each_where_it_was(first, embedded, pixels, tmp_path, monkeypatch):
    whole = cached_encodings(first, embedded, pixels, views=Views(2, 5), cache=tmp_path / "whole")
    monkeypatch.setattr(encodings, "processes", lambda: 2)
    monkeypatch.setattr(encodings, "wait_for_all", lambda: None)
    calls = []
    monkeypatch.setattr(encodings, "encode_batch", lambda *a: calls.append(1) or encode_batch(*a))
    monkeypatch.setattr(encodings, "_complete", lambda *_: None)
    with pytest.raises(FileNotFoundError):  # the other half is not there yet
        cached_encodings(first, embedded, pixels, views=Views(2, 5), cache=tmp_path / "halves")
    assert len(calls) == 6
    (aside,) = (tmp_path / "halves").iterdir()
    build_part(aside, first, embedded, pixels, views=Views(2, 5), part=Part(1, 2))
    assert len(calls) == 12, "two views of six batches"
    build_part(aside, first, embedded, pixels, views=Views(2, 5), part=Part(0, 2))
    assert len(calls) == 12, "nothing is encoded twice"
    for name in NAMES:
        np.testing.assert_array_equal(np.load(aside / f"{name}.npy"), getattr(whole, name))
    monkeypatch.undo()
    monkeypatch.setattr(encodings, "BATCH", 4)
    alone = cached_encodings(first, embedded, pixels, views=Views(2, 5), cache=tmp_path / "halves")
    np.testing.assert_array_equal(alone.patches, whole.patches)  # begun by two, so made anew by one


def test_a_full_disk_is_a_clear_error(first, embedded, pixels, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UsageError, match=r"no space for patches\.npy: 0 MiB"):
        cached_encodings(first, embedded, pixels, views=Views(1, 5), cache=tmp_path)
    assert not list(tmp_path.rglob("*.npy"))
