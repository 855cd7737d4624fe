"""Words for scenes: captions by a small grammar, a fixed vocabulary, and classes that can be held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage import seeds
from tutelage.datasets.synthetic.scene import COLORS, PATTERNS, SHAPES, SIZES, Scene, SceneObject
from tutelage.errors import InputError

DIRECTIONS = ("left", "right", "up", "down")
VERTICAL, HORIZONTAL = ("top", "middle", "bottom"), ("left", "centre", "right")

ATTRIBUTES = {"shape": tuple(shape for shape in SHAPES if shape != "sign"), "color": COLORS, "pattern": PATTERNS, "size": SIZES}
"""What a thing is, and the values of each. Signs are left out: they bear a digit, which no caption names."""

TEMPLATES = ("a {thing}", "there is a {thing}", "the picture shows a {thing}", "one {thing}")
HELD_OUT_TEMPLATES = ("look, a {thing}", "a picture of a {thing}")
"""Wordings that no training caption has: what a student makes of them says whether it reads words or sentences."""

PAD, UNKNOWN = 0, 1

WORDS = ("<pad>", "<unknown>") + tuple(
    sorted(
        {
            *(value for values in ATTRIBUTES.values() for value in values if value != "plain"),
            *DIRECTIONS,
            *VERTICAL,
            *HORIZONTAL,
            *"a an and at above below of in the there is picture shows one look moves stays still not".split(),
        }
    )
)
"""The vocabulary: a word's id is its place. 0 is padding, 1 an unknown word."""


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return text.lower().replace(",", " ").replace(".", " ").split()


