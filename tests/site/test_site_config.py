"""The configuration of a site: everything wrong in it is named at once, and nothing passes unseen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from trrg_sdk.errors import UsageError
from trrg_sdk.site.config import LimitsConfig, QueueConfig, ReceiveConfig, SiteConfig, read_site

MINIMAL = '[outputs]\nfolder = "out"\n'
NODE = '[[nodes]]\nname = "pacs"\naet = "PACS"\nhost = "localhost"\nport = 104\n'


def read(folder: Path, text: str) -> SiteConfig:
    (folder / "site.toml").write_text(text, encoding="utf-8")
    return read_site(folder / "site.toml")


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(UsageError) as raised:
        read(folder, text)
    return [line.strip() for line in str(raised.value).splitlines()[1:]]


def test_the_least_that_a_site_says(tmp_path: Path) -> None:
    site = read(tmp_path, MINIMAL)
    assert site == SiteConfig(outputs=dataclasses.replace(site.outputs, folder=tmp_path / "out"))
    assert site.receive is None
    assert site.queue_file == tmp_path / "out" / "queue.sqlite"


def test_paths_start_at_the_file_and_absolute_ones_stay(tmp_path: Path) -> None:
    site = read(tmp_path, '[outputs]\nfolder = "/srv/out"\n[receive]\nspool = "spool"\n[watch]\nfolder = "a"\n')
    assert site.outputs.folder == Path("/srv/out")
    assert site.receive is not None
    assert site.receive.spool == tmp_path / "spool"
    assert site.watched == tmp_path / "a"


def test_what_is_received_is_watched_unless_another_folder_is(tmp_path: Path) -> None:
    assert read(tmp_path, f'{MINIMAL}[receive]\nspool = "s"\n').watched == tmp_path / "s" / "ready"
    assert read(tmp_path, MINIMAL).watched is None


def test_the_receiver_is_for_this_machine_unless_told_otherwise(tmp_path: Path) -> None:
    site = read(tmp_path, f'{MINIMAL}[receive]\nspool = "s"\n')
    assert site.receive is not None
    assert site.receive.bind == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "outputs: missing"),
        ("[outputs]\n", "outputs.folder: missing"),
        ("outputs = 3\n", "outputs: expected a table, got 3"),
        ('[outputs]\nfolder = ""\n', "outputs.folder: expected a path, got an empty text"),
        (f"{MINIMAL}formats = 'text'\n", "outputs.formats: expected a list, got 'text'"),
        (f"{MINIMAL}formats = [1]\n", "outputs.formats[0]: expected a text, got 1"),
        (f"{MINIMAL}fromats = []\n", "outputs.fromats: unknown key; did you mean formats?"),
        (f"{MINIMAL}[xyz]\n", "xyz: unknown key; known here: limits, model, nodes, outputs, queue, receive, watch"),
        (
            f'{MINIMAL}[model]\ndevice = "gpu"\n',
            "model.device: expected one of auto, cpu, cuda, openvino, tensorrt, tensorrt-rtx, got 'gpu'",
        ),
        (f"{MINIMAL}[model]\nthreads = 0\n", "model.threads: expected 1 to 1024, got 0"),
        (f"{MINIMAL}[model]\nthreads = true\n", "model.threads: expected a whole number, got True"),
        (f"{MINIMAL}[limits]\nobject_mib = 1.5\n", "limits.object_mib: expected a whole number, got 1.5"),
        (f"{MINIMAL}[limits]\nreply_timeout_s = nan\n", "limits.reply_timeout_s: expected a number, got nan"),
        (f"{MINIMAL}[limits]\nreply_timeout_s = 0\n", "limits.reply_timeout_s: expected 0.1 to 86400, got 0.0"),
        (f'{MINIMAL}[receive]\nspool = "s"\nbind = "host"\n', "receive: bind must be an IP address, not 'host'"),
        (
            f'{MINIMAL}[receive]\nspool = "s"\npeers = ["10.0.0.1/8"]\n',
            "receive: peers must be IP addresses or networks such as 10.1.2.0/24, got ('10.0.0.1/8',)",
        ),
        (MINIMAL + NODE + NODE, "the file: nodes: each needs its own name, given twice: pacs"),
        (
            f'[outputs]\nfolder = "o"\nsend_to = ["psca"]\n{NODE}',
            "the file: outputs.send_to: no such node: psca; there are: pacs",
        ),
        (MINIMAL + NODE.replace("104", "0"), "nodes[0].port: expected 1 to 65535, got 0"),
        (MINIMAL + NODE.replace("localhost", "a b"), "nodes[0].host: expected a host name or an address, got 'a b'"),
    ],
)
def test_each_problem_is_named(tmp_path: Path, text: str, expected: str) -> None:
    assert problems(tmp_path, text) == [expected]


def test_codes_of_the_gate_are_checked_when_the_file_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, f'{MINIMAL}[watch]\naccept = ["wrong_body_part"]\n').watch.accept == ("wrong_body_part",)
    (problem,) = problems(tmp_path, f'{MINIMAL}[watch]\naccept = ["wrong_knee"]\n')
    assert problem.startswith("watch: accept: there is no code 'wrong_knee'; these can be overridden: ")


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    text = '[outputs]\nformats = 1\n[receive]\nport = 0\nbind = 3\n[limits]\nfoo = 1\n[[nodes]]\nname = "A B"\n'
    assert {line.partition(":")[0] for line in problems(tmp_path, text)} == {
        "outputs.folder",
        "outputs.formats",
        "receive.spool",
        "receive.port",
        "receive.bind",
        "limits.foo",
        "nodes[0].name",
        "nodes[0].aet",
        "nodes[0].host",
        "nodes[0].port",
    }


@pytest.mark.parametrize("content", [b"a = ", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_what_is_no_toml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(UsageError, match="is no valid TOML"):
        read_site(tmp_path / "x.toml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the configuration"):
        read_site(tmp_path / "x.toml")


@pytest.mark.parametrize("kind", [LimitsConfig, ReceiveConfig, QueueConfig])
def test_defaults_are_in_their_own_ranges(kind: Any, tmp_path: Path) -> None:
    from trrg_sdk.site.strict_toml import from_table

    made = kind(spool=tmp_path) if kind is ReceiveConfig else kind()
    table = {key: value for key, value in dataclasses.asdict(made).items() if value is not None}
    plain = {
        key: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        for key, value in table.items()
    }
    assert from_table(kind, plain, base=tmp_path, label="defaults") == made
