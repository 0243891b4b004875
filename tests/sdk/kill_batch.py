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


def disturb(folder: Path, out: Path, *, kills: int, seed: int, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Kill ``kills`` batches over ``folder``, then let one finish.

    Returns:
        ``landed``: kind of moment → kills that found the process alive; ``partials``: temporary files that they left;
        ``per_kill``: studies in the ledger after each.
    """
    chance = random.Random(seed)
    landed: Counter[str] = Counter()
    left, done = 0, []
    arguments = command("batch", folder, "--out", out, "--settle", "0", "--workers", "2", *more)
    while landed.total() < kills:
        kind = chance.choice(("start", "file", "file", "between"))
        process = subprocess.Popen(
            arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        _wait(process, out, kind, chance)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            landed[kind] += 1
        code = process.wait()
        assert code in (-signal.SIGKILL, 0, 3), code
        left += len(partials(out))
        done.append(states(out).total() if (out / "ledger.sqlite").exists() and (out / "reports").exists() else 0)
        if code != -signal.SIGKILL:
            break
    finished = run("batch", folder, "--out", out, "--settle", "0", *more)
    assert finished.returncode in (0, 3), finished.stderr
    return {"kills": landed.total(), "landed": dict(landed), "partials": left, "per_kill": done}


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
    """Hold what was killed against a batch that was not.

    Returns:
        ``studies``; ``differing``: files that are not the same; ``audited_once``: each study has one line in the log.
    """
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
        out, calm = Path(home) / "disturbed", Path(home) / "calm"
        result = disturb(args.folder, out, kills=args.kills, seed=args.seed, more=("--format", "text,json"))
        result |= compare(args.folder, out, calm, more=("--format", "text,json"))
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
