"""Image files as a dataset: a folder with a sub-folder for each class, or a manifest that lists files and labels."""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from torch import Tensor

from tutelage.distillation.data.items import image_tensor
from tutelage.distillation.data.object_hash import ObjectHash
from tutelage.errors import InputError, did_you_mean
from tutelage.fields import check_pair, check_range
from tutelage.storage import fingerprint, read_json_lines

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
FILE_COLUMNS = ("file", "file_name", "path", "image")
LABEL_COLUMNS = ("label", "labels", "class", "target")


@dataclass(frozen=True)
class ImageTransform:
    """From a PIL image to float32 [3, H, W] in 0..1 of one size.

    Without randomness: the shorter side is scaled to the target, the middle is cut out. Random numbers come from
    Python's global generator, which ``DatasetData`` seeds for each item.

    Attributes:
        image_size: height and width in pixels.
        crop_area: (least, most) share of the area of a random part that is scaled to the target, its sides 3:4 to 4:3
            (random resized crop: Szegedy et al., "Going deeper with convolutions", 2015); None: the middle.
        flip: probability of a mirror image, left for right.
    """

    image_size: int
    crop_area: tuple[float, float] | None = None
    flip: float = 0.0

    def __post_init__(self) -> None:
        check_range("image_size", self.image_size, 1, 100_000, whole=True)
        check_range("flip", self.flip, 0, 1)
        if self.crop_area is not None:
            check_pair("crop_area", self.crop_area, 1e-6, 1)

    @property
    def plain(self) -> ImageTransform:
        """The same without randomness."""
        return ImageTransform(self.image_size)

    def __call__(self, image: PIL.Image.Image) -> Tensor:
        """The image as a tensor."""
        box = _middle(*image.size) if self.crop_area is None else _random_box(*image.size, *self.crop_area)
        size = (self.image_size, self.image_size)
        small = image.resize(size, PIL.Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
        if self.flip and random.random() < self.flip:
            small = small.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        return image_tensor(small)


def _middle(width: int, height: int) -> tuple[float, float, float, float]:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(width: int, height: int, least: float, most: float) -> tuple[float, float, float, float]:
    """A part of the image; its share of the area is uniform, the logarithm of its aspect too."""
    area = random.uniform(least, most) * width * height
    aspect = (4 / 3) ** random.uniform(-1, 1)
    wide, high = min(width, (area * aspect) ** 0.5), min(height, (area / aspect) ** 0.5)
    left, top = random.uniform(0, width - wide), random.uniform(0, height - high)
    return left, top, left + wide, top + high


class ImageFolder:
    """Images below ``root`` as a map-style dataset of (image, class id), or of images alone where there are no labels.

    Without a manifest: each sub-folder is a class, named by it, with all images at any depth below it; images that
    lie in ``root`` itself, without sub-folders, have no labels. A manifest is a CSV file with a header or a JSONL
    file: a column ``file`` (or ``file_name``, ``path``, ``image``), relative to ``root``, and a column ``label`` (or
    ``labels``, ``class``, ``target``) with a class name or a number; a JSONL label may be a list of numbers.

    Args:
        root: the folder.
        transform: from the PIL image (RGB, upright) to what an item holds; None: the image itself.
        manifest: a ``.csv`` or ``.jsonl`` file, by default beside the images: relative to ``root`` where it lies there.
        classes: class names by number; None: the names found, sorted. Give the training set's to a test set.
        limit: only so many images, spread evenly over all.

    Raises:
        InputError: no images, an unknown class, or a wrong line of the manifest; file and line are named.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Callable[[PIL.Image.Image], Any] | None = None,
        manifest: str | Path | None = None,
        classes: Sequence[str] | None = None,
        limit: int | None = None,
    ):
        self.root = Path(root)
        self.transform = transform
        if not self.root.is_dir():
            raise InputError("no such folder", where=self.root, remedy="check the path")
        if limit is not None and limit < 1:
            raise InputError(f"{limit} images", where="limit", remedy="at least 1, or leave it out")
        if manifest is None:
            names, labels, self.classes = _from_folders(self.root, classes)
        else:
            names, labels, self.classes = read_manifest(self.root, Path(manifest), classes)
        if limit is not None and limit < len(names):
            chosen = np.linspace(0, len(names) - 1, limit).astype(int).tolist()
            names = [names[number] for number in chosen]
            labels = None if labels is None else labels[chosen]
        encoded = [os.fsencode(name) for name in names]
        # One block of bytes, not a list of strings: workers that only read it share its memory.
        self._names = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded])
        self.targets: np.ndarray | None = labels

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> Any:
        image = read_image(self.path(number))
        found = image if self.transform is None else self.transform(image)
        return found if self.targets is None else (found, self.targets[number])

    def path(self, number: int) -> Path:
        """The file of image ``number``."""
        first = self._ends[number - 1] if number else 0
        return self.root / os.fsdecode(self._names[first : self._ends[number]].tobytes())

    def with_transform(self, transform: Callable[[PIL.Image.Image], Any] | None) -> ImageFolder:
        """The same files and labels with another transform."""
        other = object.__new__(ImageFolder)
        other.__dict__ |= {name: value for name, value in self.__dict__.items() if name != "fingerprint"}
        other.transform = transform
        return other

    @cached_property
    def fingerprint(self) -> str:
        """Names the files by name and size, 32 of them by their bytes too, the labels and the transform."""
        paths = [self.path(number) for number in range(len(self))]
        sizes, content = sizes_and_sample(paths)
        state = ObjectHash((self.transform, self.classes, self.targets)).hexdigest()
        return fingerprint("image-folder-1", self._names.data, self._ends.data.cast("B"), sizes, state, *content)


def sizes_and_sample(paths: Sequence[Path]) -> tuple[list[int], list[bytes]]:
    """(the size of each file in bytes, the content of at most 32 of them, evenly spread): what names a folder of files.

    Raises:
        InputError: a file cannot be read.
    """
    some = np.linspace(0, len(paths) - 1, min(32, len(paths))).astype(int).tolist()
    try:
        return [path.stat().st_size for path in paths], [paths[number].read_bytes() for number in some]
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", where=error.filename, remedy="were files moved meanwhile?") from error


def read_image(path: str | Path) -> PIL.Image.Image:
    """The image in a file: RGB, upright as the camera's note (EXIF) says.

    Raises:
        InputError: no such file, no known format, cut short, or far too many pixels.
    """
    try:
        with PIL.Image.open(path, formats=FORMATS) as image:
            image.load()
            PIL.ImageOps.exif_transpose(image, in_place=True)
            return image if image.mode == "RGB" else image.convert("RGB")
    except FileNotFoundError:
        raise InputError("no such image", where=path, remedy="check the path") from None
    except PIL.UnidentifiedImageError:
        raise InputError("no image of a known format", where=path, remedy=f"known: {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        text = str(error) or type(error).__name__
        raise InputError(f"cannot decode: {text}", where=path, remedy="is the file whole? replace or remove it") from error


# -- which files, which labels -----------------------------------------------------------------------------------------

Found = tuple[list[str], "np.ndarray | None", list[str]]
"""File names below the root, labels [N] (or [N, C]), class names."""


def _from_folders(root: Path, classes: Sequence[str] | None) -> Found:
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        names = sorted(_images(root, root))
        if not names:
            raise InputError("holds no image", where=root, remedy=f"known endings: {', '.join(sorted(SUFFIXES))}")
        return names, None, []
    known = list(classes) if classes is not None else folders
    names, labels = [], []
    for folder in folders:
        if folder not in known:
            raise InputError(f"no class {folder!r}", where=root, remedy=did_you_mean(folder, known))
        found = sorted(_images(root / folder, root))
        if not found:
            raise InputError("a class without an image", where=root / folder, remedy="add images, or remove the folder")
        names += found
        labels += [known.index(folder)] * len(found)
    return names, np.array(labels, dtype=np.int64), known


def _images(folder: Path, root: Path) -> Iterator[str]:
    for place, _, files in os.walk(folder):
        below = os.path.relpath(place, root)
        for file in files:
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith("."):
                yield file if below == "." else os.path.join(below, file)


def read_manifest(root: Path, manifest: Path, classes: Sequence[str] | None) -> Found:
    """The files that a manifest lists, relative to ``root``, and their labels.

    Raises:
        InputError: a wrong line; file and line are named.
    """
    if not manifest.is_absolute() and (root / manifest).exists():
        manifest = root / manifest
    names: list[str] = []
    values: list[tuple[str, Any]] = []
    for number, row in _rows(manifest):
        where = f"{manifest}:{number}"
        file = next((row[key] for key in FILE_COLUMNS if isinstance(row.get(key), str) and row[key]), None)
        if file is None:
            raise InputError("the line names no file", where=where, remedy=f"give a column {' or '.join(FILE_COLUMNS)}")
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise InputError(f"{file!r} lies outside the folder", where=where, remedy=f"name files relative to {root}")
        names.append(file)
        label = next((row[key] for key in LABEL_COLUMNS if row.get(key) not in (None, "")), None)
        if values and (label is None) != (values[0][1] is None):
            raise InputError("some lines have a label, others none", where=where, remedy="give all lines one, or none")
        values.append((where, label))
    if not names:
        raise InputError("lists no file", where=manifest, remedy="a line for each image")
    if values[0][1] is None:
        return names, None, []
    return names, *_numbered(values, classes)


def _rows(manifest: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if manifest.suffix in (".jsonl", ".json"):
        for number, row in read_json_lines(manifest):
            if not isinstance(row, dict):
                raise InputError("not a JSON object", where=f"{manifest}:{number}", remedy='{"file": "a.jpg", "label": 0}')
            yield number, row
        return
    if manifest.suffix != ".csv":
        raise InputError(f"unknown kind of manifest {manifest.suffix!r}", where=manifest, remedy="give .csv or .jsonl")
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                yield reader.line_num, row
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", where=manifest, remedy="check the path") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"not CSV: {error}", where=manifest, remedy="write a header and a line for each image") from error


def _numbered(values: list[tuple[str, Any]], classes: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """Labels as an array, and class names: names become numbers, numbers stay."""
    if all(isinstance(label, str) and not _is_number(label) for _, label in values):
        known = list(classes) if classes is not None else sorted({label for _, label in values})
        index = {name: number for number, name in enumerate(known)}
        for where, label in values:
            if label not in index:
                raise InputError(f"no class {label!r}", where=where, remedy=did_you_mean(label, known))
        return np.array([index[label] for _, label in values], dtype=np.int64), known
    rows, width = [], None
    for where, label in values:
        row = label if isinstance(label, list) else [label]
        numbers = [float(one) if _is_number(one) else None for one in row]
        if None in numbers or (width is not None and len(numbers) != width):
            raise InputError(
                f"the label {label!r} does not fit the others",
                where=where,
                remedy="give every line a class name, every line a number, or every line a list of as many numbers",
            )
        width = len(numbers)
        rows.append(numbers)
    array = np.array(rows, dtype=np.float64)
    whole = not isinstance(values[0][1], list) and bool((array == array.round()).all())
    array = array.astype(np.int64 if whole else np.float32)
    return (array if isinstance(values[0][1], list) else array[:, 0]), list(classes or ())


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool)
