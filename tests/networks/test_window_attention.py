"""Cosine attention in shifted windows: bounded, local, and of any size."""

from __future__ import annotations

import math

import pytest
import torch

from tutelage.errors import InputError
from tutelage.networks.window_attention import SwinBlock, WindowAttention


def test_the_cosine_is_scaled_by_at_most_100() -> None:
    attention = WindowAttention(8, 2, 4)
    torch.nn.init.constant_(attention.log_scale, 50.0)
    assert torch.allclose(attention.scale(), torch.tensor(100.0))
    bias = attention.position_bias()
    assert bias.shape == (2, 16, 16) and bias.min() >= 0 and bias.max() <= 16
    tokens = torch.randn(3, 16, 8)
    torch.nn.init.zeros_(attention.position_mlp[2].weight)
    attention.log_scale.data.fill_(math.log(10))
    # queries and keys of any length count by direction alone
    louder = WindowAttention(8, 2, 4)
    louder.load_state_dict(attention.state_dict())
    louder.qkv.weight.data[:16] *= 1000
    torch.testing.assert_close(louder(tokens), attention(tokens), atol=1e-5, rtol=1e-4)


def test_the_bias_depends_on_the_distance_alone() -> None:
    bias = WindowAttention(4, 1, 3).position_bias()[0]
    assert torch.equal(bias[0, 1], bias[4, 5]) and torch.equal(bias[0, 4], bias[4, 8])
    assert not torch.equal(bias[0, 1], bias[1, 0])


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 8), (8, 12), (5, 7), (3, 9), (1, 1)])
def test_any_size(size: tuple[int, int], shift: int) -> None:
    block = SwinBlock(8, 2, 4, shift)
    x = torch.randn(2, 8, *size, requires_grad=True)
    out = block(x)
    assert out.shape == x.shape and out.isfinite().all()
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 12), (7, 10)])
def test_a_position_reaches_its_own_window_alone(size: tuple[int, int], shift: int) -> None:
    """Windows start at ``shift`` modulo 4; nothing wraps around an edge, and padding is seen by nobody."""
    torch.manual_seed(0)
    block = SwinBlock(8, 2, 4, shift).double()
    x = torch.randn(1, 8, *size, dtype=torch.float64)
    before = block(x)
    for row, column in ((0, 0), (3, 5), (size[0] - 1, size[1] - 1), (0, size[1] - 1)):
        changed = x.clone()
        changed[:, :, row, column] += 1
        reached = (block(changed) - before).abs().amax(1)[0] > 1e-12
        rows = (torch.arange(size[0]) - shift).div(4, rounding_mode="floor") == (row - shift) // 4
        columns = (torch.arange(size[1]) - shift).div(4, rounding_mode="floor") == (column - shift) // 4
        assert torch.equal(reached, rows[:, None] & columns)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="num_heads"):
        WindowAttention(8, 3, 4)