def encode(texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts as word ids int64 [N, length] and a mask int64 [N, length], 1 for words; longer texts are cut.

    Examples:
        >>> ids, mask = encode(["a red circle"], 4)
        >>> [WORDS[i] for i in ids[0]], mask[0].tolist()
        (['a', 'red', 'circle', '<pad>'], [1, 1, 1, 0])

    Raises:
        InputError: a length below 1.
    """
    if length < 1:
        raise InputError(f"{length} words", where="length", remedy="at least 1")
    index = {word: number for number, word in enumerate(WORDS)}
    ids = np.full((len(texts), length), PAD, np.int64)
    for row, text in enumerate(texts):
        found = [index.get(word, UNKNOWN) for word in words(text)][:length]
        ids[row, : len(found)] = found
    return ids, (ids != PAD).astype(np.int64)


def name_thing(thing: SceneObject, attributes: Sequence[str] = ("size", "pattern", "color", "shape")) -> str:
    """A thing in words: ``small striped red circle``; a plain pattern is left out."""
    return " ".join(value for name in attributes if (value := getattr(thing, name)) != "plain")


def place_of(thing: SceneObject, scene: Scene) -> str:
    """Which third of the picture a thing's centre lies in: ``top left``, ``middle centre`` …"""
    x, y = thing.center
    return f"{VERTICAL[min(2, int(3 * y / scene.height))]} {HORIZONTAL[min(2, int(3 * x / scene.width))]}"


def relation(first: SceneObject, second: SceneObject) -> str:
    """How ``first`` lies to ``second``, along the axis on which they are farther apart: left of, right of, above, below."""
    x, y = (a - b for a, b in zip(first.center, second.center, strict=True))
    if abs(x) >= abs(y):
        return "left of" if x < 0 else "right of"
    return "above" if y < 0 else "below"


def scene_captions(
    scene: Scene,
    seed: int = 0,
    attributes: Sequence[str] = ("size", "pattern", "color", "shape"),
    templates: Sequence[str] = TEMPLATES,
) -> dict[str, list[str]]:
    """True sentences about a scene, worded by ``seed``.

    Returns:
        ``things``: a caption for each thing, in order; ``places``: "a red circle in the top left"; ``relations``: one for
        each thing and the next; ``scene``: one that names all.

    Raises:
        InputError: an attribute that does not exist, or no template.
    """
    _check_attributes(attributes)
    if not templates:
        raise InputError("no template", where="templates", remedy='such as "a {thing}"')
    rng = seeds.numpy_rng(seed, "captions", scene.id)
    names = [name_thing(thing, attributes) for thing in scene.things]
    pairs = list(zip(range(len(names)), range(1, len(names)), strict=False))
    return {
        "things": [templates[int(rng.integers(len(templates)))].format(thing=name) for name in names],
        "places": [f"a {name} in the {place_of(thing, scene)}" for name, thing in zip(names, scene.things, strict=True)],
        "relations": [f"a {names[i]} {relation(scene.things[i], scene.things[j])} a {names[j]}" for i, j in pairs],
        "scene": [" and ".join(f"a {name}" for name in names)],
    }


def _check_attributes(attributes: Sequence[str]) -> None:
    for name in attributes:
        if name not in ATTRIBUTES:
            raise InputError(f"no attribute {name!r}", where="attributes", remedy=", ".join(ATTRIBUTES))


# -- classes -----------------------------------------------------------------------------------------------------------

Values = tuple[str, ...]


@dataclass(frozen=True)
class ClassSplit:
    """Classes that are combinations of attribute values: ``base`` to learn from, ``new`` held out.

    Each single value occurs in both, so that a new class is a new combination of known words.
    """

    attributes: Values
    base: tuple[Values, ...]
    new: tuple[Values, ...]

    @property
    def classes(self) -> tuple[Values, ...]:
        """All of them, the base classes first: a class id is a place here."""
        return self.base + self.new

    def name(self, number: int) -> str:
        """Class ``number`` in words."""
        return " ".join(value for value in self.classes[number] if value != "plain")

    def class_of(self, thing: SceneObject) -> int:
        """The class id of a thing."""
        return self.classes.index(tuple(getattr(thing, name) for name in self.attributes))


def split_classes(attributes: Sequence[str] = ("color", "shape"), new_share: float = 0.25, seed: int = 0) -> ClassSplit:
    """All combinations of some attributes, about ``new_share`` of them held out.

    Examples:
        >>> split = split_classes(("color", "shape"), 0.25)
        >>> len(split.base), len(split.new), {color for color, _ in split.new} == set(COLORS)
        (30, 10, True)

    Raises:
        InputError: an unknown attribute, or a share that leaves a value without a class on one side.
    """
    _check_attributes(attributes)
    if len(attributes) < 2:
        raise InputError("one attribute has no combinations", where="attributes", remedy="at least 2")
    sizes = [len(ATTRIBUTES[name]) for name in attributes]
    total = int(np.prod(sizes))
    wanted = round(total * new_share)
    if not max(sizes) <= wanted <= total - max(sizes):
        raise InputError(
            f"{wanted} of {total} classes held out: a value would be missing on one side",
            where="new_share",
            remedy=f"from {max(sizes) / total:.2f} to {1 - max(sizes) / total:.2f}",
        )
    rng = seeds.numpy_rng(seed, "class split", *attributes)
    every = [tuple(int(i) for i in np.unravel_index(number, sizes)) for number in range(total)]
    orders = [rng.permutation(size) for size in sizes]
    new = {tuple(int(order[number % len(order)]) for order in orders) for number in range(max(sizes))}  # holds every value
    left = Counter((axis, value) for one in every if one not in new for axis, value in enumerate(one))
    for place in rng.permutation(total).tolist():
        candidate = every[place]
        values = list(enumerate(candidate))
        if len(new) < wanted and candidate not in new and all(left[value] > 1 for value in values):
            new.add(candidate)
            left.subtract(values)

    def named(combination: tuple[int, ...]) -> Values:
        return tuple(ATTRIBUTES[name][i] for name, i in zip(attributes, combination, strict=True))

    base = tuple(named(c) for c in every if c not in new)
    return ClassSplit(tuple(attributes), base, tuple(named(c) for c in every if c in new))
