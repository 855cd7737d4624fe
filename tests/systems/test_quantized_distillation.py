from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.data import Batch
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.kd import KD
from tutelage.systems.quantized_distillation import (
    DifferentiableQuantization,
    PackedWeights,
    QuantizedDistillation,
    nearest,
    pack,
    quantize,
    redistribute,
    size_report,
    unpack,
)
from tutelage.systems.quantized_distillation.packing import code_lengths, huffman_decode, huffman_encode
from tutelage.systems.quantized_distillation.quantizers import (
    bucketed,
    extent,
    quantile_points,
    quantize_with_scale_gradient,
    uniform,
)


def values(seed: int, count: int = 700) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_papers_formula_by_hand() -> None:
    found = quantize(torch.tensor([-1.0, -0.4, 0.1, 0.5, 1.0]), 2)
    torch.testing.assert_close(found, torch.tensor([-1.0, -1 / 3, 1 / 3, 1 / 3, 1.0]))


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(2, 300))
def test_what_every_bucket_keeps(seed: int, bits: int, bucket: int) -> None:
    v = values(seed)
    q = quantize(v, bits, bucket)
    rows, low = bucketed(v, bucket), bucketed(q, bucket)
    alpha, beta = extent(rows)
    assert bool(((low - rows).abs() <= alpha / (2 * (2**bits - 1)) + 1e-12).all())
    assert torch.equal(low.amin(1, keepdim=True), beta)
    torch.testing.assert_close(low.amax(1), rows.amax(1))
    assert max(len(row.unique()) for row in low) <= 2**bits
    torch.testing.assert_close(quantize(q, bits, bucket), q)
    order = rows.argsort(1)
    assert bool((low.gather(1, order).diff(dim=1) >= 0).all())
    torch.testing.assert_close(quantize(2.5 * v - 1.5, bits, bucket), 2.5 * q - 1.5)


def test_stochastic_rounding_is_unbiased() -> None:
    torch.manual_seed(0)
    v = torch.tensor([0.0, 0.1, 0.37, 0.5, 0.81, 1.0]).repeat(20_000, 1)
    drawn = uniform(v, 4, stochastic=True)
    error = drawn.std(0) / math.sqrt(20_000)
    assert bool(((drawn.mean(0) - v[0]).abs() <= 4 * error + 1e-7).all())
    assert (drawn - v).abs().max() < 1 / 3


@pytest.mark.parametrize("count", [1, 255, 256, 257, 513])
def test_shapes_and_constants(count: int) -> None:
    assert torch.equal(quantize(torch.full((count,), 0.25), 3), torch.full((count,), 0.25))
    v = values(0, count)[:, None]
    assert quantize(v, 3).shape == v.shape
    assert bucketed(v, 256).shape == (-(-count // 256), min(count, 256))


@pytest.mark.parametrize("scaling", ["absmax", "absnorm"])
def test_scalings_by_magnitude(scaling: str) -> None:
    v = torch.tensor([3.0, -4.0, 0.2, 0.0])
    size = 4.0 if scaling == "absmax" else (9 + 16 + 0.04) ** 0.5
    expected = v.sign() * size * (v.abs() / size * 3).round() / 3
    torch.testing.assert_close(quantize(v, 3, scaling=scaling), expected)
    odd = values(0, 300)  # the filling of the last bucket does not count in its norm
    assert torch.equal(quantize(odd, 3, 256, scaling)[256:], quantize(odd[256:], 3, 256, scaling))
    assert torch.equal(quantize(torch.zeros(5), 3, scaling=scaling), torch.zeros(5))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9, unique=True), st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_nearest_equals_brute_force(points: list[float], v: list[float]) -> None:
    p, x = torch.tensor(sorted(points), dtype=torch.float64), torch.tensor(v, dtype=torch.float64)
    distance = (x[:, None] - p).abs()
    chosen = (x - p[nearest(x, p)]).abs()
    torch.testing.assert_close(chosen, distance.amin(1), atol=1e-12, rtol=0)


def test_ties_go_up_and_even_points_are_uniform() -> None:
    assert nearest(torch.tensor([0.5, 0.25, 0.75]), torch.tensor([0.0, 0.5, 1.0])).tolist() == [1, 1, 2]
    v = values(3)
    torch.testing.assert_close(quantize(v, 3, points=torch.linspace(0, 1, 8, dtype=v.dtype)), quantize(v, 3))


def test_quantiles_leave_the_filling_out() -> None:
    v = torch.arange(300, dtype=torch.float64)
    points = quantile_points(v, 3, 200)  # two buckets, each 0 to 1 evenly; the second filled up with its last value
    torch.testing.assert_close(points, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), atol=5e-3, rtol=0)
    assert torch.equal(
        points, torch.quantile(torch.cat([v[:200] / 199, (v[200:] - 200) / 99]), torch.tensor([0.0, 0.5, 1.0]).double())
    )


