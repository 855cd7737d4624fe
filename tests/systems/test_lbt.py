"""LbT: answers and their spellings, rules by hand, exams with stub models, pairs, the search of examples, files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.distillation.preference import Preference, tune_on_preferences
from tutelage.errors import InputError
from tutelage.programs.generators.completions import Completion, CompletionCache, CompletionRequest
from tutelage.programs.types import LimitExceeded, ProgramFailure
from tutelage.systems import lbt
from tutelage.systems.lbt import (
    RULES,
    Exam,
    ExamReport,
    Labelled,
    LbT,
    Problem,
    PromptedWriter,
    Sample,
    SearchSettings,
    Shot,
    exam_prompt,
    exams_of,
    f1_score,
    normalize_answer,
    parse_answer,
    preference_pairs,
    preference_score,
    prompted_classifier,
    read_exams,
    read_problems,
    read_samples,
    read_shots,
    same_answer,
    search_exemplars,
    select,
    solution_prompt,
    take_exams,
    write_samples,
)
from tutelage.systems.lbt.linear_rules import exam_truth, linear_problems, majority_truth, scored_samples
from tutelage.systems.polyglot_teachers import tiny_text_model


class Stub:
    """A model that answers by a function of the prompt's text and the seed."""

    def __init__(self, name: str, answer: Callable[[str, int | None], str | None]):
        self.name, self.answer, self.seen = name, answer, list[CompletionRequest]()

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"stub": self.name}

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[tuple[int, Completion | ProgramFailure]]:
        for number, request in enumerate(requests):
            self.seen.append(request)
            text = self.answer(request.prompt.text, request.seed)
            yield number, LimitExceeded("no answer") if text is None else Completion(text)


# -- answers ---------------------------------------------------------------------------------------------------------

