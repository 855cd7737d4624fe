"""A network as a list of layers: what the policies decide about, and the network that is built again from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.errors import InputError, TutelageError
from tutelage.fields import check_field, check_items
from tutelage.reading import read_json
from tutelage.storage import to_plain

KINDS = ("conv", "maxpool", "avgpool", "relu", "batchnorm", "linear", "dropout", "logsoftmax", "flatten")
FIELDS = ("kernel", "stride", "channels", "padding")
"""What the shrinkage policy scales, in this order."""
MINIMUM_CHANNELS = 10
FLAT_FEATURES = (10, 50_000)
"""The fewest and the most features of a flattened map."""


class InvalidNetwork(TutelageError):
    """The layers do not fit together; the search gives such a child the reward -1."""


@dataclass(frozen=True)
class Layer:
    """One leaf layer.

    Attributes:
        kind: one of :data:`KINDS`.
        kernel, stride, padding: of convolutions and pooling, equal for both axes; the kernel 0 of an ``avgpool`` is the whole map.
        channels: what a convolution or a linear layer puts out, else 0.
        bias: whether it has one.
        rate: of a dropout.
        source: the teacher's module that it came from; equality ignores it.
    """

    kind: str
    kernel: int = 0
    stride: int = 1
    channels: int = 0
    padding: int = 0
    bias: bool = False
    rate: float = 0.0
    source: str = field(default="", compare=False)


@dataclass(frozen=True)
class Block:
    """A residual block: ``body(x) + shortcut(x)``; an empty shortcut is the input itself."""

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """A whole network: the shape of its input (channels, height, width) and its parts in order."""

    inputs: tuple[int, int, int]
    parts: tuple[Layer | Block, ...]


class Slot(NamedTuple):
    """One layer of the flat list that the policies read, and whether a residual block starts or ends at it.

    ``part`` and ``place`` say where it stands: in ``parts``, and in the block's body (None: it is no block's).
    ``matches_input``: the last convolution of a block without shortcut, which must put out as many channels as go in.
    """

    layer: Layer
    part: int
    place: int | None
    skip_start: bool
    skip_end: bool
    matches_input: bool


def slots(architecture: Architecture) -> list[Slot]:
    """The layers in order, without the shortcuts: these follow their block."""
    found = []
    for number, part in enumerate(architecture.parts):
        if isinstance(part, Layer):
            found.append(Slot(part, number, None, False, False, False))
            continue
        last = len(part.body) - 1
        final = max((place for place, layer in enumerate(part.body) if layer.kind == "conv"), default=None)
        for place, layer in enumerate(part.body):
            found.append(Slot(layer, number, place, place == 0, place == last, not part.shortcut and place == final))
    return found


FEATURES = len(KINDS) + 6
"""Length of a layer's vector."""


def features(architecture: Architecture) -> Tensor:
    """What a policy reads [layers, FEATURES]: kind (one-hot), kernel, stride, log2 of channels, padding, skip start and end.

    Brought to a similar scale (our choice: kernel / 5, stride / 2, (log2(channels) - 5) / 2, padding / 2; 0 where a layer has
    no channels of its own).
    """
    rows = []
    for slot in slots(architecture):
        layer = slot.layer
        kind = [float(layer.kind == name) for name in KINDS]
        width = (math.log2(layer.channels) - 5) / 2 if layer.channels else 0.0
        size = [layer.kernel / 5, layer.stride / 2, width, layer.padding / 2]
        rows.append([*kind, *size, float(slot.skip_start), float(slot.skip_end)])
    return torch.tensor(rows)


# -- stage 1: removal ------------------------------------------------------------------------------------------------


def always_kept(architecture: Architecture) -> Tensor:
    """The layers [layers] (bool) that are never removed: the first and last, strided convolutions, average pooling, linear
    and flattening ones."""
    layers = [slot.layer for slot in slots(architecture)]
    strided = [layer.kind == "conv" and layer.stride > 1 for layer in layers]
    fixed = [keep or layer.kind in ("avgpool", "linear", "flatten", "logsoftmax") for keep, layer in zip(strided, layers)]
    fixed[0] = fixed[-1] = True
    return torch.tensor(fixed)


def remove_layers(architecture: Architecture, keep: Sequence[bool] | Tensor) -> Architecture:
    """The architecture without the layers where ``keep`` [layers] is false; those of :func:`always_kept` stay.

    A block whose body is empty leaves its shortcut alone. In a block without shortcut the last convolution that is left puts
    out as many channels as go in; a shortcut takes the width of its body's output.
    """
    chosen = (torch.as_tensor(keep).bool() | always_kept(architecture)).tolist()
    parts: list[Layer | Block] = []
    left: dict[int, list[Layer]] = {}
    for slot, stays in zip(slots(architecture), chosen, strict=True):
        if stays:
            left.setdefault(slot.part, []).append(slot.layer)
    for number, part in enumerate(architecture.parts):
        body = left.get(number, [])
        if isinstance(part, Layer):
            parts += body
        elif body:
            parts.append(Block(tuple(body), part.shortcut))
        else:
            parts += part.shortcut
    return refit(Architecture(architecture.inputs, tuple(parts)))


