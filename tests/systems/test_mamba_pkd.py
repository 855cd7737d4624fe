from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems._backbone import create
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.mamba_pkd import ClassifierGroup, MambaBlock, MambaClassifier, MambaPKD, fastest, selective_scan, time_paths
from tutelage.systems.mamba_pkd.selective_scan import PATHS, ScanPath


def inputs(seed: int, batch: int, length: int, width: int, states: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x, B, C = (torch.randn(batch, length, size, generator=rng, dtype=torch.float64) for size in (width, states, states))
    delta = torch.rand(batch, length, width, generator=rng, dtype=torch.float64)
    A = -torch.rand(width, states, generator=rng, dtype=torch.float64)
    return [tensor.requires_grad_() for tensor in (x, delta, A, B, C)]


def by_hand(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The recurrence, number by number."""
    y = torch.zeros_like(x)
    for i in range(x.shape[0]):
        for e in range(x.shape[2]):
            for n in range(A.shape[1]):
                h = 0.0
                for t in range(x.shape[1]):
                    h = float(torch.exp(delta[i, t, e] * A[e, n])) * h + float(delta[i, t, e] * B[i, t, n] * x[i, t, e])
                    y[i, t, e] += float(C[i, t, n]) * h
    return y


def test_the_scan_by_hand() -> None:
    given_ = [tensor.detach() for tensor in inputs(0, 2, 7, 3, 2)]
    for path in PATHS:
        torch.testing.assert_close(selective_scan(*given_, path=path, chunk=3), by_hand(*given_))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(1, 50))
def test_every_path_is_the_recurrence_forward_and_backward(
    seed: int, batch: int, length: int, width: int, states: int, chunk: int
) -> None:
    given_ = inputs(seed, batch, length, width, states)
    weight = torch.randn(batch, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def both(path: ScanPath) -> list[Tensor]:
        y = selective_scan(*given_, path=path, chunk=chunk)
        return [y, *torch.autograd.grad((y * weight).sum(), given_)]

    loop = both("loop")
    for path in PATHS[1:]:
        for one, other in zip(both(path), loop, strict=True):
            torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_float32_agrees_within_1e5() -> None:
    given_ = [tensor.detach().float().requires_grad_() for tensor in inputs(1, 2, 200, 8, 4)]
    loop, *others = (selective_scan(*given_, path=path) for path in PATHS)
    of_loop = torch.autograd.grad(loop.mean(), given_)
    for other in others:
        torch.testing.assert_close(other, loop, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(other.mean(), given_), of_loop, atol=1e-5, rtol=1e-5)


def test_half_precision_is_scanned_in_float32() -> None:
    given_ = [tensor.detach().bfloat16() for tensor in inputs(1, 1, 20, 4, 2)]
    y = selective_scan(*given_)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, selective_scan(*(tensor.float() for tensor in given_)).bfloat16())


def test_bad_scans_are_refused() -> None:
    given_ = inputs(0, 1, 5, 3, 2)
    with pytest.raises(InputError, match="did you mean chunked"):
        selective_scan(*given_, path="chunkd")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"B: shape.*\n.*\[1, 5, 2\]"):
        selective_scan(*given_[:3], given_[3][:, :4], given_[4])


def test_the_fastest_path_has_the_smallest_median() -> None:
    assert fastest({"loop": [1.0, 9.0, 9.0], "chunked": [2.0, 2.0, 50.0], "grouped": [3.0, 3.0, 3.0]}) == "chunked"
    ticks = iter(range(1000))
    seconds = time_paths(1, 6, 4, 2, rounds=2, clock=lambda: float(next(ticks)))
    assert seconds == {path: [1.0, 1.0] for path in PATHS}
    network = classifier()
    milliseconds = network.tune(torch.zeros(2, 1, 8, 8), rounds=1)
    assert set(milliseconds) == set(PATHS)
    assert network.blocks[0].mixer.path == min(milliseconds, key=lambda path: milliseconds[path])


# -- the network -----------------------------------------------------------------------------------------------------


def classifier(width: int = 8, depth: int = 1, **options: object) -> MambaClassifier:
    return build_with_seed(lambda: MambaClassifier(4, 1, width, depth, states=4, patch=None, size=8, **options), 0)  # type: ignore[arg-type]


def test_parameters_of_the_reference_layers() -> None:
    network = MambaClassifier(10, 3, 64, 2, states=16)
    assert sum(parameter.numel() for parameter in network.blocks.parameters()) == 65_408


def test_a_library_block_gives_the_same_answer() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    theirs = MambaMixer(transformers.MambaConfig(hidden_size=32, state_size=8, num_hidden_layers=1), layer_idx=0)
    ours = MambaBlock(32, 8)
    ours.load_state_dict(theirs.state_dict())
    u = torch.randn(2, 20, 32)
    torch.testing.assert_close(ours(u), theirs(u), atol=1e-5, rtol=1e-5)


def test_the_past_does_not_depend_on_the_future() -> None:
    torch.manual_seed(0)
    block, u = MambaBlock(8, 4), torch.randn(1, 12, 8)
    changed = u.clone()
    changed[:, 7:] += 1
    one, other = block(u), block(changed)
    assert torch.equal(one[:, :7], other[:, :7]) and not torch.equal(one[:, 7], other[:, 7])


def test_both_ways_sees_a_turned_sequence_turned() -> None:
    block, u = classifier(bidirectional=True).blocks[0], torch.randn(2, 6, 8)
    torch.testing.assert_close(block(u.flip(1)), block(u).flip(1))


def test_a_long_constant_input_stays_bounded() -> None:
    ones = torch.ones(1, 5000, 2)
    A = -torch.arange(1.0, 5).expand(2, 4)
    y = selective_scan(ones, ones, A, torch.ones(1, 5000, 4), torch.ones(1, 5000, 4))
    limit = (1 / (1 - torch.exp(A[0]))).sum()  # of the geometric series
    torch.testing.assert_close(y[0, -1], limit.expand(2))
    assert bool((y <= limit + 1e-4).all())


def test_the_start_is_mambas() -> None:
    block = MambaBlock(32, 16)
    torch.testing.assert_close(-block.A_log.exp(), -torch.arange(1.0, 17).expand(64, 16))
    steps = torch.nn.functional.softplus(block.dt_proj.bias)
    assert 1e-3 * 0.99 <= steps.min() and steps.max() <= 1e-1 * 1.01
    assert bool((block.D == 1).all()) and block.dt_proj.weight.abs().max() <= 2**-0.5


def test_steps_are_patches_in_raster_order() -> None:
    network = MambaClassifier(2, 1, 4, 1, states=2, patch=(2, 2))
    seen = []
    network.embed.register_forward_pre_hook(lambda module, given_: seen.append(given_[0]))
    network(torch.arange(16.0).view(1, 1, 4, 4))
    assert seen[0][0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    rows = classifier()
    rows.embed.register_forward_pre_hook(lambda module, given_: seen.append(given_[0]))
    image = torch.randn(1, 1, 8, 8)
    rows(image)
    assert torch.equal(seen[1], image[:, 0])


def test_stages_are_blocks() -> None:
    network = create("mamba-pkd", 10, 3, width=8, depth=2, states=4)
    features = network.forward_features(torch.randn(2, 3, 32, 32))
    assert [(f.name, f.stride, tuple(f.maps.shape)) for f in features] == [
        ("blocks.0", 4, (2, 8, 8, 8)),
        ("blocks.1", 4, (2, 8, 8, 8)),
    ]


def test_operations_by_the_rule() -> None:
    network = MambaClassifier(10, 1, 16, 2, states=4, patch=None, size=8)
    inner, rank, states = 32, 1, 4
    linear = 2 * 16 * 64 + 2 * inner * (rank + 2 * states) + 2 * rank * inner + 2 * inner * 16
    block = linear + 2 * 4 * inner + 9 * inner * states
    assert network.flops(8, 8) == 8 * (2 * block + 2 * 8 * 16) + 2 * 16 * 10


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="32x28 fits"):
        MambaClassifier(2)(torch.zeros(1, 3, 32, 29))
    with pytest.raises(InputError, match="9x8 fits"):
        classifier()(torch.zeros(1, 1, 9, 9))


# -- the group -------------------------------------------------------------------------------------------------------


def lesson(combine: str = "residual", lr: float = 1e-2, steps: int = 24) -> TrainingJob:
    made = MambaPKD.tiny_job(0)
    made.student.combine = combine
    made.settings = replace(made.settings, lr=lr, steps=steps, weight_decay=0.1)
    return made


@pytest.mark.parametrize("combine", ["residual", "average", "boost"])
def test_training_a_member_leaves_the_others_alone(combine: str) -> None:
    trainer = Trainer(lesson(combine))
    group = trainer.student
    for k in range(3):
        before = [{name: value.clone() for name, value in member.state_dict().items()} for member in group.students]
        for _ in range(8):
            trainer.advance()
        for j, member in enumerate(group.students):
            changed = any(not torch.equal(value, before[j][name]) for name, value in member.state_dict().items())
            assert changed == (j == k), (j, k)


@pytest.mark.parametrize("combine", ["residual", "average", "boost"])
def test_the_group_is_the_sum_or_the_mean(combine: str) -> None:
    group = train(lesson(combine)).student
    images = toy_images(3).inputs
    each = torch.stack([member(images) for member in group.students])
    torch.testing.assert_close(group(images), each.sum(0) if combine == "residual" else each.mean(0))
    for count, said in enumerate(group.partial(images), 1):
        torch.testing.assert_close(said, each[:count].sum(0) / (1 if combine == "residual" else count))


def test_weights_of_boosting_by_their_update() -> None:
    made = lesson("boost")
    trainer = Trainer(made)
    method, group = trainer.method, trainer.student
    batch = made.data.batch(torch.arange(len(made.data)), None)
    eta, count = method.config.eta, len(made.data)

    def centred(logits: Tensor) -> Tensor:
        return logits - logits.mean(1, keepdim=True)

    def advance(steps: int) -> None:
        group.train()
        with torch.enable_grad():
            for _ in range(steps):
                trainer.advance()

    with torch.no_grad():
        goal = centred(made.teacher(batch)["logits"])
        plus = minus = torch.full_like(goal, 1 / (2 * goal.numel()))
        for member in range(3):
            advance(7)
            found, other = method(batch, group.eval(), trainer.teacher)
            torch.testing.assert_close(found["share"], count * (plus - minus), atol=1e-5, rtol=1e-4)
            terms = method.loss_terms(batch, found, other)
            edge = ((plus - minus) * (centred(found["logits"]) - goal)).sum()
            torch.testing.assert_close(terms["boost"], (method.config.margin - edge).relu(), atol=1e-5, rtol=1e-4)
            moved = method.loss_terms(batch, found | {"logits": found["logits"] + 5.0}, {"logits": other["logits"] - 3.0})
            torch.testing.assert_close(moved["boost"], terms["boost"], atol=1e-4, rtol=1e-4)  # centred by image
            weights = method.loss_weights()
            assert (weights["boost"], weights["label"]) == ((0.0, 0.5) if member == 0 else (1.0, 0.0))
            advance(1)
            f = centred(group.students[member].eval()(batch.inputs)) - goal
            plus, minus = plus * torch.exp(-eta * f), minus * torch.exp(eta * f)
            total = plus.sum() + minus.sum()
            plus, minus = plus / total, minus / total


def test_a_boosted_member_lowers_what_it_lacks() -> None:
    trainer = Trainer(lesson("boost", steps=60))
    trainer.student.train()
    for _ in range(20):
        trainer.advance()
    start = float(trainer.method.best)
    for _ in range(19):
        trainer.advance()
    assert float(trainer.method.best) < start


@pytest.mark.parametrize("lr", [1e-2, 30.0])
def test_the_training_loss_never_rises_from_member_to_member(lr: float) -> None:
    """Not even with a learning rate at which training diverges: the start of each member is kept then."""
    made = lesson(lr=lr)
    trainer = Trainer(made)
    losses = [float(trainer.method.best)]
    for step in range(24):
        trainer.advance()
        if step % 8 == 7:
            batch = made.data.batch(torch.arange(len(made.data)), None)
            member = step // 8
            with torch.no_grad():
                said = sum(f.eval()(batch.inputs) for f in made.student.students[: member + 1])
                terms = trainer.method.loss_terms(batch, {"logits": said}, made.teacher(batch))
            losses.append(float(0.5 * terms["label"] + 0.5 * terms["soft"]))
            assert losses[-1] == pytest.approx(float(trainer.method.best), abs=1e-4)
    assert losses == sorted(losses, reverse=True)
    assert lr > 1 or len(set(losses)) == 4, "each member lowers it"


def test_a_fresh_member_starts_where_the_group_stands() -> None:
    made = lesson()
    trainer = Trainer(made)
    images = toy_images(5).inputs
    for _ in range(8):
        trainer.advance()
    one, two = made.student.partial(images)
    assert torch.equal(one, two) and int(made.student.used) == 2


def test_state_parameters_get_no_weight_decay() -> None:
    trainer = Trainer(lesson())
    decay = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in made_names(trainer):
        assert decay[id(parameter)] == (0.0 if name.endswith((".A_log", ".D")) else 0.1), name


def made_names(trainer: Trainer) -> list[tuple[str, torch.nn.Parameter]]:
    return list(trainer.student.named_parameters())


def test_anytime_asks_one_or_all_or_as_many_as_it_takes() -> None:
    group = train(lesson()).student
    images = toy_images(2).inputs
    parts = torch.stack(group.partial(images))
    for threshold, count in ((0.0, 1), (1.1, 3)):
        said, asked = group.anytime(images, threshold)
        assert bool((asked == count).all())
        torch.testing.assert_close(said, parts[count - 1])
    sure = parts.softmax(-1).amax(-1)
    threshold = sure[0].median().item()
    said, asked = group.anytime(images, threshold)
    assert 1 < len(asked.unique())
    for i in range(len(images)):
        first = next((k for k in range(3) if sure[k, i] >= threshold), 2)
        assert int(asked[i]) == first + 1
        torch.testing.assert_close(said[i], parts[first, i])


def test_views_and_plain_samples_are_both_taught() -> None:
    from tutelage.distillation.augmentation import Augmentation
    from tutelage.distillation.data import TensorData

    made = lesson()
    made.data = TensorData(made.data.inputs, made.data.labels, views=Augmentation(crop=1))
    assert train(made).history[-1]["terms"]["label"] > 0


def test_a_student_that_is_no_group_is_refused() -> None:
    with pytest.raises(InputError, match="no group of 2"):
        train(TrainingJob(classifier(), SmallCNN(4), MambaPKD(students=2), toy_images(0), TrainingSettings(steps=2)))
    with pytest.raises(InputError, match="at least one member"):
        ClassifierGroup([])
    with pytest.raises(InputError, match="students"):
        MambaPKD(students=0)
