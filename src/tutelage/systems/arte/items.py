"""Which questions tell students apart: a two-parameter logistic model of their answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tutelage.errors import InputError

KEPT = 40
LOG_ALPHA_SD = 0.5


@dataclass(frozen=True)
class ItemModel:
    """``P(examinee i answers item j) = sigmoid(alpha_j (theta_i - beta_j))``: discrimination, difficulty, ability."""

    alpha: np.ndarray
    beta: np.ndarray
    theta: np.ndarray


@dataclass(frozen=True)
class ItemChoice:
    """``kept``: the places of the items of largest discrimination, in their order; ``uninformative``: how many were answered by
    all or by none; ``model``: of the others, whose places are ``fitted``."""

    kept: tuple[int, ...]
    uninformative: int
    fitted: tuple[int, ...]
    model: ItemModel


def fit_items(answered: np.ndarray, steps: int = 100) -> ItemModel:
    """The most probable parameters given answers [examinees, items] of 0 and 1.

    Priors: ``log alpha ~ N(0, .5)`` (so that alpha is above 0 and finite: abler examinees do better on every item), ``beta`` and
    ``theta ~ N(0, 1)`` (our choice; the paper says Bayesian in one place and maximum likelihood in another).

    Raises:
        InputError: not a table of 0 and 1 with two examinees or more.
    """
    table = np.asarray(answered, dtype=np.float64)
    if table.ndim != 2 or len(table) < 2 or not table.shape[1] or not np.isin(table, (0, 1)).all():
        remedy = "a row for each of two examinees or more, a column for each item, 0 or 1 in each cell"
        raise InputError(f"a table {list(table.shape)}", where="answers", remedy=remedy)
    target = torch.from_numpy(table)
    share = target.mean(1).clamp(0.02, 0.98)
    theta = torch.logit(share).requires_grad_()
    beta = (-torch.logit(target.mean(0).clamp(0.02, 0.98))).requires_grad_()
    log_alpha = torch.zeros(table.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_alpha, beta, theta], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = log_alpha.exp() * (theta[:, None] - beta)
        fit = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        prior = (log_alpha / LOG_ALPHA_SD).square().sum() + beta.square().sum() + theta.square().sum()
        total = fit + prior / 2
        total.backward()
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return ItemModel(log_alpha.detach().exp().numpy(), beta.detach().numpy(), theta.detach().numpy())


def choose_items(answered: np.ndarray, keep: int = KEPT) -> ItemChoice:
    """The ``keep`` items of largest discrimination; all informative ones where there are fewer.

    Items that every examinee solves, or none, are dropped before the fit: they say nothing, and yet their alpha can be large.

    Args:
        answered: [examinees, items] of 0 and 1; the paper has 20 examinees (5 models with 0 to 3 examples) and 100 items.
        keep: 40, as published.

    Raises:
        InputError: no item tells examinees apart, or the table is none.
    """
    table = np.asarray(answered)
    if table.ndim != 2 or keep < 1:
        raise InputError(
            f"a table {list(table.shape)}, {keep} items to keep", where="answers", remedy="[examinees, items], 1 or more"
        )
    shares = table.mean(0) if len(table) else np.zeros(table.shape[1])
    places = np.flatnonzero((shares > 0) & (shares < 1))
    if not len(places):
        remedy = "more or other questions, or examinees of different ability"
        raise InputError("every item is solved by all examinees or by none", where="answers", remedy=remedy)
    model = fit_items(table[:, places])
    best = np.argsort(-model.alpha, kind="stable")[:keep]
    kept = tuple(sorted(places[best].tolist()))
    return ItemChoice(kept, table.shape[1] - len(places), tuple(places.tolist()), model)
