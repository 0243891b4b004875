"""A bundle holds common sentences of the training reports, and its reports are the same without them."""

from __future__ import annotations

import dataclasses
import shutil
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")

from onnxruntime import SessionOptions

from trrg_export.build import ExportOptions
from trrg_export.cli import _options, build_parser
from trrg_export.decoder import decoder_spec, write_decoder
from trrg_export.drafts import add_drafts, largest_change
from trrg_export.precision.int4 import Int4
from trrg_export.pytorch_run import run_pytorch
from trrg_export.reference import Reference
from trrg_sdk.backends import onnxruntime, open_decoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding.alike import passes_agree
from trrg_sdk.decoding.choice import NEAR_TIE
from trrg_sdk.decoding.drafts import StoreDrafter
from trrg_sdk.decoding.options import Decoding
from trrg_sdk.decoding.store import ReportStore, StoreArrays
from trrg_sdk.engine import Engine
from trrg_sdk.errors import UsageError
from trrg_train.models.checkpoint import Checkpoint, load_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> Reference:
    return run_pytorch(checkpoint, checkpoint.parity_pixels()[:2])


@pytest.fixture
def bare(fp32_bundle: Path, tmp_path: Path) -> Bundle:
    """The bundle as it is before drafts are added."""
    shutil.copytree(fp32_bundle, tmp_path / "bare", ignore=shutil.ignore_patterns("drafts"))
    bundle = Bundle.load(fp32_bundle)
    return Bundle(tmp_path / "bare", dataclasses.replace(bundle.manifest, drafts=None), "")


def test_an_export_brings_drafts_and_says_what_they_hold(fp32_bundle: Path, checkpoint: Checkpoint) -> None:
    bundle = Bundle.load(fp32_bundle)
    drafts = bundle.manifest.drafts
    assert drafts
    assert drafts.near_tie >= NEAR_TIE["fp32"]
    assert "at least 2 of the 3 training reports: " in drafts.text
    assert {array.file for array in drafts.arrays()} <= bundle.manifest.files.keys()
    arrays = StoreArrays(*(bundle.array(array) for array in drafts.arrays()))
    store = ReportStore(arrays, vocabulary=bundle.manifest.tokenizer.vocab_size)
    begun = checkpoint.tokenizer.encode("FINDINGS: The lungs").ids
    goes_on = [token for token, _ in islice(StoreDrafter(store).line(begun), 8)]
    assert checkpoint.tokenizer.decode(goes_on).lstrip().startswith("are clear.")
    runs: list[tuple[int, ...]] = [()] * len(store)
    bounds = [*arrays.children.tolist(), len(store)]
    for place, (first, end) in enumerate(pairwise(bounds)):
        for child in range(first, end):
            runs[child] = (*runs[place], int(arrays.tokens[child]) - 1)
    lines = [(-1, *report) for report in checkpoint.train_reports() or ()]
    for run in runs[1:]:
        starts = (range(len(line) - len(run) + 1) for line in lines)
        holding = [
            any(line[at : at + len(run)] == run for at in some) for line, some in zip(lines, starts, strict=True)
        ]
        assert sum(holding) >= 2, checkpoint.tokenizer.decode(list(run))


def test_reports_are_the_same_without_drafts(fp32_bundle: Path, reference: Reference) -> None:
    bundle, backend = Bundle.load(fp32_bundle), onnxruntime.open_backend(device="cpu", threads=1)
    engines = [Engine(bundle, backend, decoding=Decoding(drafts=drafts)) for drafts in (True, False)]
    for prompt, expected in zip(reference.prompts, reference.ids, strict=True):
        assert [engine.write(prompt).ids for engine in engines] == [expected, expected]


def test_what_stands_in_fewer_reports_is_left_out(bare: Bundle, checkpoint: Checkpoint, reference: Reference) -> None:
    assert add_drafts(bare, checkpoint, reference, least=9) is None
    assert not (bare.folder / "drafts").exists()


