"""ScaleKD: strong vision transformers as teachers for any student (Fan et al., NeurIPS 2024, arXiv 2411.06786)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.networks.layers import LayerNorm2d
from tutelage.registry import system
from tutelage.systems._toy import HierarchicalTransformer, build_with_seed, conv_norm, toy_images

# -- losses ----------------------------------------------------------------------------------------------------------


def direct_view_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``1/B sum (S^ - T^)^2``, maps [B, C, H, W] scaled to unit length over channels at each position.

    It is a sum over positions, ``2/B sum_p (1 - cos_p)``, in 0..4 H W: its size grows with the map.
    """
    student_directions, teacher_directions = F.normalize(student, dim=1), F.normalize(teacher.detach(), dim=1)
    return (student_directions - teacher_directions).square().sum() / len(student)


def alternative_view_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """:func:`direct_view_loss` after each channel's mean over positions was taken away: what differs from place to place.

    The paper sets the (0, 0) coefficient of a 2-D DCT-II to 0 and transforms back: the same thing.
    """
    return direct_view_loss(center_maps(student), center_maps(teacher))


def center_maps(maps: Tensor) -> Tensor:
    """Maps [B, C, H, W] without the mean over positions of each channel."""
    return maps - maps.mean((2, 3), keepdim=True)


# -- the projector ---------------------------------------------------------------------------------------------------


class CrossAttentionProjector(nn.Module):
    """A student map as the teacher's: each of Nq queries attends to the student's positions.

    ``s = ReLU(norm(conv3x3(x))) + P``, P learned and of the student's size; ``q = ReLU(conv1x1(source))``; multi-head
    cross attention ``softmax(scale (W_q q)(W_k s)^T / sqrt(d)) W_v s``, then W_o; ``n = LayerNorm(o)`` and
    ``n + FFN(n)``. No dropout, and no residual around the attention.

    Args:
        student: (channels, height, width) of the student's map.
        teacher: (channels, height, width) of the map to be made.
        heads: must divide the teacher's channels.
        scale: the extra factor of the softmax.
        learned: make a table of queries; without it they are handed to :meth:`forward`.
        norm: ``batch``, or ``layer`` for ConvNeXt students.

    Raises:
        InputError: heads that do not divide the channels.
    """

    def __init__(
        self,
        student: tuple[int, int, int],
        teacher: tuple[int, int, int],
        heads: int = 8,
        scale: float = 5.0,
        learned: bool = True,
        norm: Literal["batch", "layer"] = "batch",
    ):
        super().__init__()
        inner, outer = student[0], teacher[0]
        if outer % heads:
            raise InputError(f"{heads} heads do not divide {outer} channels", where="heads", remedy="choose a divisor")
        self.heads, self.size = heads, teacher[1:]
        self.scale = scale * (outer // heads) ** -0.5
        normed = nn.BatchNorm2d(inner) if norm == "batch" else LayerNorm2d(inner, 1e-5)
        self.entry = nn.Sequential(nn.Conv2d(inner, inner, 3, padding=1), normed, nn.ReLU())
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, *student), std=0.02))
        self.table = nn.Parameter(torch.randn(1, math.prod(self.size), outer)) if learned else None
        self.query_conv = nn.Sequential(nn.Conv2d(outer, outer, 1), nn.ReLU())
        self.query, self.key, self.value = nn.Linear(outer, outer), nn.Linear(inner, outer), nn.Linear(inner, outer)
        self.out, self.norm = nn.Linear(outer, outer), nn.LayerNorm(outer)
        self.mlp = nn.Sequential(nn.Linear(outer, 4 * outer), nn.ReLU(), nn.Linear(4 * outer, outer))
        self.weights = nn.Identity()

    def forward(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """x [B, Cs, h, w] -> [B, Ct, H, W]; ``queries`` [B, Ct, H, W] take the table's place.

        ``weights`` is a tap on the attention [B, heads, H W, h w].
        """
        if queries is None:
            assert self.table is not None, "this projector was made to be handed its queries"
            queries = self.table.transpose(1, 2).unflatten(2, self.size)
        s = (self.entry(x) + self.positions).flatten(2).transpose(1, 2)
        q = self.query(self.query_conv(queries).flatten(2).transpose(1, 2)).expand(len(x), -1, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, self.key(s), self.value(s)))
        attention = self.weights((q @ k.transpose(-1, -2) * self.scale).softmax(-1))
        n = self.norm(self.out((attention @ v).transpose(1, 2).flatten(2)))
        return (n + self.mlp(n)).transpose(1, 2).unflatten(2, self.size)


