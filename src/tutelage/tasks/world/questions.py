"""Questions about one scene, in the form of GQA, each with its functional program, visual programs and gold values.

A *draft* is a question not yet written: its answer is known at once, so that many can be weighed and few written.
``count``, ``more`` and ``fewer`` are our extensions of GQA's operations; number is our attribute type.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from tutelage.tasks.world.oracle import ATTRIBUTES, attribute
from tutelage.tasks.world.scene import SHAPES, Scene, Thing
from tutelage.tasks.world.script import GoldValue, Programs, Script

PREDICATES = MappingProxyType(
    {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
)
OPPOSITE = MappingProxyType({"left": "right", "right": "left", "above": "below", "below": "above"})


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

    With ``slack`` given, nothing is taken where that would put an answer of a yes/no group more than ``slack`` ahead.
    """

    def __init__(self, slack: int | None = 2):
        self.slack = slack
        self.used: Counter[tuple[str, str]] = Counter()

    def take(self, drafts: Sequence[Draft], rng: np.random.Generator) -> Draft | None:
        """A draft, counted as used; None where there is none, or none that would keep the balance."""
        if not drafts:
            return None
        tie = rng.random(len(drafts))
        draft = drafts[min(range(len(drafts)), key=lambda i: (self.used[drafts[i].group, drafts[i].answer], tie[i]))]
        key = (draft.group, draft.answer)
        if self.slack is not None and draft.answer in ("yes", "no"):
            other = self.used[draft.group, "no" if draft.answer == "yes" else "yes"]
            if self.used[key] - other >= self.slack:
                return None
        self.used[key] += 1
        return draft


def unique(scene: Scene) -> list[Thing]:
    """The things whose shape no other thing of the scene has: those that a noun alone refers to."""
    counts = Counter(thing.shape for thing in scene.things)
    return [thing for thing in scene.things if counts[thing.shape] == 1]


def object_id(scene: Scene, thing: Thing) -> str:
    """The thing's id in the scene graph."""
    return f"{scene.seed % 10**7:07d}{scene.things.index(thing)}"


def _select(scene: Scene, noun: str, things: Sequence[Thing]) -> Op:
    return Op("select", f"{noun} ({','.join(object_id(scene, thing) for thing in things) or '-'})")


