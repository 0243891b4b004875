"""The README tells the truth: its commands parse, its paths exist, its links resolve, its file map is complete."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
PARSERS = {"trrg": "trrg_sdk.cli", "trrg-train": "trrg_train.cli", "trrg-export": "trrg_export.cli"}
PACKAGE_FOLDERS = ("trrg_sdk", "train/trrg_train", "export/trrg_export")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

# Written in two parts so that this file does not find itself.
MACHINE_PATHS = tuple("/" + name for name in ("work/", "farm/", "opt/wheels", "opt/pypi", "tmp/", "home/", "root/"))
REGISTRY_HOSTS = tuple(
    "".join(parts)
    for parts in (("python", "hosted.org"), ("deb.", "debian.org"), ("registry.", "npmjs.org"), ("pypi", ".org/simple"))
)


def shell_lines(text: str) -> Iterator[str]:
    """Commands in the fenced shell blocks, continuation lines joined, prompts removed."""
    for language, block in FENCE.findall(text):
        if language in {"bash", "sh", "shell", "console"}:
            for line in block.replace("\\\n", " ").splitlines():
                yield line.strip().removeprefix("$ ")


@cache
def commands() -> tuple[tuple[str, str], ...]:
    """(document, command line) of every `trrg…` call and every `make` call."""
    return tuple(
        (name, line)
        for name in DOCUMENTS
        for line in shell_lines((REPOSITORY / name).read_text(encoding="utf-8"))
        if re.match(r"(trrg|make)\b", line)
    )


def test_the_two_set_up_commands_are_there() -> None:
    lines = {shlex.join(shlex.split(line, comments=True)) for name, line in commands() if name == "README.md"}
    assert {"make demo", "make test"} <= lines


@pytest.mark.parametrize(("document", "line"), commands())
def test_command_is_accepted(document: str, line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.M)
        assert arguments[0] in targets, f"{document} shows {line!r}"
        return
    parser = importlib.import_module(PARSERS[program]).build_parser()
    try:
        parser.parse_args(arguments)
    except SystemExit as stop:
        pytest.fail(f"{document} shows {line!r}, which the parser refuses ({stop.code})")


def test_every_program_is_shown() -> None:
    shown = {shlex.split(line)[0] for name, line in commands() if name == "README.md"}
    assert set(PARSERS) <= shown


def file_map() -> list[str]:
    """The first column of the block under the heading `File map`."""
    section = README.read_text(encoding="utf-8").split("## File map", maxsplit=1)[1]
    (_, block), *_ = FENCE.findall(section)
    return [line.split()[0] for line in block.splitlines() if line.strip()]


def test_the_file_map_names_only_what_exists() -> None:
    missing = [path for path in file_map() if not (REPOSITORY / path).exists()]
    assert not missing


def test_the_file_map_names_every_module() -> None:
    modules = {
        str(path.relative_to(REPOSITORY))
        for folder in PACKAGE_FOLDERS
        for path in (REPOSITORY / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert not modules - set(file_map()), "give each module its line in the README's file map"


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_local_links_resolve(document: str) -> None:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    for target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        assert not path or (REPOSITORY / path).exists(), f"{document} links to {target}"
        if anchor and not path:
            assert anchor in anchors(text), f"{document} links to #{anchor}"


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout, so no list of tracked files")
    return [REPOSITORY / name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def test_no_machine_path_and_no_registry_host() -> None:
    """Binary files too: an exporter may write the paths of the sources into an ONNX graph."""
    # A path starts after a quote, a blank, "=" and the like; a folder of the same name further inside is none.
    machine = re.compile(rb"(?<![\w.\-/])(?:" + b"|".join(re.escape(p.encode()) for p in MACHINE_PATHS) + rb")\w")
    hosts = re.compile(b"|".join(re.escape(host.encode()) for host in REGISTRY_HOSTS))
    found = []
    for path in tracked_files():
        data = path.read_bytes()
        for match in (*machine.finditer(data), *hosts.finditer(data)):
            line = data.count(b"\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(REPOSITORY)}:{line}: {data[match.start() : match.end() + 20]!r}")
    assert not found, "\n".join(found)
