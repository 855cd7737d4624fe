"""The study's questions: the synthetic tasks and easy-VQA, as questions with programs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from tutelage.datasets import easy_vqa
from tutelage.datasets.synthetic.tasks import TASKS, Sample, stream_task
from tutelage.modules.visual_module import CallLabel
from tutelage.programs.generators.grammar import generate
from tutelage.programs.types import Call
from tutelage.programs.values import Box, Image
from tutelage.sdvp.questions import Question
from tutelage.sdvp.toy_modules import split_samples

EASY = "easy_vqa"
CURRENT = (EASY, *(name for name, task in TASKS.items() if task.group == "current"))
PREVIOUS = tuple(name for name, task in TASKS.items() if task.group == "previous")
GENERIC = tuple(name for name, task in TASKS.items() if task.group == "generic")
UNSEEN = tuple(name for name, task in TASKS.items() if task.group == "unseen")


def group_of(task: str) -> str:
    """previous, current or unseen."""
    return "current" if task == EASY else TASKS[task].group


def questions_of(
    task: str, seed: int, split: str, count: int, dsls: Sequence[str] = ("visprog",), gold: bool = True
) -> list[Question]:
    """``count`` questions of a task's split with their programs in ``dsls``, and with ``gold`` the true value of each step;
    easy-VQA's ``report`` split is its official test split, and its steps are not known."""
    if task == EASY:
        return easy_questions(split, count, seed, dsls)
    images: dict[int, Image] = {}
    found = []
    samples = stream_task(task, seed, split)
    for sample in islice(_limit_per_image(samples) if split == "collect" else samples, count):
        views = {}
        for name, pixels in sample.images.items():
            key = id(pixels)
            if key not in images:
                images[key] = Image.from_array(pixels, f"{seed}/{sample.scenes[name].id}")
            views[name] = images[key]
        steps = {dsl: [_value(step) for step in sample.gold_steps[dsl]] for dsl in dsls} if gold else {}
        answer = Box(*sample.answer) if isinstance(sample.answer, tuple) else sample.answer
        found.append(
            Question(
                sample.id,
                task,
                views,
                sample.question,
                {dsl: sys.intern(sample.programs[dsl]) for dsl in dsls},
                answer,
                sample.qtype,
                sample.image_id,
                steps,
            )
        )
    return found


def _limit_per_image(samples: Iterable[Sample], max_per_image: int = 2) -> Iterator[Sample]:
    """At most ``max_per_image`` samples of each image: what is learnt from needs many images more than many questions of each."""
    seen: Counter[str] = Counter()
    for sample in samples:
        seen[sample.image_id] += 1
        if seen[sample.image_id] <= max_per_image:
            yield sample


def _value(gold: Any) -> Any:
    """A true value as programs hold it; regions stay for the symbolic modules to cut."""
    if isinstance(gold, list):
        return [Box(*box) for box in gold]
    return gold if isinstance(gold, (str, bool, int, float)) else None


def easy_questions(split: str, count: int, seed: int, dsls: Sequence[str] = ("visprog",)) -> list[Question]:
    """Questions of easy-VQA; the splits of its train part share no image."""
    if split == "report":
        samples: Sequence[easy_vqa.EasyVqaSample] = easy_vqa.load("test")
    else:
        samples = split_samples(easy_vqa.load("train"), split, seed)
    if count < len(samples):
        take = easy_vqa.spread_over_images if split == "collect" else easy_vqa.subsample
        samples = take(samples, count, seed)
    images: dict[int, Image] = {}
    found = []
    for sample in samples:
        if sample.image_id not in images:
            images[sample.image_id] = Image.from_array(sample.image, f"easy/{split == 'report'}/{sample.image_id}")
        image = images[sample.image_id]
        written = generate(sample.question, single=True)._asdict()
        programs = {dsl: sys.intern(written[dsl]) for dsl in dsls}
        found.append(
            Question(
                sample.id,
                EASY,
                {"IMAGE": image},
                sample.question,
                programs,
                sample.answer,
                sample.qtype,
                image.root_key,
            )
        )
    return found


def easy_probe(questions: Sequence[Question]) -> list[tuple[Call, CallLabel]]:
    """Labelled VQA calls from the questions whose answer is the colour or the shape."""
    return [
        (Call("VQA", {"image": q.images["IMAGE"], "question": f"What {q.kind} is the shape?"}), CallLabel(q.answer))
        for q in questions
        if q.kind in ("color", "shape")
    ]