def test_an_older_checkpoint_gives_a_bundle_without_drafts(
    bare: Bundle, checkpoint: Checkpoint, reference: Reference, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = tmp_path / "older"
    shutil.copytree(checkpoint.folder, older, ignore=shutil.ignore_patterns("reports.safetensors"))
    caplog.set_level("INFO", "trrg_export")
    assert add_drafts(bare, dataclasses.replace(checkpoint, folder=older), reference, least=1) is None
    assert "older trrg-train" in caplog.text


def test_the_margin_covers_what_was_measured(fp32_bundle: Path, reference: Reference) -> None:
    bundle = Bundle.load(fp32_bundle)
    decoder = open_decoder(onnxruntime.open_backend(device="cpu", threads=1), bundle)
    change = largest_change(decoder, bundle.token_embedding(), reference)
    assert bundle.manifest.drafts
    assert 0 < change < bundle.manifest.drafts.near_tie


@pytest.mark.parametrize("tokens", [1, 10**6])
def test_passes_agree_only_where_enough_was_read(
    bare: Bundle, checkpoint: Checkpoint, reference: Reference, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """A model that writes next to nothing shows no difference either."""
    monkeypatch.setattr("trrg_export.drafts.largest_change", lambda *_: 0.0)
    monkeypatch.setattr("trrg_export.drafts._TOKENS", tokens)
    monkeypatch.setattr("trrg_export.drafts._prove", lambda *_, **__: None)
    spec = add_drafts(bare, checkpoint, reference, least=2)
    assert spec
    assert spec.near_tie == (0.0 if tokens == 1 else NEAR_TIE["fp32"])


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_wide_decoder_gives_passes_of_any_width_the_same(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Up to the last of the model's positions, with drafts only."""
    llm = checkpoint.trrg().llm
    monkeypatch.setattr("trrg_export.decoder.WIDE", llm.config.hidden_size)
    longest = llm.config.max_position_embeddings
    spec = decoder_spec(llm, prompt=longest - 8, max_new_tokens=8)
    assert spec.max_length == longest
    table = llm.get_input_embeddings().weight.detach().numpy()
    for drafts in (True, False):
        path = tmp_path / f"{drafts}.onnx"
        write_decoder(checkpoint, path, precision=precision, int4=Int4(), reference=reference, drafts=drafts)
        assert any(node.op_type == "Pad" for node in onnx.load(str(path)).graph.node) is drafts
        decoder = onnxruntime.open_backend(device="cpu", threads=1).decoder(path, spec)
        assert passes_agree(decoder, table) or not drafts
        decoder.prefill(table[np.arange(longest - 3) % len(table)])
        rows = [decoder.step(table[5:6]).copy() for _ in range(3)]
        assert decoder.free == 0
        assert np.isfinite(rows).all()


def test_passes_in_fp16_are_never_said_to_agree(
    bare: Bundle, checkpoint: Checkpoint, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made for GPUs, and nothing here says what their kernels do."""
    opened: list[str] = []
    half = {**bare.manifest.graphs, "decoder": dataclasses.replace(bare.manifest.graphs["decoder"], precision="fp16")}
    bundle = Bundle(bare.folder, dataclasses.replace(bare.manifest, graphs=half), "")
    monkeypatch.setattr("trrg_export.drafts.largest_change", lambda *_: 0.0)
    monkeypatch.setattr("trrg_export.drafts._TOKENS", 1)
    monkeypatch.setattr(
        "trrg_export.comparing_backend.few_half_runs", lambda: opened.append("lean") or SessionOptions()
    )
    spec = add_drafts(bundle, checkpoint, reference, least=2)
    assert spec
    assert spec.near_tie == NEAR_TIE["fp16"]
    assert opened == ["lean"], "its weights would be held in fp16 and in fp32"


def test_a_checkpoint_keeps_the_tokens_of_its_reports(checkpoint: Checkpoint) -> None:
    reports = checkpoint.train_reports()
    assert reports
    assert len(reports) == 3
    assert {report[-1] for report in reports} == {2}
    assert checkpoint.tokenizer.decode(reports[0][:-1]).strip() == "FINDINGS: The lungs are clear."


def test_options() -> None:
    parser = build_parser()
    for words, expected in (([], 2), (["--no-drafts"], None), (["--draft-reports", "5"], 5)):
        arguments = parser.parse_args(["checkpoint", "--out", "bundle", *words])
        assert _options(arguments, "fp32").draft_reports == expected
    with pytest.raises(UsageError, match="draft-reports"):
        ExportOptions(draft_reports=0)
