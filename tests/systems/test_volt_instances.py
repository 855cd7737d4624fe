"""Instances on Volt's voxels: superpoints, masks by scene, matching, and the set loss."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.data import Batch
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.systems._toy import build_with_seed
from tutelage.systems.volt import InstanceTraining, VoltInstances, VoltNetwork, found_instances
from tutelage.systems.volt.instances import InstanceDecoder, Targets, dice_loss, pool_superpoints, scene_targets


def network() -> VoltInstances:
    made = build_with_seed(lambda: VoltInstances(VoltNetwork(1, 3, 8, 2, 1, 8, 2), 3, dim=8, queries=5, depth=2, num_heads=2), 0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    return made.eval()


def scene(seed: int, number: int = 0, count: int = 30) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    place = torch.randperm(6**3, generator=rng)[:count]
    coords = torch.stack([place // 36, place // 6 % 6, place % 6], 1)
    return {"coords": coords, "features": torch.randn(count, 3, generator=rng), "batch": torch.full((count,), number)}


def together(*scenes: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([one[name] for one in scenes]) for name in scenes[0]}


def test_superpoints_are_means_and_belong_to_one_scene() -> None:
    vectors, batch = torch.tensor([[1.0], [3.0], [5.0], [7.0]]), torch.tensor([0, 0, 1, 1])
    pooled, of = pool_superpoints(vectors, torch.tensor([1, 1, 0, 0]), batch)
    assert pooled[:, 0].tolist() == [6.0, 2.0] and of.tolist() == [1, 0]
    with pytest.raises(InputError, match="two scenes"):
        pool_superpoints(vectors, torch.tensor([0, 1, 1, 0]), batch)
    with pytest.raises(InputError, match="no voxel"):
        pool_superpoints(vectors, torch.tensor([0, 0, 2, 2]), batch)


@torch.no_grad()
def test_scenes_do_not_meet_and_rows_follow_their_voxels() -> None:
    made, one, other = network(), scene(0), scene(1, count=40)
    pair = together(one, other | {"batch": other["batch"] + 1})
    found = made(pair)
    stages, queries = 3, 5
    assert found["classes"].shape == (stages, 2, queries, 4) and found["scores"].shape == (stages, 2, queries)
    assert found["masks"].shape == (stages, len(found["scene"]), queries)
    for number, alone in enumerate((made(one), made(other))):
        torch.testing.assert_close(found["classes"][:, number], alone["classes"][:, 0], atol=1e-5, rtol=1e-4)
        own = found["scene"] == number
        torch.testing.assert_close(found["masks"][:, own], alone["masks"], atol=1e-4, rtol=1e-4)
    order = torch.randperm(len(pair["batch"]), generator=torch.Generator().manual_seed(0))
    shuffled = made({name: value[order] for name, value in pair.items()})
    last, moved = found["masks"][-1][found["superpoint"]], shuffled["masks"][-1][shuffled["superpoint"]]
    torch.testing.assert_close(moved, last[order], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_given_superpoints_are_used_in_any_numbering() -> None:
    made, one, other = network(), scene(0), scene(1)
    pair = together(one, other | {"batch": other["batch"] + 1})
    plain = torch.arange(60) // 5  # scene 0 first
    swapped = (plain + 6) % 12  # scene 1 first
    found, turned = made(pair | {"superpoint": plain}), made(pair | {"superpoint": swapped})
    assert turned["scene"].tolist() == [1] * 6 + [0] * 6
    voxel = found["masks"][-1][plain]
    torch.testing.assert_close(turned["masks"][-1][swapped], voxel, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_query_reads_what_its_last_mask_holds() -> None:
    """A superpoint outside every mask of the first stage changes nothing but its own mask in the second."""
    decoder = build_with_seed(lambda: InstanceDecoder(4, 2, dim=8, queries=3, depth=1, num_heads=2), 0)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.6, generator=torch.Generator().manual_seed(parameter.numel()))
    points = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    classes, masks, _ = decoder(points)
    unseen = [s for s in range(12) if not bool((masks[0, :, s] > 0).any())]
    if not unseen or not bool((masks[0] > 0).any(1).all()):
        pytest.fail("the hand-made points must leave one superpoint unseen by all")
    without = [s for s in range(12) if s != unseen[0]]
    fewer, _, _ = decoder(points[without])
    torch.testing.assert_close(fewer, classes, atol=1e-5, rtol=1e-4)


def test_targets_of_a_scene() -> None:
    """Superpoint 0 lies in another scene; of 1 half is object 4's, of 2 a third; object 7 has no label."""
    superpoint = torch.tensor([0, 1, 1, 2, 2, 2, 3])
    batch = Batch(
        {"batch": torch.tensor([0, 1, 1, 1, 1, 1, 1])},
        torch.tensor([9, 5, 0, 5, 0, 0, -1]),
        extra={"objects": torch.tensor([4, 4, -1, 4, -1, -1, 7])},
    )
    output = {"superpoint": superpoint, "scene": torch.tensor([0, 1, 1, 1])}
    targets = scene_targets(output, batch, 1)
    assert targets.labels.tolist() == [5] and targets.masks.tolist() == [[True, False, False]]
    assert scene_targets(output, batch, 0).labels.tolist() == [9]


