"""Classes of Boolean functions, teaching sequences, and sequences of labelled examples.

Inputs are in {-1, +1}^n, labels in {-1, +1}. A function has ``weights`` [C, n], one row a clause. All classes but parity and
nearest neighbour are ``max_c`` (or ``min_c``) of ``sign(x w_c - threshold_c)``; the sign is never of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from tutelage.distillation.data.generated import RowStream
from tutelage.errors import InputError, did_you_mean
from tutelage.fields import check_range

Rule = Literal["all", "any", "threshold", "parity", "nearest"]
Weights = Callable[[RowStream, int, int, float | None], np.ndarray]
"""(numbers, clauses C, n, density or None) -> weights [B, C, n]."""


@dataclass(frozen=True)
class FunctionClass:
    """How the functions of a class are drawn, and what they say.

    Attributes:
        weights: draws the weights.
        rule: ``all`` literals of a clause hold (conjunction), ``any`` does (disjunction), ``threshold``, ``parity`` of the
            ones in a subset, or the label of the ``nearest`` earlier input.
        clauses: C; of several conjunctions one must hold (DNF), of several disjunctions all must (CNF).
        forcing: the share of inputs that are made to satisfy the conjunction, or to falsify the disjunction, so that both
            labels are common. Of several clauses, one a sequence is chosen for it.
        thresholds: of the rule ``threshold``, each equally likely.
        teaching: the kind of its teaching sequence: ``signed`` or ``monotone``; None: there is none.
        teaching_forcing: ``forcing`` of the examples after a teaching sequence.
    """

    weights: Weights
    rule: Rule
    clauses: int = 1
    forcing: float = 0.0
    thresholds: tuple[float, ...] = ()
    teaching: Literal["signed", "monotone"] | None = None
    teaching_forcing: float = 0.4


def _literals(positive: float, negative: float = 0.0) -> Weights:
    """Weights +1 and -1 with these probabilities, else 0; a density replaces their sum."""

    def draw(rng: RowStream, clauses: int, size: int, density: float | None) -> np.ndarray:
        total = positive + negative
        share = total if density is None else density
        uniform = rng.uniform(clauses, size)
        return np.where(uniform < share * positive / total, 1.0, np.where(uniform < share, -1.0, 0.0))

    return draw


def _subset(count: int) -> Weights:
    """Exactly ``count`` weights of 1."""

    def draw(rng: RowStream, clauses: int, size: int, density: float | None) -> np.ndarray:
        if count > size:
            raise InputError(f"{count} of {size} variables", where="size", remedy=f"at least {count}")
        places = rng.uniform(clauses, size).argsort(-1, kind="stable").argsort(-1, kind="stable")
        return (places < count).astype(np.float64)

    return draw


def _whole(most: int) -> Weights:
    """Weights from -``most`` to ``most``, each equally likely."""

    def draw(rng: RowStream, clauses: int, size: int, density: float | None) -> np.ndarray:
        weights: np.ndarray = np.floor(rng.uniform(clauses, size) * (2 * most + 1)) - most
        return weights

    return draw


def _none(rng: RowStream, clauses: int, size: int, density: float | None) -> np.ndarray:
    return np.zeros((len(rng), clauses, size))


CLASSES: Mapping[str, FunctionClass] = MappingProxyType(
    {
        "conjunction": FunctionClass(_literals(0.15, 0.15), "all", forcing=0.3, teaching="signed"),
        "disjunction": FunctionClass(_literals(0.15, 0.15), "any", forcing=0.3),
        "monotone-conjunction": FunctionClass(_literals(0.3), "all", forcing=0.3, teaching="monotone"),
        "monotone-disjunction": FunctionClass(_literals(0.3), "any", forcing=0.3),
        "sparse-disjunction": FunctionClass(_subset(4), "any", forcing=0.3),
        "dnf": FunctionClass(_literals(0.1, 0.1), "all", 3, forcing=0.35),
        "cnf": FunctionClass(_literals(0.1, 0.1), "any", 3, forcing=0.3),
        "majority": FunctionClass(_literals(0.3), "threshold", thresholds=(0.5,)),
        "sparse-threshold": FunctionClass(_literals(0.15, 0.15), "threshold", thresholds=(-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)),
        "integer-halfspace": FunctionClass(_whole(3), "threshold", thresholds=(0.5,)),
        "parity": FunctionClass(_literals(0.5), "parity"),
        "sparse-parity": FunctionClass(_subset(2), "parity"),
        "nearest-neighbour": FunctionClass(_none, "nearest"),
        "monotone-dnf": FunctionClass(_literals(0.2), "all", 3, forcing=0.35, teaching="monotone", teaching_forcing=0.35),
    }
)
"""The thirteen classes of the paper, and ``monotone-dnf``, of which it makes teaching sequences."""


def function_class(name: str) -> FunctionClass:
    """The class of this name.

    Raises:
        InputError: there is none; the message offers the nearest names.
    """
    if name not in CLASSES:
        raise InputError(f"unknown class {name!r}", where="function", remedy=did_you_mean(name, list(CLASSES)))
    return CLASSES[name]


def clause_thresholds(weights: np.ndarray, rule: Rule) -> np.ndarray:
    """The thresholds [B, C] of conjunctions (k - 1) or disjunctions (1 - k) with k literals.

    A conjunction without literals is always +1, a disjunction without any always -1.
    """
    below: np.ndarray = np.abs(weights).sum(-1) - 1
    return below if rule == "all" else -below


def clause_labels(xs: np.ndarray, weights: np.ndarray, thresholds: np.ndarray, rule: Rule) -> np.ndarray:
    """Labels [B, P] of xs [B, P, n] by weights [B, C, n] and thresholds [B, C]: the least of several ``any``, else the greatest.

    Examples:
        >>> w = np.array([[[1.0, 0, -1, 0]]])
        >>> x = np.array([[[1.0, -1, -1, 1], [1, 1, 1, 1]]])
        >>> clause_labels(x, w, clause_thresholds(w, "all"), "all").tolist()
        [[1.0, -1.0]]
    """
    signs = np.sign(np.einsum("bpn,bcn->bpc", xs, weights) - thresholds[:, None])
    return signs.min(-1) if rule == "any" else signs.max(-1)


def parity_labels(xs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """+1 where the number of ones (+1) of xs [B, P, n] in the subset, weights [B, 1, n], is odd; [B, P]."""
    ones = np.einsum("bpn,bn->bp", (xs + 1) / 2, weights[:, 0])
    labels: np.ndarray = 2 * (ones % 2) - 1
    return labels


def nearest_labels(xs: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Labels [B, P]: ``first`` [B, s], where a repeated input keeps its label; then that of the nearest earlier input.

    The nearest is the one of the greatest cosine, of equal ones the first.
    """
    similar = np.rint(np.einsum("bpn,bqn->bpq", xs, xs))  # whole numbers: equal cosines are equal
    rows, size = np.arange(len(xs)), xs.shape[2]
    ys = np.zeros(xs.shape[:2])
    ys[:, : first.shape[1]] = first
    for place in range(1, xs.shape[1]):
        best = similar[:, place, :place].argmax(-1)
        copied = ys[rows, best]
        repeated = similar[rows, place, best] == size
        ys[:, place] = np.where(repeated | (place >= first.shape[1]), copied, ys[:, place])
    return ys


