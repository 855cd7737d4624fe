from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.layers import DropPath
from tutelage.systems._backbone import count_parameters, create, create_on_meta
from tutelage.systems.convnext import ConvNeXt, ConvNeXtBlock

SMALL = {"depths": (1, 2, 1), "dims": (8, 12, 16), "stem": 4}


def test_a_block_is_the_published_equation_in_channels_first_form() -> None:
    torch.manual_seed(0)
    block, x = ConvNeXtBlock(6, layer_scale=0.5), torch.randn(2, 6, 9, 11)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
    y = F.conv2d(x, block.dwconv.weight, block.dwconv.bias, padding=3, groups=6)
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    y = y * block.norm.weight.view(-1, 1, 1) + block.norm.bias.view(-1, 1, 1)
    y = F.gelu(F.conv2d(y, block.pwconv1.weight[..., None, None], block.pwconv1.bias))
    y = F.conv2d(y, block.pwconv2.weight[..., None, None], block.pwconv2.bias)
    assert torch.allclose(block(x), x + block.gamma.view(-1, 1, 1) * y, atol=1e-5)


def test_at_the_start_a_block_is_nearly_the_identity() -> None:
    torch.manual_seed(0)
    network, x = ConvNeXt(10, **SMALL), torch.randn(2, 8, 8, 8)
    assert (network.stages[0](x) - x).abs().max() < 1e-5
    without = ConvNeXt(10, layer_scale=None, **SMALL)
    assert without.stages[0][0].gamma is None and (without.stages[0](x) - x).abs().max() > 1e-4


@pytest.mark.parametrize("size", [(16, 16), (48, 32), (64, 64)])
def test_any_size_that_the_stages_divide_works(size: tuple[int, int]) -> None:
    network = ConvNeXt(10, 1, **SMALL)
    features = network.forward_features(torch.randn(1, 1, *size))
    assert [f.stride for f in features] == [4, 8, 16]
    assert [tuple(f.maps.shape[1:]) for f in features] == [(c, size[0] // s, size[1] // s) for c, s in zip((8, 12, 16), (4, 8, 16))]
    with pytest.raises(InputError, match="16x16 fits"):
        network(torch.zeros(1, 1, 16, 20))


def test_the_mini_size_is_as_large_as_said() -> None:
    assert count_parameters(create_on_meta("convnext:mini", 10)) == pytest.approx(592_000, rel=2e-3)


def test_stochastic_depth_rises_over_the_blocks_and_sleeps_in_eval_mode() -> None:
    network = ConvNeXt(10, drop_path=0.3, **SMALL)
    rates = [module.rate for module in network.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    images = torch.randn(3, 3, 16, 16)
    assert torch.equal(network.eval()(images), network(images))


def test_weights_start_as_published() -> None:
    torch.manual_seed(0)
    network = create("convnext:mini", 10, head_init_scale=0.001)
    assert network.head.weight.std().item() == pytest.approx(2e-5, rel=0.1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias.count_nonzero() == 0 and module.weight.abs().max() <= 2
    assert network.stages[3][0].pwconv1.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_the_original_names_of_weights() -> None:
    names = set(ConvNeXt(10, **SMALL).state_dict())
    assert {"downsample_layers.0.1.weight", "downsample_layers.1.1.bias", "stages.1.1.gamma", "stages.0.0.dwconv.weight",
            "stages.2.0.pwconv2.bias", "norm.weight", "head.bias"} <= names  # fmt: skip


def test_the_same_logits_as_the_library_with_its_weights() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 12, 16], depths=[1, 2, 1], num_stages=3, num_labels=5, layer_scale_init_value=0.5, hidden_act="gelu"
    )
    theirs = transformers.ConvNextForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.2)
    ours, images = ConvNeXt(5, **SMALL).load_converted(theirs.state_dict(), "hf"), torch.randn(2, 3, 32, 48)
    expected = theirs(images).logits
    assert torch.allclose(ours(images), expected, atol=1e-4 * expected.abs().max().item())
    with pytest.raises(InputError, match="build the same size"):
        ConvNeXt(6, **SMALL).load_converted(theirs.state_dict(), "hf")
    with pytest.raises(InputError, match="no weights from 'tf'"):
        ours.load_converted({}, "tf")
