"""Instance segmentation on Volt's voxels: the query decoder of SPFormer (Sun, Qing, Tan, Xu, 2023) and its set loss."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.losses import hungarian_assignment
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms
from tutelage.errors import InputError
from tutelage.networks.attention import TransformerBlock
from tutelage.networks.layers import init_weights
from tutelage.systems._toy import build_with_seed
from tutelage.systems.volt.augment import SceneDataset
from tutelage.systems.volt.network import VoltNetwork, patches, voxels
from tutelage.systems.volt.synthetic_rooms import CLASSES, room


class InstanceDecoder(nn.Module):
    """Queries that read the superpoints of a scene, layer by layer, and mark the superpoints of one object each.

    Each layer: self-attention of the queries, attention to the superpoints that the query's last mask holds (to all, where it
    holds none), an MLP. After every layer, and before the first, each query gives classes, a mask (its product with a
    projection of every superpoint), and how well that mask fits. Layers are the library's pre-norm blocks (our choice).

    Args:
        in_chans: of a superpoint's vector.
        num_classes: C; one more class means "no object".
        dim, queries, depth, num_heads: published 384, 400, 6; heads: 8 (our choice).
    """

    def __init__(self, in_chans: int, num_classes: int, dim: int = 384, queries: int = 400, depth: int = 6, num_heads: int = 8):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(in_chans, dim), nn.LayerNorm(dim))
        self.masks = nn.Sequential(nn.Linear(in_chans, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.queries = nn.Parameter(torch.empty(queries, dim))
        self.blocks = nn.ModuleList(TransformerBlock(dim, num_heads, context_dim=dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.classify, self.score = nn.Linear(dim, num_classes + 1), nn.Linear(dim, 1)
        init_weights(self)
        nn.init.trunc_normal_(self.queries, std=0.02)

    def forward(self, superpoints: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of one scene's superpoints [S, in_chans]: classes [L, Q, C + 1], masks [L, Q, S] and scores [L, Q], of ``depth`` + 1
        stages; the last is the answer."""
        context, keys = self.embed(superpoints)[None], self.masks(superpoints)
        x, found = self.queries[None], []
        for block in [None, *self.blocks]:
            if block is not None:
                held = found[-1][1].detach() > 0
                held = held | ~held.any(1, keepdim=True)
                x = block(x, None, context, held[None])
            normed = self.norm(x[0])
            found.append((self.classify(normed), normed @ keys.T, self.score(normed)[:, 0]))
        classes, masks, scores = (torch.stack(parts) for parts in zip(*found, strict=True))
        return classes, masks, scores