EQUAL = [
    ("0.5", "1/2"), ("0.5", r"\frac{1}{2}"), ("1/2", r"\frac12"), ("0.25", "1/4"), ("2/4", "1/2"), ("10", "10.0"), ("7.", "7"),
    ("x=3", "3"), (r"\sqrt3", r"\sqrt{3}"), (r"\text{yes}", "yes"), ("1,000", "1000"), (r"90^\circ", "90"), (r"50\%", "50"),
    (r"\dfrac{2}{3}", r"\frac{2}{3}"), (r"-\frac{1}{2}", "-0.5"), (r"5\text{ cm}", "5"), ("5 miles", "5"), ("$12$", "12"),
    (r"\left(1, 2\right)", "(1,2)"), (r"\frac{10}{4}", "2.5"), (".5", "0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_spellings_of_one_answer(one: str, other: str) -> None:
    assert same_answer(one, other) and same_answer(other, one)


@pytest.mark.parametrize(
    ("one", "other"), [("x+1", "1+x"), ("0.33", "1/3"), ("12", "1"), ("(1,2)", "12"), ("1/0", "0"), ("3", "-3")]
)
def test_other_answers(one: str, other: str) -> None:
    assert not same_answer(one, other)


def test_what_is_no_answer_equals_nothing() -> None:
    assert not same_answer(None, None) and not same_answer(" ", " ") and not same_answer("3", None)


@given(st.text(max_size=30))
def test_normalising_never_fails_and_is_stable_for_numbers(text: str) -> None:
    found = normalize_answer(text)
    assert found is None or found


def test_a_long_text_is_compared_as_it_stands() -> None:
    assert normalize_answer("9" * 5000) == "9" * 5000 and same_answer("a " * 200, "a  " * 200)


def test_the_answer_of_a_text() -> None:
    assert parse_answer("2 and 2.\nThe answer is 4.") == ("2 and 2.", "4")
    assert parse_answer("First the answer is 3. No.\nAnswer: 1.5\nend") == ("First the answer is 3. No.", "1.5")
    assert parse_answer(r"So $\boxed{\frac{1}{2}}$ it is") == ("So", r"\frac{1}{2}")
    assert parse_answer("I do not know") == ("I do not know", None)


# -- the rules -------------------------------------------------------------------------------------------------------

HAND = [Sample("a", "A", 2, 10), Sample("b", "A", 3, 10), Sample("c", "A", 3, 10), Sample("d", "B", 7, 10)]


def test_the_rules_by_hand() -> None:
    assert {rule: select(HAND, rule).answer for rule in RULES} == {"majority": "A", "max": "B", "sum": "A", "average": "B"}
    table = {one.answer: one for one in select(HAND).table}
    assert (table["A"].count, table["A"].sum, table["B"].sum) == (3, pytest.approx(0.8), pytest.approx(0.7))
    assert HAND[select(HAND, "max").place].rationale == "d" and HAND[select(HAND).place].rationale == "b"


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_samples_never_matters(rule: str) -> None:
    more = [*HAND, Sample("e", "C", 7, 10), Sample("f", None, 0, 10)]
    found = {(choice.answer, order[choice.place].rationale) for order in itertools.permutations(more)
             for choice in [select(order, rule)]}  # fmt: skip
    assert len(found) == 1


@pytest.mark.parametrize("rule", RULES)
def test_one_sample_and_no_score(rule: str) -> None:
    assert select([Sample("", "7", 1, 3)], rule).answer == "7"
    failed = [Sample("", "1", 0, 9), Sample("", "2", 0, 9), Sample("", "2.0", 0, 9)]
    choice = select(failed, rule)
    assert choice.answer == "2" and choice.fell_back == (rule != "majority")


def test_equals() -> None:
    assert select([Sample("", "9", 2, 4), Sample("", "1", 1, 4), Sample("", "1", 1, 4)]).answer == "1", "more samples"
    assert select([Sample("", "b", 2, 4), Sample("", "a", 2, 4)]).answer == "a", "the smaller text"
    assert select([Sample("", "1/2", 1, 9), Sample("", "0.5", 1, 9), Sample("", "3", 1, 9)]).table[0].count == 2


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 9)), min_size=1, max_size=8))
def test_a_student_that_always_fails_changes_no_choice(rows: list[tuple[str, int]]) -> None:
    one = [Sample(str(place), answer, right, 9) for place, (answer, right) in enumerate(rows)]
    two = [Sample(it.rationale, it.answer, it.right, 18) for it in one]
    for rule in RULES:
        assert select(one, rule).answer == select(two, rule).answer


