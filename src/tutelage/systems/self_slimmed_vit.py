"""Self-slimmed vision transformer, "SiT" (Zong et al., 2021, arXiv 2111.12624): softly merged tokens, recalibrated by distillation.

Not to be confused with the self-supervised vision transformer of the same short name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.networks.attention import SelfAttention
from tutelage.networks.layers import DropPath, Mlp, drop_path_rates, init_weights
from tutelage.registry import system
from tutelage.systems._backbone import Backbone, Variant
from tutelage.systems._toy import build_with_seed, toy_images

# -- the network -----------------------------------------------------------------------------------------------------

_STEM = ((8, 2), (4, 2), (2, 2), (1, 2))  # (width divided by, stride) of each convolution
_LARGE_STEM = ((8, 2), (8, 1), (8, 1), (4, 2), (2, 2), (1, 2))


class TokenSlimming(nn.Module):
    """Token slimming module (section 3.2): [B, N, C] -> [B, count, C], each new token a convex combination of all old
    ones, ``A^T X`` with ``A = softmax over tokens(scale * W2 GELU(W1 LN(X)))``."""

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Sequential(nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, count))
        self.scale = nn.Parameter(torch.ones(()))

    def shares(self, tokens: Tensor) -> Tensor:
        """A [B, N, count]: each column positive, of sum 1."""
        return (self.scale * self.score(self.norm(tokens))).softmax(1)

    def forward(self, tokens: Tensor) -> Tensor:
        """The merged tokens."""
        return self.shares(tokens).transpose(1, 2) @ tokens


class ReverseSlimming(nn.Module):
    """Reverse token slimming module (section 3.3), of training only: [B, n, C] -> [B, N, C]. An MLP over tokens
    (n -> 4 N -> N) after a norm, then ``y + Mlp(LN(y))`` over channels."""

    def __init__(self, dim: int, in_tokens: int, out_tokens: int):
        super().__init__()
        self.before, self.after = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.tokens = nn.Sequential(nn.Linear(in_tokens, 4 * out_tokens), nn.GELU(), nn.Linear(4 * out_tokens, out_tokens))
        self.channels = Mlp(dim)
        init_weights(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """The reconstructed tokens."""
        y = self.tokens(self.before(tokens).transpose(1, 2)).transpose(1, 2)
        return y + self.channels(self.after(y))


class SlimBlock(nn.Module):
    """A pre-norm block whose residual branches are divided by ``skip``; then, where ``count`` is given, its patch tokens
    are slimmed to so many. Tokens [B, special + N, C]; the first ``special`` (the class token) are never slimmed."""

    def __init__(self, dim: int, heads: int, skip: float, rate: float, count: int | None, special: int = 1):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.mlp = SelfAttention(dim, heads, qkv_bias=False, fused=True), Mlp(dim, 3)
        self.drop, self.skip, self.special = DropPath(rate), skip, special
        self.slim = TokenSlimming(dim, count) if count is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, special + N, C] -> [B, special + (count or N), C]."""
        x = x + self.drop(self.attention(self.norm1(x))) / self.skip
        x = x + self.drop(self.mlp(self.norm2(x))) / self.skip
        return x if self.slim is None else torch.cat([x[:, : self.special], self.slim(x[:, self.special :])], 1)


def _published(
    width: int, heads: int, stages: tuple[int, ...], params: int, macs: float, host: tuple[int, float], **more: Any
) -> tuple[Variant, Variant]:
    size = more.get("size", 224)
    config = {"width": width, "heads": heads, "stages": stages, **more}
    return Variant(config, params, macs, size), Variant({**config, "ratio": 1.0}, host[0], host[1], size)


_T = _published(320, 5, (1, 1, 1, 11), 15_872_934, 0.99e9, (15_689_400, 3.47e9))
_XS = _published(384, 6, (1, 1, 1, 13), 25_625_774, 1.49e9, (25_368_704, 5.55e9))
_S = _published(384, 6, (9, 3, 2, 2), 25_625_774, 4.03e9, (25_368_704, 5.55e9))
_M = _published(512, 8, (10, 4, 3, 3), 55_642_302, 8.04e9, (55_201_296, 11.86e9))
_L = _published(
    768, 12, (10, 4, 3, 7), 148_168_398, 34.3e9, (147_168_944, 56.0e9), size=288, skip=3.0, stem=_LARGE_STEM
)  # fmt: skip


