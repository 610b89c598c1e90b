"""Images: runs that learn, stop and go on, and the command that starts them."""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ttgraph.cli import main
from ttgraph.cnn import CNNConfig, train_cnn
from ttgraph.cnn.batches import ImageBatches, shifted
from ttgraph.cnn.job import build_model, make_optimizer
from ttgraph.data import ImageData, load_images
from ttgraph.train import CheckpointError, DivergedError, Interrupted

DIGITS = CNNConfig("digits", epochs=3, threads=1)
# On images of the fixture, ``images``.
SMALL = CNNConfig("images", width=8, epochs=4, batch_size=32, lr=0.05, threads=1)
SMALL_TT = replace(SMALL, compression=3)


def drawn(num_images=150, channels=1, size=8, num_classes=3, seed=0) -> ImageData:
    """Images of noise, with a bright row where their class says."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(80, (num_images, channels, size, size), generator=generator)
    labels = torch.arange(num_images) % num_classes
    images[torch.arange(num_images), :, labels * size // num_classes + 1] += 175
    train, val, test = torch.arange(num_images).split([num_images * 3 // 5, num_images // 5, num_images // 5])
    return ImageData("drawn", images.byte(), labels, tuple("abcdefgh"[:num_classes]), train, val, test)


@pytest.fixture(scope="module")
def images() -> ImageData:
    return drawn()


def write_idx(folder: Path, data: ImageData) -> None:
    """The images in the layout of MNIST, those for validation among the training ones."""
    folder.mkdir(exist_ok=True)
    for stem, indices in (("train", torch.cat([data.train, data.val])), ("t10k", data.test)):
        arrays = {"images-idx3": data.images[indices, 0].numpy(), "labels-idx1": data.labels[indices].byte().numpy()}
        for kind, array in arrays.items():
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{stem}-{kind}-ubyte").write_bytes(header + array.tobytes())


@pytest.fixture
def here(tmp_path, monkeypatch, images):
    """An empty working directory with images in it."""
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "images", images)
    return tmp_path


def weights(result):
    return {name: value.clone() for name, value in result.model.state_dict().items()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run(*words: str) -> int:
    """The exit code of a command."""
    try:
        return main(["cnn", *words])
    except SystemExit as stop:
        return int(stop.code or 0)


# --- batches ---


@pytest.mark.parametrize("batch_size", [1, 7, 32, 90, 1000])
def test_an_epoch_has_every_training_image_once_in_batches_of_about_a_size(images, batch_size):
    batches = ImageBatches(images, batch_size, "none", seed=0)
    seen = list(batches.epoch(3))
    sizes = [len(labels) for _, labels in seen]
    assert len(seen) == len(batches) == -(-90 // batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    mean, std = (part.view(-1, 1, 1) for part in images.normalize())
    wanted = (images.images[images.train] / 255 - mean) / std
    got, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    order = torch.cdist(got.flatten(1), wanted.flatten(1)).argmin(1)
    assert sorted(order.tolist()) == list(range(90))
    torch.testing.assert_close(got, wanted[order])
    assert torch.equal(labels, images.labels[images.train][order])


def test_batches_depend_on_seed_and_epoch_alone():
    data = drawn(channels=3)

    def epoch(number, seed=0):
        return torch.cat([images for images, _ in ImageBatches(data, 32, "shift+flip", seed).epoch(number)])

    batches = ImageBatches(data, 32, "shift+flip", 0)
    first, second, again = (torch.cat([images for images, _ in batches.epoch(number)]) for number in (0, 1, 0))
    assert torch.equal(first, again)
    assert torch.equal(first, epoch(0))
    assert torch.equal(second, epoch(1))
    assert not torch.equal(first, second)
    assert not torch.equal(first, epoch(0, seed=1))


def test_images_are_normalised_and_in_channels_last():
    data = drawn(channels=3)
    for augment in ("none", "shift"):
        for images, _ in ImageBatches(data, 40, augment, 0).epoch(0):
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert images.dtype == torch.float32
    every = torch.cat(list(ImageBatches(data, 40, "shift+flip", 0).unchanged(data.train)))
    torch.testing.assert_close(every.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(every.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def changes(images, flip):
    """For each image how far it was moved down and to the right, and whether it was mirrored."""
    height, width = images.shape[2:]
    above, beside = height // 8, width // 8
    padded = F.pad(images, (beside, beside, above, above))
    results = shifted(images, flip, torch.Generator().manual_seed(0))
    found = {}
    for y, x, mirrored in itertools.product(range(2 * above + 1), range(2 * beside + 1), (False, True)):
        window = padded[:, :, y : y + height, x : x + width]
        equal = ((window.flip(3) if mirrored else window) == results).flatten(1).all(1)
        for place in equal.nonzero().flatten().tolist():
            assert place not in found
            found[place] = (above - y, beside - x, mirrored)
    assert len(found) == len(images)
    return list(found.values())


def test_images_are_moved_by_up_to_an_eighth_and_mirrored():
    images = torch.randint(1, 256, (600, 2, 16, 9), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert set(changes(images, False)) == {(y, x, False) for y in range(-2, 3) for x in (-1, 0, 1)}
    moves = changes(images, True)
    assert set(moves) == {(y, x, flip) for y in range(-2, 3) for x in (-1, 0, 1) for flip in (False, True)}
    assert 0.4 < sum(flip for *_, flip in moves) / len(moves) < 0.6
    small = images[:, :, :7, :7]
    assert torch.equal(shifted(small, False, torch.Generator()), small)


def test_auto_mirrors_colour_images_alone():
    for channels, augment in ((1, "shift"), (3, "shift+flip")):
        data = drawn(channels=channels)
        auto, wanted = (next(ImageBatches(data, 32, name, 0).epoch(0))[0] for name in ("auto", augment))
        assert torch.equal(auto, wanted)


# --- a run ---


@pytest.mark.parametrize("options", [{}, {"compression": 4.0}, {"compression": 8.0, "format": "ttm"}], ids=str)
def test_digits_are_learnt(device, options):
    summary = train_cnn(replace(DIGITS, device=device, **options)).summary
    assert summary["val"] > 0.5
    assert summary["test"] > 0.5
    assert summary["compression"] >= options.get("compression", 1)


def test_summary_says_everything(images, tmp_path):
    config = replace(SMALL_TT, out=tmp_path / "run")
    result = train_cnn(config, images)
    summary = json.loads((config.out / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    files = {"checkpoint.safetensors", "curves.png", "metrics.jsonl", "model.safetensors"}
    assert {path.name for path in config.out.iterdir()} == files | {"predictions.npy", "summary.json"}
    assert set(summary["config"]) == {field.name for field in fields(CNNConfig)}
    dense = train_cnn(replace(SMALL, epochs=1), images).summary
    assert (dense["compression"], dense["model_compression"]) == (1, 1)
    assert summary["params"] == sum(parameter.numel() for parameter in result.model.parameters())
    assert summary["params"] - summary["conv_params"] == dense["params"] - dense["conv_params"]
    assert summary["compression"] == pytest.approx(dense["conv_params"] / summary["conv_params"])
    assert summary["model_compression"] == pytest.approx(dense["params"] / summary["params"])
    biased = train_cnn(replace(SMALL, epochs=1, norm=False), images).summary
    assert biased["conv_params"] == dense["conv_params"]
    for key in ("seconds", "seconds_per_epoch", "seconds_per_step", "peak_memory_mb", "best_epoch"):
        assert summary[key] > 0
    predicted = np.load(config.out / "predictions.npy")
    assert summary["metric"] == "accuracy"
    assert summary["test"] == (predicted == images.labels[images.test].numpy()).mean() > 0.5
    rows = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert summary["epochs"] == 4
    assert max(row["val"] for row in rows) == summary["val"]
    # The network and what the summary says of its input are all that is needed to use it.
    mean, std = (torch.tensor(summary[key]).view(-1, 1, 1) for key in ("mean", "std"))
    scores = result.model.eval()((images.images[images.test] / 255 - mean) / std)
    assert np.array_equal(scores.argmax(1), predicted)


def test_test_images_choose_nothing_and_are_looked_at_once(images, monkeypatch):
    asked, real = [], ImageBatches.unchanged
    monkeypatch.setattr(ImageBatches, "unchanged", lambda self, indices: asked.append(indices) or real(self, indices))
    first = train_cnn(SMALL_TT, images)
    assert [indices is images.test for indices in asked] == [False] * 4 + [True]
    assert all(indices is images.val for indices in asked[:-1])
    labels, pixels = images.labels.clone(), images.images.clone()
    labels[images.test] = labels[images.test].flip(0)
    second = train_cnn(SMALL_TT, replace(images, labels=labels))
    assert torch.equal(first.predictions, second.predictions)
    assert first.summary["test"] != second.summary["test"]
    pixels[images.test] = 0
    assert same(weights(first), weights(train_cnn(SMALL_TT, replace(images, images=pixels))))


def test_same_seed_same_result(images):
    first, second = (weights(train_cnn(SMALL_TT, images)) for _ in range(2))
    assert same(first, second)
    assert not same(first, weights(train_cnn(replace(SMALL_TT, seed=1), images)))


def test_no_gpu_is_seeded(images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)
    before = torch.get_rng_state()
    train_cnn(replace(SMALL, epochs=1), images)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_split_is_the_same_for_all_seeds(monkeypatch):
    asked = []
    monkeypatch.setattr("ttgraph.cnn.job.load_images", lambda data, **options: asked.append(options) or drawn())
    train_cnn(replace(SMALL, epochs=1, seed=5, size=12, val_share=0.2))
    assert asked == [{"size": 12, "val_share": 0.2, "seed": 0}]


def test_bfloat16(images):
    config = replace(SMALL_TT, precision="bfloat16")
    result, exact = train_cnn(config, images), train_cnn(SMALL_TT, images)
    assert result.summary["val"] > 0.5
    assert not same(weights(result), weights(exact))
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}
    recomputed = train_cnn(replace(config, recompute=True), images)
    assert recomputed.summary["val"] == result.summary["val"]


@pytest.mark.parametrize(
    "changes",
    [dict(optimizer="adam", lr=0.003), dict(norm=False, lr=0.01, rank=4), dict(label_smoothing=0.1), dict(momentum=0)],
    ids=str,
)
def test_other_ways_to_train(device, images, changes):
    result = train_cnn(replace(SMALL, epochs=12, device=device, **changes), images)
    assert result.summary["val"] > 0.5


def test_every_setting_has_an_effect(images):
    config = replace(SMALL, epochs=1)
    plain = weights(train_cnn(config, images))
    for changes in (
        dict(lr=0.1), dict(momentum=0.5), dict(weight_decay=0.1), dict(warmup=0.5), dict(label_smoothing=0.1),
        dict(augment="none"), dict(batch_size=20), dict(epochs=2),
    ):  # fmt: skip
        assert not same(plain, weights(train_cnn(replace(config, **changes), images))), changes


def test_colour_images_and_large_networks():
    data = drawn(channels=3, num_images=65)
    # The last stages have one pixel, of which normalisation needs two images: 39 = 13 + 13 + 13, not 19 + 19 + 1.
    config = CNNConfig("drawn", model="resnet18", width=8, batch_size=19, epochs=1, rank=2, threads=1)
    assert train_cnn(config, data).summary["compression"] > 2


def test_patience(images):
    config = replace(SMALL, lr=1e-9, norm=False, epochs=9)
    assert train_cnn(replace(config, patience=2), images).summary["epochs"] == 3
    assert train_cnn(config, images).summary["epochs"] == 9


def test_weights_decay_and_nothing_else(images):
    for config in (SMALL_TT, replace(SMALL_TT, norm=False, optimizer="adam")):
        model = build_model(config, images)
        decaying, others = make_optimizer(config, model).param_groups
        assert (decaying["weight_decay"], others["weight_decay"]) == (5e-4, 0)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        left = {names.pop(id(parameter)) for parameter in others["params"]}
        assert all(name.endswith("bias") or "bn" in name for name in left)
        assert {names.pop(id(parameter)) for parameter in decaying["params"]} >= {"conv1.weight", "fc.weight"}
        assert names == {}


# --- runs that are cut short ---


@pytest.mark.parametrize(
    "config",
    [SMALL, SMALL_TT, replace(SMALL_TT, optimizer="adam", lr=0.003), replace(SMALL_TT, precision="bfloat16"),
     replace(SMALL, momentum=0)],
    ids=["dense", "tt", "adam", "bfloat16", "no momentum"],
)  # fmt: skip
def test_resumed_run_equals_an_uninterrupted_one(images, tmp_path, dies_in_epoch, config):
    config = replace(config, checkpoint_seconds=0)
    whole = train_cnn(replace(config, out=tmp_path / "whole"), images)
    calls = dies_in_epoch(3)
    with pytest.raises(KeyboardInterrupt):
        train_cnn(replace(config, out=tmp_path / "cut"), images)
    resumed = train_cnn(replace(config, out=tmp_path / "cut", resume=True), images)
    assert len(calls) == 3 + 2
    assert same(weights(whole), weights(resumed))
    for key in ("test", "val", "best_epoch", "epochs"):
        assert whole.summary[key] == resumed.summary[key]
    assert torch.equal(whole.predictions, resumed.predictions)


@pytest.mark.usefixtures("interrupted")
def test_first_interrupt_finishes_the_epoch_and_saves(images, tmp_path):
    with pytest.raises(Interrupted, match="after epoch 1; the checkpoint is in"):
        train_cnn(replace(SMALL, out=tmp_path), images)
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_earlier_results_are_never_overwritten(images, tmp_path):
    config = replace(SMALL, epochs=1, out=tmp_path)
    train_cnn(config, images)
    before = (tmp_path / "summary.json").read_bytes()
    with pytest.raises(CheckpointError, match="pass --resume"):
        train_cnn(config, images)
    with pytest.raises(CheckpointError, match="compression=None there and 3.0 here"):
        train_cnn(replace(config, compression=3.0, resume=True), images)
    with pytest.raises(CheckpointError, match=r"another shape than this model .*fc.*; train with its settings"):
        train_cnn(replace(config, resume=True), drawn(num_classes=4))  # the folder has other images now
    assert (tmp_path / "summary.json").read_bytes() == before


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(epochs=0), "epochs must be at least 1"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(width=0), "width must be at least 1"),
        (dict(patience=0), "patience must be at least 1"),
        (dict(weight_decay=-1.0), "weight_decay must be at least 0"),
        (dict(split_seed=-1), "split_seed must be at least 0"),
        (dict(lr=0.0), "lr must be above 0"),
        (dict(momentum=1.0), r"momentum must be in \[0, 1\)"),
        (dict(warmup=-0.1), r"warmup must be in \[0, 1\)"),
        (dict(label_smoothing=1.0), r"label_smoothing must be in \[0, 1\)"),
        (dict(seed=-1), "seed must be from 0"),
        (dict(rank=0), "rank must be at least 1"),
        (dict(compression=0.0), "compression must be at least 1"),
        (dict(rank=2, compression=3.0), "a rank or a compression"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_a_loss_that_is_not_a_number_is_told(images):
    with pytest.raises(DivergedError, match="smaller learning rates"):
        train_cnn(replace(SMALL, norm=False, lr=1e30), images)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "Expected one of {train}"),
        ("train nope", "nope: no such folder"),
        ("train empty", "empty: holds no images in a known layout"),
        ("train images --comprssion 3", "Unrecognized options: --comprssion"),
        ("train images --model vgg", "invalid choice 'vgg'"),
        ("train images --augment mirror", "invalid choice 'mirror'"),
        ("train images --compression 1e9", "no convolution is smaller as a tensor train with compression=1e+09"),
        ("train images --rank 2 --compression 3", "a rank or a compression, got rank=2 and compression=3"),
        ("train images --size 0", "size must be positive, got 0"),
        ("train images --val-share 1", "val_share must be above 0 and below 1"),
        ("train images --device tpu9", "device 'tpu9' is not usable here"),
        ("train images --resume", "there is no checkpoint"),
        ("train images --config run.toml", "the config file sets 'rnak', which this command does not have"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_exit_code_2(here, capsys, words, message):
    Path("empty").mkdir()
    Path("run.toml").write_text("rnak = 3\n")
    assert run(*words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert message in " ".join(err.replace("│", " ").split())
    assert not Path("runs").exists()


# --- the command ---


def test_train_command(here, capsys):
    Path("run.toml").write_text('width = 8\nbatch-size = 32\nlr = 0.05\nformat = "ttm"\n')
    words = ("train", "images", "--config", "run.toml", "--compression", "3", "--epochs", "4", "--threads", "1")
    assert run(*words) == 0
    out, folder = capsys.readouterr().out, Path("runs/images-resnet20-tt")
    for key in ("test", "val", "accuracy", "conv_params", "compression", "model_compression", "seconds_per_step"):
        assert key in out
    assert str(folder) in out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test"] > 0.5
    assert len(np.load(folder / "predictions.npy")) == 30
    config = summary["config"]
    assert (config["width"], config["compression"], config["format"], config["data"]) == (8, 3, "ttm", "images")
    data = load_images("images")
    assert len(data.train) + len(data.val) == 120
    assert run(*words, "--resume") == 0
    assert not folder.with_name(folder.name + "-2").exists()
    assert run("train", "images", "--width", "8", "--epochs", "1", "--threads", "1") == 0
    assert Path("runs/images-resnet20-dense/summary.json").exists()


def test_of_equal_scores_the_last_is_kept(images):
    result = train_cnn(replace(SMALL, epochs=3, lr=1e-9, weight_decay=0.0, norm=False), images)
    scores = [row["val"] for row in result.progress.history]
    assert len(set(scores)) == 1, "too small a learning rate to change a prediction"
    assert result.summary["best_epoch"] == 3
