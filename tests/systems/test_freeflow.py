from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tutelage
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.data.generated import Prior
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.teacher import NetworkTeacher
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.networks.flow import GaussianMixtureFlow, interpolate
from tutelage.systems.freeflow import ExactFlow, FlowMap, FreeFlow, TimeMLP, best_noise, ring, velocity_and_slope

MEAN, STD = 1.5, 0.4


def gaussian() -> GaussianMixtureFlow:
    return GaussianMixtureFlow(torch.tensor([[MEAN, -MEAN]]), STD)


class ExactStep(nn.Module):
    """F* of a Gaussian teacher: ``f*(z, d) = d m + sqrt(d^2 s^2 + (1 - d)^2) z``."""

    def forward(self, z: Tensor, delta: Tensor) -> Tensor:
        d = delta[:, None]
        mean = torch.tensor([[MEAN, -MEAN]], dtype=z.dtype)
        return (d * mean + (d * d * STD**2 + (1 - d) ** 2).sqrt() * z - z) / d


class Affine(nn.Module):
    """F of an affine one-step student: ``shift + (scale - 1) z`` at delta 1."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, delta: Tensor) -> Tensor:
        return self.shift + (self.log_scale.exp() - 1) * z


def prior(length: int = 4096, dim: int = 2) -> Prior:
    return Prior((dim,), length=length)


def test_the_prediction_residual_of_the_exact_map_is_zero() -> None:
    z, delta = torch.randn(64, 2, dtype=torch.float64), torch.rand(64, dtype=torch.float64) * 0.98 + 0.01
    value, slope = velocity_and_slope(FlowMap(ExactStep()), z, delta)
    state = z + delta[:, None] * value
    residual = value + delta[:, None] * slope - gaussian()(state, 1 - delta)
    assert residual.abs().max() < 1e-9


def test_the_map_is_the_identity_at_the_start() -> None:
    student, z = FlowMap(TimeMLP(2, 8, 2)), torch.randn(5, 2)
    assert torch.equal(student(z, torch.zeros(5)), z)
    assert torch.equal(student(z), student(z, torch.ones(5)))


@pytest.mark.parametrize("derivative", ["forward", "difference"])
def test_both_derivatives_agree_and_only_the_value_has_a_gradient(derivative: str) -> None:
    torch.manual_seed(0)
    student = FlowMap(TimeMLP(2, 8, 2)).double()
    z, delta = torch.randn(7, 2, dtype=torch.float64), torch.linspace(0, 1, 7, dtype=torch.float64)
    value, slope = velocity_and_slope(student, z, delta, derivative, step=1e-4)
    expected = torch.func.jacrev(lambda d: student.velocity(z, d))(delta)
    exact = torch.stack([expected[i, :, i] for i in range(7)])
    torch.testing.assert_close(slope, exact, atol=1e-3, rtol=1e-3)
    assert value.requires_grad and not slope.requires_grad
    assert torch.equal(value, student.velocity(z, delta))


def outputs(student: nn.Module, method: FreeFlow, flow: GaussianMixtureFlow, count: int = 512) -> dict[str, Tensor]:
    batch = Batch(torch.randn(count, 2))
    job = TrainingJob(FlowMap(student), ExactFlow(flow), method, prior(), TrainingSettings(steps=1, batch_size=count))
    return method(batch, job.student, job.teacher)[0]


def test_the_correction_drives_an_affine_student_to_the_law_of_the_data() -> None:
    """With the closed form of the student's own velocity, gradient descent ends at (mean, deviation) of the data."""
    flow, student = GaussianMixtureFlow(torch.tensor([[MEAN]]), STD), Affine()
    torch.manual_seed(0)
    for _ in range(700):
        z, other, r = torch.randn(128, 1), torch.randn(128, 1), torch.rand(128) * 0.98 + 0.02
        value = student(z, torch.ones(128))
        with torch.no_grad():
            own = GaussianMixtureFlow(student.shift.detach()[None], float(student.log_scale.detach().exp()))
            state = interpolate(z + value, other, r)
            error = own(state, r) - flow(state, r)
        (value * error).mean().backward()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    assert float(student.shift.detach()) == pytest.approx(MEAN, abs=1e-3)
    assert float(student.log_scale.detach().exp()) == pytest.approx(STD, abs=1e-3)


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_the_correction_points_to_the_data_from_either_side(shift: float) -> None:
    student = Affine()
    nn.init.constant_(student.shift, shift + MEAN)

    class Own(nn.Module):
        """The exact velocity of the student's samples."""

        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return GaussianMixtureFlow(student.shift.detach().expand(1, 2), 1.0)(x, t) + 0 * self.unused

    method = FreeFlow(correction=1.0, online=Own())
    torch.manual_seed(0)
    terms = method.loss_terms(
        Batch(torch.zeros(1)), outputs(student, method, GaussianMixtureFlow(torch.full((1, 2), MEAN), 1.0)), {}
    )
    (slope,) = torch.autograd.grad(terms["correction"], student.shift)
    assert torch.sign(slope) == torch.sign(torch.tensor(shift))


