"""The invariants of FEDS: the codec's bitstream, the channel information, both losses, and the phases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.tasks.metrics import ssim
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.networks.entropy_models import gaussian_likelihood
from tutelage.systems._backbone import count_parameters
from tutelage.systems._toy import build_with_seed
from tutelage.systems.feds import (
    FEDS,
    ImageCodec,
    RateDistortion,
    bd_rate,
    channel_information,
    channel_weights,
    entropy_loss,
    feature_loss,
    ms_ssim,
)
from tutelage.systems.feds.method import gaussian_divergence, waves


def codec(name: str = "small-student", seed: int = 0) -> ImageCodec:
    return build_with_seed(lambda: ImageCodec(**ImageCodec.options(name)), seed, name).eval()


# -- the codec -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small-student", "small-teacher"])
def test_a_stream_gives_back_the_rounded_reconstruction(name: str) -> None:
    network = train(
        TrainingJob(codec(name), None, RateDistortion(), waves(0), TrainingSettings(steps=6, batch_size=4, lr=2e-3))
    ).student
    for image in (waves(1).inputs[0], torch.rand(3, 64, 48)):
        data = network.encode(image)
        with torch.no_grad():
            output = network(image[None])
        assert data == network.encode(image)
        assert torch.equal(network.decode(data), output["logits"][0])
        ideal = (output["bits_y"] + output["bits_z"]).item()
        assert ideal * 0.98 - 8 * 64 <= 8 * len(data) <= ideal * 1.02 + 8 * 64


def test_the_stream_stays_near_the_likelihood_where_much_is_coded() -> None:
    """With latents and scales of about 20: thousands of bytes, so that the header hides nothing."""
    network = codec()
    with torch.no_grad():
        network.to_latent.weight *= 20 / network.analyse(torch.rand(1, 3, 64, 64)).std()
        network.hyper_synthesis[-1].bias[16:] = 20.0
        image = torch.rand(3, 128, 128)
        output = network(image[None])
        ideal = (output["bits_y"] + output["bits_z"]).item() / 8
    data = network.encode(image)
    assert ideal > 3000 and len(data) == pytest.approx(ideal, rel=0.02, abs=64)
    assert torch.equal(network.decode(data), output["logits"][0])


def test_any_size_is_padded() -> None:
    network, image = codec(), torch.rand(3, 21, 37)
    assert network.decode(network.encode(image)).shape == image.shape
    with pytest.raises(InputError, match="multiples of 16"):
        network(image[None])


def test_streams_that_cannot_be_read_are_refused() -> None:
    network, image = codec(), torch.rand(3, 32, 32)
    data = network.encode(image)
    with pytest.raises(InputError, match="no image"):
        network.decode(b"JFIF" + data[4:])
    with pytest.raises(InputError, match="no image"):
        network.decode(data[:10])
    for broken in (data[:-3], data[:40] + bytes([data[40] ^ 1]) + data[41:]):
        with pytest.raises(InputError, match="cut short or damaged"):
            network.decode(broken)
    with pytest.raises(InputError, match="another model"):
        codec(seed=1).decode(data)


@pytest.mark.parametrize("image", [torch.rand(1, 32, 32), torch.rand(1, 3, 32, 32), torch.full((3, 32, 32), math.nan)])
def test_what_is_no_image_is_not_encoded(image: Tensor) -> None:
    with pytest.raises(InputError, match="image"):
        codec().encode(image)


def test_training_noise_is_in_the_rate_alone() -> None:
    network, image = codec(), waves(0).inputs[:2]
    calm = network(image)
    network.train()
    torch.manual_seed(0)
    noisy = network(image)
    assert torch.equal(calm["logits"], noisy["logits"]) and not torch.equal(calm["bits_y"], noisy["bits_y"])


def test_the_light_presets_save_60_per_cent() -> None:
    with torch.device("meta"):
        sizes = {name: count_parameters(ImageCodec(**ImageCodec.options(name))) for name in ("teacher", "student")}
        small = {name: count_parameters(ImageCodec(**ImageCodec.options(f"small-{name}"))) for name in sizes}
    assert sizes == {"teacher": 34_933_884, "student": 7_845_708}
    assert 1 - sizes["student"] / sizes["teacher"] >= 0.6 and 1 - small["student"] / small["teacher"] >= 0.6
    with pytest.raises(InputError, match="student"):
        ImageCodec.options("studnet")
    with pytest.raises(InputError, match="head_dim"):
        ImageCodec(24, 32, attention=True, head_dim=7)
    with pytest.raises(InputError, match="blocks"):
        ImageCodec(blocks=0)


# -- information, weights, losses -----------------------------------------------------------------------------------------


def test_information_of_a_unit_gaussian_is_2_1048_bits() -> None:
    integers = torch.arange(-40.0, 41, dtype=torch.float64).view(1, 1, 1, -1)
    for mean in (0.0, 0.3, -7.5):
        centre = torch.full_like(integers, mean)
        p = gaussian_likelihood(integers + centre, centre, torch.ones_like(integers))
        assert (-(p * p.log2()).sum()).item() == pytest.approx(2.1048, abs=1e-4)
    torch.manual_seed(0)
    drawn = torch.randn(1, 1, 400, 400, dtype=torch.float64)
    found = channel_information(drawn, torch.zeros_like(drawn), torch.ones_like(drawn))
    assert found.shape == (1,) and found.item() == pytest.approx(2.1048, abs=1e-2)


def test_a_constant_channel_holds_nothing_where_it_is_predicted() -> None:
    latent, scale = torch.full((2, 1, 4, 4), 3.0, dtype=torch.float64), torch.full((2, 1, 4, 4), 1e-3, dtype=torch.float64)
    assert channel_information(latent, latent, scale).item() == pytest.approx(8e-6, abs=1e-6)  # at the least scale, 0.11


def test_weights_sum_to_one_and_follow_their_channels() -> None:
    information = torch.tensor([0.5, 2.0, 2.0, 0.1, 2.0, 0.0])
    for selection in ("soft", "top", "uniform"):
        weights = channel_weights(information, selection)
        assert weights.sum().item() == pytest.approx(1) and (weights >= 0).all()
    assert channel_weights(information, "top", 0.5).nonzero()[:, 0].tolist() == [1, 2, 4]
    assert channel_weights(information, "top", 0.34).nonzero()[:, 0].tolist() == [1, 2], "of equal ones the first"
    assert channel_weights(torch.zeros(4)).tolist() == [0.25] * 4
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(channel_weights(information[order]), channel_weights(information)[order])


def test_the_entropy_loss_does_not_depend_on_the_order_of_channels() -> None:
    torch.manual_seed(0)
    mine, goal, scale = torch.randn(2, 6, 3, 3), torch.randn(2, 6, 3, 3), 0.11 + torch.rand(2, 6, 3, 3)
    weights, order = channel_weights(torch.rand(6)), torch.randperm(6)
    loss = entropy_loss(mine, goal, scale, weights)
    torch.testing.assert_close(entropy_loss(mine[:, order], goal[:, order], scale[:, order], weights[order]), loss)
    assert entropy_loss(goal, goal, scale, weights).item() == 0
    by_hand = (weights * ((mine - goal) ** 2 / (scale**2 + 1e-6)).mean((0, 2, 3))).sum()
    torch.testing.assert_close(loss, by_hand)


def test_the_feature_loss_has_no_scale() -> None:
    torch.manual_seed(0)
    goal, mine = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    assert feature_loss([goal], [goal]).item() == 0
    torch.testing.assert_close(feature_loss([100 * mine], [100 * goal]), feature_loss([mine], [goal]))
    assert feature_loss([goal.mean().expand_as(goal)], [goal]).item() == pytest.approx(1, rel=1e-4)
    assert feature_loss([torch.zeros(1, 1, 2, 2)], [torch.zeros(1, 1, 2, 2)]).item() == 0


def test_the_divergence_is_torchs() -> None:
    from torch.distributions import Normal, kl_divergence

    torch.manual_seed(0)
    m, n, s, t = torch.randn(5), torch.randn(5), 0.1 + torch.rand(5), 0.1 + torch.rand(5)
    torch.testing.assert_close(gaussian_divergence(m, s, n, t), kl_divergence(Normal(m, s), Normal(n, t)))


# -- the three phases -----------------------------------------------------------------------------------------------------


def test_phases_switch_and_leave_the_teacher_and_the_export_alone() -> None:
    teacher, student = codec("small-teacher"), codec()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    method = FEDS(gamma=0.1, selection="top")
    job = TrainingJob(
        student, teacher, method, waves(0), TrainingSettings(steps=10, batch_size=4, lr=1e-3, log_every=1, schedule="constant")
    )
    result = train(job)
    assert [record["stage"] for record in result.history] == ["features"] * 4 + ["entropy"] * 4 + ["fine-tune"] * 2
    for record in result.history:
        active = {name for name in ("features", "entropy") if record["terms"][name] > 0}
        assert active == {"features": {"features"}, "entropy": {"entropy"}, "fine-tune": set()}[record["stage"]]
    assert result.history[-1]["lr"] == pytest.approx(1e-4)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert result.student.state_dict().keys() == codec().state_dict().keys()
    image = waves(2).inputs[0]
    data = result.student.encode(image)
    fresh = codec(seed=5)
    fresh.load_state_dict(result.student.state_dict())
    assert torch.equal(fresh.decode(data), result.student.decode(data)), "neither teacher nor method is needed"


def test_information_is_fixed_when_the_second_phase_begins() -> None:
    method = FEDS()
    seen: list[Tensor] = []
    job = TrainingJob(codec(), codec("small-teacher"), method, waves(0), TrainingSettings(steps=10, batch_size=4))
    train(job, progress=lambda done, steps: seen.append(method.information.clone()))
    assert not torch.equal(seen[0], seen[3]) and all(torch.equal(seen[3], later) for later in seen[4:])


def test_what_does_not_fit_is_refused() -> None:
    images = waves(0)

    def run(learner: nn.Module, model: nn.Module, **options: object) -> None:
        train(TrainingJob(learner, model, FEDS(**options), images, TrainingSettings(steps=1, batch_size=2)))

    with pytest.raises(InputError, match="name as many sub-modules"):
        run(codec(), nn.Conv2d(3, 3, 1))
    with pytest.raises(InputError, match="has no layer"):
        run(codec(), codec("small-teacher"), student=("analysis.9",), teacher=("analysis.0",))
    with pytest.raises(InputError, match="same strides"):
        run(codec(), codec("small-teacher"), student=("analysis.0",), teacher=("analysis.1",))
    with pytest.raises(InputError, match="no head"):
        run(codec(), nn.Sequential(nn.Conv2d(3, 3, 1)), student=("analysis.0",), teacher=("0",))
    with pytest.raises(InputError, match="multiples of 16"):
        data = TensorData(torch.rand(2, 3, 20, 20))
        train(TrainingJob(codec(), None, RateDistortion(), data, TrainingSettings(steps=1, batch_size=2)))
    with pytest.raises(InputError, match="no head"):
        train(TrainingJob(nn.Conv2d(3, 3, 1), None, RateDistortion(), images, TrainingSettings(steps=1, batch_size=2)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("trade_off", 0.0), ("selection", "best"), ("ratio", 0.0), ("decay", 1.0), ("shares", (1.0, -1.0, 1.0))],
)
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        FEDS(**{name: value})


# -- figures --------------------------------------------------------------------------------------------------------------

CURVE = [(0.12, 28.1), (0.25, 30.4), (0.31, 31.0), (0.62, 33.9), (1.1, 36.2)]
OTHER = [(0.15, 28.9), (0.21, 29.8), (0.44, 32.9), (0.9, 35.0)]


def test_bd_rate_of_known_curves() -> None:
    assert bd_rate(CURVE, CURVE) == pytest.approx(0, abs=1e-10)
    assert bd_rate(CURVE, [(1.1 * rate, quality) for rate, quality in reversed(CURVE)]) == pytest.approx(10, abs=1e-9)
    assert bd_rate(CURVE[:2], [(2 * rate, quality) for rate, quality in CURVE[:2]]) == pytest.approx(100)


def test_bd_rate_integrates_as_scipys_interpolation() -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    for one, other in ((CURVE, OTHER), (OTHER, CURVE), (CURVE[:3], OTHER[1:])):
        low, high = max(one[0][1], other[0][1]), min(one[-1][1], other[-1][1])
        means = [
            interpolate.PchipInterpolator([q for _, q in each], np.log([r for r, _ in each])).integrate(low, high)
            for each in (one, other)
        ]
        expected = 100 * math.expm1((means[1] - means[0]) / (high - low))
        assert bd_rate(one, other) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    "points", [[], CURVE[:1], [(0.0, 30.0), (1.0, 31.0)], [(1.0, 30.0), (2.0, 30.0)], [(1.0, 50.0), (2.0, 60.0)]]
)
def test_bd_rate_refuses_what_is_no_curve(points: list[tuple[float, float]]) -> None:
    with pytest.raises(InputError):
        bd_rate(CURVE, points)


def test_ms_ssim_is_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    torch.manual_seed(0)
    images = torch.rand(2, 3, 176, 192)
    noisy = (images + 0.2 * torch.randn_like(images)).clamp(0, 1)
    expected = functional.multiscale_structural_similarity_index_measure(noisy, images, data_range=1.0)
    assert ms_ssim(noisy, images).mean().item() == pytest.approx(expected.item(), abs=2e-4)
    assert ms_ssim(images, images).tolist() == pytest.approx([1, 1]) and ssim(images, images).tolist() == pytest.approx([1, 1])
    with pytest.raises(InputError, match="161"):
        ms_ssim(images[..., :100], noisy[..., :100])
