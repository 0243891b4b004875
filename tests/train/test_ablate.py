"""The ablation: what each variant changes, that runs are shared, go on and end in one table."""

import dataclasses
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pycocoevalcap")
pytestmark = pytest.mark.torch

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.ablation.measure import Outcome, constant_floor, positive_recall, read_outcome
from trrg_train.ablation.run import run_ablation
from trrg_train.ablation.runs import check_sources, claim, planned
from trrg_train.ablation.table import Report
from trrg_train.ablation.variants import VARIANTS
from trrg_train.cli import build_parser, main
from trrg_train.config import read_config
from trrg_train.data.sentences import labelled_report, labelled_sentences
from trrg_train.data.sources import read_sources
from trrg_train.draws import Draw
from trrg_train.models.checkpoint import load_checkpoint
from trrg_train.stage1 import Stage1Batches, run_stage1
from trrg_train.stage2 import EndToEndTask, _model, _task, _validation
from trrg_train.stage2_batches import Stage2Batches


@pytest.fixture
def config(toy_run, tmp_path):
    return read_config(toy_run(tmp_path, epochs=1))


def outcome(variant, seed, f1, **values):
    made = Outcome(variant, seed, 20, f1, 0.1, 0.9, 0.5, 0.75, 8, 3, 0.8, 0.9)
    return dataclasses.replace(made, **values)


def report_of(outcomes, **values):
    made = Report(outcomes, 0.21, "toy: 3 studies.", "trrg-train ablate c.toml --out o", 2.0, len(outcomes), 2)
    return dataclasses.replace(made, **values)


def differences(a, b, prefix=""):
    """Dotted names of the fields that differ between two configurations."""
    found = set()
    for field in dataclasses.fields(a):
        mine, other = getattr(a, field.name), getattr(b, field.name)
        if dataclasses.is_dataclass(mine):
            found |= differences(mine, other, f"{prefix}{field.name}.")
        elif mine != other:
            found.add(prefix + field.name)
    return found


@pytest.mark.parametrize(
    ("variant", "changed"),
    [
        ("full", set()),
        ("no_stage1", {"stage1.optim.epochs", "stage2.train_perceiver"}),
        ("no_injection", {"model.clue_injection", "model.interaction_layers", "stage2.clue_swap"}),
        ("no_interaction", {"model.interaction_layers"}),
        ("no_consistency", {"stage2.consistency_weight"}),
        ("no_clue_swap", {"stage2.clue_swap"}),
        ("report_contrast", {"stage1.contrast"}),
    ],
)
def test_a_variant_changes_its_part_and_nothing_else(variant, changed, config):
    assert differences(config, VARIANTS[variant].change(config)) == changed


def test_without_stage_1_the_images_are_seen_as_often(config):
    longer = dataclasses.replace(
        config, stage1=dataclasses.replace(config.stage1, optim=dataclasses.replace(config.stage1.optim, epochs=9))
    )
    changed = VARIANTS["no_stage1"].change(longer)
    assert (changed.stage1.optim.epochs, changed.stage2.optim.epochs) == (0, 9)


def test_runs_share_a_stage_1_where_they_can(config, tmp_path):
    runs = planned(config, tmp_path, variants=list(VARIANTS), seeds=3)
    assert len(runs) == len({run.result for run in runs}) == len({run.config.out for run in runs}) == 3 * len(VARIANTS)
    starts = {run.start.out.name for run in runs}
    assert starts == {f"{kind}-{seed}" for kind in ("sentence", "report", "untrained") for seed in (3, 4, 5)}
    assert {run.start.out.name for run in runs if run.variant == "no_injection"} == {f"sentence-{s}" for s in (3, 4, 5)}


def test_a_whole_report_is_one_text_that_says_all_of_it():
    report = "There is a pleural effusion. There is no pneumothorax."
    (whole,) = labelled_report(report)
    assert whole.text == report
    assert whole.asserts
    said = sum(sentence.states for sentence in labelled_sentences(report))
    said[OBSERVATIONS.index("No Finding")] = -1  # follows from the whole, no sentence says it
    assert (whole.states == said).all()


