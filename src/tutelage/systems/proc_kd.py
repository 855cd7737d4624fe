"""A vision transformer learns from the teacher of another task, with other classes::

    from tutelage import distill

    result = distill(student, teacher, data, "proc-kd")

``student``, ``teacher``: vision transformers of ``transformers`` or ``timm``, or ``VisionTransformer``; widths, depths and
patch grids may differ. ``data``: images with the student's classes; the label -100 marks an image without one, which still
counts in the two terms that need no labels. As a recipe::

    method = "proc-kd"

    [student]
    model = "timm:vit_small_patch16_224"
    options = { num_classes = 100 }

    [teacher]
    model = "timm:deit_base_patch16_224"
    options = { pretrained = true }

    [data]
    kind = "folder"
    path = "photos"
    image_size = 224

    [options]
    prototypes = 72

With a cache, name the teacher's blocks: ``NetworkTeacher(teacher, taps=names)`` and ``options={"teacher": names}``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads, unwrap_model
from tutelage.distillation.projections import resample
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.networks.registers import find_parts
from tutelage.networks.vit import VisionTransformer
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed, toy_images

# -- the two modules -------------------------------------------------------------------------------------------------


def vlad(tokens: Tensor, shares: Tensor, prototypes: Tensor) -> Tensor:
    """``V_k = sum_n a_nk (x_n - c_k)``, as ``a^T x - (sum_n a) c``: no [B, K, N, D] is ever built.

    Args:
        tokens: x [B, N, D].
        shares: a [B, N, K], soft assignments.
        prototypes: c [K, D].

    Returns:
        [B, K, D].
    """
    return shares.transpose(1, 2) @ tokens - shares.sum(1)[..., None] * prototypes


def usage_entropy(shares: Tensor) -> Tensor:
    """The entropy of the mean soft assignment [..., K], over its largest value ``log K``: 1, all prototypes used alike."""
    return torch.special.entr(mean := shares.flatten(0, -2).mean(0)).sum() / math.log(len(mean))


def _two_layers(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2 * dim, dim, bias=False), nn.ReLU(), nn.Linear(dim, dim, bias=False), nn.ReLU())


class PrototypeModule(nn.Module):
    """Module 1, of training only: three hidden states of the teacher [B, N, D] become P [B, N, D].

    ``t = ReLU(W [H1, H2, H3])``, ``x = t / |t|``, ``a = softmax over prototypes(A x)``, the :func:`vlad` of these, each V_k and
    then all of them divided by their norm, a linear layer to one vector v, and ``P = ReLU(W2 ReLU(W1 [t, v]))``.

    Args:
        dim: D.
        prototypes: K.
        bottleneck: width of a layer between the K D numbers and v; None: one layer of K D^2 weights, as published.
    """

    def __init__(self, dim: int, prototypes: int, bottleneck: int | None = None):
        super().__init__()
        self.fuse, self.assign = nn.Linear(3 * dim, dim), nn.Linear(dim, prototypes, bias=False)
        inner = prototypes * dim
        self.summarize: nn.Module = (
            nn.Linear(inner, dim)
            if bottleneck is None
            else nn.Sequential(nn.Linear(inner, bottleneck, bias=False), nn.Linear(bottleneck, dim))
        )
        self.merge = _two_layers(dim)

    def shares(self, fused: Tensor) -> Tensor:
        """The soft assignments [B, N, K] of fused tokens."""
        return self.assign(F.normalize(fused, dim=-1)).softmax(-1)

    def forward(self, hidden: Tensor, prototypes: Tensor) -> Tensor:
        """P of the three states side by side, [B, N, 3 D]; ``prototypes`` [K, D]."""
        fused = self.fuse(hidden).relu()
        residuals = F.normalize(vlad(F.normalize(fused, dim=-1), self.shares(fused), prototypes), dim=-1)
        summary = self.summarize(F.normalize(residuals.flatten(1), dim=-1))
        return self.merge(torch.cat([fused, summary[:, None].expand_as(fused)], -1))


class FeatureAugmentation(nn.Module):
    """Module 2: tokens y are enriched by the prototypes that are like them, [B, N, D] -> [B, N, D].

    ``e = Enc(y)``, ``m = Enc(c)``, ``r = softmax over prototypes(e m^T) m``, ``ReLU(g([e, r]) + y)``.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.encode, self.merge = nn.Linear(dim, dim, bias=False), _two_layers(dim)

    def align(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        """How much of each prototype a token takes, [B, N, K]: rows of sum 1."""
        return (self.encode(tokens) @ self.encode(prototypes).T).softmax(-1)

    def forward(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        """The enriched tokens; ``prototypes`` [K, D]."""
        read = self.align(tokens, prototypes) @ self.encode(prototypes)
        return (self.merge(torch.cat([self.encode(tokens), read], -1)) + tokens).relu()


class TokenAdapter(nn.Module):
    """Tokens of the teacher [B, prefix + N', D'] in the student's width and grid: [B, 1 + N, D], or [B, N, D] for ``own``
    of 0. Of the prefix the first token, the class token, is kept; patches are resampled as a square grid."""

    def __init__(self, width: int, dim: int, prefix: int, own: int, count: int):
        super().__init__()
        self.channels: nn.Module = nn.Linear(width, dim) if width != dim else nn.Identity()
        self.prefix, self.own, self.count = prefix, own, count

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens as the student's."""
        tokens = self.channels(tokens)
        patches = tokens[:, self.prefix :]
        patches = resample(patches, _grid(patches.shape[1]), _grid(self.count))
        return torch.cat([tokens[:, :1], patches], 1) if self.own else patches


def _grid(count: int) -> tuple[int, ...]:
    side = math.isqrt(count)
    return (side, side) if side * side == count else (count,)


# -- the student's own parts -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudentParts:
    """Names of the student's last ``block``, final ``norm`` and linear ``head``, and how many ``prefix`` tokens stand before
    its patches. With a prefix the head reads the first token, without one the mean of the patches."""

    block: str
    norm: str
    head: str
    prefix: int = 1

    def tokens(self, states: Tensor) -> Tensor:
        """The class token (where there is one) and the patches, of all states [B, prefix + N, D]."""
        return torch.cat([states[:, :1], states[:, self.prefix :]], 1) if self.prefix > 1 else states

    def classify(self, student: nn.Module, tokens: Tensor) -> Tensor:
        """Logits [B, C] of tokens in the place of the last block's."""
        normed = student.get_submodule(self.norm)(tokens)
        return student.get_submodule(self.head)(normed[:, 0] if self.prefix else normed.mean(1))


def student_parts(student: nn.Module, norm: str | None, head: str | None, prefix: int) -> StudentParts:
    """The parts by structure; ``norm`` and ``head`` where their names are not the usual ones.

    Raises:
        InputError: a part is not found.
    """
    parts = find_parts(student, **({"norm": norm} if norm is not None else {}))
    blocks: Any = student.get_submodule(parts.blocks)
    modules = dict(student.named_modules())
    names = [head] if head is not None else ["head", "classifier"]
    found = next((name for name in names if name in modules), None)
    if found is None:
        raise InputError(f"the student has no {' or '.join(names)}", where="head", remedy="name its linear head: head='…'")
    return StudentParts(f"{parts.blocks}.{len(blocks) - 1}", parts.norm, found, prefix)


class AugmentedClassifier(nn.Module):
    """A trained student with its prototypes: ``logits`` and ``augmented`` [B, C], without the teacher."""

    def __init__(self, student: nn.Module, parts: StudentParts, augment: FeatureAugmentation, prototypes: Tensor):
        super().__init__()
        self.student, self.parts, self.augment = student, parts, augment
        self.prototypes = nn.Parameter(prototypes.detach().clone())

    def forward(self, images: Tensor) -> Output:
        """Both answers."""
        with FeatureHooks(self.student, [self.parts.block]) as taken:
            logits = forward_heads(self.student, images)["logits"]
        tokens = self.augment(self.parts.tokens(taken[self.parts.block]), self.prototypes)
        return {"logits": logits, "augmented": self.parts.classify(self.student, tokens)}


# -- the method ------------------------------------------------------------------------------------------------------


@system("proc-kd", kind="distillation")
class ProCKD(Method):
    """ProC-KD: prototypes carry a teacher's knowledge of local parts to a student whose classes are others.

    Nothing compares logits of teacher and student. Module 1 (:class:`PrototypeModule`) reads three blocks of the frozen teacher
    and writes P; module 2 (:class:`FeatureAugmentation`) enriches tokens by K learned prototypes c. In training it is applied
    to P, ``A^T = AUG(P, c)``, and to the student's own last tokens X before the final norm, ``A^S = AUG(X, c)``. With the
    student's own norm and head, ``z = head(LN(X)[class])`` and ``z_aug = head(LN(A)[class])``:

    ``L = CE(z, y) + w [CE(z_aug^T, y) + CE(z_aug^S, y)] + l1 tau^2 KL(sg softmax(z_aug^T / tau) || softmax(z / tau))
    + l2 (1 - mean_n cos(A^S_n, sg A^T_n))``.

    Modules are as in the released model; the losses are our choice, for none are released. The last two terms need no labels:
    images with the label -100 count there alone. Prototypes start as unit normal vectors (our choice; the release draws
    them from 0..1, far off the scale of normalised tokens). Where the teacher's width differs, a linear layer for each block
    maps its tokens, and where its grid differs, patches are resampled.

    The export is the plain student, at no further cost; with ``keep_augmentation`` it is an :class:`AugmentedClassifier` with a
    second answer ``augmented``. Student and teacher: [B, N, D] tokens, labels [B].

    In SDVP: the backbone of a detector teaches a VERIFY or MATCH module that has other labels.

    Limits: losses are partly ours, and no figure of the paper is matched. Classification; for other tasks the paper puts the
    task's loss in the place of CE, and gives no more. The published layer from K D numbers to D has 42 million weights at
    K = 72, D = 768: ``bottleneck`` makes it small.

    Source: "Prototype-guided Cross-task Knowledge Distillation for Large-scale Models" (Li, Wu, Han, Tian, 2022,
    arXiv 2212.13180).

    Raises:
        InputError: blocks or a head that are not found, a head that reads something else than the final norm's tokens, or
            terms without labels where module 1 would learn nothing.
    """

    needs_labels = True
    matched_heads = ()
    tasks = ("classification",)

    @dataclass(frozen=True)
    class Config:
        """``prototypes``: K. ``augmented``, ``kl``, ``features``: the weights w, l1, l2; all 0: the student alone. ``tau``: the
        temperature. ``start``: of the prototypes. ``bottleneck``: see :class:`PrototypeModule`. ``teacher``: three sub-modules
        with tokens; empty: the last three blocks. ``teacher_prefix``, ``student_prefix``: tokens before the patches; a student
        with 0 is read at the mean of its patches. ``norm``, ``head``: the student's, where their names are not the usual ones.
        ``keep_augmentation``: export the augmentation too."""

        prototypes: int = 72
        augmented: float = 1.0
        kl: float = 1.0
        features: float = 0.5
        tau: float = 2.0
        start: Literal["normal", "uniform"] = "normal"
        bottleneck: int | None = None
        teacher: tuple[str, ...] = ()
        teacher_prefix: int = 1
        student_prefix: int = 1
        norm: str | None = None
        head: str | None = None
        keep_augmentation: bool = False

        def __post_init__(self) -> None:
            if min(self.augmented, self.kl, self.features) < 0:
                raise InputError("a weight is 0 or more", where="augmented, kl, features", remedy="1, 1 and 0.5")
            if not self.augmented and (self.kl or self.features):
                raise InputError(
                    "without the labels of the augmented answers, prototypes learn nothing that could be passed on",
                    where="augmented",
                    remedy="a weight above 0, or kl = 0 and features = 0",
                )
            if self.prototypes < 2 or self.tau <= 0 or (self.bottleneck or 1) < 1:
                raise InputError("at least 2 prototypes, tau above 0, bottleneck at least 1", where="prototypes")
            if self.start not in ("normal", "uniform"):
                raise InputError(f"no start {self.start!r}", where="start", remedy="normal or uniform")
            if len(self.teacher) not in (0, 3):
                raise InputError(f"{len(self.teacher)} blocks of the teacher", where="teacher", remedy="three, or none: the last")
            if min(self.teacher_prefix, self.student_prefix) < 0 or self.student_prefix and not self.teacher_prefix:
                raise InputError("the teacher has no class token to give", where="teacher_prefix", remedy="student_prefix=0")
            if self.keep_augmentation and not self.augmented:
                raise InputError("there is no augmentation to keep", where="keep_augmentation", remedy="augmented above 0")

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Finds the parts and builds both modules; see :class:`Method`."""
        assert teacher is not None
        config, network = self.config, unwrap_model(student)
        if not config.augmented:
            return
        self._blocks = config.teacher or _last_blocks(teacher)
        teacher.request_features(*self._blocks)
        self._parts = student_parts(network, config.norm, config.head, config.student_prefix)
        self._taps = FeatureHooks(student, [self._parts.block])
        hidden = teacher(example)
        with self._taps as taken:
            logits = forward_heads(student, example.inputs)["logits"]
        tokens = self._parts.tokens(taken[self._parts.block])
        again = self._parts.classify(network, tokens)
        if again.shape != logits.shape or not torch.allclose(again, logits, rtol=1e-3, atol=1e-4):
            raise InputError(
                f"the student's logits are not {self._parts.head}({self._parts.norm}(tokens of the last block))",
                where="head",
                remedy="name its final norm and head, and its student_prefix: 0 where it takes the mean of patches",
            )
        dim, own = tokens.shape[-1], int(config.student_prefix > 0)
        self.adapters = nn.ModuleList(
            TokenAdapter(hidden[name].shape[-1], dim, config.teacher_prefix, own, tokens.shape[1] - own) for name in self._blocks
        )
        self.reader = PrototypeModule(dim, config.prototypes, config.bottleneck)
        self.augment = FeatureAugmentation(dim)
        normal = config.start == "normal"
        drawn = F.normalize(torch.randn(config.prototypes, dim), dim=-1) if normal else torch.rand(config.prototypes, dim)
        self.prototypes = nn.Parameter(drawn)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The student's ``logits``; of both paths, ``augmented`` [B, C] and ``features`` [B, N, D]."""
        assert teacher is not None
        if not self.config.augmented:
            return forward_heads(student, batch.inputs), {}
        network, given = unwrap_model(student), self.teacher_features(batch, teacher)
        with self._taps as taken:
            output = forward_heads(student, batch.inputs)
        own = self.augment(self._parts.tokens(taken[self._parts.block]), self.prototypes)
        paths = [{"augmented": self._parts.classify(network, path), "features": path} for path in (own, given)]
        return output | paths[0], paths[1]

    def teacher_features(self, batch: Batch, teacher: Teacher) -> Tensor:
        """``AUG(P, c)`` [B, N, D] of the teacher's path."""
        return self.augment(self.reader(self._hidden(batch, teacher), self.prototypes), self.prototypes)

    def prototype_usage(self, batch: Batch, teacher: Teacher) -> float:
        """How evenly ``batch`` uses the prototypes, 0..1; see :func:`usage_entropy`."""
        with torch.no_grad():
            fused = self.reader.fuse(self._hidden(batch, teacher)).relu()
            return float(usage_entropy(self.reader.shares(fused)))

    def _hidden(self, batch: Batch, teacher: Teacher) -> Tensor:
        features = teacher(batch)
        return torch.cat([adapt(features[name]) for adapt, name in zip(self.adapters, self._blocks, strict=True)], -1)

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        config = self.config
        return {"augmented": config.augmented, "kl": config.kl, "features": config.features} if config.augmented else {}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``; and, with any weight, ``augmented`` (both paths), ``kl`` and ``features``."""
        labels, weights = batch.labels, batch.weights
        terms = {"label": self.task.label_loss(student, labels, weights)}
        if not self.config.augmented:
            return terms
        cosine = F.cosine_similarity(student["features"], teacher["features"].detach(), dim=-1)
        paths = [self.task.label_loss({"logits": path["augmented"]}, labels, weights) for path in (teacher, student)]
        return terms | {
            "augmented": paths[0] + paths[1],
            "kl": losses.kd(student["logits"], teacher["augmented"], self.config.tau, weights),
            "features": losses.average(1 - cosine.mean(-1), weights),
        }

    def export(self, student: nn.Module) -> nn.Module:
        """The plain student, or with its augmentation."""
        plain = super().export(student)
        if not self.config.keep_augmentation:
            return plain
        return AugmentedClassifier(plain, self._parts, copy.deepcopy(self.augment), self.prototypes).eval().requires_grad_(True)

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training of a second: a teacher of 7 classes, wider and with a finer grid; some images without label."""
        small, large = (2, 3) if width == 1 else (12, 12)
        student = build_with_seed(lambda: VisionTransformer(8, 4, 16 * width, small, 2, 1, num_classes=4), seed, "student")
        teacher = build_with_seed(lambda: VisionTransformer(8, 2, 24 * width, large, 2, 1, num_classes=7), seed, "teacher")
        data, method = toy_images(seed), cls(prototypes=6)
        data.labels = data.labels.masked_fill(torch.arange(len(data)) % 3 == 2, -100)
        return TrainingJob(student, teacher, method, data, TrainingSettings(steps=8, batch_size=16, seed=seed), "proc-kd")


def _last_blocks(teacher: Teacher) -> tuple[str, ...]:
    if teacher.network is None:
        raise InputError("the teacher's blocks are not known", where="teacher", remedy="name three: teacher=('blocks.9', …)")
    name = find_parts(teacher.network).blocks
    blocks: Any = teacher.network.get_submodule(name)
    if len(blocks) < 3:
        raise InputError(f"the teacher has {len(blocks)} blocks", where="teacher", remedy="name three sub-modules with tokens")
    return tuple(f"{name}.{number}" for number in range(len(blocks) - 3, len(blocks)))
