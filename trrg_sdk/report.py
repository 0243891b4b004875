"""The draft report: plain frozen values, and their JSON (schema 2).

A report says what each sentence rests on. It is a draft for a radiologist and never anything else, so
``draft`` is always true. No value here holds a name, a patient identifier or a date; the UIDs that link a
report to its images stay out of every ``repr``, because a ``repr`` ends up in logs.
"""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trrg_sdk.errors import UsageError

SCHEMA_VERSION = 2  # 1 had no gate.overridden

State = Literal["present", "absent", "uncertain"]
Verdict = Literal["supported", "contradicted", "unsupported", "not_checkable"]
Stopped = Literal["eos", "length"]

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class GateReason:
    """Why an image may not be reported.

    Attributes:
        code: A stable identifier such as ``"wrong_body_part"``.
        message: One sentence that a technician understands.
        action: What to do about it.
    """

    code: str
    message: str
    action: str


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate said about the image that was reported.

    Attributes:
        status: ``"accepted"``, or ``"overridden"`` when the gate refused the image and the caller accepted it all the
            same; otherwise a refused image has no report, it raises ``RefusedError``.
        reasons: Why other images of the same study were not used; empty for a single image.
        overridden: What the gate said against the reported image; empty unless it was overridden.
    """

    status: Literal["accepted", "overridden"] = "accepted"
    reasons: tuple[GateReason, ...] = ()
    overridden: tuple[GateReason, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One image of the study and whether the report was made from it.

    Attributes:
        sop_instance_uid: The image's UID, "" when it has none (an array). Not in the ``repr``.
        view: ``"PA"``, ``"AP"``, … as the file says, or "".
        used: True for the image that the report was made from.
        reason: Why it was not used, or "".
    """

    sop_instance_uid: str = field(repr=False)
    view: str
    used: bool
    reason: str


@dataclass(frozen=True, slots=True)
class HeatPeak:
    """Where in the image a clue is strongest.

    Attributes:
        row: Row of the patch, 0 at the top of the square model input.
        column: Column of the patch, 0 at the left.
        rows: Rows of the patch grid.
        columns: Columns of the patch grid.
        probability: Calibrated probability of the clue in that patch, 0 to 1.
    """

    row: int
    column: int
    rows: int
    columns: int
    probability: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """The clue that a sentence was held against.

    Attributes:
        clue: The clue's name.
        probability: Its probability, 0 to 1.
        threshold: From here on the clue counts as present.
        forced: True when the caller set the probability: it then says nothing about the image.
        heat_peak: Where the clue is strongest; None when the score was forced.
    """

    clue: str
    probability: float
    threshold: float
    forced: bool
    heat_peak: HeatPeak | None


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of the report and what supports it.

    Attributes:
        text: The sentence.
        section: ``"findings"``, ``"impression"`` or "".
        labels: Observation → state, only for what the sentence mentions.
        verdict: The worst over everything the sentence says.
        evidence: One entry for every clue that the sentence was held against.
        logprob: Mean natural-log probability of the sentence's tokens; 0 is certain.
    """

    text: str
    section: str
    labels: Mapping[str, State] = field(hash=False)
    verdict: Verdict
    evidence: tuple[Evidence, ...]
    logprob: float


@dataclass(frozen=True, slots=True)
class ClueScore:
    """How strongly one clue was perceived.

    Attributes:
        name: The clue's name.
        probability: Calibrated probability, 0 to 1.
        threshold: From here on the clue counts as present.
        present: ``probability >= threshold``.
        forced: True when the caller set the probability.
    """

    name: str
    probability: float
    threshold: float
    present: bool
    forced: bool


@dataclass(frozen=True, slots=True)
class ClueScores:
    """The clues in the bundle's order; ``clues["Edema"]`` finds one by name.

    Attributes:
        scores: The scores in order.
    """

    scores: tuple[ClueScore, ...] = ()

    def __getitem__(self, name: str) -> ClueScore:
        """Find a clue by its name; ``KeyError`` names those that exist."""
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(f"no clue {name!r}; there are {', '.join(self.names)}")

    def __iter__(self) -> Iterator[ClueScore]:
        """Go through the scores in order."""
        return iter(self.scores)

    def __len__(self) -> int:
        """Count the clues."""
        return len(self.scores)

    def __contains__(self, name: object) -> bool:
        """Say whether a clue of this name exists."""
        return any(score.name == name for score in self.scores)

    @property
    def names(self) -> tuple[str, ...]:
        """The clues' names in order."""
        return tuple(score.name for score in self.scores)


