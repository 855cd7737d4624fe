"""MiniLM: deep self-attention distillation (Wang, Wei, Dong, Bao, Yang, Zhou, 2020, arXiv 2002.10957)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch, ReplayableData, TensorData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.plan import Students, TrainingPlan
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError, did_you_mean
from tutelage.networks.attention import TransformerBlock
from tutelage.registry import system
from tutelage.seeds import torch_rng
from tutelage.systems._toy import build_with_seed

_SPELT_OUT, _SHORT = ("query", "key", "value"), ("q_proj", "k_proj", "v_proj")
_LAYERS = {
    "bert": ("encoder.layer.{}.attention.self", _SPELT_OUT),
    "roberta": ("encoder.layer.{}.attention.self", _SPELT_OUT),
    "xlm-roberta": ("encoder.layer.{}.attention.self", _SPELT_OUT),
    "vit": ("layers.{}.attention", _SHORT),
    "vit-4": ("encoder.layer.{}.attention.attention", _SPELT_OUT),
    "encoder": ("blocks.{}.attention", _SPELT_OUT),
}


def projections(architecture: str, layer: int, prefix: str = "") -> tuple[str, str, str]:
    """Names of the query, key and value projections of a layer (from 0): taps for ``student=`` and ``teacher=``.

    ``architecture``: a model of ``transformers`` (``prefix="bert."`` inside a model with a head; ``vit-4``: the names
    before version 5), or ``encoder``, ours.
    A model whose projections are one module is given by that module's name alone: ``("blocks.11.attn.qkv",)``.

    Raises:
        InputError: an architecture that is not known here.
    """
    if architecture not in _LAYERS:
        raise InputError(f"unknown architecture {architecture!r}", remedy=did_you_mean(architecture, list(_LAYERS)))
    attention, (query, key, value) = _LAYERS[architecture]
    home = prefix + attention.format(layer)
    return f"{home}.{query}", f"{home}.{key}", f"{home}.{value}"


def relation_logits(a: Tensor, b: Tensor, heads: int, mask: Tensor) -> Tensor:
    """``log softmax(a b^T / sqrt(dim / heads))`` by head over the real tokens: [B, heads, N, N].

    a, b: [B, N, width], cut into ``heads``; mask [B, N], 1 marks a real token. Columns of padding hold 0 probability
    (a log far below any other, finite so that no gradient is nan).
    """
    a, b = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (a, b))
    scores = a @ b.transpose(-1, -2) * a.shape[-1] ** -0.5
    return scores.masked_fill(~mask.bool()[:, None, None], torch.finfo(scores.dtype).min).log_softmax(-1)


def relation_divergence(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """``1/n sum_t KL(teacher_t || student_t)`` of each sequence and head: [B, heads], n its number of real tokens.

    teacher, student: log-probabilities [B, heads, N, N] from :func:`relation_logits`; the heads' mean, then the batch's, is
    the loss.
    """
    real = mask.bool()
    both = real[:, None, :, None] & real[:, None, None, :]
    teacher = teacher.detach()
    point = torch.where(both, teacher.exp() * (teacher - student), 0.0)
    return point.sum((-1, -2)) / real.sum(-1, keepdim=True).clamp_min(1)


def needs_assistant(teacher: tuple[int, int], student: tuple[int, int]) -> tuple[int, int] | None:
    """The (layers, width) of the teacher assistant to distil through, or None where the paper uses none.

    An assistant, of the teacher's depth and the student's width, is used where the student has at most half the
    teacher's layers and at most half its width; it is one more training job with the same loss
    (:func:`plan_with_assistant`).
    """
    (deep, wide), (layers, width) = teacher, student
    return (deep, width) if 2 * layers <= deep and 2 * width <= wide else None


def plan_with_assistant(
    teacher: nn.Module,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    build: Callable[[int, int], nn.Module],
    data: ReplayableData,
    settings: TrainingSettings,
    names: Callable[[int], tuple[str, ...]] = partial(projections, "encoder"),  # noqa: B008  (frozen)
    teacher_names: Callable[[int], tuple[str, ...]] | None = None,
    **options: Any,
) -> TrainingPlan:
    """Distillation through the assistant that :func:`needs_assistant` asks for, or in one job where it asks for none: a
    plan for :func:`tutelage.distillation.plan.train_plan`, which :class:`MiniLM` shows in use.

    Args:
        teacher: the large encoder.
        sizes: (layers, width) of the teacher, and of the student.
        build: makes an encoder at random, from its layers and width.
        data: texts without labels, for both jobs.
        settings: for both jobs.
        names: the taps of a layer (from 0); by default those of ``encoder``: see :func:`projections`.
        teacher_names: the same of the teacher, where it is another kind of network than ``build`` makes.
        options: further options of :class:`MiniLM`, for both jobs.
    """
    (deep, _), (layers, width) = sizes
    assistant = needs_assistant(*sizes)

    def distil(student: nn.Module, depth: int, source: nn.Module) -> TrainingJob:
        of_source = teacher_names if teacher_names is not None and source is teacher else names
        method = MiniLM(student=names(depth - 1), teacher=of_source(deep - 1), **options)  # every source is as deep
        return TrainingJob(student, source, method, data, settings, "minilm")

    plan: dict[str, Callable[[Students], TrainingJob]] = {}
    if assistant is not None:
        plan["assistant"] = lambda made: distil(build(*assistant), deep, teacher)
    plan["student"] = lambda made: distil(build(layers, width), layers, made["assistant"] if assistant else teacher)
    return plan


@system("minilm", kind="distillation")
class MiniLM(Method):
    """MiniLM: a student encoder copies the last layer's attention and value relation of its teacher, without labels.

    For a sequence of n real tokens and head a of A: ``A_a = softmax(Q_a K_a^T / sqrt(d_a))`` and
    ``VR_a = softmax(V_a V_a^T / sqrt(d_a))``, each model with its own head width;
    ``L = 1/(A n) sum_a sum_t KL(A^T_{a,t} || A^S_{a,t}) + the same of VR``, per sequence, then the mean over the batch.
    Relations are n x n, so that widths may differ and no projection is learned. ``relation_heads`` and ``relations``
    are the generalisation of MiniLMv2 (arXiv 2012.15828): any weighted pairs of q, k, v, after re-cutting the widths;
    with A heads and (q, k), (v, v) it is the loss above.

    Queries, keys and values are tapped at the projections, before any dropout. The student's parameters above the
    tapped projections get no gradient: they are found in ``prepare`` and declared ``unused_parameters``. Start the student at
    random (normal, 0.02), and fine-tune it on the task afterwards. Inputs: a dict with ``attention_mask``
    [B, N]; without it every token is real.

    A student with at most half the teacher's layers and at most half its width learns through a teacher assistant, of the
    teacher's layers and the student's width (section 3.3). That is a plan of two training jobs with the same loss::

        from functools import partial

        from tutelage.distillation.job import TrainingSettings
        from tutelage.distillation.plan import train_plan
        from tutelage.systems.minilm import plan_with_assistant, projections

        # teacher: a BertModel of 12 layers and 768; build(layers, width): a BertModel at random; texts: TensorData of a dict
        settings, names = TrainingSettings(steps=400_000, batch_size=256, lr=3e-4), partial(projections, "bert")
        heads = {"student_heads": 12, "teacher_heads": 12}
        plan = plan_with_assistant(teacher, ((12, 768), (6, 384)), build, texts, settings, names, **heads)
        done = train_plan(plan, "runs/minilm")  # goes on where it was stopped; done.results["assistant"] is kept too
        done.student  # the plain encoder of 6 layers and 384, to fine-tune

    ``sizes`` that need no assistant give a plan of one job. A plan is Python alone: a recipe describes one job, and its
    ``[data]`` holds no texts.

    Published schedule: Adam, 400,000 steps, batch 1024 at 5e-4 (6 layers of 768) or 256 at 3e-4, 4,000 warm-up steps,
    linear decay, weight decay 0.01, length 512 (quoted from the paper).

    Raises:
        InputError: unequal heads without ``relation_heads``, or a width that the heads do not divide.
    """

    @dataclass(frozen=True)
    class Config:
        """``student``, ``teacher``: taps of q, k, v, or of one module that puts out all three side by side;
        ``relations``: (first, second, weight)."""

        student: tuple[str, ...] = projections("encoder", 1)
        teacher: tuple[str, ...] = projections("encoder", 1)
        student_heads: int = 4
        teacher_heads: int = 4
        relation_heads: int | None = None
        relations: tuple[tuple[str, str, float], ...] = (("q", "k", 1.0), ("v", "v", 1.0))

        def __post_init__(self) -> None:
            for name in ("student", "teacher"):
                if len(getattr(self, name)) not in (1, 3):
                    raise InputError("give three taps, or the one of a fused projection", where=name)
            if any(part not in ("q", "k", "v") for first, second, _ in self.relations for part in (first, second)):
                raise InputError("a relation pairs two of q, k and v", where="relations", remedy="such as ('v', 'v', 1.0)")
            if self.relation_heads is None and self.student_heads != self.teacher_heads:
                raise InputError(
                    f"student has {self.student_heads} heads, teacher {self.teacher_heads}",
                    where="student_heads",
                    remedy="relation_heads=… cuts both widths into one number of heads (MiniLMv2)",
                )

    @property
    def heads(self) -> int:
        """The number of heads that relations are made of."""
        return self.config.relation_heads or self.config.teacher_heads

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Sets the taps, checks the widths, and finds the idle parameters; see :class:`Method`."""
        assert teacher is not None
        config = self.config
        self._taps = FeatureHooks(student, config.student)
        teacher.request_features(*config.teacher)
        with torch.enable_grad():
            student_outputs, teacher_outputs = self(example, student, teacher)
            for name, width in (("student", student_outputs["q"].shape[-1]), ("teacher", teacher_outputs["q"].shape[-1])):
                if width % self.heads:
                    raise InputError(f"{self.heads} heads do not divide the {name}'s width {width}", where="relation_heads")
            parts = {part for first, second, _ in config.relations for part in (first, second)}
            named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
            total = sum(student_outputs[part].sum() for part in parts)
            slopes = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
        self.unused_parameters = tuple(f"student.{name}" for (name, _), slope in zip(named, slopes) if slope is None)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """``q``, ``k``, ``v`` [B, N, width] of the tapped layers."""
        assert teacher is not None
        teacher_outputs = teacher(batch)
        with self._taps as taken:
            forward_heads(student, batch.inputs)
        return _parts(taken, self.config.student), _parts(teacher_outputs, self.config.teacher)

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """One term a relation: ``attention`` (q, k), ``value`` (v, v), others by their letters."""
        inputs = batch.inputs
        mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
        if mask is None:
            mask = torch.ones(student["q"].shape[:2], device=student["q"].device)
        terms = {}
        for first, second, _ in self.config.relations:
            student_relation = relation_logits(student[first], student[second], self.heads, mask)
            teacher_relation = relation_logits(teacher[first], teacher[second], self.heads, mask)
            terms[_name(first, second)] = relation_divergence(teacher_relation, student_relation, mask).mean()
        return terms

    def loss_weights(self) -> dict[str, float]:
        """See :class:`Method`."""
        return {_name(first, second): weight for first, second, weight in self.config.relations}

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training job of a second: random tokens, some padded, and a student half as wide as its teacher."""
        depths = (2, 2) if width == 1 else (6, 12)
        student = build_with_seed(lambda: TinyEncoder(20, 8 * width, depths[0], 4), seed, "student")
        teacher = build_with_seed(lambda: TinyEncoder(20, 16 * width, depths[1], 4, std=0.2), seed, "teacher")
        rng = torch_rng(seed, "tokens")
        mask = (torch.arange(12) < torch.randint(6, 13, (32, 1), generator=rng)).long()
        tokens = torch.randint(1, 20, (32, 12), generator=rng) * mask
        data = TensorData({"input_ids": tokens, "attention_mask": mask})
        return TrainingJob(student, teacher, cls(), data, TrainingSettings(steps=8, batch_size=16, seed=seed), "minilm")


def _name(first: str, second: str) -> str:
    return {("q", "k"): "attention", ("v", "v"): "value"}.get((first, second), f"{first}{second}")


def _parts(outputs: Output, taps: tuple[str, ...]) -> Output:
    found = outputs[taps[0]].chunk(3, -1) if len(taps) == 1 else [outputs[tap] for tap in taps]
    return dict(zip("qkv", found))


class TinyEncoder(nn.Module):
    """A small masked language model: token and position embeddings, blocks, a norm, the embedding again as head.

    ``input_ids`` [B, N] (0: padding), ``attention_mask`` [B, N] -> ``hidden`` [B, N, width], ``logits`` [B, N, words].
    Weights start at normal(``std``), biases at 0.
    """

    def __init__(self, words: int, dim: int, depth: int, heads: int, length: int = 64, std: float = 0.02):
        super().__init__()
        self.words, self.positions = nn.Embedding(words, dim), nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, tap_weights=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The final states [B, N, width]."""
        x = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x, attention_mask)
        return self.norm(x)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Hidden states, and logits over the words."""
        hidden = self.hidden(input_ids, attention_mask)
        return {"hidden": hidden, "logits": F.linear(hidden, self.words.weight)}
