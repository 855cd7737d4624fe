from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tutelage.distillation.data import Batch
from tutelage.modules.detection import Loc, LocConfig
from tutelage.modules.visual_module import CallLabel, TrainingExamples
from tutelage.modules.vocabulary import Vocabulary
from tutelage.modules.vqa import FiLMConfig, Vqa
from tutelage.programs.types import Call
from tutelage.programs.values import Box
from tutelage.sdvp.objective import StepwiseDistillation, TaskReplayData, heatmap_step, make_job, reference_outputs

from . import small


def step(kind: str, out: Tensor, target: dict[str, Tensor], weights: Tensor, **options: float) -> float:
    method = StepwiseDistillation({"h": kind}, StepwiseDistillation.Config(**options))
    batch = Batch({"task": {}}, {"task": {"targets": {"h": target}, "weights": weights}})
    return method.loss_terms(batch, {"task/h": out}, {})["step"].item()


def test_classes_soft_and_hard_by_hand() -> None:
    """a tau^2 KL(p_T || p_S) + (1 - a) CE, the weighted mean over rows; a row of weight 0 does not count."""
    logits = torch.tensor([[0.0, math.log(3)], [9.0, -9.0]])
    soft = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    target, weights = {"soft": soft, "hard": torch.tensor([0, 1])}, torch.tensor([1.0, 0.0])
    assert step("classes", logits, target, weights, alpha=0.0) == pytest.approx(math.log(4))
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert step("classes", logits, target, weights, alpha=1.0, tau=1.0) == pytest.approx(kl, rel=1e-5)
    p = [1 / (1 + math.sqrt(3)), math.sqrt(3) / (1 + math.sqrt(3))]
    soft_kl = 4 * sum(0.5 * math.log(0.5 / q) for q in p)
    both = step("classes", logits, target, weights, alpha=0.5, tau=2.0)
    assert both == pytest.approx(0.5 * soft_kl + 0.5 * math.log(4), rel=1e-5)


def test_a_logit_by_hand() -> None:
    target = {"probability": torch.tensor([0.75, 1.0])}
    out = torch.tensor([0.0, 2.0])
    by_hand = (math.log(2) * 1 + 3 * -math.log(1 / (1 + math.exp(-2)))) / 4
    assert step("logit", out, target, torch.tensor([1.0, 3.0])) == pytest.approx(by_hand)


def test_a_heat_map_counts_only_the_classes_that_were_asked_for() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 1] = 7.0
    heat = torch.zeros(1, 2, 2, 2)
    heat[0, 0, 0, 0] = 1.0
    asked = torch.tensor([[1.0, 0.0]])
    assert heatmap_step(logits, heat, asked, positive=3.0).item() == pytest.approx((3 + 3) * math.log(2))
    assert heatmap_step(logits, heat, torch.zeros(1, 2), positive=3.0).item() == 0


def test_a_size_is_the_absolute_error_at_the_peaks() -> None:
    size = torch.zeros(1, 2, 2, 2)
    size[0, :, 1, 1] = torch.tensor([0.5, 0.25])
    peaks = torch.zeros(1, 2, 2)
    peaks[0, 1, 1] = 1
    out = torch.full((1, 2, 2, 2), 1.0)
    assert step("size", out, {"size": size, "peaks": peaks}, torch.ones(1), size=2.0) == pytest.approx(2 * 1.25)


def gradients_of_self(module, exercise: TrainingExamples) -> dict[str, float]:  # noqa: ANN001
    """How strongly L_self pulls on each head of a student that has left the frozen module a little."""
    method = StepwiseDistillation(module.heads, StepwiseDistillation.Config())
    frozen = reference_outputs(module, exercise)
    heads = {h: (v.float() + 0.5).requires_grad_() for h, v in frozen.items()}
    total = sum(method._self_loss(kind, heads[h], frozen[h], exercise.weights) for h, kind in module.heads.items())
    total.backward()
    return {h: v.grad.abs().sum().item() for h, v in heads.items()}


def test_tokens_are_summed_over_the_answer_and_padding_counts_nothing() -> None:
    out = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [9.0, -9.0]], [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]])
    target = {"tokens": torch.tensor([[1, 0, -100], [0, -100, -100]])}
    first = math.log(1 + math.exp(-1)) / 2 + math.log(1 + math.exp(-2)) / 2
    assert step("tokens", out, target, torch.tensor([1.0, 0.0])) == pytest.approx(first)
    assert step("tokens", out, target, torch.tensor([1.0, 3.0])) == pytest.approx((first + 3 * math.log(2)) / 4)


