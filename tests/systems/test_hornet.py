from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tutelage.errors import InputError
from tutelage.networks.segmenter import Segmenter
from tutelage.systems._backbone import count_macs, count_parameters, create_on_meta
from tutelage.systems.hornet import GlobalLocalFilter, GnConv, GnDecoder, HorNet, HorNetPyramid


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


# -- the decoder -----------------------------------------------------------------------------------------------------


def pyramid_maps(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, channels, side, side, dtype=dtype) for channels, side in ((3, 12), (5, 6), (7, 3))]


def test_an_ordinary_pyramid_by_hand() -> None:
    decoder, (fine, middle, coarse) = wild(GnDecoder([3, 5, 7], 4, None)), pyramid_maps()
    top = decoder.lateral[2](coarse)
    second = decoder.lateral[1](middle) + top.repeat_interleave(2, 2).repeat_interleave(2, 3)
    third = decoder.lateral[0](fine) + second.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for found, conv, total in zip(decoder([fine, middle, coarse]), decoder.smooth, (third, second, top)):
        torch.testing.assert_close(found, conv(total))


def test_the_decoder_multiplies_as_its_order_says() -> None:
    """Without biases sums are linear and the gates of order n make degree n + 1."""
    maps = pyramid_maps(torch.float64)
    for order, degree in ((None, 1), (1, 2), (2, 3), (3, 4)):
        decoder = wild(GnDecoder([3, 5, 7], 4, order), biases=False).double()
        for found, doubled in zip(decoder(maps), decoder([2 * each for each in maps])):
            torch.testing.assert_close(doubled, 2**degree * found, rtol=1e-10, atol=1e-8)


def test_what_a_coarse_map_knows_reaches_the_finest_and_not_the_other_way() -> None:
    decoder, maps = wild(GnDecoder([3, 5, 7], 4)), [each.requires_grad_() for each in pyramid_maps()]
    finest, _, coarsest = decoder(maps)
    assert torch.autograd.grad(finest.sum(), maps[2], retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(coarsest.sum(), maps[0], allow_unused=True)[0] is None


@pytest.mark.parametrize(("dim", "saved"), [(64, 0.48), (256, 0.58)])
def test_the_decoder_saves_what_its_formula_says(dim: int, saved: float) -> None:
    cost = 3.5 * dim**2 + 1.5 * (7**2 + 1) * dim  # a place
    assert 1 - cost / (9 * dim**2) == pytest.approx(saved, abs=0.01)
    with torch.device("meta"):
        gated, plain = GnDecoder([dim], dim, 2), GnDecoder([dim], dim, None)

    def macs(decoder: GnDecoder) -> float:
        with FlopCounterMode(display=False) as counter:
            decoder([torch.zeros(1, dim, 8, 8, device="meta")])
        return counter.get_total_flops() / 2 / 64 - dim**2  # without the 1x1 convolution that both have

    assert macs(plain) == 9 * dim**2
    assert macs(gated) + 1.5 * dim == pytest.approx(cost)  # the counter sees no products of maps


def test_a_segmenter_on_the_pyramid_learns() -> None:
    torch.manual_seed(0)
    network = HorNet(4, 1, base=8, depths=(1, 1), orders=(2, 2), stem=2, layer_scale=0.1)
    segmenter = Segmenter(HorNetPyramid(network, 8), [8, 8], 2, 8)
    images = torch.rand(4, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    labels = (images[:, 0] > 0.5).long()
    optimizer = torch.optim.Adam(segmenter.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(segmenter(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    with pytest.raises(InputError, match="1 maps for a decoder of 2"):
        GnDecoder([3, 5], 4)(pyramid_maps()[:1])
