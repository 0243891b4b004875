"""What the export of a large language model takes: peak memory over the size of the checkpoint, and time.

    python tests/benchmarks/export_memory.py --write tests/benchmarks/results/export_memory.md

A checkpoint with random weights, encoders of the mini size and a language model of the named shape is written; then
``trrg-export --int4`` runs on it in a process of its own, whole: reading, PyTorch on the parity studies, four graphs,
quantization, comparison. Random weights write no report, so the comparison proves nothing here and its limits on
labels and clues are lifted; what it costs is counted.

The peak is the resident set of that process, shared pages of files included: weights that are mapped from the
checkpoint count, although the system may drop them when memory is short.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mini_run import CONFIG, machine
from safetensors.torch import save_file

from trrg_sdk.labeler import OBSERVATIONS
from trrg_sdk.preprocess import Preprocess
from trrg_train.config import read_config
from trrg_train.data.grammar import prompts
from trrg_train.models.checkpoint import CheckpointMeta, save_checkpoint
from trrg_train.models.clue_bank import BankedClue
from trrg_train.models.tokenizer import train_tokenizer
from trrg_train.models.trrg import Trrg
from trrg_train.stage2 import instruction_prompt

SHAPES = {
    "1.1b": {"hidden": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "intermediate": 5632},  # TinyLlama
    "300m": {"hidden": 1024, "layers": 24, "heads": 16, "kv_heads": 4, "intermediate": 2816},
    "7b": {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "intermediate": 11008},  # Llama 2
    "toy": {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 2, "intermediate": 96},
}
EXPORT = "import sys; from trrg_export.cli import main; sys.exit(main(sys.argv[1:]))"
STUDIES = 2
NEW_TOKENS = 12


@dataclass(frozen=True)
class Cost:
    """What one export took."""

    parameters: int
    checkpoint: int  # bytes
    bundle: int  # bytes
    peak: int  # bytes
    seconds: float


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b", help="of the language model (default 1.1b)")
    parser.add_argument("--folder", type=Path, help="where checkpoint and bundle lie meanwhile (default: temporary)")
    parser.add_argument("--write", type=Path, help="write the page to this file too")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        cost = measure(SHAPES[args.shape], Path(folder))
    page = "\n".join(page_of(args.shape, cost)) + "\n"
    sys.stdout.write(page)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(page, encoding="utf-8")
    return 0


def measure(shape: dict[str, int], folder: Path) -> Cost:
    """Write a checkpoint and export it in a process of its own."""
    parameters = write_checkpoint(shape, folder / "checkpoint")
    out = folder / "bundle"
    start = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            "-c",
            EXPORT,
            str(folder / "checkpoint"),
            "--out",
            str(out),
            "--int4",
            "--label-agreement",
            "0",
        ],
        check=True,
        stdout=sys.stderr,
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # Linux counts in KiB
    checkpoint = (folder / "checkpoint" / "model.safetensors").stat().st_size
    bundle = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Cost(parameters, checkpoint, bundle, peak, seconds)


def write_checkpoint(shape: dict[str, int], folder: Path, *, config: Path = CONFIG) -> int:
    """Write a stage-2 checkpoint with random weights; returns the parameters of its language model.

    All but the language model is as the configuration has it.
    """
    settings = read_config(config)
    names = {
        "hidden_size": "hidden",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "intermediate_size": "intermediate",
    }
    llm = {**settings.model.llm, **{name: shape[key] for name, key in names.items()}}
    model_config = replace(settings.model, name="random", llm=llm)
    clues = tuple(BankedClue(name, *prompts(name)) for name in OBSERVATIONS)
    texts = [text for clue in clues for text in (clue.positive, clue.negative)]
    tokenizer = train_tokenizer([*texts, model_config.instruction], vocab_size=settings.stage1.vocab_size)
    prompt = instruction_prompt(model_config.instruction, tokenizer)
    model = Trrg(model_config, vocab_size=tokenizer.get_vocab_size(), prompt=prompt).eval()
    size = model_config.image_size
    meta = CheckpointMeta(
        stage=2,
        clues=clues,
        preprocess=Preprocess(size=size, channels=1).to_manifest(),
        prefix_ids=prompt.prefix_ids,
        suffix_ids=prompt.suffix_ids,
        max_new_tokens=NEW_TOKENS,
        data="No data: random weights.",
    )
    save_checkpoint(folder, model=model, config=model_config, tokenizer=tokenizer, meta=meta)
    save_file({"pixels": torch.randn(STUDIES, 1, size, size)}, folder / "parity.safetensors")
    return sum(parameter.numel() for parameter in model.llm.parameters())


def page_of(shape: str, cost: Cost) -> Iterator[str]:
    """The lines of the page."""
    yield "# Memory and time of an export to int4\n\nMade by (do not edit):\n\n```bash"
    yield f"python tests/benchmarks/export_memory.py --shape {shape} --write tests/benchmarks/results/export_memory.md"
    yield "```\n"
    yield (__doc__ or "").split("\n\n", 2)[2]
    yield f"Language model: {cost.parameters / 1e6:.0f} M parameters; {STUDIES} parity studies, reports of up to "
    yield f"{NEW_TOKENS} tokens. "
    yield from machine(("torch", "transformers", "onnxruntime", "onnxruntime-genai"))
    yield "\n| what | figure |\n|---|---|"
    yield f"| checkpoint, GiB | {cost.checkpoint / 2**30:.2f} |"
    yield f"| bundle, GiB | {cost.bundle / 2**30:.2f} |"
    yield f"| peak of the resident set, GiB | {cost.peak / 2**30:.2f} |"
    yield f"| **peak over checkpoint** | **{cost.peak / cost.checkpoint:.2f}** |"
    yield f"| time, s | {cost.seconds:.0f} |"


if __name__ == "__main__":
    sys.exit(main())
