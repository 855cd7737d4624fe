"""Volt's augmentations of 3-D scenes, each view a function of its seed; and scenes as training data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.distillation.data import Batch
from tutelage.errors import InputError
from tutelage.seeds import numpy_rng
from tutelage.storage import fingerprint

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
IGNORED = -1
"""The label of a point that has none."""


@dataclass(frozen=True)
class Points:
    """A scene: ``points`` [n, 3], in voxels; ``colours`` [n, 3] in 0..1; ``normals`` [n, 3]; ``labels`` [n], class ids or
    :data:`IGNORED`; ``objects`` [n]: the number of each point's object, -1 for none."""

    points: Floats
    colours: Floats
    normals: Floats
    labels: Ints
    objects: Ints

    def part(self, rows: NDArray[np.generic]) -> Points:
        """Some of the points."""
        return Points(self.points[rows], self.colours[rows], self.normals[rows], self.labels[rows], self.objects[rows])

    def turned(self, matrix: Floats, centre: Floats) -> Points:
        """Points and normals turned (or mirrored, or scaled: normals keep their length) about ``centre``."""
        normals = self.normals @ matrix.T
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        return replace(
            self,
            points=(self.points - centre) @ matrix.T + centre,
            normals=(normals / np.maximum(length, 1e-6)).astype(np.float32),
        )

    def voxels(self) -> Points:
        """One point a voxel, the first that falls in it, on whole coordinates from 0."""
        places = np.floor(self.points - np.floor(self.points.min(0)) + 1e-4).astype(np.int64)
        _, first = np.unique(places, axis=0, return_index=True)
        return replace(self.part(first), points=places[first].astype(np.float32))


def joined(one: Points, other: Points) -> Points:
    """Both scenes in one place (Mix3D; Nekrasov et al., 2021), their centres on each other."""
    move = one.points.mean(0) - other.points.mean(0)
    moved = replace(
        other, points=other.points + move, objects=np.where(other.objects < 0, -1, other.objects + one.objects.max() + 1)
    )
    pairs = zip(vars(one).values(), vars(moved).values(), strict=True)
    return Points(*(np.concatenate(pair) for pair in pairs))


def rotation(axis: int, angle: float) -> Floats:
    """The matrix that turns by ``angle`` radians about axis 0, 1 or 2."""
    a, b = [i for i in range(3) if i != axis]
    matrix = np.eye(3, dtype=np.float32)
    matrix[a, a] = matrix[b, b] = math.cos(angle)
    matrix[a, b], matrix[b, a] = -math.sin(angle), math.sin(angle)
    return matrix


@dataclass(frozen=True)
class SceneAugmentation:
    """The recipe: which changes a training view undergoes; each is off at 0.

    Attributes:
        mix: probability of joining another scene (published: 0.85 indoors, 0.2 outdoors).
        turn: probability of a rotation about z by any angle.
        tilt: largest rotation about x and y, radians.
        scale: largest change of size: a factor in 1 +- scale, published 0.1.
        flip: probability of mirroring, x and y each.
        jitter: standard deviation of noise on each point, voxels.
        elastic: largest shift by a smooth random field, voxels.
        colour: largest change of brightness, contrast and each colour.
        crop: probability of keeping only the 60 % nearest to a random point.
        dropout: probability of dropping a fifth of the points.
        objects: probability, object by object and change by change, of a shift, turn, flip, scale, loss of colour,
            removal, or an exchange of places with another object (published 0.1 to 0.2).

    The magnitudes that the paper leaves open (tilt, jitter, elastic, colour, dropout's share) are our choice.
    """

    mix: float = 0.85
    turn: float = 1.0
    tilt: float = math.pi / 64
    scale: float = 0.1
    flip: float = 0.5
    jitter: float = 0.1
    elastic: float = 0.5
    colour: float = 0.2
    crop: float = 0.2
    dropout: float = 0.2
    objects: float = 0.1

    def __call__(self, scene: Points, seed: int, another: Callable[[np.random.Generator], Points]) -> Points:
        """The view of ``scene`` that ``seed`` names; ``another`` draws the scene to mix with."""
        rng = numpy_rng(seed, "scene view")
        view = self._changed(scene, rng)
        if rng.random() < self.mix:
            view = joined(view, self._changed(another(rng), rng))
        return view.voxels()

    def _changed(self, scene: Points, rng: np.random.Generator) -> Points:
        if self.objects:
            scene = self._objects(scene, rng)
        centre = scene.points.mean(0)
        matrix = rotation(2, rng.uniform(0, 2 * math.pi)) if rng.random() < self.turn else np.eye(3, dtype=np.float32)
        if self.tilt:
            matrix = rotation(0, rng.uniform(-self.tilt, self.tilt)) @ rotation(1, rng.uniform(-self.tilt, self.tilt)) @ matrix
        mirror = np.where(rng.random(3) < (self.flip, self.flip, 0.0), -1.0, 1.0)
        factor = 1 + rng.uniform(-self.scale, self.scale)
        scene = scene.turned((matrix * mirror * factor).astype(np.float32), centre)
        if rng.random() < self.crop and len(scene.points) > 10:
            away = np.square(scene.points - scene.points[rng.integers(len(scene.points))]).sum(1)
            scene = scene.part(np.sort(np.argsort(away, kind="stable")[: math.ceil(0.6 * len(away))]))
        if rng.random() < self.dropout and len(scene.points) > 10:
            scene = scene.part(np.sort(rng.permutation(len(scene.points))[: math.ceil(0.8 * len(scene.points))]))
        points = scene.points
        if self.elastic:
            points = points + self.elastic * smooth_field(points, rng)
        if self.jitter:
            points = points + np.clip(rng.normal(0, self.jitter, points.shape), -3 * self.jitter, 3 * self.jitter)
        colours = scene.colours
        if self.colour:
            shift, contrast = rng.uniform(-self.colour, self.colour, 3), 1 + rng.uniform(-self.colour, self.colour)
            colours = np.clip((colours - colours.mean(0)) * contrast + colours.mean(0) + shift, 0, 1)
        return replace(scene, points=points.astype(np.float32), colours=colours.astype(np.float32))

    def _objects(self, scene: Points, rng: np.random.Generator) -> Points:
        """Each object on its own: shift, turn, flip, scale, loss of colour; exchange of places; removal."""
        points, colours, normals = scene.points.copy(), scene.colours.copy(), scene.normals.copy()
        numbers = [number for number in np.unique(scene.objects) if number >= 0]
        lost = np.zeros(len(points), bool)
        for number in numbers:
            rows = scene.objects == number
            shift, turn, flip, scale, fade, drop, swap = rng.random(7) < self.objects
            matrix = rotation(2, rng.uniform(0, 2 * math.pi)) if turn else np.eye(3, dtype=np.float32)
            matrix = matrix * (np.array([-1.0, 1.0, 1.0]) if flip else 1.0) * (1 + rng.uniform(-0.2, 0.2) if scale else 1.0)
            base = points[rows].mean(0) * (1, 1, 0) + points[rows].min(0) * (0, 0, 1)  # objects stay on their ground
            change = replace(scene.part(rows), points=points[rows]).turned(matrix.astype(np.float32), base.astype(np.float32))
            points[rows], normals[rows] = change.points, change.normals
            if shift:
                points[rows, :2] += rng.uniform(-3, 3, 2)
            if fade:
                colours[rows] = colours[rows].mean()
            if swap and len(numbers) > 1:
                other = scene.objects == rng.choice(numbers)
                move = (points[other].mean(0) - points[rows].mean(0)) * (1, 1, 0)
                points[rows] += move
                points[other] -= move
            lost |= rows & drop
        kept = ~lost if not lost.all() else lost
        return replace(scene, points=points, colours=colours, normals=normals).part(kept)


