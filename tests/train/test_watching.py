"""What a run shows while it trains, which step it keeps, and the summary at its end."""

import io
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerControl, TrainerState, TrainingArguments

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.cli import main
from trrg_train.config import OptimConfig, Stage1Config, Stage2Config
from trrg_train.data.study import Study
from trrg_train.metrics import auc
from trrg_train.models.checkpoint import load_checkpoint
from trrg_train.trainer import StudyTrainer, training_arguments
from trrg_train.watching import plots, progress
from trrg_train.watching.progress import Progress, Speed
from trrg_train.watching.record import Asserted, Perceived, StageRecord, read_records
from trrg_train.watching.reports import report_metrics
from trrg_train.watching.samples import Sample, samples_to_markdown
from trrg_train.watching.summary import sum_up
from trrg_train.watching.validation import PerceptionValidation, aucs, held_out
from trrg_train.watching.watch import SaveBest

EFFUSION = OBSERVATIONS.index("Pleural Effusion")


@pytest.fixture
def run(toy_run, tmp_path):
    """A configuration of the toy data with other options of the optimiser, in both stages."""

    def make(name, *, epochs=1, options="", stage2=""):
        (tmp_path / name).mkdir()
        config = toy_run(tmp_path / name, epochs=epochs)
        text = config.read_text().replace(
            "save_steps = 10\neval_steps = 0", f"save_steps = 4\n{options or 'eval_steps = 0'}"
        )
        config.write_text(text.replace("parity_studies = 4", f"parity_studies = 4\n{stage2}"))
        return config

    return make


def of(config, *parts):
    return config.parent.joinpath("out", *parts)


