"""Losses by head type: pure functions of tensors, each with its equation.

Every loss is a scalar: the mean over samples, or with ``weights`` [B] the weighted mean ``sum w l / sum w``. Targets
never receive a gradient. Logits are [B, C] unless said otherwise; natural logarithms throughout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.errors import InputError, did_you_mean


def average(per_sample: Tensor, weights: Tensor | None = None) -> Tensor:
    """``sum_i w_i l_i / sum_i w_i`` over samples [B]; no weights count as ones, and all-zero weights give 0."""
    if weights is None:
        return per_sample.mean()
    return (per_sample * weights).sum() / weights.sum().clamp_min(torch.finfo(per_sample.dtype).tiny)


def kl_divergence(student: Tensor, teacher: Tensor, tau: float = 1.0, dim: int = -1) -> Tensor:
    """``tau^2 KL(softmax(t/tau) || softmax(s/tau))`` over the class axis ``dim``, without a mean: [..., C] -> [...].

    The factor tau^2 keeps the gradient's size independent of tau (Hinton, Vinyals, Dean, 2015, section 2.1).
    """
    log_s = F.log_softmax(student / tau, dim=dim)
    log_t = F.log_softmax(teacher.detach() / tau, dim=dim)
    return tau * tau * F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim)


def channel_divergence(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """Channel-wise distillation (Shu et al., 2021): ``tau^2 / (B C)`` times the sum of the KL divergences, teacher
    first, of each channel's softmax over positions. Maps [B, C, H, W] -> scalar."""
    return kl_divergence(student.flatten(2), teacher.flatten(2), tau).mean()


def kd(student: Tensor, teacher: Tensor, tau: float = 4.0, weights: Tensor | None = None) -> Tensor:
    """Classic distillation: mean over samples of :func:`kl_divergence` (Hinton, Vinyals, Dean, 2015)."""
    return average(kl_divergence(student, teacher, tau), weights)


def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    tau: float = 4.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Decoupled distillation ``tau^2 (alpha TCKD + beta NCKD)`` (Zhao et al., 2022, equation 7).

    TCKD is the KL divergence of (p_y, 1 - p_y); NCKD that of the softmax over the classes other than y ([B] int64).
    With ``beta = 1 - p_y`` of the teacher, sample by sample, and ``alpha = 1``, the sum is :func:`kd`.
    """
    target, other = decoupled(student, teacher, labels, tau)
    return average(alpha * target + beta * other, weights)


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """(TCKD, NCKD) of each sample, [B] both, times tau^2: see :func:`dkd`."""
    is_target = F.one_hot(labels, student.shape[-1]).bool()
    scaled_s, scaled_t = student / tau, teacher.detach() / tau

    def split(scaled: Tensor) -> tuple[Tensor, Tensor]:
        others = scaled.masked_fill(is_target, float("-inf"))
        total = scaled.logsumexp(-1, keepdim=True)
        binary = torch.cat([scaled.gather(-1, labels[:, None]), others.logsumexp(-1, keepdim=True)], -1) - total
        return binary, F.log_softmax(others, -1).masked_fill(is_target, 0.0)

    binary_s, rest_s = split(scaled_s)
    binary_t, rest_t = split(scaled_t)
    target = (binary_t.exp() * (binary_t - binary_s)).sum(-1)
    other = (rest_t.exp() * (rest_t - rest_s)).masked_fill(is_target, 0.0).sum(-1)
    return tau * tau * target, tau * tau * other


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """``-sum_c y_c log softmax(z)_c``; ``labels`` are class ids [B] int64, or probabilities [B, C]."""
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return average(F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing), weights)


def binary_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """``-y log s(z) - (1-y) log(1 - s(z))``, mean over all but the batch; targets in [0, 1], shaped as the logits."""
    loss = F.binary_cross_entropy_with_logits(logits, targets.detach().to(logits.dtype), reduction="none")
    return average(loss.flatten(1).mean(1) if loss.ndim > 1 else loss, weights)


def heatmap_bce(logits: Tensor, heat: Tensor, positive: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """Weighted binary cross-entropy of heat-maps [B, C, H, W], target ``heat`` in [0, 1].

    Cell weight ``1 + (positive - 1) heat``: peaks are rare, ``positive`` > 1 makes them count (our choice). Mean over cells.
    """
    heat = heat.detach().to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, heat, reduction="none")
    if positive != 1.0:
        loss = loss * (1.0 + (positive - 1.0) * heat)
    return average(loss.flatten(1).mean(1), weights)


def size_l1(size: Tensor, target: Tensor, peaks: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over peaks of ``|size - target|``, summed over the size's channels.

    size, target: [B, 2, H, W]; peaks: [B, H, W], 1 (or a weight) where a box centre lies. 0 where there is no peak.
    """
    distance = (size - target.detach()).abs().sum(1)
    mask = peaks.to(distance.dtype)
    if weights is not None:
        mask = mask * weights[:, None, None]
    return (distance * mask).sum() / mask.sum().clamp_min(1e-12)


