"""The whole way of a study: a modality sends it, it is reported, and its structured report stands in the PACS."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra site")
pytest.importorskip("watchdog", reason="needs the extra site")
pytest.importorskip("highdicom", reason="needs the extra sr")

import pydicom

from tests.site.peers import LOCAL, dcmtk, free_port, listens, orthanc, run, started, until
from trrg_sdk.cli import main
from trrg_sdk.site.config import read_site
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name the folder to watch and --out DIR"),
        (("in",), "name the folder to watch and --out DIR"),
        (
            ("--site", "site.toml", "--workers", "2"),
            "--site takes everything from the configuration, write there: workers",
        ),
        (("in", "--out", "o", "--site", "site.toml"), "write there: folder, out"),
    ],
)
def test_where_to_watch_is_said_once(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_site(tmp_path, port=104, pacs=105)
    assert main(["watch", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_site_without_anything_to_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site.toml").write_text('[outputs]\nfolder = "out"\n', encoding="utf-8")
    assert main(["watch", "--site", str(tmp_path / "site.toml")]) == 2
    assert "names no folder to watch" in capsys.readouterr().err


def test_the_defaults_of_watch_are_those_of_its_parser() -> None:
    from trrg_sdk.cli import build_parser
    from trrg_sdk.site.cli import _WATCH_DEFAULTS

    parsed = vars(build_parser().parse_args(["watch"]))
    assert {name: parsed[name] for name in _WATCH_DEFAULTS} == _WATCH_DEFAULTS
    assert set(parsed) - set(_WATCH_DEFAULTS) == {"command", "site"}
