"""The door for picture files: size, kind and wholeness are checked before and while they are decoded, by Pillow alone.

What a file says otherwise than RGB with eight bits, upright and still, is brought to that, and noted in words.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from tutelage.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is read. Pillow knows more, some of which start programs (EPS) or are seldom tested."""

UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
"""From the orientation that a camera wrote (EXIF 2.3, tag 0x0112) to what brings the picture upright."""

ORIENTATION = 0x0112


class ImageTooLarge(InputError):
    """A picture with more bytes or pixels than the caller allows."""


@dataclass(frozen=True)
class ImageLimits:
    """The most that one picture may be: ``bytes`` of file and ``pixels`` as its header tells them, before anything is
    decoded. Above that it is refused. Within, it is reduced to ``longest_side`` pixels where one is given, and noted."""

    bytes: int = 64 << 20
    pixels: int = 50_000_000
    longest_side: int | None = None


DEFAULT = ImageLimits()


def read_file(path: str | Path, limits: ImageLimits = DEFAULT) -> tuple[PIL.Image.Image, tuple[str, ...]]:
    """:func:`read` of a file.

    Raises:
        InputError: it is absent or cannot be opened, or as :func:`read`.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(limits.bytes + 1)
    except FileNotFoundError:
        raise InputError("no such image", where=path, remedy="check the path") from None
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", where=path, remedy="give a picture file that you may read") from error
    return read(data, limits, path)


def read(data: bytes, limits: ImageLimits = DEFAULT, where: object = "image") -> tuple[PIL.Image.Image, tuple[str, ...]]:
    """The picture in a file's bytes: RGB, eight bits, upright; and notes on what had to be done to it.

    Of an animation it is the first frame. Transparent parts are laid over white. Sixteen bits become eight by scale.
    CMYK is converted without its colour profile.

    Raises:
        ImageTooLarge: more bytes or pixels than ``limits`` allow.
        InputError: empty, truncated, or no picture of a format that is read; ``where`` is named.
    """
    if not data:
        raise InputError("the file is empty", where=where, remedy="was it written or sent whole?")
    if len(data) > limits.bytes:
        raise ImageTooLarge(f"more than {limits.bytes:,} bytes", where=where, remedy="save it smaller, or as JPEG")
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return _decode(picture, limits, where)
    except InputError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(str(error), limits, where) from error
    except PIL.UnidentifiedImageError:
        remedy = f"formats that are read: {', '.join(FORMATS)}"
        raise InputError("cannot read this as an image: no known format", where=where, remedy=remedy) from None
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        reason = str(error) or type(error).__name__
        raise InputError(f"cannot read this as an image: {reason}", where=where, remedy="is the file whole?") from error


def _decode(picture: PIL.Image.Image, limits: ImageLimits, where: object) -> tuple[PIL.Image.Image, tuple[str, ...]]:
    width, height = picture.size
    if width * height > limits.pixels:
        raise _too_many_pixels(f"{width} x {height} is {width * height:,} pixels", limits, where)
    notes = []
    if getattr(picture, "is_animated", False):
        notes.append("the first of several frames")
    side = limits.longest_side
    if side is not None and max(width, height) > side:
        picture.draft(picture.mode, _fit_within(width, height, side))  # a JPEG is decoded at a fraction of its size
    picture.load()
    turn = UPRIGHT.get(_orientation(picture) or 1)
    flat, done = to_rgb(picture, where)
    notes += done
    if turn is not None:
        flat = flat.transpose(turn)
        notes.append("turned upright")
    if side is not None and max(width, height) > side:
        flat = flat.resize(_fit_within(*flat.size, side), PIL.Image.Resampling.LANCZOS, reducing_gap=2.0)
        notes.append(f"reduced from {width} x {height}")
    return flat, tuple(notes)


def to_rgb(picture: PIL.Image.Image, where: object = "image") -> tuple[PIL.Image.Image, list[str]]:
    """``picture`` in RGB, whatever its mode, and notes on the way.

    Raises:
        InputError: its numbers have no known range (32 bits, or floats).
    """
    mode = picture.mode
    if mode == "RGB" and "transparency" not in picture.info:
        return picture, []
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(picture)
        if values.size and (values.min() < 0 or values.max() > 0xFFFF):
            raise _unknown_range("32-bit", where)
        eight = (values.astype(np.uint32) * 255 + 32767) // 65535
        return PIL.Image.fromarray(eight.astype(np.uint8)).convert("RGB"), ["sixteen bits scaled to eight"]
    if mode == "F":
        raise _unknown_range("floating-point", where)
    if picture.has_transparency_data:
        layers = picture.convert("RGBA")
        if layers.getchannel("A").getextrema() == (255, 255):
            return layers.convert("RGB"), []
        ground = PIL.Image.new("RGBA", layers.size, "white")
        return PIL.Image.alpha_composite(ground, layers).convert("RGB"), ["transparent parts laid over white"]
    return picture.convert("RGB"), ["CMYK converted without its colour profile"] if mode == "CMYK" else []


def data_uri(picture: PIL.Image.Image, side: int, *, lossless: bool = False) -> str:
    """``picture`` inside a page: a PNG where it is no longer than ``side`` pixels, else reduced, as JPEG or ``lossless``."""
    small, file = max(picture.size) <= side, io.BytesIO()
    kind = "png" if small or lossless else "jpeg"
    if not small:
        picture = picture.copy()
        picture.thumbnail((side, side))
    picture.save(file, kind, quality=85, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _orientation(picture: PIL.Image.Image) -> int | None:
    try:
        found = picture.getexif().get(ORIENTATION)
    except Exception:  # broken notes of a camera are no broken picture
        return None
    return found if isinstance(found, int) else None


def _fit_within(width: int, height: int, side: int) -> tuple[int, int]:
    """The size of the same shape whose longest side is ``side``."""
    longest = max(width, height)
    return max(1, round(width * side / longest)), max(1, round(height * side / longest))


def _too_many_pixels(measured: str, limits: ImageLimits, where: object) -> ImageTooLarge:
    remedy = "reduce the picture first, or allow more: ImageLimits(pixels=…)"
    return ImageTooLarge(f"{measured}; at most {limits.pixels:,} pixels are read", where=where, remedy=remedy)


def _unknown_range(kind: str, where: object) -> InputError:
    return InputError(f"{kind} pixels have no known range", where=where, remedy="save it with 8 or 16 bits a channel")
