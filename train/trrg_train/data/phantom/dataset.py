"""A phantom data set on disk: DICOM files and the ``annotation.json`` that names, splits and describes them."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trrg_train.data.phantom.frame import stream
from trrg_train.data.phantom.study import PhantomStudy, make_study, patient_of

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
Task = tuple[str, int, int, int]
"""Folder, seed, index, size: plain values that any worker process can take."""


def write_dataset(out: Path, *, count: int, seed: int, size: int = 512, workers: int = 2) -> Path:
    """Render studies 0 .. count - 1 of a seed and write them with their truth.

    The files depend on seed, index and size only, not on the number of workers. ``annotation.json`` is written last:
    where it exists, the data set is complete.

    Args:
        out: Folder to write; made where it is missing. It must not hold a data set already.
        count: Number of studies, at least 1.
        seed: Names the data set.
        size: Rows and columns of each film in pixels.
        workers: Processes that render at once; 1 renders in this process.

    Returns:
        Path of ``annotation.json``: lists of records under "train", "val" and "test" (about 80/10/10 by patient).

    Raises:
        FileExistsError: If the folder already holds an ``annotation.json``.
        ValueError: If count or workers is below 1, or size is below 64.
    """
    if count < 1 or workers < 1:
        raise ValueError(f"count and workers must be at least 1, got count {count} and workers {workers}")
    annotation = out / "annotation.json"
    if annotation.exists():
        raise FileExistsError(f"{annotation} exists: choose another folder or delete the old data set")
    (out / "images").mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    tasks = [(str(out), seed, index, size) for index in range(count)]
    for done, record in enumerate(_render_all(tasks, workers), start=1):
        splits[split_of(seed, record["patient"])].append(record)
        if done % 200 == 0 or done == count:
            logger.info("phantom: %d of %d studies written", done, count)
    partial = annotation.with_suffix(".json.partial")
    partial.write_text(json.dumps(splits, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, annotation)
    return annotation


def split_of(seed: int, patient: str) -> str:
    """Return the split of a patient: a hash decides, so that it never depends on the number of studies."""
    digest = hashlib.sha256(f"{seed}/{patient}".encode()).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


def record_of(study: PhantomStudy, *, image: str) -> dict[str, Any]:
    """Return a study's record of ``annotation.json``: plain JSON values, with the report in words.

    Args:
        study: The study.
        image: Path of its image relative to the data set's folder.
    """
    from trrg_train.data.grammar import compose_report

    words = stream("phantom", study.seed, "report", study.index)
    return {
        "id": study.name,
        "patient": patient_name(study.seed, study.index),
        "image_path": [image],
        "view": study.view,
        "report": compose_report(study.findings, rng=words, view=study.view),
        "labels": study.labels,
        "findings": [asdict(finding) for finding in study.findings],
    }


def patient_name(seed: int, index: int) -> str:
    """Return the name of the patient of a study."""
    return f"phantom-{seed}-p{patient_of(index):05d}"


def _render_all(tasks: list[Task], workers: int) -> Iterator[dict[str, Any]]:
    """Yield the records in order, rendered here or by a pool of fresh processes."""
    if workers == 1:
        yield from map(_render, tasks)
        return
    # spawn, not fork: the caller may hold threads (torch, onnxruntime) that a fork would leave half alive.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_render, tasks, chunksize=8)


def _render(task: Task) -> dict[str, Any]:
    """Render one study, write its file and return its record."""
    from trrg_train.data.phantom.dicom_file import write_dicom

    out, seed, index, size = task
    study = make_study(seed, index, size=size)
    image = f"images/{study.name}.dcm"
    write_dicom(study, Path(out) / image)
    return record_of(study, image=image)
