"""A batch or a watch from its options to its end: lock, ledger, rounds, and the pages that are read afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from trrg_sdk.bundle import Bundle
from trrg_sdk.errors import UsageError
from trrg_sdk.reporter import Reporter
from trrg_sdk.site import index_page, lock, outbox, summary_table
from trrg_sdk.site.batch import CARDS, Batch, Progress, Tally
from trrg_sdk.site.ledger import Ledger, Row, peek
from trrg_sdk.site.look import Known, Look, Options, Settling, look
from trrg_sdk.site.walk import Tree

ROUNDS = 2
"""Looks of a batch: what was still arriving at the first has settled at the second, or is left for the next batch."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to do where.

    Attributes:
        folder: Studies.
        out: Our files.
        options: The rest.
    """

    folder: Path
    out: Path
    options: Options

    @contextmanager
    def opened(self, reporter: Reporter) -> Iterator[Open]:
        """Hold the output folder while inside.

        Raises:
            UsageError: A folder is missing, cannot be written, or belongs to another process.
        """
        tree = self.tree()
        outbox.make_folder(self.out)
        with lock.only_one(self.out), closing(Ledger(self.out)) as ledger:
            batch = Batch(reporter, tree, self.out, ledger=ledger, options=self.options)
            yield Open(batch, ledger, self.out)

    def tree(self) -> Tree:
        """The folder, without our own files.

        Raises:
            UsageError: It is none, or it lies inside of the output folder.
        """
        tree = Tree(self.folder, without=self.out)
        if tree.folder == self.out.resolve() or self.out.resolve() in tree.folder.parents:
            raise UsageError("--out: the output folder holds the input folder; choose another one")
        return tree

    def preview(self, bundle: Bundle) -> Look:
        """Say what a batch would do; nothing is written."""
        known = Known(*peek(self.out))
        settling = Settling(self.options.settle_s)
        return look(self.tree(), self.options, bundle, known, settling=settling, stopped=lambda: False)


@dataclass(frozen=True, slots=True)
class Open:
    """A job that holds its output folder."""

    batch: Batch
    ledger: Ledger
    out: Path

    def run(self, progress: Progress, stop: lock.Stop) -> Tally:
        """Report what is there, and what has settled when that is done.

        Args:
            progress: Is told.
            stop: Ends it after the study at hand.
        """
        tally = self.round(progress, stop)
        settle_s = self.batch.settle_s
        for _ in range(ROUNDS - 1):
            if not tally.waiting or tally.behind or stop.wait(settle_s):
                break
            before = tally.finished
            tally = self.round(progress, stop)
            tally.finished += before
        return tally

    def round(self, progress: Progress, stopped: Callable[[], bool]) -> Tally:
        """Do one round, and rewrite the pages when they are behind, also when it is broken off."""
        try:
            return self.batch.round(progress, stopped)
        finally:
            if not self.ledger.pages_are_current() or not (self.out / index_page.file_name(1)).exists():
                self._write_pages()

    def _write_pages(self) -> None:
        rows: dict[str, Row] = {key.hex()[:16]: row for key, row in self.ledger.rows().items()}
        files = {**index_page.pages(rows, self.out / CARDS), summary_table.FILE: summary_table.render(rows)}
        with outbox.syncing() as pool:
            outbox.write({self.out / name: content for name, content in files.items()}, pool)
        self.ledger.pages_written()


def open_outputs(names: str) -> Options:
    """Read a list of formats such as ``"text,json"``.

    Raises:
        UsageError: One of them does not exist.
    """
    from trrg_sdk.outputs import open_output

    chosen: Sequence[str] = list(dict.fromkeys(name.strip() for name in names.split(",")))
    return Options(outputs=[open_output(name) for name in chosen])
