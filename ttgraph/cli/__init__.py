"""The commands: ``ttgraph train | compare | info | order``, and ``ttgraph rec train | compare | generate``."""

from ttgraph.cli.graph import COMMANDS
from ttgraph.cli.main import main

__all__ = ["COMMANDS", "main"]
