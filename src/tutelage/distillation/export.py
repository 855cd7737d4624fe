"""Export: the plain student as safetensors, TorchScript or ONNX. None of these needs training code to be read."""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from tutelage import reading, storage
from tutelage.distillation.data import Tree
from tutelage.errors import InputError, MissingExtra, did_you_mean


def save_weights(network: nn.Module, path: str | Path) -> Path:
    """Write the weights and buffers as safetensors, atomically."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    return storage.write_bytes(path, save(state, {"format": "pt"}))


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load safetensors into ``network`` and return it in eval mode. Never unpickles.

    Raises:
        InputError: no such file, not safetensors, or weights of another network (named by the first difference).
    """
    try:
        state = load(reading.read_bytes(path, 64 << 30))
    except SafetensorError as error:
        raise InputError(f"not readable safetensors: {error}", where=path, remedy="export the student again") from error
    own = network.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in state or name not in own:
            whose = "file" if name in own else "network"
            raise InputError(f"{name} is not in the {whose}", where=path, remedy="build the network these weights are of")
        if own[name].shape != state[name].shape:
            raise InputError(
                f"{name} has shape {tuple(state[name].shape)}, the network wants {tuple(own[name].shape)}",
                where=path,
                remedy="build the network these weights are of",
            )
    network.load_state_dict(state)
    return network.eval()


def save_torchscript(network: nn.Module, example: Tree, path: str | Path) -> Path:
    """Trace ``network`` on ``example`` (its inputs) and write TorchScript."""
    buffer = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(network.eval(), **_arguments(example)), buffer)
    return storage.write_bytes(path, buffer.getvalue())


def _arguments(example: Tree) -> dict[str, Any]:
    if isinstance(example, Mapping):
        return {"example_kwarg_inputs": dict(example)}
    return {"example_inputs": example}


def save_onnx(network: nn.Module, example: Tree, path: str | Path) -> Path:
    """Write ONNX, with a batch of any size.

    Raises:
        MissingExtra: ``onnx`` is not installed.
    """
    _need_onnx()
    inputs = (dict(example),) if isinstance(example, Mapping) else example
    free = {"input": {0: "batch"}, "output": {0: "batch"}} if isinstance(example, Tensor) else None
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        written = Path(folder) / "student.onnx"
        # the older exporter: what it writes can be quantised
        torch.onnx.export(
            network.eval(),
            inputs,
            str(written),
            dynamo=False,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes=free,
        )
        return storage.write_bytes(path, written.read_bytes())


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise MissingExtra("onnx", "onnx") from None


FORMATS: Mapping[str, tuple[str, Callable[[nn.Module, Tree, Path], Path]]] = MappingProxyType(
    {"torchscript": ("student.pt", save_torchscript), "onnx": ("student.onnx", save_onnx)}
)
"""What a student can be written as beside its safetensors: the file's name, and who writes it."""


def check_formats(names: Sequence[str]) -> None:
    """Refuse, before any time is spent, what could not be written afterwards.

    Raises:
        InputError: an unknown format.
        MissingExtra: a format whose package is not installed.
    """
    for name in names:
        if name not in FORMATS:
            raise InputError(f"no format {name!r}", where="export", remedy=did_you_mean(name, list(FORMATS)))
    if "onnx" in names:
        _need_onnx()


def save_formats(network: nn.Module, example: Tree, folder: str | Path, names: Sequence[str]) -> list[Path]:
    """Write ``network`` into ``folder`` in each of the formats ``names``; ``example`` are inputs of the right shape."""
    network = copy.deepcopy(network).cpu()
    return [FORMATS[name][1](network, example, Path(folder) / FORMATS[name][0]) for name in names]
