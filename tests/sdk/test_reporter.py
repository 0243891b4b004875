from __future__ import annotations

import gc
import io
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from tokenizers import Tokenizer

from tests.sdk.chest_dicom import MARK, chest_bytes, chest_dataset, chest_pixels
from trrg_sdk import (
    Bundle,
    BundleError,
    Clue,
    DeviceError,
    DicomError,
    InputError,
    RefusedError,
    Report,
    Reporter,
    UsageError,
)
from trrg_sdk.backends import fake, open_decoder
from trrg_sdk.study import select

TINY = Path(__file__).parent / "tiny_bundle"
EFFUSION = "FINDINGS: There is a pleural effusion. No pneumothorax is seen. IMPRESSION: Pleural effusion."
HERNIA = Clue("Hiatal Hernia", "There is a hernia.", "There is no hernia.", threshold=0.25)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> Callable[..., Reporter]:
    """Make a reporter that sees the image through the fake backend and writes the text it is given."""

    def build(text: str = EFFUSION, **options: Any) -> Reporter:
        script = tokenizer.encode(text, add_special_tokens=False).ids
        opened = fake.open_backend(script=script)
        monkeypatch.setattr("trrg_sdk.reporter.open_backend", lambda **_: opened)
        return Reporter(TINY, **options)

    return build


def test_the_whole_way(make: Callable[..., Reporter]) -> None:
    report = make().report(chest_bytes())
    assert report.text == EFFUSION
    assert [sentence.section for sentence in report.sentences] == ["findings", "findings", "impression"]
    assert report.sentences[1].labels == {"Pneumothorax": "absent"}
    assert len(report.clues) == 14
    assert report.draft is True
    assert report.generation.stopped == "eos"
    assert all(sentence.logprob < 0 for sentence in report.sentences)
    assert Report.from_json(report.to_json()) == report


def test_provenance_says_what_made_it(make: Callable[..., Reporter]) -> None:
    made = make().report(chest_bytes()).provenance
    bundle = Bundle.load(TINY)
    assert made.bundle_id == bundle.manifest.bundle_id
    assert made.manifest_sha256 == bundle.manifest_sha256
    assert made.device == "cpu"
    assert made.precision == bundle.manifest.graphs["decoder"].precision
    assert made.intended_use == bundle.manifest.intended_use


def test_every_step_is_timed(make: Callable[..., Reporter]) -> None:
    timings = make().report(chest_bytes()).timings_ms
    assert set(timings) == {"load", "gate", "preprocess", "open", "perceive", "decode", "verify", "total"}
    assert sum(timings.values()) - timings["total"] <= timings["total"] + 0.1


