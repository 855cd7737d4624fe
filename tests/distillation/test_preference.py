"""Preferences: the loss by hand, what its gradient does, and a language model that is tuned on pairs of texts."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from tutelage.distillation import losses
from tutelage.distillation.job import TrainingSettings
from tutelage.distillation.preference import DPO, Preference, preference_data, preference_job, tune_on_preferences
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.networks.causal_lm import SequenceLogProbs
from tutelage.systems.polyglot_teachers import TextModel, tiny_text_model

PAIRS = [Preference("a b", "c", "d e"), Preference("a", "c c", "d"), Preference("b", "c", "e")]


@pytest.fixture
def model() -> TextModel:
    return tiny_text_model(list("abcde"), seed=0, dim=16)


def log_probs(model: TextModel, network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return SequenceLogProbs(network)(**preference_data(model, PAIRS).inputs)["log_probs"]


def test_the_loss_by_hand() -> None:
    zero = torch.zeros(3, 2)
    assert float(losses.dpo(zero - 5, zero - 5)) == pytest.approx(math.log(2))
    margin = torch.tensor([[1.5, -0.5]])
    assert float(losses.dpo(margin, torch.zeros(1, 2), 0.1)) == pytest.approx(0.5981, abs=1e-4)
    both = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    weighted = losses.dpo(both, torch.zeros(2, 2), 0.1, torch.tensor([1.0, 3.0]))
    assert float(weighted) == pytest.approx((math.log(2) + 3 * 0.59814) / 4, abs=1e-4)


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected() -> None:
    policy, reference = torch.zeros(2, 2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    losses.dpo(policy, reference).backward()
    assert policy.grad is not None and bool((policy.grad[:, 0] < 0).all()) and bool((policy.grad[:, 1] > 0).all())
    assert reference.grad is None


def test_log_probabilities_are_those_of_the_tokens(model: TextModel) -> None:
    """Against a softmax by hand, one response at a time: neighbours and padding change nothing."""
    found = log_probs(model, model.network)
    for pair, row in zip(PAIRS, found):
        for text, value in zip((pair.chosen, pair.rejected), row):
            prompt, response = model.encode_prompt(pair.prompt), [*model.encode(text), model.end]
            with torch.no_grad():
                logs = model.network(torch.tensor([prompt + response])).log_softmax(-1)[0]
            by_hand = sum(float(logs[len(prompt) + place - 1, token]) for place, token in enumerate(response))
            assert float(value) == pytest.approx(by_hand, abs=1e-5)


def test_training_starts_at_log_2_and_prefers_the_chosen(model: TextModel) -> None:
    before = copy.deepcopy(model.network.state_dict())
    policy = SequenceLogProbs(copy.deepcopy(model.network))
    settings = TrainingSettings(steps=20, batch_size=3, lr=3e-3, log_every=1)
    job = preference_job(policy, preference_data(model, PAIRS), settings)
    result = train(job)
    assert result.history[0]["terms"]["dpo"] == pytest.approx(math.log(2), abs=1e-6)
    assert result.history[-1]["terms"]["dpo"] < math.log(2) - 0.1
    tuned = tune_on_preferences(model, PAIRS, settings)
    old, new = log_probs(model, model.network), log_probs(model, tuned)
    assert bool(((new - old)[:, 0] > (new - old)[:, 1]).all())
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items()), "the model stays"


def test_what_cannot_be_learned_from_is_refused(model: TextModel) -> None:
    with pytest.raises(InputError, match="no pair"):
        preference_data(model, [])
    with pytest.raises(InputError, match="one text"):
        preference_data(model, [PAIRS[0], Preference("a", "c", "c")])
    with pytest.raises(InputError, match="beta"):
        DPO(beta=0.0)
