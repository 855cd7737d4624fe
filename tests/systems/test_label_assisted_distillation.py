"""Label assisted distillation: the label channel, the two paths, and what reaches the student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from tutelage import distill
from tutelage.cli import main
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.losses import channel_divergence
from tutelage.distillation.method import Phase, TrainingProgress
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.networks.unet import UNet
from tutelage.seeds import torch_rng
from tutelage.systems.label_assisted_distillation import (
    LabelAssistedDistillation,
    LabelChannel,
    dist_divergence,
    fold_network,
    label_assisted_teacher,
    paint,
    two_path_divergence,
    widen_network,
)


def some_batch(count: int = 4, classes: int = 3, side: int = 8) -> Batch:
    rng = torch_rng(0, "maps")
    labels = torch.randint(classes, (count, side, side), generator=rng)
    return Batch(torch.randn(count, 3, side, side, generator=rng), labels, seeds=torch.arange(count))


def some_maps(*names: object) -> Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch_rng(1, *names))


def some_job(**options: object) -> TrainingJob:
    torch.manual_seed(0)
    batch = some_batch(8)
    settings = TrainingSettings(steps=6, batch_size=4)
    data = TensorData(batch.inputs, batch.labels)
    return TrainingJob(UNet(3, 3, (4, 8)), None, LabelAssistedDistillation(**options), data, settings, task="segmentation")


# -- the channel -----------------------------------------------------------------------------------------------------


def test_a_class_of_an_image_has_one_value_and_an_ignored_label_is_a_class() -> None:
    batch = some_batch()
    batch.labels[:, 0] = 255
    painted = LabelChannel(3, "first", noise=0.0)(batch)
    assert painted.shape == (4, 1, 8, 8)
    values = [[painted[i, 0][batch.labels[i] == k].unique() for k in (0, 1, 2, 255)] for i in range(4)]
    assert all(len(value) == 1 for row in values for value in row)
    assert len({value.item() for row in values for value in row}) == 16, "images and classes differ"


def test_paths_and_views_differ_and_a_view_repeats() -> None:
    batch, later = some_batch(), some_batch()
    later.seeds = later.seeds + 100
    first = LabelChannel(3, "first")
    assert torch.equal(first(batch), first(batch))
    assert not torch.equal(first(batch), LabelChannel(3, "second")(batch))
    assert not torch.equal(first(batch), first(later))


def test_the_value_tells_nothing_of_the_class() -> None:
    labels = (torch.arange(16) % 4).view(1, 4, 4).expand(4000, 4, 4).contiguous()
    batch = Batch(torch.zeros(4000, 1, 4, 4), labels, seeds=torch.arange(4000))
    painted = LabelChannel(4, "first", noise=0.0)(batch)[:, 0, 0]
    assert abs(torch.corrcoef(torch.stack([painted.flatten(), labels[:, 0].float().flatten()]))[0, 1]) < 0.03
    assert painted.mean().abs() < 0.03 and abs(painted.std() - 1) < 0.03


def test_pixel_noise_gain_and_fixed_values() -> None:
    labels = torch.arange(3).view(1, 3, 1).expand(50, 3, 60).contiguous()
    batch = Batch(torch.zeros(50, 1, 3, 60), labels, seeds=torch.arange(50))
    plain, noisy = LabelChannel(21, None, 100.0, 0.0)(batch), LabelChannel(21, None, 100.0, 0.02)(batch)
    assert plain[0, 0, :, 0].tolist() == pytest.approx([-110, -100, -90], abs=1e-3)  # (k - 11) / 10, times the gain
    assert (noisy - plain).std().item() == pytest.approx(2.0, rel=0.05)


def test_values_that_are_class_ids_are_not_painted_twice() -> None:
    regions = torch.tensor([[[0, 1], [2, 1]]])
    assert paint(regions, torch.tensor([[1.0, 2.0, 0.0]])).tolist() == [[[[1.0, 2.0], [0.0, 2.0]]]]


def test_smaller_label_maps_are_brought_to_the_images() -> None:
    batch = some_batch(side=8)
    batch.labels = batch.labels[:, :4, :4]
    painted = LabelChannel(3, None, noise=0.0)(batch)
    assert torch.equal(painted[:, 0, ::2, ::2], painted[:, 0, 1::2, 1::2])


# -- losses ----------------------------------------------------------------------------------------------------------


def test_channel_divergence_is_the_closed_form() -> None:
    one, other = some_maps("a"), some_maps("b")
    s, t = (x.double().flatten(2) / 4 for x in (one, other))
    want = 16 / 6 * (t.softmax(2) * (t.softmax(2).log() - s.softmax(2).log())).sum()
    assert channel_divergence(one, other, 4.0).item() == pytest.approx(want.item(), abs=1e-5)
    assert channel_divergence(one, one, 4.0).abs() < 1e-6
    shifted = one + some_maps("c")[:, :, :1, :1]
    assert channel_divergence(shifted, other, 4.0).item() == pytest.approx(want.item(), abs=1e-5)


def test_each_direction_teaches_its_first_argument_alone() -> None:
    one, other = some_maps("a").requires_grad_(), some_maps("b").requires_grad_()
    channel_divergence(one, other, 4.0).backward()
    assert one.grad is not None and other.grad is None


def test_the_two_paths_are_symmetric() -> None:
    one, other = some_maps("a"), some_maps("b")
    assert two_path_divergence(one, other) == two_path_divergence(other, one) > 0


def test_dist_is_blind_to_scale_and_zero_at_equality() -> None:
    assert dist_divergence(some_maps("a"), some_maps("a")).abs() < 1e-5
    assert dist_divergence(some_maps("a"), some_maps("b")) > 0.1


# -- networks --------------------------------------------------------------------------------------------------------


def test_folding_keeps_the_function_on_zeros() -> None:
    torch.manual_seed(0)
    wide = UNet(4, 3, (4, 8)).eval()
    images = torch.randn(2, 3, 8, 8)
    zeros = torch.cat([images, torch.zeros(2, 1, 8, 8)], 1)
    with torch.no_grad():
        assert torch.equal(fold_network(wide, 3)(images), wide(zeros))


def test_widening_keeps_the_function_until_it_is_trained() -> None:
    torch.manual_seed(0)
    network = UNet(3, 3, (4, 8)).eval()
    images, channel = torch.randn(2, 3, 8, 8), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        wide = widen_network(network, 3)(torch.cat([images, channel], 1))
        torch.testing.assert_close(wide, network(images), rtol=1e-5, atol=1e-6)
    assert network.encoder.stem.in_channels == 3, "the student is not changed"


# -- the method ------------------------------------------------------------------------------------------------------


class Watched(nn.Module):
    """A segmenter that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shown = nn.Conv2d(3, 3, 1), []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images)
        return self.first(images)


