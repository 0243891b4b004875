"""Reports for ReXrank: its input file in, its output file out."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from trrg_sdk import dicom
from trrg_sdk.errors import DicomError, UsageError
from trrg_train.data.pixels import is_plain, read_plain
from trrg_train.data.rexrank import read_rexrank
from trrg_train.data.study import Study
from trrg_train.evaluation.rexrank import read_records, write_predictions
from trrg_train.writers import open_writer

LOG = logging.getLogger(__name__)


def write_submission(model: Path, *, input_json: Path, output_json: Path, images: Path) -> None:
    """Write a report for every study of an input file of ReXrank, from its frontal image.

    All images are read once before the first report is written, so that a bad one does not end a long run. A study that
    the gate of a bundle refuses gets an empty report, and a line in the log says so. The context of a record (age,
    indication, comparison) is not read by the model.

    Args:
        model: A stage-2 checkpoint or a bundle.
        input_json: Records with ``image_path``; a report is not needed.
        output_json: Written aside and renamed when all reports are there.
        images: The folder that ``image_path`` is relative to.

    Raises:
        UsageError: The input is malformed, an image cannot be read (names file and row), or the output has no folder.
    """
    if not output_json.parent.is_dir():
        raise UsageError(f"cannot write {output_json}: make its folder first")
    if not images.is_dir():
        raise UsageError(f"{images} is no folder; give the one that image_path is relative to")
    records = read_records(input_json)
    studies = read_rexrank(input_json, source="rexrank", images=images, reports=False)
    with tempfile.TemporaryDirectory() as cache:
        writer = open_writer(model, Path(cache))
        check_images(studies, input_json)
        written = writer.write(studies)
    refused = [row for row, report in enumerate(written) if report is None]
    if refused:
        message = "%d of %d studies are refused by the gate and get an empty report, first study %d"
        LOG.warning(message, len(refused), len(studies), refused[0])
    texts = {s.study_id: w.text if w else "" for s, w in zip(studies, written, strict=True)}
    write_predictions(records, output_json, texts)


def check_images(studies: Sequence[Study], where: Path) -> None:
    """Read the image of every study.

    Args:
        studies: In the order of the file.
        where: The file, for the message.

    Raises:
        UsageError: One cannot be read; names the file and the row of the study, from 0.
    """
    for row, study in enumerate(studies):
        try:
            if is_plain(study.image):
                read_plain(study.image)
            else:
                dicom.load(study.image)
        except (UsageError, DicomError) as error:
            raise UsageError(f"{where}: study {row}: {error}") from error
