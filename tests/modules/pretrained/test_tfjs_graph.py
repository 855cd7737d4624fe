"""Every operator on a small graph made by hand, its answer worked out by hand or with numpy in TensorFlow's layout."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.errors import InputError
from tutelage.modules.pretrained.tfjs_graph import OPERATORS, read_graph, read_weights

Constants = Mapping[str, np.ndarray]


def text(value: str) -> dict[str, str]:
    return {"s": base64.b64encode(value.encode()).decode()}


def ints(*values: int) -> dict[str, Any]:
    return {"list": {"i": [str(value) for value in values]}}


def model(nodes: Sequence[Mapping[str, Any]], constants: Constants, outputs: Sequence[str]) -> tuple[bytes, bytes]:
    """A graph model: a placeholder ``x``, the constants, the nodes."""
    kinds = {"float32": "float32", "int32": "int32"}
    entries = [{"name": name, "shape": list(a.shape), "dtype": kinds[str(a.dtype)]} for name, a in constants.items()]
    rows = [{"name": "x", "op": "Placeholder"}, *({"name": name, "op": "Const"} for name in constants), *nodes]
    data = {
        "format": "graph-model",
        "modelTopology": {"node": rows},
        "signature": {"outputs": {f"{name}:0": {} for name in outputs}},
        "weightsManifest": [{"paths": ["w.bin"], "weights": entries}],
    }
    return json.dumps(data).encode(), b"".join(array.tobytes() for array in constants.values())


def answer(operator: str, x: np.ndarray, constants: Constants, attributes: Mapping[str, Any] | None = None, which: int = 0):
    node = {"name": "y", "op": operator, "input": ["x", *constants], "attr": dict(attributes or {})}
    end = {"name": "end", "op": "Identity", "input": [f"y:{which}"]}
    network = read_graph(*model([end, node], constants, ["end"]))  # the end stands first: the order of the file does not matter
    return network(torch.from_numpy(x))["end"].detach().numpy()


def counting(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 3


WINDOW = {"strides": ints(1, 2, 2, 1), "padding": text("VALID"), "data_format": text("NHWC"), "dilations": ints(1, 1, 1, 1)}


def convolved(x: np.ndarray, filters: np.ndarray, stride: int, dilation: int = 1) -> np.ndarray:
    """NHWC convolution, cell by cell; fewer filter channels than the input's mean groups."""
    kh, kw, inside, outside = filters.shape
    groups = x.shape[3] // inside
    h, w = ((n - (k - 1) * dilation - 1) // stride + 1 for n, k in zip(x.shape[1:3], (kh, kw)))
    y = np.zeros((x.shape[0], h, w, outside), np.float32)
    for i, j, o in itertools.product(range(h), range(w), range(outside)):
        first = o // (outside // groups) * inside
        for a, b in itertools.product(range(kh), range(kw)):
            patch = x[:, i * stride + a * dilation, j * stride + b * dilation, first : first + inside]
            y[:, i, j, o] += patch @ filters[a, b, :, o]
    return y


@pytest.mark.parametrize(("channels", "inside", "dilation"), [(4, 4, 1), (4, 2, 1), (4, 1, 1), (3, 3, 2)])
def test_convolution_in_groups_and_dilated(channels: int, inside: int, dilation: int) -> None:
    rng = np.random.default_rng(0)
    x, filters = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 7, 6, channels), (3, 2, inside, 4)))
    filters = filters[..., : (3 if channels == 3 else 4)]
    filters = np.ascontiguousarray(filters)
    attributes = WINDOW | {"dilations": ints(1, dilation, dilation, 1)}
    np.testing.assert_allclose(answer("Conv2D", x, {"f": filters}, attributes), convolved(x, filters, 2, dilation), atol=1e-5)


def test_pools() -> None:
    x = counting(1, 4, 4, 2)
    windows, attributes = x.reshape(1, 2, 2, 2, 2, 2), WINDOW | {"ksize": ints(1, 2, 2, 1)}
    np.testing.assert_array_equal(answer("MaxPool", x, {}, attributes), windows.max((2, 4)))
    np.testing.assert_allclose(answer("AvgPool", x, {}, attributes), windows.mean((2, 4)), atol=1e-6)
    with pytest.raises(InputError, match="SAME"):
        answer("MaxPool", x, {}, attributes | {"padding": text("SAME")})


