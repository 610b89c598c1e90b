"""Images: every layout read back as it was written, and one clear sentence for everything that can be wrong."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ttgraph.data import DataError, ImageData, load_images
from ttgraph.data.image_files import _CIFAR

RNG = np.random.default_rng(0)


def refused(match, data, **options):
    with pytest.raises(DataError, match=match):
        load_images(data, **options)


def part(data: ImageData, *names):
    """Images and labels of some parts, in the order of the source."""
    indices = torch.cat([getattr(data, name) for name in names]).sort().values
    return data.images[indices].numpy(), data.labels[indices].tolist()


def same(left: ImageData, right: ImageData) -> bool:
    return all(torch.equal(getattr(left, part), getattr(right, part)) for part in ("train", "val", "test"))


# --- scikit-learn's digits ---


def test_digits():
    from sklearn.datasets import load_digits

    digits, data = load_digits(), load_images("digits")
    assert (data.name, data.num_classes, data.channels, data.size) == ("digits", 10, 1, (8, 8))
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == data.train.dtype == data.val.dtype == data.test.dtype == torch.int64
    np.testing.assert_array_equal(data.labels, digits.target)
    np.testing.assert_allclose(data.images[:, 0], digits.images * 255 / 16, atol=0.5)
    assert data.images.max() == 255
    assert (len(data.train), len(data.val), len(data.test)) == (1295, 143, 359)
    assert same(data, load_images("digits", seed=0))
    assert not same(data, load_images("digits", seed=1))


# --- idx files ---

IDX = {
    "train-images-idx3-ubyte": RNG.integers(0, 256, (40, 5, 4), dtype=np.uint8),
    "train-labels-idx1-ubyte": np.tile(np.arange(4, dtype=np.uint8), 10),
    "t10k-images-idx3-ubyte": RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": np.array([3, 2, 1, 0, 0, 0], dtype=np.uint8),
}


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, **changes):
    """The files, with the contents of some changed (their names with "_" for "-"), or left out where that is None."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in IDX.items():
        data = changes.pop(name.split("-idx")[0].replace("-", "_"), array)
        if data is not None:
            (folder / name).write_bytes(data if isinstance(data, bytes) else idx_bytes(data))
    assert not changes
    return folder


def as_they_are(path):
    pass


def compressed(path):
    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def dotted(path):
    path.rename(path.with_name(path.name.replace("-idx", ".idx")))


@pytest.mark.parametrize("below", ["", "raw"])
@pytest.mark.parametrize("change", [as_they_are, compressed, dotted])
def test_idx_round_trip(tmp_path, below, change):
    folder = write_idx(tmp_path / "small-mnist" / below)
    for path in list(folder.iterdir()):
        change(path)
    data = load_images(tmp_path / "small-mnist")
    assert (data.name, data.class_names) == ("small-mnist", ("0", "1", "2", "3"))
    assert (data.channels, data.size) == (1, (5, 4))
    images, labels = part(data, "train", "val")
    np.testing.assert_array_equal(images[:, 0], IDX["train-images-idx3-ubyte"])
    assert labels == IDX["train-labels-idx1-ubyte"].tolist()
    images, labels = part(data, "test")
    np.testing.assert_array_equal(images[:, 0], IDX["t10k-images-idx3-ubyte"])
    assert labels == [3, 2, 1, 0, 0, 0]


def test_idx_of_colour_images(tmp_path):
    arrays = {name: RNG.integers(0, 256, (count, 5, 4, 3), dtype=np.uint8) for name, count in (("train", 40), ("t", 6))}
    write_idx(tmp_path, train_images=None, t10k_images=None)
    for name, stem in (("train", "train"), ("t", "t10k")):
        (tmp_path / f"{stem}-images-idx4-ubyte").write_bytes(idx_bytes(arrays[name]))
    data = load_images(str(tmp_path))
    assert (data.channels, data.size) == (3, (5, 4))
    assert data.images.is_contiguous()
    np.testing.assert_array_equal(part(data, "train", "val")[0].transpose(0, 2, 3, 1), arrays["train"])
    np.testing.assert_array_equal(part(data, "test")[0].transpose(0, 2, 3, 1), arrays["t"])


