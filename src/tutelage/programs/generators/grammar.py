"""A grammar that turns questions into programs of both languages, by rules alone.

It reads the questions about synthetic scenes and GQA's phrasing of the same types, NLVR2-style statements about a left
and a right image, and every question of easy-VQA (there, images show one shape: ``single=True``). All rules are our choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tutelage.errors import did_you_mean
from tutelage.programs.generators.program_builder import SIDES, BooleanExpr, ProgramBuilder, ProgramPair, attribute_question
from tutelage.programs.types import ParseFailure

Rule = tuple[re.Pattern[str], Callable[[ProgramBuilder, re.Match[str]], ProgramPair]]

_PARTS = {
    "N": r"[a-z]+(?:[ -][a-z]+)??",  # a noun, perhaps of two words; the shortest that fits
    "W": r"[a-z0-9]+(?:-[a-z]+)?",
    "K": r"color|pattern|size|shape|number|material",
    "PLACE": "|".join(sorted(SIDES, key=len, reverse=True)),
    "HERE": r"(?: (?:in|on) the (?:image|picture|photo|scene))?",
    "SIDE": r"left|right",
    "NUMBER": r"[0-9]+|one|two|three|four|five|six|seven|eight|nine|ten",
}
_NUMBERS = "zero one two three four five six seven eight nine ten".split()


def _rule(pattern: str) -> Callable[[Callable[[ProgramBuilder, re.Match[str]], ProgramPair]], Rule]:
    """A rule: ``<n:N>`` in the pattern is the part N, called n."""
    full = re.sub(r"<(\w+):(\w+)>", lambda m: f"(?P<{m[1]}>{_PARTS[m[2]]})", pattern)
    compiled = re.compile(full.replace("<HERE>", _PARTS["HERE"]))
    return lambda write: (compiled, write)


def generate(question: str, inputs: tuple[str, ...] = ("IMAGE",), *, single: bool = False, photo: bool = False) -> ProgramPair:
    """The programs of a question about one image, or with ``inputs`` ("LEFT", "RIGHT") of a statement about a pair.

    ``single`` tells that the image shows one thing: it is asked about whole, not looked for. ``photo`` tells that it is a
    photograph: what no rule takes apart is put to VQA whole.

    Raises:
        ParseFailure: no rule reads the question.
    """
    rules = PAIR_RULES if inputs == ("LEFT", "RIGHT") else SINGLE_RULES if single else PHOTO_RULES if photo else RULES
    text = " ".join(question.lower().replace("colour", "color").split()).rstrip("?. ")
    if not text.isprintable():
        raise ParseFailure(f"not a question: {question!r}"[:200], remedy="leave out what cannot be printed")
    for pattern, compose in rules:
        found = pattern.fullmatch(text)
        if found is not None:
            return compose(ProgramBuilder(inputs), found)
    openings = sorted({pattern.pattern.split("(")[0].split("<")[0].strip() for pattern, _ in rules} - {""})
    raise ParseFailure(f"the grammar does not read {question!r}", remedy=did_you_mean(text, openings))


def singular(word: str) -> str:
    """A plural noun in the singular."""
    if re.search(r"(?:ss|sh|ch|x)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


# One image of several things


@_rule(r"(?:what|which) <k:K> is (?:on )?the <n:N>(?: that is)? <p:PLACE> (?:the )?<a:N>")
def _query_beyond(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    side = c.crop_side(c.locate(c.view(), m["a"]), SIDES[m["p"]])
    return c.finish(c.ask(c.crop(c.locate(side, m["n"])), attribute_question(m["k"], m["n"])))


@_rule(r"what is the <k:K> of the <n:N>(?: that is)? <p:PLACE> (?:the )?<a:N>")
def _query_of_beyond(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return _query_beyond[1](c, m)


@_rule(r"(?:what|which) <k:K> is (?:on )?the <n:N><HERE>")
def _query(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return c.finish(c.ask(c.crop(c.locate(c.view(), m["n"])), attribute_question(m["k"], m["n"])))


@_rule(r"what is the <k:K> (?:of|on) the <n:N><HERE>")
def _query_of(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return _query[1](c, m)


@_rule(r"is there an? <n:N>(?: that is)? <p:PLACE> (?:the )?<a:N>")
def _exist_beyond(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    side = c.crop_side(c.locate(c.view(), m["a"]), SIDES[m["p"]])
    return c.finish_boolean(BooleanExpr(f"{{{c.count(c.locate(side, m['n']))}}} > 0", as_words=True))


def _write_exist(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    number = c.count(c.locate(c.view(), m["n"]))
    return c.finish_boolean(BooleanExpr(f"{{{number}}} > 0", as_words=True))


def _write_absent(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    number = c.count(c.locate(c.view(), m["n"]))
    return c.finish_boolean(BooleanExpr(f"{{{number}}} == 0", as_words=True))


_ABSENT = r"(?:is there (?:not an?|no)|does the (?:image|picture) not contain an?|is no) <n:N>(?: present)?<HERE>"
_EXIST = r"(?:is there an?|are there any|does the (?:image|picture) contain an?|is an?) <n:N>(?: present)?<HERE>"
_absent, _exist = _rule(_ABSENT)(_write_absent), _rule(_EXIST)(_write_exist)


@_rule(r"how many <n:N>(?: are there| are| does the (?:image|picture) contain)<HERE>")
def _count(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return c.finish(c.count(c.locate(c.view(), singular(m["n"]))))


@_rule(r"are there <w:COMPARED> <a:N> than <b:N><HERE>".replace("<w:COMPARED>", "(?P<w>more|fewer|less)"))
def _compare_count(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    a, b = (c.count(c.locate(c.view(), singular(m[name]))) for name in "ab")
    return c.finish_boolean(BooleanExpr(f"{{{a}}} {'>' if m['w'] == 'more' else '<'} {{{b}}}", as_words=True))


@_rule(r"(?:is|are) the <a:N> <x:W> (?P<w>and|or) (?:is |are )?the <b:N> <y:W>")
def _logic(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    truths = [c.verify(c.crop(c.locate(c.view(), m[n])), m[n], m[word]) for n, word in ("ax", "by")]
    return c.finish_boolean(BooleanExpr(f"{{{truths[0]}}} {m['w']} {{{truths[1]}}}"))


def _write_same(c: ProgramBuilder, m: re.Match[str], sign: str) -> ProgramPair:
    a, b = (c.ask(c.crop(c.locate(c.view(), m[n])), attribute_question(m["k"], m[n])) for n in "ab")
    return c.finish_boolean(BooleanExpr(f"{{{a}}} {sign} {{{b}}}"))


@_rule(r"(?:are|do) the <a:N> and the <b:N> (?:have |of )?the same <k:K>")
def _same(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return _write_same(c, m, "==")


@_rule(r"(?:are|do) the <a:N> and the <b:N> (?:have |of )?(?:a )?different <k:K>s?")
def _different(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return _write_same(c, m, "!=")


@_rule(r"is the <n:N> (?:to|on) the (?P<x>left|right)(?: of the [a-z ]+?)? or (?:to |on )?(?:the )?(?P<y>left|right) of the <a:N>")
def _choose_side(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    side = c.crop_side(c.locate(c.view(), m["a"]), m["x"])
    number = c.count(c.locate(side, m["n"]))
    return c.finish(c.evaluate(f"'{m['x']}' if {{{number}}} > 0 else '{m['y']}'"))


@_rule(r"(?:is|does) the <n:N>(?: look)? <x:W> or <y:W>")
def _choose(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return c.finish(c.ask(c.crop(c.locate(c.view(), m["n"])), f"Is the {m['n']} {m['x']} or {m['y']}?"))


@_rule(r"is the <n:N> (?P<p>to the left of|to the right of|above|below) the <a:N>")
def _verify_side(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    side = c.crop_side(c.locate(c.view(), m["a"]), SIDES[m["p"]])
    return c.finish_boolean(BooleanExpr(f"{{{c.count(c.locate(side, m['n']))}}} > 0", as_words=True))


@_rule(r"(?:is|does) the <n:N>(?: look|<HERE>) (?:an? )?<x:W>")
def _verify(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return c.finish_boolean(BooleanExpr(f"{{{c.verify(c.crop(c.locate(c.view(), m['n'])), m['n'], m['x'])}}}"))


@_rule(r"where is the <n:N><HERE>")
def _where(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return c.finish_boxes(c.locate(c.view(), m["n"]))


# A photograph


@_rule(r"how many <n:N>(?: (?:do|can) you see| can be seen| are visible| are shown)?<HERE>")
def _count_seen(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return _count[1](c, m)


@_rule(r"(?:(?:do|can) you see|is there) (?:an?|any|some) <n:N><HERE>")
def _exist_seen(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return _write_exist(c, m)


@_rule(r"(?:is|are) the <n:N> <p:PLACE> the <a:N>")
def _verify_place(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return _verify_side[1](c, m)


@_rule(r".+")
def _whole(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return c.finish(c.ask(c.view(), f"{m[0][:1].upper()}{m[0][1:]}?"))


# One image of one thing


@_rule(r"what color is the [a-z]+|what is the color of the [a-z]+<HERE>")
def _single_color(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return c.finish(c.ask(c.view(), "What color is the shape?"))


@_rule(r"what is the [a-z]+ shape|what shape (?:is (?:in the image|present)|does the image contain)")
def _single_shape(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    return c.finish(c.ask(c.view(), "What shape is in the image?"))


def _write_single(c: ProgramBuilder, m: re.Match[str], sign: str) -> ProgramPair:
    color, _, shape = m["n"].rpartition(" ")
    if color and shape != "shape":
        raise ParseFailure(f"one property at a time: {m['n']!r}", remedy="ask for a shape, or for a red shape")
    number = c.ask(c.view(), "What color is the shape?" if color else "What shape is in the image?")
    return c.finish_boolean(BooleanExpr(f"{{{number}}} {sign} '{color or shape}'"))


_single_exist = _rule(_EXIST)(lambda c, m: _write_single(c, m, "=="))
_single_absent = _rule(_ABSENT)(lambda c, m: _write_single(c, m, "!="))


# Two images


def _both(c: ProgramBuilder, noun: str) -> tuple[int, int]:
    left, right = (c.count(c.locate(c.view(side), noun)) for side in ("LEFT", "RIGHT"))
    return left, right


def _number(text: str) -> int:
    return int(text) if text.isdigit() else _NUMBERS.index(text)


@_rule(r"the <a:N> in the left image and the <b:N> in the right image (?:have|are) (?P<w>the same|different) <k:K>s?")
def _pair_same(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    answers = []
    for side, noun in (("LEFT", m["a"]), ("RIGHT", m["b"])):
        answers.append(c.ask(c.crop(c.locate(c.view(side), noun)), attribute_question(m["k"], noun)))
    return c.finish_boolean(BooleanExpr(f"{{{answers[0]}}} {'!=' if m['w'] == 'different' else '=='} {{{answers[1]}}}"))


@_rule(r"the <a:N> in the <s:SIDE> image is <x:W>(?: (?P<w>and|or) the <b:N> in the <t:SIDE> image is <y:W>)?")
def _pair_claims(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    truths = []
    for noun, side, word in (m.group("a", "s", "x"), m.group("b", "t", "y")):
        if noun is not None:
            truths.append(c.verify(c.crop(c.locate(c.view(side.upper()), noun)), noun, word))
    return c.finish_boolean(BooleanExpr(f" {m['w']} ".join(f"{{{number}}}" for number in truths)))


@_rule(r"there are (?P<w>more|fewer) <n:N> in the <s:SIDE> image than in the <t:SIDE> image")
def _pair_more(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    left, right = _both(c, singular(m["n"]))
    more_left = (m["w"] == "more") == (m["s"] == "left")
    if m["s"] == m["t"]:
        raise ParseFailure("an image is compared with itself")
    return c.finish_boolean(BooleanExpr(f"{{{left}}} {'>' if more_left else '<'} {{{right}}}"))


@_rule(r"(?P<w>both|only one|exactly one|at least one|neither|none)(?: of the)? images? contains? an? <n:N>")
def _pair_contain(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    left, right = (f"{{{number}}} > 0" for number in _both(c, m["n"]))
    if m["w"] in ("only one", "exactly one"):
        return c.finish_boolean(BooleanExpr(f"({left}) != ({right})"))
    if m["w"] in ("neither", "none"):
        return c.finish_boolean(BooleanExpr(f"not ({left} or {right})"))
    return c.finish_boolean(BooleanExpr(f"{left} {'and' if m['w'] == 'both' else 'or'} {right}"))


_SIGNS = {"exactly": "==", "at least": ">=", "at most": "<=", "more than": ">", "fewer than": "<", "less than": "<"}
_AMOUNT = "(?P<w>" + "|".join(_SIGNS) + ")"


@_rule(rf"there (?:is|are) {_AMOUNT} <k:NUMBER> <n:N>(?: in total| in (?:both|the two|the) images)?")
def _pair_total(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    left, right = _both(c, singular(m["n"]))
    return c.finish_boolean(BooleanExpr(f"{{{left}}} + {{{right}}} {_SIGNS[m['w']]} {_number(m['k'])}"))


@_rule(rf"the <s:SIDE> image contains {_AMOUNT} <k:NUMBER> <n:N>")
def _pair_side(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    number = c.count(c.locate(c.view(m["s"].upper()), singular(m["n"])))
    return c.finish_boolean(BooleanExpr(f"{{{number}}} {_SIGNS[m['w']]} {_number(m['k'])}"))


@_rule(r"the <s:SIDE> image contains (?P<no>no|an?) <n:N>")
def _pair_side_exist(c: ProgramBuilder, m: re.Match[str]) -> ProgramPair:
    number = c.count(c.locate(c.view(m["s"].upper()), m["n"]))
    return c.finish_boolean(BooleanExpr(f"{{{number}}} {'==' if m['no'] == 'no' else '>'} 0"))


def _rules(*rules: Any) -> tuple[Rule, ...]:
    return rules


RULES = _rules(
    *(_query_beyond, _query_of_beyond, _query, _query_of, _exist_beyond, _absent, _exist, _count, _compare_count),
    *(_logic, _same, _different, _choose_side, _choose, _verify_side, _verify, _where),
)
"""For one image of several things: the first rule that reads the whole question is used."""

PHOTO_RULES = (_count_seen, _exist_seen, _verify_place, *RULES, _whole)
"""For a photograph: the last rule reads every question."""

SINGLE_RULES = _rules(_single_color, _single_shape, _single_absent, _single_exist)
"""For one image of one thing."""

PAIR_RULES = _rules(_pair_same, _pair_claims, _pair_more, _pair_contain, _pair_total, _pair_side, _pair_side_exist)
"""For statements about a left and a right image."""
