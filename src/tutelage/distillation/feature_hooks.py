"""Taps: outputs of named sub-modules, taken by forward hooks without editing the model."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tutelage.distillation.outputs import unwrap_model
from tutelage.errors import InputError


class UnknownLayer(InputError):
    """A network has no sub-module of the name ``layer``."""

    layer: str = ""
    network: nn.Module | None = None


class FeatureHooks:
    """Takes what the sub-modules ``names`` of ``network`` put out, while open.

    ``with FeatureHooks(network, ["layer3"]) as features: output = network(x)`` fills ``features["layer3"]``; the gradient flows. On
    leaving, the hooks are gone and ``features`` stays. Names are those of the plain network, inside ``torch.compile`` and
    ``DistributedDataParallel`` too. A sub-module that runs several times in a pass gives its last output; one that
    returns a tuple gives its first tensor. Prefix ``in:`` takes a sub-module's first input instead.

    Compiled code skips hooks that are set after it was made, so in a ``with`` block what is compiled runs as plain
    PyTorch. To tap compiled code at its speed, :meth:`open` before ``torch.compile``, read ``features``, and leave it open.

    Raises:
        UnknownLayer: no such sub-module; the message names the network, the remedy the nearest layers.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]):
        self.names = tuple(names)
        known = dict(unwrap_model(network).named_modules())
        for name in self.names:
            if (plain := name.removeprefix("in:")) not in known:
                message = f"{type(unwrap_model(network)).__name__} has no layer {plain!r}"
                error = UnknownLayer(message, where="features", remedy=_near(plain, [layer for layer in known if layer]))
                error.layer, error.network = name, network
                raise error
        self._modules = {name: known[name.removeprefix("in:")] for name in self.names}
        self._compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in network.modules())
        self._handles: list[RemovableHandle] = []
        self._plain = contextlib.ExitStack()
        self.features: dict[str, Tensor] = {}

    def open(self) -> dict[str, Tensor]:
        """Set the hooks; they stay until :meth:`close`. Returns the dict they fill."""
        if not self._handles:
            self.features = {}
            for name, module in self._modules.items():
                self._handles.append(module.register_forward_hook(_keep(self.features, name)))
        return self.features

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> dict[str, Tensor]:
        if self._compiled:
            self._plain.enter_context(torch.compiler.set_stance("force_eager"))
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._plain.close()
        self.close()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of a method goes on tapping the same network."""
        return self


@contextlib.contextmanager
def named_by_option(config: Any, student: nn.Module, teachers: Sequence[nn.Module]) -> Iterator[None]:
    """Make an :class:`UnknownLayer` say whose layer it should be, and which option of ``config`` names it.

    Raises:
        InputError: in its place.
    """
    try:
        yield
    except UnknownLayer as error:
        unknown_in = error.network
        who = "student" if unknown_in is student else "teacher" if any(unknown_in is one for one in teachers) else "network"
        option = next((item.name for item in fields(config) if error.layer in _texts(getattr(config, item.name))), None)
        where = f"options.{option}" if option is not None else error.where
        raise InputError(f"the {who} {error.message}", where=where, remedy=error.remedy) from error


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _near(name: str, known: list[str]) -> str:
    """The layers that ``name`` may mean: those spelt alike, then those with its last part; else the first ones."""
    alike = difflib.get_close_matches(name, known, n=3)
    tail = name.rpartition(".")[2]
    near = [*alike, *(layer for layer in known if layer.rpartition(".")[2] == tail and layer not in alike)][:5]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"its layers: {', '.join(known[:8])}{f' … ({len(known)} in all)' if len(known) > 8 else ''}"


def _keep(taken: dict[str, Tensor], name: str) -> Any:
    first = name.startswith("in:")

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        value = args if first else output
        while isinstance(value, (tuple, list)):
            value = value[0]
        taken[name] = value

    return hook