def test_the_match_is_the_cheapest_of_all() -> None:
    method, rng = InstanceTraining(), torch.Generator().manual_seed(0)
    classes, masks = torch.randn(5, 4, generator=rng), torch.randn(5, 7, generator=rng)
    targets = Targets(torch.tensor([2, 0, 1]), torch.rand(3, 7, generator=rng) < 0.4)

    def cost(query: int, object_: int) -> float:
        true = targets.masks[object_].float()
        bce = F.binary_cross_entropy_with_logits(masks[query], true)
        probability = classes[query].softmax(0)[targets.labels[object_]]
        return float(bce + dice_loss(masks[query].sigmoid(), true) - 0.5 * probability)

    query, match = method.matched(classes, masks, targets)
    found = sum(cost(q, t) for q, t in zip(query.tolist(), match.tolist()))
    best = min(sum(cost(q, t) for t, q in enumerate(chosen)) for chosen in itertools.permutations(range(5), 3))
    assert sorted(match.tolist()) == [0, 1, 2] and found == pytest.approx(best, abs=1e-5)


def test_a_perfect_answer_costs_nothing_but_smoothing_and_an_empty_scene_teaches_nothing_found() -> None:
    method = InstanceTraining()
    masks = torch.tensor([[True, True, False, False], [False, False, True, False]])
    targets = Targets(torch.tensor([1, 0]), masks)
    logits = 20 * torch.cat([masks, torch.zeros(1, 4, dtype=torch.bool)]).float() - 10
    classes = torch.full((3, 3), -20.0)
    classes[0, 1] = classes[1, 0] = classes[2, 2] = 20.0
    terms = method._stage(classes, logits, torch.tensor([1.0, 1.0, 0.0]), targets)
    assert all(value.item() < 1e-3 for value in terms.values())
    wrong = method._stage(classes.roll(1, 0), logits, torch.zeros(3), targets)
    assert wrong["classes"] > 1 and wrong["score"].item() == pytest.approx(1.0)
    none = method._stage(classes, logits, torch.zeros(3), Targets(torch.zeros(0, dtype=torch.int64), masks[:0]))
    assert none["bce"] == none["dice"] == none["score"] == 0 and none["classes"] > 1


def test_found_instances() -> None:
    output = {
        "classes": torch.tensor([[[[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]]]]),
        "masks": torch.tensor([[[5.0, -5.0, 5.0], [-5.0, 5.0, 5.0]]]),
        "scores": torch.tensor([[[0.9, 0.5, 1.0]]]),
        "superpoint": torch.tensor([0, 0, 1]),
        "scene": torch.tensor([0, 0]),
    }
    first, second = found_instances(output, 0)
    assert (first.label, second.label) == (0, 1)
    assert first.voxels.tolist() == [True, True, False] and second.voxels.tolist() == [False, False, True]
    assert 0.8 < first.confidence < 0.9 and second.confidence < 0.5
    assert [one.label for one in found_instances(output, 0, threshold=0.6)] == [0]


def test_objects_are_learned() -> None:
    job = InstanceTraining.tiny_job(0)
    job.settings = replace(job.settings, steps=50, log_every=5, lr=1e-2)
    result = train(job)
    weights = job.method.loss_weights()
    first, last = (sum(weights[k] * v for k, v in record["terms"].items()) for record in (result.history[0], result.history[-1]))
    assert last < 0.85 * first


def test_data_without_objects_are_refused() -> None:
    job = InstanceTraining.tiny_job(0)
    batch = job.data.batch(torch.tensor([0]), None)
    batch.extra.clear()
    with pytest.raises(InputError, match="objects"):
        job.method.loss_terms(batch, job.student(batch.inputs), {})
