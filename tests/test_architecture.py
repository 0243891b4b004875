"""The house rules that a machine can hold: directions of imports, the one door, sizes, no dead flag.

Imports are read from the syntax tree, so lazy ones, those for type checkers and `import_module("constant")` count too.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import trrg_sdk

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = {
    "trrg_sdk": REPOSITORY / "trrg_sdk",
    "trrg_train": REPOSITORY / "train" / "trrg_train",
    "trrg_export": REPOSITORY / "export" / "trrg_export",
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40

# What a module of the runtime may import lies in its own row or in one above. A new module takes its place here.
LAYERS = (
    {"errors", "report", "stopwatch", "version"},
    {"bundle", "engines", "gate_specs", "manifest", "processors", "signature", "strict_json", "summary"},
    {"context", "dicom", "dicom_header", "dicom_stream", "dicom_tags", "pixel_data", "pixels", "codestream"}
    | {"reading", "study"}
    | {"distance", "gate", "gate_codes", "photometry", "preprocess", "labeler", "label_rules", "sentences"},
    {"backends"},
    {"clues", "decoding", "uncertainty", "verify"},
    {"engine", "examine", "many"},
    {"reporter"},
    {"listing", "outputs", "site"},
    {"doctor"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}

NEVER_IN_RUNTIME = {
    "accelerate",
    "matplotlib",
    "onnx",
    "onnxruntime_genai",
    "onnxscript",
    "peft",
    "safetensors",
    "scipy",
    "torch",
    "transformers",
}
NOT_LOADED_BY_THE_DOOR = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "pydicom",
    "highdicom",
    "tokenizers",
    "PIL",
    "trrg_train",
    "trrg_export",
)
OUTER_FOLDERS = {"export", "train", "tests", "examples"}
# Of training, export may know the model and its checkpoints (a module of trrg_train.models), nothing else.
EXPORT_MAY_USE = "trrg_train.models"
CLI_MODULES = ("trrg_sdk.cli", "trrg_train.cli", "trrg_export.cli")
# Commands that live beside what they run, and that the package's CLI declares.
DECLARED_BY = {"trrg_sdk.cli": ("trrg_sdk.site.cli", "trrg_sdk.site.dicom_cli")}


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, path and syntax tree."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name.split(".", maxsplit=1)[0]

    def __repr__(self) -> str:
        return self.name


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for package, root in PACKAGES.items():
        for path in sorted(root.rglob("*.py")):
            parts = (package, *path.relative_to(root).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(found)


@cache
def module_names() -> frozenset[str]:
    return frozenset(module.name for module in modules())


def imports(module: Module) -> Iterator[tuple[str, int]]:
    """Every imported module's dotted name with its line, as precise as our own modules allow."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(module, node)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield (name if name in module_names() else base), node.lineno
        elif isinstance(node, ast.Call) and is_dynamic_import(node):
            target = node.args[0]
            if isinstance(target, ast.Constant) and isinstance(target.value, str):
                yield target.value, node.lineno


