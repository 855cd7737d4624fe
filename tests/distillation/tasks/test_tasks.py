"""What holds for every task: distance, weights, ignored labels, metrics, inference; and the formulas of single ones."""

import math

import pytest
import torch
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, map_tree
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.tasks import (
    Classification,
    Detection,
    Embeddings,
    Keypoints,
    LanguageModelling,
    MultiLabel,
    Regression,
    Segmentation,
    TokenClassification,
    infer_task,
    make_task,
    tasks,
)
from tutelage.errors import InputError

from . import cases

every_task = pytest.mark.parametrize("name", sorted(tasks()))
# inferred from heads, labels and types alone; the others have a rival and are asked for
CLEAR = {
    "classification", "multi-label", "regression", "segmentation", "token-classification", "language-modelling",
    "detection", "keypoints", "embeddings",
}  # fmt: skip


def outputs(name, seed=0):
    """(task, batch, the student's heads as leaves that require gradients, the teacher's heads)."""
    case = cases.make_case(name, seed)
    batch = cases.whole_batch(case)
    own = {key: value.detach().requires_grad_() for key, value in forward_heads(case.student, batch.inputs).items()}
    with torch.no_grad():
        return make_task(name), batch, own, forward_heads(case.teacher, batch.inputs)


def test_every_task_has_a_case():
    assert set(cases.MAKERS) == set(tasks())


@every_task
def test_heads_and_labels_of_a_case_fit(name):
    task, batch, own, other = outputs(name)
    task.check(own, batch.labels)
    task.check(own, None)
    task.check_teacher(own, other)
    assert task.name == name and task.layout and task.metrics


