"""Edit distances of batches of sequences, step by step, and the error rates of transcripts that follow from them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from tutelage.errors import InputError


def prefix_edit_distances(hypothesis: Tensor, counted: Tensor, truth: Tensor, lengths: Tensor) -> Tensor:
    """The edit distance (insert, delete, replace: 1 each) of every prefix of each hypothesis to its whole truth.

    Args:
        hypothesis: ids [B, T].
        counted: bool [B, T]; what is False (an end token, padding) is no part of the hypothesis.
        truth: ids [B, U].
        lengths: of the truths [B], at most U.

    Returns:
        int64 [B, T + 1]: first the distance of the empty prefix, which is ``lengths``.

    Examples:
        >>> hypothesis, truth = torch.tensor([[1, 9, 3]]), torch.tensor([[1, 2, 3]])
        >>> prefix_edit_distances(hypothesis, torch.ones(1, 3, dtype=torch.bool), truth, torch.tensor([3])).tolist()
        [[3, 2, 2, 1]]
    """
    places = torch.arange(truth.shape[1] + 1, device=truth.device)
    row = places.expand(len(truth), -1)
    last = lengths.long()[:, None]
    found = [row.gather(1, last)[:, 0]]
    for t in range(hypothesis.shape[1]):
        replaced = row[:, :-1] + (truth != hypothesis[:, t : t + 1])
        without = torch.cat([row[:, :1] + 1, torch.minimum(replaced, row[:, 1:] + 1)], 1)
        # what is missing costs 1 a place: min over i <= j of without_i + j - i
        with_gaps = (without - places).cummin(1).values + places
        row = torch.where(counted[:, t : t + 1], with_gaps, row)
        found.append(row.gather(1, last)[:, 0])
    return torch.stack(found, 1)


def edit_distances(hypotheses: Sequence[Sequence[Hashable]], truths: Sequence[Sequence[Hashable]]) -> Tensor:
    """The edit distance of each pair of sequences [N], int64: texts character by character, lists item by item.

    Raises:
        InputError: not as many hypotheses as truths.
    """
    if len(hypotheses) != len(truths):
        raise InputError(f"{len(hypotheses)} hypotheses of {len(truths)} truths", where="hypotheses", remedy="one a truth")
    numbers: dict[Hashable, int] = {}
    found = [[[numbers.setdefault(item, len(numbers)) for item in one] for one in side] for side in (hypotheses, truths)]
    (left, left_lengths), (right, right_lengths) = (_padded(side) for side in found)
    counted = torch.arange(left.shape[1]) < left_lengths[:, None]
    return prefix_edit_distances(left, counted, right, right_lengths)[:, -1]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    padded = torch.full((len(rows), int(lengths.max()) if len(rows) else 0), -1, dtype=torch.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return padded, lengths


def error_rates(hypotheses: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """``CER``, ``WER`` and ``exact`` (share of transcripts without a mistake), in percent.

    Error rates are all edits over the length of all truths, in characters and in words; they can exceed 100.

    Examples:
        >>> error_rates(["set red", "bin"], ["set red", "bins"])
        {'CER': 9.090909090909092, 'WER': 33.33333333333333, 'exact': 50.0}

    Raises:
        InputError: not as many hypotheses as truths, or truths without a character.
    """
    letters = edit_distances(hypotheses, truths)
    words = edit_distances([text.split() for text in hypotheses], [text.split() for text in truths])
    total, total_words = sum(map(len, truths)), sum(len(text.split()) for text in truths)
    if not total_words:
        raise InputError("no truth holds a word", where="truths", remedy="give the true texts")
    return {
        "CER": 100 * int(letters.sum()) / total,
        "WER": 100 * int(words.sum()) / total_words,
        "exact": 100 * float((letters == 0).double().mean()),
    }
