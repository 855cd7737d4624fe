from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.export import save_weights
from tutelage.errors import InputError
from tutelage.systems._backbone import count_macs, count_parameters, create, create_on_meta, published
from tutelage.systems._toy import build_with_seed
from tutelage.systems.unireplknet import BRANCHES, UniRepLKNet, UniRepLKNetBlock, centred_kernel, dense_kernel

MINI = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "kernels": ((3,), (13,), (9, 3), (7,))}


def lived(network: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with the numbers that training leaves behind: nothing at its start value."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.5, generator=rng)
                module.running_var.uniform_(0.2, 3, generator=rng)
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 or "scale" in name:
                parameter.copy_(parameter + 0.5 * torch.randn(parameter.shape, generator=rng))
    return network.eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def apart(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / one.abs().max()).item()


@pytest.mark.parametrize("size", ["a", "f", "p", "n", "t", "s", "b", "l", "xl"])
def test_published_sizes(size: str) -> None:
    sizes = published("unireplknet")
    for name in (size, f"{size}-deploy"):
        assert count_parameters(create_on_meta(f"unireplknet:{name}")) == sizes[name].parameters
    folded = create_on_meta(f"unireplknet:{size}-deploy")
    macs = count_macs(folded)
    assert macs == pytest.approx(sizes[f"{size}-deploy"].macs, rel=0.02)
    assert count_macs(create_on_meta(f"unireplknet:{size}")) > macs


@pytest.mark.parametrize("kernel", [3, 5, 7, 9, 11, 13, 15, 17])
def test_a_folded_block_is_the_block(kernel: int) -> None:
    block = lived(build_with_seed(lambda: UniRepLKNetBlock(8, kernel, 0.0, 1.0), kernel))
    folded = UniRepLKNetBlock(8, kernel, 0.0, 1.0, deploy=True).eval()
    folded.load_state_dict(block.folded_state())
    for side in (4, 20):
        x = noise(2, 8, side, side)
        assert apart(block(x) - x, folded(x) - x) < 1e-5
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@given(st.integers(1, 4), st.sampled_from([3, 5, 7]), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_a_dilated_kernel_is_a_dense_one_with_zeros(dilation: int, kernel: int, seed: int) -> None:
    weight, x = noise(3, 1, kernel, kernel, seed=seed).double(), noise(1, 3, 30, 30, seed=seed + 1).double()
    reach = (kernel - 1) * dilation + 1
    wanted = F.conv2d(x, weight, padding=reach // 2, dilation=dilation, groups=3)
    dense = centred_kernel(dense_kernel(weight, dilation), reach + 4)
    torch.testing.assert_close(F.conv2d(x, dense, padding=reach // 2 + 2, groups=3), wanted)


def test_no_branch_is_larger_than_its_kernel() -> None:
    for size, branches in BRANCHES.items():
        assert all((kernel - 1) * dilation + 1 <= size for kernel, dilation in branches)


@pytest.mark.parametrize("branches", [True, False])
def test_a_folded_network_is_the_network(branches: bool) -> None:
    network = lived(build_with_seed(lambda: UniRepLKNet(5, 1, **MINI, scale=1.0, branches=branches), 0))
    folded = network.folded()
    images = noise(8, 1, 32, 32)
    with torch.no_grad():
        said, again = network(images), folded(images)
        assert torch.equal(said.argmax(1), again.argmax(1))
        assert (said - again).abs().max() < 1e-4 and apart(said, again) < 1e-5
        for one, other in zip(network.forward_features(images), folded.forward_features(images)):
            assert apart(one.maps, other.maps) < 1e-5
    assert folded.folded() is folded
    assert count_parameters(folded) == count_parameters(UniRepLKNet(5, 1, **MINI, deploy=True))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert count_macs(folded, 32, 1) < count_macs(network, 32, 1) or not branches


def test_folding_leaves_the_network_and_the_global_generator_alone() -> None:
    network = lived(UniRepLKNet(5, 1, **MINI))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    network.folded()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_folding_refuses_training_mode() -> None:
    with pytest.raises(InputError, match="eval"):
        UniRepLKNet(5, 1, **MINI).train().folded()


def test_a_folded_file_can_be_loaded_and_a_wrong_one_says_what_it_is(tmp_path: Path) -> None:
    network = lived(UniRepLKNet(5, 1, **MINI))
    file = save_weights(network.folded(), tmp_path / "folded.safetensors")
    other = UniRepLKNet(5, 1, **MINI, deploy=True).load(file)
    images = noise(2, 1, 32, 32)
    assert torch.equal(other(images), network.folded()(images))
    with pytest.raises(InputError, match=r"mix\.bias|norm|last"):
        UniRepLKNet(5, 1, **MINI).load(file)


def test_stages_and_sizes() -> None:
    network = create("unireplknet", 5, 1, **MINI)
    for side, sides in ((32, [8, 4, 2, 1]), (45, [12, 6, 3, 2])):
        features = network.forward_features(noise(2, 1, side, side))
        assert [f.maps.shape[-1] for f in features] == sides
        assert [(f.name, f.stride, f.maps.shape[1]) for f in features] == network.feature_info
    with pytest.raises(InputError, match="channels"):
        network(noise(2, 3, 32, 32))


@pytest.mark.parametrize("options", [{"kernels": ((3,), (19,), (3,), (3,))}, {"depths": (1, 1)}])
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        UniRepLKNet(5, 1, **MINI | options)
