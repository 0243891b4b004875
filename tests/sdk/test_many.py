"""``report_many`` says what ``report`` says, in order, and takes no more ahead than it promises."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import trrg_sdk.examine
from tests.sdk.chest_dicom import chest_bytes, chest_pixels
from trrg_sdk import Bundle, DeviceError, DicomError, InputError, Outcome, RefusedError, Report, Reporter, UsageError
from trrg_sdk.backends import open_backend
from trrg_sdk.backends.onnxruntime import OrtBackend
from trrg_sdk.decoding.batch import BatchWriter, Finished
from trrg_sdk.decoding.greedy import Generation
from trrg_sdk.engine import Engine

TINY = Path(__file__).parent / "tiny_bundle"
DRAWN = ("unlike_training",)  # ellipses are far from the films of the embedded bundle


def image(seed: int) -> NDArray[np.float32]:
    """A chest with noise and another exposure for every seed."""
    noise = np.random.default_rng(seed)
    chest = chest_pixels().astype(np.float32)
    chest = chest / chest.max()
    rough = noise.random(chest.shape, np.float32)
    return np.asarray(chest ** noise.uniform(0.6, 1.6) + 0.15 * noise.random() * rough, np.float32)


def opaque(chest: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same with a bright field in the left upper lung."""
    rows, columns = chest.shape
    marked = chest.copy()
    marked[rows // 4 : rows // 2, int(columns * 0.6) : int(columns * 0.85)] = chest.max() * 0.8
    return marked


def mixture(count: int, *, seed: int) -> list[Any]:
    """Images with refusals and files that cannot be read at random places."""
    dice = random.Random(seed)
    broken: list[Any] = [b"no image", chest_bytes(BodyPartExamined="FOOT"), chest_bytes(PixelData=None)]
    return [dice.choice(broken) if dice.random() < 0.2 else image(seed * 1000 + number) for number in range(count)]


def said(outcome: Outcome) -> tuple[object, ...]:
    """All of an outcome but the timings, and the log-probabilities: those agree to rounding."""
    if outcome.report is None:
        assert outcome.error is not None
        return outcome.index, type(outcome.error), outcome.error.code, str(outcome.error)
    return outcome.index, *said_report(outcome.report)


def said_report(report: Report) -> tuple[object, ...]:
    sentences = [(one.text, one.section, one.labels, one.verdict, one.evidence) for one in report.sentences]
    return report.text, report.clues, sentences, report.omissions, report.gate, report.images, report.generation


def test_log_probabilities_agree_to_rounding(embedded: Reporter) -> None:
    for outcome in embedded.report_many([image(number) for number in range(10)]):
        assert outcome.report is not None
        alone = embedded.report(image(outcome.index))
        np.testing.assert_allclose(
            [one.logprob for one in outcome.report.sentences], [one.logprob for one in alone.sentences], atol=0.02
        )


def one_by_one(reporter: Reporter, sources: Sequence[Any]) -> list[tuple[object, ...]]:
    answers: list[tuple[object, ...]] = []
    for index, source in enumerate(sources):
        try:
            answers.append((index, *said_report(reporter.report(source))))
        except InputError as error:
            answers.append((index, type(error), error.code, str(error)))
    return answers


@pytest.fixture(scope="module")
def tiny() -> Reporter:
    return Reporter(TINY, device="cpu")


@pytest.fixture(scope="module")
def embedded() -> Reporter:
    return Reporter(device="cpu", accept=DRAWN)


@pytest.mark.parametrize("bundle", [TINY, None], ids=["tiny", "embedded"])
def test_the_reports_are_those_written_alone(bundle: Path | None) -> None:
    reporter, sources = Reporter(bundle, device="cpu", accept=DRAWN), mixture(70, seed=3)
    expected = one_by_one(reporter, sources)
    for batch_size, workers in ((8, 2), (3, 4)):
        made = [said(outcome) for outcome in reporter.report_many(sources, batch_size=batch_size, workers=workers)]
        assert made == expected
    errors = {answer[1] for answer in expected if isinstance(answer[1], type)}
    assert errors >= {DicomError, RefusedError}
    texts = [answer[1] for answer in expected if isinstance(answer[1], str)]
    assert len(texts) > (40 if bundle is None else 10)  # the tiny bundle's random weights often write nothing


def test_embedded_reports_differ_in_length_so_that_texts_leave_and_enter(embedded: Reporter) -> None:
    images = [image(number) if number % 2 else opaque(image(number)) for number in range(6)]
    expected = [embedded.report(one) for one in images]
    assert len({report.generation.tokens for report in expected}) > 1
    made = [outcome.report for outcome in embedded.report_many(images, batch_size=4)]
    assert [said_report(report) for report in made if report] == [said_report(report) for report in expected]


def test_forced_clues_hold_for_every_study(embedded: Reporter) -> None:
    forced = {"Pleural Effusion": 0.97}
    for size in (1, 4):
        outcomes = list(embedded.report_many([image(1), image(2)], clue_scores=forced, batch_size=size))
        assert all(outcome.report and outcome.report.clues["Pleural Effusion"].forced for outcome in outcomes)


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"workers": 0}, {"clue_scores": {"effusion": 0.5}}])
def test_options_that_make_no_sense_are_told_before_a_source_is_taken(tiny: Reporter, option: dict[str, Any]) -> None:
    def untouched() -> Iterator[bytes]:
        raise AssertionError("a source was taken")
        yield b""

    with pytest.raises(UsageError):
        tiny.report_many(untouched(), **option)


