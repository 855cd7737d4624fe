r"""A teacher gives better answers by watching how well students do with its explanations.

```python
from tutelage.systems.lbt import Exam, LbT

tool = LbT(teacher, students=[small, smaller], samples=24)  # endpoints, local models: whatever completes prompts
found = tool.answer("What is 17 * 23?", [Exam("What is 18 * 22?", "396"), Exam("What is 19 * 21?", "399")])
print(found.choice.answer, found.choice.table)
```

On the command line, each step reads and writes JSON lines; `select` and `pairs` need no model. There is no recipe, as nothing
is trained before the pairs are there:

```sh
tutelage lbt sample problems.jsonl --count 24 --out samples.jsonl --set endpoint.url=https://host/v1 --set endpoint.model=TEACHER
tutelage lbt exam samples.jsonl exams.jsonl --out one.jsonl --set endpoint.url=https://host/v1 --set endpoint.model=STUDENT
tutelage lbt exam samples.jsonl exams.jsonl --out two.jsonl --set local.model=FOLDER
tutelage lbt select one.jsonl two.jsonl --rule sum --out chosen.jsonl --picture ranking.svg
tutelage lbt pairs one.jsonl two.jsonl --out pairs.jsonl
```

Source: "Can LLMs Learn by Teaching for Better Reasoning? A Preliminary Study" (Ning, Wang, Li, Lin, Yao, Fu, Blaschko, Dai,
Yang, Wang, 2024, arXiv 2406.14629).

**Method 1, observe.** The teacher draws n pairs of a rationale and an answer. Each pair stands as an example before the exams:
problems like the teacher's whose answers are known. A student answers each exam three times;
`lbt(pair) = right answers / all answers`, over exams, repeats and students. The answer given is the one of the largest sum of
scores over its pairs (`sum`), or of the single highest score (`max`). `majority` is self-consistency, which looks at no score.
Where no student is ever right the majority decides, and `fell_back` says so.

**Method 2, learn.** On problems with a known answer each sample scores `0.5 correct + 0.5 lbt`; two samples of a problem whose
scores differ by more than 0.3 make a pair, at most 8 a problem. The teacher is tuned on them by DPO::

    from dataclasses import replace

    from tutelage.distillation.preference import tune_on_preferences
    from tutelage.systems.lbt import preference_pairs

    pairs = [pair for one in problems for pair in preference_pairs(one.problem, one.samples, one.truth)]
    tuned = replace(model, network=tune_on_preferences(model, pairs))  # a TextModel of polyglot_teachers

**Method 3, iterate.** `search_exemplars` improves the examples in a prompt for a two-class task: students answer with each
set in context, the teacher (`PromptedWriter`) reflects on their pooled failures and writes new sets, and the sets on which the
teacher itself scores best are kept.

**Programs as answers.** `mark` decides whether an exam answer is right: for programs, whether all visible tests pass, in a
sandbox; then `rule="max"`, as programs are not equal to each other. The self-debugging round of the paper is not here.

**Use in SDVP**: among candidate programs of a question, `LbT.score` with a small program writer as student and similar questions as
exams; the program that helps the writer most wins.

**What differs from the reference implementation, and why.**

- Answers are normalised before they are pooled: two spellings of an answer share their votes. An answer that cannot be read
  equals nothing, not even another such answer.
- Of equals the answer with more samples wins, then the smaller text; there the order of samples decides.
- Scores are means of right answers in 0..1, there they are sums.

**Limits.** Method 1 reads the right answers of exam problems, self-consistency reads none. Exams that do not share the way of
solution say nothing. n samples, S students, E exams and R repeats cost n S E R requests; they are cached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tutelage.errors import InputError, did_you_mean
from tutelage.programs.generators.completions import CompletionCache, CompletionRequest, LanguageModel, Usage, complete_all
from tutelage.programs.types import ProgramFailure
from tutelage.registry import system
from tutelage.seeds import derive
from tutelage.systems.lbt.answers import Normalize, normalize_answer, parse_answer
from tutelage.systems.lbt.exams import (
    RULES_OF_PROMPTS,
    Exam,
    ExamReport,
    Mark,
    Parse,
    Shot,
    mark_by_answer,
    solution_prompt,
    take_exams,
)
from tutelage.systems.lbt.linear_rules import (
    exam_answers,
    exam_truth,
    linear_problems,
    scored_samples,
    teacher_samples,
    train_student,
    train_teacher,
)
from tutelage.systems.lbt.selection import RULES, Choice, Rule, Sample, select


@dataclass(frozen=True)
class Answered:
    """The choice, and the samples with their scores that it was made from."""

    choice: Choice
    samples: tuple[Sample, ...]


@system("lbt", kind="language")
class LbT:
    """Learning by teaching: a teacher's samples, exams of its students, and the answer that both together speak for.

    Args:
        teacher: draws rationales and answers.
        students: one or several; the teacher may be one.
        shots: solved problems that stand first in every prompt (four, as published).
        mark: decides whether a student's answer to an exam is right.
        parse: takes (rationale, answer) from a text.
        normalize: gives equal answers one text.
        rules: the first lines of every prompt.
        cache: answers on disk, which are not requested again.
        config: or its fields as options.
    """

    @dataclass(frozen=True)
    class Config:
        """``samples`` of a problem; ``temperature`` of teacher and students; ``repeats`` of an exam; ``rule``: sum, max, majority
        or average; ``seed`` of all samples."""

        samples: int = 256
        temperature: float = 0.7
        repeats: int = 3
        rule: Rule = "sum"
        seed: int = 0

        def __post_init__(self) -> None:
            if self.samples < 1 or self.repeats < 1 or not self.temperature >= 0:
                message = f"{self.samples} samples, {self.repeats} repeats at temperature {self.temperature}"
                raise InputError(message, where="config", remedy="1 or more, at a temperature from 0")
            if self.rule not in RULES:
                raise InputError(f"unknown rule {self.rule!r}", where="rule", remedy=did_you_mean(self.rule, list(RULES)))

    def __init__(
        self,
        teacher: LanguageModel,
        students: Sequence[LanguageModel],
        *,
        shots: Sequence[Shot] = (),
        mark: Mark = mark_by_answer,
        parse: Parse = parse_answer,
        normalize: Normalize = normalize_answer,
        rules: str = RULES_OF_PROMPTS,
        cache: CompletionCache | None = None,
        config: Config | None = None,
        **options: object,
    ):
        if config is not None and options:
            raise InputError("give a config or its options, not both", where="config", remedy="leave one of them out")
        known = list(self.Config.__dataclass_fields__)
        for name in options:
            if name not in known:
                raise InputError(f"LbT has no option {name!r}", where=name, remedy=did_you_mean(name, known))
        self.config = config or self.Config(**options)  # type: ignore[arg-type]
        self.teacher, self.students, self.shots = teacher, list(students), list(shots)
        self.mark, self.parse, self.normalize, self.rules, self.cache = mark, parse, normalize, rules, cache
        self.usage, self.report = Usage(), ExamReport()

    def sample(self, problem: str, on_progress: Callable[[float, float], object] | None = None) -> list[Sample]:
        """The teacher's samples of a problem, without scores; those that failed are left out.

        Raises:
            InputError: no answer came.
        """
        config = self.config
        prompt = solution_prompt(problem, self.shots, self.rules)
        seeds = [derive(config.seed, "sample", problem, number) % 2**31 for number in range(config.samples)]
        requests = [CompletionRequest(prompt, config.temperature, seed if config.temperature else None) for seed in seeds]
        answers = complete_all(self.teacher, requests, cache=self.cache, usage=self.usage, on_progress=on_progress)
        found = [Sample(*self.parse(answer.text)) for answer in answers if not isinstance(answer, ProgramFailure)]
        if not found:
            remedy = "check the teacher and try again"
            raise InputError(f"no sample of {problem[:60]!r}", where=self.teacher.name, remedy=remedy)
        return found

    def score(
        self,
        problem: str,
        samples: Sequence[Sample],
        exams: Sequence[Exam],
        on_progress: Callable[[float, float], object] | None = None,
    ) -> list[Sample]:
        """The samples with scores; see :func:`~tutelage.systems.lbt.exams.take_exams`."""
        return take_exams(
            problem,
            samples,
            exams,
            self.students,
            shots=self.shots,
            repeats=self.config.repeats,
            temperature=self.config.temperature,
            seed=self.config.seed,
            mark=self.mark,
            parse=self.parse,
            rules=self.rules,
            cache=self.cache,
            report=self.report,
            on_progress=on_progress,
        )

    def answer(self, problem: str, exams: Sequence[Exam]) -> Answered:
        """Sample, examine, choose.

        Raises:
            InputError: no sample has an answer, or there is no exam or no student.
        """
        samples = tuple(self.score(problem, self.sample(problem), exams))
        return Answered(select(samples, self.config.rule, self.normalize), samples)

    @classmethod
    def tiny_run(cls, seed: int) -> dict[str, float | str]:
        """Eight problems of hidden linear rules, a tiny teacher and one tiny student."""
        problems = linear_problems(8, seed)
        teacher, student = train_teacher(seed, 40, 16, 1), train_student(seed, "student", 40, 16, 1)
        samples = teacher_samples(teacher, problems, 6, seed)
        scored = scored_samples(samples, exam_answers(student, problems, samples, seed, "student"), exam_truth(problems))
        figures: dict[str, float | str] = {}
        for rule in RULES:
            chosen = [select(one, rule).answer for one in scored]
            right = sum(answer == str(one.value(one.wanted)) for answer, one in zip(chosen, problems))
            figures[f"right by {rule}"] = right / len(problems)
        return figures | {"mean score": sum(one.score for own in scored for one in own) / (6 * len(problems))}