IMAGES, LABELS = IDX["train-images-idx3-ubyte"], IDX["train-labels-idx1-ubyte"]
BAD_IDX = {
    "train-labels-idx1-ubyte: .* begins with 00 00 08 01, got 00 00 08 03;": {"train_labels": IMAGES},
    "train-images-idx3-ubyte: .* 00 00 08 03 or 00 00 08 04, got 00 00 0d 03;": {
        "train_images": b"\0\0\x0d\3" + idx_bytes(IMAGES)[4:]
    },
    "train-images-idx3-ubyte: an idx file .*, got ;": {"train_images": b""},
    r"train-images-idx3-ubyte: .* shape \[40, 5, 4\] it has 816 bytes, got 815;": {
        "train_images": idx_bytes(IMAGES)[:-1]
    },
    r"train-labels-idx1-ubyte: .* shape \[40\] it has 48 bytes, got 49;": {"train_labels": idx_bytes(LABELS) + b"\0"},
    r"t10k-labels-idx1-ubyte: .* it has 8 bytes, got 5;": {"t10k_labels": b"\0\0\x08\1\0"},
    "train-images-idx3-ubyte: has 39 images, train-labels-idx1-ubyte 40 labels;": {"train_images": IMAGES[:39]},
    "t10k-labels-idx1-ubyte: label 4 of image 2 is out of range, 0 to 3;": {
        "t10k_labels": np.array([0, 1, 4, 0, 5, 0], dtype=np.uint8)
    },
    "has no file t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz;": {"t10k_images": None},
    "has no file train-labels-idx1-ubyte or": {"train_labels": None},
    r"all images must have one \(channels, height, width\), got .*\(1, 5, 4\).*\(1, 4, 5\)": {
        "t10k_images": IDX["t10k-images-idx3-ubyte"].reshape(6, 4, 5)
    },
    "has no train images;": {"train_images": IMAGES[:0], "train_labels": LABELS[:0], "t10k_labels": LABELS[:6] * 0},
    "has no test images;": {"t10k_images": IMAGES[:0], "t10k_labels": LABELS[:0]},
    "all training images are of one class, 0;": {"train_labels": LABELS * 0, "t10k_labels": LABELS[:6] * 0},
}


@pytest.mark.parametrize("match", BAD_IDX)
def test_bad_idx(tmp_path, match):
    folder = write_idx(tmp_path / "idx", **BAD_IDX[match])
    refused(rf"^{folder}.*{match}", folder)


@pytest.mark.parametrize("damage", ["truncated", "no gzip", "no deflate", "wrong checksum"])
def test_a_damaged_gz(tmp_path, damage):
    write_idx(tmp_path, train_images=None)
    data = bytearray(gzip.compress(idx_bytes(IMAGES)))
    if damage == "truncated":
        del data[-100:]
    else:
        data[{"no gzip": 0, "no deflate": 10, "wrong checksum": -5}[damage]] ^= 6
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(data)
    refused(r"train-images-idx3-ubyte.gz: cannot be read \(.+\); copy", tmp_path)


# --- CIFAR ---

LAYOUTS = {layout.folder: layout for layout in _CIFAR}
PYTHON = [name for name, layout in LAYOUTS.items() if layout.key]
BINARY = [name for name, layout in LAYOUTS.items() if layout.label_bytes]
NAMES = ["apple", "bear", "cat"]


def pickle_3(value):
    return pickle.dumps(value, protocol=2)


