from __future__ import annotations

import gzip
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from trrg_sdk.labeler import OBSERVATIONS, SentenceSpan, State, label_report, label_sentence, split_sentences

LETTERS: dict[str, State] = {"+": "present", "-": "absent", "?": "uncertain"}
SHORT = {
    "ECM": "Enlarged Cardiomediastinum",
    "CM": "Cardiomegaly",
    "LO": "Lung Opacity",
    "LL": "Lung Lesion",
    "ED": "Edema",
    "CO": "Consolidation",
    "PN": "Pneumonia",
    "AT": "Atelectasis",
    "PX": "Pneumothorax",
    "PE": "Pleural Effusion",
    "PO": "Pleural Other",
    "FX": "Fracture",
    "SD": "Support Devices",
    "NF": "No Finding",
}

# Sentence · what it says: + present, - absent, ? uncertain.
SENTENCES = """
There is a small left pleural effusion. · PE+
No pleural effusion. · PE-
No focal consolidation, effusion or pneumothorax. · CO- PE- PX-
There is no focal consolidation, large effusion, or pneumothorax. · CO- PE- PX-
The lungs are free of focal consolidation and edema. · CO- ED-
Negative for effusion and pneumothorax. · PE- PX-
No evidence of pulmonary edema. · ED-
Absence of pneumothorax. · PX-
Neither effusion nor pneumothorax. · PE- PX-
A pneumothorax is not seen. · PX-
The right pneumothorax is no longer visible. · PX-
The left effusion has resolved. · PE-
Resolved left effusion. · PE-
Interval resolution of the pneumothorax. · PX-
The effusions have completely cleared. · PE-
The effusion has nearly completely resolved. · PE+
The effusion has not resolved. · PE+
Consolidation and effusion are absent. · CO- PE-
Pneumothorax has been ruled out. · PX-
The opacity may represent pneumonia. · LO+ PN?
Possible small effusion. · PE?
Pneumonia cannot be excluded. · PN?
Cannot exclude a small pneumothorax. · PX?
A small effusion is not excluded. · PE?
Difficult to exclude atelectasis. · AT?
Opacity suspicious for pneumonia. · LO+ PN?
Questionable nodule in the left apex. · LL?
Small effusions suspected. · PE?
A rib fracture is possible. · FX?
Opacity, differential diagnosis includes pneumonia, edema, atelectasis. · LO+ PN? ED? AT?
Left base opacity, atelectasis or pneumonia. · LO+ AT? PN?
Atelectasis versus consolidation at the right base. · AT? CO?
There is a dense opacity in the right lower zone, consistent with consolidation. · LO+ CO+
No opacity consistent with pneumonia. · LO- PN-
No findings to suggest edema. · ED-
Small left effusion without pneumothorax. · PE+ PX-
No pneumothorax but a small effusion. · PX- PE+
No pneumothorax, small left effusion. · PX- PE+
No pneumothorax and the heart is enlarged. · PX- CM+
No pneumothorax, possible small effusion. · PX- PE?
No abnormality except for a small effusion. · PE+
Cardiomegaly with small effusions and no edema. · CM+ PE+ ED-
Possible left effusion and a right rib fracture. · PE? FX+
Unchanged left effusion. · PE+
No change in the left effusion. · PE+
The previously seen effusion is unchanged. · PE+
Left effusion, not significantly changed. · PE+
History of pneumonia. ·
Evaluate for pneumothorax. ·
Heart size is normal. · CM-
The heart is not enlarged. · CM-
The heart is mildly enlarged. · CM+
Mildly enlarged cardiac silhouette. · CM+
The heart is at the upper limits of normal. · CM-
Borderline heart size. · CM?
Borderline cardiomegaly. · CM+
Normal heart size and mediastinal contours. · CM- ECM-
The heart size and mediastinal contours are within normal limits. · CM- ECM-
The cardiomediastinal silhouette is unremarkable. · CM- ECM-
The mediastinal contours are within normal limits. · ECM-
The mediastinum is widened. · ECM+
There is mild widening of the mediastinum. · ECM+
Heart size is stable, aorta normal. ·
The heart is enlarged and the lungs are clear. · CM+ LO- CO-
Lungs are clear. · LO- CO-
The lungs are otherwise clear. ·
The left lung is clear. ·
Lungs are otherwise clear of infiltrate, pneumothorax, or effusion. · LO- PX- PE-
Pleural spaces are clear. · PE- PX-
The bony structures are intact. · FX-
No acute bony abnormality. · FX-
There is a bony abnormality of the shoulder. ·
Healed left rib fractures. · FX+
A right central venous catheter is in place. · SD+
The endotracheal tube has been removed. · SD-
No lines or tubes are seen. · SD-
Left hydropneumothorax. · PX+ PE+
Small pericardial effusion. ·
Soft tissue edema of the arm. ·
Lytic bone lesions. ·
Biapical pleural thickening. · PO+
A pulmonary nodule or mass. · LL+
No acute cardiopulmonary abnormality. · NF+
No radiographic evidence of acute cardiopulmonary disease. · NF+
Normal chest. · NF+
The chest radiograph is normal. · NF+
There is an acute cardiopulmonary abnormality. · NF-
Cardiomegaly without acute cardiopulmonary disease. · CM+
Degenerative changes of the spine. ·
Cardiac, mediastinal and hilar contours are normal. · CM- ECM-
No pneumothorax after chest tube placement. · PX- SD+
The lungs are hyperinflated but clear. · LO- CO-
The lungs are well expanded and clear. · LO- CO-
The heart is unchanged and mildly enlarged. · CM+
The lungs are not clear. ·
Is there a pneumonia? · PN?
Probable small right effusion and definite atelectasis. · PE? AT+
Effusions w/ atelectasis w/o edema. · PE+ AT+ ED-
Near complete resolution of the effusion. · PE+
Neither lung shows consolidation. · CO-
""".strip().splitlines()


