"""RadGraph F1: do a written report and its reference name the same entities and relations?

The three levels of Delbrouck et al. 2022 ("Improving the Factual Correctness of Radiology Report Generation with
Semantic Rewards"), as github.com/Stanford-AIMI/radgraph computes them since May 2026, case aside: RG_E compares
entities, RG_ER also whether each has a relation, RG_ER_bar every relation with its other end. A study scores 0 where
either report has no entity. The score is the mean over studies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trrg_train.evaluation.bootstrap import Statistic, mean_statistic


@dataclass(frozen=True)
class Entity:
    """One entity of a report.

    Attributes:
        text: In lower case, words with one space between.
        label: Such as ``"Observation::definitely absent"``.
        relations: Kind and text of the other end of each relation that starts here.
    """

    text: str
    label: str
    relations: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class GraphReader:
    """Reads entities and relations out of reports.

    Attributes:
        name: As printed with the scores.
        read: Texts to their entities.
    """

    name: str
    read: Callable[[Sequence[str]], Sequence[Sequence[Entity]]]


def entity(one: Entity) -> set[tuple[object, ...]]:
    """RG_E: what an entity says."""
    return {(one.text, one.label)}


def entity_and_whether_related(one: Entity) -> set[tuple[object, ...]]:
    """RG_ER: what it says and that it has relations."""
    return {(one.text, one.label, bool(one.relations))}


def entity_and_relations(one: Entity) -> set[tuple[object, ...]]:
    """RG_ER_bar: each relation that starts here, or the entity where none does."""
    return {(one.text, one.label, *relation) for relation in one.relations} or entity(one)


LEVELS = (
    ("RG_E F1", entity),
    ("RG_ER F1", entity_and_whether_related),
    ("RG_ER_bar F1", entity_and_relations),
)


def graph_statistics(
    systems: Sequence[Sequence[str]], references: Sequence[str], reader: GraphReader
) -> list[dict[str, Statistic]]:
    """Score several systems against the same references; equal texts are read once.

    Args:
        systems: For each system K reports.
        references: K reports.
        reader: Reads the graphs.

    Returns:
        For each system its scores by name.
    """
    texts = list(dict.fromkeys([*references, *(text for system in systems for text in system)]))
    graphs = dict(zip(texts, reader.read(texts), strict=True))
    return [
        {
            name: mean_statistic(
                name, [f1(graphs[a], graphs[b], level) for a, b in zip(system, references, strict=True)]
            )
            for name, level in LEVELS
        }
        for system in systems
    ]


def f1(
    written: Sequence[Entity], reference: Sequence[Entity], level: Callable[[Entity], set[tuple[object, ...]]]
) -> float:
    """F1 of one study."""
    if not written or not reference:
        return 0.0
    ours, theirs = (set().union(*map(level, side)) for side in (written, reference))
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))