class SlimViT(Backbone):
    """LV-ViT (Jiang et al., 2021) with token slimming after every stage but the last: patch tokens N, N/2, N/4, …

    ``stages``: blocks a stage; after stage i ``floor(N ratio^i)`` patch tokens remain; ``ratio = 1``: the host itself,
    without slimming. ``stem``: (divisor of the width, stride) of each 3x3 convolution. ``skip``: what residual branches
    are divided by. A stage's map is [B, width, H/16, W/16] before any slimming and [B, width, tokens, 1] after.
    Parameter counts include an auxiliary head over patch tokens, of the host's own training, that is never asked here.
    The class token is the first; images have exactly ``size`` x ``size`` pixels. ``distillation_token``: a second one
    behind it, with a head of its own (``distillation_head``); the answer is the mean of both heads' logits.

    Raises:
        InputError: a size that the stem does not divide, a ratio that leaves no token, or images of another size.
    """

    VARIANTS: ClassVar[Mapping[str, Variant]] = {
        "t": _T[0],
        "xs": _XS[0],
        "s": _S[0],
        "m": _M[0],
        "l": _L[0],
        "host-t": _T[1],
        "host-s": _S[1],
        "host-m": _M[1],
        "host-l": _L[1],
    }

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        width: int = 320,
        heads: int = 5,
        stages: Sequence[int] = (1, 1, 1, 11),
        ratio: float = 0.5,
        size: int = 224,
        stem: Sequence[tuple[int, int]] = _STEM,
        skip: float = 2.0,
        drop_path: float = 0.0,
        auxiliary: bool = True,
        distillation_token: bool = False,
    ):
        stride = 1
        for _, step in stem:
            stride *= step
        if size < stride or size % stride:
            raise InputError(f"a stem of stride {stride} does not divide {size}", where="size", remedy=f"a multiple of {stride}")
        if width % heads or width % max(divisor for divisor, _ in stem):
            raise InputError(f"{heads} heads or the stem do not divide {width}", where="width", remedy="a multiple of both")
        self.size, self.side = size, size // stride
        self.counts = [int(self.side**2 * ratio**i) for i in range(len(stages))]
        if not 0 < ratio <= 1 or self.counts[-1] < 1:
            raise InputError(f"{ratio} leaves {self.counts[-1]} tokens", where="ratio", remedy="take more, up to 1")
        super().__init__(num_classes, in_chans, [(f"stages.{i}", stride, width) for i in range(len(stages))])
        self.depths = tuple(stages)
        self.embed = _stem(in_chans, width, stem)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, width)) if distillation_token else None
        self.special = 2 if distillation_token else 1
        self.positions = nn.Parameter(torch.zeros(1, self.special + self.side**2, width))
        self.layers = nn.ModuleList()
        for i, rates in enumerate(drop_path_rates(drop_path, stages)):
            slimmed = self.counts[i + 1] if i + 1 < len(stages) and ratio < 1 else None
            for rate in rates:
                last = len(self.layers) + 1 == sum(stages[: i + 1])
                self.layers.append(SlimBlock(width, heads, skip, rate, slimmed if last else None, self.special))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)
        self.distillation_head = nn.Linear(width, num_classes) if distillation_token else None
        self.auxiliary = nn.Linear(width, num_classes).requires_grad_(False) if auxiliary else None
        init_weights(self, convolutions=False)
        for tokens in (self.class_token, self.positions, self.distillation_token):
            if tokens is not None:
                nn.init.trunc_normal_(tokens, std=0.02)

    @property
    def tokens(self) -> list[int]:
        """Patch tokens that leave each layer."""
        counts, now = [], self.side**2
        for layer in self.layers:
            now = layer.slim.score[-1].out_features if isinstance(layer.slim, TokenSlimming) else now
            counts.append(now)
        return counts

    def _through(self, images: Tensor) -> list[Tensor]:
        """The tokens after each stage, class token first."""
        x = self.embed(images).flatten(2).transpose(1, 2)
        special = [token.expand(len(x), -1, -1) for token in (self.class_token, self.distillation_token) if token is not None]
        x = torch.cat([*special, x], 1) + self.positions
        ends, found = {sum(self.depths[: i + 1]) for i in range(len(self.depths))}, []
        for number, layer in enumerate(self.layers, 1):
            x = layer(x)
            if number in ends:
                found.append(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Logits from the class token, or the mean of its and the distillation token's."""
        self.check(images)
        x = self.norm(self._through(images)[-1][:, : self.special])
        logits = self.head(x[:, 0])
        return logits if self.distillation_head is None else (logits + self.distillation_head(x[:, 1])) / 2

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """See :class:`Backbone`."""
        maps = [tokens[:, self.special :].transpose(1, 2) for tokens in self._through(images)]
        return [x.unflatten(2, (self.side, -1)) if x.shape[2] == self.side**2 else x[..., None] for x in maps]

    def check_sides(self, sides: Sequence[int]) -> None:
        """See :class:`Backbone`."""
        if tuple(sides) != (self.size, self.size):
            raise InputError(
                f"images of {sides[0]}x{sides[1]}, the positions are for {self.size}x{self.size}",
                where="images",
                remedy=f"resize to {self.size}, or build it with size={sides[0]}",
            )

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """See :class:`Backbone`."""
        return cls.toy_job(seed, image_size=16, **_TINY)


_TINY: dict[str, Any] = {"width": 16, "heads": 2, "stages": (1, 1, 1), "size": 16, "stem": ((2, 2), (1, 2)), "auxiliary": False}


def _stem(in_chans: int, dim: int, stem: Sequence[tuple[int, int]]) -> nn.Sequential:
    """3x3 convolutions without bias, batch norm after each, GELU between."""
    parts: list[nn.Module] = []
    for divisor, stride in stem:
        outputs = dim // divisor
        parts += [nn.Conv2d(in_chans, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()]
        in_chans = outputs
    return nn.Sequential(*parts[:-1])


_SECOND = "cnn.logits"
"""The second teacher's logits among the teacher's heads."""

# -- the method ------------------------------------------------------------------------------------------------------


@system("self-slimmed-vit", kind="compression")
class SelfSlimmedViT(Method):
    """SiT: a transformer that merges its tokens learns every layer's tokens from its unslimmed self (FRD).

    ``L = CE(z, y) + 2 (1/L) sum_i MSE(R_i(x_i), v_i) + 2 tau^2 KL(softmax(t / tau) || softmax(z / tau))`` with the
    student's patch tokens x_i after layer i (after slimming), the teacher's v_i, and R_i a :class:`ReverseSlimming`
    where x_i has fewer tokens (dropped at export), else the identity; MSE over all elements. ``inherit``: the student
    starts from the teacher's weights in all it shares with it.

    Student and teacher are :class:`SlimViT`, the teacher without slimming, of equal width, depth and size. Heads:
    ``logits`` [B, C]; labels class ids or probabilities. Published: 125 epochs, AdamW at 2e-4 per 512 images without
    warm-up, weight decay 0.05, cosine, DeiT's augmentation.

    A second, convolutional teacher may join: the student then has a distillation token, whose head learns by cross-entropy
    the class that the second teacher finds likeliest (term ``cnn``; ``label`` and ``soft`` stay with the class token)::

        from tutelage.distillation.ensemble import NamedTeachers

        student = SlimViT(ratio=0.5, distillation_token=True)  # answers with the mean of both heads
        tutelage.distill(student, NamedTeachers(host, cnn=convolutional), data, "self-slimmed-vit")

    Raises:
        InputError: other networks, or ones that do not fit each other; a distillation token without a ``cnn`` among the
            teachers, or the reverse.
    """

    Network = SlimViT
    tasks = ("classification",)
    needs_labels = True

    @dataclass(frozen=True)
    class Config:
        """Weights of the token and the soft-label term, and of the second teacher's; ``tau``: temperature; ``inherit``: start
        from the teacher."""

        tokens: float = 2.0
        soft: float = 2.0
        tau: float = 1.0
        inherit: bool = True
        cnn: float = 1.0

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """The reverse modules, the taps, the student's start; see :class:`Method`."""
        host = teacher.network if teacher is not None else None
        if not isinstance(student, SlimViT) or not isinstance(host, SlimViT):
            raise InputError("student and teacher are SlimViT", where="teacher", remedy="the teacher with ratio=1, live")
        shapes = [(len(net.layers), net.side, net.norm.normalized_shape[0]) for net in (student, host)]
        if shapes[0] != shapes[1] or set(host.tokens) != {host.side**2}:
            raise InputError(
                f"student and teacher are of {shapes} layers, tokens a side and channels",
                where="teacher",
                remedy="the same network with ratio=1",
            )
        assert teacher is not None
        if (student.special == 2) != (_SECOND in teacher(example)) or host.special == 2:
            raise InputError(
                "a second teacher and the student's distillation token go together, and the first has no such token",
                where="teacher",
                remedy="NamedTeachers(host, cnn=…) with SlimViT(…, distillation_token=True)",
            )
        if self.config.inherit:
            own, given = student.state_dict(), host.state_dict()
            places = given["positions"]
            given["positions"] = torch.cat([places[:, :1], own["positions"][:, 1 : student.special], places[:, 1:]], 1)
            student.load_state_dict(own | {k: v for k, v in given.items() if k in own and v.shape == own[k].shape})
        self.names = [f"layers.{i}" for i in range(len(student.layers))] if self.config.tokens else []
        many, width = host.side**2, shapes[0][2]
        self.reverse = nn.ModuleList(
            ReverseSlimming(width, few, many) if few < many else nn.Identity() for few in student.tokens if self.names
        )
        self._special = student.special
        self._heads = ["head", "distillation_head"] if self._special == 2 else []
        self._taps = FeatureHooks(student, [*self.names, *self._heads])
        teacher.request_features(*self.names)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """Logits (of the class token), and of each layer the reconstructed and the teacher's patch tokens [B, N, C] under its
        name; with a second teacher also ``cnn``: the distillation token's logits, and that teacher's."""
        assert teacher is not None
        teacher_outputs = teacher(batch)
        with self._taps as taken:
            student_outputs = dict(forward_heads(student, batch.inputs))
        for name, reverse in zip(self.names, self.reverse, strict=True):
            student_outputs[name] = reverse(taken[name][:, self._special :])
        found = {"logits": teacher_outputs["logits"]} | {name: teacher_outputs[name][:, 1:] for name in self.names}
        if self._heads:
            student_outputs |= {"logits": taken["head"], "cnn": taken["distillation_head"]}
            found["cnn"] = teacher_outputs[_SECOND]
        return student_outputs, found

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        weights = {"tokens": self.config.tokens, "soft": self.config.soft}
        return {name: weight for name, weight in weights.items() if weight}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``, ``tokens``, ``soft``, ``cnn``; those of weight 0 are left out."""
        terms = {"label": losses.cross_entropy(student["logits"], batch.labels, batch.weights)}
        if self.names:
            each = [losses.feature_mse(student[name], teacher[name], batch.weights) for name in self.names]
            terms["tokens"] = torch.stack(each).mean()
        if self.config.soft:
            terms["soft"] = losses.kd(student["logits"], teacher["logits"], self.config.tau, batch.weights)
        if "cnn" in teacher:
            answer = teacher["cnn"].argmax(-1)
            terms["cnn"] = self.config.cnn * losses.cross_entropy(student["cnn"], answer, batch.weights)
        return terms

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training job of two seconds: 16 tokens, then 8, then 4."""
        size = {**_TINY, "width": width * _TINY["width"]}
        student = build_with_seed(lambda: SlimViT(4, 1, **size), seed, "student")
        teacher = build_with_seed(lambda: SlimViT(4, 1, ratio=1.0, **size), seed, "teacher")
        return TrainingJob(
            student,
            teacher,
            cls(),
            toy_images(seed, image_size=16),
            TrainingSettings(steps=6, batch_size=16, seed=seed),
            "self-slimmed-vit",
        )
