from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.optim import decay_exempt_names, layer_numbers
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.systems._backbone import count_macs, count_parameters, create, create_on_meta, published
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.tinyvit import CandidateScorer, ShrinkSteps, TinyViTNetwork, contract, neighbours, throughput
from tutelage.systems.tinyvit.network import TinyViTBlock, WindowAttention

SMALL: dict[str, Any] = {"dims": (8, 8, 16, 16), "depths": (1, 1, 2, 1), "windows": (4, 2, 2), "head_width": 8}
FULL = SMALL | {"mbconv_ratio": 4.0, "mlp_ratio": 4.0}


def network(seed: int = 0, **options: Any) -> TinyViTNetwork:
    return build_with_seed(lambda: TinyViTNetwork(4, 1, **{**SMALL, **options}), seed)


@pytest.mark.parametrize(("variant", "many"), [("5m", 12_082_725), ("11m", 20_354_581), ("21m", 33_223_825)])
def test_published_sizes(variant: str, many: int) -> None:
    size, made = published("tinyvit")[variant], create_on_meta(f"tinyvit:{variant}")
    assert count_parameters(made) == size.parameters
    assert count_macs(made) == pytest.approx(size.macs, rel=0.02)
    assert count_parameters(create_on_meta(f"tinyvit:{variant}", 21_841)) == many


def test_stages_of_strides_4_to_32() -> None:
    features = create("tinyvit", 4, 3, **SMALL).eval().forward_features(torch.randn(2, 3, 64, 32))
    assert [(f.name, f.stride, tuple(f.maps.shape)) for f in features] == [
        ("stages.0", 4, (2, 8, 16, 8)),
        ("stages.1", 8, (2, 8, 8, 4)),
        ("stages.2", 16, (2, 16, 4, 2)),
        ("stages.3", 32, (2, 16, 2, 1)),
    ]
    assert network().eval()(torch.randn(1, 1, 29, 7)).shape == (1, 4)


def by_hand(attention: WindowAttention, x: Tensor, side: int) -> Tensor:
    """Attention over one window, head by head, position by position."""
    width = x.shape[-1]
    head = width // attention.heads
    rows = attention.qkv(attention.norm(x)).view(len(x), side * side, attention.heads, 3, head)
    mixed = torch.zeros_like(x)
    for h in range(attention.heads):
        q, k, v = rows[:, :, h, 0], rows[:, :, h, 1], rows[:, :, h, 2]
        scores = q @ k.transpose(1, 2) * head**-0.5
        for i in range(side * side):
            for j in range(side * side):
                dy, dx = abs(i // side - j // side), abs(i % side - j % side)
                scores[:, i, j] += attention.attention_biases[h, dy * side + dx]
        mixed[..., h * head : (h + 1) * head] = scores.softmax(-1) @ v
    return attention.proj(mixed)


def test_attention_by_hand() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, 3)
    torch.nn.init.normal_(attention.attention_biases)
    assert attention.attention_biases.shape == (2, 9)
    x = torch.randn(2, 9, 8)
    torch.testing.assert_close(attention(x), by_hand(attention, x, 3))


@torch.no_grad()
def test_windows_see_themselves_alone_and_padding_is_a_normed_zero() -> None:
    torch.manual_seed(0)
    block = TinyViTBlock(8, 2, 2, 4.0, 0.0)
    torch.nn.init.normal_(block.attn.norm.bias)
    x = torch.randn(1, 3, 4, 8)
    attended = block._attended(x)
    torch.testing.assert_close(attended[:, :2, 2:].flatten(1, 2), block.attn(x[:, :2, 2:].flatten(1, 2)))
    lower = torch.cat([x[:, 2:, :2], torch.zeros(1, 1, 2, 8)], 1)
    torch.testing.assert_close(attended[:, 2, :2], block.attn(lower.flatten(1, 2))[:, :2])


def test_a_window_of_the_map_is_full_attention() -> None:
    torch.manual_seed(0)
    block, x = TinyViTBlock(8, 2, 3, 4.0, 0.0), torch.randn(2, 3, 3, 8)
    torch.testing.assert_close(block._attended(x).flatten(1, 2), by_hand(block.attn, x.flatten(1, 2), 3))


def test_biases_changed_in_eval_mode_count_at_once() -> None:
    made, images = network().eval(), torch.randn(1, 1, 32, 32)
    before = made(images)
    torch.nn.init.normal_(made.stages[1].blocks[0].attn.attention_biases)
    assert not torch.equal(made(images), before)


