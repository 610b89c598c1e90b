"""Graphs larger than memory: any dataset into a folder that training maps, in bounded memory and surviving kills."""

from ttgraph.prepare.job import prepare
from ttgraph.prepare.sources import EdgeSource, open_source

__all__ = ["EdgeSource", "open_source", "prepare"]
