"""Sections and cleaning of report text. Every text here is made up."""

import random

import pytest

from trrg_sdk.labeler import label_report
from trrg_train.data import cleaning
from trrg_train.data.sections import (
    extract_sections,
    findings_and_impression,
    headed_report,
    last_paragraph,
    split_sections,
)

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___-year-old woman with cough.  // pneumonia?

 COMPARISON:  None.

 FINDINGS:

 The lungs are clear.  There is no effusion
 or pneumothorax.

 IMPRESSION:

 1. No acute process.
 2. Old rib fracture.
"""


def test_the_usual_report_comes_apart():
    sections = extract_sections(MIMIC)
    assert list(sections) == ["examination", "indication", "comparison", "findings", "impression"]
    assert sections["indication"] == "___-year-old woman with cough.  // pneumonia?"
    assert sections["findings"] == "The lungs are clear.  There is no effusion\n or pneumothorax."
    assert sections["impression"].startswith("1. No acute")


@pytest.mark.parametrize(
    ("text", "name", "body"),
    [
        ("FINDINGS AND IMPRESSION: Small effusion.", "findings", "Small effusion."),
        ("FINDINGS/IMPRESSION:\n Small effusion.", "findings", "Small effusion."),
        ("IMPRESSION\n No change.", "impression", "No change."),
        ("CONCLUSION: No change.", "impression", "No change."),
        ("REASON FOR EXAMINATION: Fever.", "indication", "Fever."),
        ("CLINICAL   HISTORY: Fever.", "history", "Fever."),
        ("TECHNIQUE: Portable AP.", "technique", "Portable AP."),
        ("WET READ: ___ 9:12 PM\n Nothing.", "preliminary", "___ 9:12 PM\n Nothing."),
        ("PORTABLE CHEST, 5 A.M.: Lungs are clear.", "other", "Lungs are clear."),
        ("findings: lungs are clear.", "findings", "lungs are clear."),
        ("Lungs are clear.", "", "Lungs are clear."),
    ],
)
def test_headings_in_their_many_forms(text, name, body):
    assert [(s.name, s.text) for s in split_sections(text)] == [(name, body)]


def test_headings_within_a_line_begin_with_a_capital():
    assert findings_and_impression("Findings: Clear. Impression: Normal chest.") == ("Clear.", "Normal chest.")
    text = "FINDINGS: There are the following findings: a nodule, an effusion."
    assert extract_sections(text) == {"findings": "There are the following findings: a nodule, an effusion."}


def test_what_is_headed_within_the_findings_belongs_to_them():
    text = "FINDINGS:\n TUBES: Removed.\n LUNGS: Clear.\n IMPRESSION: Normal.\n SIGNED: nobody"
    findings, impression = findings_and_impression(text)
    assert findings == "TUBES: Removed.\n LUNGS: Clear."
    assert impression == "Normal."


def test_an_addendum_is_kept_apart():
    text = f"ADDENDUM: Discussed by telephone.\n{'_' * 40}\n{MIMIC}"
    sections = extract_sections(text)
    assert sections["addendum"] == "Discussed by telephone."
    assert findings_and_impression(text) == findings_and_impression(MIMIC)


def test_a_section_that_comes_twice_is_joined_in_order():
    text = "FINDINGS: One.\nIMPRESSION: Two.\nADDENDUM: Mended.\nIMPRESSION: Three."
    assert extract_sections(text)["impression"] == "Two.\n\nThree."


def test_without_headings_the_last_paragraph_counts():
    body = "Compared with the last film,\n the effusion is smaller."
    assert findings_and_impression(f"FINAL REPORT\n INDICATION: Fever.\n\n COMPARISON: ___.\n\n {body}") == (body, "")
    assert last_paragraph("INDICATION: Fever.\n COMPARISON: None.") == ""
    assert last_paragraph(f"PORTABLE CHEST:\n Rotated.\n\n {body}") == body
    assert last_paragraph(f"{body}\n\nWET READ: effusion") == body
    assert last_paragraph("") == ""


def test_what_is_written_into_headings_is_read_back():
    for findings, impression in (("Clear.", "Normal."), ("Clear.", ""), ("", "Normal."), ("", "")):
        assert findings_and_impression(headed_report(findings, impression)) == (findings, impression)


WORDS = "The lungs are clear. No effusion, edema or nodule; heart: large! XXXX ___ rib 7. Is it old?".split(" ")
BREAKS = ["  ", "\n ", "\n\n", "\n 1. ", "\n2) ", "\n- ", " ____ ", "\t"]


def made_up(seed):
    rng = random.Random(seed)
    return "".join(rng.choice(WORDS) + rng.choice([*BREAKS, *([" "] * 12)]) for _ in range(rng.randint(0, 40)))


def letters(text):
    return [character for character in text.casefold() if character.isalpha()]


@pytest.mark.parametrize("seed", range(60))
def test_cleaning_keeps_every_letter_and_leaves_one_line(seed):
    text = made_up(seed)
    clean = cleaning.clean_report(text)
    assert letters(clean) == letters(text)
    assert "\n" not in clean
    assert "  " not in clean
    assert clean == clean.strip()
    assert cleaning.clean_report(clean) == clean
    assert cleaning.comparable(text) == cleaning.comparable(f" {text.upper()}\n")
    assert letters("".join(section.text for section in split_sections(text))) == letters(text)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("1. Mild edema\n 2. No effusion", "Mild edema. No effusion."),
        ("1.Mild edema.\n \n2.No effusion.", "Mild edema. No effusion."),
        ("Fracture of rib 7. No effusion.", "Fracture of rib 7. No effusion."),
        ("1. 5 mm nodule. 2. No edema.", "5 mm nodule. No edema."),
        ("Lungs are clear\n\nNo edema", "Lungs are clear. No edema."),
        ("Compared to _____,\n no change.", "Compared to ___, no change."),
        ("- Edema\n- No effusion", "Edema. No effusion."),
        ("", ""),
    ],
)
def test_our_cleaning_by_example(text, clean):
    assert cleaning.clean_report(text) == clean


def test_joining_lines_turns_no_sentence_round():
    text = "No pneumothorax\n\nLarge effusion"
    assert label_report(cleaning.clean_report(text)) == label_report(text)
    assert label_report(cleaning.collapse_space(text)) != label_report(text)


# The expected texts follow from the replacements in R2Gen's tokenizer, carried out by hand.
R2GEN = [
    ("The lungs are clear. No effusion.", "the lungs are clear . no effusion ."),
    ("1. Clear lungs. 2. No edema. 3. Old rib fracture.", "clear lungs . no edema . old rib fracture ."),
    ("Clear lungs 2. No edema", "clear lungs . no edema ."),
    ('Well-expanded (both), 50% "normal" [sic]; a/b.', "well-expanded both 50 normal sic ab ."),
    ("No edema.. No effusion", "no edema . no effusion ."),
    ("Eleven 11. Nodules", "eleven 1nodules ."),
    ("Six 6. Nodules. 7. Edema", "six 6 . nodules . 7 . edema ."),
    ("No. . Edema", "no .  . edema ."),
    ("A < B = C > D @ E", "a  b  c  d  e ."),
    ("", " ."),
]


@pytest.mark.parametrize(("text", "clean"), R2GEN)
def test_the_cleaning_of_r2gen_by_example(text, clean):
    assert cleaning.clean_report_iu_xray(text) == clean


def test_the_cleaning_of_r2gen_for_mimic_joins_lines_first():
    assert (
        cleaning.clean_report_mimic_cxr("The lungs\n are   clear.\n No ___ edema.")
        == "the lungs are clear . no  edema ."
    )
    assert cleaning.clean_report_mimic_cxr("Clear.\n 2. Edema") == "clear . edema ."


@pytest.mark.parametrize("seed", range(40))
def test_the_cleaning_of_r2gen_leaves_nothing_but_words_and_full_stops(seed):
    for clean in (cleaning.clean_report_iu_xray, cleaning.clean_report_mimic_cxr):
        text = clean(made_up(seed))
        assert text == text.lower()
        assert text.endswith(" .")
        assert all(word == "." or not set(word) & set(".,?;*!%^&_+():<=>@[]{}\"/\\'") for word in text.split())
