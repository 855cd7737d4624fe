"""What attention heads do: induction (reading the label after an earlier copy), and reading the nearest neighbour's label.

Attention is [B, heads, L, L], weights of keys (last axis) by query, over the tokens x_1, y_1, x_2, …: x_t is token 2t and its
label token 2t + 1, t from 0. Any model's weights will do; :func:`attention_maps` takes those of the library's transformer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.errors import InputError
from tutelage.fields import check_range
from tutelage.networks.attention import SelfAttention
from tutelage.networks.encoder_decoder import causal_mask
from tutelage.systems.icl_discrete_functions.data import FunctionData
from tutelage.systems.icl_discrete_functions.networks import InContextModel, Transformer


@torch.no_grad()
def attention_maps(model: InContextModel, xs: Tensor, ys: Tensor) -> list[Tensor]:
    """The attention of every layer, each [B, heads, 2P - 1, 2P - 1], in eval mode.

    Raises:
        InputError: the model is no transformer of this library.
    """
    if not isinstance(model.body, Transformer):
        raise InputError(
            f"{type(model.body).__name__} has no attention to read",
            where="model",
            remedy="InContextModel(kind='transformer'); give a model's own maps to induction_scores and neighbour_scores",
        )
    blocks = [f"body.blocks.{i}.attention" for i in range(len(model.body.blocks))]
    model.eval()
    with FeatureHooks(model, [f"{block}.{part}" for block in blocks for part in ("query", "key")]) as features:
        model(xs, ys)
    maps = []
    for block in blocks:
        attention = model.get_submodule(block)
        assert isinstance(attention, SelfAttention)
        query, key = (attention.heads(features[f"{block}.{part}"]) for part in ("query", "key"))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        maps.append(scores.masked_fill(~causal_mask(scores.shape[-1]), -torch.inf).softmax(-1))
    return maps


def induction_scores(attention: Tensor, prompt: int, repeats: int) -> Tensor:
    """The mean attention from a repeated input to the label after each earlier copy of it, by head [heads].

    The mean is over all pairs of copies, while a query's attention is shared among its earlier copies: the largest possible
    score is ``2 / repeats``.

    Args:
        attention: [B, heads, L, L] on a prompt of ``prompt`` examples that is given ``repeats`` times; L at least
            ``2 prompt repeats - 1``.
        prompt: its number of examples.
        repeats: 2 or more.

    Raises:
        InputError: fewer repeats, or fewer tokens.
    """
    check_range("repeats", repeats, 2, 10_000, whole=True)
    if attention.shape[-1] < 2 * prompt * repeats - 1:
        raise InputError(
            f"{attention.shape[-1]} tokens for {repeats} times {prompt} examples", where="attention", remedy="[B, heads, L, L]"
        )
    items = torch.arange(prompt)
    pairs = [
        attention[..., 2 * (later * prompt + items), 2 * (earlier * prompt + items) + 1]
        for later in range(repeats)
        for earlier in range(later)
    ]
    return torch.stack(pairs).mean((0, 1, 3))


def neighbour_scores(attention: Tensor, xs: Tensor, start: int = 1) -> Tensor:
    """The mean attention from x_t to the label of its nearest earlier input (of equal ones the first), by head [heads]; at most 1.

    Args:
        attention: [B, heads, 2P - 1, 2P - 1].
        xs: [B, P, n].
        start: the first t that counts, 1 or more, counted from 0.

    Raises:
        InputError: no position is left.
    """
    check_range("start", start, 1, xs.shape[1] - 1, whole=True)
    similar = np.rint((xs @ xs.transpose(1, 2)).numpy())
    found = []
    for place in range(start, xs.shape[1]):
        nearest = torch.from_numpy(similar[:, place, :place].argmax(-1))
        found.append(attention[torch.arange(len(xs)), :, 2 * place, 2 * nearest + 1])
    return torch.stack(found).mean((0, 1))


@dataclass(frozen=True)
class HeadScores:
    """Scores of all heads, each [layers, heads] in 0..1: shares of the largest possible score."""

    induction: np.ndarray
    neighbour: np.ndarray

    def count(self, least: float = 0.5) -> dict[str, int]:
        """How many heads reach ``least`` of the largest possible score, by kind."""
        return {"induction": int((self.induction >= least).sum()), "neighbour": int((self.neighbour >= least).sum())}


def probe_attention(model: InContextModel, data: FunctionData, functions: int = 64, repeats: int = 2) -> HeadScores:
    """Scores of all heads of a transformer: induction on prompts that are repeated, neighbours on plain sequences.

    The prompt of the induction score has P // repeats examples.

    Raises:
        InputError: the model has no attention, or too few examples for so many repeats.
    """
    made = data.sequences(functions)
    xs, ys = torch.from_numpy(made.xs).float(), torch.from_numpy(made.ys).float()
    prompt = xs.shape[1] // repeats
    check_range("repeats", repeats, 2, xs.shape[1], whole=True)
    again = attention_maps(model, xs[:, :prompt].repeat(1, repeats, 1), ys[:, :prompt].repeat(1, repeats))
    plain = attention_maps(model, xs, ys)
    start = max(1, xs.shape[1] // 2)
    return HeadScores(
        torch.stack([induction_scores(one, prompt, repeats) for one in again]).numpy() * repeats / 2,
        torch.stack([neighbour_scores(one, xs, start) for one in plain]).numpy(),
    )
