"""The two methods, quantised distillation (QD) and differentiable quantisation (DQ), and the two in turn."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, ReplayableData, Tree
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method, Output, Phase, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.registry import system
from tutelage.systems._toy import SmallCNN, build_with_seed, class_ids, toy_images
from tutelage.systems.quantized_distillation.packing import PackedWeights
from tutelage.systems.quantized_distillation.quantizers import (
    Scaling,
    bucketed,
    extent,
    nearest,
    quantile_points,
    quantize,
    quantize_with_scale_gradient,
    redistribute,
    straight_through,
    unbucketed,
)

_MOST_BITS = 16  # of a tensor to which many bits are dealt


class _FunctionalCall(nn.Module):
    """A network with named heads, so that ``functional_call`` can put other weights into it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, inputs: Tree) -> Output:
        return forward_heads(self.network, inputs)


def forward_with_weights(network: nn.Module, weights: Mapping[str, Tensor], inputs: Tree) -> Output:
    """One forward pass with these weights in place of the network's; its buffers are its own, and are updated."""
    return functional_call(_FunctionalCall(network), {f"network.{name}": value for name, value in weights.items()}, (inputs,))


def quantized_parameters(
    network: nn.Module, tensors: str = "weights", keep_ends: bool = False
) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters to quantise: matrices and kernels, or ``tensors="all"``; ``keep_ends`` leaves out the first and
    the last of them."""
    found = [(name, p) for name, p in network.named_parameters() if tensors == "all" or p.ndim > 1]
    return iter(found[1:-1] if keep_ends else found)


@system("quantized-distillation", kind="compression")
class QuantizedDistillation(Method):
    """Quantized distillation: a low-bit student learns from a teacher, its weights quantised in every forward pass.

    Each step: forward and backward with ``w_q = Q(w)``, the gradient at w_q applied to the full-precision w; at the
    end ``w <- Q(w)`` (algorithm 1). ``L = 0.7 T^2 KL(softmax(z_t/T) || softmax(z_s/T)) + 0.3 CE``, batch means. Q
    cuts a tensor into buckets, scales each to [0, 1] and rounds to 2^bits points; cost: bits + 64 / bucket a weight.

    ``ask`` chooses who is taught: ``all``, samples whose student output has an ``entropy`` above ``cut`` bits, each
    with ``probability`` entropy / log2(K), or those it gets ``wrong``; the others have plain CE, and the two subset
    means are added. ``scale_gradient`` also differentiates the scales (uniform, ``linear`` only). Batch-norm and biases
    stay as they are unless ``tensors = "all"``. Heads: ``logits`` [B, K]; labels [B]. At 32 bits this is plain
    training bit for bit. The KL term is a mean over the batch, not over the classes too (an older default of theirs).

    ``redistribute`` gives tensors different widths: each keeps all but one of its bits, and what was taken is dealt anew by
    the 2-norms of their gradients (cross-entropy, the first 5 batches, before training); the sum of the tensors' bits stays,
    and none gets more than 16 (our choice). The size of the file does not stay, for tensors differ in size.

    ``rounds`` above 1 is the mixed mode: so many stretches of QD with one of :class:`DifferentiableQuantization` between
    two of them, all equally long. Such a stretch copies the network as it then is, places points on its weights, their
    number by tensor dealt anew by gradient norms, trains these points alone at ``points_lr`` times the learning rate (without
    weight decay; the copy teaches), and puts the weights on them; QD goes on from there with its own points, which also are
    the exported student's. The authors' mode is one epoch a stretch: ``rounds = (epochs + 1) / 2``.

    Raises:
        InputError: ``redistribute`` with fewer than 2 bits or more than 16, or no round.
    """

    tasks = ("classification",)
    needs_labels = True

    @dataclass(frozen=True)
    class Config:
        """``clip``: no gradient where ``|w|`` is above 1. ``keep_ends``: first and last tensor in full precision.
        ``redistribute``: bits by tensor. ``rounds``, ``points_lr``: of the mixed mode (its rate: 1e-5 against 1e-3)."""

        bits: int = 4
        bucket: int = 256
        scaling: Scaling = "linear"
        stochastic: bool = False
        tau: float = 2.0
        kd: float = 0.7
        ce: float = 0.3
        ask: Literal["all", "entropy", "probability", "wrong"] = "all"
        cut: float = 0.5
        tensors: Literal["weights", "all"] = "weights"
        keep_ends: bool = False
        clip: bool = False
        scale_gradient: bool = False
        redistribute: bool = False
        rounds: int = 1
        points_lr: float = 0.01

        def __post_init__(self) -> None:
            if self.redistribute and not 2 <= self.bits <= _MOST_BITS:
                raise InputError(f"{self.bits} bits cannot be dealt anew", where="bits", remedy=f"2 to {_MOST_BITS} bits")
            if self.rounds < 1:
                raise InputError(f"{self.rounds} rounds", where="rounds", remedy="1 for plain QD, more for the mixed mode")

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Deals out the bits and makes the points of the mixed mode; see :class:`Method`."""
        config = self.config
        if config.redistribute:
            named = dict(quantized_parameters(student, config.tensors, config.keep_ends))
            norms = _gradient_norms(student, list(named.values()), data, len(example))
            dealt = redistribute([config.bits] * len(named), norms, [config.bits - 1] * len(named))
            self.register_buffer("dealt_bits", torch.tensor(dealt).clamp_max(_MOST_BITS))
        if config.rounds > 1:
            same = {name: getattr(config, name) for name in ("bits", "bucket", "tensors", "keep_ends")}
            self.learned = DifferentiableQuantization(redistribute=True, **same)
            self.learned.prepare(student, None, example, data)

    def bits(self, network: nn.Module) -> dict[str, int]:
        """The bits of each quantised tensor by name; under ``redistribute`` known once a job is prepared."""
        names = [name for name, _ in quantized_parameters(network, self.config.tensors, self.config.keep_ends)]
        dealt = self.dealt_bits.tolist() if self.config.redistribute else [self.config.bits] * len(names)
        return dict(zip(names, dealt, strict=True))

    def phases(self) -> Sequence[Phase]:
        """One; in the mixed mode ``weights``, then in turn ``points`` and ``weights``."""
        if self.config.rounds == 1:
            return (Phase(),)
        weights = Phase("weights", trains=lambda name: name.startswith("student."))
        points = Phase("points", lr=self.config.points_lr, trains=lambda name: name.startswith("method.learned."))
        return (weights, *(points, weights) * (self.config.rounds - 1))

    def groups(self, student: nn.Module) -> Sequence[Mapping[str, Any]] | None:
        """The points of the mixed mode without weight decay."""
        if self.config.rounds == 1:
            return None
        return [{"params": list(student.parameters())}, {"params": [self.learned.points], "weight_decay": 0.0}]

    def quantized(self, network: nn.Module) -> dict[str, Tensor]:
        """The quantised weights by name, with gradients straight through to the network's."""
        config, found, bits = self.config, {}, self.bits(network)
        for name, weight in quantized_parameters(network, config.tensors, config.keep_ends):
            if config.bits >= 32:
                found[name] = weight
            elif config.scale_gradient:
                found[name] = quantize_with_scale_gradient(weight, bits[name], config.bucket)
            else:
                low = quantize(weight.detach(), bits[name], config.bucket, config.scaling, config.stochastic)
                found[name] = straight_through(weight, low, 1.0 if config.clip else 0.0)
        return found

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The student's answer with quantised weights; where points are trained, on those, with their own teacher."""
        if self.progress.phase.name == "points":
            return self.learned(batch, student, teacher)
        teacher_outputs = teacher(batch) if teacher is not None else {}
        return forward_with_weights(student, self.quantized(student), batch.inputs), teacher_outputs

    def teacher_mask(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Which samples the teacher is asked about, bool [B]."""
        logits, config = logits.detach(), self.config
        if config.ask == "wrong":
            return logits.argmax(-1) != labels
        log = logits.log_softmax(-1)
        entropy = -(log.exp() * log).sum(-1) / math.log(2)
        if config.ask == "entropy":
            return entropy > config.cut
        return torch.rand_like(entropy) < entropy / math.log2(logits.shape[-1])

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``kd`` and ``label`` of the samples that are asked about; ``plain`` of the others, unless all are."""
        labels, student_logits, teacher_logits = class_ids(batch.labels), student["logits"], teacher["logits"]
        if self.config.ask == "all":
            weights = batch.weights
            soft = losses.kd(student_logits, teacher_logits, self.config.tau, weights)
            return {"kd": soft, "label": losses.cross_entropy(student_logits, labels, weights)}
        mask = self.teacher_mask(student_logits, labels).to(student_logits.dtype)
        if batch.weights is not None:
            mask, rest = mask * batch.weights, (1 - mask) * batch.weights
        else:
            rest = 1 - mask
        return {
            "kd": losses.kd(student_logits, teacher_logits, self.config.tau, mask),
            "label": losses.cross_entropy(student_logits, labels, mask),
            "plain": losses.cross_entropy(student_logits, labels, rest),
        }

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return {"kd": self.config.kd, "label": self.config.ce}

    def after_step(self, student: nn.Module) -> None:
        """In the mixed mode: after a stretch of QD the points are placed anew, after one of theirs the weights move onto them."""
        if self.config.rounds == 1:
            return
        here = self.progress
        ends = here.phase_step + 1 >= here.phase_steps
        if here.phase.name == "points":
            self.learned.after_step(student)
            if ends:
                self.learned.put_on_points(student)
        elif ends and here.step + 1 < here.steps:
            self.learned.place_points(student)

    @torch.no_grad()
    def export(self, student: nn.Module) -> nn.Module:
        """The student on its quantisation points."""
        exported, config = super().export(student), self.config
        bits = self.bits(exported)
        for name, weight in quantized_parameters(exported, config.tensors, config.keep_ends):
            weight.copy_(quantize(weight, bits[name], config.bucket, config.scaling))
        return exported

    def packing(self, student: nn.Module) -> dict[str, PackedWeights]:
        """How :func:`pack` is to store the exported student (``linear`` scaling)."""
        bits = self.bits(student)
        return {name: PackedWeights(torch.linspace(0, 1, 2**count), self.config.bucket) for name, count in bits.items()}

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training job of a second at 4 bits."""
        student = build_with_seed(lambda: SmallCNN(4, 4 * width, 8 * width), seed, "student")
        teacher = build_with_seed(lambda: SmallCNN(4, 8 * width, 16 * width), seed, "teacher")
        settings = TrainingSettings(steps=8, batch_size=16, seed=seed)
        return TrainingJob(student, teacher, cls(), toy_images(seed), settings, "quantized-distillation")


class DifferentiableQuantization(Method):
    """Differentiable quantisation: the weights stay, and the quantisation points are learned by gradient descent.

    The student is a trained network w0; each tensor has s points p, at quantiles of its scaled values to begin with.
    ``w = alpha p[idx] + beta``, idx the point nearest to the scaled w0, so that
    ``dL/dp_j = sum over idx_i = j of alpha_i dL/dw_i`` (algorithm 2). Points are sorted after each step; batch-norm
    statistics keep updating. The teacher is the full-precision network itself (a copy, made here), whatever teacher the
    training job names. ``redistribute`` deals half of all points anew, by the gradient norms of 5 batches.
    """

    tasks = ("classification",)
    needs_labels = True
    needs_teacher = False
    unused_parameters = ("student.*",)
    counts: Tensor

    @dataclass(frozen=True)
    class Config:
        """``start``: where the points begin; ``kd``, ``ce``, ``tau`` as in :class:`QuantizedDistillation`."""

        bits: int = 4
        bucket: int = 256
        tau: float = 2.0
        kd: float = 0.7
        ce: float = 0.3
        start: Literal["quantiles", "uniform"] = "quantiles"
        tensors: Literal["weights", "all"] = "weights"
        keep_ends: bool = False
        redistribute: bool = False

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Copies the full-precision network and places the points; see :class:`Method`."""
        named = dict(quantized_parameters(student, self.config.tensors, self.config.keep_ends))
        self.names, self._data, self._batch_size = list(named), [data], len(example)
        self.full = copy.deepcopy(student).eval().requires_grad_(False)
        self.register_buffer("counts", torch.full((len(named),), 2**self.config.bits))
        self.points = nn.Parameter(next(iter(named.values())).detach().new_empty(int(self.counts.sum())))
        self.place_points(student)

    @torch.no_grad()
    def place_points(self, student: nn.Module) -> None:
        """Take the network as it is now as the full-precision one, and place the points on its weights.

        All tensors' points are one parameter, of a length that dealing them anew does not change.
        """
        self.full.load_state_dict(student.state_dict())
        named = dict(student.named_parameters())
        weights = [named[name] for name in self.names]
        counts = [2**self.config.bits] * len(weights)
        if self.config.redistribute:
            training = student.training
            counts = redistribute(counts, _gradient_norms(student.eval(), weights, self._data[0], self._batch_size))
            student.train(training)
        self.counts.copy_(torch.tensor(counts))
        self.points.copy_(torch.cat([self._start(weight, count) for weight, count in zip(weights, counts)]))

    @property
    def points_by_tensor(self) -> tuple[Tensor, ...]:
        """The points of each tensor [s], in the order of ``names``."""
        return self.points.split(self.counts.tolist())

    def _start(self, weight: Tensor, count: int) -> Tensor:
        if self.config.start == "uniform":
            return torch.linspace(0, 1, count, dtype=weight.dtype, device=weight.device)
        return quantile_points(weight, count, self.config.bucket)

    def phases(self) -> Sequence[Phase]:
        """The points alone are trained."""
        return (Phase(trains=lambda name: name == "method.points"),)

    def quantized(self, network: nn.Module) -> dict[str, Tensor]:
        """Each weight on its tensor's points, differentiable in them."""
        found, parameters = {}, dict(network.named_parameters())
        for name, points in zip(self.names, self.points_by_tensor):
            weight = parameters[name].detach()
            rows = bucketed(weight, self.config.bucket)
            alpha, beta = extent(rows)
            index = nearest((rows - beta) / alpha, points.detach())
            found[name] = unbucketed(alpha * points[index] + beta, weight)
        return found

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The answers on the points, and of the full-precision network."""
        with torch.no_grad():
            self.full.eval()
            full_outputs = forward_heads(self.full, batch.inputs)
        return forward_with_weights(student, self.quantized(student), batch.inputs), full_outputs

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``kd`` and ``label``."""
        return {
            "kd": losses.kd(student["logits"], teacher["logits"], self.config.tau, batch.weights),
            "label": losses.cross_entropy(student["logits"], class_ids(batch.labels), batch.weights),
        }

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return {"kd": self.config.kd, "label": self.config.ce}

    @torch.no_grad()
    def after_step(self, student: nn.Module) -> None:
        """Sorts the points."""
        for points in self.points_by_tensor:
            points.copy_(points.sort().values)

    @torch.no_grad()
    def export(self, student: nn.Module) -> nn.Module:
        """The student on its points."""
        exported = super().export(student)
        self.put_on_points(exported)
        return exported

    @torch.no_grad()
    def put_on_points(self, network: nn.Module) -> None:
        """Change the network's weights to the points nearest to them."""
        parameters = dict(network.named_parameters())
        for name, value in self.quantized(network).items():
            parameters[name].copy_(value)

    def packing(self, student: nn.Module) -> dict[str, PackedWeights]:
        """How :func:`pack` is to store the student: its full weights with these points."""
        found = zip(self.names, self.points_by_tensor)
        return {name: PackedWeights(points.detach().clone(), self.config.bucket) for name, points in found}


def _gradient_norms(network: nn.Module, weights: Sequence[nn.Parameter], data: ReplayableData, size: int) -> list[float]:
    """The 2-norm, per tensor, of the mean cross-entropy gradient of 5 batches."""
    sums = [torch.zeros_like(weight) for weight in weights]
    with torch.enable_grad():
        for indices in torch.arange(min(len(data), 5 * size)).split(size):
            batch = data.batch(indices, None)
            loss = F.cross_entropy(forward_heads(network, batch.inputs)["logits"], class_ids(batch.labels))
            for total, gradient in zip(sums, torch.autograd.grad(loss, list(weights))):
                total += gradient
    return [total.norm().item() for total in sums]
