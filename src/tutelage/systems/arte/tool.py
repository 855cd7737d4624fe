r"""A teacher learns which questions and explanations suit one student, then writes that student's training set.

```python
from tutelage.distillation.preference import tune_on_preferences
from tutelage.systems.arte import PUBLISHED, Question, TaskText, find_preferences, prompted_student, tailored_set

task = TaskText("Add the numbers.", (Question("1 + 1", "2"), Question("2 + 1", "3"), Question("2 + 2", "4")))
found = find_preferences(teacher, prompted_student(student, task), task, items)  # items: questions with known answers
network = tune_on_preferences(model, found.pairs, PUBLISHED)  # model: the teacher's weights, a TextModel
rows = tailored_set(aligned_teacher, task, 250, exclude=items)  # aligned_teacher: whatever serves the tuned network
```

``teacher`` and ``student`` are endpoints, local models, or whatever else completes prompts. A teacher that is an API can be
asked for drafts; it cannot be tuned, as its weights are not here. The last step is the student's own training on
``response_data(student_model, rows)`` with the method `supervised`, task `language-modelling`. There is no recipe, as a
recipe holds no texts.

Source: "Aligning Teacher with Student Preferences for Tailored Training Data Generation" (Liu, Zhang, Yao, Cao, Hou, Li, 2024,
arXiv 2406.19227).

**What it does.**

1. The teacher writes questions from a description and three seed questions (temperature 1), and four rationales for each, one
   in each of four styles: the drafts.
2. Each draft is shown to the student as the one example before every preference question q', greedily answered:
   `s_r = mean of 1[answer = a']`; a question scores `s_q`, the mean of its `s_r`. Which questions count is chosen beforehand
   by `choose_items`: a two-parameter logistic model `P = sigmoid(alpha_j (theta_i - beta_j))` of the answers of several
   students; the 40 items of largest alpha stay.
3. Pairs: of each question its best and its worst rationale, under the plain prompt, so that the teacher learns to choose a style
   by itself; and 50 pairs of a question of the best quarter with one of the worst. Pairs without a difference are dropped and
   counted.
4. The teacher is tuned by DPO, a `Method` whose teacher is its own frozen copy:
   `L = -log sigmoid(b [(log pi(y_w|x) - log pi_ref(y_w|x)) - (log pi(y_l|x) - log pi_ref(y_l|x))])`.
5. The tuned teacher writes new questions (temperature 1) and one rationale for each (temperature 0, plain prompt). Rows whose
   question is a preference question are dropped and counted.

**Use in SDVP**: drafts are explanations beside a module's labels, the student is the module's small language model; the pairs say
in which style its labeller should explain.

**Where the paper contradicts itself** each reading is an option: pairs of questions at random from the quarters (default) or the
extremes; the temperature of tailored questions (1 by default: 0 would write one question again and again). b is not given:
0.1 is our choice.

**Limits.** `s_r` measures help, not truth: a question whose own target is wrong may still help. `verify` takes a filter, off by
default, and the share that it refuses is reported. With the 20 examinees of the paper the fitted alphas are rough: in a
simulation their rank correlation with the true ones was .35 to .63, against .87 and more with 200. Scores depend on the
template of the one-shot prompt, which is fixed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.preference import DPO, Preference, TokenizedModel
from tutelage.errors import InputError
from tutelage.networks.causal_lm import CausalLM, SequenceLogProbs, join_prompts
from tutelage.programs.generators.completions import CompletionCache, CompletionRequest, LanguageModel, complete_all
from tutelage.programs.types import ProgramFailure
from tutelage.registry import system
from tutelage.seeds import derive, numpy_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.arte.preferences import (
    QUESTION_PAIRS,
    PairSet,
    Same,
    ScoredDraft,
    question_pairs,
    rationale_pairs,
    score_drafts,
)
from tutelage.systems.arte.prompts import (
    CUE,
    NEW_QUESTIONS,
    Draft,
    Question,
    Student,
    TaskText,
    normalized,
    question_prompt,
    rationale_prompt,
    read_answer,
    read_questions,
    same_text,
)

PUBLISHED = TrainingSettings(epochs=1, batch_size=16, lr=1e-7, schedule="cosine", warmup_epochs=0.1)
"""The published tuning of a teacher of 70 billion parameters; small ones need a larger rate."""
PUBLISHED_STUDENT = TrainingSettings(epochs=1, lr=2e-5, schedule="linear", warmup_epochs=0.03)
"""The published fine-tuning of the student, on 6,750 rows; the batch is not given."""
_PATIENCE = 8  # requests in a row that give no new question


@system("arte", kind="language")
class ARTE(DPO):
    """Aligning a teacher with its student's preferences: DPO whose student is the teacher, and whose teacher is its copy.

    The data are pairs as :func:`~tutelage.distillation.preference.preference_data` lays them out; ``beta`` is 0.1.
    """

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A language model of a few hundred parameters, and 32 pairs of random tokens of several lengths."""
        rng = numpy_rng(seed, "arte pairs")

        def texts(least: int, most: int, count: int) -> list[list[int]]:
            return [rng.integers(1, 12, int(rng.integers(least, most))).tolist() for _ in range(count)]

        prompts = texts(1, 5, 32)
        batch = join_prompts(prompts * 2, texts(1, 6, 64))
        parts = {"ids": batch.ids, "mask": batch.mask, "response": batch.response}
        data = TensorData({name: part.unflatten(0, (2, 32)).transpose(0, 1) for name, part in parts.items()})
        policy, copied = (SequenceLogProbs(build_with_seed(lambda: CausalLM(12, 16, 1, 2), seed, "teacher")) for _ in range(2))
        settings = TrainingSettings(steps=8, batch_size=16, lr=1e-3, seed=seed)
        return TrainingJob(policy, copied, cls(), data, settings, "arte")  # type: ignore[arg-type]


