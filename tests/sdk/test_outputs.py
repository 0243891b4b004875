from __future__ import annotations

import dataclasses
import random
import sys
import textwrap
from pathlib import Path

import pytest

from tests.sdk.chest_dicom import MARK
from tests.sdk.handmade_reports import SOP_UID, full_context, full_reading, full_report
from trrg_sdk.errors import InputError, UsageError
from trrg_sdk.outputs import FORMATS, Output, open_output
from trrg_sdk.outputs.coding import CLUES, PRIVATE_SCHEME, VERDICTS, Coding, clue_coding
from trrg_sdk.outputs.deidentify import deidentify, read_key, replacement_uid
from trrg_sdk.outputs.json_schema import SCHEMA_PATH, report_schema, schema_text
from trrg_sdk.outputs.text import _wrapped
from trrg_sdk.reading import Reading
from trrg_sdk.report import ClueScores, GateResult, Report


@pytest.mark.parametrize("name", FORMATS)
def test_every_output_has_the_same_names(name: str) -> None:
    output = opened(name)
    assert name == output.NAME
    assert output.EXTENSION.startswith(".")
    assert len(output.render(full_reading())) > 100


def opened(name: str) -> Output:
    """The format, or a skip that names the extra that is missing."""
    try:
        return open_output(name)
    except UsageError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_package_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trrg_sdk.outputs.find_spec", lambda _: None)
    if name in ("text", "json", "html", "heat"):
        assert open_output(name).unavailable_reason() is None
        return
    with pytest.raises(UsageError, match=rf"output {name} needs .* pip install 'trrg-sdk\[(sr|fhir|hl7)\]'"):
        open_output(name)


def test_extensions_differ() -> None:
    assert len({opened(name).EXTENSION for name in FORMATS}) == len(FORMATS)


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


def test_the_schema_file_is_what_the_dataclasses_say() -> None:
    assert SCHEMA_PATH.read_text(encoding="utf-8") == schema_text(), "python -m trrg_sdk.outputs.json_schema"


def test_json_follows_its_schema_and_nothing_else_does() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs the extra dev")
    schema = report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    value = full_report().to_dict()
    assert list(validator.iter_errors(value)) == []
    for key in value:
        assert list(validator.iter_errors({name: item for name, item in value.items() if name != key})), key
    wrong = [
        {**value, "patient": "x"},
        {**value, "draft": False},
        {**value, "schema_version": 1},
        {**value, "clues": [{**value["clues"][0], "probability": 1.5}]},
        {**value, "sentences": [{**value["sentences"][0], "verdict": "true"}]},
    ]
    assert all(list(validator.iter_errors(item)) for item in wrong)


def page(reading: Reading) -> str:
    return open_output("html").render(reading).decode()


def test_the_page_shows_sentences_clues_and_pictures() -> None:
    text = page(full_reading())
    assert '<p class="sentence contradicted">No edema.<br>' in text
    assert "Effusion of 王." in text
    assert "width:93.0%" in text
    assert text.count("<img") == 2  # the image, and the one present clue that was not forced
    assert page(Reading(full_report())).count("<img") == 0
    assert "forced by the caller" in text


def test_the_page_loads_nothing_and_names_nobody() -> None:
    text = page(full_reading())
    for word in ("http:", "https:", "<script", "<link", "@import", "url(", MARK, SOP_UID):
        assert word not in text
    assert "default-src 'none'" in text


def test_markup_in_a_text_stays_text() -> None:
    report = full_report()
    odd = dataclasses.replace(report.sentences[0], text="<script>alert(1)</script> & \x1b")
    text = page(Reading(dataclasses.replace(report, sentences=(odd,), notes=("<b>",))))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; \N{REPLACEMENT CHARACTER}" in text
    assert "<li>&lt;b&gt;</li>" in text


def test_public_codes_stand_in_the_dictionary_of_dicom() -> None:
    from pydicom.sr import codedict

    from trrg_sdk.outputs import coding

    public = [item for item in (*vars(coding).values(), *CLUES.values()) if isinstance(item, Coding)]
    public = [item for item in public if item.scheme != PRIVATE_SCHEME]
    assert len(public) > 10
    for item in public:
        meanings = [
            code.meaning
            for keyword in getattr(codedict.codes, item.scheme).dir()
            if (code := getattr(getattr(codedict.codes, item.scheme), keyword)).value == item.value
        ]
        assert item.meaning in meanings, item


def test_every_code_fits_its_element() -> None:
    codes = [*CLUES.values(), *VERDICTS.values(), clue_coding("Hiatal hernia \\ " + "x" * 99), clue_coding("\n")]
    assert len({(code.value, code.scheme) for code in codes}) == len(codes)
    assert all(0 < len(code.value) <= 16 and 0 < len(code.meaning) <= 64 for code in codes)
    assert clue_coding("Hernia") == clue_coding("Hernia")
    assert clue_coding("Hernia") != clue_coding("hernia")


KEY = b"k" * 32


def test_deidentification_replaces_with_a_keyed_hash() -> None:
    clean, again = deidentify(full_reading(), KEY), deidentify(full_reading(), KEY)
    assert clean.context == again.context
    assert clean.context is not None
    assert clean.context.study_instance_uid == replacement_uid("2.25.1", KEY)
    assert clean.report.images[0].sop_instance_uid == clean.context.sop_instance_uid
    other = deidentify(full_reading(), b"x" * 32).context
    assert other is not None
    assert other.study_instance_uid != clean.context.study_instance_uid
    assert other.patient_id != clean.context.patient_id
    shown = repr(dataclasses.asdict(clean.context))
    assert MARK not in shown
    assert not any(value in shown for value in ("19010203", "19990807", "101112"))
    assert full_context().study_date == "19990807"


def test_burned_in_patient_data_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        deidentify(full_reading(burned_in_annotation="YES"), KEY)
    assert caught.value.code == "burned_in"


def test_a_key_is_long_enough(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(UsageError, match="cannot be read"):
        read_key(path)
    path.write_bytes(b"short")
    with pytest.raises(UsageError, match="at least 32"):
        read_key(path)
    path.write_bytes(KEY)
    assert read_key(path) == KEY


def test_a_line_that_fits_is_what_textwrap_makes_of_it() -> None:
    signs, chosen = "ab c-\u00e9.\t\n \u3000\u00a0\u2014/\u2028", random.Random(0)
    for length in range(140):
        for _ in range(20):
            line = "".join(chosen.choices(signs, k=length))
            expected = textwrap.wrap(line, 100, initial_indent="  ", subsequent_indent="    ")
            assert _wrapped(line, first="  ", others="    ") == expected
