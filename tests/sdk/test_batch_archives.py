"""Archives that `trrg batch` meets: read as they are, never unpacked, and passed over when they are hostile."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tests.sdk.chest_dicom import chest_bytes
from tests.sdk.conftest import Batch
from tests.sdk.site_folder import audited, put
from trrg_sdk.site import archive


def pack(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as stream:
        for name, content in members.items():
            stream.writestr(name, content)
    return put(path, path.read_bytes())


def test_an_archive_is_read_and_never_unpacked(batch: Batch, tmp_path: Path) -> None:
    inner = pack(tmp_path / "inner.zip", {"a": chest_bytes(study="2.25.3")}).read_bytes()
    members = {
        "a/b.dcm": chest_bytes(study="2.25.1"),
        "../../escaped": chest_bytes(study="2.25.2"),
        "inner.zip": inner,
        "note": b"hello",
    }
    pack(tmp_path / "in" / "export.ZIP", members, compression=zipfile.ZIP_DEFLATED)
    assert batch() == 0
    assert audited(tmp_path / "out").total() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "inner.zip", "out"]
    assert batch() == 0 and audited(tmp_path / "out").total() == 2


def test_hostile_archives_are_passed_over(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    pack(folder / "bomb.zip", {"a": bytes(archive.ALWAYS_ALLOWED + 1)}, compression=zipfile.ZIP_DEFLATED)
    pack(folder / "method.zip", {"a": b"x" * 99}, compression=zipfile.ZIP_BZIP2)
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    pack(folder / "many.zip", {str(n): b"x" for n in range(4)})
    put(folder / "cut.zip", pack(tmp_path / "c.zip", {"a": chest_bytes()}).read_bytes()[:-30])
    broken = bytearray(pack(tmp_path / "b.zip", {"a": chest_bytes()}).read_bytes())
    broken[5000] ^= 255  # the checksum does not fit any more
    put(folder / "broken.zip", bytes(broken))
    secret = bytearray(pack(tmp_path / "s.zip", {"a": b"x" * 99}).read_bytes())
    secret[6] |= 1
    secret[secret.index(b"PK\x01\x02") + 8] |= 1
    put(folder / "secret.zip", bytes(secret))
    assert batch() == 0
    said = capfd.readouterr().out
    assert "2 archive_bomb, 1 archive_broken, 1 archive_encrypted, 1 archive_method, 1 unreadable" in said


def test_an_archive_whose_members_share_their_bytes_is_a_bomb(batch: Batch, tmp_path: Path) -> None:
    content = bytearray(pack(tmp_path / "in" / "x.zip", {str(n): bytes(2000) for n in range(20)}).read_bytes())
    at = content.index(b"PK\x01\x02")
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        content[at + 20 : at + 28] = (9000).to_bytes(4, "little") * 2
        content[at + 42 : at + 46] = bytes(4)
    put(tmp_path / "in" / "x.zip", bytes(content))
    with pytest.raises(archive.BadArchive, match="archive_bomb"):
        archive.Archives().members(tmp_path / "in" / "x.zip", left_out=Counter())
