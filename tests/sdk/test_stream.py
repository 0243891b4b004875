"""Sentences come while the report is written; drafts, streaming and drawing leave the report what it is."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trrg_sdk import Report, Reporter
from trrg_sdk.backends.base import Decoder
from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.cli import main
from trrg_sdk.decoding.alike import passes_agree
from trrg_sdk.decoding.choice import NEAR_TIE
from trrg_sdk.decoding.options import Decoding
from trrg_sdk.decoding.store import build_store
from trrg_sdk.errors import BundleError, UsageError
from trrg_sdk.manifest import ArraySpec, DraftsSpec
from trrg_sdk.report import Sentence
from trrg_sdk.uncertainty import compare_texts

(IMAGE,) = (Path(__file__).resolve().parents[2] / "examples" / "data").glob("*.dcm")


def plain(report: Report) -> Report:
    """A report without its times and without which bundle made it."""
    provenance = dataclasses.replace(report.provenance, bundle_id="", manifest_sha256="")
    return dataclasses.replace(report, timings_ms={}, provenance=provenance)


@pytest.fixture(scope="module")
def expected() -> Report:
    return Reporter(device="cpu", decoding=Decoding(drafts=False)).report(IMAGE)


@pytest.fixture(scope="module")
def drafting(expected: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded bundle with a store of what it writes about the example, and of a text that it does not write."""
    embedded = Bundle.embedded()
    folder = tmp_path_factory.mktemp("drafts") / "bundle"
    shutil.copytree(embedded.folder, folder)
    (folder / "drafts").mkdir()
    tokenizer = Tokenizer.from_file(str(embedded.tokenizer_path))
    eos = embedded.manifest.tokenizer.eos_token_id
    reports = [[*tokenizer.encode(text).ids, eos] for text in (expected.text, "FINDINGS: The lungs are clear.")]
    arrays, _ = build_store(reports, least=1)
    specs = {}
    for name, array in arrays._asdict().items():
        np.save(folder / "drafts" / f"{name}.npy", array)
        specs[name] = ArraySpec(f"drafts/{name}.npy", str(array.dtype), array.shape)
    spec = DraftsSpec(**specs, near_tie=0.1, text="a test's")
    write_manifest(folder, dataclasses.replace(embedded.manifest, drafts=spec))
    return folder


@pytest.fixture
def agreeing(drafting: Path, tmp_path: Path) -> Path:
    """The same from an export that saw passes of all widths agree."""
    folder = shutil.copytree(drafting, tmp_path / "agreeing")
    manifest = Bundle.load(folder).manifest
    assert manifest.drafts
    write_manifest(folder, dataclasses.replace(manifest, drafts=dataclasses.replace(manifest.drafts, near_tie=0.0)))
    return folder


@pytest.fixture(scope="module")
def reporter(drafting: Path) -> Reporter:
    return Reporter(drafting, device="cpu")


def test_a_report_with_drafts_is_the_report(reporter: Reporter, expected: Report) -> None:
    for _ in range(4):  # it drafts more and more
        made = reporter.report(IMAGE)
        logprobs = [[one.logprob for one in report.sentences] for report in (made, expected)]
        np.testing.assert_allclose(*logprobs, atol=0.01)
        same = [dataclasses.replace(one, logprob=0.0) for one in made.sentences]
        assert same == [dataclasses.replace(one, logprob=0.0) for one in expected.sentences]
        assert made.text == expected.text


@pytest.mark.parametrize("agree", [True, False])
def test_passes_that_agreed_in_the_export_are_tried_here(
    agreeing: Path, expected: Report, monkeypatch: pytest.MonkeyPatch, agree: bool
) -> None:
    monkeypatch.setattr("trrg_sdk.engine.passes_agree", lambda *_: agree)
    reporter = Reporter(agreeing, device="cpu")
    assert reporter.report(IMAGE).text == expected.text
    drafts = reporter._engine._drafting()
    assert drafts
    assert drafts.near_tie == (0.0 if agree else NEAR_TIE["int8"])


