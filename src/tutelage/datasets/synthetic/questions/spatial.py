"""Questions about things on one side of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np

from tutelage.datasets.synthetic.questions.attribute import QUERY_TEXTS, canonical
from tutelage.datasets.synthetic.oracle import ATTRIBUTES, attribute
from tutelage.datasets.synthetic.questions.base import Draft, Op, Question, object_id, pick, said, select, unique, written
from tutelage.datasets.synthetic.scene import SHAPES, Scene, Thing
from tutelage.datasets.synthetic.script import Script

PREDICATES = MappingProxyType({"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"})
OPPOSITE = MappingProxyType({"left": "right", "right": "left", "above": "below", "below": "above"})


CLEAR = 0.75
"""The share of a thing that must lie on one side of the cut: at least this, or at most what is left."""
REACH = 3
"""Pixels by which programs may cut beside the centre: patches of ViperGPT have a margin."""


def beyond(scene: Scene, noun: str, anchor: Thing, direction: str) -> list[Thing] | None:
    """The things of ``noun`` on that side of the anchor's centre; None where some thing straddles the cut."""
    across = direction in ("left", "right")
    cut, found = anchor.center[0 if across else 1], []
    for thing in scene.of(noun):
        start, size = (thing.x, thing.w) if across else (thing.y, thing.h)
        before = [min(max((cut + moved - start) / size, 0.0), 1.0) for moved in (-REACH, REACH)]
        least, most = before if direction in ("left", "above") else [1 - share for share in before[::-1]]
        if least >= CLEAR:
            found.append(thing)
        elif most > 1 - CLEAR:
            return None
    return found


def relation_query(kind: str, scene: Scene, rng: np.random.Generator) -> Iterator[Draft]:
    """Drafts of "What color is the circle to the left of the star?": one circle there, maybe more elsewhere."""
    for anchor in unique(scene):
        for direction in PREDICATES:
            for noun in SHAPES:
                if noun == anchor.shape or (kind == "pattern" and noun == "sign"):
                    continue
                found = beyond(scene, noun, anchor, direction)
                if found is not None and len(found) == 1 and attribute(found[0], kind):
                    write = partial(_write_relation_query, kind, direction, anchor, found[0], scene)
                    yield Draft(str(attribute(found[0], kind)), f"relation {kind}", write)


def _write_relation_query(
    kind: str, direction: str, anchor: Thing, thing: Thing, scene: Scene, rng: np.random.Generator, name: str
) -> Question:
    script = Script({"IMAGE": scene})
    side = script.beyond(script.locate(script.view(), anchor.shape), direction)
    crop = script.crop(script.locate(side, thing.shape))
    programs = script.finish(script.ask(crop, canonical(kind, thing.shape)))
    noun, place, answer = thing.shape, f"{PREDICATES[direction]} the {anchor.shape}", str(attribute(thing, kind))
    texts = QUERY_TEXTS[kind] if len(scene.of(noun)) > 1 else (*QUERY_TEXTS[kind], "What {k} is the {n} that is {p}?")
    text = pick(rng, texts)
    text = text.replace("{n}?", "{n} {p}?") if "{p}" not in text else text
    relate = Op("relate", f"{noun},{PREDICATES[direction]},s ({object_id(scene, thing)})", (0,))
    return written(
        scene,
        name,
        f"relation{kind.capitalize()}",
        ("query", "rel"),
        text.format(n=noun, p=place, k=kind),
        answer,
        f"The {noun} is {answer}.",
        [select(scene, anchor.shape, [anchor]), relate, Op("query", kind, (1,))],
        programs,
        ATTRIBUTES[kind],
        [anchor, thing],
        local=f"{noun}_{direction}_{anchor.shape}_{kind}",
        knows=[(noun, direction, anchor.shape), (noun, "exist"), (anchor.shape, "exist")],
        needs=[(noun, direction, anchor.shape, kind)],
    )


