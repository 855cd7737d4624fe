"""Clips of shapes that move: a function of (seed, number), with captions, boxes and masks of every frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tutelage import seeds
from tutelage.datasets.synthetic.captions import ATTRIBUTES, DIRECTIONS, name_thing
from tutelage.datasets.synthetic.render import masks, render
from tutelage.datasets.synthetic.scene import DOMAINS, SIDE, Scene, VisualDomain, make_scene
from tutelage.errors import InputError, did_you_mean

MOTIONS = (*DIRECTIONS, "still")
"""What a thing does; a class id is a place here."""
_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}


@dataclass(frozen=True)
class MovingShapes:
    """One clip.

    Attributes:
        frames: uint8 [T, 3, H, W].
        scenes: what each frame shows: the same things in other places.
        motions: int64 [N], what each thing does (a place in :data:`MOTIONS`).
        captions: one a thing: "a small red circle moves left".
        boxes: float32 [T, N, 4], centre and size in 0..1.
    """

    frames: np.ndarray
    scenes: tuple[Scene, ...]
    motions: np.ndarray
    captions: tuple[str, ...]
    boxes: np.ndarray

    @property
    def masks(self) -> np.ndarray:
        """bool [T, N, H, W]: the visible pixels of each thing."""
        return np.stack([masks(scene) for scene in self.scenes])


def moving_shapes(
    seed: int,
    number: int,
    *,
    frames: int = 9,
    speed: int = 2,
    count: int = 1,
    motions: tuple[str, ...] = MOTIONS,
    domain: str = "A",
    look: VisualDomain | None = None,
    image_size: int = SIDE,
) -> MovingShapes:
    """Clip ``number`` of the stream ``seed``.

    Where a thing is in the middle frame is drawn without regard to where it goes, as far as its path fits into the picture:
    a single frame says as little as it can about the motion. Background and noise stand still, so that what changes is
    what moves.

    Args:
        seed, number: name the clip.
        frames: T.
        speed: pixels a frame.
        count: things in the clip; each has a motion of its own, and a later one hides earlier ones.
        motions: those that may occur.
        domain: how it looks (``scene.DOMAINS``).
        look: another look.
        image_size: height and width in pixels.

    Examples:
        >>> clip = moving_shapes(0, 3, frames=5, image_size=32)
        >>> clip.frames.shape, clip.boxes.shape
        ((5, 3, 32, 32), (5, 1, 4))

    Raises:
        InputError: fewer than two frames, an unknown motion or domain, or a path that is longer than the picture.
    """
    for name in motions:
        if name not in MOTIONS:
            raise InputError(f"no motion {name!r}", where="motions", remedy=did_you_mean(name, list(MOTIONS)))
    if domain not in DOMAINS:
        raise InputError(f"unknown domain {domain!r}", where="domain", remedy=did_you_mean(domain, list(DOMAINS)))
    for what, value, least in (("frames", frames, 2), ("speed", speed, 1), ("count", count, 1), ("motions", len(motions), 1)):
        if value < least:
            raise InputError(f"{value} is too small", where=what, remedy=f"at least {least}: a clip of one frame has no motion")
    rng = seeds.numpy_rng(seed, "moving shapes", number)
    shapes = ATTRIBUTES["shape"]
    required = [{"shape": shapes[int(rng.integers(len(shapes)))], "size": "small"} for _ in range(count)]
    name = f"{domain}{seed}-clip-{number}"
    scene = make_scene(seed, f"clip-{number}", count=count, required=required, name=name, image_size=image_size)
    scene = replace(scene, domain=domain)
    chosen = rng.integers(0, len(motions), count)
    ways = [motions[int(i)] for i in chosen]
    reach = (frames // 2) * speed  # to either side of the middle frame
    middle = []
    for thing in scene.things:
        room = image_size - 2 - max(thing.w, thing.h) - 2 * reach
        if room < 0:
            raise InputError(
                f"{frames} frames of {speed} pixels do not fit into {image_size}",
                where="speed",
                remedy="fewer frames, a lower speed, or a larger picture",
            )
        x, y = (1 + reach + int(rng.integers(0, image_size - 1 - side - 2 * reach)) for side in (thing.w, thing.h))
        middle.append(replace(thing, x=x, y=y))
    scenes = []
    for frame in range(frames):
        away = (frame - frames // 2) * speed
        things = tuple(
            replace(thing, x=thing.x + away * _STEPS[way][0], y=thing.y + away * _STEPS[way][1])
            for thing, way in zip(middle, ways, strict=True)
        )
        scenes.append(replace(scene, things=things))
    boxes = np.array([[(*t.center, t.w, t.h) for t in one.things] for one in scenes], np.float32) / image_size
    motions = ["stays still" if way == "still" else f"moves {way}" for way in ways]
    captions = tuple(f"a {name_thing(thing)} {motion}" for thing, motion in zip(middle, motions, strict=True))
    ids = np.array([MOTIONS.index(way) for way in ways], np.int64)
    return MovingShapes(np.stack([render(one, look) for one in scenes]), tuple(scenes), ids, captions, boxes)
