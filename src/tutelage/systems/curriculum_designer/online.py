"""Online class-incremental learning: classes one at a time, every sample once; many orders side by side as one network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from tutelage.errors import InputError, TrainingError
from tutelage.seeds import torch_rng
from tutelage.systems.curriculum_designer.learners import Learner, Naive, Parameters

ACCURACY_ROWS = 1024
"""Test samples of all orders that are scored at once, at most, per order."""


@dataclass(frozen=True)
class ClassData:
    """Samples by class, as many in each: ``train`` [N, n, ...] and ``test`` [N, m, ...], class i being the i-th lowest label."""

    train: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        if len(self.train) != len(self.test) or len(self.train) < 2 or 0 in (*self.train.shape[:2], *self.test.shape[:2]):
            shapes = f"training data {list(self.train.shape)}, test data {list(self.test.shape)}"
            raise InputError(shapes, where="data", remedy="[classes, samples, ...] each, two classes or more")

    @classmethod
    def split(cls, inputs: Tensor, labels: Tensor, train: int, test: int, seed: int) -> ClassData:
        """``train`` and ``test`` other samples of every class, drawn by ``seed`` from inputs [n, ...] and labels [n].

        Raises:
            InputError: a class with fewer samples.
        """
        parts = []
        for one in labels.unique().tolist():
            members = (labels == one).nonzero()[:, 0]
            if len(members) < train + test:
                message = f"class {one} has {len(members)} samples, {train} + {test} are wanted"
                raise InputError(message, where="data", remedy="ask for fewer samples a class, or leave the class out")
            parts.append(members[torch.randperm(len(members), generator=torch_rng(seed, "class data", one))[: train + test]])
        rows = torch.stack(parts) if parts else torch.zeros(0, 1, dtype=torch.int64)
        chosen = inputs[rows]
        return cls(chosen[:, :train], chosen[:, train:])


@dataclass(frozen=True)
class OnlineSettings:
    """``lr``, ``batch_size`` and ``optimizer`` of the single pass; defaults as published. ``side_by_side``: orders that are
    trained as one network, which changes memory and time alone."""

    lr: float = 1e-3
    batch_size: int = 64
    optimizer: Literal["adam", "sgd"] = "adam"
    side_by_side: int = 120

    def __post_init__(self) -> None:
        if not self.lr >= 0 or self.batch_size < 1 or self.side_by_side < 1 or self.optimizer not in ("adam", "sgd"):
            raise InputError(f"{self}", where="settings", remedy="lr of 0 or more, batch_size of 1 or more, adam or sgd")


def online_run(
    network: nn.Module,
    data: ClassData,
    orders: Sequence[Sequence[int]] | np.ndarray,
    learner: Callable[[], Learner] = Naive,
    settings: OnlineSettings = OnlineSettings(),
    seed: int = 0,
    on_chunk: Callable[[float, float], object] | None = None,
) -> np.ndarray:
    """Learn the classes in every order and test on the classes seen so far.

    All orders start from the network's weights. The order of samples within a class, and what a learner draws, are those of
    ``seed`` in every order: orders are compared on the same terms.

    Args:
        network: inputs [B, ...] -> logits [B, N] over all classes, one shared head. It stays as it is.
        data: the classes.
        orders: [O, N], classes by number.
        learner: makes one, such as ``Replay`` or ``lambda: EWC(0.4)``.
        settings: of the single pass.
        seed: see above.
        on_chunk: called with (orders done, all orders).

    Returns:
        Accuracies in 0..1, [O, N, N]: row i after the i-th class, column j of the j-th class of the order; nan for classes
        that were not seen yet.

    Raises:
        InputError: no order, an order that is no permutation, a network with buffers that training changes (batch norm), or
            another number of logits.
        TrainingError: weights that are not finite.
    """
    rows, count = np.asarray(orders), len(data.train)
    if rows.ndim != 2 or rows.shape[1] != count or not len(rows) or not (np.sort(rows, 1) == np.arange(count)).all():
        raise InputError(f"orders {list(rows.shape)} of {count} classes", where="orders", remedy="each class once, numbered from 0")
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            remedy = "a network with layer or group norm, or a head on features of a fixed encoder"
            raise InputError(
                f"{name or 'the network'} is a batch norm, which sees one class at a time", where="network", remedy=remedy
            )
    samples = torch.stack([_shuffled(part, seed, number) for number, part in enumerate(data.train)])
    parts = []
    for start in range(0, len(rows), settings.side_by_side):
        chunk = torch.from_numpy(rows[start : start + settings.side_by_side])
        parts.append(_run_chunk(network, samples, data.test, chunk, learner(), settings, seed))
        if on_chunk is not None:
            on_chunk(min(len(rows), start + settings.side_by_side), len(rows))
    return np.concatenate(parts)


def _shuffled(part: Tensor, seed: int, number: int) -> Tensor:
    return part[torch.randperm(len(part), generator=torch_rng(seed, "online samples", number))]


def _run_chunk(
    network: nn.Module, samples: Tensor, tests: Tensor, orders: Tensor, learner: Learner, settings: OnlineSettings, seed: int
) -> np.ndarray:
    base = copy.deepcopy(network).train()
    fixed = {name: value.detach() for name, value in base.named_buffers()}
    params: Parameters = {
        name: value.detach().expand(len(orders), *value.shape).clone().requires_grad_() for name, value in base.named_parameters()
    }

    def forward(weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        logits: Tensor = functional_call(base, {**weights, **fixed}, (inputs,))
        return logits

    of_orders = vmap(forward, randomness="same")
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimizer = kinds[settings.optimizer](list(params.values()), lr=settings.lr)
    count, places = len(samples), len(orders)
    with torch.no_grad():
        example = of_orders(params, samples[orders[:, 0]][:, :1])
    if example.ndim != 3 or example.shape[2] != count:
        remedy = "one logit a class, [B, N]"
        raise InputError(f"outputs {list(example.shape[1:])} for {count} classes", where="network", remedy=remedy)
    found = np.full((places, count, count), np.nan, np.float32)
    learner.start(of_orders, samples, orders, torch_rng(seed, "learner"))
    for stage in range(count):
        own = samples[orders[:, stage]]
        labels = orders[:, stage, None].expand(-1, own.shape[1])
        for start in range(0, own.shape[1], settings.batch_size):
            batch = slice(start, start + settings.batch_size)
            inputs, targets = learner.extend(own[:, batch], labels[:, batch], stage)
            logits = of_orders(params, inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(places, -1).mean(1).sum()
            extra = learner.penalty(params, inputs, logits, stage)
            gradients = _gradients(loss, params, keep=extra is not None)
            pulls = {} if extra is None else _gradients(extra, params)
            for name, value in params.items():
                value.grad = gradients[name] + pulls[name] if pulls else gradients[name].clone()
            before = {name: value.detach().clone() for name, value in params.items()} if learner.follows_steps else {}
            optimizer.step()
            learner.after_step(params, gradients, before)
        learner.after_class(params, own, labels, stage)
        with torch.no_grad():
            for place in range(stage + 1):
                found[:, stage, place] = _accuracy(of_orders, params, tests, orders[:, place])
    if not all(bool(value.isfinite().all()) for value in params.values()):
        raise TrainingError("weights are not finite", where="online run", remedy="lower the learning rate, or the penalty")
    return found


def _gradients(loss: Tensor, params: Parameters, keep: bool = False) -> Parameters:
    """By name; 0 for a weight that the loss does not depend on."""
    if not loss.requires_grad:
        return {name: torch.zeros_like(value) for name, value in params.items()}
    found = torch.autograd.grad(loss, list(params.values()), retain_graph=keep, allow_unused=True)
    return {name: torch.zeros_like(params[name]) if one is None else one for name, one in zip(params, found, strict=True)}


def _accuracy(of_orders: Callable[..., Tensor], params: Parameters, tests: Tensor, classes: Tensor) -> np.ndarray:
    right = torch.zeros(len(classes))
    for start in range(0, tests.shape[1], ACCURACY_ROWS):
        part = tests[classes, start : start + ACCURACY_ROWS]
        right += (of_orders(params, part).argmax(-1) == classes[:, None]).sum(1)
    shares: np.ndarray = (right / tests.shape[1]).numpy()
    return shares
