"""The commands of ``trrg-train`` as they are typed."""

import json

import pytest

pytest.importorskip("pycocoevalcap")

from trrg_train.cli import main

REPORTS = {
    "a": ("p1", "The lungs are clear.", "The lungs are clear."),
    "b": ("p2", "There is a small left pleural effusion.", "There is a left pleural effusion."),
    "c": ("p3", "There is pulmonary edema.", "The lungs are clear."),
}


@pytest.fixture
def texts(tmp_path):
    """Options that name csv files of three studies, two of them in the split test."""
    rows = {
        "predictions": ["study_id,report", *(f"{s},{written}" for s, (_, _, written) in REPORTS.items())],
        "references": [
            "study_id,report,patient,split",
            *(f"{s},{truth},{p},{'val' if s == 'c' else 'test'}" for s, (p, truth, _) in REPORTS.items()),
        ],
        "train": ["report", "The lungs are clear.", "The lungs are clear.", "There is a nodule."],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
    return [part for name in rows for part in (f"--{name}", str(tmp_path / f"{name}.csv"))]


def evaluated(capsys, *options):
    assert main(["evaluate", *options, "--no-meteor", "--resamples", "20", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def recall(result):
    return next(score["value"] for score in result["clinical"] if score["name"] == "micro recall (5)")


def test_written_reports_are_evaluated_and_a_split_is_honoured(texts, capsys):
    whole = evaluated(capsys, *texts)
    assert whole["facts"]["studies"] == whole["facts"]["patients"] == 3
    assert whole["facts"]["in_train"] == pytest.approx(1 / 3, abs=1e-6)
    assert recall(whole) == 0.5
    part = evaluated(capsys, *texts, "--split", "test")
    assert part["facts"]["studies"] == 2
    assert recall(part) == 1.0
    assert main(["evaluate", *texts, "--no-meteor", "--resamples", "20"]) == 0
    assert "| micro F1 (14) |" in capsys.readouterr().out


def test_an_output_file_of_rexrank_is_evaluated_alike(texts, tmp_path, capsys):
    records = {
        s: {"section_findings": truth, "subject_id": p, "model_prediction": written}
        for s, (p, truth, written) in REPORTS.items()
    }
    (tmp_path / "out.json").write_text(json.dumps(records), encoding="utf-8")
    result = evaluated(capsys, "--rexrank", str(tmp_path / "out.json"), *texts[-2:])
    assert recall(result) == 0.5
    assert main(["evaluate", "--rexrank", str(tmp_path / "out.json"), *texts[-2:], "--split", "val"]) == 2


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["model"],
        ["model", "run.toml", "--predictions", "p.csv"],
        ["model", "run.toml", "--rexrank", "o.json", "--train", "t.csv"],
        ["model", "--train", "t.csv"],
        ["--predictions", "p.csv", "--references", "r.csv"],
        ["--predictions", "p.csv", "--references", "r.csv", "--train", "t.csv", "--limit", "3"],
        ["--predictions", "p.csv", "--references", "r.csv", "--train", "t.csv", "--rexrank", "o.json"],
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options, capsys):
    assert main(["evaluate", *options]) == 2
    assert "evaluate takes MODEL and CONFIG" in capsys.readouterr().err


def test_a_data_set_is_checked_and_drawn(toy_run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    config = toy_run(tmp_path, epochs=1)
    folder = config.read_text(encoding="utf-8").partition('path = "')[2].partition('"')[0]
    assert main(["data", "check", folder, "--plot", str(tmp_path / "check.png")]) == 0
    assert "| val | 20 | 20 | 20 (100.0%) |" in capsys.readouterr().out
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")
    assert main(["data", "check", folder, "--kind", "xml"]) == 2
    assert "annotation, labelled_images" in capsys.readouterr().err