def relation_exist(scene: Scene, rng: np.random.Generator) -> Iterator[Draft]:
    """Drafts of "Is there a circle to the left of the star?"; some circle is in the scene."""
    for anchor in unique(scene):
        for direction in PREDICATES:
            for noun in SHAPES:
                if noun == anchor.shape or not scene.of(noun):
                    continue
                found = beyond(scene, noun, anchor, direction)
                if found is not None:
                    write = partial(_write_relation_exist, direction, anchor, noun, found, scene)
                    yield Draft(said(bool(found)), "relation exist", write)


def _write_relation_exist(
    direction: str, anchor: Thing, noun: str, found: Sequence[Thing], scene: Scene, rng: np.random.Generator, name: str
) -> Question:
    script = Script({"IMAGE": scene})
    side = script.beyond(script.locate(script.view(), anchor.shape), direction)
    counted = script.count(script.locate(side, noun))
    answer = said(bool(found))
    programs = script.finish(script.evaluate("'yes' if {} > 0 else 'no'", counted, value=answer))
    place, ids = f"{PREDICATES[direction]} the {anchor.shape}", ",".join(object_id(scene, thing) for thing in found)
    texts = ("Is there a {n} {p}?", "Is there a {n} that is {p}?")
    relate = Op("relate", f"{noun},{PREDICATES[direction]},s ({ids or '-'})", (0,))
    return written(
        scene,
        name,
        "relationExist",
        ("verify", "rel"),
        pick(rng, texts).format(n=noun, p=place),
        answer,
        f"Yes, there is a {noun} {place}." if found else f"No, there is no {noun} {place}.",
        [select(scene, anchor.shape, [anchor]), relate, Op("exist", "?", (1,))],
        programs,
        ("yes", "no"),
        [anchor, *found[:1]],
        local=f"exist_{noun}_{direction}_{anchor.shape}",
        knows=[(noun, direction, anchor.shape), (anchor.shape, "exist"), *([(noun, "exist")] if found else [])],
        needs=[(noun, direction, anchor.shape)],
    )


def relation_choose(scene: Scene, rng: np.random.Generator) -> Iterator[Draft]:
    """Drafts of "Is the circle to the left or to the right of the star?"."""
    things = unique(scene)
    for thing in things:
        for anchor in things:
            for direction in ("left", "right") if thing is not anchor else ():
                if beyond(scene, thing.shape, anchor, direction):
                    yield Draft(direction, "relation choose", partial(_write_relation_choose, direction, anchor, thing, scene))


def _write_relation_choose(
    direction: str, anchor: Thing, thing: Thing, scene: Scene, rng: np.random.Generator, name: str
) -> Question:
    script = Script({"IMAGE": scene})
    first, second = ("left", "right") if rng.random() < 0.5 else ("right", "left")
    side = script.beyond(script.locate(script.view(), anchor.shape), first)
    counted = script.count(script.locate(side, thing.shape))
    programs = script.finish(script.evaluate(f"'{first}' if {{}} > 0 else '{second}'", counted, value=direction))
    a, b = thing.shape, anchor.shape
    text = f"Is the {a} {PREDICATES[first]} the {b} or {PREDICATES[second]} the {b}?"
    short = f"Is the {a} to the {first} or to the {second} of the {b}?"
    predicates = f"{PREDICATES[first]}|{PREDICATES[second]}"
    return written(
        scene,
        name,
        "relationChoose",
        ("choose", "rel"),
        pick(rng, (text, short)),
        direction,
        f"The {a} is {PREDICATES[direction]} the {b}.",
        [select(scene, a, [thing]), Op("choose rel", f"{b},{predicates},o ({object_id(scene, anchor)})", (0,))],
        programs,
        (first, second),
        [thing, anchor],
        local=f"{a}_{first}_{second}_{b}",
        knows=[(a, direction, b), (a, "exist"), (b, "exist")],
        needs=[(a, direction, b)],
    )
