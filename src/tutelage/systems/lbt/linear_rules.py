"""Hidden rules ``f(x) = a x + b`` of which one value is shown: several rules fit it, and only teaching can tell them apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import train
from tutelage.networks.causal_lm import CausalLM
from tutelage.networks.sampling import Sampling
from tutelage.seeds import derive, numpy_rng, torch_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.lbt.selection import Sample

SLOPES, INTERCEPTS, PLACES = range(1, 5), range(10), range(10)
NUMBERS = 48
"""Tokens 0 to 47 are the numbers; two more stand between them."""
QUESTION, RULE = NUMBERS, NUMBERS + 1
EXAMS, REPEATS = 3, 3


@dataclass(frozen=True)
class LinearProblem:
    """``f(x1)`` is shown, ``f(x2)`` is wanted, and the exams ask for f at other places."""

    slope: int
    intercept: int
    shown: int
    wanted: int
    exams: tuple[int, ...]

    def value(self, place: int) -> int:
        """``f(place)``."""
        return self.slope * place + self.intercept

    @property
    def prompt(self) -> list[int]:
        """The five tokens that the teacher reads: x1, f(x1), Q, x2, R."""
        return [self.shown, self.value(self.shown), QUESTION, self.wanted, RULE]


def linear_problems(count: int, seed: int) -> list[LinearProblem]:
    """``count`` problems drawn from ``seed``, each with three exams at places that are neither shown nor wanted."""
    rng = numpy_rng(seed, "linear problems")
    found = []
    for _ in range(count):
        places = rng.permutation(len(PLACES))[: 2 + EXAMS].tolist()
        slope, intercept = int(rng.integers(1, len(SLOPES) + 1)), int(rng.integers(len(INTERCEPTS)))
        found.append(LinearProblem(slope, intercept, places[0], places[1], tuple(places[2:])))
    return found


def train_teacher(seed: int, steps: int = 800, dim: int = 48, depth: int = 2) -> CausalLM:
    """A language model that goes on with "x1 f(x1) Q x2 R" by "a b f(x2)"."""
    problems = linear_problems(64 * steps, derive(seed, "teacher's problems"))
    rows = [[*one.prompt, one.slope, one.intercept, one.value(one.wanted)] for one in problems]
    return _trained(torch.tensor(rows), 5, seed, "teacher", steps, dim, depth)


def train_student(seed: int, name: str, steps: int, dim: int, depth: int) -> CausalLM:
    """A language model that goes on with "a b Q x" by "a x + b"."""
    problems = linear_problems(64 * steps, derive(seed, name, "problems"))
    rows = [[one.slope, one.intercept, QUESTION, one.wanted, one.value(one.wanted)] for one in problems]
    return _trained(torch.tensor(rows), 4, seed, name, steps, dim, depth)


def _trained(rows: Tensor, prompt: int, seed: int, name: str, steps: int, dim: int, depth: int) -> CausalLM:
    """Cross-entropy of what follows the first ``prompt`` tokens; every row is seen once."""
    labels = rows.clone()
    labels[:, :prompt] = -100
    network = build_with_seed(lambda: CausalLM(NUMBERS + 2, dim, depth), seed, name)
    settings = TrainingSettings(steps=steps, batch_size=64, lr=2e-3, schedule="constant", seed=seed, log_every=0)
    job = TrainingJob(network, None, Supervised(), TensorData(rows, labels), settings, name, task="language-modelling")
    trained = train(job).student
    assert isinstance(trained, CausalLM)
    return trained


@torch.no_grad()
def draw(network: nn.Module, prompts: Tensor, tokens: int, generator: torch.Generator, temperature: float = 0.7) -> Tensor:
    """[N, tokens] that go on with prompts [N, L] of one length."""
    assert isinstance(network, CausalLM)
    network.eval()
    sampling = Sampling(max_new_tokens=tokens, temperature=temperature)
    parts = [network.sample(part, None, sampling, generator).ids for part in prompts.split(2048)]
    return torch.cat(parts)


def teacher_samples(teacher: nn.Module, problems: list[LinearProblem], count: int, seed: int) -> Tensor:
    """[P, count, 3]: slope, intercept and answer as the teacher draws them at temperature 0.7."""
    prompts = torch.tensor([one.prompt for one in problems]).repeat_interleave(count, 0)
    return draw(teacher, prompts, 3, torch_rng(seed, "teacher's samples")).unflatten(0, (len(problems), count))


def exam_answers(student: nn.Module, problems: list[LinearProblem], samples: Tensor, seed: int, name: str) -> Tensor:
    """[P, n, exams, repeats]: the student's answers with each sample's slope and intercept before the question."""
    places = torch.tensor([one.exams for one in problems])
    size = (*samples.shape[:2], EXAMS, REPEATS)
    rules = samples[:, :, None, None, :2].expand(*size, 2)
    questions = places[:, None, :, None, None].expand(*size, 1)
    prompts = torch.cat([rules, torch.full_like(questions, QUESTION), questions], -1).flatten(0, 3)
    return draw(student, prompts, 1, torch_rng(seed, "exams", name)).reshape(size)


def exam_truth(problems: list[LinearProblem]) -> Tensor:
    """[P, exams]: the right answers."""
    return torch.tensor([[one.value(place) for place in one.exams] for one in problems])


def majority_truth(answers: Tensor) -> Tensor:
    """[P, exams]: what the students answered most often over samples and repeats, the smaller of equals."""
    by_exam = answers.permute(0, 2, 1, 3).flatten(2)

    def most(values: list[int]) -> int:
        counts = Counter(values)
        return min(counts, key=lambda one: (-counts[one], one))

    return torch.tensor([[most(row) for row in rows] for rows in by_exam.tolist()])


def scored_samples(samples: Tensor, answers: Tensor, truth: Tensor) -> list[list[Sample]]:
    """The samples [P, n, 3] of each problem with the share of exam answers [P, n, exams, …] that equal ``truth`` [P, exams]."""
    shape = (len(truth), 1, truth.shape[1], *[1] * (answers.ndim - 3))
    hits = (answers == truth.reshape(shape)).flatten(2)
    total, right = hits.shape[2], hits.sum(2).tolist()
    return [
        [Sample(f"{a} {b}", str(y), right[p][n], total) for n, (a, b, y) in enumerate(rows)]
        for p, rows in enumerate(samples.tolist())
    ]


def greedy_accuracy(teacher: nn.Module, problems: list[LinearProblem]) -> float:
    """The share of problems that the teacher's likeliest tokens answer, in 0..1."""
    prompts = torch.tensor([one.prompt for one in problems])
    answers = draw(teacher, prompts, 3, torch_rng(0, "greedy"), temperature=0.0)[:, 2]
    return float(np.mean([one.value(one.wanted) == int(y) for one, y in zip(problems, answers)]))


def without_scores(samples: list[Sample]) -> list[Sample]:
    """The samples as they were before any exam."""
    return [replace(one, right=0, total=0) for one in samples]
