"""One question in many wordings, read from ``paraphrases.txt``, and pairs of a question and its program made of them.

A form has one wording that the grammar reads, which gives the program, and others that mean the same; some of these are
held out, to be tried only on a writer that never saw them. Forms and words are our choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from tutelage.errors import InputError
from tutelage.programs.generators.grammar import generate
from tutelage.programs.types import ParseFailure

INPUTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"image": ("IMAGE",), "pair": ("LEFT", "RIGHT"), "single": ("IMAGE",), "none": ("IMAGE",)}
)
"""What a question may be about, and the inputs of its program; ``none`` has no program."""

_NOUNS = (
    "circle rectangle triangle star cross sign object thing shape car dog cat person table chair tree house ball cup"
    " bottle bird horse truck bike train boat plane clock book phone laptop lamp window door flower fence road shirt hat bag"
    " plate fork apple banana orange pizza cake sofa bed pillow mirror box vase cloud bench kite umbrella cow"
).split()
_WORDS = (
    "black gray teal brown red green blue yellow plain striped dotted small large white purple pink wooden metallic round square"
    " open closed wet dry clean dirty tall short old new bright dark empty full soft shiny"
).split()
_KINDS = ("color", "pattern", "size", "shape", "material")
_PLACES = {
    "to the left of": ("to the left of", "left of", "on the left of"),
    "to the right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "on top of"),
    "below": ("below", "under", "underneath", "beneath"),
}
_AMOUNTS = ("exactly", "at least", "at most", "more than", "fewer than")
_SLOTS = frozenset("n m ns ms k ks w x p q s t d more amount no".split())


@dataclass
class Paraphrase:
    """What its questions are ``about`` (a key of INPUTS), the ``canonical`` wording, and those that mean the same."""

    about: str
    canonical: str
    paraphrases: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)


class QuestionProgramPair(NamedTuple):
    """A question, what it is about, and its VisProg program; None where it has none."""

    question: str
    about: str
    program: str | None


def read_paraphrases(path: str | Path | None = None) -> list[Paraphrase]:
    """The forms of a file of wordings, by default our own.

    Raises:
        InputError: the file is absent, or a line is no wording; file and line are named.
    """
    path = Path(__file__).with_name("paraphrases.txt") if path is None else Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read: {error}", where=path, remedy="check the path") from error
    forms: list[Paraphrase] = []
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        unknown = set(re.findall(r"\{(\w*)\}", text)) - _SLOTS
        if unknown:
            raise InputError(f"no slot {{{min(unknown)}}}", where=where, remedy=f"slots: {', '.join(sorted(_SLOTS))}")
        if line[0].isspace():
            if not forms:
                raise InputError("a wording before the first form", where=where, remedy="begin with image: What {k} is the {n}?")
            (forms[-1].held_out if text.startswith("~") else forms[-1].paraphrases).append(text.lstrip("~ "))
        else:
            about, _, plain = text.partition(":")
            if about not in INPUTS:
                raise InputError(f"unknown form {about!r}", where=where, remedy=f"one of {', '.join(INPUTS)}")
            forms.append(Paraphrase(about, plain.strip()))
            _check_readable(forms[-1], where)
    return forms


def _check_readable(form: Paraphrase, where: str) -> None:
    if form.about != "none":
        try:
            program(form.canonical.format(**fillers(np.random.default_rng(0))), form.about)
        except ParseFailure as failure:
            raise InputError(f"the grammar does not read {form.canonical!r}", where=where, remedy=failure.remedy) from failure


def program(question: str, about: str) -> str:
    """The grammar's VisProg program.

    Raises:
        ParseFailure: no rule reads the question.
    """
    return generate(question, INPUTS[about], single=about == "single").visprog


def fillers(rng: np.random.Generator) -> dict[str, str]:
    """A word for every slot; the two nouns differ, and so do the two attribute words."""
    n, m = (_NOUNS[i] for i in rng.permutation(len(_NOUNS))[:2])
    w, x = (_WORDS[i] for i in rng.permutation(len(_WORDS))[:2])
    k, p = _pick(_KINDS, rng), _pick(list(_PLACES), rng)
    s, t = (("left", "right"), ("right", "left"))[int(rng.integers(2))]
    found = {"n": n, "m": m, "ns": plural(n), "ms": plural(m), "k": k, "ks": f"{k}s", "w": w, "x": x, "s": s, "t": t}
    found |= {"p": p, "q": _pick(_PLACES[p], rng), "d": str(rng.integers(1, 7)), "no": _pick(("a", "no"), rng)}
    return found | {"more": _pick(("more", "fewer"), rng), "amount": _pick(_AMOUNTS, rng)}


def plural(noun: str) -> str:
    """The plural, as far as the nouns here need it."""
    return f"{noun}es" if noun.endswith(("s", "sh", "ch", "x")) else f"{noun}s"


def make_pairs(
    forms: Sequence[Paraphrase], rng: np.random.Generator, rounds: int, held_out: bool = False
) -> Iterator[QuestionProgramPair]:
    """In each round one question of every wording, with words drawn anew; of the held-out wordings, or of all others."""
    for _ in range(rounds):
        for form in forms:
            for wording in form.held_out if held_out else (*([form.canonical] if form.canonical else ()), *form.paraphrases):
                words = fillers(rng)
                text = form.canonical.format(**words)
                yield QuestionProgramPair(
                    wording.format(**words), form.about, None if form.about == "none" else program(text, form.about)
                )


def _pick(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]
