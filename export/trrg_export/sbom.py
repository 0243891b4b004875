"""The software bill of materials of a bundle: which packages made it, and which files it is (CycloneDX 1.6).

The same packages and files give the same bytes: the serial number is computed from them, and there is no time.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License, LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

from trrg_export.sbom_renewal import sealed
from trrg_sdk.manifest import ENGINES
from trrg_sdk.version import __version__

_LICENCE_LINE = 100  # characters; some packages put the whole text where its name belongs


def sbom(bundle_id: str, files: Mapping[str, str], packages: Iterable[str]) -> str:
    """Write the bill.

    Args:
        bundle_id: Of the bundle.
        files: Name in the bundle → sha256.
        packages: Distributions that made the bundle; what they need and is installed is listed too.

    Returns:
        CycloneDX 1.6 in JSON.
    """
    found = installed(packages)
    bom = Bom(serial_number=uuid.UUID(int=0))
    bom.metadata.component = _whole(bundle_id)
    bom.metadata.tools.components.add(_package("trrg-sdk", __version__, ["Apache-2.0"]))
    listed = {name: _described(distribution) for name, distribution in found.items()}
    of_bundle = [_file(name, digest) for name, digest in files.items()]
    bom.components.update([*listed.values(), *of_bundle])
    for name, distribution in found.items():
        needed = [listed[other] for other in _needs(distribution) if other in listed]
        bom.register_dependency(listed[name], needed)
    bom.register_dependency(bom.metadata.component, [*listed.values(), *of_bundle])
    return _text(bom)


def installed(packages: Iterable[str]) -> dict[str, Distribution]:
    """Follow the requirements of packages as far as they are installed.

    Args:
        packages: Distribution names, all installed.

    Returns:
        Normalised name → distribution, by name.
    """
    found: dict[str, Distribution] = {}
    pending = [_normal(name) for name in packages]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # one that only some installations have
        pending += _needs(found[name])
    return dict(sorted(found.items()))


def _needs(distribution: Distribution) -> list[str]:
    """Normalised names of what a distribution requires on this system, without its extras."""
    requirements = map(Requirement, distribution.requires or ())
    wanted = (each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""}))
    return sorted({_normal(each.name) for each in wanted})


def _normal(name: str) -> str:
    """The one spelling of a distribution's name (PEP 503), which a purl of pypi has too."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _described(distribution: Distribution) -> Component:
    return _package(_normal(distribution.name), distribution.version, _licences(distribution))


def _licences(distribution: Distribution) -> list[str]:
    """What the metadata states, best source first: the SPDX expression, the classifiers, the free text."""
    stated = distribution.metadata
    if expression := stated.get_all("License-Expression", []):
        return list(expression)
    classifiers = [
        line.rsplit(" :: ", 1)[-1] for line in stated.get_all("Classifier", []) if line.startswith("License")
    ]
    if named := sorted(set(classifiers) - {"OSI Approved"}):
        return named
    texts = [text.strip() for text in stated.get_all("License", [])]
    return [text for text in texts if text and len(text) <= _LICENCE_LINE and "\n" not in text]


def _package(name: str, version: str, licences: Iterable[str]) -> Component:
    purl = PackageURL("pypi", name=name, version=version)
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=[_licence(text) for text in licences],
    )


def _licence(text: str) -> License:
    return LicenseFactory().make_from_string(text, license_acknowledgement=LicenseAcknowledgement.DECLARED)


def _whole(bundle_id: str) -> Component:
    return Component(name=bundle_id, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref=bundle_id)


def _file(name: str, digest: str) -> Component:
    """Graphs are models, everything else is data."""
    graph = name.startswith(("graphs/", f"{ENGINES}/")) and not name.endswith(".json")
    return Component(
        name=name,
        type=ComponentType.MACHINE_LEARNING_MODEL if graph else ComponentType.DATA,
        bom_ref=f"file:{name}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
    )


def _text(bom: Bom) -> str:
    """Serialise without the time, and with a serial number made of everything else."""
    plain: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    del plain["metadata"]["timestamp"]
    return sealed(plain)
