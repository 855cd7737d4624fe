from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tutelage.errors import InputError
from tutelage.systems._backbone import count_macs, count_parameters, create, create_on_meta, published
from tutelage.systems._toy import build_with_seed
from tutelage.systems.spartan import ChannelMixer, MeanContrast, SpatialMixer, WaveModulation

MINI = {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 128)}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(real: float, imaginary: float, channels: int = 6) -> WaveModulation:
    made = WaveModulation(channels)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([real, imaginary]).expand(channels // 2, 2))
    return made


def test_published_size() -> None:
    (name, size), network = *published("spartan").items(), create_on_meta("spartan:3.8m")
    assert name == "3.8m" and count_parameters(network) == size.parameters == 3_820_296
    assert count_macs(network, 224) == pytest.approx(0.800e9, rel=0.002)
    assert count_macs(network, 256) == pytest.approx(1.044e9, rel=0.002)


def test_the_mini_size() -> None:
    assert count_parameters(create("spartan", 10, 3, **MINI)) == pytest.approx(312_000, rel=0.01)


def test_the_wave_turns_pairs() -> None:
    x = noise(2, 6, 3, 3)
    assert torch.equal(wave(1, 0)(x), x)
    turned = wave(0, 1)(x)
    assert torch.equal(turned[:, 0::2], -x[:, 1::2]) and torch.equal(turned[:, 1::2], x[:, 0::2])
    assert wave(1, 0)(x.bfloat16()).dtype == torch.bfloat16


@given(st.floats(0, 6.3), st.integers(0, 1000))
def test_a_weight_of_modulus_one_keeps_the_norm_of_each_pair(angle: float, seed: int) -> None:
    x, made = noise(2, 6, 3, 3, seed=seed), wave(float(torch.cos(torch.tensor(angle))), float(torch.sin(torch.tensor(angle))))
    before, after = (y.unflatten(1, (3, 2)).norm(dim=2) for y in (x, made(x)))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_contrast_never_moves_the_mean() -> None:
    x, contrast = noise(2, 4, 5, 5), MeanContrast(4)
    with torch.no_grad():
        contrast.gain.fill_(3.0)
        torch.testing.assert_close(contrast(x).mean((2, 3)), x.mean((2, 3)))
        assert (contrast(x) - x).abs().max() > 1
        contrast.gain.zero_()
        assert torch.equal(contrast(x), x)


def test_blocks_start_close_to_the_identity() -> None:
    network = build_with_seed(lambda: create("spartan", 10, 3, **MINI), 0).eval()
    x = noise(2, 16, 8, 8)
    block = network.stages[0][0]
    assert 0 < (block(x) - x).abs().max() < 1e-2


@pytest.mark.parametrize(("part", "reach"), [("high", 3), ("low", 9)])
@pytest.mark.parametrize("dense", [True, False])
def test_reach_of_the_branches(part: str, reach: int, dense: bool) -> None:
    mixer = build_with_seed(lambda: SpatialMixer(16, dense), 0).eval()
    branch = nn.Sequential(*list(getattr(mixer, part))[:-1])  # without the gate, which sees all
    x = noise(1, 8, 15, 15).requires_grad_()
    (slope,) = torch.autograd.grad(branch(x)[..., 7, 7].sum(), x)
    seen = slope[0].abs().sum(0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [reach, reach]
    joined = torch.autograd.grad(mixer.exit(torch.cat([mixer.high(x), mixer.low(x)], 1))[..., 7, 7].sum(), x)[0]
    assert joined.abs().sum() > 0


def test_the_strongest_channel_is_added_to_all() -> None:
    """By hand: one place, C = 2 of e = 4 channels; the index points at the input's larger channel."""
    mixer = build_with_seed(lambda: ChannelMixer(8, 2, 8, wave=False), 0).eval()
    seen: list[Tensor] = []
    mixer.local.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = noise(2, 8, 3, 3)
    mixer(x)
    phi, w = torch.nn.functional.gelu(mixer.phase(x)), mixer.amplitude(x)
    for image in range(2):
        for row in range(3):
            for column in range(3):
                best = int(x[image, :, row, column].argmax())
                wanted = w[image, :, row, column] * phi[image, :, row, column]
                wanted = wanted + w[image, best, row, column] * phi[image, best, row, column]
                torch.testing.assert_close(seen[0][image, :, row, column], wanted)


def test_gradient_flows_through_the_picked_channel_alone() -> None:
    mixer = build_with_seed(lambda: ChannelMixer(8, 2, 8, wave=False), 0).eval()
    kept: dict[str, Tensor] = {}
    mixer.phase.register_forward_hook(lambda module, inputs, output: output.retain_grad() or kept.update(phi=output))
    mixer.local.register_forward_pre_hook(lambda module, inputs: kept.update(f=inputs[0]))
    x = noise(1, 8, 1, 1)
    mixer(x)
    other = (int(x.argmax()) + 1) % 8
    (slope,) = torch.autograd.grad(kept["f"][0, 15, 0, 0], kept["phi"])  # channel 15 depends on itself and on the best
    assert set(slope[0, :, 0, 0].nonzero()[:, 0].tolist()) == {15, int(x.argmax())} and slope[0, other] == 0


def test_dense_convolutions_in_the_first_half_of_the_stages() -> None:
    network = create_on_meta("spartan:3.8m")
    groups = [stage[-1].spatial.high[0].groups for stage in network.stages]
    assert groups == [1, 1, 64, 128]
    assert [stage[-1].channel.local[0].groups for stage in network.stages] == [128, 256, 128, 256]
    rates = [block.drop.rate for stage in network.stages for block in stage if hasattr(block, "drop")]
    assert rates == pytest.approx([0.1 * i / 20 for i in range(20)])


@pytest.mark.parametrize(("side", "sides"), [(32, [8, 4, 2, 1]), (29, [8, 4, 2, 1]), (60, [15, 7, 3, 1])])
def test_odd_maps_lose_their_last_row(side: int, sides: list[int]) -> None:
    network = build_with_seed(lambda: create("spartan", 10, 3, **MINI), 0).eval()
    features = network.forward_features(noise(1, 3, side, side))
    assert [feature.maps.shape[-1] for feature in features] == sides
    assert network(noise(1, 3, side, side)).isfinite().all()


def test_bad_input() -> None:
    network = create("spartan", 10, 3, **MINI)
    with pytest.raises(InputError, match="29"):
        network(noise(1, 3, 28, 28))
    with pytest.raises(InputError, match="channels"):
        network(noise(1, 1, 32, 32))
    with pytest.raises(InputError, match="multiple of 8"):
        create("spartan", 10, 3, dims=(12, 32, 64, 128))