def test_the_configuration_says_what_is_contrasted(config, tmp_path):
    studies = read_sources(config.sources)[:4]
    texts = {}
    for contrast in ("sentence", "report"):
        changed = dataclasses.replace(config, stage1=dataclasses.replace(config.stage1, contrast=contrast))
        batches = Stage1Batches(studies, torch.zeros(4, 1, 64, 64).numpy(), changed, tokenizer=None)
        texts[contrast] = [sentence.text for sentence in batches.sentences[0]]
    assert texts["report"] == [studies[0].report]
    assert len(texts["sentence"]) == 3
    with pytest.raises(UsageError, match="sentence, report"):
        dataclasses.replace(config.stage1, contrast="image")


def test_without_stage_1_both_encoders_learn_in_stage_2(config):
    changed = VARIANTS["no_stage1"].change(config)
    first = load_checkpoint(run_stage1(changed, commands=()))
    assert all(clue.scale == 1.0 for clue in first.meta.clues), "random scores are not calibrated"
    assert not (changed.out / "stage1-steps").exists()
    model = _model(changed, first)
    task = _task(changed, first, model)
    assert isinstance(task, EndToEndTask)
    studies = read_sources(config.sources)
    pixels = torch.randn(4, 1, 64, 64).half().numpy()
    batches = Stage2Batches(studies[:4], pixels, changed.stage2, first.tokenizer, seed=1)
    made = batches([Draw(i, i) for i in range(4)])
    del made["studies"]
    task(**made)["loss"].backward()
    for part in (model.perceiver.vision, model.perceiver.clue_encoder, model.perceiver.joint, model.fusion.perception):
        assert any(weight.grad is not None and bool(weight.grad.any()) for weight in part.parameters()), part
    validation = _validation(changed, first, studies)
    before = validation.measure(task.eval(), step=1)
    with torch.no_grad():
        for weight in model.perceiver.parameters():
            weight.add_(0.1)
    assert validation.measure(task, step=2)["language_loss"] != before["language_loss"], "no stale encodings"


def test_finished_runs_of_another_configuration_are_refused(config, tmp_path):
    claim(tmp_path / "a", config)
    claim(tmp_path / "a", config)
    with pytest.raises(UsageError, match="another configuration"):
        claim(tmp_path / "a", dataclasses.replace(config, seed=9))


def test_the_configuration_of_the_ablation_holds_whole_reports_and_names_its_data():
    config = read_config(Path(__file__).parents[2] / "train" / "configs" / "ablation.toml")
    for variant in VARIANTS.values():
        variant.change(config)
    longest = config.model.max_text_length
    assert config.model.clue_encoder["max_position_embeddings"] >= longest >= config.stage2.max_new_tokens
    assert config.sources[0].made_by.startswith("trrg-train phantom ")
    assert config.sources[0].made_by.endswith("/".join(config.sources[0].path.parts[-2:]))


def test_less_than_one_process_or_seed_is_refused(config, tmp_path):
    for sizes in ({"seeds": 0, "jobs": 1}, {"seeds": 1, "jobs": 0}):
        with pytest.raises(UsageError, match="at least 1"):
            run_ablation(config, tmp_path / "a", variants=["full"], command="", **sizes)


def test_missing_data_are_named_with_what_makes_them(config, tmp_path):
    gone = dataclasses.replace(config.sources[0], path=tmp_path / "gone", made_by="trrg-train phantom --count 9")
    with pytest.raises(UsageError, match="make it with: trrg-train phantom --count 9"):
        check_sources(dataclasses.replace(config, sources=(gone,)))


