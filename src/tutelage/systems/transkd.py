"""TransKD: transformer distillation for semantic segmentation (Liu et al., 2022, arXiv 2202.13393)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch, ReplayableData, TensorData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.losses import channel_divergence
from tutelage.distillation.map_fusion import MapFusion, SafeBatchNorm2d, fuse_maps, hierarchical_context
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.registry import system
from tutelage.seeds import torch_rng
from tutelage.systems._toy import HierarchicalTransformer, build_with_seed

PEA_WEIGHTS = (0.1, 0.1, 0.5, 1.0)

# -- modules of the method, dropped at export ------------------------------------------------------------------------


class CrossSelectiveFusion(MapFusion):
    """One stage of cross selective fusion: the student's map, fused with the deeper stage's, as the teacher's.

    The weights of x and y: for each channel a softmax over two branches of a gate on the mean of x + y.
    """

    def __init__(self, in_chans: int, out_chans: int, middle: int, fuses: bool):
        super().__init__(in_chans, out_chans, middle, fuses)
        self.squeeze: nn.Module | None = None
        if fuses:
            narrow = max(middle // 16, 32)
            self.squeeze, self.squeeze_norm = nn.Conv2d(middle, narrow, 1, bias=False), SafeBatchNorm2d(narrow)
            self.branches = nn.ModuleList(nn.Conv2d(narrow, middle, 1) for _ in range(2))

    def gate(self, x: Tensor, y: Tensor) -> Tensor:
        """See :class:`MapFusion`: [2, B, middle, 1, 1], summing to 1 over the first dimension."""
        assert self.squeeze is not None
        z = self.squeeze_norm(self.squeeze((x + y).mean((2, 3), keepdim=True)))
        return torch.stack([branch(z.relu()) for branch in self.branches]).softmax(0)


class GlobalLocalMixer(nn.Module):
    """``alpha MHSA(E) + beta GLU(E)`` of tokens [B, N, C]: attention without norm, residual or bias on q, k, v, and
    ``conv1d(E) * sigmoid(conv1d(E))`` with kernel 3. ``add``: plus E. alpha and beta start at 0.5 (our choice: the authors
    leave them uninitialised)."""

    def __init__(self, dim: int, heads: int = 8, add: bool = False):
        super().__init__()
        if dim % heads:
            raise InputError(f"{heads} heads do not divide {dim} channels", where="heads", remedy="choose a divisor")
        self.heads, self.add = heads, add
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.value, self.gate = nn.Conv1d(dim, dim, 3, padding=1), nn.Conv1d(dim, dim, 3, padding=1)
        self.alpha, self.beta = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.5))

    def forward(self, tokens: Tensor) -> Tensor:
        """The mixed tokens."""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        line = tokens.transpose(1, 2)
        local = (self.value(line) * self.gate(line).sigmoid()).transpose(1, 2)
        mixed = self.alpha * attended + self.beta * local
        return tokens + mixed if self.add else mixed


class EmbeddingAssistant(nn.Module):
    """The embedding assistant of one stage: an overlapped patch embedding of the teacher's width, and the two learned
    weights of ``u A(E) + v EA``."""

    def __init__(self, in_chans: int, dim: int, stage: int):
        super().__init__()
        kernel, stride = (3, 2) if stage else (7, 4)
        self.conv, self.norm = nn.Conv2d(in_chans, dim, kernel, stride, kernel // 2), nn.LayerNorm(dim)
        self.u, self.v = (nn.Parameter(torch.tensor(start + 0.1 * stage)) for start in (0.1, 0.5))

    def forward(self, before: Tensor, aligned: Tensor) -> Tensor:
        """before: the image or the student's map of the stage before; aligned [B, N, width]."""
        assistant = self.norm(self.conv(before).flatten(2).transpose(1, 2))
        return self.u * aligned + self.v * assistant


# -- the method ------------------------------------------------------------------------------------------------------