def test_scale_gradient_by_hand() -> None:
    w = values(5, 40).requires_grad_()
    g = values(6, 40)
    (quantize_with_scale_gradient(w, 2, 256) * g).sum().backward()
    alpha, beta = w.max() - w.min(), w.min()
    scaled = ((w - beta) / alpha).detach()
    s = (g * ((scaled * 3).round() / 3 - scaled)).sum()
    expected = g.clone()
    expected[w.argmax()] += s
    expected[w.argmin()] -= s
    torch.testing.assert_close(w.grad, expected)


def lesson(method: object, steps: int = 6) -> TrainingJob:
    student, teacher = build_with_seed(lambda: SmallCNN(4, 4, 8), 0), build_with_seed(lambda: SmallCNN(4, 8, 16), 1)
    return TrainingJob(
        student, teacher, method, toy_images(0), TrainingSettings(steps=steps, batch_size=16, optimizer="sgd", lr=0.05)
    )


def test_the_gradient_at_low_precision_moves_full_precision_weights() -> None:
    trainer = Trainer(lesson(QuantizedDistillation(bits=2)))
    batch = trainer.batch(0)
    weight = trainer.student.train().head.weight
    trainer.advance()
    assert len(weight.unique()) > 4  # stored weights stay full precision
    low = quantize(weight.detach(), 2)
    ours, theirs = trainer.method(batch, trainer.student, trainer.teacher)
    terms = trainer.method.loss_terms(batch, ours, theirs)
    weight.grad = None
    (0.7 * terms["kd"] + 0.3 * terms["label"]).backward()
    copied = build_with_seed(lambda: SmallCNN(4, 4, 8), 0).train()
    copied.load_state_dict(trainer.method.export(trainer.student).state_dict())
    assert torch.equal(copied.head.weight, low)
    loss = trainer.method.loss_terms(batch, {"logits": copied(batch.inputs)}, theirs)
    (0.7 * loss["kd"] + 0.3 * loss["label"]).backward()
    torch.testing.assert_close(weight.grad, copied.head.weight.grad)


def test_statistics_are_updated_once_a_step() -> None:
    trainer = Trainer(lesson(QuantizedDistillation(bits=2)))
    before = trainer.student.body[0][1].running_mean.clone()
    trainer.student.train()
    trainer.advance()
    assert int(trainer.student.body[0][1].num_batches_tracked) == 1
    assert not torch.equal(trainer.student.body[0][1].running_mean, before)


def test_at_32_bits_it_is_plain_training_bit_for_bit() -> None:
    plain = train(lesson(KD(tau=2.0, alpha=0.7))).student.state_dict()
    same = train(lesson(QuantizedDistillation(bits=32, kd=0.7, ce=1 - 0.7))).student.state_dict()
    assert all(torch.equal(plain[name], same[name]) for name in plain)


def test_options_choose_tensors_and_stop_gradients() -> None:
    student = build_with_seed(lambda: SmallCNN(4, 4, 8), 0)
    names = set(QuantizedDistillation(bits=2).quantized(student))
    assert names == {"body.0.0.weight", "body.1.0.weight", "body.2.0.weight", "head.weight"}
    assert set(QuantizedDistillation(bits=2, keep_ends=True).quantized(student)) == {
        "body.1.0.weight",
        "body.2.0.weight",
    }
    assert "head.bias" in QuantizedDistillation(bits=2, tensors="all").quantized(student)
    with torch.no_grad():
        student.head.weight[0, 0] = 1.5
    QuantizedDistillation(bits=2, clip=True).quantized(student)["head.weight"].sum().backward()
    assert student.head.weight.grad[0, 0] == 0 and student.head.weight.grad[0, 1] == 1


@pytest.mark.parametrize("ask", ["entropy", "probability", "wrong"])
def test_ask_the_teacher_adds_two_subset_means(ask: str) -> None:
    ours = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    theirs, labels = torch.tensor([[1.0, 0.0, 2.0]]).repeat(3, 1), torch.tensor([0, 1, 2])
    method = QuantizedDistillation(ask=ask, cut=1.0)
    torch.manual_seed(0)
    mask = method.teacher_mask(ours, labels)
    if ask == "entropy":
        assert mask.tolist() == [False, True, False]
    if ask == "wrong":
        assert mask.tolist() == [False, True, True]
    torch.manual_seed(0)
    terms = method.loss_terms(Batch(ours, labels), {"logits": ours}, {"logits": theirs})
    plain = F.cross_entropy(ours, labels, reduction="none")
    assert terms["plain"].item() == pytest.approx(plain[~mask].mean().item(), abs=1e-6)
    assert terms["label"].item() == pytest.approx(plain[mask].mean().item(), abs=1e-6)


