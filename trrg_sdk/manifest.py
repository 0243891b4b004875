"""The schema of a bundle's ``manifest.json``: frozen dataclasses, and a parser that accepts nothing else.

Every key is required, an unknown one is refused, and a number must be finite: a typing error or a newer
exporter is an error here and never a default. Axes are whole numbers where they are fixed and names
where they are free, for example ``("batch", 1, 192, 192)``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trrg_sdk.errors import BundleError
from trrg_sdk.gate_specs import DistanceSpec, PopulationSpec
from trrg_sdk.strict_json import from_plain, plain_text, strict_json

SCHEMA_VERSION = 1
GRAPH_NAMES = ("vision", "clue_encoder", "fusion", "decoder")
MANIFEST_FILE = "manifest.json"
DIGEST_FILE = "manifest.json.sha256"
SIGNATURE_FILE = "signature.ed25519"
ENGINES = "engines"  # folder of compiled graphs

Axes = tuple[int | str, ...]
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_relative_path(path: str) -> None:
    """Refuse a path that could leave the bundle or mean another file on another system.

    Args:
        path: Relative, with forward slashes, as a manifest holds it.

    Raises:
        ValueError: It is empty, absolute or not normalised, or it holds ``..``, a backslash, a colon or a control
            character.
    """
    parts = path.split("/")
    odd = any(character in "\\:" or ord(character) < 32 for character in path)
    if odd or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"expected a relative path inside the bundle with forward slashes, got {path!r}")


def _require(condition: bool, message: str) -> None:
    """Raise ``ValueError`` with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class FileSpec:
    """Size and hash of one file of the bundle.

    Attributes:
        bytes, sha256: Of its content.
        reproducible: Whether another export of the checkpoint, by the same versions on the same processor and threads,
            writes it again. Not so engines.
    """

    bytes: int
    sha256: str
    reproducible: bool

    def __post_init__(self) -> None:
        """Refuse a negative size and a hash that is none."""
        _require(self.bytes >= 0, f"expected a size in bytes, got {self.bytes}")
        _require(_SHA256.fullmatch(self.sha256) is not None, f"expected 64 hex digits as sha256, got {self.sha256!r}")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype (as numpy names it) and axes of one input or output of a graph."""

    name: str
    dtype: str
    axes: Axes


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One graph: its file, the precision of its weights and its tensors."""

    file: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        """Refuse a path that leaves the bundle."""
        check_relative_path(self.file)


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array file (``.npy`` or ``.npz``): dtype as numpy names it, and axes."""

    file: str
    dtype: str
    axes: Axes

    def __post_init__(self) -> None:
        """Refuse a path that leaves the bundle."""
        check_relative_path(self.file)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which configuration of the model this is."""

    name: str
    config_sha256: str


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """The instruction as token ids, and the order of the parts of the prompt. The bos token is part of the prefix."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    order: tuple[Literal["prefix", "visual", "clues", "suffix"], ...]

    def __post_init__(self) -> None:
        """Refuse an order that leaves out or repeats a part."""
        parts = sorted(self.order)
        _require(parts == ["clues", "prefix", "suffix", "visual"], f"expected each part once in order, got {parts}")


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """The tokenizer's file and its special tokens."""

    file: str
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    vocab_size: int

    def __post_init__(self) -> None:
        """Refuse a path that leaves the bundle and special tokens outside the vocabulary."""
        check_relative_path(self.file)
        special = (self.bos_token_id, self.eos_token_id, self.pad_token_id)
        inside = all(0 <= token < self.vocab_size for token in special)
        _require(inside, f"expected special token ids below {self.vocab_size}, got {special}")


@dataclass(frozen=True, slots=True)
class ClueSpec:
    """A clue of the bundle: its prompts, the calibration (``logit = scale * margin + offset``) and the threshold."""

    name: str
    positive: str
    negative: str
    scale: float
    offset: float
    threshold: float

    def __post_init__(self) -> None:
        """Refuse a threshold that is no probability strictly between 0 and 1: its logit would be infinite."""
        _require(0.0 < self.threshold < 1.0, f"expected a threshold between 0 and 1, got {self.threshold}")


