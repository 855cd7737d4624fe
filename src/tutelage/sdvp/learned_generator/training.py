"""How the learned writer is trained: on questions about synthetic scenes and on wordings of our own, by the one trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tutelage import storage
from tutelage.datasets.synthetic import nlvr_statements
from tutelage.datasets.synthetic.question_types import QUESTION_TYPES
from tutelage.datasets.synthetic.questions import attribute, comparison, counting, spatial
from tutelage.datasets.synthetic.questions.base import AnswerBalancer
from tutelage.datasets.synthetic.scene import make_scene
from tutelage.datasets.synthetic.tasks import draw_questions
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import train
from tutelage.programs.generators import grammar, paraphrases, program_builder, program_templates
from tutelage.programs.generators.paraphrases import QuestionProgramPair
from tutelage.programs.generators.program_templates import split_program, words
from tutelage.sdvp.learned_generator import generator as generator_module
from tutelage.sdvp.learned_generator import network
from tutelage.sdvp.learned_generator.generator import (
    MIN_PROBABILITY,
    LearnedGenerator,
    TokenCodec,
    first_positions,
    padded,
    steps_of,
)
from tutelage.sdvp.learned_generator.network import PADDING, Seq2SeqNetwork, Seq2SeqTraining
from tutelage.seeds import derive, numpy_rng, torch_rng


@dataclass(frozen=True)
class GeneratorTraining:
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


QUICK = GeneratorTraining(scenes=10, sets=4, rounds=1, width=16, steps=5)
"""The plumbing alone: such a writer knows nothing."""


def synthetic_pairs(seed: int, split: str, scenes: int, sets: int) -> Iterator[QuestionProgramPair]:
    """Questions about scenes and statements about pairs of scenes, with their gold programs."""
    stream = derive(seed, "writer", split)
    rng, balance = np.random.default_rng(stream), AnswerBalancer()
    for index in range(scenes):
        scene = make_scene(stream, index, "A")
        for question in draw_questions(scene, list(QUESTION_TYPES), balance, rng, 12):
            yield QuestionProgramPair(question.text, "image", question.programs["visprog"])
    for index in range(sets):
        for statement in nlvr_statements.make_set(stream, index):
            yield QuestionProgramPair(statement.text, "pair", statement.programs["visprog"])


def build_training_set(config: GeneratorTraining, seed: int) -> list[QuestionProgramPair]:
    """Every pair that the writer learns from."""
    rng = numpy_rng(seed, "writer", "wordings")
    found = [
        *synthetic_pairs(seed, "train", config.scenes, config.sets),
        *paraphrases.make_pairs(paraphrases.read_paraphrases(), rng, config.rounds),
    ]
    for number in range(int(config.scrambled * len(found))):
        question = words(found[int(rng.integers(len(found)))].question)
        if len(question) > 4:
            found.append(QuestionProgramPair(" ".join(rng.permutation(list(question))), ("image", "pair")[number % 2], None))
    return [_vary_wording(pair, rng, config) for pair in found]


_OPENINGS = ("Please", "Please tell me:", "Now,", "I wonder,", "Well,")


def _vary_wording(pair: QuestionProgramPair, rng: np.random.Generator, config: GeneratorTraining) -> QuestionProgramPair:
    """The pair with what changes no meaning perhaps changed: a courtesy in front, another word for an image."""
    question = pair.question
    if rng.random() < config.opened:
        question = f"{_OPENINGS[int(rng.integers(len(_OPENINGS)))]} {question[:1].lower()}{question[1:]}"
    if rng.random() < config.swapped:
        question = question.replace("image", ("picture", "photo")[int(rng.integers(2))])
    return pair._replace(question=question)


def encode_pairs(
    pairs: Sequence[QuestionProgramPair], codes: TokenCodec, rng: np.random.Generator, unknown: float, lost: float
) -> TensorData:
    """Pairs as tensors; shares ``unknown`` of the arguments and ``lost`` of the other words are read as unknown words."""
    rows, same, previous, copies, labels = [], [], [], [], []
    for pair in pairs:
        question = words(pair.question)
        parts = None if pair.program is None else split_program(pair.program, question)
        row = codes.encode(question, "image" if pair.about == "none" else pair.about)
        arguments = {word for part in parts or () for word in part.arguments}
        hidden = {word for word in sorted(set(question)) if rng.random() < (unknown if word in arguments else lost)}
        row = [1 if place and question[place - 1] in hidden else known for place, known in enumerate(row)]
        steps = steps_of(parts, question, codes)
        size = len(codes.lines)
        rows.append(row)
        same.append(first_positions(["", *question]))
        previous.append([size, *(step if step < size else step + 1 for step in steps[:-1])])
        copies.append([int(step >= size) for step in steps])
        labels.append(steps)
    inputs: dict[str, Any] = {"words": padded(rows, 0), "same": padded(same, 0), "previous": padded(previous, 0)}
    return TensorData(inputs | {"copies": padded(copies, 0).bool()}, padded(labels, PADDING))


def train_generator(seed: int = 0, config: GeneratorTraining = GeneratorTraining()) -> LearnedGenerator:  # noqa: B008  (frozen)
    """A writer trained anew."""
    book = build_training_set(config, seed)
    codes = TokenCodec.from_pairs(book)
    data = encode_pairs(book, codes, numpy_rng(seed, "writer", "unknown"), config.unknown, config.lost)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch_rng(seed, "writer", "network").initial_seed()))
        student = Seq2SeqNetwork(len(codes.words), len(codes.lines), config.width)
    settings = TrainingSettings(
        steps=config.steps,
        batch_size=config.batch,
        lr=config.lr,
        warmup=config.steps // 10,
        clip=1.0,
        seed=derive(seed, "writer", "lesson") % 2**31,
        checkpoint_every=0,
        log_every=100,
    )
    result = train(TrainingJob(student, None, Seq2SeqTraining(), data, settings, "learned writer"))
    own_network = result.student
    assert isinstance(own_network, Seq2SeqNetwork)
    return LearnedGenerator(codes, own_network)


def learned_generator(
    seed: int = 0,
    store: storage.ContentStore | None = None,
    *,
    single: bool = False,
    min_probability: float = MIN_PROBABILITY,
    config: GeneratorTraining = GeneratorTraining(),  # noqa: B008  (frozen)
) -> LearnedGenerator:
    """The learned writer of a seed, from the store where it has been trained before; otherwise trained now (about half a
    minute) and kept by a hash of all that shaped it. ``single``: each image shows one thing."""
    parts = (
        program_builder,
        grammar,
        paraphrases,
        program_templates,
        generator_module,
        network,
        counting,
        attribute,
        comparison,
        nlvr_statements,
        spatial,
    )
    sources = [Path(str(part.__file__)).read_bytes() for part in parts]
    wordings = Path(str(paraphrases.__file__)).with_suffix(".txt").read_bytes()
    key = storage.fingerprint("writer", config, seed, wordings, Path(__file__).read_bytes(), *sources)
    folder = None if store is None else store.path(key)
    if folder is None or not (folder / "codes.json").exists():
        writer = train_generator(seed, config)
        if folder is None:
            return LearnedGenerator(writer.codes, writer.network, single, min_probability)
        writer.save(folder)
    return LearnedGenerator.load(folder, single, min_probability)
