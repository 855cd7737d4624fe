from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import TrainingProgress
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.seeds import torch_rng
from tutelage.systems._backbone import count_macs, count_parameters, create, create_on_meta, published
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.vit_resnas import (
    SPACES,
    Architecture,
    EvolutionSettings,
    MaskedNorm,
    ResidualReduction,
    SearchSpace,
    ViTRes,
    ViTResNAS,
    evolve,
    hold_out,
    macs,
    masked_forward,
    mix_tokens,
    random_search,
    ranks_of,
    reorder,
    sliced,
)
from tutelage.systems.vit_resnas.search_space import PUBLISHED_SUPER

SMALL = SearchSpace(
    widths=((12, 8, 4), (24, 16, 8), (48, 32, 24)),
    heads=((3, 2, 1), (4, 2), (4, 3, 2)),
    units=((24, 12), (32, 16, 8), (64, 32)),
    depth=3,
    optional=(1, 2),
    head=(4, 6, 8),
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(seed: int = 0, space: SearchSpace = SMALL, **config: object) -> ViTRes:
    """A super-network whose norms and biases are not at their start values, in eval mode."""
    made = build_with_seed(lambda: ViTRes(5, 2, **space.options(), patch=4, size=32, **config), seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * noise(*parameter.shape, seed=seed + 1))
    return made.eval()


def drawn(seed: int, space: SearchSpace = SMALL) -> Architecture:
    """Any architecture of a space."""
    rng = torch.Generator().manual_seed(seed)

    def one(choices: tuple[int, ...]) -> int:
        return choices[int(torch.randint(len(choices), (), generator=rng))]

    blocks = []
    for heads, units in zip(space.heads, space.units):
        present = space.settled([one((1, 0)) == 1 for _ in range(space.depth)])
        blocks.append(tuple((one(heads), one(units)) if there else None for there in present))
    return Architecture(tuple(one(choices) for choices in space.widths), tuple(blocks))


# -- published figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", list(ViTRes.VARIANTS))
def test_published_sizes(size: str) -> None:
    made, known = create_on_meta(f"vit-resnas:{size}"), published("vit-resnas")[size]
    assert count_parameters(made) == known.parameters
    assert count_macs(made) == pytest.approx(known.macs, rel=1e-4)
    blocks = tuple(tuple(zip(heads, units)) for heads, units in zip(made.config["heads"], made.config["units"]))
    assert macs(Architecture(made.config["widths"], blocks), made) == pytest.approx(known.macs, rel=1e-4)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_published_super_networks(name: str) -> None:
    made = create_on_meta("vit-resnas", **SPACES[name].options())
    assert count_parameters(made) == PUBLISHED_SUPER[name][0]
    assert macs(SPACES[name].largest, made) == pytest.approx(PUBLISHED_SUPER[name][1], rel=1e-4)


def test_published_networks_lie_in_the_published_spaces() -> None:
    for size, space in (("tiny", "tiny"), ("small", "small"), ("medium", "small")):
        config, where = ViTRes.VARIANTS[size].config, SPACES[space]
        for s in range(3):
            assert config["widths"][s] in where.widths[s]
            assert set(config["heads"][s]) <= set(where.heads[s]) and set(config["units"][s]) <= set(where.units[s])
            assert where.depth - len(where.optional) <= len(config["heads"][s]) <= where.depth


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=15)
def test_the_closed_form_of_the_cost_is_what_a_counter_counts(seed: int) -> None:
    architecture = drawn(seed)
    made = ViTRes(5, 2, **architecture.options(), head=SMALL.head, patch=4, size=32)
    assert macs(architecture, network()) == pytest.approx(count_macs(made, 32, 2), rel=0.01)


# -- masks and slices ------------------------------------------------------------------------------------------------


