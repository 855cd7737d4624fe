"""The official GQA metrics on a handful of questions whose scores are worked out by hand, and at a large scale."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.datasets.gqa import GqaQuestion, GqaStep
from tutelage.datasets.gqa_metrics import (
    DETAILED_METRICS,
    METRICS,
    GqaScorer,
    chi_square,
    evaluate,
    grounding,
    steps_of,
)
from tutelage.datasets.gqa_predictions import Predictions, read_predictions, write_submission
from tutelage.errors import InputError


def question(text, answer, structural, semantic, *, balanced=True, group=None, entailed=(), detailed="x", points=None):
    """A question of image i1; ``semantic`` lists "operation: argument"."""
    steps = [step.split(": ") for step in semantic]
    return {
        "imageId": "i1",
        "question": text,
        "answer": answer,
        "fullAnswer": answer,
        "isBalanced": balanced,
        "groups": {"global": group, "local": None},
        "entailed": list(entailed),
        "equivalent": [],
        "types": {
            "structural": structural,
            "semantic": "attr" if structural == "query" else "obj",
            "detailed": detailed,
        },
        "annotations": points or {"question": {}, "answer": {}, "fullAnswer": {}},
        "semantic": [
            {"operation": name, "argument": argument, "dependencies": [i - 1] if i else []}
            for i, (name, argument) in enumerate(steps)
        ],
        "semanticStr": "",
    }


POINTS = {"question": {"3": "a"}, "answer": {"0": "c"}, "fullAnswer": {"1": "b"}}
QUESTIONS = {
    "1": question(
        "What color is it?",
        "red",
        "query",
        ["select: cup (a)", "query: color"],
        group="color",
        entailed=["1", "4", "5"],
        points=POINTS,
    ),
    "2": question("Is there a cup?", "yes", "verify", ["select: cup (-)", "exist: ?"]),
    "3": question("What color is the big cup?", "blue", "query", ["select: cup (a)", "query: color"], group="color"),
    "4": question("Is it red?", "yes", "verify", ["select: cup (a)", "verify color: red"], balanced=False, entailed=["1"]),
    "5": question("Is it not blue?", "yes", "verify", ["select: cup (a)", "verify color: blue"], balanced=False),
    "6": question(
        "What have they in common?",
        "color",
        "compare",
        ["select: cup (a)", "select: mug (b)", "common: "],
        group="common",
        detailed="twoCommon",
    ),
    "7": question(
        "Is it left or right?",
        "left",
        "choose",
        ["select: cup (a)", "choose name: left|right"],
        group="side",
        entailed=["4"],
    ),
}
ANSWERS = {"1": "red", "2": "purple", "3": "red", "4": "yes", "5": "no", "6": "shape", "7": "left"}
CHOICES = {
    "1": {"valid": ["red", "blue"], "plausible": ["red"]},
    "2": {"valid": ["yes", "no"], "plausible": ["yes", "no"]},
    "3": {"valid": ["red", "blue"], "plausible": ["blue"]},
    "6": {"valid": [], "plausible": []},
    "7": {"valid": ["left", "right"], "plausible": ["left", "right"]},
}
THING = {"name": "cup", "attributes": [], "relations": []}
GRAPHS = {
    "i0": {"width": 1, "height": 1, "objects": {}},
    "i1": {
        "width": 100,
        "height": 200,
        "objects": {
            "a": THING | {"x": 0, "y": 0, "w": 50, "h": 100},
            "b": THING | {"x": 25, "y": 0, "w": 50, "h": 200},
            "c": THING | {"x": 0, "y": 0, "w": 100, "h": 200},
        },
    },
}
GRID = [[0.4, 0.3], [0.2, 0.1]]


class Files:
    """The input files of one evaluation, in a folder of their own."""

    def __init__(self, folder):
        self.folder = folder
        self.put(questions=QUESTIONS, choices=CHOICES, scene_graphs=GRAPHS)
        self.put(attention=[{"questionId": name, "attention": GRID} for name in "12367"])
        self.answer(ANSWERS)

    def put(self, **values):
        for name, value in values.items():
            (self.folder / f"{name}.json").write_text(json.dumps(value))

    def answer(self, answers):
        items = answers.items() if isinstance(answers, dict) else answers
        self.put(predictions=[{"questionId": name, "prediction": answer} for name, answer in items])

    def score(self, *inputs, **options):
        given = {name: self.folder / f"{name}.json" for name in inputs}
        return evaluate(self.folder / "questions.json", self.folder / "predictions.json", **given, **options)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_every_metric_by_hand(files):
    scores = files.score("choices", "scene_graphs", "attention", consistency=True)
    assert set(METRICS) | set(DETAILED_METRICS) < set(scores)
    assert scores["accuracy"] == pytest.approx(40)  # 1 and 7 of 1 2 3 6 7
    assert scores["binary"] == pytest.approx(100 / 3)  # 7 of 2 6 7
    assert scores["open"] == pytest.approx(50)  # 1 of 1 3
    assert scores["validity"] == pytest.approx(80)  # all but purple; shape can be common, whatever the file says
    assert scores["plausibility"] == pytest.approx(60)  # not purple, and not 3
    assert scores["consistency"] == pytest.approx(75)  # 1 entails 4 (right) and 5 (wrong), 7 entails 4
    # color: gold red 1 blue 1, predicted red 2: chi2 = 1 + 1, size 2; common: chi2 = 1, size 1; side: 0, size 1
    assert scores["distribution"] == pytest.approx((2 * 2 + 1 * 1 + 0) / 4 / 100)
    # question 1: object a covers cell (0, 0) = 0.4, object b half of all = 0.5; the others point at nothing
    assert scores["grounding"] == pytest.approx(100 * 0.9 / 5)
    assert scores["accuracyPerStructuralType"] == {
        "choose": {"accuracy": 100, "questions": 1},
        "compare": {"accuracy": 0, "questions": 1},
        "query": {"accuracy": 50, "questions": 2},
        "verify": {"accuracy": 0, "questions": 1},
    }
    assert scores["accuracyPerSemanticType"] == {
        "attr": {"accuracy": 50, "questions": 2},
        "obj": {"accuracy": pytest.approx(100 / 3), "questions": 3},
    }
    # exist and choose name add no step: 2 and 7 have one, 1 and 3 two, 6 three
    assert {key: cell["questions"] for key, cell in scores["accuracyPerSteps"].items()} == {"1": 2, "2": 2, "3": 1}
    assert {key: cell["questions"] for key, cell in scores["accuracyPerLength"].items()} == {"4": 2, "5": 2, "6": 1}
    assert [scores[key] for key in ("questions", "balancedQuestions", "missingPredictions")] == [7, 5, 0]


def test_what_was_not_given_is_not_scored(files):
    scores = files.score()
    assert [scores[name] for name in ("validity", "plausibility", "consistency", "grounding")] == [None] * 4
    assert scores["accuracy"] == pytest.approx(40)


def test_exact_match_only(files):
    files.answer(ANSWERS | {"1": "Red", "7": "left "})
    assert files.score()["accuracy"] == 0


def test_object_attention(files):
    cells = [[0, 0, 0.5, 0.5, 0.6], [0.5, 0.5, 1, 1, 0.4]]
    files.put(attention=[{"questionId": name, "attention": cells} for name in "12367"])
    scores = files.score("scene_graphs", "attention", object_attention=True)
    assert scores["grounding"] == pytest.approx(100 * (0.6 + 0.3 + 0.2) / 5)


def test_missing_predictions(files):
    files.answer({name: answer for name, answer in ANSWERS.items() if name not in "57"})
    with pytest.raises(InputError, match="1 questions have no prediction, such as 7"):
        files.score()
    with pytest.raises(InputError, match="2 questions have no prediction, such as 5, 7"):
        files.score(consistency=True)
    scores = files.score("choices", missing="wrong", consistency=True)
    assert (scores["accuracy"], scores["missingPredictions"]) == (pytest.approx(20), 2)
    assert (scores["consistency"], scores["validity"]) == (pytest.approx(50), pytest.approx(60))


def test_unknown_predictions(files):
    files.answer(ANSWERS | {"99": "red"})
    with pytest.raises(InputError, match="1 predictions answer no question of the file, such as 99"):
        files.score()
    assert files.score(unknown="count")["unknownPredictions"] == 1


def test_doubled_predictions(files):
    files.answer([*ANSWERS.items(), ("1", "blue")])
    with pytest.raises(InputError, match="prediction 7: question '1' is answered twice"):
        files.score()
    scores = files.score(duplicates="last")
    assert (scores["accuracy"], scores["duplicatePredictions"]) == (pytest.approx(20), 1)


def test_consistency_is_scored_on_the_entailed_questions_that_are_there(files):
    everything = files.score(consistency=True)
    counts = ("consistencyQuestions", "entailedQuestions", "entailedAbsent")
    assert [everything[name] for name in counts] == [2, 2, 0]  # 1 entails 4 and 5, 7 entails 4
    files.put(questions={name: raw for name, raw in QUESTIONS.items() if name != "5"})
    some = files.score(consistency=True, unknown="count")
    assert some["consistency"] == pytest.approx(100) and [some[name] for name in counts] == [2, 1, 1]  # 4 is right
    files.put(questions={name: raw for name, raw in QUESTIONS.items() if raw["isBalanced"]})
    none = files.score(consistency=True, unknown="count")
    assert none["consistency"] is None and [none[name] for name in counts] == [0, 0, 2]
    assert none["accuracy"] == pytest.approx(40) and none["missingPredictions"] == 0


def test_an_entailed_question_without_a_prediction_is_missing_only_where_it_is_in_the_file(files):
    files.answer({name: answer for name, answer in ANSWERS.items() if name != "5"})
    with pytest.raises(InputError, match="1 questions have no prediction, such as 5"):
        files.score(consistency=True)
    files.put(questions={name: raw for name, raw in QUESTIONS.items() if name != "5"})
    assert files.score(consistency=True)["consistency"] == pytest.approx(100)


def test_predictions_come_as_json_lines_and_with_integer_ids(files):
    scores = files.score(consistency=True)
    lines = [json.dumps({"question_id": int(name), "text": answer}) for name, answer in ANSWERS.items()]
    (files.folder / "predictions.json").write_text("\n".join(lines) + "\n")
    assert files.score(consistency=True) == scores
    (files.folder / "predictions.json").write_text(lines[0] + "\n" + lines[1][:-4] + "\n")
    with pytest.raises(InputError, match=r"predictions.json:2: "):
        files.score()


def test_an_integer_id_stands_for_an_id_with_leading_zeros(files):
    zeros = {f"00{name}": raw | {"entailed": [f"00{other}" for other in raw["entailed"]]} for name, raw in QUESTIONS.items()}
    scores = files.score(consistency=True)
    files.put(questions=zeros, predictions=[{"questionId": int(name), "prediction": a} for name, a in ANSWERS.items()])
    assert files.score(consistency=True) == scores
    files.put(questions=zeros | {"1": QUESTIONS["1"]})
    with pytest.raises(InputError, match="appears twice") as refused:
        files.score()
    assert "ids as text" in str(refused.value)


def test_sentences_are_right_under_a_named_normalization_alone(files):
    scores = files.score("choices")
    files.answer({name: f" {answer.capitalize()}." for name, answer in ANSWERS.items()})
    assert files.score("choices")["accuracy"] == 0
    assert files.score("choices", normalize="llava") == scores


def test_grounding_needs_annotations_and_the_other_metrics_do_not(files):
    bare = {name: {k: v for k, v in raw.items() if k != "annotations"} for name, raw in QUESTIONS.items()}
    scores = files.score("choices", consistency=True)
    files.put(questions=bare)
    assert files.score("choices", consistency=True) == scores
    with pytest.raises(InputError, match="question 1: grounding needs the field 'annotations'"):
        files.score("scene_graphs", "attention")


def test_a_hidden_split_becomes_a_submission_in_the_order_of_its_questions(files):
    hidden = {name: {key: raw[key] for key in ("imageId", "question", "isBalanced")} for name, raw in QUESTIONS.items()}
    files.put(questions=hidden, predictions=[{"question_id": int(name), "answer": "Red."} for name in "7654321"])
    predictions = read_predictions(files.folder / "predictions.json", normalize="llava")
    out = files.folder / "submission.json"
    counts = write_submission(files.folder / "questions.json", predictions, out)
    assert counts == {"questions": 7, "missingPredictions": 0, "unknownPredictions": 0}
    assert json.loads(out.read_text()) == [{"questionId": name, "prediction": "red"} for name in "1234567"]
    with pytest.raises(InputError, match="hidden test split, without an answer"):
        files.score()
    out.unlink()
    files.answer({"1": "red", "99": "blue"})
    predictions = read_predictions(files.folder / "predictions.json")
    with pytest.raises(InputError, match="6 questions have no prediction, such as 2, 3, 4"):
        write_submission(files.folder / "questions.json", predictions, out)
    assert not out.exists()
    counts = write_submission(files.folder / "questions.json", predictions, out, missing="wrong")
    assert counts == {"questions": 7, "missingPredictions": 6, "unknownPredictions": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": {name: CHOICES[name] for name in "1236"}}, "1 balanced questions have no choices, such as 7"),
        ({"scene_graphs": {"i0": GRAPHS["i0"]}}, "5 questions have no scene graph, such as those of image i1"),
        ({"scene_graphs": {"i1": GRAPHS["i0"]}}, "image i1: a question points at object a"),
        ({"attention": [{"questionId": "1", "attention": GRID}]}, "4 balanced questions have no attention"),
        ({"attention": [{"questionId": "1", "attention": [[1, 2]]}]}, "item 0: field 'attention'.*square grid"),
        ({"attention": [{"questionId": "1"}]}, "'attention' is missing"),
        ({"attention": [{"questionId": "1", "attention": [[float("nan")]]}]}, "attention"),
        ({"attention": {"1": GRID}}, "not a JSON list"),
        ({"predictions": [{"questionId": 1.5, "prediction": "red"}]}, "prediction 0: field 'questionId' is 1.5"),
        ({"predictions": [{"questionId": True, "prediction": "red"}]}, "prediction 0: field 'questionId' is True"),
        ({"predictions": [{"questionId": "1", "prediction": "a", "text": "b"}]}, "'prediction' and 'text' contradict"),
        ({"predictions": [{"questionId": "1", "prediction": None}]}, "'prediction' is None"),
        ({"predictions": [{"questionId": "1"}]}, "'prediction' is missing: give one of prediction, text, answer"),
        ({"predictions": ["red"]}, "prediction 0: not a JSON object"),
    ],
)
def test_incomplete_or_wrong_inputs_are_named(files, change, message):
    files.put(**change)
    with pytest.raises(InputError, match=message):
        files.score("choices", "scene_graphs", "attention")


def test_cut_predictions(files):
    path = files.folder / "predictions.json"
    path.write_text(path.read_text()[:-4])
    with pytest.raises(InputError, match="not whole JSON"):
        read_predictions(path)


def test_attention_needs_scene_graphs(files):
    with pytest.raises(InputError, match="needs scene graphs"):
        files.score("attention")


def test_a_question_that_appears_twice_or_has_no_answer():
    predictions = Predictions()
    predictions.add("1", "red")
    scorer = GqaScorer(predictions)
    scorer.add(GqaQuestion("1", "i", "?", True, "red", structural="query"))
    with pytest.raises(InputError, match="appears twice"):
        scorer.add(GqaQuestion("1", "i", "?", True, "red", structural="query"))
    with pytest.raises(InputError, match="no annotated answer"):
        scorer.add(GqaQuestion("2", "i", "?", True))


@pytest.mark.parametrize(
    ("semantic", "steps"),
    [
        ([("select", "cup (1)"), ("exist", "?")], 1),
        ([("select", "cup (1)"), ("relate", "_,on,s (2)"), ("query", "name")], 2),
        ([("select", "cup (1)"), ("query", "color")], 2),
        ([("select", "cup (1)"), ("choose name", "cup|mug")], 1),
        ([], 0),
    ],
)
def test_steps_leave_out_what_only_reads_off_the_answer(semantic, steps):
    assert steps_of(GqaStep(operation, argument, ()) for operation, argument in semantic) == steps


@given(st.lists(st.tuples(st.sampled_from("GH"), st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1))
def test_chi_square_is_zero_only_for_the_gold_distribution(rows):
    gold, predicted = {"G": Counter(), "H": Counter()}, {"G": Counter(), "H": Counter()}
    for group, right, answer in rows:
        gold[group][right] += 1
        predicted[group][answer] += 1
    found = chi_square({name: counts for name, counts in gold.items() if counts}, predicted)
    assert found is not None and found >= 0
    same = all(predicted[name][answer] == count for name in gold for answer, count in gold[name].items())
    assert (found == 0) == same
    assert chi_square(gold, gold) == 0


@given(st.integers(1, 7), st.integers(0, 10**6))
def test_the_whole_image_holds_all_attention(side, seed):
    attention = np.random.default_rng(seed).dirichlet(np.ones(side * side))
    edges = np.arange(side) / side
    low = np.array([(x, y) for x in edges for y in edges])
    cells = np.concatenate([low, low + 1 / side], 1)
    assert grounding(attention, cells, np.array([[0.0, 0.0, 1.0, 1.0]])) == pytest.approx(1)
    halves = np.array([[0.0, 0.0, 0.3, 1.0], [0.3, 0.0, 1.0, 1.0]])
    assert grounding(attention, cells, halves) == pytest.approx(1)
    assert grounding(attention, cells, np.empty((0, 4))) == 0


def test_random_predictions_against_a_plain_count(files):
    rng = random.Random(3)
    answers = ["red", "blue", "yes"]
    raws = {
        str(number): QUESTIONS["1"]
        | {"answer": rng.choice(answers), "isBalanced": rng.random() < 0.6}
        | {"entailed": [str(rng.randrange(300)) for _ in range(rng.randrange(4))]}
        for number in range(300)
    }
    predictions = {name: rng.choice(answers) for name in raws}
    files.put(questions=raws)
    files.answer(predictions)
    right = {name: predictions[name] == raw["answer"] for name, raw in raws.items()}
    per_question = []
    for name, raw in raws.items():
        others = [right[other] for other in raw["entailed"] if other != name]
        if raw["isBalanced"] and right[name] and others:
            per_question.append(sum(others) / len(others))
    scores = files.score(consistency=True)
    balanced = [right[name] for name, raw in raws.items() if raw["isBalanced"]]
    assert scores["accuracy"] == pytest.approx(100 * sum(balanced) / len(balanced))
    assert scores["consistency"] == pytest.approx(100 * sum(per_question) / len(per_question))


PEAK = """
import json, sys
from tutelage.environment import process_memory
from tutelage.datasets.gqa_metrics import evaluate
scores = evaluate(sys.argv[1], sys.argv[2], consistency=True)
print(json.dumps([scores["questions"], process_memory()]))
"""


def peak_mib(folder, count):
    """Peak memory of a fresh process that reads and scores ``count`` questions, each entailing two others."""
    with (folder / "questions.json").open("w") as file:
        for number in range(count):
            raw = QUESTIONS["1"] | {"entailed": [str(number), f"{number * 7 % count}", f"{number * 11 % count}"]}
            file.write(f'{"," if number else "{"}"{number}": {json.dumps(raw)}\n')
        file.write("}")
    with (folder / "predictions.json").open("w") as file:
        for number in range(count):
            file.write(f'{"," if number else "["}{{"questionId": "{number}", "prediction": "red"}}\n')
        file.write("]")
    command = [sys.executable, "-c", PEAK, str(folder / "questions.json"), str(folder / "predictions.json")]
    read, mib = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert read == count
    return mib


@pytest.mark.slow
def test_a_million_questions_fit_in_a_gibibyte(tmp_path):
    small, large = peak_mib(tmp_path, 50_000), peak_mib(tmp_path, 200_000)
    per_question = (large - small) / 150_000
    assert small + per_question * 950_000 < 1024
    assert per_question * 1024 < 0.6  # KiB: a question itself, read whole, takes several
