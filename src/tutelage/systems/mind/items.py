"""Questions with several rationales: files of JSON lines, what a teacher writes, and token ids for a student."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from torch import nn

from tutelage.datasets.json_records import JsonRecord
from tutelage.distillation.data import TensorData
from tutelage.errors import InputError
from tutelage.networks.sampling import Sampling, draw_tokens
from tutelage.programs.generators.completions import CompletionCache, CompletionRequest, LanguageModel, Usage, complete_all
from tutelage.programs.generators.few_shot import InstructionPrompt
from tutelage.programs.types import ProgramFailure
from tutelage.seeds import derive, numpy_rng
from tutelage.storage import read_json_lines, to_plain, write_json_lines

REMEDY = 'one JSON object a line: {"question": "…", "answer": "…", "rationales": ["…", null, …]}'
PREFIX = "\n#### "
"""What stands between a rationale and the answer."""
PERSPECTIVES: Mapping[str, str] = MappingProxyType(
    {
        "formal": "Reason formally: define symbols, write equations, and derive the answer step by step.",
        "intuitive": "Reason intuitively: say in plain words why the answer must be so.",
        "decomposition": "Break the question into smaller questions, answer each, and put the answers together.",
        "planning": "First write a short plan, then carry it out step by step.",
        "analogy": "Recall a similar, simpler problem, solve it, and carry its solution over.",
        "socratic": "Ask yourself a chain of questions, each answered before the next.",
        "contrastive": "Compare the right way with a tempting wrong way, and say why the wrong one fails.",
        "counterfactual": "Ask what would change if a given fact were different, and conclude from that.",
    }
)
"""The paper's eight perspectives, and how a teacher is prompted for each (wording: our choice)."""


class TokenizedModel(Protocol):
    """A causal language model and its tokenizer, such as a ``TextModel`` of the system ``polyglot-teachers``."""

    @property
    def network(self) -> nn.Module:
        """(ids [B, L], mask [B, L]) -> logits [B, L, V] of the next token."""
        ...

    @property
    def encode_prompt(self) -> Callable[[str], list[int]]:
        """A question as token ids, at least one."""
        ...

    @property
    def encode(self) -> Callable[[str], list[int]]:
        """Any other text as token ids, without an end."""
        ...

    @property
    def end(self) -> int:
        """The id that ends a text."""
        ...

    @property
    def pad(self) -> int:
        """The id behind the end."""
        ...

    @property
    def max_length(self) -> int:
        """The longest sequence."""
        ...


@dataclass(frozen=True)
class Item:
    """A question, its answer, and a rationale for each of K perspectives, always in the same order; None: it is missing."""

    question: str
    answer: str
    rationales: tuple[str | None, ...]


def read_items(path: str | Path) -> list[Item]:
    """The items of a JSON-lines file.

    Raises:
        InputError: the file holds none, a field is wrong (the line is named), an item has no rationale at all, or another
            number of them than the first.
    """
    found: list[Item] = []
    for number, value in read_json_lines(path, remedy=REMEDY):
        record = JsonRecord(value, f"{path}:{number}")
        given = record.value.get("rationales")
        if not isinstance(given, list) or not all(one is None or isinstance(one, str) for one in given):
            raise record.error("rationales", "a list of texts, null where one is missing")
        if not any(given):
            raise record.error("rationales", "at least one text that is not empty")
        if found and len(given) != len(found[0].rationales):
            raise record.error("rationales", f"{len(found[0].rationales)} entries as in the first line, null where missing")
        answer = record.text("answer")
        if not answer.strip():
            raise record.error("answer", "a text that is not empty")
        found.append(Item(record.text("question"), answer, tuple(one or None for one in given)))
    if not found:
        raise InputError("the file holds no line", where=path, remedy=REMEDY)
    return found


def read_questions(path: str | Path) -> list[tuple[str, str]]:
    """(question, answer) of each line of a JSON-lines file; rationales, if there are any, are left aside.

    Raises:
        InputError: the file holds none, or a field is wrong; the line is named.
    """
    records = (JsonRecord(value, f"{path}:{number}") for number, value in read_json_lines(path, remedy=REMEDY))
    found = [(record.text("question"), record.text("answer")) for record in records]
    if not found:
        raise InputError("the file holds no line", where=path, remedy='one {"question": "…", "answer": "…"} a line')
    return found