def test_points_get_the_gradient_of_their_elements() -> None:
    network = build_with_seed(lambda: SmallCNN(4, 4, 8), 0).double()
    method = DifferentiableQuantization(bits=2, bucket=64)
    data = toy_images(0)
    batch = data.batch(torch.arange(8), None)
    batch.inputs = batch.inputs.double()
    with torch.no_grad():
        method.prepare(network, None, batch, data)
    before = {name: value.clone() for name, value in network.state_dict().items() if "running" not in name and "num" not in name}
    gradients = {}
    found = method.quantized(network)
    slopes = {
        name: torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for name, value in found.items()
    }
    sum((found[name] * slopes[name]).sum() for name in found).backward()
    point_gradients = method.points.grad.split(method.counts.tolist())
    for name, points, gradient in zip(method.names, method.points_by_tensor, point_gradients):
        weight = dict(network.named_parameters())[name].detach()
        rows = bucketed(weight, 64)
        alpha, beta = extent(rows)
        index = nearest((rows - beta) / alpha, points.detach())
        live = torch.arange(rows.numel()).view_as(rows) < weight.numel()
        size = slopes[name].reshape(-1)
        padded = torch.zeros(rows.numel(), dtype=torch.float64)
        padded[: len(size)] = size
        gradients[name] = [((index == j) & live).double().mul(alpha * padded.view_as(rows)).sum().item() for j in range(4)]
        assert gradient.tolist() == pytest.approx(gradients[name], abs=1e-6)
        step = torch.zeros(4, dtype=torch.float64)
        step[1] = 1e-7  # assignments do not change
        moved = quantize(weight, 2, 64, points=points.detach() + step) - quantize(weight, 2, 64, points=points.detach())
        assert (moved * slopes[name]).sum().item() / 1e-7 == pytest.approx(gradients[name][1], rel=1e-4, abs=1e-6)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_differentiable_quantisation_leaves_the_network_and_sorts_its_points() -> None:
    made = lesson(DifferentiableQuantization(bits=2))
    before = {name: p.detach().clone() for name, p in made.student.named_parameters()}
    trainer = Trainer(made)
    start = [points.detach().clone() for points in trainer.method.points_by_tensor]
    result = trainer.run()
    assert all(torch.equal(p, before[name]) for name, p in made.student.named_parameters())
    assert result.parameters_without_gradient == ()
    for points, first in zip(trainer.method.points_by_tensor, start):
        assert not torch.equal(points, first) and bool((points.diff() >= 0).all())
    assert len(result.student.head.weight.unique()) <= 4
    for (name, value), points in zip(trainer.method.quantized(made.student).items(), trainer.method.points_by_tensor):
        assert torch.equal(dict(result.student.named_parameters())[name], value), points


def test_redistribution_keeps_the_total() -> None:
    assert redistribute([4, 4, 4], [1.0, 1.0, 1.0]) == [4, 4, 4]
    assert redistribute([4, 4], [3.0, 1.0]) == [5, 3]
    # two kept each; 6 dealt 1.5, 1.5, 3 -> 2, 2, 3 (halves to even): one too many, taken from the largest
    assert redistribute([4, 4, 4], [1.0, 1.0, 2.0]) == [4, 4, 4]
    # 2 kept each, 4 dealt 0.5, 0.5, 3 -> 0, 0, 3 (of 4 + 4 + 2): one lacks, given to the smallest
    assert sum(redistribute([4, 4, 2], [0.1, 0.1, 0.6])) == 10
    with_norms = DifferentiableQuantization(bits=2, redistribute=True)
    Trainer(lesson(with_norms))
    assert sum(len(points) for points in with_norms.points_by_tensor) == 16


def test_bits_are_dealt_by_tensor_and_packed_so() -> None:
    assert redistribute([4, 4, 4], [1.0, 1.0, 1.0], [3, 3, 3]) == [4, 4, 4]
    assert redistribute([3, 3, 3], [0.0, 1.0, 9.0], [2, 2, 2]) == [2, 2, 5]  # 3 dealt 0, 0.3, 2.7
    made = lesson(QuantizedDistillation(bits=3, bucket=64, redistribute=True), 3)
    trainer = Trainer(made)
    bits = trainer.method.bits(made.student)
    assert sum(bits.values()) == 3 * len(bits) and min(bits.values()) >= 2 and len(set(bits.values())) > 1
    exported = trainer.run().student
    for name, count in bits.items():
        low = bucketed(dict(exported.named_parameters())[name].detach(), 64)
        assert max(len(row.unique()) for row in low) <= 2**count
    back = unpack(pack(exported.state_dict(), trainer.method.packing(exported)))
    for name, value in exported.state_dict().items():
        torch.testing.assert_close(back[name], value)
    for wrong in (1, 32):
        with pytest.raises(InputError, match="dealt anew"):
            QuantizedDistillation(bits=wrong, redistribute=True)


