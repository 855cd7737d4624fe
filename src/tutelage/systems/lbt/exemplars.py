"""The third method: examples for a prompt get better, round by round, by what students get wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from tutelage.errors import InputError
from tutelage.programs.generators.completions import CompletionCache, CompletionRequest, LanguageModel, complete_all
from tutelage.programs.types import ProgramFailure
from tutelage.seeds import derive, numpy_rng
from tutelage.systems.lbt.exams import SolutionPrompt


class Labelled(NamedTuple):
    """A text and its class."""

    text: str
    label: str


Exemplars = tuple[Labelled, ...]
"""A set of examples that stands in a prompt."""
Classifier = Callable[[Exemplars, Sequence[str]], Sequence[str | None]]
"""A model with examples in its context: texts -> their classes, None for an answer that cannot be read."""


class Failure(NamedTuple):
    """A text that a student got wrong."""

    text: str
    label: str
    given: str | None


class Writer(Protocol):
    """What a teacher does with failures."""

    def reflect(self, exemplars: Exemplars, failures: Sequence[Failure], seed: int) -> str:
        """Why the examples led to these failures."""
        ...

    def write(
        self, exemplars: Exemplars, failures: Sequence[Failure], reflection: str, count: int, seed: int
    ) -> Sequence[Exemplars]:
        """New sets of examples, at most ``count``."""
        ...


@dataclass(frozen=True)
class SearchSettings:
    """``beam`` sets are kept, over ``rounds``; ``batch`` exam texts a round; ``reflections`` a set, each of at most ``cases``
    failures; ``written``: new sets a set and round, shared by its reflections. The defaults are the published ones."""

    beam: int = 4
    rounds: int = 5
    batch: int = 64
    reflections: int = 4
    cases: int = 4
    written: int = 8

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise InputError(f"{self}", where="search", remedy="every number is 1 or more")


class Round(NamedTuple):
    """One round: failures over all sets and students, sets that were new, and the best training score after it."""

    failures: int
    written: int
    best: float


@dataclass(frozen=True)
class Search:
    """The set of the best training score, that score, and the rounds."""

    exemplars: Exemplars
    score: float
    history: tuple[Round, ...]


def f1_score(labels: Sequence[str], given: Sequence[str | None], positive: str | None = None) -> float:
    """F1 of one class in 0..1; None: of the rarest class among ``labels``, the smaller name of equals.

    Examples:
        >>> f1_score(["a", "b", "b", "b"], ["a", "a", "b", None])
        0.6666666666666666
    """
    own = positive or min(sorted(set(labels)), key=lambda one: list(labels).count(one))
    hits = sum(label == own == found for label, found in zip(labels, given, strict=True))
    named = sum(found == own for found in given)
    there = sum(label == own for label in labels)
    return 2 * hits / (named + there) if named + there else 0.0


def search_exemplars(
    start: Sequence[Exemplars],
    train: Sequence[Labelled],
    teacher: Classifier,
    students: Sequence[Classifier],
    writer: Writer,
    settings: SearchSettings | None = None,
    *,
    positive: str | None = None,
    seed: int = 0,
) -> Search:
    """Search sets of examples by teaching.

    In each round all students answer a part of the training texts after each set; the teacher reflects on the pooled failures
    of a set and writes new sets; the sets of the best score by the teacher, on all training texts, are kept. The old ones
    compete, so that the best score never falls. A round without failures writes nothing.

    Args:
        start: sets to begin with, by hand or by the teacher.
        train: labelled texts.
        teacher: scores the sets.
        students: one or several; the teacher itself may be one.
        writer: reflects and writes, such as :class:`PromptedWriter`.
        settings: of the search.
        positive: the class whose F1 is the score; None: the rarest.
        seed: of all draws; with writers and models that repeat themselves the search does too.

    Raises:
        InputError: no set, no training text or no student.
    """
    settings = settings or SearchSettings()
    if not start or not all(start) or not train or not students:
        message = f"{len(start)} sets, {len(train)} training texts, {len(students)} students"
        raise InputError(message, where="search", remedy="give at least one of each, and no empty set")
    labels = [one.label for one in train]
    scores: dict[Exemplars, float] = {}

    def keep(pool: Sequence[Exemplars]) -> list[Exemplars]:
        for one in dict.fromkeys(pool):
            if one not in scores:
                scores[one] = f1_score(labels, teacher(one, [item.text for item in train]), positive)
        return sorted(dict.fromkeys(pool), key=lambda one: (-scores[one], one))[: settings.beam]

    beam, history = keep(list(start)), list[Round]()
    for number in range(settings.rounds):
        rng = numpy_rng(seed, "exemplar search", number)
        exams = [train[i] for i in rng.permutation(len(train))[: settings.batch].tolist()]
        pool, failures, known = list(beam), 0, set(scores)
        for place, exemplars in enumerate(beam):
            failed = _failures(exemplars, exams, students)
            failures += len(failed)
            if failed:
                pool += _written(exemplars, failed, writer, settings, rng, derive(seed, "writer", number, place))
        new = set(pool) - known
        beam = keep(pool)
        history.append(Round(failures, len(new), scores[beam[0]]))
    return Search(beam[0], scores[beam[0]], tuple(history))


def _failures(exemplars: Exemplars, exams: Sequence[Labelled], students: Sequence[Classifier]) -> list[Failure]:
    found = []
    for student in students:
        given = student(exemplars, [exam.text for exam in exams])
        found += [Failure(*exam, own) for exam, own in zip(exams, given, strict=True) if own != exam.label]
    return found


def _written(
    exemplars: Exemplars,
    failures: Sequence[Failure],
    writer: Writer,
    settings: SearchSettings,
    rng: np.random.Generator,
    seed: int,
) -> list[Exemplars]:
    found = list[Exemplars]()
    for number in range(min(settings.reflections, settings.written)):
        share = settings.written // settings.reflections + (number < settings.written % settings.reflections)
        cases = [failures[i] for i in rng.permutation(len(failures))[: settings.cases].tolist()]
        own = derive(seed, number) % 2**31
        reflection = writer.reflect(exemplars, cases, own)
        found += [tuple(one) for one in writer.write(exemplars, cases, reflection, share, own) if one]
    return found


def prompted_classifier(model: LanguageModel, task: str, labels: Sequence[str], cache: CompletionCache | None = None) -> Classifier:
    """A language model as a :data:`Classifier`: greedy, the first of ``labels`` that its answer begins with."""

    def classify(exemplars: Exemplars, texts: Sequence[str]) -> list[str | None]:
        rules = f"{task}\nAnswer with one word: {' or '.join(labels)}."
        turns = [turn for one in exemplars for turn in (f"Text: {one.text}", one.label)]
        requests = [CompletionRequest(SolutionPrompt(rules, (*turns, f"Text: {text}"))) for text in texts]
        answers = complete_all(model, requests, cache=cache)
        return [None if isinstance(one, ProgramFailure) else _label(one.text, labels) for one in answers]

    return classify


def _label(text: str, labels: Sequence[str]) -> str | None:
    start = text.strip().strip("\"'*").casefold()
    return next((one for one in sorted(labels, key=len, reverse=True) if start.startswith(one.casefold())), None)


class PromptedWriter:
    """A language model that reflects on failures and writes new examples, one "Text: … => class" a line.

    Args:
        model: the teacher.
        task: what is to be decided, in a sentence.
        labels: the classes; lines with others are left out.
        temperature: of both kinds of answers.
        cache: answers that are on disk are not requested again.
    """

    def __init__(
        self,
        model: LanguageModel,
        task: str,
        labels: Sequence[str],
        temperature: float = 0.7,
        cache: CompletionCache | None = None,
    ):
        self.model, self.task, self.labels, self.temperature, self.cache = model, task, tuple(labels), temperature, cache

    def reflect(self, exemplars: Exemplars, failures: Sequence[Failure], seed: int) -> str:
        """See :class:`Writer`."""
        wrong = "\n".join(f"Text: {one.text}\nRight: {one.label}. Given: {one.given or 'nothing readable'}." for one in failures)
        request = f"{self._shown(exemplars)}\n\nWith them students failed here:\n\n{wrong}\n\nGive several reasons why."
        return self._complete(request, [seed])[0]

    def write(self, exemplars: Exemplars, failures: Sequence[Failure], reflection: str, count: int, seed: int) -> list[Exemplars]:
        """See :class:`Writer`; a set without a readable line is left out."""
        request = (
            f"{self._shown(exemplars)}\n\nWhat is wrong with them:\n{reflection}\n\nWrite {len(exemplars)} better examples, "
            f"one a line, in the form: Text: … => {' or '.join(self.labels)}"
        )
        found = []
        for text in self._complete(request, [derive(seed, "write", number) % 2**31 for number in range(count)]):
            lines = [line.strip().removeprefix("Text:").rpartition("=>") for line in text.splitlines() if "=>" in line]
            pairs = [(before.strip(), _label(after, self.labels)) for before, _, after in lines]
            kept = tuple(Labelled(before, label) for before, label in pairs if before and label is not None)
            found += [kept[: len(exemplars)]] if kept else []
        return found

    def _shown(self, exemplars: Exemplars) -> str:
        return "These examples teach the task:\n\n" + "\n".join(f"Text: {one.text} => {one.label}" for one in exemplars)

    def _complete(self, request: str, seeds: Sequence[int]) -> list[str]:
        prompt = SolutionPrompt(self.task, (request,))
        requests = [CompletionRequest(prompt, self.temperature, seed if self.temperature else None) for seed in seeds]
        answers = complete_all(self.model, requests, cache=self.cache)
        return ["" if isinstance(one, ProgramFailure) else one.text for one in answers]