# -- stage 2: shrinkage ----------------------------------------------------------------------------------------------


def shrinkable(architecture: Architecture) -> Tensor:
    """Which fields [layers, len(FIELDS)] (bool) a factor can change.

    Strided convolutions, average pooling and the last linear layer are fixed. In residual blocks only channels change, and
    those of a convolution whose width must equal the block's input do not.
    """
    listed = slots(architecture)
    last = max((i for i, slot in enumerate(listed) if slot.layer.kind == "linear"), default=-1)
    rows = []
    for number, slot in enumerate(listed):
        layer, plain = slot.layer, slot.place is None
        window = plain and (layer.kind == "maxpool" or (layer.kind == "conv" and layer.stride == 1))
        wide = (layer.kind == "conv" and layer.stride == 1 and not slot.matches_input) or (
            layer.kind == "linear" and number != last
        )
        rows.append(
            [
                window and layer.kernel > 1,
                window and layer.stride > 1,
                wide and layer.channels > MINIMUM_CHANNELS,
                window and layer.padding > 0,
            ]
        )
    return torch.tensor(rows)


def shrink_layers(architecture: Architecture, factors: Tensor) -> Architecture:
    """The architecture with each field times its factor [layers, len(FIELDS)], rounded down, where :func:`shrinkable`.

    Kernel and stride stay at 1 or more, channels at 10 or more.
    """
    parts: list[Layer | Block] = list(architecture.parts)
    least = {"kernel": 1, "stride": 1, "channels": MINIMUM_CHANNELS, "padding": 0}
    rows = zip(slots(architecture), factors.tolist(), shrinkable(architecture).tolist(), strict=True)
    for slot, scale, free in rows:
        new: dict[str, Any] = {
            name: max(least[name], int(getattr(slot.layer, name) * factor + 1e-6))
            for name, factor, may in zip(FIELDS, scale, free, strict=True)
            if may
        }
        part = parts[slot.part]
        if isinstance(part, Layer):
            parts[slot.part] = replace(part, **new)
        else:
            body = [replace(layer, **new) if place == slot.place else layer for place, layer in enumerate(part.body)]
            parts[slot.part] = replace(part, body=tuple(body))
    return refit(Architecture(architecture.inputs, tuple(parts)))


def refit(architecture: Architecture) -> Architecture:
    """The architecture with the widths of its residual blocks made to agree."""
    width, parts = architecture.inputs[0], []
    for part in architecture.parts:
        if isinstance(part, Block):
            body, shortcut = part.body, part.shortcut
            if any(layer.kind == "conv" for layer in shortcut):
                shortcut = _last_width(shortcut, _width(body, width))
            else:
                body = _last_width(body, width)
            part = Block(body, shortcut)
            width = _width(body, width)
        else:
            width = _width((part,), width)
        parts.append(part)
    return Architecture(architecture.inputs, tuple(parts))


def _width(layers: Sequence[Layer], width: int) -> int:
    return next((layer.channels for layer in reversed(layers) if layer.kind == "conv"), width)


def _last_width(layers: tuple[Layer, ...], width: int) -> tuple[Layer, ...]:
    places = [place for place, layer in enumerate(layers) if layer.kind == "conv"]
    return tuple(replace(layer, channels=width) if [place] == places[-1:] else layer for place, layer in enumerate(layers))


# -- the network -----------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """``body(x) + shortcut(x)``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the block's map."""
        return self.body(x) + self.shortcut(x)


def build(architecture: Architecture) -> nn.Sequential:
    """The network, with fresh weights from torch's global generator: a plain ``nn.Sequential``.

    The input widths of all layers follow from the running shape.

    Raises:
        InvalidNetwork: layers that do not fit together, or a flattened map of fewer than 10 or more than 50,000 features.
    """
    shape: tuple[int, ...] = architecture.inputs
    modules: list[nn.Module] = []
    for part in architecture.parts:
        if isinstance(part, Layer):
            module, shape = _layer(part, shape)
        else:
            (body, inside), (shortcut, beside) = _chain(part.body, shape), _chain(part.shortcut, shape)
            if inside != beside:
                raise InvalidNetwork(f"the body puts out {inside}, the shortcut {beside}")
            module, shape = ResidualBlock(body, shortcut), inside
        modules.append(module)
    return nn.Sequential(*modules)


