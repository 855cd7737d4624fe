"""Networks that read labelled examples and predict the label of each input: one frame, several sequence models."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from tutelage.errors import InputError, did_you_mean
from tutelage.networks.attention import TransformerBlock
from tutelage.networks.encoder_decoder import causal_mask
from tutelage.networks.layers import init_weights
from tutelage.systems.icl_discrete_functions.mixers import DiagonalStateSpace, Hyena, MixerBlock, Retention

Kind = Literal["transformer", "lstm", "gru", "retnet", "hyena", "dss"]
KINDS: tuple[Kind, ...] = ("transformer", "lstm", "gru", "retnet", "hyena", "dss")
PUBLISHED = {"dim": 256, "depth": 12, "num_heads": 8}
"""Sizes of the published run, for n = 28."""


def interleave(xs: Tensor, ys: Tensor) -> Tensor:
    """Tokens [B, 2P - 1, n]: x_1, y_1, x_2, …, x_P. A label is (y, 0, …, 0); the last one is read by nothing.

    Examples:
        >>> interleave(torch.ones(1, 2, 3), torch.tensor([[-1.0, 1.0]])).tolist()
        [[[1.0, 1.0, 1.0], [-1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]
    """
    tokens = xs.new_zeros(xs.shape[0], xs.shape[1], 2, xs.shape[2])
    tokens[:, :, 0] = xs
    tokens[:, :, 1, 0] = ys
    return tokens.flatten(1, 2)[:, :-1]


class Transformer(nn.Module):
    """Pre-norm causal blocks with learned positions: states [B, L, dim] -> [B, L, dim].

    Positions start at a deviation of 0.3, not GPT-2's 0.02: inputs have numbers of size 1, and a label must find the input
    before it (our choice; it learns this sooner).
    """

    def __init__(self, length: int, dim: int, depth: int, num_heads: int):
        super().__init__()
        self.positions = nn.Parameter(torch.empty(length, dim))
        self.blocks = nn.ModuleList(TransformerBlock(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        init_weights(self)
        nn.init.normal_(self.positions, std=0.3)

    def forward(self, states: Tensor) -> Tensor:
        """The last states; each position reads itself and those before it."""
        length = states.shape[1]
        states = states + self.positions[:length]
        mask = causal_mask(length, device=states.device)
        for block in self.blocks:
            states = block(states, mask)
        return self.norm(states)


class Recurrent(nn.Module):
    """An LSTM or a GRU: states [B, L, dim] -> [B, L, dim]."""

    def __init__(self, kind: Literal["lstm", "gru"], dim: int, depth: int):
        super().__init__()
        self.cells = (nn.LSTM if kind == "lstm" else nn.GRU)(dim, dim, depth, batch_first=True)

    def forward(self, states: Tensor) -> Tensor:
        """The last layer's states."""
        return cast(Tensor, self.cells(states)[0])


class Convolutional(nn.Module):
    """Blocks without attention and without positions (our choice): retention, Hyena or a diagonal state space."""

    def __init__(self, kind: Literal["retnet", "hyena", "dss"], length: int, dim: int, depth: int, num_heads: int):
        super().__init__()
        mixers = {
            "retnet": lambda: Retention(dim, num_heads),
            "hyena": lambda: Hyena(dim, length),
            "dss": lambda: DiagonalStateSpace(dim),
        }
        self.blocks = nn.Sequential(*(MixerBlock(dim, mixers[kind]()) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, states: Tensor) -> Tensor:
        """The last states."""
        return self.norm(self.blocks(states))


class InContextModel(nn.Module):
    """Predicts the label of every input from the examples before it: (xs [B, P, n], ys [B, P]) -> logits [B, P].

    A linear layer reads each token of x_1, y_1, x_2, … as n numbers, a sequence model follows, and a linear layer reads the
    logits at the inputs. Logit t depends on x_1, y_1, …, x_t alone, so that ys may be given whole.

    Args:
        size: n.
        examples: the largest P.
        kind: ``transformer``, ``lstm``, ``gru``, ``retnet``, ``hyena`` or ``dss``; or a network of one's own, states [B, L, dim]
            to states, which must be causal.
        dim: width.
        depth: number of blocks or layers.
        num_heads: of attention and retention.
        mlp: hidden layers with ReLU around the sequence model, of width ``dim``: read-in and read-out are then MLPs, as the
            paper has them around a frozen pretrained model.

    Raises:
        InputError: an unknown kind.
    """

    def __init__(
        self,
        size: int = 28,
        examples: int = 40,
        kind: Kind | nn.Module = "transformer",
        dim: int = 48,
        depth: int = 2,
        num_heads: int = 4,
        mlp: int = 0,
    ):
        super().__init__()
        self.size, self.examples = size, examples
        length = 2 * examples - 1
        self.body: nn.Module
        if isinstance(kind, nn.Module):
            self.body = kind
        elif kind == "transformer":
            self.body = Transformer(length, dim, depth, num_heads)
        elif kind in ("lstm", "gru"):
            self.body = Recurrent(kind, dim, depth)
        elif kind in KINDS:
            self.body = Convolutional(kind, length, dim, depth, num_heads)
        else:
            raise InputError(f"unknown kind {kind!r}", where="kind", remedy=did_you_mean(str(kind), list(KINDS)))
        self.read_in = _layers(size, dim, dim, mlp)
        self.read_out = _layers(dim, dim, 1, mlp)

    def forward(self, xs: Tensor, ys: Tensor) -> Tensor:
        """The logits.

        Raises:
            InputError: inputs of another width, more examples than the network was made for, or not a label each.
        """
        if xs.ndim != 3 or xs.shape[2] != self.size or xs.shape[1] > self.examples or ys.shape != xs.shape[:2]:
            raise InputError(
                f"xs {list(xs.shape)} and ys {list(ys.shape)}",
                where="inputs",
                remedy=f"xs [B, P, {self.size}] and ys [B, P], P at most {self.examples}",
            )
        return self.read_out(self.body(self.read_in(interleave(xs, ys)))[:, ::2])[..., 0]


def _layers(inner: int, hidden: int, outer: int, count: int) -> nn.Module:
    if not count:
        return nn.Linear(inner, outer)
    widths = [inner, *[hidden] * count]
    layers = [layer for a, b in zip(widths, widths[1:], strict=False) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(hidden, outer))


class PretrainedDecoder(nn.Module):
    """A pretrained decoder of ``transformers`` that reads states in place of tokens: [B, L, dim] -> [B, L, dim].

    Args:
        network: such as ``GPT2Model.from_pretrained("gpt2")``: it takes ``inputs_embeds`` and gives ``last_hidden_state``.
        trained: which of its parameters are trained: ``nothing``, its layer ``norms``, or ``all``.

    Examples:
        >>> body = PretrainedDecoder(GPT2Model.from_pretrained("gpt2"), "norms")  # doctest: +SKIP
        >>> model = InContextModel(28, 40, body, dim=768, mlp=2)  # doctest: +SKIP

    Raises:
        InputError: another choice of ``trained``.
    """

    def __init__(self, network: nn.Module, trained: Literal["nothing", "norms", "all"] = "nothing"):
        super().__init__()
        if trained not in ("nothing", "norms", "all"):
            raise InputError(f"{trained!r}", where="trained", remedy="nothing, norms or all")
        self.network = network
        if trained == "all":
            return
        network.requires_grad_(False)
        for module in network.modules():
            if trained == "norms" and isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)

    def forward(self, states: Tensor) -> Tensor:
        """The last states."""
        return cast(Tensor, self.network(inputs_embeds=states, use_cache=False).last_hidden_state)