def teaching_sequence(weights: np.ndarray, kind: Literal["signed", "monotone"] = "signed") -> np.ndarray:
    """The inputs [T, n] that identify a conjunction, or a DNF clause by clause.

    Monotone, k + 1 inputs: +1 exactly on the literals; then the same with one literal turned, for each. Signed, k + 2: the
    literals hold and all else is -1; the literals hold and all else is +1; then the first with one literal turned, for each,
    positive literals first.

    Args:
        weights: [C, n], in {-1, 0, +1}.
        kind: which of the two.

    Examples:
        >>> teaching_sequence(np.array([[1.0, 0, 1, 0]]), "monotone").tolist()
        [[1.0, -1.0, 1.0, -1.0], [-1.0, -1.0, 1.0, -1.0], [1.0, -1.0, -1.0, -1.0]]
    """
    parts = []
    for row in weights:
        base = np.where(row == 0, -1.0, row)
        literals = np.concatenate([np.flatnonzero(row > 0), np.flatnonzero(row < 0)])
        turned = np.repeat(base[None], len(literals), 0)
        turned[np.arange(len(literals)), literals] *= -1
        positives = [base] if kind == "monotone" else [base, np.where(row == 0, 1.0, row)]
        parts += [np.stack(positives), turned]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Sequences:
    """Labelled examples of B functions.

    Attributes:
        xs: [B, P, n] in {-1, +1}.
        ys: [B, P] in {-1, +1}.
        counted: [B, P] bool, the positions that are learned and scored.
        weights: [B, C, n] of the functions.
        teaching_lengths: [B] int, how many examples are a teaching sequence; 0: none are.
    """

    xs: np.ndarray
    ys: np.ndarray
    counted: np.ndarray
    weights: np.ndarray
    teaching_lengths: np.ndarray

    @property
    def literals(self) -> np.ndarray:
        """k [B], the weights that are not 0."""
        return (self.weights != 0).sum((1, 2))


