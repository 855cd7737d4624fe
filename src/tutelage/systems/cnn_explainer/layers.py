"""From a network to the list of layers that the page draws, and back.

A network is traced symbolically (``torch.fx``), so its own class and its ``forward`` do not matter: what counts is that
its layers form one chain.
"""

from __future__ import annotations

import copy
import math
import operator
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tutelage.errors import InputError

DRAWN = "Conv2d, BatchNorm2d behind a convolution, ReLU, MaxPool2d, a mean over all positions, Flatten and Linear"
MAX_CHANNELS, MAX_UNITS, MAX_WEIGHTS = 64, 512, 1_000_000
"""What a page can show legibly: maps of a layer, units of a layer without positions, weights of the network."""


@dataclass(frozen=True)
class PageLayer:
    """One layer of the page.

    Attributes:
        name: as in the network.
        type: ``conv``, ``relu``, ``pool``, ``mean``, ``flatten`` or ``linear``.
        weight: float32 [out, in, k, k] of a convolution, [out, in] of a linear layer; else None. On the CPU.
        bias: float32 [out], zeros where the network has none; else None.
        size: side of the window of a pooling.
        stride: step of a convolution or a pooling.
        pad: zeros around the maps of a convolution.
        note: what was done to the layer, in words.
    """

    name: str
    type: str
    weight: Tensor | None = field(default=None, compare=False)
    bias: Tensor | None = field(default=None, compare=False)
    size: int = 0
    stride: int = 1
    pad: int = 0
    note: str = ""

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape behind the layer: [C, H, W] or [n], without the batch.

        Raises:
            InputError: the layer does not fit the shape.
        """
        if self.type == "relu":
            return shape
        if self.type == "flatten":
            return (math.prod(shape),)
        if self.type == "linear":
            assert self.weight is not None
            if shape != (self.weight.shape[1],):
                raise InputError(
                    f"the layer takes {self.weight.shape[1]} values, it is given {list(shape)}",
                    where=self.name,
                    remedy="flatten the maps before it, and give the image_size that the network was made for",
                )
            return (len(self.weight),)
        if len(shape) != 3:
            raise InputError(f"the layer takes maps, it is given {list(shape)}", where=self.name, remedy="put it before Flatten")
        if self.type == "mean":
            return (shape[0],)
        channels, kernel = shape[0], self.size
        if self.weight is not None:
            if shape[0] != self.weight.shape[1]:
                raise InputError(
                    f"the layer takes {self.weight.shape[1]} channels, it is given {shape[0]}",
                    where=self.name,
                    remedy="are the layers in the order of the network?",
                )
            channels, kernel = self.weight.shape[0], self.weight.shape[2]
        side = [(value + 2 * self.pad - kernel) // self.stride + 1 for value in shape[1:]]
        if min(side) < 1:
            raise InputError(
                f"a window of {kernel} does not fit into maps of {shape[1]}x{shape[2]}",
                where=self.name,
                remedy="give a larger image_size",
            )
        return channels, side[0], side[1]


def read_layers(network: nn.Module) -> list[PageLayer]:
    """The layers of ``network`` in eval mode, batch norms folded into the convolutions before them.

    Dropout and Identity do nothing in eval mode and are left out; so is a softmax at the end, which the page adds itself.

    Raises:
        InputError: a layer that the page cannot draw (named, with what it can), layers that are no chain, weights that
            are not finite, or more of them than a page can show.
    """
    network = copy.deepcopy(network).cpu().eval()
    try:
        traced = fx.symbolic_trace(network)
    except Exception as error:  # the tracer raises whatever the network's own code does with a placeholder
        raise InputError(
            f"the network cannot be read as a chain of layers: {type(error).__name__}: {error}"[:300],
            where=type(network).__name__,
            remedy=f"give an nn.Sequential of {DRAWN}",
        ) from error
    layers: list[PageLayer] = []
    previous: fx.Node | None = None
    for node in traced.graph.nodes:
        if node.op == "output":
            _check_chain(_output_node(node), previous, "the output")
            break
        if previous is None:
            if node.op != "placeholder":
                raise _not_drawn(node.name, f"{node.op} before the input")
            previous = node
            continue
        if node.op == "placeholder":
            raise _not_drawn(node.name, "a second input")
        _check_chain(node.args[0] if node.args else None, previous, str(node.target))
        _check_alone(node)
        layers = _append(layers, _read_node(traced, node))
        previous = node
    return _checked(layers)


def _output_node(node: fx.Node) -> Any:
    found = node.args[0]
    return found.get("logits") if isinstance(found, Mapping) else found


def _check_chain(given: Any, previous: fx.Node | None, name: str) -> None:
    if given is not previous:
        raise _not_drawn(name, "does not follow the layer before it: the network has a shortcut or several branches")


def _check_alone(node: fx.Node) -> None:
    if len(node.all_input_nodes) > 1:
        raise _not_drawn(str(node.target), "takes several inputs: the network has a shortcut or several branches")


def _not_drawn(name: str, problem: str) -> InputError:
    return InputError(f"the page cannot draw this layer: {problem}", where=name, remedy=f"what it draws: {DRAWN}")


def _append(layers: list[PageLayer], layer: PageLayer | nn.BatchNorm2d | None) -> list[PageLayer]:
    """``layers`` with one more; a batch norm changes the convolution before it."""
    if layer is None:
        return layers
    if isinstance(layer, PageLayer):
        flat = layer.type == "flatten" and bool(layers) and layers[-1].type in ("mean", "flatten", "linear")
        return layers if flat else [*layers, layer]
    if not layers or layers[-1].type != "conv" or layers[-1].note:
        raise _not_drawn("BatchNorm2d", "a batch norm that does not follow a convolution")
    return [*layers[:-1], _folded(layers[-1], layer)]


def _folded(layer: PageLayer, norm: nn.BatchNorm2d) -> PageLayer:
    """The convolution that does what ``layer`` and then ``norm`` do; sums in double precision."""
    assert layer.weight is not None and layer.bias is not None
    if norm.running_mean is None or norm.running_var is None:
        raise _not_drawn(layer.name, "a batch norm without running statistics")
    scale = (norm.running_var.double() + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight.detach().double())
    shift = 0.0 if norm.bias is None else norm.bias.detach().double()
    weight = layer.weight.double() * scale[:, None, None, None]
    bias = (layer.bias.double() - norm.running_mean.double()) * scale + shift
    return replace(layer, weight=weight.float(), bias=bias.float(), note="batch norm folded in")


def _read_node(traced: fx.GraphModule, node: fx.Node) -> PageLayer | nn.BatchNorm2d | None:
    """What one node of the traced network is; None: nothing in eval mode."""
    if node.op == "call_module":
        return _read_module(str(node.target), traced.get_submodule(str(node.target)))
    if node.op not in ("call_function", "call_method"):
        raise _not_drawn(str(node.target), "a tensor of its own, which no layer holds")
    options = dict(node.kwargs)
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if target in ("relu", "relu_"):
        return PageLayer(node.name, "relu")
    if target == "flatten" and (*node.args[1:], *options.values()) in ((1,), (1, -1)):
        return PageLayer(node.name, "flatten")
    if target == "mean" and sorted(_dimensions([*node.args[1:], *options.values()])) in ([-2, -1], [2, 3]):
        return PageLayer(node.name, "mean")
    if node.target is F.max_pool2d or target in ("max_pool2d", "boolean_dispatch"):
        pooling = nn.MaxPool2d(*node.args[1:], **options)  # type: ignore[arg-type]
        return _read_module(node.name, pooling)
    if target == "dropout":
        return None
    if node.target in (operator.add, operator.mul, operator.iadd, torch.cat, torch.add):
        raise _not_drawn(target, "the network has a shortcut or several branches")
    raise _not_drawn(target, f"{target}()")


def _dimensions(values: Sequence[Any]) -> list[int]:
    found = [item for value in values for item in (value if isinstance(value, (tuple, list)) else [value])]
    return [item for item in found if isinstance(item, int) and not isinstance(item, bool)]


def _read_module(name: str, module: nn.Module) -> PageLayer | nn.BatchNorm2d | None:
    kind = type(module)
    match module:
        case nn.Conv2d() if kind is nn.Conv2d:
            stride, kernel = _square(name, "stride", module.stride), _square(name, "kernel", module.kernel_size)
            pad: Any = module.padding if module.padding != "same" else (kernel - 1) // 2
            if module.padding == "same" and kernel % 2 == 0:
                raise _not_drawn(name, "padding 'same' of an even kernel")
            plain = module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
            if not plain:
                raise _not_drawn(name, f"a grouped, dilated or {module.padding_mode}-padded convolution")
            zeros = 0 if pad == "valid" else _square(name, "padding", pad)
            return PageLayer(name, "conv", *_weights(module), stride=stride, pad=zeros)
        case nn.Linear() if kind is nn.Linear:
            return PageLayer(name, "linear", *_weights(module))
        case nn.ReLU():
            return PageLayer(name, "relu")
        case nn.MaxPool2d():
            if module.ceil_mode or set(_pair(module.padding)) != {0} or set(_pair(module.dilation)) != {1}:
                raise _not_drawn(name, "a pooling with padding, dilation or ceil_mode")
            step = module.kernel_size if module.stride is None else module.stride
            return PageLayer(name, "pool", size=_square(name, "window", module.kernel_size), stride=_square(name, "stride", step))
        case nn.AdaptiveAvgPool2d() if set(_pair(module.output_size)) == {1}:
            return PageLayer(name, "mean")
        case nn.Flatten() if module.start_dim == 1 and module.end_dim == -1:
            return PageLayer(name, "flatten")
        case nn.BatchNorm2d():
            return module
        case nn.Dropout() | nn.Dropout2d() | nn.Identity():
            return None
        case nn.Softmax() | nn.LogSoftmax() if module.dim in (1, -1):
            return PageLayer(name, "softmax")
    raise _not_drawn(name, kind.__name__)


def _weights(module: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    weight = module.weight.detach().float().contiguous()
    bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach().float().contiguous()
    return weight, bias


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _square(name: str, what: str, value: Any) -> int:
    sides = _pair(value)
    if len(set(sides)) != 1:
        raise _not_drawn(name, f"a {what} of {sides[0]}x{sides[1]}, which is not square")
    return int(sides[0])


def _checked(layers: list[PageLayer]) -> list[PageLayer]:
    """``layers`` without a softmax at the end, once they are a network that the page can show."""
    if layers and layers[-1].type == "softmax":
        layers = layers[:-1]
    kinds = [layer.type for layer in layers]
    if "softmax" in kinds:
        raise _not_drawn(layers[kinds.index("softmax")].name, "a softmax that is not the last layer")
    if not kinds or kinds[0] != "conv":
        raise InputError("the first layer is no convolution", where="network", remedy=f"a chain of {DRAWN}, a Conv2d first")
    if kinds[-1] != "linear":
        raise InputError(
            f"the last layer is {layers[-1].name} ({kinds[-1]}), which gives no logits",
            where="network",
            remedy="a Linear layer must come last, one output a class",
        )
    for layer in layers:
        for what, value in (("weight", layer.weight), ("bias", layer.bias)):
            if value is not None and not bool(value.isfinite().all()):
                count = int((~value.isfinite()).sum())
                raise InputError(
                    f"{count} of {value.numel()} values of the {what} are NaN or infinite",
                    where=layer.name,
                    remedy="the training diverged: lower its learning rate, or take an earlier checkpoint",
                )
        most = MAX_CHANNELS if layer.type == "conv" else MAX_UNITS
        if layer.weight is not None and len(layer.weight) > most:
            raise InputError(
                f"{len(layer.weight)} outputs of one layer, a page shows {most} legibly",
                where=layer.name,
                remedy="distil the network into a smaller one first, such as tiny-vgg",
            )
    if (total := parameter_count(layers)) > MAX_WEIGHTS:
        raise InputError(
            f"{total:,} parameters, a page holds {MAX_WEIGHTS:,}",
            where="network",
            remedy="distil the network into a smaller one first, such as tiny-vgg",
        )
    return layers


def parameter_count(layers: Sequence[PageLayer]) -> int:
    """Weights and biases of all layers."""
    return sum(value.numel() for layer in layers for value in (layer.weight, layer.bias) if value is not None)


def layer_shapes(layers: Sequence[PageLayer], image_size: int) -> list[tuple[int, ...]]:
    """The shape behind each layer, for square images.

    Raises:
        InputError: a layer does not fit what comes before it.
    """
    assert layers[0].weight is not None
    shape: tuple[int, ...] = (layers[0].weight.shape[1], image_size, image_size)
    shapes = []
    for layer in layers:
        shape = layer.output_shape(shape)
        shapes.append(shape)
    return shapes


def to_network(layers: Sequence[PageLayer]) -> nn.Sequential:
    """The layers as a network of torch, with the same weights to the bit; ``.`` in names becomes ``_``."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for layer in layers:
        modules[layer.name.replace(".", "_")] = BUILD[layer.type](layer)
    return nn.Sequential(modules).eval()


def _conv(layer: PageLayer) -> nn.Module:
    assert layer.weight is not None
    outer, inner, kernel, _ = layer.weight.shape
    return _filled(nn.Conv2d(inner, outer, kernel, layer.stride, layer.pad), layer)


def _linear(layer: PageLayer) -> nn.Module:
    assert layer.weight is not None
    return _filled(nn.Linear(layer.weight.shape[1], layer.weight.shape[0]), layer)


def _filled(module: Any, layer: PageLayer) -> nn.Module:
    with torch.no_grad():
        module.weight.copy_(layer.weight)
        module.bias.copy_(layer.bias)
    return module.requires_grad_(False)


BUILD: Mapping[str, Callable[[PageLayer], nn.Module]] = {
    "conv": _conv,
    "linear": _linear,
    "relu": lambda layer: nn.ReLU(),
    "pool": lambda layer: nn.MaxPool2d(layer.size, layer.stride),
    "mean": lambda layer: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "flatten": lambda layer: nn.Flatten(),
}
"""The layer of torch for each type of layer."""