def test_passes_that_differed_in_the_export_are_not_tried(drafting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few would agree here by chance."""
    monkeypatch.setattr("trrg_sdk.engine.passes_agree", lambda *_: True)
    reporter = Reporter(drafting, device="cpu")
    reporter.report(IMAGE)
    drafts = reporter._engine._drafting()
    assert drafts
    assert drafts.near_tie == NEAR_TIE["int8"]


def test_a_batch_is_not_tried_where_single_positions_go_another_way(
    agreeing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trrg_sdk.engine.near_tie", lambda *_: 0.0)  # equal by chance
    engine = Reporter(agreeing, device="cpu")._engine
    assert engine.batch(2)
    assert engine._near_ties == {2: NEAR_TIE["int8"]}


def test_threads_that_look_at_once_try_the_decoder_once(
    agreeing: Path, expected: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def slowly(decoder: Decoder, table: NDArray[Any]) -> bool:
        tried.append(threading.get_ident())
        time.sleep(0.2)  # the others come meanwhile
        return passes_agree(decoder, table)

    monkeypatch.setattr("trrg_sdk.engine.passes_agree", slowly)
    outcomes = list(Reporter(agreeing, device="cpu").report_many([IMAGE] * 6, workers=3))
    assert [outcome.report and outcome.report.text for outcome in outcomes] == [expected.text] * 6
    assert len(tried) == 1


def test_sentences_come_one_by_one_and_then_the_report(expected: Report) -> None:
    reporter = Reporter(device="cpu")
    parts = list(reporter.stream(IMAGE))
    assert isinstance(parts[-1], Report)
    assert plain(parts[-1]) == plain(expected)
    assert tuple(parts[:-1]) == expected.sentences
    assert len(expected.sentences) > 2


def test_a_sentence_comes_before_the_text_is_finished(expected: Report) -> None:
    reporter = Reporter(device="cpu")
    first = next(writing := reporter.stream(IMAGE))
    assert first == expected.sentences[0]
    assert reporter._engine._decoder.result().free > 100  # the rest is not written yet
    writing.close()
    assert plain(reporter.report(IMAGE)) == plain(expected)  # nobody holds the decoder any more


def test_the_command_prints_sentences_first(expected: Report, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(IMAGE), "--stream", "--device", "cpu"]) == 0
    sentences, report = capfd.readouterr().out.split("\n\n", 1)
    assert sentences.splitlines() == [f"{one.verdict}: {one.text}" for one in expected.sentences]
    assert expected.sentences[0].text in report
    assert main(["report", str(IMAGE), "--stream", "--format", "json"]) == 2
    assert "--stream" in capfd.readouterr().err


def test_a_cancelled_stream_gives_no_report(expected: Report) -> None:
    reporter, cancel = Reporter(device="cpu"), threading.Event()
    parts = []
    for part in reporter.stream(IMAGE, cancel=cancel):
        parts.append(part)
        cancel.set()
    assert parts == [expected.sentences[0]]
    assert list(reporter.stream(IMAGE, cancel=cancel)) == []


def test_a_store_that_is_not_what_the_manifest_says_is_refused(drafting: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(drafting, folder)
    np.save(folder / "drafts" / "shorter.npy", np.zeros(3, np.uint32))
    write_manifest(folder, Bundle.load(drafting).manifest)
    with pytest.raises(BundleError, match=r"shorter\.npy"):
        Reporter(folder, device="cpu").report(IMAGE)
    assert Reporter(folder, device="cpu", decoding=Decoding(drafts=False)).report(IMAGE).text


def test_beams_stream_as_a_whole() -> None:
    reporter = Reporter(device="cpu", decoding=Decoding(beams=2))
    *sentences, report = reporter.stream(IMAGE)
    assert isinstance(report, Report)
    assert all(isinstance(one, Sentence) for one in sentences)
    assert tuple(sentences) == report.sentences


def test_drawn_texts_say_how_sure_the_report_is(expected: Report) -> None:
    reporter = Reporter(device="cpu")
    report, cold = reporter.uncertainty(IMAGE, samples=2, temperature=0.01)
    assert plain(report) == plain(expected)
    assert cold.distinct == 1
    assert set(cold.sentences) <= {1.0, None}
    assert cold.asserted["Pleural Effusion"] == 1.0
    _, hot = reporter.uncertainty(IMAGE, samples=6, temperature=3.0, seed=3)
    assert hot.distinct > 1
    assert (hot.samples, len(hot.sentences)) == (6, len(report.sentences))
    assert reporter.uncertainty(IMAGE, samples=6, temperature=3.0, seed=3)[1] == hot
    for wrong in ({"samples": 0}, {"temperature": 0.0}):
        with pytest.raises(UsageError, match="expected"):
            reporter.uncertainty(IMAGE, **wrong)  # type: ignore[arg-type]


def test_agreement_is_counted_by_observation() -> None:
    texts = ["There is a pleural effusion.", "No pleural effusion.", "There is a pleural effusion. No pneumothorax."]
    labels = [{"Pleural Effusion": "present"}, {"Pleural Effusion": "present", "Pneumothorax": "absent"}, {}]
    found = compare_texts(labels, texts)  # type: ignore[arg-type]
    assert found.sentences == (pytest.approx(2 / 3), pytest.approx(1 / 3), None)
    assert found.asserted["Pleural Effusion"] == pytest.approx(2 / 3)
    assert found.asserted["Edema"] == 0
    assert found.distinct == 3


@pytest.mark.parametrize("options", [{"beams": 0}, {"repetition_penalty": 0.0}, {"no_repeat_ngram_size": -1}])
def test_senseless_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Decoding(**options)  # type: ignore[arg-type]
