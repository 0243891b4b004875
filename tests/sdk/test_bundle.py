"""A bundle is loaded whole and unchanged, or refused with the file's name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.errors import BundleError
from trrg_sdk.manifest import DIGEST_FILE, MANIFEST_FILE, TensorSpec, check_relative_path, parse_manifest

TINY = Path(__file__).parent / "tiny_bundle"
FILES = sorted(path.relative_to(TINY).as_posix() for path in TINY.rglob("*") if path.is_file())
FILE = {"bytes": 1, "sha256": "0" * 64, "reproducible": True}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "bundle"))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and its hash, as somebody who means it would."""
    content = json.loads((folder / MANIFEST_FILE).read_text())
    change(content)
    write_text(folder, json.dumps(content))


def write_text(folder: Path, text: str) -> None:
    (folder / MANIFEST_FILE).write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / DIGEST_FILE).write_text(f"{digest}  {MANIFEST_FILE}\n")


def test_tiny_bundle_loads() -> None:
    bundle = Bundle.load(TINY)
    assert bundle.manifest_sha256 == hashlib.sha256((TINY / MANIFEST_FILE).read_bytes()).hexdigest()
    assert len(FILES) == len(bundle.manifest.files) + 2
    assert bundle.path("vision") == TINY / "graphs" / "vision.onnx"
    assert bundle.tokenizer_path.is_file()
    assert bundle.preprocess["size"] == 16


def test_arrays_have_the_manifests_shapes() -> None:
    bundle = Bundle.load(TINY)
    table, bank = bundle.token_embedding(), bundle.clue_bank()
    assert table.shape == bundle.manifest.token_embedding.axes
    assert isinstance(table, np.memmap)
    assert not table.flags.writeable
    assert bank.positive.shape == bank.negative.shape == (14, 8)
    np.testing.assert_allclose(np.linalg.norm(bank.positive, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_flipped_bit_is_refused(copy: Path, name: str, place: float) -> None:
    data = bytearray((copy / name).read_bytes())
    data[round(place * (len(data) - 1))] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=name.removesuffix(".sha256")):
        Bundle.load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_longer_file_is_refused_without_hashing(copy: Path, name: str) -> None:
    with (copy / name).open("ab") as stream:
        stream.write(b"\n")
    with pytest.raises(BundleError, match=name.removesuffix(".sha256")):
        Bundle.load(copy, verify=False)


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "graphs/other.onnx", ".git/config"])
def test_an_unlisted_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_text("?")
    with pytest.raises(BundleError, match=name):
        Bundle.load(copy)


@pytest.mark.parametrize("outside", [True, False])
def test_a_link_is_refused(copy: Path, tmp_path: Path, outside: bool) -> None:
    target = (tmp_path if outside else copy / "graphs") / "moved.npy"
    shutil.move(copy / "token_embedding.npy", target)
    (copy / "token_embedding.npy").symlink_to(target)
    with pytest.raises(BundleError, match="link"):
        Bundle.load(copy)


def test_a_linked_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / "graphs", tmp_path / "graphs")
    (copy / "graphs").symlink_to(tmp_path / "graphs")
    with pytest.raises(BundleError, match="graphs: expected a regular file"):
        Bundle.load(copy)


