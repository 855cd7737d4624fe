from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.systems._backbone import count_macs, count_parameters, create_on_meta
from tutelage.systems.hornet import GlobalLocalFilter, GnConv, HorNet


def wild(module: nn.Module, biases: bool = True) -> nn.Module:
    """The module with large random weights, so that nothing hides behind a small start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=0.5) if biases or not name.endswith("bias") else parameter.zero_()
    return module


def test_the_widths_double_and_the_split_is_exact() -> None:
    for order in range(1, 6):
        conv = GnConv(32, order)
        assert conv.widths[-1] == 32 and all(b == 2 * a for a, b in zip(conv.widths, conv.widths[1:]))
        assert conv.widths[0] + sum(conv.widths) == 64 == conv.proj_in.out_channels
    with pytest.raises(InputError, match="multiples of 16"):
        GnConv(24, 5)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_without_biases_order_n_is_homogeneous_of_degree_n_plus_1(order: int) -> None:
    conv, x = wild(GnConv(16, order), biases=False).double(), torch.randn(2, 16, 9, 9, dtype=torch.float64)
    assert torch.allclose(conv(2 * x), 2 ** (order + 1) * conv(x), rtol=1e-10)


def test_order_1_is_one_gate() -> None:
    conv, x = wild(GnConv(6, 1)), torch.randn(2, 6, 8, 8)
    first, rest = conv.proj_in(x).chunk(2, 1)
    assert torch.allclose(conv(x), conv.proj_out(first * conv.dwconv(rest) / 3), atol=1e-5)


def test_the_recursion_written_out_for_order_3() -> None:
    conv, x = wild(GnConv(8, 3)), torch.randn(1, 8, 7, 7)
    p0, q0, q1, q2 = conv.proj_in(x).split([2, 2, 4, 8], 1)
    f0, f1, f2 = (conv.dwconv(torch.cat([q0, q1, q2], 1)) / 3).split([2, 4, 8], 1)
    expected = conv.proj_out(conv.pws[1](conv.pws[0](p0 * f0) * f1) * f2)
    assert torch.allclose(conv(x), expected, rtol=1e-5, atol=1e-4)


def test_the_cost_is_as_computed_and_bounded_in_every_order() -> None:
    channels, kernel, costs = 64, 7, []
    for order in range(1, 6):
        share = 2 * channels * (1 - 2**-order)
        cost = kernel**2 * share + channels**2 * (11 / 3 - 2 / 3 * 4 ** (1 - order)) + share
        with torch.device("meta"):
            conv = GnConv(channels, order)
        gates = sum(conv.widths)  # one product a channel of every gate, which no counter sees
        assert count_macs(conv, 8, channels) / 64 + gates == pytest.approx(cost)
        assert cost < 2 * kernel**2 * channels + 11 / 3 * channels**2 + 2 * channels
        costs.append(cost)
    assert costs == sorted(costs)
    assert [count_parameters(GnConv(64, n)) for n in range(1, 6)] == [15_680, 19_392, 20_736, 21_280, 21_520]


def window(module: nn.Module, channels: int, side: int) -> Tensor:
    """Where the middle output depends on the input: [side, side] of bool."""
    x = torch.randn(1, channels, side, side, dtype=torch.float64, requires_grad=True)
    module.double()(x)[0, :, side // 2, side // 2].sum().backward()
    return x.grad[0].abs().sum(0) > 1e-12


def test_a_7x7_operator_sees_its_window_and_the_global_one_everything() -> None:
    seen = window(wild(GnConv(8, 3)), 8, 15)
    expected = torch.zeros(15, 15, dtype=torch.bool)
    expected[4:11, 4:11] = True
    assert torch.equal(seen, expected)
    assert window(wild(GnConv(8, 3, filter_size=(15, 8))), 8, 15).all()


def test_a_spectral_filter_of_ones_changes_nothing_and_sizes_are_resized() -> None:
    layer, x = GlobalLocalFilter(8, (14, 8)), torch.randn(2, 4, 14, 14)
    with torch.no_grad():
        layer.complex_weight.zero_()[..., 0] = 1
    for images in (x, torch.randn(2, 4, 10, 12)):
        assert torch.allclose(layer.spectral(images), images, atol=1e-5) and not layer.spectral(images).is_complex()


def test_at_the_native_size_the_filter_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = wild(GlobalLocalFilter(8, (14, 8))), torch.randn(2, 4, 14, 14)
    spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(layer.complex_weight)
    expected = torch.fft.irfft2(spectrum, norm="ortho")

    def never(*args: object, **options: object) -> Tensor:
        raise AssertionError("resized")

    monkeypatch.setattr(F, "interpolate", never)
    assert torch.allclose(layer.spectral(x), expected, atol=1e-5)


def test_the_two_halves_are_interleaved() -> None:
    layer, x = wild(GlobalLocalFilter(4, (6, 4))), torch.randn(2, 4, 6, 6)
    near, far = layer.pre_norm(x).chunk(2, 1)
    near, far = layer.dw(near), layer.spectral(far)
    expected = layer.post_norm(torch.cat([near[:, :1], far[:, :1], near[:, 1:], far[:, 1:]], 1))
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_any_size_that_the_stages_divide_works() -> None:
    network = HorNet(5, 1, base=8, depths=(1, 1, 1), orders=(1, 2, 3), gf=32)
    assert isinstance(network.stages[2][0].gnconv.dwconv, GlobalLocalFilter)
    assert isinstance(network.stages[0][0].gnconv.dwconv, nn.Conv2d)
    for side in (16, 32, 48):
        features = network.forward_features(torch.randn(1, 1, side, side))
        assert [tuple(f.maps.shape[1:]) for f in features] == [(8 * 2**i, side // 4 // 2**i, side // 4 // 2**i) for i in range(3)]
        assert network(torch.randn(1, 1, side, side)).isfinite().all()


def test_the_mini_size_is_as_large_as_said() -> None:
    assert count_parameters(create_on_meta("hornet:mini", 10)) == pytest.approx(823_000, rel=2e-3)


def test_a_decoder_of_order_2_saves_operations() -> None:
    """A 3x3 convolution that smooths a pyramid's maps, and a g^nConv in its place: fewer MACs, the same shape."""
    with torch.device("meta"):
        plain, gated = nn.Conv2d(256, 256, 3, padding=1), GnConv(256, 2)
    saved = 1 - count_macs(gated, 16, 256) / count_macs(plain, 16, 256)
    assert saved == pytest.approx(1 - (3.5 * 256 + 49 * 1.5) / (9 * 256)) and saved > 0.5
    assert gated(torch.empty(1, 256, 16, 16, device="meta")).shape == (1, 256, 16, 16)