@system("transkd", kind="distillation")
class TransKD(Method):
    """TransKD: a small hierarchical segmenter copies feature maps and patch embeddings of a large one, stage by stage.

    ``L = CE + sum_i HCL(fused_i, F_i^T) + sum_i w_i MSE(A_i(E_i), E_i^T)``: F_i the map after stage i, fused from the
    deepest to the finest (:class:`CrossSelectiveFusion`, :func:`hierarchical_context`), E_i the patch embedding before its blocks,
    A_i a linear layer, w = 0.1, 0.1, 0.5, 1. Variant ``gl`` puts :class:`GlobalLocalMixer` before the last A_i; ``ea``
    adds an :class:`EmbeddingAssistant` to each. ``feature = "cwd"`` puts :func:`channel_divergence` in HCL's place.

    Heads: ``logits`` [B, K, h, w] of the student; labels [B, h', w'] class ids, brought to h x w by nearest neighbours,
    ``ignore`` left out of the cross-entropy. Taps: the stages' patch embeddings (tokens [B, N, C]) and maps (or tokens,
    as in SegFormer of ``transformers``: ``segformer.stages.0.patch_embeddings`` and ``segformer.stages.0.layer_norm`` in
    version 5, ``segformer.encoder.patch_embeddings.0`` and ``segformer.encoder.layer_norm.0`` before).
    Everything but the student is dropped at export. Published: AdamW at 6e-5, weight decay 0.01, linear decay.

    Raises:
        InputError: not as many taps as weights, or the maps of student and teacher differ in size.
    """

    tasks = ("segmentation",)
    needs_labels = True

    @dataclass(frozen=True)
    class Config:
        """``features``, ``embeddings``: weights of the two losses, and ``pea`` of the stages in the second;
        ``class_weights``: of the cross-entropy, one a class."""

        variant: Literal["base", "gl", "ea"] = "base"
        feature: Literal["hcl", "cwd"] = "hcl"
        features: float = 1.0
        embeddings: float = 1.0
        pea: tuple[float, ...] = PEA_WEIGHTS
        middle: int = 64
        mixer_heads: int = 8
        mixer_add: bool = False
        class_weights: tuple[float, ...] = ()
        ignore: int = 255
        student_maps: tuple[str, ...] = tuple(f"encoder.stages.{i}" for i in range(4))
        student_embeddings: tuple[str, ...] = tuple(f"encoder.stages.{i}.embed" for i in range(4))
        teacher_maps: tuple[str, ...] = tuple(f"encoder.stages.{i}" for i in range(4))
        teacher_embeddings: tuple[str, ...] = tuple(f"encoder.stages.{i}.embed" for i in range(4))

        def __post_init__(self) -> None:
            for name in ("student_maps", "student_embeddings", "teacher_maps", "teacher_embeddings"):
                if len(getattr(self, name)) != len(self.pea):
                    raise InputError(
                        f"{len(getattr(self, name))} taps for {len(self.pea)} stages", where=name, remedy="one a stage"
                    )

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Fusion and alignment from the observed shapes; see :class:`Method`."""
        assert teacher is not None
        config = self.config
        self._taps = FeatureHooks(student, [*config.student_maps, *config.student_embeddings])
        teacher.request_features(*config.teacher_maps, *config.teacher_embeddings)
        teacher_outputs, student_features = teacher(example), self._tapped(student, example)[1]
        size = example.inputs.shape[2:]
        maps, goals = (
            self._maps(student_features, config.student_maps, size),
            self._maps(teacher_outputs, config.teacher_maps, size),
        )
        for name, one, other in zip(config.student_maps, maps, goals):
            if one.shape[2:] != other.shape[2:]:
                raise InputError(
                    f"student's map {list(one.shape[2:])}, teacher's {list(other.shape[2:])}",
                    where=name,
                    remedy="both need the same strides",
                )
        last = len(maps) - 1
        self.fusion = nn.ModuleList(
            CrossSelectiveFusion(one.shape[1], other.shape[1], config.middle, i < last)
            for i, (one, other) in enumerate(zip(maps, goals))
        )
        inner = [student_features[name].shape[2] for name in config.student_embeddings]
        outer = [teacher_outputs[name].shape[2] for name in config.teacher_embeddings]
        self.align = nn.ModuleList(nn.Linear(a, b) for a, b in zip(inner, outer))
        self.mixer: nn.Module = nn.Identity()
        if config.variant == "gl":
            self.mixer = GlobalLocalMixer(inner[-1], config.mixer_heads, config.mixer_add)
        if config.variant == "ea":
            before = [example.inputs.shape[1], *(one.shape[1] for one in maps)]
            self.assistants = nn.ModuleList(EmbeddingAssistant(a, b, i) for i, (a, b) in enumerate(zip(before, outer)))
        self.register_buffer("class_weights", torch.tensor(config.class_weights) if config.class_weights else None)

    def _tapped(self, student: nn.Module, batch: Batch) -> tuple[Output, Output]:
        with self._taps as taken:
            student_outputs = forward_heads(student, batch.inputs)
        return student_outputs, taken

    @staticmethod
    def _maps(outputs: Output, names: Sequence[str], image: Sequence[int]) -> list[Tensor]:
        return [as_map(outputs[name], image) for name in names]

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """``logits``; ``map0`` … and ``embedding0`` … of both, the student's in the teacher's shape."""
        assert teacher is not None
        config, size = self.config, batch.inputs.shape[2:]
        teacher_outputs = teacher(batch)
        student_outputs, taken = self._tapped(student, batch)
        maps = self._maps(taken, config.student_maps, size)
        student_terms: Output = {"logits": student_outputs["logits"]}
        student_terms |= {f"map{i}": fused for i, fused in enumerate(fuse_maps(self.fusion, maps))}
        for i, name in enumerate(config.student_embeddings):
            tokens = taken[name]
            aligned = self.align[i](self.mixer(tokens) if i == len(maps) - 1 else tokens)
            if config.variant == "ea":
                aligned = self.assistants[i](maps[i - 1] if i else batch.inputs, aligned)
            student_terms[f"embedding{i}"] = aligned
        goals = self._maps(teacher_outputs, config.teacher_maps, size)
        teacher_terms = {f"map{i}": goal for i, goal in enumerate(goals)}
        teacher_terms |= {f"embedding{i}": teacher_outputs[name] for i, name in enumerate(config.teacher_embeddings)}
        return student_terms, teacher_terms

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return {self.config.feature: self.config.features, "pea": self.config.embeddings}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``, ``hcl`` (or ``cwd``), summed over stages, and ``pea``, summed with its stages' weights."""
        config = self.config
        distance = hierarchical_context if config.feature == "hcl" else channel_divergence
        maps = [distance(student[f"map{i}"], teacher[f"map{i}"]) for i in range(len(config.pea))]
        tokens = [
            weight * F.mse_loss(student[f"embedding{i}"], teacher[f"embedding{i}"].detach()) for i, weight in enumerate(config.pea)
        ]
        label = segmentation_loss(student["logits"], batch.labels, self.class_weights, config.ignore)
        return {"label": label, config.feature: torch.stack(maps).sum(), "pea": torch.stack(tokens).sum()}

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training job of a second or two: coloured squares, with the mixer in it."""
        student = build_with_seed(lambda: SmallSegmenter([width * dim for dim in (8, 8, 16, 16)], 3), seed, "student")
        teacher = build_with_seed(lambda: SmallSegmenter([width * dim for dim in (8, 16, 16, 24)], 3), seed, "teacher")
        rng = torch_rng(seed, "squares")
        labels = torch.randint(0, 3, (16, 2, 2), generator=rng).repeat_interleave(16, 1).repeat_interleave(16, 2)
        images = F.one_hot(labels, 3).movedim(-1, 1) + 0.3 * torch.randn(16, 3, 32, 32, generator=rng)
        method = cls(variant="gl", middle=16, mixer_heads=2)
        return TrainingJob(
            student, teacher, method, TensorData(images, labels), TrainingSettings(steps=6, batch_size=8, seed=seed), "transkd"
        )


def as_map(features: Tensor, image: Sequence[int]) -> Tensor:
    """A map as itself; tokens [B, h w, C] of an ``image`` (height, width), halved some times, as a map [B, C, h, w].

    Raises:
        InputError: the tokens do not fit the image.
    """
    if features.ndim == 4:
        return features
    stride = 1
    while (size := tuple(-(-side // stride) for side in image)) and math.prod(size) > features.shape[1]:
        stride *= 2
    if math.prod(size) != features.shape[1]:
        raise InputError(f"{features.shape[1]} tokens of an image {list(image)}", where="tap", remedy="strides are powers of 2")
    return features.transpose(1, 2).unflatten(2, size)


def segmentation_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None, ignore: int = 255) -> Tensor:
    """Class-weighted cross-entropy at the logits' size [B, K, h, w]; labels [B, h', w'] are brought to it by nearest
    neighbours; 0 where every label is ``ignore``."""
    if labels.shape[1:] != logits.shape[2:]:
        labels = F.interpolate(labels[:, None].float(), size=logits.shape[2:])[:, 0].long()
    labels = labels.masked_fill(labels < 0, ignore)
    loss = F.cross_entropy(logits, labels, weight=weights, ignore_index=ignore, reduction="sum")
    counted = labels != ignore
    mass = counted.sum() if weights is None else weights[labels[counted]].sum()
    return loss / mass.clamp_min(1e-12)


class SmallSegmenter(nn.Module):
    """Hierarchical transformer, strides 4 to 32, and an all-linear decoder: [B, 3, H, W] -> [B, K, H/4, W/4]."""

    def __init__(self, widths: Sequence[int], classes: int, depth: int = 1, decoder: int = 32, inputs: int = 3):
        super().__init__()
        self.encoder = HierarchicalTransformer(widths, [depth] * len(widths), inputs, first=4, head=8)
        self.decode = nn.ModuleList(nn.Conv2d(width, decoder, 1) for width in widths)
        self.fuse = nn.Sequential(nn.Conv2d(decoder * len(widths), decoder, 1, bias=False), nn.BatchNorm2d(decoder), nn.ReLU())
        self.classify = nn.Conv2d(decoder, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits at a quarter of the size."""
        maps = self.encoder(images)
        size = maps[0].shape[2:]
        decoded = [F.interpolate(part(x), size=size, mode="bilinear") for part, x in zip(self.decode, maps)]
        return self.classify(self.fuse(torch.cat(decoded, 1)))


def mean_iou(confusion: Tensor) -> float:
    """Mean intersection over union of a confusion matrix [K, K]; classes that occur nowhere are left out. In 0..1."""
    hit = confusion.diag().double()
    union = confusion.sum(0) + confusion.sum(1) - hit
    return (hit[union > 0] / union[union > 0]).mean().item()
