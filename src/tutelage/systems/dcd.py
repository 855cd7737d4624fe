"""Teach a shallow matcher of images and texts from a deep one, on the negatives that the deep one finds hard::

    from tutelage.distillation.job import TrainingJob, TrainingSettings
    from tutelage.distillation.trainer import train
    from tutelage.networks.pair_matcher import shallower_matcher
    from tutelage.systems.dcd import DCD, CaptionCandidates, RetrievalFineTuning, pairwise_scores, pretrained_matcher

    teacher = pretrained_matcher("hf:IMAGE_MODEL", "hf:TEXT_MODEL", depth=6)  # any of transformers
    data = CaptionCandidates(images, input_ids, attention_mask, negatives=15)  # images [N, …], captions [N, L]
    train(TrainingJob(teacher, None, RetrievalFineTuning(), data, TrainingSettings(steps=20_000)))
    student = shallower_matcher(teacher)  # half the fusion layers, copied; the same encoders, frozen
    train(TrainingJob(student, teacher, DCD(keep=7), data, TrainingSettings(steps=20_000, lr=2.5e-5)))
    pairwise_scores(student, images, input_ids, attention_mask)  # [images, texts]; retrieval_recall measures them

From Python alone: a recipe has no data of images with candidate captions.

Dynamic contrastive distillation. The teacher scores an image's caption and N wrong ones. The student sees the caption and the
K negatives with the highest of these scores: B (K + 1) pairs a step, where contrastive training needs B (N + 1). With the
kept scores t_i of the teacher and s_i of the student::

    H_i = entropy of softmax(t_i),   e_i = H_i / sum_j H_j,   r_i = softmax_i((1 - e_i)^2)
    L_KD = T^2 sum_i r_i mean_k (t_ik / T - s_ik / T)^2,   L_task = sum_i e_i mean_k BCE(s_ik, [k = 0])
    L = alpha L_KD + (1 - alpha) L_task + matching * (BCE of the caption + mean BCE of its negatives) / 2

So the teacher is trusted where it is certain, and the labels count where it is not. ``certainty="ratio"`` is the weight of the
released code: ``1 - exp(-a_i)``, a_i the student's cross-entropy over the list divided by the teacher's, on the regression
alone; the loss there is ``alpha L_KD + CE``. Where every row is certain, all weights are equal. That the matching loss reads
the same score, and weighs the caption as much as all its negatives, is our choice.

The effect of r is bounded: max r / min r <= exp(2 max e). Where each e is at most 0.0042, as in a batch of 512 without uncertain
samples, that is 1.008; a few uncertain ones raise it (1.24 in the experiment).

Inside SDVP: a matcher of half the depth answers whether a sentence is true of an image ("is the red cup left of the plate?").

Limits: two captions of equal words count as different texts. The published speed-up of 129 compares architectures on real
data and is not reproduced; only counts of pairs are exact here.

Source: "Dynamic Contrastive Distillation for Image-Text Retrieval" (Rao, Ding, Qi, Fang, Liu, Shen, Tao, IEEE Transactions
on Multimedia, 2023), whose code works on METER. Two things differ from that code: weights are applied before the mean over
samples, and the teacher's scores follow the student's list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch, ReplayableData, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.outputs import Output, Terms, forward_heads
from tutelage.distillation.teacher import Teacher
from tutelage.errors import InputError
from tutelage.modules.hf import loading
from tutelage.networks.pair_matcher import PairMatcher, TokenEmbedding, shallower_matcher
from tutelage.registry import system
from tutelage.seeds import numpy_rng, torch_rng
from tutelage.storage import fingerprint
from tutelage.systems._toy import build_with_seed

# -- candidates ------------------------------------------------------------------------------------------------------


class CaptionCandidates:
    """Data of images with captions: each sample is an image, its caption (place 0), and random captions of other images.

    Args:
        images: [I, …].
        input_ids: captions [C, L].
        attention_mask: [C, L], or None: all tokens are real.
        negatives: wrong captions a sample, different from each other; the view seed draws them.
        image_of: int64 [C], the image of each caption; None: caption i is of image i. A sample is a caption.

    Raises:
        InputError: numbers that do not fit, or too few captions to draw from.
    """

    def __init__(
        self,
        images: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        negatives: int = 15,
        image_of: Tensor | None = None,
    ):
        image_of = torch.arange(len(input_ids)) if image_of is None else image_of
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if len(input_ids) == 0 or image_of.shape != input_ids.shape[:1] or mask.shape != input_ids.shape:
            shapes = f"{list(input_ids.shape)}, mask {list(mask.shape)}, image_of {list(image_of.shape)}"
            raise InputError(f"captions {shapes}", where="input_ids", remedy="[C, L], [C, L] and [C], C at least 1")
        if int(image_of.min()) < 0 or int(image_of.max()) >= len(images):
            raise InputError(f"a caption of an image outside 0..{len(images) - 1}", where="image_of", remedy="count images from 0")
        self.own: dict[int, list[int]] = {}
        for caption, image in enumerate(image_of.tolist()):
            self.own.setdefault(image, []).append(caption)
        free = len(input_ids) - max(map(len, self.own.values()))
        if not 1 <= negatives <= free:
            raise InputError(f"{negatives} wrong captions of {free}", where="negatives", remedy=f"from 1 to {free}")
        self.captions = TensorData({"input_ids": input_ids, "attention_mask": mask})
        self.images, self.image_of, self.negatives = TensorData(images), image_of, negatives

    def __len__(self) -> int:
        return len(self.image_of)

    @property
    def fingerprint(self) -> str:
        """Of all images and captions, and of how many are drawn."""
        return fingerprint(self.images.fingerprint, self.captions.fingerprint, self.image_of.tolist(), self.negatives)

    def batch(self, indices: Tensor, seeds: Tensor | None) -> Batch:
        """See :class:`ReplayableData`; without seeds every sample has one fixed draw."""
        seeds = torch.zeros_like(indices) if seeds is None else seeds
        drawn = torch.tensor([self._draw(*pair) for pair in zip(indices.tolist(), seeds.tolist())])
        inputs = {name: leaf[drawn] for name, leaf in self.captions.inputs.items()}
        inputs["images"] = self.images.inputs[self.image_of[indices]]
        return Batch(inputs, ids=indices, seeds=seeds)

    def _draw(self, caption: int, seed: int) -> list[int]:
        own = self.own[int(self.image_of[caption])]
        rng = numpy_rng(seed, "wrong captions", caption)
        drawn = rng.choice(len(self) - len(own), self.negatives, replace=False)
        for place in own:  # ascending: number the others past them
            drawn = drawn + (drawn >= place)
        return [caption, *drawn.tolist()]


def hard_candidates(scores: Tensor, keep: int) -> Tensor:
    """Places [B, keep + 1] in ``scores`` [B, N + 1]: 0, the caption, then the ``keep`` highest other scores, descending.

    Raises:
        InputError: fewer than ``keep`` negatives.
    """
    if not 1 <= keep < scores.shape[1]:
        raise InputError(f"{keep} of {scores.shape[1] - 1} negatives", where="keep", remedy=f"1 to {scores.shape[1] - 1}")
    hardest = scores[:, 1:].sort(dim=1, descending=True, stable=True).indices[:, :keep] + 1
    return torch.cat([torch.zeros_like(hardest[:, :1]), hardest], 1)


# -- weights and losses ----------------------------------------------------------------------------------------------


def certainty_weights(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(e, r), each [B] with sum 1, of the teacher's kept ``scores`` [B, K + 1]: of the labels, and of the teacher.

    Examples:
        >>> e, r = certainty_weights(torch.tensor([[10.0, 0.0], [0.0, 0.0]]))
        >>> [round(x, 4) for x in r.tolist()]
        [0.7308, 0.2692]
    """
    logs = scores.detach().log_softmax(1)
    entropy = -torch.special.xlogy(logs.exp(), logs.exp()).sum(1)
    total = entropy.sum()
    least = torch.finfo(total.dtype).tiny  # below it a quotient would not sum to 1
    e = torch.where(total > least, entropy / total.clamp_min(least), 1 / len(scores))
    return e, (1 - e).square().softmax(0)