@pytest.mark.parametrize(("side", "kernel"), [(7, 3), (8, 3), (8, 4), (5, 1)])
def test_same_padding_puts_the_odd_cell_after(side: int, kernel: int) -> None:
    rng = np.random.default_rng(0)
    x, filters = (rng.normal(size=shape).astype(np.float32) for shape in ((1, side, side, 2), (kernel, kernel, 2, 3)))
    missing = max(0, (-(-side // 2) - 1) * 2 + kernel - side)
    around = (missing // 2, missing - missing // 2)
    wanted = convolved(np.pad(x, ((0, 0), around, around, (0, 0))), filters, 2)
    np.testing.assert_allclose(answer("Conv2D", x, {"f": filters}, WINDOW | {"padding": text("SAME")}), wanted, atol=1e-5)


def test_depthwise_convolution_keeps_a_channels_filters_together() -> None:
    rng = np.random.default_rng(0)
    x, filters = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 5, 5, 3), (3, 3, 3, 2)))
    y = answer("DepthwiseConv2dNative", x, {"f": filters}, WINDOW)
    for channel, copy in itertools.product(range(3), range(2)):
        alone = convolved(x[..., channel : channel + 1], filters[:, :, channel : channel + 1, copy : copy + 1], 2)
        np.testing.assert_allclose(y[..., channel * 2 + copy], alone[..., 0], atol=1e-5)


@pytest.mark.parametrize(
    ("side", "kernel", "padding"), [(8, 2, "SAME"), (7, 3, "SAME"), (8, 3, "SAME"), (7, 3, "VALID"), (8, 3, "VALID")]
)
def test_a_convolution_backwards_is_its_gradient(side: int, kernel: int, padding: str) -> None:
    """<conv(z), x> = <z, back(x)> for every z."""
    rng, attributes = np.random.default_rng(0), WINDOW | {"padding": text(padding)}
    filters = rng.normal(size=(kernel, kernel, 2, 3)).astype(np.float32)
    z = rng.normal(size=(1, side, side, 2)).astype(np.float32)
    forward = answer("Conv2D", z, {"f": filters}, attributes)
    x = rng.normal(size=forward.shape).astype(np.float32)
    constants = {"size": np.array([1, side, side, 2], np.int32), "f": filters}
    node = {"name": "y", "op": "Conv2DBackpropInput", "input": ["size", "f", "x"], "attr": attributes}
    back = read_graph(*model([node], constants, ["y"]))(torch.from_numpy(x))["y"].detach().numpy()
    assert back.shape == z.shape
    assert float((forward * x).sum()) == pytest.approx(float((z * back).sum()), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("operator", ["Add", "AddV2"])
def test_add_spreads_over_the_last_dimension(operator: str) -> None:
    x, b = counting(1, 2, 2, 3), np.array([10, 20, 30], np.float32)
    np.testing.assert_array_equal(answer(operator, x, {"b": b}), x + b)


def test_products_and_sums_of_several() -> None:
    x, a, b = counting(1, 2, 3), np.array([2, 3, 4], np.float32), counting(1, 2, 3)
    np.testing.assert_array_equal(answer("Mul", x, {"a": a}), x * a)
    np.testing.assert_array_equal(answer("AddN", x, {"a": a, "b": b}), x + a + b)


def test_pads() -> None:
    x, by = counting(1, 2, 2, 1), np.array([[0, 0], [1, 0], [0, 2], [0, 0]], np.int32)
    np.testing.assert_array_equal(answer("Pad", x, {"by": by}), np.pad(x, by))
    value = np.array(-7, np.float32)
    np.testing.assert_array_equal(answer("PadV2", x, {"by": by, "v": value}), np.pad(x, by, constant_values=-7))


def test_activations() -> None:
    x = np.array([-2.0, 0.0, 3.0], np.float32)
    assert answer("Relu", x, {}).tolist() == [0, 0, 3] and answer("Relu6", 3 * x, {}).tolist() == [0, 0, 6]
    np.testing.assert_allclose(answer("LeakyRelu", x, {}, {"alpha": {"f": 0.1}}), [-0.2, 0, 3], atol=1e-7)
    np.testing.assert_allclose(answer("Sigmoid", x, {}), 1 / (1 + np.exp(-x)), atol=1e-6)


def test_transpose_reshape_concatenate() -> None:
    x = counting(2, 3, 4)
    np.testing.assert_array_equal(answer("Transpose", x, {"p": np.array([0, 2, 1], np.int32)}), x.transpose(0, 2, 1))
    np.testing.assert_array_equal(answer("Reshape", x, {"s": np.array([1, 4, -1], np.int32)}), x.reshape(2, 4, 3))  # 1: the batch
    np.testing.assert_array_equal(answer("Reshape", x, {"s": np.array([6, 4], np.int32)}), x.reshape(6, 4))
    more = counting(2, 1, 4)
    joined = answer("ConcatV2", x, {"m": more, "axis": np.array(1, np.int32)})
    np.testing.assert_array_equal(joined, np.concatenate([x, more], 1))


@pytest.mark.parametrize("which", [0, 1])
def test_split_has_several_outputs(which: int) -> None:
    x = counting(1, 5)
    parts = answer("SplitV", x, {"sizes": np.array([2, 3], np.int32), "axis": np.array(1, np.int32)}, which=which)
    np.testing.assert_array_equal(parts, x[:, :2] if which == 0 else x[:, 2:])


def test_bilinear_resizing_by_half_pixels() -> None:
    x = np.array([[[[0.0], [4.0]]]], np.float32)  # a row of two: centres at 0.5 and 1.5 of 2, asked at 4 places
    size = np.array([1, 4], np.int32)
    attributes = {"align_corners": {"b": False}, "half_pixel_centers": {"b": True}}
    np.testing.assert_allclose(answer("ResizeBilinear", x, {"s": size}, attributes).ravel(), [0, 1, 3, 4])
    corners = {"align_corners": {"b": True}, "half_pixel_centers": {"b": False}}
    np.testing.assert_allclose(answer("ResizeBilinear", x, {"s": size}, corners).ravel(), [0, 4 / 3, 8 / 3, 4], atol=1e-6)
    with pytest.raises(InputError, match="bilinear"):
        answer("ResizeBilinear", x, {"s": size}, {})


def test_constants_are_worked_out_once() -> None:
    places, values = np.array([[1]], np.int32), np.array([4], np.int32)
    constants = {"at": places, "of": np.array([3], np.int32), "v": values, "d": np.array(1, np.int32), "two": np.array(2, np.int32)}
    dense = {"name": "dense", "op": "SparseToDense", "input": ["at", "of", "v", "d"]}
    shape = {"name": "shape", "op": "Add", "input": ["dense", "two"]}  # [1, 4, 1] + 2 = [3, 6, 3]
    last = {"name": "y", "op": "Reshape", "input": ["x", "shape"]}
    network = read_graph(*model([last, shape, dense], constants, ["y"]))
    assert network(torch.zeros(54))["y"].shape == (3, 6, 3)
    assert not list(network.parameters())


def test_weights_in_half_precision_become_parameters_and_learn() -> None:
    half = np.array([0.5, -2.0], np.float16)
    entries = [{"name": "b", "shape": [2], "dtype": "float32", "quantization": {"dtype": "float16"}}]
    assert read_weights(entries, half.tobytes())["b"].tolist() == [0.5, -2.0]
    add = {"name": "y", "op": "AddV2", "input": ["x", "b"]}
    network = read_graph(*model([add], {"b": np.array([1.0, 2.0], np.float32)}, ["y"]))
    network(torch.ones(1, 2))["y"].square().sum().backward()
    ((_, bias),) = network.named_parameters()
    assert bias.grad is not None and bias.grad.tolist() == [4.0, 6.0]
    twin = read_graph(*model([add], {"b": np.zeros(2, np.float32)}, ["y"]))
    twin.load_state_dict(network.state_dict())
    assert twin(torch.zeros(1, 2))["y"].tolist() == [[1.0, 2.0]]


def test_every_operator_that_is_read_is_tested_here() -> None:
    import ast
    import inspect
    import sys

    tree = ast.parse(inspect.getsource(sys.modules[__name__]))
    said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert set(OPERATORS) <= said


def test_what_cannot_be_read_is_named() -> None:
    unknown = {"name": "y", "op": "Einsum", "input": ["x"]}
    with pytest.raises(InputError, match="Einsum") as told:
        read_graph(*model([unknown], {}, ["y"]))
    assert told.value.where == "y"
    with pytest.raises(InputError, match="no node 'absent'"):
        read_graph(*model([{"name": "y", "op": "Identity", "input": ["absent"]}], {}, ["y"]))
    with pytest.raises(InputError, match="NCHW"):
        answer("Conv2D", counting(1, 3, 3, 1), {"f": counting(1, 1, 1, 1)}, WINDOW | {"data_format": text("NCHW")})
    good, weights = model([{"name": "y", "op": "AddV2", "input": ["x", "b"]}], {"b": np.zeros(2, np.float32)}, ["y"])
    for bad in (weights[:-1], weights + b"x"):
        with pytest.raises(InputError, match="bytes"):
            read_graph(good, bad)
    with pytest.raises(InputError, match="type uint8"):
        read_weights([{"name": "b", "shape": [1], "dtype": "float32", "quantization": {"dtype": "uint8"}}], b"x")
    for broken in (b"", b"[]", b'{"format": "graph-model"}', b'{"format": "layers-model"}', good[:50]):
        with pytest.raises(InputError):
            read_graph(broken, b"")
