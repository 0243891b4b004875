"""Many studies: the next ones are read while texts are written together; the answers come in order."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.decoding.batch import BatchWriter, Finished
from trrg_sdk.dicom import Source
from trrg_sdk.errors import InputError, TrrgError, UsageError
from trrg_sdk.reading import Reading
from trrg_sdk.report import Report


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one input of ``report_many``: exactly one of ``report`` and ``error`` is there.

    Attributes:
        index: Place of the input, from 0.
        source: The input as it was given. Not in the ``repr``: it may hold a patient's name.
        report: The report, or None.
        reading: The same with what filing it needs, where that was asked for; it holds patient data and the image.
        error: Why there is none, or None. Its traceback is cut off: it would keep the image in memory.
    """

    index: int
    source: Source = field(repr=False)
    report: Report | None = None
    reading: Reading | None = field(default=None, repr=False)
    error: InputError | None = None


class Seen(Protocol):
    """What was perceived of a study."""

    @property
    def prompt(self) -> NDArray[np.float32]:
        """What the decoder reads, (S, Dl)."""
        ...


_LOG = logging.getLogger(__name__)

SeenT = TypeVar("SeenT", bound=Seen)


@dataclass(frozen=True, slots=True)
class Work(Generic[SeenT]):
    """What is done with a study. Both functions run in several threads.

    Attributes:
        look: Reads and perceives a source; an input that cannot be reported is returned as its error.
        finish: Makes the answer of what was perceived and the text; where there is none, it writes one alone.
        open_batch: Opens the writer of so many texts, or says that there is none. Called once, after a first ``look``.
    """

    look: Callable[[Source], SeenT | InputError]
    finish: Callable[[SeenT, Finished | None], Reading | InputError]
    open_batch: Callable[[int], BatchWriter | None]


@dataclass(slots=True)
class _Study(Generic[SeenT]):
    """A study on its way.

    Attributes:
        source: The input.
        seen: What is perceived of it.
        entered: Whether its text is being written or need not be.
        answer: None until its text is written.
    """

    source: Source
    seen: Future[SeenT | InputError]
    entered: bool = False
    answer: Future[Reading | InputError] | None = None

    @property
    def running(self) -> Future[Any] | None:
        """What runs in a thread or waits for one; None while the text is written or waits for room."""
        job: Future[Any] = self.seen if self.answer is None else self.answer
        return None if job.done() else job

    @property
    def answered(self) -> bool:
        """Whether it can be handed out."""
        return self.answer is not None and self.answer.done()


def outcomes(
    sources: Iterable[Source], work: Work[SeenT], *, batch_size: int, workers: int
) -> Generator[Outcome, None, None]:
    """Work on every source; with a batch of 1 on one at a time, in the caller's thread alone.

    Args:
        sources: May be endless.
        work: What is done with each.
        batch_size: Texts to write together.
        workers: Threads beside the caller's.

    Returns:
        An iterator of outcomes, in order.

    Raises:
        UsageError: ``batch_size`` or ``workers`` is below 1.
    """
    for name, given in (("batch_size", batch_size), ("workers", workers)):
        if given < 1:
            raise UsageError(f"{name}: expected a whole number of at least 1, got {given}.")
    if batch_size == 1:
        return _alone(sources, work)
    return Many(sources, work, batch_size=batch_size, workers=workers).outcomes()


def _alone(sources: Iterable[Source], work: Work[SeenT]) -> Generator[Outcome, None, None]:
    for index, source in enumerate(sources):
        seen = work.look(source)
        yield _outcome(index, source, seen if isinstance(seen, InputError) else work.finish(seen, None))
        del source, seen


def _outcome(index: int, source: Source, answer: Reading | InputError) -> Outcome:
    if isinstance(answer, InputError):
        return Outcome(index, source, error=answer)
    return Outcome(index, source, report=answer.report, reading=answer if answer.picture else None)


