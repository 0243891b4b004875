"""Seeded mutations of DICOM files, and a process that reads them with its memory and its time bounded.

    python -m tests.sdk.dicom_fuzzer --count 10000 --seed 6 [--corpus FOLDER]

A case is made from the seed and its number alone, so each one that fails can be made again. The child reads one case
after the other; the case at which it dies (a crash of a decoder, a hang, too much memory) is counted and passed over.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import random
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.sdk.chest_dicom import chest_bytes
from tests.sdk.dicom_builder import BIG, DEFLATED, EXPLICIT, IMPLICIT, build, image

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_SECONDS = 5.0
MAX_BYTES = 2 << 30  # address space: the interpreter with its libraries takes about 0.6 GiB of it
MAX_SEED_FILE = 600_000
NUMBERS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\xfe\xff\0\xe0", b"\xfe\xff\xdd\xe0")
TAGS = ((0x28, 0x10), (0x28, 0x11), (0x28, 0x100), (0x28, 0x101), (0x28, 0x102), (0x28, 0x103), (0x28, 2), (0x28, 8))


def corpus(folder: Path | None) -> list[bytes]:
    """What is mutated: files built here, one a transfer syntax, and the small ones of a folder."""
    files = [chest_bytes()]
    for syntax in (IMPLICIT, EXPLICIT, DEFLATED, BIG):
        stream = io.BytesIO()
        build(image(), syntax=syntax).save_as(stream, enforce_file_format=True)
        files.append(stream.getvalue())
    files += [path.read_bytes() for path in sorted((REPOSITORY / "examples" / "data").glob("*.dcm"))]
    if folder is not None:
        files += [
            path.read_bytes()
            for path in sorted(folder.iterdir())
            if path.suffix != ".csv" and path.stat().st_size <= MAX_SEED_FILE
        ]
    return files


def mutate(files: Sequence[bytes], *, seed: int, number: int) -> bytes:
    """Case ``number`` of a seed."""
    chance = random.Random(f"{seed}:{number}")
    content = bytearray(chance.choice(files))
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        chance.choice(MUTATORS)(content, chance)
    return bytes(content)


def _spot(content: bytearray, chance: random.Random) -> int:
    """A place: anywhere, or among the first 4,096 bytes, where the header is."""
    end = len(content) if chance.random() < 0.5 else min(len(content), 4096)
    return chance.randrange(max(end, 1))


def _flip(content: bytearray, chance: random.Random) -> None:
    if content:
        content[_spot(content, chance)] ^= 1 << chance.randrange(8)


def _overwrite(content: bytearray, chance: random.Random) -> None:
    at = _spot(content, chance)
    content[at : at + 4] = chance.choice(NUMBERS)


def _noise(content: bytearray, chance: random.Random) -> None:
    at = _spot(content, chance)
    length = chance.randrange(1, 64)
    content[at : at + length] = chance.randbytes(length)


def _cut(content: bytearray, chance: random.Random) -> None:
    del content[_spot(content, chance) :]


def _remove(content: bytearray, chance: random.Random) -> None:
    at = _spot(content, chance)
    del content[at : at + chance.randrange(1, 256)]


def _repeat(content: bytearray, chance: random.Random) -> None:
    at = _spot(content, chance)
    content[at:at] = content[at : at + chance.randrange(1, 256)] * chance.choice((1, 2, 50))


def _length(content: bytearray, chance: random.Random) -> None:
    """Change the length field of some explicit element."""
    at = content.find(chance.choice((b"US", b"SQ", b"OW", b"OB", b"UI", b"LO", b"UN")), _spot(content, chance))
    if at >= 0:
        content[at + 2 : at + 4] = struct.pack("<H", chance.choice((0, 1, 2, 3, 255, 65535)))


def _nest(content: bytearray, chance: random.Random) -> None:
    """Many sequences inside each other, without a length, where an element begins."""
    at = content.find(b"\x08\x00", 132)
    if at >= 0:
        head = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
        content[at:at] = head * chance.choice((2, 50, 3000))


def _number(content: bytearray, chance: random.Random) -> None:
    """Another value for one of the elements that describe the pixels."""
    group, element = chance.choice(TAGS)
    at = content.find(struct.pack("<HH", group, element), 128)
    if at >= 0:
        content[at + 8 : at + 10] = struct.pack("<H", chance.choice((0, 1, 2, 7, 8, 9, 16, 17, 32, 64, 4095, 65535)))


def _syntax(content: bytearray, chance: random.Random) -> None:
    """Another transfer syntax than the one the pixels are in."""
    at = content.find(b"1.2.840.10008.1.2")
    if at >= 0:
        tails = (
            b"\0",
            b".1\0",
            b".2\0",
            b".5\0",
            b".4.50\0",
            b".4.57\0",
            b".4.70\0",
            b".4.80\0",
            b".4.90\0",
            b".4.201\0",
        )
        tail = chance.choice(tails)
        content[at + 17 : at + 17 + len(tail)] = tail


MUTATORS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip, _overwrite, _noise, _cut, _remove, _repeat, _length, _number, _number, _syntax),
    _nest,
)


def read(content: bytes) -> str:
    """Header and pixels as the SDK reads them; the reason's code, or ``"read"``."""
    from trrg_sdk.dicom import load
    from trrg_sdk.dicom_header import read_header
    from trrg_sdk.errors import InputError

    codes = []
    for step in (lambda: read_header(io.BytesIO(content)), lambda: load(content)):
        try:
            step()
        except InputError as error:
            assert str(error), "a reason without words"
            codes.append(error.code)
    return codes[-1] if codes else "read"


