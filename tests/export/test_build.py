"""From checkpoint to bundle and what stands in its way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_genai")

from onnx import numpy_helper

from tests.export import tiny
from trrg_export import build, describe
from trrg_export.cli import main
from trrg_export.parity import ParityError, ParityLimits
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding.store import StoreArrays
from trrg_sdk.errors import UsageError

pytestmark = pytest.mark.torch

Traced = Callable[[Callable[[str, Any], None]], None]
FIGURES = {"precision", "studies", "graphs", "greedy_identical", "label_agreement", "clue_flips", "clue_pairs"}


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.glob(".*")), "a half-written bundle was left beside its place"


def test_fp32_bundle_loads_and_writes_the_same_tokens(fp32_bundle: Path) -> None:
    manifest = Bundle.load(fp32_bundle).manifest
    parity = manifest.parity["fp32"]
    assert parity.keys() == FIGURES | {"max_probability_difference"}
    assert parity["studies"] == parity["greedy_identical"] == 6
    assert parity["label_agreement"] == 1.0
    assert parity["clue_flips"] == 0
    assert parity["graphs"].keys() == manifest.graphs.keys()


def test_the_random_model_writes_something_different_for_each_study(tiny_checkpoint: Path) -> None:
    """Else identical tokens would prove little."""
    from trrg_export.pytorch_run import run_pytorch
    from trrg_train.models.checkpoint import load_checkpoint

    loaded = load_checkpoint(tiny_checkpoint)
    ids = run_pytorch(loaded, loaded.parity_pixels()).ids
    assert len(set(ids)) >= 3
    assert min(map(len, ids)) >= 3


def test_files_are_those_of_the_contract(fp32_bundle: Path) -> None:
    manifest = Bundle.load(fp32_bundle).manifest
    graphs = {f"graphs/{name}.onnx" for name in ("vision", "clue_encoder", "fusion", "decoder")}
    arrays = {"tokenizer.json", "token_embedding.npy", "clue_bank.npz", "distance.npz", "model_card.md"}
    about = {"graphs/summary.json", "sbom.cdx.json"}
    drafts = {f"drafts/{name}.npy" for name in StoreArrays._fields}
    assert manifest.files.keys() == graphs | arrays | about | drafts
    assert oct(fp32_bundle.stat().st_mode)[-3:] == "755"


def test_manifest_says_how_long_prompt_and_report_may_be(fp32_bundle: Path) -> None:
    manifest = Bundle.load(fp32_bundle).manifest
    prompt = 3 + 4 + 14 + 1
    assert manifest.prompt_length(14) == prompt
    assert manifest.decoder.max_length == prompt + 12 + 32
    assert manifest.custom_clue.scale == 1.5
    assert manifest.custom_clue.threshold == 0.4


def test_nothing_tells_where_it_was_made(fp32_bundle: Path, tiny_checkpoint: Path) -> None:
    marks = [str(tiny_checkpoint.parent), str(Path(onnx.__file__).parents[1]), str(Path.home()), "stack_trace"]
    for path in fp32_bundle.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [mark for mark in marks if mark.encode() in content], path.name


def test_model_card_holds_commands_figures_and_the_warning(fp32_bundle: Path) -> None:
    card = (fp32_bundle / "model_card.md").read_text()
    for expected in ("Not for clinical use", "trrg-train stage2 tiny.toml", "Seed 7", "### phantoms", "auc: Edema"):
        assert expected in card


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_second_build_gives_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path, traced: Traced, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """The decoder's builder runs each time; the traced graphs have a test of their own."""
    # The commit may change while this runs.
    monkeypatch.setattr(describe, "code_version", lambda: "pinned")
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        build.export_bundle(tiny_checkpoint, folder, build.ExportOptions(precision))
    first, second = (Bundle.load(folder) for folder in folders)
    assert first.manifest.files == second.manifest.files
    assert all(file.reproducible for file in first.manifest.files.values())
    assert first.manifest_sha256 == second.manifest_sha256


def test_int8_is_smaller_and_agrees(fp32_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, traced: Traced) -> None:
    out = tmp_path / "int8"
    assert main([str(tiny_checkpoint), "--out", str(out), "--int8"]) == 0
    manifest = Bundle.load(out).manifest
    assert {graph.precision for graph in manifest.graphs.values()} == {"int8"}
    assert float(str(manifest.parity["int8"]["label_agreement"])) >= 0.99
    drift = manifest.parity["int8"]["graphs"]
    assert isinstance(drift, dict)
    assert 1e-5 < drift["vision"]["patch_joint"]["relative"] < 0.05, "nothing was quantized, or far too coarsely"
    for name in ("vision", "fusion", "decoder"):
        small, large = ((folder / "graphs" / f"{name}.onnx").stat().st_size for folder in (out, fp32_bundle))
        assert small < 0.6 * large, name


