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

from tutelage.datasets.synthetic.scene import Scene, SceneObject
from tutelage.datasets.synthetic.script import GoldPrograms, GoldValue


class FunctionalStep(NamedTuple):
    """One operation of a functional program; ``dependencies`` are indices of earlier operations."""

    operation: str
    argument: str
    dependencies: tuple[int, ...] = ()


@dataclass(frozen=True)
class SceneQuestion:
    """A question with all that is known about it.

    ``kind`` is its detailed type, ``structural`` and ``about`` GQA's structural and semantic type. ``group`` is the
    global group (None for yes/no), ``topic`` the local one. ``objects`` pairs nouns of the text with object ids.
    ``gives_away`` are the facts that question and answer give away, ``depends_on`` those that the answer follows from.
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
    topic: str
    semantic: tuple[FunctionalStep, ...]
    programs: Mapping[str, str]
    gold_steps: Mapping[str, Sequence[GoldValue]]
    choices: tuple[str, ...]
    objects: tuple[tuple[str, str], ...] = ()
    gives_away: frozenset[tuple[str, ...]] = field(default_factory=frozenset)
    depends_on: frozenset[tuple[str, ...]] = field(default_factory=frozenset)


class QuestionCandidate(NamedTuple):
    """A question that could be asked: its answer, the group within which answers are balanced, and how to write it."""

    answer: str
    group: str
    build: Callable[[np.random.Generator, str], SceneQuestion]


QuestionType = Callable[[Scene, np.random.Generator], Iterator[QuestionCandidate]]


class AnswerBalancer:
    """Keeps answers level: of the drafts at hand it takes one whose answer was used least in its group.

    Nothing is taken where that would put an answer more than ``slack`` ahead of another that its group has had.
    """

    def __init__(self, slack: int = 3):
        self.slack = slack
        self.used: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def take(self, candidates: Sequence[QuestionCandidate], rng: np.random.Generator) -> QuestionCandidate | None:
        """A draft, counted as used; None where there is none, or none that would keep the balance."""
        if not candidates:
            return None
        tie = rng.random(len(candidates))
        draft = candidates[
            min(range(len(candidates)), key=lambda i: (self.used[candidates[i].group][candidates[i].answer], tie[i]))
        ]
        used = self.used[draft.group]
        if used[draft.answer] - min(used.values(), default=0) >= self.slack:
            return None
        used[draft.answer] += 1
        return draft


def unique(scene: Scene) -> list[SceneObject]:
    """The things whose shape no other thing of the scene has: those that a noun alone refers to."""
    counts = Counter(thing.shape for thing in scene.things)
    return [thing for thing in scene.things if counts[thing.shape] == 1]


def object_id(scene: Scene, thing: SceneObject) -> str:
    """The thing's id in the scene graph."""
    return f"{scene.seed % 10**7:07d}{scene.things.index(thing)}"


def select(scene: Scene, noun: str, things: Sequence[SceneObject]) -> FunctionalStep:
    """The operation that selects ``things``, called ``noun``."""
    return FunctionalStep("select", f"{noun} ({','.join(object_id(scene, thing) for thing in things) or '-'})")


def make_question(
    scene: Scene,
    name: str,
    kind: str,
    types: tuple[str, str],
    text: str,
    answer: str,
    full: str,
    semantic: Sequence[FunctionalStep],
    programs: GoldPrograms,
    choices: Sequence[str],
    things: Sequence[SceneObject] = (),
    *,
    topic: str,
    gives_away: Sequence[tuple[str, ...]] = (),
    depends_on: Sequence[tuple[str, ...]] = (),
) -> SceneQuestion:
    """A question from its parts; ``types`` are its structural and semantic type, ``things`` those it speaks of."""
    return SceneQuestion(
        id=name,
        image_id=scene.id,
        text=text,
        answer=answer,
        full_answer=full,
        kind=kind,
        structural=types[0],
        about=types[1],
        group=None if set(choices) == {"yes", "no"} else kind,
        topic=f"{scene.id}-{topic}",
        semantic=tuple(semantic),
        programs=MappingProxyType({"visprog": programs.visprog, "viper": programs.viper}),
        gold_steps=MappingProxyType({"visprog": programs.visprog_gold, "viper": programs.viper_gold}),
        choices=tuple(choices),
        objects=tuple((thing.shape, object_id(scene, thing)) for thing in things),
        gives_away=frozenset(gives_away),
        depends_on=frozenset(depends_on),
    )


def pick(rng: np.random.Generator, texts: Sequence[str]) -> str:
    """One of ``texts``."""
    return texts[int(rng.integers(len(texts)))]


def plural(noun: str) -> str:
    """The noun in the plural."""
    return f"{noun}es" if noun.endswith("ss") else f"{noun}s"


def yes_no(truth: bool) -> str:
    """Yes or no."""
    return "yes" if truth else "no"


def pointers(text: str, objects: Sequence[tuple[str, str]]) -> dict[str, str]:
    """{word index: object id} for the nouns of ``objects`` in ``text``, as GQA annotates them."""
    words = [word.lower() for word in re.findall(r"\w+", text)]
    return {str(words.index(noun)): name for noun, name in objects if noun in words}
