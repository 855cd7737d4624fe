"""ViT-ResNAS's search space: architectures, their masks, slices, sorting, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.systems.vit_resnas.network import SEARCHED_HEAD, BlockMasks, Masks, ViTRes, ViTResBlock


class Architecture(NamedTuple):
    """A width a stage, and of every block place of every stage (heads, MLP units), or None: no block there."""

    widths: tuple[int, ...]
    blocks: tuple[tuple[tuple[int, int] | None, ...], ...]

    def options(self) -> dict[str, Any]:
        """What to give :class:`ViTRes`."""
        present = [[block for block in stage if block is not None] for stage in self.blocks]
        heads, units = (tuple(tuple(block[part] for block in stage) for stage in present) for part in (0, 1))
        return {"widths": self.widths, "heads": heads, "units": units}


@dataclass(frozen=True)
class SearchSpace:
    """The choices, each list from the largest to the smallest.

    Attributes:
        widths: of every stage.
        heads: of a block in every stage; ``units``: of its MLP.
        depth: places for blocks in a stage; ``optional``: those (from 0) that may be empty. Where one is left empty, so
            are the optional ones after it, up to the next that is not.
        head: channels of a head in every stage.

    Raises:
        InputError: lists that do not fall, or are not one a stage.
    """

    widths: tuple[tuple[int, ...], ...]
    heads: tuple[tuple[int, ...], ...]
    units: tuple[tuple[int, ...], ...]
    depth: int
    optional: tuple[int, ...] = ()
    head: tuple[int, ...] = SEARCHED_HEAD

    def __post_init__(self) -> None:
        for where in ("widths", "heads", "units"):
            lists = getattr(self, where)
            if len(lists) != len(self.head) or any(list(one) != sorted(set(one), reverse=True) or not one for one in lists):
                raise InputError(f"choices {lists}", where=where, remedy="one list a stage, from the largest to the smallest")
        if any(not 0 <= place < self.depth for place in self.optional):
            raise InputError(f"no places {self.optional} of {self.depth}", where="optional", remedy="count from 0")

    @property
    def smallest(self) -> Architecture:
        """Every choice at its smallest, optional places empty."""
        blocks = tuple(
            tuple(None if place in self.optional else (h[-1], m[-1]) for place in range(self.depth))
            for h, m in zip(self.heads, self.units)
        )
        return Architecture(tuple(choices[-1] for choices in self.widths), blocks)

    @property
    def largest(self) -> Architecture:
        """The super-network's own architecture."""
        blocks = tuple(((h[0], m[0]),) * self.depth for h, m in zip(self.heads, self.units))
        return Architecture(tuple(choices[0] for choices in self.widths), blocks)

    def options(self) -> dict[str, Any]:
        """What to give :class:`ViTRes` for the super-network."""
        return {**self.largest.options(), "head": self.head, "patch_head": True}

    def settled(self, present: Sequence[bool]) -> list[bool]:
        """Which places of a stage hold a block, where ``present`` is what was drawn for each."""
        found, dropped = [], False
        for place, wanted in enumerate(present):
            dropped = place in self.optional and (dropped or not wanted)
            found.append(not dropped)
        return found


