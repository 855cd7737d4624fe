import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.distillation.masks import block_mask, group_mask, hard_mask, index_lists, mask_tokens, masked_count, random_mask
from tutelage.errors import InputError


def _seeds(count: int, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + count)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 60), st.floats(0, 1), st.floats(0, 1))
def test_exactly_m_places_are_hidden_and_the_hardest_are_among_them(tokens, ratio, share):
    scores = torch.randn(3, tokens, generator=torch.Generator().manual_seed(tokens))
    mask = hard_mask(scores, _seeds(3), tokens, ratio, share)
    count = masked_count(tokens, ratio)
    assert mask.sum(1).tolist() == [count] * 3
    hard = int(count * share + 1e-9)
    hardest = scores.topk(hard, 1).indices if hard else torch.zeros(3, 0, dtype=torch.int64)
    assert bool(mask.gather(1, hardest).all())


def test_a_row_depends_on_its_own_seed_alone():
    mask = random_mask(_seeds(8), 49, 0.75)
    assert mask.sum(1).tolist() == [37] * 8 and masked_count(10, 0.9) == 9
    assert torch.equal(random_mask(torch.tensor([5, 2]), 49, 0.75), mask[[5, 2]])
    assert not torch.equal(random_mask(_seeds(8), 49, 0.75, stream=7), mask)
    for bad in (-0.1, 1.1):
        with pytest.raises(InputError, match="from 0 to 1"):
            random_mask(_seeds(1), 10, bad)
    with pytest.raises(InputError, match="needs scores"):
        hard_mask(None, _seeds(1), 10, 0.5, 0.5)


def test_random_places_are_uniform_and_so_are_those_beside_the_hard_ones():
    seeds = _seeds(4000)
    assert torch.allclose(random_mask(seeds, 12, 0.5).float().mean(0), torch.tensor(0.5), atol=0.04)
    scores = torch.arange(12.0).expand(4000, -1)
    share = hard_mask(scores, seeds, 12, 0.5, 0.5).float().mean(0)
    assert torch.equal(share[9:], torch.ones(3)) and torch.allclose(share[:9], torch.tensor(3 / 9), atol=0.04)
    assert torch.equal(hard_mask(scores, seeds, 12, 0.5, 1.0).float().mean(0)[:6], torch.zeros(6))


def test_blocks_are_unions_of_rectangles_of_one_size():
    one = block_mask(_seeds(200), (14, 14), 1, 0.15)
    assert one.shape == (200, 14, 14) and len(one.sum((1, 2)).unique()) == 1
    for mask in one[:20]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert int(mask.sum()) == len(rows) * len(columns) == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    assert bool(one.any(0).all())  # every place can be hidden
    covers = [float(block_mask(_seeds(64, 64 * i), (14, 14), 8, 0.15).float().mean()) for i in range(30)]
    assert sum(covers) / 30 == pytest.approx(0.63, abs=0.03)
    covers = [float(block_mask(_seeds(64, 64 * i), (14, 14), 2, 0.7).float().mean()) for i in range(30)]
    assert sum(covers) / 30 == pytest.approx(0.81, abs=0.03)


def test_index_lists_are_disjoint_equally_long_and_cut_at_random():
    seeds = _seeds(300)
    mask = block_mask(seeds, (8, 8), 4, 0.15)
    context, target = index_lists(mask, seeds)
    flat = mask.flatten(1)
    assert bool(flat.gather(1, target).all()) and not bool(flat.gather(1, context).any())
    assert target.shape[1] == int(flat.sum(1).min()) and context.shape[1] == 64 - int(flat.sum(1).max())
    assert torch.equal(target, target.sort(1).values)
    lost = torch.zeros(64)
    for row, kept in zip(flat, target):
        lost += row.float()
        lost[kept] -= 1
    assert float(lost[32:].sum() / lost.sum()) == pytest.approx(0.5, abs=0.1)  # not the last places alone
    with pytest.raises(InputError, match="no context or no target"):
        index_lists(torch.ones(2, 9, dtype=torch.bool), _seeds(2))


