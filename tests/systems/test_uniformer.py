from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tutelage.errors import InputError
from tutelage.systems._backbone import count_macs, count_parameters, create, create_on_meta, published
from tutelage.systems._toy import build_with_seed
from tutelage.systems.uniformer import UniFormer
from tutelage.systems.uniformer.blocks import IMAGE, VIDEO, BlockState, GlobalBlock, LocalBlock, pooled_scores, pruned

MINI = {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16), "head": 8}
LIGHT = MINI | {"light": True, "stem": "light"}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(seed: int = 0, **config: object) -> UniFormer:
    """A network in eval mode whose layer norms, biases and token are not at their start values."""
    network = build_with_seed(lambda: UniFormer(5, 2, **config), seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * noise(*parameter.shape, seed=seed))
    return network.eval()


@pytest.mark.parametrize("size", list(UniFormer.VARIANTS))
def test_published_sizes(size: str) -> None:
    network, known = create_on_meta(f"uniformer:{size}"), published("uniformer")[size]
    assert count_parameters(network) == known.parameters
    assert count_macs(network) == pytest.approx(known.macs, rel=0.02)


def test_the_token_label_head_of_l() -> None:
    with_head, without = create_on_meta("uniformer:l", token_labels=True), create_on_meta("uniformer:l")
    assert count_parameters(with_head) - count_parameters(without) == 641_000


def test_attention_costs_most_where_maps_are_large() -> None:
    config = {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48), "head": 8}
    macs = {layout: count_macs(create_on_meta("uniformer", layout=layout, **config), 32) for layout in ("llgg", "gggg", "ggll")}
    assert macs["gggg"] == max(macs.values()) and macs["llgg"] < 0.8 * macs["gggg"] < macs["ggll"]


