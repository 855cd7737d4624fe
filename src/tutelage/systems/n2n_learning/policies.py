"""The two recurrent policies, and how REINFORCE trains one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.distillation.checkpoint import read_tensors, write_tensors
from tutelage.distillation.policy_gradient import MovingBaseline, policy_gradient_loss
from tutelage.errors import InputError, StaleError
from tutelage.systems.n2n_learning.layer_list import FEATURES, FIELDS

FACTORS = (0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""What the eleven actions of the shrinkage policy multiply a field by: those of the authors' code."""


class Sample(NamedTuple):
    """N rollouts of a policy.

    ``actions`` [N, T] int64, ``log_probs`` [N, T] (0 where there was nothing to decide), ``entropy`` [N], summed over the
    decisions, and ``values`` [N], the critic's estimates of the reward, or None.
    """

    actions: Tensor
    log_probs: Tensor
    entropy: Tensor
    values: Tensor | None


class RemovalPolicy(nn.Module):
    """A two-layer bidirectional LSTM that reads the layer list and keeps (1) or removes (0) each layer on its own.

    Args:
        hidden: units a direction.
        critic: a second head estimates the reward.
    """

    def __init__(self, hidden: int = 30, critic: bool = False):
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, hidden, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, 2)
        self.value = nn.Linear(2 * hidden, 1) if critic else None

    def forward(self, features: Tensor, decided: Tensor, count: int, rng: torch.Generator, actions: Tensor | None = None) -> Sample:
        """Sample actions, or score the given ones.

        Args:
            features: of the layers [L, FEATURES].
            decided: the layers [L] (bool) that may go; all others are kept and add no log-probability.
            count: how many rollouts.
            rng: what they are drawn by.
            actions: [N, L] to score in place of new ones.
        """
        states = self.lstm(features[None])[0][0]
        log_probs = self.head(states).log_softmax(-1)
        if actions is None:
            actions = torch.multinomial(log_probs.detach().exp(), count, replacement=True, generator=rng).T
            actions = actions.masked_fill(~decided, 1)
        chosen = log_probs.expand(len(actions), -1, -1).gather(-1, actions[..., None])[..., 0] * decided
        entropy = -(log_probs.exp() * log_probs).sum(-1) @ decided.to(log_probs.dtype)
        values = None if self.value is None else self.value(states.mean(0)).expand(len(actions))
        return Sample(actions, chosen, entropy.expand(len(actions)), values)


class ShrinkagePolicy(nn.Module):
    """A two-layer LSTM that chooses one of eleven factors for each field of each layer, one after the other.

    A step reads the layer's vector, which field is decided, and the factor chosen in the step before (our choice; the authors
    multiply the input by it). A layer without anything to decide is read in one step.

    Args:
        hidden: units.
        critic: a second head estimates the reward from the last state.
    """

    def __init__(self, hidden: int = 30, critic: bool = False):
        super().__init__()
        self.lstm = nn.LSTM(FEATURES + len(FIELDS) + 1, hidden, 2, batch_first=True)
        self.head = nn.Linear(hidden, len(FACTORS))
        self.value = nn.Linear(hidden, 1) if critic else None

    def forward(self, features: Tensor, decided: Tensor, count: int, rng: torch.Generator, actions: Tensor | None = None) -> Sample:
        """Sample actions [N, L * FIELDS], or score the given ones; see :class:`RemovalPolicy`.

        ``decided`` [L, FIELDS]: what a factor can change; elsewhere the action is the last, the factor 1.
        """
        count = count if actions is None else len(actions)
        untouched = torch.full((count,), len(FACTORS) - 1)
        factors, fields = torch.tensor(FACTORS), torch.eye(len(FIELDS))
        last, state = torch.ones(count, 1), None
        taken, log_probs, entropy = [], [], torch.zeros(count)
        for number, (vector, free) in enumerate(zip(features, decided.tolist(), strict=True)):
            for place, may in enumerate(free):
                step = number * len(FIELDS) + place
                if may or (place == 0 and not any(free)):
                    read = torch.cat([torch.cat([vector, fields[place] * may]).expand(count, -1), last], 1)
                    out, state = self.lstm(read[:, None], state)
                if not may:
                    taken.append(untouched)
                    log_probs.append(torch.zeros(count))
                    continue
                options = self.head(out[:, 0]).log_softmax(-1)
                if actions is None:
                    action = torch.multinomial(options.detach().exp(), 1, generator=rng)[:, 0]
                else:
                    action = actions[:, step]
                taken.append(action)
                log_probs.append(options.gather(1, action[:, None])[:, 0])
                entropy = entropy - (options.exp() * options).sum(-1)
                last = factors[action][:, None]
        values = None if self.value is None else self.value(out[:, 0])[:, 0]
        return Sample(torch.stack(taken, 1), torch.stack(log_probs, 1), entropy, values)


