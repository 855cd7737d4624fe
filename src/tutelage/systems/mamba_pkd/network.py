"""A small Mamba classifier (blocks of Gu, Dao, 2023), its operation count, and a group of such classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.job import TrainingJob
from tutelage.errors import InputError
from tutelage.systems._backbone import Backbone
from tutelage.systems.mamba_pkd.selective_scan import ScanPath, fastest, selective_scan, time_paths


class MambaBlock(nn.Module):
    """Mamba's selective state-space block (section 3.4): [B, L, D] -> [B, L, D], without its norm and residual.

    The parts are named as in the authors' code and in transformers, whose weights load as they are.
    """

    def __init__(self, dim: int, states: int = 16, expand: int = 2, kernel: int = 4, path: ScanPath = "chunked"):
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.path, self.rank, self.states = path, rank, states
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, kernel, padding=kernel - 1, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            step = torch.empty(inner).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step

    def forward(self, u: Tensor) -> Tensor:
        """The answer at step t depends on steps 0..t alone."""
        x, gate = self.in_proj(u).chunk(2, -1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[..., : u.shape[1]].transpose(1, 2))
        step, B, C = self.x_proj(x).split([self.rank, self.states, self.states], -1)
        y = selective_scan(x, F.softplus(self.dt_proj(step)), -self.A_log.exp(), B, C, self.path)
        return self.out_proj((y + self.D * x) * F.silu(gate))

    def flops(self) -> int:
        """Operations a step, a multiply-add counted as 2."""
        inner, width = self.in_proj.out_features // 2, self.in_proj.in_features
        kernel, rank, states = self.conv1d.kernel_size[0], self.rank, self.states
        linear = 2 * width * 2 * inner + 2 * inner * (rank + 2 * states) + 2 * rank * inner + 2 * inner * width
        return linear + 2 * kernel * inner + 9 * inner * states


class MambaResidual(nn.Module):
    """``u + Block(RMSNorm(u))``; ``both``: also over the sequence turned round, with the same weights, halved (our choice)."""

    def __init__(self, dim: int, both: bool, **options: int):
        super().__init__()
        self.norm, self.mixer, self.both = nn.RMSNorm(dim, 1e-5), MambaBlock(dim, **options), both  # type: ignore[arg-type]

    def forward(self, u: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = self.norm(u)
        if self.both:
            return u + (self.mixer(x) + self.mixer(x.flip(1)).flip(1)) / 2
        return u + self.mixer(x)


class MambaClassifier(Backbone):
    """Images as sequences through Mamba blocks: patches, Linear to ``dim``, ``depth`` blocks, LayerNorm, mean over
    steps, Linear.

    ``patch`` (height, width), in raster order; ``(1, W)`` makes a step of each row of pixels (the default for digits,
    here ``patch=None`` with ``size`` = W). A stage is a block; its map [B, width, H / ph, W / pw], the stride that of the
    patch's height. The scan reads one way; ``bidirectional`` reads both. No sizes were published: ``dim``, ``depth``
    and ``states`` are free (our choice).

    Raises:
        InputError: images that the patches do not divide.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        width: int = 64,
        depth: int = 2,
        states: int = 16,
        expand: int = 2,
        patch: tuple[int, int] | None = (4, 4),
        size: int = 32,
        bidirectional: bool = False,
    ):
        self.patch = patch or (1, size)
        super().__init__(num_classes, in_chans, [(f"blocks.{i}", self.patch[0], width) for i in range(depth)])
        self.embed = nn.Linear(in_chans * self.patch[0] * self.patch[1], width)
        self.blocks = nn.ModuleList(MambaResidual(width, bidirectional, states=states, expand=expand) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward_stages(self, images: Tensor) -> list[Tensor]:
        """See :class:`Backbone`."""
        (tall, wide), (height, width) = self.patch, images.shape[2:]
        grid = images.unflatten(3, (width // wide, wide)).unflatten(2, (height // tall, tall))
        u = self.embed(grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        answers = []
        for block in self.blocks:
            u = block(u)
            answers.append(u.transpose(1, 2).unflatten(2, (height // tall, width // wide)))
        return answers

    def forward_head(self, maps: Tensor) -> Tensor:
        """See :class:`Backbone`."""
        return self.head(self.norm(maps.flatten(2).transpose(1, 2)).mean(1))

    def check_sides(self, sides: Sequence[int]) -> None:
        """See :class:`Backbone`."""
        fits = [max(1, round(side / part)) * part for side, part in zip(sides, self.patch, strict=True)]
        if self.patch[0] == 1:
            fits[1] = self.patch[1]
        if list(sides) != fits:
            raise InputError(
                f"patches of {self.patch[0]}x{self.patch[1]} do not fit {sides[0]}x{sides[1]}",
                where="images",
                remedy=f"{fits[0]}x{fits[1]} fits",
            )

    def flops(self, height: int, width: int) -> int:
        """Operations for one image, a multiply-add counted as 2: blocks by :meth:`MambaBlock.flops`, embedding, head."""
        steps = (height // self.patch[0]) * (width // self.patch[1])
        blocks = sum(block.mixer.flops() * (2 if block.both else 1) for block in self.blocks)
        return steps * (blocks + 2 * self.embed.weight.numel()) + 2 * self.head.weight.numel()

    def tune(self, images: Tensor, rounds: int = 3) -> dict[str, float]:
        """Take the scan that is fastest for batches like ``images``, by timed forward and backward passes, and return
        the median milliseconds of each. The paths round differently: tune before training, not in its middle."""
        steps = (images.shape[2] // self.patch[0]) * (images.shape[3] // self.patch[1])
        mixer = self.blocks[0].mixer
        seconds = time_paths(len(images), steps, *mixer.A_log.shape, device=images.device, rounds=rounds)
        for block in self.blocks:
            block.mixer.path = fastest(seconds)
        return {path: 1000 * median(values) for path, values in seconds.items()}

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """See :class:`Backbone`."""
        return cls.toy_job(seed, image_size=16, width=8, depth=1, states=4)


Combine = Literal["residual", "average", "boost"]


class ClassifierGroup(nn.Module):
    """Weak classifiers that answer together: [B, ...] -> logits [B, C], their sum (``residual``) or mean (``average``,
    ``boost``, which differ in how members are trained).

    Only the first ``used`` of them answer: the ones that training has reached; a fresh group uses all.

    Raises:
        InputError: no member.
    """

    used: Tensor

    def __init__(self, students: Sequence[nn.Module], combine: Combine = "residual"):
        if not students:
            raise InputError("a group has at least one member", where="students")
        super().__init__()
        self.students, self.combine = nn.ModuleList(students), combine
        self.register_buffer("used", torch.tensor(len(students)))

    def joined(self, total: Tensor, count: int) -> Tensor:
        """The group's logits from the sum of those of ``count`` members."""
        return total / count if self.combine != "residual" and count else total

    def forward(self, images: Tensor) -> Tensor:
        """The group's logits."""
        return self.partial(images)[-1]

    def partial(self, images: Tensor) -> list[Tensor]:
        """The group's logits after one member, after two, and so on."""
        answers: list[Tensor] = []
        total: Tensor | float = 0.0
        for count, student in enumerate(self.students[: int(self.used)], 1):
            total = total + student(images)
            answers.append(self.joined(total, count))
        return answers

    @torch.no_grad()
    def anytime(self, images: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """(logits [B, C], members asked [B]): each image stops at the first group whose largest probability reaches
        ``threshold``; 0 asks one member, more than 1 all."""
        waiting = torch.arange(len(images), device=images.device)
        members_used = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        total: Tensor | None = None
        answers = images.new_zeros(len(images), 0)
        for count, student in enumerate(self.students[: int(self.used)], 1):
            logits = student(images[waiting])
            if total is None:
                total, answers = logits.new_zeros(logits.shape), logits.new_zeros(logits.shape)
            total[waiting] += logits
            answers[waiting], members_used[waiting] = self.joined(total[waiting], count), count
            waiting = waiting[answers[waiting].softmax(-1).amax(-1) < threshold]
            if not len(waiting):
                break
        return answers, members_used
