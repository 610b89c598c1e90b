"""The generators by name, as recipes and the command line know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ttgraph.data.synthetic.csbm import csbm
from ttgraph.data.synthetic.dcsbm import dcsbm
from ttgraph.data.synthetic.hierarchy import planted_hierarchy
from ttgraph.data.synthetic.hierarchy_stream import stream_planted_hierarchy
from ttgraph.data.synthetic.lfr import lfr
from ttgraph.data.synthetic.preferential import preferential_attachment

GENERATORS: dict[str, Callable[..., Any]] = {
    "planted_hierarchy": planted_hierarchy,
    "dcsbm": dcsbm,
    "csbm": csbm,
    "lfr": lfr,
    "preferential_attachment": preferential_attachment,
}

# Those that also draw graphs larger than memory, a chunk at a time.
STREAMS: dict[str, Callable[..., Any]] = {"planted_hierarchy": stream_planted_hierarchy}
