"""Fashion-MNIST: 60,000 + 10,000 pictures of clothes, 28x28 gray, ten classes (Xiao et al., 2017; MIT licence).

The files come inside the Debian package ``dataset-fashion-mnist``: :func:`fetch` takes them out of it, without root and
without installing anything, into the cache; their hashes are checked.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from tutelage.errors import InputError
from tutelage.files import cache_home, write_bytes

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
PACKAGE = "dataset-fashion-mnist"
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
_REMEDY = f"on Debian or Ubuntu: apt-get update, then try again; or install {PACKAGE}; or give folder=…"


def load(split: Literal["train", "test"], folder: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28] and labels int64 [N] of a split (N = 60,000 or 10,000), in published order.

    ``folder`` holds the four published files; by default they are fetched (30 MB, once).

    Raises:
        InputError: an unknown split, the package cannot be had, or a file is not what was published.
    """
    if split not in ("train", "test"):
        raise InputError(f"Fashion-MNIST has no split {split!r}", where="split", remedy="use train or test")
    root = fetch() if folder is None else Path(folder)
    name = "train" if split == "train" else "t10k"
    images = read_idx(root / f"{name}-images-idx3-ubyte.gz")
    labels = read_idx(root / f"{name}-labels-idx1-ubyte.gz").astype(np.int64)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise InputError(f"{list(images.shape)} images, {list(labels.shape)} labels", where=root, remedy=_REMEDY)
    return images, labels


def fetch() -> Path:
    """The folder of the published files: where the package is installed, else the cache, filled on first use.

    Raises:
        InputError: there is no ``apt-get`` or ``dpkg``, it cannot reach the package, or a hash differs.
    """
    for folder in (SYSTEM_FOLDER, cache_home() / "assets" / "fashion-mnist"):
        if all((folder / name).exists() for name in _SHA256):
            return folder
    for program in ("apt-get", "dpkg"):
        if shutil.which(program) is None:
            raise InputError(f"Fashion-MNIST is not here, and there is no {program} to fetch it", remedy=_REMEDY)
    with tempfile.TemporaryDirectory() as scratch:
        _run(["apt-get", "download", PACKAGE], scratch)
        archives = [str(path) for path in Path(scratch).glob("*.deb")]
        if len(archives) != 1:
            raise InputError(f"apt-get brought {len(archives)} files", where=PACKAGE, remedy=_REMEDY)
        _run(["dpkg", "-x", archives[0], "out"], scratch)
        source = Path(scratch) / "out" / SYSTEM_FOLDER.relative_to("/")
        for name, wanted in _SHA256.items():
            data = (source / name).read_bytes() if (source / name).exists() else b""
            if hashlib.sha256(data).hexdigest() != wanted:
                raise InputError("not the published file", where=f"{PACKAGE}: {name}", remedy=_REMEDY)
            write_bytes(folder / name, data)
    return folder


def _run(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{command[0]} failed: {done.stderr.strip()[-300:]}", where=PACKAGE, remedy=_REMEDY)


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