def scalars(config, stage):
    events = EventAccumulator(str(of(config, "tensorboard", stage)))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, events


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_the_best_step_is_saved_kept_and_taken_also_after_a_resume(run, monkeypatch):
    config = run("best", epochs=2, options="eval_steps = 2\nlogging_steps = 2")
    found = {2: 0.5, 4: 0.6, 6: 0.9, 8: 0.7, 10: 0.8, 12: 0.4}
    monkeypatch.setattr(PerceptionValidation, "measure", lambda *_, step: {"macro_auc": found[step]})
    save = StudyTrainer.save_model

    def stopped_after_10(self, *args, **kwargs):
        save(self, *args, **kwargs)
        if self.state.global_step == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(StudyTrainer, "save_model", stopped_after_10)
        main(["stage1", str(config)])
    assert main(["stage1", str(config), "--resume"]) == 0
    steps = sorted(path.name for path in of(config, "stage1-steps").glob("checkpoint-*"))
    assert steps == ["checkpoint-12", "checkpoint-6"], "6 is no multiple of save_steps"
    best = load_file(of(config, "stage1-steps", "checkpoint-6", "model.safetensors"))
    saved = load_checkpoint(of(config, "stage1")).model.state_dict()
    assert all(torch.equal(best[f"perceiver.{name}"], weight) for name, weight in saved.items())
    (record,) = read_records(of(config))
    assert (record.step, record.selected_by) == (6, "macro_auc")
    found_steps = [entry["step"] for entry in record.history if "eval_macro_auc" in entry]
    assert found_steps == sorted(found), "no evaluation twice, none lost"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_a_watched_run_shows_everything_and_trains_as_an_unwatched_one(run, caplog):
    caplog.set_level(logging.INFO)
    watched = run("watched", epochs=2, options="eval_steps = 2\nlogging_steps = 1", stage2="samples = 3")
    plain = run("plain", epochs=2, options="logging_steps = 1\neval_steps = 0")
    for stage in ("stage1", "stage2"):
        assert main([stage, str(watched)]) == 0
    lines = "\n".join(record.getMessage() for record in caplog.records)
    assert main(["stage1", str(plain)]) == 0

    seen, _ = scalars(watched, "stage1")
    unseen, _ = scalars(plain, "stage1")
    assert seen["train/loss"] == unseen["train/loss"]
    assert len(seen["train/loss"]) == 12
    for tag in ("prompt_loss", "contrast_loss", "temperature", "learning_rate", "grad_norm", "images_per_second"):
        assert len(seen[f"train/{tag}"]) == 12
    assert [step for step, _ in seen["eval/auc/toy/Pleural Effusion"]] == [2, 4, 6, 8, 10, 12]
    assert [step for step, _ in unseen["eval/macro_auc"]] == [12]

    seen, events = scalars(watched, "stage2")
    assert {"train/language_loss", "train/consistency_loss", "train/tokens_per_second", "eval/loss"} <= set(seen)
    best = max(seen["eval/clinical_f1"], key=lambda point: point[1])
    first, second = read_records(of(watched))
    assert second.selected_by == "clinical_f1"
    assert dict(seen["eval/clinical_f1"])[second.step] == best[1]
    assert len(second.found.samples) == 3
    assert first.found.probabilities.shape == (20, 14)
    texts = events.Tensors("samples/text_summary")
    assert [event.step for event in texts] == [2, 4, 6, 8, 10, 12]
    shown = of(watched, "samples", "step-000012.md").read_text()
    assert shown.count("\n| toy |") == 3

    assert "step 12/12, loss " in lines and "images/s" in lines and "tokens/s" in lines and " left" in lines
    assert "clinical_f1" in lines
    assert "FINDINGS" not in lines and "s48" not in lines, "neither report text nor studies"
    page = of(watched, "summary.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "Sample reports" in page and "trrg-train stage2" in page and "20 studies of 20 patients for val" in page


def test_only_an_evaluation_better_than_all_before_is_saved():
    def saved(value, best, select_by, tmp=""):
        optim = OptimConfig(1, 2, 1e-3, eval_steps=200)
        arguments = training_arguments(optim, tmp, seed=1, select_by=select_by)
        control = TrainerControl()
        metrics = {"eval_clinical_f1": value, "eval_loss": value}
        SaveBest().on_evaluate(arguments, TrainerState(best_metric=best), control, metrics)
        return control.should_save

    assert saved(0.5, None, "clinical_f1") and saved(0.5, 0.4, "clinical_f1")
    assert not saved(0.4, 0.4, "clinical_f1") and not saved(0.3, 0.4, "clinical_f1")
    assert saved(0.3, 0.4, "loss") and not saved(0.5, 0.4, "loss")
    assert not saved(0.5, None, "last")


def test_every_option_of_the_choice_reaches_the_trainer(tmp_path):
    chosen = training_arguments(OptimConfig(1, 2, 1e-3, eval_steps=50), tmp_path, seed=1, select_by="loss")
    assert (chosen.eval_steps, chosen.load_best_model_at_end) == (50, True)
    assert (chosen.metric_for_best_model, chosen.greater_is_better) == ("loss", False)
    last = training_arguments(OptimConfig(1, 2, 1e-3, eval_steps=0), tmp_path, seed=1, select_by="loss")
    assert not last.load_best_model_at_end
    assert last.eval_steps > 10**6, "after the last step only"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_patience_ends_a_stage_and_a_choice_without_figures_is_refused(run, monkeypatch, capsys):
    config = run("early", epochs=2, options="eval_steps = 2\npatience = 2")
    monkeypatch.setattr(PerceptionValidation, "measure", lambda *_, step: {"macro_auc": 1.0 / step})
    assert main(["stage1", str(config)]) == 0
    (record,) = read_records(of(config))
    assert record.step == 2
    assert max(entry["step"] for entry in record.history) == 6
    monkeypatch.setattr(PerceptionValidation, "measure", lambda *_, step: {})
    assert main(["stage1", str(run("none", options="eval_steps = 2"))]) == UsageError.exit_code
    assert "nothing to compute macro_auc from: set select_by = 'last'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OptimConfig(1, 2, 1e-3, save_steps=100, eval_steps=30), "multiple of eval_steps"),
        (lambda: OptimConfig(1, 2, 1e-3, eval_steps=0, patience=2), "needs eval_steps"),
        (lambda: Stage1Config(OptimConfig(1, 2, 1e-3), select_by="clinical_f1"), "macro_auc, last"),
        (lambda: Stage2Config(OptimConfig(1, 2, 1e-3), select_by="bleu"), "clinical_f1, loss, last"),
        (lambda: Stage2Config(OptimConfig(1, 2, 1e-3, eval_steps=50, patience=2), select_by="last"), "a figure"),
        (lambda: Stage2Config(OptimConfig(1, 2, 1e-3), validation_studies=0), "validation_studies"),
    ],
)
def test_options_that_do_not_fit_are_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()