@dataclass(frozen=True, slots=True)
class CustomClueSpec:
    """Calibration of a clue that a site adds, and the longest prompt in tokens that the clue encoder takes."""

    scale: float
    offset: float
    threshold: float
    max_length: int

    def __post_init__(self) -> None:
        """Refuse a threshold that is no probability strictly between 0 and 1 and a length below 1."""
        _require(0.0 < self.threshold < 1.0, f"expected a threshold between 0 and 1, got {self.threshold}")
        _require(self.max_length > 0, f"expected a positive max_length, got {self.max_length}")


@dataclass(frozen=True, slots=True)
class DecodingSpec:
    """How text is decoded when nothing else is asked for."""

    strategy: Literal["greedy"]
    max_new_tokens: int

    def __post_init__(self) -> None:
        """Refuse a length below 1."""
        _require(self.max_new_tokens > 0, f"expected a positive max_new_tokens, got {self.max_new_tokens}")


@dataclass(frozen=True, slots=True)
class DraftsSpec:
    """The report store, with which several tokens are written a pass.

    Attributes:
        tokens: With the next four the arrays of ``trrg_sdk.decoding.store.StoreArrays``, which says what they hold.
        near_tie: A lead of the likeliest token's logit below this is decided without drafts; 0 where no pass of the
            export's comparison gave other logits than single positions.
        text: What text it holds, in words.
    """

    tokens: ArraySpec
    children: ArraySpec
    shorter: ArraySpec
    guesses: ArraySpec
    chances: ArraySpec
    near_tie: float
    text: str

    def __post_init__(self) -> None:
        """Refuse a negative margin."""
        _require(self.near_tie >= 0, f"expected a near_tie of at least 0, got {self.near_tie}")

    def arrays(self) -> tuple[ArraySpec, ...]:
        """The five arrays."""
        return self.tokens, self.children, self.shorter, self.guesses, self.chances


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Sizes of the decoder's key and value buffers, two a layer: (batch, kv_heads, max_length, head_size).

    Their dtype is that of the graph.
    """

    layers: int
    kv_heads: int
    head_size: int
    hidden_size: int
    max_length: int

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        sizes = dataclasses.astuple(self)
        _require(min(sizes) > 0, f"expected positive sizes, got {sizes}")


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One graph compiled for one kind of GPU.

    Attributes:
        graph: What it computes, one of ``GRAPH_NAMES``.
        file: Under ``engines/``.
        compute_capability: Of the GPUs that it runs on, such as ``"8.9"``.
        profile: Input → smallest, usual and largest shape that it was built for.
    """

    graph: str
    file: str
    compute_capability: str
    profile: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]

    def __post_init__(self) -> None:
        """Refuse a path that leaves the bundle and a graph that is none."""
        check_relative_path(self.file)
        _require(self.graph in GRAPH_NAMES, f"expected an engine of one of {GRAPH_NAMES}, got {self.graph!r}")


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """What the bundle was built for.

    Attributes:
        runtime: Its name.
        version: The version that the bundle was made and tried with.
        graphs: Graphs that this target runs in another form or precision than the bundle's own; empty where those
            serve. OpenVINO: the same files in ``"bf16"``, or a vision graph in ``"int8-bf16"`` or ``"int8-vnni"``.
        engines: Compiled graphs; empty where the runtime compiles when it opens them.
    """

    runtime: str
    version: str
    graphs: Mapping[str, GraphSpec]
    engines: tuple[EngineSpec, ...]

    def __post_init__(self) -> None:
        """Refuse a graph that is none."""
        unknown = sorted(set(self.graphs) - set(GRAPH_NAMES))
        _require(not unknown, f"expected graphs among {GRAPH_NAMES}, got {unknown}")

    def files(self) -> tuple[str, ...]:
        """The files of this target alone."""
        return (*(graph.file for graph in self.graphs.values()), *(engine.file for engine in self.engines))


