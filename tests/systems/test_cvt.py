from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import InputError
from tutelage.networks.layers import DropPath
from tutelage.systems.cvt import ConvProjection, CvT, CvTAttention, CvTBlock, quick_gelu

MINI: dict[str, Any] = CvT.options("mini")


def wild(module: nn.Module) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.normal_(std=0.3)
    return module.eval()


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 4)])
@pytest.mark.parametrize("classes", [0, 1])
def test_keys_are_about_a_quarter_of_the_queries(size: tuple[int, int], classes: int) -> None:
    attention, count = CvTAttention(12, 3), size[0] * size[1]
    q, k, v = attention.project(torch.randn(2, count + classes, 12), size)
    assert q.shape[1] == count + classes
    assert k.shape == v.shape == (2, -(-size[0] // 2) * -(-size[1] // 2) + classes, 12)
    assert attention(torch.randn(2, count + classes, 12), size).shape == (2, count + classes, 12)


@pytest.mark.parametrize("classes", [0, 1])
def test_with_delta_kernels_a_block_is_an_ordinary_transformer_block(classes: int) -> None:
    block = wild(CvTBlock(12, 3, 0.0, kv_stride=1, quick=False, convolutional=True))
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, ConvProjection):
                module.conv.weight.zero_()[:, :, 1, 1] = 1
                module.bn.reset_parameters()
                module.bn.eps = 0.0
    x = torch.randn(2, 20 + classes, 12)
    y, attn = block.norm1(x), block.attn
    q, k, v = (part(y).view(2, -1, 3, 4).transpose(1, 2) for part in (attn.proj_q, attn.proj_k, attn.proj_v))
    mixed = (q @ k.transpose(-1, -2) / 12**0.5).softmax(-1) @ v
    y = x + attn.proj(mixed.transpose(1, 2).reshape(x.shape))
    expected = y + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(y))))
    assert torch.allclose(block(x, (5, 4)), expected, atol=1e-5)


def test_only_the_convolutions_know_where_a_token_is() -> None:
    x, order = torch.randn(2, 16, 12), torch.randperm(16, generator=torch.Generator().manual_seed(1))

    def moved(convolutional: bool) -> tuple[Tensor, Tensor]:
        block = wild(CvTBlock(12, 3, 0.0, kv_stride=2, quick=True, convolutional=convolutional))
        return block(x, (4, 4))[:, order], block(x[:, order], (4, 4))

    assert torch.allclose(*moved(False), atol=1e-5)
    assert not torch.allclose(*moved(True), atol=1e-2)


def test_the_same_weights_run_at_every_size() -> None:
    network = wild(CvT(10, **MINI))
    for size in ((32, 32), (48, 32), (64, 64)):
        features = network.forward_features(torch.randn(1, 3, *size))
        assert [tuple(f.maps.shape[1:]) for f in features] == [
            (32 * 2**i, size[0] // 2 ** (i + 1), size[1] // 2 ** (i + 1)) for i in range(3)
        ]
        assert network(torch.randn(1, 3, *size)).shape == (1, 10)
    with pytest.raises(InputError, match="32x32 fits"):
        network(torch.zeros(1, 3, 32, 36))
    with pytest.raises(InputError, match="3 heads do not divide 32"):
        CvT(10, **MINI | {"heads": (3, 2, 4)})
    with pytest.raises(InputError, match="one of each a stage"):
        CvT(10, **MINI | {"strides": (2, 2)})


def test_the_class_token_lives_in_the_last_stage_and_decides() -> None:
    network = wild(CvT(10, **MINI))
    assert [name for name, _ in network.named_parameters() if "cls_token" in name] == ["stage2.cls_token"]
    images = torch.randn(2, 3, 32, 32)
    before, maps = network(images), network.forward_features(images)
    with torch.no_grad():
        network.stage2.cls_token.normal_(generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(network(images), before, atol=1e-3)
    assert torch.equal(network.forward_features(images)[1].maps, maps[1].maps)


def test_stochastic_depth_rises_within_the_last_stage_alone() -> None:
    network = CvT(10, **MINI | {"depths": (2, 1, 3), "drop_path": 0.2})
    assert [module.rate for module in network.modules() if isinstance(module, DropPath)] == [0, 0, 0, 0, 0.1, 0.2]


def test_the_quick_gelu_is_near_the_exact_one() -> None:
    x = torch.linspace(-6, 6, 101)
    assert 1e-3 < (quick_gelu(x) - F.gelu(x)).abs().max() < 0.03


def test_the_same_logits_as_the_library_with_its_weights() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CvtConfig(
        embed_dim=[8, 12, 16], num_heads=[1, 3, 2], depth=[1, 2, 3], drop_path_rate=[0.0, 0.0, 0.0], num_labels=5
    )
    theirs = wild(transformers.CvtForImageClassification(config))
    ours = CvT(5, depths=(1, 2, 3), dims=(8, 12, 16), heads=(1, 3, 2), quick=False).load_converted(theirs.state_dict(), "hf")
    images = torch.randn(2, 3, 32, 48)
    expected = theirs(images).logits
    assert torch.allclose(ours(images), expected, atol=1e-4 * expected.abs().max().item())
    quick = CvT(5, depths=(1, 2, 3), dims=(8, 12, 16), heads=(1, 3, 2)).load_converted(theirs.state_dict(), "hf")
    assert not torch.allclose(quick(images), expected, atol=1e-4)
