"""The data sets that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trrg_sdk.errors import UsageError
from trrg_train.config import SourceConfig
from trrg_train.data.annotation_json import read_annotation_json
from trrg_train.data.dicom_folder import read_dicom_folder
from trrg_train.data.labelled_images import read_labelled_images
from trrg_train.data.mimic_cxr import read_mimic_cxr
from trrg_train.data.rexrank import read_rexrank
from trrg_train.data.study import Study

READERS: Mapping[str, Callable[[SourceConfig], list[Study]]] = {
    "annotation": lambda source: read_annotation_json(source.path, source=source.name),
    "labelled_images": lambda source: read_labelled_images(source.path, source=source.name, prefix=source.prefix),
    "mimic_cxr": lambda source: read_mimic_cxr(source.path, source=source.name),
    "rexrank": lambda source: read_rexrank(source.path, source=source.name),
    "dicom_folder": lambda source: read_dicom_folder(source.path, source=source.name),
}
"""Kind of a data set to its reader."""


def read_sources(sources: Sequence[SourceConfig]) -> list[Study]:
    """Read every source, for training and evaluation.

    Raises:
        UsageError: A source is of an unknown kind, unreadable, or a patient is in two splits.
    """
    studies = [study for source in sources for study in read_source(source)]
    check_splits(studies)
    return studies


def read_source(source: SourceConfig) -> list[Study]:
    """Read one source as it is, a patient in two splits included.

    Raises:
        UsageError: It is of an unknown kind or unreadable.
    """
    reader = READERS.get(source.kind)
    if reader is None:
        raise UsageError(f"the kind of a source must be one of {', '.join(READERS)}, not {source.kind!r}")
    return reader(source)


def repeated(studies: Sequence[Study], sources: Sequence[SourceConfig]) -> list[int]:
    """Indices of ``studies`` in which each stands as often as its source says."""
    repeat = {source.name: source.repeat for source in sources}
    return [index for index, study in enumerate(studies) for _ in range(repeat[study.source])]


def check_splits(studies: Sequence[Study]) -> None:
    """Refuse studies of one patient in two splits."""
    split: dict[tuple[str, str], str] = {}
    for study in studies:
        if split.setdefault((study.source, study.patient), study.split) != study.split:
            raise UsageError(f"a patient of {study.source} is in two splits (study {study.study_id})")
