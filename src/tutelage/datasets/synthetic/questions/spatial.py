"""Questions about things on one side of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np

from tutelage.datasets.synthetic.oracle import ATTRIBUTES, attribute
from tutelage.datasets.synthetic.questions.attribute import QUERY_TEXTS, canonical
from tutelage.datasets.synthetic.questions.base import (
    FunctionalStep,
    QuestionCandidate,
    SceneQuestion,
    make_question,
    object_id,
    pick,
    select,
    unique,
    yes_no,
)
from tutelage.datasets.synthetic.scene import SHAPES, Scene, SceneObject
from tutelage.datasets.synthetic.script import GoldProgramBuilder

PREDICATES = MappingProxyType({"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"})
OPPOSITE = MappingProxyType({"left": "right", "right": "left", "above": "below", "below": "above"})


MIN_SHARE_ON_SIDE = 0.75
"""The share of a thing that must lie on one side of the cut: at least this, or at most what is left."""
CUT_MARGIN = 3
"""Pixels by which programs may cut beside the centre: patches of ViperGPT have a margin."""


def objects_on_side(scene: Scene, noun: str, anchor: SceneObject, direction: str) -> list[SceneObject] | None:
    """The things of ``noun`` on that side of the anchor's centre; None where some thing straddles the cut."""
    across = direction in ("left", "right")
    cut, found = anchor.center[0 if across else 1], []
    for thing in scene.of(noun):
        start, size = (thing.x, thing.w) if across else (thing.y, thing.h)
        before = [min(max((cut + moved - start) / size, 0.0), 1.0) for moved in (-CUT_MARGIN, CUT_MARGIN)]
        least, most = before if direction in ("left", "above") else [1 - share for share in before[::-1]]
        if least >= MIN_SHARE_ON_SIDE:
            found.append(thing)
        elif most > 1 - MIN_SHARE_ON_SIDE:
            return None
    return found


def relation_query(kind: str, scene: Scene, rng: np.random.Generator) -> Iterator[QuestionCandidate]:
    """Drafts of "What color is the circle to the left of the star?": one circle there, maybe more elsewhere."""
    for anchor in unique(scene):
        for direction in PREDICATES:
            for noun in SHAPES:
                if noun == anchor.shape or (kind == "pattern" and noun == "sign"):
                    continue
                found = objects_on_side(scene, noun, anchor, direction)
                if found is not None and len(found) == 1 and attribute(found[0], kind):
                    write = partial(_write_relation_query, kind, direction, anchor, found[0], scene)
                    yield QuestionCandidate(str(attribute(found[0], kind)), f"relation {kind}", write)


def _write_relation_query(
    kind: str, direction: str, anchor: SceneObject, thing: SceneObject, scene: Scene, rng: np.random.Generator, name: str
) -> SceneQuestion:
    script = GoldProgramBuilder({"IMAGE": scene})
    side = script.crop_side(script.locate(script.view(), anchor.shape), direction)
    crop = script.crop(script.locate(side, thing.shape))
    programs = script.finish(script.ask(crop, canonical(kind, thing.shape)))
    noun, place, answer = thing.shape, f"{PREDICATES[direction]} the {anchor.shape}", str(attribute(thing, kind))
    texts = QUERY_TEXTS[kind] if len(scene.of(noun)) > 1 else (*QUERY_TEXTS[kind], "What {k} is the {n} that is {p}?")
    text = pick(rng, texts)
    text = text.replace("{n}?", "{n} {p}?") if "{p}" not in text else text
    relate = FunctionalStep("relate", f"{noun},{PREDICATES[direction]},s ({object_id(scene, thing)})", (0,))
    return make_question(
        scene,
        name,
        f"relation{kind.capitalize()}",
        ("query", "rel"),
        text.format(n=noun, p=place, k=kind),
        answer,
        f"The {noun} is {answer}.",
        [select(scene, anchor.shape, [anchor]), relate, FunctionalStep("query", kind, (1,))],
        programs,
        ATTRIBUTES[kind],
        [anchor, thing],
        topic=f"{noun}_{direction}_{anchor.shape}_{kind}",
        gives_away=[(noun, direction, anchor.shape), (noun, "exist"), (anchor.shape, "exist")],
        depends_on=[(noun, direction, anchor.shape, kind)],
    )


