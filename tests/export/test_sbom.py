"""The bill of materials: valid, always the same, and nothing of the machine in it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cyclonedx")

from trrg_export.sbom import installed, sbom
from trrg_export.sbom_renewal import SBOM_FILE, renewed_card, renewed_sbom

FILES = {"graphs/vision.onnx": "0" * 64, "graphs/summary.json": "1" * 64, "tokenizer.json": "2" * 64}
PACKAGES = ("numpy", "onnx", "tokenizers")


def plain(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    return value


def components(text: str) -> dict[str, dict[str, Any]]:
    return {component["name"]: component for component in plain(text)["components"]}


def test_it_is_valid_cyclonedx_1_6() -> None:
    pytest.importorskip("jsonschema")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom("tiny-0", FILES, PACKAGES))
    assert error is None, str(error)[:500]


def test_packages_have_version_purl_and_licence() -> None:
    found = components(sbom("tiny-0", FILES, PACKAGES))
    version = importlib.metadata.version("numpy")
    assert found["numpy"]["version"] == version
    assert found["numpy"]["purl"] == f"pkg:pypi/numpy@{version}"
    assert "BSD-3-Clause" in str(found["numpy"]["licenses"])
    assert found["onnx"]["licenses"][0]["license"]["id"] == "Apache-2.0"


def test_files_have_their_hash_and_kind() -> None:
    found = components(sbom("tiny-0", FILES, PACKAGES))
    for name, digest in FILES.items():
        assert found[name]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert found["graphs/vision.onnx"]["type"] == "machine-learning-model"
    assert found["graphs/summary.json"]["type"] == found["tokenizer.json"]["type"] == "data"


def test_what_a_package_needs_is_listed_and_linked() -> None:
    text = sbom("tiny-0", FILES, ("onnx",))
    assert {"onnx", "numpy", "protobuf"} <= components(text).keys()
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in plain(text)["dependencies"]}
    onnx = components(text)["onnx"]["purl"]
    assert components(text)["numpy"]["purl"] in needs[onnx]


class _Fake(Distribution):
    """A distribution with a requirement for Windows, one of an extra, a circle, and an odd spelling."""

    def __init__(self, name: str, requires: list[str]) -> None:
        self._lines = [f"Name: {name}", "Version: 1", *(f"Requires-Dist: {each}" for each in requires)]

    def read_text(self, filename: str) -> str | None:
        return "\n".join(["Metadata-Version: 2.4", *self._lines, "", ""]) if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return Path(path)


def test_requirements_are_followed_as_this_system_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {
        "first": _Fake(
            "first", ["Second_Part>=1", "never; sys_platform == 'win64'", "asked ; extra == 'more'", "gone"]
        ),
        "second-part": _Fake("second-part", ["first"]),
        "never": _Fake("never", []),
        "asked": _Fake("asked", []),
    }

    def find(name: str) -> Distribution:
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(importlib.metadata, "distribution", find)
    assert list(installed(["First"])) == ["first", "second-part"]


def test_the_same_input_gives_the_same_bytes_and_another_one_another_serial() -> None:
    texts = [sbom("tiny-0", FILES, PACKAGES), sbom("tiny-0", dict(reversed(FILES.items())), PACKAGES[::-1])]
    assert texts[0] == texts[1]
    other = plain(sbom("tiny-0", {**FILES, "tokenizer.json": "3" * 64}, PACKAGES))
    assert other["serialNumber"] != plain(texts[0])["serialNumber"]
    assert "timestamp" not in plain(texts[0])["metadata"]


def test_no_machine_is_in_it() -> None:
    text = sbom("tiny-0", FILES, PACKAGES)
    for mark in (sys.prefix, str(Path.home()), "file:///"):
        assert mark not in text
    assert not re.search(r'"/\w', text)


@pytest.mark.torch
def test_the_bundle_lists_its_files_there_and_the_bill_in_its_manifest(fp32_bundle: Path) -> None:
    from trrg_sdk.bundle import Bundle

    files = Bundle.load(fp32_bundle).manifest.files
    listed = {
        name: component["hashes"][0]["content"]
        for name, component in components((fp32_bundle / SBOM_FILE).read_text()).items()
        if "hashes" in component
    }
    assert listed == {name: spec.sha256 for name, spec in files.items() if name != SBOM_FILE}
    assert files[SBOM_FILE].sha256 == sha256((fp32_bundle / SBOM_FILE).read_bytes()).hexdigest()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Says which distributions are installed; a bill is made of what was there before."""

    class Installed:
        def __init__(self, name: str, version: str) -> None:
            self.name, self.version = name, version

    def install(versions: dict[str, str]) -> None:
        found = [Installed(name, version) for name, version in versions.items()]
        monkeypatch.setattr(importlib.metadata, "distributions", lambda: found)

    return install


@pytest.fixture
def bill() -> str:
    """As an export for TensorRT-RTX 1.7 leaves it."""
    text = plain(sbom("tiny-0", FILES, PACKAGES))
    for name in ("acme-trt", "acme-trt-cu13", "acme-trt-tools"):
        purl = f"pkg:pypi/{name}@1.7"
        text["components"].append({"bom-ref": purl, "name": name, "purl": purl, "type": "library", "version": "1.7"})
        text["dependencies"].append({"ref": purl})
    text["dependencies"][-3]["dependsOn"] = ["pkg:pypi/acme-trt-cu13@1.7"]
    return json.dumps(text)


def test_engines_that_were_built_anew_name_their_library(bill: str, library: Any) -> None:
    library({"acme_trt": "1.8", "Acme.trt-cu14": "1.8.1", "numpy": "9"})
    text = renewed_sbom(bill, "acme-trt", {"tokenizer.json": "4" * 64})
    before, after = components(bill), components(text)
    named = {name: each["version"] for name, each in after.items() if name.startswith("acme-trt")}
    assert named == {"acme-trt": "1.8", "acme-trt-cu14": "1.8.1", "acme-trt-tools": "1.7"}
    assert after["tokenizer.json"]["hashes"][0]["content"] == "4" * 64
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert changed == {"acme-trt", "tokenizer.json"}
    graph = {each["ref"]: each.get("dependsOn", []) for each in plain(text)["dependencies"]}
    assert graph.keys() == {each["bom-ref"] for each in after.values()} | {"tiny-0"}
    assert set(graph["tiny-0"]) == graph.keys() - {"tiny-0"}
    assert graph["pkg:pypi/acme-trt@1.8"] == [], "what it needed is gone"


def test_a_bill_of_the_same_versions_stays_the_same(library: Any) -> None:
    text = sbom("tiny-0", FILES, PACKAGES)
    versions = {name: each.version for name, each in installed(PACKAGES).items()}
    library(versions)
    for package in PACKAGES:
        assert renewed_sbom(text, package, {}) == text


def test_a_model_card_names_the_new_version() -> None:
    card = "| numpy | 2.1 |\n| tensorrt | 10.16 |\n| tensorrt-rtx | 1.7.1 |\n"
    assert renewed_card(card, "tensorrt", "11.4") == card.replace("10.16", "11.4")
    assert renewed_card(card, "torch", "2") == card
