"""Methods work through the task of the job: each cell of the table task x method, and what a user meets."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import tutelage
from tutelage import registry
from tutelage.distillation.data import TensorData
from tutelage.distillation.evaluate import evaluate
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.tasks import Regression, Segmentation, make_task, tasks
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError, StaleError
from tutelage.networks.detr import SmallDETR
from tutelage.networks.two_towers import MiniCLIP, TextTower
from tutelage.networks.unet import UNet
from tutelage.systems.dkd import DKD
from tutelage.systems.kd import KD

from .cases import N, make_case, whole_batch


def methods() -> dict[str, type[Method]]:
    """Every method that reads a task, by name."""
    found = {name: entry.target for name, entry in registry.systems().items()}
    named = {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Method) and kind.tasks}
    return {"supervised": Supervised} | named


PLAIN = {name for name, kind in methods().items() if kind.forward in (Method.forward, Supervised.forward)}
"""Methods that take any networks; the others need parts of a network by name, and bring some in their tiny job."""
CELLS = [(task, method) for task in tasks() for method in methods()]


def make_job(task: str, name: str, **settings: object) -> TrainingJob:
    kind = methods()[name]
    if name not in PLAIN:
        job = kind.tiny_job(0)
        return TrainingJob(job.student, job.teacher, job.method, job.data, job.settings, name, task=task)
    case = make_case(task)
    chosen = TrainingSettings(**{"steps": 2, "batch_size": N, "lr": 1e-3} | settings)
    return TrainingJob(case.student, case.teacher, kind(), case.data, chosen, name, task=task)


def loss(job: TrainingJob, batch: object) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student, teacher = job.method(batch, job.student, job.teacher)
        terms, weights = job.method.loss_terms(batch, student, teacher), job.method.loss_weights()
    return sum(weights.get(name, 1.0) * float(term.detach()) for name, term in terms.items())


@pytest.mark.parametrize("task, method", [cell for cell in CELLS if cell[0] in methods()[cell[1]].tasks])
def test_a_supported_cell_lowers_its_loss(task, method):
    job = make_job(task, method)
    trainer = Trainer(job)
    assert job.method.task.name == task
    batch = trainer.batch(0)
    job.student.train(), job.method.train()
    job.method.progress = replace(job.method.progress, phase=job.method.phases()[0])  # that of the step which follows
    before = loss(job, batch)
    trainer.advance()
    assert 0 < loss(job, batch) < before


@pytest.mark.parametrize("task, method", [cell for cell in CELLS if cell[0] not in methods()[cell[1]].tasks])
def test_other_cells_are_refused_by_name(task, method):
    with pytest.raises(InputError, match=f"{methods()[method].__name__} does not support the task {task}") as error:
        make_job(task, method)
    assert all(name in error.value.remedy for name in methods()[method].tasks)


@pytest.mark.parametrize("task", ["regression", "segmentation", "language-modelling", "detection"])
def test_the_task_is_inferred_before_the_first_step(task):
    case = make_case(task)
    job = TrainingJob(case.student, case.teacher, KD(), case.data, TrainingSettings(steps=1, batch_size=4))
    train(job)
    assert job.task.name == job.method.task.name == task


def test_an_inferred_task_that_the_method_does_not_support_is_refused():
    case = make_case("regression")
    job = TrainingJob(case.student, case.teacher, DKD(), case.data, TrainingSettings(steps=1, batch_size=4))
    with pytest.raises(InputError, match="DKD does not support the task regression"):
        train(job)


def test_a_regression_student_learns_its_teacher():
    torch.manual_seed(0)
    inputs = torch.randn(64, 4)
    teacher, student = nn.Linear(4, 1), nn.Linear(4, 1)
    data = TensorData(inputs, teacher(inputs).detach()[:, 0])
    result = tutelage.distill(student, teacher, data, "kd", steps=300, lr=0.05, batch_size=32, evaluate=data)
    assert result.results[0].metrics["R2"] > 0.99
    alone = tutelage.distill(
        student, teacher, TensorData(inputs), "kd", options={"alpha": 1.0}, task="regression", steps=300, lr=0.05, evaluate=data
    )
    assert alone.results[0].metrics["RMSE"] < 0.01


def test_without_labels_the_task_is_asked_for():
    case = make_case("classification")
    unlabelled = TensorData(case.data.inputs)
    with pytest.raises(InputError, match="the task is not clear") as error:
        tutelage.distill(case.student, case.teacher, unlabelled, "kd", options={"alpha": 1.0}, steps=1)
    assert 'task="classification"' in error.value.remedy
    tutelage.distill(case.student, case.teacher, unlabelled, "kd", options={"alpha": 1.0}, steps=1, task="classification")


def test_options_of_a_task():
    case = make_case("segmentation")
    case.data.labels[(case.data.labels > 100) | (case.data.labels < 0)] = 2
    own = Segmentation(ignore_index=2)
    result = tutelage.distill(case.student, case.teacher, case.data, steps=1, task=own, evaluate=case.data)
    assert set(result.results[0].metrics) == {"mIoU", "accuracy"}
    assert result.results[0].metrics == pytest.approx(evaluate(result.student, case.data, own))
    by_name = tutelage.distill(
        case.student, case.teacher, case.data, steps=1, task="segmentation", task_options={"ignore_index": 2}, evaluate=case.data
    )
    assert by_name.results[0].metrics == result.results[0].metrics
    with pytest.raises(InputError, match="no option"):
        tutelage.distill(case.student, None, case.data, steps=1, task="segmentation", task_options={"classes": 2})


def test_one_folder_is_one_task(tmp_path):
    case = make_case("regression")
    for loss_name in ("mse", "mse"):
        job = TrainingJob(
            copy.deepcopy(case.student), case.teacher, KD(), case.data, TrainingSettings(steps=1), task=Regression(loss_name)
        )
        train(job, tmp_path)
    with pytest.raises(StaleError):
        train(TrainingJob(case.student, case.teacher, KD(), case.data, TrainingSettings(steps=1), task=Regression("l1")), tmp_path)


def test_labels_are_checked_before_the_first_step():
    case = make_case("segmentation")
    case.data.labels[0, 3, 3] = 17
    for method in (KD(), Supervised()):
        with pytest.raises(InputError, match="a label is 17, the student has 5 classes"):
            train(
                TrainingJob(
                    copy.deepcopy(case.student), case.teacher, method, case.data, TrainingSettings(steps=1), task="segmentation"
                )
            )


def test_smoothing_needs_classes():
    case = make_case("regression")
    job = TrainingJob(case.student, None, Supervised(smoothing=0.1), case.data, TrainingSettings(steps=1))
    with pytest.raises(InputError, match="smoothing"):
        train(job)


def test_two_towers_need_no_labels():
    case = make_case("embeddings")
    job = TrainingJob(case.student, case.teacher, KD(), TensorData(case.data.inputs), TrainingSettings(steps=2, batch_size=6))
    assert set(train(job).history[-1]["terms"]) == {"kd", "label"}


def test_a_method_reads_no_task_it_does_not_have():
    class Own(Method):
        def loss_terms(self, batch, student, teacher):
            return {"mse": (student["logits"] - teacher["logits"]).square().mean()}

    case = make_case("restoration")
    job = TrainingJob(
        case.student, case.teacher, Own(), case.data, TrainingSettings(steps=1), evaluate=case.data, task="restoration"
    )
    assert set(train(job).metrics) == {"PSNR", "SSIM"}
    ambiguous = TrainingJob(case.student, case.teacher, Own(), case.data, TrainingSettings(steps=1), evaluate=case.data)
    with pytest.raises(InputError, match="the task is not clear"):
        train(ambiguous)
    with pytest.raises(InputError, match="reads no task"):
        _ = Own().task


def test_evaluate_refuses_data_without_labels():
    case = make_case("classification")
    with pytest.raises(InputError, match="no labels"):
        evaluate(case.student, TensorData(case.data.inputs), "classification")
    figures = evaluate(case.student.train(), case.data)
    assert case.student.training and set(figures) == {"accuracy", "F1"}
    assert evaluate(case.student, case.data, batch_size=3) == pytest.approx(figures)
    assert make_task("classification").name == "classification" and len(whole_batch(case)) == N


@pytest.mark.parametrize("method", ["nd-loss", "mamba-pkd", "quantized-distillation", "deit-lt"])
def test_a_method_that_needs_every_label_refuses_ignored_ones(method):
    job = methods()[method].tiny_job(0)
    job.data.labels = job.data.labels.clone()
    job.data.labels[:] = -100
    with pytest.raises(InputError, match="a label is ignored"):
        train(job)


def test_a_variant_of_a_task_is_supported_as_the_task_is():
    class Weighted(Segmentation):
        pass

    case = make_case("segmentation")
    job = TrainingJob(case.student, case.teacher, DKD(), case.data, TrainingSettings(steps=1), task=Weighted())
    assert job.task.name == "segmentation"


def test_shared_networks_are_of_their_tasks():
    def trained(student, teacher, data):
        job = TrainingJob(student, teacher, KD(), data, TrainingSettings(steps=2, batch_size=4), evaluate=data)
        result = train(job)
        return job.task.name, set(result.metrics)

    images = torch.rand(8, 3, 16, 16)
    boxes = {"labels": torch.tensor([[0, 1, -100]] * 8), "boxes": torch.full((8, 3, 4), 0.3)}
    small, large = (SmallDETR(3, 2, dim, encoder_depth=1, decoder_depth=1, query_grid=2) for dim in (8, 16))
    assert trained(small, large, TensorData(images, boxes)) == ("detection", {"AP", "AP50"})

    def clip(dim):
        image_tower = nn.Sequential(nn.Flatten(), nn.Linear(768, dim))
        return MiniCLIP(image_tower, TextTower(11, dim), dim, dim, dim)

    pairs = TensorData((images, torch.randint(1, 11, (8, 5))))
    name, figures = trained(clip(4), clip(8), pairs)
    assert name == "embeddings" and "text R@1" in figures
    masks = torch.randint(0, 4, (8, 16, 16))
    assert trained(UNet(3, 4, (4, 8)), UNet(3, 4, (8, 8)), TensorData(images, masks)) == ("segmentation", {"mIoU", "accuracy"})