def test_a_masked_norm_is_the_norm_of_the_slice() -> None:
    norm, small = MaskedNorm(12), MaskedNorm(7)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(norm, name).copy_(noise(12, seed=3))
            getattr(small, name).copy_(getattr(norm, name)[:7])
    mask = (torch.arange(12) < 7).float()[None, None]
    x, aim = noise(2, 5, 12).requires_grad_(), noise(2, 5, 7, seed=1)
    said = norm(x, mask)
    part = x.detach()[..., :7].requires_grad_()
    wanted = small(part)
    torch.testing.assert_close(said[..., :7], wanted, atol=1e-6, rtol=1e-5)
    assert (said[..., 7:] == 0).all()
    (said[..., :7] * aim).sum().backward()
    (wanted * aim).sum().backward()
    torch.testing.assert_close(x.grad[..., :7], part.grad, atol=2e-6, rtol=1e-5)
    assert (x.grad[..., 7:] == 0).all()
    torch.testing.assert_close(norm(x, torch.ones(1, 1, 12)), norm(x), atol=1e-6, rtol=1e-5)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=15)
def test_masks_and_slices_are_the_same_network(seed: int) -> None:
    whole, architecture = network(seed % 3), drawn(seed)
    images = noise(3, 2, 32, 32, seed=seed)
    small = sliced(whole, architecture)
    assert small.config["widths"] == architecture.widths
    with torch.no_grad():
        by_mask, by_slice = masked_forward(whole, SMALL, architecture, images), small.heads_of(images)
    for head in ("logits", "patches"):
        torch.testing.assert_close(by_mask[head], by_slice[head], atol=1e-5, rtol=1e-4)


def test_the_largest_slice_is_the_network() -> None:
    whole, images = network(), noise(2, 2, 32, 32)
    assert torch.equal(sliced(whole, SMALL.largest)(images), whole(images))
    torch.testing.assert_close(masked_forward(whole, SMALL, SMALL.largest, images)["logits"], whole(images), atol=1e-5, rtol=1e-4)


def test_a_slice_that_is_no_slice_is_refused() -> None:
    larger = SMALL.largest._replace(widths=(16, 24, 48))
    with pytest.raises(InputError, match="larger"):
        sliced(network(), larger)
    with pytest.raises(InputError, match="places"):
        sliced(network(), SMALL.largest._replace(blocks=SPACES["mini"].largest.blocks))


def test_sorting_leaves_the_function_and_puts_the_important_first() -> None:
    made, images = network(2), noise(2, 2, 32, 32)
    before = made(images)
    for stage in made.stages:
        for block in stage:
            ranks = ranks_of(block)
            assert ranks.heads.sort().values.tolist() == list(range(block.heads))
            reorder(block, ranks)
            assert ranks_of(block).units.tolist() == list(range(block.enter.out_features))
            assert ranks_of(block).heads.tolist() == list(range(block.heads))
            sizes = block.enter.weight.abs().sum(1) + block.enter.bias.abs() + block.leave.weight.abs().sum(0)
            assert (sizes.diff() <= 1e-6).all()
    torch.testing.assert_close(made(images), before, atol=1e-5, rtol=1e-5)


def test_an_empty_place_empties_the_optional_ones_after_it() -> None:
    assert SMALL.settled([True, False, True]) == [True, False, False]
    assert SMALL.settled([False, True, True]) == [True, True, True]  # the first is not optional
    assert SPACES["tiny"].settled([True, False, True, True, True, False]) == [True, False, True, True, True, False]


# -- reduction -------------------------------------------------------------------------------------------------------


def test_reduction_without_its_branch_is_pooling_and_padding() -> None:
    part = ResidualReduction(6, 10, 4)
    with torch.no_grad():
        for parameter in (*part.conv.parameters(), *part.token.parameters(), part.positions):
            parameter.zero_()
    x = noise(2, 17, 6)
    made = part(x)
    assert made.shape == (2, 5, 10)
    torch.testing.assert_close(made[:, 0, :6], x[:, 0])
    patches = x[:, 1:].reshape(2, 2, 2, 2, 2, 6).mean((2, 4)).reshape(2, 4, 6)
    torch.testing.assert_close(made[:, 1:, :6], patches)
    assert (made[..., 6:] == 0).all()
    assert (ResidualReduction(6, 10, 4, skip=False).positions.shape) == (1, 4, 10)


