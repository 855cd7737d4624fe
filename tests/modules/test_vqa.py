from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import InputError
from tutelage.modules.visual_module import CallLabel
from tutelage.modules.vqa import MASKED_LOGIT

from .networks import VOCABULARY, ask, check, close, crops, picture, verify, vqa, with_surroundings

QUESTIONS = ("What color is the star?", "Is the circle red?", "What size is the object?", "Is the star red or blue?")
VQA, VERIFY = vqa(), verify()


def test_a_batch_answers_each_call_as_if_it_stood_alone() -> None:
    calls = [ask(image, question) for image in crops(6) for question in QUESTIONS]
    together, alone = VQA.run(calls), [VQA.run([call]) for call in calls]
    assert together.values == [one.values[0] for one in alone]
    assert all(close([*a.values()], [*b.distributions[0].values()]) for a, b in zip(together.distributions, alone))
    calls = [check(image, "star", word) for image in crops(6) for word in ("red", "small")]
    together, alone = VERIFY.run(calls), [VERIFY.run([call]) for call in calls]
    assert close([d["yes"] for d in together.distributions], [a.distributions[0]["yes"] for a in alone])


def test_only_answers_of_the_asked_type_are_given_and_they_share_all_probability() -> None:
    calls = [ask(picture(), question) for question in QUESTIONS]
    answers = VQA.run(calls)
    expected = [{"red", "green", "blue"}, {"yes", "no"}, {"small", "large"}, {"red", "blue"}]
    assert [set(dist) for dist in answers.distributions] == expected
    assert all(value == max(dist, key=dist.get) for value, dist in zip(answers.values, answers.distributions))
    assert all(abs(sum(dist.values()) - 1) < 1e-5 for dist in answers.distributions)


def test_a_verdict_is_a_bool_with_the_probability_of_both() -> None:
    answers = VERIFY.run([check(image, "star", "red") for image in crops(12)])
    assert all(value is (dist["yes"] >= 0.5) for value, dist in zip(answers.values, answers.distributions))
    assert all(abs(dist["yes"] + dist["no"] - 1) < 1e-6 for dist in answers.distributions)


def test_words_outside_the_vocabulary_are_answered_and_counted() -> None:
    answers = VQA.run([ask(picture(), "What color is the zebra?"), ask(picture(), "What color is the star?")])
    assert answers.out_of_vocabulary == [True, False] and answers.values[0] in ("red", "green", "blue")
    answers = VERIFY.run([check(picture(), "zebra", "red"), check(picture(), "star", "striped"), check(picture(), "star", "red")])
    assert answers.out_of_vocabulary == [True, True, False]


@pytest.mark.parametrize("module", [VQA, VERIFY], ids=["VQA", "VERIFY"])
def test_the_picture_around_a_crop_changes_nothing(module) -> None:
    for image in crops(8):
        black, white = (with_surroundings(image, value) for value in (0, 255))
        call = (lambda it: ask(it, QUESTIONS[0])) if module is VQA else (lambda it: check(it, "star", "red"))
        one, other = (module.run([call(it)]).distributions[0] for it in (black, white))
        assert close([*one.values()], [*other.values()])


def test_heads_travel_with_the_values_and_forbidden_answers_stay_finite() -> None:
    answers = VQA.run([ask(picture(), QUESTIONS[0])])
    assert set(answers.heads) == set(VQA.heads)
    assert answers.heads["answer"][0, VOCABULARY.flat.index("yes")] == MASKED_LOGIT


# Exercises


def test_questions_about_one_crop_share_a_row() -> None:
    one, two = crops(2)
    calls = [ask(one, QUESTIONS[0]), ask(two, QUESTIONS[1]), ask(one, QUESTIONS[2])]
    labels = [CallLabel("red"), CallLabel("no", weight=0.5), CallLabel("large", {"large": 0.8, "small": 0.2})]
    exercise = VQA.training_examples(calls, labels)
    assert len(exercise) == 2 and exercise.inputs["words"].shape[:2] == (2, 2)
    assert exercise.weights.tolist() == [[1, 1], [0.5, 0]], "the second crop has one question"
    soft, names = exercise.targets["answer"]["soft"], VOCABULARY.flat
    assert soft[0, 0, names.index("red")] == 1
    assert soft[0, 1, names.index("large")] == pytest.approx(0.8) and soft[0, 1, names.index("small")] == pytest.approx(0.2)
    hard = exercise.targets["answer"]["hard"]
    assert hard[0].tolist() == [names.index("red"), names.index("large")] and hard[1, 0] == names.index("no")


@pytest.mark.parametrize("module", [VQA, VERIFY], ids=["VQA", "VERIFY"])
def test_an_exercise_asks_the_network_what_the_calls_ask(module) -> None:
    images = crops(4)
    if module is VQA:
        calls = [ask(image, question) for question in QUESTIONS for image in images]
    else:
        calls = [check(image, noun, word) for noun in ("star", "object") for word in ("red", "small") for image in images]
    exercise = module.training_examples(calls, None)
    with torch.no_grad():
        (expected,), (found,) = module.forward(module.encode(calls)).values(), module.forward(exercise.inputs).values()
    order = [(i % 4, i // 4) for i in range(len(calls))]
    found = torch.stack([found[row, place] for row, place in order])
    assert torch.allclose(found, expected, atol=0.02), "up to the rounding of pixels to bytes"


def test_a_row_holds_a_few_questions_at_most() -> None:
    calls = [ask(picture(), QUESTIONS[i % 4]) for i in range(VQA.max_questions_per_image + 1)]
    exercise = VQA.training_examples(calls, None)
    assert len(exercise) == 2 and exercise.weights.sum() == VQA.max_questions_per_image + 1 and not exercise.targets


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["yes", "no"]), st.floats(0, 1)), min_size=1, max_size=9))
def test_labels_come_back_out_of_the_targets(asked: list[tuple[int, str, float]]) -> None:
    images = crops(3)
    calls = [check(images[i], "star", "red") for i, _, _ in asked]
    labels = [CallLabel(word == "yes", {"yes": p, "no": 1 - p}) for _, word, p in asked]
    exercise = VERIFY.training_examples(calls, labels)
    target, real = exercise.targets["verdict"]["probability"], exercise.weights > 0
    assert int(real.sum()) == len(asked)
    for index, image in enumerate(dict.fromkeys(i for i, _, _ in asked)):
        mine = [p for i, _, p in asked if i == image]
        if len(mine) <= VERIFY.max_questions_per_image and len(asked) <= VERIFY.max_questions_per_image:
            assert target[index][real[index]].tolist() == pytest.approx(mine)


def test_a_label_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="purple"):
        VQA.training_examples([ask(picture(), QUESTIONS[0])], [CallLabel("purple")])


def test_siblings_are_calls_about_the_same_crop_that_the_module_knows() -> None:
    for module, call in ((VQA, ask(crops(1)[0], QUESTIONS[0])), (VERIFY, check(crops(1)[0], "star", "red"))):
        siblings = module.related_calls(call)
        assert siblings and all(sibling.args["image"] is call.args["image"] for sibling in siblings)
        assert not any(module.run(siblings).out_of_vocabulary)
        assert siblings == module.related_calls(call)


def test_a_step_on_the_exercise_teaches_what_the_label_says() -> None:
    calls, labels = [ask(image, QUESTIONS[0]) for image in crops(4)], [CallLabel("green")] * 4
    exercise, network = VQA.training_examples(calls, labels), VQA.copy_network()
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(30):
        logits = network(exercise.inputs)["answer"]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), exercise.targets["answer"]["hard"].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert VQA.with_network(network).run(calls).values == ["green"] * 4