def test_no_label_reaches_the_student() -> None:
    method = LabelAssistedDistillation()
    student, batch = Watched(), some_batch()
    method.prepare(student, None, batch, TensorData(batch.inputs, batch.labels))
    method.progress = TrainingProgress(phase=Phase("student"))
    other = Batch(batch.inputs, (batch.labels + 1) % 3, seeds=batch.seeds)
    nn.init.ones_(method.teacher_network.first.weight)
    (one, taught), (two, taught_otherwise) = (method(shown, student, None) for shown in (batch, other))
    assert torch.equal(one["logits"], two["logits"])
    assert not torch.equal(taught["logits"], taught_otherwise["logits"]), "the teacher sees the labels"
    assert all(torch.equal(seen, batch.inputs) for seen in student.shown)
    assert not taught["logits"].requires_grad


def test_each_phase_trains_its_own_network() -> None:
    trainer = Trainer(some_job(consistency=1.0))
    start = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    for _ in range(3):
        trainer.advance()
    assert all(torch.equal(value, start[name]) for name, value in trainer.student.state_dict().items())
    taught = {name: value.clone() for name, value in trainer.method.teacher_network.state_dict().items()}
    assert taught["encoder.stem.weight"][:, 3].abs().max() > 0, "the label channel is used"
    trainer.advance()
    assert not torch.equal(trainer.student.state_dict()["encoder.stem.weight"], start["encoder.stem.weight"])
    assert all(torch.equal(value, taught[name]) for name, value in trainer.method.teacher_network.state_dict().items())


