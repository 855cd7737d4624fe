"""What a run gives: figures on the way, the best student on validation data, and the networks at the end."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tutelage.distillation.checkpoint import select_prefix
from tutelage.distillation.evaluate import evaluate
from tutelage.distillation.export import save_weights
from tutelage.distillation.job import Score, TrainingJob
from tutelage.distillation.result import TrainingResult
from tutelage.errors import InputError

if TYPE_CHECKING:
    from tutelage.distillation.trainer import Trainer


def exported(trainer: Trainer) -> nn.Module:
    """The student as it stands (its moving average, where there is one) as a plain network, in eval mode."""
    network = trainer.average.network if trainer.average is not None else trainer.parallel.full_model(trainer.student)
    return trainer.method.export(network).eval()


def evaluate_now(trainer: Trainer) -> Mapping[str, float]:
    """The job's figures for the student as it stands."""
    assert trainer.job.evaluate is not None
    return measure(trainer.job, trainer.job.evaluate, exported(trainer))


def measure(job: TrainingJob, score: Score, student: nn.Module) -> Mapping[str, float]:
    """A student's figures, by a function or on labelled data.

    Raises:
        InputError: the function gives something else than numbers by name.
    """
    with torch.no_grad():
        if not callable(score):
            return evaluate(student, score, job.task)
        found = score(student)
    named = found.items() if isinstance(found, Mapping) else [("", found)]
    for name, value in named:
        if not name or not (isinstance(value, Real) or getattr(value, "ndim", None) == 0):
            raise InputError(
                f"the function that scores the student gave {found!r}"[:200],
                where="validation" if score is job.validation else "evaluate",
                remedy='return numbers by name: {"accuracy": 91.2}',
            )
    return found


def validation_interval(job: TrainingJob) -> int:
    """Steps between validations: ``eval_every``, or else an epoch, or a tenth of the run, whichever is shorter."""
    s = job.settings
    epoch = -(-len(job.data) // (s.batch_size * s.accumulate))
    return s.eval_every or max(1, min(epoch, s.steps // 10))


def validate(trainer: Trainer) -> Mapping[str, float]:
    """Measure the student on the validation data, and keep it if it is the best so far."""
    selection, job = trainer.selection, trainer.job
    assert selection is not None and job.validation is not None
    student = exported(trainer)
    found = measure(job, job.validation, student)
    figures = {name: trainer.parallel.broadcast_scalar(value) for name, value in found.items()}
    if selection.offer(figures, trainer.step):
        trainer.check_finite_weights()
        selection.network = student
        if trainer.folder is not None:
            tensors = dict(trainer.parallel.gather_full(networks_state(trainer)))
            if trainer.parallel.main:
                selection.write(trainer.folder, tensors)
    return figures


def networks_state(trainer: Trainer) -> dict[str, Tensor]:
    """The weights and buffers of student, method and moving average: what gives the student of a step again."""
    tensors = {f"student.{k}": v for k, v in trainer.student.state_dict().items()}
    tensors |= {f"method.{k}": v for k, v in trainer.method.state_dict().items()}
    if trainer.average is not None:
        tensors |= {f"average.{k}": v for k, v in trainer.average.state().items()}
    return tensors


def load_networks(trainer: Trainer, tensors: Mapping[str, Tensor]) -> None:
    """Take up what :func:`networks_state` gave."""
    trainer.parallel.load(trainer.student, select_prefix(tensors, "student"))
    trainer.method.load_state_dict(select_prefix(tensors, "method"))
    if trainer.average is not None:
        trainer.average.load(select_prefix(tensors, "average"))


def result(trainer: Trainer) -> TrainingResult:
    """The student that is kept, its figures and the log; the weights are written where there is a folder."""
    selection, job, folder = trainer.selection, trainer.job, trainer.folder
    student = exported(trainer)
    figures: dict[str, float] = next((r["figures"] for r in reversed(trainer.history) if "figures" in r), {})
    students: dict[str, nn.Module] = {}
    summary = None
    if selection is not None:
        students = {"last": student} | ({"best": selection.network} if selection.network is not None else {})
        summary = selection.summary(trainer.step, trainer.settings.steps)
        student = students[summary["kept"]]
        if job.evaluate is not None and summary["step"] != trainer.step:
            figures = dict(measure(job, job.evaluate, student))
    if folder is not None and trainer.parallel.main:
        save_weights(student, folder / "student.safetensors")
        for name, network in students.items():
            save_weights(network, folder / f"student-{name}.safetensors")
    seconds = trainer.parallel.broadcast_scalar(trainer.seconds)
    return TrainingResult(student, trainer.history, seconds, figures, trainer.parameters_without_gradient, summary, students)