def test_an_inverted_bottleneck_starts_as_its_gelu() -> None:
    block, x = network().stages[0].blocks[0], torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x), torch.nn.functional.gelu(x))


def test_drop_path_rises_over_all_blocks() -> None:
    made = network(drop_path=0.4)
    rates = [block.drop.rate for stage in made.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_frozen_norms_keep_their_statistics_in_training() -> None:
    """Their gains and shifts learn, and an image's logits do not depend on its batch."""
    plain, frozen = network(), network(frozen_norm=True)
    data, settings = toy_images(0, 32, image_size=16), TrainingSettings(steps=4, batch_size=16, lr=1e-2)
    for made, still in ((plain, False), (frozen, True)):
        before = {name: value.clone() for name, value in made.state_dict().items()}
        train(TrainingJob(made, None, Supervised(), data, settings))
        moved = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
        assert any(name.endswith(("running_mean", "running_var")) for name in moved) != still
        assert {"patch_embed.conv1.bn.weight", "patch_embed.conv1.bn.bias"} <= moved
        made.train()
        images = torch.randn(4, 1, 16, 16)
        assert torch.allclose(made(images)[:2], made(images[:2]), atol=1e-5) == still
    assert not any(m.training for m in frozen.modules() if isinstance(m, torch.nn.BatchNorm2d)) and frozen.training


def test_layer_decay() -> None:
    made = network()
    numbers, spared = layer_numbers(made), decay_exempt_names(made)
    at = {name: (0.8 ** (4 - number), 0.0 if name in spared else 0.05) for name, number in numbers.items()}
    assert at["patch_embed.conv1.conv.weight"] == pytest.approx((0.8**4, 0.05))
    assert at["stages.0.blocks.0.conv1.conv.weight"] == pytest.approx((0.8**4, 0.05))
    assert at["stages.1.downsample.conv1.conv.weight"] == pytest.approx((0.8**4, 0.05))
    assert at["stages.2.downsample.conv1.conv.weight"] == pytest.approx((0.8**3, 0.05))
    assert at["stages.2.blocks.1.mlp.fc1.weight"] == pytest.approx((0.8**1, 0.05))
    assert at["stages.2.blocks.1.attn.attention_biases"] == pytest.approx((0.8**1, 0.0))
    assert at["head.fc.weight"] == (1.0, 0.05) and at["head.norm.weight"] == (1.0, 0.0)


def test_timms_weights_load_as_they_are() -> None:
    timm = pytest.importorskip("timm", reason="timm needs torchvision, which is no dependency")
    torch.manual_seed(0)
    theirs = timm.models.tiny_vit.TinyVit(
        num_classes=4, embed_dims=(32, 32, 64, 64), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_sizes=(7, 7, 4, 2)
    ).eval()
    ours = TinyViTNetwork(4, 3, (32, 32, 64, 64), (1, 1, 1, 1), (7, 4, 2)).eval()
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if not name.endswith("_idxs")})
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)


def test_the_network_learns() -> None:
    made = TinyViTNetwork.tiny_job(0)
    made.settings = replace(made.settings, steps=120, log_every=20)
    losses = [record["terms"]["label"] for record in train(made).history]
    assert losses[-1] < 0.5 * losses[0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="multiples of 8"):
        network(dims=(8, 12, 16, 16))
    with pytest.raises(InputError, match="4, 4 and 3"):
        network(windows=(7, 7))
    with pytest.raises(InputError, match="channels"):
        network()(torch.zeros(1, 3, 32, 32))
    with pytest.raises(InputError, match="windws"):
        create("tinyvit", windws=(7, 7, 7))


# -- the contraction search ------------------------------------------------------------------------------------------