def relation_exist(scene: Scene, rng: np.random.Generator) -> Iterator[QuestionCandidate]:
    """Drafts of "Is there a circle to the left of the star?"; some circle is in the scene."""
    for anchor in unique(scene):
        for direction in PREDICATES:
            for noun in SHAPES:
                if noun == anchor.shape or not scene.of(noun):
                    continue
                found = objects_on_side(scene, noun, anchor, direction)
                if found is not None:
                    write = partial(_write_relation_exist, direction, anchor, noun, found, scene)
                    yield QuestionCandidate(yes_no(bool(found)), "relation exist", write)


def _write_relation_exist(
    direction: str,
    anchor: SceneObject,
    noun: str,
    matches: Sequence[SceneObject],
    scene: Scene,
    rng: np.random.Generator,
    name: str,
) -> SceneQuestion:
    script = GoldProgramBuilder({"IMAGE": scene})
    side = script.crop_side(script.locate(script.view(), anchor.shape), direction)
    counted = script.count(script.locate(side, noun))
    answer = yes_no(bool(matches))
    programs = script.finish(script.evaluate("'yes' if {} > 0 else 'no'", counted, value=answer))
    place, ids = f"{PREDICATES[direction]} the {anchor.shape}", ",".join(object_id(scene, thing) for thing in matches)
    texts = ("Is there a {n} {p}?", "Is there a {n} that is {p}?")
    relate = FunctionalStep("relate", f"{noun},{PREDICATES[direction]},s ({ids or '-'})", (0,))
    return make_question(
        scene,
        name,
        "relationExist",
        ("verify", "rel"),
        pick(rng, texts).format(n=noun, p=place),
        answer,
        f"Yes, there is a {noun} {place}." if matches else f"No, there is no {noun} {place}.",
        [select(scene, anchor.shape, [anchor]), relate, FunctionalStep("exist", "?", (1,))],
        programs,
        ("yes", "no"),
        [anchor, *matches[:1]],
        topic=f"exist_{noun}_{direction}_{anchor.shape}",
        gives_away=[(noun, direction, anchor.shape), (anchor.shape, "exist"), *([(noun, "exist")] if matches else [])],
        depends_on=[(noun, direction, anchor.shape)],
    )


def relation_choose(scene: Scene, rng: np.random.Generator) -> Iterator[QuestionCandidate]:
    """Drafts of "Is the circle to the left or to the right of the star?"."""
    things = unique(scene)
    for thing in things:
        for anchor in things:
            for direction in ("left", "right") if thing is not anchor else ():
                if objects_on_side(scene, thing.shape, anchor, direction):
                    yield QuestionCandidate(
                        direction, "relation choose", partial(_write_relation_choose, direction, anchor, thing, scene)
                    )


def _write_relation_choose(
    direction: str, anchor: SceneObject, thing: SceneObject, scene: Scene, rng: np.random.Generator, name: str
) -> SceneQuestion:
    script = GoldProgramBuilder({"IMAGE": scene})
    first, second = ("left", "right") if rng.random() < 0.5 else ("right", "left")
    side = script.crop_side(script.locate(script.view(), anchor.shape), first)
    counted = script.count(script.locate(side, thing.shape))
    programs = script.finish(script.evaluate(f"'{first}' if {{}} > 0 else '{second}'", counted, value=direction))
    a, b = thing.shape, anchor.shape
    text = f"Is the {a} {PREDICATES[first]} the {b} or {PREDICATES[second]} the {b}?"
    short = f"Is the {a} to the {first} or to the {second} of the {b}?"
    predicates = f"{PREDICATES[first]}|{PREDICATES[second]}"
    return make_question(
        scene,
        name,
        "relationChoose",
        ("choose", "rel"),
        pick(rng, (text, short)),
        direction,
        f"The {a} is {PREDICATES[direction]} the {b}.",
        [select(scene, a, [thing]), FunctionalStep("choose rel", f"{b},{predicates},o ({object_id(scene, anchor)})", (0,))],
        programs,
        (first, second),
        [thing, anchor],
        topic=f"{a}_{first}_{second}_{b}",
        gives_away=[(a, direction, b), (a, "exist"), (b, "exist")],
        depends_on=[(a, direction, b)],
    )
