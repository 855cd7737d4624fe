"""C-GAC: one change of image, mask and keypoints; the loss; disagreement and weights; figures; what is read of the target."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from tutelage import distill
from tutelage.cli import main
from tutelage.distillation.data import TensorData
from tutelage.distillation.data.combined import CombinedData
from tutelage.distillation.ensemble import EnsembleTeacher
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.networks.unet import UNet
from tutelage.systems.c_gac import (
    CGAC,
    HandLabels,
    HandLoss,
    HandNetwork,
    HandScores,
    Warp,
    confidence,
    hand_labels,
    heat_maps,
    mask_iou,
    pck_auc,
    pointers,
    random_warps,
)

SMALL = {
    "heatmap": "bce",
    "sigma": 2.0,
    "pose_weight": 5.0,
    "mask_weight": 1.0,
    "gamma": 1.0,
    "colour": 0.0,
    "erase": 0.0,
    "blur": 0.0,
}


def net(seed: int = 0, keypoints: int = 1) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(1, {"heatmaps": keypoints, "mask": 1}, (4, 8))


def two_domains(labels: object = None, target: Tensor | None = None) -> CombinedData:
    images = pointers(0, "target", 16, target=True).data.inputs if target is None else target
    return CombinedData({"source": pointers(0, "source", 16).data, "target": TensorData(images, labels)})


def some_job(
    data: CombinedData | None = None, student: nn.Module | None = None, teacher: object = None, **options: object
) -> TrainingJob:
    chosen = TrainingSettings(steps=4, batch_size=8, lr=1e-2, log_every=1)
    return TrainingJob(student or net(), teacher, CGAC(**SMALL | options), data or two_domains(), chosen)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# -- the change of image, mask and keypoints -------------------------------------------------------------------------


def test_a_quarter_turn_by_hand() -> None:
    """y points down: (x, y) -> (-y, x) takes what is on the right to the bottom."""
    turn = Warp(torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]), torch.zeros(1, 2))
    assert turn.image(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).round(decimals=4).tolist() == [[[[3.0, 1.0], [4.0, 2.0]]]]
    torch.testing.assert_close(turn.points(torch.tensor([[[0.75, 0.25, 1.0]]])), torch.tensor([[[0.75, 0.75, 1.0]]]))
    shift = Warp(torch.eye(2)[None], torch.tensor([[1.0, 0.0]]))  # by half a side to the right
    assert shift.image(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[0.0, 1.0]]]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([(24, 24), (20, 32)]))
def test_there_and_back(seed: int, quarter: bool, size: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(seed)
    warp = random_warps(5, size, quarter_turns=quarter and size[0] == size[1], generator=rng)
    points = torch.rand(5, 3, 3, generator=rng)
    torch.testing.assert_close(warp.inverse.points(warp.points(points)), points, atol=1e-5, rtol=1e-4)
    # angles stay: the distance in pixels of two points too
    sides = torch.tensor([size[1], size[0]])
    apart = [((found[:, 0] - found[:, 1])[:, :2] * sides).norm(dim=1) for found in (points, warp.points(points))]
    torch.testing.assert_close(apart[0], apart[1], atol=1e-3, rtol=1e-4)


def test_a_disc_and_its_middle_stay_together() -> None:
    axis = (torch.arange(64) + 0.5) / 64
    disc = (((axis[:, None] - 0.45) ** 2 + (axis[None] - 0.6) ** 2) < 0.1**2).float()
    labels = HandLabels(torch.tensor([[[0.6, 0.45, 1.0]]]).expand(30, 1, 3), disc.expand(30, 1, 64, 64))
    moved = labels.moved(random_warps(30, (64, 64), generator=torch.Generator().manual_seed(0)))
    inside = ((moved.points[:, 0, :2] - 0.5).abs() < 0.35).all(1)  # the whole disc is seen
    assert inside.sum() > 10
    mass = moved.mask[:, 0] / moved.mask.sum((1, 2, 3))[:, None, None]
    middle = torch.stack([(mass * axis).sum((1, 2)), (mass * axis[:, None]).sum((1, 2))], 1)
    assert (middle - moved.points[:, 0, :2])[inside].abs().max() * 64 < 0.1
    torch.testing.assert_close(moved.mask.sum((1, 2, 3))[inside], disc.sum().expand(int(inside.sum())), rtol=0.02, atol=0)


def test_ignored_pixels_stay_ignored() -> None:
    mask = torch.tensor([[[[1.0, -100.0], [0.0, 1.0]]]])
    labels = HandLabels(torch.zeros(1, 1, 3), mask).moved(Warp(torch.tensor([[[-1.0, 0.0], [0.0, 1.0]]]), torch.zeros(1, 2)))
    assert labels.mask.tolist() == [[[[-1.0, 1.0], [1.0, 0.0]]]]


# -- the loss --------------------------------------------------------------------------------------------------------


def test_huber_by_hand() -> None:
    loss = HandLoss(sigma=1.0)
    point = torch.tensor([[[0.5, 0.5, 1.0]]])
    target = heat_maps(point, (4, 4), 1.0)
    for distance, value in ((0.005, 1.25e-5), (0.02, 1.5e-4)):
        torch.testing.assert_close(loss.pose(target + distance, point), torch.tensor([value]), rtol=1e-4, atol=0)
    hidden = torch.tensor([[[0.5, 0.5, 1.0], [0.1, 0.1, 0.0]]])  # a keypoint without a label adds 0, but counts in the mean
    both = torch.cat([target + 0.02, target + 9], 1)
    torch.testing.assert_close(loss.pose(both, hidden), torch.tensor([0.75e-4]), rtol=1e-4, atol=0)
    assert (heat_maps(torch.tensor([[[1.2, 0.5], [0.5, -0.01]]]), (4, 4), 1.0) == 0).all()


def test_masks_count_where_they_are_labelled() -> None:
    logits, mask = torch.tensor([[[[0.0, 50.0]]]]), torch.tensor([[[[1.0, -100.0]]]])
    assert float(HandLoss().mask(logits, mask)) == pytest.approx(math.log(2))
    assert HandLoss().mask(logits, torch.full_like(mask, -100)).tolist() == [0]


def test_the_references_gaussians_are_near() -> None:
    point = torch.tensor([[[0.41, 0.33]]])
    plain, floor = heat_maps(point, (64, 64), 4.0), heat_maps(point, (64, 64), 4.0, floor=True)
    at = heat_maps((torch.tensor([[[26, 21]]]) + 0.5) / 64, (64, 64), 4.0)  # 0.41 * 64 = 26.2, 0.33 * 64 = 21.1
    assert floor[0, 0, 21, 26] == 1 and floor[0, 0, 21, 40] == 0 and (plain - floor).abs().max() < 0.16
    assert 0 < (at - floor).abs().max() < 0.0051  # the cut: exp(-14^2 / 32) = 0.0022 along an axis


class Truth(nn.Module):
    """Finds a bright disc: what a perfect network would say of any picture of it."""

    def __init__(self, sigma: float):
        super().__init__()
        self.sigma, self.unused = sigma, nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        axis = (torch.arange(images.shape[-1]) + 0.5) / images.shape[-1]
        mass = images[:, 0] / images.sum((1, 2, 3))[:, None, None]
        middle = torch.stack([(mass * axis).sum((1, 2)), (mass * axis[:, None]).sum((1, 2))], 1)[:, None]
        maps = heat_maps(middle, images.shape[2:], self.sigma) + 0 * self.unused
        return {"heatmaps": maps, "mask": images.clamp(1e-6, 1 - 1e-6).logit()}


def test_a_network_that_moves_with_the_image_loses_nothing() -> None:
    axis = (torch.arange(64) + 0.5) / 64
    disc = torch.sigmoid((0.12 - ((axis[:, None] - 0.5) ** 2 + (axis[None] - 0.5) ** 2).sqrt()) * 64).expand(20, 1, 64, 64)
    disc = disc * (disc > 0.01)
    warp = random_warps(20, (64, 64), translation=0.1, generator=torch.Generator().manual_seed(1))
    loss, truth = HandLoss(), Truth(4.0)
    pseudo = loss.predict(truth(disc))
    assert (pseudo.points[..., :2] - 0.5).abs().max() <= 0.51 / 64  # the middle lies between four cells
    pseudo = HandLabels(torch.tensor([0.5, 0.5, 1.0]).expand(20, 1, 3), pseudo.mask)
    moved = pseudo.moved(warp)
    found = truth(warp.image(disc))
    assert loss.pose(found["heatmaps"], moved.points).max() < 1e-7
    least = F.binary_cross_entropy(moved.mask.clamp(0, 1), moved.mask.clamp(0, 1), reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(loss.mask(found["mask"], moved.mask), least, atol=1e-4, rtol=1e-3)
    still = truth(disc)  # does not move
    assert loss.pose(still["heatmaps"], moved.points).max() > 1e-5


# -- disagreement and weights ----------------------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    w = confidence(torch.tensor([0.0, math.log(3) / 2, 1.0, 20.0]), 2.0)
    assert w[0] == 1 and float(w[1]) == pytest.approx(0.5) and (w.diff() < 0).all() and 0 < w[3] < 1e-16 and not w.requires_grad


@pytest.mark.parametrize("heatmap", ["huber", "bce"])
def test_disagreement_is_even_and_nothing_where_teachers_agree(heatmap: str) -> None:
    loss, rng = HandLoss(heatmap=heatmap, sigma=2.0), torch.Generator().manual_seed(0)
    one, other = (
        HandLabels(torch.cat([torch.rand(4, 2, 2, generator=rng), torch.ones(4, 2, 1)], -1), torch.rand(4, 1, 8, 8, generator=rng))
        for _ in range(2)
    )
    assert loss.disagreement(one, one, (8, 8)).tolist() == [0] * 4
    assert (confidence(loss.disagreement(one, one, (8, 8)), 1e3) == 1).all()
    torch.testing.assert_close(loss.disagreement(one, other, (8, 8)), loss.disagreement(other, one, (8, 8)))
    assert (loss.disagreement(one, other, (8, 8)) > 0).all()


def test_flat_maps_of_teachers_that_see_nothing_do_not_agree() -> None:
    """Peaks of 0.001 over flat maps: raw, they hardly differ; redrawn, they are as far apart as sure ones."""
    maps = [torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)]
    maps[0][..., 2, 2], maps[1][..., 13, 13] = 1e-3, 1e-3
    loss, mask = HandLoss(sigma=2.0), torch.zeros(1, 1, 16, 16)
    weak, sure = (
        loss.disagreement(*(loss.predict({"heatmaps": factor * one, "mask": mask}) for one in maps), size=(16, 16))
        for factor in (1, 1000)
    )
    raw = 1e7 * F.huber_loss(maps[0], maps[1], delta=0.01)
    assert float(weak) == float(sure) > 1000 * float(raw)


def test_the_median_target_image_weighs_a_half_and_equal_teachers_give_one() -> None:
    trainer = Trainer(some_job(teacher=EnsembleTeacher([net(1), net(2)]), pretrain=0.0, move_teachers=False))
    trainer.advance()
    method = trainer.method
    _, w = method.pseudo_labels(two_domains().sources["target"].inputs)
    ordered = w.sort().values
    assert ordered[8] == pytest.approx(0.5, abs=1e-4) and ordered[0] < 0.5 < ordered[-1]
    equal = Trainer(some_job(teacher=EnsembleTeacher([net(1), net(1)]), pretrain=0.0, move_teachers=False))
    equal.advance()
    assert (equal.method.pseudo_labels(two_domains().sources["target"].inputs)[1] == 1).all()


# -- training --------------------------------------------------------------------------------------------------------


def test_no_label_of_the_target_is_read() -> None:
    """Absent, false or right: the same bits of the student and the teachers."""
    right = pointers(0, "target", 16, target=True).data.labels
    wrong = {"points": torch.full((16, 1, 3), 0.7), "mask": torch.ones(16, 24, 24, dtype=torch.int64)}
    found = []
    for labels in (None, right, wrong):
        job = some_job(two_domains(labels))
        train(job)
        found.append(state(job.student) | state(job.method))
    assert same(found[0], found[1]) and same(found[0], found[2])
    other = some_job(two_domains(target=torch.rand(16, 1, 24, 24, generator=torch.Generator().manual_seed(0))))
    train(other)
    assert not same(found[0], state(other.student) | state(other.method)), "the target's images are read"


def test_gamma_0_is_the_source_alone_bit_for_bit() -> None:
    noise = torch.rand(16, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    jobs = [some_job(gamma=0.0), some_job(two_domains(target=noise), gamma=0.0), some_job()]
    for job in jobs:
        train(job)
    assert same(state(jobs[0].student), state(jobs[1].student)) and not same(state(jobs[0].student), state(jobs[2].student))
    assert same(state(jobs[0].method.teachers), state(jobs[1].method.teachers))


def test_the_mask_head_stands_still_in_the_first_round() -> None:
    trainer = Trainer(some_job())  # phases of 2, 1 and 1 steps
    for step, moves in enumerate((True, True, False, True)):
        before = state(trainer.student), state(trainer.method)
        trainer.advance()
        for old, module in zip(before, (trainer.student, trainer.method), strict=True):
            masks = [name for name in old if "mask" in name]
            changed = [not torch.equal(old[name], module.state_dict()[name]) for name in masks]
            assert masks and all(changed) is moves and any(changed) is moves, f"step {step}"
        if not moves:
            assert all(p.grad is None for name, p in trainer.student.named_parameters() if "mask" in name)


def test_teachers_start_apart_and_given_ones_are_copied() -> None:
    method = Trainer(some_job()).method
    first, second = (dict(one.named_parameters()) for one in method.teachers)
    assert not torch.equal(first["encoder.stem.weight"], second["encoder.stem.weight"])
    one, other = net(1), net(2)
    before = state(one)
    job = some_job(teacher=EnsembleTeacher([one, other]), pretrain=0.0)
    train(job)
    assert same(before, state(one)) and not same(before, state(job.method.teachers[0]))


def test_weighting_none_and_shuffled() -> None:
    images = two_domains().sources["target"].inputs
    found = {}
    for weighting in ("none", "confidence", "shuffled"):
        job = some_job(teacher=EnsembleTeacher([net(1), net(2)]), pretrain=0.0, move_teachers=False, weighting=weighting)
        trainer = Trainer(job)
        trainer.advance()
        torch.manual_seed(0)
        found[weighting] = trainer.method.pseudo_labels(images)[1]
    assert (found["none"] == 1).all()
    assert not torch.equal(found["confidence"], found["shuffled"])
    torch.testing.assert_close(found["confidence"].sort().values, found["shuffled"].sort().values)


LABELLED, UNLABELLED = pointers(0, "source", 8).data, TensorData(torch.zeros(8, 1, 24, 24))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: some_job(pointers(0, "source", 16).data), "no field 'source'"),
        (
            lambda: some_job(CombinedData({"source": pointers(0, "s", 8).data, "targt": TensorData(torch.rand(8, 1, 24, 24))})),
            "targt",
        ),
        (
            lambda: some_job(CombinedData({"target": pointers(0, "s", 8).data, "source": TensorData(torch.rand(8, 1, 24, 24))})),
            "swap",
        ),
        (lambda: some_job(student=UNet(1, {"heatmaps": 1}, (4, 8))), "mask"),
        (lambda: some_job(student=net(0, 3)), "1 keypoints"),
        (lambda: some_job(teacher=net(1)), "1 teachers"),
        (lambda: some_job(pretrain=0.0), "know nothing"),
        (lambda: some_job(move_teachers=False), "stand still"),
        (lambda: some_job(pretrain=0.0, pose=0.0, both=0.0), "no phase"),
        (lambda: some_job(weighting="confidenc"), "unknown weighting"),
        (lambda: some_job(sigma=0.0), "above 0"),
        (lambda: hand_labels(torch.zeros(3)), "no keypoints"),
        (lambda: hand_labels({"points": torch.zeros(2, 1, 3), "mask": torch.zeros(2)}), "no masks"),
        (lambda: two_domains(target=torch.rand(16, 1, 20, 20)).batch(torch.tensor([0, 16]), None), "[1, 20, 20]"),
        (lambda: HandNetwork(width=6), "multiple of 4"),
        (lambda: HandNetwork.options("hnd"), "hand"),
        (lambda: HandNetwork(1, 1, 8, 2)(torch.zeros(1, 1, 12, 12)), "multiples of 8"),
    ],
)
def test_bad_input_is_refused(change: object, words: str) -> None:
    with pytest.raises(InputError) as caught:
        made = change()
        Trainer(made)
    assert words in str(caught.value)


# -- figures and the network -----------------------------------------------------------------------------------------


def test_the_area_under_the_curve_by_hand() -> None:
    def area(*errors: float) -> float:
        return pck_auc(torch.tensor(errors)[:, None])

    assert area(0.0) == pytest.approx(100) and area(20.001) == 0
    assert area(10.0) == pytest.approx(50, abs=1) and area(20.0) == pytest.approx(50 / 99)
    assert area(0.0, 30.0) == pytest.approx(50)
    errors = torch.tensor([[0.0, 30.0], [0.0, 0.0]])
    assert pck_auc(errors) == pytest.approx(75)  # the mean of keypoints: 100 and 50
    assert pck_auc(errors, torch.tensor([[True, False], [True, True]])) == pytest.approx(100)
    with pytest.raises(InputError, match="no labelled keypoint"):
        pck_auc(errors, torch.zeros(2, 2, dtype=torch.bool))


def test_overlaps_by_hand() -> None:
    masks = torch.tensor([[[1, 1]], [[1, 0]], [[0, 0]], [[0, 0]]]).bool()
    other = torch.tensor([[[1, 0]], [[0, 1]], [[1, 1]], [[0, 0]]]).bool()
    assert mask_iou(masks, other).tolist() == [0.5, 0, 0, 1]


def test_the_true_network_scores_everything() -> None:
    data = pointers(0, "test", 12).data
    labels = hand_labels(data.labels)
    maps = heat_maps(labels.points, (24, 24), 2.0)

    class Known(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"heatmaps": maps, "mask": 20 * labels.mask - 10}

    figures = HandScores(data, limit=8.0)(Known())
    assert figures["IoU"] == 100 and figures["AUC"] > 90 and figures["error"] < 0.72  # the peak lies within its cell
    assert figures["score"] == pytest.approx((100 + figures["AUC"]) / 2)


def test_the_published_network_has_its_size() -> None:
    with torch.device("meta"):
        network = HandNetwork(**HandNetwork.options("hand"))
        found = network(torch.zeros(1, 3, 128, 128))
    assert sum(p.numel() for p in network.parameters()) == 13_630_379
    assert {name: tuple(value.shape) for name, value in found.items()} == {"heatmaps": (1, 21, 64, 64), "mask": (1, 1, 128, 128)}


# -- as its page shows it --------------------------------------------------------------------------------------------


def test_the_pages_python() -> None:
    data = pointers(0, "source", 12).data
    images, points, masks = data.inputs[..., 4:20, 4:20], data.labels["points"], data.labels["mask"][:, 4:20, 4:20]
    new_images = pointers(0, "target", 12, target=True).data.inputs[..., 4:20, 4:20]
    source = TensorData(images, {"points": points, "mask": masks})
    both = CombinedData({"source": source, "target": TensorData(new_images)})
    network = HandNetwork(keypoints=points.shape[1], in_chans=images.shape[1], width=8, depth=2)
    result = distill(network, None, both, "c-gac", steps=4, batch_size=8, lr=1e-4)
    assert set(HandScores(source)(result.student)) == {"score", "AUC", "IoU", "error"}


RECIPE = """
method = "c-gac"
out = "run"

[student]
model = "c-gac:tiny"

[data]
kind = "combined"
[data.sources.source]
file = "source.npz"
[data.sources.target]
file = "target.npz"
labels = false

[settings]
steps = 4
batch_size = 8
lr = 1e-4
"""


def test_a_recipe_names_both_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("source", "target"):
        data = pointers(0, name, 12, target=name == "target").data
        labels = {f"labels.{key}": value.numpy() for key, value in data.labels.items()}
        np.savez(f"{name}.npz", inputs=data.inputs.numpy(), **labels)
    Path("recipe.toml").write_text(RECIPE)
    ran = CliRunner().invoke(main.app, ["distill", "recipe.toml"])
    assert ran.exit_code == 0, ran.output
    assert Path("run/seed-0/student.safetensors").exists()
