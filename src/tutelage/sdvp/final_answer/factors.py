"""Sums of products over discrete variables, and what is known of a list of boxes that each exist or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

BoxUse = Literal["first", "count", "both", "all"]
"""What later steps ask of a list of boxes: its first box, how many there are, both, or everything."""


class Factor(NamedTuple):
    """A table with one dimension a variable, in their order; variables are numbers."""

    variables: tuple[int, ...]
    table: Tensor


def elimination_order(scopes: Sequence[tuple[int, ...]], sizes: Mapping[int, int], keep: int) -> tuple[int, ...]:
    """The variables but ``keep``, each time the one whose sum leaves the smallest table."""
    left = [frozenset(scope) for scope in scopes]
    waiting, order = frozenset().union(*left) - {keep}, list[int]()

    def size(variable: int) -> tuple[int, int]:
        found = 1
        for other in frozenset().union(*(scope for scope in left if variable in scope)) - {variable}:
            found *= sizes[other]
        return found, variable

    while waiting:
        chosen = min(waiting, key=size)
        joined = frozenset().union(*(scope for scope in left if chosen in scope)) - {chosen}
        left = [scope for scope in left if chosen not in scope] + [joined]
        order.append(chosen)
        waiting -= {chosen}
    return tuple(order)


def marginal(factors: Sequence[Factor], keep: int, order: Sequence[int]) -> Tensor:
    """The sum over all variables but ``keep`` of the product of ``factors``: [size of keep].

    Message passing by variable elimination: each variable of ``order`` is summed out of the product of the factors that
    hold it. Exact for every graph; linear in the number of variables where the graph is a tree.
    """
    left = list(factors)
    for variable in order:
        factors_of_variable = [factor for factor in left if variable in factor.variables]
        left = [factor for factor in left if variable not in factor.variables]
        scope = tuple(dict.fromkeys(v for factor in factors_of_variable for v in factor.variables if v != variable))
        left.append(Factor(scope, product(factors_of_variable, scope)))
    return product(left, (keep,))


def product(factors: Sequence[Factor], scope: tuple[int, ...]) -> Tensor:
    """The product of ``factors``, summed over the variables that are not in ``scope``."""
    names = {variable: n for n, variable in enumerate(dict.fromkeys(v for f in factors for v in f.variables))}
    operands: list[object] = []
    for factor in factors:
        operands += [factor.table, [names[v] for v in factor.variables]]
    return torch.einsum(*operands, [names[v] for v in scope])


def poisson_binomial(p: Tensor) -> Tensor:
    """How many of independent events happen: probabilities ``p`` [..., n] -> [..., n + 1]."""
    found = torch.ones_like(p[..., :0].sum(-1, keepdim=True))
    zero = torch.zeros_like(found)
    for i in range(p.shape[-1]):
        yes = p[..., i : i + 1]
        found = torch.cat([found * (1 - yes), zero], -1) + torch.cat([zero, found * yes], -1)
    return found


def box_outcomes(use: BoxUse, n: int) -> list[tuple[int, ...]]:
    """What ``n`` boxes, best first, can turn out to be, as far as ``use`` tells it: numbers of boxes that stand for all
    lists that are alike to it. ``first``: none, or each as the first. ``count``: the first k. ``both``: each as the
    first, and how many follow. ``all``: every subset."""
    match use:
        case "first":
            return [(), *((i,) for i in range(n))]
        case "count":
            return [tuple(range(k)) for k in range(n + 1)]
        case "both":
            return [(), *(tuple(range(i, i + k)) for i in range(n) for k in range(1, n - i + 1))]
        case "all":
            return [tuple(i for i in range(n) if mask >> i & 1) for mask in range(1 << n)]


def box_distribution(use: BoxUse, p: Tensor) -> Tensor:
    """The probability of each of :func:`box_outcomes`, boxes existing independently with ``p`` [..., n]."""
    n = p.shape[-1]
    if use == "count":
        return poisson_binomial(p)
    if use == "all":
        parts = [torch.ones_like(p[..., :0].sum(-1))]
        for i in range(n):  # the subsets without box i, then those with it: the order of the masks
            parts = [part * (1 - p[..., i]) for part in parts] + [part * p[..., i] for part in parts]
        return torch.stack(parts, -1)
    missing = torch.ones_like(p[..., :0].sum(-1, keepdim=True))
    found = []
    for i in range(n):
        first = missing * p[..., i : i + 1]
        found.append(first if use == "first" else first * poisson_binomial(p[..., i + 1 :]))
        missing = missing * (1 - p[..., i : i + 1])
    return torch.cat([missing, *found], -1)
