"""How the learned writer is trained: on questions of the embedded world and on wordings of our own, by the one trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tutelage import files
from tutelage.distill.data import TensorData
from tutelage.distill.lesson import Lesson, Settings
from tutelage.distill.trainer import train
from tutelage.programs.writers import compose, grammar, phrasings, templates
from tutelage.programs.writers.phrasings import Pair
from tutelage.programs.writers.templates import dissect, words
from tutelage.sdvp.writing import learned, network
from tutelage.sdvp.writing.learned import LEAST, Codes, LearnedWriter, first_places, padded, steps_of
from tutelage.sdvp.writing.network import PADDING, Transcribe, Writing
from tutelage.seeds import derive, numpy_rng, torch_rng
from tutelage.tasks.world import amounts, attributes, comparisons, pairs, places
from tutelage.tasks.world.kinds import KINDS
from tutelage.tasks.world.questions import Balance
from tutelage.tasks.world.scene import make_scene
from tutelage.tasks.world.task import ask


@dataclass(frozen=True)
class Schooling:
    """How the writer is trained (settled on seeds 100 to 102).

    ``scenes`` and ``sets`` of the world are asked about, each wording is used ``rounds`` times. ``unknown``: the share of
    arguments hidden from the reader, so that it learns to copy words it has never read; ``lost``: the share of other
    words hidden. ``swapped``: the share of images that are called pictures or photos; ``opened``: the share of questions
    with a courtesy in front. ``scrambled``: the share of questions, their words shuffled, that it learns to decline.
    """

    scenes: int = 250
    sets: int = 60
    rounds: int = 24
    unknown: float = 0.25
    lost: float = 0.03
    swapped: float = 0.3
    opened: float = 0.1
    scrambled: float = 0.05
    width: int = 96
    steps: int = 900
    batch: int = 64
    lr: float = 4e-3


QUICK = Schooling(scenes=10, sets=4, rounds=1, width=16, steps=5)
"""The plumbing alone: such a writer knows nothing."""


def world_pairs(seed: int, split: str, scenes: int, sets: int) -> Iterator[Pair]:
    """Questions about scenes and statements about pairs of scenes, with their gold programs."""
    stream = derive(seed, "writer", split)
    rng, balance = np.random.default_rng(stream), Balance()
    for index in range(scenes):
        scene = make_scene(stream, index, "A")
        for question in ask(scene, list(KINDS), balance, rng, 12):
            yield Pair(question.text, "image", question.programs["visprog"])
    for index in range(sets):
        for statement in pairs.make_set(stream, index):
            yield Pair(statement.text, "pair", statement.programs["visprog"])


def schoolbook(config: Schooling, seed: int) -> list[Pair]:
    """Every pair that the writer learns from."""
    rng = numpy_rng(seed, "writer", "wordings")
    found = [*world_pairs(seed, "train", config.scenes, config.sets), *phrasings.pairs(phrasings.read_forms(), rng, config.rounds)]
    for number in range(int(config.scrambled * len(found))):
        question = words(found[int(rng.integers(len(found)))].question)
        if len(question) > 4:
            found.append(Pair(" ".join(rng.permutation(list(question))), ("image", "pair")[number % 2], None))
    return [_reworded(pair, rng, config) for pair in found]


_OPENINGS = ("Please", "Please tell me:", "Now,", "I wonder,", "Well,")


def _reworded(pair: Pair, rng: np.random.Generator, config: Schooling) -> Pair:
    """The pair with what changes no meaning perhaps changed: a courtesy in front, another word for an image."""
    question = pair.question
    if rng.random() < config.opened:
        question = f"{_OPENINGS[int(rng.integers(len(_OPENINGS)))]} {question[:1].lower()}{question[1:]}"
    if rng.random() < config.swapped:
        question = question.replace("image", ("picture", "photo")[int(rng.integers(2))])
    return pair._replace(question=question)


def encoded(book: Sequence[Pair], codes: Codes, rng: np.random.Generator, unknown: float, lost: float) -> TensorData:
    """Pairs as tensors; shares ``unknown`` of the arguments and ``lost`` of the other words are read as unknown words."""
    rows, same, previous, copies, labels = [], [], [], [], []
    for pair in book:
        question = words(pair.question)
        parts = None if pair.program is None else dissect(pair.program, question)
        row = codes.read(question, "image" if pair.about == "none" else pair.about)
        arguments = {word for part in parts or () for word in part.arguments}
        hidden = {word for word in sorted(set(question)) if rng.random() < (unknown if word in arguments else lost)}
        row = [1 if place and question[place - 1] in hidden else known for place, known in enumerate(row)]
        steps = steps_of(parts, question, codes)
        size = len(codes.lines)
        rows.append(row)
        same.append(first_places(["", *question]))
        previous.append([size, *(step if step < size else step + 1 for step in steps[:-1])])
        copies.append([int(step >= size) for step in steps])
        labels.append(steps)
    inputs: dict[str, Any] = {"words": padded(rows, 0), "same": padded(same, 0), "previous": padded(previous, 0)}
    return TensorData(inputs | {"copies": padded(copies, 0).bool()}, padded(labels, PADDING))


def train_writer(seed: int = 0, config: Schooling = Schooling()) -> LearnedWriter:  # noqa: B008  (frozen)
    """A writer trained anew."""
    book = schoolbook(config, seed)
    codes = Codes.of(book)
    data = encoded(book, codes, numpy_rng(seed, "writer", "unknown"), config.unknown, config.lost)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch_rng(seed, "writer", "network").initial_seed()))
        student = Writing(len(codes.words), len(codes.lines), config.width)
    settings = Settings(
        steps=config.steps,
        batch_size=config.batch,
        lr=config.lr,
        warmup=config.steps // 10,
        clip=1.0,
        seed=derive(seed, "writer", "lesson") % 2**31,
        checkpoint_every=0,
        log_every=100,
    )
    result = train(Lesson(student, None, Transcribe(), data, settings, "learned writer"))
    taught = result.student
    assert isinstance(taught, Writing)
    return LearnedWriter(codes, taught)


def learned_writer(
    seed: int = 0,
    store: files.Store | None = None,
    *,
    single: bool = False,
    least: float = LEAST,
    config: Schooling = Schooling(),  # noqa: B008  (frozen)
) -> LearnedWriter:
    """The learned writer of a seed, from the store where it has been trained before; otherwise trained now (about half a
    minute) and kept by a hash of all that shaped it. ``single``: each image shows one thing."""
    parts = (compose, grammar, phrasings, templates, learned, network, amounts, attributes, comparisons, pairs, places)
    sources = [Path(str(part.__file__)).read_bytes() for part in parts]
    wordings = Path(str(phrasings.__file__)).with_suffix(".txt").read_bytes()
    key = files.fingerprint("writer", config, seed, wordings, Path(__file__).read_bytes(), *sources)
    folder = None if store is None else store.path(key)
    if folder is None or not (folder / "codes.json").exists():
        writer = train_writer(seed, config)
        if folder is None:
            return LearnedWriter(writer.codes, writer.network, single, least)
        writer.save(folder)
    return LearnedWriter.load(folder, single, least)