def _wrong_weight(graph: str, model: Any) -> None:
    if graph == "fusion":
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 2:
                tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))


def _wrong_name(graph: str, model: Any) -> None:
    if graph == "vision":
        model.graph.output[0].name = "features"
        for node in model.graph.node:
            for outputs in (node.input, node.output):
                for index, name in enumerate(outputs):
                    if name == "patches":
                        outputs[index] = "features"


@pytest.mark.parametrize(("change", "named"), [(_wrong_weight, "fusion.prompt_embeds"), (_wrong_name, "features")])
def test_a_graph_that_differs_gives_exit_6_and_no_bundle(
    tiny_checkpoint: Path,
    tmp_path: Path,
    traced: Traced,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[str, Any], None],
    named: str,
) -> None:
    traced(change)
    assert main([str(tiny_checkpoint), "--out", str(tmp_path / "bundle")]) == 6
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def _other_joint(graph: str, model: Any) -> None:
    if graph == "vision":
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 2:
                tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))


def test_clue_flips_have_a_limit_of_their_own(tiny_checkpoint: Path, tmp_path: Path, traced: Traced) -> None:
    traced(_other_joint)
    limits = ParityLimits(value=None, differing_texts=None, label_agreement=0.0, clue_flips=0.01)
    with pytest.raises(ParityError, match="of 84 clue scores change sides of their thresholds, the limit is 1%"):
        build.export_bundle(tiny_checkpoint, tmp_path / "bundle", build.ExportOptions(limits=limits))


def test_every_failure_is_listed(tiny_checkpoint: Path, tmp_path: Path, traced: Traced) -> None:
    traced(_wrong_weight)
    with pytest.raises(ParityError) as caught:
        build.export_bundle(tiny_checkpoint, tmp_path / "bundle", build.ExportOptions())
    text = str(caught.value)
    assert len(caught.value.failures) >= 3  # unseen sizes, values, tokens
    assert all(failure in text for failure in caught.value.failures)


def test_a_crash_half_way_leaves_nothing_and_spares_the_old_bundle(
    fp32_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    build.export_bundle(tiny_checkpoint, out, build.ExportOptions())
    before = (out / "manifest.json").read_bytes()

    def crash(*_: object, **__: object) -> None:
        assert len(list(tmp_path.iterdir())) == 3, "it is built beside its place, and so are the traced graphs"
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "compare", crash)
    with pytest.raises(KeyboardInterrupt):
        build.export_bundle(tiny_checkpoint, out, build.ExportOptions(force=True))
    assert (out / "manifest.json").read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_an_old_bundle_is_replaced_only_by_force(tiny_checkpoint: Path, tmp_path: Path, traced: Traced) -> None:
    out = tmp_path / "bundle"
    build.export_bundle(tiny_checkpoint, out, build.ExportOptions())
    (out / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="--force"):
        build.export_bundle(tiny_checkpoint, out, build.ExportOptions())
    build.export_bundle(tiny_checkpoint, out, build.ExportOptions(force=True))
    assert Bundle.load(out).manifest.model.name == "tiny"


def test_force_never_replaces_what_is_no_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="no bundle"):
        build.export_bundle(tiny_checkpoint, home, build.ExportOptions(force=True))
    assert os.listdir(home) == ["thesis.txt"]


def test_a_report_longer_than_the_models_positions_is_refused(tmp_path: Path, traced: Traced) -> None:
    short = {**tiny.LLM, "max_position_embeddings": 32}
    checkpoint = tiny.write_checkpoint(tmp_path / "short", llm=short)
    with pytest.raises(UsageError, match="32 positions"):
        build.export_bundle(checkpoint, tmp_path / "bundle", build.ExportOptions())


def test_only_a_bundles_own_engines_are_left_out_of_its_hashes(tmp_path: Path) -> None:
    """A bundle may lie below a folder of that name."""
    folder = tmp_path / "engines" / "bundle"
    for name in ("graphs/vision.onnx", "engines/tensorrt-rtx/vision.engine"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(name.encode())
    assert list(describe.shipped_hashes(folder)) == ["graphs/vision.onnx"]
    before = describe.bundle_id("mini", folder)
    (folder / "graphs/vision.onnx").write_bytes(b"other")
    assert describe.bundle_id("mini", folder) != before