@pytest.fixture
def logged(caplog, monkeypatch):
    """Give the lines that a Progress writes for entries at step 40 of 100, ten steps and 20 s after a resume at 30."""
    caplog.set_level(logging.INFO)
    clock = iter((100.0, 120.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))

    def lines(*entries):
        shown, args, state = Progress(), TrainingArguments(use_cpu=True), TrainerState(global_step=30, max_steps=100)
        shown.on_train_begin(args, state, TrainerControl())
        state.global_step = 40
        shown.on_step_end(args, state, TrainerControl())
        for logs in entries:
            shown.on_log(args, state, TrainerControl(), logs=logs)
        shown.on_train_end(args, state, TrainerControl())
        return [record.getMessage() for record in caplog.records if record.name == progress.__name__]

    return lines


def test_a_log_file_gets_one_line_an_entry(logged, capfd):
    entry = {"loss": 2.5, "prompt_loss": 0.75, "temperature": 0.1, "learning_rate": 1e-3, "epoch": 0.4}
    rates = {"steps_per_second": 0.5, "images_per_second": 8.0}
    assert logged(entry | rates, {"train_runtime": 3.0, "train_loss": 2.0}) == [
        "step 40/100, loss 2.5, prompt_loss 0.75, temperature 0.1, learning_rate 0.001, 0.5 steps/s, 8 images/s, "
        "0:02:00 left"
    ]
    out, err = capfd.readouterr()
    assert out == "", "standard output belongs to results"
    assert "\r" not in err, "no bar where there is no terminal"


def test_an_evaluation_is_one_short_line(logged):
    assert logged({"eval_macro_auc": 0.91234, "eval_auc/toy/Edema": 0.5, "epoch": 1.0}) == [
        "step 40/100, validation: macro_auc 0.9123"
    ]


def test_speed_leaves_out_the_time_of_evaluations(monkeypatch):
    now = iter((0.0, 0.0, 2.0, 8.0, 10.0, 10.0))  # made twice, pause from 2 to 8, read at 10 and restarted
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    speed = Speed()
    speed.restart(step=30)
    speed.count(images=8, tokens=100)
    with speed.pause():
        pass
    assert speed.read(step=32, processes=2) == {
        "steps_per_second": 0.5,
        "images_per_second": 4.0,
        "tokens_per_second": 50.0,
    }


def study(number, source, split="val", report="x"):
    return Study(f"id{number}", f"p{number}", source, split, SimpleNamespace(), report, {"Edema": number % 2 == 0})


def test_held_out_studies_are_spread_over_the_sources():
    studies = [study(i, "large") for i in range(100)] + [study(i, "small") for i in range(100, 103)]
    studies += [study(200, "large", "train")]
    chosen = held_out(studies, 13)
    assert [s.source for s in chosen] == ["large"] * 10 + ["small"] * 3
    assert [s.study_id for s in chosen[:10]] == [f"id{i}" for i in range(0, 100, 10)]
    assert len(held_out(studies, 1000)) == 103


def test_sources_are_not_mixed_in_an_auc():
    labels = np.full((8, 14), np.nan)
    labels[:, EFFUSION] = [0, 0, 1, 1, 0, 0, 1, 1]
    scores = np.zeros((8, 14))
    scores[:, EFFUSION] = [5, 6, 7, 8, 0, 1, 2, 3]
    sources = ["a"] * 4 + ["b"] * 4
    assert aucs(scores, labels, sources) == {"a": {"Pleural Effusion": 1.0}, "b": {"Pleural Effusion": 1.0}}
    scores[4:6, EFFUSION] = 9
    studies = [Study(f"s{i}", f"p{i}", s, "val", SimpleNamespace(), "x", {}) for i, s in enumerate(sources)]
    validation = PerceptionValidation(studies, lambda task: scores)
    validation.labels = labels
    assert validation.measure(None, step=1)["macro_auc"] == 0.5


