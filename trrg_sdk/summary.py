"""What each graph of a bundle costs: parameters, operators, FLOPs. Counted when the bundle is made, only read here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trrg_sdk.bundle import Bundle
from trrg_sdk.errors import BundleError
from trrg_sdk.strict_json import from_plain, strict_json

SUMMARY_FILE = "graphs/summary.json"


@dataclass(frozen=True, slots=True)
class Component:
    """One graph.

    Attributes:
        parameters: Weights, each counted once whatever its precision.
        bytes: Of the graph's file and of its external data.
        flops: Floating-point operations of one run with ``sizes``; :attr:`Summary.counted` says which operators count.
        sizes: Axis → its length in that run.
        operators: Operator → how many nodes; those of other domains than ONNX's own as ``domain.Name``.
    """

    parameters: int
    bytes: int
    flops: int
    sizes: Mapping[str, int]
    operators: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Summary:
    """All graphs, by name, and a sentence on what was counted."""

    counted: str
    components: Mapping[str, Component]


def read_summary(bundle: Bundle) -> Summary | None:
    """Read the summary of a bundle; None when it was made without one.

    Raises:
        BundleError: The file cannot be read.
    """
    if SUMMARY_FILE not in bundle.manifest.files:
        return None
    try:
        text = (bundle.folder / SUMMARY_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{SUMMARY_FILE}: cannot be read ({error}). Restore the bundle from its source.") from error
    summary: Summary = from_plain(Summary, strict_json(text, SUMMARY_FILE), SUMMARY_FILE)
    return summary
