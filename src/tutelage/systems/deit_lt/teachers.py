"""The teachers of DeiT-LT: networks for long-tailed data, trained by sharpness-aware minimisation, with LDAM or PaCo."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.memory_bank import FeatureQueue
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads, unwrap_model
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.systems._toy import class_ids
from tutelage.systems.deit_lt.method import class_counts, effective_weights


class SharpnessAware(Method):
    """Labels alone, by sharpness-aware minimisation (Foret et al., 2021): for the "flat" teachers of DeiT-LT.

    The gradient is taken at ``w + rho g / ||g||``, g the gradient at w, and applied at w. The second pass leaves the
    buffers (batch-norm statistics) as the first left them; ``rho = 0`` is the plain optimiser, bit for bit.
    """

    tasks = ("classification",)
    needs_labels = True
    needs_teacher = False

    @dataclass(frozen=True)
    class Config:
        """``rho``: the radius."""

        rho: float = 0.05

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """See :class:`Method`."""
        self._held = [student]  # in a list: beside the method, not owned by it

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``."""
        return {"label": F.cross_entropy(student["logits"], batch.labels)}

    def backward(self, loss: Callable[[], Tensor]) -> None:
        """Two passes; weights are restored exactly."""
        if self.config.rho == 0:
            return super().backward(loss)
        (student,) = self._held
        parameters = [p for part in (student, self) for p in part.parameters() if p.requires_grad]
        earlier = [p.grad for p in parameters]  # of other batches of an accumulated step
        random = torch.get_rng_state()
        _clear(parameters)
        loss().backward()
        moved = [p for p in parameters if p.grad is not None]
        with torch.no_grad():
            scale = self.config.rho / (torch.stack([p.grad.norm() for p in moved]).norm() + 1e-12)
            kept = [p.clone() for p in moved], [b.clone() for b in student.buffers()]
            for p in moved:
                p.add_(p.grad, alpha=float(scale))
        _clear(parameters)
        torch.set_rng_state(random)  # the same dropout in both passes
        loss().backward()
        with torch.no_grad():
            for p, value in zip([*moved, *student.buffers()], [*kept[0], *kept[1]]):
                p.copy_(value)
            for p, gradient in zip(parameters, earlier):
                if gradient is not None:
                    p.grad = gradient if p.grad is None else p.grad + gradient
        return None