class Many(Generic[SeenT]):
    """Takes sources, never more than a given number ahead of the answers that were handed out.

    Sources are taken and texts are written in the caller's thread, while it waits for the next answer; everything else
    happens in threads that live as long as the iterator. While there is room for another text, the caller's thread
    looks at studies too instead of writing few texts together: so it and the workers share the processor as the work
    demands, and there need not be more threads than processors, which would take turns and wait for each other.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        work: Work[SeenT],
        *,
        batch_size: int,
        workers: int,
    ) -> None:
        """Take nothing yet.

        Args:
            sources: May be endless.
            work: What is done with each.
            batch_size: Texts that are written together.
            workers: Threads beside the caller's.
        """
        self._sources = iter(sources)
        self._work = work
        self._batch_size = batch_size
        self._workers = workers
        self._ahead = 2 * (batch_size + workers)  # twice: while one text is long, others leave and wait for their turn
        self._studies: deque[_Study[SeenT]] = deque()  # the first one is the next to hand out
        self._first = 0  # its number
        self._written: dict[int, tuple[_Study[SeenT], SeenT]] = {}  # number → what is being written
        self._writer: BatchWriter | None = None
        self._opened = self._ended = False
        self._failure: Exception | None = None

    def outcomes(self) -> Generator[Outcome, None, None]:
        """Hand out an outcome for each source, in order.

        Raises:
            Exception: What a source's work or the iterator of sources raised, in its place in the order.
        """
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="trrg-many")
        try:
            while self._take(pool):
                self._write(pool)
                while self._studies and self._studies[0].answered:
                    yield self._handed_out()
            if self._failure:
                raise self._failure
        finally:
            pool.shutdown(cancel_futures=True)  # waits for what runs: no thread outlives the iterator

    def _take(self, pool: ThreadPoolExecutor) -> bool:
        """Take sources as far as is allowed; say whether there is anything left to do."""
        while not self._ended and len(self._studies) < self._ahead:
            try:
                source = next(self._sources)
            except StopIteration:
                self._ended = True
            except Exception as error:  # the caller's: it comes after the answers of what was taken before
                self._ended, self._failure = True, error
            else:
                self._studies.append(_Study(source, pool.submit(self._work.look, source)))
        return bool(self._studies)

    def _handed_out(self) -> Outcome:
        study = self._studies.popleft()
        self._first += 1
        assert study.answer is not None
        return _outcome(self._first - 1, study.source, study.answer.result())

    def _write(self, pool: ThreadPoolExecutor) -> None:
        """Let texts enter; fill the room for others, or write one token of each; where there is neither, wait."""
        for number, study in enumerate(self._studies, start=self._first):
            if not study.entered and study.seen.done():
                self._enter(number, study, pool)
        if self._studies[0].answered:  # handed out first: to look at another study takes long
            return
        if (self._writer is None or self._writer.room) and self._help():
            return
        if self._writer and self._writer.active:
            try:
                left = self._writer.advance()
            except TrrgError as error:  # of no single text: each is written alone, and fails in its place if it must
                _LOG.warning("a batch of texts failed (%s); from here on each is written alone", error)
                self._writer, left = None, [Finished(number, None, 0.0) for number in sorted(self._written)]
            for finished in left:
                self._finish(*self._written.pop(finished.key), finished, pool)
        else:
            wait([job for study in self._studies if (job := study.running)], return_when=FIRST_COMPLETED)

    def _help(self) -> bool:
        """Look at the first study that no worker has begun with; say whether there was one."""
        study = next((study for study in self._studies if study.seen.cancel()), None)
        if study is None:
            return False
        study.seen = Future()
        try:
            study.seen.set_result(self._work.look(study.source))
        except Exception as error:  # as in a worker: it is raised in its place in the order
            study.seen.set_exception(error)
        return True

    def _enter(self, number: int, study: _Study[SeenT], pool: ThreadPoolExecutor) -> None:
        """Start to write a text, if there is room; an error needs none."""
        if failure := study.seen.exception():
            study.entered, study.answer = True, Future()
            study.answer.set_exception(failure)
        elif isinstance(seen := study.seen.result(), InputError):
            study.entered, study.answer = True, Future()
            study.answer.set_result(seen)
        else:
            self._begin(number, study, seen, pool)

    def _begin(
        self,
        number: int,
        study: _Study[SeenT],
        seen: SeenT,
        pool: ThreadPoolExecutor,
    ) -> None:
        if not self._opened:
            self._writer, self._opened = self._work.open_batch(self._batch_size), True
        if self._writer is None:
            self._finish(study, seen, None, pool)
        elif self._writer.room:
            study.entered, self._written[number] = True, (study, seen)
            try:
                self._writer.admit(number, seen.prompt)
            except TrrgError:  # written alone it fails in the same way, and in its place in the order
                self._finish(*self._written.pop(number), None, pool)

    def _finish(
        self,
        study: _Study[SeenT],
        seen: SeenT,
        finished: Finished | None,
        pool: ThreadPoolExecutor,
    ) -> None:
        study.entered = True
        study.answer = pool.submit(self._work.finish, seen, finished)
