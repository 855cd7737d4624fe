"""Questions about two things: claims joined by and / or, and attributes compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations, product

import numpy as np

from tutelage.datasets.synthetic.oracle import attribute
from tutelage.datasets.synthetic.questions.attribute import canonical, properties
from tutelage.datasets.synthetic.questions.base import (
    FunctionalStep,
    QuestionCandidate,
    SceneQuestion,
    make_question,
    pick,
    select,
    unique,
    yes_no,
)
from tutelage.datasets.synthetic.scene import Scene, SceneObject
from tutelage.datasets.synthetic.script import AnswerRef, GoldProgramBuilder


def logic(kinds: Sequence[str], scene: Scene, rng: np.random.Generator) -> Iterator[QuestionCandidate]:
    """Drafts of "Is the circle red and the star blue?", and the same with "or"."""
    for first, second in combinations(unique(scene), 2):
        claims = [list(properties(thing, rng, [pick(rng, kinds)])) for thing in (first, second)]
        if not all(claims):
            continue
        for word in ("and", "or"):
            both, only_first, only_second, neither = product(*claims)
            for a, b in (both, (only_first, only_second)[int(rng.integers(2))], neither):
                truth = (a[2] and b[2]) if word == "and" else (a[2] or b[2])
                write = partial(_write_logic, word, (first, *a), (second, *b), scene)
                yield QuestionCandidate(yes_no(truth), f"logic {word}", write)


Claim = tuple[SceneObject, str, str, bool]


def _write_logic(word: str, a: Claim, b: Claim, scene: Scene, rng: np.random.Generator, name: str) -> SceneQuestion:
    script = GoldProgramBuilder({"IMAGE": scene})
    verified: list[AnswerRef] = []
    semantic: list[FunctionalStep] = []
    for thing, kind, value, _ in (a, b):
        crop = script.crop(script.locate(script.view(), thing.shape))
        verified.append(script.verify(crop, thing.shape, value))
        semantic += [select(scene, thing.shape, [thing]), FunctionalStep(f"verify {kind}", value, (len(semantic),))]
    truth = (a[3] and b[3]) if word == "and" else (a[3] or b[3])
    programs = script.finish(script.evaluate(f"{{}} {word} {{}}", *verified, value=truth))
    texts = ("Is the {a} {x} {w} the {b} {y}?", "Is the {a} {x} {w} is the {b} {y}?")
    return make_question(
        scene,
        name,
        f"logic{word.capitalize()}",
        ("logical", "attr"),
        pick(rng, texts).format(a=a[0].shape, x=a[2], w=word, b=b[0].shape, y=b[2]),
        yes_no(truth),
        f"{yes_no(truth).capitalize()}, the {a[0].shape} is {attribute(a[0], a[1])} "
        f"and the {b[0].shape} is {attribute(b[0], b[1])}.",
        [*semantic, FunctionalStep(word, "", (1, 3))],
        programs,
        ("yes", "no"),
        [a[0], b[0]],
        topic=f"{a[0].shape}_{a[2]}_{word}_{b[0].shape}_{b[2]}",
        depends_on=[(a[0].shape, a[1]), (b[0].shape, b[1])],
    )


SAME_TEXTS = {
    "same": ("Are the {a} and the {b} the same {k}?", "Do the {a} and the {b} have the same {k}?"),
    "different": ("Do the {a} and the {b} have different {k}s?",),
}


def compare(kinds: Sequence[str], scene: Scene, rng: np.random.Generator) -> Iterator[QuestionCandidate]:
    """Drafts of "Are the circle and the star the same color?", and of "different colors"."""
    for first, second in combinations(unique(scene), 2):
        if rng.random() < 0.5:
            first, second = second, first
        for kind in kinds:
            same = attribute(first, kind) == attribute(second, kind)
            for word in SAME_TEXTS:
                truth = same == (word == "same")
                yield QuestionCandidate(yes_no(truth), f"{word} {kind}", partial(_write_compare, word, kind, first, second, scene))


def _write_compare(
    word: str, kind: str, first: SceneObject, second: SceneObject, scene: Scene, rng: np.random.Generator, name: str
) -> SceneQuestion:
    script = GoldProgramBuilder({"IMAGE": scene})
    compared = []
    for thing in (first, second):
        crop = script.crop(script.locate(script.view(), thing.shape))
        compared.append(script.ask(crop, canonical(kind, thing.shape)))
    truth = (compared[0].value == compared[1].value) == (word == "same")
    programs = script.finish(script.evaluate(f"{{}} {'==' if word == 'same' else '!='} {{}}", *compared, value=truth))
    a, b = first.shape, second.shape
    return make_question(
        scene,
        name,
        f"{word}{kind.capitalize()}",
        ("compare", "attr"),
        pick(rng, SAME_TEXTS[word]).format(a=a, b=b, k=kind),
        yes_no(truth),
        f"{yes_no(truth).capitalize()}, the {a} is {compared[0].value} and the {b} is {compared[1].value}.",
        [select(scene, a, [first]), select(scene, b, [second]), FunctionalStep(f"{word} {kind}", "", (0, 1))],
        programs,
        ("yes", "no"),
        [first, second],
        topic=f"{word}_{kind}_{a}_{b}",
        depends_on=[(a, kind), (b, kind)],
    )
