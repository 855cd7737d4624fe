"""Volt on several data sets at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tutelage.distillation.data import Batch
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems.volt import JointScenes, JointTraining, JointVolt, SceneDataset, Volt, room
from tutelage.systems.volt.augment import IGNORED


def scenes(seed: int, count: int) -> SceneDataset:
    return SceneDataset([room(seed + i, 10, 2) for i in range(count)])


def test_scenes_keep_their_set_and_their_bits() -> None:
    one, other = scenes(0, 2), scenes(10, 3)
    joined = JointScenes({"one": one, "other": other})
    assert len(joined) == 5
    batch = joined.batch(torch.tensor([3, 0, 4]), torch.tensor([5, 6, 7]))
    for place, (source, row) in enumerate(((other, 1), (one, 0), (other, 2))):
        alone, rows = source.batch(torch.tensor([row]), torch.tensor([5 + place])), batch.inputs["batch"] == place
        for name in ("coords", "features"):
            assert torch.equal(batch.inputs[name][rows], alone.inputs[name])
        assert torch.equal(batch.labels[rows], alone.labels)
        assert batch.inputs["dataset"][rows].unique().tolist() == [int(source is other)]
    with pytest.raises(InputError, match="no scene 5"):
        joined.batch(torch.tensor([5]), None)


def test_each_head_answers_for_its_own_scenes() -> None:
    """As the plain network of one set does on a scene of that set alone."""
    job = JointTraining.tiny_job(0)
    student = job.student.eval()
    batch = job.data.batch(torch.tensor([0, 5, 1]), None)
    with torch.no_grad():
        found = student(batch.inputs)
        assert {name: value.shape[1] for name, value in found.items()} == {"rooms": 8, "furniture": 2}
        for name, numbers in (("rooms", (0, 1)), ("furniture", (1,))):
            alone = job.data.sources[name].batch(torch.tensor(numbers), None)
            torch.testing.assert_close(student.network_of(name)(alone.inputs), found[name], atol=1e-5, rtol=1e-5)
        only = job.data.batch(torch.tensor([5]), None)
        assert student(only.inputs)["rooms"].shape == (0, 8)


def test_the_loss_is_weighed_by_points() -> None:
    method = JointTraining(smoothing=0.1)
    method.uses_teacher = True
    dataset = torch.tensor([0, 1, 1, 0, 1])
    labels = torch.tensor([2, 0, IGNORED, 1, 1])
    logits = {"a": torch.randn(2, 3), "b": torch.randn(3, 2)}
    second = {"teacher.a": torch.randn(2, 3), "teacher.b": torch.randn(3, 2)}
    teacher = {"a": torch.tensor([0, 1]), "b": torch.tensor([1, 1, 0])}
    terms = method.loss_terms(Batch({"dataset": dataset}, labels), logits | second, teacher)
    plain = Volt(smoothing=0.1)
    by_labels = [plain.criterion(logits["a"], labels[dataset == 0]), plain.criterion(logits["b"], labels[dataset == 1])]
    by_teacher = [plain.criterion(second["teacher.a"], teacher["a"]), plain.criterion(second["teacher.b"], teacher["b"])]
    torch.testing.assert_close(terms["label"], 0.4 * by_labels[0] + 0.6 * by_labels[1])
    torch.testing.assert_close(terms["teacher"], 0.4 * by_teacher[0] + 0.6 * by_teacher[1])


def test_a_teacher_labels_only_its_own_scenes() -> None:
    job = JointTraining.tiny_job(0)
    batch = job.data.batch(torch.tensor([6, 2]), None)
    with torch.no_grad():
        found = job.teacher(batch)
        alone = job.data.sources["rooms"].batch(torch.tensor([2]), None)
        expected = job.teacher.networks[0].teachers["rooms"](alone.inputs)
    torch.testing.assert_close(found["rooms"], expected, atol=1e-5, rtol=1e-5)


def test_both_sets_are_learned_together() -> None:
    job = JointTraining.tiny_job(0)
    job.settings = replace(job.settings, steps=30, log_every=5, lr=1e-2)
    result = train(job)
    first, last = result.history[0]["terms"], result.history[-1]["terms"]
    assert last["label"] < 0.9 * first["label"] and last["teacher"] < first["teacher"]
    assert isinstance(result.student, JointVolt) and not any("teacher" in name for name in result.student.state_dict())


def test_a_batch_of_one_set_trains_no_other_head() -> None:
    job = JointTraining.tiny_job(0)
    trainer = Trainer(job)
    job.student.train()
    batch = job.data.batch(torch.tensor([0, 1]), None)
    terms = trainer.method.loss_terms(batch, *trainer.method.forward(batch, job.student, job.teacher))
    (terms["label"] + terms["teacher"]).backward()
    rooms, furniture = (job.student.heads[name].weight.grad for name in ("rooms", "furniture"))
    assert rooms.abs().sum() > 0 and (furniture is None or furniture.abs().sum() == 0)


def test_what_does_not_fit_is_refused() -> None:
    job = JointTraining.tiny_job(0)
    with pytest.raises(InputError, match="dataset"):
        job.student(job.data.sources["rooms"].batch(torch.tensor([0]), None).inputs)
    job.student = job.student.network_of("rooms")
    with pytest.raises(InputError, match="no JointVolt"):
        train(job)
    with pytest.raises(InputError, match="no source"):
        JointScenes({})