def test_every_kind_of_source_gives_the_same(make: Callable[..., Reporter], tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    path = tmp_path / "study" / "one.dcm"
    path.write_bytes(chest_bytes())
    reporter = make()
    dataset = pydicom.dcmread(io.BytesIO(chest_bytes()))
    reports = [reporter.report(source) for source in (path, str(path), path.parent, path.read_bytes(), dataset)]
    assert {report.clues for report in reports} == {reports[0].clues}
    assert {report.images for report in reports} == {reports[0].images}
    array = reporter.report(chest_pixels().astype(np.float32))
    np.testing.assert_allclose(
        [clue.probability for clue in array.clues], [clue.probability for clue in reports[0].clues], atol=1e-3
    )
    assert array.images[0].sop_instance_uid == ""


def test_forced_scores_decide_the_verdicts(make: Callable[..., Reporter]) -> None:
    reporter = make()
    scores = {"Pleural Effusion": 0.97, "Pneumothorax": 0.99, "Fracture": 0.9}
    report = reporter.report(chest_bytes(), clue_scores=scores)
    assert [sentence.verdict for sentence in report.sentences] == ["supported", "contradicted", "supported"]
    assert report.clues["Pneumothorax"].probability == 0.99
    assert report.clues["Pneumothorax"].forced
    assert not report.clues["Edema"].forced
    evidence = report.sentences[1].evidence[0]
    assert (evidence.clue, evidence.forced, evidence.heat_peak) == ("Pneumothorax", True, None)
    assert {"Pneumothorax", "Fracture"} <= {omission.clue for omission in report.omissions}
    assert "Pleural Effusion" not in {omission.clue for omission in report.omissions}
    low = reporter.report(chest_bytes(), clue_scores={"Pleural Effusion": 0.0})
    assert low.sentences[0].verdict == "contradicted"


def test_perceived_evidence_points_into_the_patch_grid(make: Callable[..., Reporter]) -> None:
    peak = make().report(chest_bytes()).sentences[0].evidence[0].heat_peak
    assert peak is not None
    assert (peak.rows, peak.columns) == Bundle.load(TINY).manifest.patch_grid
    assert 0 <= peak.row < peak.rows
    assert 0 <= peak.column < peak.columns


@pytest.mark.parametrize("scores", [{"Pleural Effusion": 1.5}, {"effusion": 0.5}])
def test_a_wrong_forced_score_is_told_before_the_image_is_read(
    make: Callable[..., Reporter], scores: dict[str, float]
) -> None:
    with pytest.raises(UsageError):
        make().report(b"no image", clue_scores=scores)


def test_custom_clues_are_perceived_forced_and_listed(make: Callable[..., Reporter]) -> None:
    reporter = make(clues=[HERNIA])
    perceived = reporter.report(chest_bytes())
    assert perceived.clues.names[-1] == "Hiatal Hernia"
    assert perceived.clues["Hiatal Hernia"].threshold == 0.25
    forced = reporter.report(chest_bytes(), clue_scores={"Hiatal Hernia": 0.3})
    assert "Hiatal Hernia" in {omission.clue for omission in forced.omissions}
    bundled = make().report(chest_bytes())
    assert [clue.probability for clue in bundled.clues] == [clue.probability for clue in perceived.clues][:-1]


@pytest.mark.parametrize(
    "clues",
    [
        [Clue("Edema", "There is edema.", "There is no edema.")],
        [Clue("Long", "edema " * 200, "no edema")],
        [Clue(f"Clue {number}", "a", "b") for number in range(200)],
    ],
    ids=["name taken", "prompt too long", "too many"],
)
def test_a_wrong_custom_clue_is_refused_at_once(make: Callable[..., Reporter], clues: list[Clue]) -> None:
    with pytest.raises(UsageError):
        make(clues=clues)


def test_a_text_without_end_loses_its_last_half_sentence(make: Callable[..., Reporter]) -> None:
    report = make("No edema. " * 40 + "There is").report(chest_bytes())
    assert report.generation.stopped == "length"
    assert report.generation.tokens == Bundle.load(TINY).manifest.decoding.max_new_tokens
    assert report.text.endswith("edema.")
    assert any("longest length" in note for note in report.notes)


def test_an_empty_text_is_an_error(make: Callable[..., Reporter]) -> None:
    with pytest.raises(InputError) as caught:
        make("").report(chest_bytes())
    assert caught.value.code == "empty_report"


def test_a_study_is_reported_from_its_frontal_image(make: Callable[..., Reporter], tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(chest_bytes(uid="2.25.11", ViewPosition="LL"))
    (tmp_path / "b.dcm").write_bytes(chest_bytes(uid="2.25.12", ViewPosition="AP"))
    (tmp_path / "c.dcm").write_bytes(chest_bytes(uid="2.25.13", ViewPosition="PA"))
    (tmp_path / "d.dcm").write_bytes(chest_bytes(uid="2.25.14", PixelData=None))
    (tmp_path / "notes.txt").write_text("not an image")
    report = make().report(tmp_path)
    used = {image.sop_instance_uid: image.used for image in report.images}
    assert used == {"2.25.11": False, "2.25.12": False, "2.25.13": True}
    assert all(image.reason for image in report.images if not image.used)
    assert "no_pixels" in {reason.code for reason in report.gate.reasons}
    assert len(report.gate.reasons) >= 3


def test_a_study_without_a_frontal_image_is_refused_with_all_reasons(
    make: Callable[..., Reporter], tmp_path: Path
) -> None:
    (tmp_path / "a.dcm").write_bytes(chest_bytes(uid="2.25.11", ViewPosition="LL"))
    (tmp_path / "b.dcm").write_bytes(chest_bytes(uid="2.25.14", PixelData=None))
    with pytest.raises(RefusedError) as caught:
        make().report(tmp_path)
    assert len(caught.value.reasons) >= 2
    assert caught.value.code == caught.value.reasons[0].code  # type: ignore[attr-defined]  # typed as object there


def test_a_single_unreadable_file_keeps_its_own_error(make: Callable[..., Reporter], tmp_path: Path) -> None:
    (tmp_path / "b.dcm").write_bytes(chest_bytes(PixelData=None))
    for source in (tmp_path, tmp_path / "b.dcm"):
        with pytest.raises(DicomError) as caught:
            make().report(source)
        assert caught.value.code == "no_pixels"


def test_another_body_part_is_refused(make: Callable[..., Reporter]) -> None:
    with pytest.raises(RefusedError):
        make().report(chest_bytes(BodyPartExamined="FOOT"))


def test_many_keeps_order_and_makes_errors_outcomes(make: Callable[..., Reporter]) -> None:
    sources = [chest_bytes(), b"no image", chest_bytes(BodyPartExamined="FOOT"), chest_bytes(uid="2.25.5")]
    outcomes = list(make().report_many(sources))
    assert [outcome.index for outcome in outcomes] == [0, 1, 2, 3]
    assert [outcome.report is None for outcome in outcomes] == [False, True, True, False]
    assert [type(outcome.error) for outcome in outcomes] == [type(None), DicomError, RefusedError, type(None)]
    assert all(outcome.source is source for outcome, source in zip(outcomes, sources, strict=True))


def test_many_in_batches_of_one_takes_one_at_a_time_and_keeps_nothing(make: Callable[..., Reporter]) -> None:
    class Image(np.ndarray[Any, Any]):
        pass

    references: list[weakref.ref[Any]] = []

    def sources() -> Iterator[Any]:
        for _ in range(4):
            image = chest_pixels().view(Image)
            references.append(weakref.ref(image))
            yield image
            del image

    for count, outcome in enumerate(make().report_many(sources(), batch_size=1), start=1):
        assert len(references) == count
        del outcome
        gc.collect()
        alive = sum(reference() is not None for reference in references)
        assert alive <= 2, "the sources that were reported are still in memory"


def test_an_outcome_keeps_no_traceback(make: Callable[..., Reporter]) -> None:
    (outcome,) = make().report_many([b"no image"])
    assert outcome.error is not None
    assert outcome.error.__traceback__ is None
    assert outcome.error.__cause__ is None
    assert outcome.error.__context__ is None


def test_many_lets_programming_errors_through(make: Callable[..., Reporter], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    reporter = make()
    monkeypatch.setattr("trrg_sdk.examine.load", broken)
    with pytest.raises(ZeroDivisionError):
        next(reporter.report_many([chest_bytes()]))


def test_threads_may_share_a_reporter() -> None:
    reporter = Reporter(TINY, device="cpu", threads=1)
    sources = [chest_bytes(), chest_bytes(PhotometricInterpretation="MONOCHROME2", uid="2.25.77")] * 4

    def outcome(source: bytes) -> object:
        try:
            report = reporter.report(source)
        except InputError as error:
            return error.code
        return (report.text, report.clues)

    alone = [outcome(source) for source in sources]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(outcome, sources)) == alone


def test_nothing_of_the_patient_comes_out(
    make: Callable[..., Reporter], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    report = make().report(chest_bytes())
    shown = [repr(report), str(report), report.to_json(), caplog.text, repr(report.images)]
    for broken in ({"BodyPartExamined": "FOOT"}, {"PixelData": None}, {"Rows": 9999}, {"PatientOrientation": MARK}):
        (outcome,) = make().report_many([chest_dataset(**broken)])
        shown += [repr(outcome), str(outcome.error), repr(outcome.error)]
    shown += [caplog.text, *capfd.readouterr()]
    assert MARK not in "".join(shown)
    assert "19010203" not in "".join(shown)
    assert "19990807" not in "".join(shown)


def test_a_named_device_that_does_not_work_is_an_error() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine may have the device")
    with pytest.raises(DeviceError, match="cuda"):
        Reporter(TINY, device="cuda")


def test_a_folder_that_is_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        Reporter(tmp_path)


def test_a_failure_to_open_a_graph_reaches_the_caller(
    make: Callable[..., Reporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise BundleError("graphs/decoder.onnx is no graph")

    monkeypatch.setattr("trrg_sdk.engine.open_decoder", broken)
    reporter = make()
    with pytest.raises(BundleError, match="decoder.onnx"):
        reporter.report(chest_bytes())


def test_graphs_open_while_the_image_is_read(make: Callable[..., Reporter], monkeypatch: pytest.MonkeyPatch) -> None:
    read = threading.Event()

    def slow(*arguments: Any) -> Any:
        assert read.wait(10), "the reader waited for the graphs"
        return open_decoder(*arguments)

    def noticed(candidates: Any, **options: Any) -> Any:
        read.set()
        return select(candidates, **options)

    monkeypatch.setattr("trrg_sdk.engine.open_decoder", slow)
    monkeypatch.setattr("trrg_sdk.examine.select", noticed)
    reporter = make()
    assert reporter.report(chest_bytes()).text


def test_values_that_are_no_numbers_are_never_reported(
    make: Callable[..., Reporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    fusion = fake.FakeGraph._fusion

    def spoiled(self: Any, inputs: Any) -> Any:
        return {**fusion(self, inputs), "clue_logits": np.full((1, 14), np.nan, np.float32)}

    monkeypatch.setattr(fake.FakeGraph, "_fusion", spoiled)
    with pytest.raises(DeviceError, match="no numbers"):
        make().report(chest_bytes())


def test_a_reading_holds_what_filing_needs(make: Callable[..., Reporter]) -> None:
    reporter = make()
    reading = reporter.read(chest_bytes(uid="2.25.42"), clue_scores={"Edema": 0.9})
    assert reading.report.text == EFFUSION
    assert reading.report.clues["Edema"].forced
    assert reading.context is not None
    assert (reading.context.patient_id, reading.context.sop_instance_uid) == (MARK, "2.25.42")
    assert reading.picture is not None
    assert reading.picture.pixels.shape == chest_pixels().shape
    for evidence in (item for sentence in reading.report.sentences for item in sentence.evidence):
        if evidence.heat_peak is not None:
            heat = reading.picture.heat[evidence.clue]
            assert heat[evidence.heat_peak.row, evidence.heat_peak.column] == heat.max()
    assert MARK not in repr(reading)
    assert "2.25.42" not in repr(reading)


def test_a_patch_is_found_in_an_image_that_is_not_square(make: Callable[..., Reporter]) -> None:
    picture = make().read(chest_bytes()).picture
    assert picture is not None
    height, width = picture.pixels.shape
    assert height > width  # so the square has bands on both sides
    whole = picture.patch(0, 0, rows=1, columns=1)
    assert whole == (0.0, 0.0, height, width)
    top, left, bottom, right = picture.patch(1, 1, rows=2, columns=2)
    assert (top, bottom, right) == (height / 2, height, width)
    assert left == pytest.approx(width / 2, abs=1)
