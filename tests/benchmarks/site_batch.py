"""What a batch costs: beside the bare ``report_many``, to resume over 100,000 studies, to decode each codec, to hash.

python tests/benchmarks/site_batch.py throughput FOLDER --out NEW_FOLDER [--compress]
python tests/benchmarks/site_batch.py resume
python tests/benchmarks/site_batch.py codecs DICOM_FOLDER
python tests/benchmarks/site_batch.py hashes FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from blake3 import blake3

from trrg_sdk import Reporter
from trrg_sdk.bundle import Bundle
from trrg_sdk.dicom import load
from trrg_sdk.errors import InputError
from trrg_sdk.site.job import Job, open_outputs
from trrg_sdk.site.ledger import Ledger, Row
from trrg_sdk.site.lock import Stop
from trrg_sdk.site.look import Known, Settling, look
from trrg_sdk.site.progress import Lines
from trrg_sdk.site.studies import Entry, group
from trrg_sdk.site.walk import Tree


def throughput(folder: Path, out: Path, turns: int = 9) -> dict[str, object]:
    """Studies a second of both in one process with one reporter; each study is one file.

    The ratio is the median of those of each turn, in which the one or the other comes first by turns: so a machine that
    is faster today than a minute ago counts for both. What was written stays: ext4 passes over inodes that were freed
    in the last five minutes, one after the other, and takes .3 to .7 ms of processor time to make a file while there
    are many, in place of .06. A site frees none, so ``out`` belongs where nothing was deleted.
    """
    out.mkdir(parents=True)
    reporter = Reporter(threads=1)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    list(reporter.report_many(files[:3]))
    rates: dict[str, list[float]] = {"bare": [], "batch": []}
    for turn in range(turns):
        for name in ("bare", "batch") if turn % 2 == 0 else ("batch", "bare"):
            start = time.perf_counter()
            done = _bare(reporter, files) if name == "bare" else _batch(reporter, folder, out / str(turn))
            rates[name].append(done / (time.perf_counter() - start))
    ratios = [batch / bare for batch, bare in zip(rates["batch"], rates["bare"], strict=True)]
    shown = {name: round(statistics.median(made), 1) for name, made in rates.items()}
    least, middle, most = min(ratios), statistics.median(ratios), max(ratios)
    return {"studies": len(files), **shown, "ratio (least to most)": f"{middle:.3f} ({least:.3f} to {most:.3f})"}


def _bare(reporter: Reporter, files: list[Path]) -> int:
    return sum(outcome.report is not None for outcome in reporter.report_many(files))


def _batch(reporter: Reporter, folder: Path, out: Path) -> int:
    with Job(folder, out, open_outputs("text,json")).opened(reporter) as opened:
        return opened.run(Lines(sys.stderr), Stop()).finished["done"]


def compressed(folder: Path, out: Path) -> Path:
    """The files of a folder in JPEG 2000 lossless, which archives like to send."""
    import pydicom
    from pydicom.uid import JPEG2000Lossless

    for path in sorted(folder.rglob("*.dcm")):
        dataset = pydicom.dcmread(path)
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
        dataset.save_as(out / path.name)
    return out


def resume(count: int) -> dict[str, object]:
    """Seconds from opening a ledger of ``count`` studies to knowing that nothing is to be done, and what it takes."""
    with tempfile.TemporaryDirectory() as home:
        folder, out = Path(home) / "in", Path(home) / "out"
        out.mkdir()
        for number in range(count):
            path = folder / f"{number // 1000}" / str(number)
            if number % 1000 == 0:
                path.parent.mkdir(parents=True)
            path.write_bytes(b"x")
        tree, options, bundle = Tree(folder), open_outputs("text"), Bundle.embedded()
        _fill(tree, out, options.formats, bundle.manifest_sha256)
        seconds = []
        for _ in range(3):
            start, cpu = time.perf_counter(), time.process_time()
            ledger = Ledger(out)
            opened = time.perf_counter()
            known = Known(ledger.entries(), ledger.marks())
            read = time.perf_counter()
            seen = look(tree, options, bundle, known, settling=Settling(0), stopped=lambda: False)
            end = time.perf_counter()
            ledger.close()
            assert len(seen.studies) == count and not seen.todo
            times = {"open": opened - start, "read": read - opened, "look": end - read, "all": end - start}
            seconds.append({**times, "processor time of all": time.process_time() - cpu})
        size = (out / "ledger.sqlite").stat().st_size
    return {"studies": count, "ledger MB": round(size / 1e6, 1), "seconds": [_rounded(each) for each in seconds]}


def _fill(tree: Tree, out: Path, formats: str, manifest: str) -> None:
    """Make the ledger as if every file were a reported study."""
    ledger, files = Ledger(out), list(tree.walk())
    entries = {f.key: Entry(f.size, f.mtime_ns, hashlib.sha256(f.key).digest(), f.key, "", 0) for f in files}
    ledger.remember(entries)
    clues = {f"clue {number}": 0.5 for number in range(14)}
    rows = []
    for study in group(files, entries, left_out=Counter(), accept=frozenset()):
        row = Row(study.key, study.quick(), manifest, formats, "done", "", "", clues, "2026-01-01T00:00:00.000+00:00")
        state = (manifest, formats, "done", "", "", json.dumps(clues))
        rows.append((study.key, row.content, row.quick, *state, row.finished))
    ledger._commit([("INSERT INTO studies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)])
    ledger.close()


def codecs(folder: Path) -> dict[str, object]:
    """Milliseconds to load a file, the median of five, by transfer syntax; and megapixels a second."""
    import pydicom

    found: dict[str, list[dict[str, object]]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        try:
            pixels = load(content).pixels
        except InputError:
            continue
        times = []
        for _ in range(5):
            start = time.perf_counter()
            load(content)
            times.append(time.perf_counter() - start)
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        syntax = header.file_meta.get("TransferSyntaxUID")
        median = statistics.median(times)
        shape = "x".join(map(str, pixels.shape))
        line = {"pixels": shape, "ms": round(median * 1e3, 1), "MP/s": round(pixels.size / median / 1e6, 1)}
        found[syntax.name if syntax else "none given"].append(line)
    return dict(found)


def hashes(folder: Path) -> dict[str, object]:
    """Milliseconds to hash a file of the folder with each hash that a ledger holds, the median of all files."""
    times: dict[str, list[float]] = defaultdict(list)
    contents = [path.read_bytes() for path in sorted(folder.iterdir())]
    for content in contents:
        for name, make in (("SHA-256", hashlib.sha256), ("BLAKE3", blake3)):
            start = time.perf_counter()
            make(content).digest()
            times[name].append((time.perf_counter() - start) * 1e3)
    megabytes = statistics.median(map(len, contents)) / 1e6
    return {"MB": round(megabytes, 1), **{name: round(statistics.median(taken), 2) for name, taken in times.items()}}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}


_MEASURES = {"codecs": codecs, "hashes": hashes}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("throughput", "resume", "codecs", "hashes"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--compress", action="store_true")
    parser.add_argument("--out", type=Path, help="new folder for what the batches write, which is left there")
    args = parser.parse_args()
    if args.what == "throughput" and args.out is None:
        parser.error("throughput needs --out")
    with tempfile.TemporaryDirectory() as home:
        folder = compressed(args.folder, Path(home)) if args.compress else args.folder
        if args.what == "throughput":
            result = throughput(folder, args.out)
        else:
            result = resume(args.count) if args.what == "resume" else _MEASURES[args.what](folder)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
