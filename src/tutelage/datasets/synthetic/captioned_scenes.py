"""Pictures of scenes with captions, boxes, masks and classes: a function of (seed, number), for image and text together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tutelage import seeds
from tutelage.datasets.synthetic.captions import ATTRIBUTES, TEMPLATES, ClassSplit, Values, scene_captions
from tutelage.datasets.synthetic.render import masks, render
from tutelage.datasets.synthetic.scene import DOMAINS, SIDE, Scene, VisualDomain, make_scene
from tutelage.errors import InputError, did_you_mean

SHAPES = ATTRIBUTES["shape"]


@dataclass(frozen=True)
class CaptionedScene:
    """One sample.

    Attributes:
        image: uint8 [3, H, W].
        scene: what is in it.
        captions: by kind, see :func:`tutelage.datasets.synthetic.captions.scene_captions`.
        boxes: float32 [N, 4], centre and size of each thing in 0..1, as the task ``detection`` has them.
        labels: int64 [N], class ids of the split; None without one.
    """

    image: np.ndarray
    scene: Scene
    captions: dict[str, list[str]]
    boxes: np.ndarray
    labels: np.ndarray | None

    @property
    def masks(self) -> np.ndarray:
        """bool [N, H, W]: the visible pixels of each thing."""
        return masks(self.scene)


def captioned_scene(
    seed: int,
    number: int,
    *,
    count: int | tuple[int, int] = (1, 3),
    classes: Sequence[Values] | None = None,
    split: ClassSplit | None = None,
    domain: str = "A",
    look: VisualDomain | None = None,
    image_size: int = SIDE,
    templates: Sequence[str] = TEMPLATES,
) -> CaptionedScene:
    """Sample ``number`` of the stream ``seed``.

    Args:
        seed, number: name the sample.
        count: things in a scene: a number, or (least, most).
        classes: the classes that its things are drawn from, such as ``split.base``; None: all.
        split: gives class ids, and says which attributes ``classes`` name.
        domain: how the pictures look (``scene.DOMAINS``); the things of a sample do not depend on it.
        look: another look, such as ``DOMAINS["B"].shifted(0.5)``.
        image_size: height and width in pixels.
        templates: of captions; :data:`HELD_OUT_TEMPLATES` are for tests.

    Examples:
        >>> from tutelage.datasets.synthetic.captions import split_classes
        >>> split = split_classes()
        >>> sample = captioned_scene(0, 7, count=2, classes=split.base, split=split)
        >>> sample.image.shape, len(sample.captions["things"]), bool((sample.labels < len(split.base)).all())
        ((3, 48, 48), 2, True)

    Raises:
        InputError: counts that make no sense, classes without their split, or things that do not fit.
    """
    least, most = (count, count) if isinstance(count, int) else count
    if not 1 <= least <= most:
        raise InputError(f"{count} things", where="count", remedy="a number from 1, or (least, most)")
    if classes is not None and (split is None or not classes):
        raise InputError("classes need the split that names their attributes", where="classes", remedy="split=split_classes(…)")
    if domain not in DOMAINS:
        raise InputError(f"unknown domain {domain!r}", where="domain", remedy=did_you_mean(domain, list(DOMAINS)))
    rng = seeds.numpy_rng(seed, "captioned scene", number)
    total = int(rng.integers(least, most + 1))
    required = [{"shape": SHAPES[int(i)]} for i in rng.integers(0, len(SHAPES), total)]
    if split is not None:
        known = list(classes if classes is not None else split.classes)
        chosen = [known[int(i)] for i in rng.integers(0, len(known), total)]
        required = [own | dict(zip(split.attributes, values, strict=True)) for own, values in zip(required, chosen, strict=True)]
    # Things are drawn under one domain's name, so that a sample shows the same things in every look.
    name = f"{domain}{seed}-captioned-{number}"
    scene = make_scene(seed, f"captioned-{number}", count=total, required=required, name=name, image_size=image_size)
    scene = replace(scene, domain=domain)
    boxes = np.array([(*t.center, t.w, t.h) for t in scene.things], np.float32) / image_size
    labels = None if split is None else np.array([split.class_of(thing) for thing in scene.things], np.int64)
    return CaptionedScene(render(scene, look), scene, scene_captions(scene, seed, templates=templates), boxes, labels)
