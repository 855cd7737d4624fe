"""SiT's losses: reconstruction, contrast of two views, and the weights of several tasks, which are learned."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def masked_l1(images: Tensor, clean: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute error over all pixels, or over those of ``mask`` [B, H, W] in the whole batch; 0 where it is empty.

    Examples:
        >>> masked_l1(torch.tensor([[[[1.0, 5.0]]]]), torch.zeros(1, 1, 1, 2), torch.tensor([[[True, False]]])).item()
        1.0
    """
    error = (images - clean).abs()
    if mask is None:
        return error.mean()
    weights = mask[:, None].to(error.dtype)
    return (error * weights).sum() / (weights.sum() * images.shape[1]).clamp_min(1)


def nt_xent(embeddings: Tensor, temperature: float = 0.5) -> Tensor:
    """The normalised, temperature-scaled cross-entropy (Chen et al., 2020) of two views of B images.

    Each embedding has to find the other view of its image among all others, itself excluded, by cosine.

    Args:
        embeddings: [2B, D]: row i and row B + i are the views of image i.
        temperature: of the softmax.
    """
    z = F.normalize(embeddings, dim=1)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def momentum_contrast(student: Tensor, teacher: Tensor, temperature: float = 0.2) -> Tensor:
    """The later revision's contrast, both directions added: ``2 T`` times the cross-entropy of finding, for view 1 of each
    image by the student, view 2 of it by the teacher among the B embeddings; and view 1 for view 2.

    Args:
        student, teacher: [2B, D], views 1 before views 2; cosines are compared. The teacher gets no gradient.
        temperature: T.
    """
    first, second = F.normalize(student, dim=1).chunk(2)
    one, two = F.normalize(teacher.detach(), dim=1).chunk(2)
    target = torch.arange(len(first), device=student.device)
    losses = [F.cross_entropy(s @ t.T / temperature, target) for s, t in ((first, two), (second, one))]
    return 2 * temperature * (losses[0] + losses[1])


class TaskWeights(nn.Module):
    """One number weighs several losses, a learned number each.

    ``exponential``, the paper's: ``sum_k a_k exp(-s_k) L_k + s_k / 2``, s from 1, whose optimum for fixed losses is
    ``s_k = log(2 a_k L_k)``. It may fall below 0. ``squared``, a middle revision's: ``sum_k L_k / (2 s_k^2) + log(1 + s_k^2)``.

    Args:
        factors: a_k by name: 1 for cross-entropies, 0.5 for an L1 error.
        kind: see above.
    """

    def __init__(self, factors: dict[str, float], kind: Literal["exponential", "squared"] = "exponential"):
        super().__init__()
        self.factors, self.kind = dict(factors), kind
        self.s = nn.Parameter(torch.ones(len(factors)))

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the losses, scalars by name."""
        values = torch.stack([losses[name] for name in self.factors])
        if self.kind == "squared":
            return (0.5 * values / self.s.square() + (1 + self.s.square()).log()).sum()
        factors = values.new_tensor(list(self.factors.values()))
        return (factors * (-self.s).exp() * values + 0.5 * self.s).sum()

    def optimum(self, losses: dict[str, float]) -> dict[str, float]:
        """``log(2 a_k L_k)`` by name: where the exponential weights come to rest if the losses stay."""
        return {name: float(torch.tensor(2 * a * losses[name]).log()) for name, a in self.factors.items()}
