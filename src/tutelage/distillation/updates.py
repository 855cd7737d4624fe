"""One turn of training at work: its optimiser, its rates, the gradient it gathers, and the scaling of fp16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tutelage.distillation import schedule
from tutelage.distillation.checkpoint import optimizer_tensors, restore_optimizer, select_prefix
from tutelage.distillation.method import Method, Phase, Turn
from tutelage.distillation.optim import make_optimizer, parameter_groups
from tutelage.distillation.parallel import SingleProcess
from tutelage.distillation.settings import MAX_COUNT, TrainingSettings, make_settings
from tutelage.errors import InputError, did_you_mean
from tutelage.fields import check_kind

OPTIMIZER_SETTINGS = (
    "lr", "weight_decay", "weight_decay_end", "decay_exempt", "layer_decay", "optimizer", "momentum", "nesterov", "betas",
    "schedule", "warmup", "milestones", "gamma", "clip",
)  # fmt: skip
"""What a turn may have of its own."""


class TurnUpdater:
    """Runs the updates of one :class:`~tutelage.distillation.method.Turn`.

    Args:
        turn: which parameters, when, and with what settings.
        settings: of the job.
        student, method: whose parameters they are.
        learned: every parameter that is trained, by name.
        device: where they lie.

    Raises:
        InputError: the turn trains nothing, or its settings or numbers are not possible.
    """

    def __init__(
        self,
        turn: Turn,
        settings: TrainingSettings,
        student: nn.Module,
        method: Method,
        learned: Mapping[str, nn.Parameter],
        device: torch.device,
    ):
        self.turn = turn
        where = f"{type(method).__name__}.turns(): {turn.name}"
        for name, least in (("every", 1), ("offset", 0), ("accumulate", 1)):
            value = check_kind(getattr(turn, name), int, f"{where}.{name}", "a whole number")
            if not least <= value <= MAX_COUNT:
                raise InputError(f"{name} is {value}", where=where, remedy=f"at least {least}, at most {MAX_COUNT:,}")
        for name in turn.settings:
            if name not in OPTIMIZER_SETTINGS:
                raise InputError(
                    f"a turn has no setting {name!r}", where=where, remedy=did_you_mean(name, list(OPTIMIZER_SETTINGS))
                )
        self.settings = make_settings(settings, turn.settings)
        self.parameters = {name: p for name, p in learned.items() if turn.trains is None or turn.trains(name)}
        groups = parameter_groups(self.settings, student, method, self.parameters, learned)
        self.flat = list(self.parameters.values())
        self.optimizer = make_optimizer(self.settings, method, self.flat, groups)
        self._rates = [group["lr"] * group.pop("lr_scale", 1.0) for group in self.optimizer.param_groups]
        self._decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(device.type) if settings.precision == "fp16" else None

    def due(self, step: int) -> bool:
        """Whether the turn runs in ``step``."""
        return step >= self.turn.offset and (step - self.turn.offset) % self.turn.every == 0

    def _number(self, step: int) -> int:
        """How many times the turn ran before ``step``."""
        return (step - self.turn.offset) // self.turn.every

    def updates_at(self, step: int) -> bool:
        """Whether the turn's run in ``step`` ends with an update."""
        return (self._number(step) + 1) % self.turn.accumulate == 0

    def begin(self, step: int, steps: int, phase: Phase, clock: tuple[int, int]) -> None:
        """Set the rates of ``step``, and drop the gradient that the last update used.

        Args:
            step, steps: of the whole run.
            phase: its ``lr`` is a factor on the rates.
            clock: (step, steps) that the learning rate's schedule follows.
        """
        factor = phase.lr * schedule.learning_rate(self.settings, *clock)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        if self.settings.weight_decay_end is not None:
            share = schedule.cosine(1.0, self.settings.weight_decay_end / self.settings.weight_decay)(step / steps)
            for group, decay in zip(self.optimizer.param_groups, self._decays, strict=True):
                group["weight_decay"] = decay * share
        if self._number(step) % self.turn.accumulate == 0:
            for parameter in self.flat:  # a plain loop: the optimiser's zero_grad costs as much as a small forward pass
                parameter.grad = None

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss that goes backward: its part of the mean, and in fp16 scaled."""
        loss = loss if self.turn.accumulate == 1 else loss / self.turn.accumulate
        return loss if self.scaler is None else self.scaler.scale(loss)

    def update(self, parallel: SingleProcess, before: Callable[[], None]) -> None:
        """Step the optimiser; ``before`` is called when the gradient is whole. In fp16 a step that overflows is left out, and
        the scale halved."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        before()
        if self.settings.clip is not None:
            parallel.clip(self.flat, self.settings.clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    # -- what a checkpoint holds -------------------------------------------------------------------------------------

    def _kind(self, kind: str) -> str:
        return kind if self.turn.name == Turn().name else f"{kind}-{self.turn.name}"

    def state(self, step: int) -> dict[str, Tensor]:
        """What must be saved after ``step`` steps: the optimiser's moments, a gradient that waits for its update, the scale."""
        found = {f"{self._kind('optimizer')}.{key}": value for key, value in optimizer_tensors(self.optimizer).items()}
        ran = 0 if step <= self.turn.offset else self._number(step - 1) + 1
        if ran % self.turn.accumulate:
            waiting = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
            found |= {f"{self._kind('gradient')}.{name}": value for name, value in waiting.items()}
        if self.scaler is not None:
            scale = {key: torch.tensor(value, dtype=torch.float64) for key, value in self.scaler.state_dict().items()}
            found |= {f"{self._kind('scaler')}.{key}": value for key, value in scale.items()}
        return found

    def load(self, tensors: Mapping[str, Tensor], parallel: SingleProcess) -> None:
        """Take up what :meth:`state` gave.

        Raises:
            ValueError, IndexError, KeyError: the tensors are not of these parameters.
        """
        restore_optimizer(self.optimizer, select_prefix(tensors, self._kind("optimizer")))
        parallel.shard_optimizer(self.optimizer)
        for name, value in select_prefix(tensors, self._kind("gradient")).items():
            self.parameters[name].grad = value.to(self.parameters[name])
        if self.scaler is not None and (scale := select_prefix(tensors, self._kind("scaler"))):
            whole = ("growth_interval", "_growth_tracker")
            self.scaler.load_state_dict({key: int(v) if key in whole else float(v) for key, v in scale.items()})


def make_updaters(
    settings: TrainingSettings,
    student: nn.Module,
    method: Method,
    learned: Mapping[str, nn.Parameter],
    device: torch.device,
) -> Sequence[TurnUpdater]:
    """An updater for each of the method's turns.

    Raises:
        InputError: no turn, two of one name, or a trainable parameter that belongs to none or to two.
    """
    where = f"{type(method).__name__}.turns()"
    turns = list(method.turns())
    if not turns or len({turn.name for turn in turns}) < len(turns):
        raise InputError("no turn, or two of one name", where=where, remedy="give each optimiser a turn with a name of its own")
    if bad := [turn.name for turn in turns if "." in turn.name]:
        raise InputError(f"a turn called {bad[0]!r}", where=where, remedy="a name without dots")
    updaters = [TurnUpdater(turn, settings, student, method, learned, device) for turn in turns]
    for name in learned:
        owners = [one.turn.name for one in updaters if name in one.parameters]
        if len(owners) != 1:
            raise InputError(
                f"{name} belongs to {' and '.join(owners) if owners else 'no turn'}",
                where=where,
                remedy="let exactly one turn train it, or freeze it",
            )
    return updaters