def sample_sequences(
    rng: RowStream,
    function: str,
    size: int,
    examples: int,
    *,
    teaching: float = 0.0,
    forcing: float | None = None,
    density: float | None = None,
    noise: float = 0.0,
    start: int | None = None,
) -> Sequences:
    """Fresh functions and their examples, a row of ``rng`` each.

    Args:
        rng: the random numbers.
        function: a name of :data:`CLASSES`.
        size: n.
        examples: P. A teaching sequence that is longer ends there.
        teaching: the share of sequences that begin with a teaching sequence.
        forcing: in place of the class's.
        density: share of weights that are not 0, in place of the class's.
        noise: the share of labels that are turned.
        start: of nearest neighbour: how many labels are random before they follow a rule; None: half of the examples.

    Raises:
        InputError: an unknown class, a number out of range, or a class without teaching sequences.
    """
    kind = function_class(function)
    for name, share in (("teaching", teaching), ("forcing", forcing), ("density", density), ("noise", noise)):
        check_range(name, 0.0 if share is None else share, 0.0, 1.0)
    check_range("size", size, 1, 100_000, whole=True)
    check_range("examples", examples, 1, 100_000, whole=True)
    if teaching and kind.teaching is None:
        known = ", ".join(name for name, one in CLASSES.items() if one.teaching)
        raise InputError(f"{function} has no teaching sequences", where="teaching", remedy=f"0, or one of {known}")
    first = examples // 2 if start is None else start
    check_range("start", first, 0 if kind.rule != "nearest" else min(1, examples), examples, whole=True)
    batch = len(rng)
    weights = kind.weights(rng, kind.clauses, size, density)
    xs = np.where(rng.uniform(examples, size) < 0.5, -1.0, 1.0)
    with_teaching = rng.uniform(1)[:, 0] < teaching
    share = np.where(with_teaching, kind.teaching_forcing, kind.forcing) if forcing is None else np.full(batch, forcing)
    if kind.rule in ("all", "any"):
        chosen = (rng.uniform(1)[:, 0] * kind.clauses).astype(np.int64)
        clause = weights[np.arange(batch), chosen][:, None]
        forced = (rng.uniform(examples) < share[:, None])[..., None] & (clause != 0)
        xs = np.where(forced, clause if kind.rule == "all" else -clause, xs)
    lengths = np.zeros(batch, np.int64)
    for row in np.flatnonzero(with_teaching):
        inputs = teaching_sequence(weights[row], kind.teaching or "signed")[:examples]
        xs[row, : len(inputs)], lengths[row] = inputs, len(inputs)
    counted = np.ones((batch, examples), bool)
    if kind.rule == "nearest":
        ys = nearest_labels(xs, np.where(rng.uniform(first) < 0.5, -1.0, 1.0))
        counted[:, :first] = False
    elif kind.rule == "parity":
        ys = parity_labels(xs, weights)
    else:
        thresholds = clause_thresholds(weights, kind.rule)
        if kind.rule == "threshold":
            choices = np.array(kind.thresholds)
            thresholds = choices[(rng.uniform(kind.clauses) * len(choices)).astype(np.int64)]
        ys = clause_labels(xs, weights, thresholds, kind.rule)
    if noise:
        ys = np.where(rng.uniform(examples) < noise, -ys, ys)
    return Sequences(xs, ys, counted, weights, lengths)
