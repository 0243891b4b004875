"""METEOR 1.5 as pycocoevalcap runs it: matching in Java, kept as sums over studies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.meteor.meteor import Meteor

from trrg_sdk.errors import UsageError
from trrg_train.evaluation.bootstrap import Statistic, ratio

NEEDS_JAVA = "needs Java"

# Denkowski and Lavie 2014, "Meteor Universal", table of language parameters, English.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase

# A line of the program: lengths and function words of both sides, then for each of four stages the matched content
# and function words of both sides, then chunks and matched words of both sides.
COLUMNS = 23
TEST_LENGTH, REFERENCE_LENGTH, TEST_FUNCTION, REFERENCE_FUNCTION = range(4)
STAGES = slice(4, 20)
CHUNKS, TEST_MATCHES, REFERENCE_MATCHES = range(20, 23)


def java_is_here() -> bool:
    """Whether a ``java`` command can be found."""
    return shutil.which("java") is not None


def meteor_statistics(systems: Sequence[Sequence[str]], references: Sequence[str]) -> list[Statistic]:
    """Score several systems in one Java process, which takes longer to start than to score.

    Args:
        systems: For each system K tokenised texts.
        references: K tokenised texts.

    Raises:
        UsageError: Java is not there or its process ended.
    """
    if not java_is_here():
        raise UsageError("METEOR needs Java: install a Java runtime so that `java -version` works, or leave METEOR out")
    with _program() as program:
        return [
            Statistic("METEOR", np.stack([_row(program, *pair) for pair in zip(texts, references, strict=True)]), score)
            for texts in systems
        ]


def score(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """METEOR of summed counts, float64 (R, 23) to (R,); equal to the program's own aggregate."""
    stages = sums[:, STAGES].reshape(len(sums), 4, 4)  # (R, stage, [test content, reference content, test function, …])
    weighted = (stages * STAGE_WEIGHTS[None, :, None]).sum(axis=1)  # (R, 4)
    test = _mixed(sums[:, TEST_LENGTH], sums[:, TEST_FUNCTION])
    reference = _mixed(sums[:, REFERENCE_LENGTH], sums[:, REFERENCE_FUNCTION])
    precision = np.nan_to_num(ratio(DELTA * weighted[:, 0] + (1 - DELTA) * weighted[:, 2], test))
    recall = np.nan_to_num(ratio(DELTA * weighted[:, 1] + (1 - DELTA) * weighted[:, 3], reference))
    mean = np.nan_to_num(ratio(precision * recall, ALPHA * precision + (1 - ALPHA) * recall))
    matches = (sums[:, TEST_MATCHES] + sums[:, REFERENCE_MATCHES]) / 2
    penalty = GAMMA * np.nan_to_num(ratio(sums[:, CHUNKS], matches)) ** BETA
    return np.where(sums[:, REFERENCE_LENGTH] > 0, mean * (1 - penalty), np.nan)


def _mixed(length: NDArray[np.float64], function: NDArray[np.float64]) -> NDArray[np.float64]:
    return DELTA * (length - function) + (1 - DELTA) * function


def _row(program: Any, prediction: str, reference: str) -> NDArray[np.float64]:
    row = np.array(program._stat(prediction, [reference]).split(), dtype=np.float64)
    if len(row) != COLUMNS:
        raise UsageError(f"METEOR's Java process gave {len(row)} of {COLUMNS} counts: it needs 2 GB of memory")
    whole = row[TEST_MATCHES] == row[TEST_LENGTH] and row[REFERENCE_MATCHES] == row[REFERENCE_LENGTH]
    if whole and row[CHUNKS] == 1:
        row[CHUNKS] = 0  # the program sets no penalty on a text that is its reference, in the aggregate too
    return row


@contextmanager
def _program() -> Iterator[Any]:
    program = Meteor()
    try:
        yield program
    finally:
        # Meteor.__del__ ends the process but leaves these two pipes open.
        program.meteor_p.stdout.close()
        program.meteor_p.stderr.close()
