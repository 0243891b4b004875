"""The data sets that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence

from trrg_sdk.errors import UsageError
from trrg_train.config import SourceConfig
from trrg_train.data.annotation_json import read_annotation_json
from trrg_train.data.labelled_images import read_labelled_images
from trrg_train.data.study import Study


def read_sources(sources: Sequence[SourceConfig]) -> list[Study]:
    """Read every source.

    Raises:
        UsageError: A source is of an unknown kind, unreadable, or a patient is in two splits.
    """
    studies = [study for source in sources for study in _read(source)]
    check_splits(studies)
    return studies


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


def _read(source: SourceConfig) -> list[Study]:
    if source.kind == "annotation":
        return read_annotation_json(source.path, source=source.name)
    if source.kind == "labelled_images":
        return read_labelled_images(source.path, source=source.name, prefix=source.prefix)
    raise UsageError(f"[[sources]] kind must be annotation or labelled_images, not {source.kind!r}")
