"""One training run of a convolutional network, from a configuration to results on disk."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttgraph.cnn.batches import ImageBatches
from ttgraph.cnn.config import CNNConfig
from ttgraph.data import ImageData, load_images
from ttgraph.models import ResNet, make_resnet
from ttgraph.nn import TTConv2d
from ttgraph.train.config import plain
from ttgraph.train.engine import fit
from ttgraph.train.machine import peak_memory_mb, usable_device
from ttgraph.train.results import check_settings, prepare_folder, write_run
from ttgraph.train.schedule import Progress, Schedule
from ttgraph.train.seeds import drawn_from


@dataclass(frozen=True)
class CNNResult:
    """What a training run gave.

    Args:
        summary: What ``summary.json`` holds.
        predictions: Classes of the test images.  # (num_test_images,) int64
        model: The trained network.
        progress: Epoch by epoch.
    """

    summary: dict[str, Any]
    predictions: Tensor  # (num_test_images,) int64
    model: ResNet
    progress: Progress


def train_cnn(config: CNNConfig, data: ImageData | None = None) -> CNNResult:
    """Train one network and, where ``config.out`` names a folder, write everything about it there.

    Args:
        config: What to train.
        data: The images, where they are loaded already.

    Returns:
        The result; its weights are those of the best validation accuracy, and test images are looked at once, with
        them.

    Raises:
        ValueError: If the configuration or the images are no good; the message says what would be.
        ttgraph.train.Interrupted: After Ctrl-C, once the checkpoint is written.

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (CVPR 2016); Yin, "Fast and compact
    neural network via Tensor-Train reparameterization" (Georgia Tech, 2023).

    Example:
        >>> result = train_cnn(CNNConfig("digits", compression=4, epochs=2))
        >>> result.summary["compression"] > 4, result.summary["val"] > 0.5
        (True, True)
    """
    begin = time.perf_counter()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = usable_device(config.device)
    if data is None:
        data = load_images(config.data, size=config.size, val_share=config.val_share, seed=config.split_seed)
    model = build_model(config, data).to(device)
    if config.out is not None and (earlier := prepare_folder(config.out, config.resume)):
        check_settings(earlier, config)
    batches = ImageBatches(data, config.batch_size, config.augment, config.seed, device)

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(_scores(config, model, images), labels, label_smoothing=config.label_smoothing)

    def predict(indices: Tensor) -> tuple[Tensor, float]:
        """The classes of some images, and the share of them that is right."""
        model.eval()
        with torch.no_grad():
            predicted = torch.cat([_scores(config, model, part).argmax(1).cpu() for part in batches.unchanged(indices)])
        return predicted, (predicted == data.labels[indices]).double().mean().item()

    progress = fit(
        model,
        make_optimizer(config, model),
        batches,
        loss_of,
        lambda: predict(data.val)[1],
        Schedule(
            config.epochs, config.patience or config.epochs, warmup=config.warmup, seed=config.seed,
            checkpoint_seconds=config.checkpoint_seconds, last_of_equals=True,
        ),
        folder=config.out,
        metadata={"config": plain(config)},
        resume=config.resume,
    )  # fmt: skip
    predictions, accuracy = predict(data.test)
    mean, std = data.normalize()
    summary = {
        "test": accuracy,
        "val": progress.best_score,
        "metric": "accuracy",
        **_sizes(model),
        **progress.times(),
        "seconds": time.perf_counter() - begin,
        "peak_memory_mb": peak_memory_mb(),
        # What the network was trained with, and wants: (image / 255 - mean) / std.
        "mean": mean.tolist(),
        "std": std.tolist(),
        "config": plain(config),
    }
    if config.out is not None:
        write_run(config.out, summary, model, progress, predictions.numpy(), config.title)
    return CNNResult(summary, predictions, model, progress)


def build_model(config: CNNConfig, data: ImageData) -> ResNet:
    """The network that a configuration asks for, for some images.

    Args:
        config: Which network.
        data: The images.

    Raises:
        ValueError: If no convolution can be compressed so far.
    """
    options: dict[str, Any] = {
        name: getattr(config, name) for name in ("rank", "compression", "format", "norm", "recompute")
    }
    if config.width is not None:
        options["width"] = config.width
    with drawn_from(config.seed):
        return make_resnet(config.model, data.num_classes, data.channels, **options)


def make_optimizer(config: CNNConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a configuration asks for; neither biases nor normalisation decay.

    Args:
        config: Which optimizer.
        model: What it trains.
    """
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others}]
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, config.lr, fused=True)
    return torch.optim.SGD(groups, config.lr, config.momentum, fused=True)


def _scores(config: CNNConfig, model: nn.Module, images: Tensor) -> Tensor:
    """Class scores in the precision of the run, and then in float32."""  # (num_images, num_classes)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        return model(images).float()


def _sizes(model: nn.Module) -> dict[str, Any]:
    """What the network takes, and how much smaller that is than dense, of all weights of convolutions and of all."""
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d | TTConv2d)]
    params = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(part.numel() for conv in convs for name, part in conv.named_parameters() if name != "bias")
    dense = sum(conv.weight.numel() for conv in convs)
    return {
        "params": params,
        "conv_params": stored,
        "compression": dense / stored,
        "model_compression": (params - stored + dense) / params,
    }
