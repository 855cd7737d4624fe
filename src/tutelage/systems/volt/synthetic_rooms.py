"""Procedural rooms of voxels: floor, walls and objects of simple shape, with colours and normals (our choice)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tutelage.seeds import numpy_rng
from tutelage.systems.volt.augment import Floats, Points

CLASSES = ("floor", "wall", "box", "ball", "cylinder", "cone", "table", "stool")
"""Names of the labels. A table is a plate on four legs, a stool a disc on one."""


def room(seed: int, size: int = 24, objects: int = 6) -> Points:
    """A room of ``size`` x ``size`` x ``size * 2 / 3`` voxels: floor, two walls, ``objects`` objects, some in part behind
    others' place. Colours say little: each surface draws one of its own, and every point is noisy."""
    rng = numpy_rng(seed, "room", size, objects)
    height = 2 * size // 3
    parts: list[tuple[Floats, Floats, int, int]] = []
    x, y = (axis.ravel() for axis in np.mgrid[0:size, 0:size])
    parts.append(_surface(np.stack([x, y, 0 * x], 1), (0, 0, 1), 0, -1))
    for axis in (0, 1):
        along, up = (line.ravel() for line in np.mgrid[0:size, 0:height])
        wall = np.zeros((len(along), 3))
        wall[:, 1 - axis], wall[:, 2] = along, up
        parts.append(_surface(wall, (1, 0, 0) if axis == 0 else (0, 1, 0), 1, -1))
    for number in range(objects):
        kind = int(rng.integers(2, len(CLASSES)))
        make: Callable[..., tuple[Floats, Floats]] = _MAKERS[kind - 2]
        points, normals = make(rng, size / 24)
        at = np.array([*rng.uniform(0.2 * size, 0.88 * size, 2), 1.0])
        parts.append(((points + at).astype(np.float32), normals.astype(np.float32), kind, number))
    points = np.concatenate([part[0] for part in parts])
    normals = np.concatenate([part[1] for part in parts])
    labels = np.concatenate([np.full(len(part[0]), part[2], np.int64) for part in parts])
    numbers = np.concatenate([np.full(len(part[0]), part[3], np.int64) for part in parts])
    colours = np.concatenate([np.tile(rng.random(3), (len(part[0]), 1)) for part in parts])
    colours = np.clip(colours + rng.normal(0, 0.1, colours.shape), 0, 1).astype(np.float32)
    inside = ((points >= 0) & (points < (size, size, height))).all(1)
    scene = Points(points.astype(np.float32), colours, normals, labels, numbers).part(np.flatnonzero(inside)[::-1])
    noisy = scene.normals + rng.normal(0, 0.15, scene.normals.shape)
    noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
    return Points(scene.points, scene.colours, noisy.astype(np.float32), scene.labels, scene.objects).voxels()


def _surface(points: np.ndarray, normal: tuple[int, int, int], label: int, number: int) -> tuple[Floats, Floats, int, int]:
    return points.astype(np.float32), np.tile(np.array(normal, np.float32), (len(points), 1)), label, number


def _shell(distance: Callable[[np.ndarray], np.ndarray], reach: float) -> tuple[Floats, Floats]:
    """The surface voxels of a body: where its signed distance lies in -1..0; normals are the distance's slope."""
    steps = np.arange(-math.ceil(reach), math.ceil(reach) + 1)
    grid = np.stack(np.meshgrid(steps, steps, np.arange(0, 2 * math.ceil(reach) + 1), indexing="ij"), -1).reshape(-1, 3)
    grid = grid.astype(np.float64)
    away = distance(grid)
    points = grid[(away <= 0) & (away > -1.01)]
    slopes = [distance(points + move) - distance(points - move) for move in 0.5 * np.eye(3)]
    normals = np.stack(slopes, 1)
    return points.astype(np.float32), (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)).astype(
        np.float32
    )


def _slab(p: np.ndarray, half: tuple[float, float], low: float, high: float) -> np.ndarray:
    """Signed distance (in the largest-coordinate sense) of an upright box."""
    return np.max([np.abs(p[:, 0]) - half[0], np.abs(p[:, 1]) - half[1], p[:, 2] - high, low - p[:, 2]], 0)


def _tube(p: np.ndarray, radius: float, low: float, high: float) -> np.ndarray:
    return np.max([np.hypot(p[:, 0], p[:, 1]) - radius, p[:, 2] - high, low - p[:, 2]], 0)


def _box(rng: np.random.Generator, unit: float) -> tuple[Floats, Floats]:
    half, top = rng.uniform(1.5, 3, 2) * unit, rng.uniform(3, 6) * unit
    return _shell(lambda p: _slab(p, (half[0], half[1]), 0, top), 7 * unit)


def _ball(rng: np.random.Generator, unit: float) -> tuple[Floats, Floats]:
    radius = rng.uniform(2, 3.2) * unit
    return _shell(lambda p: np.linalg.norm(p - (0, 0, radius), axis=1) - radius, 7 * unit)


def _cylinder(rng: np.random.Generator, unit: float) -> tuple[Floats, Floats]:
    radius, top = rng.uniform(1.5, 2.8) * unit, rng.uniform(3, 6) * unit
    return _shell(lambda p: _tube(p, radius, 0, top), 7 * unit)


def _cone(rng: np.random.Generator, unit: float) -> tuple[Floats, Floats]:
    radius, top = rng.uniform(2, 3.2) * unit, rng.uniform(4, 7) * unit
    return _shell(lambda p: np.max([np.hypot(p[:, 0], p[:, 1]) - radius * (1 - p[:, 2] / top), -p[:, 2]], 0), 8 * unit)


def _table(rng: np.random.Generator, unit: float) -> tuple[Floats, Floats]:
    half, top = rng.uniform(2, 3.2, 2) * unit, rng.uniform(3, 5) * unit

    def distance(p: np.ndarray) -> np.ndarray:
        folded = np.abs(p[:, :2]) - (half - 0.5)
        legs = np.max([np.abs(folded[:, 0]) - 0.6, np.abs(folded[:, 1]) - 0.6, p[:, 2] - top, -p[:, 2]], 0)
        return np.minimum(legs, _slab(p, (half[0], half[1]), top - 0.9, top))

    return _shell(distance, 7 * unit)


def _stool(rng: np.random.Generator, unit: float) -> tuple[Floats, Floats]:
    radius, top = rng.uniform(1.8, 2.8) * unit, rng.uniform(3, 5) * unit
    return _shell(lambda p: np.minimum(_tube(p, 0.8, 0, top), _tube(p, radius, top - 0.9, top)), 7 * unit)


_MAKERS = (_box, _ball, _cylinder, _cone, _table, _stool)