def _chain(layers: Sequence[Layer], shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    modules = []
    for layer in layers:
        module, shape = _layer(layer, shape)
        modules.append(module)
    return (nn.Sequential(*modules) if modules else nn.Identity()), shape


def _layer(layer: Layer, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    """The module of a layer for inputs of ``shape`` (without the batch), and the shape of what it puts out."""
    kind, flat = layer.kind, len(shape) == 1
    if kind == "relu":
        return nn.ReLU(), shape
    if kind == "dropout":
        return nn.Dropout(layer.rate), shape
    if kind == "logsoftmax":
        return nn.LogSoftmax(1), shape
    if kind == "batchnorm":
        return (nn.BatchNorm1d if flat else nn.BatchNorm2d)(shape[0]), shape
    if kind == "flatten":
        size = math.prod(shape)
        if not flat and not FLAT_FEATURES[0] <= size <= FLAT_FEATURES[1]:
            raise InvalidNetwork(f"a flattened map of {size:,} features")
        return nn.Flatten(), (size,)
    if kind == "linear":
        if not flat:
            raise InvalidNetwork(f"a linear layer on {shape}")
        return nn.Linear(shape[0], layer.channels, bias=layer.bias), (layer.channels,)
    if flat:
        raise InvalidNetwork(f"{kind} on {shape}")
    width = layer.channels if kind == "conv" else shape[0]
    if kind == "avgpool" and layer.kernel == 0:
        return nn.AdaptiveAvgPool2d(1), (width, 1, 1)
    sides = [(side + 2 * layer.padding - layer.kernel) // layer.stride + 1 for side in shape[1:]]
    if min(sides) < 1 or (kind != "conv" and 2 * layer.padding > layer.kernel):
        raise InvalidNetwork(f"{kind} of kernel {layer.kernel} and padding {layer.padding} on {shape}")
    window = (layer.kernel, layer.stride, layer.padding)
    if kind == "conv":
        return nn.Conv2d(shape[0], width, *window, bias=layer.bias), (width, *sides)
    return (nn.MaxPool2d if kind == "maxpool" else nn.AvgPool2d)(*window), (width, *sides)


def parameter_count(architecture: Architecture) -> int:
    """Weights of the network that :func:`build` makes, counted without making them.

    Raises:
        InvalidNetwork: see :func:`build`.
    """
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(architecture).parameters())


# -- files -----------------------------------------------------------------------------------------------------------


def to_json(architecture: Architecture) -> dict[str, Any]:
    """The architecture as plain values: a layer is its fields, a block has ``body`` and ``shortcut``."""
    return {"format": "tutelage-layer-list", "version": 1, **to_plain(architecture)}


def layers_key(architecture: Architecture) -> dict[str, Any]:
    """Plain values that are equal where architectures are: without the sources."""
    plain = to_json(architecture)
    for part in plain["parts"]:
        for layer in [part] if "kind" in part else [*part["body"], *part["shortcut"]]:
            del layer["source"]
    return plain


def load_network(architecture: str | Path) -> nn.Sequential:
    """The network, with fresh weights, of an architecture's JSON file.

    Raises:
        InputError: no such file, or not what :func:`to_json` gives; the message names the field.
    """
    value = read_json(architecture)
    where = str(architecture)
    check_field(value, "format", str, where=where, choices=("tutelage-layer-list",))
    check_field(value, "version", int, 1, 1, where=where)
    inputs = check_items(value, "inputs", int, 1, 1 << 20, where=where)
    if len(inputs) != 3:
        raise InputError(f"inputs {inputs}", where=f"{where}: inputs", remedy="channels, height, width")
    parts: list[Layer | Block] = []
    for number, part in enumerate(check_items(value, "parts", dict, where=where, max_items=10_000)):
        place = f"{where}: parts[{number}]"
        if "body" in part:
            body, shortcut = (
                tuple(_read_layer(item, f"{place}.{name}") for item in check_items(part, name, dict, where=place, max_items=10_000))
                for name in ("body", "shortcut")
            )
            parts.append(Block(body, shortcut))
        else:
            parts.append(_read_layer(part, place))
    try:
        return build(Architecture((inputs[0], inputs[1], inputs[2]), tuple(parts)))
    except InvalidNetwork as error:
        raise InputError(error.message, where=where, remedy="give the file as the search wrote it") from error


def _read_layer(value: Any, where: str) -> Layer:
    kind = check_field(value, "kind", str, where=where, choices=KINDS)
    window = kind in ("conv", "maxpool")
    return Layer(
        kind,
        check_field(value, "kernel", int, int(window), 1 << 10, where=where),
        check_field(value, "stride", int, 1, 1 << 10, where=where),
        check_field(value, "channels", int, int(kind in ("conv", "linear")), 1 << 20, where=where),
        check_field(value, "padding", int, 0, 1 << 10, where=where),
        check_field(value, "bias", bool, where=where),
        check_field(value, "rate", float, 0, 1, where=where),
        check_field(value, "source", str, where=where, default=""),
    )