def test_the_weight_of_the_correction_scales_with_the_ratio_and_not_with_the_velocities() -> None:
    torch.manual_seed(0)
    method = FreeFlow(weight_power=0.0, eps=1e-12, online=TimeMLP(2))
    value, target, one_step, error = (torch.randn(64, 2, requires_grad=index in (0, 2)) for index in range(4))
    own = torch.zeros(1, 1)

    def slopes(scale: float, ratio: float) -> list[Tensor]:
        output = {"value": value, "target": value.detach() + scale * (target - value.detach())}
        output |= {"one_step": one_step, "error": scale * ratio * error, "own": own, "own_target": own}
        terms = method.loss_terms(Batch(torch.zeros(1)), output, {})
        return list(torch.autograd.grad(terms["prediction"] + terms["correction"], [value, one_step]))

    plain, twice, larger = slopes(1.0, 1.0), slopes(2.0, 1.0), slopes(1.0, 3.0)
    for one, other in zip(plain, twice, strict=True):
        torch.testing.assert_close(2 * one, other)  # the direction is the same
    torch.testing.assert_close(plain[1], larger[1])  # a larger error of the correction is weighed down to the same


def test_the_online_network_learns_the_velocity_of_the_samples() -> None:
    """Of a generator of N(m, s^2) that does not move, by flow matching alone."""

    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def forward(self, z: Tensor, delta: Tensor) -> Tensor:
            return MEAN + (STD - 1) * z + 0 * self.unused

    torch.manual_seed(0)
    method = FreeFlow(correction=1.0, alpha=0.0, online=TimeMLP(1, 64, 2))
    flow = GaussianMixtureFlow(torch.tensor([[MEAN]]), STD)
    settings = TrainingSettings(steps=300, batch_size=128, lr=1e-2)
    train(TrainingJob(FlowMap(Still()), ExactFlow(flow), method, prior(dim=1), settings))
    x, t = interpolate(MEAN + STD * torch.randn(500, 1), torch.randn(500, 1), torch.full((500,), 0.7)), torch.full((500,), 0.7)
    assert method.online is not None
    with torch.no_grad():
        assert (method.online(x, t) - flow(x, t)).square().mean().sqrt() < 0.2


def test_training_brings_a_one_step_generator_near_the_data() -> None:
    torch.manual_seed(0)
    student = FlowMap(TimeMLP(2, 32, 2))
    result = tutelage.distill(
        student,
        ExactFlow(gaussian()),
        prior(),
        "freeflow",
        options={"correction": 0.0, "weight_power": 0.0},
        steps=400,
        batch_size=128,
        lr=3e-3,
        progress=False,
    )
    with torch.no_grad():
        samples = result.student(torch.randn(2000, 2))
    assert (samples.mean(0) - torch.tensor([MEAN, -MEAN])).abs().max() < 0.25 and (samples.std(0) - STD).abs().max() < 0.25


