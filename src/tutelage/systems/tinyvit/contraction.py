"""The contraction search that found TinyViT's sizes (section 3.2): shrink one factor at a time, keep the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.seeds import torch_rng
from tutelage.systems._backbone import count_parameters
from tutelage.systems._toy import build_with_seed
from tutelage.systems.tinyvit.network import TinyViTNetwork

Sizes = dict[str, Any]
"""Keyword arguments of :class:`TinyViTNetwork`."""


@dataclass(frozen=True)
class ShrinkSteps:
    """By how much each factor shrinks in one move, and how far it may; 0: that factor stays (our choice: not published).

    ``dims``: channels of a stage, rounded to whole heads; ``depths``: blocks of a stage; ``windows``: side of a stage's
    window; ``mbconv_ratio``, ``mlp_ratio``; ``head_width``: a divisor, widths stay.
    """

    dims: int = 32
    depths: int = 1
    windows: int = 2
    mbconv_ratio: float = 1.0
    mlp_ratio: float = 1.0
    head_width: int = 2
    min_window: int = 2
    min_ratio: float = 1.0
    min_head: int = 8


def neighbours(sizes: Mapping[str, Any], shrink: ShrinkSteps = ShrinkSteps()) -> list[tuple[str, Sizes]]:  # noqa: B008 (frozen)
    """Every network with one factor shrunk: (what was shrunk, its sizes). ``sizes`` must hold all six factors."""
    found: list[tuple[str, Sizes]] = []

    def add(name: str, key: str, value: Any) -> None:
        found.append((name, {**sizes, key: value}))

    for key, by, least in (
        ("dims", shrink.dims, 0),
        ("depths", shrink.depths, 1),
        ("windows", shrink.windows, shrink.min_window),
    ):
        for i, value in enumerate(sizes[key]):
            smaller = value - by
            if key == "dims":
                unit = sizes["head_width"] if i else 2
                smaller = smaller // unit * unit
                least = unit
            if by and smaller >= least:
                add(f"{key}[{i}]", key, (*sizes[key][:i], smaller, *sizes[key][i + 1 :]))
    for key, step in (("mbconv_ratio", shrink.mbconv_ratio), ("mlp_ratio", shrink.mlp_ratio)):
        if step and sizes[key] - step >= shrink.min_ratio:
            add(key, key, sizes[key] - step)
    head = sizes["head_width"] // max(1, shrink.head_width)
    if shrink.head_width > 1 and head >= shrink.min_head and sizes["head_width"] % shrink.head_width == 0:
        add("head_width", "head_width", head)
    return found


@dataclass(frozen=True)
class CandidateScorer:
    """The score of a candidate: its accuracy, %, on a held-out share of ``data`` after a short training on the rest.

    Attributes:
        data: all images with class ids [N]; ``holdout`` of them are held out, the same for every candidate.
        settings: the short training.
        classes, in_chans: of the networks.
        method, teacher: what to learn from; by default labels.
        holdout: published: 1 %.
    """

    data: TensorData
    settings: TrainingSettings
    classes: int
    in_chans: int = 3
    method: Method = field(default_factory=Supervised)
    teacher: Any = None
    holdout: float = 0.01

    def split(self) -> tuple[TensorData, TensorData]:
        """(images to train on, images held out)."""
        count = max(1, round(self.holdout * len(self.data)))
        order = torch.randperm(len(self.data), generator=torch_rng(0, "contraction", "holdout"))
        kept, held = order[count:], order[:count]
        return (
            TensorData(self.data.inputs[kept], self.data.labels[kept], views=self.data.views),
            TensorData(self.data.inputs[held], self.data.labels[held]),
        )

    def __call__(self, network: TinyViTNetwork) -> float:
        """Train ``network`` and score it."""
        data, held = self.split()
        student = train(TrainingJob(network, self.teacher, self.method, data, self.settings, "contraction")).student
        with torch.no_grad():
            right = [
                forward_heads(student, x)["logits"].argmax(-1) == y for x, y in zip(held.inputs.split(500), held.labels.split(500))
            ]
        return 100 * torch.cat(right).double().mean().item()


def throughput(network: TinyViTNetwork, size: int, batch: int = 16, rounds: int = 5) -> float:
    """Images of ``size`` x ``size`` a second, in eval mode: the median of ``rounds`` passes after one that is not counted."""
    images = torch.zeros(batch, network.in_chans, size, size)
    network.eval()
    seconds = []
    with torch.no_grad():
        for _ in range(rounds + 1):
            began = time.perf_counter()
            network(images)
            seconds.append(time.perf_counter() - began)
    return batch / sorted(seconds[1:])[rounds // 2]


@dataclass(frozen=True)
class ContractionStep:
    """A network that the search stood at: what was shrunk to reach it, its sizes, parameters, images a second (None:
    not measured), score (None: the start), and how many candidates were trained to choose it."""

    shrunk: str
    sizes: Sizes
    parameters: int
    speed: float | None
    score: float | None
    candidates: int


def contract(
    start: Mapping[str, Any],
    score: Callable[[TinyViTNetwork], float],
    *,
    parameters: int,
    min_parameters: int = 0,
    min_speed: float = 0.0,
    speed: Callable[[TinyViTNetwork], float] | None = None,
    shrink: ShrinkSteps = ShrinkSteps(),  # noqa: B008 (frozen)
    classes: int = 1000,
    in_chans: int = 3,
    seed: int = 0,
    progress: Callable[[ContractionStep], None] = lambda step: None,
) -> list[ContractionStep]:
    """Shrink ``start`` until it has at most ``parameters``: of the neighbours inside the limits the best scored is next.

    A neighbour is inside the limits with fewer parameters than the network it comes from (a window's shrinking counts: its
    bias table), ``min_parameters`` at least, and ``min_speed`` images a second by ``speed``. Each is built afresh from
    ``seed`` and given to ``score`` (:class:`CandidateScorer`); of equal scores the smaller network wins (our choice).

    Returns:
        The networks stood at, the start first; the last is the answer.

    Raises:
        InputError: the target lies outside the limits, no neighbour is left before it is reached, or ``start`` lacks
            a factor.
    """
    lacking = {"dims", "depths", "windows", "mbconv_ratio", "mlp_ratio", "head_width"} - set(start)
    if lacking or parameters < min_parameters:
        reason = f"no {min(lacking)}" if lacking else f"{min_parameters} at least and {parameters} at most"
        raise InputError(
            reason, where="start" if lacking else "parameters", remedy="give all six factors, and limits that leave room"
        )

    def build(sizes: Mapping[str, Any]) -> TinyViTNetwork:
        return build_with_seed(lambda: TinyViTNetwork(classes, in_chans, **sizes), seed, "contraction")

    network = build(start)
    here = ContractionStep("", dict(start), count_parameters(network), speed(network) if speed else None, None, 0)
    path = [here]
    progress(here)
    while here.parameters > parameters:
        steps: list[ContractionStep] = []
        for name, sizes in neighbours(here.sizes, shrink):
            network = build(sizes)
            count = count_parameters(network)
            if not min_parameters <= count < here.parameters:
                continue
            rate = speed(network) if speed else None
            if rate is not None and rate < min_speed:
                continue
            steps.append(ContractionStep(name, sizes, count, rate, score(network), 0))
        if not steps:
            raise InputError(
                f"no neighbour of {here.parameters} parameters lies inside the limits",
                where="shrink",
                remedy=f"smaller moves, or a target above {parameters}",
            )
        best = max(steps, key=lambda step: (step.score or 0.0, -step.parameters))
        here = ContractionStep(best.shrunk, best.sizes, best.parameters, best.speed, best.score, len(steps))
        path.append(here)
        progress(here)
    return path
