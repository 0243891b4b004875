"""Codes of what outputs say: from the standards' dictionaries where they have the concept, else our own scheme.

Every public code here stands in the dictionary of pydicom (``pydicom.sr.codedict``), and a test compares them. An
observation that the dictionary does not have, or has only as something narrower, keeps a code of scheme ``99TRRG``:
a wrong code would be worse than a private one.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

PRIVATE_SCHEME = "99TRRG"
PRIVATE_SCHEME_UID = "2.25.256240868240274997775649588361380544422"
PRIVATE_SCHEME_NAME = "TRRG SDK"
SYSTEMS = {
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "LN": "http://loinc.org",
    "SCT": "http://snomed.info/sct",
    "UCUM": "http://unitsofmeasure.org",
    PRIVATE_SCHEME: f"urn:oid:{PRIVATE_SCHEME_UID}",
}
"""Coding scheme designator of DICOM → code system of FHIR."""


class Coding(NamedTuple):
    """One coded concept.

    Attributes:
        value: Code, at most 16 characters.
        scheme: Coding scheme designator.
        meaning: What it means, at most 64 characters.
    """

    value: str
    scheme: str
    meaning: str


REPORT = Coding("18748-4", "LN", "Diagnostic Imaging Report")
FINDINGS = Coding("121070", "DCM", "Findings")
FINDING = Coding("121071", "DCM", "Finding")
IMPRESSIONS = Coding("121072", "DCM", "Impressions")
IMPRESSION = Coding("121073", "DCM", "Impression")
COMMENT = Coding("121106", "DCM", "Comment")
PROBABILITY = Coding("122157", "DCM", "Probability")
SOURCE = Coding("121324", "DCM", "Source image")
DEVICE = Coding("121007", "DCM", "Device")
PRESENCE = Coding("121052", "DCM", "Presence of property")
PLAIN_RADIOGRAPHY = Coding("168537006", "SCT", "Plain radiography")
PRESENT = Coding("52101004", "SCT", "Present")
ABSENT = Coding("272519000", "SCT", "Absent")
NO_UNITS = Coding("1", "UCUM", "no units")
THRESHOLD = Coding("THRESHOLD", PRIVATE_SCHEME, "Probability from which on the clue counts as present")
FORCED = Coding("FORCED", PRIVATE_SCHEME, "Probability was set by the caller")
PEAK = Coding("PEAK", PRIVATE_SCHEME, "Patch where the clue is strongest")
HEAT_MAP = Coding("HEAT_MAP", PRIVATE_SCHEME, "Clue probability per patch drawn over the image")
VERDICT = Coding("VERDICT", PRIVATE_SCHEME, "Verdict of the clues on the sentence")
OMISSIONS = Coding("OMISSIONS", PRIVATE_SCHEME, "Perceived, but not stated")
ABOUT = Coding("ABOUT", PRIVATE_SCHEME, "About this draft")
VERDICTS = {
    "supported": Coding("SUPPORTED", PRIVATE_SCHEME, "Supported"),
    "contradicted": Coding("CONTRADICTED", PRIVATE_SCHEME, "Contradicted"),
    "unsupported": Coding("UNSUPPORTED", PRIVATE_SCHEME, "Unsupported"),
    "not_checkable": Coding("NOT_CHECKABLE", PRIVATE_SCHEME, "Not checkable"),
}
CLUES = {
    "Enlarged Cardiomediastinum": Coding("ENL_CARDIOMED", PRIVATE_SCHEME, "Enlarged Cardiomediastinum"),
    "Cardiomegaly": Coding("287272002", "SCT", "Cardiomegaly"),
    "Lung Opacity": Coding("112001", "DCM", "Opacity"),
    "Lung Lesion": Coding("LUNG_LESION", PRIVATE_SCHEME, "Lung Lesion"),
    "Edema": Coding("19242006", "SCT", "Pulmonary edema"),
    "Consolidation": Coding("CONSOLIDATION", PRIVATE_SCHEME, "Consolidation"),
    "Pneumonia": Coding("PNEUMONIA", PRIVATE_SCHEME, "Pneumonia"),
    "Atelectasis": Coding("ATELECTASIS", PRIVATE_SCHEME, "Atelectasis"),
    "Pneumothorax": Coding("36118008", "SCT", "Pneumothorax"),
    "Pleural Effusion": Coding("60046008", "SCT", "Pleural effusion"),
    "Pleural Other": Coding("PLEURAL_OTHER", PRIVATE_SCHEME, "Pleural Other"),
    "Fracture": Coding("FRACTURE", PRIVATE_SCHEME, "Fracture"),
    "Support Devices": Coding("SUPPORT_DEVICES", PRIVATE_SCHEME, "Support Devices"),
    "No Finding": Coding("NO_FINDING", PRIVATE_SCHEME, "No Finding"),
}


def clue_coding(name: str) -> Coding:
    """The code of a clue; a custom one gets a private code that is always the same for its name."""
    known = CLUES.get(name)
    if known:
        return known
    meaning = re.sub(r"[\\\x00-\x1f\x7f]", " ", name).strip()[:64] or "custom clue"
    return Coding(f"C{hashlib.sha256(name.encode()).hexdigest()[:12].upper()}", PRIVATE_SCHEME, meaning)


def presence(present: bool) -> Coding:
    """``PRESENT`` or ``ABSENT``."""
    return PRESENT if present else ABSENT