def expected(codes: str) -> dict[str, State]:
    return {SHORT[code[:-1]]: LETTERS[code[-1]] for code in codes.split()}


@pytest.mark.parametrize("line", SENTENCES)
def test_sentence(line: str) -> None:
    sentence, codes = line.split("·")
    assert label_sentence(sentence.strip()) == expected(codes)


def test_capitals_and_hyphens_change_nothing() -> None:
    assert label_sentence("NO PLEURAL-EFFUSION.") == label_sentence("no pleural effusion")


def test_anonymised_words_change_nothing() -> None:
    assert label_sentence("No XXXX focal XXXX consolidation.") == {"Consolidation": "absent"}


@pytest.mark.parametrize("text", ["", "  \n", "XXXX.", "1. 2. 3.", "123"])
def test_nothing_said(text: str) -> None:
    assert label_report(text) == {}


def texts(report: str) -> list[str]:
    return [span.text for span in split_sentences(report)]


def test_headings_give_the_section_and_leave_the_text() -> None:
    assert split_sentences("FINDINGS: Clear lungs. No edema. IMPRESSION: Normal chest.") == [
        SentenceSpan("Clear lungs.", "findings"),
        SentenceSpan("No edema.", "findings"),
        SentenceSpan("Normal chest.", "impression"),
    ]
    assert split_sentences("No edema.") == [SentenceSpan("No edema.", "")]


def test_what_is_not_about_the_image_is_left_out() -> None:
    report = "INDICATION: Pneumonia? Rib fracture. COMPARISON: None. FINDINGS: Clear lungs. IMPRESSION: No edema."
    assert texts(report) == ["Clear lungs.", "No edema."]


