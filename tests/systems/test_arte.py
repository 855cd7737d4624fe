"""ARTE: prompts and parsers, scores by hand, pairs, the item model, the whole way with stub models, and the toy students."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.datasets.rank_correlation import spearman
from tutelage.distillation.job import TrainingSettings
from tutelage.distillation.preference import tune_on_preferences
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.programs.generators.completions import Completion, CompletionRequest
from tutelage.programs.types import LimitExceeded, ProgramFailure
from tutelage.seeds import numpy_rng
from tutelage.systems.arte import (
    ARTE,
    CUE,
    PUBLISHED,
    STYLES,
    Draft,
    Question,
    ScoredDraft,
    TaskText,
    choose_items,
    examinee_scores,
    find_preferences,
    fit_items,
    one_shot_prompt,
    prompted_student,
    question_pairs,
    question_prompt,
    question_scores,
    rationale_pairs,
    read_answer,
    read_questions,
    response_data,
    score_drafts,
    tailored_set,
    tool,
    without_leaks,
    write_questions,
    write_rationales,
)
from tutelage.systems.arte.looking import (
    Pictures,
    WayPolicy,
    aligned_policy,
    draw_ways,
    example_scores,
    student_of,
    way_pairs,
)
from tutelage.systems.polyglot_teachers import tiny_text_model

SEEDS = (Question("1 + 1", "2"), Question("2 + 1", "3"), Question("2 + 2", "4"))
TASK = TaskText("Add the numbers.", SEEDS)
ITEMS = [Question(f"{number} + 5", str(number + 5)) for number in range(10)]


def drafts_of(question: Question, count: int = 4) -> list[Draft]:
    return [Draft(question, f"style {style} <answer>{question.target}</answer>", style) for style in range(count)]


def scored(question: str, *right: int, total: int = 10) -> list[ScoredDraft]:
    return [ScoredDraft(draft, own, total) for draft, own in zip(drafts_of(Question(question, "0"), len(right)), right)]


class Stub:
    """A teacher: questions with seeds in them, a rationale that names its style."""

    name = "stub"

    def __init__(self) -> None:
        self.seen = list[CompletionRequest]()

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[tuple[int, Completion | ProgramFailure]]:
        for number, request in enumerate(requests):
            self.seen.append(request)
            last = request.prompt.turns[-1]
            if "more questions" in last:
                first = request.seed % 1000
                texts = [f"<input>{first + place} + 7</input> <target>{first + place + 7}</target>" for place in range(5)]
                yield number, Completion("\n".join(texts))
            elif last.startswith("13"):
                yield number, LimitExceeded("busy")
            else:
                style = next((place for place, text in enumerate(STYLES) if text in last), 9)
                yield number, Completion(f"in style {style} <answer>1</answer>")


def likes_style_1(examples: Sequence[Draft], questions: Sequence[str]) -> list[str | None]:
    """Right after a rationale in style 1, and half of the time after one in style 0."""
    marked = bool(examples) and "style 1" in examples[-1].rationale
    half = bool(examples) and "style 0" in examples[-1].rationale
    answers = [str(int(text.split()[0]) + 5) for text in questions]
    return [answer if marked or (half and place % 2) else None for place, answer in enumerate(answers)]


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_questions_and_answers_are_read_from_tags() -> None:
    text = "1. <input> 3 + 4 </input>\n<target>7</target> <input></input><target>1</target> <input>5</input> 6"
    assert read_questions(text) == [Question("3 + 4", "7")]
    assert read_answer("<answer>1</answer> no, <answer> 2 </answer>") == "2"
    assert read_answer("no tags") is None and read_answer("<answer> </answer>") is None


def test_the_prompts() -> None:
    text = question_prompt(TASK).text
    assert all(f"<input>{one.text}</input><target>{one.target}</target>" in text for one in SEEDS) and "5 more" in text
    example = Draft(Question("3 + 4", "7"), "three, four, seven <answer>7</answer>")
    shown = one_shot_prompt(TASK, [example], "6 + 6").text
    assert [shown.count(part) for part in (TASK.description, "3 + 4", CUE, example.rationale, "6 + 6")] == [1, 1, 2, 1, 1]
    with pytest.raises(InputError, match="styles"):
        replace(TASK, styles=("one",))


def test_a_language_model_as_student() -> None:
    model = Stub()
    assert prompted_student(model, TASK)([], ["1 + 5"]) == ["1"] and model.seen[0].temperature == 0
    assert prompted_student(model, TASK)([], ["13 + 5"]) == [None]


# -- scores and pairs ------------------------------------------------------------------------------------------------


def test_scores_are_shares_of_the_preference_questions() -> None:
    found = score_drafts([*drafts_of(Question("1 + 1", "2")), *drafts_of(Question("8 + 1", "9"))], likes_style_1, ITEMS)
    assert [one.score for one in found] == 2 * [Fraction(1, 2), Fraction(1), Fraction(0), Fraction(0)]
    assert question_scores(found)[Question("1 + 1", "2")] == Fraction(3, 8)
    with pytest.raises(InputError, match="0 answers to 10"):
        score_drafts(drafts_of(SEEDS[0]), lambda examples, questions: [], ITEMS)
    with pytest.raises(InputError, match="no preference question"):
        score_drafts(drafts_of(SEEDS[0]), likes_style_1, [])


def test_the_marked_rationale_is_chosen_under_the_plain_prompt() -> None:
    found = rationale_pairs(score_drafts(drafts_of(SEEDS[0]), likes_style_1, ITEMS), TASK)
    (pair,) = found.pairs
    assert "style 1" in pair.chosen and "style 2" in pair.rejected and found.dropped == 0
    assert CUE in pair.prompt and not any(style in pair.prompt for style in STYLES if style != CUE)


def test_equal_scores_give_no_pair() -> None:
    found = rationale_pairs([*scored("a", 3, 3, 3, 3), *scored("b", 1, 2, 1, 1), *scored("c", 5)], TASK)
    assert len(found.pairs) == 1 and found.dropped == 2


def test_question_pairs_come_from_disjoint_quarters() -> None:
    every = [one for number in range(9) for one in scored(f"q{number}", number, number)]
    found = question_pairs(every, TASK, 50)
    assert len(found.pairs) == 50 and found.dropped == 0
    assert {pair.prompt for pair in found.pairs} == {question_prompt(TASK).text}
    best, worst = ({read_questions(text)[0].text for text in side} for side in zip(*((p.chosen, p.rejected) for p in found.pairs)))
    assert best == {"q8", "q7"} and worst == {"q0", "q1"}
    extreme = question_pairs(every, TASK, 50, "extreme").pairs
    named = [tuple(read_questions(text)[0].text for text in (pair.chosen, pair.rejected)) for pair in extreme]
    assert named == [("q8", "q0"), ("q7", "q1")]
    equal = question_pairs([one for number in range(4) for one in scored(f"q{number}", 2)], TASK, 5)
    assert equal.pairs == () and equal.dropped == 5
    with pytest.raises(InputError, match="four questions"):
        question_pairs(every[:6], TASK)


# -- the item model --------------------------------------------------------------------------------------------------


def simulated(seed: int, examinees: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    rng = numpy_rng(seed, "simulated answers")
    alpha, beta, theta = np.exp(0.5 * rng.standard_normal(items)), rng.standard_normal(items), rng.standard_normal(examinees)
    chance = 1 / (1 + np.exp(-alpha * (theta[:, None] - beta)))
    return alpha, (rng.random((examinees, items)) < chance).astype(int)


def test_discrimination_is_recovered_from_many_examinees() -> None:
    alpha, answered = simulated(0, 200, 50)
    model = fit_items(answered)
    assert spearman(model.alpha, alpha) > 0.7
    assert spearman(model.theta, answered.sum(1)) > 0.9, "abler examinees do better"


def test_uninformative_items_are_dropped_before_the_fit() -> None:
    _, answered = simulated(1, 20, 12)
    answered[:, 3], answered[:, 7] = 1, 0
    choice = choose_items(answered, 5)
    assert choice.uninformative >= 2 and len(choice.kept) == 5 and not {3, 7} & set(choice.kept)
    assert np.isfinite(choice.model.alpha).all() and (choice.model.alpha > 0).all()
    alphas = dict(zip(choice.fitted, choice.model.alpha))
    assert min(alphas[place] for place in choice.kept) >= max(v for place, v in alphas.items() if place not in choice.kept)
    with pytest.raises(InputError, match="by all examinees or by none"):
        choose_items(np.ones((3, 4)))
    with pytest.raises(InputError, match="a table"):
        fit_items(np.full((3, 4), 0.5))


def test_examinees_are_students_with_several_examples() -> None:
    table = examinee_scores([likes_style_1], ITEMS, drafts_of(SEEDS[0])[:2], shots=(0, 1, 2))
    assert table.sum(1).tolist() == [0, 5, 10]
    with pytest.raises(InputError, match="2 examples for 3 shots"):
        examinee_scores([likes_style_1], ITEMS, drafts_of(SEEDS[0])[:2])


# -- the whole way ---------------------------------------------------------------------------------------------------


def test_from_a_teacher_to_a_tuned_one() -> None:
    teacher = Stub()
    items = [*ITEMS, Question("  0 + 7", "7")]
    found = find_preferences(teacher, likes_style_1, TASK, items[:10], questions=8, pairs=5)
    assert len(found.scored) == 32 and found.leaked == 0 and found.refused == 0
    assert all("style 1" in pair.chosen for pair in found.rationale_level.pairs) and len(found.rationale_level.pairs) == 8
    assert found.question_level.pairs == () and found.question_level.dropped == 5, "all questions score alike"
    again = find_preferences(Stub(), likes_style_1, TASK, items[:10], questions=8, pairs=5)
    assert again == found
    model = tiny_text_model(sorted({word for pair in found.pairs for word in f"{pair.prompt} {pair.chosen}".split()}), 0, dim=16)
    network = tune_on_preferences(model, found.pairs, replace(PUBLISHED, epochs=None, steps=2, warmup_epochs=None, lr=1e-3))
    assert any(not torch.equal(a, b) for a, b in zip(network.parameters(), model.network.parameters()))
    rows = tailored_set(teacher, TASK, 6, exclude=items)
    assert 0 < len(rows) <= 6 and all(row.rationale.startswith("in style 2") for row in rows), "the plain prompt"
    data = response_data(model, TASK, rows)
    assert data.labels.shape == data.inputs["ids"].shape and bool((data.labels[:, 0] == -100).all())
    with pytest.raises(InputError, match="no row"):
        response_data(model, TASK, [])


def test_what_the_page_says_runs() -> None:
    code = re.search(r"```python\n(.*?)```", tool.__doc__ or "", re.DOTALL)
    assert code is not None
    words = f"{question_prompt(TASK).text} more Let's think in style 1".split()
    names: dict[str, Any] = {"teacher": Stub(), "student": Stub(), "aligned_teacher": Stub(), "items": [Question("1 + 0", "1")]}
    names["model"] = tiny_text_model(words, 0, dim=16)
    with pytest.raises(InputError, match="no pair"):  # the stub student gives one answer to all
        exec(code[1], names)  # noqa: S102  (our own page)
    body = code[1].replace("prompted_student(student, task)", "likes_style_1")
    exec(body, names | {"likes_style_1": likes_style_1, "items": ITEMS})  # noqa: S102


def test_questions_of_the_preference_set_are_left_out() -> None:
    kept, leaked = without_leaks([Question(" 1 +  5", "6"), Question("9 + 9", "18")], ITEMS)
    assert kept == [Question("9 + 9", "18")] and leaked == 1
    refused = find_preferences(
        Stub(), likes_style_1, TASK, ITEMS, questions=10, verify=lambda one: int(one.text.split()[0]) % 2 == 0
    )
    assert refused.refused == pytest.approx(0.5, abs=0.2) and len(refused.scored) == 4 * round(10 * (1 - refused.refused))


def test_a_teacher_that_writes_nothing_new_is_refused() -> None:
    class Mute(Stub):
        def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[tuple[int, Completion | ProgramFailure]]:
            for number in range(len(requests)):
                yield number, Completion(f"<input>{SEEDS[0].text}</input><target>2</target>")

    with pytest.raises(InputError, match="0 of 3 questions"):
        write_questions(Mute(), TASK, 3)
    assert write_rationales(Stub(), TASK, [Question("13", "x")]) == [], "a request that failed makes no draft"


# -- students that look ----------------------------------------------------------------------------------------------


def test_the_loss_starts_at_log_2_and_pairs_differ() -> None:
    scores = torch.tensor([[0.5, 0.2, 0.5, 0.1], [0.3, 0.3, 0.3, 0.3], [0.1, 0.2, 0.2, 0.9]], dtype=torch.float64)
    pairs, dropped = way_pairs(scores)
    assert pairs.tolist() == [[0, 3], [3, 0]] and dropped == 1
    policy = aligned_policy(torch.tensor([[2, 0], [2, 1]]), seed=0, steps=20)
    assert int(policy.shares.argmax()) == 2 and float(policy.shares.sum()) == pytest.approx(1)
    assert aligned_policy(pairs[:0], 0).shares.tolist() == [0.25] * 4
    job = ARTE.tiny_job(0)
    job.settings = replace(job.settings, log_every=1)
    first = train(job).history[0]["terms"]["dpo"]
    assert first == pytest.approx(math.log(2), abs=1e-5)


def test_a_student_scores_its_own_way_best() -> None:
    pictures = Pictures.of(0, rows=8, test=50)
    student = student_of(1, pictures, 0)
    scores = example_scores(student, pictures, 12, 0)
    assert int(scores.mean(0).argmax()) == 1
    assert torch.equal(scores * 40, (scores * 40).round()), "multiples of one over the number of preference pictures"
    ways = draw_ways(WayPolicy().shares, 8, 0)
    after = student.tuned(pictures.rows, ways, 2, 0)
    assert after.habit.tolist() == (torch.bincount(ways, minlength=4) / 8).tolist()
    parts = [part[0] for part in (pictures.past, pictures.preference, pictures.rows, pictures.test)]
    assert sum(map(len, parts)) == 144 + 40 + 8 + 50


def test_the_tiny_job_is_a_plain_dpo_job() -> None:
    job = ARTE.tiny_job(1)
    assert isinstance(job.settings, TrainingSettings) and job.method.config.beta == 0.1