def test_a_finished_ablation_trains_nothing_and_writes_its_table(config, tmp_path):
    """The starts are not there either: to look for one would fail, since nothing can be trained on no images."""
    out = tmp_path / "ablation"
    claim(out, config)
    for variant, f1 in (("full", 0.6), ("no_interaction", 0.5)):
        outcome(variant, 3, f1).save(out / "results" / f"{variant}-3.json")
    path = run_ablation(config, out, variants=["no_interaction", "full"], seeds=1, jobs=2, command="trrg-train ablate")
    text = path.read_text(encoding="utf-8")
    assert "0 of 2 runs in 0 min of wall time" in text
    assert "| without interaction | -0.100<br>-0.100 | +0.000<br>+0.000 |" in text
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "trained").exists()


def test_the_table_gives_mean_spread_and_every_value():
    outcomes = [outcome("full", s, f1) for s, f1 in ((1, 0.6), (3, 0.7), (2, 0.65))]
    outcomes += [outcome("no_stage1", s, f1, laterality=None) for s, f1 in ((1, 0.5), (2, 0.7), (3, 0.6))]
    text = report_of(outcomes).to_markdown()
    assert "| full | 0.650 ± 0.050<br>0.600 0.650 0.700 | 0.900 ± 0.000<br>" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| without stage 1 | 0.600")]
    assert " none " in row, "a figure that no run has"
    assert "-0.050 ± 0.087<br>-0.100 +0.050 -0.100" in text
    assert "2 of 3 |" in text
    assert "one report for all, chance, a coin | 0.210 |" in text
    assert "`trrg-train ablate c.toml --out o`" in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert VARIANTS["no_stage1"].done in text


def test_earlier_calls_are_not_counted_as_time_of_this_one():
    assert "1 of 2 runs in 2 min" in report_of([outcome("full", s, 0.5) for s in (1, 2)], made=1).to_markdown()


def test_recall_counts_present_findings_and_leaves_out_the_normal():
    said = torch.zeros(2, 14, dtype=torch.bool).numpy()
    labels = torch.zeros(2, 14).double().numpy()
    labels[0, :3], labels[1, OBSERVATIONS.index("No Finding")] = 1.0, 1.0
    labels[1, 5] = float("nan")
    said[0, 0] = said[1, 5] = True
    assert positive_recall(said, labels) == pytest.approx(1 / 3, abs=1e-4)
    assert positive_recall(said, labels * 0.0) is None


def test_the_floor_is_the_best_constant_of_train(config):
    studies = read_sources(config.sources)
    train, test = ([s for s in studies if s.split == split] for split in ("train", "test"))
    assert constant_floor(train, test) == pytest.approx(2 / 3), "half are sick: assert both and be right on half"


def test_the_options_are_as_documented():
    args = build_parser().parse_args(["ablate", "c.toml", "--out", "o"])
    assert (args.jobs, args.seeds, args.variants) == (1, 3, list(VARIANTS))


@pytest.mark.slow
def test_two_variants_train_and_what_is_done_stays_done(toy_run, tmp_path, capsys):
    config = str(toy_run(tmp_path, epochs=2))
    out = tmp_path / "ablation"
    typed = ["ablate", config, "--out", str(out), "--seeds", "1", "--variants", "full", "no_stage1"]
    assert main([*typed, "--jobs", "2"]) == 0
    results = {path.name: path.read_text() for path in (out / "results").iterdir()}
    assert set(results) == {"full-3.json", "no_stage1-3.json"}
    figures = json.loads(results["full-3.json"])
    assert figures["studies"] == 20
    assert 0.0 <= figures["macro_f1"] <= 1.0
    (out / "results" / "full-3.json").unlink()
    (out / "trained" / "full-3" / "stage2" / "meta.json").unlink()
    (out / "trained" / "sentence-3" / "stage1" / "untouched").touch()
    assert main(typed) == 0
    again = read_outcome(out / "results" / "full-3.json")
    assert again.macro_f1 == figures["macro_f1"], "a run that is made again is the same run"
    assert (out / "results" / "no_stage1-3.json").read_text() == results["no_stage1-3.json"]
    assert (out / "trained" / "sentence-3" / "stage1" / "untouched").is_file(), "stage 1 was not made again"
    assert "1 of 2 runs in" in (out / "ablation.md").read_text(encoding="utf-8")