def test_neighbours_have_one_factor_shrunk() -> None:
    found = dict(neighbours(FULL, ShrinkSteps(dims=4, min_head=4)))
    assert found["dims[0]"]["dims"] == (4, 8, 16, 16)
    assert found["dims[2]"]["dims"] == (8, 8, 8, 16), "whole heads"
    assert "dims[1]" not in found, "one head is the least"
    assert "depths[0]" not in found and found["depths[2]"]["depths"] == (1, 1, 1, 1)
    assert found["windows[0]"]["windows"] == (2, 2, 2) and "windows[1]" not in found
    assert (found["mbconv_ratio"]["mbconv_ratio"], found["mlp_ratio"]["mlp_ratio"]) == (3.0, 3.0)
    assert found["head_width"]["head_width"] == 4
    for name, sizes in found.items():
        key = name.partition("[")[0]
        assert {k for k in FULL if sizes[k] != FULL[k]} == {key}
        build_with_seed(lambda sizes=sizes: TinyViTNetwork(4, 1, **sizes), 0)
    assert not dict(neighbours(FULL, ShrinkSteps(0, 0, 0, 0, 0, 1)))


def test_the_best_neighbour_is_the_next_base() -> None:
    """A score that loves depth and hates wide MLPs: the MLP ratio goes first, then widths, never a block."""
    asked: list[int] = []

    def score(made: TinyViTNetwork) -> float:
        asked.append(count_parameters(made))
        mlp = made.stages[3].blocks[0].mlp
        return 10 * sum(len(stage.blocks) for stage in made.stages) - mlp.fc1.out_features / mlp.fc1.in_features

    start = count_parameters(network())
    path = contract(FULL, score, parameters=start - 3000, shrink=ShrinkSteps(dims=8, head_width=1), classes=4, in_chans=1)
    assert [step.shrunk for step in path][:3] == ["", "mlp_ratio", "mlp_ratio"]
    assert path[0].parameters == start and path[-1].parameters <= start - 3000 < path[-2].parameters
    assert all(step.sizes["depths"] == FULL["depths"] for step in path)
    assert sum(step.candidates for step in path) == len(asked)
    again = contract(FULL, score, parameters=start - 3000, shrink=ShrinkSteps(dims=8, head_width=1), classes=4, in_chans=1)
    assert again == path


def test_only_candidates_inside_the_limits_are_trained() -> None:
    start = count_parameters(network())
    scored: list[TinyViTNetwork] = []

    def score(made: TinyViTNetwork) -> float:
        scored.append(made)
        return 1.0

    def speed(made: TinyViTNetwork) -> float:
        return 100.0 if len(made.stages[2].blocks) == 1 else 10.0

    limits = {"classes": 4, "in_chans": 1, "shrink": ShrinkSteps(dims=8)}
    path = contract(FULL, score, parameters=start - 1, speed=speed, min_speed=50.0, **limits)
    assert [step.shrunk for step in path] == ["", "depths[2]"] and path[1].speed == 100.0
    assert len(scored) == 1 == path[1].candidates
    scored.clear()
    contract(FULL, score, parameters=start - 1, min_parameters=start - 600, **limits)
    assert scored and all(start - 600 <= count_parameters(made) < start for made in scored)


def test_a_search_that_cannot_end_well_is_refused() -> None:
    with pytest.raises(InputError, match="no neighbour"):
        contract(FULL, lambda made: 0.0, parameters=100, shrink=ShrinkSteps(depths=1, dims=0), classes=4, in_chans=1)
    with pytest.raises(InputError, match="at least"):
        contract(FULL, lambda made: 0.0, parameters=100, min_parameters=200)
    with pytest.raises(InputError, match="no mbconv_ratio"):
        contract(SMALL, lambda made: 0.0, parameters=100)


def test_a_brief_training_scores_on_images_held_out() -> None:
    images = toy_images(0, 64, image_size=16)
    data = TensorData(torch.cat([images.inputs, torch.arange(64.0).view(64, 1, 1, 1).expand(64, 1, 16, 16)], 1), images.labels)
    brief = CandidateScorer(data, TrainingSettings(steps=12, batch_size=16, lr=5e-3), 4, 2, holdout=0.25)
    kept, held = brief.split()
    assert (len(kept), len(held)) == (48, 16)
    numbers = torch.cat([part.inputs[:, 1, 0, 0] for part in (kept, held)])
    assert torch.equal(numbers.sort().values, torch.arange(64.0))
    assert torch.equal(brief.split()[1].inputs, held.inputs)
    plain = CandidateScorer(
        toy_images(0, 128, image_size=16), TrainingSettings(steps=60, batch_size=16, lr=5e-3), 4, 1, holdout=0.25
    )
    score = plain(network())
    assert score == plain(network()) and 25 < score <= 100


def test_throughput_is_positive() -> None:
    assert throughput(network(), 32, batch=2, rounds=1) > 0
