"""Embeddings of two towers: images and texts (or any two kinds) whose pairs lie close together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, Tree
from tutelage.distillation.tasks.base import Fit, Task, TaskMeter, head, mismatch, task
from tutelage.distillation.tasks.metrics import Metric, recall_at

HEADS = (("image_embeds", "text_embeds"), ("image", "text"))
"""The names of the two towers' heads: those of ``transformers``, or short."""
RANKS = (1, 5, 10)


@task("embeddings")
@dataclass(frozen=True)
class Embeddings(Task):
    """Two towers: row i of one belongs to row i of the other.

    Label loss: the symmetric contrastive loss of CLIP (Radford et al., 2021, figure 3) on cosine similarities. Labels
    are optional group ids [B]: all rows of one group belong together, so that several right answers, and none of them
    as a false negative, are counted (the mean log-probability of the right answers; Khosla et al., 2020, equation 2).

    Distance: the KL divergence between the two networks' similarity distributions, over rows and over columns
    (affinity mimicking; Wu et al., TinyCLIP, 2023). The widths of the two networks may differ.

    ``scale``: the factor on cosine similarities, if the network gives no head ``logit_scale`` or ``scale`` (the factor
    itself, not its logarithm).
    """

    metrics = tuple(Metric(f"{way} R@{k}", "%") for way in ("text", "image") for k in RANKS)
    needs_labels = False
    layout = "image_embeds [B, D] and text_embeds [B, D] (or image and text); labels: none, or group ids [B]"

    scale: float = 1 / 0.07

    @classmethod
    def fit(cls, output: Mapping[str, Tensor], batch: Batch) -> Fit:
        """See :class:`Task`; the names of the heads say it."""
        named = any(one in output and two in output for one, two in HEADS)
        return Fit.CERTAIN if named and all(tower.ndim == 2 for tower in _towers(output)) else Fit.NO

    def check(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`Task`."""
        a, b = self._towers(output, "student")
        if a.ndim != 2 or a.shape != b.shape:
            raise mismatch(self, f"embeddings {list(a.shape)} and {list(b.shape)}", "student")
        if labels is not None and not (isinstance(labels, Tensor) and labels.shape == a.shape[:1]):
            raise mismatch(self, f"labels {list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__}")

    def check_teacher(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> None:
        """See :class:`Task`; widths may differ."""
        own, other = _towers(student)[0], self._towers(teacher, "teacher")[0]
        if len(own) != len(other):
            raise mismatch(self, f"{len(own)} and {len(other)} rows", "teacher")

    def _towers(self, output: Mapping[str, Tensor], who: str) -> tuple[Tensor, Tensor]:
        if not all(name in output for name in HEADS[1]):  # a missing head is named by its longer name
            for name in HEADS[0]:
                head(output, name, self, who)
        return _towers(output)

    def similarities(self, output: Mapping[str, Tensor]) -> Tensor:
        """Scaled cosine similarities [B, B]: rows are images, columns texts."""
        a, b = (F.normalize(tower, dim=-1) for tower in _towers(output))
        scale = output.get("logit_scale", output.get("scale"))
        return (a @ b.T) * (self.scale if scale is None else scale.mean())

    def label_loss(self, output: Mapping[str, Tensor], labels: Tree, weights: Tensor | None = None) -> Tensor:
        """Mean of both directions; see :class:`Task`."""
        logits = self.similarities(output)
        right = _right(logits, labels).to(logits.dtype)
        goal = right / right.sum(1, keepdim=True)
        one, other = losses.cross_entropy(logits, goal, weights), losses.cross_entropy(logits.T, goal.T, weights)
        return (one + other) / 2

    def distance(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        labels: Tree = None,
        weights: Tensor | None = None,
        tau: float = 1.0,
    ) -> Tensor:
        """Mean of both directions; see :class:`Task`."""
        own, other = self.similarities(student), self.similarities(teacher)
        return (losses.kd(own, other, tau, weights) + losses.kd(own.T, other.T, tau, weights)) / 2

    def meter(self) -> TaskMeter:
        """See :class:`Task`."""
        return EmbeddingMeter()


def _towers(output: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    one, two = next(names for names in HEADS if names[0] in output and names[1] in output)
    return output[one], output[two]


def _right(logits: Tensor, groups: Tensor | None) -> Tensor:
    """Which pairs belong together: [B, B] bool."""
    if groups is None:
        return torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return groups[:, None] == groups[None]


class EmbeddingMeter(TaskMeter):
    """Recall at 1, 5 and 10 over the whole set: ``text R@k`` finds texts by images, ``image R@k`` images by texts."""

    def __init__(self) -> None:
        self.towers: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.groups: list[Tensor] = []
        self.seen = 0

    def update(self, output: Mapping[str, Tensor], labels: Tree) -> None:
        """See :class:`TaskMeter`."""
        towers = _towers(output)
        for kept, tower in zip(self.towers, towers):
            kept.append(F.normalize(tower.double(), dim=-1).cpu())
        count = len(towers[0])
        self.groups.append(torch.arange(self.seen, self.seen + count) if labels is None else labels.cpu())
        self.seen += count

    def compute(self) -> dict[str, float]:
        """See :class:`TaskMeter`."""
        if not self.groups:
            return {metric.name: math.nan for metric in Embeddings.metrics}
        images, texts = (torch.cat(kept) for kept in self.towers)
        groups = torch.cat(self.groups)
        similarity, right = images @ texts.T, groups[:, None] == groups[None]
        found = {f"text R@{k}": recall_at(similarity, right, k) for k in RANKS}
        return found | {f"image R@{k}": recall_at(similarity.T, right.T, k) for k in RANKS}
