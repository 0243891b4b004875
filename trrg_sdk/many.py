"""Many studies: the next ones are read while texts are written together; the answers come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.decoding.batch import BatchWriter, Finished
from trrg_sdk.errors import InputError, TrrgError


class Seen(Protocol):
    """What was perceived of a study."""

    @property
    def prompt(self) -> NDArray[np.float32]:
        """What the decoder reads, (S, Dl)."""
        ...


SourceT = TypeVar("SourceT")
SeenT = TypeVar("SeenT", bound=Seen)
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Work(Generic[SourceT, SeenT, AnswerT]):
    """What is done with a study. Both functions run in several threads.

    Attributes:
        look: Reads and perceives a source; an input that cannot be reported is returned as its error.
        finish: Makes the answer of what was perceived and the text; where there is none, it writes one alone.
        open_batch: Opens the writer of several texts, or says that there is none. Called once, after a first ``look``.
    """

    look: Callable[[SourceT], SeenT | InputError]
    finish: Callable[[SeenT, Finished | None], AnswerT | InputError]
    open_batch: Callable[[], BatchWriter | None]


@dataclass(slots=True)
class _Study(Generic[SourceT, SeenT, AnswerT]):
    """A study on its way.

    Attributes:
        source: The input.
        seen: What is perceived of it.
        entered: Whether its text is being written or need not be.
        answer: None until its text is written.
    """

    source: SourceT
    seen: Future[SeenT | InputError]
    entered: bool = False
    answer: Future[AnswerT | InputError] | None = None

    @property
    def running(self) -> Future[Any] | None:
        """What runs in a thread or waits for one; None while the text is written or waits for room."""
        job: Future[Any] = self.seen if self.answer is None else self.answer
        return None if job.done() else job

    @property
    def answered(self) -> bool:
        """Whether it can be handed out."""
        return self.answer is not None and self.answer.done()


class Many(Generic[SourceT, SeenT, AnswerT]):
    """Takes sources, never more than a given number ahead of the answers that were handed out.

    Sources are taken and texts are written in the caller's thread, while it waits for the next answer; everything else
    happens in threads that live as long as the iterator.
    """

    def __init__(
        self,
        sources: Iterable[SourceT],
        work: Work[SourceT, SeenT, AnswerT],
        *,
        workers: int,
        ahead: int,
    ) -> None:
        """Take nothing yet.

        Args:
            sources: May be endless.
            work: What is done with each.
            workers: Threads.
            ahead: The most studies that were taken and not handed out.
        """
        self._sources = iter(sources)
        self._work = work
        self._workers = workers
        self._ahead = ahead
        self._studies: deque[_Study[SourceT, SeenT, AnswerT]] = deque()  # the first one is the next to hand out
        self._first = 0  # its number
        self._written: dict[int, tuple[_Study[SourceT, SeenT, AnswerT], SeenT]] = {}  # number → what is being written
        self._writer: BatchWriter | None = None
        self._opened = self._ended = False
        self._failure: Exception | None = None

    def answers(self) -> Generator[tuple[int, SourceT, AnswerT | InputError], None, None]:
        """Hand out each source's number, from 0, the source and its answer, in order.

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

    def _handed_out(self) -> tuple[int, SourceT, AnswerT | InputError]:
        study = self._studies.popleft()
        self._first += 1
        assert study.answer is not None
        return self._first - 1, study.source, study.answer.result()

    def _write(self, pool: ThreadPoolExecutor) -> None:
        """Let texts enter, and write one token of each; where there is none to write, wait."""
        for number, study in enumerate(self._studies, start=self._first):
            if not study.entered and study.seen.done():
                self._enter(number, study, pool)
        if self._writer and self._writer.active:
            for finished in self._writer.advance():
                self._finish(*self._written.pop(finished.key), finished, pool)
        elif not self._studies[0].answered:
            wait([job for study in self._studies if (job := study.running)], return_when=FIRST_COMPLETED)

    def _enter(self, number: int, study: _Study[SourceT, SeenT, AnswerT], pool: ThreadPoolExecutor) -> None:
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
        study: _Study[SourceT, SeenT, AnswerT],
        seen: SeenT,
        pool: ThreadPoolExecutor,
    ) -> None:
        if not self._opened:
            self._writer, self._opened = self._work.open_batch(), True
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
        study: _Study[SourceT, SeenT, AnswerT],
        seen: SeenT,
        finished: Finished | None,
        pool: ThreadPoolExecutor,
    ) -> None:
        study.entered = True
        study.answer = pool.submit(self._work.finish, seen, finished)