class Policies(nn.Module):
    """Both policies. Their weights fit a network of any number of layers, so that they can go on with another teacher."""

    def __init__(self, hidden: int = 30, critic: bool = False):
        super().__init__()
        self.hidden, self.critic = hidden, critic
        self.removal, self.shrinkage = RemovalPolicy(hidden, critic), ShrinkagePolicy(hidden, critic)

    def save(self, path: str | Path) -> Path:
        """Write the weights as one safetensors file."""
        return write_tensors(path, self.state_dict(), {"hidden": self.hidden, "critic": self.critic}, "tutelage-n2n-policies-1")

    @classmethod
    def load(cls, path: str | Path) -> Policies:
        """What :meth:`save` wrote.

        Raises:
            InputError: no such file, or a damaged one. StaleError: a file of another kind.
        """
        remedy = "give a file that Policies.save wrote"
        tensors, head = read_tensors(path, "tutelage-n2n-policies-1", remedy)
        hidden = head.get("hidden")
        if not isinstance(hidden, int) or not 1 <= hidden <= 10_000:
            raise InputError("no width of the policies", where=path, remedy=remedy)
        policies = cls(hidden, head.get("critic") is True)
        try:
            policies.load_state_dict(tensors)
        except RuntimeError as error:
            raise StaleError(f"weights of other policies: {error}"[:300], where=path, remedy=remedy) from error
        return policies


# -- REINFORCE -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PolicySettings:
    """How a policy is trained.

    Attributes:
        iterations: updates.
        rollouts: samples in each.
        lr: of Adam.
        decay: of the baseline, the moving average of past mean rewards (our choice).
        entropy: weight of the policy's entropy, added to what is maximised.
        critic: a value head in place of the moving average; it learns by squared error.
        advantage: ``rollout``, each rollout's own reward less the baseline; ``batch``, the mean of the iteration for all of its
            rollouts, as the authors' code has it.
    """

    iterations: int = 100
    rollouts: int = 5
    lr: float = 3e-3
    decay: float = 0.8
    entropy: float = 0.0
    critic: bool = False
    advantage: Literal["rollout", "batch"] = "rollout"


def train_policy(
    policy: RemovalPolicy | ShrinkagePolicy,
    features: Tensor,
    decided: Tensor,
    reward: Callable[[Tensor, int], Sequence[float]],
    settings: PolicySettings,
    rng: torch.Generator,
) -> Tensor:
    """REINFORCE: ``mean_i (R_i - b) sum_t grad log pi(a_it)``; the rewards [iterations, rollouts], in order.

    Args:
        policy: trained in place.
        features: of the layers [L, FEATURES].
        decided: what the policy decides about; see the policies.
        reward: of actions [N, T] in an iteration (from 0): N numbers.
        settings: see :class:`PolicySettings`.
        rng: what the rollouts are drawn by.
    """
    optimizer = torch.optim.Adam(policy.parameters(), settings.lr)
    baseline = MovingBaseline(settings.decay)
    history = []
    for iteration in range(settings.iterations if bool(decided.any()) else 0):
        sample: Sample = policy(features, decided, settings.rollouts, rng)
        rewards = torch.tensor(list(reward(sample.actions, iteration)), dtype=torch.float32)
        history.append(rewards)
        advantage = baseline(rewards)
        loss = torch.zeros(())
        if sample.values is not None:
            advantage = rewards - sample.values.detach()
            loss = (sample.values - rewards).square().mean()
        if settings.advantage == "batch":
            advantage = advantage.mean().expand_as(advantage)
        mask = torch.ones_like(sample.log_probs)
        loss = loss + policy_gradient_loss(sample.log_probs, advantage, mask).mean() - settings.entropy * sample.entropy.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.stack(history) if history else torch.zeros(0, settings.rollouts)
