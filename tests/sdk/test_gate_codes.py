"""The table of codes: complete, and each code of the gate is triggered by a small file and overridden or not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import trrg_sdk
from tests.sdk.chest_dicom import chest_bytes, chest_pixels
from trrg_sdk.dicom import load
from trrg_sdk.errors import DicomError, RefusedError, UsageError
from trrg_sdk.gate import check
from trrg_sdk.gate_codes import ACCEPTABLE, REFUSALS, accepted, reason
from trrg_sdk.gate_specs import ADULTS
from trrg_sdk.report import GateReason
from trrg_sdk.study import select

WORDS = {"modality": "CT", "part": "HAND", "view": "LL", "rows": 9, "columns": 9, "least": 128, "share": 0.9}
WORDS |= {"views": "PA and AP", "far": 1.2, "colour": "black", "better": "PA", "tried": 8, "count": 9}


def stored(pixels: NDArray[Any]) -> dict[str, Any]:
    """The elements of an image of 12 bits."""
    rows, columns = pixels.shape
    return {"Rows": rows, "Columns": columns, "PixelData": pixels.astype("<u2").tobytes()}


def page() -> NDArray[np.uint16]:
    """White lines of writing on black."""
    pixels = np.zeros((256, 256), np.uint16)
    for row in range(20, 240, 12):
        pixels[row : row + 5, 20:200:4] = 4095
    return pixels


def dark() -> NDArray[np.uint16]:
    """A little of a chest in much black that is not quite black."""
    pixels = np.random.default_rng(0).integers(0, 120, (512, 512)).astype(np.uint16)
    pixels[200:300, 200:300] = chest_pixels(rows=100, columns=100)
    return pixels


CHEST = chest_pixels()
TRIGGERS: dict[str, dict[str, Any]] = {
    "wrong_modality": {"Modality": "CT"},
    "modality_missing": {"Modality": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
    "wrong_object": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"},
    "for_processing": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1.1"},
    "wrong_body_part": {"BodyPartExamined": "HAND"},
    "lateral_view": {"ViewPosition": "LL"},
    "unsupported_view": {"ViewPosition": "RLD"},
    "paediatric_age": {"PatientAge": "012Y"},
    "too_small": stored(chest_pixels(rows=100, columns=86)),
    "mostly_blank": stored(dark()),
    "burnt_in_only": stored(page()),
    "not_chest_like": stored(np.random.default_rng(0).integers(0, 4096, (256, 256))),
    "inverted": stored(4095 - CHEST),
    "turned": stored(CHEST[::-1, ::-1]),
}
UNREAD: dict[str, dict[str, Any]] = {
    "no_pixels": {"PixelData": None},
    "missing_tag": {"PhotometricInterpretation": None},
    "bad_value": {"BitsAllocated": 12},
    "bad_size": {"Rows": 60_000},
    "truncated": {"Rows": 300},
    "multi_frame": {"NumberOfFrames": 2},
    "colour": {"PhotometricInterpretation": "RGB"},
    "blank": stored(np.full((256, 220), 7)),
}


def codes(reasons: tuple[GateReason, ...]) -> list[str]:
    return [found.code for found in reasons]


def test_every_code_of_the_gate_has_a_trigger_here() -> None:
    of_the_model = {"unlike_training"}  # test_distance.py: the bundle's numbers say it
    assert set(TRIGGERS) | of_the_model == set(ACCEPTABLE)
    assert set(UNREAD) < set(REFUSALS) - set(ACCEPTABLE)


@pytest.mark.parametrize("code", TRIGGERS)
def test_a_code_is_triggered_by_a_file_and_refuses_it(code: str) -> None:
    image = load(chest_bytes(**TRIGGERS[code]))
    assert codes(check(image, population=ADULTS))[0] == code
    with pytest.raises(RefusedError) as caught:
        select([image], population=ADULTS)
    assert caught.value.code == code and REFUSALS[code].action in str(caught.value)


@pytest.mark.parametrize("code", TRIGGERS)
def test_a_code_is_overridden_alone_and_the_choice_says_so(code: str) -> None:
    image = load(chest_bytes(**TRIGGERS[code]))
    # An image that is nearly blank or a page looks like no chest either: that has to be said as well.
    others = {found for found in codes(check(image, population=ADULTS, accept=frozenset(ACCEPTABLE))) if found != code}
    chosen = select([image], population=ADULTS, accept=accepted({code, *others}))
    assert chosen.gate.status == "overridden"
    assert {found.code for found in chosen.gate.overridden} == {code, *others}
    assert chosen.images[0].used and chosen.images[0].reason == ""
    for other in others:
        with pytest.raises(RefusedError) as caught:
            select([image], population=ADULTS, accept={code, *others} - {other})
        assert caught.value.code == other
    unrelated = accepted(set(ACCEPTABLE) - {code})
    with pytest.raises(RefusedError) as caught:
        select([image], population=ADULTS, accept=unrelated)
    assert caught.value.code == code and {found.code for found in caught.value.reasons} == {code}  # type: ignore[attr-defined]


@pytest.mark.parametrize("code", UNREAD)
def test_what_cannot_be_read_is_never_overridden(code: str) -> None:
    with pytest.raises(DicomError) as caught:
        load(chest_bytes(**UNREAD[code]))
    assert caught.value.code == code
    with pytest.raises(UsageError, match=f"{code} can never be overridden"):
        accepted([code])


def test_an_accepted_image_of_the_right_kind_is_plainly_accepted() -> None:
    chosen = select([load(chest_bytes())], accept=accepted(ACCEPTABLE))
    assert (chosen.gate.status, chosen.gate.overridden, chosen.gate.reasons) == ("accepted", (), ())


def test_an_image_that_needs_no_override_comes_first() -> None:
    lateral, hand = (load(chest_bytes(**TRIGGERS[code])) for code in ("lateral_view", "wrong_body_part"))
    frontal = load(chest_bytes(ViewPosition="AP"))
    chosen = select([lateral, hand, frontal], accept=accepted(["lateral_view", "wrong_body_part"]))
    assert chosen.radiograph is frontal and chosen.gate.status == "accepted"
    assert codes(chosen.gate.reasons) == ["lateral_view", "wrong_body_part"]
    chosen = select([lateral, hand], accept=accepted(["lateral_view", "wrong_body_part"]))
    assert chosen.radiograph is hand and codes(chosen.gate.overridden) == ["wrong_body_part"]
    assert codes(chosen.gate.reasons) == ["lateral_view"]
    assert [image.used for image in chosen.images] == [False, True]


def test_an_override_of_one_of_two_reasons_is_not_enough() -> None:
    image = load(chest_bytes(BodyPartExamined="HAND", ViewPosition="LL"))
    with pytest.raises(RefusedError) as caught:
        select([image], accept=accepted(["wrong_body_part"]))
    assert caught.value.code == "lateral_view"


def test_an_unknown_code_is_answered_with_the_list() -> None:
    with pytest.raises(UsageError, match="no code 'inverse'; these can be overridden: wrong_modality, "):
        accepted(["inverse"])


def test_a_shadow_without_any_detail_is_no_chest() -> None:
    ramp = np.add.outer(np.linspace(0, 1000, 256), np.linspace(0, -300, 256)) + 500
    assert codes(check(load(ramp))) == ["not_chest_like"]


def test_a_dead_pixel_is_no_writing_and_much_black_around_a_chest_is_allowed() -> None:
    pixels = np.zeros((256, 256), np.uint16)
    pixels[0, 0] = 4095
    assert codes(check(load(chest_bytes(**stored(pixels))))) == ["mostly_blank"]
    framed = np.pad(CHEST, ((60, 60), (60, 60)))
    assert codes(check(load(chest_bytes(**stored(framed))))) == []


@pytest.mark.parametrize("code", REFUSALS)
def test_the_table_speaks_in_sentences(code: str) -> None:
    refusal = REFUSALS[code]
    made = reason(code, **WORDS)
    assert made.message[0].isupper() and made.message.endswith(".") and "{" not in made.message
    assert made.action[0].isupper() and made.action.endswith(".")
    assert code.isidentifier() and code == code.lower() and not refusal.never.endswith(".")


def written() -> Iterator[tuple[str, str]]:
    """Every code that the package writes down: of an error, of a reason, or asked of the table."""
    for path in Path(trrg_sdk.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            first = node.args[:1] if node.func.id in ("GateReason", "reason") else []
            named = [word.value for word in node.keywords if word.arg == "code" and node.func.id.endswith("Error")]
            for value in (*first, *named):
                if isinstance(value, ast.Constant):
                    yield path.name, value.value


def test_the_table_holds_every_code_that_the_package_writes_down() -> None:
    assert {code: name for name, code in written() if code not in REFUSALS} == {}
    chosen = {"inverted", "turned", "duplicate"}  # not written as one word beside the call
    assert set(REFUSALS) - {code for _, code in written()} == chosen
