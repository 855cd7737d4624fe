"""The study's tasks: which questions of which domain, and their samples, split by image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from types import MappingProxyType

import numpy as np

from tutelage.datasets.synthetic.nlvr_statements import make_set
from tutelage.datasets.synthetic.oracle import Box
from tutelage.datasets.synthetic.question_types import QUESTION_TYPES
from tutelage.datasets.synthetic.questions.base import AnswerBalancer, QuestionCandidate, SceneQuestion, unique
from tutelage.datasets.synthetic.render import render
from tutelage.datasets.synthetic.scene import Scene, SceneObject, make_scene
from tutelage.datasets.synthetic.script import GoldProgramBuilder, GoldValue
from tutelage.errors import InputError, did_you_mean
from tutelage.seeds import derive

SPLITS = ("pretrain", "teacher", "collect", "replay", "select", "report")
"""Streams of scenes that share no image."""
PER_IMAGE = 5
"""Questions asked of one image."""


@dataclass(frozen=True)
class Task:
    """One task of the study: its ``group`` (previous, current, unseen or generic), domain, and the kinds of its questions.

    ``things`` and ``required`` go to :func:`make_scene`. The kind ``pairs`` asks NLVR2's statements, ``where`` asks for a
    box; the others are those of ``kinds.KINDS``.
    """

    name: str
    group: str
    domain: str
    kinds: tuple[str, ...]
    things: int | None = None
    required: tuple[Mapping[str, str], ...] = ()


_SIGN: Mapping[str, str] = MappingProxyType({"shape": "sign"})

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task("a_color", "previous", "A", ("color query",)),
            Task("a_shape", "previous", "A", ("shape query",), things=1),
            Task("a_pattern", "previous", "A", ("pattern query",)),
            Task("a_size", "previous", "A", ("size query",)),
            Task("a_count", "previous", "A", ("count",)),
            Task("a_exist", "previous", "A", ("exist",)),
            Task(
                "b_gqa",
                "current",
                "B",
                ("color query", "color verify", "color compare", "count compare", "color logic", "count"),
            ),
            Task("b_nlvr", "current", "B", ("pairs",)),
            Task("b_pattern", "unseen", "B", ("pattern query",)),
            Task("b_size", "unseen", "B", ("size query",)),
            Task("b_spatial", "unseen", "B", ("color relation", "exist relation", "choose relation")),
            Task("b_digit", "unseen", "B", ("number query",), required=(_SIGN,)),
            Task("b_grounding", "unseen", "B", ("where",)),
            # Never asked and never labelled: inputs of every kind, from which self-distillation keeps general skills.
            Task(
                "a_generic",
                "generic",
                "A",
                ("number query", "color query", "pattern query", "size query", "color relation", "exist relation"),
            ),
            Task(
                "c_mixed",
                "unseen",
                "C",
                ("color query", "pattern query", "size query", "number query", "count", "exist", "compare"),
            ),
        )
    }
)


@dataclass(frozen=True)
class Sample:
    """One question with its pictures (uint8 [3, H, W], read-only) and programs.

    ``images`` are named as programs name them: IMAGE, or LEFT and RIGHT. ``image_id`` is the unit to resample: an
    image or a pair of images. ``answer`` is a text, or a box (x1, y1, x2, y2).
    ``gold_steps`` holds the true value of each VisProg line, and of each module call of the ViperGPT function.
    """

    id: str
    task: str
    images: Mapping[str, np.ndarray]
    image_id: str
    question: str
    answer: str | Box
    qtype: str
    programs: Mapping[str, str]
    gold_steps: Mapping[str, Sequence[GoldValue]]
    scenes: Mapping[str, Scene]


def make_task(name: str, seed: int, split: str, questions: int = 1000) -> list[Sample]:
    """The first ``questions`` samples of a task's split; a smaller number gives the same samples, fewer.

    Raises:
        InputError: an unknown task or split.
    """
    return list(islice(stream_task(name, seed, split), questions))


def stream_task(name: str, seed: int, split: str) -> Iterator[Sample]:
    """The samples of a task's split as they are drawn, without end.

    Splits of one seed never share an image, nor do tasks.

    Raises:
        InputError: an unknown task or split.
    """
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}", remedy=did_you_mean(name, list(TASKS)))
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}", remedy=did_you_mean(split, list(SPLITS)))
    task, stream = TASKS[name], derive(seed, "task", name, split)
    return _nlvr_samples(task, stream, split) if task.kinds == ("pairs",) else _gqa_samples(task, stream, split)


def _render_readonly(scene: Scene) -> np.ndarray:
    picture = render(scene)
    picture.flags.writeable = False
    return picture


def _gqa_samples(task: Task, stream: int, split: str) -> Iterator[Sample]:
    rng, balance = np.random.default_rng(stream), AnswerBalancer()
    for index in count():
        name = f"{task.name}-{split}-{index}"
        scene = make_scene(stream, index, task.domain, count=task.things, required=task.required, name=name)
        images: dict[str, np.ndarray] = {}
        if task.kinds == ("where",):
            found = _where(scene, name)
        else:
            found = (_sample(question) for question in draw_questions(scene, task.kinds, balance, rng, PER_IMAGE))
        for id_, text, answer, qtype, programs, gold in found:
            images = images or {"IMAGE": _render_readonly(scene)}
            yield Sample(id_, task.name, images, scene.id, text, answer, qtype, programs, gold, {"IMAGE": scene})


def draw_questions(
    scene: Scene, kinds: Sequence[str], balance: AnswerBalancer, rng: np.random.Generator, number: int
) -> Iterator[SceneQuestion]:
    """Up to ``number`` different questions about ``scene``, of ``kinds`` in turn, their answers kept in ``balance``."""
    drafts: dict[str, list[QuestionCandidate]] = {kind: list(QUESTION_TYPES[kind](scene, rng)) for kind in kinds}
    order = [kinds[i] for i in rng.permutation(len(kinds))]
    texts: set[str] = set()
    for turn in range(2 * number):
        left = drafts[order[turn % len(order)]]
        draft = balance.take(left, rng)
        if draft is None:
            continue
        left.remove(draft)
        question = draft.build(rng, f"{scene.id}-{len(texts)}")
        if question.text not in texts:
            texts.add(question.text)
            yield question
        if len(texts) == number:
            return


Row = tuple[str, str, str | Box, str, Mapping[str, str], Mapping[str, Sequence[GoldValue]]]


def _sample(question: SceneQuestion) -> Row:
    return question.id, question.text, question.answer, question.kind, question.programs, question.gold_steps


def _where(scene: Scene, name: str) -> Iterator[Row]:
    """Where each thing is that a noun alone refers to."""
    for number, thing in enumerate(unique(scene)):
        script = GoldProgramBuilder({"IMAGE": scene})
        programs = script.finish_boxes(script.locate(script.view(), thing.shape))
        texts = {"visprog": programs.visprog, "viper": programs.viper}
        gold = {"visprog": programs.visprog_gold, "viper": programs.viper_gold}
        yield f"{name}-{number}", f"Where is the {thing.shape}?", _box(thing), "where", texts, gold


def _box(thing: SceneObject) -> Box:
    x1, y1, x2, y2 = map(float, thing.box)
    return x1, y1, x2, y2


def _nlvr_samples(task: Task, stream: int, split: str) -> Iterator[Sample]:
    for index in count():
        name = f"{task.name}-{split}-{index}"
        pictures: dict[str, np.ndarray] = {}
        for statement in make_set(stream, index, task.domain, name=name):
            scenes = {"LEFT": statement.left, "RIGHT": statement.right}
            for scene in scenes.values():
                if scene.id not in pictures:
                    pictures[scene.id] = _render_readonly(scene)
            images = {side: pictures[scene.id] for side, scene in scenes.items()}
            answer, id_ = "yes" if statement.truth else "no", f"{task.name}-{split}-{statement.id}"
            programs, gold = statement.programs, statement.gold_steps
            pair = f"{task.name}-{split}-{statement.id.rpartition('-')[0]}"
            yield Sample(id_, task.name, images, pair, statement.text, answer, statement.kind, programs, gold, scenes)
