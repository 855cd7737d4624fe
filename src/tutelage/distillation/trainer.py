"""The one training loop.

Everything random is a function of (seed, step): the order of samples, their views, and the global generator, which is
seeded anew for each pass. So a run that was killed and called again ends with the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage import storage
from tutelage.distillation import checks, schedule
from tutelage.distillation.checkpoint import (
    CheckpointManager,
    optimizer_tensors,
    read_tensors,
    restore_optimizer,
    select_prefix,
    taken_from,
    truncate_log,
)
from tutelage.distillation.data import Batch
from tutelage.distillation.data.loader import BatchLoader
from tutelage.distillation.evaluate import evaluate
from tutelage.distillation.export import save_weights
from tutelage.distillation.job import TrainingJob
from tutelage.distillation.method import Phase, TrainingProgress
from tutelage.distillation.optim import make_optimizer, trainable_parameters
from tutelage.distillation.parallel import SingleProcess
from tutelage.distillation.result import Record, TrainingResult
from tutelage.distillation.teacher import network_fingerprint
from tutelage.distillation.tensorboard_log import TensorBoardLog
from tutelage.errors import InputError, TrainingError
from tutelage.fields import check_field, check_items
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
            same training job, that run goes on from its last checkpoint; a finished one is read back.
        progress: called after each step with (steps done, steps).
        check: look at the first batch before anything is trained (shapes, classes, labels, finite values).
        tensorboard: write the log as TensorBoard events too, into ``folder/tensorboard``.
        parallel: the processes that share the work, each of which makes this call; None: this one alone.

    Raises:
        MissingExtra: ``tensorboard`` is asked for and not installed.
        TrainingError: a loss term or a weight is not finite (the message names it; the last good checkpoint is kept),
            or no gradient reaches the student.
        InputError: student, teacher, method and data do not fit together.
        StaleError: ``folder`` holds a run of another training job.
    """
    return Trainer(job, folder, check, tensorboard, parallel).run(progress)