def _clear(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _clear(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


class CosineClassifier(nn.Module):
    """Cosines of features [B, D] with a learned direction a class: [B, K] in -1..1. In place of a Linear for :class:`LDAM`."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(num_classes, dim), dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """The cosines."""
        return F.normalize(features, dim=-1) @ F.normalize(self.weight, dim=1).T


class LDAM(SharpnessAware):
    """Margins that are larger for rare classes, and deferred re-weighting (Cao, Wei, Gaidon, Arechiga, Ma, 2019).

    ``L = CE_w(s (z_c - [c = y] D_y))`` with ``D_k = max_margin (min_j n_j / n_k)^(1/4)``, z cosines, as of a
    :class:`CosineClassifier`; w = 1 before the epoch ``drw``, effective-number weights from it on. ``rho``: of
    :class:`SharpnessAware`, by which DeiT-LT trains it; 0: plainly.

    Raises:
        InputError: logits that are no cosines, or a class without samples.
    """

    @dataclass(frozen=True)
    class Config:
        """``drw``: the epoch from which the loss is re-weighted (published for CIFAR: 160 of 200); None: never. ``counts``:
        training samples a class; empty: counted from the data."""

        rho: float = 0.05
        max_margin: float = 0.5
        scale: float = 30.0
        drw: int | None = 160
        beta: float = 0.9999
        counts: tuple[int, ...] = ()

    def __init__(self, config: Config | None = None, **options: object):
        super().__init__(config, **options)
        self.margins: Tensor
        self.class_weights: Tensor
        self.register_buffer("margins", torch.empty(0))
        self.register_buffer("class_weights", torch.empty(0))

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Margins and weights; see :class:`Method`."""
        super().prepare(student, teacher, example, data)
        logits = forward_heads(student, example.inputs)["logits"]
        if logits.abs().max() > 1 + 1e-4:
            raise InputError("the logits are no cosines", where="student", remedy="give it a CosineClassifier as its last layer")
        counts = torch.tensor(self.config.counts or class_counts(data, logits.shape[1]))
        self.class_weights = effective_weights(counts.tolist(), self.config.beta).to(logits.device)
        self.margins = (self.config.max_margin * (counts.min() / counts) ** 0.25).to(logits)

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``."""
        labels, drw = class_ids(batch.labels), self.config.drw
        weights = self.class_weights if drw is not None and int(self.progress.epoch) >= drw else None
        margin = F.one_hot(labels, len(self.margins)) * self.margins
        return {"label": F.cross_entropy(self.config.scale * (student["logits"] - margin), labels, weight=weights)}


def paco_loss(
    logits: Tensor, labels: Tensor, query: Tensor, others: Tensor, other_labels: Tensor, alpha: float, temperature: float
) -> Tensor:
    """The parametric contrastive loss (Cui, Zhong, Liu, Yu, Jia, 2021), mean over samples.

    A sample is compared with the K class centres, by its ``logits``, and with other samples, by their cosine over the
    temperature, in one softmax; the loss is minus the mean of the log-probabilities of what belongs to its class: its centre
    with weight 1, each sample with ``alpha``.

    Args:
        logits: [B, K], of the centres.
        labels: [B] class ids.
        query: [B, d], of unit length; the other queries of the batch are compared with too.
        others: [n, d], of unit length, without a gradient.
        other_labels: [n]; below 0: an empty place, which is left out.
        alpha: weight of a sample of the same class.
        temperature: of the cosines.
    """
    samples, known = torch.cat([query, others]), torch.cat([labels, other_labels])
    cosines = query @ samples.T / temperature
    own = torch.arange(len(samples), device=query.device) == torch.arange(len(query), device=query.device)[:, None]
    cosines = cosines.masked_fill(own | (known < 0), float("-inf"))
    log_probabilities = torch.cat([logits, cosines], 1).log_softmax(1)
    same = ((labels[:, None] == known) & ~own).to(logits.dtype)
    weights = torch.cat([F.one_hot(labels, logits.shape[1]).to(logits.dtype), alpha * same], 1)
    weighted = weights * log_probabilities.masked_fill(weights == 0, 0.0)
    return -(weighted.sum(1) / weights.sum(1)).mean()


class PaCo(SharpnessAware):
    """Parametric contrastive learning: class centres among the samples of a contrastive loss (see :func:`paco_loss`).

    A copy of the network and of its projection, their moving average, gives the keys of a batch; these and a queue of earlier
    ones are the other samples. The centres' logits are raised by the log of their class's share of the samples, so that the
    classifier is balanced at test. Inputs: images, or ``{"query", "key"}``, two views of each (``MultiView``), as published.
    The copy runs in eval mode, on the network's statistics (our choice: published keys are shuffled among GPUs for the same
    end). The projection and the queue are dropped at export. ``features``: the layer whose input is projected.

    Raises:
        InputError: a class without samples, or no such layer.
    """

    tasks = ()  # a network is asked about one view of two: no task can look at its inputs

    @dataclass(frozen=True)
    class Config:
        """Sizes are for small data (our choice); published for ImageNet-LT: alpha 0.05, a queue of 8,192, 128 dimensions,
        temperature 0.2."""

        rho: float = 0.05
        alpha: float = 0.05
        temperature: float = 0.2
        queue: int = 1024
        dim: int = 32
        momentum: float = 0.999
        features: str = "in:head"
        counts: tuple[int, ...] = ()

    def __init__(self, config: Config | None = None, **options: object):
        super().__init__(config, **options)
        self.log_shares: Tensor
        self.register_buffer("log_shares", torch.empty(0))

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Projection, copies and queue; see :class:`Method`."""
        super().prepare(student, teacher, example, data)
        logits, features = self._features(student, _view(example.inputs, "query"))
        counts = torch.tensor(self.config.counts or class_counts(data, logits.shape[1])).to(logits)
        if counts.min() < 1:
            raise InputError("a class has no sample", where="counts", remedy="leave it out of the classifier")
        self.log_shares = (counts / counts.sum()).log()
        width = features.shape[1]
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.config.dim))
        self.key_network = copy.deepcopy(unwrap_model(student)).eval().requires_grad_(False)
        self.key_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.queue = FeatureQueue(self.config.queue, self.config.dim)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def train(self, mode: bool = True) -> PaCo:
        """As of every module; the copy stays in eval mode."""
        super().train(mode)
        if hasattr(self, "key_network"):
            self.key_network.eval()
        return self

    def _features(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and what goes into the classifier."""
        with FeatureHooks(network, [self.config.features]) as taken:
            logits = forward_heads(network, images)["logits"]
        return logits, taken[self.config.features]

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """``logits`` and ``query`` [B, dim] of the student, ``key`` [B, dim] of the copy."""
        logits, features = self._features(student, _view(batch.inputs, "query"))
        with torch.no_grad():
            _, seen = self._features(self.key_network, _view(batch.inputs, "key"))
            key = F.normalize(self.key_projection(seen), dim=1)
        self._waiting = [(key, batch.labels)]
        return {"logits": logits, "query": F.normalize(self.projection(features), dim=1)}, {"key": key}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``paco``."""
        labels, (held, held_labels, _) = class_ids(batch.labels), self.queue.entries()
        others, known = torch.cat([teacher["key"], held]), torch.cat([labels, held_labels])
        logits = student["logits"] + self.log_shares
        loss = paco_loss(logits, labels, student["query"], others, known, self.config.alpha, self.config.temperature)
        return {"paco": loss}

    @torch.no_grad()
    def after_step(self, student: nn.Module) -> None:
        """Move the copy, and queue the keys of the step's last batch."""
        pairs = ((self.key_network, unwrap_model(student)), (self.key_projection, self.projection))
        for average, current in pairs:
            for held, new in zip(average.parameters(), current.parameters(), strict=True):
                held.lerp_(new.detach(), 1 - self.config.momentum)
            for held, new in zip(average.buffers(), current.buffers(), strict=True):
                held.copy_(new)
        for key, labels in self._waiting:
            self.queue.enqueue(key, labels)
        self._waiting = []


def _view(inputs: Tensor | Mapping[str, Tensor], name: str) -> Tensor:
    return inputs[name] if isinstance(inputs, Mapping) else inputs