@pytest.mark.parametrize("align", [1, 4])
def test_groups_cover_their_share_in_whole_steps(align):
    shares = torch.linspace(0.1, 0.7, 40).tolist()
    mask = group_mask(_seeds(40), (32, 32), shares, align)
    cover = mask.float().mean((1, 2))
    block = (0.3 * 32 / 32) ** 2
    for share, covered in zip(shares, cover.tolist()):
        assert share - 1e-6 <= covered < share + block
    cells = mask.unflatten(1, (-1, align)).unflatten(3, (-1, align)).float().mean((2, 4))
    assert set(cells.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(group_mask(_seeds(40)[3:5], (32, 32), shares[3:5], align), mask[3:5])
    assert not group_mask(_seeds(2), (8, 8), 0.0).any() and group_mask(_seeds(2), (8, 8), 1.0).all()
    with pytest.raises(InputError, match="in steps of 3"):
        group_mask(_seeds(1), (8, 8), 0.5, 3)


def test_words_are_masked_replaced_or_kept_and_padding_never_is():
    ids = torch.randint(5, 40, (2000, 12), generator=torch.Generator().manual_seed(0))
    real = torch.ones(2000, 12, dtype=torch.bool)
    real[:, 9:] = False
    inputs, labels = mask_tokens(ids, _seeds(2000), real, mask_id=3, vocab_size=40, ratio=0.3)
    chosen = labels != -100
    assert not chosen[:, 9:].any() and bool(chosen.any(1).all()) and torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(inputs[~chosen], ids[~chosen])
    assert float(chosen[:, :9].float().mean()) == pytest.approx(0.3, abs=0.02)
    masked, kept = inputs[chosen] == 3, inputs[chosen] == ids[chosen]
    assert float(masked.float().mean()) == pytest.approx(0.8 + 0.1 / 40, abs=0.02)
    assert float(kept.float().mean()) == pytest.approx(0.1 + 0.1 / 40, abs=0.02)
    again, _ = mask_tokens(ids[7:9], _seeds(2, 7), real[7:9], 3, 40, 0.3)
    assert torch.equal(again, inputs[7:9])
    rare = mask_tokens(ids, _seeds(2000), real, 3, 40, 0.0)[1]
    assert (rare != -100).sum(1).tolist() == [1] * 2000
    nothing = mask_tokens(ids[:1], _seeds(1), torch.zeros(1, 12), 3, 40)
    assert torch.equal(nothing[0], ids[:1]) and (nothing[1] == -100).all()


SEEDS = torch.arange(3)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: random_mask(SEEDS, 0, 0.5), "tokens"),
        (lambda: random_mask(SEEDS, 10, float("nan")), "ratio"),
        (lambda: block_mask(SEEDS, (0, 4), 1, 0.2), "grid"),
        (lambda: block_mask(SEEDS, (4, 4), 0, 0.2), "blocks"),
        (lambda: block_mask(SEEDS, (4, 4), 1, -1.0), "share"),
        (lambda: block_mask(SEEDS, (4, 4), 1, 0.2, (0.0, 1.0)), "aspect"),
        (lambda: group_mask(SEEDS, (4, 4), 0.5, align=0), "align"),
        (lambda: group_mask(SEEDS, (4, 4), [0.5]), "share"),
        (lambda: index_lists(torch.ones(3, dtype=torch.bool), SEEDS), "mask"),
        (lambda: mask_tokens(torch.ones(3, 3).long(), SEEDS, torch.ones(3, 4), 1, 10), "real"),
        (lambda: mask_tokens(torch.ones(3, 3).long(), SEEDS, torch.ones(3, 3), 1, 10, ratio=2.0), "ratio"),
    ],
)
def test_values_out_of_range_name_their_field(make, field: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.where == field


def test_a_mask_of_no_samples() -> None:
    assert block_mask(SEEDS[:0], (4, 4), 1, 0.2).shape == (0, 4, 4)
