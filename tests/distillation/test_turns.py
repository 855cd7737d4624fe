"""Several optimisers in one run, batches that change by step, and parameters that grow: each against a loop by hand."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method, Phase, Turn
from tutelage.distillation.teacher import EMATeacher
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError, TrainingError

from .test_trainer import plain, stop_at
from .toy import Distil, Net, bits, lesson, samples


class Adversarial(Method):
    """The student's features must not tell a domain; a discriminator reads them. Both learn in turn."""

    needs_teacher = False

    def prepare(self, student, teacher, example, data):
        self.judge = nn.Linear(3, 1)

    def turns(self):
        return (
            Turn("judge", lambda name: name.startswith("method."), settings={"lr": 0.05, "optimizer": "sgd", "momentum": 0.5}),
            Turn("student", lambda name: name.startswith("student.")),
        )

    def forward(self, batch, student, teacher):
        return {"logits": student(batch.inputs)}, {}

    def loss_terms(self, batch, student, teacher):
        domain = (batch.inputs[:, 0] > 0).float()
        guess = F.binary_cross_entropy_with_logits(self.judge(student["logits"])[:, 0], domain)
        if self.progress.turn == "judge":
            return {"judge": guess}
        return {"label": F.cross_entropy(student["logits"], batch.labels), "fool": -0.1 * guess}


def adversarial(method: Method | None = None, **settings: object) -> TrainingJob:
    told = {"steps": 20, "batch_size": 16, "lr": 0.01, "log_every": 7, "checkpoint_every": 4, "schedule": "constant"} | settings
    return TrainingJob(Net(), None, method or Adversarial(), samples(), TrainingSettings(**told), "turns")


def test_two_turns_equal_a_loop_by_hand() -> None:
    trainer = Trainer(adversarial())
    student, judge = copy.deepcopy(trainer.student).train(), copy.deepcopy(trainer.method.judge)
    of_judge = torch.optim.SGD(judge.parameters(), 0.05, momentum=0.5)
    of_student = torch.optim.AdamW(student.parameters(), 0.01, weight_decay=0.0)
    trainer._train_mode()
    for step in range(20):
        batch = trainer.batch(step)
        domain = (batch.inputs[:, 0] > 0).float()
        of_judge.zero_grad()
        F.binary_cross_entropy_with_logits(judge(student(batch.inputs).detach())[:, 0], domain).backward()
        of_judge.step()
        of_student.zero_grad()
        logits = student(batch.inputs)
        fool = F.binary_cross_entropy_with_logits(judge(logits)[:, 0], domain)
        (F.cross_entropy(logits, batch.labels) - 0.1 * fool).backward()
        of_student.step()
        trainer.advance()
    for mine, other in zip(trainer.student.parameters(), student.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
    for mine, other in zip(trainer.method.judge.parameters(), judge.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_each_turn_has_its_terms_and_leaves_the_others_alone() -> None:
    trainer = Trainer(adversarial(steps=7))
    grads = []

    def look(student):
        grads.append({name for name, p in trainer.parameters.items() if p.grad is not None})

    trainer.method.after_step = look  # type: ignore[method-assign]
    record = trainer.run().history[-1]
    assert set(record["terms"]) == {"judge", "label", "fool"}
    assert grads[-1] == set(trainer.parameters) and trainer.parameters_without_gradient == ()
    assert all(parameter.requires_grad for parameter in trainer.parameters.values())


class Loops(Adversarial):
    """An inner turn every step, an outer one every third, which gathers two gradients for each update."""

    def turns(self):
        return (
            Turn("inner", lambda name: name.startswith("student.")),
            Turn("judge", lambda name: name.startswith("method."), every=3, offset=1, accumulate=2, settings={"weight_decay": 0.1}),
        )


def test_turns_of_their_own_rhythm_and_gathered_gradients() -> None:
    trainer = Trainer(adversarial(Loops(), steps=14))
    trainer._train_mode()
    moved = []
    for _ in range(14):
        before = trainer.method.judge.weight.detach().clone()
        trainer.advance()
        moved.append(not torch.equal(before, trainer.method.judge.weight))
    assert [step for step, one in enumerate(moved) if one] == [4, 10]  # due in 1, 4, 7, 10, 13


def test_a_gathered_gradient_is_the_mean() -> None:
    trainer = Trainer(adversarial(Loops(), steps=5))
    trainer._train_mode()
    judge, found = copy.deepcopy(trainer.method.judge), []
    for step in range(5):
        trainer.advance()
        if step in (1, 4):  # the inner turn came first: the student is as the outer one saw it
            batch = trainer.batch(step)
            guess = judge(trainer.student(batch.inputs))[:, 0]
            loss = F.binary_cross_entropy_with_logits(guess, (batch.inputs[:, 0] > 0).float())
            found.append(torch.autograd.grad(loss, judge.weight)[0])
    assert torch.allclose(trainer.method.judge.weight.grad, (found[0] + found[1]) / 2, atol=1e-7)


@pytest.mark.parametrize("method", [Adversarial, Loops])
@pytest.mark.parametrize("at", [1, 5, 6, 9, 13, 18])
def test_turns_resume_to_the_same_bits(tmp_path: Path, method: type[Method], at: int) -> None:
    told = {"checkpoint_every": 1, "accumulate": 2, "clip": 1.0}
    whole = Trainer(adversarial(method(), **told))
    wanted = whole.run()
    with pytest.raises(KeyboardInterrupt):
        train(adversarial(method(), **told), tmp_path, stop_at(at))
    again = Trainer(adversarial(method(), **told), tmp_path)
    assert again.step == at - 1 or again.step == at
    found = again.run()
    assert bits(found.student) == bits(wanted.student) and bits(again.method) == bits(whole.method)
    assert plain(found.history) == plain(wanted.history)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((), "no turn"),
        ((Turn("a"), Turn("a")), "two of one name"),
        ((Turn("a"), Turn("b")), "belongs to a and b"),
        ((Turn("a", lambda name: name.startswith("student")),), "belongs to no turn"),
        ((Turn("a", every=0),), "every is 0"),
        ((Turn("a", accumulate=1.5),), "not a whole number"),  # type: ignore[arg-type]
        ((Turn("a", settings={"steps": 3}),), "no setting 'steps'"),
        ((Turn("a", settings={"lr": -3.0}),), "too small"),
        ((Turn("a", lambda name: False), Turn("b")), "nothing to train"),
        ((Turn("a.b"),), "without dots"),
    ],
)
def test_impossible_turns_are_refused(turns: tuple[Turn, ...], message: str) -> None:
    class Wrong(Adversarial):
        def turns(self):
            return turns

    with pytest.raises(InputError, match=message):
        Trainer(adversarial(Wrong()))


