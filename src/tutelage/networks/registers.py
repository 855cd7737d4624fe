"""Register tokens for any vision transformer, and its patch tokens behind the final norm; found by structure, not by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import InputError
from tutelage.networks.token_injection import TokenInjector
from tutelage.seeds import torch_rng

_FINAL_NORMS = ("norm", "layernorm", "post_layernorm", "ln_post", "final_layernorm")


@dataclass(frozen=True)
class VitParts:
    """Names of the parts of a vision transformer: its list of ``blocks``, the final ``norm``, the convolution
    ``patch_embedding``, and the learned ``positions`` (a parameter; None: they are fixed or rotary)."""

    blocks: str
    norm: str
    patch_embedding: str
    positions: str | None = None


def find_parts(vit: nn.Module, **named: str) -> VitParts:
    """The parts of ``vit``, found by structure: the networks of ``timm`` and ``transformers``, and ``VisionTransformer``.

    ``blocks`` is the list of modules with the most parameters; ``patch_embedding`` the first convolution whose stride is its
    kernel; ``norm`` the outermost module outside the blocks with the usual name of a final norm; ``positions`` the
    parameter outside the blocks with "pos" in its name.

    Args:
        vit: the network.
        named: names of parts that are not as above, such as ``norm="encoder.ln"``.

    Raises:
        InputError: a part is not found, or not where ``named`` says.
    """
    modules = dict(vit.named_modules())
    for part, name in named.items():
        if part not in VitParts.__dataclass_fields__ or (part != "positions" and name not in modules):
            raise InputError(f"the network has no {part} {name!r}", where=part, remedy="print(network) shows the names")
    lists = {name: module for name, module in modules.items() if name and isinstance(module, (nn.ModuleList, nn.Sequential))}
    largest = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()), default=None)
    convolutions = (
        name for name, module in modules.items() if isinstance(module, nn.Conv2d) and module.stride == module.kernel_size != (1, 1)
    )
    blocks = named.get("blocks", largest)
    inside = f"{blocks}."
    norms = [
        name for name in modules if name.rpartition(".")[2] in _FINAL_NORMS and not name.startswith((inside, *_aside(modules)))
    ]
    positions = [
        name for name, _ in vit.named_parameters() if "pos" in name.lower() and not name.startswith((inside, *_aside(modules)))
    ]
    found = {
        "blocks": blocks,
        "norm": named.get("norm", min(norms, key=lambda name: name.count("."), default=None)),
        "patch_embedding": named.get("patch_embedding", next(convolutions, None)),
        "positions": named.get("positions", positions[0] if positions else None),
    }
    for part, place in found.items():
        if place is None and part != "positions":
            raise InputError(
                f"{type(vit).__name__} has no {part} that can be found",
                where=part,
                remedy=f"is it a vision transformer? If so, name the part: {part}='…'",
            )
    return VitParts(**found)  # type: ignore[arg-type]


def _aside(modules: dict[str, nn.Module]) -> tuple[str, ...]:
    """Beginnings of names that hold norms and positions of other parts than the trunk."""
    return tuple(f"{name}." for name in modules if name.rpartition(".")[2] in ("head", "patch_embed", "patch_embeddings"))


class RegisterViT(nn.Module):
    """A vision transformer with ``count`` learned register tokens (Darcet et al., 2024): a drop-in replacement.

    The sequence is registers, then the network's own tokens. Registers have no position, run through every block, and are
    cut off behind the last: what the network returns has the old shapes. They belong to the network's state and are saved
    with it. Works where blocks take any number of tokens [B, N, D]; not with a table of relative positions (BEiT).

    Examples:
        >>> vit = Dinov2Model.from_pretrained("facebook/dinov2-small")
        >>> RegisterViT(vit, 16)(images).last_hidden_state.shape
        torch.Size([8, 1370, 384])

    Args:
        vit: the network; it becomes a part of this one. ``add_registers`` leaves it alone.
        count: number of registers; 0: the network as it is.
        parts: its parts, see :func:`find_parts`.
        generator: for the registers, which start at N(0, 1 / D).

    Raises:
        InputError: a count below 0, a part is not found, or the network has a table of relative positions.
    """

    def __init__(self, vit: nn.Module, count: int, parts: VitParts | None = None, generator: torch.Generator | None = None):
        super().__init__()
        if count < 0:
            raise InputError(f"{count} registers", where="count", remedy="0 or more; the paper has 16")
        self.vit, self.parts = vit, parts or find_parts(vit)
        convolution: Any = vit.get_submodule(self.parts.patch_embedding)
        blocks: Any = vit.get_submodule(self.parts.blocks)
        dim: int = convolution.out_channels
        if count:
            _make_room(vit, count)
        self.injector = TokenInjector(blocks, count, dim, position=0, std=dim**-0.5, generator=generator)
        self.injector.to(convolution.weight)

    @property
    def registers(self) -> nn.Parameter:
        """The registers [1, count, D]."""
        return self.injector.tokens

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns, with registers inside."""
        with self.injector:
            return self.vit(*args, **kwargs)

    def unlocked(self) -> Iterator[nn.Parameter]:
        """Registers, positions, patch embedding and last block: what post-hoc registers are trained with."""
        if self.registers.numel():
            yield self.registers
        if self.parts.positions is not None:
            yield self.vit.get_parameter(self.parts.positions)
        yield from self.vit.get_submodule(self.parts.patch_embedding).parameters()
        blocks: Any = self.vit.get_submodule(self.parts.blocks)
        yield from blocks[-1].parameters()