def _space(widths: tuple[int, ...], heads: tuple[int, ...], late: tuple[int, ...], units: int, depth: int) -> SearchSpace:
    steps = tuple(units * 2**i for i in range(3))
    return SearchSpace(
        tuple(tuple(factor * width for width in widths) for factor in (1, 2, 4)),
        (heads, late, late),
        tuple(tuple(top * k // 12 for k in range(12, 5, -1)) for top in steps),
        depth,
        (1, 3, 5),
    )


SPACES = {
    "tiny": _space((256, 224, 192, 176, 160), (6, 5, 4, 3), (12, 10, 8, 6), 768, 6),
    "small": _space((320, 280, 240, 220, 200), (8, 7, 6, 5), (16, 14, 12, 10), 960, 7),
    "mini": SearchSpace(  # ours, for images of 16 pixels in patches of 4
        ((32, 24, 16), (48, 40, 32), (96, 80, 64)),
        ((3, 2, 1), (4, 3, 2), (6, 4, 3)),
        ((96, 72, 48), (144, 108, 72), (288, 216, 144)),
        2,
        (1,),
        (8, 12, 16),
    ),
}
"""The published spaces, and a small one for experiments."""

PUBLISHED_SUPER = {"tiny": (85_839_464, 3.4976e9), "small": (156_599_528, 6.2603e9)}
"""Parameters, with the patch head, and MACs of the published spaces' super-networks."""


def space_of(space: SearchSpace | str) -> SearchSpace:
    """A space, or the one of that name.

    Raises:
        InputError: no such name.
    """
    if isinstance(space, str):
        if space not in SPACES:
            raise InputError(f"no search space {space!r}", where="space", remedy=f"one of {', '.join(SPACES)}, or a Space")
        return SPACES[space]
    return space


# -- masks -----------------------------------------------------------------------------------------------------------


def masks_of(
    space: SearchSpace, architectures: Sequence[Architecture], ranks: Sequence[Sequence[ImportanceRanks]] | None, like: Tensor
) -> Masks:
    """The masks of one architecture a row, [len(architectures), 1, …], with the dtype and device of ``like``.

    The first channels of a stage are kept; of heads and MLP units those of the lowest rank (without ``ranks``: the first).
    """
    number = len(space.head)

    def first(kept: Sequence[int], size: int, rank: Tensor | None = None) -> Tensor:
        rank = torch.arange(size, device=like.device) if rank is None else rank
        return (rank < torch.tensor(kept, device=like.device)[:, None])[:, None].to(like.dtype)

    widths = [first([a.widths[s] for a in architectures], space.widths[s][0]) for s in range(number)]
    blocks = []
    for s in range(number):
        stage = []
        for place in range(space.depth):
            given = [a.blocks[s][place] for a in architectures]
            heads, units = ([0 if block is None else block[part] for block in given] for part in (0, 1))
            own = None if ranks is None else ranks[s][place]
            by_head = first(heads, space.heads[s][0], None if own is None else own.heads)
            by_unit = first(units, space.units[s][0], None if own is None else own.units)
            kept = torch.tensor([block is not None for block in given], device=like.device).to(like.dtype)[:, None, None]
            stage.append(BlockMasks(by_head.repeat_interleave(space.head[s], -1), by_unit, kept))
        blocks.append(stage)
    return Masks(widths, blocks)


def spread(masks: Masks, counts: Tensor) -> Masks:
    """The masks with row i repeated ``counts[i]`` times: from one a sub-batch to one a sample."""
    widths = [mask.repeat_interleave(counts, 0) for mask in masks.widths]
    blocks = [[BlockMasks(*(part.repeat_interleave(counts, 0) for part in block)) for block in stage] for stage in masks.blocks]
    return Masks(widths, blocks)


# -- sorting ---------------------------------------------------------------------------------------------------------


class ImportanceRanks(NamedTuple):
    """Of a block: the place of each head [heads] and MLP unit [units] in the order of importance, 0 the first."""

    heads: Tensor
    units: Tensor


@torch.no_grad()
def ranks_of(block: ViTResBlock) -> ImportanceRanks:
    """Ranks by the summed absolute weights into and out of each head and unit, biases in it included; largest first."""
    into = block.qkv.weight.abs().sum(1) + block.qkv.bias.abs()
    heads = into.unflatten(0, (3, block.heads, -1)).sum((0, 2)) + block.out.weight.abs().sum(0).unflatten(0, (block.heads, -1)).sum(
        1
    )
    units = block.enter.weight.abs().sum(1) + block.enter.bias.abs() + block.leave.weight.abs().sum(0)
    return ImportanceRanks(*(size.argsort(descending=True, stable=True).argsort() for size in (heads, units)))


@torch.no_grad()
def reorder(block: ViTResBlock, ranks: ImportanceRanks) -> None:
    """Put the heads and units of ``block`` into the order of ``ranks``, in place: the function stays the same."""
    heads, units = ranks.heads.argsort(), ranks.units.argsort()
    channels = torch.arange(block.out.in_features, device=heads.device).unflatten(0, (block.heads, -1))[heads].flatten()
    for name in ("weight", "bias"):
        part = getattr(block.qkv, name)
        part.copy_(part.unflatten(0, (3, -1))[:, channels].flatten(0, 1))
        entry = getattr(block.enter, name)
        entry.copy_(entry[units])
    block.out.weight.copy_(block.out.weight[:, channels])
    block.leave.weight.copy_(block.leave.weight[:, units])


# -- slices ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sliced(network: ViTRes, architecture: Architecture) -> ViTRes:
    """The sub-network ``architecture`` of a super-network, with copies of its leading weights, in eval mode.

    Of q, k and v each the leading heads, elsewhere the leading channels.

    Raises:
        InputError: the architecture is larger than the network.
    """
    places = [[j for j, block in enumerate(stage) if block is not None] for stage in architecture.blocks]
    if any(len(stage) != len(whole) for stage, whole in zip(architecture.blocks, network.stages)):
        raise InputError("another number of block places", where="architecture", remedy="take it from the network's space")
    with torch.random.fork_rng(devices=[]):
        config = network.config | architecture.options()
        small = ViTRes(network.num_classes, network.in_chans, **config).to(network.token)
    state, whole = small.state_dict(), network.state_dict()
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "stages":
            parts[2] = str(places[int(parts[1])][int(parts[2])])
        source = whole[".".join(parts)]
        if any(own > have for own, have in zip(value.shape, source.shape)):
            raise InputError(f"{name} is larger than the network's", where="architecture", remedy="take it from its space")
        if "qkv" in parts:
            own = value.unflatten(0, (3, -1))
            own.copy_(source.unflatten(0, (3, -1))[tuple(slice(0, size) for size in own.shape)])
        else:
            value.copy_(source[tuple(slice(0, size) for size in value.shape)])
    return small.eval()


# -- cost ------------------------------------------------------------------------------------------------------------


def macs(architecture: Architecture, network: ViTRes) -> float:
    """Multiply-accumulates of an image: convolutions, Linears and attention products, class head only; in closed form.

    ``network`` gives what is not searched for: image size, patch, head widths, classes.
    """
    patch, size, head = (network.config[name] for name in ("patch", "size", "head"))
    stem = network.stem.patches.in_channels
    total = (size // 2) ** 2 * 9 * stem * (network.in_chans + 2 * stem)
    grid, widths = size // patch, architecture.widths
    total += grid**2 * (patch // 2) ** 2 * stem * widths[0]
    for s, (width, stage) in enumerate(zip(widths, architecture.blocks)):
        if s:
            grid //= 2
            total += widths[s - 1] * width * (9 * grid**2 + 1)
        tokens = grid**2 + 1
        for heads, units in (block for block in stage if block is not None):
            inner = heads * head[s]
            total += tokens * (4 * width * inner + 2 * width * units) + 2 * tokens**2 * inner
    return float(total + widths[-1] * network.num_classes)
