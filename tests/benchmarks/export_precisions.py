"""What each precision costs and keeps: size, time of each component and drift, beside PyTorch on the same weights.

    python tests/benchmarks/export_precisions.py runs/mini/stage2 --write tests/benchmarks/results/export_precisions.md

Every bundle is exported as `trrg-export` does, with its comparison against PyTorch in fp32 on the checkpoint's held-out
studies. Then all take turns: each component of each bundle, and of PyTorch in fp32 and in bf16 (autocast), is timed
several times over, and a cell is the median over the turns. Ratios between rows of one page mean something; the
milliseconds are this machine's. ONNX Runtime computes fp16 on a CPU mostly in fp32 with casts around it: a GPU's type.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from mini_run import machine

from trrg_export.auto import Trial, drift
from trrg_export.build import ExportOptions, allowed_precisions, export_bundle
from trrg_export.parity import LIMITS, ParityError
from trrg_export.pytorch_run import run_pytorch
from trrg_export.reference import Reference
from trrg_export.speed import Speed, measure, timed
from trrg_export.targets import TARGETS
from trrg_sdk.backends import open_backend
from trrg_sdk.bundle import Bundle
from trrg_sdk.errors import DeviceError, UsageError
from trrg_sdk.labeler import OBSERVATIONS, label_report
from trrg_sdk.manifest import Manifest
from trrg_sdk.processors import physical_cores
from trrg_train.models.checkpoint import Checkpoint, load_checkpoint
from trrg_train.models.clue_bank import clue_inputs, embed_bank
from trrg_train.models.fusion import ClueInputs
from trrg_train.models.trrg import EncodedImages

TURNS = 5
DEVICES = {"ort": "cpu", "openvino": "openvino"}
FOLDERS = ("graphs/tensorrt", "trtllm")
COLUMNS = ("vision", "clue_encoder", "fusion", "prefill", "step")


@dataclasses.dataclass
class Row:
    """One row of the table."""

    name: str
    mib: float | None
    drift: str
    timer: Callable[[], Speed] | None
    turns: list[Speed] = dataclasses.field(default_factory=list)

    def cells(self) -> str:
        """Size, medians and drift."""
        times = [statistics.median(getattr(turn, name) for turn in self.turns) for name in COLUMNS if self.turns]
        shown = [f"{value:.2f}" for value in times] or [""] * len(COLUMNS)
        return f"| {self.name} | {'' if self.mib is None else f'{self.mib:.1f}'} | {' | '.join(shown)} | {self.drift} |"


def main() -> int:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--write", type=Path, help="page to write")
    args = parser.parse_args()
    loaded = load_checkpoint(args.checkpoint)
    reference = run_pytorch(loaded, loaded.parity_pixels()[:8])
    threads = physical_cores()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in LIMITS for row in bundle_rows(args.checkpoint, Path(folder), name, reference)]
        rows += [torch_row(loaded, reference, bf16=bf16) for bf16 in (False, True)]
        for turn in range(args.turns):
            for row in rows[:: 1 if turn % 2 == 0 else -1]:
                if row.timer is not None:
                    row.turns.append(row.timer())
    page = "\n".join(page_of(loaded, rows, turns=args.turns, threads=threads)) + "\n"
    print(page)
    if args.write:
        args.write.write_text(page, encoding="utf-8")
    return 0


def bundle_rows(checkpoint: Path, folder: Path, precision: str, reference: Reference) -> list[Row]:
    """Export in a precision for every target that has it here, a row each; what is refused is a row that says so."""
    targets = tuple(dict.fromkeys(("ort", *(name for name in TARGETS if usable(name, precision)))))
    try:
        manifest = export_bundle(checkpoint, folder / precision, ExportOptions(precision=precision, targets=targets))
    except (ParityError, UsageError, DeviceError) as error:
        return [Row(precision, None, f"refused: {error}".replace("\n", " "), None)]
    return [target_row(Bundle.load(folder / precision), manifest, precision, name, reference) for name in targets]


def usable(target: str, precision: str) -> bool:
    """Whether a target is here and has this precision; where the processor lacks its arithmetic the row will say so."""
    return TARGETS[target].unavailable_reason("fp32") is None and precision in allowed_precisions(("ort", target))


def target_row(bundle: Bundle, manifest: Manifest, precision: str, name: str, reference: Reference) -> Row:
    """One target of one bundle."""
    key = TARGETS[name].TARGET
    own = {file: size for file, size in sizes(manifest).items() if f"/{name}/" in f"/{file}"}
    files = own or {file: size for file, size in sizes(manifest).items() if not file.startswith(("engines/", *FOLDERS))}
    parity = manifest.parity.get(precision if name == "ort" else f"{precision} on {key}")
    told = drift(Trial(precision, parity={key: parity})) if parity else "only the logits are compared"
    timer = None
    if name in DEVICES:
        timer = partial(measure, bundle, open_backend(device=DEVICES[name]), reference, repeats=10)
    return Row(f"{precision}, {name}", sum(files.values()) / 2**20, told, timer)


def sizes(manifest: Manifest) -> dict[str, int]:
    """Bytes by file."""
    return {name: file.bytes for name, file in manifest.files.items()}


def torch_row(loaded: Checkpoint, reference: Reference, *, bf16: bool) -> Row:
    """PyTorch's own model, in fp32 or under bf16 autocast."""

    def timer() -> Speed:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return torch_speed(loaded, reference)

    return Row(f"PyTorch {'bf16' if bf16 else 'fp32'}", None, torch_drift(loaded) if bf16 else "the truth", timer)


