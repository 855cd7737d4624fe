"""How a teacher writes training data: three strategies, their prompts, and what is kept of the answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tutelage.errors import InputError
from tutelage.programs.generators.completions import (
    Completion,
    CompletionCache,
    CompletionRequest,
    LanguageModel,
    Usage,
    complete_all,
)
from tutelage.programs.generators.few_shot import InstructionPrompt
from tutelage.programs.types import ProgramFailure
from tutelage.reading import parse_json
from tutelage.seeds import derive, numpy_rng
from tutelage.systems.polyglot_teachers.rows import STRATEGIES, Row, SeedPrompt

CATEGORIES = (
    "open question", "question on a given text", "summary", "rewriting", "classification",
    "extraction", "brainstorming", "creative writing", "reasoning", "mathematics",
)  # fmt: skip
"""Ten kinds of tasks, one of which ``generate`` names (our choice; the paper does not list its own)."""
SHOTS, TEMPERATURE = 3, 0.8
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


@dataclass
class Synthesis:
    """What a teacher wrote: ``rows`` that are kept, ``rejected`` answers by reason, and what it cost."""

    rows: list[Row] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)


def synthesize(
    teacher: LanguageModel,
    seeds: Sequence[SeedPrompt],
    language: str,
    count: int,
    *,
    strategies: Sequence[str] = STRATEGIES,
    source: str = "English",
    seed: int = 0,
    temperature: float = TEMPERATURE,
    cache: CompletionCache | None = None,
    on_progress: Callable[[float, float], object] | None = None,
) -> Synthesis:
    """Have ``teacher`` write ``count`` rows in ``language``, as many by each strategy (the first ones get the remainder).

    Args:
        teacher: an ``Endpoint``, a ``LocalLLM``, or anything else that completes prompts.
        seeds: prompts to start from. ``generate`` shows three of ``language`` as examples, ``respond`` takes one of
            ``language``, ``translate`` one of ``source``.
        language: its name, as the teacher reads it.
        count: of requests; answers that cannot be read are rejected and counted.
        strategies: a choice of :data:`STRATEGIES`.
        source: the language that is translated from.
        seed: names examples, categories and samples.
        temperature: of the samples; 0.8 as published. The published nucleus of 0.9 is ``EndpointSettings(top_p=0.9)``.
        cache: answers that are on disk are not requested again.
        on_progress: called with (done, total).

    Raises:
        InputError: an unknown strategy, a strategy without seed prompts, or a teacher that cannot be reached.
    """
    unknown = [name for name in strategies if name not in STRATEGIES]
    if unknown or not strategies or count < len(strategies):
        raise InputError(
            f"{count} rows by {', '.join(strategies) or 'no strategy'}",
            where="strategies",
            remedy=f"at least one row for each of your choice of {', '.join(STRATEGIES)}",
        )
    share, extra = divmod(count, len(strategies))
    found, requests, sources = Synthesis(), list[CompletionRequest](), list[tuple[str, str]]()
    for place, strategy in enumerate(strategies):
        wanted = source if strategy == "translate" else language
        pool = [one for one in seeds if strategy in one.strategies and one.language == wanted]
        needed = SHOTS if strategy == "generate" else 1
        if len(pool) < needed:
            raise InputError(
                f"{len(pool)} seed prompts in {wanted!r} for the strategy {strategy!r}, which needs {needed}",
                where="seeds",
                remedy=f"add some, or leave {strategy} out of the strategies",
            )
        for number in range(share + (place < extra)):
            rng = numpy_rng(seed, "synthesis", language, strategy, number)
            prompt, given = _instruction(strategy, language, source, pool, rng)
            sample = derive(seed, "synthesis sample", language, strategy, number) % 2**31
            requests.append(CompletionRequest(prompt, temperature, sample if temperature else None))
            sources.append((strategy, given))
    answers = complete_all(teacher, requests, cache=cache, usage=found.usage, on_progress=on_progress)
    kept = set[tuple[str, str]]()
    for (strategy, given), answer in zip(sources, answers, strict=True):
        written = read_answer(answer, strategy, given)
        if isinstance(written, str):
            found.rejected[written] += 1
        elif written in kept:
            found.rejected["written twice"] += 1
        else:
            kept.add(written)
            found.rows.append(Row(*written, strategy=strategy, language=language, model=teacher.name))
    return found


def _instruction(
    strategy: str, language: str, source: str, pool: Sequence[SeedPrompt], rng: np.random.Generator
) -> tuple[InstructionPrompt, str]:
    """The request, and the prompt that its answer responds to ("" where the answer brings one)."""
    rules = f"You write in {language}, fluently, correctly, and as a native speaker would in their own culture."
    form = 'Answer with one JSON object and nothing else: {"prompt": "...", "response": "..."}'
    if strategy == "generate":
        shown = [pool[i] for i in rng.choice(len(pool), SHOTS, replace=False).tolist()]
        examples = "\n\n".join(f"Prompt: {one.prompt}" + (f"\nResponse: {one.response}" if one.response else "") for one in shown)
        category = CATEGORIES[int(rng.integers(len(CATEGORIES)))]
        text = f"Examples:\n\n{examples}\n\nWrite one new prompt in {language}, of the kind '{category}', and its response. {form}"
        return InstructionPrompt(rules, (text,)), ""
    one = pool[int(rng.integers(len(pool)))]
    if strategy == "respond":
        return InstructionPrompt(rules, (one.prompt,)), one.prompt
    text = f"Translate this prompt from {source} to {language}, then respond to it in {language}. {form}\n\nPrompt: {one.prompt}"
    return InstructionPrompt(rules, (text,)), ""


def read_answer(answer: Completion | ProgramFailure, strategy: str, prompt: str) -> tuple[str, str] | str:
    """(prompt, response) of a teacher's answer, or why it is rejected: "failed", "cut", "empty" or "not JSON"."""
    if isinstance(answer, ProgramFailure):
        return "failed"
    if answer.finish == "length":
        return "cut"
    text = _THOUGHT.sub("", answer.text).strip()
    if strategy == "respond":
        return (prompt, text) if text else "empty"
    start, end = text.find("{"), text.rfind("}")
    try:
        value = parse_json(text[start : end + 1], "answer") if 0 <= start < end else None
    except InputError:
        return "not JSON"
    parts = [value.get(name) for name in ("prompt", "response")] if isinstance(value, dict) else [None]
    if not all(isinstance(part, str) for part in parts):
        return "not JSON"
    own, response = (str(part).strip() for part in parts)
    return (own, response) if own and response else "empty"
