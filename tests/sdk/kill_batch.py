"""Kills a batch again and again, at random moments, and looks at what is left.

    python -m tests.sdk.kill_batch FOLDER --kills 100 --seed 6

The kills fall on three kinds of moments, drawn from the seed: while the process starts and looks, just after some
file of ours appeared, and anywhere in between.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.sdk.site_folder import audited, command, contents, environment, partials, run, states


def disturb(folder: Path, home: Path, *, kills: int, seed: int, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Kill batches over ``folder`` until ``kills`` found one alive, and let the last one finish.

    A batch that comes to its end before is followed by one into another folder: how many kills one batch takes
    depends on the machine.

    Returns:
        ``outs``: the folders written to; ``landed``: kind of moment → kills that found the process alive; ``partials``:
        temporary files that they left; ``per_kill``: studies in the ledger after each.
    """
    chance = random.Random(seed)
    landed: Counter[str] = Counter()
    left, done, outs = 0, [], [home / "disturbed-1"]
    while landed.total() < kills:
        kind = chance.choice(("start", "file", "file", "between"))
        process = subprocess.Popen(
            _batch(folder, outs[-1], *more),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _wait(process, outs[-1], kind, chance)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        code = process.wait()
        assert code in (-signal.SIGKILL, 0, 3), code
        if code == -signal.SIGKILL:
            landed[kind] += 1
            left += len(partials(outs[-1]))
            done.append(_in_ledger(outs[-1]))
        else:
            outs.append(home / f"disturbed-{len(outs) + 1}")
    finished = run("batch", folder, "--out", outs[-1], "--settle", "0", *more)
    assert finished.returncode in (0, 3), finished.stderr
    return {"outs": outs, "landed": dict(landed), "partials": left, "per_kill": done}


def _batch(folder: Path, out: Path, *more: str) -> list[str]:
    return command("batch", folder, "--out", out, "--settle", "0", "--workers", "2", *more)


def _in_ledger(out: Path) -> int:
    return states(out).total() if (out / "ledger.sqlite").exists() and (out / "reports").exists() else 0


def _wait(process: subprocess.Popen[bytes], out: Path, kind: str, chance: random.Random) -> None:
    if kind == "start":
        time.sleep(chance.uniform(0, 1.5))
        return
    goal = _files(out) + chance.randint(1, 18)  # a study has four
    while process.poll() is None and _files(out) < goal:
        time.sleep(0.0005)
    if kind == "between":
        time.sleep(chance.uniform(0, 0.4))


def _files(out: Path) -> int:
    folders = [out / name for name in ("reports", "cards", "pictures")]
    return sum(1 for folder in folders if folder.is_dir() for _ in folder.iterdir())


def compare(folder: Path, disturbed: Path, calm: Path, *, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Hold what was killed against a batch that was not, which runs if its folder is not there yet.

    Returns:
        ``studies``; ``differing``: files that are not the same; ``audited_once``: each study has one line in the log.
    """
    if not calm.exists():
        assert run("batch", folder, "--out", calm, "--settle", "0", *more).returncode in (0, 3)
    one, other = contents(disturbed), contents(calm)
    differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    once = audited(disturbed) == audited(calm) and set(audited(disturbed).values()) == {1}
    return {
        "studies": states(disturbed).total(),
        "same_states": states(disturbed) == states(calm),
        "files": len(one),
        "differing": differing,
        "audited_once": once,
        "partials_at_the_end": len(partials(disturbed)),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        more = ("--format", "text,json")
        killed = disturb(args.folder, Path(home), kills=args.kills, seed=args.seed, more=more)
        outs = killed.pop("outs")
        found = [compare(args.folder, out, Path(home) / "calm", more=more) for out in outs]
    sys.stdout.write(json.dumps({**killed, "batches": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