@torch.no_grad()
def torch_drift(loaded: Checkpoint) -> str:
    """How far PyTorch's bf16 is from its fp32: that much is nobody's fault."""
    model, bank = loaded.trrg(), loaded.meta.clues
    pixels = torch.from_numpy(loaded.parity_pixels())
    thresholds = torch.tensor([clue.threshold for clue in bank])
    banked = embed_bank(bank, model.perceiver, loaded.tokenizer, max_length=loaded.config.max_text_length)
    clues = clue_inputs(bank, *banked, -torch.ones(len(pixels), len(bank)))
    told = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            images = EncodedImages(*model.perceiver.encode_images(pixels))
            ids, logits = model.generate(images, clues, max_new_tokens=loaded.meta.max_new_tokens)
        told.append((until_end(ids, model.llm.config.eos_token_id), logits.float().sigmoid() > thresholds))
    (texts, present), (half_texts, half_present) = told
    same = sum(a == b for a, b in zip(texts, half_texts, strict=True))
    flips = int((present != half_present).sum())
    labels = agreement(loaded, texts, half_texts)
    return f"{same} of {len(texts)} texts identical, labels agree in {labels:.2%}, clue flips {flips}"


def until_end(ids: torch.Tensor, eos: int) -> list[list[int]]:
    """Tokens of each text before its end."""
    return [row[: row.index(eos)] if eos in row else row for row in ids.tolist()]


def agreement(loaded: Checkpoint, first: list[list[int]], second: list[list[int]]) -> float:
    """Share of study-observation pairs with the same state in the report."""
    labelled = [[label_report(loaded.tokenizer.decode(ids)) for ids in texts] for texts in (first, second)]
    same = sum(a.get(name) == b.get(name) for a, b in zip(*labelled, strict=True) for name in OBSERVATIONS)
    return same / (len(first) * len(OBSERVATIONS))


def torch_speed(loaded: Checkpoint, reference: Reference) -> Speed:
    """Time the same components; a step is one token with transformers' cache."""
    model = loaded.trrg()
    study = {name: torch.from_numpy(value[:1]) for name, value in reference.vision.items()}
    inputs = {name.removeprefix("clue_"): torch.from_numpy(v) for name, v in reference.clue_inputs.items()}
    clues = ClueInputs(**inputs)
    pixels, prompt = torch.from_numpy(reference.pixels[:1]), torch.from_numpy(reference.prompts[:1])
    texts = [torch.from_numpy(value) for value in reference.clue_texts.values()]
    images = EncodedImages(**study)

    def prefill() -> object:
        return model.llm(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)

    state = model.llm(inputs_embeds=prompt, use_cache=True)
    token = model.llm.get_input_embeddings()(torch.tensor([list(reference.ids[0][:1])]))
    return Speed(
        vision=timed([lambda: model.perceiver.encode_images(pixels)], 10),
        clue_encoder=timed([lambda: model.perceiver.encode_texts(*texts)], 10),
        fusion=timed([lambda: model.fusion(*images, clues)], 10),
        prefill=timed([prefill], 10),
        step=timed([lambda: model.llm(inputs_embeds=token, past_key_values=state.past_key_values)], 30),
    )


def page_of(loaded: Checkpoint, rows: list[Row], *, turns: int, threads: int) -> Iterator[str]:
    """The lines of the page."""
    size: Mapping[str, int] = {"studies": len(loaded.parity_pixels())}
    yield "# What each precision costs and keeps\n\nMade by (do not edit):\n\n```bash"
    yield f"python tests/benchmarks/export_precisions.py {' '.join(sys.argv[1:])}\n```\n"
    yield (__doc__ or "").split("\n\n", 2)[2]
    yield f"`{loaded.config.name}`, {size['studies']} held-out studies compared, {turns} turns, {threads} threads. "
    yield from machine(("torch", "transformers", "onnxruntime", "onnxruntime-genai"))
    yield "\n| | MiB | vision ms | clue encoder ms | fusion ms | prefill ms | token ms | against PyTorch fp32 |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield row.cells()


if __name__ == "__main__":
    sys.exit(main())
