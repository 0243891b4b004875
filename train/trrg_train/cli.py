"""``trrg-train``: phantom, data check, plan, stage1, stage2, films, evaluate, rexrank, ablate."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trrg_sdk.errors import TrrgError, UsageError
from trrg_train.ablation.variants import VARIANTS

if TYPE_CHECKING:  # PyTorch and friends are an extra
    from trrg_train.evaluation.comparison import EvaluationOptions
    from trrg_train.evaluation.model import ModelEvaluation
    from trrg_train.evaluation.tables import TextEvaluation

EXTRA = "trrg-train needs PyTorch and friends: pip install 'trrg-sdk[train]'"


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    parser = argparse.ArgumentParser(prog="trrg-train", description="Train TRRG.")
    commands = parser.add_subparsers(dest="command", required=True)
    phantom = commands.add_parser("phantom", help="render chest phantoms with reports, labels and boxes")
    phantom.add_argument("--count", type=int, required=True, help="number of studies")
    phantom.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    phantom.add_argument("--size", type=int, default=512, help="rows and columns in pixels")
    phantom.add_argument("--workers", type=int, default=2, help="processes")
    phantom.add_argument("--out", type=Path, required=True, help="folder to make")
    data = commands.add_parser("data", help="look at a data set before training").add_subparsers(required=True)
    check = data.add_parser("check", help="counts, missing images, duplicates and patients across splits, polarity")
    check.add_argument("dataset", type=Path, help="a folder, or the JSON file of ReXrank")
    check.add_argument("--kind", default="annotation", help="as in [[sources]] of a configuration")
    check.add_argument("--plot", type=Path, metavar="FILE", help="write a picture of it (.png, .svg or .pdf)")
    plan = commands.add_parser("plan", help="parameters and memory of a configuration, before anything is trained")
    plan.add_argument("config", type=Path, help="a TOML such as train/configs/base.toml")
    plan.add_argument("--gpu-gib", type=float, default=80.0, help="memory of one GPU in GiB")
    for name, text in (("stage1", "contrastive pretraining"), ("stage2", "clue-enhanced instruction tuning")):
        stage = commands.add_parser(name, help=text)
        stage.add_argument("config", type=Path, help="a TOML such as train/configs/mini.toml")
        stage.add_argument("--resume", action="store_true", help="continue from the last saved step")
    films = commands.add_parser("films", help="a sample of the films, for the gate of a checkpoint that has none")
    films.add_argument("config", type=Path, help="the TOML that the checkpoint was trained with")
    films.add_argument("--out", type=Path, required=True, metavar="FILE", help="for trrg-export --films")
    _add_evaluate(commands.add_parser("evaluate", help="figures of a checkpoint, a bundle, or of written reports"))
    _add_rexrank(commands.add_parser("rexrank", help="write reports in the form of the leaderboard ReXrank"))
    _add_ablate(commands.add_parser("ablate", help="train without each part of the method, and compare"))
    return parser


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    """Describe the options of ``evaluate``."""
    evaluate.add_argument("model", type=Path, nargs="?", help="a stage-2 checkpoint or a bundle")
    evaluate.add_argument("config", type=Path, nargs="?", help="the TOML that names the data")
    evaluate.add_argument("--split", choices=("val", "test"), help="of a model: test unless given; of a csv: all")
    evaluate.add_argument("--limit", type=int, help="at most so many studies a source of CONFIG")
    evaluate.add_argument("--store", type=Path, metavar="CHECKPOINT", help="keep the figures there, for the model card")
    texts = evaluate.add_argument_group("written reports", "instead of MODEL and CONFIG")
    texts.add_argument("--predictions", type=Path, metavar="CSV", help="study_id,report")
    texts.add_argument("--references", type=Path, metavar="CSV", help="study_id,report and, if known, patient")
    texts.add_argument("--rexrank", type=Path, metavar="JSON", help="instead of both: an output file of ReXrank")
    both = evaluate.add_argument_group("scores of written reports", "of a model as well")
    both.add_argument(
        "--train", type=Path, metavar="CSV", help="report: trained on, for the floors; a model: CONFIG's unless given"
    )
    both.add_argument("--tokenizer", choices=("plain", "ptb"), default="plain", help="of the text scores; ptb: Java")
    both.add_argument("--uncertain", choices=("absent", "present"), default="absent", help="what a doubt counts as")
    both.add_argument("--resamples", type=int, default=1000, help="of patients, for the 95 %% intervals")
    both.add_argument("--no-meteor", action="store_true", help="leave METEOR out, which needs Java")
    both.add_argument("--chexbert", type=Path, nargs=2, metavar=("WEIGHTS", "VOCABULARY"), help="label with CheXbert")
    both.add_argument("--radgraph", type=Path, nargs=2, metavar=("FOLDER", "VOCABULARY"), help="RadGraph F1 as well")
    both.add_argument("--json", action="store_true", help="JSON instead of Markdown")


def _add_rexrank(rexrank: argparse.ArgumentParser) -> None:
    """Describe the options of ``rexrank``, which are named as the leaderboard names them."""
    rexrank.add_argument("model", type=Path, help="a stage-2 checkpoint or a bundle")
    rexrank.add_argument("--input_json_file", type=Path, required=True, help="a record with image_path for each study")
    rexrank.add_argument("--save_json_file", type=Path, required=True, help="the records with model_prediction added")
    rexrank.add_argument("--img_root_dir", type=Path, required=True, help="the folder that image_path is relative to")


def _add_ablate(ablate: argparse.ArgumentParser) -> None:
    """Describe the options of ``ablate``."""
    ablate.add_argument("config", type=Path, help="a TOML such as train/configs/ablation.toml")
    ablate.add_argument("--out", type=Path, required=True, help="folder of all runs; the same command goes on there")
    ablate.add_argument("--jobs", type=int, default=1, help="processes of one thread side by side")
    ablate.add_argument("--seeds", type=int, default=3, help="how many, counted from the configuration's")
    ablate.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="all unless given"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done, 2 usage or a missing extra, else the error's own code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(arguments)
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING  # of several processes one speaks
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        return _run(args, f"trrg-train {' '.join(arguments)}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0].startswith("trrg"):
            raise
        print(f"{EXTRA} ({error.name} is missing)", file=sys.stderr)
        return UsageError.exit_code
    except TrrgError as error:
        print(f"trrg-train: {error}", file=sys.stderr)
        return error.exit_code


def _run(args: argparse.Namespace, typed: str) -> int:
    if args.command == "phantom":
        from trrg_train.data.phantom import write_dataset

        path = write_dataset(args.out, count=args.count, seed=args.seed, size=args.size, workers=args.workers)
        print(path)
        return 0
    if args.command == "data":
        return _check_data(args)
    from trrg_train.config import read_config

    if args.command == "plan":
        from trrg_train.plan import plan_run

        print(plan_run(read_config(args.config)).to_markdown(gpu_gib=args.gpu_gib))
        return 0
    if args.command == "films":
        from trrg_train.films import write_films

        write_films(read_config(args.config), args.out)
        print(args.out)
        return 0
    if args.command == "evaluate":
        return _evaluate(args)
    if args.command == "rexrank":
        return _rexrank(args)
    if args.command == "ablate":
        return _ablate(args, typed)
    if args.command == "stage1":
        from trrg_train.stage1 import run_stage1 as run
    else:
        from trrg_train.stage2 import run_stage2 as run
    from trrg_train.distributed import join_processes

    folder = run(read_config(args.config), commands=(typed,), resume=args.resume)
    if join_processes().is_main_process:
        print(folder)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    inputs = ("model", "config", "limit", "store", "predictions", "references", "rexrank", "train")
    given = {name for name in inputs if getattr(args, name) is not None}
    if {"model", "config"} <= given <= {"model", "config", "limit", "store", "train"}:
        result: ModelEvaluation | TextEvaluation = _evaluate_model(args)
    elif given in ({"predictions", "references", "train"}, {"rexrank", "train"}):
        result = _evaluate_texts(args)
    else:
        raise UsageError(
            "evaluate takes MODEL and CONFIG with --limit, --store and --train; or --train with --predictions and "
            "--references (or --rexrank); each with --split and the options of scores"
        )
    print(result.to_json() if args.json else result.to_markdown())
    return 0


def _evaluate_model(args: argparse.Namespace) -> ModelEvaluation:
    from trrg_train.config import read_config
    from trrg_train.evaluate import Scope, evaluate_path
    from trrg_train.evaluation.pairs import read_train_reports

    train = read_train_reports(args.train) if args.train else None
    scope = Scope(args.split or "test", args.limit, train)
    options = _evaluation_options(args)
    return evaluate_path(args.model, read_config(args.config), scope=scope, options=options, store=args.store)


def _evaluate_texts(args: argparse.Namespace) -> TextEvaluation:
    from trrg_train.evaluation.comparison import evaluate_texts
    from trrg_train.evaluation.pairs import read_predictions, read_train_reports
    from trrg_train.evaluation.rexrank import read_pairs

    if args.rexrank and args.split:
        raise UsageError("an output file of ReXrank is one split already: leave --split out")
    of_csv = (args.predictions, args.references)
    pairs = read_pairs(args.rexrank) if args.rexrank else read_predictions(*of_csv, split=args.split)
    train, options = read_train_reports(args.train), _evaluation_options(args)
    texts = (pairs.predictions, pairs.references)
    return evaluate_texts(*texts, train_reports=train, patients=pairs.patients, options=options)


def _evaluation_options(args: argparse.Namespace) -> EvaluationOptions:
    from trrg_train.evaluation.clinical import SENTENCE_LABELER
    from trrg_train.evaluation.comparison import EvaluationOptions

    labeler = SENTENCE_LABELER
    if args.chexbert:
        from trrg_train.evaluation.chexbert import load_chexbert

        labeler = load_chexbert(*args.chexbert)
    graphs = None
    if args.radgraph:
        from trrg_train.evaluation.radgraph import load_radgraph

        graphs = load_radgraph(*args.radgraph)
    return EvaluationOptions(
        tokenizer=args.tokenizer,
        uncertain=args.uncertain,
        resamples=args.resamples,
        meteor=not args.no_meteor,
        labeler=labeler,
        graphs=graphs,
    )


def _rexrank(args: argparse.Namespace) -> int:
    from trrg_train.submission import write_submission

    files = {"input_json": args.input_json_file, "output_json": args.save_json_file}
    write_submission(args.model, **files, images=args.img_root_dir)
    print(args.save_json_file)
    return 0


def _ablate(args: argparse.Namespace, typed: str) -> int:
    from trrg_train.ablation.run import run_ablation
    from trrg_train.config import read_config

    sizes = {"variants": args.variants, "seeds": args.seeds, "jobs": args.jobs}
    print(run_ablation(read_config(args.config), args.out, **sizes, command=typed))
    return 0


def _check_data(args: argparse.Namespace) -> int:
    from trrg_train.config import SourceConfig
    from trrg_train.data.check import check_dataset
    from trrg_train.data.sources import read_source

    check = check_dataset(read_source(SourceConfig(name=args.dataset.name, kind=args.kind, path=args.dataset)))
    print(check.to_markdown())
    if args.plot:
        check.write_plot(args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
