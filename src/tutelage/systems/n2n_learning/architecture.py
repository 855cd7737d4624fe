"""A network as a list of leaf layers, and networks built from such lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tutelage.distillation.small_models import BasicBlock, ResNet, SmallCNN
from tutelage.errors import InputError
from tutelage.systems._toy import build_with_seed

KINDS = ("conv", "maxpool", "relu", "batchnorm", "linear", "dropout", "avgpool")
FIELDS = ("kernel", "stride", "channels", "padding")
"""The fields that the shrinkage policy scales, in its order."""
FEATURES = len(KINDS) + len(FIELDS) + 2
FACTORS = (0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The factor of each action of the shrinkage policy, as in the authors' code; the paper's text says 0.1 to 1.0."""
FEWEST_CHANNELS, FEWEST_FEATURES, MOST_FEATURES = 10, 10, 50_000


@dataclass(frozen=True)
class Layer:
    """One leaf layer.

    Attributes:
        kind: one of ``KINDS``. ``avgpool`` averages over all positions.
        kernel, stride, padding: of convolutions and max pooling; 0 elsewhere.
        channels: output channels of convolutions and linear layers; 0 elsewhere.
        bias: whether a convolution or linear layer has one.
        rate: of dropout.
        block: the number of the residual block that it lies in; -1: none.
        projected: its block's shortcut is a 1x1 convolution with batch norm.
    """

    kind: str
    kernel: int = 0
    stride: int = 0
    channels: int = 0
    padding: int = 0
    bias: bool = False
    rate: float = 0.0
    block: int = -1
    projected: bool = False


class InvalidArchitecture(InputError):
    """The layers do not make a network: the search gives such a candidate the reward -1."""


class LayerNetwork(nn.Module):
    """The network of ``layers`` for inputs of ``shape`` (channels, height, width); [B, C, H, W] -> logits [B, classes].

    Input channels are fitted to the layer before. In a block without a projected shortcut, the last convolution gets the
    block's input width.

    Raises:
        InvalidArchitecture: shapes do not fit, or a linear layer would see fewer than 10 or more than 50,000 features.
    """

    def __init__(self, layers: Sequence[Layer], shape: tuple[int, int, int]):
        super().__init__()
        self.shape = shape
        self.leaves, self.shortcuts = nn.ModuleList(), nn.ModuleDict()
        fitted: list[Layer] = []
        x = torch.zeros(1, *shape)
        entry = x
        for i, layer in enumerate(layers):
            if layer.block >= 0 and (i == 0 or layers[i - 1].block != layer.block):
                entry = x
            layer = _fit(layers, i, entry)
            leaf = _leaf(layer, x)
            x = _shape_after(leaf, layer, x)
            if layer.block >= 0 and (i + 1 == len(layers) or layers[i + 1].block != layer.block):
                self._close(layer, entry, x)
            self.leaves.append(leaf)
            fitted.append(layer)
        self.layers = tuple(fitted)

    def _close(self, layer: Layer, entry: Tensor, x: Tensor) -> None:
        if layer.projected:
            stride = max(1, round(entry.shape[2] / x.shape[2])) if x.ndim == 4 else 1
            shortcut = nn.Sequential(nn.Conv2d(entry.shape[1], x.shape[1], 1, stride, bias=False), nn.BatchNorm2d(x.shape[1]))
            if shortcut[0](entry).shape != x.shape:
                raise InvalidArchitecture(f"block {layer.block} and its shortcut give different sizes", where="layers")
            self.shortcuts[str(layer.block)] = shortcut
        elif entry.shape != x.shape:
            raise InvalidArchitecture(f"block {layer.block} changes the shape and has no shortcut layer", where="layers")

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        entry = x
        for i, (layer, leaf) in enumerate(zip(self.layers, self.leaves, strict=True)):
            if layer.block >= 0 and (i == 0 or self.layers[i - 1].block != layer.block):
                entry = x
            x = leaf(x.flatten(1) if layer.kind == "linear" else x)
            if layer.block >= 0 and (i + 1 == len(self.layers) or self.layers[i + 1].block != layer.block):
                name = str(layer.block)
                x = x + (self.shortcuts[name](entry) if name in self.shortcuts else entry)
        return x.flatten(1)