# -- training the super-network --------------------------------------------------------------------------------------


def trainer(**options: object) -> Trainer:
    student = build_with_seed(lambda: ViTRes(4, 1, **SMALL.options(), patch=4, size=16), 0)
    method = ViTResNAS(**{"space": SMALL, "sub_batch": 4, "warmup": 0} | options)
    return Trainer(
        TrainingJob(student, None, method, toy_images(0, image_size=16), TrainingSettings(steps=8, batch_size=20, seed=0))
    )


def test_every_option_is_drawn_as_often_as_any_other() -> None:
    method = trainer().method
    torch.manual_seed(0)
    seen: dict[object, Counter[object]] = {}
    for _ in range(400):
        rows = method.draw(6)  # twice as many as there are widths: each exactly twice
        for s in range(3):
            assert set(Counter(row.widths[s] for row in rows).values()) == {2}
            for row in rows:
                seen.setdefault(("heads", s), Counter())[row.blocks[s][0][0]] += 1
                seen.setdefault(("second block", s), Counter())[row.blocks[s][1] is not None] += 1
                seen.setdefault(("third block", s), Counter())[row.blocks[s][2] is not None] += 1
    for (what, s), counts in seen.items():
        shares = {option: count / 2400 for option, count in counts.items()}
        if what == "heads":
            assert all(share == pytest.approx(1 / len(SMALL.heads[s]), abs=0.001) for share in shares.values())
        else:
            assert shares[True] == pytest.approx(0.5 if what == "second block" else 0.25, abs=0.04)


def test_fewer_sub_batches_than_options_draw_all_of_them_in_the_long_run() -> None:
    method = trainer().method
    torch.manual_seed(0)
    counts = Counter(method.draw(1)[0].widths[0] for _ in range(1500))
    assert all(count == pytest.approx(500, abs=90) for count in counts.values()) and len(counts) == 3


@pytest.mark.parametrize(("epoch", "options"), [(0.0, 1), (0.9, 1), (14.0, 2), (15.0, 3), (29.0, 4), (30.0, 5), (90.0, 5)])
def test_options_grow_in_the_warmup(epoch: float, options: int) -> None:
    method = trainer(warmup=30).method
    method.progress = TrainingProgress(epoch=epoch, epochs=120.0)
    assert method.options(5) == options
    if epoch < 1:
        assert set(method.draw(4)) == {SMALL.largest}


def test_ranks_are_taken_at_the_epochs_of_the_warmup_and_applied_at_the_export() -> None:
    made = trainer(warmup=2)
    sorted_at = []
    make = made.method._sort
    made.method._sort = lambda student: (sorted_at.append(made.method.progress.epoch), make(student))
    result = made.run()
    assert [int(epoch) for epoch in sorted_at] == [1, 2]  # 20 of 64 a step, 8 steps: 2.5 epochs
    assert any(rank.heads.tolist() != sorted(rank.heads.tolist()) for stage in made.method.ranks() for rank in stage)
    images = made.batch(0).inputs
    made.student.eval()
    torch.testing.assert_close(result.student(images), made.student(images), atol=1e-5, rtol=1e-5)
    # what masks by rank keep is what leading slices of the exported network hold
    from tutelage.systems.vit_resnas.search_space import masks_of, spread

    architecture = drawn(5)
    masks = spread(masks_of(SMALL, [architecture], made.method.ranks(), images), torch.tensor([len(images)]))
    by_mask = made.student.heads_of(images, masks)["logits"]
    torch.testing.assert_close(by_mask, sliced(result.student, architecture)(images), atol=1e-5, rtol=1e-4)