def test_a_mixture_teacher_is_the_mean_over_data_and_noise() -> None:
    flow, rng = ring(3), torch.Generator().manual_seed(0)
    x0, noise = flow.sample(400_000, rng), torch.randn(400_000, 2, generator=rng)
    near = interpolate(x0, noise, torch.full((400_000,), 0.6))
    place = torch.tensor([[0.5, 0.3]])
    close = (near - place).norm(dim=1) < 0.06
    estimate = (x0 - noise)[close].mean(0)
    assert (estimate - flow(place, torch.tensor([0.6]))[0]).abs().max() < 0.08


def test_neither_the_teacher_nor_any_data_is_touched(tmp_path: object) -> None:
    torch.manual_seed(0)
    teacher = TimeMLP(2, 16, 2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    job = TrainingJob(FlowMap(TimeMLP(2, 16, 2)), teacher, FreeFlow(), prior(64), TrainingSettings(steps=3, batch_size=8))
    train(job)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert isinstance(job.teacher, NetworkTeacher) and job.teacher.network is teacher


def test_the_online_network_starts_as_the_teacher_and_has_its_own_rate() -> None:
    torch.manual_seed(0)
    teacher, method = TimeMLP(2, 16, 2), FreeFlow(online_lr=0.5)
    job = TrainingJob(FlowMap(TimeMLP(2, 16, 2)), teacher, method, prior(64), TrainingSettings(steps=3, batch_size=8, lr=0.1))
    trainer = Trainer(job)
    assert method.online is not None and method.online is not teacher
    assert all(torch.equal(a, b) for a, b in zip(method.online.parameters(), teacher.parameters(), strict=True))
    assert [group.get("lr_scale", 1.0) for group in method.groups(job.student) or ()] == [1.0, 0.5]
    trainer.advance()
    assert not all(torch.equal(a, b) for a, b in zip(method.online.parameters(), teacher.parameters(), strict=True))


def test_the_best_noise_is_kept() -> None:
    noise = torch.tensor([[0.0], [3.0], [1.0], [2.0]])
    kept = best_noise(nn.Identity(), noise, lambda samples: -(samples[:, 0] - 1.5).abs(), keep=2)
    assert sorted(kept[:, 0].tolist()) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"correction": 1.5}, "share"),
        ({"alpha": -1.0}, "below 0"),
        ({"eps": 0.0}, "above 0"),
        ({"derivative": "exact"}, "forward or"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        FreeFlow(**options)


def test_wrong_networks_are_refused() -> None:
    settings = TrainingSettings(steps=1, batch_size=4)
    with pytest.raises(InputError, match="FlowMap"):
        Trainer(TrainingJob(TimeMLP(2), ExactFlow(ring()), FreeFlow(correction=0.0), prior(), settings))
    with pytest.raises(InputError, match="no weights"):
        Trainer(TrainingJob(FlowMap(TimeMLP(2)), ExactFlow(ring()), FreeFlow(), prior(), settings))

    class Flat(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x.sum(1)

    with pytest.raises(InputError, match="velocity is"):
        Trainer(TrainingJob(FlowMap(TimeMLP(2)), Flat(), FreeFlow(correction=0.0), prior(), settings))


def test_nothing_of_the_data_is_read_but_the_noise() -> None:
    """Labels beside the same noise change no bit."""
    rows = prior(8).batch(torch.arange(8), torch.zeros(8, dtype=torch.int64)).inputs
    found = []
    for labels in (None, torch.arange(8)):
        torch.manual_seed(0)
        student = FlowMap(TimeMLP(2, 8, 1))
        settings = TrainingSettings(steps=2, batch_size=8, views=1)
        train(TrainingJob(student, ExactFlow(ring()), FreeFlow(correction=0.0), TensorData(rows, labels), settings))
        found.append([value.clone() for value in student.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
