"""Libraries that talk about their own way of working, silenced while they do."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_TALKATIVE = (
    "torch.onnx",
    "torch.export",
    "transformers",
    "onnxscript",
    "onnxruntime.quantization",
    "neural_compressor",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters that print and warn about what is no concern of the user; errors still come out."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