@every_task
def test_distance_is_zero_without_gradient_at_equality(name):
    task, batch, own, _ = outputs(name)
    same = {key: value.detach().clone().requires_grad_() for key, value in own.items()}
    loss = task.distance(own, same, batch.labels, tau=2.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    for key, value in own.items():
        assert value.grad is None or float(value.grad.abs().max()) < 1e-6, key
        assert same[key].grad is None


@every_task
def test_distance_falls_towards_the_teacher_and_sends_it_no_gradient(name):
    task, batch, own, other = outputs(name)
    other = {key: value.requires_grad_() for key, value in other.items()}
    loss = task.distance(own, other, batch.labels, tau=2.0)
    loss.backward()
    assert all(value.grad is None for value in other.values())
    with torch.no_grad():
        moved = {key: value - 1e-3 * value.grad / value.grad.norm() for key, value in own.items() if value.grad is not None}
    assert 0 <= float(task.distance(own | moved, other, batch.labels, tau=2.0)) < float(loss.detach())


@every_task
def test_weights(name):
    task, batch, own, other = outputs(name)
    count = len(batch)
    ones, half = torch.ones(count), torch.ones(count)
    half[count // 2 :] = 0
    for loss in (
        lambda w, o=own, t=other, y=batch.labels: task.label_loss(o, y, w),
        lambda w, o=own, t=other, y=batch.labels: task.distance(o, t, y, w),
    ):
        assert torch.allclose(loss(None), loss(ones), rtol=1e-5)
        assert torch.isfinite(loss(half)) and float(loss(torch.zeros(count))) == 0
    if name == "embeddings":
        return  # the rows of a batch are each other's candidates
    cut = {key: value[: count // 2] for key, value in own.items()}
    labels = map_tree(lambda t: t[: count // 2], batch.labels)
    assert torch.allclose(task.label_loss(own, batch.labels, half), task.label_loss(cut, labels), rtol=1e-5)


def hidden(name, labels):
    """(labels of which more are ignored, the rows that are ignored whole)."""
    labels = map_tree(torch.Tensor.clone, labels)
    if name == "detection":
        labels["labels"][:2] = -100
    elif name == "regression":
        labels[:2] = float("nan")
    elif name == "keypoints":
        labels[:2, :, 2] = 0
    else:
        labels[:2] = {"segmentation": 255, "multi-label": -1}.get(name, -100)
    return labels


@pytest.mark.parametrize("name", sorted(set(tasks()) - {"restoration", "embeddings"}))
def test_ignored_labels(name):
    task, batch, own, other = outputs(name)
    labels = hidden(name, batch.labels)
    if name != "detection":  # an image without objects still says that there is none
        task.label_loss(own, labels).backward()
        assert not own["logits"].grad[:2].any() and own["logits"].grad.isfinite().all() and own["logits"].grad[2:].any()
        rest = task.label_loss({"logits": own["logits"][2:]}, labels[2:])
        assert torch.allclose(task.label_loss(own, labels), rest, rtol=1e-5)
        for row in range(len(labels)):
            labels[row] = labels[0]
        nothing = task.label_loss(own, labels)
        nothing.backward()
        assert float(nothing) == 0 and own["logits"].grad.isfinite().all()
    masked = task.distance(own, other, labels)
    every = task.distance(own, other, batch.labels)
    assert (float(masked) != float(every)) == (name in ("token-classification", "language-modelling"))


@every_task
def test_a_meter_in_batches_equals_one_in_a_piece(name):
    task, batch, own, _ = outputs(name)
    own = {key: value.detach() for key, value in own.items()}
    whole, parts = task.meter(), task.meter()
    whole.update(own, batch.labels)
    for rows in torch.arange(len(batch)).split(5):
        parts.update({k: v[rows] for k, v in own.items()}, map_tree(lambda t, rows=rows: t[rows], batch.labels))
    assert parts.compute() == pytest.approx(whole.compute(), nan_ok=True)
    assert list(whole.compute()) == [metric.name for metric in task.metrics]


def test_perfect_answers():
    labels = torch.tensor([0, 1, 2, -100])
    figures = _score(Classification(), 20 * F.one_hot(labels.clamp_min(0), 3).float(), labels)
    assert figures == {"accuracy": 100, "F1": 100}
    maps = torch.randint(0, 3, (2, 6, 6))
    perfect = 20 * F.one_hot(maps, 3).movedim(-1, 1).float()
    maps[0, 0] = 255
    assert _score(Segmentation(), perfect, maps) == {"mIoU": 100, "accuracy": 100}
    ids = torch.tensor([[1, 2, 0, 1], [2, 2, 1, -100]])
    following = F.one_hot(ids.clamp_min(0).roll(-1, 1), 3).float()
    assert _score(LanguageModelling(), 50 * following, ids) == pytest.approx({"perplexity": 1, "accuracy": 100})
    points = torch.tensor([[[0.3, 0.8, 1.0], [0.9, 0.1, 0.0]]])
    heat = torch.zeros(1, 2, 10, 10)
    heat[0, 0, 8, 3] = 1
    assert _score(Keypoints(), heat, points) == {"PCK": 100}
    points[0, 0, 0] = 0.6
    assert _score(Keypoints(), heat, points) == {"PCK": 0}


def _score(task, logits, labels):
    meter = task.meter()
    meter.update({"logits": logits}, labels)
    return meter.compute()


# -- inference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CLEAR))
def test_a_clear_task_is_inferred(name):
    case = cases.make_case(name)
    batch = cases.whole_batch(case)
    assert infer_task(forward_heads(case.student, batch.inputs), batch).name == name


def infer(logits, labels, inputs=None):
    output = logits if isinstance(logits, dict) else {"logits": logits}
    return infer_task(output, Batch(torch.zeros(2, 3) if inputs is None else inputs, labels)).name


def test_inference_by_labels():
    z = torch.zeros
    assert infer(z(2, 3), torch.tensor([0, 2])) == "classification"
    assert infer(z(2, 3), torch.tensor([[0.2, 0.3, 0.5], [1, 0, 0]])) == "classification"
    assert infer(z(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]])) == "multi-label"
    assert infer(z(2, 3), torch.tensor([[True, True, False]] * 2)) == "multi-label"
    assert infer(z(2, 3), torch.randn(2, 3)) == infer(z(2, 1), torch.randn(2)) == infer(z(2), torch.randn(2)) == "regression"
    assert infer(z(2, 4, 5), torch.randint(0, 5, (2, 4))) == "token-classification"
    ids = torch.tensor([[3, 1, 2, 1], [0, 2, 2, 1]])
    assert infer(z(2, 4, 5), ids, {"input_ids": ids, "mask": torch.ones_like(ids)}) == "language-modelling"
    assert infer({"logits": z(2, 4, 5), "boxes": z(2, 4, 4)}, None) == "detection"


@pytest.mark.parametrize(
    "logits, labels, candidates",
    [
        (torch.zeros(2, 3), None, ["classification", "multi-label", "regression"]),
        (torch.zeros(2, 1), None, ["multi-label", "regression"]),
        (torch.zeros(2, 3), torch.tensor([[1.0, 1, 0], [0, 0, 0]]), ["multi-label", "regression"]),
        (torch.zeros(2, 4, 5), None, ["token-classification", "language-modelling"]),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), ["keypoints", "restoration", "multi-label"]),
        (torch.zeros(2, 3, 4, 4), None, ["keypoints", "restoration", "segmentation"]),
    ],
)
def test_what_is_not_clear_is_asked_for(logits, labels, candidates):
    with pytest.raises(InputError) as error:
        infer(logits, labels)
    assert error.value.where == "task"
    offered = {name for name in tasks() if f'"{name}"' in str(error.value.remedy)}
    assert offered == set(candidates)


def test_what_fits_no_task_is_refused():
    with pytest.raises(InputError, match="no task fits"):
        infer({"hidden": torch.zeros(2, 3)}, None)
    with pytest.raises(InputError, match="no task fits"):
        infer(torch.zeros(2, 3), torch.tensor([[0, 5], [2, 1]]))


def test_unknown_tasks_and_options():
    with pytest.raises(InputError, match="unknown task") as error:
        make_task("segmentatoin")
    assert "segmentation" in error.value.remedy
    with pytest.raises(InputError, match="no option") as error:
        make_task("segmentation", {"ignore": 3})
    assert "ignore_index" in error.value.remedy
    assert make_task("segmentation", {"ignore_index": 3}) == Segmentation(ignore_index=3)
    assert make_task(Regression("l1")) == Regression("l1") and make_task(Regression) == Regression()
    for wrong in (3, dict):
        with pytest.raises(InputError, match="no task"):
            make_task(wrong)
    with pytest.raises(InputError, match="unknown loss"):
        Regression("mae")


@pytest.mark.parametrize(
    "task, output, labels, where",
    [
        (Classification(), torch.zeros(2, 1), None, "student"),
        (Classification(), torch.zeros(2, 3), torch.tensor([0, 3]), "labels"),
        (Classification(), torch.zeros(2, 3), torch.tensor([0, -1]), "labels"),
        (Classification(), torch.zeros(2, 3), torch.full((2, 4), 0.25), "labels"),
        (Classification(), torch.zeros(2, 3), ["cat", "dog"], "labels"),
        (Segmentation(), torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), "labels"),
        (Segmentation(), torch.zeros(2, 300, 4, 4), torch.full((2, 4, 4), 301), "labels"),
        (TokenClassification(), torch.zeros(2, 4, 3), torch.zeros(2, 5, dtype=torch.long), "labels"),
        (MultiLabel(), torch.zeros(2, 3), torch.full((2, 3), 2), "labels"),
        (Regression(), torch.zeros(2, 3), torch.zeros(2), "labels"),
        (Keypoints(), torch.zeros(2, 3, 4, 4), torch.full((2, 3, 3), 20.0), "labels"),
        (Detection(), torch.zeros(2, 3, 4), None, "student"),
        (Embeddings(), torch.zeros(2, 3), None, "student"),
    ],
)
def test_what_does_not_fit_is_refused(task, output, labels, where):
    with pytest.raises(InputError) as error:
        task.check({"logits": output}, labels)
    assert error.value.where == where and error.value.remedy


# -- single tasks ----------------------------------------------------------------------------------------------------


def test_the_softmax_of_a_map_runs_over_its_channels():
    own, other = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    pixels = [losses.kd(own[:, :, i, j], other[:, :, i, j], 3.0) for i in range(3) for j in range(4)]
    found = Segmentation().distance({"logits": own}, {"logits": other}, tau=3.0)
    assert torch.allclose(found, torch.stack(pixels).mean())


def test_255_is_a_class_where_there_are_more():
    labels = torch.full((1, 2, 2), 255)
    assert float(Segmentation().label_loss({"logits": torch.zeros(1, 9, 2, 2)}, labels)) == 0
    many = Segmentation().label_loss({"logits": torch.zeros(1, 256, 2, 2)}, labels)
    assert float(many) == pytest.approx(math.log(256))
    zero = Segmentation(ignore_index=0)
    assert float(zero.label_loss({"logits": torch.zeros(1, 9, 2, 2)}, torch.zeros_like(labels))) == 0


def test_language_modelling_is_that_of_transformers():
    logits, ids = torch.randn(2, 6, 9), torch.randint(0, 9, (2, 6))
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert torch.allclose(LanguageModelling().label_loss({"logits": logits}, ids), expected)


def test_classification_without_ignored_labels_is_plain_cross_entropy():
    logits, labels = torch.randn(7, 4), torch.randint(0, 4, (7,))
    assert torch.equal(Classification().label_loss({"logits": logits}, labels), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("name", ["classification", "segmentation", "token-classification", "language-modelling"])
def test_rows_give_the_same_losses(name):
    task, batch, own, other = outputs(name)
    weights = torch.rand(len(batch))
    rows = task.rows(own, other, batch.labels, weights)
    by_rows = losses.cross_entropy(rows.student, rows.labels, rows.weights)
    assert torch.allclose(by_rows, task.label_loss(own, batch.labels, weights), rtol=1e-5)
    if task.masks_distance:
        by_rows = losses.kd(rows.student, rows.teacher, 2.0, rows.weights)
        assert torch.allclose(by_rows, task.distance(own, other, batch.labels, weights, 2.0), rtol=1e-5)


def test_detection_finds_the_teachers_queries_in_any_order():
    task, _, own, _ = outputs("detection")
    order = torch.randperm(own["logits"].shape[1])
    shuffled = {name: value[:, order] for name, value in own.items()}
    assert float(task.distance(own, shuffled)) == pytest.approx(0, abs=1e-5)


def test_the_contrastive_loss_is_the_mean_over_right_answers():
    output = {"image_embeds": torch.randn(4, 6), "text_embeds": torch.randn(4, 6)}
    groups = torch.tensor([0, 0, 1, 2])
    logits = Embeddings().similarities(output)
    expected = 0.0
    for scores in (logits, logits.T):
        for i, right in enumerate([[0, 1], [0, 1], [2], [3]]):
            expected -= float(scores[i].log_softmax(0)[right].mean()) / 8
    assert float(Embeddings().label_loss(output, groups)) == pytest.approx(expected, rel=1e-5)
    alone = [torch.arange(4), None]
    assert len({float(Embeddings().label_loss(output, labels)) for labels in alone}) == 1
    same = torch.eye(3)[groups]
    meter = Embeddings().meter()
    meter.update({"image_embeds": same, "text_embeds": same}, groups)
    assert meter.compute()["text R@1"] == meter.compute()["image R@1"] == 100
