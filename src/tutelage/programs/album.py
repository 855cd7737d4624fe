"""Picture files as images: opened when somebody looks, decoded once while a bounded cache holds them, resized by policy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from tutelage.errors import InputError
from tutelage.programs.values import Image

BUDGET = 1 << 30
"""Bytes of decoded pixels that are held at once: about 1,900 pictures of 500 x 375."""


@dataclass(frozen=True)
class Resize:
    """What is done to a picture before anything sees it: the longer side brought down to ``longest`` pixels, or nothing.
    Smaller pictures stay as they are."""

    longest: int | None = None

    @classmethod
    def read(cls, text: str) -> Resize:
        """``none``, or ``longest=640``.

        Raises:
            InputError: anything else.
        """
        name, _, number = text.partition("=")
        if text == "none":
            return cls()
        if name == "longest" and number.isascii() and number.isdigit() and int(number) > 0:
            return cls(int(number))
        raise InputError(f"no such policy {text!r}", where="resize", remedy="none, or longest=640")

    def __str__(self) -> str:
        return "none" if self.longest is None else f"longest={self.longest}"

    def of(self, image: Image) -> Image:
        """The whole picture ``image``, resized."""
        side = max(image.width, image.height)
        if self.longest is None or side <= self.longest:
            return image
        size = [max(1, round(edge * self.longest / side)) for edge in (image.width, image.height)]
        return Image.from_pil(image.to_pil().resize((size[0], size[1]), PIL.Image.Resampling.BICUBIC))


class Album:
    """Decodes picture files, and holds the last ones within ``budget`` bytes. ``opened`` counts how often a file was.

    Of every picture seen, its key (a hash of its resized pixels) and size are kept: a crop needs no pixels to be named.
    """

    def __init__(self, resize: Resize = Resize(), budget: int = BUDGET):  # noqa: B008  (frozen)
        self.resize, self.opened = resize, 0
        self._room = budget
        self._held: OrderedDict[Path, np.ndarray] = OrderedDict()
        self._facts: dict[Path, tuple[str, tuple[int, int]]] = {}

    def image(self, path: str | Path) -> FileImage:
        """The picture at ``path``; nothing is opened yet."""
        return FileImage(self, Path(path))

    def facts(self, path: Path) -> tuple[str, tuple[int, int]]:
        """The key of the picture and its (width, height) as resized. Raises as :meth:`pixels`."""
        if path not in self._facts:
            self.pixels(path)
        return self._facts[path]

    def pixels(self, path: Path) -> np.ndarray:
        """uint8 [3, H, W].

        Raises:
            InputError: the file is absent or cannot be read, or is another picture than it was before.
        """
        found = self._held.get(path)
        if found is not None:
            self._held.move_to_end(path)
            return found
        image = self.resize.of(Image.from_file(path))
        self.opened += 1
        facts = (image.root_key, (image.width, image.height))
        if self._facts.setdefault(path, facts) != facts:
            raise InputError("the picture has changed since it was first opened", where=path, remedy="start again")
        self._held[path] = image.root
        self._room -= image.root.nbytes
        while self._room < 0 and len(self._held) > 1:
            self._room += self._held.popitem(last=False)[1].nbytes
        return image.root


class FileImage(Image):
    """An image whose pixels lie in a file until they are looked at, and may go again; otherwise as every image."""

    __slots__ = ("album", "path", "_place")

    def __init__(self, album: Album, path: Path, place: tuple[int, int, int, int] | None = None):
        self.album, self.path, self._place = album, path, place

    @property
    def root(self) -> np.ndarray:  # type: ignore[override]
        """uint8 [3, H, W]."""
        return self.album.pixels(self.path)

    @property
    def root_key(self) -> str:  # type: ignore[override]
        """Names the pixels."""
        return self.album.facts(self.path)[0]

    @property
    def region(self) -> tuple[int, int, int, int]:  # type: ignore[override]
        """(x1, y1, x2, y2), whole pixels of the root."""
        return self._place or (0, 0, *self.album.facts(self.path)[1])

    @property
    def key(self) -> tuple[str, tuple[int, int, int, int]]:  # type: ignore[override]
        """Names pixels and region."""
        return self.root_key, self.region

    def crop(self, x1: float, y1: float, x2: float, y2: float) -> FileImage:
        """As :meth:`Image.crop`: the crop, too, holds no pixels."""
        return FileImage(self.album, self.path, super().crop(x1, y1, x2, y2).region)

    def __reduce__(self) -> tuple[type[Image], tuple[np.ndarray, str, tuple[int, int, int, int]]]:
        return Image, (self.root, self.root_key, self.region)


class Views(Mapping[str, Image]):
    """A question's images by name, each opened as it is taken: a file that is no picture is told then, by its name, and
    not by the module that would look at it."""

    def __init__(self, album: Album, paths: Mapping[str, Path]):
        self.album, self.paths = album, dict(paths)

    def __getitem__(self, name: str) -> Image:
        image = self.album.image(self.paths[name])
        self.album.facts(image.path)
        return image

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)
