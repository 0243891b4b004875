"""What a pass over several positions costs and how much it rounds differently, and what drafts are worth.

    trrg-train phantom --count 160 --seed 77 --size 320 --out phantoms
    python tests/benchmarks/decode_cost.py --dicom phantoms --studies 60
    python tests/benchmarks/decode_cost.py BUNDLE BUNDLE --dicom phantoms --studies 60

Arms take turns; figures are medians. A bundle without a report store is given one of the texts that it writes about
the first half of the studies; the second half is measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from trrg_sdk.backends import open_backend, open_decoder
from trrg_sdk.backends.base import Backend, Decoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding.choice import NEAR_TIE
from trrg_sdk.decoding.drafts import StoreDrafter
from trrg_sdk.decoding.greedy import Drafts, Generation, generate
from trrg_sdk.decoding.store import ReportStore, StoreArrays, build_store
from trrg_sdk.dicom import load
from trrg_sdk.engine import Engine
from trrg_sdk.labeler import label_sentence
from trrg_sdk.preprocess import Preprocess

WIDTHS = (1, 2, 4, 8, 16)


def prompts_of(bundle: Bundle, backend: Backend, files: list[Path]) -> list[np.ndarray]:
    """What the decoder reads for each image."""
    engine, preprocess = Engine(bundle, backend), Preprocess.from_manifest(bundle.preprocess)
    override, prompts = engine.clues.override(None), []
    for file in files:
        image = load(file)
        pixels = preprocess.apply(image.pixels, spacing_mm=image.pixel_size)
        prompts.append(engine.perceive(pixels, override=override).prompt)
    return prompts


def cost_curve(decoder: Decoder, table: np.ndarray, prompt: np.ndarray, *, repeats: int) -> dict[int, float]:
    """Milliseconds of a pass after a prompt by the number of positions, widths taking turns."""
    rng, times = np.random.default_rng(0), {width: list[float]() for width in WIDTHS}
    decoder.prefill(prompt)
    for _ in range(repeats + 2):
        for width in WIDTHS:
            embeds = table[rng.integers(0, len(table), width)]
            start = time.perf_counter()
            decoder.read(embeds)
            times[width].append((time.perf_counter() - start) * 1e3)
            decoder.truncate(len(prompt))
    return {width: statistics.median(values[2:]) for width, values in times.items()}


def noise(decoder: Decoder, table: np.ndarray, prompts: list[np.ndarray], texts: list[Generation]) -> str:
    """How far leads move when a text is read several positions a pass."""
    worst, leads, flips = dict.fromkeys(WIDTHS[1:], 0.0), list[float](), 0
    for prompt, text in zip(prompts, texts, strict=True):
        decoder.prefill(prompt)
        ids = list(text.ids)
        single = np.stack([decoder.step(table[token : token + 1]).copy() for token in ids])
        best = single.argmax(axis=1)[:, None]
        leads += (np.sort(single, axis=1)[:, -1] - np.sort(single, axis=1)[:, -2]).tolist()
        for width in worst:
            decoder.prefill(prompt)
            chunks = [ids[start : start + width] for start in range(0, len(ids), width)]
            rows = np.concatenate([decoder.read(table[chunk]).copy() for chunk in chunks])
            change = np.abs((rows - single) - np.take_along_axis(rows - single, best, axis=1))
            worst[width] = max(worst[width], float(change.max()))
            flips += int((rows.argmax(axis=1)[:, None] != best).sum())
    shares = {limit: np.mean(np.array(leads) < limit) for limit in (1e-3, 0.08, 0.15, 0.2)}
    listed = ", ".join(f"{share:.2%} below {limit:g}" for limit, share in shares.items())
    return f"largest change of a lead {worst}; other likeliest token {flips}; {len(leads)} leads, {listed}"


def own_store(bundle: Bundle, texts: list[Generation]) -> ReportStore:
    """A store of what the bundle wrote itself."""
    tokenizer, names = Tokenizer.from_file(str(bundle.tokenizer_path)), bundle.manifest.observations
    eos, vocab = bundle.manifest.tokenizer.eos_token_id, bundle.manifest.tokenizer.vocab_size
    ends = (eos, *(token for token in range(vocab) if tokenizer.decode([token]).strip().endswith((".", ":"))))

    def findings(sentence: tuple[int, ...]) -> tuple[int, int]:
        labels = label_sentence(tokenizer.decode(list(sentence)))
        return (
            sum(1 << bit for bit, name in enumerate(names) if labels.get(name) == "present"),
            sum(1 << bit for bit, name in enumerate(names) if labels.get(name) == "absent"),
        )

    reports = [[*text.ids, eos] for text in texts]
    return ReportStore(build_store(reports, ends=ends, least=1, findings=findings), ends=ends)


def drafts_of(bundle: Bundle, texts: list[Generation], precision: str) -> Drafts:
    """The bundle's own store, or one of these texts."""
    if spec := bundle.manifest.drafts:
        store = ReportStore(StoreArrays(*(bundle.array(array) for array in spec.arrays())), ends=spec.ends)
        return Drafts(StoreDrafter(store), max(spec.near_tie, NEAR_TIE[precision]))
    return Drafts(StoreDrafter(own_store(bundle, texts)), NEAR_TIE[precision])


