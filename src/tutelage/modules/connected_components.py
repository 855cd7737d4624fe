"""Finding things without a network: connected regions that differ from the background."""

from __future__ import annotations

import numpy as np

from tutelage.programs.metering import check_bytes
from tutelage.programs.types import LimitExceeded
from tutelage.programs.values import Box, Image, Object

MIN_DIFFERENCE = 24
"""The least difference from the background, of 255, that counts as a thing."""

MIN_SHARE = 0.002
"""The least share of the image that a thing covers."""

MAX_RUNS = 300_000
"""Stretches of one row that lie inside things, over all rows: about a second's work."""

ROWS = 128
"""Rows of an image that are worked on at once."""


def segment(image: Image) -> list[Object]:
    """The connected regions of ``image`` that differ from its background, largest first, each with its mask (our choice).

    The background is the median colour of the border; the threshold parts the differences from it in two (Otsu 1979).

    Raises:
        LimitExceeded: more than 300,000 stretches of rows differ (noise), or the masks would take more than 512 MiB.
    """
    difference = distance_to(image, border_color(image))
    mask = difference > max(MIN_DIFFERENCE, otsu(difference))
    if (runs := int(np.count_nonzero(mask[:, 1:] & ~mask[:, :-1]))) > MAX_RUNS:
        raise LimitExceeded(f"an image of {runs:,} stripes and dots cannot be parted into regions; at most {MAX_RUNS:,}")
    labels = label(mask)
    sizes = np.bincount(labels.ravel())[1:]
    large = [int(number) for number in np.argsort(-sizes, kind="stable") if sizes[number] >= max(4.0, MIN_SHARE * mask.size)]
    check_bytes(len(large) * mask.size, f"{len(large)} masks of the image")
    found = [labels == number + 1 for number in large]
    return [Object(mask_to_box(region), region, "object", number) for number, region in enumerate(found)]


def border_color(image: Image) -> np.ndarray:
    """The median colour of the outermost pixels, float64 [3] in 0..255."""
    pixels = image.bytes
    sides = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    return np.median(np.concatenate(sides, axis=1), axis=1)


def distance_to(image: Image, color: np.ndarray) -> np.ndarray:
    """The largest difference of a channel from ``color``, uint8 [H, W]."""
    result = np.empty(image.bytes.shape[1:], np.uint8)
    for top in range(0, len(result), ROWS):  # by bands: the floats of a whole photograph would take a gigabyte
        band = image.bytes[:, top : top + ROWS].astype(np.float64)
        result[top : top + ROWS] = np.abs(band - color[:, None, None]).max(axis=0)
    return result


def otsu(values: np.ndarray) -> int:
    """The threshold that parts uint8 ``values`` into the two classes that lie furthest apart (Otsu 1979)."""
    weights = np.zeros(256)
    for top in range(0, len(values), ROWS):
        weights += np.bincount(values[top : top + ROWS].ravel(), minlength=256)
    below = np.cumsum(weights)
    above = below[-1] - below
    total = np.cumsum(weights * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return int(np.nanargmax(np.where(np.isfinite(between), between, 0.0)))


def mask_to_box(mask: np.ndarray) -> Box:
    """The box round the True pixels of ``mask`` [H, W], which has at least one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def label(mask: np.ndarray) -> np.ndarray:
    """Number the 4-connected regions of ``mask`` [H, W] from 1, in reading order; 0 is outside. int [H, W].

    Runs of a row are joined to the runs they touch in the row above, by union-find.
    """
    padded = np.pad(mask.astype(np.int8), ((0, 0), (1, 1)))
    edges = np.diff(padded, axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first_of_row = np.searchsorted(rows, np.arange(mask.shape[0] + 1))
    for row in range(1, mask.shape[0]):
        above, here, stop = first_of_row[row - 1], first_of_row[row], first_of_row[row + 1]
        last = here
        while above < last and here < stop:
            if starts[above] < ends[here] and starts[here] < ends[above]:
                a, b = root(int(above)), root(int(here))
                parent[max(a, b)] = min(a, b)
            if ends[above] < ends[here]:
                above += 1
            else:
                here += 1
    numbers: dict[int, int] = {}
    labels = np.zeros(mask.shape, np.int32)
    for run, place in enumerate(rows):
        labels[place, starts[run] : ends[run]] = numbers.setdefault(root(run), len(numbers) + 1)
    return labels