def _fit(layers: Sequence[Layer], i: int, entry: Tensor) -> Layer:
    """Layer ``i``; the last convolution of a block without a projected shortcut gets the block's input width."""
    layer = layers[i]
    if layer.kind != "conv" or layer.block < 0 or layer.projected:
        return layer
    later = [other for other in layers[i + 1 :] if other.block == layer.block and other.kind == "conv"]
    return layer if later else replace(layer, channels=entry.shape[1])


def _leaf(layer: Layer, x: Tensor) -> nn.Module:
    if layer.kind != "linear" and x.ndim != 4 and layer.kind in ("conv", "maxpool", "avgpool"):
        raise InvalidArchitecture(f"a {layer.kind} layer behind a linear one", where="layers")
    match layer.kind:
        case "conv":
            return nn.Conv2d(x.shape[1], layer.channels, layer.kernel, layer.stride, layer.padding, bias=layer.bias)
        case "maxpool":
            return nn.MaxPool2d(layer.kernel, layer.stride, layer.padding)
        case "relu":
            return nn.ReLU()
        case "batchnorm":
            return nn.BatchNorm2d(x.shape[1]) if x.ndim == 4 else nn.BatchNorm1d(x.shape[1])
        case "dropout":
            return nn.Dropout(layer.rate)
        case "avgpool":
            return nn.AdaptiveAvgPool2d(1)
        case "linear":
            features = x[0].numel()
            if not FEWEST_FEATURES <= features <= MOST_FEATURES:
                raise InvalidArchitecture(f"a linear layer of {features} features", where="layers")
            return nn.Linear(features, layer.channels, bias=layer.bias)
    raise InputError(f"unknown kind of layer {layer.kind!r}", where="layers", remedy=f"known: {', '.join(KINDS)}")


@torch.no_grad()
def _shape_after(leaf: nn.Module, layer: Layer, x: Tensor) -> Tensor:
    leaf.eval()
    try:
        y = leaf(x.flatten(1) if layer.kind == "linear" else x)
    except RuntimeError as error:  # torch's own check of sizes
        raise InvalidArchitecture(f"a {layer.kind} layer does not fit maps of {list(x.shape[1:])}", where="layers") from error
    leaf.train()
    return torch.zeros_like(y)


def build(layers: Sequence[Layer], shape: tuple[int, int, int], seed: int = 0) -> LayerNetwork:
    """The network of ``layers`` with fresh weights of ``seed``; the global generator is left as it was."""
    return build_with_seed(lambda: LayerNetwork(layers, shape), seed, "n2n", "weights")


def layers_of(network: nn.Module) -> tuple[Layer, ...]:
    """The leaf layers of ``network`` in order: a :class:`LayerNetwork`, a ``SmallCNN``, a ``ResNet``, or a (nested)
    ``nn.Sequential`` of convolutions, max pooling, ReLU, batch norm, dropout, global average pooling, linear layers and
    ``BasicBlock``.

    Raises:
        InputError: another layer, or one with options that a list does not hold (dilation, groups, uneven kernels).
    """
    if isinstance(network, LayerNetwork):
        return network.layers
    modules: list[nn.Module]
    if isinstance(network, SmallCNN):
        modules = [network.body, nn.AdaptiveAvgPool2d(1), network.head]
    elif isinstance(network, ResNet):
        modules = [network.stem, network.layer1, network.layer2, network.layer3, nn.AdaptiveAvgPool2d(1), network.head]
    else:
        modules = [network]
    found: list[Layer] = []
    for module in modules:
        _walk(module, found)
    if not found or found[-1].kind != "linear":
        raise InputError("the network does not end in a linear layer", where="teacher", remedy="give a classifier")
    return tuple(found)


def _walk(module: nn.Module, found: list[Layer]) -> None:
    if isinstance(module, nn.Sequential):
        for child in module:
            _walk(child, found)
    elif isinstance(module, BasicBlock):
        number = 1 + max((layer.block for layer in found), default=-1)
        inside: list[Layer] = []
        for leaf in (module.conv1, module.norm1, module.act1, module.conv2, module.norm2):
            _walk(leaf, inside)
        projected = not isinstance(module.shortcut, nn.Identity)
        found += [replace(layer, block=number, projected=projected) for layer in inside]
        _walk(module.act2, found)
    elif not isinstance(module, (nn.Flatten, nn.Identity)):
        found.append(_layer(module))