def test_each_sub_batch_has_its_own_network() -> None:
    """A pass over two sub-batches is the passes of its two sub-networks."""
    made = trainer(mixing=False)
    method, student = made.method, made.student.eval()
    images = noise(6, 1, 16, 16)
    batch = replace(made.batch(0), inputs=images, labels=torch.zeros(6, dtype=torch.long))
    torch.manual_seed(7)
    rows = method.draw(2)
    torch.manual_seed(7)
    said = method(batch, student, None)[0]["logits"]
    for row, part in ((rows[0], slice(0, 4)), (rows[1], slice(4, 6))):
        torch.testing.assert_close(said[part], sliced(student, row)(images[part]), atol=1e-5, rtol=1e-4)


def test_a_winner_is_trained_by_the_same_method() -> None:
    student = build_with_seed(lambda: ViTRes(4, 1, **drawn(1).options(), head=SMALL.head, patch=4, size=16, patch_head=True), 0)
    result = train(
        TrainingJob(student, None, ViTResNAS(space=None), toy_images(0, image_size=16), TrainingSettings(steps=3, batch_size=8))
    )
    assert set(result.history[-1]["terms"]) == {"label", "patches"}


@given(st.integers(0, 1000), st.sampled_from([2, 4]))
@settings(deadline=None, max_examples=20)
def test_token_mixing_labels_what_it_shows(seed: int, grid: int) -> None:
    """Images that hold their own number everywhere: a patch's label must be the mixture of the numbers in it."""
    torch.manual_seed(seed)
    images = torch.arange(6.0)[:, None, None, None].expand(-1, 1, 8, 8)
    out, labels, patches = mix_tokens(images, torch.arange(6), 6, grid)
    assert labels.shape == (6, 6) and patches.shape == (6 * grid**2, 6)
    torch.testing.assert_close(labels.sum(1), torch.ones(6))
    seen = torch.nn.functional.avg_pool2d(out, 8 // grid).flatten()
    torch.testing.assert_close(patches @ torch.arange(6.0), seen)
    torch.testing.assert_close(labels @ torch.arange(6.0), out.mean((1, 2, 3)))
    for row in (0, 2, 4):  # cut, not blended: whole cells of one image or the other
        assert set(out[row].unique().tolist()) <= {float(row), 4.0 - row}
    torch.testing.assert_close(images, torch.arange(6.0)[:, None, None, None].expand(-1, 1, 8, 8))


# -- the search ------------------------------------------------------------------------------------------------------

QUICK = EvolutionSettings(population=12, rounds=4, parents=4, mutants=5, crossovers=5)


def goodness(architecture: Architecture) -> float:
    """Narrow, deep, and many heads is good: something for evolution to find."""
    return sum(1 + block[0] for stage in architecture.blocks for block in stage if block is not None) - architecture.widths[2] / 100


def test_every_candidate_fits_and_none_comes_twice() -> None:
    whole = network()
    budget = 0.8 * macs(SMALL.largest, whole)
    how = replace(QUICK, window=0.9)
    history = evolve(SMALL, lambda a: macs(a, whole), goodness, budget, how, seed=3)
    assert len(history) == 12 + 4 * 10
    assert all(0.9 * budget <= one.macs <= budget and one.macs == macs(one.architecture, whole) for one in history)
    assert len({one.architecture for one in history}) == len(history)
    best = [max(one.score for one in history if one.round <= r) for r in range(5)]
    assert best == sorted(best) and best[-1] >= best[0]
    assert history == evolve(SMALL, lambda a: macs(a, whole), goodness, budget, how, seed=3)
    assert history != evolve(SMALL, lambda a: macs(a, whole), goodness, budget, how, seed=4)
    for one in history:
        for stage, heads, units in zip(one.architecture.blocks, SMALL.heads, SMALL.units):
            assert SMALL.settled([block is not None for block in stage]) == [block is not None for block in stage]
            assert all(block is None or (block[0] in heads and block[1] in units) for block in stage)


def test_evolution_finds_more_than_chance() -> None:
    space = SPACES["tiny"]
    whole, budget = create_on_meta("vit-resnas", **space.options()), 1.7944e9
    how, gains = EvolutionSettings(population=40, rounds=10, parents=10, mutants=10, crossovers=10), []
    for seed in range(3):
        found = evolve(space, lambda a: macs(a, whole), goodness, budget, how, seed)
        chance = random_search(space, lambda a: macs(a, whole), goodness, budget, len(found), seed=seed)
        assert len(chance) == len(found) and len({one.architecture for one in chance}) == len(chance)
        gains.append(max(one.score for one in found) - max(one.score for one in chance))
    assert min(gains) > 0


def test_the_published_number_of_evaluations() -> None:
    how = EvolutionSettings()
    assert how.population + how.rounds * (how.mutants + how.crossovers) == 3350


def test_the_published_windows_can_be_filled() -> None:
    whole = create_on_meta("vit-resnas", **SPACES["small"].options())
    for budget in (2.9e9, 4.6e9):
        found = random_search(SPACES["small"], lambda a: macs(a, whole), lambda a: 0.0, budget, 5)
        assert all(0.975 * budget <= one.macs <= budget for one in found)


def test_a_budget_that_nothing_fits_is_refused() -> None:
    whole = network()
    least, most = macs(SMALL.smallest, whole), macs(SMALL.largest, whole)
    for budget in (10 * most, least / 10):
        with pytest.raises(InputError, match=re.escape(f"cost {least:.4g} to {most:.4g}")):
            random_search(SMALL, lambda a: macs(a, whole), goodness, budget, 1, replace(QUICK, patience=20))
        with pytest.raises(InputError, match=re.escape(f"cost {least:.4g} to {most:.4g}")):
            evolve(SMALL, lambda a: macs(a, whole), goodness, budget, replace(QUICK, patience=20))


def test_the_default_network_is_the_published_hand_designed_one() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in ViTRes().parameters()) == 42_012_736


