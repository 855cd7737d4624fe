"""Picture files as images: opened at the first use, decoded once while a bounded cache holds them, resized by policy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from tutelage.errors import InputError
from tutelage.programs.image_io import ImageLimits
from tutelage.programs.values import Image

KeyAndSize = tuple[str, tuple[int, int]]
"""The key of a picture, and its width and height."""
DEFAULT_BUDGET = 1 << 30
"""Bytes of decoded pixels that are held at once: about 1,900 pictures of 500 x 375."""


@dataclass(frozen=True)
class ResizePolicy:
    """What is done to a picture before anything sees it: the longer side brought down to ``longest`` pixels, or nothing.
    Smaller pictures stay as they are."""

    longest: int | None = None

    @classmethod
    def parse(cls, text: str) -> ResizePolicy:
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

    @property
    def limits(self) -> ImageLimits:
        """The settings of the image cache."""
        return ImageLimits(longest_side=self.longest)


class ImageCache:
    """Decodes picture files, and holds the last ones within ``budget`` bytes. ``opened`` counts how often a file was.

    Of every picture seen, its key (a hash of its resized pixels) and size are kept: a crop needs no pixels to be named.
    Sent to another process it is empty: that one opens the files itself.
    """

    def __init__(self, resize: ResizePolicy = ResizePolicy(), budget: int = DEFAULT_BUDGET):  # noqa: B008  (frozen)
        self.resize, self.opened = resize, 0
        self._budget = self._room = budget
        self._decoded: OrderedDict[Path, np.ndarray] = OrderedDict()
        self._keys_and_sizes: dict[Path, KeyAndSize] = {}

    def __reduce__(self) -> tuple[type[ImageCache], tuple[ResizePolicy, int]]:
        return ImageCache, (self.resize, self._budget)

    def image(self, path: str | Path) -> FileImage:
        """The picture at ``path``; nothing is opened yet."""
        return FileImage(self, Path(path))

    def key_and_size(self, path: Path) -> KeyAndSize:
        """The key of the picture and its (width, height) as resized. Raises as :meth:`pixels`."""
        if path not in self._keys_and_sizes:
            self.pixels(path)
        return self._keys_and_sizes[path]

    def known_images(self, paths: Iterable[Path]) -> dict[Path, KeyAndSize]:
        """The facts of those pictures that were opened."""
        return {path: self._keys_and_sizes[path] for path in paths if path in self._keys_and_sizes}

    def add_known(self, known: Mapping[Path, KeyAndSize]) -> None:
        """Take over what another album knows: a picture that has changed since is told when it is opened."""
        self._keys_and_sizes |= known

    def pixels(self, path: Path) -> np.ndarray:
        """uint8 [3, H, W].

        Raises:
            InputError: the file is absent or cannot be read, or is another picture than it was before.
        """
        found = self._decoded.get(path)
        if found is not None:
            self._decoded.move_to_end(path)
            return found
        image = Image.from_file(path, self.resize.limits)
        self.opened += 1
        facts = (image.root_key, (image.width, image.height))
        if self._keys_and_sizes.setdefault(path, facts) != facts:
            raise InputError("the picture has changed since it was first opened", where=path, remedy="start again")
        self._decoded[path] = image.root
        self._room -= image.root.nbytes
        while self._room < 0 and len(self._decoded) > 1:
            self._room += self._decoded.popitem(last=False)[1].nbytes
        return image.root


class FileImage(Image):
    """An image whose pixels lie in a file until they are looked at, and may go again; otherwise as every image. Where its key
    and region are told, nothing is opened to name it."""

    __slots__ = ("album", "path", "_key", "_place")

    def __init__(self, album: ImageCache, path: Path, key: str | None = None, place: tuple[int, int, int, int] | None = None):
        self.album, self.path, self._key, self._place, self.notes = album, path, key, place, ()

    @property
    def root(self) -> np.ndarray:  # type: ignore[override]
        """uint8 [3, H, W]."""
        return self.album.pixels(self.path)

    @property
    def root_key(self) -> str:  # type: ignore[override]
        """Names the pixels."""
        return self._key or self.album.key_and_size(self.path)[0]

    @property
    def region(self) -> tuple[int, int, int, int]:  # type: ignore[override]
        """(x1, y1, x2, y2), whole pixels of the root."""
        return self._place or (0, 0, *self.album.key_and_size(self.path)[1])

    @property
    def key(self) -> tuple[str, tuple[int, int, int, int]]:  # type: ignore[override]
        """Names pixels and region."""
        return self.root_key, self.region

    def part(self, region: tuple[int, int, int, int]) -> FileImage:
        """As :meth:`Image.part`: it, too, holds no pixels."""
        return FileImage(self.album, self.path, self._key, region)

    def __reduce__(self) -> tuple[type[Image], tuple[np.ndarray, str, tuple[int, int, int, int]]]:
        return Image, (self.root, self.root_key, self.region)


class LazyImages(Mapping[str, Image]):
    """A question's images by name, each opened as it is taken: a file that is no picture is told then, by its name, and
    not by the module that would look at it. To another process the paths travel, and the ``key_and_size`` of pictures seen."""

    def __init__(self, album: ImageCache, paths: Mapping[str, Path], facts: Mapping[Path, KeyAndSize] = MappingProxyType({})):
        self.album, self.paths = album, dict(paths)
        album.add_known(facts)

    def __reduce__(self) -> tuple[type[LazyImages], tuple[ImageCache, dict[str, Path], dict[Path, KeyAndSize]]]:
        facts = {path.absolute(): known for path, known in self.album.known_images(self.paths.values()).items()}
        return LazyImages, (self.album, {name: path.absolute() for name, path in self.paths.items()}, facts)

    def __getitem__(self, name: str) -> Image:
        image = self.album.image(self.paths[name])
        self.album.key_and_size(image.path)
        return image

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)
