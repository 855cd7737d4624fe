"""The values that steps of a program pass on: images that remember where they were cut from, boxes, objects."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from tutelage.errors import InputError
from tutelage.programs import image_io
from tutelage.programs.image_io import ImageLimits
from tutelage.programs.types import RuntimeFailure


class Box(NamedTuple):
    """A box in pixels of the image it was found in, origin top-left, with its score in 0..1."""

    x1: float
    y1: float
    x2: float
    y2: float
    score: float = 1.0

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) of the middle."""
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    @property
    def area(self) -> float:
        """Square pixels; 0 for an empty box."""
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)

    def scaled(self, factor: float) -> Box:
        """The box enlarged by ``factor`` about its centre."""
        (cx, cy), w, h = self.center, (self.x2 - self.x1) * factor / 2, (self.y2 - self.y1) * factor / 2
        return Box(cx - w, cy - h, cx + w, cy + h, self.score)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 where both are empty."""
    w, h = min(a.x2, b.x2) - max(a.x1, b.x1), min(a.y2, b.y2) - max(a.y1, b.y1)
    inter = max(0.0, w) * max(0.0, h)
    union = a.area + b.area - inter
    return inter / union if union > 0 else 0.0


class Image:
    """A region of a picture: the whole picture's pixels, shared by all its crops, and the region's place in it.

    ``root`` is uint8 [3, H, W]; ``region`` is (x1, y1, x2, y2), whole pixels of the root; ``key`` names pixels and
    region, so two images with equal keys are equal. Cutting a crop copies nothing. ``notes`` say what was done to a
    whole picture when it was read.
    """

    __slots__ = ("root", "root_key", "region", "key", "notes")

    def __init__(self, root: np.ndarray, root_key: str | None = None, region: tuple[int, int, int, int] | None = None):
        self.root = root
        self.root_key = (
            root_key or hashlib.blake2b(np.ascontiguousarray(root).tobytes() + str(root.shape).encode(), digest_size=8).hexdigest()
        )
        self.region = region or (0, 0, root.shape[2], root.shape[1])
        self.key = (self.root_key, self.region)
        self.notes: tuple[str, ...] = ()

    @classmethod
    def from_array(cls, pixels: np.ndarray, key: str | None = None) -> Image:
        """An image from float32 [3, H, W] in 0..1, or uint8 [3, H, W].

        Raises:
            InputError: another shape or type.
        """
        pixels = np.asarray(pixels)
        if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
            raise InputError(f"an image is [3, H, W], this is {list(pixels.shape)}", where="image")
        if pixels.dtype != np.uint8:
            pixels = (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)
        return cls(pixels, key)

    @classmethod
    def from_pil(cls, picture: PIL.Image.Image, key: str | None = None) -> Image:
        """An image from a PIL picture of any mode; transparent parts are laid over white.

        Raises:
            InputError: its pixels are floats, or whole numbers of more than 16 bits.
        """
        return cls._of(*image_io.to_rgb(picture), key)

    @classmethod
    def from_file(cls, path: str | Path, limits: ImageLimits = image_io.DEFAULT) -> Image:
        """Read a picture file, upright and in RGB; ``notes`` tell what had to be done to it.

        Raises:
            ImageTooLarge: more bytes or pixels than ``limits`` allow: refused before it is decoded.
            InputError: absent, empty, truncated, or not a picture; the message names the file.
        """
        return cls._of(*image_io.read_file(path, limits))

    @classmethod
    def from_bytes(cls, data: bytes, limits: ImageLimits = image_io.DEFAULT, where: object = "image") -> Image:
        """The image in a picture file's bytes, which errors call ``where``; otherwise as :meth:`from_file`."""
        return cls._of(*image_io.read(data, limits, where))

    @classmethod
    def _of(cls, picture: PIL.Image.Image, notes: Sequence[str], key: str | None = None) -> Image:
        image = cls(np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)), key)
        image.notes = tuple(notes)
        return image

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.region[2] - self.region[0]

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.region[3] - self.region[1]

    @property
    def bytes(self) -> np.ndarray:
        """uint8 [3, height, width], a view of the root."""
        x1, y1, x2, y2 = self.region
        return self.root[:, y1:y2, x1:x2]

    @property
    def pixels(self) -> np.ndarray:
        """float32 [3, height, width] in 0..1."""
        return self.bytes.astype(np.float32) / 255

    def data_uri(self, side: int, *, lossless: bool = False) -> str:
        """For pages: a PNG where the region is no longer than ``side`` pixels, else reduced to that, as JPEG or ``lossless``."""
        return image_io.data_uri(self.to_pil(), side, lossless=lossless)

    def to_pil(self) -> PIL.Image.Image:
        """The region as a PIL picture."""
        return PIL.Image.fromarray(np.ascontiguousarray(self.bytes.transpose(1, 2, 0)))

    def crop(self, x1: float, y1: float, x2: float, y2: float) -> Image:
        """The part inside a box given in this image's own pixels, clipped to it.

        Raises:
            RuntimeFailure: nothing of the box lies inside.
        """
        left, top, right, bottom = self.region
        region = (
            max(left, left + int(x1)),
            max(top, top + int(y1)),
            min(right, left + int(np.ceil(x2))),
            min(bottom, top + int(np.ceil(y2))),
        )
        if region[0] >= region[2] or region[1] >= region[3]:
            raise RuntimeFailure(f"a crop of zero area: ({x1:g}, {y1:g}, {x2:g}, {y2:g}) of {self.width}x{self.height}")
        return self.part(region)

    def part(self, region: tuple[int, int, int, int]) -> Image:
        """The same picture with another region (x1, y1, x2, y2), which lies inside the picture."""
        return Image(self.root, self.root_key, region)

    def __repr__(self) -> str:
        return f"Image({self.root_key[:8]} {self.region})"


@dataclass(frozen=True, eq=False)
class Object:
    """Something found by a segmenting or detecting module: box, mask (bool [H, W] of the image) and what it is."""

    box: Box
    mask: np.ndarray | None = None
    category: str = "object"
    inst_id: int = 0
    class_name: str | None = None
    class_score: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