def test_no_architecture_costs_less_than_the_smallest() -> None:
    whole = network()
    found = random_search(SMALL, lambda a: macs(a, whole), goodness, macs(SMALL.largest, whole), 20, replace(QUICK, window=0.0))
    assert all(one.macs >= macs(SMALL.smallest, whole) for one in found)


# -- data, bad input -------------------------------------------------------------------------------------------------


def test_hold_out() -> None:
    labels = torch.arange(60) % 3
    kept, held = hold_out(labels, 5, torch_rng(0, "held"))
    assert labels[held].bincount().tolist() == [5, 5, 5] and sorted([*kept.tolist(), *held.tolist()]) == list(range(60))
    with pytest.raises(InputError, match="20 samples"):
        hold_out(labels, 20, torch_rng(0, "held"))


def test_strides_of_the_stages() -> None:
    features = network().forward_features(noise(2, 2, 32, 32))
    assert [(f.stride, f.maps.shape[2:]) for f in features] == [(4, (8, 8)), (8, (4, 4)), (16, (2, 2))]


def test_bad_input() -> None:
    with pytest.raises(InputError, match="size=48"):
        network()(noise(1, 2, 48, 48))
    with pytest.raises(InputError, match="channels"):
        network()(noise(1, 3, 32, 32))
    for options in ({"size": 220}, {"heads": ((1,), (1,), (1,))}, {"patch": 7, "size": 28}):
        with pytest.raises(InputError):
            create("vit-resnas", 5, 2, **options)
    with pytest.raises(InputError, match="fall|largest"):
        replace(SMALL, widths=((4, 8), (8,), (8,)))
    with pytest.raises(InputError, match="search space"):
        ViTResNAS(space="huge")


def test_a_student_that_is_not_the_super_network_is_refused() -> None:
    data = toy_images(0, image_size=16)
    for config in ({"patch_head": False}, {"widths": (8, 24, 48)}):
        student = ViTRes(4, 1, **SMALL.options() | config, patch=4, size=16)
        with pytest.raises(InputError, match="student"):
            Trainer(TrainingJob(student, None, ViTResNAS(space=SMALL), data, TrainingSettings(steps=1, batch_size=8)))
