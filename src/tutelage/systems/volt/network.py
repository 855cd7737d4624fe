"""Volt's networks: the volume transformer, and a small convolutional U-Net that can teach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.layers import DropPath, Mlp, drop_path_rates, init_weights
from tutelage.systems._backbone import Backbone, StageOutput, Variant

SIDE = 40
"""Voxels a side of a scene that is timed (our choice)."""
LIMITS = (1024, 1024, 512)
"""Tokens along x, y, z that positions are made for."""


class Voxels(NamedTuple):
    """Occupied voxels of several scenes: ``coords`` [n, 3] int64 >= 0, ``features`` [n, F], ``batch`` [n] int64."""

    coords: Tensor
    features: Tensor
    batch: Tensor


Scene = Tensor | Mapping[str, Tensor] | Voxels
"""Scenes as voxels (or a dict of their fields), or as a grid [B, F, X, Y, Z] in which a voxel whose features are all zero
is empty."""


def voxels(scene: Scene, channels: int) -> Voxels:
    """``scene`` as checked voxels.

    Raises:
        InputError: fields of wrong shapes, other channels, negative coordinates, or none at all.
    """
    if isinstance(scene, Tensor):
        if scene.ndim != 5 or scene.shape[1] != channels:
            raise InputError(f"a grid of shape {list(scene.shape)}", where="scene", remedy=f"give [B, {channels}, X, Y, Z]")
        b, x, y, z = (scene != 0).any(1).nonzero(as_tuple=True)
        found = Voxels(torch.stack([x, y, z], 1), scene[b, :, x, y, z], b)
    else:
        fields = scene._asdict() if isinstance(scene, Voxels) else scene
        missing = [name for name in Voxels._fields if name not in fields]
        if missing:
            raise InputError(f"no field {missing[0]!r}", where="scene", remedy=f"give {', '.join(Voxels._fields)}")
        found = Voxels(fields["coords"], fields["features"], fields["batch"])
    count = len(found.coords)
    if not count:
        raise InputError("no occupied voxel", where="scene", remedy="leave empty scenes out")
    for name, tensor, shape in (("coords", found.coords, (count, 3)), ("features", found.features, (count, channels))):
        if tuple(tensor.shape) != shape:
            raise InputError(f"shape {list(tensor.shape)}", where=name, remedy=f"give {list(shape)}")
    if found.batch.shape != (count,) or found.coords.is_floating_point() or bool((found.coords < 0).any()):
        raise InputError(
            "not whole numbers from 0 and one scene number each",
            where="coords, batch",
            remedy="subtract the smallest coordinate of each scene and round down",
        )
    return found


class Patches(NamedTuple):
    """How voxels lie in patches: each voxel's token and slot [n]; each token's place [m, 3] and scene [m]; tokens a
    scene."""

    token: Tensor
    slot: Tensor
    places: Tensor
    scene: Tensor
    counts: list[int]


def patches(scene: Voxels, patch_size: int) -> Patches:
    """Voxels in patches of ``patch_size``^3: tokens sorted by scene, x, y, z; the slot is ``(x patch_size + y) patch_size + z``.

    Raises:
        InputError: two voxels in one place, or a scene that is too large for the positions.
    """
    places, inside = scene.coords.div(patch_size, rounding_mode="floor"), scene.coords % patch_size
    largest = places.amax(0).tolist()
    if any(value >= limit for value, limit in zip(largest, LIMITS, strict=True)):
        raise InputError(
            f"{largest} tokens a side", where="coords", remedy=f"cut scenes: {LIMITS} of {patch_size} voxels are the most"
        )
    key = scene.batch
    for axis, limit in enumerate(LIMITS):
        key = key * limit + places[:, axis]
    kept, token = key.unique(return_inverse=True)
    slot = (inside[:, 0] * patch_size + inside[:, 1]) * patch_size + inside[:, 2]
    if len((token * patch_size**3 + slot).unique()) != len(token):
        raise InputError("two voxels in one place", where="coords", remedy="merge the points of a voxel first")
    first = torch.full_like(kept, len(token)).scatter_reduce_(0, token, torch.arange(len(token), device=kept.device), "amin")
    scenes = scene.batch[first]
    return Patches(token, slot, places[first], scenes, torch.unique_consecutive(scenes, return_counts=True)[1].tolist())


class RotaryEmbedding(nn.Module):
    """3-D rotary positions: channels (2i, 2i + 1) of a head turn by token index times frequency.

    The pairs are split among x, y, z, three eighths, three eighths and the rest (12, 12, 8 of 32); the frequencies of an
    axis of n pairs are ``100^(-j / (n - 1))``.
    """

    frequencies: Tensor

    def __init__(self, head_width: int):
        super().__init__()
        pairs = head_width // 2
        most = 3 * pairs // 8
        self.split = [most, most, pairs - 2 * most]
        each = [100.0 ** -torch.linspace(0, 1, count) if count > 1 else torch.ones(count) for count in self.split]
        self.register_buffer("frequencies", torch.cat(each), persistent=False)

    def turns(self, places: Tensor) -> Tensor:
        """[m, 3] -> unit complex numbers [m, pairs]."""
        axes = torch.repeat_interleave(torch.arange(3, device=places.device), torch.tensor(self.split, device=places.device))
        angles = places[:, axes] * self.frequencies
        return torch.polar(torch.ones_like(angles), angles)

    @staticmethod
    def rotate(x: Tensor, turns: Tensor) -> Tensor:
        """Heads [heads, m, width], turned; norms are kept."""
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)


class VoltBlock(nn.Module):
    """Pre-norm attention among all tokens of a scene, with a LayerNorm a head on queries and keys, then an MLP."""

    def __init__(self, dim: int, heads: int, rate: float, qk_norm: bool = True):
        super().__init__()
        self.heads, self.drop = heads, DropPath(rate)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj, self.mlp = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), Mlp(dim)
        head = dim // heads
        self.q_norm, self.k_norm = (nn.LayerNorm(head) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, turns: Tensor, layout: Patches) -> Tensor:
        """[m, D] -> [m, D]."""
        x = self._add_residual(x, self._attended(self.norm1(x), turns, layout.counts), layout)
        return self._add_residual(x, self.mlp(self.norm2(x)), layout)

    def _add_residual(self, x: Tensor, branch: Tensor, layout: Patches) -> Tensor:
        """Stochastic depth, scene by scene."""
        if not self.training or not self.drop.rate:
            return x + branch
        counts = torch.tensor(layout.counts, device=x.device)
        return x + branch * self.drop(x.new_ones(len(counts), 1)).repeat_interleave(counts, 0)

    def _attended(self, x: Tensor, turns: Tensor, counts: list[int]) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        q, k = (RotaryEmbedding.rotate(norm(part), turns) for norm, part in ((self.q_norm, q), (self.k_norm, k)))
        parts = zip(*(part.split(counts, 1) for part in (q, k, v)), strict=True)
        mixed = [F.scaled_dot_product_attention(a[None], b[None], c[None])[0] for a, b, c in parts]
        return self.proj(torch.cat(mixed, 1).transpose(0, 1).flatten(1))


def _norm(dim: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(dim, eps=1e-3, momentum=0.01)


class VoltDecoder(nn.Module):
    """From tokens back to voxels: [m, D] -> [n, U], a transposed convolution of stride K read at occupied voxels."""

    def __init__(self, dim: int, out_chans: int, patch_size: int):
        super().__init__()
        self.slots = patch_size**3
        self.reduce = nn.Sequential(_norm(dim), nn.GELU(), nn.Linear(dim, out_chans, bias=False), _norm(out_chans), nn.GELU())
        self.detokenize = nn.Linear(out_chans, self.slots * out_chans, bias=False)
        self.bias, self.norm = nn.Parameter(torch.zeros(out_chans)), _norm(out_chans)

    def spread(self, tokens: Tensor, layout: Patches) -> Tensor:
        """Tokens [m, U] -> voxels [n, U]."""
        every = self.detokenize(tokens).view(-1, len(self.bias))  # a row a slot of a token
        return every.index_select(0, layout.token * self.slots + layout.slot) + self.bias

    def forward(self, tokens: Tensor, layout: Patches) -> Tensor:
        """Voxels [n, U]."""
        return F.gelu(self.norm(self.spread(self.reduce(tokens), layout)))


_S: dict[str, Any] = {"width": 384, "heads": 6, "outputs": 128, "drop_path": 0.3}
_B: dict[str, Any] = {"width": 768, "heads": 12, "outputs": 256, "drop_path": 0.3}


class VoltNetwork(Backbone):
    """Volume transformer: occupied patches of ``patch``^3 voxels as tokens, global attention, a vector for each voxel.

    ``forward(scene)``: logits [n, num_classes] of voxels, in their order; [B, num_classes, X, Y, Z] of a grid, 0 where it
    is empty (see :data:`Scene`). ``in_chans``: features a voxel; ``out_chans``: U, the width of :meth:`points`. Stages of a grid:
    ``voxels`` (stride 1, U channels) and ``tokens`` (stride ``patch``). The counts of the published sizes follow from
    those of the paper's, 23,683,584 and 94,025,728 with 6 features and no head.

    Raises:
        InputError: heads that do not divide the width; scenes that :func:`voxels` or :func:`patches` refuse.
    """

    VARIANTS: ClassVar[Mapping[str, Variant]] = {
        "s": Variant(_S, 23_683_584 - 3 * 125 * 384 + 1000 * 129, size=SIDE),
        "b": Variant(_B, 94_025_728 - 3 * 125 * 768 + 1000 * 257, size=SIDE),
    }

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 6,
        width: int = 384,
        heads: int = 6,
        depth: int = 12,
        outputs: int = 128,
        patch: int = 5,
        drop_path: float = 0.0,
        qk_norm: bool = True,
    ):
        if width % (2 * heads):
            raise InputError(f"{heads} heads of pairs do not divide {width}", where="width", remedy="a multiple of 2 x heads")
        super().__init__(num_classes, in_chans, [("voxels", 1, outputs), ("tokens", patch, width)], spatial=3)
        self.patch = patch
        self.embed = nn.Linear(patch**3 * in_chans, width)
        self.rotary = RotaryEmbedding(width // heads)
        (rates,) = drop_path_rates(drop_path, [depth])
        self.blocks = nn.ModuleList(VoltBlock(width, heads, rate, qk_norm) for rate in rates)
        self.decoder = VoltDecoder(width, outputs, patch)
        self.head = nn.Linear(outputs, num_classes)
        init_weights(self)

    def tokens(self, scene: Voxels, layout: Patches) -> Tensor:
        """Encoded tokens [m, D]."""
        slots = scene.features.new_zeros(len(layout.places), self.patch**3, self.in_chans)
        slots[layout.token, layout.slot] = scene.features
        x, turns = self.embed(slots.flatten(1)), self.rotary.turns(layout.places)
        for block in self.blocks:
            x = block(x, turns, layout)
        return x

    def points(self, scene: Scene) -> Tensor:
        """A vector for each voxel [n, U]."""
        found = voxels(scene, self.in_chans)
        lie = patches(found, self.patch)
        return self.decoder(self.tokens(found, lie), lie)

    def forward(self, scene: Scene) -> Tensor:
        """Logits, see the class."""
        found = voxels(scene, self.in_chans)
        logits = self.head(self.points(found))
        return _grid(logits, found, scene.shape[0], scene.shape[2:]) if isinstance(scene, Tensor) else logits

    def forward_features(self, images: Tensor) -> list[StageOutput]:
        """The stages of a grid [B, F, X, Y, Z], finest first; empty places are 0."""
        found = voxels(images, self.in_chans)
        lie = patches(found, self.patch)
        tokens = self.tokens(found, lie)
        coarse = [-(-side // self.patch) for side in images.shape[2:]]
        maps = (
            _grid(self.decoder(tokens, lie), found, images.shape[0], images.shape[2:]),
            _grid(tokens, Voxels(lie.places, tokens, lie.scene), images.shape[0], coarse),
        )
        return [StageOutput(stage.name, stage.stride, each) for stage, each in zip(self.feature_info, maps, strict=True)]


def _grid(values: Tensor, scene: Voxels, count: int, sides: Sequence[int]) -> Tensor:
    """Values [n, C] at their places: [count, C, *sides]."""
    grid = values.new_zeros(count, *sides, values.shape[1])
    x, y, z = scene.coords.unbind(1)
    grid[scene.batch, x, y, z] = values
    return grid.movedim(-1, 1)


class ConvUNet(nn.Module):
    """A small dense 3-D U-Net, the convolutional teacher at small scale (our choice; the paper's is a sparse MinkUNet-34).

    Scenes as :class:`VoltNetwork` takes them -> logits a voxel. ``widths``: channels at stride 1, 2, 4, …
    """

    def __init__(self, num_classes: int, in_chans: int = 6, widths: Sequence[int] = (16, 32, 48)):
        super().__init__()
        self.in_chans, self.stride = in_chans, 2 ** (len(widths) - 1)
        self.down = nn.ModuleList(_convs(inner, outer) for inner, outer in zip([in_chans, *widths], widths))
        self.up = nn.ModuleList(_convs(a + b, a) for a, b in zip(widths, widths[1:]))
        self.head = nn.Linear(widths[0], num_classes)

    def forward(self, scene: Scene) -> Tensor:
        """Logits [n, num_classes], or [B, num_classes, X, Y, Z] of a grid."""
        found = voxels(scene, self.in_chans)
        count = int(found.batch.max()) + 1 if not isinstance(scene, Tensor) else len(scene)
        given = scene.shape[2:] if isinstance(scene, Tensor) else (found.coords.amax(0) + 1).tolist()
        sides = [-(-side // self.stride) * self.stride for side in given]
        x = _grid(found.features, found, count, sides)
        kept: list[Tensor] = []
        for level, part in enumerate(self.down):
            x = part(F.max_pool3d(x, 2) if level else x)
            kept.append(x)
        x = kept.pop()
        for part in reversed(self.up):
            x = part(torch.cat([kept.pop(), F.interpolate(x, scale_factor=2)], 1))
        places = found.coords.unbind(1)
        logits = self.head(x[found.batch, :, places[0], places[1], places[2]])
        return _grid(logits, found, count, given) if isinstance(scene, Tensor) else logits


def _convs(in_chans: int, out_chans: int) -> nn.Sequential:
    """Two 3x3x3 convolutions, each with batch norm and ReLU."""
    parts: list[nn.Module] = []
    for channels in (in_chans, out_chans):
        parts += [nn.Conv3d(channels, out_chans, 3, 1, 1, bias=False), nn.BatchNorm3d(out_chans), nn.ReLU()]
    return nn.Sequential(*parts)