def smooth_field(points: Floats, rng: np.random.Generator, cell: float = 6.0) -> Floats:
    """A smooth random shift of each point, each coordinate in about -1..1: noise on a grid of ``cell`` voxels, between
    its corners linear."""
    places = (points - points.min(0)) / cell
    low = np.floor(places).astype(np.int64)
    corners = rng.uniform(-1, 1, (*(low.max(0) + 2), 3))
    part = places - low
    total = np.zeros(points.shape)
    for corner in np.ndindex(2, 2, 2):
        weight = np.where(np.array(corner) == 1, part, 1 - part).prod(1, keepdims=True)
        total += weight * corners[tuple((low + corner).T)]
    return total.astype(np.float32)


class SceneDataset:
    """Scenes as training data: a batch's inputs are ``coords`` [n, 3], ``features`` [n, 6] (colour, normal) and ``batch``
    [n] of all its scenes together, labels [n]; ``extra["objects"]`` [n]: each voxel's object in its scene, -1 for none.

    ``views``: the augmentation; None: scenes as they are, and then all view seeds are 0.

    Raises:
        InputError: no scene, or one without points.
    """

    def __init__(self, scenes: Sequence[Points], views: SceneAugmentation | None = None):
        if not scenes or any(not len(scene.points) for scene in scenes):
            raise InputError("no scene, or a scene without points", where="scenes", remedy="leave empty scenes out")
        self.scenes, self.views = [scene.voxels() for scene in scenes], views

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def fingerprint(self) -> str:
        """Names every point and the augmentation."""
        return fingerprint("scenes-1", self._content, repr(self.views))

    @cached_property
    def _content(self) -> str:
        return fingerprint(*(array.tobytes() for scene in self.scenes for array in vars(scene).values()))

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """See :class:`tutelage.distillation.data.ReplayableData`."""
        views = self.views if seeds is not None else None
        chosen = [self.scenes[i] for i in indices.tolist()]
        if views is not None and seeds is not None:
            pairs = zip(chosen, seeds.tolist(), strict=True)
            chosen = [views(scene, seed, lambda rng: self.scenes[rng.integers(len(self.scenes))]) for scene, seed in pairs]
        whose = torch.arange(len(chosen)).repeat_interleave(torch.tensor([len(scene.points) for scene in chosen]))
        features = [np.concatenate([scene.colours, scene.normals], 1, dtype=np.float32) for scene in chosen]
        inputs = {
            "coords": torch.from_numpy(np.concatenate([scene.points for scene in chosen]).astype(np.int64)),
            "features": torch.from_numpy(np.concatenate(features)),
            "batch": whose,
        }
        labels, objects = (
            torch.from_numpy(np.concatenate([getattr(scene, name) for scene in chosen])) for name in ("labels", "objects")
        )
        seen = torch.zeros_like(indices) if views is None else seeds
        return Batch(inputs, labels, ids=indices, seeds=seen, extra={"objects": objects})