# -- the method ------------------------------------------------------------------------------------------------------

_VIEWS = {"direct": direct_view_loss, "alternative": alternative_view_loss}


@system("scalekd", kind="distillation")
class ScaleKD(Method):
    """ScaleKD: any student copies a vision transformer's last map, partly through the teacher's own last stage.

    ``L = (1 - a) CE + a tau^2 CE(softmax(z_t / tau), softmax(z_s / tau)) + 0.08 (dir3 + dir4) + 0.06 (alt3 + alt4)``.
    Of each view (:func:`direct_view_loss`, :func:`alternative_view_loss`) on its own projectors: the
    student's third map goes through a
    cross-attention projector with learned queries, then through the teacher's frozen last stage, and is compared with
    the teacher's last map (``3``); the fourth goes through a projector whose queries are that result (``4``). Gradients
    pass through the frozen stage. Projectors are dropped at export.

    Taps: ``student3``, ``student4`` maps [B, C, h, w]; ``teacher``, the last map. ``path``: the teacher's sub-modules
    to run on the first projection, in order; its shape is that of the first one's input. ``path4`` (plain ViTs, whose
    stage is shared out): sub-modules after the fourth projection. ``layout``: what they pass on: ``map`` [B, C, H, W],
    ``nhwc`` (timm's Swin: ``("layers.3", "norm")``), or ``tokens`` [B, N, C] of a square grid (class tokens left out).
    Student and teacher heads: ``logits`` [B, K]; labels class ids or probabilities. ``perceive = False`` and a weight
    of 0 leave parts out. A view's weight may be two, of the terms ``3`` and ``4``: the authors' recipe of a Swin-S teacher is
    ``alternative_weight=(0.06, 0.0), a=0.0``. It also asks for ``self_query``, learned queries of the fourth projector in
    place of those handed on, which their code then ignores (so leave it off to follow it). The authors' heads: 16 for widths
    of 768, 24 for 1536, 8 by default.

    Raises:
        InputError: the teacher is not a live network, no such sub-module, or heads that do not divide its width.
    """

    tasks = ("classification",)
    needs_labels = True

    @dataclass(frozen=True)
    class Config:
        """``a``: weight of the soft labels; ``direct_weight``, ``alternative_weight``: of the views, at both stages or (third,
        fourth); ``self_query``: the fourth projector learns its queries."""

        a: float = 0.5
        tau: float = 1.0
        direct_weight: float | tuple[float, float] = 0.08
        alternative_weight: float | tuple[float, float] = 0.06
        perceive: bool = True
        self_query: bool = False
        heads3: int = 8
        heads4: int = 8
        scale: float = 5.0
        norm: Literal["batch", "layer"] = "batch"
        student3: str = "stages.2"
        student4: str = "stages.3"
        teacher: str = "stages.3"
        path: tuple[str, ...] = ("stages.3",)
        path4: tuple[str, ...] = ()
        layout: Literal["map", "nhwc", "tokens"] = "map"

    @property
    def view_weights(self) -> dict[str, float]:
        """The weight of each term that counts: a view's name and the number of the stage."""
        found = {}
        for view, given in (("direct", self.config.direct_weight), ("alternative", self.config.alternative_weight)):
            third, fourth = (given, given) if isinstance(given, (int, float)) else given
            found |= {f"{view}3": third if self.config.perceive else 0.0, f"{view}4": fourth}
        return {name: weight for name, weight in found.items() if weight}

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Projectors from the observed shapes; see :class:`Method`."""
        config = self.config
        if teacher is None or teacher.network is None:
            raise InputError("needs the live teacher", where="teacher", remedy="its last stage is run on the student's maps")
        self._network = [teacher.network]  # in a list: beside the method, not owned by it
        self._taps = FeatureHooks(student, [config.student3, config.student4])
        teacher.request_features(config.teacher)
        live, entry = teacher.uncached, f"in:{config.path[0]}"
        live.request_features(config.teacher)
        with FeatureHooks(teacher.network, [entry]) as taken:
            goal = self._map(live(example)[config.teacher])
        before = self._map(taken[entry])
        with self._taps as student_hooks:
            forward_heads(student, example.inputs)
        third, fourth = (tuple(student_hooks[name].shape[1:]) for name in (config.student3, config.student4))
        self.third, self.fourth = nn.ModuleDict(), nn.ModuleDict()
        weights, hands_on = self.view_weights, config.perceive and not config.self_query
        for view in _VIEWS:
            if f"{view}3" in weights or (hands_on and f"{view}4" in weights):
                self.third[view] = self._projector(third, tuple(before.shape[1:]), config.heads3, True)
            if f"{view}4" in weights:
                late = before if config.path4 else goal
                self.fourth[view] = self._projector(fourth, tuple(late.shape[1:]), config.heads4, not hands_on)

    def _projector(self, student: tuple[int, ...], teacher: tuple[int, ...], heads: int, learned: bool) -> CrossAttentionProjector:
        return CrossAttentionProjector(student, teacher, heads, self.config.scale, learned, self.config.norm)  # type: ignore[arg-type]

    def _map(self, x: Tensor) -> Tensor:
        """What the teacher's sub-modules pass on, as a map."""
        if self.config.layout == "nhwc":
            return x.movedim(-1, 1)
        if self.config.layout == "tokens":
            side = math.isqrt(x.shape[1])
            return x[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
        return x

    def _run_teacher_stages(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """A map through the teacher's own sub-modules, with gradients; the teacher is frozen and in eval mode."""
        (network,) = self._network
        if self.config.layout == "nhwc":
            x = x.movedim(1, -1)
        elif self.config.layout == "tokens":
            x = x.flatten(2).transpose(1, 2)
        for name in names:
            x = network.get_submodule(name)(x)
        return self._map(x)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The student's logits with, of each view, its maps in the teacher's place; the teacher's map as ``map``."""
        assert teacher is not None
        config, teacher_outputs = self.config, teacher(batch)
        with self._taps as taken:
            student_outputs = dict(forward_heads(student, batch.inputs))
        for view in _VIEWS:
            queries = None
            if view in self.third:
                queries = self._run_teacher_stages(self.third[view](taken[config.student3]), config.path)
                student_outputs[f"{view}3"] = queries
            if view in self.fourth:
                queries = None if config.self_query else queries
                maps = self.fourth[view](taken[config.student4], queries)
                student_outputs[f"{view}4"] = self._run_teacher_stages(maps, config.path4)
        return student_outputs, {"logits": teacher_outputs["logits"], "map": self._map(teacher_outputs[config.teacher])}

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        config = self.config
        weights = {"label": 1 - config.a} | ({"kd": config.a} if config.a else {})
        return weights | self.view_weights

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``, ``kd`` (cross-entropy with the soft labels, times tau^2), and the views' terms."""
        config = self.config
        terms = {"label": losses.cross_entropy(student["logits"], batch.labels, batch.weights)}
        if config.a:
            soft = (teacher["logits"].detach() / config.tau).softmax(-1)
            log = (student["logits"] / config.tau).log_softmax(-1)
            terms["kd"] = config.tau**2 * losses.average(-(soft * log).sum(-1), batch.weights)
        for name in self.view_weights:
            terms[name] = _VIEWS[name[:-1]](student[name], teacher["map"])
        return terms

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training job of two seconds: a four-stage CNN and a four-stage transformer."""
        student = build_with_seed(lambda: StagedCNN([width * dim for dim in (4, 8, 8, 12)], 4), seed, "student")
        teacher = build_with_seed(lambda: StagedTransformer([width * dim for dim in (8, 8, 16, 16)], 4, first=1), seed, "teacher")
        method, data = cls(heads3=2, heads4=2), toy_images(seed, image_size=16)
        return TrainingJob(student, teacher, method, data, TrainingSettings(steps=6, batch_size=16, seed=seed), "scalekd")


class StagedCNN(nn.Module):
    """A small CNN of four stages (``stages.0`` to ``3``), the last three of stride 2: [B, 1, H, W] -> logits."""

    def __init__(self, widths: Sequence[int], classes: int, inputs: int = 1):
        super().__init__()
        pairs = zip([inputs, *widths], widths)
        self.stages = nn.Sequential(*(conv_norm(a, b, 2 if i else 1) for i, (a, b) in enumerate(pairs)))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.stages(images).mean((2, 3)))


class StagedTransformer(HierarchicalTransformer):
    """A small hierarchical transformer classifier (``stages.0`` and on): [B, 1, H, W] -> logits [B, classes]."""

    def __init__(self, widths: Sequence[int], classes: int, inputs: int = 1, depth: int = 1, first: int = 2):
        super().__init__(widths, [depth] * len(widths), inputs, first, head=8)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Logits."""
        return self.head(super().forward(images)[-1].mean((2, 3)))
