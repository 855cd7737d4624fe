"""The two recurrent policies, the reward, and REINFORCE on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tutelage.distillation.policy_gradient import MovingBaseline, policy_gradient_loss
from tutelage.errors import InputError
from tutelage.seeds import torch_rng
from tutelage.storage import write_bytes
from tutelage.systems._toy import build_with_seed
from tutelage.systems.n2n_learning.architecture import FACTORS, FEATURES, FIELDS


class RemovalPolicy(nn.Module):
    """Keep (1) or remove (0) each layer, independently given all of them: a bidirectional 2-layer LSTM, then linear."""

    def __init__(self, features: int = FEATURES, hidden: int = 30):
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, 2)

    def log_probs(self, states: Tensor, free: Tensor, actions: Tensor) -> Tensor:
        """``log pi`` of actions [N, L] for states [L, F]; 0 where ``free`` [L] is False."""
        scores = self.head(self.lstm(states[None])[0])[0].log_softmax(-1)
        chosen = scores.expand(len(actions), -1, -1).gather(2, actions[..., None])[..., 0]
        return chosen * free

    @torch.no_grad()
    def sample(self, states: Tensor, free: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """``count`` sequences of actions [count, L]; layers that are not free are kept."""
        chances = self.head(self.lstm(states[None])[0])[0].softmax(-1)
        drawn = torch.multinomial(chances, count, replacement=True, generator=rng).T
        return torch.where(free, drawn, torch.ones_like(drawn))


class ShrinkagePolicy(nn.Module):
    """One of 11 factors for each field of each layer, one after the other: a 2-layer LSTM, then linear.

    Each decision sees the layer's state times the factor chosen before, and which field it is (one-hot, our choice). The
    original also draws an action for the layer's type and ignores it; here there is none.
    """

    factors: Tensor

    def __init__(self, features: int = FEATURES, hidden: int = 30):
        super().__init__()
        self.lstm = nn.LSTM(features + len(FIELDS), hidden, 2, batch_first=True)
        self.head = nn.Linear(hidden, len(FACTORS))
        self.register_buffer("factors", torch.tensor(FACTORS), persistent=False)

    def log_probs(self, states: Tensor, free: Tensor, actions: Tensor) -> Tensor:
        """``log pi`` of actions [N, 4 L] for states [L, F]; 0 where ``free`` [L, 4] is False."""
        before = self.factors[actions].roll(1, 1)
        before[:, 0] = 1
        inputs = self._inputs(states).expand(len(actions), -1, -1).clone()
        inputs[..., : states.shape[1]] *= before[..., None]
        scores = self.head(self.lstm(inputs)[0]).log_softmax(-1)
        return scores.gather(2, actions[..., None])[..., 0] * free.flatten()

    @torch.no_grad()
    def sample(self, states: Tensor, free: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """``count`` sequences of actions [count, 4 L]; fields that are not free keep their size."""
        inputs, memory, chosen = self._inputs(states), None, []
        factor = torch.ones(count, 1)
        for row, may in zip(inputs, free.flatten().tolist(), strict=True):
            step = row.expand(count, -1).clone()
            step[:, : states.shape[1]] *= factor
            out, memory = self.lstm(step[:, None], memory)
            action = torch.multinomial(self.head(out[:, 0]).softmax(-1), 1, generator=rng)
            action = action if may else torch.full_like(action, len(FACTORS) - 1)
            factor = self.factors[action]
            chosen.append(action)
        return torch.cat(chosen, 1)

    def _inputs(self, states: Tensor) -> Tensor:
        each = states.repeat_interleave(len(FIELDS), 0)
        return torch.cat([each, torch.eye(len(FIELDS)).repeat(len(states), 1)], 1)


Policy = RemovalPolicy | ShrinkagePolicy


def compression_reward(compression: float) -> float:
    """``R_c = C (2 - C)`` for ``C = 1 - parameters(student) / parameters(teacher)``."""
    return compression * (2 - compression)


def penalty_share(iteration: int, horizon: int = 15) -> float:
    """``eps = max(0, 1 - e / 15)^4``: how much of its reward a candidate that breaks a constraint keeps."""
    return float(max(0.0, 1 - iteration / horizon) ** 4)


def reward(compression: float, accuracy_ratio: float, iteration: int = 0, violated: bool = False) -> float:
    """``R = R_a R_c``; where a constraint is violated ``(eps - 1) + eps R_a R_c``."""
    plain = accuracy_ratio * compression_reward(compression)
    share = penalty_share(iteration)
    return (share - 1) + share * plain if violated else plain


@dataclass(frozen=True)
class PolicySettings:
    """How a policy is trained.

    Attributes:
        iterations, rollouts: updates, and sequences an update; published: 100 and 5.
        lr: of Adam.
        decay: of the moving average of past mean rewards, the baseline.
        entropy: weight of the sampled ``-log pi`` as a bonus (0: none).
        advantage: ``rollout``: each sequence's own reward less the baseline; ``batch_mean``: the mean reward for all, as in
            the authors' code.
    """

    iterations: int = 100
    rollouts: int = 5
    lr: float = 3e-3
    decay: float = 0.8
    entropy: float = 0.0
    advantage: Literal["rollout", "batch_mean"] = "rollout"

    def __post_init__(self) -> None:
        for name in ("iterations", "rollouts"):
            if getattr(self, name) < 1:
                raise InputError(f"{getattr(self, name)} {name}", where=name, remedy="at least 1")
        if not self.lr > 0:
            raise InputError(f"a learning rate is above 0, this is {self.lr}", where="lr", remedy="try 0.003")
        if self.advantage not in ("rollout", "batch_mean"):
            raise InputError(f"unknown advantage {self.advantage!r}", where="advantage", remedy="rollout, or batch_mean")


Score = Callable[[int, Sequence[tuple[int, ...]]], Sequence[float]]
"""(iteration, sequences of actions) -> their rewards."""


def optimize_policy(
    policy: Policy, states: Tensor, free: Tensor, score: Score, settings: PolicySettings, seed: int
) -> list[list[float]]:
    """Train ``policy`` in place with REINFORCE; the rewards [iterations][rollouts].

    ``grad = mean_i (R_i - b) sum_t grad log pi(a_t)``, with ``b`` the moving average of the mean rewards before.
    """
    rng, baseline = torch_rng(seed, "n2n", "rollouts"), MovingBaseline(settings.decay)
    optimizer = torch.optim.Adam(policy.parameters(), settings.lr)
    history = []
    for iteration in range(settings.iterations):
        actions = policy.sample(states, free, settings.rollouts, rng)
        rewards = [float(one) for one in score(iteration, [tuple(row) for row in actions.tolist()])]
        advantage = baseline(torch.tensor(rewards))
        if settings.advantage == "batch_mean":
            advantage = advantage.mean().expand_as(advantage)
        log_probs = policy.log_probs(states, free, actions)
        loss = policy_gradient_loss(log_probs, advantage + 0.0, torch.ones_like(log_probs, dtype=torch.bool)).mean()
        if settings.entropy:  # the gradient of E[log pi] is E[log pi grad log pi]
            loss = loss + settings.entropy * (log_probs.sum(1).detach() * log_probs.sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(rewards)
    return history


def make_policy(kind: type[RemovalPolicy] | type[ShrinkagePolicy], seed: int, features: int = FEATURES) -> Policy:
    """A fresh policy with the weights of ``seed``."""
    return build_with_seed(lambda: kind(features), seed, "n2n", kind.__name__)


def save_policy(policy: Policy, path: str | Path) -> Path:
    """Write the weights, to be used for another teacher: they do not depend on the number of layers."""
    from safetensors.torch import save

    return write_bytes(path, save(policy.state_dict()))


def load_policy(policy: Policy, path: str | Path) -> None:
    """Read weights that :func:`save_policy` wrote.

    Raises:
        InputError: no such file, or not the weights of such a policy.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        policy.load_state_dict(load(Path(path).read_bytes()))
    except (OSError, SafetensorError, RuntimeError) as error:
        kind = type(policy).__name__
        raise InputError(f"not the weights of a {kind}", where=path, remedy="give a file of save_policy") from error
