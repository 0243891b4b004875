"""Decoding: ours without and with drafts, its peers at their best settings, and how near the memory limit they are.

    pip install openvino-genai nncf gguf
    CMAKE_ARGS="-DLLAMA_BUILD_TOOLS=OFF -DMTMD_BUILD=OFF" pip install llama-cpp-python        # is compiled: 10 minutes
    trrg-train phantom --count 80 --seed 77 --size 320 --out phantoms
    python tests/benchmarks/iu_decoder.py --reports iu_reports.jsonl.gz --out runs/iu
    python tests/benchmarks/decode.py llama100m mini iu --dicom phantoms --iu runs/iu --write decode.md
    python tests/benchmarks/decode.py llama1b llama7b iu mini --device cuda --dicom phantoms --iu runs/iu \\
        --bundles mini_fp16 mini_int4-fp16 --write decode_gpu.md     # with onnxruntime-gpu and onnxruntime-genai-cuda

``llama100m``, ``llama1b`` and ``llama7b`` are Llamas of random weights through every engine without drafts, and what a
pass over several positions costs each (on a GPU with ``--iu`` also drafts, replayed); ``mini`` a bundle's decoder on
phantoms without and with drafts; ``iu`` real report text, by the decoder that ``iu_decoder.py`` trains: what it writes
itself, and what people wrote, replayed.

An engine runs in a process of its own. All take turns, so that a noisy machine hurts all alike; figures are medians of
the turns, and ratios are those of each turn. A peer that is not installed or fails is a line with the reason. This is
no timed test.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from decode_llama import llama_page
from decode_replay import replay_page
from decode_reports import iu_page, mini_page

from trrg_sdk.processors import instructions

LLAMAS = ("llama100m", "llama1b", "llama7b")
WORKLOADS = (*LLAMAS, "mini", "iu")
_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-genai",
    "onnxruntime-genai-cuda",
    "openvino",
    "openvino-genai",
    "nncf",
    "llama-cpp-python",
    "torch",
    "transformers",
    "numpy",
)


def page(arguments: argparse.Namespace) -> Iterator[str]:
    """The whole page, a block at a time."""
    yield "# Decoding"
    yield "Made by (do not edit):"
    yield f"```bash\npython tests/benchmarks/decode.py {' '.join(sys.argv[1:])}\n```"
    yield "\n".join((__doc__ or "").split("\n\n", 2)[2].strip().splitlines())
    yield "\n".join(machine(arguments.threads, arguments.device))
    started, load = time.perf_counter(), os.getloadavg()[0]
    effort = {"threads": arguments.threads, "turns": arguments.turns}
    for shape in LLAMAS:
        if shape in arguments.workloads:
            replayed = None
            if arguments.device == "cuda" and arguments.iu:
                replayed = partial(replay_page, arguments.iu, studies=arguments.studies, **effort)
            more = {"layers": arguments.layers, "drafted": replayed}
            yield from llama_page(shape, device=arguments.device, **effort, **more)
    if "mini" in arguments.workloads:
        files = sorted(arguments.dicom.rglob("*.dcm"))[: arguments.studies]
        yield from mini_page(arguments.bundles or [None], files, device=arguments.device, **effort)
    if "iu" in arguments.workloads:
        sizes = {"studies": arguments.studies, "least": arguments.draft_reports}
        yield from iu_page(arguments.iu, device=arguments.device, **sizes, **effort)
    yield (
        f"Took {(time.perf_counter() - started) / 60:.1f} minutes. Processes that wanted to run, mean of a minute: "
        f"{load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end, with one or {arguments.threads} threads of it."
    )


def machine(threads: int, device: str) -> Iterator[str]:
    """Lines on processor, GPU, threads and versions; nothing that names one machine's folders."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kernels = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if name in instructions()]
    yield (
        f"{named[0] if named else platform.machine()} ({', '.join(kernels)}), {os.cpu_count()} processors, "
        f"{threads} threads each."
    )
    if device == "cuda":
        asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        yield f"GPU, its memory and driver: {subprocess.check_output(asked, text=True).strip()}."
    yield f"Python {platform.python_version()}, {', '.join(map(_versioned, _PACKAGES))}."


def _versioned(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+", choices=WORKLOADS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--layers", type=int, help="of the Llamas: fewer show in short whether all runs")
    parser.add_argument("--bundles", nargs="+", type=Path, metavar="BUNDLE", help="of mini; default: the embedded one")
    parser.add_argument("--dicom", type=Path, help="of mini: folder with DICOM files")
    parser.add_argument("--studies", type=int, default=40, help="at most, of mini and iu")
    parser.add_argument("--iu", type=Path, help="of iu: folder of iu_decoder.py")
    parser.add_argument("--draft-reports", type=int, default=1, metavar="N", help="of iu: as of trrg-export")
    parser.add_argument("--write", type=Path, help="page; default: the screen only")
    arguments = parser.parse_args()
    if "mini" in arguments.workloads and arguments.dicom is None:
        parser.error("mini needs --dicom FOLDER, such as trrg-train phantom makes")
    if "iu" in arguments.workloads and arguments.iu is None:
        parser.error("iu needs --iu FOLDER, made by iu_decoder.py")
    blocks = []
    for block in page(arguments):
        print(block, end="\n\n", flush=True)
        blocks.append(block)
    if arguments.write:
        arguments.write.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
