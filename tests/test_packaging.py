"""What pip installs: the wheel's content, the extras against the imports, the size of the bare runtime."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trrg_sdk

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = {"trrg_sdk": "trrg_sdk", "trrg_train": "train/trrg_train", "trrg_export": "export/trrg_export"}
BUNDLE = "trrg_sdk/bundles/mini"
MAX_BARE_MEGABYTES = 250

# Distributions whose import name differs, or which are used through another one.
IMPORT_NAMES = {
    "cuda-bindings": "cuda",
    "cyclonedx-python-lib": "cyclonedx",
    "neural-compressor-pt": "neural_compressor",
    "packageurl-python": "packageurl",
    "pillow": "PIL",
    "onnxruntime-gpu": "onnxruntime",
    "onnxruntime-genai": "onnxruntime_genai",
}
USED_THROUGH = {
    "accelerate": "transformers.Trainer",
    "fhir.resources": "importlib, by the release of FHIR",
    "tensorboard": "torch.utils.tensorboard",
    "tensorrt-rtx": "importlib, by the name of the library",
    "onnxscript": "torch.onnx.export",
    "pylibjpeg": "pydicom's decoders",
    "pylibjpeg-libjpeg": "pydicom's decoders",
    "pylibjpeg-openjpeg": "pydicom's decoders",
    "pylibjpeg-rle": "pydicom's decoders",
}


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def distribution(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return found.group().lower().replace("_", "-")


def requirements(extra: str) -> set[str]:
    """The distributions of an extra, ``""`` for those of the bare project."""
    data = project()
    lines = data["optional-dependencies"][extra] if extra else data["dependencies"]
    return {distribution(line) for line in lines} - {"trrg-sdk"}


def import_name(name: str) -> str:
    return IMPORT_NAMES.get(name, name.replace("-", "_"))


def third_party_imports(package: str) -> Iterator[tuple[str, str]]:
    """(imported top name, file) of everything that is neither the standard library nor ours."""
    for path in sorted((REPOSITORY / PACKAGES[package]).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in {name.split(".", maxsplit=1)[0] for name in names}:
                if name not in sys.stdlib_module_names and name not in PACKAGES:
                    yield name, str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("trrg_sdk", ("", "cpu", "gpu", "openvino", "signature", "sr", "fhir", "hl7", "site", "tensorrt")),
        ("trrg_train", ("", "train", "cpu")),
        ("trrg_export", ("", "cpu", "train", "signature", "export", "gptq")),
    ],
)
def test_what_code_imports_is_declared(package: str, extras: tuple[str, ...]) -> None:
    declared = {import_name(name) for extra in extras for name in requirements(extra)}
    wrong = [f"{path} imports {name}" for name, path in third_party_imports(package) if name not in declared]
    assert not wrong, "\n".join(wrong)


def test_what_is_declared_is_used() -> None:
    imported = {name for package in PACKAGES for name, _ in third_party_imports(package)}
    declared = set().union(
        *(requirements(extra) for extra in ("", *project()["optional-dependencies"]) if extra != "dev")
    )
    unused = {name for name in declared - set(USED_THROUGH) if import_name(name) not in imported}
    assert not unused, f"no code imports {sorted(unused)}"


def test_no_extra_brings_both_onnxruntimes() -> None:
    for extra in ("", *project()["optional-dependencies"]):
        assert not {"onnxruntime", "onnxruntime-gpu"} <= requirements(extra), extra


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=REPOSITORY)
    (path,) = out.glob("*.whl")
    return path


def run(command: list[str], *, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_wheel_has_the_version_of_the_code(wheel: Path) -> None:
    assert wheel.name.startswith(f"trrg_sdk-{trrg_sdk.__version__}-")


def test_wheel_holds_the_bundle_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        manifest = json.loads(archive.read(f"{BUNDLE}/manifest.json"))
    missing = {f"{BUNDLE}/{name}" for name in manifest["files"]} - names
    assert manifest["files"], "an empty bundle"
    assert not missing
    assert any(re.fullmatch(r"trrg_sdk-[^/]+\.dist-info/licenses/LICENSE", name) for name in names)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert "trrg_sdk/outputs/report.schema.json" in names


def test_wheel_holds_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/", maxsplit=1)[0] for name in archive.namelist()}
        tests = [name for name in archive.namelist() if "test" in Path(name).name and name.endswith(".py")]
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert not tests


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the runtime and nothing else, as a hospital installs it."""
    home = tmp_path_factory.mktemp("bare")
    run([sys.executable, "-m", "venv", str(home / "venv")], cwd=home)
    python = str(home / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    run([*pip, "-c", str(REPOSITORY / "constraints.txt"), f"trrg-sdk[cpu] @ {wheel.as_uri()}"], cwd=home)
    return home / "venv"


def site_packages(environment: Path) -> Path:
    (folder,) = environment.glob("lib/python3*/site-packages")
    return folder


def installed_bytes(folder: Path) -> dict[str, int]:
    """Bytes of each distribution's files as its RECORD lists them (bytecode written at install has no size there)."""
    sizes = {}
    for record in folder.glob("*.dist-info/RECORD"):
        name = record.parent.name.split("-", maxsplit=1)[0].lower()
        rows = csv.reader(io.StringIO(record.read_text(encoding="utf-8")))
        sizes[name] = sum(int(row[2]) for row in rows if row[2])
    return sizes


@pytest.mark.slow
def test_bare_install_is_small(bare: Path) -> None:
    sizes = installed_bytes(site_packages(bare))
    brought = {name: size for name, size in sizes.items() if name not in {"pip", "setuptools"}}
    megabytes = sum(brought.values()) / 1e6
    largest = sorted(brought.items(), key=lambda item: -item[1])[:8]
    assert "trrg_sdk" in brought
    assert megabytes < MAX_BARE_MEGABYTES, f"{megabytes:.0f} MB; the largest: {largest}"


@pytest.mark.slow
def test_bare_install_has_no_training_or_export_library(bare: Path) -> None:
    present = {path.name for path in site_packages(bare).iterdir()}
    assert not present & {"torch", "transformers", "onnx", "onnxscript", "peft", "scipy", "onnxruntime_genai"}


@pytest.mark.slow
@pytest.mark.parametrize(("command", "extra"), [("trrg-train", "train"), ("trrg-export", "export")])
def test_command_without_its_extra_says_what_to_install(bare: Path, tmp_path: Path, command: str, extra: str) -> None:
    arguments = {
        "trrg-train": ["stage1", str(REPOSITORY / "train" / "configs" / "mini.toml")],
        "trrg-export": [str(tmp_path), "--out", str(tmp_path / "bundle")],
    }[command]
    done = subprocess.run(
        [bare / "bin" / command, *arguments], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2, done.stderr
    assert re.search(rf"pip install 'trrg-sdk\[(\w+,)*{extra}\]'", done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.slow
def test_bare_install_reports(bare: Path, tmp_path: Path) -> None:
    (example,) = (REPOSITORY / "examples" / "data").glob("*.dcm")
    text = run([str(bare / "bin" / "trrg"), "report", str(example)], cwd=tmp_path)
    assert len(text.split()) > 10
