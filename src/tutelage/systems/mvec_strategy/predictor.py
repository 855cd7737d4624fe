"""Networks: which strategy a student takes at a problem, and how well its components are mastered; and the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.distillation.data import TensorData
from tutelage.distillation.feature_hooks import FeatureHooks
from tutelage.distillation.tasks.categorical import IGNORED
from tutelage.errors import InputError
from tutelage.networks.encoder_decoder import EncoderDecoder
from tutelage.networks.sampling import Sampling, draw_tokens
from tutelage.systems.mvec_strategy.log import Instance

BOS, EOS, FIRST_COMPONENT = 1, 2, 3
LONGEST = 60


class StrategyPredictor(nn.Module):
    """An LSTM that reads the vectors of a student and a problem, and one that writes components until the end token.

    ``inputs``: ``vectors`` [B, S, D], one each of what is read, and ``tokens`` [B, U], the components that were written
    before each position (the first is the start token 1). Output: logits [B, U, V] of the next token, V = components + 3.

    Args:
        dim: D.
        components: how many there are.
        hidden: of both LSTMs (200 published).
        dropout: of the decoder's states, in training.
    """

    def __init__(self, dim: int, components: int, hidden: int = 200, dropout: float = 0.3):
        super().__init__()
        self.encoder = nn.LSTM(dim, hidden, batch_first=True)
        self.embed = nn.Embedding(components + FIRST_COMPONENT, hidden)
        self.decoder = nn.LSTM(hidden, hidden, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, components + FIRST_COMPONENT)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Teacher-forced logits."""
        _, state = self.encoder(inputs["vectors"])
        return self.head(self.drop(self.decoder(self.embed(inputs["tokens"]), state)[0]))

    @torch.no_grad()
    def predict(self, vectors: Tensor, longest: int = LONGEST) -> list[list[int]]:
        """The most likely components, one after the other, of each row of ``vectors`` [B, S, D]; 0 is the first component."""
        _, state = self.encoder(vectors)
        last = torch.full((len(vectors),), BOS, device=vectors.device)

        def step(chosen: Tensor | None) -> Tensor:
            nonlocal state
            states, state = self.decoder(self.embed(last if chosen is None else chosen)[:, None], state)
            logits = self.head(self.drop(states[:, 0]))
            logits[:, [0, BOS]] = float("-inf")  # neither padding nor the start token is written
            return logits

        drawn = draw_tokens(step, Sampling(longest, temperature=0.0, eos_id=EOS))
        rows = zip(drawn.ids.tolist(), drawn.lengths.tolist())
        return [[token - FIRST_COMPONENT for token in ids[:length] if token >= FIRST_COMPONENT] for ids, length in rows]


def strategy_data(instances: Sequence[Instance], vectors: Mapping[str, np.ndarray], components: Sequence[str]) -> TensorData:
    """Training data of a :class:`StrategyPredictor`: task ``token-classification``, labels shifted by the start token.

    A student without a vector (unseen in training) is read as the mean of all students, and a problem as that of all problems.

    Raises:
        InputError: a component that is not among ``components``.
    """
    places = {name: i + FIRST_COMPONENT for i, name in enumerate(components)}
    longest = max(len(one.strategy) for one in instances) + 1
    tokens = torch.zeros(len(instances), longest, dtype=torch.int64)
    labels = torch.full((len(instances), longest), IGNORED, dtype=torch.int64)
    for row, one in enumerate(instances):
        unknown = [name for name in one.strategy if name not in places]
        if unknown:
            raise InputError(f"unknown component {unknown[0]!r}", where="components", remedy="list every component of the log")
        ids = torch.tensor([places[name] for name in one.strategy])
        tokens[row, 0], tokens[row, 1 : len(ids) + 1] = BOS, ids
        labels[row, : len(ids)], labels[row, len(ids)] = ids, EOS
    return TensorData({"vectors": read_vectors(instances, vectors), "tokens": tokens}, labels)


def read_vectors(instances: Sequence[Instance], vectors: Mapping[str, np.ndarray]) -> Tensor:
    """[N, 2, D]: the vectors of student and problem of each instance, by ``student:NAME`` and ``problem:NAME``."""
    means = {
        kind: np.mean([vector for name, vector in vectors.items() if name.startswith(f"{kind}:")], 0)
        for kind in ("student", "problem")
    }
    rows = [[vectors.get(f"{kind}:{getattr(one, kind)}", mean) for kind, mean in means.items()] for one in instances]
    return torch.tensor(np.array(rows), dtype=torch.float32)


# -- mastery ---------------------------------------------------------------------------------------------------------


def mastery_model(components: int, dim: int = 512, depth: int = 6, num_heads: int = 8, dropout: float = 0.1) -> EncoderDecoder:
    """From the components of an instance to whether each first attempt is right (published sizes by default).

    Source and target: start token, one token a component, end token; targets: 3 wrong, 4 right.
    """
    return EncoderDecoder(components + FIRST_COMPONENT, 5, dim, depth, num_heads, vocab_in=True, bos_id=BOS, dropout=dropout)


@torch.no_grad()
def mastery_attention(model: EncoderDecoder, source: Tensor, target: Tensor) -> np.ndarray:
    """The attention of the decoder to each component: the mean over layers, heads and positions, in eval mode.

    Args:
        model: of :func:`mastery_model`.
        source: [U], start token, components, end token.
        target: [U'], targets.

    Returns:
        [U - 2], without the start and end token; the sum is at most 1.
    """
    model.eval()
    blocks = [f"decoder.{i}.cross_attention" for i in range(len(model.decoder))]
    with FeatureHooks(model, [f"{block}.{part}" for block in blocks for part in ("query", "key")]) as features:
        model(source[None], target[None])
    means = []
    for block in blocks:
        cross = model.get_submodule(block)
        query, key = (cross.heads(features[f"{block}.{part}"]) for part in ("query", "key"))  # type: ignore[operator]
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        means.append(weights.mean((0, 1, 2)))
    return torch.stack(means).mean(0)[1:-1].numpy()


# -- metrics ---------------------------------------------------------------------------------------------------------


def jaccard(found: Sequence[object], true: Sequence[object]) -> float:
    """The components in both over those in either, in 0..1 (the authors' measure: their order does not matter)."""
    return len(set(found) & set(true)) / len(set(found) | set(true)) if found or true else 1.0


def edit_similarity(found: Sequence[object], true: Sequence[object]) -> float:
    """1 minus the edits (insert, delete, replace) from one sequence to the other over the longer length, in 0..1."""
    row = list(range(len(true) + 1))
    for i, left in enumerate(found, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(true, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return 1.0 - row[-1] / longest if (longest := max(len(found), len(true))) else 1.0


def fairness(scores: Sequence[float], groups: Sequence[str]) -> dict[str, float]:
    """The mean score of each group by ``group NAME``, the ``gap`` between the best and the worst, and their ``ratio``.

    Raises:
        InputError: no scores.
    """
    if not scores:
        raise InputError("no scores to compare", where="scores", remedy="give at least one")
    by_group: dict[str, list[float]] = {}
    for score, group in zip(scores, groups, strict=True):
        by_group.setdefault(group, []).append(score)
    means = {group: float(np.mean(values)) for group, values in sorted(by_group.items())}
    low, high = min(means.values()), max(means.values())
    return {f"group {group}": value for group, value in means.items()} | {"gap": high - low, "ratio": low / high if high else 1.0}