def test_a_set_of_boxes_by_hand() -> None:
    """Two places, one box: the nearer place is taken, the other is taught that nothing is there, at a tenth of the weight."""
    out = torch.tensor([[[0.5, 0.2, 0.2, 0.1, 0.1], [1.5, 0.7, 0.6, 0.2, 0.4]]])
    target = {"boxes": torch.tensor([[[0.7, 0.6, 0.2, 0.2], [0.0, 0.0, 0.0, 0.0]]]), "real": torch.tensor([[True, False]])}
    found, none = math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(0.5))
    classes = (found + 0.1 * none) / 1.1
    assert step("set", out, target, torch.ones(1)) == pytest.approx(classes + 5 * 0.2 + 2 * (1 - 0.5), abs=1e-5)
    nothing = {"boxes": target["boxes"], "real": torch.tensor([[False, False]])}
    assert step("set", out, nothing, torch.ones(1)) == pytest.approx((math.log(1 + math.exp(1.5)) + none) / 2)


def test_self_distillation_touches_every_head_and_is_still_at_the_frozen_copy() -> None:
    module = Loc.build(LocConfig(("circle", "star"), 4), 0)
    image = small.picture(0, "red", 48)
    exercise = module.training_examples([Call("LOC", {"image": image, "object": "circle"})], None)
    pulled = gradients_of_self(module, exercise)
    assert set(pulled) == {"heat", "size"} and all(value > 0 for value in pulled.values())
    method = StepwiseDistillation(module.heads)
    frozen = {h: v.float() for h, v in reference_outputs(module, exercise).items()}
    still = {h: v.clone().requires_grad_() for h, v in frozen.items()}
    sum(method._self_loss(kind, still[h], frozen[h], exercise.weights) for h, kind in module.heads.items()).backward()
    assert all(v.grad.abs().max() < 1e-6 for v in still.values())


def test_the_whole_self_term_reaches_every_parameter() -> None:
    module = Loc.build(LocConfig(("circle", "star"), 4), 0)
    calls = [Call("LOC", {"image": small.picture(i, "red", 48), "object": "circle"}) for i in range(2)]
    task, replay = module.training_examples(calls, [CallLabel([Box(4, 4, 20, 20)])] * 2), module.training_examples(calls, None)
    given = make_job(module, task, replay, small.SETTINGS, StepwiseDistillation.Config())
    for parameter in given.student.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    batch = given.data.batch(torch.arange(2), torch.arange(2))
    ours, _ = given.method(batch, given.student, None)
    terms = given.method.loss_terms(batch, ours, {})
    assert set(terms) == {"step", "self"} and given.method.loss_weights() == {"self": given.method.config.self_weight}
    terms["self"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in given.student.parameters())


def test_padded_answers_weigh_nothing() -> None:
    """Two questions about one crop and one about another: the third slot is padding and cannot move the loss."""
    vocabulary = Vocabulary((("color", ("red", "blue")), ("size", ("small", "large"))), ("object",))
    module = Vqa.build(FiLMConfig(vocabulary, 4), 0)
    a, b = small.picture(0, "red", 32), small.picture(1, "blue", 32)
    calls = [
        Call("VQA", {"image": image, "question": question})
        for image, question in ((a, "What color is the object?"), (a, "What size is the object?"), (b, "What color is the object?"))
    ]
    task = module.training_examples(calls, [CallLabel("red"), CallLabel("small"), CallLabel("blue")])
    assert task.weights.tolist() == [[1, 1], [1, 0]]
    method = StepwiseDistillation(module.heads)
    data = TaskReplayData(task)
    batch = data.batch(torch.arange(2), torch.zeros(2, dtype=torch.long))
    heads, _ = method(batch, module.network, None)
    before = method.loss_terms(batch, heads, {})["step"]
    heads["task/answer"][1, 1] += torch.tensor([5.0, -3.0, 1.0, 0.0])
    assert torch.equal(method.loss_terms(batch, heads, {})["step"], before)


def test_replayed_rows_are_drawn_by_view_seed_and_task_rows_in_order() -> None:
    task = TrainingExamples({"x": torch.arange(4.0)}, {}, torch.ones(4))
    replay = TrainingExamples({"x": torch.arange(10.0, 13.0)}, {}, torch.ones(3))
    data = TaskReplayData(task, replay, {"h": torch.arange(3.0)})
    batch = data.batch(torch.tensor([2, 0]), torch.tensor([4, 9]))
    assert batch.inputs["task"]["x"].tolist() == [2, 0]
    assert batch.inputs["replay"]["x"].tolist() == [11, 10] and batch.labels["replay"]["heads"]["h"].tolist() == [1, 0]
    assert data.fingerprint != TaskReplayData(task).fingerprint
