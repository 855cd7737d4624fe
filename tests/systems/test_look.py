"""LOOK: the loss against a double loop, leave one out, two modes, gradients, memories, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import tutelage
from tutelage.cli import main
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems import look
from tutelage.systems._toy import toy_images
from tutelage.systems.look import LOOK, mode_ratio, neighbour_loss, neighbours

Memory = tuple[Tensor, Tensor, Tensor]


def unit(seed: int, count: int, dim: int = 5) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def sample(seed: int, queries: int = 6, entries: int = 24, classes: int = 3) -> tuple[Tensor, Tensor, Tensor, Memory]:
    """Queries 0.. whose own entries are in the memory, with labels that fit."""
    rng = torch.Generator().manual_seed(seed + 1)
    labels = torch.randint(classes, (entries,), generator=rng)
    memory = unit(seed, entries), labels, torch.arange(entries)
    return unit(seed + 2, queries), labels[:queries], torch.arange(queries), memory


def by_hand(z: Tensor, labels: Tensor, ids: Tensor, memory: Memory, k: int, sigma: float) -> list[float]:
    found = []
    for i in range(len(z)):
        entries = [(float(z[i] @ memory[0][j]), int(memory[1][j])) for j in range(len(memory[0])) if memory[2][j] != ids[i]]
        entries.sort(key=lambda one: -one[0])
        kept = entries[: k or len(entries)]
        if all(label != labels[i] for _, label in kept):
            kept += [one for one in entries if one[1] == labels[i]][:1]
        right = sum(math.exp(s / sigma) for s, label in kept if label == labels[i])
        found.append(-math.log(right / sum(math.exp(s / sigma) for s, _ in kept)) if right else 0.0)
    return found


@pytest.mark.parametrize("k", [1, 3, 10, 24, 0])
@pytest.mark.parametrize("chunk", [65_536, 7])
def test_equals_a_double_loop(k: int, chunk: int) -> None:
    given_sample = sample(0)
    found = neighbour_loss(*given_sample, k, 0.2, chunk)
    assert found.loss.tolist() == pytest.approx(by_hand(*given_sample, k, 0.2), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 4))
def test_order_own_entries_and_far_entries_change_nothing(seed: int, k: int, classes: int) -> None:
    z, labels, ids, (features, names, owners) = sample(seed, classes=classes)
    loss = neighbour_loss(z, labels, ids, (features, names, owners), k).loss
    assert bool((loss >= 0).all()) and bool(loss.isfinite().all())
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    mixed = neighbour_loss(z, labels, ids, (features[order], names[order], owners[order]), k).loss
    assert torch.allclose(loss, mixed, atol=1e-5)
    one = z[:1], labels[:1], ids[:1]
    own = torch.cat([features, one[0]]), torch.cat([names, one[1]]), torch.cat([owners, one[2]])  # the query under its own id
    assert torch.allclose(neighbour_loss(*one, own, k).loss, loss[:1], atol=1e-5)
    places, nearest = neighbours(z[:1], labels[:1], ids[:1], (features, names, owners), k)
    kept = set(places[0].tolist()) | set(nearest[0].tolist())
    moved = features.clone()
    moved[[j for j in range(24) if j not in kept]] = -z[0]
    assert torch.allclose(neighbour_loss(z[:1], labels[:1], ids[:1], (moved, names, owners), k).loss, loss[:1], atol=1e-5)


def two_modes() -> tuple[Tensor, Tensor, Tensor, Memory]:
    """Class 0 at e1 and at -e1, class 1 at e2, ten entries each; the queries are one of each cluster."""
    e1, e2 = torch.eye(2)
    features, labels = torch.cat([e1.expand(10, 2), -e1.expand(10, 2), e2.expand(10, 2)]), torch.tensor([0] * 20 + [1] * 10)
    chosen = torch.tensor([0, 10, 20])
    return features[chosen].clone().requires_grad_(), labels[chosen], chosen, (features, labels, torch.arange(30))


def test_two_modes_cost_nothing_with_few_neighbours_and_something_with_all() -> None:
    z, labels, ids, memory = two_modes()
    few = neighbour_loss(z, labels, ids, memory, 5).loss
    few.sum().backward()
    assert z.grad is not None and few.tolist() == [0, 0, 0] and bool((z.grad == 0).all())
    z.grad = None
    every = neighbour_loss(z, labels, ids, memory, 0).loss
    every.mean().backward()
    # of class 0: log(1 + 10 / (9 e^10 + 10 e^-10)); of class 1: log(1 + 20 / (9 e^10))
    expected = [10 / (9 * math.e**10), 10 / (9 * math.e**10), 20 / (9 * math.e**10)]
    assert every.tolist() == pytest.approx(expected, rel=0.02) and every.mean().item() > 5e-5
    assert 1e-4 < z.grad.norm().item() < 1e-2


def test_the_gradient_pulls_to_the_class_and_touches_kept_entries_alone() -> None:
    memory = F.normalize(torch.tensor([[1.0, 0.4], [1.0, -0.4], [-1.0, 0.1]]), dim=-1), torch.tensor([0, 1, 0]), torch.arange(3)
    z = torch.tensor([[1.0, 0.0]], requires_grad=True)
    neighbour_loss(z, torch.tensor([0]), torch.tensor([9]), memory, 2).loss.sum().backward()
    assert z.grad is not None
    expected = 10 * 0.5 * (memory[0][1] - memory[0][0])  # (P - 1) m_same + (1 - P) m_other over sigma, P = 1/2
    assert z.grad[0].tolist() == pytest.approx(expected.tolist(), abs=1e-5)

    double = torch.tensor([[0.8, 0.3]], dtype=torch.float32, requires_grad=True)
    loss = neighbour_loss(double, torch.tensor([0]), torch.tensor([9]), memory, 2, sigma=1.0).loss
    loss.sum().backward()
    for place in range(2):
        step = torch.zeros(1, 2)
        step[0, place] = 1e-2
        up, down = (
            neighbour_loss(double.detach() + sign * step, torch.tensor([0]), torch.tensor([9]), memory, 2, sigma=1.0).loss
            for sign in (1, -1)
        )
        assert double.grad is not None and double.grad[0, place].item() == pytest.approx(float(up - down) / 2e-2, abs=1e-3)


def test_an_empty_vote_takes_the_nearest_of_the_class_and_none_counts_nothing() -> None:
    memory = torch.tensor([[1.0, 0], [1, 0], [0, 1], [-1, 0]]), torch.tensor([1, 1, 0, 0]), torch.arange(4)
    z = torch.tensor([[1.0, 0], [1, 0]], requires_grad=True)
    found = neighbour_loss(z, torch.tensor([0, 2]), torch.tensor([8, 9]), memory, 2)
    assert found.empty.tolist() == [True, True] and found.loss[1] == 0
    assert found.loss[0].item() == pytest.approx(math.log(2 * math.e**10 + 1), abs=1e-3)
    found.loss.sum().backward()
    assert z.grad is not None and z.grad[0, 1] < 0 and bool((z.grad[1] == 0).all()) and bool(z.grad.isfinite().all())


def test_a_small_sigma_and_a_memory_of_own_entries_stay_finite() -> None:
    z, labels, ids, memory = sample(3)
    for k in (0, 4):
        query = z.clone().requires_grad_()
        neighbour_loss(query, labels, ids, memory, k, sigma=1e-4).loss.sum().backward()
        assert query.grad is not None and bool(query.grad.isfinite().all())
        alone = neighbour_loss(z, labels, ids, (z[:1], labels[:1], ids[:1]), k)
        assert alone.loss[0] == 0 and bool(alone.loss.isfinite().all())


def test_mode_ratio_by_hand() -> None:
    z = torch.tensor([[1.0, 0], [3, 0], [-1, 0], [-3, 0], [0, 5], [0, 7]])
    fine, coarse = torch.tensor([0, 0, 2, 2, 1, 1]), torch.tensor([0, 0, 0, 0, 1, 1])
    assert mode_ratio(z, fine, coarse) == pytest.approx((4 + 4 + 0) / 3)


# -- the method ------------------------------------------------------------------------------------------------------


def job(data: Any = None, **options: Any) -> TrainingJob:
    made = LOOK.tiny_job(0)
    return TrainingJob(made.student, None, LOOK(**({"k": 5, "dim": 8} | options)), data or made.data, made.settings, "look")


def test_slots_start_from_the_first_weights_and_are_overwritten() -> None:
    trainer = Trainer(job())
    method = trainer.method
    assert isinstance(method, LOOK) and len(method.slots) == 64
    batch = trainer.batch(0)
    before = method.slots.features.clone()
    with torch.no_grad():
        assert torch.allclose(method.embed(trainer.student, batch), before[batch.ids], atol=1e-5)
    trainer.advance()
    changed = (method.slots.features != before).any(1)
    assert set(changed.nonzero()[:, 0].tolist()) <= set(batch.ids.tolist())
    trainer.advance()
    assert bool((method.slots.features != before).any()) and torch.allclose(method.slots.features.norm(dim=1), torch.ones(64))


def test_the_queue_fills_and_its_encoder_follows_slowly() -> None:
    trainer = Trainer(job(memory="queue", queue_size=40, momentum=0.9))
    method = trainer.method
    assert isinstance(method, LOOK)
    start = [p.clone() for p in method.key_networks.parameters()]
    own = [*trainer.student.parameters(), *method.project.parameters()]
    trainer.advance()
    for old, key, new in zip(start, method.key_networks.parameters(), own, strict=True):
        assert torch.allclose(key, 0.9 * old + 0.1 * new, atol=1e-6) and not key.requires_grad
    assert len(method.queue) == 16 and len(method.entries(trainer.batch(1))[0]) == 32
    trainer.advance()
    trainer.advance()
    assert len(method.queue) == 40 == len(method.entries(trainer.batch(3))[0])
    assert set(method.queue.entries()[2].tolist()) <= set(range(64))


def test_a_queue_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def made() -> TrainingJob:
        one = job(memory="queue", queue_size=40)
        return replace(one, settings=replace(one.settings, checkpoint_every=3))

    def stop(done: int, steps: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    whole = train(made())
    with pytest.raises(KeyboardInterrupt):
        train(made(), tmp_path, progress=stop)
    again = train(made(), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.student.state_dict().values(), again.student.state_dict().values()))


def test_training_brings_neighbours_of_the_class_and_drops_the_projection() -> None:
    data = toy_images(0, count=128)
    one = job(data, k=5)
    result = train(replace(one, settings=TrainingSettings(steps=60, batch_size=32, lr=3e-3, log_every=20)))
    shares = [record["terms"]["same_class"] for record in result.history]
    assert shares[-1] > 0.9 and result.history[-1]["terms"]["neighbours"] < result.history[0]["terms"]["neighbours"]
    assert result.student(data.inputs[:2]).shape == (2, 24)


def test_a_named_layer_is_pretrained_and_the_head_behind_it_is_not() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    start = {name: value.clone() for name, value in network.state_dict().items()}
    result = tutelage.distill(network, None, toy_images(0), LOOK(k=5, dim=8, features="in:3"), steps=3, batch_size=16)
    end = result.student.state_dict()
    assert torch.equal(end["3.weight"], start["3.weight"]) and not torch.equal(end["1.weight"], start["1.weight"])


def test_the_recipe_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = (look.__doc__ or "").partition("``tutelage distill``::")[2].partition("For large data")[0]
    Path("look.toml").write_text("\n".join(line[4:] for line in recipe.splitlines()))
    rng = np.random.default_rng(0)
    np.savez("images.npz", inputs=rng.random((40, 3, 16, 16), np.float32), labels=np.arange(40) % 4)
    words = ["distill", "look.toml", "--set", "settings.steps=2", "--set", "settings.batch_size=16"]
    result = CliRunner().invoke(main.app, words)
    assert result.exit_code == 0, result.output
    assert Path("runs/backbone/seed-0/student.safetensors").exists()


def test_what_does_not_fit_is_refused() -> None:
    for options, message in (({"k": -1}, "k"), ({"sigma": 0}, "sigma"), ({"memory": "heap"}, "slots or queue")):
        with pytest.raises(InputError, match=message):
            LOOK(**options)
    with pytest.raises(InputError, match="a queue of 100 entries for 64 samples"):
        train(job(memory="queue", queue_size=100))
    mixed = TensorData(toy_images(0).inputs, torch.rand(64, 4))
    with pytest.raises(InputError, match="class id"):
        train(job(mixed))
