"""Kills `ttgraph prepare` at random times until it is done, and compares with an undisturbed run, byte by byte."""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path


def run_killed(command: list[str], kills: int, longest: float, seed: int = 0) -> int:
    """Run a command that goes on from what it finds, and kill it; gives how many of the runs a kill ended.

    Args:
        command: The command, whose runs after the first go on.
        kills: How often to kill it.
        longest: Seconds until the latest kill.
        seed: Of the times.
    """
    rng, killed = random.Random(seed), 0
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.kill()  # SIGKILL, which no process can catch
            process.wait()
            killed += 1
    subprocess.run(command, check=True)
    return killed


def differing(one: Path, other: Path) -> list[str]:
    """Names of the files that two folders do not have alike."""
    names = {path.relative_to(folder) for folder in (one, other) for path in folder.rglob("*") if path.is_file()}
    return sorted(str(name) for name in names if not _same(one / name, other / name))


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def main() -> None:
    """Prepare a graph undisturbed, and killed over and over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", default="homophily-100k")
    parser.add_argument("--folder", type=Path, default=Path("kill"), help="for both graphs")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments, flags = parser.parse_known_args()
    base = [sys.executable, "-m", "ttgraph", "prepare", arguments.data, *flags, "--out"]
    whole, killed = arguments.folder / "whole", arguments.folder / "killed"
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    begin = time.perf_counter()
    subprocess.run([*base, str(whole)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    count = run_killed([*base, str(killed)], arguments.kills, seconds, arguments.seed)
    found = differing(whole, killed)
    print(f"{seconds:.1f} s undisturbed; {count} of {arguments.kills} runs killed; differing files: {found or 'none'}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