@pytest.mark.parametrize("kind", ["absent", "file", "empty"])
def test_no_bundle(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bundle"
    if kind == "file":
        path.write_text("")
    elif kind == "empty":
        path.mkdir()
    with pytest.raises(BundleError, match="expected"):
        Bundle.load(path)


def set_at(*keys: str | int, value: object) -> Callable[[dict[str, Any]], object]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def remove_at(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_at("schema_version", value=2), "expected schema_version 1, got 2"),
        (set_at("schema_version", value=True), "expected schema_version 1, got True"),
        (set_at("schema_version", value=1.0), "expected schema_version 1, got 1.0"),
        (set_at("surprise", value=1), "surprise"),
        (set_at("tokenizer", "surprise", value=1), "tokenizer: expected no other keys"),
        (remove_at("intended_use"), "intended_use"),
        (remove_at("clues"), "clues"),
        (remove_at("decoder", "layers"), "decoder: expected keys"),
        (remove_at("graphs", "fusion"), "expected graphs"),
        (set_at("graphs", "other", value=None), "graphs.other"),
        (set_at("tokenizer", "file", value="../tokenizer.json"), r"relative path.*\.\./tokenizer"),
        (set_at("tokenizer", "file", value="/etc/passwd"), "relative path"),
        (set_at("tokenizer", "file", value="graphs\\vision.onnx"), "relative path"),
        (set_at("tokenizer", "file", value="C:tokenizer.json"), "relative path"),
        (set_at("tokenizer", "file", value="./tokenizer.json"), "relative path"),
        (set_at("tokenizer", "file", value=""), "relative path"),
        (set_at("tokenizer", "file", value="absent.json"), "absent.json"),
        (set_at("files", "../x", value=FILE), r"relative path.*\.\./x"),
        (set_at("files", "manifest.json", value=FILE), "without the manifest itself"),
        (set_at("files", "tokenizer.json", "reproducible", value=1), "expected bool, got 1"),
        (set_at("files", "tokenizer.json", "sha256", value="0" * 63), "64 hex digits"),
        (set_at("files", "tokenizer.json", "bytes", value=-1), "size in bytes"),
        (set_at("files", "tokenizer.json", "bytes", value="12"), "expected int"),
        (set_at("decoder", "layers", value=True), "expected int"),
        (set_at("decoder", "layers", value=2.0), "expected int"),
        (set_at("decoder", "max_length", value=40), "prompt shorter than"),
        (set_at("patch_grid", value=[2, 2, 2]), "patch_grid"),
        (set_at("patch_grid", value=[0, 2]), "positive patch_grid"),
        (set_at("decoding", "strategy", value="beam"), "decoding.strategy"),
        (set_at("clues", 0, "threshold", value=0), "threshold between 0 and 1"),
        (set_at("clues", 0, "scale", value="4"), r"clues\[0\].scale: expected float"),
        (set_at("clues", 0, "name", value="Cardiomegaly"), "each clue name once"),
        (set_at("prompt", "order", value=["prefix", "visual", "clues", "clues"]), "each part once"),
        (set_at("prompt", "prefix_ids", value=[1, 9999]), "prompt token ids"),
        (set_at("token_embedding", "axes", value=[1, 16]), "token_embedding axes"),
        (set_at("preprocess", value=[]), "preprocess"),
    ],
)
def test_a_wrong_manifest_is_refused(copy: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit_manifest(copy, change)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.load(copy)
    assert MANIFEST_FILE in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema_version": 1,', '"schema_version": 1, "schema_version": 1,', "given twice"),
        ('"scale": 4.0', '"scale": NaN', "finite"),
        ('"scale": 4.0', '"scale": -Infinity', "finite"),
        ('"scale": 4.0', '"scale": 1e999', "finite"),
        ('"schema_version"', '\ufeff"schema_version"', "strict JSON"),
    ],
)
def test_lax_json_is_refused(copy: Path, old: str, new: str, message: str) -> None:
    text = (copy / MANIFEST_FILE).read_text()
    assert old in text
    write_text(copy, text.replace(old, new, 1))
    with pytest.raises(BundleError, match=message):
        Bundle.load(copy)


def test_text_that_is_no_json_object() -> None:
    for text in ("", "[]", "1", "{", "[" * 100_000):
        with pytest.raises(BundleError, match=MANIFEST_FILE):
            parse_manifest(text)


def test_all_differing_files_are_listed(copy: Path) -> None:
    (copy / "model_card.md").unlink()
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"model_card\.md.*tokenizer\.json: expected \d+ bytes, got 2"):
        Bundle.load(copy)