class Trainer:
    """One run of one training job; :func:`train` is the way in, this class is for those who step by hand (tests, benches)."""

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
        self.job, self.settings = job, job.settings
        self.student, self.teacher, self.method = job.student, job.teacher, job.method
        self.parallel = parallel or SingleProcess()
        self.device = self.parallel.device(self.settings.device)
        self.order = job.sample_order()
        passes = self.settings.steps * self.settings.accumulate
        self.loader = BatchLoader(job.data, self.order, passes, pin_memory=self.device.type == "cuda")
        self.step = 0
        self.seconds = 0.0
        self.history: list[Record] = []
        self.parameters_without_gradient: tuple[str, ...] = ()
        self._sums: dict[str, Tensor] = {}
        self._since = 0  # the step at which the sums began
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
            self.method.prepare(self.student, self.teacher, example, job.data)
            self.method.to(self.device)
            if check:
                checks.check_first_batch(job, example)
        checks.check_no_shared_parameters(self.job, dict(trainable_parameters(self.student, self.method)))
        self.parallel = self.parallel.split(job)
        self._backward = self.parallel.backward(self.method)
        self.parameters = dict(trainable_parameters(self.student, self.method))
        self._flat = list(self.parameters.values())
        self.optimizer = make_optimizer(self.settings, self.student, self.method, self._flat)
        self._bases = [(group["lr"] * group.pop("lr_scale", 1.0)) for group in self.optimizer.param_groups]
        self.phases = schedule.boundaries(self.method.phases(), self.settings.steps)
        self._phase: Phase | None = None
        self._autocast: contextlib.AbstractContextManager[Any] = (
            torch.autocast(self.device.type, torch.bfloat16) if self.settings.precision == "bf16" else contextlib.nullcontext()
        )
        if self.folder is not None:
            with self.parallel.main_first():
                self._resume()
        self.parallel.broadcast_parameters(self.method)
        self._tensorboard_log = (
            TensorBoardLog(self.folder, self.step) if tensorboard and self.folder is not None and self.parallel.main else None
        )

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self, progress: Callable[[int, int], None] | None = None) -> TrainingResult:
        """Train to the last step and export."""
        s = self.settings
        with self._rng(), contextlib.closing(self.loader):
            self._train_mode()
            while self.step < s.steps:
                began = time.perf_counter()
                self.advance()
                self.seconds += time.perf_counter() - began
                done, last = self.step, self.step == s.steps
                if last or (s.log_every and done % s.log_every == 0):
                    self._log(evaluate=last or bool(s.eval_every and done % s.eval_every == 0))
                elif s.eval_every and done % s.eval_every == 0:
                    self._log(evaluate=True)
                if self.folder is not None and (last or (s.checkpoint_every and done % s.checkpoint_every == 0)):
                    self.checkpoint()
                if progress is not None:
                    progress(done, s.steps)
            return self._finish()

    def advance(self) -> None:
        """One step of the optimiser."""
        stage, first, length = self._phase_at(self.step)
        if stage is not self._phase:
            self._enter(stage)
        s = self.settings
        clock = (self.step - first, length) if stage.restart else (self.step, s.steps)
        factor = stage.lr * schedule.learning_rate(s, *clock)
        for group, base in zip(self.optimizer.param_groups, self._bases, strict=True):
            group["lr"] = base * factor
        for parameter in self._flat:  # a plain loop: the optimiser's zero_grad costs as much as a small forward pass
            parameter.grad = None
        for micro in range(s.accumulate):
            number = self.step * s.accumulate + micro
            self._reseed(number, *self.parallel.rng_offset)
            seen = number * s.batch_size / len(self.job.data)
            all_seen = s.steps * s.accumulate * s.batch_size / len(self.job.data)
            self.method.progress = TrainingProgress(self.step, s.steps, seen, all_seen, stage, self.step - first, length, micro)
            self._pass(*self.parallel.local_rows(self._placed(self.loader.take(number))))
        self.parallel.average_gradients(self._flat)
        if self.step == 0:
            self.parameters_without_gradient = checks.parameters_without_gradient(self.job, self.parameters)
        self.method.before_update(self.student)
        if s.clip is not None:
            self.parallel.clip(self._flat, s.clip)
        self.optimizer.step()
        self.method.after_step(self.student)
        if self.teacher is not None:
            self.teacher.after_step(self.student)
        self.parallel.broadcast_parameters(self.student, self.method, buffers_alone=True)
        self.step += 1

    def batch(self, number: int) -> Batch:
        """The batch of forward pass ``number`` (step * accumulate + micro), on the device."""
        return self._placed(self.loader.read(number))

    def _placed(self, batch: Batch) -> Batch:
        if self.device.type == "cpu" and not self.settings.channels_last:
            return batch
        return batch.to(self.device, self.settings.channels_last)

    def _pass(self, batch: Batch, counts: float) -> None:
        """Forward and backward of one batch, whose loss ``counts`` so much; adds its terms to the sums."""
        terms: dict[str, Tensor] = {}

        def loss() -> Tensor:
            nonlocal terms
            with self._autocast:
                student_outputs, teacher_outputs = self.method(batch, self.student, self.teacher)
                terms = self.method.loss_terms(batch, student_outputs, teacher_outputs)
                weights = self.method.loss_weights()
                self._check_known_terms(terms, weights)
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
                    remedy="check terms() and weights()",
                )
            total = total if counts == 1.0 else total * counts
            return total if self.settings.accumulate == 1 else total / self.settings.accumulate

        self._backward(loss)
        for name, term in terms.items():
            value = term.detach().clone() if counts == 1.0 else term.detach() * counts
            held = self._sums.get(name)
            if held is None:
                self._sums[name] = value
            else:
                held += value

    def _check_known_terms(self, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        if self.step == 0 and (unknown := set(weights) - set(terms)):
            raise InputError(
                f"weights for terms that do not exist: {', '.join(sorted(unknown))}",
                where=type(self.method).__name__,
                remedy=f"its terms are {', '.join(terms)}",
            )

    # -- stages, modes, randomness -----------------------------------------------------------------------------------

    def _phase_at(self, step: int) -> tuple[Phase, int, int]:
        for stage, first, length in self.phases:
            if step < first + length:
                return stage, first, length
        return self.phases[-1]

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        if any(one.trains is not None for one, _, _ in self.phases):
            for name, parameter in self.parameters.items():
                parameter.requires_grad_(phase.trains is None or phase.trains(name))

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

    # -- checks ------------------------------------------------------------------------------------------------------

    def _check_finite(self, means: Mapping[str, float]) -> None:
        passes = range(self._since * self.settings.accumulate, self.step * self.settings.accumulate)
        latest = CheckpointManager(self.folder).latest if self.folder is not None else None
        checks.check_finite(self.job, means, passes, self.batch, latest)

    def _check_finite_weights(self) -> None:
        checks.check_finite_weights(self.job.name, self.step, self.parameters, self.parallel.norms)

    # -- log, checkpoints, end ---------------------------------------------------------------------------------------

    def _log(self, evaluate: bool) -> None:
        self._sums = self.parallel.all_reduce_mean(self._sums)
        count = max(1, self.step - self._since) * self.settings.accumulate
        means = {name: value.item() / count for name, value in self._sums.items()}
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
            record["figures"] = dict(self.evaluate())
        self.history.append(record)
        self._sums, self._since = {}, self.step
        if self.folder is not None and self.parallel.main:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(storage.to_plain(record)) + "\n")
        if self._tensorboard_log is not None:
            self._tensorboard_log.write(record)

    def evaluate(self) -> Mapping[str, float]:
        """The training job's figures for the student as it stands."""
        assert self.job.evaluate is not None
        student = self.method.export(self.parallel.full_model(self.student)).eval()
        with torch.no_grad():
            if callable(self.job.evaluate):
                return self.job.evaluate(student)
            return evaluate(student, self.job.evaluate, self.job.task)

    def _open_run_folder(self, folder: str | Path | None) -> Path | None:
        if folder is None:
            return None
        settings = [*self.job.fingerprint_parts(), network_fingerprint(self.student)]
        return storage.RunFolder(folder, {"kind": "lesson", "lesson": self.job.name, "is": storage.fingerprint(settings)}).root

    def _move_to_device(self) -> None:
        self.student.to(self.device)
        if self.settings.channels_last:
            self.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.teacher is not None and self.device.type != "cpu":
            self.teacher.to(self.device)

    def checkpoint(self) -> None:
        """Write the whole state; refuses to keep weights that are not finite."""
        assert self.folder is not None
        self._sums = self.parallel.all_reduce_mean(self._sums)
        self._check_finite({name: value.item() for name, value in self._sums.items()})
        self._check_finite_weights()
        tensors = {f"student.{k}": v for k, v in self.student.state_dict().items()}
        tensors |= {f"method.{k}": v for k, v in self.method.state_dict().items()}
        tensors |= {f"teacher.{k}": v for k, v in (self.teacher.state_dict() if self.teacher else {}).items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        tensors |= {f"sums.{k}": v for k, v in self._sums.items()}
        checks.check_tensors(tensors, type(self.method).__name__)
        tensors = dict(self.parallel.gather_full(tensors))
        head = {"since": self._since, "seconds": self.seconds, "ungraded": self.parameters_without_gradient}
        if self.parallel.main:
            CheckpointManager(self.folder).write(self.step, tensors, head)

    def _resume(self) -> None:
        assert self.folder is not None
        log = self.folder / "log.jsonl"
        for left in self.folder.glob(".*.part"):  # of a killed run: this folder has one owner
            left.unlink(missing_ok=True)
        latest = CheckpointManager(self.folder).latest
        if latest is None:
            log.unlink(missing_ok=True)
            return
        tensors, head = read_tensors(latest)
        with taken_from(latest):
            self.parallel.load(self.student, select_prefix(tensors, "student"))
            self.method.load_state_dict(select_prefix(tensors, "method"))
            if self.teacher is not None and (state := select_prefix(tensors, "teacher")):
                self.teacher.load_state_dict(state)
            restore_optimizer(self.optimizer, select_prefix(tensors, "optimizer"))
            self.parallel.shard_optimizer(self.optimizer)
            self._sums = {name: value.to(self.device) for name, value in select_prefix(tensors, "sums").items()}
            self.step, self._since = (
                check_field(head, name, int, 0, self.settings.steps, where=latest) for name in ("step", "since")
            )
            self.seconds = check_field(head, "seconds", float, 0, where=latest)
            self.parameters_without_gradient = tuple(check_items(head, "ungraded", str, where=latest))
        self.history = truncate_log(log, self.step)

    def _finish(self) -> TrainingResult:
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self._check_finite_weights()
        if not self.history and self.job.evaluate is not None:
            self._log(evaluate=True)
        if self._tensorboard_log is not None:
            self._tensorboard_log.close()
        student = self.method.export(self.parallel.full_model(self.student)).eval()
        if self.folder is not None and self.parallel.main:
            save_weights(student, self.folder / "student.safetensors")
        figures: dict[str, float] = next((r["figures"] for r in reversed(self.history) if "figures" in r), {})
        return TrainingResult(
            student, self.history, self.parallel.broadcast_scalar(self.seconds), figures, self.parameters_without_gradient
        )