def _make_room(vit: nn.Module, count: int) -> None:
    """Let the attention of ``vit`` take ``count`` more tokens before its own."""
    for name, module in vit.named_modules():
        own = [*module._parameters, *module._buffers, *module._modules]
        if any("relative_position" in part or "rel_pos" in part for part in own):
            raise InputError(
                f"{name or type(vit).__name__} has a table of relative positions, where registers have no place",
                where="vit",
                remedy="take a network with learned, fixed or rotary positions",
            )
        if name and isinstance(tokens := getattr(module, "num_prefix_tokens", None), int):
            module.num_prefix_tokens = tokens + count  # what rotary attention of timm leaves unturned


def add_registers(vit: nn.Module, count: int = 16, seed: int = 0, **named: str) -> RegisterViT:
    """A copy of ``vit`` with ``count`` registers drawn from ``seed``; ``named``: see :func:`find_parts`.

    Raises:
        InputError: a part is not found, or the network has such registers already.
    """
    if isinstance(vit, RegisterViT):
        raise InputError("the network has registers already", where="vit", remedy="give the network without them: network.vit")
    return RegisterViT(copy.deepcopy(vit), count, find_parts(vit, **named), torch_rng(seed, "registers"))


def patch_grid(network: nn.Module, images: Tensor, parts: VitParts | None = None) -> tuple[int, int]:
    """(rows, columns) of the patches of ``images`` [B, C, H, W].

    Raises:
        InputError: not images, or of sides that the patch does not divide.
    """
    vit, parts = _trunk(network, parts)
    patch: Any = vit.get_submodule(parts.patch_embedding).kernel_size
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[2] % patch[0] or images.shape[3] % patch[1]:
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"inputs {shape} are not covered by patches of {tuple(patch)}",
            where="images",
            remedy="images [B, C, H, W] with sides that the patch divides",
        )
    return images.shape[2] // patch[0], images.shape[3] // patch[1]


def patch_tokens(network: nn.Module, images: Tensor, parts: VitParts | None = None) -> dict[str, Tensor]:
    """One forward pass of a vision transformer, read at its patches.

    Args:
        network: a ViT, or a :class:`RegisterViT`.
        images: [B, C, H, W].
        parts: of a ViT, see :func:`find_parts`; None: they are looked for.

    Returns:
        ``patches`` [B, N, D] behind the final norm, in raster order, without class token and registers; ``states``
        [B, N, D], the same before the norm.
    """
    vit, parts = _trunk(network, parts)
    rows, columns = patch_grid(vit, images, parts)
    blocks: Any = vit.get_submodule(parts.blocks)
    taken: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        taken.append(output[0] if isinstance(output, tuple) else output)

    injector = network.injector if isinstance(network, RegisterViT) else None
    if injector is not None:
        injector.__enter__()  # its hook on the last block comes first: the registers are gone when the states are kept
    handle = blocks[-1].register_forward_hook(keep)
    try:
        vit(images)
    finally:
        handle.remove()
        if injector is not None:
            injector.__exit__()
    states = taken[-1][:, -rows * columns :]
    return {"patches": vit.get_submodule(parts.norm)(states), "states": states}


def _trunk(network: nn.Module, parts: VitParts | None) -> tuple[nn.Module, VitParts]:
    if isinstance(network, RegisterViT):
        return network.vit, network.parts
    return network, parts or find_parts(network)
