from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.generalized_convolution import DISTANCES, GeneralizedCNN, GeneralizedConv2d, Kind, Monotone, WeightedL1

KINDS = get_args(Kind)


def layer(kind: Kind, inputs: int = 3, outputs: int = 5, size: int = 3, **options: Any) -> GeneralizedConv2d:
    """A layer in float64 whose every parameter is random."""
    made = build_with_seed(lambda: GeneralizedConv2d(inputs, outputs, size, kind=kind, **options), 0, kind).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return made


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def written_out(made: GeneralizedConv2d, x: Tensor) -> Tensor:
    """s(u, w) from unfolded patches, coordinate by coordinate."""
    u, w = made.patches(x)[:, :, None], made.weight.flatten(1)
    dot = (u * w).sum(-1)
    if made.kind in DISTANCES:
        g = made.g.expand_as(made.weight).flatten(1)
        distance = (g * (u - w).abs() ** (1 if made.kind in ("laplacian", "l1") else 2)).sum(-1)
    found = {
        "dot": lambda: dot,
        "polynomial": lambda: (F.softplus(made.raw_a) * dot + F.softplus(made.raw_c)) ** made.power,
        "gaussian": lambda: (-distance).exp(),
        "laplacian": lambda: (-distance).exp(),
        "l2": lambda: -distance,
        "l1": lambda: -distance,
        "mixed": lambda: (1 - made.mix) * dot - made.mix * (u - w).square().sum(-1),
        "sine": lambda: (dot + made.phase).sin(),
    }[made.kind]()
    sides = nn.Conv2d(x.shape[1], 1, made.kernel_size, made.stride, made.padding, made.dilation).double()(x).shape[2:]
    return found.transpose(1, 2).unflatten(2, sides)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2}, {"weigh_each": False}])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_its_formula(kind: Kind, options: dict[str, Any]) -> None:
    made, x = layer(kind, **options), images(2, 3, 7, 8)
    expected = written_out(made, x)
    assert torch.allclose(made.similarity(x), expected, rtol=1e-9, atol=1e-9)
    assert torch.allclose(made(x), expected + made.bias.view(-1, 1, 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("kind", ["l2", "l1", "dot"])
def test_padding_is_as_asked(kind: Kind, mode: Any) -> None:
    made, x = layer(kind, padding=1, padding_mode=mode), images(2, 3, 6, 6)
    plain = layer(kind)
    plain.load_state_dict(made.state_dict())
    assert torch.allclose(made(x), plain(F.pad(x, [1] * 4, mode=mode)), atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
def test_dot_is_a_convolution_with_its_gradients(stride: int, padding: int, dilation: int) -> None:
    made = GeneralizedConv2d(3, 5, 3, stride, padding, dilation, kind="dot")
    plain = nn.Conv2d(3, 5, 3, stride, padding, dilation)
    plain.load_state_dict(made.state_dict())
    x, y = (torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    found, expected = made(x), plain(y)
    found.square().sum().backward(), expected.square().sum().backward()
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(x.grad, y.grad, atol=1e-5) and torch.allclose(made.weight.grad, plain.weight.grad, atol=1e-4)


@pytest.mark.parametrize("weigh_each", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(kind: Kind, weigh_each: bool) -> None:
    options = {"learn_mix": True} if kind == "mixed" else {}
    made, x = layer(kind, 2, 3, 2, weigh_each=weigh_each, monotone="affine", **options), images(1, 2, 4, 3).requires_grad_()
    names = [name for name, _ in made.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(made, dict(zip(names, values)), (x,))

    assert torch.autograd.gradcheck(run, (x, *made.parameters()))


def test_distances_are_zero_at_the_template_and_negative_elsewhere() -> None:
    for kind in DISTANCES:
        for weigh_each in (True, False):
            made = layer(kind, weigh_each=weigh_each).float()
            matching = made.weight.detach()[:1].clone()
            away = made.similarity(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
            here = made.similarity(matching)[0, 0].item()
            if kind in ("l1", "l2"):
                assert (away <= 0).all() and here == pytest.approx(0, abs=1e-5)
            else:
                assert (away >= 0).all() and (away <= 1).all() and here == pytest.approx(1, abs=1e-5)
    assert layer("l1").similarity(layer("l1").weight.detach()[:1])[0, 0].item() == 0


def test_kernels_give_positive_semi_definite_matrices() -> None:
    patches = images(40, 12)
    for kind in ("dot", "polynomial", "gaussian", "laplacian"):
        made = layer(kind, 12, 40, 1)
        with torch.no_grad():
            made.weight.copy_(patches[:, :, None, None])
            for name, parameter in made.named_parameters():
                if name.startswith("raw"):
                    parameter.copy_(parameter[:1].expand_as(parameter))
        matrix = made.similarity(patches[:, :, None, None]).flatten(1)
        assert torch.allclose(matrix, matrix.T)
        values = torch.linalg.eigvalsh(matrix)
        assert values[0] > -1e-9 * values[-1]


def test_the_inner_product_is_a_shifted_distance() -> None:
    x, dot = images(2, 3, 6, 6), layer("dot")
    with_mix = {mix: layer("mixed", mix=mix) for mix in (0.0, 0.3, 1.0)}
    for made in with_mix.values():
        made.load_state_dict(dot.state_dict())
    energy = dot.patches(x).square().sum(-1)[:, None].unflatten(2, (4, 4))
    weights = dot.weight.square().sum((1, 2, 3)).view(-1, 1, 1)
    distance = -with_mix[1.0].similarity(x)
    assert torch.allclose(dot.similarity(x), -distance / 2 + weights / 2 + energy / 2)
    assert torch.allclose(with_mix[0.0].similarity(x), dot.similarity(x))
    assert torch.allclose(with_mix[0.3].similarity(x), 1.3 * dot.similarity(x) - 0.3 * energy - 0.3 * weights)


@pytest.mark.parametrize("monotone", get_args(Monotone))
@pytest.mark.parametrize("kind", ["l2", "l1", "dot"])
def test_an_increasing_h_keeps_the_best_position(kind: Kind, monotone: Monotone) -> None:
    made, x = layer(kind, monotone=monotone), images(3, 3, 8, 8) / 2
    assert torch.equal(made(x).flatten(2).argmax(-1), made.similarity(x).flatten(2).argmax(-1))


def test_chunks_change_nothing() -> None:
    u, w, g = images(2, 6, 7), images(5, 7), images(5, 7).abs()
    slope = images(2, 6, 5)
    results = []
    for chunk in (1, 2, 5, 9):
        leaves = [value.clone().requires_grad_() for value in (u, w, g)]
        found = WeightedL1.apply(*leaves, chunk)
        found.backward(slope)
        results.append((found, leaves[1].grad, leaves[2].grad, leaves[0].grad))
    for found, dw, dg, du in results[1:]:
        first = results[0]
        assert torch.equal(found, first[0]) and torch.equal(dw, first[1]) and torch.equal(dg, first[2])
        assert torch.allclose(du, first[3], atol=1e-14)  # a sum over filters, in another order


def test_the_expanded_form_loses_few_digits_at_ordinary_sizes_and_stays_a_distance() -> None:
    made, x = layer("l2"), images(2, 3, 8, 8)
    exact = made.similarity(x)
    single = layer("l2").float()
    assert torch.allclose(single.similarity(x.float()).double(), exact, rtol=1e-4, atol=1e-4)
    far = GeneralizedConv2d(3, 5, 3, kind="gaussian")
    with torch.no_grad():
        far.weight.add_(1000)
    found = far(far.weight.detach())
    assert found.isfinite().all() and (found <= 1).all()


def test_templates_come_from_patches_that_are_not_flat() -> None:
    made = GeneralizedConv2d(1, 6, 3, kind="l1")
    x = torch.zeros(2, 1, 8, 8)
    x[1, 0, 4, 4] = 1
    made.draw_templates(x, torch.Generator().manual_seed(0))
    assert (made.weight.flatten(1).sum(1) == 1).all()
    with pytest.raises(InputError, match="flat"):
        made.draw_templates(torch.zeros(1, 1, 8, 8), torch.Generator())


def test_the_network_starts_from_its_own_inputs_and_keeps_its_statistics() -> None:
    network, data = build_with_seed(lambda: GeneralizedCNN(4, 1, kind="l2"), 0, "net"), toy_images(0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.draw_templates(data.inputs, 0)
    after = network.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"layers.0.0.weight", "layers.1.0.weight"}
    assert network(data.inputs).shape == (64, 4)
    assert [tuple(f.maps.shape[1:]) for f in network.forward_features(data.inputs)] == [(16, 4, 4), (32, 2, 2)]
    start = GeneralizedConv2d(4, 3, 3, sharpness=8)
    assert start.g.mean().item() == pytest.approx(8 / 36)


def test_options_that_make_no_sense_are_refused() -> None:
    for options, message in (
        ({"kind": "lapacian"}, "did you mean laplacian"),
        ({"monotone": "sine"}, "known"),
        ({"mix": 2.0}, "mix"),
        ({"power": 0}, "power"),
    ):
        with pytest.raises(InputError, match=message):
            GeneralizedConv2d(1, 1, 1, **options)
