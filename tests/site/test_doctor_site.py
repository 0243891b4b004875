"""``trrg doctor --site``: what works, what does not and why, and an exit code that says so."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra site")

from tests.site.peers import LOCAL, free_port
from tests.site.receiving import receiving
from trrg_sdk.backends import onnxruntime
from trrg_sdk.cli import main

TINY = Path(__file__).resolve().parents[1] / "sdk" / "tiny_bundle"


def write(folder: Path, *, port: int, more: str = "", bundle: Path = TINY, formats: str = '["text"]') -> str:
    text = (
        f'[model]\nbundle = "{bundle}"\ndevice = "cpu"\n[outputs]\nfolder = "out"\nformats = {formats}\n'
        f'[receive]\nspool = "spool"\nport = {port}\n[watch]\nfolder = "spool/ready"\n'
        f"[limits]\nfree_mib = 1\nreply_timeout_s = 5\n{more}"
    )
    (folder / "site.toml").write_text(text, encoding="utf-8")
    return str(folder / "site.toml")


def node(port: int, aet: str = "TRRG") -> str:
    return f'[[nodes]]\nname = "pacs"\naet = "{aet}"\nhost = "{LOCAL}"\nport = {port}\n'


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """What → (verdict, reason)."""
    rows = [(line[:8].strip(), line[9:25].strip(), line[26:]) for line in capsys.readouterr().out.splitlines()]
    return {what: (verdict, reason) for verdict, what, reason in rows}


def test_a_site_where_everything_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with receiving(tmp_path / "other") as peer:
        assert main(["doctor", "--site", write(tmp_path, port=free_port(), more=node(peer.port))]) == 0
    found = lines(capsys)
    assert {verdict for verdict, _ in found.values()} == {"ok"}
    assert "answers to C-ECHO" in found["node pacs"][1]
    assert not (tmp_path / "spool").exists(), "looking makes nothing"
    assert not (tmp_path / "out").exists()


def test_our_own_receiver_may_have_the_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with receiving(tmp_path / "spool") as ours:
        assert main(["doctor", "--site", write(tmp_path, port=ours.port)]) == 0
        assert "is listening there already" in lines(capsys)[f"port {ours.port}"][1]


def test_everything_that_fails_is_listed_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spool").write_text("in the way", encoding="utf-8")
    with socket.create_server((LOCAL, 0)) as taken, receiving(tmp_path / "other") as peer:
        port = taken.getsockname()[1]
        more = node(peer.port, aet="WRONG") + node(free_port()).replace("pacs", "down")
        path = write(tmp_path, port=port, more=more, bundle=tmp_path / "none", formats='["text", "xyz"]')
        text = Path(path).read_text(encoding="utf-8").replace("reply_timeout_s = 5", "reply_timeout_s = 1")
        Path(path).write_text(text.replace("free_mib = 1\n", "free_mib = 999999999\n"), encoding="utf-8")
        assert main(["doctor", "--site", path]) == 1
    found = lines(capsys)
    failed = {what: reason for what, (verdict, reason) in found.items() if verdict == "FAILED"}
    assert set(failed) == {
        "bundle",
        "format xyz",
        "outputs",
        "spool",
        f"port {port}",
        "node pacs",
        "node down",
    }
    assert "999999999 are to be kept" in failed["outputs"]
    assert "Address already in use" in failed[f"port {port}"]
    assert "called AE title not recognized" in failed["node pacs"]
    assert "Connection refused" in failed["node down"]
    assert found["format text"][0] == "ok"


def test_a_device_that_does_not_run_the_bundle_is_no_device_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that works, imitated; this bundle's decoder is none for GPUs."""
    monkeypatch.setattr(onnxruntime, "_device_failure", lambda _: None)
    path = Path(write(tmp_path, port=free_port()))
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('device = "cpu"', 'device = "cuda"'), encoding="utf-8")
    assert main(["doctor", "--site", str(path)]) == 1
    verdict, reason = lines(capsys)["device"]
    assert verdict == "FAILED"
    assert "expected a decoder that computes in float16" in reason


def test_an_open_receiver_and_an_unread_spool_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(write(tmp_path, port=free_port()))
    text = path.read_text(encoding="utf-8").replace("[receive]\n", '[receive]\nbind = "0.0.0.0"\n')
    path.write_text(text.replace('"spool/ready"', '"spool/open"'), encoding="utf-8")
    assert main(["doctor", "--site", str(path)]) == 0
    found = lines(capsys)
    assert found["who may send"] == ("warning", "anyone in the network: name receive.peers")
    assert found["watch"][0] == "warning"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    assert main(["doctor", "--site", write(tmp_path, port=free_port())]) == 1
    assert "may write to" in lines(capsys)["outputs"][1]


def test_a_wrong_configuration_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--site", write(tmp_path, port=0)]) == 2
    assert "receive.port: expected 1 to 65535, got 0" in capsys.readouterr().err