def mixed(tmp_path: Path | None = None, **options: object) -> Trainer:
    made = lesson(QuantizedDistillation(bits=2, bucket=64, rounds=2, **options), 9)
    made.settings = replace(made.settings, checkpoint_every=1, log_every=1, weight_decay=0.1)
    return Trainer(made, tmp_path)


def test_the_mixed_mode_trains_weights_and_points_in_turn() -> None:
    trainer = mixed(points_lr=1.0)
    student, method = trainer.student, trainer.method
    names = method.learned.names

    def weights() -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in student.named_parameters()}

    student.train()
    assert [(phase.name, length) for phase, _, length in trainer.phases] == [("weights", 3), ("points", 3), ("weights", 3)]
    points = method.learned.points.detach().clone()
    for _ in range(3):
        trainer.advance()
    assert not torch.equal(method.learned.points, points)  # placed on the weights as they are now
    assert int(method.learned.counts.sum()) == 4 * len(names) == len(points)
    full, points = weights(), method.learned.points.detach().clone()
    assert all(torch.equal(p, full[name]) for name, p in method.learned.full.named_parameters())
    for _ in range(2):
        trainer.advance()
    assert not torch.equal(method.learned.points, points)
    assert all(torch.equal(now, full[name]) for name, now in weights().items())  # weights stay, by decay too
    trainer.advance()
    counts = dict(zip(names, method.learned.counts.tolist()))
    for name, now in weights().items():
        assert (name not in names and torch.equal(now, full[name])) or (
            max(len(row.unique()) for row in bucketed(now, 64)) <= counts[name]
        )
    points = method.learned.points.detach().clone()
    for _ in range(3):
        trainer.advance()
    assert torch.equal(method.learned.points, points)
    assert len(bucketed(student.head.weight.detach(), 64)[0].unique()) > 4
    exported = method.export(student)
    torch.testing.assert_close(exported.head.weight, quantize(student.head.weight.detach(), 2, 64))


def test_the_mixed_mode_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = mixed(ask="entropy").run().student.state_dict()
    for stop in (2, 4, 7):  # inside each stretch
        trainer = mixed(tmp_path / str(stop), ask="entropy")
        trainer.student.train()
        with trainer._rng():
            for _ in range(stop):
                trainer.advance()
        trainer.checkpoint()
        resumed = mixed(tmp_path / str(stop), ask="entropy")
        assert resumed.step == stop
        found = resumed.run().student.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in whole.items())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=300))
def test_huffman_codes(symbols: list[int]) -> None:
    index = np.array(symbols)
    counts = np.bincount(index)
    lengths = code_lengths(counts)
    data = huffman_encode(index, lengths)
    assert np.array_equal(huffman_decode(data, len(index), lengths), index)
    p = counts[counts > 0] / len(index)
    mean, entropy = float(lengths[index].mean()), float(-(p * np.log2(p)).sum())
    if len(p) > 1:
        assert entropy - 1e-9 <= mean < entropy + 1


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_packed_files(bits: int, huffman: bool) -> None:
    made = lesson(QuantizedDistillation(bits=bits, bucket=64), 3)
    exported = train(made).student
    state, how = exported.state_dict(), made.method.packing(exported)
    data = pack(state, how, huffman)
    back = unpack(data)
    assert back.keys() == state.keys()
    for name in state:
        torch.testing.assert_close(back[name], state[name])
    sizes = size_report(state, how)
    assert sizes["huffman" if huffman else "packed"] == pytest.approx(len(data) / 1e6)
    for cut in (3, 50, len(data) - 1):
        with pytest.raises(InputError):
            unpack(data[:cut])


def test_the_size_of_a_large_tensor_is_bits_and_two_floats_a_bucket() -> None:
    state = {"w": values(0, 256 * 400).float()}
    data = pack(state, {"w": PackedWeights(torch.linspace(0, 1, 16))})
    assert 8 * len(data) / state["w"].numel() == pytest.approx(4.25, rel=5e-3)
    torch.testing.assert_close(unpack(data)["w"], quantize(state["w"], 4))


def test_learned_points_are_packed_with_the_full_weights() -> None:
    made = lesson(DifferentiableQuantization(bits=2, bucket=64))
    trainer = Trainer(made)
    exported = trainer.run().student
    packed = pack(made.student.state_dict(), trainer.method.packing(made.student))
    for name, value in unpack(packed).items():
        torch.testing.assert_close(value, exported.state_dict()[name])