def absolute_base(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    here = module.name.split(".")
    if module.path.name == "__init__.py":
        here = [*here, "__init__"]
    parts = here[: len(here) - node.level]
    return ".".join([*parts, node.module] if node.module else parts)


def is_dynamic_import(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in {"import_module", "__import__"} and bool(call.args)


def top(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def layer_name(name: str) -> str:
    """`trrg_sdk.backends.fake` → `backends`; the door itself → ``""``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def of_package(package: str) -> list[Module]:
    return [module for module in modules() if module.package == package]


def where(module: Module, line: int) -> str:
    return f"{module.path.relative_to(REPOSITORY)}:{line}"


def test_every_package_is_read() -> None:
    assert {module.package for module in modules()} == set(PACKAGES)
    assert len(modules()) > 20


def test_imports_go_one_way_between_packages() -> None:
    wrong = []
    allowed = {
        "trrg_sdk": {"trrg_sdk"},
        "trrg_train": {"trrg_sdk", "trrg_train"},
        "trrg_export": {"trrg_sdk", "trrg_train", "trrg_export"},
    }
    for module in modules():
        for name, line in imports(module):
            if top(name) in PACKAGES and top(name) not in allowed[module.package]:
                wrong.append(f"{where(module, line)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_export_knows_only_the_models_of_training() -> None:
    wrong = [
        f"{where(module, line)} imports {name}"
        for module in of_package("trrg_export")
        for name, line in imports(module)
        if top(name) == "trrg_train" and name != EXPORT_MAY_USE and not name.startswith(f"{EXPORT_MAY_USE}.")
    ]
    assert not wrong, "\n".join(wrong)


def test_runtime_layers() -> None:
    wrong = []
    for module in of_package("trrg_sdk"):
        here = layer_name(module.name)
        if here in ("", "bundles"):  # the door may name anything; bundles holds data
            continue
        if here not in RANK:
            wrong.append(f"{where(module, 1)}: give {here!r} its place in LAYERS")
            continue
        for name, line in imports(module):
            there = layer_name(name) if top(name) == "trrg_sdk" else here
            if there == "":
                wrong.append(f"{where(module, line)} imports the door; name the module that defines it")
            elif RANK.get(there, len(LAYERS)) > RANK[here]:
                wrong.append(f"{where(module, line)}: {here} imports {there}, which lies above it")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_cycle(package: str) -> None:
    graph = {
        module.name: {name for name, _ in imports(module) if top(name) == package and name != module.name}
        for module in of_package(package)
        if module.name != package  # the door reaches everything, lazily
    }
    for targets in graph.values():
        targets.discard(package)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_runtime_stays_light() -> None:
    wrong = [
        f"{where(module, line)} imports {name}"
        for module in of_package("trrg_sdk")
        for name, line in imports(module)
        if top(name) in NEVER_IN_RUNTIME
    ]
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_an_outer_folder() -> None:
    wrong = [
        f"{where(module, line)} imports {name}"
        for module in modules()
        for name, line in imports(module)
        if top(name) in OUTER_FOLDERS
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_door_loads_nothing_heavy() -> None:
    code = "import sys, trrg_sdk; print(*(n for n in sys.argv[1:] if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, *NOT_LOADED_BY_THE_DOOR], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_all_equals_reality() -> None:
    errors = importlib.import_module("trrg_sdk.errors")
    raised = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }
    assert len(trrg_sdk.__all__) == len(set(trrg_sdk.__all__))
    assert set(trrg_sdk.__all__) - {"__version__"} == {"Reporter", "Report", "Clue", "Bundle", "Outcome"} | raised
    for name in trrg_sdk.__all__:
        assert getattr(trrg_sdk, name) is not None
    assert set(trrg_sdk.__all__) <= set(dir(trrg_sdk))
    leaked = {
        name
        for name, value in vars(trrg_sdk).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and str(getattr(value, "__module__", "")).startswith("trrg_sdk")
    } - set(trrg_sdk.__all__)
    assert not leaked


def test_an_unknown_name_at_the_door_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = trrg_sdk.no_such_name


def test_files_are_short() -> None:
    lengths = {module: len(module.path.read_text(encoding="utf-8").splitlines()) for module in modules()}
    long = [f"{where(module, 1)}: {lines} lines" for module, lines in lengths.items() if lines > MAX_FILE_LINES]
    assert not long, "\n".join(long)


def test_functions_are_short() -> None:
    long = []
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{where(module, node.lineno)} {node.name}: {lines} lines")
    assert not long, "\n".join(long)


def test_only_a_cli_prints() -> None:
    wrong = [
        where(module, node.lineno)
        for module in modules()
        if "cli" not in module.name.split(".")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong, "\n".join(wrong)


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers_of(child)


def dests_of(parser: argparse.ArgumentParser) -> set[str]:
    return {
        action.dest
        for each in parsers_of(parser)
        for action in each._actions
        if action.dest != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction | argparse._VersionAction)
    }


def names_read(tree: ast.AST) -> set[str]:
    """Attributes read from a variable that holds parsed arguments."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.value, ast.Name)
        and node.value.id in {"args", "arguments", "options"}
    }


@pytest.mark.parametrize("name", CLI_MODULES)
def test_every_option_is_read(name: str) -> None:
    parser = importlib.import_module(name).build_parser()
    homes = (name, *DECLARED_BY.get(name, ()))
    sources = [m for m in modules() if any(m.name == home or m.name.startswith(f"{home}.") for home in homes)]
    read = set().union(*(names_read(module.tree) for module in sources))
    dests = dests_of(parser)
    assert dests, "the parser declares nothing"
    assert not dests - read, f"declared and never read as args.<name>: {sorted(dests - read)}"
