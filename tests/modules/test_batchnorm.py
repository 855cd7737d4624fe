from __future__ import annotations

import torch
from torch import nn

from tutelage.modules.batchnorm import BatchNormed, add_batchnorm, fold_batchnorm

from .networks import ask, crops, find, loc, picture, verify, vqa


def lively(network: nn.Module) -> nn.Module:
    """Statistics and scales of a network that has been trained a while."""
    made = torch.Generator().manual_seed(3)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low in ((part.weight, 0.5), (part.bias, -0.5), (part.running_mean, -0.5), (part.running_var, 0.5)):
                tensor.data.copy_(torch.rand(tensor.shape, generator=made) + low)
    return network.eval()


def batches() -> list[tuple[nn.Module, dict[str, torch.Tensor]]]:
    images = crops(6)
    return [
        (loc().network, loc().encode([find(picture(i), "star") for i in range(3)])),
        (vqa().network, vqa().encode([ask(image, "What color is the star?") for image in images])),
        (verify().network, {"pixels": torch.rand(4, 3, 16, 16), "extent": torch.rand(4, 2), "words": torch.tensor([[1, 2]] * 4)}),
    ]


def test_a_folded_network_is_the_same_function() -> None:
    for network, batch in batches():
        young = lively(add_batchnorm(network))
        with torch.no_grad():
            expected, found = young(batch), fold_batchnorm(young)(batch)
        for name, head in expected.items():
            assert torch.allclose(head, found[name], atol=1e-4), name
            assert not torch.allclose(head, network(batch)[name], atol=1e-4), "the normalisation did nothing"


def test_folding_gives_back_the_parameters_of_the_plain_network() -> None:
    for network, _ in batches():
        young = add_batchnorm(network)
        assert any(isinstance(part, BatchNormed) for part in young.modules())
        assert not any(isinstance(part, (BatchNormed, nn.BatchNorm2d)) for part in fold_batchnorm(young).modules())
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        assert {name: tensor.shape for name, tensor in fold_batchnorm(young).state_dict().items()} == shapes


def test_neither_touches_the_network_it_is_given() -> None:
    for network, batch in batches():
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        fold_batchnorm(lively(add_batchnorm(network)))(batch)
        assert list(before) == list(network.state_dict())
        assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in before.items())


def test_the_last_convolution_of_a_detector_is_left_alone() -> None:
    assert isinstance(add_batchnorm(loc().network).out, nn.Conv2d)
