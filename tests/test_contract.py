"""What every registered system must keep, checked on its tiny lesson; and that these checks catch what they should."""

from __future__ import annotations

import copy
import functools
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from tutelage import registry
from tutelage.distillation.cache import CachedTeacher
from tutelage.distillation.cache_build import build, verify
from tutelage.distillation.job import TensorData, TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.result import TrainingResult
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.registry import SystemEntry, system

DOCS = Path(__file__).parents[1] / "docs" / "systems"


def each(entries: Iterable[SystemEntry]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("entry", entries, ids=lambda entry: entry.name)


each_system = each(registry.systems().values())
each_trained = each([entry for entry in registry.systems().values() if not entry.is_tool])
each_tool = each([entry for entry in registry.systems().values() if entry.is_tool])


def short(entry: SystemEntry, **changes: Any) -> TrainingJob:
    """The system's tiny lesson, cut to a few steps that reach every stage."""
    lesson = entry.target.tiny_job(0)
    steps = max(4, 2 * len(lesson.method.phases()))
    settings = {"steps": steps, "checkpoint_every": 2, "log_every": 1, "eval_every": 0, "warmup": 0} | changes
    lesson.settings, lesson.evaluate = replace(lesson.settings, **settings), None
    return lesson


def bits(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state that later steps cannot change."""
    return {name: value.detach().clone() for name, value in state.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def figures(result: TrainingResult) -> list[Any]:
    return [(record["step"], record["terms"]) for record in result.history]


@functools.cache
def uninterrupted(entry: SystemEntry) -> TrainingResult:
    return train(short(entry))


# -- the checks ------------------------------------------------------------------------------------------------------


def check_names(entry: SystemEntry) -> None:
    module = entry.target.__module__.removeprefix("tutelage.systems.").partition(".")[0]
    assert module == entry.name.replace("-", "_"), "the file is named as the system"
    assert entry.card == entry.name, "the card is named as the system"
    assert len(entry.summary) > 20, "the docstring's first line says what it is"
    page = DOCS / f"{entry.name}.md"
    assert page.exists() and page.read_text().startswith(f"# {entry.name}\n"), "run `make docs`"


def check_one_step_lowers_the_loss(entry: SystemEntry) -> None:
    trainer = Trainer(short(entry))
    trainer.advance()
    batch = trainer.batch(0)
    start = {name: bits(module.state_dict()) for name, module in _learners(trainer)}

    def loss() -> Tensor:
        torch.manual_seed(0)
        shown = trainer.method.transform(copy.copy(batch))  # in the last turn, whose parameters alone get a gradient
        ours, theirs = trainer.method(shown, trainer.student, trainer.teacher)
        weights = trainer.method.loss_weights()
        terms = trainer.method.loss_terms(shown, ours, theirs)
        return sum((weights.get(name, 1.0) * term for name, term in terms.items()), start=torch.zeros(()))

    def restore() -> None:
        for name, module in _learners(trainer):
            module.load_state_dict(start[name])

    restore()
    for parameter in trainer.parameters.values():
        parameter.grad = None
    trainer.method.backward(loss)
    graded = [parameter for parameter in trainer.parameters.values() if parameter.grad is not None]
    slopes = [parameter.grad.clone() for parameter in graded]
    norm = torch.stack([slope.norm() for slope in slopes]).norm()
    assert norm > 0, "no gradient"
    with torch.no_grad():
        restore()
        before = loss().item()
        after = []
        for size in (1e-1, 1e-2, 1e-3):
            restore()
            for parameter, slope in zip(graded, slopes, strict=True):
                parameter -= size * slope / norm
            after.append(loss().item())
    assert min(after) < before, f"a step down the gradient leads from {before} to {after}"


def _learners(trainer: Trainer) -> Iterator[tuple[str, nn.Module]]:
    yield "student", trainer.student
    yield "method", trainer.method


def check_the_teacher_is_left_alone(entry: SystemEntry) -> None:
    lesson = short(entry)
    network = lesson.teacher.network if lesson.teacher is not None else None
    trainer = Trainer(lesson)
    learned = {id(parameter) for updater in trainer.updaters for parameter in updater.flat}
    if network is None:
        return
    assert not learned & {id(parameter) for parameter in network.parameters()}, "a teacher's parameter is optimised"
    frozen = not lesson.teacher.state_dict()
    before = bits(network.state_dict())
    trainer.run()
    assert not any(parameter.requires_grad for parameter in network.parameters())
    if frozen:
        assert same(before, network.state_dict()), "a frozen teacher changed"


def check_every_parameter_learns(entry: SystemEntry) -> None:
    trainer = Trainer(short(entry))
    graded: set[str] = set()

    def look(done: int, steps: int) -> None:
        graded.update(name for name, parameter in trainer.parameters.items() if parameter.grad is not None)

    trainer.run(look)
    silent = set(trainer.parameters) - graded
    silent = {name for name in silent if not any(fnmatch(name, pattern) for pattern in trainer.method.unused_parameters)}
    assert not silent, f"no gradient, and not declared idle: {sorted(silent)}"


def check_same_seed_same_figures(entry: SystemEntry) -> None:
    first, second = uninterrupted(entry), train(short(entry))
    assert figures(first) == figures(second)
    assert same(first.student.state_dict(), second.student.state_dict())


class _Stop(Exception):
    pass


def check_resume_is_exact(entry: SystemEntry, folder: Path) -> None:
    def stop(done: int, steps: int) -> None:
        if done == 3:
            raise _Stop

    with pytest.raises(_Stop):
        train(short(entry), folder, progress=stop)
    resumed = train(short(entry), folder)
    assert figures(resumed) == figures(uninterrupted(entry))
    assert same(resumed.student.state_dict(), uninterrupted(entry).student.state_dict())


def check_cached_equals_live(entry: SystemEntry, folder: Path) -> None:
    asked = short(entry)
    teacher = asked.teacher
    if teacher is None or teacher.state_dict() or not asked.method.deterministic_teacher:
        return
    Trainer(asked)  # the method now has asked the teacher for the inner outputs that it wants
    cache = build(asked, folder / "fp32", "fp32")
    lesson = short(entry)
    lesson.teacher = CachedTeacher(cache, lesson.teacher)
    cached = train(lesson)
    assert figures(cached) == figures(uninterrupted(entry))
    assert same(cached.student.state_dict(), uninterrupted(entry).student.state_dict())
    build(asked, folder / "fp16", "fp16")
    assert verify(folder / "fp16", asked)["asked"] > 0


def check_the_export_stands_alone(entry: SystemEntry) -> None:
    lesson = short(entry)
    result = train(lesson)
    student = result.student
    assert not student.training
    for name, module in student.named_modules():
        home = type(module).__module__
        plain = (
            not home.startswith("tutelage.distillation") or home == "tutelage.distillation.small_models"
        )  # nn.Modules, no training
        assert plain, f"{name} is training code"
        assert not module._forward_hooks and not module._forward_pre_hooks, f"{name} carries a hook"
    inputs = lesson.data.batch(*lesson.sample_order().step(0)).inputs
    with torch.no_grad():
        said = forward_heads(student, inputs)
        assert said and all(value.isfinite().all() for value in said.values())
        fresh = copy.deepcopy(student)
        for parameter in fresh.parameters():
            parameter.zero_()
        fresh.load_state_dict(bits(student.state_dict()))
        again = forward_heads(fresh, inputs)
    assert same(said, again), "the state does not hold all that the answer depends on"


def check_a_tool_repeats_its_figures(entry: SystemEntry) -> None:
    """The same figures for the same seed, whatever torch's, NumPy's and Python's generators hold; each of them finite."""
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        numpy.random.seed(state)
        random.seed(state)
        found.append(entry.target.tiny_run(0))
    figures = found[0]
    assert figures and json.loads(json.dumps(figures, allow_nan=False)) == figures, "plain numbers and texts"
    assert found[1] == figures


# -- every registered system -----------------------------------------------------------------------------------------


@each_system
def test_names_agree(entry: SystemEntry) -> None:
    check_names(entry)


@each_trained
def test_one_step_lowers_the_loss(entry: SystemEntry) -> None:
    check_one_step_lowers_the_loss(entry)


@each_trained
def test_the_teacher_is_left_alone(entry: SystemEntry) -> None:
    check_the_teacher_is_left_alone(entry)


@each_trained
def test_every_parameter_learns(entry: SystemEntry) -> None:
    check_every_parameter_learns(entry)


@each_trained
def test_same_seed_same_figures(entry: SystemEntry) -> None:
    check_same_seed_same_figures(entry)


@each_trained
def test_resume_is_exact(entry: SystemEntry, tmp_path: Path) -> None:
    check_resume_is_exact(entry, tmp_path)


@each_trained
def test_cached_equals_live(entry: SystemEntry, tmp_path: Path) -> None:
    check_cached_equals_live(entry, tmp_path)


@each_trained
def test_the_export_stands_alone(entry: SystemEntry) -> None:
    check_the_export_stands_alone(entry)


@each_tool
def test_a_tool_repeats_its_figures(entry: SystemEntry) -> None:
    check_a_tool_repeats_its_figures(entry)


# -- the checks themselves -------------------------------------------------------------------------------------------


def tiny(method: Method, seed: int, student: nn.Module | None = None) -> TrainingJob:
    made = torch.Generator().manual_seed(seed)
    inputs, labels = torch.randn(16, 4, generator=made), torch.randint(0, 3, (16,), generator=made)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = student or nn.Linear(4, 3)
        teacher = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    return TrainingJob(student, teacher, method, TensorData(inputs, labels), TrainingSettings(steps=6, batch_size=8, lr=0.01))


@system("sound", kind="distillation")
class Sound(Method):
    """The square of the difference of the logits, and nothing wrong with it."""

    def loss_terms(self, batch: Any, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"mse": (student["logits"] - teacher["logits"]).square().mean()}

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        return tiny(cls(), seed)


class Uphill(Sound):
    """Its gradient leads away from its goal."""

    def backward(self, loss: Callable[[], Tensor]) -> None:
        (-loss()).backward()


class WakesTheTeacher(Sound):
    """Lets the teacher's batch-norm see the batches in training mode."""

    def forward(self, batch: Any, student: nn.Module, teacher: Any) -> Any:
        ours, theirs = super().forward(batch, student, teacher)
        teacher.network.train()(batch.inputs)
        return ours, theirs


class Wasteful(Sound):
    """Holds a projection that nothing uses."""

    def prepare(self, *observed: Any) -> None:
        self.projection = nn.Linear(2, 2)


class Forgetful(Sound):
    """Keeps state where no checkpoint sees it."""

    def after_step(self, student: nn.Module) -> None:
        self.count = getattr(self, "count", 0) + 1

    def loss_weights(self) -> dict[str, float]:
        return {"mse": 1.0 + getattr(self, "count", 0)}


class Random(Sound):
    """Draws from a generator that no seed reaches."""

    def loss_terms(self, batch: Any, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> dict[str, Tensor]:
        noise = torch.rand((), generator=torch.Generator().manual_seed(torch.Generator().seed()))
        return {"mse": super().loss_terms(batch, student, teacher)["mse"] * (1 + noise)}


class Hooked(Sound):
    """Exports a student that still carries a hook."""

    def export(self, student: nn.Module) -> nn.Module:
        exported = super().export(student)
        exported.register_forward_hook(lambda module, inputs, output: output * 2)
        return exported


def entry_of(target: Any) -> SystemEntry:
    return SystemEntry("sound", "distillation", "sound", target)


CHECKS = {
    "lowers": check_one_step_lowers_the_loss,
    "teacher": check_the_teacher_is_left_alone,
    "learns": check_every_parameter_learns,
    "repeats": check_same_seed_same_figures,
    "export": check_the_export_stands_alone,
}


def test_a_sound_system_passes(tmp_path: Path) -> None:
    for check in CHECKS.values():
        check(entry_of(Sound))
    check_resume_is_exact(entry_of(Sound), tmp_path / "resumed")
    check_cached_equals_live(entry_of(Sound), tmp_path)


@pytest.mark.parametrize(
    ("target", "check"),
    [(Uphill, "lowers"), (WakesTheTeacher, "teacher"), (Wasteful, "learns"), (Random, "repeats"), (Hooked, "export")],
)
def test_a_fault_is_caught(target: type[Sound], check: str) -> None:
    with pytest.raises(AssertionError):
        CHECKS[check](entry_of(target))


def test_state_that_is_not_saved_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_resume_is_exact(entry_of(Forgetful), tmp_path)


def test_a_cache_that_misses_is_caught(tmp_path: Path) -> None:
    """A teacher whose answers are not what training sees: it drifts with every question."""

    class Drifting(Sound):
        @classmethod
        def tiny_job(cls, seed: int) -> TrainingJob:
            lesson = super().tiny_job(seed)
            network = lesson.teacher.network
            network.register_forward_hook(lambda module, inputs, output: output + module.drift.add_(1e-3))
            network.drift = torch.zeros(())
            return lesson

    with pytest.raises(AssertionError):
        check_cached_equals_live(entry_of(Drifting), tmp_path)


class Counter:
    """A tool that gives the same figures for a seed."""

    @staticmethod
    def tiny_run(seed: int) -> dict[str, float]:
        return {"count": seed + 1.0}


class Careless(Counter):
    """A tool that draws from a global generator."""

    @staticmethod
    def tiny_run(seed: int) -> dict[str, float]:
        return {"count": float(torch.rand(()))}


class Silent(Counter):
    """A tool that finds nothing and does not say so."""

    @staticmethod
    def tiny_run(seed: int) -> dict[str, float]:
        return {"count": math.nan}


def test_a_sound_tool_passes() -> None:
    assert entry_of(Counter).is_tool and not entry_of(Sound).is_tool
    check_a_tool_repeats_its_figures(entry_of(Counter))


@pytest.mark.parametrize("target", [Careless, Silent])
def test_a_fault_of_a_tool_is_caught(target: type[Counter]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_a_tool_repeats_its_figures(entry_of(target))


def test_wrong_names_are_caught() -> None:
    with pytest.raises(AssertionError, match="named as the system"):
        check_names(entry_of(Sound))


def test_a_lesson_that_does_not_fit_is_refused() -> None:
    lesson = tiny(Sound(), 0, student=nn.Linear(4, 5))
    with pytest.raises((InputError, RuntimeError)):
        train(lesson)
