"""The commands: ``ttgraph train | compare | info | order | prepare``, and others, such as ``ttgraph rec train``."""

from ttgraph.cli.graph import COMMANDS
from ttgraph.cli.main import main

__all__ = ["COMMANDS", "main"]