def test_an_endless_iterator_is_taken_no_further_than_stated_and_closing_ends_the_threads(tiny: Reporter) -> None:
    taken = itertools.count()
    furthest = -1

    def endless() -> Iterator[NDArray[np.float32]]:
        nonlocal furthest
        for furthest in taken:
            yield image(furthest % 5)

    outcomes = tiny.report_many(endless(), batch_size=3, workers=2)
    assert furthest == -1
    for expected in range(12):
        assert next(outcomes).index == expected
        assert furthest - expected < 2 * (3 + 2), "more sources are on their way than stated"
    assert any(thread.name.startswith("trrg-many") for thread in threading.enumerate())
    outcomes.close()  # type: ignore[attr-defined]  # a generator, typed as an iterator
    assert not any(thread.name.startswith("trrg-many") for thread in threading.enumerate())


def test_an_error_of_the_sources_comes_after_the_outcomes_before_it(embedded: Reporter) -> None:
    def failing() -> Iterator[Any]:
        yield image(0)
        yield b"no image"
        raise ConnectionError("the archive is gone")

    outcomes = embedded.report_many(failing())
    assert [next(outcomes).report is None, next(outcomes).report is None] == [False, True]
    with pytest.raises(ConnectionError):
        next(outcomes)


def test_another_error_is_raised_in_its_place(tiny: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    from trrg_sdk.dicom import load

    def broken(source: Any) -> Any:
        if isinstance(source, bytes):
            raise ZeroDivisionError
        time.sleep(0.02)  # the bug is found before the studies in front of it are read
        return load(source)

    monkeypatch.setattr("trrg_sdk.examine.load", broken)
    outcomes = tiny.report_many([image(0), image(1), b"bug", image(2)])
    assert [next(outcomes).index, next(outcomes).index] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(outcomes)
    assert not any(thread.name.startswith("trrg-many") for thread in threading.enumerate())


def test_a_decoder_of_one_text_writes_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, sources = Reporter(TINY, device="cpu"), mixture(12, seed=5)
    expected = one_by_one(reporter, sources)
    monkeypatch.setattr("trrg_sdk.backends.ort_decoder.OrtDecoder.batch", lambda *_: None)
    assert [said(outcome) for outcome in reporter.report_many(sources)] == expected


def test_texts_of_a_batch_that_fails_are_written_alone_and_it_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reporter, sources = Reporter(TINY, device="cpu"), mixture(20, seed=7)
    expected = one_by_one(reporter, sources)
    steps = itertools.count()

    def failing(self: BatchWriter) -> list[Finished]:
        if next(steps) == 5:
            raise DeviceError("no memory is left")
        return advance(self)

    advance = BatchWriter.advance
    monkeypatch.setattr(BatchWriter, "advance", failing)
    assert [said(outcome) for outcome in reporter.report_many(sources)] == expected
    assert "no memory is left" in caplog.text
    assert next(steps) == 6


def test_a_prompt_that_fails_is_raised_in_its_place(embedded: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever thread meets it, and however many later ones are written before it."""
    write, prompts = Engine.write, dict[int, Any]()

    def refuse(_: BatchWriter, number: int, prompt: Any) -> None:
        prompts[number] = prompt
        raise DeviceError("a logit is no number")

    def third(engine: Engine, prompt: Any, **options: Any) -> Generation:
        if prompt is prompts.get(2):
            raise DeviceError("a logit is no number")
        return write(engine, prompt, **options)

    monkeypatch.setattr(BatchWriter, "admit", refuse)
    monkeypatch.setattr(Engine, "write", third)
    outcomes = embedded.report_many([image(number) for number in range(6)], workers=1)
    seen = []
    with pytest.raises(DeviceError, match="no number"):
        for outcome in outcomes:
            seen.append(outcome.index)
    assert seen == [0, 1]


def test_near_ties_are_written_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, sources = Reporter(TINY, device="cpu"), mixture(20, seed=6)
    expected = one_by_one(reporter, sources)
    alone = 0
    write = Engine.write

    def counted(*arguments: Any, **options: Any) -> Generation:
        nonlocal alone
        alone += 1
        return write(*arguments, **options)

    monkeypatch.setattr(Engine, "write", counted)
    monkeypatch.setattr("trrg_sdk.engine.near_tie", lambda *_: float("inf"))
    assert [said(outcome) for outcome in reporter.report_many(sources)] == expected
    assert alone == sum(answer[1] not in (DicomError, RefusedError) for answer in expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_two_studies_are_read_at_once(embedded: Reporter, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Each waits for the other; beside one worker the caller's thread reads the other one."""
    barrier = threading.Barrier(2, timeout=30)
    load = trrg_sdk.examine.load

    def together(source: Any) -> Any:
        barrier.wait()
        return load(source)

    monkeypatch.setattr("trrg_sdk.examine.load", together)
    made = embedded.report_many([image(number) for number in range(6)], workers=workers)
    assert [outcome.index for outcome in made if outcome.report] == list(range(6))


@pytest.mark.parametrize("limit", [0, 64 << 20], ids=["large", "small"])
def test_small_graphs_perceive_with_one_thread_each_and_see_the_same(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("trrg_sdk.engine._SMALL", limit)
    opened: list[tuple[int, str]] = []
    graph = OrtBackend.graph

    def noted(self: OrtBackend, path: Path, **options: Any) -> Any:
        opened.append((self.threads, path.stem))
        return graph(self, path, **options)

    monkeypatch.setattr(OrtBackend, "graph", noted)
    bundle = Bundle.embedded()
    engine = Engine(bundle, open_backend(device="cpu", threads=2))
    pixels = np.random.default_rng(5).normal(size=(1, 192, 192)).astype(np.float32)
    override = engine.clues.override(None)
    alone, shared = (engine.perceive(pixels, override=override, shared=value) for value in (False, True))
    assert alone.scores == shared.scores
    np.testing.assert_array_equal(alone.prompt, shared.prompt)
    singles = {(1, "vision"), (1, "fusion")} if limit else set()
    assert set(opened) == {(2, "vision"), (2, "fusion")} | singles


def test_one_thread_is_not_divided() -> None:
    assert OrtBackend("cpu", 1).single() is None
    single = OrtBackend("cpu", 3).single()
    assert single is not None and single.threads == 1


def test_report_and_report_many_may_run_at_once(tiny: Reporter) -> None:
    sources = [image(number) for number in range(8)]
    expected = one_by_one(tiny, sources)

    def run(turn: int) -> list[tuple[object, ...]]:
        if turn % 2:
            return one_by_one(tiny, sources)
        return [said(outcome) for outcome in tiny.report_many(sources)]

    with ThreadPoolExecutor(4) as pool:
        assert all(answers == expected for answers in pool.map(run, range(4)))
