r"""Pre-train a backbone on labels so that classes may keep several modes: most near neighbours, not all, must share the label::

    from tutelage import distill
    from tutelage.systems.look import LOOK

    result = distill(backbone, None, images, LOOK(k=20), epochs=100)   # backbone: images -> features [B, D]
    backbone = result.student

``images``: any labelled data with class ids. Of a network with a classifier, name what is pre-trained by the layer behind it:
``LOOK(features="in:head")``. As a recipe, for ``tutelage distill``::

    method = "look"
    out = "runs/backbone"

    [student]
    model = "small-cnn"
    options = { inputs = 3 }

    [data]
    file = "images.npz"

    [options]
    features = "in:head"
    k = 20

For large data take a queue, filled by a momentum encoder: ``LOOK(memory="queue", queue_size=65536)``.

**What it does.** The encoder's features go through a projection (two layers, dropped at export) to unit vectors z. For sample i,
s_ij = z_i . m_j are the similarities to a memory of such vectors with labels; its own entries are left out. With N_k(i) the k
most similar entries::

    P_i = sum over j in N_k(i), y_j = y_i of exp(s_ij / sigma)  /  sum over j in N_k(i) of exp(s_ij / sigma)
    L = - mean_i log P_i

The choice of N_k has no gradient; the kept similarities pull z_i towards neighbours of its class, and push it from others.
With k = 0 (all entries) this is neighbourhood component analysis with a memory; small k allows more modes. Where no neighbour
is of the class, the most similar entry of the class joins the k (our choice): the gradient pulls towards one mode. Where the
memory has none of the class, the sample counts 0.

**Memory.** ``slots``: one vector a sample, filled by a pass of the start weights, then overwritten by the sample's own z
after each step. ``queue``: the last vectors of an encoder that follows the student,
``theta_k <- m theta_k + (1 - m) theta``, with the ids of their samples. Until the queue is full, the step's own vectors are
entries too (our choice). All views of a sample have one id, so that a view never is a neighbour of another; keys are made of the
same view as the query, since the sample's own key does not count (our choice).

**Use in SDVP**: pre-train a module (VERIFY, CLASSIFY) on coarse answers before its fine teacher comes.

**Limits.** A gain needs real hidden sub-classes, and a task that is learned to the end: early on nothing is erased yet. The log
has ``same_class``, the share of neighbours of the right class, and ``empty``, the share of samples without any: with a stale
queue the first stays at chance. Rare classes can lack entries in a queue.

**Source**: "Rethinking Supervised Pre-training for Better Downstream Transferring" (Feng, Jiang, Tang, Jin, Gao, 2021, arXiv
2110.06014). There is no public code, and summaries give the loss without the full recipe: sigma, k, projection, memory
details and schedule are our choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation import losses
from tutelage.distillation.data import Batch, ReplayableData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.memory_bank import FeatureQueue, SlotMemory
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads, unwrap_model
from tutelage.distillation.teacher import Teacher
from tutelage.distillation.weight_averaging import ExponentialAverage
from tutelage.errors import InputError
from tutelage.fields import check_range
from tutelage.registry import system
from tutelage.systems._toy import build_with_seed, class_ids, toy_images

NOTHING = -1e9
"""The similarity of what does not count, over sigma: finite, so that no gradient becomes nan."""


class NeighbourLoss(NamedTuple):
    """Of each sample [B]: the loss, whether no kept neighbour was of its class, and the share that was."""

    loss: Tensor
    empty: Tensor
    same: Tensor


def neighbours(
    queries: Tensor, labels: Tensor, ids: Tensor, memory: tuple[Tensor, Tensor, Tensor], k: int, chunk: int = 65_536
) -> tuple[Tensor, Tensor]:
    """Places [B, k] of the k most similar entries and [B, 1] of the most similar one of the own class; -1: there is none.

    Args:
        queries: unit vectors [B, d].
        labels, ids: of the queries [B]; an entry of the same id is left out.
        memory: vectors [M, d], labels [M], ids [M].
        k: at most M.
        chunk: entries that are compared at a time; it does not change the result.
    """
    features, classes, owners = memory
    best = queries.new_full((len(queries), 0), 0.0)
    places = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    nearest, nearest_place = queries.new_full((len(queries), 1), -torch.inf), places.new_full((len(queries), 1), -1)
    for first in range(0, len(features), chunk):
        part = slice(first, first + chunk)
        found = (queries @ features[part].T).masked_fill(ids[:, None] == owners[part], -torch.inf)
        own = found.masked_fill(labels[:, None] != classes[part], -torch.inf).max(1, keepdim=True)
        closer = own.values > nearest
        nearest = torch.where(closer, own.values, nearest)
        nearest_place = torch.where(closer, own.indices + first, nearest_place)
        values, where = found.topk(min(k, found.shape[1]), 1)
        both = torch.cat([best, values], 1)
        best, chosen = both.topk(min(k, both.shape[1]), 1)
        places = torch.cat([places, where + first], 1).gather(1, chosen)
    return places.masked_fill(best == -torch.inf, -1), nearest_place


def neighbour_loss(
    queries: Tensor,
    labels: Tensor,
    ids: Tensor,
    memory: tuple[Tensor, Tensor, Tensor],
    k: int,
    sigma: float = 0.1,
    chunk: int = 65_536,
) -> NeighbourLoss:
    """``-log P_i``, the leave-one-out error of a weighted vote of the k nearest; see the module's text for the equations.

    Args:
        queries: unit vectors [B, d]; they alone get a gradient.
        labels, ids: of the queries [B].
        memory: unit vectors [M, d], labels [M], ids [M].
        k: neighbours; 0: all entries.
        sigma: temperature of the votes.
        chunk: see :func:`neighbours`.

    Examples:
        >>> memory = torch.eye(2)[[0, 0, 1]], torch.tensor([0, 1, 1]), torch.tensor([7, 8, 9])
        >>> found = neighbour_loss(torch.eye(2)[:1], torch.tensor([0]), torch.tensor([5]), memory, k=2)
        >>> round(float(found.loss), 4)  # one of two neighbours, equally near
        0.6931
    """
    features, classes, owners = (part.detach() for part in memory)
    features, queries = features.float(), queries.float()
    if k == 0 or k >= len(features):
        kept = queries @ features.T / sigma
        valid, same_class = ids[:, None] != owners, labels[:, None] == classes
        empty = ~(same_class & valid).any(1)
        counted = ~empty
    else:
        with torch.no_grad():
            places, nearest = neighbours(queries, labels, ids, (features, classes, owners), k, chunk)
            empty = ~((classes[places.clamp_min(0)] == labels[:, None]) & (places >= 0)).any(1)
            counted = ~empty | (nearest[:, 0] >= 0)
            places = torch.cat([places, nearest.masked_fill(~empty[:, None], -1)], 1)
            valid, same_class = places >= 0, classes[places.clamp_min(0)] == labels[:, None]
        kept = torch.einsum("bd,bkd->bk", queries, features[places.clamp_min(0)]) / sigma
    same = same_class & valid
    every = kept.masked_fill(~valid, NOTHING).logsumexp(1)
    right = kept.masked_fill(~same, NOTHING).logsumexp(1)
    loss = torch.where(counted, (every - right).clamp_min(0), 0.0)
    return NeighbourLoss(loss, empty, same.sum(1) / valid.sum(1).clamp_min(1))


def mode_ratio(z: Tensor, fine: Tensor, coarse: Tensor) -> float:
    """How far apart the sub-classes of a class lie: the mean squared distance of sub-class means to their class's mean, over
    that of vectors to their sub-class's mean. 0: nothing of the sub-classes is left.

    Args:
        z: vectors [N, d].
        fine, coarse: sub-class and class of each [N]; every sub-class belongs to one class.
    """
    names = fine.unique()
    means = torch.stack([z[fine == name].mean(0) for name in names])
    classes = torch.stack([coarse[fine == name][0] for name in names])
    centres = torch.stack([z[coarse == name].mean(0) for name in classes])
    within = torch.stack([(z[fine == name] - mean).square().sum(1).mean() for name, mean in zip(names, means, strict=True)])
    return ((means - centres).square().sum(1).mean() / within.mean()).item()


@system("look", kind="pretraining")
class LOOK(Method):
    """Supervised pre-training by leave-one-out k nearest neighbours: classes keep their hidden modes.

    Student: a network of features [B, D] (other shapes are flattened), or any with ``features`` named. Labels: class ids [B].

    Raises:
        InputError: an option out of range, a queue longer than the data, or labels that are no class ids.
    """

    needs_teacher = False
    needs_labels = True

    @dataclass(frozen=True)
    class Config:
        """``k``: neighbours, 0: all. ``sigma``: of the votes. ``dim``: of z. ``features``: the layer that is pre-trained,
        ``in:NAME`` for what goes into NAME; "": the output. ``memory``, ``queue_size``, ``momentum``: see above. ``chunk``:
        entries compared at a time."""

        k: int = 20
        sigma: float = 0.1
        dim: int = 128
        features: str = ""
        memory: Literal["slots", "queue"] = "slots"
        queue_size: int = 4096
        momentum: float = 0.999
        chunk: int = 65_536

        def __post_init__(self) -> None:
            check_range("k", self.k, 0, 10_000_000, whole=True)
            check_range("sigma", self.sigma, 1e-4, 1e4)
            check_range("momentum", self.momentum, 0, 1)
            for name in ("dim", "queue_size", "chunk"):
                check_range(name, getattr(self, name), 1, 100_000_000, whole=True)
            if self.memory not in ("slots", "queue"):
                raise InputError(f"unknown memory {self.memory!r}", where="memory", remedy="slots or queue")

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """The projection and the memory; of slots, one pass over the plain samples; see :class:`Method`."""
        config = self.config
        class_ids(example.labels)
        names = [config.features] if config.features else []
        self._hooks = FeatureHooks(student, names)
        if config.features.startswith("in:"):
            self.unused_parameters = (f"student.{config.features[3:]}.*",)
        features = self._features(student, self._hooks, example)
        width, device = features.shape[1], features.device
        self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.dim)).to(device)
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        if config.memory == "queue":
            if config.queue_size > len(data):
                message = f"a queue of {config.queue_size} entries for {len(data)} samples"
                raise InputError(message, where="queue_size", remedy="a shorter queue, or memory = slots")
            self.queue = FeatureQueue(config.queue_size, config.dim).to(device)
            self._average = ExponentialAverage(nn.ModuleList([unwrap_model(student), self.project]), config.momentum)
            self.key_networks = self._average.network
            self._key_hooks = FeatureHooks(self.key_networks[0], names)  # type: ignore[index]
            return
        self.slots = SlotMemory(len(data), config.dim).to(device)
        for indices in torch.arange(len(data)).split(512):
            batch = data.batch(indices, None).to(device)
            z = self.embed(student, batch)
            self.slots.write(_ids(batch), z, class_ids(batch.labels))

    def _features(self, network: nn.Module, hooks: FeatureHooks, batch: Batch) -> Tensor:
        if not hooks.names:
            return forward_heads(network, batch.inputs)["logits"].flatten(1)
        with hooks as taken:
            forward_heads(network, batch.inputs)
        return taken[hooks.names[0]].flatten(1)

    def embed(self, student: nn.Module, batch: Batch) -> Tensor:
        """z [B, dim], unit vectors."""
        return F.normalize(self.project(self._features(student, self._hooks, batch)).float(), dim=-1)

    def entries(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What z is compared with: vectors, labels and ids."""
        if self.config.memory == "slots":
            return self.slots.entries()
        held = self.queue.entries()
        if len(self.queue) == self.config.queue_size:
            return held
        keys = self._keys(batch), class_ids(batch.labels), _ids(batch)
        return tuple(torch.cat([one, other.to(one)]) for one, other in zip(held, keys, strict=True))  # type: ignore[return-value]

    @torch.no_grad()
    def _keys(self, batch: Batch) -> Tensor:
        """The momentum encoder's vectors."""
        encoder, project = self.key_networks.eval()  # type: ignore[misc]
        return F.normalize(project(self._features(encoder, self._key_hooks, batch)).float(), dim=-1)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """``embedding``: z [B, dim]."""
        return {"embedding": self.embed(student, batch)}, {}

    def loss_weights(self) -> Mapping[str, float]:
        """``empty`` and ``same_class`` are only logged."""
        return {"empty": 0.0, "same_class": 0.0}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``neighbours``, and the figures of the log."""
        z, labels, ids = student["embedding"], class_ids(batch.labels), _ids(batch).to(student["embedding"].device)
        found = self.sample_loss(z, labels, ids, self.entries(batch))
        vectors = z.detach() if self.config.memory == "slots" else self._keys(batch)
        self._seen.append((vectors, labels, ids))
        return {
            "neighbours": losses.average(found.loss, batch.weights),
            "empty": found.empty.float().mean(),
            "same_class": found.same.float().mean(),
        }

    def sample_loss(self, z: Tensor, labels: Tensor, ids: Tensor, memory: tuple[Tensor, Tensor, Tensor]) -> NeighbourLoss:
        """The loss of each sample; other losses over the same memory override it."""
        return neighbour_loss(z, labels, ids, memory, self.config.k, self.config.sigma, self.config.chunk)

    def after_step(self, student: nn.Module) -> None:
        """The momentum encoder follows, and the step's vectors go into the memory."""
        if self.config.memory == "queue":
            self._average.update(nn.ModuleList([unwrap_model(student), self.project]))
        for vectors, labels, ids in self._seen:
            if self.config.memory == "slots":
                self.slots.write(ids, vectors, labels)
            else:
                self.queue.enqueue(vectors, labels, ids)
        self._seen = []

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of a second: toy images, a small encoder."""
        student = build_with_seed(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU()), seed, "student")
        settings = TrainingSettings(steps=8, batch_size=16, seed=seed)
        return TrainingJob(student, None, cls(dim=8), toy_images(seed), settings, "look")


def _ids(batch: Batch) -> Tensor:
    if batch.ids is None:
        raise InputError("the batch has no sample ids", where="ids", remedy="Data.batch must set them")
    return batch.ids
