"""A study is known by its images' bytes, in whatever order they come, and by SHA-256 where its ledger is of then."""

import hashlib
import io
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.sdk.chest_dicom import chest_bytes
from tests.sdk.site_folder import audited, put
from tests.sdk.test_batch_desk import batch
from trrg_sdk.site import fingerprint, ledger

STUDY = "2.25.80001"
IMAGES = [
    chest_bytes(uid=f"2.25.9000{place}", study=STUDY, ViewPosition=view) for place, view in enumerate(("PA", "AP"))
]


def of(*images: bytes, like: bytes = b"") -> bytes:
    return fingerprint.of_parts([fingerprint.of_stream(io.BytesIO(image), like=like) for image in images], like=like)


def of_sha256(*images: bytes) -> bytes:
    """What a ledger held before: of this test alone, so that the code's own way to make it is tried."""
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(image).digest() for image in images))).digest()


def test_any_byte_counts_and_no_order() -> None:
    first, second = b"a" * 3_000_000, b"b"
    assert of(first, second) == of(second, first) != of(first, b"c")
    assert of(first) != of(first[:-1] + b"b")
    assert fingerprint.of_parts([fingerprint.of_bytes(first)]) == of(first)


def test_it_is_made_as_the_one_that_it_is_compared_with() -> None:
    images = (b"a" * 3_000_000, b"b")
    assert of(*images, like=of_sha256(b"another")) == of_sha256(*images)
    assert of(*images, like=of(b"another")) == of(*images) != of_sha256(*images)


@pytest.mark.parametrize("count", [1, 2])
def test_what_an_older_ledger_knows_is_not_reported_again(tmp_path: Path, count: int) -> None:
    files = [put(tmp_path / "in" / str(place), image) for place, image in enumerate(IMAGES[:count])]
    batch(tmp_path)
    with closing(sqlite3.connect(tmp_path / "out" / ledger.FILE)) as database, database:
        database.execute("UPDATE studies SET content = ?", (of_sha256(*IMAGES[:count]),))
    put(files[0], IMAGES[0], age_s=7200)  # touched, and the same
    batch(tmp_path)
    assert audited(tmp_path / "out").total() == 1
    put(files[0], chest_bytes(uid="2.25.90000", study=STUDY, ViewPosition="PA", PatientAge="056Y"))
    batch(tmp_path)
    assert audited(tmp_path / "out").total() == 2