@dataclass(frozen=True, slots=True)
class Omission:
    """A clue that counts as present and that no sentence asserts.

    Attributes:
        clue: The clue's name.
        probability: Its probability, 0 to 1.
        threshold: The threshold it passed.
        forced: True when the caller set the probability.
        heat_peak: Where the clue is strongest; None when the score was forced.
    """

    clue: str
    probability: float
    threshold: float
    forced: bool
    heat_peak: HeatPeak | None


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """How the text came to its end.

    Attributes:
        tokens: Tokens that were generated, the end token not counted.
        stopped: ``"eos"``, or ``"length"`` when the limit cut the text: the unfinished sentence was removed.
    """

    tokens: int
    stopped: Stopped


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made the report.

    Attributes:
        bundle_id: The bundle's own name.
        manifest_sha256: Hash of the manifest, which holds the hash of every other file.
        device: The device that ran it, such as ``"cpu"``; ``"openvino"`` is the CPU too, its decoder on ONNX Runtime.
        precision: Of all graphs, such as ``"int8"``, or each graph's where they differ.
        sdk_version: Version of this package.
        intended_use: The bundle's statement of what it may be used for.
    """

    bundle_id: str
    manifest_sha256: str
    device: str
    precision: str
    sdk_version: str
    intended_use: str


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """A draft report of one study.

    Attributes:
        text: The whole text, sections marked ``FINDINGS:`` and ``IMPRESSION:``.
        sentences: Its sentences in order, each with its verdict.
        clues: All clue scores.
        omissions: What was perceived and not said.
        gate: What the gate said.
        images: Every image of the study.
        notes: What a reader should know, such as a missing display window.
        generation: How the text came to its end.
        timings_ms: Step → wall-clock milliseconds.
        provenance: What made the report.
        draft: Always true.
    """

    text: str
    sentences: tuple[Sentence, ...]
    clues: ClueScores
    omissions: tuple[Omission, ...]
    gate: GateResult
    images: tuple[ImageInfo, ...]
    notes: tuple[str, ...]
    generation: GenerationInfo
    timings_ms: Mapping[str, float] = field(hash=False)
    provenance: Provenance
    draft: Literal[True] = True

    def __repr__(self) -> str:
        """Say what it is, without text or UIDs."""
        present = ", ".join(clue.name for clue in self.clues if clue.present) or "none"
        return (
            f"<Report: draft, {len(self.sentences)} sentences, clues present: {present}, {self.provenance.bundle_id}>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars, as schema 2 has them."""
        return {"schema_version": SCHEMA_VERSION, **_plain(self)}

    def to_json(self, *, indent: int | None = 2) -> str:
        """JSON text of schema 2; a NaN is an error, because JSON has none."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Report:
        """Read what ``to_dict`` wrote.

        Args:
            value: An object of schema 2.

        Raises:
            UsageError: Unknown schema, unknown or missing key, or a value of another type.
        """
        if not isinstance(value, Mapping):
            raise UsageError(f"a report is a JSON object, not {type(value).__name__}")
        found = value.get("schema_version")
        if found != SCHEMA_VERSION or isinstance(found, bool):
            known = type(found) is int and found < SCHEMA_VERSION
            remedy = "an older trrg-sdk wrote it: report the study again" if known else "update trrg-sdk"
            raise UsageError(f"report schema {SCHEMA_VERSION} expected, {found!r} came; {remedy}")
        rest = {key: item for key, item in value.items() if key != "schema_version"}
        return _read_record(cls, rest, "report")

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """Read what ``to_json`` wrote; see ``from_dict``."""
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except ValueError as error:
            raise UsageError(f"a report is JSON text in UTF-8: {error}") from error
        return cls.from_dict(value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


@functools.cache
def _names(record: type) -> tuple[str, ...]:
    return tuple(item.name for item in fields(record))


def _plain(value: Any) -> Any:
    if isinstance(value, (str, float, int)):  # most of them
        return value
    if isinstance(value, ClueScores):
        return [_plain(score) for score in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in _names(type(value))}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _read_record(cls: type[_Record], value: Any, where: str) -> _Record:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: an object expected, {type(value).__name__} came")
    hints = get_type_hints(cls)
    if unknown := sorted(set(value) - set(hints)):
        raise UsageError(f"{where}: unknown keys {', '.join(unknown)}; schema {SCHEMA_VERSION} has none of these")
    if missing := sorted(set(hints) - set(value)):
        raise UsageError(f"{where}: missing keys {', '.join(missing)}")
    return cls(**{name: _read(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is ClueScores:
        return ClueScores(_read(tuple[ClueScore, ...], value, where))
    if is_dataclass(hint):
        return _read_record(hint if isinstance(hint, type) else type(hint), value, where)
    if origin is tuple:
        _expect(isinstance(value, list), "a list", value, where)
        return tuple(_read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is Mapping:
        _expect(isinstance(value, dict), "an object", value, where)
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin in (Union, types.UnionType):
        return None if value is None else _read(arguments[0], value, where)
    if origin is Literal:
        known = any(value is choice or (isinstance(choice, str) and value == choice) for choice in arguments)
        _expect(known, f"one of {', '.join(map(repr, arguments))}", value, where)
        return value
    return _read_scalar(hint, value, where)


def _read_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    _expect(type(value) is hint, hint.__name__, value, where)
    return value


def _expect(condition: bool, expected: str, value: Any, where: str) -> None:
    if not condition:
        # Only the type: a value could be anything, also a patient's name.
        raise UsageError(f"{where}: {expected} expected, a {type(value).__name__} came")