def test_a_turn_without_gradient_is_refused() -> None:
    class Dead(Adversarial):
        def loss_terms(self, batch, student, teacher):
            found = super().loss_terms(batch, student, teacher)
            return found if self.progress.turn != "judge" else {"judge": self.free.sum()}

        def prepare(self, student, teacher, example, data):
            super().prepare(student, teacher, example, data)
            self.free = torch.zeros(1, requires_grad=True)

    with pytest.raises(TrainingError, match="no gradient"):
        train(adversarial(Dead()))


# -- batches that change by step, and parameters that grow ---------------------------------------------------------------


class Table(nn.Module):
    """A patch network with a table of positions of one side."""

    def __init__(self, side: int):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed, self.head = nn.Conv2d(1, 4, 2, 2), nn.Linear(4, 3)
            self.positions = nn.Parameter(torch.randn(1, 4, side, side))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.embed(x) + self.positions).tanh().mean((2, 3)))


class Growing(Method):
    """Small images first; the table grows with its moments."""

    needs_teacher = False
    sizes = (4, 4, 8)

    def phases(self):
        return tuple(Phase(str(number)) for number in range(3))

    def enter_phase(self, phase, student, resize):
        side = self.sizes[int(phase.name)] // 2

        def to_side(table: Tensor) -> Tensor:
            return F.interpolate(table, (side, side), mode="bilinear", align_corners=False)

        if student.positions.shape[-1] != side:
            resize(student.positions, to_side)

    def transform(self, batch):
        side = self.sizes[int(self.progress.phase.name)]
        batch.inputs = F.adaptive_avg_pool2d(batch.inputs, side)
        return batch

    def forward(self, batch, student, teacher):
        return {"logits": student(batch.inputs)}, teacher(batch) if teacher is not None else {}

    def loss_terms(self, batch, student, teacher):
        return {"label": F.cross_entropy(student["logits"], batch.labels)}


def pictures(count: int = 40) -> TensorData:
    inputs = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return TensorData(inputs, torch.arange(count) % 3)


