"""A folder of studies to a folder of reports: look, report what is new, remember; as often as one likes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from trrg_sdk.dicom import Radiograph
from trrg_sdk.errors import InputError, RefusedError, UsageError
from trrg_sdk.outputs.deidentify import deidentify
from trrg_sdk.reading import Reading
from trrg_sdk.report import Report
from trrg_sdk.reporter import Reporter
from trrg_sdk.site import outbox
from trrg_sdk.site.card import facts, refusal_card, report_card, thumbnail
from trrg_sdk.site.ledger import Ledger, Mark, Row, State
from trrg_sdk.site.look import Known, Options, Settling, look
from trrg_sdk.site.prepare import Prepared, Task, complete, prepare
from trrg_sdk.site.walk import Tree
from trrg_sdk.version import __version__

REPORTS, CARDS, PICTURES = "reports", "cards", "pictures"

_PATIENCE = 10  # times the settle time: so long a cut-off file is taken for one that is still being written
_AHEAD = 2  # studies that each worker reads ahead
_BEHIND = 4  # studies that wait to be written
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


class _Desk:
    """Writes in a thread of its own, in order, so that the disk's time is not the model's; never far behind."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trrg-write")
        self._pending: deque[Future[None]] = deque()

    def hand(self, work: Callable[[], None]) -> None:
        """Take work; raises what went wrong with earlier work."""
        self._pending.append(self._thread.submit(work))
        while len(self._pending) > _BEHIND:
            self._pending.popleft().result()

    def __enter__(self) -> _Desk:
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
    desk: _Desk
    passed: int = 0


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
        tasks = deque(Task(study, population) for study in seen.todo[: self._options.limit])
        progress.start(len(tasks))
        try:
            with ThreadPoolExecutor(self._options.workers, thread_name_prefix="trrg-read") as pool, _Desk() as desk:
                run = _Round(known.marks, tally, progress, stopped, pool, desk)
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
        for outcome in self._reporter.report_many(self._images(tasks, run, sent), readings=True):
            prepared = sent.popleft()
            if isinstance(outcome.error, RefusedError):
                again.append(prepared.retry(outcome.error))
            else:
                self._hand(replace(prepared, error=outcome.error), outcome.reading, run)
        return again

    def _images(self, tasks: deque[Task], run: _Round, sent: deque[Prepared]) -> Iterator[Radiograph]:
        """Give the images in order; studies that need none are finished on the way."""
        for prepared in self._prepared(tasks, run):
            study, mark = prepared.task.study, run.marks.get(prepared.task.study.key)
            if prepared.waiting:
                run.tally.waiting += 1
                run.passed += 1
            elif mark is not None and self._is_same(mark, prepared):
                self._ledger.unchanged(study.key, study.quick())
                run.passed += 1
            elif prepared.radiograph is None:
                self._hand(prepared, None, run)
            else:
                sent.append(prepared)
                yield prepared.radiograph

    def _prepared(self, tasks: deque[Task], run: _Round) -> Iterator[Prepared]:
        """Read ahead in threads; give in order."""
        young_s = _PATIENCE * self._options.settle_s
        reading: deque[Future[Prepared]] = deque()
        while (tasks or reading) and not run.stopped():
            while tasks and len(reading) < _AHEAD * self._options.workers:
                reading.append(run.pool.submit(prepare, self._tree, tasks.popleft(), young_s=young_s))
            yield reading.popleft().result()

    def _is_same(self, mark: Mark, prepared: Prepared) -> bool:
        now = (self._reporter.bundle.manifest_sha256, self._options.formats, prepared.task.content)
        return (mark.manifest, mark.formats, mark.content) == now and mark.code not in TRY_AGAIN

    def _hand(self, prepared: Prepared, reading: Reading | None, run: _Round) -> None:
        run.desk.hand(lambda: self._finish(prepared, reading, run))

    def _finish(self, prepared: Prepared, reading: Reading | None, run: _Round) -> None:
        """Bring the files of a study onto the disk, then say so in the ledger."""
        study, files = prepared.task.study, {}
        if reading is not None:
            reading = replace(reading, report=complete(reading.report, self._tree, prepared))
            try:
                files = self._files(study.name, reading, prepared)
            except InputError as error:  # a format needs what this study does not have
                reading, prepared = None, replace(prepared, error=error)
        report = None if reading is None else reading.report
        row = self._row(prepared, report)
        card = report_card(study.name, row, report) if report else refusal_card(study.name, row, prepared.task.reasons)
        files[self._out / CARDS / f"{study.name}.html"] = card
        outbox.write(files)
        if study.key in run.marks:
            outbox.remove(self._of_before(study.name) - set(files))
        if report is not None and self._options.filed is not None:
            self._options.filed([path for path in files if path.parent.name == REPORTS])
        self._ledger.finish(study.key, row, audit=self._audit(study.name, row, report))
        run.tally.finished[row.state] += 1
        run.progress.advance(row.state)

    def _row(self, prepared: Prepared, report: Report | None) -> Row:
        error = prepared.error
        code = getattr(error, "code", "")
        again = code in TRY_AGAIN
        return Row(
            content=prepared.task.content,
            quick=b"" if again else prepared.task.study.quick(),
            manifest=self._reporter.bundle.manifest_sha256,
            formats=self._options.formats,
            state="done" if report is not None else "refused" if isinstance(error, RefusedError) else "failed",
            code=code,
            message="" if error is None else str(error),
            facts={} if report is None else facts(report),
            finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )

    def _files(self, name: str, reading: Reading, prepared: Prepared) -> dict[Path, bytes]:
        assert prepared.radiograph is not None
        if self._options.key:
            reading = deidentify(reading, self._options.key)
        outputs = self._options.outputs
        reports = {self._out / REPORTS / f"{name}{output.EXTENSION}": output.render(reading) for output in outputs}
        return {**reports, self._out / PICTURES / f"{name}.jpg": thumbnail(prepared.radiograph.pixels)}

    def _of_before(self, name: str) -> set[Path]:
        return {path for folder in (REPORTS, PICTURES) for path in (self._out / folder).glob(f"{name}.*")}

    def _audit(self, name: str, row: Row, report: Report | None) -> dict[str, str]:
        provenance = {"bundle": self._reporter.bundle.manifest.bundle_id, "manifest_sha256": row.manifest}
        outcome = {"time": row.finished, "study": name, "outcome": row.state, "reason": row.code}
        outcome["overridden"] = ",".join(reason.code for reason in report.gate.overridden) if report else ""
        return {**outcome, **provenance, "formats": row.formats, "device": self._reporter.device, "sdk": __version__}
