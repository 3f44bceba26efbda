"""MNIST and CIFAR-10 as tensors, from the formats they are handed out in. Fetches nothing.

Shapes: images (n, channels, height, width) float32 in [0, 1], labels (n,) int64.
"""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MNIST_FROM = "https://yann.lecun.com/exdb/mnist/, or a copy of it: https://ossci-datasets.s3.amazonaws.com/mnist/"
CIFAR_FROM = "https://www.cs.toronto.edu/~kriz/cifar.html"
IDX_NAMES = {"training": ("train-images", "train-labels"), "test": ("t10k-images", "t10k-labels")}
IDX_UBYTE = 0x08
"""The type code of unsigned bytes, the only one MNIST uses."""
CIFAR_SHAPE = (3, 32, 32)
MOSAIC = (25, 40)
"""Rows and columns of images in one mosaic."""


class Labelled(NamedTuple):
    """Inputs (n, ...) float32 and their labels (n,) int64."""

    inputs: Tensor
    labels: Tensor


def read_mnist(folder: Path) -> tuple[Labelled, Labelled]:
    """The 60,000 training digits and the 10,000 test digits, (n, 1, 28, 28).

    Args:
        folder: holds the four idx files, gzipped or not, or `train.npz` and `test.npz` with arrays `x` and `y`.

    Raises:
        FileNotFoundError: neither is there; says where the idx files are to be had.
        ValueError: a file is no idx file of unsigned bytes, or is cut short.
    """
    if (folder / "train.npz").exists():
        return _numpy_digits(folder / "train.npz"), _numpy_digits(folder / "test.npz")
    return _idx_digits(folder, "training"), _idx_digits(folder, "test")


def _numpy_digits(path: Path) -> Labelled:
    with np.load(path) as arrays:
        return labelled(arrays["x"][:, None], arrays["y"])


def _idx_digits(folder: Path, part: str) -> Labelled:
    images, labels = (read_idx(_idx_file(folder, stem)) for stem in IDX_NAMES[part])
    return labelled(images[:, None], labels)


def _idx_file(folder: Path, stem: str) -> Path:
    """The idx file of that name: copies differ in a dot for a dash, and in being gzipped."""
    for path in sorted(folder.glob(f"{stem}?idx*-ubyte*")):
        if path.suffix in ("", ".gz") or path.suffix.startswith(".idx"):
            return path
    raise FileNotFoundError(f"{folder}: no {stem}-idx?-ubyte[.gz] and no npz files. MNIST: {MNIST_FROM}")


def read_idx(path: Path) -> np.ndarray:
    """The array of one idx file: two zero bytes, a type code, the number of axes, big-endian sizes, then the bytes."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if len(content) < 4 or content[:3] != bytes((0, 0, IDX_UBYTE)):
        raise ValueError(f"{path}: found {content[:4].hex() or 'nothing'}, expected an idx file of unsigned bytes")
    n_axes = content[3]
    start = 4 + 4 * n_axes
    shape = tuple(np.frombuffer(content[4:start], ">u4").astype(int)) if len(content) >= start else ()
    if len(shape) != n_axes or len(content) - start != np.prod(shape, dtype=int):
        raise ValueError(f"{path}: found {len(content)} bytes, which do not hold its shape {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_cifar10(folder: Path) -> tuple[Labelled, Labelled]:
    """Training and test images of CIFAR-10, (n, 3, 32, 32), all of those that the folder has.

    Args:
        folder: holds the binary version (`data_batch_*.bin`), the Python version (`data_batch_*`), or mosaics of 1,000
            images (`train_*.webp`, `train_labels.npy`).

    Raises:
        FileNotFoundError: none of them is there; says where they are to be had.
        ValueError: a batch is cut short or holds something else.
    """
    if (folder / "train_labels.npy").exists():
        return _mosaics(folder, "train"), _mosaics(folder, "test")
    for suffix, read in ((".bin", read_binary_batch), ("", read_python_batch)):
        batches = sorted(folder.glob(f"data_batch_[0-9]{suffix}"))
        if batches:
            parts = [read(path) for path in batches]
            training = Labelled(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
            return training, read(folder / f"test_batch{suffix}")
    raise FileNotFoundError(f"{folder}: no data_batch_* and no mosaics. CIFAR-10: {CIFAR_FROM}")


def _mosaics(folder: Path, part: str) -> Labelled:
    from PIL import Image

    rows, columns = MOSAIC
    tiles = []
    for path in sorted(folder.glob(f"{part}_*.webp")):
        with Image.open(path) as image:
            mosaic = np.asarray(image.convert("RGB"))
        tiles.append(mosaic.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, *CIFAR_SHAPE))
    return labelled(np.concatenate(tiles), np.load(folder / f"{part}_labels.npy"))


def read_binary_batch(path: Path) -> Labelled:
    """One batch of the binary version: records of a label byte and 3,072 bytes, channels before rows before columns."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    size = 1 + int(np.prod(CIFAR_SHAPE))
    if not len(content) or len(content) % size:
        raise ValueError(f"{path}: found {len(content)} bytes, expected a multiple of {size}")
    records = content.reshape(-1, size)
    return labelled(records[:, 1:].reshape(-1, *CIFAR_SHAPE), records[:, 0])


def read_python_batch(path: Path) -> Labelled:
    """One batch of the Python version: a pickled dict, of which nothing but numpy arrays is built.

    Raises:
        ValueError: the pickle asks for anything else, or is none.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        pixels, labels = batch[b"data"], batch[b"labels"]
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no batch of CIFAR-10 ({error})") from error
    return labelled(pixels.reshape(-1, *CIFAR_SHAPE), np.asarray(labels))


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays, whose module has moved since the batches were pickled, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """An empty array, which pickle fills: what numpy's own function does, wherever this numpy keeps it."""
    return np.ndarray.__new__(kind, shape, code.decode() if isinstance(code, bytes) else code)


def labelled(pixels: np.ndarray, labels: np.ndarray) -> Labelled:
    """Bytes to tensors.

    Raises:
        ValueError: as many images as labels are not there.
    """
    if len(pixels) != len(labels):
        raise ValueError(f"found {len(pixels)} images and {len(labels)} labels")
    return Labelled(torch.from_numpy(np.array(pixels)).float().div_(255), torch.from_numpy(labels.astype(np.int64)))
