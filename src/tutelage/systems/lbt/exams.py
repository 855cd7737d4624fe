"""Exams: a student answers similar problems with the teacher's rationale before it as an example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tutelage.errors import InputError
from tutelage.programs.generators.completions import CompletionCache, CompletionRequest, LanguageModel, Usage, complete_all
from tutelage.programs.generators.few_shot import Prompt
from tutelage.programs.types import ProgramFailure
from tutelage.seeds import derive
from tutelage.systems.lbt.answers import parse_answer, same_answer
from tutelage.systems.lbt.selection import Sample

RULES_OF_PROMPTS = 'Solve the problem step by step. End with the line "The answer is …".'
Mark = Callable[[str | None, "Exam"], bool]
"""Whether an answer to an exam is right. For programs: whether all of its visible tests pass, in a sandbox."""
Parse = Callable[[str], tuple[str, str | None]]
"""(rationale, answer) of a model's text."""


@dataclass(frozen=True)
class Shot:
    """A solved problem that stands in a prompt as an example."""

    problem: str
    rationale: str
    answer: str


@dataclass(frozen=True)
class Exam:
    """A problem similar to the teacher's, such as the same with other values, and its right answer: no student sees it."""

    problem: str
    answer: str


class SolutionPrompt(Prompt):
    """Solved problems, then the one to solve."""

    @property
    def text(self) -> str:
        """The prompt for models that go on with a text."""
        spoken = (f"{turn}\n" if number % 2 == 0 else f"{turn}\n\n" for number, turn in enumerate(self.turns))
        return f"{self.rules}\n\n{''.join(spoken)}"


def solution_prompt(problem: str, shots: Sequence[Shot] = (), rules: str = RULES_OF_PROMPTS) -> SolutionPrompt:
    """The prompt for ``problem``, with solved problems before it."""
    turns = [turn for shot in shots for turn in (f"Problem: {shot.problem}", _solution(shot))]
    return SolutionPrompt(rules, (*turns, f"Problem: {problem}"))


def _solution(shot: Shot) -> str:
    return f"{shot.rationale}\nThe answer is {shot.answer}."


def exam_prompt(
    problem: str, sample: Sample, exam: Exam, shots: Sequence[Shot] = (), rules: str = RULES_OF_PROMPTS
) -> SolutionPrompt:
    """The prompt of one exam: the fixed shots, then problem, rationale and answer as one more, then the exam's problem."""
    assert sample.answer is not None
    return solution_prompt(exam.problem, [*shots, Shot(problem, sample.rationale, sample.answer)], rules)


def mark_by_answer(answer: str | None, exam: Exam) -> bool:
    """Whether the answer equals the exam's; see :func:`~tutelage.systems.lbt.answers.same_answer`."""
    return same_answer(answer, exam.answer)


@dataclass
class ExamReport:
    """What exams took: the usage of each student, and answers that were unreadable or did not come (marked wrong)."""

    usage: dict[str, Usage] = field(default_factory=dict)
    unreadable: int = 0
    failed: int = 0


def take_exams(
    problem: str,
    samples: Sequence[Sample],
    exams: Sequence[Exam],
    students: Sequence[LanguageModel],
    *,
    shots: Sequence[Shot] = (),
    repeats: int = 3,
    temperature: float = 0.7,
    seed: int = 0,
    mark: Mark = mark_by_answer,
    parse: Parse = parse_answer,
    rules: str = RULES_OF_PROMPTS,
    cache: CompletionCache | None = None,
    report: ExamReport | None = None,
    on_progress: Callable[[float, float], object] | None = None,
) -> list[Sample]:
    """The samples with their scores: every student answers every exam ``repeats`` times after each of them.

    Scores that samples have already are added to, so that students can take the exams at different times. A sample without an
    answer takes no exam, and counts as always wrong. Equal samples, in any order, get equal answers: the seed of a request is
    named by the exam's place and the repeat alone.

    Args:
        problem: the teacher's problem.
        samples: rationales and answers of the teacher.
        exams: similar problems.
        students: one or several: endpoints, local models, anything that completes prompts.
        shots: fixed solved problems, before all else.
        repeats: of each exam; 3 as published, 1 is enough at temperature 0.
        temperature: of the students' answers.
        seed: names the repeats.
        mark: decides whether an answer is right.
        parse: takes (rationale, answer) from a student's text.
        rules: the first lines of every prompt.
        cache: answers that are on disk are not requested again.
        report: is filled in, where given.
        on_progress: called with (done, total) for each student.

    Raises:
        InputError: no exam, no student, or a student of whom no answer came.
    """
    if not exams or not students or repeats < 1:
        message = f"{len(exams)} exams, {len(students)} students, {repeats} repeats"
        raise InputError(message, where="exams", remedy="give at least one of each")
    report = ExamReport() if report is None else report
    able = [place for place, sample in enumerate(samples) if sample.answer is not None]
    each = [(place, number, repeat) for place in able for number in range(len(exams)) for repeat in range(repeats)]
    requests = []
    for place, number, repeat in each:
        prompt = exam_prompt(problem, samples[place], exams[number], shots, rules)
        own_seed = derive(seed, "exam", problem, number, repeat) % 2**31 if temperature else None
        requests.append(CompletionRequest(prompt, temperature, own_seed))
    right = [0] * len(samples)
    for student in students:
        usage = report.usage.setdefault(student.name, Usage())
        answers = complete_all(student, requests, cache=cache, usage=usage, on_progress=on_progress)
        failed = sum(isinstance(answer, ProgramFailure) for answer in answers)
        if answers and failed == len(answers):
            first = next(answer for answer in answers if isinstance(answer, ProgramFailure))
            raise InputError(f"no exam was answered: {first.message}", where=student.name, remedy="check the student and try again")
        report.failed += failed
        for (place, number, _), answer in zip(each, answers, strict=True):
            if isinstance(answer, ProgramFailure):
                continue
            found = parse(answer.text)[1]
            report.unreadable += found is None
            right[place] += mark(found, exams[number])
    count = len(students) * len(exams) * repeats
    return [replace(one, right=one.right + own, total=one.total + count) for one, own in zip(samples, right, strict=True)]
