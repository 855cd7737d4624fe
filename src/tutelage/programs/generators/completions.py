"""What language models answer: completions, the program within a text, the cache on disk, tokens and their price."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tutelage.errors import InputError, StaleError
from tutelage.fields import check_field
from tutelage.programs.generators.few_shot import Prompt
from tutelage.programs.types import ProgramFailure
from tutelage.reading import parse_json
from tutelage.storage import ContentStore, fingerprint


class CompletionRequest(NamedTuple):
    """One completion that is wanted. ``temperature`` 0 is greedy, and then there is no ``seed``."""

    prompt: Prompt
    temperature: float = 0.0
    seed: int | None = None


class Completion(NamedTuple):
    """One answer of a model. ``finish`` is "stop" where it came to an end, "length" where it was cut.

    ``probability`` is the mean probability of its tokens; token counts are None where the model does not report them.
    """

    text: str
    finish: str = "stop"
    probability: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    model: str = ""


class LanguageModel(Protocol):
    """Anything that completes prompts. Equal ``settings`` and asks may be answered from the cache."""

    @property
    def name(self) -> str:
        """What drafts name as their source."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes its answers, and nothing secret: plain values."""
        ...

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[tuple[int, Completion | ProgramFailure]]:
        """Each ask's number with its answer, or with the failure of this ask alone, in any order, as they come."""
        ...


_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_MARKS = {"visprog": ("FINAL_RESULT", "FINAL_ANSWER"), "viper": ("def execute_command",)}


def extract_program(text: str, dsl: str) -> str:
    """The program within an answer: without thoughts, code fences and the label "Program:".

    Of several fenced blocks the first that looks like a program of ``dsl``, else the first. What stands around a bare
    program is not searched: such a text fails to parse, and is counted.
    """
    text = _THOUGHT.sub("", text.replace("\r\n", "\n"))
    blocks = [match[1] for match in _FENCE.finditer(text)]
    likely = [block for block in blocks if any(mark in block for mark in _MARKS.get(dsl, ()))]
    inner = (likely or blocks or [text])[0].strip("\n").rstrip()
    return inner.removeprefix("Program:").strip("\n") if inner.startswith("Program:") else inner


@dataclass
class Usage:
    """What was asked and what it took. ``unreported`` answers came without token counts: their price is not known.

    ``cached`` answers cost nothing and are in no other figure.
    """

    answers: int = 0
    cached: int = 0
    failures: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unreported: int = 0

    def add(self, answer: Completion | ProgramFailure) -> None:
        """Count one answer that was asked for."""
        if isinstance(answer, ProgramFailure):
            self.failures += 1
            return
        self.answers += 1
        self.unreported += answer.tokens_in is None or answer.tokens_out is None
        self.tokens_in += answer.tokens_in or 0
        self.tokens_out += answer.tokens_out or 0

    def cost(self, price_in: float | None, price_out: float | None) -> float | None:
        """What the reported tokens cost at prices for a million; None where a price is not known."""
        if price_in is None or price_out is None:
            return None
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6

    def to_json(self, price_in: float | None = None, price_out: float | None = None) -> dict[str, Any]:
        """All counts, and the cost."""
        return asdict(self) | {"cost": self.cost(price_in, price_out)}


class CompletionCache:
    """Completions on disk, by the model's settings and the ask. Failures are not kept: they are asked again.

    Several processes may share a folder; an entry appears whole or not at all.
    """

    def __init__(self, folder: str | Path):
        self._store = ContentStore(folder)

    def get(self, settings: Mapping[str, Any], request: CompletionRequest) -> Completion | None:
        """The kept completion, or None.

        Raises:
            StaleError: the entry is not one of ours.
        """
        own_key = _request_json(settings, request)
        key = fingerprint(own_key)
        found = self._store.get(key, ".json")
        if found is None:
            return None
        try:
            entry = parse_json(found, self._store.path(key, ".json"))
            if entry["asked"] != own_key:
                raise ValueError("it answers another prompt")
            check_field(entry["answer"], "text", str, where="answer")
            return Completion(**entry["answer"])
        except (InputError, ValueError, TypeError, KeyError) as error:
            where = self._store.path(key, ".json")
            raise StaleError(f"not a kept response: {error}", where=where, remedy="delete this file") from error

    def put(self, settings: Mapping[str, Any], request: CompletionRequest, answer: Completion) -> None:
        """Keep a completion."""
        entry = {"asked": _request_json(settings, request), "answer": answer._asdict()}
        self._store.put(fingerprint(entry["asked"]), json.dumps(entry, indent=1).encode(), ".json")


def complete_all(
    model: LanguageModel,
    requests: Sequence[CompletionRequest],
    *,
    cache: CompletionCache | None = None,
    usage: Usage | None = None,
    on_progress: Callable[[float, float], object] | None = None,
) -> list[Completion | ProgramFailure]:
    """The answer to each request, in order: equal requests are sent once, and never again where ``cache`` keeps them.

    Args:
        model: what answers.
        requests: what is wanted.
        cache: completions on disk; each is kept as soon as it comes.
        usage: counts what was sent and what was cached.
        on_progress: called with (done, total).

    Raises:
        InputError: the model cannot be reached as it is set.
    """
    usage, settings = Usage() if usage is None else usage, model.settings
    report = on_progress or (lambda done, total: None)
    known: dict[CompletionRequest, Completion | ProgramFailure] = {}
    wanted = list(dict.fromkeys(requests))
    for request in wanted:
        kept = cache.get(settings, request) if cache is not None else None
        if kept is not None:
            known[request] = kept
            usage.cached += 1
    missing = [request for request in wanted if request not in known]
    report(len(known), len(wanted))
    for number, answer in model.complete(missing):
        known[missing[number]] = answer
        usage.add(answer)
        if cache is not None and isinstance(answer, Completion):
            cache.put(settings, missing[number], answer)
        report(len(known), len(wanted))
    return [known[request] for request in requests]


def _request_json(settings: Mapping[str, Any], request: CompletionRequest) -> dict[str, Any]:
    prompt, temperature, seed = request
    turns = list(prompt.turns)
    return {"settings": dict(settings), "rules": prompt.rules, "turns": turns, "temperature": temperature, "seed": seed}
