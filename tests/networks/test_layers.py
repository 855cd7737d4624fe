import pytest
import torch
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.attention import CrossAttention, SelfAttention, TransformerBlock
from tutelage.networks.layers import (
    DropPath,
    LayerNorm2d,
    LayerScale,
    Mlp,
    OverlapPatchEmbed,
    PatchEmbed,
    SqueezeExcite,
    drop_path_rates,
    init_weights,
)
from tutelage.networks.positions import resize_positions, rotary_angles, rotate, sincos_positions


def _seeded(seed: int = 0) -> None:
    torch.manual_seed(seed)


def test_drop_path_keeps_whole_samples_and_the_mean():
    _seeded()
    drop = DropPath(0.25).train()
    out = drop(torch.ones(4000, 3, 2))
    assert {round(float(v), 4) for v in out.unique()} == {0.0, round(1 / 0.75, 4)}
    assert torch.equal(out.amax((1, 2)), out.amin((1, 2)))
    assert abs(float(out.mean()) - 1) < 0.05
    assert torch.equal(drop.eval()(torch.ones(2, 3)), torch.ones(2, 3))
    assert drop_path_rates(0.3, [1, 3]) == [[0.0], pytest.approx([0.1, 0.2, 0.3])]


def test_norm_scale_gate_and_mlp():
    _seeded()
    x = torch.randn(2, 5, 4, 3)
    norm = LayerNorm2d(5)(x)
    assert torch.allclose(norm.mean(1), torch.zeros(2, 4, 3), atol=1e-6)
    assert torch.allclose(norm.var(1, unbiased=False), torch.ones(2, 4, 3), atol=1e-3)
    assert torch.equal(LayerScale(5, 0.5, axis=1)(x), 0.5 * x)
    assert torch.equal(LayerScale(3, 2.0)(x), 2 * x)
    gate = SqueezeExcite(5, 2)(x) / x
    assert torch.allclose(gate, gate[:, :, :1, :1].expand_as(gate), atol=1e-5) and 0 < float(gate.detach().min()) < 1
    assert Mlp(6, 2)[0].out_features == 12


@pytest.mark.parametrize("fused", [False, True])
def test_attention_by_kernel_equals_attention_step_by_step(fused):
    _seeded()
    quick, slow = SelfAttention(12, 3, fused=fused), SelfAttention(12, 3, fused=fused, tap_weights=True)
    slow.load_state_dict(quick.state_dict())
    x, mask = torch.randn(2, 5, 12), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    rows = []
    slow.weights.register_forward_hook(lambda *args: rows.append(args[2]))
    assert torch.allclose(quick(x, mask), slow(x, mask), atol=1e-6)
    assert rows[0].shape == (2, 3, 5, 5) and float(rows[0][0, :, :, 3:].detach().abs().max()) == 0
    assert torch.allclose(rows[0].sum(-1), torch.ones(2, 3, 5))


def test_masked_tokens_are_not_read_and_a_row_without_keys_is_finite():
    _seeded()
    block = TransformerBlock(8, 2)
    x, mask = torch.randn(2, 4, 8), torch.tensor([[True, True, False, True]] * 2)
    changed = x.clone()
    changed[:, 2] = torch.randn(2, 8)
    seen = [0, 1, 3]
    assert torch.equal(block(x, mask)[:, seen], block(changed, mask)[:, seen])
    assert not torch.allclose(block(x)[:, seen], block(changed)[:, seen])
    assert block(x, torch.zeros(2, 4)).isfinite().all()
    causal = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    assert torch.equal(block(x, causal)[:, :2], block(changed, causal)[:, :2])
    with pytest.raises(InputError, match="2 to 4 dimensions"):
        block(x, torch.ones(4))
    with pytest.raises(InputError, match="3 heads do not divide"):
        SelfAttention(8, 3)


def test_cross_attention_reads_the_context_alone():
    _seeded()
    cross = CrossAttention(8, 2, context_dim=6)
    x, context, mask = torch.randn(2, 3, 8), torch.randn(2, 4, 6), torch.tensor([[1, 0, 1, 1]] * 2)
    other = context.clone()
    other[:, 1] = 9
    assert torch.equal(cross(x, context, mask), cross(x, other, mask))
    one = torch.zeros(2, 4).index_fill(1, torch.tensor(2), 1)
    wanted = cross.out(cross.value(context[:, 2:3])).expand(2, 3, 8)
    assert torch.allclose(cross(x, context, one), wanted, atol=1e-6)


def test_patches_are_in_raster_order_for_images_and_clips():
    _seeded()
    image = torch.randn(1, 3, 8, 12)
    embed = PatchEmbed(3, 5, 4)
    tokens = embed(image)
    second = F.linear(image[:, :, :4, 4:8].flatten(1), embed.proj.weight.flatten(1), embed.proj.bias)
    assert tokens.shape == (1, 6, 5) and torch.allclose(tokens[:, 1], second, atol=1e-5)
    clip = torch.randn(1, 1, 4, 4, 4)
    video = PatchEmbed(1, 5, (2, 2, 2))
    late = F.linear(clip[:, :, 2:, :2, :2].flatten(1), video.proj.weight.flatten(1), video.proj.bias)
    assert torch.allclose(video(clip)[:, 4], late, atol=1e-5)
    overlap, wide = OverlapPatchEmbed(3, 5, 2), PatchEmbed(3, 5, 7, 4, 2)
    assert overlap(torch.zeros(1, 3, 7, 8)).shape == (1, 16, 5) and overlap.map_size((7, 8)) == (4, 4)
    assert embed.map_size((8, 12)) == (2, 3) and video.map_size((4, 4, 4)) == (2, 2, 2)
    assert wide.map_size((32, 30)) == tuple(wide.proj(torch.zeros(1, 3, 32, 30)).shape[2:])


def test_init_weights_leaves_convolutions_alone_where_told():
    _seeded()
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(4, 200))
    before = net[0].weight.clone()
    init_weights(net, convolutions=False)
    assert torch.equal(net[0].weight, before) and float(net[1].weight.std()) < 0.03 and not net[1].bias.any()


def test_sine_tables_and_their_resizing():
    table = sincos_positions((3, 4), 8)
    assert table.shape == (12, 8)
    assert torch.equal(table[5], torch.cat([sincos_positions((3,), 4)[1], sincos_positions((4,), 4)[1]]))
    assert torch.allclose(sincos_positions((5,), 2)[3], torch.tensor([3.0]).sin().new_tensor([0.14112, -0.98999]), atol=1e-4)
    assert sincos_positions((2, 4, 4), 48).shape == (32, 48) and sincos_positions((2, 2, 2), 16).shape == (
        8,
        16,
    )
    assert resize_positions(table, (3, 4), (3, 4)) is table
    assert resize_positions(table, (3, 4), (6, 8)).shape == (48, 8)
    flat = resize_positions(torch.ones(8, 3), (2, 2, 2), (4, 2, 3))
    assert torch.allclose(flat, torch.ones(24, 3))
    with pytest.raises(InputError, match="cannot serve"):
        resize_positions(table, (3, 4), (3, 4, 1))


def test_rotary_scores_depend_on_distances_alone():
    _seeded()
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(i: int, j: int) -> float:
        return float((rotate(q, *rotary_angles(torch.tensor([[i]]), 8)) * rotate(k, *rotary_angles(torch.tensor([[j]]), 8))).sum())

    assert score(3, 1) == pytest.approx(score(10, 8), abs=1e-5)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)
