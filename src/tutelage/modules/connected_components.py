"""Finding things without a network: connected regions that differ from the background."""

from __future__ import annotations

import numpy as np

from tutelage.programs.values import Box, Image, Object

MIN_DIFFERENCE = 24
"""The least difference from the background, of 255, that counts as a thing."""

MIN_SHARE = 0.002
"""The least share of the image that a thing covers."""


def segment(image: Image) -> list[Object]:
    """The connected regions of ``image`` that differ from its background, largest first, each with its mask (ours).

    The background is the median colour of the border; the threshold parts the differences from it in two (Otsu 1979).
    """
    difference = distance_to(image, border_color(image))
    mask = difference > max(MIN_DIFFERENCE, otsu(difference))
    labels, found = label(mask), []
    least = max(4.0, MIN_SHARE * mask.size)
    for number in range(1, int(labels.max(initial=0)) + 1):
        region = labels == number
        if region.sum() >= least:
            found.append(region)
    found.sort(key=lambda region: -int(region.sum()))
    return [Object(mask_to_box(region), region, "object", number) for number, region in enumerate(found)]


def border_color(image: Image) -> np.ndarray:
    """The median colour of the outermost pixels, float64 [3] in 0..255."""
    pixels = image.bytes
    sides = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    return np.median(np.concatenate(sides, axis=1), axis=1)


def distance_to(image: Image, color: np.ndarray) -> np.ndarray:
    """The largest difference of a channel from ``color``, uint8 [H, W]."""
    return np.abs(image.bytes.astype(np.float64) - color[:, None, None]).max(axis=0).astype(np.uint8)


def otsu(values: np.ndarray) -> int:
    """The threshold that parts uint8 ``values`` into the two classes that lie furthest apart (Otsu 1979)."""
    weights = np.bincount(values.ravel(), minlength=256).astype(np.float64)
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
    labels = np.zeros(mask.shape, np.int64)
    for run, place in enumerate(rows):
        labels[place, starts[run] : ends[run]] = numbers.setdefault(root(run), len(numbers) + 1)
    return labels
