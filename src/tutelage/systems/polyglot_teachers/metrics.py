"""What is measured on rows without any student: distinctness, perplexity, and a judge's score."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from tutelage.errors import InputError
from tutelage.networks.causal_lm import TokenBatch, token_log_probs
from tutelage.programs.generators.completions import (
    Completion,
    CompletionCache,
    CompletionRequest,
    LanguageModel,
    Usage,
    complete_all,
)
from tutelage.programs.generators.few_shot import InstructionPrompt
from tutelage.systems.polyglot_teachers.rows import Row

# -- distinctness ----------------------------------------------------------------------------------------------------


def distinctness(blocks: Iterable[ArrayLike]) -> float:
    """``1 - mean over i != j of cos(e_i, e_j)``: 0 for equal texts, 1 for texts that have nothing in common.

    Computed as ``1 - (|sum u|^2 - sum |u|^2) / (n (n - 1))`` of unit vectors u, so that memory does not grow with n^2. A
    vector of zeros has a cosine of 0 with all others.

    Args:
        blocks: arrays [n_i, d], one after another.

    Examples:
        >>> distinctness([[[1.0, 0.0]], [[0.0, 2.0]]])
        1.0

    Raises:
        InputError: fewer than two vectors, of which the mean is undefined, or one that is not finite.
    """
    total, squares, count = np.zeros(0), 0.0, 0
    for block in blocks:
        rows = np.asarray(block, np.float64)
        if rows.ndim != 2 or not np.isfinite(rows).all():
            raise InputError(f"no finite vectors [n, d]: shape {list(rows.shape)}", where="embeddings", remedy="one vector a text")
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
        total = unit.sum(0) if not count else total + unit.sum(0)
        squares += float((unit**2).sum())
        count += len(rows)
    if count < 2:
        raise InputError(f"{count} texts have no distinctness", where="embeddings", remedy="give two rows or more")
    return 1 - (float(total @ total) - squares) / (count * (count - 1))


# -- perplexity ------------------------------------------------------------------------------------------------------


def response_perplexities(logits: Tensor, batch: TokenBatch) -> Tensor:
    """``exp`` of the mean negative log-likelihood of each response's tokens [B]; prompts and padding, on either side, do
    not count.

    Args:
        logits: [B, L, V], of the next token.
        batch: ids and which of them are the response.

    Raises:
        InputError: a response without a token.
    """
    count = batch.response.sum(1)
    if not bool((count > 0).all()):
        row = int((count == 0).nonzero()[0, 0])
        raise InputError(f"the response of row {row} has no token", where="rows", remedy="leave out empty responses")
    logs: Tensor = token_log_probs(logits.float(), batch.ids) * batch.response
    return (-logs.sum(1) / count).exp()


# -- the judge -------------------------------------------------------------------------------------------------------

Judge = Callable[[Sequence[Row]], Sequence[float | None]]
"""Scores rows 1 to 5; None for one that it gave no score."""

RUBRIC = """You judge a response to a prompt. Give one score from 1 to 5:
1: wrong language, or of no use. 2: many faults. 3: understandable, with faults of language or fact. 4: good. 5: as from an expert
native speaker. Weigh three things: how well the language is mastered, how well it fits the culture of its speakers, and how
helpful it is. End with a line "Score: N"."""
_SCORE = re.compile(r"\bscore\W{0,4}([0-9]+)(?![0-9.,]*[0-9])", re.IGNORECASE)


def parse_score(text: str) -> int | None:
    """The last ``Score: N`` of a judge's answer, or the answer itself where it is a number; None outside 1..5.

    Examples:
        >>> parse_score("Fluent. Score: 4"), parse_score("5"), parse_score("Score: 9"), parse_score("good")
        (4, 5, None, None)
    """
    bare = text.strip()
    found = [bare] if bare.isdecimal() else _SCORE.findall(text)
    return int(found[-1]) if found and found[-1] in ("1", "2", "3", "4", "5") else None


@dataclass
class ModelJudge:
    """A language model as the judge, greedy, its answers cached and counted.

    Attributes:
        model: an ``Endpoint``, a ``LocalLLM`` …
        cache: answers on disk.
        usage: what was requested.
        on_progress: called with (done, total).
    """

    model: LanguageModel
    cache: CompletionCache | None = None
    usage: Usage = field(default_factory=Usage)
    on_progress: Callable[[float, float], object] | None = None

    def __call__(self, rows: Sequence[Row]) -> list[float | None]:
        """A score for each row, or None where the answer has none or the request failed."""
        texts = (f"Language: {row.language}\n\nPrompt: {row.prompt}\n\nResponse: {row.response}" for row in rows)
        requests = [CompletionRequest(InstructionPrompt(RUBRIC, (text,))) for text in texts]
        answers = complete_all(self.model, requests, cache=self.cache, usage=self.usage, on_progress=self.on_progress)
        return [parse_score(answer.text) if isinstance(answer, Completion) else None for answer in answers]


def mean_score(scores: Sequence[float | None], missing_as: float | None = None, where: object = "judge") -> tuple[float, int]:
    """(the mean of the scores, how many are missing). Missing ones count as ``missing_as``: 1 as published, None: not at all.

    Raises:
        InputError: a score outside 1..5, or no score at all.
    """
    known = [score for score in scores if score is not None]
    for score in known:
        if not (math.isfinite(score) and 1 <= score <= 5):
            raise InputError(f"a score of {score}", where=where, remedy="a judge gives 1 to 5, or None")
    missing = len(scores) - len(known)
    counted = known + ([] if missing_as is None else [missing_as] * missing)
    if not counted:
        raise InputError(
            f"the judge gave no score for any of {len(scores)} rows", where=where, remedy='it must end with "Score: N", N in 1..5'
        )
    return sum(counted) / len(counted), missing
