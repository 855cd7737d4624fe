"""Sample pictures: files, PIL images, arrays or tensors, brought to the size and the channels of the network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.programs import image_io

MAX_PICTURES = 50


def to_pixels(pictures: Iterable[Any], channels: int, image_size: int) -> Tensor:
    """uint8 [N, channels, image_size, image_size].

    A file or a PIL image is cut to its middle square, resized, and made gray where the network takes one channel. An array
    or a tensor must have the network's size: [C, H, W], or [N, C, H, W] for several; uint8, or floats in 0..1, which are
    rounded to 255ths as a picture file would.

    Raises:
        InputError: no picture, too many, a file that is none, or an array of another size, kind or range.
    """
    found = [pixels for number, picture in enumerate(_each(pictures)) for pixels in _one(picture, number, channels, image_size)]
    if not found:
        raise InputError("there is no picture", where="images", remedy="give at least one, such as --image photo.jpg")
    if len(found) > MAX_PICTURES:
        raise InputError(f"{len(found)} pictures", where="images", remedy=f"a page holds at most {MAX_PICTURES}: choose some")
    return torch.stack(found)


def _each(pictures: Any) -> Iterable[Any]:
    single = isinstance(pictures, (str, Path, PIL.Image.Image, np.ndarray, Tensor))
    return [pictures] if single else pictures


def _one(picture: Any, number: int, channels: int, image_size: int) -> list[Tensor]:
    where = f"images[{number}]"
    if isinstance(picture, (str, Path)):
        picture, _ = image_io.read_file(picture)
    if isinstance(picture, PIL.Image.Image):
        return [_from_pil(image_io.to_rgb(picture, where)[0], channels, image_size)]
    if isinstance(picture, np.ndarray):
        picture = torch.from_numpy(np.ascontiguousarray(picture))
    if not isinstance(picture, Tensor):
        raise InputError(f"a {type(picture).__name__}", where=where, remedy="give a path, a PIL image, an array or a tensor")
    expected = (channels, image_size, image_size)
    if picture.ndim not in (3, 4) or tuple(picture.shape[-3:]) != expected:
        raise InputError(
            f"shape {list(picture.shape)}, the network takes {list(expected)}",
            where=where,
            remedy="resize it, or give the picture as a file or a PIL image, which are cropped and resized",
        )
    pixels = picture.detach().cpu()
    if pixels.dtype != torch.uint8:
        pixels = pixels.float()
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise InputError(
                f"values from {pixels.min().item():.3g} to {pixels.max().item():.3g}",
                where=where,
                remedy="give pixels as uint8 or as floats in 0..1, before any normalisation; the page does that by mean and std",
            )
        pixels = (pixels * 255).round().to(torch.uint8)
    return list(pixels.reshape(-1, *expected))


def _from_pil(picture: PIL.Image.Image, channels: int, image_size: int) -> Tensor:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    square = square.convert("L") if channels == 1 else square
    small = square.resize((image_size, image_size), PIL.Image.Resampling.BILINEAR, reducing_gap=3.0)
    return torch.from_numpy(np.array(small).reshape(image_size, image_size, -1)).movedim(2, 0).contiguous()
