"""Fashion-MNIST: 60,000 + 10,000 pictures of clothes, 28x28 gray, ten classes (Xiao et al., 2017; MIT licence).

The files come inside the Debian package ``dataset-fashion-mnist``, the asset ``fashion-mnist``; they are fetched on first
use.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal

import numpy as np

from tutelage import assets
from tutelage.errors import InputError

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_REMEDY = "tutelage assets fetch fashion-mnist; or give folder=…"


def load(split: Literal["train", "test"], folder: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28] and labels int64 [N] of a split (N = 60,000 or 10,000), in published order.

    ``folder`` holds the four published files; by default they are fetched (30 MB, once).

    Raises:
        InputError: an unknown split, the package cannot be had, or a file is not what was published.
    """
    if split not in ("train", "test"):
        raise InputError(f"Fashion-MNIST has no split {split!r}", where="split", remedy="use train or test")
    root = next(iter(assets.fetch("fashion-mnist").values())).parent if folder is None else Path(folder)
    name = "train" if split == "train" else "t10k"
    images = read_idx(root / f"{name}-images-idx3-ubyte.gz")
    labels = read_idx(root / f"{name}-labels-idx1-ubyte.gz").astype(np.int64)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise InputError(f"{list(images.shape)} images, {list(labels.shape)} labels", where=root, remedy=_REMEDY)
    return images, labels


def read_idx(path: str | Path) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes, any number of dimensions (the format of the MNIST family).

    Raises:
        InputError: no such file, not gzip, cut short, or not an IDX file of bytes.
    """
    path = Path(path)
    try:
        with gzip.open(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise InputError("no such file", where=path, remedy=_REMEDY) from None
    except (OSError, EOFError) as error:
        raise InputError(f"not a whole gzip file: {error}", where=path, remedy="delete it and fetch it again") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise InputError("not an IDX file of bytes", where=path, remedy="delete it and fetch it again")
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4) if len(data) >= 4 + 4 * data[3] else np.zeros(0)
    begin = 4 + 4 * data[3]
    if len(shape) != data[3] or len(data) - begin != int(np.prod(shape, dtype=np.int64)):
        raise InputError(f"{len(data)} bytes do not fit its header", where=path, remedy="delete it and fetch it again")
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape.astype(int))
