"""The example files of a site: complete, valid, and in step with the code, as far as this machine can tell."""

from __future__ import annotations

import configparser
import dataclasses
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from trrg_sdk.cli import build_parser
from trrg_sdk.site.config import SiteConfig, read_site

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples" / "site"
SITE = EXAMPLES / "site.toml"
UNITS = (EXAMPLES / "trrg-receive.service", EXAMPLES / "trrg-watch.service")
CONTAINER = EXAMPLES / "Containerfile"


def keys_of(kind: Any, prefix: str = "") -> set[str]:
    """Every dotted key of a configuration."""
    found = set()
    for name, hint in get_type_hints(kind).items():
        inner = [each for each in (hint, *get_args(hint)) if dataclasses.is_dataclass(each)]
        found |= keys_of(inner[0], f"{prefix}{name}.") if inner else {prefix + name}
    return found


def keys_in(table: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for name, value in table.items():
        inner = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        found |= keys_in(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {prefix + name}
    return found


def test_the_example_is_valid_and_names_every_key() -> None:
    read_site(SITE)
    assert keys_in(tomllib.loads(SITE.read_text(encoding="utf-8"))) == keys_of(SiteConfig)


def test_every_key_of_the_example_is_explained() -> None:
    assignments = [line for line in SITE.read_text(encoding="utf-8").splitlines() if re.match(r"\w+ = ", line)]
    bare = [line for line in assignments if not re.search(r"\s# \S", line)]
    assert len(assignments) > 25
    assert not bare


def test_the_example_says_the_defaults_where_it_says_most() -> None:
    site = read_site(SITE)
    assert site.limits == type(site.limits)()
    assert dataclasses.replace(site.queue, file=None) == type(site.queue)()
    assert site.receive is not None
    fields = {each.name: each.default for each in dataclasses.fields(site.receive)}
    same = {name for name, default in fields.items() if getattr(site.receive, name) == default}
    assert same == {"aet", "bind", "port", "study_timeout_s", "stop_timeout_s"}


def service_of(unit: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # directives have capitals
    parser.read(unit, encoding="utf-8")
    return parser["Service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_calls_commands_that_exist(unit: Path) -> None:
    service = service_of(unit)
    for directive in {"ExecStart", "ExecStartPre"} & set(service):
        program, *arguments = shlex.split(service[directive].lstrip("-"))
        assert Path(program).name == "trrg"
        build_parser().parse_args(arguments)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_may_write_where_the_example_says_and_waits_long_enough(unit: Path) -> None:
    site, service = read_site(SITE), service_of(unit)
    assert site.receive is not None
    written = {site.receive.spool.parent, site.outputs.folder.parent, site.queue_file.parent}
    assert written == {Path("/var/lib") / service["StateDirectory"]}
    assert float(service["TimeoutStopSec"]) > site.receive.stop_timeout_s


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze here: the unit's directives are not verified")
    # The program of the example is not installed here; anything that can be executed stands for it.
    text = unit.read_text(encoding="utf-8").replace("/opt/trrg/venv/bin/trrg", "/bin/true")
    (tmp_path / unit.name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [program, "verify", "--man=no", str(tmp_path / unit.name)], capture_output=True, text=True, timeout=60
    )
    about_it = [line for line in done.stderr.splitlines() if unit.name in line]
    assert not about_it, done.stderr


def instructions() -> list[tuple[str, str]]:
    """(instruction, its argument) of the Containerfile, continued lines joined."""
    lines = [line for line in CONTAINER.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def test_the_container_has_only_instructions_that_there_are() -> None:
    known = {"FROM", "RUN", "COPY", "WORKDIR", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    assert instructions()[0][0] == "FROM"
    assert {word for word, _ in instructions()} <= known


@pytest.mark.parametrize("command", [rest for word, rest in instructions() if word == "RUN"])
def test_the_container_runs_what_a_shell_can_parse(command: str) -> None:
    assert subprocess.run(["sh", "-n", "-c", command], capture_output=True, timeout=10).returncode == 0


def test_the_container_installs_as_the_readme_does() -> None:
    (pip,) = (rest for word, rest in instructions() if word == "RUN" and "pip install" in rest)
    install = shlex.split(pip.split("&&")[0])
    assert ".[cpu,site]" in install
    assert 'pip install ".[cpu,site]"' in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert install[install.index("-c") + 1] == "constraints.txt"


def test_the_container_starts_the_receiver_without_root() -> None:
    found = dict(instructions())
    arguments = [*tomllib.loads(f"x = {found['ENTRYPOINT']}")["x"], *tomllib.loads(f"x = {found['CMD']}")["x"]]
    assert arguments[0] == "trrg"
    build_parser().parse_args(arguments[1:])
    assert found["USER"] == "trrg"
    site = read_site(SITE)
    assert site.receive is not None
    assert found["EXPOSE"] == str(site.receive.port)
    volumes = {Path(text) for text in tomllib.loads(f"x = {found['VOLUME']}")["x"]}
    assert volumes == {site.receive.spool.parent, site.queue_file.parent}
