"""A trained network as a list of layers, read from its trace by ``torch.fx``; and slices of its weights for a child."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.systems.n2n_learning.layer_list import Architecture, Block, InvalidNetwork, Layer, ResidualBlock, build

ADDITIONS = (operator.add, operator.iadd, torch.add)
REMEDY = "a chain of convolutions, pooling, batch norm, ReLU, dropout and linear layers, with residual blocks"


def flatten_network(network: nn.Module, inputs: tuple[int, int, int]) -> Architecture:
    """The layer list of an image classifier.

    Args:
        network: a chain of the layers of ``layer_list.KINDS``, with residual blocks that hold no blocks of their own.
        inputs: the shape of an image: channels, height, width.

    Raises:
        InputError: it cannot be traced, holds a layer of another kind, or branches otherwise; the message names where.

    Examples:
        >>> flatten_network(nn.Sequential(nn.Conv2d(1, 16, 3), nn.Flatten(), nn.Linear(576, 4)), (1, 8, 8)).parts[0].channels
        16
    """
    try:
        traced = fx.symbolic_trace(network)
    except Exception as error:  # whatever the network's own code raises on a tracer's values
        raise InputError(f"cannot be traced: {error}"[:300], where=type(network).__name__, remedy=REMEDY) from error
    modules = dict(traced.named_modules())
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    parts: list[Layer | Block] = []
    node = _answer(traced)
    while node.op != "placeholder":
        if node.target in ADDITIONS:
            sides = node.all_input_nodes
            if len(sides) != 2:
                raise InputError("an addition of one layer to itself or a number", where=node.name, remedy=REMEDY)
            fork = max(_ancestors(sides[0]) & _ancestors(sides[1]), key=order.__getitem__)
            branches = sorted((_chain(side, fork, modules) for side in sides), key=len)
            parts.append(Block(branches[1], branches[0]))
            node = fork
        else:
            parts += reversed(_layers(node, modules))
            node = _before(node)
    architecture = Architecture(inputs, tuple(reversed(parts)))
    try:
        build(architecture)
    except InvalidNetwork as error:
        raise InputError(
            f"its layers do not fit images of {inputs}: {error}", where=type(network).__name__, remedy=REMEDY
        ) from error
    return architecture


def _answer(traced: fx.GraphModule) -> fx.Node:
    given = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    if isinstance(given, Mapping):
        given = given.get("logits")
    if not isinstance(given, fx.Node):
        raise InputError("gives neither a tensor nor a dict with logits", where=type(traced).__name__, remedy=REMEDY)
    return given


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """The node itself and all that it is computed from."""
    found, open_nodes = set(), [node]
    while open_nodes:
        one = open_nodes.pop()
        if one not in found:
            found.add(one)
            open_nodes += one.all_input_nodes
    return found


def _before(node: fx.Node) -> fx.Node:
    if len(node.all_input_nodes) != 1:
        raise InputError(f"{node.target} reads {len(node.all_input_nodes)} layers", where=node.name, remedy=REMEDY)
    return node.all_input_nodes[0]


def _chain(node: fx.Node, stop: fx.Node, modules: Mapping[str, nn.Module]) -> tuple[Layer, ...]:
    """The layers between ``stop`` and ``node``."""
    layers: list[Layer] = []
    while node is not stop:
        if node.target in ADDITIONS:
            raise InputError("a residual block within another", where=node.name, remedy=REMEDY)
        layers += reversed(_layers(node, modules))
        node = _before(node)
    return tuple(reversed(layers))


def _layers(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[Layer]:
    """The layers that one step of the trace is."""
    if node.op == "call_module":
        return _module(modules[str(node.target)], str(node.target))
    named: dict[Any, str] = {torch.relu: "relu", F.relu: "relu", torch.flatten: "flatten", torch.mean: "mean", F.dropout: "dropout"}
    step = named.get(node.target, "") if node.op == "call_function" else str(node.target)
    if node.target in (F.adaptive_avg_pool2d,) and node.args[1] in (1, (1, 1)):
        return [Layer("avgpool")]
    if step in ("relu", "relu_"):
        return [Layer("relu")]
    if step == "dropout":
        return [Layer("dropout", rate=float(node.kwargs.get("p", 0.5)))]  # type: ignore[arg-type]
    if step == "mean" and _axes(node) == (2, 3):
        return [Layer("avgpool"), Layer("flatten")]
    if step == "flatten" and (*node.args[1:], *node.kwargs.values()) in ((1,), (1, -1)):
        return [Layer("flatten")]
    if step in ("view", "reshape") and node.args[-1] == -1 and len(node.args) == 3:
        return [Layer("flatten")]
    raise InputError(f"no layer of a known kind: {step or node.target}", where=node.name, remedy=REMEDY)


def _axes(node: fx.Node) -> tuple[int, ...]:
    """The averaged axes, counted from the front of [B, C, H, W]; empty where the averaged ones are kept."""
    given: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
    kept = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
    return () if kept or not isinstance(given, Sequence) else tuple(sorted(axis % 4 for axis in given))


def _module(module: nn.Module, name: str) -> list[Layer]:
    """The layer a module of torch is; an identity is none."""
    if isinstance(module, nn.Identity):
        return []
    if isinstance(module, nn.ReLU):
        return [Layer("relu")]
    if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)) and module.affine and module.track_running_stats:
        return [Layer("batchnorm", source=name)]
    if isinstance(module, nn.Dropout):
        return [Layer("dropout", rate=module.p)]
    if isinstance(module, nn.LogSoftmax) and module.dim in (1, -1):
        return [Layer("logsoftmax")]
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return [Layer("flatten")]
    if isinstance(module, nn.Linear):
        return [Layer("linear", channels=module.out_features, bias=module.bias is not None, source=name)]
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
        return [Layer("avgpool")]
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        window = _window(module, name, module.kernel_size, module.stride, module.padding, module.dilation)
        return [Layer("conv", *window[:2], module.out_channels, window[2], module.bias is not None, source=name)]
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)) and not module.ceil_mode:
        dilation = getattr(module, "dilation", 1)
        kernel, stride, padding = _window(module, name, module.kernel_size, module.stride, module.padding, dilation)
        return [Layer("maxpool" if isinstance(module, nn.MaxPool2d) else "avgpool", kernel, stride, 0, padding)]
    raise InputError(f"no layer of a known kind: {module}"[:200], where=name, remedy=REMEDY)


def _window(module: nn.Module, name: str, *sizes: Any) -> tuple[int, int, int]:
    """Kernel, stride and padding, where each is the same for both axes and the kernel is dense."""
    pairs = [(size, size) if isinstance(size, int) else size for size in sizes]
    if any(isinstance(pair, str) or len(set(pair)) != 1 for pair in pairs) or pairs[3][0] != 1:
        raise InputError(f"no square, dense window: {module}"[:200], where=name, remedy=REMEDY)
    return pairs[0][0], pairs[1][0], pairs[2][0]


# -- weights ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def inherit_weights(student: nn.Sequential, architecture: Architecture, teacher: nn.Module) -> None:
    """Copy into each layer of ``student`` what overlaps with the teacher's layer that it came from: the leading channels and
    the middle of a kernel. What is larger than the teacher's keeps its own start."""
    for module, part in zip(student, architecture.parts, strict=True):
        if isinstance(part, Layer):
            _inherit(module, part, teacher)
            continue
        assert isinstance(module, ResidualBlock)
        for chain, layers in ((module.body, part.body), (module.shortcut, part.shortcut)):
            for place, layer in enumerate(layers):
                _inherit(chain.get_submodule(str(place)), layer, teacher)


def _inherit(module: nn.Module, layer: Layer, teacher: nn.Module) -> None:
    if not layer.source:
        return
    given = teacher.get_submodule(layer.source).state_dict()
    for name, own in module.state_dict().items():
        if own.ndim == 0:
            own.copy_(given[name])
            continue
        targets, sources = zip(
            *(_overlap(axis, a, b) for axis, (a, b) in enumerate(zip(own.shape, given[name].shape, strict=True)))
        )
        part: Tensor = given[name][sources]
        own[targets] = part


def _overlap(axis: int, own: int, given: int) -> tuple[slice, slice]:
    size = min(own, given)
    first, second = ((own - size) // 2, (given - size) // 2) if axis > 1 else (0, 0)
    return slice(first, first + size), slice(second, second + size)
