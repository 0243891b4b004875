"""How many bits reports need: what the decoder of ``iu_decoder.py`` writes in int8 and in int4 by three algorithms.

    pip install -e ".[gptq]"          # for that one; in an environment of its own, see the Makefile
    python tests/benchmarks/iu_precisions.py --folder runs/iu45 --write tests/benchmarks/results/iu_precisions.md

A report for each condition of the val studies, greedy, compared with fp32's as an export compares them. ``gptq`` is
calibrated on the first 64 of these very prompts with fp32's reports behind them, as an export calibrates it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from decode import machine
from decode_fidelity import Text, compared, fidelity_table
from iu_workload import Study, Workload, load_workload

from trrg_export.onnx_file import clean, save
from trrg_export.precision import int4, int8_decoder
from trrg_export.precision.gptq import Calibration
from trrg_sdk.backends import onnxruntime
from trrg_sdk.decoding.greedy import generate
from trrg_sdk.errors import UsageError

_CALIBRATED = 64
_ABOUT = (__doc__ or "").rpartition("\n\n")[2].strip()
_INT4 = [("rtn", 32), ("rtn", 16), ("k-quant", 32), ("gptq", 32)]


def written(workload: Workload, studies: list[Study], path: Path, threads: int) -> list[Text]:
    """Greedy reports of one decoder."""
    decoder = onnxruntime.open_backend(device="cpu", threads=threads).decoder(path, workload.spec)
    limits = {"eos": workload.eos, "max_new_tokens": workload.limit}
    return [tuple(generate(decoder, one.prompt, workload.table, **limits).ids) for one in studies]


def forms(
    workload: Workload, source: Path, read: list[np.ndarray]
) -> Iterator[tuple[str, Callable[[], onnx.ModelProto]]]:
    """The name of each form, and what makes it."""
    spec = workload.spec
    calibration = Calibration(read, (1, spec.kv_heads, 0, spec.head_size))
    yield "int8", lambda: int8_decoder.quantize_decoder(source)
    for algorithm, block in _INT4:
        yield (
            f"int4, {algorithm}, blocks of {block}",
            lambda chosen=(block, algorithm): int4.quantize_decoder(source, int4.Int4(*chosen), calibration),
        )


def page(folder: Path, threads: int) -> Iterator[str]:
    """The whole page, a block at a time."""
    workload = load_workload(folder)
    studies, judged, left_out = workload.distinct(), {}, {}
    wanted = written(workload, studies, workload.file("fp32"), threads)
    pairs = zip(studies[:_CALIBRATED], wanted, strict=False)
    read = [np.concatenate([one.prompt, workload.table[list(text)]]) for one, text in pairs]
    with tempfile.TemporaryDirectory() as scratch:
        source, path = Path(scratch) / "fp32" / "decoder.onnx", Path(scratch) / "decoder.onnx"
        source.parent.mkdir()
        source.write_bytes(workload.file("fp32").read_bytes())  # gptq writes beside it
        for name, make in forms(workload, source, read):
            try:
                model = make()
            except UsageError as error:
                left_out[name] = str(error)
                continue
            save(clean(model), path)
            judged[name] = compared(written(workload, studies, path, threads), wanted, workload.tokenizer)
    yield "\n".join(fidelity_table(judged, left_out))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of iu_decoder.py")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="page; default: the screen only")
    arguments = parser.parse_args()
    command = f"```bash\npython tests/benchmarks/iu_precisions.py {' '.join(sys.argv[1:])}\n```"
    head = ["# Bits that reports need", "Made by (do not edit):", command, _ABOUT, *machine(arguments.threads, "cpu")]
    text = "\n\n".join([*head, *page(arguments.folder, arguments.threads)]) + "\n"
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
