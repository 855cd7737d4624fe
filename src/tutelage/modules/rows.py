"""Rows of exercises, and networks that start from a seed: what the toy modules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.storage import fingerprint


def build_with_seed(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """The network that ``build`` makes when torch's generator starts at ``seed``; the generator itself is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().to(memory_format=torch.channels_last)


def as_float(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in 0..1; float ones as they are."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels


def group_by_image(keys: Sequence[Any], max_per_row: int) -> list[list[int]]:
    """Positions with equal keys together, at most ``max_per_row`` a row, in the order of their first appearance."""
    rows: list[list[int]] = []
    latest: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        row = latest.get(key)
        if row is None or len(row) >= max_per_row:
            row = latest[key] = []
            rows.append(row)
        row.append(i)
    return rows


def hash_index(key: Any, count: int) -> int:
    """A number below ``count`` that depends on ``key`` alone."""
    return int(fingerprint(key), 16) % count


def pad_ids(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of ids as int64 [B, L], padded with -1."""
    width = max(1, max(map(len, rows)))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])
