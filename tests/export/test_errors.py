"""What stands in the way of an export is one clear sentence and an exit code, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.export import tiny
from trrg_export import build, decoder, place, pytorch_side
from trrg_export.cli import main
from trrg_sdk.bundle import Bundle
from trrg_sdk.errors import UsageError
from trrg_train.models.llm import ADAPTED, build_llm
from trrg_train.models.tokenizer import load_tokenizer, train_tokenizer

pytestmark = pytest.mark.torch

Traced = Callable[[Callable[[str, Any], None]], None]
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 96}


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.glob(".*")), "a half-written bundle was left beside its place"


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """Export; it must end with exit code 2, one line of ours and no bundle. Libraries may log before it."""

    def run(folder: Path) -> str:
        capsys.readouterr()
        assert main([str(folder), "--out", str(tmp_path / "bundle")]) == 2
        *before, error = capsys.readouterr().err.splitlines()
        assert error.startswith("trrg-export: ")
        assert not any("Traceback" in line or line.startswith("trrg-export: ") for line in before)
        assert not (tmp_path / "bundle").exists()
        return error

    return run


def test_a_hugging_face_folder_is_no_checkpoint(checkpoint: Path, refused: Callable[[Path], str]) -> None:
    (checkpoint / "meta.json").unlink()
    (checkpoint / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    error = refused(checkpoint)
    assert "is no TRRG checkpoint: it lacks meta.json" in error
    assert "name a folder that trrg-train wrote" in error


def test_a_stage_1_checkpoint_says_which_one_is_needed(tmp_path: Path, refused: Callable[[Path], str]) -> None:
    error = refused(tiny.write_checkpoint(tmp_path / "stage1", stage=1))
    assert "is a stage-1 checkpoint, a stage-2 one is needed" in error


def test_a_language_model_of_another_family_is_refused_before_anything_runs(
    tmp_path: Path, refused: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytorch_side, "run_pytorch", lambda *_: pytest.fail("it took its time first"))
    error = refused(tiny.write_checkpoint(tmp_path / "gpt2", llm=GPT2))
    assert "the language model is a gpt2: expected one of the Llama family" in error


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


def _tokenizer_of_another(folder: Path) -> None:
    train_tokenizer(["The heart is enlarged."], vocab_size=270).save(str(folder / "tokenizer.json"))


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _lost_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["llm.lm_head.weight"]
    save_file(weights, path)


def _no_parity_studies(folder: Path) -> None:
    (folder / "parity.safetensors").unlink()


def _broken_parity_studies(folder: Path) -> None:
    (folder / "parity.safetensors").write_bytes(b"nothing")


def _cut_facts(folder: Path) -> None:
    path = folder / "meta.json"
    path.write_text(path.read_text()[:100])


def _other_facts(folder: Path) -> None:
    facts = json.loads((folder / "meta.json").read_text())
    del facts["clues"]
    (folder / "meta.json").write_text(json.dumps(facts))


def _config_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def _adapters_that_are_not_there(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "lora_rank": 4}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_tokenizer, "it lacks tokenizer.json"),
        (_broken_tokenizer, "cannot be read as a tokenizer"),
        (_tokenizer_of_another, "of another shape (such as "),
        (_cut_weights, "is cut off or damaged"),
        (_lost_weight, "1 missing (such as llm.lm_head.weight)"),
        (_no_parity_studies, "lacks parity.safetensors"),
        (_broken_parity_studies, "is cut off or damaged"),
        (_cut_facts, "meta.json is no JSON"),
        (_other_facts, "meta.json is not what trrg-train wrote ('clues')"),
        (_config_is_a_list, "config.json: an object expected, list found"),
        (_adapters_that_are_not_there, "config.json asks for adapters of lora_rank 4"),
    ],
)
def test_a_spoilt_checkpoint(
    checkpoint: Path, refused: Callable[[Path], str], spoil: Callable[[Path], None], said: str
) -> None:
    spoil(checkpoint)
    assert said in refused(checkpoint)


def test_adapters_of_another_rank(tmp_path: Path, checkpoint: Path, refused: Callable[[Path], str]) -> None:
    """The weights hold adapters of rank 2, the configuration asks for 4."""
    from trrg_train.models.trrg import Prompt, Trrg

    tokens = load_tokenizer(checkpoint / "tokenizer.json").get_vocab_size()
    model = Trrg(tiny.config(lora_rank=2), vocab_size=tokens, prompt=Prompt((1,), ()))
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, checkpoint / "model.safetensors")
    _adapters_that_are_not_there(checkpoint)
    error = refused(checkpoint)
    assert "of another shape (such as llm.base_model" in error
    assert "adapters of lora_rank 4" in error


def test_adapters_for_a_model_without_their_places() -> None:
    with pytest.raises(UsageError, match="this gpt2 has none of them") as caught:
        build_llm(tiny.config(llm=GPT2, lora_rank=4), vocab_size=320)
    assert ADAPTED[0] in str(caught.value)


def _raise(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def _full(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Each with the exception that a file system of 1 MB made the library raise."""
    no_space = OSError(errno.ENOSPC, "No space left on device")
    if where == "a graph":
        monkeypatch.setattr(build, "save", _raise(no_space))
    if where == "the token embedding":
        monkeypatch.setattr(np, "save", _raise(OSError("1048576 requested and 262112 written")))
    if where == "the language model for the builder":
        told = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        monkeypatch.setattr(decoder, "_save_configuration", _raise(told))
    if where == "a file that a library wraps":
        wrapped = RuntimeError("could not write")
        wrapped.__cause__ = no_space
        monkeypatch.setattr(pytorch_side, "write_decoder", _raise(wrapped))
    if where == "the manifest":
        monkeypatch.setattr(build, "write_manifest", _raise(OSError(errno.EDQUOT, "Disk quota exceeded")))
    if where == "the first folder":
        monkeypatch.setattr(place.tempfile, "mkdtemp", _raise(no_space))


FULL = (
    "a graph",
    "the token embedding",
    "the language model for the builder",
    "a file that a library wraps",
    "the manifest",
    "the first folder",
)


@pytest.mark.parametrize("where", FULL)
def test_a_full_disk_says_how_much_room_there_is(
    tiny_checkpoint: Path,
    tmp_path: Path,
    traced: Traced,
    refused: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    _full(monkeypatch, where)
    error = refused(tiny_checkpoint)
    for expected in (
        "the disk is full, and nothing was left behind",
        f"in {tmp_path}",
        "TMPDIR",
        "a checkpoint of 1 MB",
    ):
        assert expected in error
    assert not list(tmp_path.iterdir())


def test_a_full_disk_spares_the_bundle_that_was_to_be_replaced(
    fp32_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(fp32_bundle, tmp_path / "bundle"))
    before = Bundle.load(out).manifest_sha256
    _full(monkeypatch, "the manifest")
    assert main([str(tiny_checkpoint), "--out", str(out), "--force"]) == 2
    assert Bundle.load(out).manifest_sha256 == before
    assert list(tmp_path.iterdir()) == [out]


def test_another_failure_keeps_its_own_words(
    tiny_checkpoint: Path, tmp_path: Path, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "save", _raise(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        build.export_bundle(tiny_checkpoint, tmp_path / "bundle", build.ExportOptions())
    assert not list(tmp_path.iterdir())