@dataclass(frozen=True, slots=True)
class ProvenanceSpec:
    """Where the weights come from and which versions made the bundle."""

    sdk_version: str
    code_version: str
    checkpoint_sha256: str
    data: str
    created_by: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that a bundle says about itself (design section 4)."""

    schema_version: int
    bundle_id: str
    model: ModelSpec
    files: Mapping[str, FileSpec]
    graphs: Mapping[str, GraphSpec]
    preprocess: Mapping[str, object]
    population: PopulationSpec
    distance: DistanceSpec | None
    patch_grid: tuple[int, int]
    prompt: PromptSpec
    tokenizer: TokenizerSpec
    token_embedding: ArraySpec
    observations: tuple[str, ...]
    clues: tuple[ClueSpec, ...]
    custom_clue: CustomClueSpec
    clue_bank: ArraySpec
    decoding: DecodingSpec
    drafts: DraftsSpec | None
    decoder: DecoderSpec
    targets: Mapping[str, TargetSpec]
    provenance: ProvenanceSpec
    evaluation: Mapping[str, object]
    parity: Mapping[str, Mapping[str, object]]
    intended_use: str

    def __post_init__(self) -> None:
        """Refuse a manifest whose parts contradict each other."""
        self._check_graphs_and_files()
        self._check_sizes()

    def _check_graphs_and_files(self) -> None:
        found = sorted(self.graphs)
        _require(found == sorted(GRAPH_NAMES), f"expected graphs {GRAPH_NAMES}, got {found}")
        for path in self.files:
            check_relative_path(path)
        own = sorted({MANIFEST_FILE, DIGEST_FILE, SIGNATURE_FILE} & set(self.files))
        _require(not own, f"expected files without the manifest itself, got {own}")

    def _check_sizes(self) -> None:
        vocab, hidden = self.tokenizer.vocab_size, self.decoder.hidden_size
        axes = self.token_embedding.axes
        _require(axes == (vocab, hidden), f"expected token_embedding axes {(vocab, hidden)}, got {axes}")
        ids = (*self.prompt.prefix_ids, *self.prompt.suffix_ids)
        _require(all(0 <= token < vocab for token in ids), f"expected prompt token ids below {vocab}")
        names = [clue.name for clue in self.clues]
        _require(len(set(names)) == len(names), "expected each clue name once")
        _require(min(self.patch_grid) > 0, f"expected a positive patch_grid, got {self.patch_grid}")
        length, limit = self.prompt_length(len(self.clues)), self.decoder.max_length
        _require(length < limit, f"expected a prompt shorter than decoder.max_length {limit}, got {length} positions")

    def graph(self, name: str, *, target: str) -> GraphSpec:
        """Return a graph in the form that a target runs: its own one where it has one, else the bundle's."""
        own = self.targets[target].graphs if target in self.targets else {}
        return own.get(name, self.graphs[name])

    def prompt_length(self, clues: int) -> int:
        """Return how many positions the prompt takes with this number of clues (bundled and custom together)."""
        rows, columns = self.patch_grid
        return len(self.prompt.prefix_ids) + rows * columns + clues + len(self.prompt.suffix_ids)

    def referenced_files(self) -> tuple[str, ...]:
        """Return the files that the runtime opens, every one of which ``files`` must hold."""
        arrays = (self.tokenizer.file, self.token_embedding.file, self.clue_bank.file)
        of_targets = (file for target in self.targets.values() for file in target.files())
        of_drafts = (array.file for array in self.drafts.arrays()) if self.drafts else ()
        of_distance = (self.distance.file,) if self.distance else ()
        return (*(graph.file for graph in self.graphs.values()), *arrays, *of_drafts, *of_distance, *of_targets)

    def to_json(self) -> str:
        """Return the text of ``manifest.json``; :func:`parse_manifest` reads it back to an equal manifest.

        Raises:
            ValueError: A number is not finite.
        """
        return plain_text(self)


def parse_manifest(text: str) -> Manifest:
    """Read the text of a ``manifest.json``.

    Args:
        text: JSON.

    Raises:
        BundleError: It is no JSON, a key is unknown, missing or given twice, a value has the wrong type or range, a
            path leaves the bundle, or the schema version is not the one that this SDK reads.
    """
    value = strict_json(text, MANIFEST_FILE)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise BundleError(
            f"{MANIFEST_FILE}: expected schema_version {SCHEMA_VERSION}, got {version!r}. "
            "Use the SDK version that the bundle was made for, or export the bundle again with this one."
        )
    manifest: Manifest = from_plain(Manifest, value, MANIFEST_FILE)
    return manifest
