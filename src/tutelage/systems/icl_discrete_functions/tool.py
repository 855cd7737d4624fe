"""Does a model learn a rule from the examples in its prompt? A network trained for it, or any language model::

    import tutelage
    from tutelage.systems.icl_discrete_functions import FunctionData, InContextModel, compare, draw_curves

    data = FunctionData("conjunction", size=6, examples=16, teaching=0.5)
    model = InContextModel(6, 16, "transformer", dim=48, depth=2, num_heads=4)
    tutelage.distill(model, None, data, "icl-discrete-functions", steps=1000, lr=1e-3)
    picture = draw_curves(compare({"transformer": model}, data), "Conjunctions of 6 variables")  # SVG

A language model behind an endpoint, beside nearest neighbours and the learner that knows the class::

    tutelage icl conjunction --picture curves.svg --set endpoint.url=http://127.0.0.1:8000/v1 --set endpoint.model=NAME

The model reads x_1, y_1, x_2, y_2, … (inputs in {-1, +1}^n, labels -1 or +1) of a function that it has never seen, and
predicts each y_t from what comes before it. Its loss is the binary cross-entropy of logit t with ``(y_t + 1) / 2``, the mean
over all positions that count. Every sequence has a fresh function, made from its sample number, so that a run resumes exactly.

Thirteen classes of functions (:data:`CLASSES`): conjunctions and disjunctions, signed, monotone and sparse; 3-term DNF, 3-clause
CNF; majority, sparse thresholds, integer halfspaces; parity, sparse parity; nearest neighbour. A *teaching sequence*
(:func:`teaching_sequence`) begins with the few examples that identify the function: k + 2 for a conjunction of k literals.
``FunctionData(teaching=0.5)`` mixes both kinds. Options: ``forcing`` (balance of labels), ``density``, ``noise`` (turned labels),
``start``. Networks (:class:`InContextModel`): transformer, LSTM, GRU, retention, Hyena, diagonal state space, or one's own, such
as a frozen GPT-2 (:class:`PretrainedDecoder`). Learners to compare with: always -1, averaging, 1-NN, 3-NN, cosine NN, and where
the class has one, its own (literal elimination, Gaussian elimination, :func:`teaching_decoder`). :func:`probe_attention` scores
each head of a transformer as a share of the largest possible score: induction, and reading the nearest neighbour's label.

![Accuracy just after a teaching sequence ends, and at the same places of random sequences](../images/icl-discrete-functions.svg)

Inside SDVP: teaching sequences say which few examples to put in a program writer's prompt, and ``tutelage icl`` whether the
writer learns from them more than its nearest neighbour knows.

Limits: with few variables elimination is quick, and only a large network comes near it. A conjunction without literals is
always +1, a disjunction without any always -1. A teaching sequence that is longer than the examples ends with them. With several
terms, a label in it is what the whole function says. Language models are asked in one prompt format.

Source: Understanding In-Context Learning in Transformers and LLMs by Learning to Learn Discrete Functions (Bhattamishra, Patel,
Blunsom and Kanade, 2024, arXiv 2310.03016).
"""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed
from tutelage.systems.icl_discrete_functions.data import FunctionData
from tutelage.systems.icl_discrete_functions.networks import InContextModel


@system("icl-discrete-functions", kind="language")
class InContextLearning(Method):
    """Learn to predict each label of a sequence from the labelled examples before it; there is no teacher.

    The student maps (xs [B, P, n], ys [B, P]) to logits [B, P]; labels [B, P] are -1 or +1, and 0 where none is learned.
    """

    needs_teacher = False
    needs_labels = True

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """One pass of the student."""
        return forward_heads(student, batch.inputs), {}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``label``: the binary cross-entropy.

        Raises:
            InputError: logits and labels are not one a position.
        """
        logits, labels = student["logits"], batch.labels
        if logits.shape != labels.shape:
            raise InputError(
                f"logits {list(logits.shape)} for labels {list(labels.shape)}",
                where="student",
                remedy="give one logit a position",
            )
        counted = (labels != 0).to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, (labels + 1) / 2, reduction="none")
        return {"label": (losses * counted).sum() / counted.sum().clamp_min(1)}

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """Monotone conjunctions of 4 variables, half of the sequences with a teaching sequence."""
        data = FunctionData("monotone-conjunction", 4, 8, length=256, seed=seed, teaching=0.5)
        student = build_with_seed(lambda: InContextModel(4, 8, dim=16, depth=1, num_heads=2), seed, "student")
        return TrainingJob(student, None, cls(), data, TrainingSettings(steps=30, batch_size=16, lr=3e-3, seed=seed))