def score_distance(student: Tensor, teacher: Tensor, temperature: float = 1.0, kind: Literal["mse", "kl"] = "mse") -> Tensor:
    """[B], of scores [B, K + 1]: ``T^2 mean_k (t_k / T - s_k / T)^2``, or ``T^2 KL(softmax(t / T) || softmax(s / T))``."""
    s, t = student / temperature, teacher.detach() / temperature
    if kind == "mse":
        return temperature**2 * (t - s).square().mean(1)
    logs = t.log_softmax(1)
    return temperature**2 * (logs.exp() * (logs - s.log_softmax(1))).sum(1)


def caption_losses(scores: Tensor) -> Tensor:
    """Binary cross-entropy [B, K + 1] of each score, the caption at place 0 being the right one."""
    wanted = torch.zeros_like(scores)
    wanted[:, 0] = 1
    return F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")


def list_losses(scores: Tensor) -> Tensor:
    """Cross-entropy [B] over each list of scores [B, K + 1], the caption at place 0."""
    return -scores.log_softmax(1)[:, 0]


class RetrievalFineTuning(Method):
    """How the teacher is made: cross-entropy over a caption and its N negatives, without a teacher of its own."""

    needs_teacher = False

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``list``."""
        return {"list": list_losses(student["logits"]).mean()}


@system("dcd", kind="distillation")
class DCD(Method):
    """Dynamic contrastive distillation: the teacher chooses the negatives, and how much each sample counts.

    Student and teacher take images [B, …] and candidates [B, N + 1, L], the right caption first (:class:`CaptionCandidates`),
    and give ``logits`` [B, N + 1]; see :class:`tutelage.networks.pair_matcher.PairMatcher`.

    Published schedule: N = 15 (COCO) or 63 (Flickr30K), K = 7, AdamW at 5e-6 for encoders and five times that for fusion layers and
    heads (here encoders are frozen), batch 512, 10 epochs, 10 % warm-up, weight decay as in METER.
    """

    @dataclass(frozen=True)
    class Config:
        """``keep``: K; ``negatives``: the teacher's hardest, or the first K of the list (which is in random order);
        ``matching``: weight of the matching loss; ``certainty``: "uniform" weighs all samples alike."""

        keep: int = 7
        alpha: float = 0.2
        temperature: float = 1.0
        distance: Literal["mse", "kl"] = "mse"
        certainty: Literal["entropy", "ratio", "uniform"] = "entropy"
        negatives: Literal["teacher", "first"] = "teacher"
        matching: float = 0.5

        def __post_init__(self) -> None:
            if not 0 <= self.alpha <= 1:
                raise InputError(f"{self.alpha} is no share", where="alpha", remedy="from 0 to 1")
            if not self.temperature > 0 or not self.matching >= 0 or self.keep < 1:
                where = "temperature" if not self.temperature > 0 else "matching" if not self.matching >= 0 else "keep"
                raise InputError("too small", where=where, remedy="temperature above 0, matching from 0, keep from 1")
            choices = {"distance": ("mse", "kl"), "certainty": ("entropy", "ratio", "uniform"), "negatives": ("teacher", "first")}
            for name, known in choices.items():
                if getattr(self, name) not in known:
                    raise InputError(f"unknown {getattr(self, name)!r}", where=name, remedy=f"one of {', '.join(known)}")

    def prepare(self, student: nn.Module, teacher: Teacher | None, example: Batch, data: ReplayableData) -> None:
        """Checks the batch; see :class:`Method`."""
        ids = example.inputs.get("input_ids") if isinstance(example.inputs, Mapping) else None
        if not isinstance(ids, Tensor) or ids.ndim != 3 or ids.shape[1] <= self.config.keep:
            found = "none" if not isinstance(ids, Tensor) else str(list(ids.shape))
            remedy = f"[B, N + 1, L] with N of at least keep={self.config.keep}: CaptionCandidates draws them"
            raise InputError(f"candidates: {found}", where="input_ids", remedy=remedy)

    def forward(self, batch: Batch, student: nn.Module, teacher: Teacher | None) -> tuple[Output, Output]:
        """Scores [B, K + 1] of the kept candidates; the teacher scores all, the student these alone."""
        assert teacher is not None
        scores = teacher(batch)["logits"]
        if self.config.negatives == "teacher":
            kept = hard_candidates(scores, self.config.keep)
        else:
            kept = torch.arange(self.config.keep + 1, device=scores.device).expand(len(scores), -1)
        rows = torch.arange(len(scores), device=scores.device)[:, None]
        lists = {name: batch.inputs[name][rows, kept] for name in ("input_ids", "attention_mask") if name in batch.inputs}
        return forward_heads(student, {**batch.inputs, **lists}), {"logits": scores.gather(1, kept)}

    def loss_terms(self, batch: Batch, student: Output, teacher: Output) -> Terms:
        """``kd``, ``task`` and ``matching``."""
        s, t, config = student["logits"], teacher["logits"], self.config
        each = score_distance(s, t, config.temperature, config.distance)
        points = caption_losses(s)
        if config.certainty == "ratio":
            ratio = list_losses(s).detach() / (list_losses(t) + 1e-7)
            kd, task = ((1 - (-ratio).exp()) * each).mean(), list_losses(s).mean()
        else:
            uniform = torch.full_like(each, 1 / len(each))
            e, r = certainty_weights(t) if config.certainty == "entropy" else (uniform, uniform)
            kd, task = (r * each).sum(), (e * points.mean(1)).sum()
        return {"kd": kd, "task": task, "matching": (points[:, 0] + points[:, 1:].mean(1)).mean() / 2}

    def loss_weights(self) -> dict[str, float]:
        """See :class:`Method`."""
        config = self.config
        task = 1.0 if config.certainty == "ratio" else 1 - config.alpha
        return {"kd": config.alpha, "task": task, "matching": config.matching}

    @classmethod
    def tiny_job(cls, seed: int, width: int = 1) -> TrainingJob:
        """A training job of a second: four tokens an image, and captions that name them."""
        rng = torch_rng(seed, "pairs")
        ids = torch.randint(1, 9, (32, 4), generator=rng)
        images = torch.randn(9, 6, generator=rng)[ids] + 0.1 * torch.randn(32, 4, 6, generator=rng)
        size = {"image_dim": 6, "text_dim": 8, "dim": 16 * width, "depth": 2, "num_heads": 2}
        teacher = build_with_seed(lambda: PairMatcher(nn.Identity(), TokenEmbedding(9, 8, 4), **size), seed, "teacher")
        student = build_with_seed(lambda: shallower_matcher(teacher), seed, "student")
        data = CaptionCandidates(images, ids, negatives=7)
        return TrainingJob(student, teacher, cls(keep=3), data, TrainingSettings(steps=8, batch_size=8, seed=seed), "dcd")


# -- retrieval -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pairwise_scores(
    matcher: nn.Module,
    images: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    batch_size: int = 512,
) -> Tensor:
    """Scores [I, C] of every image with every text, in eval mode.

    Args:
        matcher: see :class:`PairMatcher`.
        images: [I, …].
        input_ids: [C, L].
        attention_mask: [C, L] or None.
        batch_size: pairs at a time.
    """
    was = matcher.training
    matcher.eval()
    masks = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    parts = list(zip(input_ids.split(batch_size), masks.split(batch_size)))
    rows = [torch.cat([matcher(image[None], ids[None], mask[None])["logits"] for ids, mask in parts], 1) for image in images]
    matcher.train(was)
    return torch.cat(rows)


def retrieval_recall(scores: Tensor, right: Tensor | None = None, at: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """R@K, %: how often one of the right items is among the K highest of its row; items of equal score in all orders alike.

    Args:
        scores: [queries, items]; for the other direction transpose both.
        right: bool [queries, items], at least one a row; None: item i for query i.
        at: the Ks.

    Raises:
        InputError: a query without a right item, or shapes that differ.
    """
    right = torch.eye(*scores.shape, dtype=torch.bool) if right is None else right.bool()
    if right.shape != scores.shape or not bool(right.any(1).all()):
        raise InputError("a query has no right item, or the shapes differ", where="right", remedy="one True or more a row")
    best = scores.masked_fill(~right, float("-inf")).amax(1, keepdim=True)
    above, tied = ((scores > best).sum(1), (scores == best))
    wrong, good = (tied & ~right).sum(1), (tied & right).sum(1)
    found = dict.fromkeys(at, 0.0)
    for higher, w, g in zip(above.tolist(), wrong.tolist(), good.tolist()):
        for k in at:
            places = min(max(0, k - higher), w + g)
            found[k] += 1 - math.comb(w, places) / math.comb(w + g, places)
    return {k: 100 * hits / len(scores) for k, hits in found.items()}


# -- encoders of transformers ----------------------------------------------------------------------------------------


def pretrained_matcher(
    image_model: str,
    text_model: str,
    dim: int = 768,
    depth: int = 6,
    num_heads: int = 12,
    frozen_encoders: bool = False,
) -> PairMatcher:
    """A matcher on two encoders of ``transformers``, its fusion layers at random: fine-tune it with :class:`RetrievalFineTuning`.

    Args:
        image_model: ``hf:FOLDER`` or ``hf:OWNER/NAME@REVISION``; of a model with two towers the vision model is taken.
        text_model: likewise; of a model with two towers the text model. Tokenise captions with its own tokeniser.
        dim, depth, num_heads, frozen_encoders: see :class:`PairMatcher`.

    Raises:
        InputError: a model that cannot be loaded, or whose width is not known.
        MissingExtra: ``transformers`` is not installed.
    """
    image, image_dim = _encoder(image_model, "vision_model")
    text, text_dim = _encoder(text_model, "text_model")
    return PairMatcher(image, text, image_dim, text_dim, dim, depth, num_heads, frozen_encoders)


def _encoder(name: str, tower: str) -> tuple[nn.Module, int]:
    source, kit = loading.Source.read(name), loading.transformers()
    with loading.describe_load_errors(source), loading.quiet():
        model, info = kit.AutoModel.from_pretrained(source.name, **source.pinned, use_safetensors=True, output_loading_info=True)
    model = getattr(model, tower, model)
    missing = [key for key in info["missing_keys"] if "pooler" not in key]
    if missing:
        raise InputError(f"weights are missing, the first: {min(missing)}", where=name, remedy="choose a trained encoder")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # the matcher has its own, and this one would be trained for nothing
    config = model.config
    width = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [getattr(config, "dim", None)])[-1]
    if not isinstance(width, int):
        raise InputError(
            f"the width of {type(model).__name__} is not known", where=name, remedy="build PairMatcher with the encoder"
        )
    return model, width