def test_the_clinical_figure_of_reports_is_a_mean_over_sources():
    sick, well = "There is a pleural effusion.", "There is no pleural effusion. The lungs are clear."
    metrics = report_metrics([sick, sick, sick, well], [sick, sick, well, sick], ["a", "a", "b", "b"])
    assert metrics["f1/a/Pleural Effusion"] == 1.0
    assert metrics["f1/b/Pleural Effusion"] == 0.0
    assert metrics["distinct"] == 0.5
    assert 0.0 < metrics["clinical_f1"] < 1.0


def test_a_sample_stays_in_its_cell():
    table = samples_to_markdown([Sample("toy", "A | B\n\nC", "D")])
    assert table.splitlines()[2] == "| toy | A \\| B C | D |"


def test_the_area_under_the_points_is_the_auc():
    rng = np.random.default_rng(1)
    truth = rng.random(200) < 0.3
    scores = np.round(rng.random(200) + 0.3 * truth, 1)  # many ties
    false, found = plots.roc_points(scores, truth)
    assert np.trapezoid(found, false) == pytest.approx(auc(scores, truth.astype(np.float64)))
    assert (false[0], found[0], false[-1], found[-1]) == (0, 0, 1, 1)


def test_reliability_of_true_probabilities_is_the_diagonal():
    rng = np.random.default_rng(2)
    probability = rng.random(20000)
    mean, share = plots.reliability_points(probability, rng.random(20000) < probability)
    assert len(mean) == 10
    np.testing.assert_allclose(share, mean, atol=0.04)
    assert len(plots.reliability_points(np.array([0.2]), np.array([True]))[0]) == 1


def test_what_is_not_known_is_in_no_cell():
    said, truth = np.array([1, 1, 0, 0, 1], dtype=bool), np.array([1, 0, 1, np.nan, np.nan])
    assert plots.confusion_counts(said, truth).tolist() == [[1, 1], [1, 0]]


@pytest.fixture
def records():
    rng = np.random.default_rng(3)
    labels = (rng.random((60, 14)) < 0.3).astype(np.float64)
    labels[:5, 0] = np.nan
    perceived = Perceived(
        ("toy",) * 60, np.clip(labels * 0.4 + rng.random((60, 14)) * 0.6, 0, 1), np.full(14, 0.5), labels
    )
    written = Asserted(
        ("toy",) * 4, rng.random((4, 14)) < 0.5, rng.random((4, 14)) < 0.5, (Sample("toy", "<b>&", "y"),)
    )
    history = [{"step": step, "loss": 1.0 / step, "epoch": 0.1} for step in (10, 20)]
    facts = {"settings": {"model": {"name": "tiny"}}, "commands": ("made",), "data": "toy: 60 studies"}
    return [
        StageRecord(stage, 10, "last", history, found=found, **facts) for stage, found in ((1, perceived), (2, written))
    ]


def test_a_record_reads_as_it_was_written(records):
    for record in records:
        again = StageRecord.from_json(record.to_json())
        assert again.to_json() == record.to_json()
        assert isinstance(again.found, type(record.found))
    np.testing.assert_array_equal(StageRecord.from_json(records[0].to_json()).found.labels, records[0].found.labels)
    assert StageRecord.from_json(records[1].to_json()).found.samples == records[1].found.samples
    json.loads(records[0].to_json(), parse_constant=pytest.fail)


def test_the_summary_needs_nothing_else(records, tmp_path):
    for record in records:
        path = sum_up(tmp_path, record)
    page = path.read_text()
    assert "&lt;b&gt;&amp;" in page and "<b>" not in page
    assert "http" not in page and "src='data:image/png;base64," in page
    assert not list(tmp_path.rglob("*.writing"))
    assert page.index("Stage 1") < page.index("Stage 2")
    sum_up(tmp_path, records[0])
    assert "Stage 2" not in path.read_text(), "the second stage was of an earlier first one"


def test_pictures_can_be_drawn_of_little(records):
    found = records[0].found
    few = Perceived(("toy",), found.probabilities[:1], found.thresholds, np.full((1, 14), np.nan))
    for png in (plots.roc(few), plots.reliability(few), plots.confusion(np.zeros((1, 14), bool), few.labels)):
        assert Image.open(io.BytesIO(png)).size[0] > 50
