"""A folder of studies to a folder of reports: look, report what is new, remember; as often as one likes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from trrg_sdk.errors import DicomError, InputError, RefusedError, UsageError
from trrg_sdk.outputs.deidentify import deidentify
from trrg_sdk.reading import Reading
from trrg_sdk.report import Report
from trrg_sdk.reporter import Reporter
from trrg_sdk.site import outbox
from trrg_sdk.site.card import facts, reduced, refusal_card, report_card, thumbnail
from trrg_sdk.site.ledger import Ledger, Mark, Row, State
from trrg_sdk.site.look import Known, Options, Settling, look
from trrg_sdk.site.prepare import Prepared, Task, complete, prepare
from trrg_sdk.site.studies import Study
from trrg_sdk.site.walk import Tree
from trrg_sdk.version import __version__

REPORTS, CARDS, PICTURES = "reports", "cards", "pictures"

_PATIENCE = 10  # times the settle time: so long a cut-off file is taken for one that is still being written
_AHEAD = 2  # studies that each worker looks ahead
_BEHIND = 8  # studies that wait to be written
ItemT = TypeVar("ItemT")
TRY_AGAIN = ("unreadable",)  # the disk's fault, not the study's: looked at again in the next round


class Progress(Protocol):
    """Is told how it goes; ``trrg_sdk.site.progress`` has those that show it."""

    def start(self, studies: int) -> None:
        """So many studies are to be reported."""
        ...

    def advance(self, state: State) -> None:
        """One is finished."""
        ...

    def stop(self) -> None:
        """The round is over."""
        ...


@dataclass(slots=True)
class Tally:
    """What a round did and found.

    Attributes:
        finished: State → studies of this round.
        standing: State → studies of the folder, those of earlier rounds too.
        waiting: Studies that are still arriving.
        behind: Studies that the limit or a stop left.
        left_out: Why files were passed over → how many.
    """

    finished: Counter[str] = field(default_factory=Counter)
    standing: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    behind: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


class _Written(NamedTuple):
    """A study that is finished with: what it was read as, and what is to be written of it."""

    prepared: Prepared
    reading: Reading | None


class _Ended(NamedTuple):
    """What is written of a study: its files, its row and its line of the audit log."""

    study: Study
    row: Row
    files: dict[Path, bytes]
    audit: dict[str, str]


class _Desk(Generic[ItemT]):
    """Writes in a thread of its own, in order, so that the disk's time is not the model's; never far behind.

    What waits is written together: the disk then works for several studies at once, and is asked once to keep them.
    """

    def __init__(self, write: Callable[[Sequence[ItemT]], None]) -> None:
        self._write = write
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trrg-write")
        self._waiting: deque[ItemT] = deque()
        self._pending: deque[Future[None]] = deque()

    def hand(self, study: ItemT) -> None:
        """Take a study; raises what went wrong with earlier ones."""
        self._waiting.append(study)
        self._pending.append(self._thread.submit(self._write_waiting))
        while len(self._pending) > _BEHIND:
            self._pending.popleft().result()

    def _write_waiting(self) -> None:
        if studies := [self._waiting.popleft() for _ in range(len(self._waiting))]:
            self._write(studies)

    def __enter__(self) -> _Desk[ItemT]:
        return self

    def __exit__(self, *_: object) -> None:
        """Finish what was taken, also when the round is broken off: these studies are read and written."""
        self._thread.shutdown(wait=True)
        while self._pending:
            self._pending.popleft().result()


@dataclass(slots=True)
class _Round:
    marks: Mapping[bytes, Mark]
    tally: Tally
    progress: Progress
    stopped: Callable[[], bool]
    pool: ThreadPoolExecutor
    syncing: ThreadPoolExecutor
    desk: _Desk[_Written] = field(init=False)
    passed: int = 0

    def wait(self) -> None:
        """Leave a study that is still arriving for a later round."""
        self.tally.waiting += 1
        self.passed += 1


class Batch:
    """One folder, one output folder, one reporter. The caller holds the output folder's lock.

    Attributes:
        settle_s: The settle time.
    """

    def __init__(self, reporter: Reporter, tree: Tree, out: Path, *, ledger: Ledger, options: Options) -> None:
        """Prepare the output folder.

        Raises:
            UsageError: It cannot be written, or reporter and options override different codes.
        """
        self._reporter, self._tree, self._out = reporter, tree, out
        self._ledger, self._options = ledger, options
        if reporter.accept != options.accept:
            raise UsageError("the reporter and the options override different codes of the gate; give both the same")
        self.settle_s = options.settle_s
        self._keep = None if any(output.SHOWS_IMAGE for output in options.outputs) else reduced
        self._settling = Settling(options.settle_s)
        for folder in (out / REPORTS, out / CARDS, out / PICTURES):
            outbox.make_folder(folder)
            outbox.clean(folder)
        outbox.clean(out)

    def round(self, progress: Progress, stopped: Callable[[], bool]) -> Tally:
        """Look once, and report what is new.

        Args:
            progress: Is told.
            stopped: Asked before each study; those that were begun are finished.

        Raises:
            UsageError: The output folder cannot be written.
            DeviceError: The device failed.
        """
        known = Known(self._ledger.entries(), self._ledger.marks())
        bundle = self._reporter.bundle
        seen = look(self._tree, self._options, bundle, known, settling=self._settling, stopped=stopped)
        self._ledger.remember(seen.read, gone=seen.gone)
        tally = Tally(waiting=seen.waiting, left_out=seen.left_out)
        population = bundle.manifest.population
        todo = seen.todo[: self._options.limit]
        tasks = deque(Task(study, population, _content(known.marks.get(study.key))) for study in todo)
        progress.start(len(tasks))
        try:
            reading = ThreadPoolExecutor(self._options.workers, thread_name_prefix="trrg-read")
            with reading as pool, outbox.syncing() as syncing:
                run = _Round(known.marks, tally, progress, stopped, pool, syncing)
                with _Desk(lambda studies: self._finish(studies, run)) as run.desk:
                    while tasks and not stopped():
                        tasks = self._report(tasks, run)
        finally:
            progress.stop()
        tally.behind = len(seen.todo) - tally.finished.total() - run.passed
        states = self._ledger.states()
        tally.standing.update(states[study.key] for study in seen.studies if study.key in states)
        return tally

    def _report(self, tasks: deque[Task], run: _Round) -> deque[Task]:
        """Report one image of each study; what comes back are studies whose next image has to be tried."""
        sent: deque[Prepared] = deque()
        again: deque[Task] = deque()
        for outcome in self._reporter.report_many(self._images(tasks, run, sent), readings=True, keep=self._keep):
            prepared, error = sent.popleft(), outcome.error
            if error is not None and prepared.is_cut_off(error):
                run.wait()
            elif isinstance(error, (DicomError, RefusedError)) and error.code not in TRY_AGAIN:
                again.append(prepared.retry(error))
            else:
                run.desk.hand(_Written(replace(prepared, error=error), outcome.reading))
        return again

    def _images(self, tasks: deque[Task], run: _Round, sent: deque[Prepared]) -> Iterator[Callable[[], bytes]]:
        """Give the images in order; studies that need none are finished on the way."""
        for prepared in self._prepared(tasks, run):
            study, mark = prepared.task.study, run.marks.get(prepared.task.study.key)
            if prepared.waiting:
                run.wait()
            elif mark is not None and self._is_same(mark, prepared):
                self._ledger.unchanged(study.key, study.quick())
                run.passed += 1
            elif prepared.image is None:
                run.desk.hand(_Written(prepared, None))
            else:
                sent.append(prepared)
                yield prepared.image

    def _prepared(self, tasks: deque[Task], run: _Round) -> Iterator[Prepared]:
        """Look ahead in threads; give in order."""
        young_s = _PATIENCE * self._options.settle_s
        reading: deque[Future[Prepared]] = deque()
        while (tasks or reading) and not run.stopped():
            while tasks and len(reading) < _AHEAD * self._options.workers:
                reading.append(run.pool.submit(prepare, self._tree, tasks.popleft(), young_s=young_s))
            yield reading.popleft().result()

    def _is_same(self, mark: Mark, prepared: Prepared) -> bool:
        now = (self._reporter.bundle.manifest_sha256, self._options.formats, prepared.content)
        return (mark.manifest, mark.formats, mark.content) == now and mark.code not in TRY_AGAIN

    def _finish(self, studies: Sequence[_Written], run: _Round) -> None:
        """Bring the files of studies onto the disk, then say so in the ledger."""
        ended = [self._ended(prepared, reading) for prepared, reading in studies]
        outbox.write({path: content for one in ended for path, content in one.files.items()}, run.syncing)
        for one in ended:
            if one.study.key in run.marks:
                outbox.remove(self._of_before(one.study.name) - set(one.files))
            if one.row.state == "done" and self._options.filed is not None:
                self._options.filed([path for path in one.files if path.parent.name == REPORTS])
        self._ledger.finish({one.study.key: (one.row, one.audit) for one in ended})
        for one in ended:
            run.tally.finished[one.row.state] += 1
            run.progress.advance(one.row.state)

    def _ended(self, prepared: Prepared, reading: Reading | None) -> _Ended:
        study, files = prepared.task.study, {}
        if reading is not None:
            reading = replace(reading, report=complete(reading.report, self._tree, prepared))
            try:
                files = self._files(study.name, reading)
            except InputError as error:  # a format needs what this study does not have
                reading, prepared = None, replace(prepared, error=error)
        report = None if reading is None else reading.report
        row = self._row(prepared, report)
        card = report_card(study.name, row, report) if report else refusal_card(study.name, row, prepared.task.reasons)
        files[self._out / CARDS / f"{study.name}.html"] = card
        return _Ended(study, row, files, self._audit(study.name, row, report))

    def _row(self, prepared: Prepared, report: Report | None) -> Row:
        error = prepared.error
        code = getattr(error, "code", "")
        again = code in TRY_AGAIN
        return Row(
            content=prepared.content,
            quick=b"" if again else prepared.task.study.quick(),
            manifest=self._reporter.bundle.manifest_sha256,
            formats=self._options.formats,
            state="done" if report is not None else "refused" if isinstance(error, RefusedError) else "failed",
            code=code,
            message="" if error is None else str(error),
            facts={} if report is None else facts(report),
            finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )

    def _files(self, name: str, reading: Reading) -> dict[Path, bytes]:
        assert reading.picture is not None
        picture = thumbnail(reading.picture.pixels)
        if self._options.key:
            reading = deidentify(reading, self._options.key)
        outputs = self._options.outputs
        reports = {self._out / REPORTS / f"{name}{output.EXTENSION}": output.render(reading) for output in outputs}
        return {**reports, self._out / PICTURES / f"{name}.jpg": picture}

    def _of_before(self, name: str) -> set[Path]:
        return {path for folder in (REPORTS, PICTURES) for path in (self._out / folder).glob(f"{name}.*")}

    def _audit(self, name: str, row: Row, report: Report | None) -> dict[str, str]:
        provenance = {"bundle": self._reporter.bundle.manifest.bundle_id, "manifest_sha256": row.manifest}
        outcome = {"time": row.finished, "study": name, "outcome": row.state, "reason": row.code}
        outcome["overridden"] = ",".join(reason.code for reason in report.gate.overridden) if report else ""
        return {**outcome, **provenance, "formats": row.formats, "device": self._reporter.device, "sdk": __version__}


def _content(mark: Mark | None) -> bytes | None:
    return None if mark is None else mark.content