def test_strides_and_sizes() -> None:
    for config in (MINI, LIGHT, MINI | {"stem": "conv"}):
        network = made(**config)
        for shape in ((64, 64), (32, 96)):
            features = network.forward_features(noise(2, 2, *shape))
            assert [f.maps.shape[2:] for f in features] == [(shape[0] // s, shape[1] // s) for s in (4, 8, 16, 32)]
            assert [(f.name, f.stride, f.maps.shape[1]) for f in features] == network.feature_info


def test_a_centre_kernel_mixes_nothing() -> None:
    block = build_with_seed(lambda: LocalBlock(IMAGE, 8, 4.0, 0.0, None), 0).eval()
    with torch.no_grad():
        block.mix[1].weight.zero_()
        block.mix[1].weight[..., 2, 2] = 1
    x = noise(1, 8, 9, 9).requires_grad_()
    (slope,) = torch.autograd.grad(block.mix(block.norm1(x))[..., 4, 4].sum(), x)
    assert slope[0].abs().sum(0).nonzero().tolist() == [[4, 4]]


def test_attention_rows_sum_to_one() -> None:
    block = build_with_seed(lambda: GlobalBlock(IMAGE, 16, 8, 4.0, 0.0, None), 0).eval()
    tokens = noise(2, 6, 16)
    mixed, weights = block.attention.weighed(tokens)
    assert weights.shape == (2, 2, 6, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 6))
    torch.testing.assert_close(mixed, block.attention(tokens), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("kind", "reach"), [(LocalBlock, 7), (GlobalBlock, 15)])
def test_receptive_field(kind: type[nn.Module], reach: int) -> None:
    """A local block: 5x5 after 3x3, three pixels to each side; a global one sees the whole map."""
    head = (8,) if kind is GlobalBlock else ()
    block = build_with_seed(lambda: kind(IMAGE, 16, *head, 4.0, 0.0, None), 0).eval()
    x = noise(1, 16, 15, 15).requires_grad_()
    (slope,) = torch.autograd.grad(block(x)[..., 7, 7].sum(), x)
    seen = slope[0].abs().sum(0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [reach, reach]


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_only_the_position_encoding_tells_places_apart(seed: int) -> None:
    block = build_with_seed(lambda: GlobalBlock(IMAGE, 16, 8, 4.0, 0.0, None), seed).eval()
    x, order = noise(1, 16, 4, 4, seed=seed), torch.randperm(16, generator=torch.Generator().manual_seed(seed))

    def moved(maps: Tensor) -> Tensor:
        return maps.flatten(2)[..., order].unflatten(2, (4, 4))

    assert (block(moved(x)) - moved(block(x))).abs().max() > 1e-3
    with torch.no_grad():
        block.position.weight.zero_()
    torch.testing.assert_close(block(moved(x)), moved(block(x)), atol=1e-5, rtol=1e-4)


# -- the light form --------------------------------------------------------------------------------------------------


def carried(seed: int = 0, scores: bool = True) -> BlockState:
    weight = torch.rand(2, 16, generator=torch.Generator().manual_seed(seed)) if scores else None
    return BlockState(noise(2, 16, 4, 4, seed=seed), noise(2, 1, 16, seed=seed + 1), weight)


def test_pruning_that_keeps_all_is_the_plain_block() -> None:
    block = build_with_seed(lambda: GlobalBlock(IMAGE, 16, 8, 4.0, 0.0, None), 0).eval()
    start = carried()
    ended = pruned(block, start, 1.0)
    x = start.maps + block.position(start.maps)
    tokens, weights = block.weighed(torch.cat([start.token, x.flatten(2).transpose(1, 2)], 1))
    torch.testing.assert_close(ended.maps.flatten(2).transpose(1, 2), tokens[:, 1:])
    torch.testing.assert_close(ended.token, tokens[:, :1])
    torch.testing.assert_close(ended.scores, 0.5 * start.scores + 0.5 * weights[:, 0, 1:])


def test_the_first_pruning_block_only_looks() -> None:
    block = build_with_seed(lambda: GlobalBlock(IMAGE, 16, 8, 4.0, 0.0, None), 0).eval()
    start = carried(scores=False)
    ended = pruned(block, start, 0.5)
    torch.testing.assert_close(ended.maps, pruned(block, carried(), 1.0).maps)
    assert ended.scores.shape == (2, 16) and (ended.scores.sum(1) < 1).all()  # the rest of the row is the token's own


def test_pruning_by_hand() -> None:
    """Kept patches go through the block beside the merged one; the others all move by what the merged one gained."""
    block = build_with_seed(lambda: GlobalBlock(IMAGE, 16, 8, 4.0, 0.0, None), 3).eval()
    start = carried(5)
    ended = pruned(block, start, 0.5)
    x = (start.maps + block.position(start.maps)).flatten(2).transpose(1, 2)
    after = ended.maps.flatten(2).transpose(1, 2)
    for image in range(2):
        s = start.scores[image]
        kept = s.argsort(descending=True)[:8]
        rest = s.argsort(descending=True)[8:]
        merged = (s[rest, None] * x[image, rest]).sum(0) / s[rest].sum()
        given_in = torch.cat([start.token[image], x[image, kept], merged[None]])[None]
        tokens, weights = block.weighed(given_in)
        torch.testing.assert_close(after[image, kept], tokens[0, 1:9], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(after[image, rest], x[image, rest] + (tokens[0, 9] - merged), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ended.scores[image, rest], s[rest])
        torch.testing.assert_close(ended.scores[image, kept], 0.5 * s[kept] + 0.5 * weights[0, 0, 1:9])


def test_pooled_scores_keep_their_sum() -> None:
    scores = torch.rand(3, 24)
    small = pooled_scores(scores, (4, 6))
    assert small.shape == (3, 6)
    torch.testing.assert_close(small.sum(1), scores.sum(1))


def test_no_state_outlives_a_call() -> None:
    """Images alone, or after others, give the same logits; and so do two networks that take turns."""
    network, other = made(**LIGHT), made(1, **LIGHT)
    images = noise(4, 2, 64, 64)
    alone = network(images)
    other(images.flip(0))
    assert torch.equal(alone, network(images))
    torch.testing.assert_close(alone[1:2], network(images[1:2]), atol=1e-5, rtol=1e-4)


def test_heads() -> None:
    light = made(**LIGHT)
    said = light.heads(noise(2, 2, 64, 64))
    assert set(said) == {"logits", "token"} and said["token"].shape == (2, 5)
    torch.testing.assert_close(said["logits"], light(noise(2, 2, 64, 64)))
    dense = made(**MINI, token_labels=True)
    said = dense.heads(noise(2, 2, 64, 64))
    assert said["patches"].shape == (2, 4, 5)
    torch.testing.assert_close(dense(noise(2, 2, 64, 64)), said["logits"] + 0.5 * said["patches"].amax(1))
    torch.testing.assert_close(
        dense.train().forward_head(noise(2, 16, 2, 2)), dense.heads.__self__.forward_head(noise(2, 16, 2, 2))
    )


def test_the_light_form_learns_through_the_pruning() -> None:
    network = made(**LIGHT).train()
    sum(head.square().sum() for head in network.heads(noise(4, 2, 64, 64)).values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


# -- video -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["joint", "split"])
@pytest.mark.parametrize(("frames", "left"), [(8, 4), (5, 3), (1, 1)])
def test_clips(attention: str, frames: int, left: int) -> None:
    network = made(**MINI, video=True, attention=attention)
    features = network.forward_features(noise(2, 2, frames, 32, 32))
    assert [f.maps.shape[2:] for f in features] == [(left, 32 // s, 32 // s) for s in (4, 8, 16, 32)]
    assert network(noise(2, 2, frames, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_an_inflated_network_sees_a_still_clip_as_its_image(stem: str) -> None:
    image = made(**MINI, stem=stem)
    video = UniFormer(5, 2, **MINI, stem=stem, video=True).inflate(image).eval()
    still = noise(1, 2, 32, 32)
    flat = image.forward_features(still)[:2]  # convolutions: what the clip's ends do stays near them
    deep = video.forward_features(still[:, :, None].expand(-1, -1, 40, -1, -1))[:2]
    for one, other in zip(flat, deep):
        torch.testing.assert_close(other.maps[:, :, 10], one.maps, atol=1e-5, rtol=1e-4)


def test_attention_over_a_still_clip_is_that_over_its_image() -> None:
    flat, deep = (build_with_seed(lambda f=forms: GlobalBlock(f, 16, 8, 4.0, 0.0, None), 0).eval() for forms in (IMAGE, VIDEO))
    with torch.no_grad():
        for block in (flat, deep):
            block.position.weight.zero_()
            block.position.bias.zero_()
        deep.load_state_dict({k: v for k, v in flat.state_dict().items() if "position" not in k}, strict=False)
    x = noise(1, 16, 4, 4)
    clip = deep(x[:, :, None].expand(-1, -1, 3, -1, -1))
    torch.testing.assert_close(clip, flat(x)[:, :, None].expand_as(clip), atol=1e-5, rtol=1e-4)


def test_split_attention_starts_as_attention_within_frames() -> None:
    video = build_with_seed(lambda: UniFormer(5, 2, **MINI, video=True, attention="split"), 0).eval()
    block = video.stages[2][0]
    x = noise(1, 16, 3, 4, 4)
    with torch.no_grad():
        block.position.weight.zero_()
        block.position.bias.zero_()
        for frame in range(3):
            alone = block(x[:, :, frame : frame + 1])
            torch.testing.assert_close(block(x)[:, :, frame : frame + 1], alone, atol=1e-6, rtol=1e-5)
        block.time.out.weight.normal_(0, 0.5)
        assert (block(x)[:, :, :1] - block(x[:, :, :1])).abs().max() > 1e-4


def test_the_published_start_of_the_time_branch_cannot_learn() -> None:
    block = build_with_seed(lambda: GlobalBlock(VIDEO, 16, 8, 4.0, 0.0, None, split=True), 0)
    x, aim = noise(2, 16, 3, 4, 4), noise(2, 16, 3, 4, 4, seed=1)

    def slopes() -> list[float]:
        block.zero_grad()
        (block(x) * aim).sum().backward()
        return [block.time.qkv.weight.grad.abs().max().item(), block.time.out.weight.grad.abs().max().item()]

    nn.init.zeros_(block.time.out.weight)
    assert slopes()[1] > 1e-2
    nn.init.zeros_(block.time.qkv.weight)
    nn.init.ones_(block.time.out.weight)
    nn.init.zeros_(block.time.qkv.bias)
    assert max(slopes()) < 1e-5


def test_the_residual_of_split_attention_is_the_input() -> None:
    block = build_with_seed(lambda: GlobalBlock(VIDEO, 16, 8, 4.0, 0.0, None, split=True), 0).eval()
    with torch.no_grad():
        for last in (block.position, block.attention.out, block.mlp[-1]):
            last.weight.zero_()
            last.bias.zero_()
    x = noise(1, 16, 3, 4, 4)
    torch.testing.assert_close(block(x), x)


def test_a_moved_frame_changes_a_clip_that_an_image_network_cannot_tell() -> None:
    video = made(**MINI, video=True)
    clip = noise(1, 2, 8, 32, 32)
    assert (video(clip) - video(clip.flip(2))).abs().max() > 1e-4


# -- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    network = made(**MINI)
    with pytest.raises(InputError, match="64x32 fits"):
        network(noise(1, 2, 60, 32))
    with pytest.raises(InputError, match="in_chans=3"):
        network(noise(1, 3, 32, 32))
    with pytest.raises(InputError, match=r"\[B, C, T, H, W\]"):
        made(**MINI, video=True)(noise(1, 2, 32, 32))
    with pytest.raises(InputError, match="image network"):
        network.inflate(network)
    with pytest.raises(InputError, match="does not fit"):
        UniFormer(5, 2, **MINI | {"dims": (8, 8, 16, 32)}, video=True).inflate(network)


@pytest.mark.parametrize(
    "options",
    [
        {"head": 7},
        {"layout": "llg"},
        {"layout": "llxg"},
        {"light": True, "layout": "llll"},
        {"light": True, "video": True},
        {"keep": 0.0},
        {"attention": "split"},
        {"attention": "both"},
        {"stem": "wide"},
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        create("uniformer", 5, 2, **MINI | options)
