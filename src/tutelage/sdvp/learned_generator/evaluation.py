"""What a writer is examined on: questions that the learned writer of a seed has not seen, with their gold programs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from tutelage.errors import MissingExtra
from tutelage.programs.generators import paraphrases
from tutelage.programs.generators.paraphrases import INPUTS, Pair
from tutelage.programs.generators.program_templates import words
from tutelage.programs.generators.base import Request, Writer
from tutelage.sdvp.learned_generator.generator import LearnedWriter
from tutelage.sdvp.learned_generator.training import Schooling, schoolbook, world_pairs
from tutelage.seeds import numpy_rng
from tutelage.datasets import easy_vqa


def unseen(seed: int, config: Schooling = Schooling()) -> dict[str, list[Pair]]:  # noqa: B008  (frozen)
    """By name: ``world`` questions of other scenes, their texts new; ``new words`` in known wordings; ``held-out wordings``,
    unanswerable ones among them; ``easy-VQA``'s test questions where that package is installed."""
    seen = {pair.question for pair in schoolbook(config, seed)}
    rng, forms = numpy_rng(seed, "writer", "report"), paraphrases.read_forms()
    known = paraphrases.pairs(forms, rng, 4)
    sets = {
        "world": [pair for pair in world_pairs(seed, "report", 150, 40) if pair.question not in seen],
        "new words": [pair for pair in known if pair.question not in seen and pair.program is not None],
        "held-out wordings": list(paraphrases.pairs(forms, rng, 8, held_out=True)),
    }
    with contextlib.suppress(MissingExtra):
        asked = sorted({sample.question for sample in easy_vqa.load("test")})
        sets["easy-VQA"] = [Pair(question, "single", paraphrases.program(question, "single")) for question in asked]
    return sets


def exact_match(writer: Callable[[bool], Writer], book: Sequence[Pair]) -> dict[str, float]:
    """How a writer fares; ``writer(single)`` is it for images that show one thing, or many.

    ``exact``: the share of answerable questions whose first draft is the program, to the letter, whatever its
    probability; ``written``: the same of drafts that are not declined; ``declined`` and ``refused``: the shares of
    answerable and unanswerable questions that are.
    """
    counts = dict.fromkeys(("exact", "written", "declined"), 0)
    refused = 0
    for single in (False, True):
        mine = [pair for pair in book if (pair.about == "single") == single]
        drafts = writer(single).write([Request(pair.question, "visprog", INPUTS[pair.about]) for pair in mine])
        for pair, (draft, *_) in zip(mine, drafts, strict=True):
            declined = draft.failure is not None
            if pair.program is None:
                refused += declined
                continue
            counts["exact"] += draft.text == pair.program
            counts["written"] += draft.text == pair.program and not declined
            counts["declined"] += declined
    answerable = sum(pair.program is not None for pair in book)
    others = len(book) - answerable
    found = {name: count / answerable for name, count in counts.items()} if answerable else {}
    return found | ({"refused": refused / others} if others else {})


def unknown(writer: LearnedWriter, book: Sequence[Pair]) -> float:
    """The share of words that the writer never read."""
    total = sum(len(words(pair.question)) for pair in book)
    return sum(len(writer.unknown(pair.question)) for pair in book) / max(1, total)
