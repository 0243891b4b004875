from __future__ import annotations

import dataclasses
import sys

import pytest

from tests.sdk.handmade_reports import SOP_UID, full_report
from trrg_sdk.errors import UsageError
from trrg_sdk.outputs import FORMATS, open_output
from trrg_sdk.reading import Reading
from trrg_sdk.report import ClueScores, GateResult, Report


@pytest.mark.parametrize("name", FORMATS)
def test_every_output_has_the_same_names(name: str) -> None:
    output = open_output(name)
    assert name == output.NAME
    assert output.EXTENSION.startswith(".")
    assert output.render(Reading(full_report())).endswith(b"\n")


def test_extensions_differ() -> None:
    assert len({open_output(name).EXTENSION for name in FORMATS}) == len(FORMATS)


def test_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="text, json"):
        open_output("pdf")


def test_the_json_module_does_not_hide_the_standard_one() -> None:
    open_output("json")
    assert hasattr(sys.modules["json"], "loads")


def test_json_reads_back() -> None:
    assert Report.from_json(open_output("json").render(Reading(full_report()))) == full_report()


def rendered(report: Report) -> str:
    return open_output("text").render(Reading(report)).decode()


def test_text_says_what_supports_each_sentence() -> None:
    text = rendered(full_report())
    assert "There is a left pleural effusion. [supported: Pleural Effusion 0.93]" in text
    assert "No edema. [CONTRADICTED: Edema 0.88 forced]" in text
    assert "Effusion of 王. [not checkable]" in text
    assert text.index("FINDINGS") < text.index("No edema") < text.index("IMPRESSION") < text.index("Effusion of")


def test_text_says_that_it_is_a_draft_and_what_made_it() -> None:
    text = rendered(full_report())
    assert text.splitlines()[1].startswith("DRAFT")
    assert "Research only, not for clinical use." in text
    assert "mini-0123abcd" in text
    assert "device cpu | int8 | trrg-sdk 0.1.0" in text


def test_text_lists_omissions_notes_and_unused_images() -> None:
    text = rendered(full_report())
    assert "PERCEIVED, BUT NOT SAID\n  Edema 0.88 forced (threshold 0.40)" in text
    assert "The file has no display window." in text
    assert "A lateral view is not reported. Send the frontal one." in text


def test_text_warns_of_forced_scores_only_when_there_are_some() -> None:
    report = full_report()
    assert "forced by the caller" in rendered(report)
    honest = dataclasses.replace(report, clues=ClueScores(report.clues.scores[:1]))
    assert "forced by the caller" not in rendered(honest)


def test_text_leaves_empty_blocks_out() -> None:
    report = dataclasses.replace(full_report(), omissions=(), notes=(), gate=GateResult())
    text = rendered(report)
    assert "PERCEIVED" not in text
    assert "NOTES" not in text
    assert "\n\n\n" not in text


def test_text_shows_no_uid() -> None:
    assert SOP_UID not in rendered(full_report())


def test_text_fits_its_width() -> None:
    report = full_report()
    long = dataclasses.replace(report.sentences[0], text="word " * 60 + "end.")
    text = rendered(dataclasses.replace(report, sentences=(long,)))
    body = text.split("FINDINGS\n")[1].split("\n\n")[0]
    assert max(map(len, body.splitlines())) <= 100


def test_text_shows_control_characters_instead_of_sending_them() -> None:
    report = full_report()
    odd = dataclasses.replace(report.sentences[0], text="Clear\x1b[2J lungs.")
    text = rendered(dataclasses.replace(report, sentences=(odd,)))
    assert "\x1b" not in text
    assert "Clear\N{REPLACEMENT CHARACTER}[2J lungs." in text
