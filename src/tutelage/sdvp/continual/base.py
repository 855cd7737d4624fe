"""How old knowledge is kept beside, or instead of, self-distillation on replayed inputs.

An option is plain settings; what it remembers of one module is made when a training job begins. Options combine:
``parse("self_distill+l2sp+lora")``. Strengths and sizes by default are our choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import ClassVar, Self

from torch import nn

from tutelage.distillation.weight_penalties import L2Penalty, PenaltySum
from tutelage.errors import InputError
from tutelage.modules.visual_module import CallLabel, TrainingExamples, VisualModule
from tutelage.programs.types import Call

Examples = Mapping[str, Sequence[tuple[Call, CallLabel]]]
"""Labelled calls by module."""


@dataclass(frozen=True)
class ContinualStrategy:
    """An option: it may wrap the student, freeze parts of it, add a penalty or labelled rows. The base does nothing.

    ``uses_self_distillation``: the module's old outputs on replayed inputs are kept (self-distillation). ``reads_inputs``: replayed
    inputs are needed. ``hides_weights``: the student's weights in effect are not under their old names while it learns.
    """

    name: ClassVar[str] = "none"
    uses_self_distillation: ClassVar[bool] = False
    reads_inputs: ClassVar[bool] = False
    hides_weights: ClassVar[bool] = False

    @classmethod
    def build(cls, examples: Examples) -> Self:
        """The option with its default settings; ``examples`` are gold labels of old tasks, for those that use them."""
        return cls()

    def prepare(self, student: nn.Module, module: VisualModule) -> nn.Module:
        """The student to train."""
        return student

    def is_trainable(self, name: str) -> bool:
        """Whether the parameter ``student.…`` is trained."""
        return True

    def penalty(self, module: VisualModule, replay: TrainingExamples | None) -> nn.Module | None:
        """A network from the student to a term of the loss, or None; it holds what must be remembered of ``module``."""
        return None

    def labelled_examples(self, module: VisualModule) -> TrainingExamples | None:
        """Further labelled rows to learn from, or None."""
        return None

    def finish(self, student: nn.Module) -> nn.Module:
        """The plain network after training."""
        return student


NO_STRATEGY = ContinualStrategy()


@dataclass(frozen=True)
class SelfDistill(ContinualStrategy):
    """Keep what the module said to replayed inputs, on every head: the default way, and the training job itself does it."""

    name: ClassVar[str] = "self_distill"
    uses_self_distillation: ClassVar[bool] = True
    reads_inputs: ClassVar[bool] = True


@dataclass(frozen=True)
class L2SP(ContinualStrategy):
    """``strength / 2 |theta - theta_old|^2`` (Li, Grandvalet, Davoine, 2018)."""

    name: ClassVar[str] = "l2sp"
    strength: float = 5.0

    def penalty(self, module: VisualModule, replay: TrainingExamples | None) -> nn.Module:
        """Every weight counts alike."""
        return L2Penalty({name: (value.detach(), None) for name, value in module.network.named_parameters()}, self.strength)


@dataclass(frozen=True)
class Freeze(ContinualStrategy):
    """Train some parameters only: none that match ``penalties``, and of the others those that match ``all_but``, if any.

    Patterns are as in file names and match whole parameter names. The default freezes the backbone of the embedded
    networks.
    """

    name: ClassVar[str] = "freeze"
    parts: tuple[str, ...] = ("trunk.*", "down.*", "wide.*")
    all_but: tuple[str, ...] = ()

    def prepare(self, student: nn.Module, module: VisualModule) -> nn.Module:
        """The student as it is, if something of it is frozen and something trained.

        Raises:
            InputError: the patterns freeze nothing, or everything.
        """
        trained = [self.is_trainable(f"student.{name}") for name, _ in student.named_parameters()]
        if all(trained) or not any(trained):
            raise InputError(
                f"{'nothing' if all(trained) else 'everything'} of {module.name} would be frozen",
                where="retain.freeze",
                remedy=f"its parts: {', '.join(dict.fromkeys(name.split('.')[0] for name, _ in student.named_parameters()))}",
            )
        return student

    def is_trainable(self, name: str) -> bool:
        """Not in a frozen part, and in one that is to be trained where such are named."""
        plain = name.removeprefix("student.").replace("parametrizations.", "")
        if any(fnmatch(plain, pattern) for pattern in self.parts):
            return False
        return not self.all_but or any(fnmatch(plain, pattern) for pattern in self.all_but)


@dataclass(frozen=True)
class LabelledReplay(ContinualStrategy):
    """Learn old tasks again from their gold labels: the upper bound, for it needs labels that the others do without."""

    name: ClassVar[str] = "labelled"
    examples: Examples = field(default_factory=dict, repr=False)

    @classmethod
    def build(cls, examples: Examples) -> Self:
        """With gold labels of old tasks."""
        return cls(examples)

    def labelled_examples(self, module: VisualModule) -> TrainingExamples:
        """The module's labelled calls.

        Raises:
            InputError: there are none.
        """
        found = self.examples.get(module.name)
        if not found:
            raise InputError(
                f"no labelled calls of {module.name} to replay", where="retain.labelled", remedy="give examples, by module name"
            )
        return module.training_examples([call for call, _ in found], [label for _, label in found])


@dataclass(frozen=True)
class CombinedStrategy(ContinualStrategy):
    """Several options at once."""

    options: tuple[ContinualStrategy, ...] = ()

    @property
    def uses_self_distillation(self) -> bool:  # type: ignore[override]
        """Whether one of them does."""
        return any(option.uses_self_distillation for option in self.options)

    @property
    def reads_inputs(self) -> bool:  # type: ignore[override]
        """Whether one of them does."""
        return any(option.reads_inputs for option in self.options)

    def prepare(self, student: nn.Module, module: VisualModule) -> nn.Module:
        """Wrapped by each in turn."""
        for option in self.options:
            student = option.prepare(student, module)
        return student

    def is_trainable(self, name: str) -> bool:
        """What none of them freezes."""
        return all(option.is_trainable(name) for option in self.options)

    def penalty(self, module: VisualModule, replay: TrainingExamples | None) -> nn.Module | None:
        """The sum of theirs.

        Raises:
            InputError: there are some, and another option hides the weights that they measure.
        """
        found = [penalty for option in self.options if (penalty := option.penalty(module, replay)) is not None]
        hiding = [option.name for option in self.options if option.hides_weights]
        if found and hiding:
            message = f"{hiding[0]} hides the weights that another option measures"
            raise InputError(message, where="retain", remedy="use lora in its place, or leave ewc and l2sp out")
        return PenaltySum(found) if found else None

    def labelled_examples(self, module: VisualModule) -> TrainingExamples | None:
        """Those of the first that has any."""
        return next((found for option in self.options if (found := option.labelled_examples(module)) is not None), None)

    def finish(self, student: nn.Module) -> nn.Module:
        """Unwrapped in the opposite order."""
        for option in reversed(self.options):
            student = option.finish(student)
        return student