def measure(bundle: Bundle, files: list[Path], *, threads: int, repeats: int) -> Iterator[str]:
    """Lines about one bundle."""
    backend = open_backend(device="cpu", threads=threads)
    precision = bundle.manifest.graph("decoder", target=backend.target).precision
    decoder, table = open_decoder(backend, bundle), np.asarray(bundle.token_embedding())
    eos, limit = bundle.manifest.tokenizer.eos_token_id, bundle.manifest.decoding.max_new_tokens
    prompts = prompts_of(bundle, backend, files)
    curve = cost_curve(decoder, table, prompts[0], repeats=20 * repeats)
    yield f"{bundle.manifest.bundle_id}, decoder {precision}"
    yield "  ms a pass: " + ", ".join(f"{width}: {ms:.3f}" for width, ms in curve.items())
    texts = [generate(decoder, prompt, table, eos=eos, max_new_tokens=limit) for prompt in prompts]
    yield "  " + noise(decoder, table, prompts, texts)
    half = len(prompts) // 2
    drafts, seconds = drafts_of(bundle, texts[:half], precision), {"without": list[float](), "with": list[float]()}
    passes = 0
    for _ in range(repeats):
        totals, passes = dict.fromkeys(seconds, 0.0), 0
        for prompt, expected in zip(prompts[half:], texts[half:], strict=True):
            for arm, used in (("without", None), ("with", drafts)):
                start = time.perf_counter()
                text = generate(decoder, prompt, table, eos=eos, max_new_tokens=limit, drafts=used)
                totals[arm] += time.perf_counter() - start
                assert text.ids == expected.ids, "drafts changed a report"
                passes += text.passes if used else 0
        for arm, total in totals.items():
            seconds[arm].append(total)
    tokens = sum(len(text.ids) + 1 for text in texts[half:])
    without, used_time = (statistics.median(seconds[arm]) for arm in ("without", "with"))
    distinct = len({text.ids for text in texts[half:]})
    yield (
        f"  {len(texts) - half} studies ({distinct} distinct reports), {tokens} tokens, prompts included: "
        f"{tokens / without:.0f} tokens/s without drafts, {tokens / used_time:.0f} with ({without / used_time:.2f} "
        f"times), {tokens / passes:.2f} tokens a pass, all reports identical"
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="default: the embedded one")
    parser.add_argument("--dicom", type=Path, required=True, help="folder with DICOM files")
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    files = sorted(arguments.dicom.rglob("*.dcm"))[: arguments.studies]
    print(
        f"{platform.machine()}, {os.cpu_count()} processors, ONNX Runtime {onnxruntime.__version__}, medians of "
        f"{arguments.repeats}, {arguments.threads} threads"
    )
    for folder in arguments.bundles or [None]:
        bundle = Bundle.load(folder) if folder else Bundle.embedded()
        for line in measure(bundle, files, threads=arguments.threads, repeats=arguments.repeats):
            print(line, flush=True)


if __name__ == "__main__":
    main()
