"""Statements about a pair of scenes, in the form of NLVR2, each with its visual programs and gold values.

As in NLVR2 a *set* holds four pairs, and each of its sentences is judged on all four: true of two, false of two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from tutelage.datasets.synthetic.questions.attribute import canonical
from tutelage.datasets.synthetic.questions.base import plural, unique
from tutelage.datasets.synthetic.scene import COLORS, SHAPES, Scene, make_scene
from tutelage.datasets.synthetic.script import GoldProgramBuilder, GoldPrograms, GoldValue
from tutelage.errors import InputError
from tutelage.seeds import derive

PAIRS = 4
"""Pairs in a set."""

Pair = tuple[Scene, Scene]


@dataclass(frozen=True)
class NlvrStatement:
    """One sentence judged on one pair. ``id`` is set-pair-sentence (NLVR2 puts the split in front)."""

    id: str
    left: Scene
    right: Scene
    text: str
    truth: bool
    kind: str
    programs: Mapping[str, str]
    gold_steps: Mapping[str, Sequence[GoldValue]]


@dataclass(frozen=True)
class StatementTemplate:
    """A sentence before it is judged: ``truth`` of a pair, and how its programs are written."""

    text: str
    kind: str
    truth: Callable[[Scene, Scene], bool]
    build: Callable[[GoldProgramBuilder], GoldPrograms]


def make_set(seed: int, index: int, domain: str = "B", sentences: int = 2, name: str | None = None) -> list[NlvrStatement]:
    """Set ``index`` of the stream ``seed``: four pairs, ``sentences`` sentences, each true of two pairs.

    The first sentence is about colours, and scenes are drawn to fit it; the others count things.

    Raises:
        InputError: no scenes were found that fit.
    """
    stream = derive(seed, "pair", domain, index)
    rng = np.random.default_rng(stream)
    name = name or f"{domain}{seed}-{index}"
    for attempt in range(20):
        labels = rng.permutation([True, True, False, False]).tolist()
        first, wanted = _about_colors(rng, labels)
        pairs = [
            (
                _scene_with(stream, f"{attempt}-{i}-0", domain, f"{name}-{i}-0", left),
                _scene_with(stream, f"{attempt}-{i}-1", domain, f"{name}-{i}-1", right),
            )
            for i, (left, right) in enumerate(wanted)
        ]
        chosen = [first, *_balanced_templates(pairs, rng, sentences - 1)]
        if len(chosen) == sentences:
            return list(_with_truth(index, pairs, chosen))
    raise InputError(f"no four pairs fit {sentences} sentences", where=f"set {index}", remedy="ask for fewer sentences")


def _with_truth(index: int, pairs: Sequence[Pair], sentences: Sequence[StatementTemplate]) -> Iterator[NlvrStatement]:
    for number, (left, right) in enumerate(pairs):
        for at, sentence in enumerate(sentences):
            programs = sentence.build(GoldProgramBuilder({"LEFT": left, "RIGHT": right}))
            yield NlvrStatement(
                f"{index}-{number}-{at}",
                left,
                right,
                sentence.text,
                sentence.truth(left, right),
                sentence.kind,
                MappingProxyType({"visprog": programs.visprog, "viper": programs.viper}),
                MappingProxyType({"visprog": programs.visprog_gold, "viper": programs.viper_gold}),
            )


def _scene_with(stream: int, index: str, domain: str, name: str, required: Mapping[str, Any]) -> Scene:
    """A scene that holds the wanted thing, the only one of its shape."""
    for again in range(50):
        scene = make_scene(stream, f"{index}-{again}", domain, required=[required], name=name)
        if len(scene.of(required["shape"])) == 1:
            return scene
    raise InputError("no scene fits", where=name)


def _about_colors(
    rng: np.random.Generator, labels: Sequence[bool]
) -> tuple[StatementTemplate, list[tuple[dict[str, str], dict[str, str]]]]:
    """A sentence about the colours of one thing a side, and what each pair must hold for its label."""
    a, b = (SHAPES[i] for i in rng.integers(len(SHAPES), size=2))
    form = ("same", "different", "each", "one")[int(rng.integers(4))]
    c, d = (COLORS[i] for i in rng.integers(len(COLORS), size=2))
    wanted = []
    for label in labels:
        x, y = c, d
        if form in ("same", "different"):
            x = COLORS[int(rng.integers(len(COLORS)))]
            y = x if label == (form == "same") else _other(rng, x)
        elif form == "each" and not label:
            wrong = rng.random() < 0.5
            x, y = (_other(rng, c), d) if wrong else (c, _other(rng, d))
        elif form == "one" and not label:
            x, y = _other(rng, c), _other(rng, d)
        elif form == "one":
            x, y = [(c, _other(rng, d)), (_other(rng, c), d), (c, d)][int(rng.integers(3))]
        wanted.append(({"shape": a, "color": x}, {"shape": b, "color": y}))
    sentence = _colors(form, a, b) if form in ("same", "different") else _claims(form, a, c, b, d)
    return sentence, wanted


def _other(rng: np.random.Generator, color: str) -> str:
    return COLORS[(COLORS.index(color) + int(rng.integers(1, len(COLORS)))) % len(COLORS)]


def _color_of_only(scene: Scene, noun: str) -> str:
    return next(thing.color for thing in unique(scene) if thing.shape == noun)


def _colors(form: str, a: str, b: str) -> StatementTemplate:
    def write(script: GoldProgramBuilder) -> GoldPrograms:
        statements = []
        for side, noun in (("LEFT", a), ("RIGHT", b)):
            crop = script.crop(script.locate(script.view(side), noun))
            statements.append(script.ask(crop, canonical("color", noun)))
        truth = (statements[0].value == statements[1].value) == (form == "same")
        sign = "==" if form == "same" else "!="
        return script.finish(script.evaluate(f"{{}} {sign} {{}}", *statements, value=truth))

    words = "the same color" if form == "same" else "different colors"
    return StatementTemplate(
        f"The {a} in the left image and the {b} in the right image have {words}.",
        f"{form}Color",
        lambda left, right: (_color_of_only(left, a) == _color_of_only(right, b)) == (form == "same"),
        write,
    )


def _claims(form: str, a: str, c: str, b: str, d: str) -> StatementTemplate:
    word = "and" if form == "each" else "or"

    def write(script: GoldProgramBuilder) -> GoldPrograms:
        claims = []
        for side, noun, color in (("LEFT", a, c), ("RIGHT", b, d)):
            crop = script.crop(script.locate(script.view(side), noun))
            claims.append(script.verify(crop, noun, color))
        truth = (claims[0].value and claims[1].value) if form == "each" else (claims[0].value or claims[1].value)
        return script.finish(script.evaluate(f"{{}} {word} {{}}", *claims, value=bool(truth)))

    def truth(left: Scene, right: Scene) -> bool:
        x, y = _color_of_only(left, a) == c, _color_of_only(right, b) == d
        return (x and y) if form == "each" else (x or y)

    text = f"The {a} in the left image is {c} {word} the {b} in the right image is {d}."
    return StatementTemplate(text, f"{form}Color", truth, write)


# Sentences that count

Count = Callable[[int, int], bool]


def _balanced_templates(pairs: Sequence[Pair], rng: np.random.Generator, number: int) -> list[StatementTemplate]:
    """Up to ``number`` counting sentences of different kinds, each true of exactly half of the pairs."""
    chosen: list[StatementTemplate] = []
    candidates = list(_counting())
    for at in rng.permutation(len(candidates)):
        if len(chosen) == number:
            break
        sentence = candidates[at]
        if any(sentence.kind == other.kind for other in chosen):
            continue
        if 2 * sum(sentence.truth(*pair) for pair in pairs) == len(pairs):
            chosen.append(sentence)
    return chosen


def _counting() -> Iterator[StatementTemplate]:
    for noun in SHAPES:
        more = "There are {w} {n} in the left image than in the right image."
        yield _counting_template(noun, more.format(w="more", n=plural(noun)), "more", "{} > {}", lambda x, y: x > y)
        yield _counting_template(noun, more.format(w="fewer", n=plural(noun)), "fewer", "{} < {}", lambda x, y: x < y)
        yield _counting_template(noun, f"Both images contain a {noun}.", "both", "{} > 0 and {} > 0", lambda x, y: x > 0 and y > 0)
        yield _counting_template(
            noun, f"At least one of the images contains a {noun}.", "any", "{} > 0 or {} > 0", lambda x, y: x + y > 0
        )
        text = f"Only one of the images contains a {noun}."
        yield _counting_template(noun, text, "only", "({} > 0) != ({} > 0)", lambda x, y: (x > 0) != (y > 0))
        for total in (1, 2, 3):
            verb, nouns = ("is", noun) if total == 1 else ("are", plural(noun))
            exactly = f"There {verb} exactly {total} {nouns} in total."
            yield _counting_template(noun, exactly, "total", f"{{}} + {{}} == {total}", partial(_total_is, total))
            at_least = f"There {verb} at least {total} {nouns} in total."
            yield _counting_template(noun, at_least, "least", f"{{}} + {{}} >= {total}", partial(_total_reaches, total))


def _total_is(total: int, x: int, y: int) -> bool:
    return x + y == total


def _total_reaches(total: int, x: int, y: int) -> bool:
    return x + y >= total


def _counting_template(noun: str, text: str, kind: str, expression: str, truth: Count) -> StatementTemplate:
    def judge(left: Scene, right: Scene) -> bool:
        return truth(len(left.of(noun)), len(right.of(noun)))

    def write(script: GoldProgramBuilder) -> GoldPrograms:
        a, b = (script.count(script.locate(script.view(side), noun)) for side in ("LEFT", "RIGHT"))
        value = truth(int(a.value), int(b.value))  # type: ignore[arg-type]
        return script.finish(script.evaluate(expression, a, b, value=value))

    return StatementTemplate(text, f"{kind}Count", judge, write)