def test_manifest_survives_a_round_trip() -> None:
    manifest = Bundle.load(TINY).manifest
    assert parse_manifest(manifest.to_json()) == manifest


def test_write_manifest_lists_every_file(copy: Path) -> None:
    manifest = Bundle.load(copy).manifest
    (copy / "model_card.md").write_text("changed")
    (copy / "graphs" / "more.data").write_bytes(b"\x00" * 10)
    written = write_manifest(copy, dataclasses.replace(manifest, files={}))
    assert written.files.keys() == manifest.files.keys() | {"graphs/more.data"}
    assert Bundle.load(copy).manifest == written


def test_write_manifest_refuses_what_cannot_be_a_bundle(copy: Path) -> None:
    manifest = Bundle.load(copy).manifest
    (copy / MANIFEST_FILE).unlink()
    with pytest.raises(BundleError, match="does not read back"):
        write_manifest(copy, dataclasses.replace(manifest, evaluation={"pair": (1, 2)}))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        write_manifest(copy, manifest)
    assert not (copy / MANIFEST_FILE).exists()


def test_an_interrupted_export_is_no_bundle(copy: Path) -> None:
    (copy / MANIFEST_FILE).rename(copy / f".{MANIFEST_FILE}.partial")
    with pytest.raises(BundleError, match=MANIFEST_FILE):
        Bundle.load(copy)


@pytest.mark.parametrize("array", [np.zeros((3, 16), np.float32), np.zeros((320, 16), np.float64), None])
def test_a_wrong_token_embedding_is_refused(copy: Path, array: np.ndarray | None) -> None:
    with (copy / "token_embedding.npy").open("wb") as stream:
        if array is None:
            np.save(stream, np.array([{}], object), allow_pickle=True)
        else:
            np.save(stream, array)
    write_manifest(copy, parse_manifest((copy / MANIFEST_FILE).read_text()))
    with pytest.raises(BundleError, match=r"token_embedding\.npy"):
        Bundle.load(copy).token_embedding()


def test_a_wrong_clue_bank_is_refused(copy: Path) -> None:
    manifest = Bundle.load(copy).manifest
    good = np.zeros((14, 8), np.float32)
    for arrays in ({"positive": good}, {"positive": good, "negative": good[:3]}):
        np.savez(copy / "clue_bank.npz", **arrays)
        write_manifest(copy, manifest)
        with pytest.raises(BundleError, match=r"clue_bank\.npz"):
            Bundle.load(copy).clue_bank()
    (copy / "clue_bank.npz").write_bytes(b"PK no archive")
    write_manifest(copy, manifest)
    with pytest.raises(BundleError, match=r"clue_bank\.npz"):
        Bundle.load(copy).clue_bank()


def test_graph_specs_are_compared() -> None:
    bundle = Bundle.load(TINY)
    spec = bundle.manifest.graphs["vision"]
    renamed = tuple(dataclasses.replace(tensor, axes=("n", *tensor.axes[1:])) for tensor in spec.outputs)
    bundle.check_graph_specs("vision", spec.inputs, renamed)
    wrong = [
        TensorSpec("pixels", "float16", ("batch", 1, 16, 16)),
        TensorSpec("more", "float32", ()),
    ]
    outputs = [
        TensorSpec("patches", "float32", (1, 4, 12)),
        TensorSpec("patch_joint", "float32", ("batch", 4)),
    ]
    with pytest.raises(BundleError) as caught:
        bundle.check_graph_specs("vision", wrong, outputs)
    for part in ("vision.onnx", "float16", "'more'", "'patches'", "'patch_joint'", "'global_joint' is missing"):
        assert part in str(caught.value)


@pytest.mark.parametrize("path", ["a", "a/b.c", "..a/b..", "ä/ö"])
def test_good_paths(path: str) -> None:
    check_relative_path(path)


@pytest.mark.parametrize("path", ["", "/", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "c:a", "a\0", "a\nb"])
def test_bad_paths(path: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        check_relative_path(path)