def write_items(path: str | Path, items: Iterable[Item]) -> Path:
    """Write items as JSON lines, whole or not at all."""
    return write_json_lines(path, (to_plain(item) for item in items))


# -- a teacher's rationales ------------------------------------------------------------------------------------------


@dataclass
class Collection:
    """What a teacher wrote: ``items``, answers ``rejected`` by perspective and reason, and what it cost."""

    items: list[Item] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)


def same_answer(found: str, gold: str) -> bool:
    """Whether two answers are one: as numbers, or as words without case, blanks and a full stop at the end."""
    one, other = (re.sub(r"[\s,$]+", "", text).rstrip(".").casefold() for text in (found, gold))
    try:
        return abs(float(one) - float(other)) < 1e-9
    except ValueError:
        return one == other


def collect_rationales(
    teacher: LanguageModel,
    questions: Sequence[tuple[str, str]],
    *,
    perspectives: Mapping[str, str] = PERSPECTIVES,
    judge: Callable[[str, str], bool] = same_answer,
    least: int = 1,
    temperature: float = 0.7,
    seed: int = 0,
    cache: CompletionCache | None = None,
    on_progress: Callable[[float, float], object] | None = None,
) -> Collection:
    """Have ``teacher`` answer every question once from every perspective; what ends in a wrong answer is left out.

    Args:
        teacher: an ``Endpoint``, a ``LocalLLM``, or anything else that completes prompts.
        questions: (question, right answer).
        perspectives: a prompt for each.
        judge: (the teacher's answer, the right one) -> whether the first is right.
        least: right rationales that an item needs; the published data keeps items with all.
        temperature, seed: of the samples.
        cache: answers that are on disk are not requested again.
        on_progress: called with (done, total).

    Raises:
        InputError: no question or perspective, or a teacher that cannot be reached.
    """
    if not questions or not perspectives:
        raise InputError(f"{len(questions)} questions, {len(perspectives)} perspectives", where="questions", remedy="one or more")
    form = "Then write the final answer alone on the last line, after '####'."
    requests = [
        CompletionRequest(
            InstructionPrompt(f"{how} {form}", (question,)),
            temperature,
            derive(seed, "rationale", name, number) % 2**31 if temperature else None,
        )
        for number, (question, _) in enumerate(questions)
        for name, how in perspectives.items()
    ]
    collected = Collection()
    answers = iter(complete_all(teacher, requests, cache=cache, usage=collected.usage, on_progress=on_progress))
    for question, gold in questions:
        rationales: list[str | None] = []
        for name in perspectives:
            answer = next(answers)
            text, marker, last = ("", "", "") if isinstance(answer, ProgramFailure) else answer.text.rpartition("####")
            reason = "failed" if isinstance(answer, ProgramFailure) else "no answer" if not marker or not text.strip() else ""
            if not reason and not judge(last.strip(), gold):
                reason = "wrong answer"
            rationales.append(None if reason else text.strip())
            if reason:
                collected.rejected[f"{name}: {reason}"] += 1
        if sum(one is not None for one in rationales) >= max(1, least):
            collected.items.append(Item(question, gold, tuple(rationales)))
    return collected


def drop_easy(items: Sequence[Item], easy: Sequence[bool], keep: float = 0.5, seed: int = 0) -> list[Item]:
    """All hard items, and the share ``keep`` of the easy ones (those that student or teacher solve from every perspective).

    Raises:
        InputError: not one mark an item, or a share outside 0..1.
    """
    if len(items) != len(easy) or not 0 <= keep <= 1:
        found = f"{len(easy)} marks for {len(items)} items, keep {keep}"
        raise InputError(found, where="easy", remedy="a mark an item, a share in 0..1")
    kept = numpy_rng(seed, "easy items").random(len(items)) < keep
    return [item for item, mark, stays in zip(items, easy, kept.tolist(), strict=True) if stays or not mark]


# -- token ids -------------------------------------------------------------------------------------------------------


