"""Preferences: a network is tuned to prefer one response to another, against a frozen copy of itself.

A language model with its tokenizer, and pairs of texts::

    from tutelage.distillation.preference import Preference, tune_on_preferences

    tuned = tune_on_preferences(model, [Preference("2 + 2 =", chosen="4", rejected="5")])

:func:`tune_on_preferences` is a :class:`~tutelage.distillation.job.TrainingJob` of the method :class:`DPO`, whose student is
the model and whose teacher is its copy. Any network with the head ``log_probs`` can be its student: a policy over a few
actions as well as a language model in :class:`~tutelage.networks.causal_lm.SequenceLogProbs`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.networks.causal_lm import SequenceLogProbs, TokenBatch


@dataclass(frozen=True)
class Preference:
    """Of two responses to a prompt the one that is better."""

    prompt: str
    chosen: str
    rejected: str


class TokenizedModel(Protocol):
    """A causal language model and its tokenizer, such as a ``TextModel``."""

    @property
    def network(self) -> nn.Module:
        """(ids [B, L], mask [B, L]) -> logits [B, L, V] of the next token."""
        ...

    def batch(self, prompts: Sequence[str], responses: Sequence[str]) -> TokenBatch:
        """Token ids of prompts and responses, the end of the response included."""
        ...


class DPO(Method):
    """Direct preference optimisation (Rafailov et al., 2023, arXiv 2305.18290): see :func:`~tutelage.distillation.losses.dpo`.

    Student and teacher give ``log_probs`` [B, 2], of the chosen and of the rejected response. The teacher is the student as
    it was: the loss starts at log 2. It is frozen, so that a cache of it holds two numbers a pair.
    """

    student_heads = matched_heads = ("log_probs",)

    @dataclass(frozen=True)
    class Config:
        """``beta``: how much a log-ratio counts."""

        beta: float = 0.1

        def __post_init__(self) -> None:
            if not self.beta > 0:
                raise InputError(f"beta is {self.beta}", where="beta", remedy="a number above 0, such as 0.1")

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``dpo``."""
        return {"dpo": losses.dpo(student["log_probs"], teacher["log_probs"], self.config.beta, batch.weights)}


def preference_data(model: TokenizedModel, pairs: Sequence[Preference]) -> TensorData:
    """Token ids, masks and responses of pairs, [N, 2, L] each: what :class:`SequenceLogProbs` reads.

    Raises:
        InputError: no pair, or one whose responses are equal.
    """
    if not pairs:
        raise InputError("no pair to learn from", where="pairs", remedy="give at least one, or a smaller margin")
    for number, pair in enumerate(pairs):
        if pair.chosen == pair.rejected:
            raise InputError("chosen and rejected are one text", where=f"pair {number}", remedy="leave such a pair out")
    prompts = [pair.prompt for pair in pairs]
    batch = model.batch(prompts * 2, [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
    parts = {"ids": batch.ids, "mask": batch.mask, "response": batch.response}
    return TensorData({name: part.unflatten(0, (2, len(pairs))).transpose(0, 1) for name, part in parts.items()})


def preference_job(
    policy: nn.Module, data: TensorData, settings: TrainingSettings, beta: float = 0.1, name: str = "preferences"
) -> TrainingJob:
    """The job that tunes ``policy``, a network with the head ``log_probs``, against a frozen copy of it."""
    return TrainingJob(policy, copy.deepcopy(policy), DPO(beta=beta), data, settings, name)  # type: ignore[arg-type]


def tune_on_preferences(
    model: TokenizedModel,
    pairs: Sequence[Preference],
    settings: TrainingSettings | None = None,
    beta: float = 0.1,
    run: str | Path | None = None,
) -> nn.Module:
    """The model's network, tuned; the model itself stays as it is.

    Args:
        model: what is tuned. Put low-rank adapters into its network beforehand to train those alone.
        pairs: what is preferred to what.
        settings: of the training; the default is one pass in batches of 16 at a rate of 1e-5 (our choice).
        beta: see :class:`DPO`.
        run: a folder for checkpoints, from which the same call goes on.

    Raises:
        InputError: no pair, or one whose responses are equal.
    """
    settings = settings or TrainingSettings(epochs=1, batch_size=16, lr=1e-5)
    data = preference_data(model, pairs)
    policy = SequenceLogProbs(copy.deepcopy(model.network))
    tuned = train(preference_job(policy, data, settings, beta), run).student
    assert isinstance(tuned, SequenceLogProbs)
    return tuned.network
