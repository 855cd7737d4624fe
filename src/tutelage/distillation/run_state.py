"""What a checkpoint of a run holds, and how a run takes it up again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tutelage.distillation import checks
from tutelage.distillation.checkpoint import CheckpointManager, read_tensors, select_prefix, taken_from
from tutelage.distillation.outcome import exported, load_networks, networks_state
from tutelage.errors import InputError
from tutelage.fields import check_field, check_items

if TYPE_CHECKING:
    from tutelage.distillation.trainer import Trainer


def save(trainer: Trainer) -> None:
    """Write a checkpoint of the run as it stands.

    Raises:
        TrainingError: a loss or a weight is not finite.
        InputError: the method's state holds something that is no tensor.
    """
    assert trainer.folder is not None
    log, selection = trainer.log, trainer.selection
    tensors = networks_state(trainer)
    tensors |= {f"teacher.{k}": v for k, v in (trainer.teacher.state_dict() if trainer.teacher else {}).items()}
    for one in trainer.updaters:
        tensors |= one.state(trainer.step)
    tensors |= {f"sums.{k}": v for k, v in log.sums.items()}
    checks.check_tensors(tensors, type(trainer.method).__name__)
    tensors = dict(trainer.parallel.gather_full(tensors))
    head: dict[str, Any] = {"since": log.since, "counts": log.counts, "seconds": trainer.seconds}
    head["ungraded"] = trainer.parameters_without_gradient
    if selection is not None:
        head["selection"] = selection.state()
    if trainer.parallel.main:
        CheckpointManager(trainer.folder).write(trainer.step, tensors, head)
        if selection is not None:
            selection.prune(trainer.folder)


def restore(trainer: Trainer) -> None:
    """Go on from the folder's last checkpoint, if there is one.

    The phases that were entered by then are entered again, in order, so that everything has the shapes of that step.

    Raises:
        InputError, StaleError: a checkpoint is damaged, or of another run.
    """
    assert trainer.folder is not None
    with trainer.parallel.main_first():  # files alone: what all processes do together comes after
        for left in trainer.folder.glob(".*.part"):  # of a killed run: this folder has one owner
            left.unlink(missing_ok=True)
        latest = CheckpointManager(trainer.folder).latest
        if latest is None:
            trainer.log.resume(0)
            if trainer.selection is not None and trainer.parallel.main:
                trainer.selection.prune(trainer.folder)
            return
        tensors, head = read_tensors(latest)
        with taken_from(latest):
            step = check_field(head, "step", int, 0, trainer.settings.steps, where=latest)
        trainer.log.resume(step)
    with taken_from(latest):
        if trainer.selection is not None:
            trainer.selection.load(check_field(head, "selection", dict, where=latest), latest)
        _enter_phases(trainer, step)
        load_networks(trainer, tensors)
        if trainer.teacher is not None and (state := select_prefix(tensors, "teacher")):
            trainer.teacher.load_state_dict(state)
        for one in trainer.updaters:
            one.load(tensors, trainer.parallel)
        log = trainer.log
        sums, counts = select_prefix(tensors, "sums"), check_field(head, "counts", dict, where=latest)
        log.counts = {name: check_field(counts, name, int, 0, where=latest) for name in counts}
        log.sums = {name: sums[name].to(trainer.device) for name in counts}  # in their order: the tensors are sorted by name
        log.since = check_field(head, "since", int, 0, step, where=latest)
        trainer.step = step
        trainer.seconds = check_field(head, "seconds", float, 0, where=latest)
        trainer.parameters_without_gradient = tuple(check_items(head, "ungraded", str, where=latest))


def _enter_phases(trainer: Trainer, step: int) -> None:
    """Enter every phase that began before ``step``; the best student is rebuilt in its own."""
    best = trainer.selection
    for phase, first, length in trainer.phases:
        if first >= step or not length:
            continue
        trainer.enter(phase)
        if best is not None and best.step is not None and first < best.step <= first + length:
            load_best(trainer)


def load_best(trainer: Trainer) -> None:
    """Build the best student again from its file.

    Raises:
        InputError: the file is gone or damaged.
    """
    best = trainer.selection
    assert best is not None and best.file is not None and trainer.folder is not None
    path = trainer.folder / best.file
    if not path.exists():
        raise InputError("the best student so far is gone", where=path, remedy="train again into another folder")
    tensors, _ = read_tensors(path)
    load_networks(trainer, tensors)
    best.network = exported(trainer)
