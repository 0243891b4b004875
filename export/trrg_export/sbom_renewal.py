"""What a bundle says about the library of its engines, after another version of it built them anew.

Needs none of the packages that an export needs: the bill of materials is read and written as plain JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

MODEL_CARD = "model_card.md"
SBOM_FILE = "sbom.cdx.json"
_SERIAL = uuid.UUID("6f0e2c0c-2b7a-5f3e-9a55-6d0c3c2a9b41")  # drawn once; the name space of our serial numbers

Plain = dict[str, Any]


def renewed_card(text: str, package: str, version: str) -> str:
    """Put another version into a model card's table of what made the bundle.

    Args:
        text: Of the card.
        package: Of the library.
        version: That built the engines.

    Returns:
        The card; unchanged where it does not name the library.
    """
    return re.sub(rf"(?m)^(\| {re.escape(package)} \| )[^|]*\|", lambda row: f"{row[1]}{version} |", text)


def renewed_sbom(text: str, package: str, files: Mapping[str, str]) -> str:
    """Name the installed distributions of a library in place of those that built the engines before.

    Args:
        text: CycloneDX in JSON, by :func:`trrg_export.sbom.sbom`.
        package: Of the library, whose parts are named after it.
        files: Listed file → its sha256 now.

    Returns:
        The bill, with the serial number of its content.
    """
    plain: Plain = json.loads(text)
    parts = re.compile(rf"{re.escape(package)}(-cu\d+(-\w+)*)?")
    before = {each["name"]: each for each in plain["components"] if parts.fullmatch(each["name"])}
    now = {name: _component(before.get(name, {}), name, version) for name, version in _installed(parts).items()}
    others = [_hashed(each, files) for each in plain["components"] if each["name"] not in before]
    plain["components"] = sorted([*others, *now.values()], key=lambda each: (each["type"], each["name"]))
    references = {each["bom-ref"]: now[name]["bom-ref"] if name in now else "" for name, each in before.items()}
    graph = _renamed(plain["dependencies"], references)
    everything = sorted(each["bom-ref"] for each in plain["components"])
    graph = {**dict.fromkeys(everything, ()), **graph, plain["metadata"]["component"]["bom-ref"]: everything}
    plain["dependencies"] = [_dependency(ref, needed) for ref, needed in sorted(graph.items())]
    return sealed(plain)


def sealed(plain: Plain) -> str:
    """Serialise a bill with a serial number made of everything else.

    Args:
        plain: The bill; it gets the number.
    """
    plain.pop("serialNumber", None)
    plain["serialNumber"] = uuid.uuid5(_SERIAL, json.dumps(plain, sort_keys=True)).urn
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _installed(parts: re.Pattern[str]) -> dict[str, str]:
    found = {re.sub(r"[-_.]+", "-", each.name).lower(): each.version for each in importlib.metadata.distributions()}
    return {name: version for name, version in sorted(found.items()) if parts.fullmatch(name)}


def _component(before: Plain, name: str, version: str) -> Plain:
    """The distribution as it was described, in the version that is installed."""
    purl = f"pkg:pypi/{name}@{version}"
    return {**before, "type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}


def _hashed(component: Plain, files: Mapping[str, str]) -> Plain:
    digest = files.get(component["name"])
    return {**component, "hashes": [{"alg": "SHA-256", "content": digest}]} if digest else component


def _renamed(dependencies: Sequence[Plain], references: Mapping[str, str]) -> dict[str, Sequence[str]]:
    """What needs what, with the new components in the place of the old; what is gone needs nothing."""
    found: dict[str, Sequence[str]] = {}
    for each in dependencies:
        if ref := references.get(each["ref"], each["ref"]):
            needed = (references.get(old, old) for old in each.get("dependsOn", ()))
            found[ref] = sorted(name for name in set(needed) if name)
    return found


def _dependency(ref: str, needed: Sequence[str]) -> Plain:
    return {"ref": ref, "dependsOn": list(needed)} if needed else {"ref": ref}
