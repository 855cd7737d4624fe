"""A network from a TensorFlow.js graph model: a JSON of nodes and a file of weights, as one torch module.

Every operator of :data:`OPERATORS` is a function with TensorFlow's own meaning, layouts included; nodes whose inputs are
all constants are computed once, when the graph is read. Nothing of the file is ever run: an operator that is not in the
table is refused by name. Source: the graph-model format of TensorFlow.js (model.json, weight manifest) and the operator
definitions of TensorFlow 2.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import InputError, did_you_mean
from tutelage.reading import parse_json

Attributes = Mapping[str, Any]
Operator = Callable[..., Tensor | tuple[Tensor, ...]]


class TfjsNode(NamedTuple):
    """A node of the graph: its name, its operator, its inputs as (node, which output), and its attributes."""

    name: str
    operator: str
    inputs: tuple[tuple[str, int], ...]
    attributes: Attributes


class TfjsNetwork(nn.Module):
    """The graph as a module: ``forward(x)`` gives its outputs by name. Float constants are its parameters.

    The graph is made for a batch of one; any batch may go in (:func:`_reshape` keeps the first dimension).

    Raises:
        InputError: an unknown operator, or a node that reads what no node gives.
    """

    def __init__(self, nodes: Sequence[TfjsNode], weights: Mapping[str, Tensor], outputs: Sequence[str]):
        super().__init__()
        self.outputs = tuple(outputs)
        self.input = next((node.name for node in nodes if node.operator == "Placeholder"), "")
        self.parameters_by_name = nn.ParameterDict()
        self._constants: dict[str, Any] = {}
        known: dict[str, Any] = {}
        self._steps: list[tuple[TfjsNode, Operator]] = []
        for node in _in_order(nodes, self.outputs):
            if node.operator == "Const":
                known[node.name] = weights[node.name]
            elif node.operator != "Placeholder":
                if node.operator not in OPERATORS:
                    remedy = did_you_mean(node.operator, list(OPERATORS))
                    raise InputError(f"the operator {node.operator} is not read", where=node.name, remedy=remedy)
                operator = OPERATORS[node.operator]
                if all(source in known for source, _ in node.inputs):
                    known[node.name] = operator(node.attributes, *(_pick(known[name], which) for name, which in node.inputs))
                else:
                    self._steps.append((node, operator))
        for node, _ in self._steps:
            for place, (source, _which) in enumerate(node.inputs):
                if source in known:
                    self._keep(source, known[source], filters=node.operator == "Conv2D" and place == 1)

    def _keep(self, name: str, value: Any, filters: bool) -> None:
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
            if filters:  # laid out as torch wants them, still shaped as TensorFlow has them
                value = value.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last).permute(2, 3, 1, 0)
            self.parameters_by_name[_key(name)] = nn.Parameter(value)
        else:
            self._constants[name] = value

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Every output of the graph, by name."""
        values: dict[str, Any] = {**self._constants, self.input: x}
        parameters = self.parameters_by_name
        for node, operator in self._steps:
            inputs = [
                _pick(values[name], which) if name in values else parameters[_key(name)] for name, which in node.inputs
            ]  # fmt: skip
            values[node.name] = operator(node.attributes, *inputs)
        return {name: values[name] for name in self.outputs}


def read_graph(model: bytes, weights: bytes, where: str = "graph") -> TfjsNetwork:
    """The network of a graph model: its ``model.json``, and its weight files one after another.

    Raises:
        InputError: not a graph model, weights of another length or of a type that is not read, an unknown operator.
    """
    try:
        data = parse_json(model, where)
        if data["format"] != "graph-model":
            raise InputError(f"format {data['format']!r}, not graph-model", where=where, remedy="give a TensorFlow.js graph model")
        nodes = [_node(row) for row in data["modelTopology"]["node"]]
        entries = [entry for group in data["weightsManifest"] for entry in group["weights"]]
        outputs = [name.partition(":")[0] for name in data["signature"]["outputs"]]
        return TfjsNetwork(nodes, read_weights(entries, weights, where), outputs)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise InputError(f"not a graph model: {error!r}"[:200], where=where, remedy="is the file whole?") from error


