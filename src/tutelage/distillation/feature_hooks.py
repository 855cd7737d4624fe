"""Taps: outputs of named sub-modules, taken by forward hooks without editing the model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tutelage.distillation.outputs import unwrap_model
from tutelage.errors import InputError, did_you_mean


class FeatureHooks:
    """Takes what the sub-modules ``names`` of ``network`` put out, while open.

    ``with FeatureHooks(network, ["layer3"]) as features: output = network(x)`` fills ``features["layer3"]``; the gradient flows. On
    leaving, the hooks are gone and ``features`` stays. Names are those of the plain network, inside ``torch.compile`` and
    ``DistributedDataParallel`` too. A sub-module that runs several times in a pass gives its last output; one that
    returns a tuple gives its first tensor. Prefix ``in:`` takes a sub-module's first input instead.

    Compiled code skips hooks that are set after it was made, so in a ``with`` block what is compiled runs as plain
    PyTorch. To tap compiled code at its speed, :meth:`open` before ``torch.compile``, read ``features``, and leave it open.

    Raises:
        InputError: no such sub-module; the message offers the nearest names.
    """

    def __init__(self, network: nn.Module, names: Sequence[str]):
        self.names = tuple(names)
        known = dict(unwrap_model(network).named_modules())
        for name in self.names:
            if name.removeprefix("in:") not in known:
                raise InputError(
                    f"no sub-module {name!r}",
                    where="tap",
                    remedy=did_you_mean(name.removeprefix("in:"), [k for k in known if k]),
                )
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


def _keep(taken: dict[str, Tensor], name: str) -> Any:
    first = name.startswith("in:")

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        value = args if first else output
        while isinstance(value, (tuple, list)):
            value = value[0]
        taken[name] = value

    return hook
