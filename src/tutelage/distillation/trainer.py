"""The one training loop.

Everything random is a function of (seed, step): the order of samples, their views, and the global generator, which is
seeded anew for each pass. So a run that was killed and called again ends with the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage import storage
from tutelage.distillation import checks, outcome, run_state, schedule
from tutelage.distillation.checkpoint import CheckpointManager
from tutelage.distillation.data import Batch
from tutelage.distillation.data.loader import BatchLoader
from tutelage.distillation.feature_hooks import named_by_option
from tutelage.distillation.job import INITIAL_WEIGHTS, REMEDIES, TrainingJob
from tutelage.distillation.method import Phase, TrainingProgress
from tutelage.distillation.optim import trainable_parameters
from tutelage.distillation.outputs import unwrap_model
from tutelage.distillation.parallel import SingleProcess
from tutelage.distillation.parameter_resize import ParameterResizer
from tutelage.distillation.result import Record, TrainingResult
from tutelage.distillation.selection import Selection
from tutelage.distillation.teacher import EMATeacher, network_fingerprint
from tutelage.distillation.training_log import TrainingLog
from tutelage.distillation.updates import TurnUpdater, make_updaters
from tutelage.distillation.weight_averaging import ExponentialAverage
from tutelage.errors import InputError, TrainingError
from tutelage.seeds import derive


def train(
    job: TrainingJob,
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    check: bool = True,
    tensorboard: bool = False,
    parallel: SingleProcess | None = None,
) -> TrainingResult:
    """Run ``job``; its student is changed in place and exported.

    Args:
        job: what to run.
        folder: where checkpoints, ``log.jsonl`` and ``student.safetensors`` go. If it holds an unfinished run of the
            same job, that run goes on from its last checkpoint; a finished one is read back.
        progress: called after each step with (steps done, steps).
        check: look at the first batch before anything is trained (shapes, classes, labels, finite values).
        tensorboard: write the log as TensorBoard events too, into ``folder/tensorboard``.
        parallel: the processes that share the work, each of which makes this call; None: this one alone.

    Raises:
        MissingExtra: ``tensorboard`` is asked for and not installed.
        TrainingError: a loss term or a weight is not finite (the message names it; the last good checkpoint is kept),
            or no gradient reaches the student.
        InputError: student, teacher, method and data do not fit together.
        StaleError: ``folder`` holds a run of another job.
    """
    return Trainer(job, folder, check, tensorboard, parallel).run(progress)


class Trainer:
    """One run of one job; :func:`train` is the way in, this class is for those who step by hand (tests, benches)."""

    def __init__(
        self,
        job: TrainingJob,
        folder: str | Path | None = None,
        check: bool = True,
        tensorboard: bool = False,
        parallel: SingleProcess | None = None,
    ) -> None:
        if tensorboard and folder is None:
            raise InputError("TensorBoard events need a folder", where="tensorboard", remedy="give the run a folder")
        job.settings = job.settings.resolve(len(job.data))  # they may have been changed since
        self.job, self.settings = job, job.settings
        self.student, self.teacher, self.method = job.student, job.teacher, job.method
        self.parallel = parallel or SingleProcess()
        self.device = self.parallel.device(self.settings.device)
        self.order = job.sample_order()
        passes = self.settings.steps * self.settings.accumulate
        self.loader = BatchLoader(job.data, self.order, passes, pin_memory=self.device.type == "cuda")
        self.step = 0
        self.seconds = 0.0
        self._kept: dict[int, Batch] = {}
        self.parameters_without_gradient: tuple[str, ...] = ()
        self._move_to_device()
        self.parallel.broadcast_parameters(self.student)
        with self._rng():
            example = self.batch(0)
            checks.resolve_task(job, example)
        with self.parallel.main_first():
            self.folder = self._open_run_folder(folder)
        with self._rng(), torch.no_grad():
            self._reseed("prepare")
            self.parallel.check_supported(job, example)
            self.student.eval()
            with named_by_option(self.method.config, self.student, self.teacher.networks if self.teacher is not None else ()):
                self.method.prepare(self.student, self.teacher, example, job.data)
            self.method.to(self.device)
            if check:
                checks.check_first_batch(job, example)
        checks.check_no_shared_parameters(self.job, dict(trainable_parameters(self.student, self.method)))
        self.parallel = self.parallel.split(job)
        self._backward = self.parallel.backward(self.method)
        self.parameters = dict(trainable_parameters(self.student, self.method))
        self.updaters: Sequence[TurnUpdater] = make_updaters(self.settings, self.student, self.method, self.parameters, self.device)
        self.phases = schedule.boundaries(self.method.phases(), self.settings.steps)
        self._phase: Phase | None = None
        self._selective = len(self.updaters) > 1 or any(phase.trains is not None for phase, _, _ in self.phases)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.settings.precision)
        self._autocast: contextlib.AbstractContextManager[Any] = (
            torch.autocast(self.device.type, half) if half is not None else contextlib.nullcontext()
        )
        self.average = self._moving_average()
        self.selection = Selection.of(self.settings, job.task) if job.validation is not None else None  # type: ignore[arg-type]
        self.log = TrainingLog(self.folder, tensorboard, self.parallel.main)
        if self.folder is not None:
            run_state.restore(self)
        self.parallel.broadcast_parameters(self.method)

    @property
    def history(self) -> list[Record]:
        """The log's records so far."""
        return self.log.history

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the first turn; most methods have no other."""
        return self.updaters[0].optimizer

    @property
    def stopped(self) -> bool:
        """Whether nothing better came for so long that the run is over."""
        return self.selection is not None and self.selection.stopped

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self, progress: Callable[[int, int], None] | None = None) -> TrainingResult:
        """Train to the last step, or until nothing better comes, and export."""
        s = self.settings
        with self._rng(), contextlib.closing(self.loader):
            self._train_mode()
            while self.step < s.steps and not self.stopped:
                began = time.perf_counter()
                self.advance()
                self.seconds += time.perf_counter() - began
                done, last = self.step, self.step == s.steps
                if self.selection is not None and (last or done % outcome.validation_interval(self.job) == 0):
                    figures = outcome.validate(self)
                    last = last or self.stopped
                    self._log(evaluate=last or bool(s.eval_every), validation=figures)
                elif last or _due(done, s.log_every) or _due(done, s.eval_every):
                    self._log(evaluate=last or _due(done, s.eval_every))
                if self.folder is not None and (last or _due(done, s.checkpoint_every)):
                    self.checkpoint()
                if progress is not None:
                    progress(done, s.steps)
            return self._finish()

    def advance(self) -> None:
        """One step: every turn that is due, one after the other, on the same batches."""
        phase, first, length = self._phase_at(self.step)
        if phase is not self._phase:
            self.enter(phase)
        for updater in self.updaters:
            if updater.due(self.step):
                self._run_turn(updater, phase, first, length)
        self._kept.clear()
        self.method.after_step(self.student)
        if self.teacher is not None:
            self.teacher.after_step(self.student)
        self.parallel.broadcast_parameters(self.student, self.method, buffers_alone=True)
        if self.average is not None:
            self.average.update(unwrap_model(self.student))
        self.step += 1

    def _run_turn(self, updater: TurnUpdater, phase: Phase, first: int, length: int) -> None:
        """The passes of one turn, and its update if that is due; ``phase`` began at step ``first`` and has ``length`` steps."""
        s, step = self.settings, self.step
        updater.begin(step, s.steps, phase, (step - first, length) if phase.restart else (step, s.steps))
        if len(self.updaters) > 1:
            self._require_gradients(phase, updater)
        name = () if updater is self.updaters[0] else (updater.turn.name,)
        for micro in range(s.accumulate):
            number = step * s.accumulate + micro
            self._reseed(number, *name, *self.parallel.rng_offset)
            seen = number * s.batch_size / len(self.job.data)
            all_seen = s.steps * s.accumulate * s.batch_size / len(self.job.data)
            self.method.progress = TrainingProgress(
                step, s.steps, seen, all_seen, phase, step - first, length, micro, updater.turn.name
            )
            self._pass(*self.parallel.local_rows(self._next_batch(number)), updater)
        self.parallel.average_gradients(updater.flat)
        if step == updater.turn.offset:
            self.parameters_without_gradient += checks.parameters_without_gradient(self.job, updater.parameters)
        if updater.updates_at(step):
            updater.update(self.parallel, lambda: self.method.before_update(self.student))

    def _next_batch(self, number: int) -> Batch:
        """The batch of pass ``number``, read once: it is kept for the other turns of the step."""
        found = self._kept.get(number)
        if found is None:
            found = self._placed(self.loader.take(number))
            if len(self.updaters) > 1:
                self._kept[number] = found
        return found

    def batch(self, number: int) -> Batch:
        """The batch of forward pass ``number`` (step * accumulate + micro), on the device."""
        return self._placed(self.loader.read(number))

    def _placed(self, batch: Batch) -> Batch:
        if self.device.type == "cpu" and not self.settings.channels_last:
            return batch
        return batch.to(self.device, self.settings.channels_last)

    def _pass(self, batch: Batch, counts: float, updater: TurnUpdater) -> None:
        """Forward and backward of one batch, whose loss ``counts`` so much; adds its terms to the log's sums."""
        terms: dict[str, Tensor] = {}

        def loss() -> Tensor:
            nonlocal terms
            with self._autocast:
                shown = self.method.transform(copy.copy(batch))
                student, teacher = self.method(shown, self.student, self.teacher)
                terms = self.method.loss_terms(shown, student, teacher)
                total = self._weighted(terms)
            total = total if counts == 1.0 else total * counts
            return updater.scaled(total if self.settings.accumulate == 1 else total / self.settings.accumulate)

        self._backward(loss)
        for name, term in terms.items():
            self.log.add(name, term.detach().clone() if counts == 1.0 else term.detach() * counts)

    def _weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        weights = self.method.loss_weights()
        if self.step == 0 and len(self.updaters) == 1 and (unknown := set(weights) - set(terms)):
            raise InputError(
                f"weights for terms that do not exist: {', '.join(sorted(unknown))}",
                where=type(self.method).__name__,
                remedy=f"its terms are {', '.join(terms)}",
            )
        total = None
        for name, term in terms.items():
            weight = weights.get(name, 1.0)
            if weight:
                part = term if weight == 1.0 else weight * term
                total = part if total is None else total + part
        if total is None:
            raise TrainingError(
                "the method gives no term of weight > 0",
                where=self.job.name,
                remedy="check loss_terms() and loss_weights()",
            )
        return total

    # -- phases, modes, randomness -----------------------------------------------------------------------------------

    def _phase_at(self, step: int) -> tuple[Phase, int, int]:
        for phase, first, length in self.phases:
            if step < first + length:
                return phase, first, length
        return self.phases[-1]

    def enter(self, phase: Phase) -> None:
        """Begin ``phase``: what it trains, and the shapes that the method gives to parameters in it."""
        self._phase = phase
        follows = self.teacher.average if isinstance(self.teacher, EMATeacher) else None
        averages = [average for average in (self.average, follows) if average is not None]
        resize = ParameterResizer(unwrap_model(self.student), [one.optimizer for one in self.updaters], averages)
        self.method.enter_phase(phase, self.student, resize)
        if self._selective:
            self._require_gradients(phase)

    def _require_gradients(self, phase: Phase, updater: TurnUpdater | None = None) -> None:
        for name, parameter in self.parameters.items():
            own = updater is None or name in updater.parameters
            parameter.requires_grad_(own and (phase.trains is None or phase.trains(name)))

    def _moving_average(self) -> ExponentialAverage | None:
        """Of the student, where ``settings.ema`` asks for it; the decay is a function of the step."""
        ema, steps = self.settings.ema, self.settings.steps
        if ema is None:
            return None
        if not isinstance(ema, tuple):
            return ExponentialAverage(unwrap_model(self.student), ema)
        curve = schedule.cosine(*ema)
        return ExponentialAverage(unwrap_model(self.student), lambda step: curve(step / steps))

    def _train_mode(self) -> None:
        self.student.train()
        self.method.train()

    @contextlib.contextmanager
    def _rng(self) -> Iterator[None]:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            yield

    def _reseed(self, *name: object) -> None:
        """The global generator for one pass: a counter, not a state that would have to be saved."""
        value = derive(self.settings.seed, "pass", *name)
        torch.default_generator.manual_seed(value)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(value)

    # -- log, evaluation, checkpoints, end -----------------------------------------------------------------------------

    def _check_finite(self, means: Mapping[str, float]) -> None:
        passes = range(self.log.since * self.settings.accumulate, self.step * self.settings.accumulate)
        latest = CheckpointManager(self.folder).latest if self.folder is not None else None
        checks.check_finite(self.job, means, passes, self.batch, latest)

    def check_finite_weights(self) -> None:
        """Raise TrainingError where a parameter is not finite."""
        checks.check_finite_weights(self.job.name, self.step, self.parameters, self.parallel.norms)

    def _log(self, evaluate: bool, validation: Mapping[str, float] | None = None) -> None:
        self.log.sums = self.parallel.all_reduce_mean(self.log.sums)
        means = self.log.means()
        self._check_finite(means)
        weights = self.method.loss_weights()
        record: Record = {
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": sum(weights.get(name, 1.0) * value for name, value in means.items()),
            "terms": means,
            "weights": {name: weights.get(name, 1.0) for name in means},
            "seconds": round(self.seconds, 4),
        }
        if self._phase is not None and len(self.phases) > 1:
            record["stage"] = self._phase.name
        if evaluate and self.job.evaluate is not None:
            record["figures"] = dict(outcome.evaluate_now(self))
        if validation is not None:
            record["validation"] = dict(validation)
        self.log.write(record)

    def _open_run_folder(self, folder: str | Path | None) -> Path | None:
        if folder is None:
            return None
        settings = self.job.fingerprint_parts() | {INITIAL_WEIGHTS: network_fingerprint(self.student)}
        return storage.RunFolder(folder, {"kind": "lesson", **settings}, REMEDIES).root

    def _move_to_device(self) -> None:
        self.student.to(self.device)
        if self.settings.channels_last:
            self.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.teacher is not None and self.device.type != "cpu":
            self.teacher.to(self.device)

    def checkpoint(self) -> None:
        """Write the whole state; refuses to keep weights that are not finite."""
        self.log.sums = self.parallel.all_reduce_mean(self.log.sums)
        self._check_finite({name: value.item() for name, value in self.log.sums.items()})
        self.check_finite_weights()
        run_state.save(self)

    def _finish(self) -> TrainingResult:
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.check_finite_weights()
        self.log.close()
        return outcome.result(self)


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