def _layer(module: nn.Module) -> Layer:
    match module:
        case nn.Conv2d(kernel_size=(k, k2), stride=(s, s2), padding=(p, p2), dilation=(1, 1), groups=1) if (k, s, p) == (
            k2,
            s2,
            p2,
        ):
            return Layer("conv", k, s, module.out_channels, p, module.bias is not None)
        case nn.MaxPool2d(kernel_size=int(k), stride=int(s), padding=int(p), dilation=1):
            return Layer("maxpool", k, s, 0, p)
        case nn.ReLU():
            return Layer("relu")
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return Layer("batchnorm")
        case nn.Dropout():
            return Layer("dropout", rate=module.p)
        case nn.AdaptiveAvgPool2d(output_size=1 | (1, 1)):
            return Layer("avgpool")
        case nn.Linear():
            return Layer("linear", channels=module.out_features, bias=module.bias is not None)
    raise InputError(
        f"a list of layers cannot hold {module}",
        where="teacher",
        remedy="give a small-cnn, a resnet, or an nn.Sequential of plain layers",
    )


def parameters(network: nn.Module) -> int:
    """How many numbers the parameters of ``network`` hold."""
    return sum(parameter.numel() for parameter in network.parameters())


def states(layers: Sequence[Layer]) -> Tensor:
    """What the policies see: [L, FEATURES]; kind one-hot, kernel, stride, log2(channels) / 4, padding, and whether a residual
    block starts or ends here."""
    rows = torch.zeros(len(layers), FEATURES)
    for i, layer in enumerate(layers):
        before, after = (layers[j].block if 0 <= j < len(layers) else -1 for j in (i - 1, i + 1))
        rows[i, KINDS.index(layer.kind)] = 1
        size = torch.tensor(float(max(1, layer.channels))).log2().item() / 4
        ends = [float(layer.block >= 0 and layer.block != other) for other in (before, after)]
        rows[i, len(KINDS) :] = torch.tensor([layer.kernel / 3, layer.stride / 2, size, layer.padding, *ends])
    return rows


def removable(layers: Sequence[Layer]) -> Tensor:
    """Which layers may go, [L]: not the first, the last, strided convolutions, average pooling and linear layers."""
    last = len(layers) - 1
    fixed = [i in (0, last) or _strided(layer) or layer.kind in ("avgpool", "linear") for i, layer in enumerate(layers)]
    return ~torch.tensor(fixed)


def shrinkable(layers: Sequence[Layer]) -> Tensor:
    """Which of ``FIELDS`` may shrink, [L, 4]: of unstrided convolutions all (in residual blocks the channels alone), of linear
    layers but the last the channels."""
    free = torch.zeros(len(layers), len(FIELDS), dtype=torch.bool)
    for i, layer in enumerate(layers[:-1]):
        if layer.kind == "conv" and not _strided(layer):
            free[i] = layer.block < 0
            free[i, 2] = True
        elif layer.kind == "linear":
            free[i, 2] = True
    return free


def _strided(layer: Layer) -> bool:
    return layer.kind == "conv" and layer.stride > 1


def remove(layers: Sequence[Layer], keep: Sequence[int]) -> tuple[Layer, ...]:
    """The layers whose action is 1."""
    return tuple(layer for layer, kept in zip(layers, keep, strict=True) if kept)


def shrink(layers: Sequence[Layer], actions: Sequence[int]) -> tuple[Layer, ...]:
    """The layers with each field times the factor of its action (4 actions a layer), rounded down to at least: kernel 1, stride
    1, 10 channels, padding 0."""
    found = []
    for i, layer in enumerate(layers):
        changed = {}
        for name, action in zip(FIELDS, actions[4 * i : 4 * i + 4], strict=True):
            value = getattr(layer, name)
            least = {"kernel": 1, "stride": 1, "channels": FEWEST_CHANNELS, "padding": 0}[name]
            changed[name] = max(min(least, value), int(value * FACTORS[action]))
        found.append(replace(layer, **changed))
    return tuple(found)
