"""Batch normalisation while a network is young, none afterwards.

Networks learn several times faster with batch normalisation, but its running statistics are state that training jobs on mixed
domains would disturb. So toy networks are trained with it and folded before use: a fixed network, and a faster one.
"""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class BatchNormed(nn.Sequential):
    """A convolution with its batch normalisation."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__(conv, nn.BatchNorm2d(conv.out_channels))


def add_batchnorm(network: nn.Module) -> nn.Module:
    """A copy of ``network`` with batch normalisation after every convolution but those called ``out``."""
    return _replace(copy.deepcopy(network), nn.Conv2d, lambda name, conv: conv if name == "out" else BatchNormed(conv))


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """A copy of a :func:`add_batchnorm` network with each normalisation folded into its convolution: the same function in
    eval mode, the same parameters as before :func:`add_batchnorm`."""
    network = copy.deepcopy(network).eval()
    return _replace(network, BatchNormed, lambda name, pair: fuse_conv_bn_eval(pair[0], pair[1]))


def _replace(network: nn.Module, kind: type[nn.Module], change) -> nn.Module:  # noqa: ANN001
    for name, child in list(network.named_children()):
        if isinstance(child, kind):
            setattr(network, name, change(name, child))
        else:
            _replace(child, kind, change)
    return network
