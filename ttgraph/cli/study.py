"""Studies: a grid of graphs and settings, and a page that says what came out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ttgraph.cli.output import with_folder
from ttgraph.study import HomophilyConfig


def run_homophily(config: HomophilyConfig) -> None:
    """Study what homophily, order, rank and init do to tensor trains; done in a quarter of an hour on two cores."""
    from ttgraph.study import homophily_study

    config = with_folder(config, "homophily")
    study, folder = homophily_study(config), config.out
    assert folder is not None
    print((folder / "study.md").read_text())
    print(f"the page, the rows, the pictures and every cell are in {folder}")
    if study["failed"]:
        count = len(study["failed"])
        raise ValueError(f"{count} cells failed, study.json says why; --resume tries them again")


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {"homophily": (HomophilyConfig, run_homophily)}
