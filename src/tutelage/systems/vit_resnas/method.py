"""ViT-ResNAS: searching for multi-stage vision transformers (Liao, Karaman, Sze, 2021, arXiv 2109.00642)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.losses import cross_entropy
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed, class_ids, toy_images
from tutelage.systems.vit_resnas.network import ViTRes
from tutelage.systems.vit_resnas.search_space import (
    Architecture,
    ImportanceRanks,
    SearchSpace,
    masks_of,
    ranks_of,
    reorder,
    space_of,
    spread,
)


@system("vit-resnas", kind="backbone")
class ViTResNAS(Method):
    """ViT-ResNAS: a three-stage transformer with residual spatial reduction, and the search for its widths and depths.

    This method trains the super-network: its largest form, :class:`ViTRes` built from ``SearchSpace.options()``. A batch is
    cut into sub-batches of ``sub_batch`` samples; every choice (width of a stage; heads, MLP units and existence of a
    block) draws its own random permutation of its options over the sub-batches, so that one pass trains many
    sub-networks, each by masks. Layer norms see the kept channels alone. Over ``warmup`` epochs the options grow from
    the largest one, ``1 + floor(epoch (K - 1) / warmup)`` of K; at the start of each of these epochs heads and MLP units
    are sorted by their summed absolute weights, and what is kept is what comes first. The order is held beside the
    weights, which stay where they are until the export, so that the optimiser's moments stay with theirs (our choice).

    The search is ``search.evolve`` with ``space.sliced`` networks as candidates: no fine-tuning. The winner is trained by
    this same method with ``space=None``. Loss: cross-entropy of the class token plus that of the patches,
    ``L = CE(class) + CE(patches)``. ``mixing``: every other sample by CutMix in whole cells of the last grid (Beta(1, 1)),
    each patch with the label of where it came from; the rest by Mixup (Beta(0.8, 0.8)); one ratio a batch for each (our choice).

    Labels: class ids [B] or probabilities [B, K]. Published: 120 epochs for the super-network with 30 of warm-up, 300 for
    the winner. Figures of the paper (Tiny 80.8 % at 1.8 GMACs) need ImageNet.
    """

    Network = ViTRes

    tasks = ("classification",)
    needs_teacher = False
    needs_labels = True

    @dataclass(frozen=True)
    class Config:
        """``space``: a :class:`SearchSpace`, the name of one, or None: plain training. ``warmup`` in epochs, 0: all options
        from the start."""

        space: SearchSpace | str | None = "tiny"
        sub_batch: int = 64
        warmup: int = 30
        mixing: bool = True

        def __post_init__(self) -> None:
            if self.space is not None:
                space_of(self.space)
            if self.sub_batch < 1 or self.warmup < 0:
                raise InputError(
                    f"sub_batch {self.sub_batch}, warmup {self.warmup}",
                    where="sub_batch",
                    remedy="1 or more samples, 0 or more epochs",
                )

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Checks that the student is the space's super-network, and puts every head and unit in its own place."""
        if not isinstance(student, ViTRes) or student.patch_head is None:
            raise InputError("the student is no ViTRes with a patch head", where="student", remedy="ViTRes(…, patch_head=True)")
        self.space = None if self.config.space is None else space_of(self.config.space)
        if self.space is None:
            return
        wanted = self.space.options()
        if any(student.config[name] != wanted[name] for name in wanted):
            raise InputError(
                "the student is not the largest network of the space", where="student", remedy="ViTRes(…, **space.options())"
            )
        for s, stage in enumerate(student.stages):
            for place, block in enumerate(stage):  # type: ignore[arg-type]
                for name, size in (("heads", block.heads), ("units", block.enter.out_features)):
                    self.register_buffer(f"{name}_{s}_{place}", torch.arange(size))

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The two heads of mixed images through drawn sub-networks; their labels come back as the second part."""
        assert isinstance(student, ViTRes)
        images, targets = batch.inputs, {"label": batch.labels}
        grid = student.size // student.feature_info[-1].stride
        if self.config.mixing:
            images, targets["label"], targets["patches"] = mix_tokens(images, class_ids(batch.labels), student.num_classes, grid)
        else:
            targets["patches"] = batch.labels.repeat_interleave(grid**2, 0)
        masks = None
        if self.space is not None:
            if self._sorts():
                self._sort(student)
            drawn = self.draw(-(-len(images) // self.config.sub_batch))
            counts = torch.full((len(drawn),), self.config.sub_batch, device=images.device)
            counts[-1] = len(images) - self.config.sub_batch * (len(drawn) - 1)
            masks = spread(masks_of(self.space, drawn, self.ranks(), images), counts)
        return student.heads_of(images, masks), targets

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label`` of the class token and ``patches``: cross-entropies."""
        return {
            "label": cross_entropy(student["logits"], teacher["label"], batch.weights),
            "patches": cross_entropy(student["patches"].flatten(0, 1), teacher["patches"]),
        }

    def export(self, student: nn.Module) -> nn.Module:
        """The network with its heads and units in the order of their ranks: leading slices are its sub-networks."""
        exported = super().export(student)
        if getattr(self, "space", None) is not None:
            for stage, ranks in zip(exported.stages, self.ranks()):
                for block, order in zip(stage, ranks):
                    reorder(block, order)
        return exported

    # -- what is drawn

    def ranks(self) -> list[list[ImportanceRanks]]:
        """The order of heads and units of every block."""
        assert self.space is not None
        places = [(s, range(self.space.depth)) for s in range(len(self.space.head))]
        return [
            [ImportanceRanks(*(self.get_buffer(f"{name}_{s}_{j}") for name in ImportanceRanks._fields)) for j in own]
            for s, own in places
        ]

    def options(self, count: int) -> int:
        """How many of ``count`` options, from the largest, may be drawn now."""
        epoch, warmup = int(self.progress.epoch), self.config.warmup
        return count if epoch >= warmup else 1 + epoch * (count - 1) // warmup

    def draw(self, count: int) -> list[Architecture]:
        """``count`` sub-networks by the global generator: of every choice a permutation of its options, again and again."""
        space = self.space
        assert space is not None

        def column(choices: tuple[int, ...]) -> list[int]:
            options = self.options(len(choices))
            turns = torch.cat([torch.randperm(options) for _ in range(-(-count // options))])
            return [choices[i] for i in turns[:count].tolist()]

        widths = [column(choices) for choices in space.widths]
        genes: list[list[list[tuple[int, int] | None]]] = [[] for _ in range(count)]
        for heads, units in zip(space.heads, space.units):
            drawn = [(column(heads), column(units)) for _ in range(space.depth)]
            present = [column((1, 0)) if place in space.optional else [1] * count for place in range(space.depth)]
            for row in range(count):
                there = space.settled([bool(column[row]) for column in present])
                genes[row].append([(h[row], m[row]) if here else None for (h, m), here in zip(drawn, there)])
        return [
            Architecture(tuple(one[row] for one in widths), tuple(tuple(stage) for stage in genes[row])) for row in range(count)
        ]

    def _sorts(self) -> bool:
        """Whether this is the first pass of an epoch of the warm-up, but for the first epoch."""
        now = self.progress
        before = now.epoch - now.epochs / max(1, now.steps)
        return now.micro == 0 and 0 < int(now.epoch) <= self.config.warmup and int(now.epoch) > int(max(0.0, before))

    def _sort(self, student: ViTRes) -> None:
        for s, stage in enumerate(student.stages):
            for place, block in enumerate(stage):  # type: ignore[arg-type]
                for name, order in ranks_of(block)._asdict().items():
                    self.get_buffer(f"{name}_{s}_{place}").copy_(order)

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of two seconds: a super-network of two widths, heads and depths."""
        space = SearchSpace(((8, 4),) * 2 + ((16, 8),), ((2, 1),) * 3, ((8, 4),) * 3, 2, (1,), (4, 4, 4))
        student = build_with_seed(lambda: ViTRes(4, 1, **space.options(), patch=4, size=16), seed, "student")
        method = cls(space=space, sub_batch=4, warmup=1)
        return TrainingJob(
            student,
            None,
            method,
            toy_images(seed, image_size=16),
            TrainingSettings(steps=6, batch_size=16, seed=seed),
            "vit-resnas",
        )


def mix_tokens(images: Tensor, labels: Tensor, classes: int, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token mixing: images [B, C, H, W], labels [B] or [B, K] -> images, class labels [B, K], patch labels [B grid^2, K].

    Rows 0, 2, … by CutMix in cells of a ``grid`` x ``grid`` net, rows 1, 3, … by Mixup, each with its group in reverse.
    Drawn from the global generator.
    """
    whole = F.one_hot(labels, classes).to(images.dtype) if labels.ndim == 1 else labels
    images, by_patch = images.clone(), whole[:, None, None].expand(-1, grid, grid, -1).clone()
    cut, blend = slice(0, None, 2), slice(1, None, 2)
    top, bottom, left, right = _cells(grid)
    height, width = (side // grid for side in images.shape[2:])
    pixels = (..., slice(top * height, bottom * height), slice(left * width, right * width))
    images[cut][pixels] = images[cut].flip(0)[pixels]
    by_patch[cut][:, top:bottom, left:right] = by_patch[cut].flip(0)[:, top:bottom, left:right]
    kept = float(torch.distributions.Beta(0.8, 0.8).sample())
    for part in (images, by_patch):
        part[blend] = kept * part[blend] + (1 - kept) * part[blend].flip(0)
    return images, by_patch.mean((1, 2)), by_patch.flatten(0, 2)


def _cells(grid: int) -> tuple[int, int, int, int]:
    """A random box (top, bottom, left, right) of a grid, of about a share 1 - Beta(1, 1) of its area."""
    side = round(grid * float(1 - torch.rand(())) ** 0.5)
    row, column = (int(torch.randint(grid - side + 1, ())) for _ in range(2))
    return row, row + side, column, column + side


def hold_out(labels: Tensor, each: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(rows to train on, rows to score candidates on): ``each`` samples of every class [N] are held out, 25 as published.

    Raises:
        InputError: a class has no more samples than that.
    """
    held = []
    for k in labels.unique():
        rows = (labels == k).nonzero()[:, 0]
        if len(rows) <= each:
            raise InputError(f"class {int(k)} has {len(rows)} samples", where="hold_out", remedy=f"more than {each}")
        held.append(rows[torch.randperm(len(rows), generator=rng)[:each]])
    chosen = torch.cat(held).sort().values
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False
    return rest.nonzero()[:, 0], chosen


def masked_forward(network: ViTRes, space: SearchSpace, architecture: Architecture, images: Tensor) -> Mapping[str, Tensor]:
    """The heads of the sub-network ``architecture`` of a super-network in rank order, by masks."""
    masks = masks_of(space, [architecture], None, images)
    return network.heads_of(images, spread(masks, torch.tensor([len(images)], device=images.device)))
