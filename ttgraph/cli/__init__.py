"""The commands: ``ttgraph train | compare | info | order | prepare``, and others, such as ``ttgraph rec train``."""

import os

# How long a thread of libgomp, which reads this when torch loads it, waits for the others before it sleeps. By
# default it is milliseconds: where another program takes a core, it waits on the very core that the others need.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from ttgraph.cli.graph import COMMANDS
from ttgraph.cli.main import main

__all__ = ["COMMANDS", "main"]