def test_what_cannot_be_chosen_from_is_refused() -> None:
    with pytest.raises(InputError, match="no sample has an answer"):
        select([Sample("", None)])
    with pytest.raises(InputError, match="unknown rule"):
        select(HAND, "mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="right"):
        Sample("", "1", 3, 2)


# -- exams -----------------------------------------------------------------------------------------------------------

SHOTS, EXAMS = [Shot("p0", "r0", "a0")], [Exam("3 more than 4", "7777"), Exam("3 more than 5", "8888")]


def test_the_exam_prompt_shows_the_sample_once_and_never_the_truth() -> None:
    text = exam_prompt("TP here", Sample("TR here", "TA123"), EXAMS[0], SHOTS).text
    assert [text.count(part) for part in ("TP here", "TR here", "TA123", "3 more than 4", "p0")] == [1, 1, 1, 1, 1]
    assert "7777" not in text and text.index("p0") < text.index("TP here") < text.index("3 more than 4")
    assert len(exam_prompt("TP", Sample("TR", "TA"), EXAMS[0], SHOTS).messages) == 6


def test_scores_are_shares_of_right_exam_answers() -> None:
    def answer(text: str, seed: int | None) -> str:
        right = "7777" if text.rstrip().endswith("4") else "8888"
        return f"so. The answer is {right if 'good' in text else 1}."

    able, never = Stub("able", answer), Stub("never", lambda text, seed: "no idea")
    samples, report = [Sample("good", "1"), Sample("bad", "2"), Sample("none", None)], ExamReport()
    found = take_exams("p", samples, EXAMS, [able, never], shots=SHOTS, report=report)
    assert [(one.right, one.total) for one in found] == [(6, 12), (0, 12), (0, 12)]
    assert found[0].score * 12 == 6 and report.unreadable == 12 and report.failed == 0
    assert len(able.seen) == 2 * 2 * 3, "a sample without an answer takes no exam"
    assert len({request.seed for request in able.seen if "good" in request.prompt.text}) == 6, "each repeat has its own seed"
    later = take_exams("p", take_exams("p", samples, EXAMS, [able], shots=SHOTS), EXAMS, [never], shots=SHOTS)
    assert later == found, "students may come one after the other"
    backwards = take_exams("p", samples[::-1], EXAMS, [able, never], shots=SHOTS)
    assert backwards == found[::-1]


def test_exams_that_cannot_be_taken_are_refused() -> None:
    student = Stub("s", lambda text, seed: None)
    with pytest.raises(InputError, match="0 exams"):
        take_exams("p", HAND, [], [student])
    with pytest.raises(InputError, match="no exam was answered"):
        take_exams("p", HAND, EXAMS, [student])


def test_from_a_problem_to_an_answer(tmp_path: Path) -> None:
    """The teacher is mostly wrong in the same way; the student learns from the right rule alone."""
    teacher = Stub("t", lambda text, seed: f"rule {seed % 4}. The answer is {40 + (seed % 4 == 1)}." if seed else "")

    def study(text: str, seed: int | None) -> str:
        return "The answer is " + ("7777" if text.rstrip().endswith("4") else "8888") if "rule 1" in text else "The answer is 0"

    student = Stub("s", study)
    tool = LbT(teacher, [student], cache=CompletionCache(tmp_path), samples=16)
    found = tool.answer("p", EXAMS)
    assert found.choice.answer == "41" and select(found.samples, "majority").answer == "40"
    requests = len(teacher.seen), len(student.seen)
    assert tool.answer("p", EXAMS) == found and (len(teacher.seen), len(student.seen)) == requests, "answered from the cache"
    with pytest.raises(InputError, match="no option 'sample'"):
        LbT(teacher, [student], sample=3)
    with pytest.raises(InputError, match="unknown rule"):
        LbT(teacher, [student], rule="most")


def test_what_the_page_says_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", lbt.tool.__doc__ or "", re.DOTALL)
    assert code is not None
    models = {name: Stub(name, lambda text, seed: "so. The answer is 391.") for name in ("teacher", "small", "smaller")}
    exec(code[1], dict(models))  # noqa: S102  (our own page)
    assert "391" in capsys.readouterr().out


def test_programs_are_marked_by_tests() -> None:
    student = Stub("s", lambda text, seed: "The answer is x * 2")
    found = take_exams("p", [Sample("r", "x + 1")], EXAMS, [student], mark=lambda answer, exam: answer == "x * 2")
    assert found[0].score == 1


def test_the_solution_prompt() -> None:
    prompt = solution_prompt("q", SHOTS, "rules")
    assert prompt.text == "rules\n\nProblem: p0\nr0\nThe answer is a0.\n\nProblem: q\n"


# -- pairs -----------------------------------------------------------------------------------------------------------


def test_pairs_by_hand() -> None:
    right, wrong = Sample("r", "4", 1, 5), Sample("w", "5", 1, 5)
    assert preference_score(right, "4.0") == Fraction(3, 5) and preference_score(wrong, "4") == Fraction(1, 10)
    assert preference_score(right, "4", 0) == 1
    (pair,) = preference_pairs("p", [wrong, right], "4")
    assert pair == Preference("p", "r\nThe answer is 4.", "w\nThe answer is 5.")
    assert preference_pairs("p", [Sample("a", "5", 7, 10), Sample("b", "5", 1, 10)], "4") == [], "exactly .3 makes no pair"
    assert len(preference_pairs("p", [Sample("a", "5", 8, 10), Sample("b", "5", 1, 10)], "4")) == 1
    assert preference_pairs("p", [Sample("r", "5", 0, 10), Sample("r", "5", 9, 10)], "4") == [], "equal texts"


def test_at_most_eight_pairs_the_widest_first() -> None:
    samples = [Sample(f"s{number}", "4" if number < 5 else "5", number % 5, 10) for number in range(10)]
    found = preference_pairs("p", samples, "4")
    assert len(found) == 8 and found[0].chosen.startswith("s4") and found[0].rejected.startswith("s5")
    assert preference_pairs("p", samples[::-1], "4") == found
    with pytest.raises(InputError, match="weight"):
        preference_pairs("p", samples, "4", weight=2)


def test_a_teacher_is_tuned_on_pairs() -> None:
    model = tiny_text_model("p r w The answer is 4. 5.".split(), seed=0, dim=16)
    pairs = preference_pairs("p", [Sample("r", "4", 1, 5), Sample("w", "5", 1, 5)], "4")
    tuned = tune_on_preferences(model, pairs)
    assert any(not torch.equal(a, b) for a, b in zip(tuned.parameters(), model.network.parameters()))


# -- the search of examples ------------------------------------------------------------------------------------------

TRAIN = [Labelled(f"{'red' if number % 3 == 0 else 'blue'} {number}", "yes" if number % 3 == 0 else "no") for number in range(30)]


def by_colours(exemplars: Sequence[Labelled], texts: Sequence[str]) -> list[str | None]:
    """Answers as the examples with the same first word; "no" for others."""
    known = {one.text.split()[0]: one.label for one in exemplars}
    return [known.get(text.split()[0], "no") for text in texts]


class Corrects:
    """Writes sets that hold the failures themselves, and one that makes things worse."""

    def reflect(self, exemplars: Sequence[Labelled], failures: Sequence[Any], seed: int) -> str:
        return "wrong"

    def write(self, exemplars: Any, failures: Sequence[Any], reflection: str, count: int, seed: int) -> list[Any]:
        good = (Labelled(failures[0].text, failures[0].label), *exemplars[1:])
        return [good, (Labelled("red", "no"), Labelled("blue", "yes")), exemplars][:count]


def test_the_search_gets_better_and_never_worse() -> None:
    start = [(Labelled("red 0", "no"), Labelled("green 1", "no"))]
    found = search_exemplars(start, TRAIN, by_colours, [by_colours, lambda e, t: [None] * len(t)], Corrects(), seed=1)
    best = [one.best for one in found.history]
    assert best == sorted(best) and found.score == best[-1] == 1.0
    again = search_exemplars(start, TRAIN, by_colours, [by_colours, lambda e, t: [None] * len(t)], Corrects(), seed=1)
    assert again == found


def test_a_round_without_failures_writes_nothing() -> None:
    start = [(Labelled("red 0", "yes"), Labelled("blue 1", "no"))]
    found = search_exemplars(start, TRAIN, by_colours, [by_colours], Corrects(), SearchSettings(rounds=2))
    assert [(one.failures, one.written) for one in found.history] == [(0, 0), (0, 0)] and found.exemplars == start[0]
    with pytest.raises(InputError, match="0 students"):
        search_exemplars(start, TRAIN, by_colours, [], Corrects())
    with pytest.raises(InputError, match="1 or more"):
        SearchSettings(beam=0)


def test_f1_by_hand() -> None:
    assert f1_score(["a", "b", "b"], ["a", "a", "b"]) == pytest.approx(2 / 3) and f1_score(["a", "b", "b"], ["b"] * 3) == 0


def test_models_classify_reflect_and_write() -> None:
    model = Stub("m", lambda text, seed: "**Yes**" if text.rstrip().endswith("red") else "perhaps")
    assert prompted_classifier(model, "Red?", ["yes", "no"])((Labelled("x", "no"),), ["red", "blue"]) == ["yes", None]
    teacher = Stub("t", lambda text, seed: "Text: red => yes\nnonsense\nText: blue => maybe\nText: sky => No")
    writer = PromptedWriter(teacher, "Red?", ["yes", "no"])
    exemplars = (Labelled("x", "no"), Labelled("y", "yes"))
    reflection = writer.reflect(exemplars, [], 1)
    assert "red" in reflection
    assert writer.write(exemplars, [], reflection, 2, 1) == [(Labelled("red", "yes"), Labelled("sky", "no"))] * 2


# -- files -----------------------------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    problem = Problem("p1", "2 + 2", "4", (Sample("r", "4", 2, 9), Sample("w", None, 0, 9)))
    one = write_samples(tmp_path / "one.jsonl", [problem])
    assert read_samples(one) == [problem]
    (both,) = read_samples([one, one])
    assert [(it.right, it.total) for it in both.samples] == [(4, 18), (0, 18)]
    exams = tmp_path / "exams.jsonl"
    exams.write_text('{"id": "p1", "problem": "3 + 3", "answer": "6"}\n')
    assert exams_of(problem, read_exams(exams)) == [Exam("3 + 3", "6")]
    with pytest.raises(InputError, match="no exam for the problem 'p2'"):
        exams_of(Problem("p2", ""), read_exams(exams))
    shots = tmp_path / "shots.jsonl"
    shots.write_text('{"problem": "p", "rationale": "r", "answer": "a"}\n')
    assert read_shots(shots) == [Shot("p", "r", "a")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1, "problem": "p", "rationale": "r", "answer": 4}', "answer"),
        ('{"id": 1, "problem": "p", "rationale": "r", "answer": "4", "right": 2, "total": 1}', "at most total"),
        ('{"id": 1, "problem": "p", "rationale": "r", "answer": "4", "right": -1}', "whole number"),
        ('{"id": 1, "problem": "p"}', "rationale"),
        ("", "no line"),
        ("[1]", "JSON object"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(line)
    with pytest.raises(InputError, match=message) as raised:
        read_samples(file)
    assert "samples.jsonl" in str(raised.value.where)


def test_files_that_disagree_are_refused(tmp_path: Path) -> None:
    one = write_samples(tmp_path / "one.jsonl", [Problem("1", "p", None, (Sample("r", "4"),))])
    other = write_samples(tmp_path / "two.jsonl", [Problem("1", "p", None, (Sample("r", "5"),))])
    with pytest.raises(InputError, match="other samples"):
        read_samples([one, other])
    other.write_text('{"id": "1", "problem": "p"}\n{"id": 1, "problem": "q"}\n')
    with pytest.raises(InputError, match="twice"):
        read_problems(other)


# -- the experiment's rules ------------------------------------------------------------------------------------------


def test_scores_of_hidden_rules_by_hand() -> None:
    problems = linear_problems(2, 0)
    truth = exam_truth(problems)
    assert truth.tolist() == [[one.slope * place + one.intercept for place in one.exams] for one in problems]
    assert all(len({one.shown, one.wanted, *one.exams}) == 5 for one in problems)
    answers = truth[:, None, :, None].repeat(1, 2, 1, 3)
    answers[0, 1] = 47  # the second sample of the first problem is of no use
    answers[0, 0, 0, 0] = 46
    samples = torch.tensor([[[1, 2, 3], [1, 2, 4]]] * 2)
    scored = scored_samples(samples, answers, truth)
    assert [[(it.right, it.total) for it in own] for own in scored] == [[(8, 9), (0, 9)], [(9, 9), (9, 9)]]
    assert scored[0][0].answer == "3" and scored[0][0].rationale == "1 2"
    guessed = majority_truth(answers)
    assert guessed[1].tolist() == truth[1].tolist()
    assert guessed[0].tolist() == [47, *truth[0].tolist()[1:]], "3 of 6 answers are 47, and 2 are right; of equals the smaller"
