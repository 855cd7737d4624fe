"""What the experiments on photographs share: two pictures of scikit-learn's package, and random crops of one."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tutelage import assets


def photo(name: str, halvings: int = 1) -> Tensor:
    """``china.jpg`` or ``flower.jpg`` as [3, H, W] in 0..1, each halving a mean over squares of 2 x 2.

    Raises:
        AssetNotFound: scikit-learn is not installed and the picture was not fetched; the remedy is the command.
    """
    pixels = np.asarray(Image.open(io.BytesIO(assets.read("photos-more", name))).convert("RGB"))
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    return F.avg_pool2d(image, 2**halvings) if halvings else image


def random_crops(image: Tensor, count: int, side: int, rng: torch.Generator) -> Tensor:
    """Squares [count, 3, side, side] of an image [3, H, W], each place as likely."""
    rows, columns = (torch.randint(0, size - side + 1, (count,), generator=rng).tolist() for size in image.shape[1:])
    return torch.stack([image[:, row : row + side, column : column + side] for row, column in zip(rows, columns, strict=True)])