@pytest.mark.parametrize(
    ("report", "sentences"),
    [
        ("A nodule of 1.5 cm. No effusion.", ["A nodule of 1.5 cm.", "No effusion."]),
        ("Edema vs. infection. No effusion.", ["Edema vs. infection.", "No effusion."]),
        ("Discussed with Dr. XXXX today. No edema.", ["Discussed with Dr. XXXX today.", "No edema."]),
        ("1. No effusion. 2. Clear lungs.", ["No effusion.", "Clear lungs."]),
        ("1.No effusion. 2.Clear lungs.", ["No effusion.", "Clear lungs."]),
        ("1) No effusion\n2) Clear lungs", ["No effusion", "Clear lungs"]),
        ("- No effusion\n- Clear lungs", ["No effusion", "Clear lungs"]),
        ("Clear lungs.No edema.", ["Clear lungs.", "No edema."]),
        ("Clear lungs.. . No edema.", ["Clear lungs..", "No edema."]),
        ("No effusion or\npneumothorax.", ["No effusion or\npneumothorax."]),
        ("Wedging of T12. No edema.", ["Wedging of T12.", "No edema."]),
        ("Infection? No edema!", ["Infection?", "No edema!"]),
    ],
)
def test_splitting(report: str, sentences: list[str]) -> None:
    assert texts(report) == sentences


def test_sentences_stand_in_the_report_word_for_word() -> None:
    report = "FINDINGS: 1. No effusion of 2.5 cm.  2. XXXX clear.No edema\n\nIMPRESSION:\n- Normal chest."
    place = 0
    for text in texts(report):
        place = report.index(text, place) + len(text)


def test_present_wins_over_uncertain_over_absent() -> None:
    assert label_report("No effusion. Possible effusion.")["Pleural Effusion"] == "uncertain"
    assert label_report("Small effusion. Possible effusion. No effusion.")["Pleural Effusion"] == "present"


@pytest.mark.parametrize(
    ("report", "state"),
    [
        ("No acute cardiopulmonary abnormality.", "present"),
        ("Clear lungs. No effusion.", "present"),
        ("Clear lungs. A pacemaker is in place.", "present"),
        ("No acute cardiopulmonary abnormality. Cardiomegaly.", "absent"),
        ("No pneumothorax. Possible effusion.", "uncertain"),
        ("A pacemaker is in place.", None),
    ],
)
def test_no_finding_follows_from_the_diseases(report: str, state: State | None) -> None:
    assert label_report(report).get("No Finding") == state


def test_report_labels_come_in_the_order_of_the_observations() -> None:
    labels = label_report("Pacemaker. No effusion. Cardiomegaly.")
    assert list(labels) == [name for name in OBSERVATIONS if name in labels]


REPORTS = Path("reports") / "iu_reports.jsonl.gz"
BENCHMARK = Path("tests") / "benchmarks" / "labeler.py"
ROOT = Path(__file__).resolve().parents[2]


def test_agrees_with_the_indexers_of_reports_that_nobody_read(shared_data: Path) -> None:
    """The val part, counted as tests/benchmarks/results/labeler_iu.md says, and that page still says it."""
    benchmark = runpy.run_path(str(ROOT / BENCHMARK))
    with gzip.open(shared_data / REPORTS, "rt", encoding="utf-8") as file:
        records = [r for r in map(json.loads, file) if r["gold14"] and r["r2gen_split"] == "val"]
    benchmark["label"](records)
    lines = list(benchmark["table"](records, "val"))
    micro = next(line for line in lines if "micro" in line)
    counts, none, left_out, open_is_none = map(float, micro.split("|")[5:-1:3])
    assert min(counts, none) > 0.9
    assert min(left_out, open_is_none) > 0.95
    assert "\n".join(lines) in (ROOT / BENCHMARK.parent / "results" / "labeler_iu.md").read_text(encoding="utf-8")


def test_benchmark_runs_and_shows_no_report(shared_data: Path) -> None:
    path = shared_data.resolve() / REPORTS
    command = [sys.executable, str(BENCHMARK), "--reports", str(path), "--limit", "50"]
    page = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "micro" in page and "sentences/s" in page
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for _, line in zip(range(50), file, strict=False)]
    sentences = [span.text for r in records for span in split_sentences(f"{r['findings']} {r['impression']}")]
    assert len(sentences) > 100
    assert not [text for text in sentences if len(text) > 12 and text in page]
