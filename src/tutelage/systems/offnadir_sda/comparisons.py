"""What the adaptation is compared with: distillation of masks, mutual learning, and a study of one choice after another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tutelage.distillation.data import Batch
from tutelage.distillation.method import Method, Turn
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.systems.offnadir_sda.masks import loss_names, mask_loss


class MaskDistillation(Method):
    """A student learns from clean masks and from a teacher that was trained on displaced ones.

    ``alpha L(z_s, y) + (1 - alpha) T^2 KL(s(z_t / T) || s(z_s / T))``, the KL divergence of two outcomes at each pixel, mean over
    pixels. With ``alpha = 1`` this is training on labels alone.
    """

    tasks = ("multi-label",)
    needs_labels = True

    @dataclass(frozen=True)
    class Config:
        """``loss``: of the labels, see :func:`~tutelage.systems.offnadir_sda.masks.mask_loss`. alpha and T are our choice."""

        alpha: float = 0.5
        tau: float = 2.0
        loss: str = "bce"

        def __post_init__(self) -> None:
            loss_names(self.loss)
            if not 0 <= self.alpha <= 1:
                raise InputError(f"a weight lies in 0..1, this is {self.alpha}", where="alpha", remedy="try 0.5")
            if self.tau <= 0:
                raise InputError(f"a temperature is above 0, this is {self.tau}", where="tau", remedy="try 2")

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return {"label": self.config.alpha, "kd": 1 - self.config.alpha}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label`` and ``kd``."""
        label = mask_loss(student["logits"], batch.labels, self.config.loss, batch.weights)
        return {"label": label, "kd": self.task.distance(student, teacher, batch.labels, batch.weights, self.config.tau)}


class MutualLearning(Method):
    """Deep mutual learning of masks (Zhang et al., 2018): student and peer learn in turn, each from labels and from the other.

    ``L(z, y) + KL(s(z_other) || s(z))``, the other's outputs without gradient. In every step the student is updated, then the
    peer, on the same batch, each by its own optimiser. After training, ``method.peer`` is the peer.

    Args:
        peer: a network with the student's outputs, such as one trained on displaced masks; it is copied.
        config: or its fields as ``options``.
    """

    tasks = ("multi-label",)
    needs_labels = True
    needs_teacher = False

    @dataclass(frozen=True)
    class Config:
        """``weight``: of the divergence (published: 1). ``loss``: of the labels."""

        weight: float = 1.0
        loss: str = "bce"

        def __post_init__(self) -> None:
            loss_names(self.loss)
            if self.weight < 0:
                raise InputError(f"weight is {self.weight}", where="weight", remedy="0 or more")

    def __init__(self, peer: nn.Module, config: Any = None, **options: Any):
        super().__init__(config, **options)
        if not isinstance(peer, nn.Module):
            raise InputError(f"{type(peer).__name__} is no network", where="peer", remedy="give a network")
        self.peer = copy.deepcopy(peer)

    def turns(self) -> Sequence[Turn]:
        """The student's and the peer's."""
        return (
            Turn("student", lambda name: name.startswith("student.")),
            Turn("peer", lambda name: name.startswith("method.")),
        )

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """The outputs of the network whose turn it is, and of the other, without gradient."""
        learner, other = (self.peer, student) if self.progress.turn == "peer" else (student, self.peer)
        with torch.no_grad():
            others = forward_heads(other, batch.inputs)
        return forward_heads(learner, batch.inputs), others

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return {"mutual": self.config.weight}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label`` and ``mutual`` of the network whose turn it is."""
        label = mask_loss(student["logits"], batch.labels, self.config.loss, batch.weights)
        return {"label": label, "mutual": self.task.distance(student, teacher, batch.labels, batch.weights)}


# -- the study -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """``best``: the settled choice of each question. ``trials``: (choices, score) of each trial, in order."""

    best: dict[str, Any]
    trials: list[tuple[dict[str, Any], float]]


def settle_in_turn(questions: Mapping[str, Sequence[Any]], score: Callable[[Mapping[str, Any]], float]) -> Study:
    """Settle one question after the other, as the study does: the loss, then the optimiser, the encoder, the decoder.

    A question is tried with all its answers, the earlier ones settled, the later ones at their first answer; the highest score
    stays. So there are about as many trials as answers, not as many as combinations; the result may miss a better combination.

    Args:
        questions: the answers of each, in the order in which they are settled.
        score: of a choice, such as F1 on validation tiles.

    Examples:
        >>> study = settle_in_turn({"loss": ["bce", "dice"], "width": [8, 16]}, lambda one: (one["loss"] == "dice") + one["width"])
        >>> study.best, len(study.trials)
        ({'loss': 'dice', 'width': 16}, 3)

    Raises:
        InputError: a question without answers.
    """
    for name, answers in questions.items():
        if not answers:
            raise InputError("no answer to choose from", where=f"questions.{name}", remedy="give at least one")
    best = {name: answers[0] for name, answers in questions.items()}
    reached = score(best)
    trials = [(dict(best), reached)]
    for name, answers in questions.items():
        rivals = [(best | {name: answer}, score(best | {name: answer})) for answer in answers[1:]]
        trials += rivals
        for choice, found in rivals:
            if found > reached:
                best, reached = choice, found
    return Study(best, trials)
