"""Teachers of every kind, taps, and projections."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tutelage.distillation.data import Batch, SampleOrder, TensorData, take_rows
from tutelage.distillation.data.sources import as_data
from tutelage.distillation.ensemble import EnsembleTeacher, NamedTeachers, RouteByClass, RouteByField, RouteBySample
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.projections import Projection, resample
from tutelage.distillation.teacher import BlackBoxTeacher, EMATeacher, NetworkTeacher, SelfTeacher, as_teacher
from tutelage.distillation.trainer import train
from tutelage.errors import InputError

from .toy import Net, bits, lesson, samples


def batch(rows: int = 6) -> Batch:
    return samples().batch(torch.arange(rows), None)


def test_a_live_teacher_is_frozen_in_eval_and_gives_no_gradient() -> None:
    network = Net(norm=True, dropout=0.9).train()
    teacher = NetworkTeacher(network)
    network.train()
    first, second = teacher(batch()), teacher(batch())
    assert torch.equal(first["logits"], second["logits"]) and not first["logits"].requires_grad
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert network.norm.num_batches_tracked == 0


def test_taps_become_heads_and_renamed_heads_keep_their_values() -> None:
    teacher = NetworkTeacher(Net(), taps=("inner",), heads={"logits": "classes"})
    said = teacher(batch())
    assert set(said) == {"classes", "inner"} and said["inner"].shape == (6, 8)
    teacher.request_features("head", "inner")
    assert set(teacher(batch())) == {"classes", "inner", "head"}
    with pytest.raises(InputError, match="did you mean inner"):
        NetworkTeacher(Net(), taps=("iner",))


def test_ensembles_sum_average_and_route() -> None:
    one, two = Net(seed=1), Net(seed=2)
    a, b = one(batch().inputs), two(batch().inputs)
    assert torch.allclose(EnsembleTeacher([one, two])(batch())["logits"], (a + b) / 2, atol=1e-6)
    assert torch.allclose(EnsembleTeacher([one, two], weights=[3, 1])(batch())["logits"], 0.75 * a + 0.25 * b, atol=1e-6)
    assert torch.allclose(EnsembleTeacher([one, two], "sum", [2, 1])(batch())["logits"], 2 * a + b, atol=1e-6)
    routed = EnsembleTeacher([one, two], "routed", route=lambda x: x.ids % 2)
    assert torch.allclose(routed(batch())["logits"], torch.where((torch.arange(6) % 2 == 0)[:, None], a, b), atol=1e-6)


def test_rows_are_routed_by_class_and_by_sample() -> None:
    one, two = Net(seed=1), Net(seed=2)
    asked = batch()
    a, b = one(asked.inputs), two(asked.inputs)

    def chosen(route, of: Batch = asked) -> torch.Tensor:
        return EnsembleTeacher([one, two], "routed", route=route)(of)["logits"]

    def expected(second: torch.Tensor) -> torch.Tensor:
        return torch.where(second[:, None], b, a)

    assert torch.allclose(chosen(RouteByClass([0, 1, 0])), expected(asked.labels == 1), atol=1e-6)
    mixed = replace(asked, labels=0.6 * torch.eye(3)[asked.labels] + 0.4 / 3)
    assert torch.allclose(chosen(RouteByClass([0, 1, 0]), mixed), expected(asked.labels == 1), atol=1e-6)
    assert torch.allclose(chosen(RouteBySample([1, 0, 0, 1, 0, 0])), expected(torch.arange(6) % 3 == 0), atol=1e-6)
    with pytest.raises(InputError, match="needs labels"):
        chosen(RouteByClass([0, 1, 0]), replace(asked, labels=None))
    with pytest.raises(InputError, match="without sample ids"):
        chosen(RouteBySample([0, 1]), replace(asked, ids=None))
    for short in (RouteByClass([0]), RouteBySample([0, 1])):
        with pytest.raises(InputError, match="has no teacher"):
            chosen(short)


def test_a_route_is_part_of_the_fingerprint() -> None:
    def routed(route) -> str:
        return EnsembleTeacher([Net(seed=1), Net(seed=2)], "routed", route=route).fingerprint

    def modulo(n: int):
        return lambda x: x.ids % n

    names = [RouteByClass([0, 1]), RouteByClass([1, 0]), RouteBySample([0, 1]), modulo(1), modulo(2), lambda x: 1 - x.ids % 2]
    assert len({routed(route) for route in names}) == len(names)
    assert routed(RouteByClass([0, 1])) == routed(RouteByClass((0, 1))) and routed(modulo(2)) == routed(modulo(2))

    class Odd:
        def __init__(self, turned: int):
            self.turned = turned

        def __call__(self, of: Batch) -> torch.Tensor:
            return (of.ids + self.turned) % 2

    assert routed(Odd(0)) == routed(Odd(0)) != routed(Odd(1))
    with open(__file__) as file:
        reads = Odd(0)
        reads.file = file
        with pytest.raises(InputError, match="cannot tell when the answers"):
            routed(reads)


def test_a_route_may_be_a_field_of_the_batch() -> None:
    one, two = Net(seed=1), Net(seed=2)
    asked = replace(batch(), extra={"domain": torch.tensor([0, 1] * 3)})
    for route, flipped in ((RouteByField("domain"), False), (RouteByField("domain", [1, 0]), True)):
        found = EnsembleTeacher([one, two], "routed", route=route)(asked)["logits"]
        second = (asked.extra["domain"] == 1) ^ flipped
        expected = torch.where(second[:, None], two(asked.inputs), one(asked.inputs))
        assert torch.allclose(found, expected, atol=1e-6)
    with pytest.raises(InputError, match="no field 'region'") as caught:
        EnsembleTeacher([one, two], "routed", route=RouteByField("region"))(asked)
    assert "domain" in caught.value.remedy


def test_a_fingerprint_covers_code_and_settings_beside_weights() -> None:
    """Equal weights under another forward pass, or another setting, are another teacher."""

    class Scaled(Net):
        def __init__(self, scale: float):
            super().__init__()
            self.scale = scale

        def forward(self, x):
            return self.scale * super().forward(x)

    def twice() -> type[Net]:
        class Scaled(Net):
            def forward(self, x):
                return 2 * super().forward(x)

        Scaled.__qualname__ = Net.__qualname__
        return Scaled

    assert NetworkTeacher(Scaled(1.0)).fingerprint == NetworkTeacher(Scaled(1.0)).fingerprint
    assert NetworkTeacher(Scaled(1.0)).fingerprint != NetworkTeacher(Scaled(2.0)).fingerprint
    assert NetworkTeacher(Net()).fingerprint != NetworkTeacher(twice()()).fingerprint
    teacher = NetworkTeacher(Net(dropout=0.3))
    before = teacher.fingerprint
    teacher(batch()), teacher.network.train(), teacher(batch())
    assert teacher.fingerprint == before, "running it changes nothing"


def test_a_callable_is_a_black_box_named_by_what_it_does() -> None:
    def ask(scale: float):
        return lambda x: scale * x[:, :3]

    assert as_teacher(ask(1)).fingerprint == as_teacher(ask(1)).fingerprint != as_teacher(ask(2)).fingerprint
    assert torch.equal(as_teacher(ask(2))(batch())["logits"], 2 * batch().inputs[:, :3])
    with open(__file__) as file, pytest.raises(InputError, match="it holds TextIOWrapper") as caught:
        as_teacher(lambda x: file.read())
    assert "version=" in caught.value.remedy


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: EnsembleTeacher([]),
        lambda: EnsembleTeacher([Net()], "routed"),
        lambda: EnsembleTeacher([Net()], "vote"),
        lambda: EnsembleTeacher([Net()], weights=[1, 2]),
        lambda: EnsembleTeacher([Net()], "routed", route=lambda x: x.ids + 5)(batch()),
        lambda: as_teacher(Net),
        lambda: as_teacher("resnet"),
    ],
)
def test_wrong_teachers_are_refused(wrong) -> None:
    with pytest.raises(InputError):
        wrong()


def test_a_moving_average_follows_the_formula() -> None:
    student = Net(norm=True)
    teacher = EMATeacher(student, 0.75)
    before = teacher.network.head.weight.clone()
    with torch.no_grad():
        student.head.weight += 1.0
        student.norm.running_mean += 2.0
    teacher.after_step(student)
    assert torch.allclose(teacher.network.head.weight, before + 0.25)
    assert torch.equal(teacher.network.norm.running_mean, student.norm.running_mean)
    assert teacher.updates == 1


def test_a_self_teacher_does_not_follow() -> None:
    student = Net()
    teacher = SelfTeacher(student)
    before = bits(teacher.network)
    made = lesson(student=student)
    made.teacher = teacher
    train(made)
    assert bits(teacher.network) == before != bits(student)


def test_black_boxes_count_and_limit_queries() -> None:
    box = BlackBoxTeacher(lambda x: x[:, :3].numpy(), version="v1", limit=40)
    made = lesson(steps=2)
    made.teacher = box
    train(made)
    assert box.queries == 32
    with pytest.raises(InputError, match="limit of 40"):
        box(batch(10))
    assert EnsembleTeacher([Net(), box]).black_boxes == [box] and not NetworkTeacher(Net()).black_boxes
    assert box.fingerprint != BlackBoxTeacher(box.function, version="v2").fingerprint


def test_fingerprints_follow_the_weights() -> None:
    one, two = NetworkTeacher(Net()), NetworkTeacher(Net())
    assert one.fingerprint == two.fingerprint
    two.network.head.bias.data += 1
    assert one.fingerprint != two.fingerprint


def test_taps_close_and_the_gradient_flows() -> None:
    net = Net()
    with FeatureHooks(net, ["inner", "in:head"]) as taken:
        net(batch().inputs)
    assert taken["inner"].requires_grad and torch.equal(taken["in:head"], taken["inner"].tanh())
    assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(RuntimeError), FeatureHooks(net, ["inner"]):
        raise RuntimeError
    assert not any(module._forward_hooks for module in net.modules())


def wrapped(net: Net) -> nn.Module:
    return torch.compile(net, backend="eager")


def in_place(net: Net) -> nn.Module:
    net.compile(backend="eager")
    return net


def in_part(net: Net) -> nn.Module:
    net.head = torch.compile(net.head, backend="eager")
    return net


@pytest.mark.parametrize("compiled", [wrapped, in_place, in_part])
def test_compiled_code_never_hides_what_is_tapped(compiled) -> None:
    torch.compiler.reset()
    net = compiled(Net())
    for names in (["inner"], ["inner"], ["inner", "in:head"] if compiled is not in_part else ["inner"]):
        net(batch().inputs)  # compiled code that knows no hook
        with FeatureHooks(net, names) as taken:
            said = net(batch().inputs)
        assert set(taken) == set(names) and torch.equal(net(batch().inputs), said)
        assert torch.allclose(taken["inner"], Net().inner(batch().inputs)) and taken["inner"].requires_grad
    teacher = NetworkTeacher(net)
    teacher(batch())
    teacher.request_features("inner")
    assert all(teacher(batch())["inner"].shape == (6, 8) for _ in range(2))


def test_taps_opened_before_compiling_are_compiled_in() -> None:
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    net, counted = Net(), CompileCounter()
    taps = FeatureHooks(net, ["inner"])
    taken = taps.open()
    compiled = torch.compile(net, backend=counted)
    for rows in (6, 6, 6):
        taken.clear()
        compiled(batch(rows).inputs)
        assert torch.allclose(taken["inner"], Net().inner(batch(rows).inputs))
    assert counted.frame_count == 1
    taps.close()


class Keywords(nn.Module):
    def forward(self, a, b=None):
        return {"sum": a + b, "note": "no tensor"}


class Whole(nn.Module):
    def forward(self, inputs):
        return {"sum": inputs["a"] + inputs["b"]}


def test_inputs_reach_a_network_the_way_its_forward_takes_them() -> None:
    a, b = torch.ones(2), torch.ones(2)
    for network in (Keywords(), Whole()):
        said = forward_heads(network, {"a": a, "b": b})
        assert set(said) == {"sum"} and said["sum"].tolist() == [2, 2]
    assert forward_heads(Keywords(), (a, b))["sum"].tolist() == [2, 2]

    class Odd(nn.Module):
        def forward(self, x):
            return [x]

    with pytest.raises(InputError, match="returned list"):
        forward_heads(Odd(), a)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ((2, 5), (2, 7), (2, 7)),
        ((2, 5, 8, 8), (2, 7, 4, 4), (2, 7, 4, 4)),
        ((2, 5, 4, 4), (2, 7, 9, 9), (2, 7, 9, 9)),
        ((2, 16, 5), (2, 49, 7), (2, 49, 7)),
        ((2, 10, 5), (2, 6, 7), (2, 6, 7)),
        ((2, 5, 8, 8), (2, 16, 7), (2, 16, 7)),
        ((2, 64, 5), (2, 7, 4, 4), (2, 7, 4, 4)),
        ((2, 5, 3, 5), (2, 7, 3, 5), (2, 7, 3, 5)),
    ],
)
def test_projections_reach_the_teacher_shape_with_gradient(student, teacher, expected) -> None:
    features = torch.randn(student, requires_grad=True)
    out = Projection(features, torch.zeros(teacher))(features)
    assert out.shape == expected
    out.sum().backward()
    assert features.grad.abs().sum() > 0


def test_projection_prefix_and_refusal() -> None:
    projected = Projection(torch.zeros(2, 17, 5), torch.zeros(2, 7, 4, 4), prefix=(1, 0))
    assert projected(torch.randn(2, 17, 5)).shape == (2, 7, 4, 4)
    with pytest.raises(InputError, match="cannot project"):
        Projection(torch.zeros(2, 5), torch.zeros(2, 7, 4, 4))


def test_a_1x1_projection_is_the_convolution() -> None:
    features = torch.randn(2, 5, 4, 4)
    projection = Projection(features, torch.zeros(2, 7, 4, 4))
    conv = nn.functional.conv2d(features, projection.channels.weight[:, :, None, None], projection.channels.bias)
    assert torch.allclose(projection(features), conv, atol=1e-6)


def test_resampling_shrinks_by_averaging() -> None:
    tokens = torch.arange(16.0).reshape(1, 16, 1)
    assert resample(tokens, (4, 4), (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_order_is_a_permutation_an_epoch_and_counts_on_across_them() -> None:
    order = SampleOrder(10, 4, seed=3)
    seen = torch.cat([order.step(i)[0] for i in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    fresh = SampleOrder(10, 4, seed=3)
    for i in (4, 0, 2):
        assert all(torch.equal(a, b) for a, b in zip(fresh.step(i), order.step(i), strict=True))
    assert not torch.equal(SampleOrder(10, 4, seed=4).step(0)[0], order.step(0)[0])
    large = SampleOrder(3, 10, seed=0).step(1)[0]
    assert len(large) == 10 and set(large.bincount().tolist()) <= {2, 3, 4}


def test_view_seeds_repeat_after_the_views_and_differ_by_sample() -> None:
    order = SampleOrder(50, 50, seed=0, views=2)

    def by_sample(step: int) -> dict[int, int]:
        return dict(zip(*(t.tolist() for t in order.step(step)), strict=True))

    assert by_sample(0) == by_sample(2) != by_sample(1) == by_sample(3)
    assert len(set(by_sample(0).values())) == 50 and max(by_sample(0).values()) < 2**31
    shared = SampleOrder(50, 50, seed=9, views=2, view_seed=0)
    assert dict(zip(*(t.tolist() for t in shared.step(0)), strict=True)) == by_sample(0)


def test_datasets_are_read_and_checked() -> None:
    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return {"image": torch.full((2,), float(i))}, i % 2

    data = as_data(Pairs())
    found = data.batch(torch.tensor([3, 1]), torch.tensor([7, 7]))
    assert found.inputs["image"][:, 0].tolist() == [3, 1] and found.labels.tolist() == [1, 1]
    assert found.seeds.tolist() == [0, 0]

    class Ragged(Pairs):
        def __getitem__(self, i):
            return torch.zeros(i + 1)

    with pytest.raises(InputError, match="shape") as caught:
        as_data(Ragged()).batch(torch.tensor([0, 1]), None)
    assert "item 1" in str(caught.value.where)
    for empty in ([], torch.zeros(0, 3)):
        with pytest.raises(InputError, match="no sample"):
            as_data(empty) if isinstance(empty, list) else TensorData(empty)
    with pytest.raises(InputError, match="labels holds 4"):
        TensorData(torch.zeros(3, 2), torch.zeros(4))


def test_fingerprint_of_data_follows_content_and_views() -> None:
    one, two = samples(), samples()
    assert one.fingerprint == two.fingerprint
    two = samples()
    two.inputs[3, 1] += 1
    assert one.fingerprint != two.fingerprint
    three = copy.copy(samples())
    three.labels = three.labels.flip(0)
    assert one.fingerprint != three.fingerprint


def test_rows_of_keeps_what_is_no_row() -> None:
    whole = Batch({"x": torch.arange(4.0)}, torch.arange(4), torch.arange(4), extra={"scale": torch.tensor(2.0)})
    part = take_rows(whole, torch.tensor([2, 0]))
    assert part.inputs["x"].tolist() == [2, 0] and part.labels.tolist() == [2, 0] and part.extra["scale"] == 2


def test_named_teachers_answer_side_by_side() -> None:
    first, second, shown = Net(seed=0), Net(seed=1), batch()
    both = NamedTeachers(first, cnn=second)
    both.request_features("inner")
    answer = both(shown)
    assert torch.equal(answer["logits"], first(shown.inputs)) and torch.equal(answer["cnn.logits"], second(shown.inputs))
    assert "inner" in answer and "cnn.inner" not in answer
    assert both.network is first and list(both.networks) == [first, second] and both.frozen
    prints = [both.fingerprint, NamedTeachers(first, other=second).fingerprint, NamedTeachers(first, cnn=Net(seed=2)).fingerprint]
    assert len({*prints, NamedTeachers(second, cnn=first).fingerprint}) == 4
