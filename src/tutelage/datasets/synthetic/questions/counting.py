"""Questions about how many things of a shape there are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import combinations

import numpy as np

from tutelage.datasets.synthetic.questions.base import (
    FunctionalStep,
    QuestionCandidate,
    SceneQuestion,
    make_question,
    pick,
    plural,
    select,
    yes_no,
)
from tutelage.datasets.synthetic.scene import SHAPES, Scene
from tutelage.datasets.synthetic.script import GoldProgramBuilder

EXIST_TEXTS = ("Is there a {n}?", "Is there a {n} in the image?", "Does the image contain a {n}?", "Is a {n} present?")
COUNT_TEXTS = ("How many {n} are there?", "How many {n} are in the image?", "How many {n} does the image contain?")


def exist(scene: Scene, rng: np.random.Generator) -> Iterator[QuestionCandidate]:
    """Drafts of "Is there a circle?"."""
    for noun in SHAPES:
        yield QuestionCandidate(yes_no(bool(scene.of(noun))), "exist", partial(_write_exist, noun, scene))


def _write_exist(noun: str, scene: Scene, rng: np.random.Generator, name: str) -> SceneQuestion:
    things = scene.of(noun)
    script = GoldProgramBuilder({"IMAGE": scene})
    counted = script.count(script.locate(script.view(), noun))
    answer = yes_no(bool(things))
    programs = script.finish(script.evaluate("'yes' if {} > 0 else 'no'", counted, value=answer))
    return make_question(
        scene,
        name,
        "exist",
        ("verify", "obj"),
        pick(rng, EXIST_TEXTS).format(n=noun),
        answer,
        f"Yes, there is a {noun}." if things else f"No, there is no {noun}.",
        [select(scene, noun, things), FunctionalStep("exist", "?", (0,))],
        programs,
        ("yes", "no"),
        things[:1],
        topic=f"exist_{noun}",
        gives_away=[(noun, "exist"), *([] if things else [(noun, "count")])],
        depends_on=[(noun, "exist")],
    )


def count(scene: Scene, rng: np.random.Generator) -> Iterator[QuestionCandidate]:
    """Drafts of "How many circles are there?", answered by 0 to 3: more are too rare to be level with the others."""
    for noun in SHAPES:
        if len(scene.of(noun)) <= 3:
            yield QuestionCandidate(str(len(scene.of(noun))), "count", partial(_write_count, noun, scene))


def _write_count(noun: str, scene: Scene, rng: np.random.Generator, name: str) -> SceneQuestion:
    things = scene.of(noun)
    script = GoldProgramBuilder({"IMAGE": scene})
    programs = script.finish(script.count(script.locate(script.view(), noun)))
    total = str(len(things))
    return make_question(
        scene,
        name,
        "count",
        ("query", "obj"),
        pick(rng, COUNT_TEXTS).format(n=plural(noun)),
        total,
        f"There is 1 {noun}." if len(things) == 1 else f"There are {total} {plural(noun)}.",
        [select(scene, noun, things), FunctionalStep("count", "", (0,))],
        programs,
        tuple(map(str, range(4))),
        topic=f"count_{noun}",
        gives_away=[(noun, "count"), (noun, "exist")],
        depends_on=[(noun, "count")],
    )


def compare_count(scene: Scene, rng: np.random.Generator) -> Iterator[QuestionCandidate]:
    """Drafts of "Are there more circles than stars?"."""
    present = [noun for noun in SHAPES if scene.of(noun)]
    for a, b in combinations(present, 2):
        for first, second in ((a, b), (b, a)):
            for word, sign in (("more", 1), ("fewer", -1)):
                truth = (len(scene.of(first)) - len(scene.of(second))) * sign > 0
                yield QuestionCandidate(
                    yes_no(truth), f"compare count {word}", partial(_write_compare_count, word, first, second, scene)
                )


def _write_compare_count(word: str, first: str, second: str, scene: Scene, rng: np.random.Generator, name: str) -> SceneQuestion:
    script = GoldProgramBuilder({"IMAGE": scene})
    a = script.count(script.locate(script.view(), first))
    b = script.count(script.locate(script.view(), second))
    truth = int(a.value) > int(b.value) if word == "more" else int(a.value) < int(b.value)  # type: ignore[arg-type]
    sign, answer = ">" if word == "more" else "<", yes_no(truth)
    programs = script.finish(script.evaluate(f"'yes' if {{}} {sign} {{}} else 'no'", a, b, value=answer))
    semantic = [select(scene, first, scene.of(first)), FunctionalStep("count", "", (0,))]
    semantic += [select(scene, second, scene.of(second)), FunctionalStep("count", "", (2,)), FunctionalStep(word, "", (1, 3))]
    texts = ("Are there {w} {a} than {b}?", "Are there {w} {a} than {b} in the image?")
    return make_question(
        scene,
        name,
        "compareCount",
        ("compare", "obj"),
        pick(rng, texts).format(w=word, a=plural(first), b=plural(second)),
        answer,
        f"{answer.capitalize()}, there are {a.value} {plural(first)} and {b.value} {plural(second)}.",
        semantic,
        programs,
        ("yes", "no"),
        topic=f"{word}_{first}_{second}",
        depends_on=[(first, "count"), (second, "count")],
    )
