"""Validation data: the best student is kept, a run stops early, and both survive a kill; the moving average is exported."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tutelage.distillation.api import distill
from tutelage.distillation.data import TensorData
from tutelage.distillation.data.subset import split_data
from tutelage.distillation.evaluate import evaluate
from tutelage.distillation.export import load_weights
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Phase
from tutelage.distillation.selection import Selection, lower_is_better
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.teacher import EMATeacher
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError

from .test_trainer import FINAL, kill_rounds, plain, stop_at
from .test_turns import Loops
from .toy import Distil, Net, bits, samples

QUICK = {"steps": 40, "batch_size": 16, "lr": 0.01, "eval_every": 4}


class Score:
    """Gives the figures of a list, one an evaluation, and counts."""

    def __init__(self, *values: float, name: str = "accuracy"):
        self.values, self.name, self.calls = values, name, 0

    def __call__(self, network: nn.Module) -> dict[str, float]:
        self.calls += 1
        return {self.name: self.values[min(self.calls, len(self.values)) - 1]}


def job(validation: object, **settings: object) -> TrainingJob:
    told = {"steps": 24, "batch_size": 16, "lr": 0.01, "eval_every": 4, "log_every": 0, "checkpoint_every": 4} | settings
    data = told.pop("data", None) or samples()
    student, teacher = Net(dropout=0.2, norm=True), Net(16, seed=1)
    return TrainingJob(student, teacher, Distil(), data, TrainingSettings(**told), "toy", validation=validation)


def by_norm(network: nn.Module) -> dict[str, float]:
    """A figure that is best in the middle of these runs."""
    return {"accuracy": -float(network.head.weight.double().norm())}


def test_the_best_student_is_kept_and_the_last_is_there_by_name(tmp_path: Path) -> None:
    made = job(Score(1, 5, 3, 5, 2, 4))
    states = {}

    class Recording(Distil):
        def after_step(self, student):
            states[self.progress.step + 1] = bits(student)

    made.method = Recording()
    result = train(made, tmp_path)
    chosen = result.selection
    assert chosen is not None and (chosen["kept"], chosen["step"], chosen["best_value"]) == ("best", 8, 5)
    assert bits(result.student) == states[8] == bits(result.students["best"]) and bits(result.students["last"]) == states[24]
    assert chosen["last_step"] == 24 and not chosen["stopped_early"] and chosen["chosen_on"] == "validation"
    assert result.metrics == {}, "figures that chose the student are not reported as its own"
    assert [r["validation"]["accuracy"] for r in result.history if "validation" in r] == [1, 5, 3, 5, 2, 4]
    for name, step in (("student", 8), ("student-best", 8), ("student-last", 24)):
        assert bits(load_weights(Net(norm=True), tmp_path / f"{name}.safetensors")) == states[step]


def test_the_last_is_kept_where_that_is_asked_for() -> None:
    result = train(job(Score(1, 5, 3), keep="last"))
    assert result.selection["kept"] == "last" and result.selection["step"] == 24 and result.selection["best_step"] == 8
    assert bits(result.student) == bits(result.students["last"]) != bits(result.students["best"])


def test_patience_ends_a_run() -> None:
    result = train(job(Score(1, 5, 3, 4, 2, 9), patience=3))
    assert result.history[-1]["step"] == 20 and result.selection["stopped_early"] and result.selection["evaluations"] == 5
    assert result.selection["step"] == 8


@pytest.mark.parametrize(("name", "more", "step"), [("loss", {}, 12), ("mine", {"lower_is_better": True}, 12), ("accuracy", {}, 4)])
def test_the_direction_is_the_metrics_own(name: str, more: dict, step: int) -> None:
    told = {"metric": name} | more
    assert train(job(Score(3, 2, 1, 2, 2, 2, name=name), **told)).selection["step"] == step


def test_nan_is_never_the_best_and_an_unknown_figure_is_refused() -> None:
    result = train(job(Score(math.nan, math.nan)))
    assert result.selection["kept"] == "last" and result.selection["best_step"] is None
    assert train(job(Score(math.nan, 1, math.nan, 0))).selection["step"] == 8
    with pytest.raises(InputError, match="whether more or less of 'mine'"):
        train(job(Score(1, name="mine")))
    with pytest.raises(InputError, match="no figure 'F1'"):
        train(job(Score(1), metric="F1"))
    assert lower_is_better("RMSE") and not lower_is_better("mIoU")


@pytest.mark.parametrize("at", [3, 7, 9, 14, 22])
@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"patience": 2}])
def test_a_stopped_run_keeps_the_same_best_student(tmp_path: Path, at: int, settings: dict) -> None:
    told = {"checkpoint_every": 5, "eval_every": 2} | settings
    whole = train(job(by_norm, **told))
    assert 2 < whole.selection["best_step"] < 24
    try:
        train(job(by_norm, **told), tmp_path, stop_at(at))
    except KeyboardInterrupt:
        pass
    again = train(job(by_norm, **told), tmp_path)
    assert bits(again.student) == bits(whole.student) and bits(again.students["last"]) == bits(whole.students["last"])
    assert again.selection == whole.selection and plain(again.history) == plain(whole.history)
    read_back = train(job(by_norm, **told), tmp_path)
    assert bits(read_back.student) == bits(whole.student) and read_back.selection == whole.selection
    assert len(list(tmp_path.glob("best-*"))) <= 2


def swinging(**settings: object) -> TrainingJob:
    """The best student changes many times, and the last of them is not the last student."""
    made = job(lambda net: {"accuracy": float(net.head.weight.double().sum().mul(50).sin())}, ema=0.8, **settings)
    made.method = Loops()
    made.teacher = None
    return made


@pytest.mark.slow
def test_a_killed_run_with_turns_keeps_the_same_best_student(tmp_path: Path) -> None:
    left = kill_rounds(tmp_path, 6, swinging)
    best = {name for name in left if name.startswith("best-")}
    assert left - best == FINAL | {"student-best.safetensors", "student-last.safetensors"} and 1 <= len(best) <= 2


def test_a_best_student_that_is_gone_is_refused(tmp_path: Path) -> None:
    train(job(by_norm), tmp_path)
    for path in tmp_path.glob("best-*"):
        path.unlink()
    with pytest.raises(InputError, match="best student so far is gone"):
        train(job(by_norm), tmp_path)


def test_figures_are_of_the_student_that_is_kept() -> None:
    data, held, test = samples(200), samples(60, seed=1), samples(60, seed=2)
    done = distill(Net(), None, data, Supervised, validation=held, evaluate=test, task="classification", **QUICK)
    result = done.results[0]
    assert result.metrics == evaluate(done.student, test) and result.selection["best_figures"] == evaluate(done.student, held)
    assert done.summary()["runs"][0]["selection"]["metric"] == "accuracy" and done.selection == [result.selection]


def test_reporting_on_the_data_that_chose_the_student_is_refused() -> None:
    data, held = samples(200), samples(60, seed=1)
    for evaluate_on in (held, samples(60, seed=1), held):
        with pytest.raises(InputError, match="the same data"):
            distill(Net(), None, data, Supervised, validation=held, evaluate=evaluate_on, **QUICK)


def test_a_share_of_the_data_is_held_out() -> None:
    data = samples(100)
    learned, held = split_data(data, 0.2)
    rows = torch.cat([learned.rows, held.rows])
    assert len(held) == 20 and torch.equal(rows.sort().values, torch.arange(100))
    assert torch.equal(split_data(data, 0.2)[1].rows, held.rows) and learned.fingerprint != held.fingerprint
    batch = held.batch(torch.tensor([3, 0]), None)
    assert torch.equal(batch.inputs, data.inputs[held.rows[[3, 0]]]) and torch.equal(batch.ids, held.rows[[3, 0]])
    done = distill(Net(), None, data, Supervised, validation=0.2, epochs=2, batch_size=20, lr=0.01)
    assert done.selection[0]["last_step"] == 8
    assert done.selection[0]["best_figures"] == evaluate(done.student, held)


def test_validation_comes_once_an_epoch_and_at_least_ten_times() -> None:
    score = Score(*range(100))
    train(job(score, steps=60, eval_every=0, batch_size=20, data=samples(60)))
    assert score.calls == 20  # an epoch is 3 steps
    score = Score(*range(100))
    train(job(score, steps=20, eval_every=0, batch_size=2, data=samples(60)))
    assert score.calls == 10


# -- the moving average of the student -------------------------------------------------------------------------------


def test_the_moving_average_is_what_is_exported_and_it_resumes(tmp_path: Path) -> None:
    made = job(None, ema=0.8)
    twin = EMATeacher(made.student, 0.8)

    class Following(Distil):
        def after_step(self, student):
            twin.after_step(student)

    made.method = Following()
    result = train(made, tmp_path / "whole")
    assert bits(result.student) == bits(twin.network) != bits(made.student)
    assert bits(load_weights(Net(norm=True), tmp_path / "whole" / "student.safetensors")) == bits(twin.network)
    with pytest.raises(KeyboardInterrupt):
        train(job(None, ema=0.8), tmp_path / "cut", stop_at(13))
    assert bits(train(job(None, ema=0.8), tmp_path / "cut").student) == bits(result.student)


def test_a_decay_that_rises() -> None:
    trainer = Trainer(job(None, ema=(0.0, 1.0), steps=4))
    trainer.advance()
    assert bits(trainer.average.network) == bits(trainer.student), "the first decay is 0"
    before = bits(trainer.average.network)
    for _ in range(3):
        trainer.advance()
    assert bits(trainer.average.network) != before and bits(trainer.average.network) != bits(trainer.student)


def test_training_itself_does_not_change_with_the_average() -> None:
    first, second = job(None), job(None, ema=0.9)
    train(first), train(second)
    assert bits(first.student) == bits(second.student)


@pytest.mark.parametrize("buffers", ["copy", "average", "own"])
def test_a_teacher_that_follows_in_train_mode(buffers: str) -> None:
    student = Net(norm=True)
    teacher = EMATeacher(student, 0.5, buffers=buffers, train=True)
    batch = samples(20).batch(torch.arange(20), None)
    with torch.no_grad():
        student.norm.running_mean.fill_(3.0)
    answer = teacher(batch)["logits"]
    assert not torch.equal(answer, EMATeacher(student)(batch)["logits"]), "batch statistics, not those that run"
    own = teacher.network.norm.running_mean.clone()
    assert own.abs().sum() > 0, "its own statistics follow its own batches"
    teacher.after_step(student)
    wanted = {"copy": student.norm.running_mean, "average": own.lerp(student.norm.running_mean, 0.5), "own": own}[buffers]
    assert torch.allclose(teacher.network.norm.running_mean, wanted)
    assert teacher.fingerprint != EMATeacher(student, 0.5).fingerprint


def test_a_phase_and_a_best_student_of_an_earlier_one(tmp_path: Path) -> None:
    class Staged(Distil):
        def phases(self):
            return (Phase("head", trains=lambda name: name.startswith("student.head")), Phase("all"))

    def made() -> TrainingJob:
        one = job(Score(1, 5, 3))
        one.method = Staged()
        return one

    result = train(made(), tmp_path)
    assert result.selection["step"] == 8
    again = made()
    assert bits(train(again, tmp_path).student) == bits(result.student)


def test_the_log_holds_the_validation(tmp_path: Path) -> None:
    train(job(Score(1, 2)), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["validation"] for line in lines] == [{"accuracy": 1}] + [{"accuracy": 2}] * 5


def test_a_selection_goes_on_where_it_was() -> None:
    first = Selection("accuracy", None, 3)
    assert [first.offer({"accuracy": value}, step) for step, value in enumerate((1.0, 3.0, 3.0, 2.0))] == [True, True, False, False]
    second = Selection("accuracy", None, 3)
    second.load(json.loads(json.dumps(first.state())), "here")
    assert second.state() == first.state() and not second.stopped
    assert not second.offer({"accuracy": math.nan}, 9) and second.stopped
    with pytest.raises(InputError):
        Selection("accuracy", None, 3).load({"step": "x"}, "here")


def test_task_metrics_choose_where_validation_is_data() -> None:
    settings = TrainingSettings(steps=20, batch_size=16, lr=0.01, eval_every=5)
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    data = TensorData(inputs, inputs @ torch.ones(4, 1))
    made = TrainingJob(Net(classes=1), None, Supervised(), data, settings, task="regression", validation=split_data(data, 0.3)[1])
    chosen = train(made).selection
    assert chosen["metric"] == made.task.metrics[0].name and chosen["lower_is_better"] is not made.task.metrics[0].higher_is_better
