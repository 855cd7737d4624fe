"""Tokens: a class a token (tagging, masked language models), or the next token (language modelling)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tutelage.distillation.data import Batch, flatten_tree
from tutelage.distillation.tasks.base import Fit, task
from tutelage.distillation.tasks.categorical import IGNORED, CategoricalTask
from tutelage.distillation.tasks.metrics import Metric


@dataclass(frozen=True)
class _Tokens(CategoricalTask):
    """Logits [B, L, V]: the classes are the last axis. An ignored label (-100) is padding, or a prompt: neither label
    loss nor distance nor metrics count its position."""

    class_axis = 2
    masks_distance = True

    def shape_fits(self, logits: Tensor, labels: Tensor) -> bool:
        """See :class:`CategoricalTask`."""
        return logits.ndim == 3 and labels.shape == logits.shape[:2]

    @classmethod
    def fit(cls, output: Mapping[str, Tensor], batch: Batch) -> Fit:
        """See :class:`Task`."""
        logits, labels = output.get("logits"), batch.labels
        if logits is None or logits.ndim != 3 or logits.shape[2] < 2 or {"boxes", "pred_boxes"} & set(output):
            return Fit.NO
        if labels is None:
            return Fit.POSSIBLE
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != logits.shape[:2]:
            return Fit.NO
        return Fit.CERTAIN if _repeats_inputs(batch) == cls._labels_repeat_inputs() else Fit.NO

    @classmethod
    def _labels_repeat_inputs(cls) -> bool:
        raise NotImplementedError


@task("token-classification")
@dataclass(frozen=True)
class TokenClassification(_Tokens):
    """A class a token; the label at a position belongs to the logits at that position."""

    metrics = (Metric("accuracy", "%"), Metric("F1", "%"), Metric("perplexity", "", False))
    layout = "logits [B, L, C], C >= 2; labels [B, L] class ids, -100 ignored"

    @classmethod
    def _labels_repeat_inputs(cls) -> bool:
        return False


@task("language-modelling")
@dataclass(frozen=True)
class LanguageModelling(_Tokens):
    """The next token: the logits at a position are compared with the label of the position after it.

    Labels are the input ids themselves, with -100 at padding and at what is not learned from (the convention of
    ``transformers``). Labels that are shifted already belong to ``token-classification``.
    """

    metrics = (Metric("perplexity", "", False), Metric("accuracy", "%"))
    layout = "logits [B, L, V]; labels [B, L] are the input ids (not shifted), -100 ignored"

    @classmethod
    def _labels_repeat_inputs(cls) -> bool:
        return True

    def align(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`CategoricalTask`."""
        return logits[:, :-1], labels[:, 1:]


def _repeats_inputs(batch: Batch) -> bool:
    """Whether the labels that count are the ids of the input."""
    labels = batch.labels
    counted = labels != IGNORED
    for _, leaf in flatten_tree(batch.inputs):
        if leaf.shape == labels.shape and not leaf.is_floating_point():
            if bool(counted.any()) and bool((leaf[counted] == labels[counted]).all()):
                return True
    return False
