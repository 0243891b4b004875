"""The wordings of the grammar, as tables: how each kind of finding is asserted and each observation denied.

Our own sentences, in the plain style of radiology reports. The first wording of a list is by far the most frequent
(see ``grammar.SHARES``): a small decoder must be able to learn them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SIZE = ("small", "moderate", "large")
DEGREE = ("mild", "moderate", "severe")
SEVERITIES = ("small", "moderate", "large")
ADVERB = {"small": "mildly", "moderate": "moderately", "large": "severely"}


@dataclass(frozen=True)
class Wording:
    """How a kind of finding is written.

    Attributes:
        noun: Singular; what the impression calls it.
        plural: Used for both sides; empty where the noun has none ("edema"), and then it has no article either.
        sentences: Templates of the findings; see ``grammar`` for the fields.
        severity: The words for small, moderate, large; empty where nobody grades it.
        sign: The noun that ``{sign}`` writes with article, severity and number, when it is not ``noun``.
        sided: Whether ``{np}`` and the impression name the side and the place.
    """

    noun: str
    plural: str
    sentences: tuple[str, ...]
    severity: tuple[str, ...] = SIZE
    sign: str = ""
    sided: bool = True


def _device(noun: str) -> Wording:
    sentences = ("{Np} {be} in place.", "There {be} {np} in place.", "{Np} {be} seen.")
    return Wording(noun, f"{noun}s", sentences, severity=())


WORDINGS: Mapping[str, Wording] = {
    "pacemaker": _device("pacemaker"),
    "central venous catheter": _device("central venous catheter"),
    "endotracheal tube": _device("endotracheal tube"),
    "nasogastric tube": _device("nasogastric tube"),
    "chest tube": _device("chest tube"),
    "consolidation": Wording(
        "consolidation",
        "",
        (
            "There {be} {sign} {where}, consistent with consolidation.",
            "{Sign} {where} {be} consistent with consolidation.",
            "Consolidation is present {where} with {sign}.",
        ),
        severity=SIZE,
        sign="dense",
    ),
    "pneumonia": Wording(
        "pneumonia",
        "",
        (
            "There {be} {sign} {where}, consistent with pneumonia.",
            "{Sign} {where} {be} consistent with pneumonia.",
            "Pneumonia is present {where} with {sign}.",
        ),
        severity=SIZE,
        sign="patchy",
    ),
    "opacity": Wording(
        "opacity",
        "opacities",
        ("There {be} {sign} {where}.", "{Sign} {be} seen {where}.", "{Sign} {be} present {where}."),
        severity=SIZE,
        sign="hazy",
    ),
    "nodule": Wording(
        "pulmonary nodule",
        "pulmonary nodules",
        ("There {be} {sign} {where}.", "{Sign} {be} seen {where}.", "{Sign} {be} present {where}."),
        severity=SIZE,
    ),
    "mass": Wording(
        "pulmonary mass",
        "pulmonary masses",
        ("There {be} {sign} {where}.", "{Sign} {be} seen {where}.", "{Sign} {be} present {where}."),
        severity=SIZE,
    ),
    "edema": Wording(
        "pulmonary edema",
        "",
        (
            "There is {np}.",
            "Perihilar haze is consistent with {np}.",
            "The appearance is consistent with {np}.",
        ),
        severity=DEGREE,
    ),
    "atelectasis": Wording(
        "atelectasis",
        "",
        ("There is {np}.", "{Np} is present.", "{Np} is seen."),
        severity=DEGREE,
    ),
    "pneumothorax": Wording(
        "pneumothorax",
        "pneumothoraces",
        ("There {be} {np}.", "{Np} {be} present.", "{Np} {be} seen."),
    ),
    "pleural effusion": Wording(
        "pleural effusion",
        "pleural effusions",
        ("There {be} {np}.", "{Np} {be} present.", "{Np} {be} seen."),
    ),
    "pleural thickening": Wording(
        "pleural thickening",
        "",
        ("There is {np}.", "{Np} is present.", "{Np} is seen."),
        severity=DEGREE,
    ),
    "cardiomegaly": Wording(
        "cardiomegaly",
        "",
        ("The heart is {adverb} enlarged.", "The cardiac silhouette is {adverb} enlarged.", "There is {np}."),
        severity=DEGREE,
        sided=False,
    ),
    "widened mediastinum": Wording(
        "mediastinal widening",
        "",
        ("The mediastinum is {adverb} widened.", "There is {np}.", "The mediastinal contour is {adverb} widened."),
        severity=DEGREE,
        sided=False,
    ),
    "rib fracture": Wording(
        "rib fracture",
        "rib fractures",
        ("There {be} {np}.", "{Np} {be} present.", "{Np} {be} seen."),
        severity=(),
    ),
}
"""Kind of finding → its wording, in the order of a report: devices, lungs, pleura, heart and mediastinum, bones."""

ADJECTIVE: Mapping[str, str] = {
    "upper": "upper zone",
    "mid": "mid zone",
    "lower": "lower zone",
    "base": "basal",
    "apex": "apical",
}
"""Place → the words before a noun."""

SINGULAR: Mapping[str, str] = {
    "upper": "upper zone",
    "mid": "mid zone",
    "lower": "lower zone",
    "base": "lung base",
    "apex": "lung apex",
    "": "lung",
}
PLURAL: Mapping[str, str] = {**{place: f"{noun}s" for place, noun in SINGULAR.items()}, "apex": "lung apices"}
"""Place → the words after "in the left" and after "in both"."""

UNPLACED = frozenset({"pleural effusion"})
"""Kinds whose place is always the same and is not said."""

CLEAR_LUNGS = ("The lungs are clear.", "Both lungs are clear.", "The lungs are clear bilaterally.")
DENY_LIST = ("There is no {list}.", "No {list} is seen.", "No evidence of {list}.")
LUNG_ITEMS: tuple[tuple[str, ...], ...] = (
    ("Consolidation", "Edema", "Lung Lesion"),
    ("Consolidation", "Atelectasis", "Edema"),
    ("Pneumonia", "Edema", "Lung Lesion"),
)
"""What a report denies in the lungs, one of these sets."""
PLEURA_ITEMS: tuple[tuple[str, ...], ...] = (
    ("Pleural Effusion", "Pneumothorax"),
    ("Pneumothorax", "Pleural Effusion"),
    ("Pleural Effusion", "Pneumothorax", "Pleural Other"),
)
ITEM: Mapping[str, str] = {
    "Lung Opacity": "focal opacity",
    "Consolidation": "focal consolidation",
    "Pneumonia": "pneumonia",
    "Edema": "pulmonary edema",
    "Atelectasis": "atelectasis",
    "Lung Lesion": "nodule",
    "Pleural Effusion": "pleural effusion",
    "Pneumothorax": "pneumothorax",
    "Pleural Other": "pleural thickening",
}
"""Observation → its words in a list of denials."""

NORMAL_HEART = ("The heart size is normal.", "The cardiac silhouette is normal in size.", "The heart is not enlarged.")
NORMAL_MEDIASTINUM = (
    "The mediastinal contours are within normal limits.",
    "The mediastinum is not widened.",
    "The mediastinal contours are normal.",
)
NORMAL_BOTH = (
    "The heart size and mediastinal contours are within normal limits.",
    "The heart size and mediastinal contours are normal.",
    "The cardiac silhouette and mediastinal contours are normal.",
)
NORMAL_BONES = ("The bony structures are intact.", "No rib fracture is seen.", "No acute osseous abnormality.")
NO_DEVICES = ("No lines or tubes are seen.",)
NOTHING = (
    "No acute cardiopulmonary abnormality.",
    "No acute cardiopulmonary disease.",
    "No evidence of acute cardiopulmonary abnormality.",
)

PROMPTS: Mapping[str, tuple[str, str]] = {
    "Enlarged Cardiomediastinum": ("The mediastinum is widened.", "The mediastinal contours are within normal limits."),
    "Cardiomegaly": ("The heart is enlarged.", "The heart size is normal."),
    "Lung Opacity": ("There is an opacity in the lung.", "There is no focal opacity."),
    "Lung Lesion": ("There is a pulmonary nodule or pulmonary mass.", "There is no nodule or mass."),
    "Edema": ("There is pulmonary edema.", "There is no pulmonary edema."),
    "Consolidation": ("Consolidation is present.", "There is no focal consolidation."),
    "Pneumonia": ("Pneumonia is present.", "There is no pneumonia."),
    "Atelectasis": ("There is atelectasis.", "There is no atelectasis."),
    "Pneumothorax": ("There is a pneumothorax.", "There is no pneumothorax."),
    "Pleural Effusion": ("There is a pleural effusion.", "There is no pleural effusion."),
    "Pleural Other": ("There is pleural thickening.", "There is no pleural thickening."),
    "Fracture": ("There is a rib fracture.", "The bony structures are intact."),
    "Support Devices": ("A catheter, tube or pacemaker is in place.", "No lines or tubes are seen."),
    "No Finding": ("No acute cardiopulmonary abnormality.", "There is an acute cardiopulmonary abnormality."),
}
"""Observation → positive and negative prompt."""