def write_questions(
    teacher: LanguageModel,
    task: TaskText,
    count: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    cache: CompletionCache | None = None,
) -> list[Question]:
    """``count`` different questions that the teacher writes, five a request.

    Raises:
        InputError: eight requests in a row gave no new one.
    """
    found: dict[str, Question] = {}
    known = {normalized(one.text) for one in task.seeds}
    prompt, number, fruitless = question_prompt(task), 0, 0
    while len(found) < count:
        wanted = -(-(count - len(found)) // NEW_QUESTIONS)
        seeds = [derive(seed, "questions", number + place) % 2**31 for place in range(wanted)]
        number += wanted
        requests = [CompletionRequest(prompt, temperature, one if temperature else None) for one in seeds]
        before = len(found)
        for answer in complete_all(teacher, requests, cache=cache):
            for one in [] if isinstance(answer, ProgramFailure) else read_questions(answer.text):
                key = normalized(one.text)
                if key not in known:
                    found.setdefault(key, one)
        fruitless = 0 if len(found) > before else fruitless + wanted
        if fruitless >= _PATIENCE or (not temperature and len(found) < count):
            remedy = "does it answer in the form <input>…</input><target>…</target>? Else raise the temperature, or ask for fewer"
            raise InputError(f"{len(found)} of {count} questions, and no more new ones", where=teacher.name, remedy=remedy)
    return list(found.values())[:count]


def write_rationales(
    teacher: LanguageModel,
    task: TaskText,
    questions: Sequence[Question],
    styles: Sequence[str] | None = None,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    cache: CompletionCache | None = None,
) -> list[Draft]:
    """A draft for each question and style; texts without an answer in tags, and failures, are left out.

    Args:
        teacher: writes.
        task: gives the description, and the styles where none are given.
        questions: what is explained.
        styles: instructions, one draft each; ``[CUE]`` is the plain one.
        temperature: 0 by default (our choice).
        seed: of the samples.
        cache: answers on disk are not requested again.
    """
    chosen = task.styles if styles is None else styles
    each = [(question, number, style) for question in questions for number, style in enumerate(chosen)]
    requests = [
        CompletionRequest(
            rationale_prompt(task, question.text, style),
            temperature,
            derive(seed, "rationale", question.text, number) % 2**31 if temperature else None,
        )
        for question, number, style in each
    ]
    answers = complete_all(teacher, requests, cache=cache)
    return [
        Draft(question, answer.text.strip(), number)
        for (question, number, _), answer in zip(each, answers, strict=True)
        if not isinstance(answer, ProgramFailure) and read_answer(answer.text) is not None
    ]


@dataclass(frozen=True)
class Preferences:
    """What a student prefers.

    Attributes:
        scored: every draft with its score.
        rationale_level, question_level: the pairs, and how many were dropped.
        leaked: questions that are preference questions, left out.
        refused: the share of questions that ``verify`` refused, in 0..1.
    """

    scored: tuple[ScoredDraft, ...]
    rationale_level: PairSet
    question_level: PairSet
    leaked: int
    refused: float

    @property
    def pairs(self) -> list[Preference]:
        """Both levels together: what the teacher is tuned on."""
        return [*self.rationale_level.pairs, *self.question_level.pairs]


Verify = Callable[[Question], bool]
"""Whether a question's own target holds."""


def find_preferences(
    teacher: LanguageModel,
    student: Student,
    task: TaskText,
    items: Sequence[Question],
    *,
    questions: int = 250,
    pairs: int = QUESTION_PAIRS,
    choice: Literal["random", "extreme"] = "random",
    temperature: float = 1.0,
    seed: int = 0,
    same: Same = same_text,
    verify: Verify | None = None,
    cache: CompletionCache | None = None,
) -> Preferences:
    """Elicit drafts, score them with the student, and make the pairs.

    Args:
        teacher: writes the drafts.
        student: answers with a draft before it; see :func:`~tutelage.systems.arte.prompts.prompted_student`.
        task: in words.
        items: preference questions, as :func:`~tutelage.systems.arte.items.choose_items` picks them.
        questions: that the teacher writes (250 a task, as published).
        pairs: of questions (50 a task, as published).
        choice: of these pairs; see :func:`~tutelage.systems.arte.preferences.question_pairs`.
        temperature: of the questions.
        seed: of samples and draws.
        same: whether two answers are equal.
        verify: a filter of questions; None: all stay.
        cache: answers on disk are not requested again.

    Raises:
        InputError: the teacher writes too few questions, or fewer than four are left.
    """
    written = write_questions(teacher, task, questions, temperature=temperature, seed=seed, cache=cache)
    kept, leaked = without_leaks(written, items)
    held = [one for one in kept if verify is None or verify(one)]
    drafts = write_rationales(teacher, task, held, seed=seed, cache=cache)
    scored = score_drafts(drafts, student, items, same)
    by_question = question_pairs(scored, task, pairs, choice, seed)
    refused = 1 - len(held) / len(kept) if kept else 0.0
    return Preferences(tuple(scored), rationale_pairs(scored, task), by_question, leaked, refused)


def without_leaks(questions: Sequence[Question], items: Sequence[Question]) -> tuple[list[Question], int]:
    """(the questions that are none of ``items`` but for case and blanks, how many were)."""
    hidden = {normalized(item.text) for item in items}
    kept = [one for one in questions if normalized(one.text) not in hidden]
    return kept, len(questions) - len(kept)


def tailored_set(
    teacher: LanguageModel,
    task: TaskText,
    count: int,
    *,
    exclude: Sequence[Question],
    temperature: float = 1.0,
    seed: int = 0,
    cache: CompletionCache | None = None,
) -> list[Draft]:
    """The student's training set by the tuned teacher: new questions, a rationale each by the plain prompt at temperature 0.

    Args:
        teacher: the tuned one.
        task: in words.
        count: of questions; rationales that cannot be read make fewer rows.
        exclude: preference and test questions, which no row may hold.
        temperature: of the questions.
        seed: of the samples; another than that of the drafts.
        cache: answers on disk are not requested again.
    """
    own = derive(seed, "tailored")
    written = write_questions(teacher, task, count, temperature=temperature, seed=own, cache=cache)
    kept, _ = without_leaks(written, exclude)
    return write_rationales(teacher, task, kept, [CUE], seed=own, cache=cache)


def response_data(model: TokenizedModel, task: TaskText, rows: Sequence[Draft]) -> TensorData:
    """Rows for the student's training: labels are the rationale's tokens alone.

    Raises:
        InputError: no row.
    """
    if not rows:
        raise InputError("no row to train on", where="rows", remedy="give at least one")
    prompts = [rationale_prompt(task, one.question.text).text for one in rows]
    batch = model.batch(prompts, [one.rationale for one in rows])
    return TensorData({"ids": batch.ids, "mask": batch.mask}, torch.where(batch.response, batch.ids, -100))
