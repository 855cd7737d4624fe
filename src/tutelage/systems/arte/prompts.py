"""What a teacher is asked for, how its texts are read, and the one-shot prompt of a student."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tutelage.errors import InputError
from tutelage.programs.generators.completions import CompletionCache, CompletionRequest, LanguageModel, complete_all
from tutelage.programs.generators.few_shot import Prompt
from tutelage.programs.types import ProgramFailure

CUE = "Let's think step by step."
STYLES = (
    "Explain as an expert would walk a beginner through it.",
    "First recall the rules that apply, then use them to solve it.",
    CUE,
    "Go through the possible answers and rule out the wrong ones.",
)
"""Four ways to ask for a rationale (our wording of the paper's four kinds); the task may give its own."""
_QUESTION = re.compile(r"<input>(.*?)</input>\s*<target>(.*?)</target>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
NEW_QUESTIONS = 5
"""How many a request asks for."""


class Question(NamedTuple):
    """A question and the answer that its writer gave it."""

    text: str
    target: str


class Draft(NamedTuple):
    """A question with a rationale that ends in an answer, and the number of the style that it was asked for in."""

    question: Question
    rationale: str
    style: int = 0


@dataclass(frozen=True)
class TaskText:
    """A task in words.

    Attributes:
        description: what is to be done, in a line or more.
        seeds: a few questions of the task, shown in the request for more; three, as published.
        styles: ways to ask for a rationale.
    """

    description: str
    seeds: tuple[Question, ...]
    styles: tuple[str, ...] = STYLES

    def __post_init__(self) -> None:
        if not self.description.strip() or not self.seeds or len(set(self.styles)) < 2:
            message = f"{len(self.seeds)} seed questions, {len(set(self.styles))} styles"
            raise InputError(message, where="task", remedy="a description, a seed question or more, two styles or more")


class TextPrompt(Prompt):
    """A prompt of one turn or more; for models that go on with a text it is its parts, blank lines between."""

    @property
    def text(self) -> str:
        """The prompt for models that do not chat."""
        return "\n\n".join([self.rules, *self.turns]) + "\n"


def question_prompt(task: TaskText) -> TextPrompt:
    """The request for new questions: description, seed questions, the form."""
    shown = "\n".join(tagged(one) for one in task.seeds)
    return TextPrompt(task.description, (f"{shown}\n\nWrite {NEW_QUESTIONS} more questions in the same form.",))


def tagged(question: Question) -> str:
    """A question in the form in which questions are asked for."""
    return f"<input>{question.text}</input><target>{question.target}</target>"


def read_questions(text: str) -> list[Question]:
    """The questions of a text; those with an empty part are left out."""
    found = [Question(one.strip(), target.strip()) for one, target in _QUESTION.findall(text)]
    return [one for one in found if one.text and one.target]


def rationale_prompt(task: TaskText, question: str, style: str = CUE) -> TextPrompt:
    """The request for a rationale. The plain one, with :data:`CUE`, is what an aligned teacher is asked for."""
    return TextPrompt(task.description, (f"{question}\n{style}\nEnd with the answer in <answer></answer>.",))


def one_shot_prompt(task: TaskText, examples: Sequence[Draft], question: str) -> TextPrompt:
    """The student's prompt: examples in the template of the paper, then the question with the same cue."""
    turns = [turn for one in examples for turn in (f"{one.question.text}\n{CUE}", one.rationale)]
    return TextPrompt(task.description, (*turns, f"{question}\n{CUE}"))


def read_answer(text: str) -> str | None:
    """What stands in the last pair of answer tags; None where there is none."""
    found = _ANSWER.findall(text)
    return found[-1].strip() or None if found else None


def same_text(one: str | None, other: str | None) -> bool:
    """Whether two answers are equal but for case and blanks; None equals nothing."""
    return one is not None and other is not None and normalized(one) == normalized(other)


def normalized(text: str) -> str:
    """A text without case, and with one blank between words: what leak checks compare."""
    return " ".join(text.casefold().split())


Student = Callable[[Sequence[Draft], Sequence[str]], Sequence[str | None]]
"""A student with examples before it: (examples, questions) -> an answer each, None for one that cannot be read."""


def prompted_student(model: LanguageModel, task: TaskText, cache: CompletionCache | None = None) -> Student:
    """A language model as a :data:`Student`: greedy; answers on disk are not requested again."""

    def answer(examples: Sequence[Draft], questions: Sequence[str]) -> list[str | None]:
        requests = [CompletionRequest(one_shot_prompt(task, examples, one)) for one in questions]
        found = complete_all(model, requests, cache=cache)
        return [None if isinstance(one, ProgramFailure) else read_answer(one.text) for one in found]

    return answer
