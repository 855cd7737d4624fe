"""Questions about one scene, in the form of GQA, each with its functional program, visual programs and gold values.

A *draft* is a question not yet written: its answer is known at once, so that many can be weighed and few written.
``count``, ``more`` and ``fewer`` are our extensions of GQA's operations; number is our attribute type.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from tutelage.datasets.synthetic.scene import Scene, Thing
from tutelage.datasets.synthetic.script import GoldValue, Programs


class Op(NamedTuple):
    """One operation of a functional program; ``dependencies`` are indices of earlier operations."""

    operation: str
    argument: str
    dependencies: tuple[int, ...] = ()


@dataclass(frozen=True)
class Question:
    """A question with all that is known about it.

    ``kind`` is its detailed type, ``structural`` and ``about`` GQA's structural and semantic type. ``group`` is the
    global group (None for yes/no), ``local`` the local one. ``objects`` pairs nouns of the text with object ids.
    ``knows`` are the facts that question and answer give away, ``needs`` those that the answer follows from.
    """

    id: str
    image_id: str
    text: str
    answer: str
    full_answer: str
    kind: str
    structural: str
    about: str
    group: str | None
    local: str
    semantic: tuple[Op, ...]
    programs: Mapping[str, str]
    gold_steps: Mapping[str, Sequence[GoldValue]]
    choices: tuple[str, ...]
    objects: tuple[tuple[str, str], ...] = ()
    knows: frozenset[tuple[str, ...]] = field(default_factory=frozenset)
    needs: frozenset[tuple[str, ...]] = field(default_factory=frozenset)


class Draft(NamedTuple):
    """A question that could be asked: its answer, the group within which answers are balanced, and how to write it."""

    answer: str
    group: str
    write: Callable[[np.random.Generator, str], Question]


Kind = Callable[[Scene, np.random.Generator], Iterator[Draft]]


class Balance:
    """Keeps answers level: of the drafts at hand it takes one whose answer was used least in its group.

    Nothing is taken where that would put an answer more than ``slack`` ahead of another that its group has had.
    """

    def __init__(self, slack: int = 3):
        self.slack = slack
        self.used: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def take(self, drafts: Sequence[Draft], rng: np.random.Generator) -> Draft | None:
        """A draft, counted as used; None where there is none, or none that would keep the balance."""
        if not drafts:
            return None
        tie = rng.random(len(drafts))
        draft = drafts[min(range(len(drafts)), key=lambda i: (self.used[drafts[i].group][drafts[i].answer], tie[i]))]
        used = self.used[draft.group]
        if used[draft.answer] - min(used.values(), default=0) >= self.slack:
            return None
        used[draft.answer] += 1
        return draft


def unique(scene: Scene) -> list[Thing]:
    """The things whose shape no other thing of the scene has: those that a noun alone refers to."""
    counts = Counter(thing.shape for thing in scene.things)
    return [thing for thing in scene.things if counts[thing.shape] == 1]


def object_id(scene: Scene, thing: Thing) -> str:
    """The thing's id in the scene graph."""
    return f"{scene.seed % 10**7:07d}{scene.things.index(thing)}"


def select(scene: Scene, noun: str, things: Sequence[Thing]) -> Op:
    """The operation that selects ``things``, called ``noun``."""
    return Op("select", f"{noun} ({','.join(object_id(scene, thing) for thing in things) or '-'})")


def written(
    scene: Scene,
    name: str,
    kind: str,
    types: tuple[str, str],
    text: str,
    answer: str,
    full: str,
    semantic: Sequence[Op],
    programs: Programs,
    choices: Sequence[str],
    things: Sequence[Thing] = (),
    *,
    local: str,
    knows: Sequence[tuple[str, ...]] = (),
    needs: Sequence[tuple[str, ...]] = (),
) -> Question:
    """A question from its parts; ``types`` are its structural and semantic type, ``things`` those it speaks of."""
    return Question(
        id=name,
        image_id=scene.id,
        text=text,
        answer=answer,
        full_answer=full,
        kind=kind,
        structural=types[0],
        about=types[1],
        group=None if set(choices) == {"yes", "no"} else kind,
        local=f"{scene.id}-{local}",
        semantic=tuple(semantic),
        programs=MappingProxyType({"visprog": programs.visprog, "viper": programs.viper}),
        gold_steps=MappingProxyType({"visprog": programs.visprog_gold, "viper": programs.viper_gold}),
        choices=tuple(choices),
        objects=tuple((thing.shape, object_id(scene, thing)) for thing in things),
        knows=frozenset(knows),
        needs=frozenset(needs),
    )


def pick(rng: np.random.Generator, texts: Sequence[str]) -> str:
    """One of ``texts``."""
    return texts[int(rng.integers(len(texts)))]


def plural(noun: str) -> str:
    """The noun in the plural."""
    return f"{noun}es" if noun.endswith("ss") else f"{noun}s"


def said(truth: bool) -> str:
    """Yes or no."""
    return "yes" if truth else "no"


def pointers(text: str, objects: Sequence[tuple[str, str]]) -> dict[str, str]:
    """{word index: object id} for the nouns of ``objects`` in ``text``, as GQA annotates them."""
    words = [word.lower() for word in re.findall(r"\w+", text)]
    return {str(words.index(noun)): name for noun, name in objects if noun in words}
