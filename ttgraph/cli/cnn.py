"""Convolutional networks: images, and the networks that classify them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ttgraph.cli.output import print_summary, with_folder
from ttgraph.cnn import CNNConfig


def run_train(config: CNNConfig) -> None:
    """Train a residual network, dense or of tensor trains, on images."""
    from ttgraph.cnn import train_cnn

    config = with_folder(config, config.title)
    sizes = ("params", "conv_params", "compression", "model_compression")
    times = ("best_epoch", "seconds", "seconds_per_epoch", "seconds_per_step", "peak_memory_mb")
    print_summary(train_cnn(config).summary, ("test", "val", "metric", *sizes, *times), config.out)


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {"train": (CNNConfig, run_train)}
