"""How a batch reads and writes: one after the other in what it says, several at once in what it does."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.sdk.chest_dicom import chest_bytes, chest_pixels
from tests.sdk.site_folder import REPOSITORY, TINY, audited, put, states, studies
from trrg_sdk import Reporter
from trrg_sdk.cli import main
from trrg_sdk.errors import DicomError, UsageError
from trrg_sdk.outputs import FORMATS, open_output
from trrg_sdk.reading import Picture, Reading
from trrg_sdk.site import outbox
from trrg_sdk.site.batch import _Desk
from trrg_sdk.site.ledger import Ledger, Row
from trrg_sdk.site.walk import Found, Tree


def batch(tmp_path: Path, *more: str) -> int:
    out = str(tmp_path / "out")
    return main(["batch", str(tmp_path / "in"), "--out", out, "--bundle", str(TINY), "--device", "cpu", *more])


def test_what_waits_is_written_together_and_in_order() -> None:
    written: list[list[int]] = []
    first, go_on = threading.Event(), threading.Event()

    def write(studies: Sequence[int]) -> None:
        written.append(list(studies))
        first.set()
        assert go_on.wait(30)

    with _Desk(write) as desk:
        desk.hand(0)
        assert first.wait(30)
        for number in range(1, 6):
            desk.hand(number)
        go_on.set()
    assert written == [[0], [1, 2, 3, 4, 5]]


def test_a_desk_is_never_far_behind() -> None:
    go_on, alive = threading.Event(), []

    def write(studies: Sequence[int]) -> None:
        assert go_on.wait(30)
        alive.clear()

    def hand_many(desk: _Desk[int]) -> None:
        for number in range(30):
            alive.append(number)
            desk.hand(number)

    with _Desk(write) as desk:
        thread = threading.Thread(target=hand_many, args=(desk,))
        thread.start()
        while len(alive) < 9:
            time.sleep(0.01)
        thread.join(0.1)  # it would hand over the rest at once if nothing held it
        assert thread.is_alive() and len(alive) == 9
        go_on.set()
        thread.join(30)
        assert not thread.is_alive()


def test_what_went_wrong_at_the_desk_is_raised() -> None:
    def write(studies: Sequence[int]) -> None:
        raise UsageError("full")

    with pytest.raises(UsageError, match="full"), _Desk(write) as desk:
        desk.hand(0)


def test_several_studies_are_in_the_ledger_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    row = Row(b"c", b"q", "m", "text", "done", "", "", {}, "2026-01-01T00:00:00.000+00:00")
    broken = replace(row, message="\ud800")  # no text in UTF-8
    with pytest.raises(UnicodeEncodeError):
        ledger.finish({b"a": (row, {"study": "a"}), b"b": (broken, {"study": "b"})})
    assert not ledger.rows()
    ledger.finish({b"a": (row, {"study": "a"}), b"b": (row, {"study": "b"})})
    assert set(ledger.rows()) == {b"a", b"b"} and audited(tmp_path) == {"a": 1, "b": 1}
    ledger.close()


def test_every_file_and_folder_is_on_the_disk_before_the_ledger_says_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real = outbox.os.fsync

    def synced(number: int) -> None:
        real(number)
        events.append(outbox.os.readlink(f"/proc/self/fd/{number}"))

    finish = Ledger.finish

    def finished(self: Ledger, ended: Any) -> None:
        events.append("finish")
        finish(self, ended)

    monkeypatch.setattr(outbox.os, "fsync", synced)
    monkeypatch.setattr(Ledger, "finish", finished)
    studies(tmp_path / "in", 1)
    assert batch(tmp_path, "--format", "text,json") in (0, 3)
    before = events[: events.index("finish")]
    name = next((tmp_path / "out" / "cards").iterdir()).stem
    out = (tmp_path / "out").resolve()
    assert {str(out / "cards" / f".{name}.html.partial"), str(out / "cards")} <= set(before)
    for path in (out / "reports").iterdir():
        assert str(path.with_name(f".{path.name}.partial")) in before


def test_no_file_is_closed_while_the_disk_still_works_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced, begun = outbox.os.fsync, list[str](), threading.Event()

    def sync(number: int) -> None:
        name = outbox.os.readlink(f"/proc/self/fd/{number}")
        if "full" in name:
            begun.wait(5)
            raise OSError(28, "No space left on device")
        begun.set()
        time.sleep(0.1)
        real(number)  # EBADF when it was closed meanwhile
        synced.append(name)

    monkeypatch.setattr(outbox.os, "fsync", sync)
    files = {tmp_path / name: b"x" for name in ("full", "a", "b")}
    with outbox.syncing() as pool, pytest.raises(UsageError, match="the disk is full"):
        try:
            outbox.write(files, pool)
        finally:
            found = len(synced)
    assert found == 2 and not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_any_more_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies(tmp_path / "in", 3)
    real, broken = Tree.read, []

    def read(self: Tree, found: Found) -> bytes:
        if found.path.endswith("s2/image"):
            broken.append(found)
            raise OSError("ZEBRA^PATIENT")
        return real(self, found)

    with monkeypatch.context() as patch:
        patch.setattr(Tree, "read", read)
        assert batch(tmp_path) == 3 and broken
    assert states(tmp_path / "out")["failed"] == 1
    assert "ZEBRA" not in (tmp_path / "out" / "summary.csv").read_text()
    batch(tmp_path)
    assert states(tmp_path / "out")["failed"] == 0


def test_a_file_that_grew_is_read_whole(tmp_path: Path) -> None:
    path = put(tmp_path / "in" / "file", b"x" * 10)
    tree = Tree(tmp_path / "in")
    (found,) = tree.walk()
    path.write_bytes(b"y" * 5000)
    assert tree.read(found) == b"y" * 5000


def test_the_small_picture_is_the_same_whether_the_whole_one_was_kept(tmp_path: Path) -> None:
    pixels = np.repeat(np.repeat(chest_pixels(), 6, axis=0), 6, axis=1)
    assert min(pixels.shape) > 1280, "large enough to be thinned"
    put(
        tmp_path / "in" / "large",
        chest_bytes(Rows=pixels.shape[0], Columns=pixels.shape[1], PixelData=pixels.tobytes()),
    )
    small, whole = tmp_path / "small", tmp_path / "whole"
    for folder, formats in ((small, "text"), (whole, "html")):
        folder.mkdir()
        (folder / "in").symlink_to(tmp_path / "in")
        batch(folder, "--format", formats, "--accept", "unlike_training")
    (one,), (other,) = ([p for p in (f / "out" / "pictures").iterdir()] for f in (small, whole))
    assert one.read_bytes() == other.read_bytes()
    with Image.open(one) as picture:
        assert picture.size == (330, 384)


def test_what_is_not_kept_of_images_is_gone_before_the_next_ones_come(tiny: Reporter) -> None:
    alive: list[weakref.ref[Any]] = []
    most, lock = 0, threading.Lock()

    def keep(picture: Picture) -> Picture:
        nonlocal most
        with lock:
            alive.append(weakref.ref(picture.pixels))
            most = max(most, sum(one() is not None for one in alive))
        return replace(picture, pixels=picture.pixels[:2, :2].copy())

    sources: list[Callable[[], bytes]] = [partial(chest_bytes, uid=f"2.25.{n + 1}") for n in range(20)]
    outcomes = list(tiny.report_many(sources, readings=True, keep=keep, workers=1))
    assert len(alive) == 20 and most <= 2, "the worker's and the caller's"
    assert all(one.reading and one.reading.picture and one.reading.picture.pixels.shape == (2, 2) for one in outcomes)


@pytest.fixture(scope="module")
def tiny() -> Reporter:
    return Reporter(TINY, device="cpu")


def test_bytes_are_fetched_when_their_turn_has_come(tiny: Reporter) -> None:
    content = chest_bytes()
    assert tiny.report(lambda: content).text == tiny.report(content).text

    def gone() -> bytes:
        raise OSError("ZEBRA^PATIENT")

    def wrong() -> bytes:
        raise KeyError("a bug of the caller's")

    with pytest.raises(KeyError):
        tiny.report(wrong)
    with pytest.raises(DicomError, match="it gave NoneType"):
        tiny.report(lambda: None)
    with pytest.raises(DicomError) as caught:
        tiny.report(gone)
    assert caught.value.code == "unreadable" and "ZEBRA" not in str(caught.value)


def test_a_study_whose_best_image_cannot_be_read_now_is_not_reported_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, other = (tmp_path / "in" / name for name in ("best", "other"))
    put(best, chest_bytes(uid="2.25.1", study="2.25.5", ViewPosition="PA"))
    put(other, chest_bytes(uid="2.25.2", study="2.25.5", ViewPosition="AP"))
    real = Tree.read

    def read(self: Tree, found: Found) -> bytes:
        if found.path.endswith("best"):
            raise OSError("gone")
        return real(self, found)

    with monkeypatch.context() as patch:
        patch.setattr(Tree, "read", read)
        assert batch(tmp_path) == 3
    assert states(tmp_path / "out") == {"failed": 1} and not list((tmp_path / "out" / "reports").iterdir())
    batch(tmp_path)
    assert states(tmp_path / "out") == {"done": 1}


@pytest.mark.parametrize(("formats", "whole"), [("text,json", False), ("json,html", True), ("text,fhir", False)])
def test_images_are_kept_whole_only_for_formats_that_show_them(
    formats: str, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "fhir" in formats:
        pytest.importorskip("fhir")
    kept: list[object] = []
    real = Reporter.report_many

    def report_many(self: Reporter, *arguments: Any, **options: Any) -> Any:
        kept.append(options["keep"])
        return real(self, *arguments, **options)

    monkeypatch.setattr(Reporter, "report_many", report_many)
    studies(tmp_path / "in", 1)
    batch(tmp_path, "--format", formats)
    assert [keep is None for keep in kept] == [whole] * len(kept) and kept


@pytest.fixture(scope="module")
def example() -> Reading:
    (path,) = (REPOSITORY / "examples" / "data").glob("*.dcm")
    reading = Reporter(device="cpu").read(path)
    assert any(one.heat_peak for sentence in reading.report.sentences for one in sentence.evidence)
    return reading


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_says_of_itself_is_true(name: str, example: Reading) -> None:
    try:
        output = open_output(name)
    except UsageError as error:
        pytest.skip(str(error))
    assert example.picture is not None
    small = replace(example, picture=replace(example.picture, pixels=example.picture.pixels[::3, ::3].copy()))
    assert (output.render(example) != output.render(small)) == output.SHOWS_IMAGE


@pytest.mark.parametrize("elements", [{}, {"PixelData": bytes(100)}], ids=["reported", "cannot be read"])
def test_the_only_image_of_a_new_study_is_read_once_and_its_bytes_are_known_again(
    elements: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(tmp_path / "in" / "image", chest_bytes(**elements))
    read: list[str] = []
    whole = Tree.read

    def counted(self: Tree, found: Found) -> bytes:
        read.append("whole")
        return whole(self, found)

    monkeypatch.setattr(Tree, "read", counted)
    monkeypatch.setattr("trrg_sdk.site.prepare._digest", lambda *_: read.append("digested"))
    batch(tmp_path)
    assert read == ["whole"]
    assert audited(tmp_path / "out").total() == 1
    monkeypatch.undo()
    put(file, file.read_bytes(), age_s=7200)
    batch(tmp_path)
    assert audited(tmp_path / "out").total() == 1  # touched, but the same bytes
    put(file, chest_bytes(**elements, PatientAge="056Y"))
    batch(tmp_path)
    assert audited(tmp_path / "out").total() == 2
