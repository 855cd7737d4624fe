"""Layers as the page holds them: JSON, weights as little-endian float32 in base64."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.fields import check_field, check_items
from tutelage.systems.cnn_explainer.layers import BUILD, PageLayer


def to_json(layer: PageLayer) -> dict[str, Any]:
    """The layer as the page reads it; weights are little-endian float32 in base64, in PyTorch's order."""
    found: dict[str, Any] = {"name": layer.name, "type": layer.type}
    if layer.note:
        found["note"] = layer.note
    if layer.weight is not None and layer.bias is not None:
        found |= {"shape": list(layer.weight.shape), "weight": encode(layer.weight), "bias": encode(layer.bias)}
    if layer.type == "pool":
        found["size"] = layer.size
    if layer.type in ("conv", "pool"):
        found |= {"stride": layer.stride, "pad": layer.pad}
    return found


def from_json(value: Any, where: str) -> PageLayer:
    """The layer that :func:`to_json` wrote.

    Raises:
        InputError: a field is missing or of another kind; the message names it.
    """
    name, kind = check_field(value, "name", str, where=where), check_field(value, "type", str, where=where, choices=sorted(BUILD))
    if kind not in ("conv", "linear"):
        size = check_field(value, "size", int, where=where, least=1) if kind == "pool" else 0
        stride = check_field(value, "stride", int, where=where, least=1) if kind == "pool" else 1
        return PageLayer(name, kind, size=size, stride=stride)
    shape = check_items(value, "shape", int, where=where)
    weight = decode(check_field(value, "weight", str, where=where), shape, f"{where}: weight")
    bias = decode(check_field(value, "bias", str, where=where), shape[:1], f"{where}: bias")
    if kind == "linear":
        return PageLayer(name, kind, weight, bias)
    stride, pad = check_field(value, "stride", int, where=where, least=1), check_field(value, "pad", int, where=where, least=0)
    return PageLayer(name, kind, weight, bias, stride=stride, pad=pad)


def encode(values: Tensor) -> str:
    """float32 values as base64."""
    return base64.b64encode(values.numpy().astype("<f4").tobytes()).decode("ascii")


def decode(text: str, shape: Sequence[int], where: str) -> Tensor:
    """What :func:`encode` wrote.

    Raises:
        InputError: not base64, or another number of values.
    """
    try:
        data = base64.b64decode(text, validate=True)
        return torch.from_numpy(np.frombuffer(data, "<f4").reshape(list(shape)).astype(np.float32))
    except ValueError as error:
        raise InputError(f"damaged: {error}", where=where, remedy="write the page again") from error