def _written(
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


def _pick(rng: np.random.Generator, texts: Sequence[str]) -> str:
    return texts[int(rng.integers(len(texts)))]


def _said(truth: bool) -> str:
    return "yes" if truth else "no"


# One thing, one attribute

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


def query(kind: str, scene: Scene, rng: np.random.Generator) -> Iterator[Draft]:
    """Drafts of "What color is the circle?"; the shape is asked of the only object of a scene."""
    if kind == "shape":
        things = list(scene.things) if len(scene.things) == 1 else []
    else:
        things = [t for t in unique(scene) if attribute(t, kind) and (kind != "pattern" or t.digit is None)]
    for thing in things:
        yield Draft(str(attribute(thing, kind)), kind, partial(_write_query, kind, scene, thing))


def _write_query(kind: str, scene: Scene, thing: Thing, rng: np.random.Generator, name: str) -> Question:
    noun, answer = "object" if kind == "shape" else thing.shape, str(attribute(thing, kind))
    script = Script({"IMAGE": scene})
    crop = script.crop(script.locate(script.view(), noun))
    programs = script.finish(script.ask(crop, canonical(kind, noun)))
    full = {"number": f"The number {answer} is on the {noun}.", "shape": f"The {noun} is a {answer}."}
    operation = Op("query", "name" if kind == "shape" else kind, (0,))
    return _written(
        scene,
        name,
        f"query{kind.capitalize()}",
        ("query", "cat" if kind == "shape" else "attr"),
        _pick(rng, QUERY_TEXTS[kind]).format(n=noun),
        answer,
        full.get(kind, f"The {noun} is {answer}."),
        [_select(scene, noun, [thing]), operation],
        programs,
        ATTRIBUTES[kind],
        [thing],
        local=f"{noun}_{kind}",
        knows=[(noun, kind), (noun, "exist")],
        needs=[(noun, kind)],
    )


def _properties(thing: Thing, rng: np.random.Generator, kinds: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """(kind, word, truth) of the thing: one true and one false property of each kind."""
    for kind in kinds:
        own = attribute(thing, kind)
        if own is None or (kind == "pattern" and thing.digit is not None):
            continue
        others = [word for word in ATTRIBUTES[kind] if word != own]
        yield kind, own, True
        yield kind, _pick(rng, others), False


def verify(kinds: Sequence[str], scene: Scene, rng: np.random.Generator) -> Iterator[Draft]:
    """Drafts of "Is the circle red?"."""
    for thing in unique(scene):
        for kind, word, truth in _properties(thing, rng, kinds):
            yield Draft(_said(truth), f"verify {kind}", partial(_write_verify, kind, word, scene, thing))


def _write_verify(kind: str, word: str, scene: Scene, thing: Thing, rng: np.random.Generator, name: str) -> Question:
    script = Script({"IMAGE": scene})
    crop = script.crop(script.locate(script.view(), thing.shape))
    verified = script.verify(crop, thing.shape, word)
    truth = attribute(thing, kind) == word
    noun = thing.shape
    return _written(
        scene,
        name,
        f"verify{kind.capitalize()}",
        ("verify", "attr"),
        _pick(rng, ("Is the {n} {w}?", "Does the {n} look {w}?", "Is the {n} in the image {w}?")).format(n=noun, w=word),
        _said(truth),
        f"{'Yes' if truth else 'No'}, the {noun} is {attribute(thing, kind)}.",
        [_select(scene, noun, [thing]), Op(f"verify {kind}", word, (0,))],
        script.finish(verified),
        ("yes", "no"),
        [thing],
        local=f"{noun}_{word}",
        knows=[(noun, "exist"), *([(noun, kind)] if truth else [])],
        needs=[(noun, kind)],
    )


def choose(kinds: Sequence[str], scene: Scene, rng: np.random.Generator) -> Iterator[Draft]:
    """Drafts of "Is the circle red or blue?"."""
    for thing in unique(scene):
        for kind, word, truth in _properties(thing, rng, kinds):
            if not truth:
                yield Draft(str(attribute(thing, kind)), f"choose {kind}", partial(_write_choose, kind, word, scene, thing))


def _write_choose(kind: str, word: str, scene: Scene, thing: Thing, rng: np.random.Generator, name: str) -> Question:
    noun, answer = thing.shape, str(attribute(thing, kind))
    first, second = (answer, word) if rng.random() < 0.5 else (word, answer)
    question = f"Is the {noun} {first} or {second}?"
    script = Script({"IMAGE": scene})
    crop = script.crop(script.locate(script.view(), noun))
    programs = script.finish(script.ask(crop, question))
    return _written(
        scene,
        name,
        f"choose{kind.capitalize()}",
        ("choose", "attr"),
        _pick(rng, (question, f"Does the {noun} look {first} or {second}?")),
        answer,
        f"The {noun} is {answer}.",
        [_select(scene, noun, [thing]), Op(f"choose {kind}", f"{first}|{second}", (0,))],
        programs,
        (first, second),
        [thing],
        local=f"{noun}_{first}_{second}",
        knows=[(noun, kind), (noun, "exist")],
        needs=[(noun, kind)],
    )


# How many of a shape there are

EXIST_TEXTS = ("Is there a {n}?", "Is there a {n} in the image?", "Does the image contain a {n}?", "Is a {n} present?")
COUNT_TEXTS = ("How many {n}s are there?", "How many {n}s are in the image?", "How many {n}s does the image contain?")


def exist(scene: Scene, rng: np.random.Generator) -> Iterator[Draft]:
    """Drafts of "Is there a circle?"."""
    for noun in SHAPES:
        yield Draft(_said(bool(scene.of(noun))), "exist", partial(_write_exist, noun, scene))


def _write_exist(noun: str, scene: Scene, rng: np.random.Generator, name: str) -> Question:
    things = scene.of(noun)
    script = Script({"IMAGE": scene})
    counted = script.count(script.locate(script.view(), noun))
    answer = _said(bool(things))
    programs = script.finish(script.evaluate("'yes' if {} > 0 else 'no'", counted, value=answer))
    return _written(
        scene,
        name,
        "exist",
        ("verify", "obj"),
        _pick(rng, EXIST_TEXTS).format(n=noun),
        answer,
        f"Yes, there is a {noun}." if things else f"No, there is no {noun}.",
        [_select(scene, noun, things), Op("exist", "?", (0,))],
        programs,
        ("yes", "no"),
        things[:1],
        local=f"exist_{noun}",
        knows=[(noun, "exist"), *([] if things else [(noun, "count")])],
        needs=[(noun, "exist")],
    )


def count(scene: Scene, rng: np.random.Generator) -> Iterator[Draft]:
    """Drafts of "How many circles are there?"."""
    for noun in SHAPES:
        yield Draft(str(len(scene.of(noun))), "count", partial(_write_count, noun, scene))


def _write_count(noun: str, scene: Scene, rng: np.random.Generator, name: str) -> Question:
    things = scene.of(noun)
    script = Script({"IMAGE": scene})
    programs = script.finish(script.count(script.locate(script.view(), noun)))
    total = str(len(things))
    return _written(
        scene,
        name,
        "count",
        ("query", "obj"),
        _pick(rng, COUNT_TEXTS).format(n=noun),
        total,
        f"There is 1 {noun}." if len(things) == 1 else f"There are {total} {noun}s.",
        [_select(scene, noun, things), Op("count", "", (0,))],
        programs,
        tuple(map(str, range(7))),
        local=f"count_{noun}",
        knows=[(noun, "count"), (noun, "exist")],
        needs=[(noun, "count")],
    )


def compare_count(scene: Scene, rng: np.random.Generator) -> Iterator[Draft]:
    """Drafts of "Are there more circles than stars?"."""
    present = [noun for noun in SHAPES if scene.of(noun)]
    for a, b in combinations(present, 2):
        for first, second in ((a, b), (b, a)):
            for word, sign in (("more", 1), ("fewer", -1)):
                truth = (len(scene.of(first)) - len(scene.of(second))) * sign > 0
                yield Draft(_said(truth), f"compare count {word}", partial(_write_compare_count, word, first, second, scene))


def _write_compare_count(
    word: str, first: str, second: str, scene: Scene, rng: np.random.Generator, name: str
) -> Question:
    script = Script({"IMAGE": scene})
    a = script.count(script.locate(script.view(), first))
    b = script.count(script.locate(script.view(), second))
    truth = int(a.value) > int(b.value) if word == "more" else int(a.value) < int(b.value)  # type: ignore[arg-type]
    sign, answer = ">" if word == "more" else "<", _said(truth)
    programs = script.finish(script.evaluate(f"'yes' if {{}} {sign} {{}} else 'no'", a, b, value=answer))
    semantic = [_select(scene, first, scene.of(first)), Op("count", "", (0,))]
    semantic += [_select(scene, second, scene.of(second)), Op("count", "", (2,)), Op(word, "", (1, 3))]
    texts = ("Are there {w} {a}s than {b}s?", "Are there {w} {a}s than {b}s in the image?")
    return _written(
        scene,
        name,
        "compareCount",
        ("compare", "obj"),
        _pick(rng, texts).format(w=word, a=first, b=second),
        answer,
        f"{answer.capitalize()}, there are {a.value} {first}s and {b.value} {second}s.",
        semantic,
        programs,
        ("yes", "no"),
        local=f"{word}_{first}_{second}",
        needs=[(first, "count"), (second, "count")],
    )


# Two things

def logic(kinds: Sequence[str], scene: Scene, rng: np.random.Generator) -> Iterator[Draft]:
    """Drafts of "Is the circle red and the star blue?", and the same with "or"."""
    things = unique(scene)
    for first, second in combinations(things, 2):
        claims = [list(_properties(thing, rng, kinds[:1] if len(kinds) == 1 else [_pick(rng, kinds)])) for thing in (first, second)]
        if not all(claims):
            continue
        for word in ("and", "or"):
            wanted = (0, 0) if rng.random() < 0.34 else (1, 1) if rng.random() < 0.34 else (0, 1) if rng.random() < 0.5 else (1, 0)
            a, b = claims[0][wanted[0]], claims[1][wanted[1]]
            truth = (a[2] and b[2]) if word == "and" else (a[2] or b[2])
            yield Draft(_said(truth), f"logic {word}", partial(_write_logic, word, (first, *a), (second, *b), scene))


Claim = tuple[Thing, str, str, bool]


def _write_logic(word: str, a: Claim, b: Claim, scene: Scene, rng: np.random.Generator, name: str) -> Question:
    script = Script({"IMAGE": scene})
    verified, semantic = [], []
    for thing, kind, value, _ in (a, b):
        crop = script.crop(script.locate(script.view(), thing.shape))
        verified.append(script.verify(crop, thing.shape, value))
        semantic += [_select(scene, thing.shape, [thing]), Op(f"verify {kind}", value, (len(semantic),))]
    truth = (a[3] and b[3]) if word == "and" else (a[3] or b[3])
    programs = script.finish(script.evaluate(f"{{}} {word} {{}}", *verified, value=truth))
    texts = ("Is the {a} {x} {w} the {b} {y}?", "Is the {a} {x} {w} is the {b} {y}?")
    return _written(
        scene,
        name,
        f"logic{word.capitalize()}",
        ("logical", "attr"),
        _pick(rng, texts).format(a=a[0].shape, x=a[2], w=word, b=b[0].shape, y=b[2]),
        _said(truth),
        f"{_said(truth).capitalize()}, the {a[0].shape} is {attribute(a[0], a[1])}"
        f" and the {b[0].shape} is {attribute(b[0], b[1])}.",
        [*semantic, Op(word, "", (1, 3))],
        programs,
        ("yes", "no"),
        [a[0], b[0]],
        local=f"{a[0].shape}_{a[2]}_{word}_{b[0].shape}_{b[2]}",
        needs=[(a[0].shape, a[1]), (b[0].shape, b[1])],
    )


SAME_TEXTS = {
    "same": ("Are the {a} and the {b} the same {k}?", "Do the {a} and the {b} have the same {k}?"),
    "different": ("Do the {a} and the {b} have different {k}s?",),
}


def compare(kinds: Sequence[str], scene: Scene, rng: np.random.Generator) -> Iterator[Draft]:
    """Drafts of "Are the circle and the star the same color?", and of "different colors"."""
    for first, second in combinations(unique(scene), 2):
        if rng.random() < 0.5:
            first, second = second, first
        for kind in kinds:
            same = attribute(first, kind) == attribute(second, kind)
            for word in SAME_TEXTS:
                truth = same == (word == "same")
                yield Draft(_said(truth), f"{word} {kind}", partial(_write_compare, word, kind, first, second, scene))


def _write_compare(
    word: str, kind: str, first: Thing, second: Thing, scene: Scene, rng: np.random.Generator, name: str
) -> Question:
    script = Script({"IMAGE": scene})
    asked = []
    for thing in (first, second):
        crop = script.crop(script.locate(script.view(), thing.shape))
        asked.append(script.ask(crop, canonical(kind, thing.shape)))
    truth = (asked[0].value == asked[1].value) == (word == "same")
    programs = script.finish(script.evaluate(f"{{}} {'==' if word == 'same' else '!='} {{}}", *asked, value=truth))
    a, b = first.shape, second.shape
    return _written(
        scene,
        name,
        f"{word}{kind.capitalize()}",
        ("compare", "attr"),
        _pick(rng, SAME_TEXTS[word]).format(a=a, b=b, k=kind),
        _said(truth),
        f"{_said(truth).capitalize()}, the {a} is {asked[0].value} and the {b} is {asked[1].value}.",
        [_select(scene, a, [first]), _select(scene, b, [second]), Op(f"{word} {kind}", "", (0, 1))],
        programs,
        ("yes", "no"),
        [first, second],
        local=f"{word}_{kind}_{a}_{b}",
        needs=[(a, kind), (b, kind)],
    )


# Places

CLEAR = 0.75
"""The share of a thing that must lie on one side of the cut: at least this, or at most what is left."""


def beyond(scene: Scene, noun: str, anchor: Thing, direction: str) -> list[Thing] | None:
    """The things of ``noun`` on that side of the anchor's centre; None where some thing straddles the cut."""
    cut = int(anchor.center[0] if direction in ("left", "right") else anchor.center[1])
    found = []
    for thing in scene.of(noun):
        start, size = (thing.x, thing.w) if direction in ("left", "right") else (thing.y, thing.h)
        share = min(max((cut - start) / size, 0.0), 1.0)
        share = share if direction in ("left", "above") else 1 - share
        if 1 - CLEAR < share < CLEAR:
            return None
        if share >= CLEAR:
            found.append(thing)
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
    text = _pick(rng, texts)
    text = text.replace("{n}?", "{n} {p}?") if "{p}" not in text else text
    relate = Op("relate", f"{noun},{PREDICATES[direction]},s ({object_id(scene, thing)})", (0,))
    return _written(
        scene,
        name,
        f"relation{kind.capitalize()}",
        ("query", "rel"),
        text.format(n=noun, p=place, k=kind),
        answer,
        f"The {noun} is {answer}.",
        [_select(scene, anchor.shape, [anchor]), relate, Op("query", kind, (1,))],
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
                    yield Draft(_said(bool(found)), "relation exist", write)


def _write_relation_exist(
    direction: str, anchor: Thing, noun: str, found: Sequence[Thing], scene: Scene, rng: np.random.Generator, name: str
) -> Question:
    script = Script({"IMAGE": scene})
    side = script.beyond(script.locate(script.view(), anchor.shape), direction)
    counted = script.count(script.locate(side, noun))
    answer = _said(bool(found))
    programs = script.finish(script.evaluate("'yes' if {} > 0 else 'no'", counted, value=answer))
    place, ids = f"{PREDICATES[direction]} the {anchor.shape}", ",".join(object_id(scene, thing) for thing in found)
    texts = ("Is there a {n} {p}?", "Is there a {n} that is {p}?")
    relate = Op("relate", f"{noun},{PREDICATES[direction]},s ({ids or '-'})", (0,))
    return _written(
        scene,
        name,
        "relationExist",
        ("verify", "rel"),
        _pick(rng, texts).format(n=noun, p=place),
        answer,
        f"Yes, there is a {noun} {place}." if found else f"No, there is no {noun} {place}.",
        [_select(scene, anchor.shape, [anchor]), relate, Op("exist", "?", (1,))],
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
    return _written(
        scene,
        name,
        "relationChoose",
        ("choose", "rel"),
        _pick(rng, (text, short)),
        direction,
        f"The {a} is {PREDICATES[direction]} the {b}.",
        [_select(scene, a, [thing]), Op("choose rel", f"{b},{predicates},o ({object_id(scene, anchor)})", (0,))],
        programs,
        (first, second),
        [thing, anchor],
        local=f"{a}_{first}_{second}_{b}",
        knows=[(a, direction, b), (a, "exist"), (b, "exist")],
        needs=[(a, direction, b)],
    )


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        **{f"{kind} query": partial(query, kind) for kind in QUERY_TEXTS},
        "verify": partial(verify, ("color", "pattern", "size")),
        "color verify": partial(verify, ("color",)),
        "choose": partial(choose, ("color", "pattern", "size")),
        "exist": exist,
        "count": count,
        "count compare": compare_count,
        "logic": partial(logic, ("color", "pattern", "size")),
        "color logic": partial(logic, ("color",)),
        "compare": partial(compare, ("color", "pattern")),
        "color compare": partial(compare, ("color",)),
        "color relation": partial(relation_query, "color"),
        "exist relation": relation_exist,
        "choose relation": relation_choose,
    }
)
"""Every kind of question that can be drafted."""


def pointers(text: str, objects: Sequence[tuple[str, str]]) -> dict[str, str]:
    """{word index: object id} for the nouns of ``objects`` in ``text``, as GQA annotates them."""
    words = [word.lower() for word in re.findall(r"\w+", text)]
    return {str(words.index(noun)): name for noun, name in objects if noun in words}
