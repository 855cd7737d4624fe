"""Questions about one attribute of one thing: queried, verified, or to be chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np

from tutelage.datasets.synthetic.oracle import ATTRIBUTES, attribute
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
from tutelage.datasets.synthetic.script import GoldProgramBuilder

QUERY_TEXTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "color": ("What color is the {n}?", "What is the color of the {n}?", "Which color is the {n}?"),
        "pattern": ("What pattern is the {n}?", "What is the pattern of the {n}?"),
        "size": ("What size is the {n}?", "What is the size of the {n}?"),
        "shape": ("What shape is the {n}?", "What is the shape of the {n}?"),
        "number": ("What number is on the {n}?", "Which number is on the {n}?"),
    }
)


def canonical(kind: str, noun: str) -> str:
    """The question that programs put to VQA about an attribute."""
    return QUERY_TEXTS[kind][0].format(n=noun)


def query(kind: str, scene: Scene, rng: np.random.Generator) -> Iterator[QuestionCandidate]:
    """Drafts of "What color is the circle?"; the shape is asked of the only object of a scene."""
    if kind == "shape":
        things = list(scene.things) if len(scene.things) == 1 else []
    else:
        things = [t for t in unique(scene) if attribute(t, kind) and (kind != "pattern" or t.digit is None)]
    for thing in things:
        yield QuestionCandidate(str(attribute(thing, kind)), kind, partial(_write_query, kind, scene, thing))


def _write_query(kind: str, scene: Scene, thing: SceneObject, rng: np.random.Generator, name: str) -> SceneQuestion:
    noun, answer = "object" if kind == "shape" else thing.shape, str(attribute(thing, kind))
    script = GoldProgramBuilder({"IMAGE": scene})
    crop = script.crop(script.locate(script.view(), noun))
    programs = script.finish(script.ask(crop, canonical(kind, noun)))
    full = {"number": f"The number {answer} is on the {noun}.", "shape": f"The {noun} is a {answer}."}
    operation = FunctionalStep("query", "name" if kind == "shape" else kind, (0,))
    return make_question(
        scene,
        name,
        f"query{kind.capitalize()}",
        ("query", "cat" if kind == "shape" else "attr"),
        pick(rng, QUERY_TEXTS[kind]).format(n=noun),
        answer,
        full.get(kind, f"The {noun} is {answer}."),
        [select(scene, noun, [thing]), operation],
        programs,
        ATTRIBUTES[kind],
        [thing],
        topic=f"{noun}_{kind}",
        gives_away=[(noun, kind), (noun, "exist")],
        depends_on=[(noun, kind)],
    )


def properties(thing: SceneObject, rng: np.random.Generator, kinds: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """(kind, word, truth) of the thing: one true and one false property of each kind."""
    for kind in kinds:
        own = attribute(thing, kind)
        if own is None or (kind == "pattern" and thing.digit is not None):
            continue
        others = [word for word in ATTRIBUTES[kind] if word != own]
        yield kind, own, True
        yield kind, pick(rng, others), False


def verify(kinds: Sequence[str], scene: Scene, rng: np.random.Generator) -> Iterator[QuestionCandidate]:
    """Drafts of "Is the circle red?"."""
    for thing in unique(scene):
        for kind, word, truth in properties(thing, rng, kinds):
            yield QuestionCandidate(yes_no(truth), f"verify {kind}", partial(_write_verify, kind, word, scene, thing))


def _write_verify(kind: str, word: str, scene: Scene, thing: SceneObject, rng: np.random.Generator, name: str) -> SceneQuestion:
    script = GoldProgramBuilder({"IMAGE": scene})
    crop = script.crop(script.locate(script.view(), thing.shape))
    verified = script.verify(crop, thing.shape, word)
    truth = attribute(thing, kind) == word
    noun = thing.shape
    return make_question(
        scene,
        name,
        f"verify{kind.capitalize()}",
        ("verify", "attr"),
        pick(rng, ("Is the {n} {w}?", "Does the {n} look {w}?", "Is the {n} in the image {w}?")).format(n=noun, w=word),
        yes_no(truth),
        f"{'Yes' if truth else 'No'}, the {noun} is {attribute(thing, kind)}.",
        [select(scene, noun, [thing]), FunctionalStep(f"verify {kind}", word, (0,))],
        script.finish(verified),
        ("yes", "no"),
        [thing],
        topic=f"{noun}_{word}",
        gives_away=[(noun, "exist"), *([(noun, kind)] if truth else [])],
        depends_on=[(noun, kind)],
    )


def choose(kinds: Sequence[str], scene: Scene, rng: np.random.Generator) -> Iterator[QuestionCandidate]:
    """Drafts of "Is the circle red or blue?"."""
    for thing in unique(scene):
        for kind, word, truth in properties(thing, rng, kinds):
            if not truth:
                yield QuestionCandidate(
                    str(attribute(thing, kind)), f"choose {kind}", partial(_write_choose, kind, word, scene, thing)
                )


def _write_choose(kind: str, word: str, scene: Scene, thing: SceneObject, rng: np.random.Generator, name: str) -> SceneQuestion:
    noun, answer = thing.shape, str(attribute(thing, kind))
    first, second = (answer, word) if rng.random() < 0.5 else (word, answer)
    question = f"Is the {noun} {first} or {second}?"
    script = GoldProgramBuilder({"IMAGE": scene})
    crop = script.crop(script.locate(script.view(), noun))
    programs = script.finish(script.ask(crop, question))
    return make_question(
        scene,
        name,
        f"choose{kind.capitalize()}",
        ("choose", "attr"),
        pick(rng, (question, f"Does the {noun} look {first} or {second}?")),
        answer,
        f"The {noun} is {answer}.",
        [select(scene, noun, [thing]), FunctionalStep(f"choose {kind}", f"{first}|{second}", (0,))],
        programs,
        (first, second),
        [thing],
        topic=f"{noun}_{first}_{second}",
        gives_away=[(noun, kind), (noun, "exist")],
        depends_on=[(noun, kind)],
    )