@pytest.mark.parametrize("distance", ["cwd", "kd", "dist"])
def test_every_distance_trains_a_student_of_three_channels(distance: str) -> None:
    student = train(some_job(distance=distance)).student
    assert student.encoder.stem.in_channels == 3
    assert forward_heads(student, torch.zeros(1, 3, 8, 8))["logits"].isfinite().all()


def test_a_given_teacher_sees_the_labels_too() -> None:
    job = some_job(teacher_share=0)
    torch.manual_seed(1)
    teacher = label_assisted_teacher(UNet(4, 3, (4, 8)), 3)
    made = TrainingJob(job.student, teacher, job.method, job.data, job.settings, task="segmentation")
    assert train(made).history


def test_an_ignored_label_does_not_count() -> None:
    method = LabelAssistedDistillation()
    method.progress = TrainingProgress(phase=Phase("student"))
    logits, batch = {"logits": some_maps("a")}, Batch(None, torch.zeros(2, 4, 5, dtype=torch.long))
    batch.labels[:, 0] = 255
    before = method.loss_terms(batch, logits, logits)["label"]
    changed = {"logits": logits["logits"].clone()}
    changed["logits"][:, :, 0] += some_maps("b")[:, :, 0]
    assert torch.equal(method.loss_terms(batch, changed, logits)["label"], before)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"teacher_share": 1.5}, {"tau": 0.0}, {"consistency": -1.0}, {"distance": "l2"}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        LabelAssistedDistillation(**options)


def test_teacher_and_share_must_agree() -> None:
    with pytest.raises(InputError, match="teacher_share is 0"):
        train(some_job(teacher_share=0))
    job = some_job()
    with pytest.raises(InputError, match="would make one"):
        train(TrainingJob(job.student, UNet(3, 3, (4, 8)), job.method, job.data, job.settings, task="segmentation"))


def test_bad_labels_are_refused() -> None:
    batch = some_batch()
    for labels, message in ((None, "class ids"), (batch.labels[0], "class ids"), (batch.labels + 7, "a label is")):
        with pytest.raises(InputError, match=message):
            LabelChannel(3)(Batch(batch.inputs, labels, seeds=batch.seeds))
    with pytest.raises(InputError, match="view seeds"):
        LabelChannel(3)(Batch(batch.inputs, batch.labels))


def test_a_student_without_a_stem_is_refused() -> None:
    with pytest.raises(InputError, match="no convolution"):
        widen_network(nn.Linear(3, 3), 3)


def test_one_call_makes_the_teacher_and_the_student() -> None:
    batch = some_batch(8)
    scenes = TensorData(batch.inputs, batch.labels)
    name = "label-assisted-distillation"
    result = distill(lambda: UNet(3, 3, (4, 8)), None, scenes, name, task="segmentation", steps=4, batch_size=4, progress=False)
    assert result.student(batch.inputs).shape == (8, 3, 8, 8)


def test_a_recipe(tmp_path: Path) -> None:
    batch = some_batch(8)
    np.savez(tmp_path / "scenes.npz", inputs=batch.inputs.numpy(), labels=batch.labels.numpy())
    recipe = f"""
method = "label-assisted-distillation"
task = "segmentation"
out = "{tmp_path}/run"
[student]
model = "label-assisted-distillation"
options = {{ in_chans = 3, out_chans = 3 }}
[data]
file = "{tmp_path}/scenes.npz"
[options]
consistency = 1.0
[settings]
steps = 4
batch_size = 4
"""
    (tmp_path / "recipe.toml").write_text(recipe)
    ran = CliRunner().invoke(main.app, ["distill", str(tmp_path / "recipe.toml")])
    assert ran.exit_code == 0, ran.output
    UNet(3, 3).load_state_dict(load_file(tmp_path / "run/seed-0/student.safetensors"))