def feature_mse(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Squared error ``(s - t)^2``, mean over all but the batch; any shape [B, ...]."""
    if weights is None:
        return F.mse_loss(student, teacher.detach())
    return average(F.mse_loss(student, teacher.detach(), reduction="none").flatten(1).mean(1), weights)


def token_cross_entropy(logits: Tensor, tokens: Tensor, weights: Tensor | None = None, ignore: int = -100) -> Tensor:
    """``sum_t CE(y_t | y_<t)`` over each sequence's own length, then the mean; logits [B, L, V], tokens [B, L]."""
    loss = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none", ignore_index=ignore)
    return average(loss.sum(1) / (tokens != ignore).sum(1).clamp_min(1), weights)


def token_kd(student: Tensor, teacher: Tensor, mask: Tensor, tau: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """:func:`kl_divergence` a token, mean over each sequence's real tokens; logits [B, L, V], mask [B, L] (1: real)."""
    loss = kl_divergence(student, teacher, tau).masked_fill(~mask.bool(), 0.0)
    return average(loss.sum(1) / mask.sum(1).clamp_min(1), weights)


def dpo(policy: Tensor, reference: Tensor, beta: float = 0.1, weights: Tensor | None = None) -> Tensor:
    """Direct preference optimisation (Rafailov et al., 2023, arXiv 2305.18290, equation 7).

    ``-log sigmoid(beta [(log pi(y_w) - log pi_ref(y_w)) - (log pi(y_l) - log pi_ref(y_l))])``

    Args:
        policy: [B, 2], log-probabilities of the chosen and of the rejected sequence.
        reference: the same by the frozen model.
        beta: how much a log-ratio counts; 0.1 is the usual value.
        weights: [B] or None.

    Examples:
        >>> gain = torch.tensor([[1.0, -1.0]])  # the margin is 2
        >>> round(float(dpo(gain, torch.zeros(1, 2))), 4)
        0.5981
    """
    ratio = policy - reference.detach()
    return average(-F.logsigmoid(beta * (ratio[:, 0] - ratio[:, 1])), weights)


def head_distance(kind: str, student: Tensor, teacher: Tensor, tau: float = 1.0, weights: Tensor | None = None) -> Tensor:
    """How far one head of the student is from the same head of the teacher.

    ``classes``: :func:`kd`. ``logit`` and ``heatmap``: binary cross-entropy against the teacher's probabilities (at
    equality it is the teacher's entropy, with gradient 0). ``size`` and ``features``: squared error. ``tokens``:
    :func:`kl_divergence`, mean over positions. ``set`` [B, Q, 5]: the same of its logits, and 5 times the L1 distance of boxes
    of one place, weighted by the teacher's probability that they are any (our choice).

    Raises:
        InputError: an unknown ``kind``, or heads of different shapes.
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"{kind} heads differ in shape: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}",
            remedy="map the teacher's head to the student's classes or sizes first",
        )
    match kind:
        case "classes":
            return kd(student, teacher, tau, weights)
        case "logit" | "heatmap":
            return binary_cross_entropy(student, teacher.detach().sigmoid(), weights)
        case "size" | "features":
            return feature_mse(student, teacher, weights)
        case "tokens":
            return average(kl_divergence(student, teacher, tau).flatten(1).mean(1), weights)
        case "set":
            sure = teacher.detach()[..., 0].sigmoid()
            apart = (student[..., 1:] - teacher.detach()[..., 1:]).abs().sum(-1)
            near = (sure * apart).sum(1) / sure.sum(1).clamp_min(torch.finfo(sure.dtype).tiny)
            return binary_cross_entropy(student[..., 0], sure, weights) + 5 * average(near, weights)
    raise InputError(
        f"unknown head type {kind!r}",
        remedy=did_you_mean(kind, ["classes", "logit", "heatmap", "size", "features", "tokens", "set"]),
    )


def hungarian_assignment(cost: np.ndarray) -> list[tuple[int, int]]:
    """The cheapest one-to-one assignment of a cost matrix [n, m]: min(n, m) pairs (row, column), by row.

    Shortest augmenting paths with potentials (Jonker, Volgenant, 1987), O(n^2 m).
    """
    cost = np.asarray(cost, dtype=np.float64)
    if cost.shape[0] > cost.shape[1]:
        return sorted((row, column) for column, row in hungarian_assignment(cost.T))
    rows, columns = cost.shape
    u, v = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, dtype=np.int64)  # row (from 1) that holds each column; column 0 is the start
    for row in range(1, rows + 1):
        owner[0], here = row, 0
        shortest = np.full(columns + 1, np.inf)
        back = np.zeros(columns + 1, dtype=np.int64)
        done = np.zeros(columns + 1, dtype=bool)
        while owner[here]:
            done[here] = True
            reduced = cost[owner[here] - 1] - u[owner[here]] - v[1:]
            better = ~done[1:] & (reduced < shortest[1:])
            shortest[1:][better] = reduced[better]
            back[1:][better] = here
            following = int(np.where(done, np.inf, shortest).argmin())
            delta = shortest[following]
            u[owner[done]] += delta
            v[done] -= delta
            shortest[~done] -= delta
            here = following
        while here:
            owner[here] = owner[back[here]]
            here = int(back[here])
    return sorted((int(owner[column]) - 1, column - 1) for column in range(1, columns + 1) if owner[column])


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(centre x, centre y, width, height) -> (x1, y1, x2, y2), last dimension 4."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of corner boxes, broadcast over leading dimensions (Rezatofighi et al., 2019, algorithm 1); in [-1, 1]."""
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    tiny = torch.finfo(a.dtype).tiny
    return inner / union.clamp_min(tiny) - (hull - union) / hull.clamp_min(tiny)


def set_loss(
    logits: Tensor,
    boxes: Tensor,
    labels: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Tensor | None = None,
    nothing: float = 0.1,
) -> Tensor:
    """Hungarian set loss ``CE + 5 L1 + 2 (1 - GIoU)`` (Carion et al., 2020, equations 1-2 and appendix A.1).

    logits: [B, Q, C+1], the last class means "no object" (its CE counts ``nothing``); boxes: [B, Q, 4] as centre and
    size in 0..1; ``labels[i]``: [n_i] class ids, ``targets[i]``: [n_i, 4]. L1 and GIoU are summed over the matched
    pairs and divided by the number of targets of the sample.
    """
    background = logits.shape[-1] - 1
    per_class = torch.ones(background + 1, dtype=logits.dtype, device=logits.device)
    per_class[background] = nothing
    losses = []
    for i, (ids, wanted) in enumerate(zip(labels, targets, strict=True)):
        with torch.no_grad():
            giou = generalized_iou(box_cxcywh_to_xyxy(boxes[i])[:, None], box_cxcywh_to_xyxy(wanted)[None])
            cost = 5 * torch.cdist(boxes[i].float(), wanted.float(), p=1) - 2 * giou - logits[i].softmax(-1)[:, ids]
        pairs = hungarian_assignment(cost.float().cpu().numpy()) if len(ids) else []
        query = torch.tensor([q for q, _ in pairs], dtype=torch.long, device=logits.device)
        match = torch.tensor([t for _, t in pairs], dtype=torch.long, device=logits.device)
        classes = torch.full((logits.shape[1],), background, dtype=torch.long, device=logits.device)
        classes[query] = ids[match]
        loss = F.cross_entropy(logits[i], classes, weight=per_class)
        if pairs:
            distance = (boxes[i][query] - wanted[match]).abs().sum(-1)
            overlap = generalized_iou(box_cxcywh_to_xyxy(boxes[i][query]), box_cxcywh_to_xyxy(wanted[match]))
            loss = loss + (5 * distance + 2 * (1 - overlap)).sum() / len(ids)
        losses.append(loss)
    return average(torch.stack(losses), weights)
