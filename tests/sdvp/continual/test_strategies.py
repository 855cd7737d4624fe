from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.modules.visual_module import CallLabel, TrainingExamples, VisualModule
from tutelage.programs.types import Call, ModuleOutputs, Signature
from tutelage.sdvp.continual.base import (
    L2SP,
    NO_STRATEGY,
    CombinedStrategy,
    ContinualStrategy,
    Freeze,
    LabelledReplay,
    SelfDistill,
)
from tutelage.sdvp.continual.ewc import EWC, fisher
from tutelage.sdvp.continual.low_rank import Adapter, LoRA
from tutelage.sdvp.continual.registry import parse, strategies
from tutelage.sdvp.objective import StepwiseDistillation, make_job
from tutelage.sdvp.options import SdvpOptions, with_strategy

from .. import small


class Line(nn.Module):
    """x [B, D] -> w x + b as one head of the kind asked for."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__()
        self.out = nn.Linear(inputs, outputs, bias)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"y": self.out(batch["x"])}


def linear(kind: str, weight: Sequence[Sequence[float]]) -> VisualModule:
    class Linear(VisualModule):
        name = "LINE"
        signature = Signature({"x": "number"}, "number")
        heads = {"y": kind}

        def decode(self, heads: Mapping[str, Tensor], calls: Sequence[Call]) -> ModuleOutputs:
            return ModuleOutputs(heads["y"].tolist())

    network = Line(len(weight[0]), len(weight))
    network.out.weight.data = torch.tensor(weight)
    return Linear(VisualModule.Config(), network)


def inputs(rows: Sequence[Sequence[float]]) -> TrainingExamples:
    return TrainingExamples({"x": torch.tensor(rows)}, {}, torch.ones(len(rows)))


def test_ewc_is_exact_on_a_quadratic() -> None:
    """With one-hot inputs the old loss of linear regression is a diagonal quadratic: the penalty IS its increase."""
    module = linear("size", [[1.0, -2.0, 0.5]])
    rows = torch.diag(torch.tensor([1.0, 3.0, 0.5]))
    old = inputs(rows.tolist())
    found = fisher(module, old)["out.weight"]
    assert torch.allclose(found, torch.tensor([[1.0, 9.0, 0.25]]) / 3)
    penalty = EWC(strength=1.0).penalty(module, old)
    student = module.copy_network()
    student.out.weight.data += torch.tensor([[0.3, -1.0, 2.0]])
    with torch.no_grad():
        increase = 0.5 * ((student({"x": rows})["y"] - module.network({"x": rows})["y"]) ** 2).mean()
    assert torch.allclose(penalty(student), increase)
    penalty(student).backward()
    assert torch.allclose(student.out.weight.grad, found * torch.tensor([[0.3, -1.0, 2.0]]))


def test_the_fisher_of_a_logit_is_p_times_1_minus_p() -> None:
    module = linear("logit", [[0.7]])
    p = torch.sigmoid(torch.tensor(1.4))
    assert torch.allclose(fisher(module, inputs([[2.0]]))["out.weight"], (p * (1 - p) * 4).reshape(1, 1))


def test_the_fisher_of_a_set_is_that_of_its_logit_and_of_its_boxes() -> None:
    module = linear("set", [[0.7], [0.1], [0.2], [0.3], [0.4]])
    p = torch.sigmoid(torch.tensor(1.4))
    found = fisher(module, inputs([[2.0]]))["out.weight"][:, 0]
    assert torch.allclose(found, torch.tensor([p * (1 - p) * 4, 4, 4, 4, 4]))


def test_the_fisher_of_classes_is_right_on_average() -> None:
    module = linear("classes", [[1.0], [0.0], [-0.5]])
    p = torch.tensor([1.0, 0.0, -0.5]).softmax(0)
    rows = inputs([[1.0]] * 2000)
    found = fisher(module, rows, rows=2000)["out.weight"][:, 0]
    assert torch.allclose(found, p * (1 - p), atol=0.01)


def test_padding_has_no_fisher_information() -> None:
    module = linear("size", [[1.0]])
    padded = TrainingExamples({"x": torch.tensor([[1.0], [5.0]])}, {}, torch.tensor([1.0, 0.0]))
    assert fisher(module, padded)["out.weight"].item() == pytest.approx(0.5)


def test_l2sp_is_half_the_squared_way_from_the_start() -> None:
    module = linear("size", [[1.0, 2.0]])
    penalty = L2SP(strength=0.5).penalty(module, None)
    student = module.copy_network()
    assert penalty(student).item() == 0
    student.out.weight.data += torch.tensor([[3.0, 4.0]])
    assert penalty(student).item() == pytest.approx(0.5 * 0.5 * 25)


@pytest.mark.parametrize("option", [LoRA(rank=2), Adapter(rank=2)], ids=["lora", "adapter"])
def test_added_parts_start_as_nothing_are_trained_alone_and_merge_exactly(option: ContinualStrategy) -> None:
    module = small.color()
    batch = module.encode([Call("COLOR", {"image": small.picture(1, "red")})])
    student = option.prepare(module.copy_network(), module)
    assert torch.equal(student(batch)["answer"], module.network(batch)["answer"])
    trained = [name for name, p in student.named_parameters() if option.is_trainable(f"student.{name}")]
    assert trained and all(name.endswith((".up", ".down")) for name in trained)
    for name, parameter in student.named_parameters():
        if name in trained:
            parameter.data.normal_(generator=torch.Generator().manual_seed(3))
    wrapped = student(batch)["answer"]
    assert not torch.allclose(wrapped, module.network(batch)["answer"])
    plain = option.finish(student)
    assert plain.state_dict().keys() == module.network.state_dict().keys()
    assert torch.allclose(plain(batch)["answer"], wrapped, atol=1e-6)
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_an_adapter_is_a_residual_map_behind_its_layer() -> None:
    layer = nn.Conv2d(2, 3, 3)
    behind = nn.Sequential(layer)
    wrapped = Adapter(rank=2).prepare(nn.Sequential(nn.Conv2d(2, 3, 3)), small.color())
    wrapped.load_state_dict(wrapped.state_dict() | {"0.parametrizations.weight.original": layer.weight.data})
    wrapped.load_state_dict(wrapped.state_dict() | {"0.parametrizations.bias.original": layer.bias.data})
    part = wrapped[0].parametrizations.weight[0]
    part.up.data.normal_()
    x = torch.randn(1, 2, 5, 5)
    y = behind(x)
    mapped = y + torch.einsum("or,rc,bchw->bohw", part.up, part.down, y)
    assert torch.allclose(wrapped(x), mapped, atol=1e-5)


def test_freezing_goes_by_patterns_and_refuses_to_freeze_nothing_or_all() -> None:
    module = small.color()
    option = Freeze(parts=("network.2.*",))
    student = option.prepare(module.copy_network(), module)
    trained = {name for name, _ in student.named_parameters() if option.is_trainable(f"student.{name}")}
    assert trained == {"network.4.weight", "network.4.bias"}
    only = Freeze(parts=(), all_but=("*.bias",))
    assert only.is_trainable("student.network.4.bias") and not only.is_trainable("student.network.4.weight")
    with pytest.raises(InputError, match="nothing of COLOR"):
        Freeze(parts=("trunk.*",)).prepare(module.copy_network(), module)
    with pytest.raises(InputError, match="everything of COLOR"):
        Freeze(parts=("*",)).prepare(module.copy_network(), module)


def taught(
    retain: ContinualStrategy, keep: float = 0.0, steps: int = 12, replay: bool = True
) -> tuple[small.Color, nn.Module, dict]:
    module = small.color()
    asked = [Call("COLOR", {"image": q.images["IMAGE"]}) for q in small.questions(12)]
    labels = [CallLabel(q.answer) for q in small.questions(12)]
    old = [Call("COLOR", {"image": small.picture(100 + i, "red")}) for i in range(8)]
    given = make_job(
        module,
        module.training_examples(asked, labels),
        module.training_examples(old, None) if replay else None,
        replace(small.SETTINGS, steps=steps),
        StepwiseDistillation.Config(self_weight=keep),
        retain,
    )
    result = train(given)
    return module, retain.finish(result.student), result.history[-1]["terms"]


@pytest.mark.parametrize(
    ("retain", "terms"),
    [
        (NO_STRATEGY, {"step"}),
        (L2SP(), {"step", "penalty"}),
        (EWC(), {"step", "penalty"}),
        (LoRA(), {"step"}),
        (Adapter(), {"step"}),
        (Freeze(parts=("network.2.*",)), {"step"}),
        (CombinedStrategy((EWC(), L2SP(), LoRA())), {"step", "penalty"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ContinualStrategy) else None,
)
def test_every_option_trains_a_plain_network_and_leaves_the_old_module_alone(retain: ContinualStrategy, terms: set[str]) -> None:
    module, student, found = taught(retain)
    assert small.equal(module.network, small.color().network)
    assert student.state_dict().keys() == module.network.state_dict().keys()
    assert not small.equal(student, module.network)
    assert set(found) == terms
    if isinstance(retain, Freeze):
        assert torch.equal(student.state_dict()["network.2.weight"], module.network.state_dict()["network.2.weight"])


def test_a_strong_anchor_keeps_the_student_nearer() -> None:
    def moved(retain: ContinualStrategy) -> float:
        module, student, _ = taught(retain, steps=30)
        pairs = zip(module.network.parameters(), student.parameters(), strict=True)
        return sum(((a - b).detach() ** 2).sum().item() for a, b in pairs)

    assert moved(L2SP(strength=10.0)) < moved(L2SP(strength=0.1)) < moved(NO_STRATEGY)


def test_self_distillation_is_a_term_only_where_lambda_is_above_0() -> None:
    assert set(taught(SelfDistill(), keep=1.0)[2]) == {"step", "self"}
    assert set(taught(SelfDistill(), keep=0.0)[2]) == {"step"}


def test_labelled_replay_learns_from_old_labels() -> None:
    examples = {"COLOR": [(Call("COLOR", {"image": small.picture(i, "blue")}), CallLabel("blue")) for i in range(4)]}
    assert set(taught(LabelledReplay(examples), replay=False)[2]) == {"step", "labelled"}
    with pytest.raises(InputError, match="no labelled calls of COLOR"):
        taught(LabelledReplay())


def test_ewc_without_old_inputs_is_refused() -> None:
    with pytest.raises(InputError, match="no old inputs of COLOR"):
        taught(EWC(), replay=False)


def test_options_are_named_and_combine() -> None:
    assert {"none", "self_distill", "ewc", "l2sp", "lora", "adapter", "freeze", "labelled", "peft"} == set(strategies())
    assert parse("none") == NO_STRATEGY
    both = parse("self_distill + lora")
    assert both == CombinedStrategy((SelfDistill(), LoRA())) and both.uses_self_distillation and both.reads_inputs
    with pytest.raises(InputError, match="unknown retain option 'lorra'") as error:
        parse("lorra")
    assert "lora" in str(error.value)


def test_named_options_set_replay_and_lambda() -> None:
    chosen = {text: with_strategy(text) for text in ("none", "self_distill", "ewc", "l2sp+self_distill")}
    assert {text: (o.replay, o.loss.self_weight > 0) for text, o in chosen.items()} == {
        "none": (False, False),
        "self_distill": (True, True),
        "ewc": (True, False),
        "l2sp+self_distill": (True, True),
    }
    assert chosen["self_distill"].loss.self_weight == SdvpOptions().loss.self_weight


def test_lessons_under_different_options_are_different_runs(tmp_path) -> None:
    module = small.color()
    task = module.training_examples([Call("COLOR", {"image": small.picture(1, "red")})], [CallLabel("red")])

    def parts(retain: ContinualStrategy) -> object:
        return make_job(module, task, None, small.SETTINGS, StepwiseDistillation.Config(self_weight=0), retain).fingerprint_parts()

    assert parts(L2SP(0.1)) != parts(L2SP(0.2)) != parts(NO_STRATEGY)