def child(*, seed: int, first: int, last: int, folder: Path | None) -> None:
    """Read cases; one line of JSON each. The default action of the alarm ends a process that hangs."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = corpus(folder)
    read(files[0])  # the libraries are loaded outside of the measured time
    for number in range(first, last):
        content = mutate(files, seed=seed, number=number)
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
        try:
            outcome = read(content)
        except BaseException as error:
            outcome = f"CRASH {type(error).__name__}: {error}"[:300]
        signal.setitimer(signal.ITIMER_REAL, 0)
        line = {"case": number, "outcome": outcome, "seconds": round(time.monotonic() - start, 3)}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def fuzz(*, seed: int, count: int, folder: Path | None = None, first: int = 0) -> dict[str, Any]:
    """Run ``count`` cases in children.

    Returns:
        ``codes``: outcome → how often; ``failures``: what ended a child or was no reason; ``slowest``: seconds.
    """
    codes: collections.Counter[str] = collections.Counter()
    failures, slowest, number, end = [], 0.0, first, first + count
    while number < end:
        command = [sys.executable, "-m", "tests.sdk.dicom_fuzzer", "--child", "--seed", str(seed)]
        command += [
            "--first",
            str(number),
            "--count",
            str(end - number),
            *(["--corpus", str(folder)] if folder else []),
        ]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        for line in map(json.loads, done.stdout.splitlines()):
            number, slowest = line["case"] + 1, max(slowest, line["seconds"])
            codes[line["outcome"].split(":")[0]] += 1
            if line["outcome"].startswith("CRASH"):
                failures.append(f"case {line['case']}: {line['outcome']}")
        if number < end:
            failures.append(f"case {number}: the process ended with {done.returncode}: {done.stderr[-400:]}")
            codes[f"DIED {done.returncode}"] += 1
            number += 1
    return {"codes": dict(codes.most_common()), "failures": failures, "slowest": slowest}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--child", action="store_true")
    args = parser.parse_args()
    if args.child:
        child(seed=args.seed, first=args.first, last=args.first + args.count, folder=args.corpus)
        return
    sys.stdout.write(json.dumps(fuzz(seed=args.seed, count=args.count, folder=args.corpus, first=args.first), indent=1))


if __name__ == "__main__":
    main()
