"""Another shape for a parameter in the middle of training, with everything that follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tutelage.distillation.weight_averaging import ExponentialAverage
from tutelage.errors import InputError


class ParameterResizer:
    """Applies one function to a parameter, to its optimiser's moments, and to its copies in moving averages.

    What a position table needs where the image size changes (EfficientTrain, Wang et al., 2023: bilinear, moments too). The
    parameter stays the same object, so its holder sees the new shape.

    Args:
        student: whose parameters the averages copy, by name.
        optimizers: which hold the moments.
        averages: of the student.

    Raises:
        InputError: the function gives no tensor of floats, or one of other dimensions.
    """

    def __init__(self, student: nn.Module, optimizers: Iterable[torch.optim.Optimizer], averages: Sequence[ExponentialAverage]):
        self.student, self.optimizers, self.averages = student, list(optimizers), averages

    @torch.no_grad()
    def __call__(self, parameter: nn.Parameter, function: Callable[[Tensor], Tensor]) -> None:
        """Resize ``parameter``; moments of squares stay 0 or more."""
        before = parameter.shape
        names = [name for name, own in self.student.named_parameters() if own is parameter]
        parameter.data = _applied(function, parameter)
        parameter.grad = None
        for optimizer in self.optimizers:
            state: Mapping[str, Tensor] = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == before and value.ndim:
                    resized = _applied(function, value)
                    optimizer.state[parameter][key] = resized.clamp_min_(0) if key.endswith("sq") else resized
        for average in self.averages:
            for name in names:
                own = average.network.get_parameter(name)
                own.data = _applied(function, own)


def _applied(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    found = function(value.detach())
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim != value.ndim:
        shown = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"a parameter {list(value.shape)} was resized to {shown}",
            where="enter_phase",
            remedy="resize with a function from a tensor to one of as many dimensions",
        )
    return found.to(value).contiguous().clone()