def growing(**settings: object) -> TrainingJob:
    told = {"steps": 12, "batch_size": 8, "lr": 0.01, "checkpoint_every": 1, "log_every": 5} | settings
    student = Table(2)
    teacher = EMATeacher(student, 0.5)
    return TrainingJob(student, teacher, Growing(), pictures(), TrainingSettings(**told), "growing")


def test_a_parameter_grows_with_its_moments_and_its_averages() -> None:
    trainer = Trainer(growing(ema=0.5), check=False)
    trainer._train_mode()
    for _ in range(8):
        trainer.advance()
    table, state = trainer.student.positions, trainer.optimizer.state[trainer.student.positions]
    before = {name: value.clone() for name, value in state.items()}
    averaged = trainer.average.network.positions.clone()
    trainer.enter(trainer.phases[2][0])
    assert trainer.student.positions is table and table.shape[-1] == 4 and table.grad is None
    for name in ("exp_avg", "exp_avg_sq"):
        wanted = F.interpolate(before[name], (4, 4), mode="bilinear", align_corners=False)
        assert torch.allclose(state[name], wanted) and state[name].isfinite().all()
    assert (state["exp_avg_sq"] >= 0).all() and torch.equal(state["step"], before["step"])
    assert torch.allclose(trainer.average.network.positions, F.interpolate(averaged, (4, 4), mode="bilinear"))
    assert trainer.teacher.network.positions.shape == table.shape
    trainer.advance()
    assert trainer.student.positions.shape == (1, 4, 4, 4) and trainer.step == 9


def test_squared_moments_stay_positive_whatever_resizes_them() -> None:
    trainer = Trainer(growing(), check=False)
    trainer._train_mode()
    trainer.advance()
    resize: list = []
    trainer.method.enter_phase = lambda phase, student, how: resize.append(how)  # type: ignore[method-assign]
    trainer.enter(trainer.phases[1][0])
    resize[0](trainer.student.positions, lambda table: F.pad(table, (0, 1, 0, 1), value=-1.0))
    state = trainer.optimizer.state[trainer.student.positions]
    assert (
        state["exp_avg_sq"].shape == (1, 4, 3, 3) and float(state["exp_avg_sq"].min()) == 0 and float(state["exp_avg"].min()) == -1
    )
    with pytest.raises(InputError, match="was resized to"):
        resize[0](trainer.student.positions, lambda table: table.flatten())


@pytest.mark.parametrize("at", [2, 4, 5, 6, 8, 9, 11])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_that_grows_resumes_in_any_phase(tmp_path: Path, at: int, ema: float | None) -> None:
    wanted = train(growing(ema=ema), check=False)
    with pytest.raises(KeyboardInterrupt):
        train(growing(ema=ema), tmp_path, stop_at(at), check=False)
    found = train(growing(ema=ema), tmp_path, check=False)
    assert bits(found.student) == bits(wanted.student) and plain(found.history) == plain(wanted.history)


def test_a_best_student_of_a_smaller_size_is_kept_and_found_again(tmp_path: Path) -> None:
    def smallest(network: nn.Module) -> dict[str, float]:
        return {"accuracy": -float(network.positions.shape[-1])}

    def made() -> TrainingJob:
        one = growing(eval_every=1)
        return TrainingJob(one.student, one.teacher, one.method, one.data, one.settings, "growing", validation=smallest)

    wanted = train(made(), tmp_path, check=False)
    assert wanted.selection["step"] == 1 and wanted.student.positions.shape[-1] == 2
    assert wanted.students["last"].positions.shape[-1] == 4
    again = train(made(), tmp_path, check=False)
    assert bits(again.student) == bits(wanted.student) and again.student(torch.randn(2, 1, 4, 4)).shape == (2, 3)


def test_a_method_that_enters_phases_is_told_each_once_and_again_on_resume(tmp_path: Path) -> None:
    seen: list[str] = []

    class Told(Distil):
        def phases(self):
            return tuple(Phase(name) for name in "abc")

        def enter_phase(self, phase, student, resize):
            seen.append(phase.name)

    with pytest.raises(KeyboardInterrupt):
        train(lesson(Told(), steps=9), tmp_path, stop_at(5))
    assert seen == ["a", "b"]
    seen.clear()
    train(lesson(Told(), steps=9), tmp_path)
    assert seen == ["a", "b", "c"]