class VoltInstances(nn.Module):
    """A volume transformer whose voxels, averaged over superpoints, go into an :class:`InstanceDecoder`.

    Scenes as :class:`VoltNetwork` takes them, and ``superpoint`` [n], the number of each voxel's superpoint, from 0, no two
    scenes sharing one; without it the network's patches are the superpoints (our choice: the paper's come from a graph cut of
    the scan's mesh). Out: ``classes`` [L, B, Q, C + 1], ``masks`` [L, S, Q] and ``scores`` [L, B, Q], the last of the L stages
    being the answer; ``superpoint`` [n], and the ``scene`` [S] of each superpoint. ``options``: of the decoder.

    Raises:
        InputError: a superpoint in two scenes, or one without a voxel.
    """

    def __init__(self, network: VoltNetwork, num_classes: int, **options: int):
        super().__init__()
        self.backbone = copy.deepcopy(network)
        self.decoder = InstanceDecoder(network.head.in_features, num_classes, **options)
        self.backbone.head = nn.Identity()  # type: ignore[assignment]

    def forward(self, scenes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See the class."""
        found = voxels(scenes, self.backbone.in_chans)
        superpoint = scenes["superpoint"] if "superpoint" in scenes else patches(found, self.backbone.patch).token
        pooled, scene = pool_superpoints(self.backbone.points(found), superpoint, found.batch)
        stages = [self.decoder(pooled[scene == number]) for number in range(int(found.batch.max()) + 1)]
        classes, masks, scores = zip(*stages, strict=True)
        order = torch.cat([(scene == number).nonzero()[:, 0] for number in range(len(stages))])
        joined = torch.cat([mask.transpose(1, 2) for mask in masks], 1)
        return {
            "classes": torch.stack(classes, 1),
            "masks": joined[:, order.argsort()],
            "scores": torch.stack(scores, 1),
            "superpoint": superpoint,
            "scene": scene,
        }


def pool_superpoints(vectors: Tensor, superpoint: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [S, U] of the voxels' vectors [n, U] over each superpoint, and its scene [S].

    Raises:
        InputError: a superpoint in two scenes, or one without a voxel.
    """
    count = int(superpoint.max()) + 1
    sizes = torch.bincount(superpoint, minlength=count)
    first, last = (torch.zeros(count, dtype=torch.int64, device=batch.device).scatter_reduce(
        0, superpoint, batch, how, include_self=False) for how in ("amin", "amax"))  # fmt: skip
    if not bool((sizes > 0).all()) or not torch.equal(first, last):
        raise InputError(
            "a superpoint has no voxel, or lies in two scenes", where="superpoint", remedy="number them from 0, scene after scene"
        )
    total = vectors.new_zeros(count, vectors.shape[1]).index_add(0, superpoint, vectors)
    return total / sizes[:, None], first


@dataclass(frozen=True)
class Targets:
    """The objects of one scene: ``labels`` [T] class ids, ``masks`` [T, S'] which of its superpoints belong to each."""

    labels: Tensor
    masks: Tensor


def scene_targets(output: Output, batch: Batch, number: int) -> Targets:
    """The objects of scene ``number``: a superpoint belongs to one that holds at least half of its voxels. Objects without a
    label, and those that no superpoint belongs to, are left out."""
    rows, own = batch.inputs["batch"] == number, output["scene"] == number
    superpoint, objects, labels = output["superpoint"][rows], batch.extra["objects"][rows], batch.labels[rows]
    place = torch.full((len(own),), -1, dtype=torch.int64, device=own.device)
    place[own] = torch.arange(int(own.sum()), device=own.device)
    sizes = torch.bincount(place[superpoint], minlength=int(own.sum()))
    found: list[tuple[Tensor, Tensor]] = []
    for which in objects.unique().tolist():
        held = (objects == which) & (labels >= 0)
        inside = torch.bincount(place[superpoint[held]], minlength=len(sizes)) * 2 >= sizes
        if which >= 0 and bool(held.any()) and bool(inside.any()):
            found.append((labels[held].mode().values, inside))
    if not found:
        return Targets(labels.new_zeros(0), own.new_zeros(0, len(sizes)))
    return Targets(torch.stack([label for label, _ in found]), torch.stack([mask for _, mask in found]))


def dice_loss(masks: Tensor, targets: Tensor) -> Tensor:
    """``1 - 2 |p t| / (|p| + |t|)`` of probabilities and targets [..., S], smoothed by 1: [...]."""
    return 1 - (2 * (masks * targets).sum(-1) + 1) / (masks.sum(-1) + targets.sum(-1) + 1)


class InstanceTraining(Method):
    """The set loss of SPFormer: each object is matched with one query, at every stage of the decoder.

    ``L = w_c CE + w_b BCE + w_d dice + w_s (score - IoU)^2``, the last three over matched queries; unmatched queries learn the
    class "no object", which counts ``nothing``. The cheapest one-to-one match by ``w_c (-p_class) + w_b BCE + w_d dice`` decides.
    A score learns only where its mask overlaps its object by more than half. Mean over scenes, sum over stages.

    Student: :class:`VoltInstances`; labels [n] class ids, below 0: none; ``batch.extra["objects"]`` [n], as of
    :class:`SceneDataset`. Weights follow SPFormer as far as its paper gives them; the rest is our choice.

    Raises:
        InputError: data that do not tell objects apart.
    """

    needs_labels = True
    needs_teacher = False

    @dataclass(frozen=True)
    class Config:
        """``classes``, ``bce``, ``dice``, ``score``: the weights; ``nothing``: of the class "no object"."""

        classes: float = 0.5
        bce: float = 1.0
        dice: float = 1.0
        score: float = 0.5
        nothing: float = 0.1

    def loss_weights(self) -> Mapping[str, float]:
        """See :class:`Method`."""
        return {name: getattr(self.config, name) for name in ("classes", "bce", "dice", "score")}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``classes``, ``bce``, ``dice`` and ``score``."""
        if "objects" not in batch.extra:
            raise InputError("the data tell no objects apart", where="batch.extra", remedy='give extra["objects"], as SceneDataset')
        terms = []
        for number in range(student["classes"].shape[1]):
            targets, own = scene_targets(student, batch, number), student["scene"] == number
            for classes, masks, scores in zip(student["classes"], student["masks"], student["scores"], strict=True):
                terms.append(self._stage(classes[number], masks[own].T, scores[number], targets))
        scenes = student["classes"].shape[1]
        return {name: torch.stack([one[name] for one in terms]).sum() / scenes for name in terms[0]}

    def _stage(self, classes: Tensor, masks: Tensor, scores: Tensor, targets: Targets) -> Terms:
        """The terms of one stage of one scene: classes [Q, C + 1], masks [Q, S'], scores [Q]."""
        query, match = self.matched(classes, masks, targets)
        wanted = torch.full((len(classes),), classes.shape[1] - 1, dtype=torch.int64, device=classes.device)
        wanted[query] = targets.labels[match]
        weights = classes.new_ones(classes.shape[1])
        weights[-1] = self.config.nothing
        terms = {"classes": F.cross_entropy(classes, wanted, weight=weights)}
        nothing = masks.sum() * 0 + scores.sum() * 0
        if not len(query):
            return terms | {"bce": nothing, "dice": nothing, "score": nothing}
        taken, true = masks[query], targets.masks[match].to(masks.dtype)
        terms["bce"] = F.binary_cross_entropy_with_logits(taken, true)
        terms["dice"] = dice_loss(taken.sigmoid(), true).mean()
        held = (taken.detach() > 0).to(masks.dtype)
        overlap = (held * true).sum(1) / (held + true).clamp_max(1).sum(1)
        good = overlap > 0.5
        terms["score"] = F.mse_loss(scores[query][good], overlap[good]) if bool(good.any()) else nothing
        return terms

    @torch.no_grad()
    def matched(self, classes: Tensor, masks: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Which query has which object: two tensors of min(Q, T) numbers."""
        if not len(targets.labels):
            return targets.labels, targets.labels
        true, config = targets.masks.to(masks.dtype), self.config
        ones, zeros = F.softplus(-masks), F.softplus(masks)  # -log p and -log (1 - p)
        bce = (ones @ true.T + zeros @ (1 - true).T) / masks.shape[1]
        cost = config.bce * bce + config.dice * dice_loss(masks.sigmoid()[:, None], true[None])
        cost = cost - config.classes * classes.softmax(-1)[:, targets.labels]
        pairs = hungarian_assignment(cost.double().cpu().numpy())
        query, match = torch.tensor(pairs, dtype=torch.int64, device=masks.device).T
        return query, match

    @classmethod
    def tiny_job(cls, seed: int) -> TrainingJob:
        """A training job of three seconds: the objects of eight rooms."""
        options = {"width": 16, "heads": 2, "depth": 1, "outputs": 8, "patch": 2}

        def student() -> VoltInstances:
            network = VoltNetwork(1, 6, **options)  # type: ignore[arg-type]
            return VoltInstances(network, len(CLASSES), dim=16, queries=6, depth=2, num_heads=2)

        data = SceneDataset([room(1000 * seed + i, 12, 3) for i in range(8)])
        settings = TrainingSettings(steps=6, batch_size=2, lr=3e-3, seed=seed)
        return TrainingJob(build_with_seed(student, seed, "student"), None, cls(), data, settings, "volt, instances")


@dataclass(frozen=True)
class Instance:
    """A found object: its class, how sure the network is, in 0..1, and its voxels [n], True or False."""

    label: int
    confidence: float
    voxels: Tensor


@torch.no_grad()
def found_instances(output: Output, number: int, threshold: float = 0.1) -> list[Instance]:
    """The objects of scene ``number`` in an output of :class:`VoltInstances`, the surest first.

    A query's confidence is the probability of its class, times its score (in 0..1), times the mean probability of its mask; a
    query whose class is "no object", whose mask is empty, or which is less sure than ``threshold`` gives none.
    """
    own = output["scene"] == number
    classes, masks, scores = output["classes"][-1, number].softmax(-1), output["masks"][-1], output["scores"][-1, number]
    found = []
    for query, row in enumerate(classes):
        held = (masks[:, query] > 0) & own
        label = int(row.argmax())
        if label == len(row) - 1 or not bool(held.any()):
            continue
        confidence = float(row[label] * scores[query].clamp(0, 1) * masks[held, query].sigmoid().mean())
        if confidence >= threshold:
            found.append(Instance(label, confidence, held[output["superpoint"]]))
    return sorted(found, key=lambda one: -one.confidence)