def read_weights(entries: Sequence[Mapping[str, Any]], data: bytes, where: str = "graph") -> dict[str, Tensor]:
    """The weights that the manifest's ``entries`` {name, shape, dtype, quantization?} describe, in order in ``data``.

    Raises:
        InputError: a type that is not read, or ``data`` of another length.
    """
    found, start = {}, 0
    for entry in entries:
        kind = entry.get("quantization", {}).get("dtype", entry["dtype"])
        if kind not in _TYPES or entry["dtype"] not in _TYPES:
            raise InputError(
                f"weights of type {kind} are not read", where=f"{where}: {entry['name']}", remedy=f"{', '.join(_TYPES)}"
            )
        count, size = math.prod(entry["shape"]), np.dtype(_TYPES[kind]).itemsize
        if start + count * size > len(data):
            raise InputError(f"{len(data)} bytes are too few", where=f"{where}: {entry['name']}", remedy="is the file whole?")
        values = np.frombuffer(data, _TYPES[kind], count, start).reshape(entry["shape"])
        found[entry["name"]] = torch.from_numpy(values.astype(_TYPES[entry["dtype"]]))
        start += count * size
    if start != len(data):
        raise InputError(f"{len(data)} bytes, the manifest speaks of {start}", where=where, remedy="is it the right file?")
    return found


_TYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4"}


def _node(row: Mapping[str, Any]) -> TfjsNode:
    inputs = []
    for text in row.get("input", ()):
        name, _, which = text.partition(":")
        inputs.append((name, int(which or 0)))
    return TfjsNode(row["name"], row["op"], tuple(inputs), row.get("attr", {}))


def _in_order(nodes: Sequence[TfjsNode], outputs: Sequence[str]) -> list[TfjsNode]:
    """The nodes that the outputs need, each after those it reads."""
    by_name, done, ordered = {node.name: node for node in nodes}, set[str](), list[TfjsNode]()
    waiting = [(name, False) for name in reversed(outputs)]
    while waiting:
        name, ready = waiting.pop()
        if name not in by_name:
            raise InputError(f"no node {name!r} in the graph", where=name, remedy="is the file whole?")
        if ready:
            ordered.append(by_name[name])
        elif name not in done:
            done.add(name)
            waiting.append((name, True))
            waiting.extend((source, False) for source, _ in by_name[name].inputs)
    return ordered


def _key(name: str) -> str:
    return name.replace(".", "_").replace("/", "_")


def _pick(value: Any, which: int) -> Any:
    return value[which] if isinstance(value, tuple) else value


def _ints(attributes: Attributes, name: str) -> list[int]:
    return [int(number) for number in attributes[name]["list"]["i"]]


def _text(attributes: Attributes, name: str, default: str) -> str:
    """A text attribute; the format keeps it in base64."""
    return base64.b64decode(attributes[name]["s"]).decode() if name in attributes else default


def _strides(attributes: Attributes, paddings: tuple[str, ...] = ("VALID",)) -> list[int]:
    """The strides over height and width, where the layout and padding are those that are read."""
    layout, padding = _text(attributes, "data_format", "NHWC"), _text(attributes, "padding", "VALID")
    if layout != "NHWC" or padding not in paddings:
        raise InputError(f"{layout} with {padding} padding is not read", where="graph", remedy=f"NHWC with {paddings} is")
    return _ints(attributes, "strides")[1:3]