def item_data(model: TokenizedModel, items: Sequence[Item], prefix: str = PREFIX) -> TensorData:
    """Items as training data of :class:`~tutelage.systems.mind.MIND`.

    Inputs are the prompts as the student will see them: ``ids`` and ``mask`` [N, P]. Labels are the paths: ``ids``, ``mask`` and
    ``response`` [N, K, L] (prompt, rationale, answer and end), ``present`` [N, K], and where the logits of the answer's tokens
    stand: ``answer_places`` [N, K, T], ``answer_mask`` [N, T]. The rationale, the ``prefix`` and the answer are made tokens one by
    one, so that the answer has the same tokens after every path.

    Raises:
        InputError: no items, unequal numbers of rationales, an answer without tokens, or a path longer than the model reads.
    """
    if not items or len({len(item.rationales) for item in items}) != 1 or not items[0].rationales:
        raise InputError("no item, or items of different numbers of rationales", where="items", remedy="None where one is missing")
    count, paths = len(items), len(items[0].rationales)
    bridge = model.encode(prefix)
    answers = [model.encode(item.answer) for item in items]
    rows: list[tuple[int, list[int]]] = []
    for number, item in enumerate(items):
        if not answers[number] or not any(one is not None for one in item.rationales):
            raise InputError("no answer, or no rationale", where=f"item {number}", remedy="leave this item out")
        prompt = model.encode_prompt(item.question)
        for rationale in item.rationales:
            path = [] if rationale is None else [*model.encode(rationale), *bridge, *answers[number], model.end]
            if len(prompt) + len(path) > model.max_length:
                remedy = "shorten it, or take a model that reads longer texts"
                size = f"{len(prompt) + len(path)} tokens, the model reads {model.max_length}"
                raise InputError(size, where=f"item {number}", remedy=remedy)
            rows.append((len(prompt), [*prompt, *path]))
    longest, prompt_length, tokens = max(len(row) for _, row in rows), max(at for at, _ in rows), max(map(len, answers))
    ids = torch.full((count * paths, longest), model.pad)
    response = torch.zeros(count * paths, longest, dtype=torch.bool)
    mask, places = torch.zeros_like(response), torch.zeros(count * paths, tokens, dtype=torch.int64)
    for place, (start, row) in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)], response[place, start : len(row)] = True, True
        if len(row) > start:  # the logits that predict a token stand one place before it
            size = len(answers[place // paths])
            places[place, :size] = torch.arange(len(row) - 2 - size, len(row) - 2)
    starts = torch.tensor([at for at, _ in rows[::paths]])
    prompt_mask = torch.arange(prompt_length) < starts[:, None]
    labels = {"ids": ids, "mask": mask, "response": response, "answer_places": places}
    folded = {name: value.unflatten(0, (count, paths)) for name, value in labels.items()}
    folded["present"] = torch.tensor([[one is not None for one in item.rationales] for item in items])
    folded["answer_mask"] = torch.arange(tokens) < torch.tensor([len(one) for one in answers])[:, None]
    prompts = ids[::paths, :prompt_length].masked_fill(~prompt_mask, model.pad)
    return TensorData({"ids": prompts, "mask": prompt_mask}, folded)


@torch.no_grad()
def exact_match(
    model: TokenizedModel,
    questions: Sequence[tuple[str, str]],
    prefix: str = PREFIX,
    max_new_tokens: int = 256,
    batch_size: int = 256,
) -> float:
    """The share (0..1) of questions whose greedy text ends in ``prefix`` and the right answer, token for token.

    No perspective is named. Questions of equal length are decoded together, so that nothing is padded.

    Raises:
        InputError: no question.
    """
    if not questions:
        raise InputError("no question", where="questions", remedy="give at least one")
    groups: dict[int, list[tuple[list[int], list[int]]]] = {}
    for question, answer in questions:
        prompt, tail = model.encode_prompt(question), [*model.encode(prefix), *model.encode(answer), model.end]
        groups.setdefault(len(prompt), []).append((prompt, tail))
    network, training, right = model.network, model.network.training, 0
    device = next(network.parameters()).device
    sampling = Sampling(max_new_tokens, 0.0, eos_id=model.end, pad_id=model.pad)
    network.eval()
    try:
        for group in groups.values():
            for first in range(0, len(group), batch_size):
                part = group[first : first + batch_size]
                ids = torch.tensor([prompt for prompt, _ in part], device=device)

                def step(chosen: torch.Tensor | None) -> torch.Tensor:
                    nonlocal ids
                    if chosen is not None:
                        ids = torch.cat([ids, chosen[:, None]], 1)
                    logits: torch.Tensor = network(ids, torch.ones_like(ids, dtype=torch.bool))[:, -1]
                    return logits

                drawn = draw_tokens(step, sampling)
                for row, length, (_, tail) in zip(drawn.ids.tolist(), drawn.lengths.tolist(), part, strict=True):
                    right += row[:length][-len(tail) :] == tail
    finally:
        network.train(training)
    return right / len(questions)
