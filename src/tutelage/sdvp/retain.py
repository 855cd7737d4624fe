"""How old knowledge is kept beside, or instead of, self-distillation on replayed inputs."""

from __future__ import annotations

from torch import Tensor, nn


class Retain:
    """An option: it may wrap the student, freeze parts of it, and add a penalty. The base does nothing."""

    def prepare(self, student: nn.Module, module: object) -> nn.Module:
        """The student to train."""
        return student

    def trains(self, name: str) -> bool:
        """Whether the parameter ``student.…`` is trained."""
        return True

    def penalty(self, student: nn.Module) -> Tensor | None:
        """A term added to the loss, or None."""
        return None

    def finish(self, student: nn.Module) -> nn.Module:
        """The plain network after training."""
        return student


NOTHING = Retain()
