"""The reward of a child network: its accuracy and its size against the teacher's, and constraints that soften over time."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.errors import InputError

INVALID = -1.0
"""The reward of a child that cannot be built, or is not smaller than its teacher."""
PATIENCE = 15
"""Iterations until a violated constraint earns -1 and nothing else."""


def compression_reward(compression: float) -> float:
    """``R_c = C (2 - C)`` of a compression ``C = 1 - size / teacher's size`` in 0..1."""
    return compression * (2 - compression)


def reward(accuracy: float, teacher_accuracy: float, size: float, teacher_size: float) -> float:
    """``R = (accuracy / teacher's accuracy) R_c`` (section 3.3); sizes in parameters.

    Examples:
        >>> round(reward(0.8, 0.8, 10, 100), 4)
        0.99
    """
    return accuracy / teacher_accuracy * compression_reward(1 - size / teacher_size)


def leniency(iteration: int) -> float:
    """``eps = max(0, 1 - e / 15)^4``: 1 in the first iteration, 0 from the fifteenth on.

    The authors' code has ``max(0, (1 - e / 15)^4)``, which rises again after e = 15.
    """
    return max(0.0, 1 - iteration / PATIENCE) ** 4


@dataclass(frozen=True)
class Constraint:
    """What a child must keep to.

    Attributes:
        max_params: the most parameters; None: no limit.
        min_accuracy: the least accuracy on the held-out data, in 0..1; None: none.

    Raises:
        InputError: no parameters at all, or an accuracy outside 0..1.
    """

    max_params: int | None = None
    min_accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.max_params is not None and self.max_params < 1:
            raise InputError(f"{self.max_params} parameters", where="max_params", remedy="at least 1, or None")
        if self.min_accuracy is not None and not 0 <= self.min_accuracy <= 1:
            raise InputError(f"accuracy {self.min_accuracy}", where="min_accuracy", remedy="a share in 0..1, or None")

    def holds(self, accuracy: float, size: float) -> bool:
        """Whether a child keeps to it."""
        return (self.max_params is None or size <= self.max_params) and (self.min_accuracy is None or accuracy >= self.min_accuracy)

    def applied(self, reward: float, accuracy: float, size: float, iteration: int) -> float:
        """The reward, or where the constraint is violated ``(eps - 1) + eps R`` (section 3.3)."""
        if self.holds(accuracy, size):
            return reward
        eps = leniency(iteration)
        return (eps - 1) + eps * reward
