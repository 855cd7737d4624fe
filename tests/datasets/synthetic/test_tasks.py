from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from tutelage.datasets.synthetic.scene import DOMAINS
from tutelage.datasets.synthetic.tasks import SPLITS, TASKS, make_task
from tutelage.errors import InputError


def test_the_groups_of_the_study() -> None:
    groups = Counter(task.group for task in TASKS.values())
    assert {"previous", "current", "unseen"} <= set(groups)
    assert all(task.domain in DOMAINS for task in TASKS.values())
    assert {task.domain for task in TASKS.values() if task.group == "previous"} == {"A"}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_samples_are_repeatable_and_a_smaller_number_is_a_part(task: str) -> None:
    few, many = make_task(task, 100, "report", 20), make_task(task, 100, "report", 50)
    assert len(many) == 50 == len({sample.id for sample in many})
    for a, b in zip(few, many, strict=False):
        assert (a.id, a.question, a.answer, a.programs, a.gold_steps) == (b.id, b.question, b.answer, b.programs, b.gold_steps)
        assert all(np.array_equal(a.images[name], b.images[name]) for name in b.images)
    for sample in many:
        assert set(sample.images) == set(sample.scenes) <= {"IMAGE", "LEFT", "RIGHT"}
        assert all(image.shape == (3, 48, 48) and not image.flags.writeable for image in sample.images.values())


def test_splits_and_tasks_share_no_image() -> None:
    pictures: dict[bytes, tuple[str, str]] = {}
    for task in ("a_color", "b_gqa", "b_nlvr"):
        for split in SPLITS:
            for sample in make_task(task, 100, split, 60):
                for image in sample.images.values():
                    assert pictures.setdefault(image.tobytes(), (task, split)) == (task, split)
    assert len({owner for owner in pictures.values()}) == 3 * len(SPLITS)


@pytest.mark.parametrize("task", ["a_count", "a_exist", "b_gqa", "b_nlvr", "b_spatial", "c_mixed"])
def test_words_alone_do_not_give_the_answer(task: str) -> None:
    prior: defaultdict[str, Counter[object]] = defaultdict(Counter)
    for sample in make_task(task, 100, "collect", 1500):
        prior[sample.question][sample.answer] += 1
        prior[sample.qtype][sample.answer] += 1
    right: defaultdict[int, list[bool]] = defaultdict(list)
    answers: defaultdict[str, set[object]] = defaultdict(set)
    samples = make_task(task, 100, "select", 1000)
    for sample in samples:
        answers[sample.qtype].add(sample.answer)
    for sample in samples:
        guess = (prior.get(sample.question) or prior[sample.qtype]).most_common(1)[0][0]
        right[len(answers[sample.qtype])].append(guess == sample.answer)
    for choices, found in right.items():
        if len(found) > 100:
            assert np.mean(found) < 1 / choices + 0.08


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="a_color"):
        make_task("a_colour", 0, "report")
    with pytest.raises(InputError, match="unknown split"):
        make_task("a_color", 0, "test")
