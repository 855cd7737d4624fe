"""Students that look at one half of a digit, and a teacher that says which half: four ways, of which each student has one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.datasets.digits import load_8x8
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.preference import preference_job
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import train
from tutelage.seeds import derive, torch_rng
from tutelage.systems._toy import build_with_seed

WAYS = ("top", "bottom", "left", "right")
PAST, PAST_OWN, PAST_STEPS = 144, 120, 150
FOLLOWS = 0.9
"""How often a student looks as the example before it does."""


class Looker(nn.Module):
    """One small network a way: (images [B, 8, 8], ways [B]) -> logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)) for _ in WAYS)

    def forward(self, images: Tensor, ways: Tensor) -> Tensor:
        """The logits of the way that each image is looked at in."""
        halves = (images[:, :4], images[:, 4:], images[:, :, :4], images[:, :, 4:])
        every = torch.stack([head(half.flatten(1)) for head, half in zip(self.heads, halves)], 1)
        return every[torch.arange(len(ways)), ways]


class WayPolicy(nn.Module):
    """A teacher: a distribution over the ways, uniform at first. ways [B, 2] -> ``log_probs`` [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(len(WAYS)))

    def forward(self, ways: Tensor) -> dict[str, Tensor]:
        """The log-probabilities of ways."""
        return {"log_probs": self.logits.log_softmax(0)[ways]}

    @property
    def shares(self) -> Tensor:
        """[4], the probability of each way."""
        return self.logits.detach().softmax(0)


@dataclass(frozen=True)
class Pictures:
    """Digits in parts that share no picture: what students have seen, drafts, preference questions, rows, test."""

    past: tuple[Tensor, Tensor]
    preference: tuple[Tensor, Tensor]
    rows: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, seed: int, rows: int, preference: int = 40, test: int = 897) -> Pictures:
        """UCI digits in an order drawn from ``seed``."""
        images, labels = load_8x8()
        order = torch.randperm(len(labels), generator=torch_rng(seed, "pictures"))
        every = torch.from_numpy(images).float()[order] / 16, torch.from_numpy(labels)[order]
        sizes = [PAST, preference, rows, test]
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        parts = [(every[0][a:b], every[1][a:b]) for a, b in zip(ends, ends[1:])]
        return cls(*parts)


@dataclass(frozen=True)
class LookingStudent:
    """A network, and the share of each way in what it was trained on: without an example it looks by this habit."""

    network: Looker
    habit: Tensor

    @torch.no_grad()
    def right(self, images: Tensor, labels: Tensor, ways: Tensor) -> Tensor:
        """[N] bool: which it gets right, looking in these ways."""
        self.network.eval()
        return self.network(images, ways).argmax(1) == labels

    def tuned(self, data: tuple[Tensor, Tensor], ways: Tensor, steps: int, seed: int) -> LookingStudent:
        """A student that was trained on rows in these ways; its habit is their share in them."""
        network = build_with_seed(Looker, 0)
        network.load_state_dict(self.network.state_dict())
        settings = TrainingSettings(steps=steps, batch_size=len(ways), lr=1e-2, schedule="constant", seed=seed, log_every=0)
        samples = TensorData((data[0], ways), data[1])
        job = TrainingJob(network, None, Supervised(), samples, settings, "student", task="classification")
        trained = train(job).student
        assert isinstance(trained, Looker)
        return LookingStudent(trained, torch.bincount(ways, minlength=len(WAYS)) / len(ways))


def student_of(way: int, pictures: Pictures, seed: int) -> LookingStudent:
    """A student whose past is 144 pictures, 120 of them looked at in ``way``; its habit is uniform all the same."""
    others = [other for other in range(len(WAYS)) if other != way]
    ways = torch.tensor([way] * PAST_OWN + [others[number % 3] for number in range(PAST - PAST_OWN)])
    blank = LookingStudent(build_with_seed(Looker, seed, "student", way), torch.full((len(WAYS),), 1 / len(WAYS)))
    trained = blank.tuned(pictures.past, ways, PAST_STEPS, derive(seed, "past", way))
    return LookingStudent(trained.network, blank.habit)


def example_scores(student: LookingStudent, pictures: Pictures, questions: int, seed: int) -> Tensor:
    """``s_r`` [questions, 4]: the share of preference pictures that are right after one example of each way.

    The student looks as the example does 9 times in 10, else in a way drawn at random.
    """
    images, labels = pictures.preference
    rng = torch_rng(seed, "one-shot examples")
    size = (questions, len(WAYS), len(labels))
    shown = torch.arange(len(WAYS))[None, :, None].expand(size)
    drawn = torch.randint(len(WAYS), size, generator=rng)
    ways = torch.where(torch.rand(size, generator=rng) < FOLLOWS, shown, drawn)
    every = torch.stack([student.right(images, labels, torch.full_like(labels, way)) for way in range(len(WAYS))])
    return every[ways, torch.arange(len(labels))].double().mean(2)


def way_pairs(scores: Tensor) -> tuple[Tensor, int]:
    """(pairs [N, 2] of the best and the worst way of each question, how many questions had no difference)."""
    pairs = torch.stack([scores.argmax(1), scores.argmin(1)], 1)
    differ = scores.amax(1) > scores.amin(1)
    return pairs[differ], int((~differ).sum())


def aligned_policy(pairs: Tensor, seed: int, steps: int = 60) -> WayPolicy:
    """A uniform teacher after DPO on pairs of ways: b = 0.1, plain gradient descent at 1, all pairs in each step.

    Not Adam: it takes equal steps for a way that was best once and for one that was best always.
    """
    if not len(pairs):
        return WayPolicy()
    settings = TrainingSettings(
        steps=steps, batch_size=len(pairs), lr=1.0, optimizer="sgd", momentum=0.0, schedule="constant", seed=seed, log_every=1
    )
    policy = train(preference_job(WayPolicy(), TensorData(pairs), settings)).student
    assert isinstance(policy, WayPolicy)
    return policy


def draw_ways(shares: Tensor, count: int, seed: int, *names: object) -> Tensor:
    """[count] ways drawn from ``shares``."""
    return torch.multinomial(shares, count, replacement=True, generator=torch_rng(seed, "ways", *names))


def accuracy(student: LookingStudent, pictures: Pictures, seed: int) -> float:
    """Percent of test pictures that are right, without an example: each looked at in a way drawn from the habit."""
    images, labels = pictures.test
    ways = draw_ways(student.habit, len(labels), seed, "test")
    return 100 * float(student.right(images, labels, ways).float().mean())
