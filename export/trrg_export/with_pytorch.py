"""What takes PyTorch runs in a process that ends: its libraries are .4 GiB that nothing after it needs.

A process that has loaded PyTorch already runs it itself, since it holds them anyway.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener
from typing import Any

from trrg_export.memory import return_large
from trrg_sdk.errors import DeviceError

_LOGGER = "trrg_export"


def with_pytorch(module: str, function: str, *arguments: Any) -> Any:
    """Call a function of a module that imports PyTorch; what it logs comes out here.

    Args:
        module: Its full name.
        function: Its name there.
        arguments: Of the function; they and what it returns can be pickled.

    Returns:
        What the function returns.

    Raises:
        DeviceError: The process was ended by something else, such as a lack of memory.
    """
    if "torch" in sys.modules:
        return _called(module, function, *arguments)
    # A fresh process, not a fork: those of OpenMP and ONNX Runtime's threads that wait here would not be there.
    context = multiprocessing.get_context("spawn")
    records = context.Queue()
    level = logging.getLogger(_LOGGER).getEffectiveLevel()
    with (
        _heard(records),
        ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(records, level)) as processes,
    ):
        try:
            return processes.submit(_called, module, function, *arguments).result()
        except BrokenProcessPool as error:
            raise DeviceError(
                "the process that ran PyTorch was ended from outside: expected it to have the memory that the README "
                "states for an export; a script that exports needs `if __name__ == '__main__':` around it"
            ) from error


def _called(module: str, function: str, *arguments: Any) -> Any:
    return getattr(importlib.import_module(module), function)(*arguments)


def _begin(records: Any, level: int) -> None:
    return_large()
    logging.getLogger().addHandler(QueueHandler(records))
    logging.getLogger(_LOGGER).setLevel(level)


@contextmanager
def _heard(records: Any) -> Iterator[None]:
    """Hand on what the other process logs, to whoever listens to that logger here."""
    listener = QueueListener(records, _Here())
    listener.start()
    try:
        yield
    finally:
        listener.stop()
        records.close()


class _Here(logging.Handler):
    """Gives a record to the logger of its name."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)
