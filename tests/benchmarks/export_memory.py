"""What exports of large models take: peak memory over the size of the checkpoint, step by step, and time.

    python tests/benchmarks/export_memory.py 1.1b:int4 --write tests/benchmarks/results/export_memory.md

A checkpoint with random weights is written; then ``trrg-export`` runs on it in a process of its own, whole: reading,
PyTorch on the parity studies, four graphs, quantization, comparison. A shape names the language model, with encoders
of the mini size; ``base`` has Swin-B and BERT-base with a toy language model. Random weights write no report, so the
comparison proves nothing here and its limits on labels and clues are lifted; what it costs is counted. ``full`` has
the encoders of ``base`` and the language model of ``1.1b``.

The peak is the most that this process and the one that it starts for PyTorch hold together, in samples every 20 ms,
pages of mapped files included (a page that both map counts once): the system may drop those when memory is short, and
*anonymous* memory is without them. The *floor* is the peak of the
same command on a checkpoint that weighs next to nothing: libraries, most of which are loaded while they are used, and
what they keep. It says what a checkpoint adds. Steps are those that the command prints.

Figures are kept beside the page (``.json``) and shown together, each case once for each ``--label``; ``--code`` names
another checkout of this repository to measure. Cases may come from several machines, of which the last one is named:
memory does not depend on it, times do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import torch
from mini_run import CONFIG, machine
from safetensors.torch import save_file

from trrg_sdk.labeler import OBSERVATIONS
from trrg_sdk.preprocess import Preprocess
from trrg_train.config import RunConfig, read_config
from trrg_train.data.grammar import prompts
from trrg_train.models.checkpoint import save_checkpoint
from trrg_train.models.clue import BankedClue
from trrg_train.models.stored import CheckpointMeta
from trrg_train.models.tokenizer import train_tokenizer
from trrg_train.models.trrg import Trrg
from trrg_train.stage2 import instruction_prompt

SHAPES = {
    "1.1b": {"hidden": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "intermediate": 5632},  # TinyLlama
    "300m": {"hidden": 1024, "layers": 24, "heads": 16, "kv_heads": 4, "intermediate": 2816},
    "7b": {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "intermediate": 11008},  # Llama 2
    "full": {"hidden": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "intermediate": 5632},
    "toy": {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 2, "intermediate": 96},
}
BASE = CONFIG.with_name("base.toml")
_BASES = ("base", "full")
EXPORT = "import sys; from trrg_export.cli import main; sys.exit(main(sys.argv[1:]))"
STEPS = ("running", "tracing", "exporting", "writing", "building", "quantizing", "comparing", "target", "counting")
"""First words of the lines that name a step; "exporting" is of older code."""
PARTS = re.compile(r"\S+: exporting \w+|\S+ engine \d+ of \d+, \w+: building")
"""Lines of a target that name a part of it."""
STUDIES = 2
NEW_TOKENS = 12
_SEVEN = 6_738_415_616 * 4  # bytes of Llama 2 7B in fp32


@dataclass(frozen=True)
class Cost:
    """What one export took; bytes and seconds.

    Attributes:
        case: Shape and precision.
        label: Which code.
        checkpoint: Size of its weights.
        bundle: Size of what was made.
        floor: The most that the same command held on next to no weights; ``None`` where it was not measured.
        peak: The most that was held.
        seconds: By the clock.
        cpu: Of all threads, user and system.
        steps: Step → the most that was held, and the most of it anonymous.
    """

    case: str
    label: str
    checkpoint: int
    bundle: int
    floor: int | None
    peak: int
    seconds: float
    cpu: float
    steps: Mapping[str, tuple[int, int]]

    @property
    def anonymous(self) -> int:
        """Largest memory that no file backs."""
        return max(anonymous for _, anonymous in self.steps.values())


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "cases", nargs="*", metavar="SHAPE:PRECISION[:TARGET]", help=f"SHAPE is base, {', '.join(SHAPES)}"
    )
    parser.add_argument("--folder", type=Path, help="where checkpoint and bundle lie meanwhile (default: temporary)")
    parser.add_argument("--code", type=Path, default=CONFIG.parents[2], help="checkout to measure (default this one)")
    parser.add_argument(
        "--label", default="now", help="name of that code on the page: before... or now... (default now)"
    )
    parser.add_argument("--write", type=Path, required=True, help="the page; its figures lie beside it")
    args = parser.parse_args(argv)
    store = args.write.with_suffix(".json")
    costs = [Cost(**cost) for cost in json.loads(store.read_text("utf-8"))] if store.is_file() else []
    for case in args.cases:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            cost = measure(case, Path(folder), args.code.resolve(), args.label)
        costs = [old for old in costs if (old.case, old.label) != (cost.case, cost.label)] + [cost]
        store.write_text(json.dumps([asdict(each) for each in costs], indent=1) + "\n", encoding="utf-8")
    page = "\n".join(page_of(sorted(costs, key=lambda cost: (cost.case, not cost.label.startswith("before"))))) + "\n"
    sys.stdout.write(page)
    args.write.write_text(page, encoding="utf-8")
    return 0


def measure(case: str, folder: Path, code: Path, label: str) -> Cost:
    """Write a checkpoint and export it in a process of its own, after one that weighs next to nothing."""
    shape, precision, *targets = case.split(":")
    options = ["--label-agreement", "0", "--clue-flips", "1"]
    options += [] if precision == "fp32" else [f"--{precision}"]
    options += [f"--target={target}" for target in targets]
    config = read_config(BASE if shape in _BASES else CONFIG)
    light, checkpoint, out = folder / "light", folder / "checkpoint", folder / "bundle"
    write_checkpoint(SHAPES["toy"], light, config=weightless(config))
    floor, _, _ = export(light, folder / "light-bundle", options, code)
    write_checkpoint(SHAPES.get(shape, SHAPES["toy"]), checkpoint, config=config)
    steps, seconds, cpu = export(checkpoint, out, options, code)
    return Cost(
        case=case,
        label=label,
        checkpoint=(checkpoint / "model.safetensors").stat().st_size,
        bundle=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        floor=max(total for total, _ in floor.values()),
        peak=max(total for total, _ in steps.values()),
        seconds=seconds,
        cpu=cpu,
        steps=steps,
    )


def export(
    checkpoint: Path, out: Path, options: list[str], code: Path
) -> tuple[dict[str, tuple[int, int]], float, float]:
    """Run ``trrg-export``: what each step held, seconds by the clock and of the processor."""
    places = os.pathsep.join(str(code / part) for part in (".", "train", "export"))
    command = [sys.executable, "-c", EXPORT, str(checkpoint), "--out", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": places}
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=sys.stderr, stderr=subprocess.PIPE, text=True) as process:
        steps = follow(process)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return steps, time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def weightless(config: RunConfig) -> RunConfig:
    """The encoders of a configuration with as few and as narrow layers as their kinds can have."""
    vision, clue_encoder = dict(config.model.vision), dict(config.model.clue_encoder)
    if vision["model_type"] == "swin":
        vision |= {"embed_dim": 4, "depths": [1] * len(vision["depths"]), "num_heads": [1] * len(vision["depths"])}
    else:
        vision |= {"embedding_size": 4, "hidden_sizes": [4] * 4, "depths": [1] * 4}
    clue_encoder |= {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    return replace(config, model=replace(config.model, vision=vision, clue_encoder=clue_encoder, joint_dim=16))


def follow(process: subprocess.Popen[str]) -> dict[str, tuple[int, int]]:
    """Sample a process until its standard error ends; the lines there name its steps."""
    step, steps = ["starting"], dict[str, tuple[int, int]]()

    def read() -> None:
        for line in process.stderr or ():
            sys.stderr.write(line)
            if part := PARTS.match(line):
                step[0] = part[0]
            elif line.split(" ", 1)[0] in STEPS:
                step[0] = line.strip()

    reader, watched = threading.Thread(target=read), psutil.Process(process.pid)
    reader.start()
    while reader.is_alive():
        found = held(watched)
        before = steps.get(step[0], (0, 0))
        steps[step[0]] = (max(before[0], found[0]), max(before[1], found[1]))
        time.sleep(0.02)
    return steps


def held(process: psutil.Process) -> tuple[int, int]:
    """What a process and those that it started hold, and how much of that is anonymous, in bytes."""
    total = anonymous = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(OSError):  # it has ended
                said = Path(f"/proc/{each.pid}/smaps_rollup").read_text("ascii")
                fields = dict(line.split(":", 1) for line in said.splitlines()[1:])
                total += int(fields["Pss"].split()[0]) * 1024
                anonymous += int(fields["Pss_Anon"].split()[0]) * 1024
    return total, anonymous


def write_checkpoint(shape: dict[str, int], folder: Path, *, config: RunConfig | None = None) -> int:
    """Write a stage-2 checkpoint with random weights; returns the parameters of its language model.

    All but the language model is as the configuration has it, by default that of the mini size.
    """
    settings = config or read_config(CONFIG)
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
    torch.manual_seed(1)
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


def page_of(costs: list[Cost]) -> Iterator[str]:
    """The lines of the page."""
    yield "# Memory and time of exports\n\nMade by (do not edit), one case at a time:\n\n```bash"
    yield "python tests/benchmarks/export_memory.py 1.1b:int4 --write tests/benchmarks/results/export_memory.md"
    yield "```\n"
    yield (__doc__ or "").split("\n\n", 2)[2]
    yield f"{STUDIES} parity studies, reports of up to {NEW_TOKENS} tokens. "
    yield from machine(("torch", "transformers", "onnx", "onnxruntime", "onnxruntime-genai"))
    yield "\nSizes in GiB, multiples are of the checkpoint; time by the clock counts whatever else the machine did.\n"
    names = "case, code, checkpoint, bundle, floor, peak, multiple, above the floor, anonymous, CPU s, clock s"
    yield f"| {names.replace(', ', ' | ')} |\n|{'---|' * 11}"
    for cost in costs:
        sizes = [_size(size) for size in (cost.checkpoint, cost.bundle, cost.floor, cost.peak)]
        above = None if cost.floor is None else (cost.peak - cost.floor) / cost.checkpoint
        over = [f"{cost.peak / cost.checkpoint:.2f}", "" if above is None else f"{above:.2f}"]
        rest = [f"{gib(cost.anonymous):.2f}", f"{cost.cpu:.0f}", f"{cost.seconds:.0f}"]
        yield f"| {cost.case.replace(':', ' ')} | {cost.label} | {' | '.join([*sizes, *over, *rest])} |"
    yield from steps_of(costs)
    yield from seven_billion({cost.case: cost for cost in costs if cost.label.startswith("now")})


def steps_of(costs: list[Cost]) -> Iterator[str]:
    """Where each peak comes from."""
    for cost in costs:
        yield f"\n## {cost.case.replace(':', ', ')}, {cost.label}\n\n| step | peak, GiB | of that anonymous at most |"
        yield "|---|---|---|"
        for step, (total, anonymous) in cost.steps.items():
            yield f"| {step} | {gib(total):.2f} | {gib(anonymous):.2f} |"


def seven_billion(costs: Mapping[str, Cost]) -> Iterator[str]:
    """The multiple of the largest language model that was exported to int4, at the size of a third one."""
    cost = next((costs[name] for name in ("1.1b:int4", "300m:int4") if name in costs), None)
    if cost is None or cost.floor is None:
        return
    times = _SEVEN / cost.checkpoint
    held, kept = (max(size - cost.floor, 0) * times + cost.floor for size in (cost.peak, cost.anonymous))
    yield (
        "\n## A language model of 7 B parameters, computed\n\n"
        f"Not run: what {cost.case.replace(':', ' ')} takes above the floor grows with the weights. At "
        f"{gib(_SEVEN):.1f} GiB (Llama 2 7B in fp32) that is a peak of {gib(held):.0f} GiB, {held / _SEVEN:.2f} times "
        f"the checkpoint, of which at most {gib(kept):.0f} GiB are anonymous and the rest mapped weights that the "
        f"system may drop; {cost.cpu * times / 60:.0f} minutes of CPU time; and {gib(_SEVEN):.0f} GiB on the disk for "
        "the graph in fp32 that is quantized."
    )


def _size(size: int | None) -> str:
    return "" if size is None else f"{gib(size):.2f}"


def gib(size: float) -> float:
    """Bytes in GiB."""
    return size / 2**30


if __name__ == "__main__":
    sys.exit(main())