def _convolve(attributes: Attributes, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """x [B, h, w, I], weight [O, I / groups, kh, kw] -> [B, h', w', O]."""
    strides = _strides(attributes, ("VALID", "SAME"))
    dilation = _ints(attributes, "dilations")[1:3] if "dilations" in attributes else [1, 1]
    x = x.permute(0, 3, 1, 2)
    if _text(attributes, "padding", "VALID") == "SAME":
        spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation)]
        (top, bottom), (left, right) = (_same(-(-n // s), n, k, s) for n, k, s in zip(x.shape[2:], spans, strides))
        x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, None, strides, 0, dilation, groups).permute(0, 2, 3, 1)


def _same(small: int, large: int, kernel: int, stride: int) -> tuple[int, int]:
    """What "SAME" pads before and after ``large`` cells, so that ``small`` windows fit: the odd one goes after."""
    missing = max(0, (small - 1) * stride + kernel - large)
    return missing // 2, missing - missing // 2


def _conv(attributes: Attributes, x: Tensor, filters: Tensor) -> Tensor:
    """filters [kh, kw, I / groups, O]."""
    return _convolve(attributes, x, filters.permute(3, 2, 0, 1), x.shape[3] // filters.shape[2])


def _depthwise(attributes: Attributes, x: Tensor, filters: Tensor) -> Tensor:
    """filters [kh, kw, I, M]: each channel has M of its own, and they stand together in the output."""
    height, width, inside, times = filters.shape
    return _convolve(attributes, x, filters.permute(2, 3, 0, 1).reshape(inside * times, 1, height, width), inside)


def _conv_back(attributes: Attributes, size: Tensor, filters: Tensor, x: Tensor) -> Tensor:
    """The gradient of a convolution by its input: x [B, h, w, O], filters [kh, kw, I, O] -> [B, *size, I]."""
    strides = _strides(attributes, ("VALID", "SAME"))
    y = F.conv_transpose2d(x.permute(0, 3, 1, 2), filters.permute(3, 2, 0, 1), None, strides)
    (top, _), (left, _) = (
        _same(n, m, k, s) for n, m, k, s in zip(x.shape[1:3], size[1:3].tolist(), filters.shape[:2], strides)
    )  # fmt: skip
    height, width = size[1:3].tolist()
    y = F.pad(y, (0, max(0, width - y.shape[3]), 0, max(0, height - y.shape[2])))  # cells that no window reached
    return y[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)


def _pool(pool: Callable[..., Tensor]) -> Operator:
    def answer(attributes: Attributes, x: Tensor) -> Tensor:
        y = pool(x.permute(0, 3, 1, 2), _ints(attributes, "ksize")[1:3], _strides(attributes))
        return y.permute(0, 2, 3, 1)

    return answer


def _pad(attributes: Attributes, x: Tensor, paddings: Tensor, value: Tensor | float = 0.0) -> Tensor:
    """paddings [D, 2]: before and after, dimension by dimension."""
    return F.pad(x, [side for pair in reversed(paddings.tolist()) for side in pair], value=float(value))


def _resize(attributes: Attributes, x: Tensor, size: Tensor) -> Tensor:
    corners, centers = (attributes.get(name, {}).get("b", False) for name in ("align_corners", "half_pixel_centers"))
    if corners == centers:
        raise InputError("old bilinear resizing is not read", where="graph", remedy="half_pixel_centers or align_corners")
    y = F.interpolate(x.permute(0, 3, 1, 2), size.tolist(), mode="bilinear", align_corners=corners)
    return y.permute(0, 2, 3, 1)


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    """A first dimension of 1 is the batch, whatever its size."""
    first, *rest = shape.tolist()
    return x.reshape(x.shape[0] if first == 1 and rest else first, *rest)


def _sparse_to_dense(attributes: Attributes, places: Tensor, shape: Tensor, values: Tensor, default: Tensor) -> Tensor:
    """places [N, D] hold ``values``, all others ``default``."""
    dense = torch.full(tuple(shape.tolist()), default.item(), dtype=values.dtype)
    if len(places):
        dense[tuple(places.long().unbind(1))] = values
    return dense


def _split(attributes: Attributes, x: Tensor, sizes: Tensor, axis: Tensor) -> tuple[Tensor, ...]:
    return x.split(sizes.tolist(), int(axis))


def _add(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    return a + b


def _concat(attributes: Attributes, *parts: Tensor) -> Tensor:
    return torch.cat(parts[:-1], int(parts[-1]))


OPERATORS: Mapping[str, Operator] = {
    "Add": _add,
    "AddN": lambda attributes, *parts: sum(parts[1:], parts[0]),
    "AddV2": _add,
    "AvgPool": _pool(F.avg_pool2d),
    "ConcatV2": _concat,
    "Conv2D": _conv,
    "Conv2DBackpropInput": _conv_back,
    "DepthwiseConv2dNative": _depthwise,
    "Identity": lambda attributes, x: x,
    "LeakyRelu": lambda attributes, x: F.leaky_relu(x, attributes["alpha"]["f"]),
    "MaxPool": _pool(F.max_pool2d),
    "Mul": lambda attributes, a, b: a * b,
    "Pad": _pad,
    "PadV2": _pad,
    "Relu": lambda attributes, x: F.relu(x),
    "Relu6": lambda attributes, x: F.relu6(x),
    "Reshape": _reshape,
    "ResizeBilinear": _resize,
    "Sigmoid": lambda attributes, x: x.sigmoid(),
    "SparseToDense": _sparse_to_dense,
    "SplitV": _split,
    "Transpose": lambda attributes, x, order: x.permute(order.tolist()),
}
"""What TensorFlow calls each operator that is read, as a function of its attributes and inputs."""
