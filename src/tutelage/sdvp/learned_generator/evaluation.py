"""What a writer is examined on: questions that the learned writer of a seed has not seen, with their gold programs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from tutelage.datasets import easy_vqa
from tutelage.errors import MissingExtra
from tutelage.programs.generators import paraphrases
from tutelage.programs.generators.base import GenerationRequest, ProgramGenerator
from tutelage.programs.generators.paraphrases import INPUTS, QuestionProgramPair
from tutelage.programs.generators.program_templates import words
from tutelage.sdvp.learned_generator.generator import LearnedGenerator
from tutelage.sdvp.learned_generator.training import GeneratorTraining, build_training_set, synthetic_pairs
from tutelage.seeds import numpy_rng


def evaluation_sets(seed: int, config: GeneratorTraining = GeneratorTraining()) -> dict[str, list[QuestionProgramPair]]:  # noqa: B008  (frozen)
    """By name: ``world`` questions of other scenes, their texts new; ``new words`` in known wordings; ``held-out wordings``,
    unanswerable ones among them; ``easy-VQA``'s test questions where that package is installed."""
    seen = {pair.question for pair in build_training_set(config, seed)}
    rng, forms = numpy_rng(seed, "writer", "report"), paraphrases.read_paraphrases()
    known = paraphrases.make_pairs(forms, rng, 4)
    sets = {
        "world": [pair for pair in synthetic_pairs(seed, "report", 150, 40) if pair.question not in seen],
        "new words": [pair for pair in known if pair.question not in seen and pair.program is not None],
        "held-out wordings": list(paraphrases.make_pairs(forms, rng, 8, held_out=True)),
    }
    with contextlib.suppress(MissingExtra):
        texts = sorted({sample.question for sample in easy_vqa.load("test")})
        sets["easy-VQA"] = [QuestionProgramPair(question, "single", paraphrases.program(question, "single")) for question in texts]
    return sets


def exact_match(generator: Callable[[bool], ProgramGenerator], pairs: Sequence[QuestionProgramPair]) -> dict[str, float]:
    """How a writer fares; ``generator(single)`` is it for images that show one thing, or many.

    ``exact``: the share of answerable questions whose first draft is the program, to the letter, whatever its
    probability; ``written``: the same of drafts that are not declined; ``declined`` and ``refused``: the shares of
    answerable and unanswerable questions that are.
    """
    counts = dict.fromkeys(("exact", "written", "declined"), 0)
    refused = 0
    for single in (False, True):
        chosen = [pair for pair in pairs if (pair.about == "single") == single]
        drafts = generator(single).generate([GenerationRequest(pair.question, "visprog", INPUTS[pair.about]) for pair in chosen])
        for pair, (draft, *_) in zip(chosen, drafts, strict=True):
            declined = draft.failure is not None
            if pair.program is None:
                refused += declined
                continue
            counts["exact"] += draft.text == pair.program
            counts["written"] += draft.text == pair.program and not declined
            counts["declined"] += declined
    answerable = sum(pair.program is not None for pair in pairs)
    others = len(pairs) - answerable
    found = {name: count / answerable for name, count in counts.items()} if answerable else {}
    return found | ({"refused": refused / others} if others else {})


def unknown_words(generator: LearnedGenerator, pairs: Sequence[QuestionProgramPair]) -> float:
    """The share of words that the writer never read."""
    total = sum(len(words(pair.question)) for pair in pairs)
    return sum(len(generator.unknown_words(pair.question)) for pair in pairs) / max(1, total)
