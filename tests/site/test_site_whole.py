"""The whole way of a study: a modality sends it, it is reported, and its structured report stands in the PACS."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra site")
pytest.importorskip("watchdog", reason="needs the extra site")
pytest.importorskip("highdicom", reason="needs the extra sr")

import pydicom

from tests.site.peers import LOCAL, dcmtk, free_port, listens, orthanc, run, started, until
from trrg_sdk.cli import build_parser, main
from trrg_sdk.errors import UsageError
from trrg_sdk.site.cli import _settled
from trrg_sdk.site.config import ReceiveConfig, read_site
from trrg_sdk.site.dicom_cli import _receive_config
from trrg_sdk.site.send_queue import SendQueue

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "data" / "phantom_pa.dcm"


def write_site(folder: Path, *, port: int, pacs: int) -> Path:
    (folder / "site.toml").write_text(
        f'[outputs]\nfolder = "out"\nformats = ["text", "sr"]\nsend_to = ["pacs"]\n'
        f'[receive]\nspool = "spool"\nport = {port}\nstudy_timeout_s = 0.5\n'
        "[limits]\nfree_mib = 0\n[watch]\nsettle_s = 0.1\nrescan_s = 1\nworkers = 1\n"
        f'[[nodes]]\nname = "pacs"\naet = "ORTHANC"\nhost = "{LOCAL}"\nport = {pacs}\n',
        encoding="utf-8",
    )
    return folder / "site.toml"


@pytest.mark.slow
def test_storescu_sends_a_study_and_its_report_comes_back_in_the_pacs(tmp_path: Path) -> None:
    port = free_port()
    us = {"AET": "TRRG", "Host": LOCAL, "Port": port, "AllowStorageCommitment": True}
    with orthanc(tmp_path / "pacs", modalities={"trrg": us}) as pacs:
        toml = write_site(tmp_path, port=port, pacs=pacs.port)
        command = [sys.executable, "-m", "trrg_sdk"]
        with (
            started([*command, "receive", "--site", toml], tmp_path / "receive.log"),
            started([*command, "watch", "--site", toml], tmp_path / "watch.log") as watch,
        ):
            until(lambda: listens(port), seconds=60)
            for aet, target in (("ORTHANC", pacs.port), ("TRRG", port)):
                assert run(dcmtk("storescu"), "-aec", aet, LOCAL, target, EXAMPLE).returncode == 0
            site = read_site(toml)
            queue = SendQueue(site.queue_file, site.queue)
            until(lambda: queue.counts() == {"committed": 1}, seconds=120)
            watch.terminate()
            assert watch.wait(timeout=60) == 0
        sent = pydicom.dcmread(EXAMPLE, stop_before_pixels=True)
        (study,) = pacs.studies()
        assert study["MainDicomTags"]["StudyInstanceUID"] == sent.StudyInstanceUID
        (report,) = [tags for tags in pacs.instances() if tags["Modality"] == "SR"]
        assert report["PatientID"] == str(sent.PatientID)
        assert (report["CompletionFlag"], report["VerificationFlag"]) == ("PARTIAL", "UNVERIFIED")
        evidence = report["CurrentRequestedProcedureEvidenceSequence"][0]["ReferencedSeriesSequence"][0]
        assert evidence["ReferencedSOPSequence"][0]["ReferencedSOPInstanceUID"] == sent.SOPInstanceUID
    for name in ("receive.log", "watch.log"):
        said = (tmp_path / name).read_text(encoding="utf-8")
        assert "Traceback" not in said
        for secret in (sent.StudyInstanceUID, sent.SOPInstanceUID, str(sent.PatientName), str(sent.PatientID)):
            assert secret not in said


@pytest.mark.parametrize("command", ["batch", "watch"])
@pytest.mark.parametrize("arguments", [(), ("in",), ("--out", "o")])
def test_without_a_site_the_folders_are_named(
    command: str, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *arguments]) == 2
    assert "name the folder of the studies and --out DIR" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["batch", "watch"])
def test_a_site_without_anything_to_read(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site.toml").write_text('[outputs]\nfolder = "out"\n', encoding="utf-8")
    assert main([command, "--site", str(tmp_path / "site.toml")]) == 2
    assert "names no folder to read" in capsys.readouterr().err


SITE = """
[model]
threads = 3
[outputs]
folder = "out"
formats = ["json"]
[watch]
folder = "in"
workers = 7
settle_s = 2
accept = ["inverted"]
"""


@pytest.mark.parametrize("command", ["batch", "watch"])
def test_an_option_comes_before_the_configuration_and_that_before_the_default(command: str, tmp_path: Path) -> None:
    toml = tmp_path / "site.toml"
    toml.write_text(SITE, encoding="utf-8")
    given = [command, "elsewhere", "--workers", "2", "--accept", "turned", "--site", str(toml)]
    settled, site = _settled(build_parser().parse_args(given))
    assert site == read_site(toml)
    assert (settled.folder, settled.workers, settled.accept) == ("elsewhere", 2, ["turned"])
    assert (settled.out, settled.format, settled.threads, settled.settle) == (tmp_path / "out", "json", 3, 2.0)
    assert (settled.device, settled.bundle, settled.deidentify) == ("auto", None, None)
    alone, none = _settled(build_parser().parse_args([command, "in", "--out", "out"]))
    assert (none, alone.workers, alone.format, alone.settle, alone.accept) == (None, 4, "text", 5.0, [])


def test_every_option_of_batch_and_watch_leaves_its_default_to_the_site() -> None:
    for command in ("batch", "watch"):
        parsed = vars(build_parser().parse_args([command]))
        assert {name for name, value in parsed.items() if value is not None} <= {"command", "dry_run"}


def test_a_batch_of_a_site_reports_and_queues_as_the_site_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = tmp_path / "site.toml"
    toml.write_text(
        '[outputs]\nfolder = "out"\nformats = ["text", "sr"]\nsend_to = ["pacs"]\n[watch]\nfolder = "in"\n'
        '[[nodes]]\nname = "pacs"\naet = "PACS"\nhost = "localhost"\nport = 104\n',
        encoding="utf-8",
    )
    (tmp_path / "in").mkdir()
    copyfile(EXAMPLE, tmp_path / "in" / "study.dcm")
    assert main(["batch", "--site", str(toml), "--settle", "0", "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert main(["batch", "--site", str(toml), "--settle", "0"]) == 0
    assert sorted(path.suffix for path in (tmp_path / "out" / "reports").iterdir()) == [".dcm", ".txt"]
    site = read_site(toml)
    assert [item.destination for item in SendQueue(site.queue_file, site.queue).items()] == ["pacs"]
    assert "1 done" in capsys.readouterr().out


def test_options_of_receive_come_before_the_configuration(tmp_path: Path) -> None:
    toml = tmp_path / "site.toml"
    receive = '[receive]\nspool = "spool"\nport = 104\npeers = ["10.0.0.0/8"]\nkeep_days = 3\n'
    toml.write_text(f'[outputs]\nfolder = "out"\n{receive}', encoding="utf-8")

    def received(*more: str) -> ReceiveConfig:
        config, limits, site = _receive_config(build_parser().parse_args(["receive", "--site", str(toml), *more]))
        assert site is not None and site.receive == config and limits == site.limits
        return config

    said = read_site(toml).receive
    assert said is not None and received() == said
    assert received("--port", "4242", "--aet", "OTHER") == replace(said, port=4242, aet="OTHER")
    with pytest.raises(UsageError, match="port: expected 1 to 65535"):
        received("--port", "0")
    toml.write_text('[outputs]\nfolder = "out"\n', encoding="utf-8")
    assert received("--spool", str(tmp_path / "s")).spool == tmp_path / "s"
    with pytest.raises(UsageError, match=r"no table \[receive\]"):
        received("--port", "4242")
