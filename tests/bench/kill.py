"""Kills a command at a random time, runs it to its end, and compares with an undisturbed run; over and over.

python tests/bench/kill.py prepare|order|train DATA [--kills 20] [flags of the command]. Folders of prepare and files of
order are compared byte by byte; of train, the predictions and the loss of every epoch, for other files tell the time.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path


def run_killed(command: Callable[[], list[str]], latest: float, rng: random.Random) -> bool:
    """Run a command, kill it, and run it to its end; gives whether the kill came before that.

    Args:
        command: Makes the words of the next run.
        latest: Seconds until the latest kill.
        rng: Of the time.
    """
    process = subprocess.Popen(command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(rng.uniform(0, latest))
    except subprocess.TimeoutExpired:
        process.kill()  # SIGKILL, which no process can catch
    killed = process.wait() != 0
    # Which refuses to begin where the kill came after the result: what is there then is compared.
    subprocess.run(command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return killed


def _differing(one: Path, other: Path) -> list[str]:
    """Names of the files that two folders do not have alike."""
    if one.is_file():
        return [] if _same(one, other) else [other.name]
    names = {path.relative_to(folder) for folder in (one, other) for path in folder.rglob("*") if path.is_file()}
    return sorted(str(name) for name in names if not _same(one / name, other / name))


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def _words(what: str, data: str, flags: list[str], out: Path) -> list[str]:
    """A run that goes on from what is there."""
    words = [sys.executable, "-m", "ttgraph", what, data, *flags, "--out", str(out)]
    return [*words, "--resume"] if (out / "checkpoint.safetensors").exists() else words


def _losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    """Run a command undisturbed, and killed at a random time, over and over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "order", "train"))
    parser.add_argument("data")
    parser.add_argument("--folder", type=Path, default=Path("kill"), help="for both results")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments, flags = parser.parse_known_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    whole, killed = (arguments.folder / name for name in ("whole.npz", "killed.npz"))
    command = partial(_words, arguments.what, arguments.data, flags)
    seconds, rng, count, runs = _seconds(command(whole)), random.Random(arguments.seed), 0, 0
    found: set[str] = set()
    while count < arguments.kills:
        runs += 1
        shutil.rmtree(killed, ignore_errors=True)
        killed.unlink(missing_ok=True)
        count += run_killed(lambda: command(killed), seconds, rng)
        found |= set(_what_differs(arguments.what, whole, killed))
    print(f"{arguments.what}: {seconds:.1f} s undisturbed, {count} of {runs} runs killed before their end")
    print(f"what differs: {', '.join(sorted(found)) or 'nothing'}")
    sys.exit(bool(found))


def _what_differs(what: str, whole: Path, killed: Path) -> list[str]:
    if what != "train":
        return _differing(whole, killed)
    losses = [] if _losses(whole) == _losses(killed) else ["losses"]
    return losses + ([] if _same(whole / "predictions.npy", killed / "predictions.npy") else ["predictions.npy"])


if __name__ == "__main__":
    main()
