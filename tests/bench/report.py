"""What becomes of the figures: a table on the screen, a JSON file each, and pictures."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]

# Settings of the C library that decide how often a large result is paged in anew.
_ALLOCATOR = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")


def machine(device: torch.device) -> dict[str, Any]:
    """Where the figures were taken, and under what settings."""
    kernels = torch._C._dispatch_has_kernel_for_dispatch_key("ttgraph::tt_lookup", device.type.upper())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "compiled kernels": kernels,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "allocator": {name: os.environ[name] for name in _ALLOCATOR if name in os.environ},
    }


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Prints rows under their keys, numbers to the right."""
    print(f"\n{title}")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys, *([_cell(row.get(key)) for key in keys] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
    texts = [any(isinstance(row.get(key), str) for row in rows) for key in keys]
    for line in cells:
        aligned = (c.ljust(w) if text else c.rjust(w) for c, w, text in zip(line, widths, texts, strict=True))
        print("  " + "  ".join(aligned).rstrip())


def write_json(path: Path, number: int, title: str, where: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes one figure with all that is needed to take it again."""
    command = shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
    figure = {"figure": number, "title": title, "command": command, "machine": where, "rows": rows}
    path.write_text(json.dumps(figure, indent=1) + "\n")


def plot(results: Mapping[int, Sequence[Row]], folder: Path) -> list[Path]:
    """Draws the ratios over what they depend on, as PNG files.

    Args:
        results: Rows by the number of the figure.
        folder: Where the pictures go.

    Returns:
        The files; none if nothing that was measured can be drawn.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, list[tuple[float, float, float, float]]]] = defaultdict(lambda: defaultdict(list))
    for rows in results.values():
        axis = next((name for name in ("rows per prefix", "batch", "table rows") if rows and name in rows[0]), "rank")
        for row in rows:
            if "ratio" in row and axis in row:
                labels = [f"{key} {value}" for key, value in row.items() if key in ("rank", "pattern") and key != axis]
                label = ", ".join([f"{row.get('what', '')} / {row['over']}", *labels])
                curves[axis][label].append((row[axis], row["ratio"], row["low"], row["high"]))
    written = []
    for axis, lines in curves.items():
        figure = Figure(figsize=(11, 5), layout="constrained")
        axes = figure.subplots()
        for label, points in lines.items():
            x, middle, low, high = zip(*sorted(points), strict=True)
            axes.plot(x, middle, marker="o", label=label)
            axes.fill_between(x, low, high, alpha=0.2)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="our time / theirs")
        figure.legend(fontsize="x-small", loc="outside right upper")
        written.append(folder / f"ratio-against-{axis.replace(' ', '-')}.png")
        figure.savefig(written[-1], dpi=120)
    return written


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()