def pickle_2(value) -> bytes:
    """As Python 2's cPickle wrote CIFAR: texts and buffers are byte strings, flags integers, numpy's old names."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def write(value) -> bytes:
        if isinstance(value, dict):
            return b"}(" + b"".join(write(key) + write(item) for key, item in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(write, value)) + b"e"
        if isinstance(value, np.ndarray):
            empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
            dtype = b"cnumpy\ndtype\nU\2u1K\0K\1\x87R(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
            shape = b"".join(map(write, value.shape)) + b"\x86"
            return empty + b"(K\1" + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"
        return b"J" + struct.pack("<i", value) if isinstance(value, int) else text(value.encode("latin-1"))

    return b"\x80\2" + write(value) + b"."


def write_cifar(folder, name, dump=pickle_2):
    """Four images a file: returns all of them, training first, and their labels."""
    layout = LAYOUTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    files = (*layout.train, layout.test)
    images = RNG.integers(0, 256, (4 * len(files), 3, 32, 32), dtype=np.uint8)
    labels = [place % 3 for place in range(len(images))]
    for place, file in enumerate(files):
        these = slice(4 * place, 4 * place + 4)
        rows = images[these].reshape(4, -1)
        if layout.key:
            coarse = {"coarse_labels": [7] * 4} if name.startswith("cifar-100") else {}
            batch = {"data": rows, f"{layout.key}s": labels[these], "batch_label": f"{place}", **coarse}
            (folder / file).write_bytes(dump(batch))
        else:
            before = np.full((4, layout.label_bytes), 7, dtype=np.uint8)
            before[:, -1] = labels[these]
            (folder / file).write_bytes(np.hstack([before, rows]).tobytes())
    names = dump({f"{layout.key}_names": NAMES}) if layout.key else "\n".join([*NAMES, "", ""]).encode()
    (folder / layout.names).write_bytes(names)
    return images, labels


@pytest.mark.parametrize(
    ("name", "dump"), [*((n, d) for n in PYTHON for d in (pickle_2, pickle_3)), *((n, None) for n in BINARY)]
)
@pytest.mark.parametrize("below", [False, True])
@pytest.mark.filterwarnings("error")
def test_cifar_round_trip(tmp_path, name, dump, below):
    images, labels = write_cifar(tmp_path / "set" / (name if below else ""), name, dump)
    data = load_images(tmp_path / "set", val_share=0.2)
    assert (data.name, data.class_names, data.channels, data.size) == ("set", tuple(NAMES), 3, (32, 32))
    train, test = part(data, "train", "val"), part(data, "test")
    np.testing.assert_array_equal(train[0], images[:-4])
    np.testing.assert_array_equal(test[0], images[-4:])
    assert train[1] + test[1] == labels


BAD_PICKLE = {
    r"not a pickle of CIFAR, or a broken one \(.+\)": b"\x80\2}(U\4data",
    "must hold a dictionary, got list": pickle_2([1]),
    "needs data, uint8 .* a list fine_labels of integers .*'fine_labels'": pickle_2({}),
    "needs data.*'data'": pickle_2({"fine_labels": [0]}),
    "needs data.*no attribute": pickle_2({"data": [0], "fine_labels": [0]}),
    r"needs data.* of shape \(5, 4\) for 2 labels": pickle_2({"data": IMAGES[0], "fine_labels": [0, 1]}),
    "needs data.*is f8": pickle_3({"data": np.zeros((1, 3072)), "fine_labels": [0]}),
    "needs data.*'str' object cannot be": pickle_2({"data": IMAGES[0], "fine_labels": ["0"]}),
    "label 3 of image 1 is out of range, 0 to 2": pickle_2(
        {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 3]}
    ),
    "label -1 of image 0 is out of": pickle_2({"data": np.zeros((1, 3072), np.uint8), "fine_labels": [-1]}),
}


@pytest.mark.parametrize("match", BAD_PICKLE)
def test_a_bad_batch(tmp_path, match):
    write_cifar(tmp_path, "cifar-100-python")
    (tmp_path / "train").write_bytes(BAD_PICKLE[match])
    refused(rf"{tmp_path}/train: {match}", tmp_path)


class Malicious:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, file):
    write_cifar(tmp_path, "cifar-100-python")
    traces = [tmp_path / f"trace {number}" for number in range(3)]
    for run in (
        Malicious(os.mkdir, str(traces[0])),
        Malicious(eval, f"__import__('os').mkdir({str(traces[1])!r})"),
        Malicious(np.save, str(traces[2]), np.zeros(1)),
    ):
        (tmp_path / file).write_bytes(pickle_3({"data": run}))
        refused(rf"{tmp_path}/{file}: .*it would run \w+\.\w+, which no file of CIFAR needs", tmp_path)
    assert not any(tmp_path.glob("trace*"))
    pickle.loads((tmp_path / file).read_bytes())  # it would have left a trace
    assert any(tmp_path.glob("trace*"))


@pytest.mark.parametrize(("name", "record"), [("cifar-10-batches-bin", 3073), ("cifar-100-binary", 3074)])
def test_a_bad_binary_file(tmp_path, name, record):
    write_cifar(tmp_path, name)
    path = tmp_path / LAYOUTS[name].train[-1]
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-1])
    refused(f"{path}: must be a multiple of {record} bytes long, got {4 * record - 1};", tmp_path)
    data[2 * record + record - 3073] = 3
    path.write_bytes(data)
    refused(f"{path}: label 3 of image 2 is out of range, 0 to 2;", tmp_path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_file_of_cifar_is_named(tmp_path, name):
    layout = LAYOUTS[name]
    for file in {*layout.train[1:], layout.test, layout.names}:
        write_cifar(tmp_path, name)
        (tmp_path / file).unlink()
        refused(rf"{tmp_path}/{file}: cannot be read \(No such file", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [("cifar-100-python", pickle_2({"fine_label_names": 3}), "3"), ("cifar-100-binary", b"\n", r"\[\]")],
)
def test_cifar_needs_names_of_classes(tmp_path, name, content, found):
    write_cifar(tmp_path, name)
    path = tmp_path / LAYOUTS[name].names
    path.write_bytes(content)
    refused(f"{path}: needs the names of the classes, got {found};", tmp_path)


def test_one_data_set_at_a_time(tmp_path):
    for name in LAYOUTS:
        write_cifar(tmp_path / name, name)
    refused("holds several data sets, cifar-10-batches-py, cifar-100-python, .*; name the folder of one", tmp_path)
    assert load_images(tmp_path / "cifar-100-binary").name == "cifar-100-binary"


# --- folders of image files ---


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def write_images(folder, arrays, suffix=".png"):
    """Arrays by the path of their file, without the suffix."""
    for name, array in arrays.items():
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return folder


def two_classes(count, *shape):
    return {f"{label}/{place:03}": pixels(*shape) for label in ("cat", "dog") for place in range(count)}


def load_these(folder, arrays, **options):
    """The images of arrays, in a folder with a test part, so that two images a class will do."""
    for name in ("train", "test"):
        write_images(folder / name, arrays)
    return load_images(folder, **options).images[: len(arrays)]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".PNG", ".tiff"])
@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_image_folder_round_trip(tmp_path, suffix, val):
    parts = {"train": two_classes(3, 5, 4, 3), val: two_classes(2, 5, 4, 3), "test": {"dog/x": pixels(5, 4, 3)}}
    for name, arrays in parts.items():
        write_images(tmp_path / name, arrays, suffix)
    for stray in ("train/readme.txt", "train/cat/._001.png", "train/cat/notes.txt", "labels.csv"):
        (tmp_path / stray).write_bytes(b"no image")
    (tmp_path / "train" / ".cache").mkdir()
    data = load_images(tmp_path)
    assert (data.class_names, data.channels, data.size) == (("cat", "dog"), 3, (5, 4))
    for name, arrays in parts.items():
        images, labels = part(data, "val" if name == val else name)
        np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), np.stack(list(arrays.values())))
        assert labels == [int(name.startswith("dog")) for name in arrays]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".gif", ".webp"])
def test_lossy_formats(tmp_path, suffix):
    write_images(
        tmp_path, {f"{level}/{n}": np.full((8, 8, 3), level, np.uint8) for level in (10, 200) for n in "abc"}, suffix
    )
    data = load_images(tmp_path)
    assert (data.images - torch.tensor([10, 200])[data.labels][:, None, None, None]).abs().max() <= 3


def test_class_folders_alone_are_split_and_stay_in_order(tmp_path):
    arrays = {f"{label}/{n:02}": np.full((1, 1), 50 * label + n, np.uint8) for label in range(3) for n in range(50)}
    data = load_images(write_images(tmp_path, arrays))
    assert data.images.flatten().tolist() == list(range(150))
    assert data.labels.tolist() == [n // 50 for n in range(150)]
    for indices, count in ((data.train, 36), (data.val, 4), (data.test, 10)):
        assert data.labels[indices].bincount().tolist() == [count] * 3


def test_without_test_images_some_are_split_off(tmp_path):
    write_images(tmp_path / "train", two_classes(10, 2, 2))
    write_images(tmp_path / "val", two_classes(1, 2, 2))
    data = load_images(tmp_path)
    assert [len(indices) for indices in (data.train, data.val, data.test)] == [16, 2, 4]
    assert data.val.tolist() == [20, 21]


def test_grey_images_stay_grey(tmp_path):
    deep = np.arange(4, dtype=np.uint16).reshape(2, 2) * 0x4001
    arrays = {"a/1": pixels(2, 2), "a/2": np.eye(2) > 0, "b/1": deep, "b/2": pixels(2, 2, 2)}  # L, 1, I;16 and LA
    images = load_these(tmp_path, arrays)
    expected = np.stack([arrays["a/1"], arrays["a/2"] * 255, deep >> 8, arrays["b/2"][..., 0]])
    np.testing.assert_array_equal(images[:, 0], expected)


def test_one_image_in_colour_makes_all_rgb(tmp_path):
    deep = np.arange(4, dtype=np.uint16).reshape(2, 2) * 0x4001
    arrays = {"a/1": pixels(2, 2), "a/2": deep, "b/1": pixels(2, 2, 4), "b/2": pixels(2, 2, 3)}
    images = load_these(tmp_path, arrays)
    grey = [np.stack([array] * 3, axis=2) for array in (arrays["a/1"], deep >> 8)]
    expected = np.stack([*grey, arrays["b/1"][..., :3], arrays["b/2"]])
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1), expected)


def test_images_of_several_sizes_need_size(tmp_path):
    arrays = {"a/1": pixels(4, 6), "a/2": pixels(4, 6), "b/1": pixels(6, 4), "b/2": pixels(8, 8)}
    assert load_these(tmp_path, arrays, size=3).shape == (4, 1, 3, 3)
    train = tmp_path / "train"
    odd = f"{train}/b/1.png: is 4 x 6 pixels, {train}/a/1.png 6 x 4; pass --size to bring all to one size"
    refused(odd, tmp_path)


def test_size_crops_the_centre_and_smooths(tmp_path):
    wide = np.zeros((8, 24), dtype=np.uint8)
    wide[:, 8:16] = 200
    checkerboard = np.indices((8, 8)).sum(0).astype(np.uint8) % 2 * 200
    arrays = {"a/1": wide, "a/2": wide.T, "b/1": checkerboard}
    assert (load_these(tmp_path, arrays, size=8)[:2] == 200).all()
    small = load_these(tmp_path, arrays, size=2)[2]
    assert ((small > 80) & (small < 120)).all()  # neither black nor white


def test_size_does_the_same_in_every_layout(tmp_path):
    images, _ = write_cifar(tmp_path / "cifar", "cifar-100-binary")
    for label, image in enumerate(images):
        write_images(tmp_path / "files", {f"{label % 2}/{label // 2}": image.transpose(1, 2, 0)})
    for size in (20, 45):
        resized = load_images(tmp_path / "cifar", size=size).images
        files = load_images(tmp_path / "files", size=size).images
        assert torch.equal(files, torch.cat([resized[::2], resized[1::2]]))
    assert torch.equal(load_images(tmp_path / "cifar", size=32).images, torch.from_numpy(images))


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("keep", [0, 20, 100])
def test_a_corrupt_image_is_named(tmp_path, size, keep):
    write_images(tmp_path, two_classes(4, 9, 9, 3))
    path = tmp_path / "dog" / "002.png"
    path.write_bytes(path.read_bytes()[:keep])
    refused(rf"{path}: .*broken.*\(.+\); mend or remove it", tmp_path, size=size)


@pytest.mark.parametrize("suffix", [".tiff", ".pgm"])
def test_pixels_of_32_bits_are_refused(tmp_path, suffix):
    write_images(tmp_path, two_classes(2, 2, 2))
    write_images(tmp_path, {"cat/900": np.ones((2, 2), dtype=np.int32)}, suffix)
    refused(f"{tmp_path}/cat/900{suffix}: has pixels of 32 bits", tmp_path)


def test_classes_must_fit(tmp_path):
    write_images(tmp_path / "train", two_classes(3, 2, 2))
    write_images(tmp_path / "val", {"cow/1": pixels(2, 2)})
    refused(f"{tmp_path}/val/cow: a class that {tmp_path}/train does not have", tmp_path)
    shutil.rmtree(tmp_path / "val" / "cow")
    refused(f"{tmp_path}/val: holds no folders of images", tmp_path)
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "train" / "cow").mkdir()
    refused(f"{tmp_path}/train/cow: holds no images", tmp_path)
    for name in ("cow", "cat", "dog"):
        shutil.rmtree(tmp_path / "train" / name)
    refused(f"{tmp_path}/train: holds no folders of images", tmp_path)
    write_images(tmp_path / "train", {"cat/1": pixels(2, 2), "cat/2": pixels(2, 2)})
    refused("all training images are of one class, cat;", tmp_path)


def test_what_is_no_data(tmp_path):
    refused(rf"{tmp_path}/nothing: no such folder \(looked in {tmp_path}\); .* or \"digits\"", tmp_path / "nothing")
    (tmp_path / "cifar.tar.gz").write_bytes(b"")
    refused("cifar.tar.gz: a file; unpack it;", tmp_path / "cifar.tar.gz")
    refused("looked for idx files .*; it holds cifar.tar.gz$", tmp_path)
    (tmp_path / "empty").mkdir()
    refused("it holds nothing$", tmp_path / "empty")
    for number in range(11):
        (tmp_path / "empty" / f"{number:02}.png").write_bytes(b"")
    refused(r"it holds 00.png, .*, 09.png, \.\.\.$", tmp_path / "empty")


# --- splits ---


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    val_share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
    has_test=st.booleans(),
)
def test_what_is_split_off(counts, val_share, seed, has_test):
    rest = [count - (0 if has_test else max(1, round(0.2 * count)) if count > 1 else 0) for count in counts]
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{label}/{n}" for label, count in enumerate(counts) for n in range(count)]
        write_images(Path(folder) / "train", dict.fromkeys(names, np.zeros((1, 1), np.uint8)), ".bmp")
        if has_test:
            write_images(Path(folder) / "test", {"1/1": np.zeros((1, 1), np.uint8)}, ".bmp")
        if max(rest) < 2:
            refused("no class has a training image to spare for (the test|validation); add some", folder)
            return
        data, again = (load_images(folder, val_share=val_share, seed=seed) for _ in range(2))
    assert same(data, again)
    parts = [data.train, data.val, data.test]
    assert sorted(torch.cat(parts).tolist()) == list(range(len(data.images)))  # disjoint, and all there is
    assert all(indices.equal(indices.sort().values) for indices in parts)
    for label, count in enumerate(rest):
        train, val, test = (int((data.labels[indices] == label).sum()) for indices in parts)
        assert train + val == count
        assert train >= 1
        assert test == (int(label == 1) if has_test else counts[label] - count)
        assert val == min(max(1, round(val_share * count)), count - 1)


def test_the_seed_draws_the_validation_images(tmp_path):
    write_idx(tmp_path)
    first, second = (load_images(tmp_path, seed=seed) for seed in (1, 2))
    assert not torch.equal(first.val, second.val)
    assert torch.equal(first.test, second.test)
    assert torch.equal(first.images, second.images)
    assert len(load_images(tmp_path, val_share=0.5).val) == 20


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_val_share_out_of_range(share):
    with pytest.raises(ValueError, match=f"val_share must be above 0 and below 1, got {share}"):
        load_images("digits", val_share=share)


@pytest.mark.parametrize("size", [0, -3])
def test_size_out_of_range(size):
    with pytest.raises(ValueError, match=f"size must be positive, got {size}"):
        load_images("digits", size=size)


# --- mean and standard deviation ---


@pytest.mark.parametrize("count", [2, 700])  # more than a chunk
def test_normalize_sees_the_training_images_alone(count):
    images = torch.from_numpy(pixels(count + 5, 3, 4, 6))
    images[:, 1] //= 9
    images[count:] = 255
    train = torch.arange(count)
    data = ImageData("", images, torch.zeros(count + 5), ("a",), train, train + 5, train + 5)
    mean, std = data.normalize()
    scaled = images[:count].numpy() / 255.0
    assert mean.dtype == std.dtype == torch.float32
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, scaled.std((0, 2, 3)), rtol=1e-6)


def test_normalize_has_no_std_of_zero():
    images = torch.full((4, 1, 2, 2), 51, dtype=torch.uint8)
    data = ImageData("", images, torch.zeros(4), ("a",), torch.arange(2), torch.arange(1), torch.arange(1))
    mean, std = data.normalize()
    assert (mean.item(), std.item()) == (pytest.approx(0.2), pytest.approx(1 / 255))
