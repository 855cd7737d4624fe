"""FreeFlow: the flow map's identity, both objectives against closed forms, and training without data."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import tutelage
from tutelage.cli import main
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.data.generated import Prior
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.experiments.freeflow import OnData, energy_distance, ring
from tutelage.networks.flow import GaussianMixtureFlow, expand_time, integrate, interpolate
from tutelage.systems.freeflow import (
    EPSILON,
    FreeFlow,
    GuidedFlow,
    VelocityMLP,
    balance,
    best_noise,
    flow_map,
    generate,
    residual_weight,
    slope,
    velocity_teacher,
)

MEAN, STD = torch.tensor([1.0, -0.5], dtype=torch.float64), 0.3


def gaussian(mean: Tensor = MEAN, std: float = STD) -> GaussianMixtureFlow:
    return GaussianMixtureFlow(mean[None], std, torch.ones(1, dtype=mean.dtype))


class ExactMap(nn.Module):
    """F of the flow map of one Gaussian: ``(d m + sqrt(d^2 s^2 + (1 - d)^2) z - z) / d``."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, z: Tensor, delta: Tensor) -> Tensor:
        d = delta[:, None]
        end = d * MEAN + (d**2 * STD**2 + (1 - d) ** 2).sqrt() * z
        return self.scale * (end - z) / d


class Affine(nn.Module):
    """``f(z, 1) = shift + scale z``."""

    def __init__(self, shift: Tensor, scale: float) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(shift.clone()), nn.Parameter(torch.tensor(scale, dtype=shift.dtype))

    def forward(self, z: Tensor, delta: Tensor) -> Tensor:
        return self.shift + (self.scale - 1) * z


def noise(count: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_the_exact_map_satisfies_the_identity_and_is_the_ode() -> None:
    z = noise()
    delta = torch.linspace(0.05, 0.95, 64, dtype=torch.float64)
    value, rise = slope(ExactMap(), z, delta)
    d = delta[:, None]
    residual = value + d * rise - gaussian()(z + d * value, 1 - delta)
    assert residual.abs().max() < 1e-10
    end = flow_map(ExactMap(), z, torch.ones(64, dtype=torch.float64)).detach()
    errors = [float((integrate(gaussian(), z, steps, "euler") - end).abs().max()) for steps in (10, 40, 160)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.05


def test_the_method_finds_no_residual_in_the_exact_map() -> None:
    method, student = FreeFlow(prediction=1.0, at_end=0.0), ExactMap()
    teacher = velocity_teacher(gaussian())
    torch.manual_seed(0)
    student_outputs, targets = method(Batch(noise()), student, teacher)
    terms = method.loss_terms(Batch(noise()), student_outputs, targets)
    assert set(terms) == {"prediction"}
    assert float(terms["prediction"].detach()) < 1e-10
    student.scale.data.mul_(0.9)
    student_outputs, targets = method(Batch(noise()), student, teacher)
    assert float(method.loss_terms(Batch(noise()), student_outputs, targets)["prediction"].detach()) > 1e-3


def test_jvp_equals_central_differences() -> None:
    torch.manual_seed(0)
    student = VelocityMLP(2, 16).double()
    delta = torch.rand(64, dtype=torch.float64)
    for exact, near in zip(slope(student, noise(), delta), slope(student, noise(), delta, how="differences"), strict=True):
        assert not exact.requires_grad
        torch.testing.assert_close(exact, near, atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", [1.0, 0.0, 0.75])
def test_no_gradient_flows_through_targets(share: float) -> None:
    torch.manual_seed(0)
    student, method = VelocityMLP(2, 16), FreeFlow(prediction=share)
    teacher = velocity_teacher(ring())
    batch = Batch(torch.randn(16, 2))
    method.prepare(student, teacher, batch, Prior((2,)))
    _, targets = method(batch, student, teacher)
    assert not any(value.requires_grad for value in targets.values())


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_no_time_no_change(seed: int) -> None:
    torch.manual_seed(seed)
    z = torch.randn(8, 2)
    assert torch.equal(flow_map(VelocityMLP(2, 8), z, torch.zeros(8)), z)


def correction_gradient(student: Affine, count: int = 512, seed: int = 0) -> None:
    """Fill the gradients of the correction objective, with the student's own velocity in closed form."""
    z, n = noise(count, seed), noise(count, seed + 1)
    r = 0.02 + 0.98 * torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    end = student(z, torch.ones_like(r))
    x = interpolate((z + end).detach(), n, r)
    own = gaussian(student.shift.detach(), float(student.scale.detach().abs()))
    targets = {"correction": own(x, r) - gaussian()(x, r), "online": torch.zeros(1)}
    terms = FreeFlow(prediction=0.0).loss_terms(Batch(z), {"end": end, "online": torch.zeros(1)}, targets)
    student.zero_grad()
    terms["correction"].backward()


def test_correction_drives_an_affine_student_to_the_teachers_law() -> None:
    student = Affine(torch.tensor([-0.5, 1.0], dtype=torch.float64), 0.8)
    for step in range(800):
        correction_gradient(student, 256, 2 * step)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= 0.2 * parameter.grad
    torch.testing.assert_close(student.shift.detach(), MEAN, atol=1e-3, rtol=0)
    assert abs(float(student.scale.detach()) - STD) < 1e-3


def test_the_corrections_gradient_is_zero_at_the_law_and_flips_around_it() -> None:
    exact = Affine(MEAN, STD)
    correction_gradient(exact)
    assert exact.shift.grad.abs().max() < 1e-12 and exact.scale.grad.abs() < 1e-12
    for sign in (-1, 1):
        moved = Affine(MEAN + sign * 0.2, STD)
        correction_gradient(moved)
        assert (moved.shift.grad.sign() == sign).all()
        wide = Affine(MEAN, STD + sign * 0.1)
        correction_gradient(wide)
        assert wide.scale.grad.sign() == sign


def test_the_online_network_learns_the_velocity_of_what_the_student_makes() -> None:
    mean = torch.tensor([0.5, 0.5])
    student = Affine(mean, 0.5).requires_grad_(False)
    torch.manual_seed(0)
    method = FreeFlow(prediction=0.0)
    method.online = VelocityMLP(2, 48, 2)
    optimizer = torch.optim.Adam(method.online.parameters(), 5e-3)
    teacher = velocity_teacher(GaussianMixtureFlow(mean[None], 0.5))

    def gap() -> float:
        """Where teacher and student have one law, the correction is the online network's error."""
        torch.manual_seed(1)
        _, targets = method(Batch(torch.randn(2000, 2)), student, teacher)
        return float(targets["correction"].square().mean())

    before = gap()
    for step in range(600):
        torch.manual_seed(100 + step)
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 600)
        batch = Batch(torch.randn(256, 2))
        outputs, targets = method(batch, student, teacher)
        optimizer.zero_grad()
        method.loss_terms(batch, outputs, targets)["online"].backward()
        optimizer.step()
    assert before > 0.3
    assert gap() < 0.02


def test_the_balance_is_the_ratio_and_scale_changes_no_direction() -> None:
    a, b = noise(32, 1), noise(32, 2)
    expected = a.norm(dim=1).mean() / (b.norm(dim=1).mean() + EPSILON)
    torch.testing.assert_close(balance(a, b), expected)
    torch.testing.assert_close(balance(3 * a, b, 2.0), 6 * expected)

    def direction(scale: float, power: float) -> Tensor:
        student = Affine(torch.zeros(2, dtype=torch.float64), 1.0)
        value = student(noise(), torch.ones(64, dtype=torch.float64))
        residual, correction = scale * noise(64, 3), scale * noise(64, 4)
        targets = {"prediction": value.detach() - residual, "residual": residual, "correction": correction, "online": b}
        outputs = {"prediction": value, "end": value, "online": b}
        terms = FreeFlow(power=power).loss_terms(Batch(noise()), outputs, targets)
        (terms["prediction"] + terms["correction"]).backward()
        return torch.nn.functional.normalize(student.shift.grad, dim=0)

    for power in (0.0, 1.0):
        torch.testing.assert_close(direction(100.0, power), direction(10_000.0, power), atol=1e-3, rtol=0)


def test_the_weight_evens_out_residuals() -> None:
    residual = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(residual_weight(residual, 1.0), torch.tensor([1 / (12.5 + EPSILON), 1 / EPSILON]))
    assert torch.equal(residual_weight(residual, 0.0), torch.ones(2))


def test_the_mixtures_velocity_is_what_samples_say() -> None:
    teacher, generator = ring(), torch.Generator().manual_seed(0)
    x0, n = teacher.sample(400_000, generator), torch.randn(400_000, 2, generator=generator)
    t, place = torch.full((400_000,), 0.6), torch.tensor([0.7, 0.3])
    near = (interpolate(x0, n, t) - place).norm(dim=1) < 0.08
    assert near.sum() > 500
    estimate = (x0 - n)[near].mean(0)
    torch.testing.assert_close(teacher(place[None], t[:1])[0], estimate, atol=0.15, rtol=0)


def test_training_knows_only_teacher_noise_and_seed() -> None:
    teacher = VelocityMLP(2, 8)
    before = copy.deepcopy(teacher.state_dict())
    noise_alone = Prior((2,), length=10**9)
    runs = [
        tutelage.distill(
            lambda: VelocityMLP(2, 8),
            teacher,
            noise_alone,
            "freeflow",
            steps=3,
            batch_size=16,
            progress=False,
            ema=0.9,
        )
        for _ in range(2)
    ]
    first, second = (run.student.state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert generate(runs[0].student, torch.randn(5, 2)).shape == (5, 2)


def test_a_recipe(tmp_path: Path) -> None:
    save_file(VelocityMLP(2, 8).state_dict(), tmp_path / "flow.safetensors")
    network = 'model = "freeflow"\noptions = { dim = 2, width = 8 }\n'
    recipe = f"""
method = "freeflow"
out = "{tmp_path}/run"
[student]
{network}
[teacher]
{network}
weights = "{tmp_path}/flow.safetensors"
[data]
kind = "prior"
shape = [2]
[settings]
steps = 2
batch_size = 8
ema = 0.9
"""
    (tmp_path / "recipe.toml").write_text(recipe)
    ran = CliRunner().invoke(main.app, ["distill", str(tmp_path / "recipe.toml")])
    assert ran.exit_code == 0, ran.output
    student = VelocityMLP(2, 8)
    student.load_state_dict(load_file(tmp_path / "run/seed-0/student.safetensors"))
    assert generate(student, torch.randn(5, 2)).shape == (5, 2)


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Embedding(4, 2), VelocityMLP(2, 8)

    def forward(self, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        return self.body(x + self.table(classes), t)


def test_classes_and_guidance() -> None:
    torch.manual_seed(0)
    network, x = Conditional(), torch.randn(6, 2)
    classes, times = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0.1, 0.2, 0.3, 0.8, 0.9, 1.0])
    with torch.no_grad():
        own, null = network(x, times, classes), network(x, times, torch.full_like(classes, 3))
        torch.testing.assert_close(GuidedFlow(network, 2.0, 3)(x, times, classes)[:3], (2 * own - null)[:3])
        assert torch.equal(GuidedFlow(network, 2.0, 3)(x, times, classes)[3:], own[3:])
    short = TrainingSettings(steps=2, batch_size=8)
    job = TrainingJob(Conditional(), GuidedFlow(network, 2.0, 3), FreeFlow(online_lr=2.0), Prior((2,), classes=3), short)
    assert train(job).history[-1]["step"] == 2
    assert isinstance(job.method.online, Conditional)


def test_best_noise_takes_the_candidate_of_the_best_sample() -> None:
    candidates = torch.randn(3, 5, 2)
    chosen, score = best_noise(lambda z, d: torch.zeros_like(z), candidates, lambda x: x[:, 0])
    assert torch.equal(chosen[:, 0], candidates[..., 0].max(1).values) and torch.equal(score, chosen[:, 0])


def test_the_data_based_arm_has_the_exact_map_as_its_optimum() -> None:
    class FromAnyTime(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            time = t[:, None]
            spread = ((1 - time) ** 2 * STD**2 + time**2).sqrt()
            return (MEAN + STD / spread * (x - (1 - time) * MEAN) - x) / time

    method, data = OnData(prediction=1.0, at_end=0.5), MEAN + STD * noise(64, 5)
    torch.manual_seed(0)
    _, targets = method(Batch(data), FromAnyTime(), velocity_teacher(lambda x, t: gaussian()(x, t), "one Gaussian"))
    assert targets["residual"].abs().max() < 1e-4


def test_energy_distance() -> None:
    points = noise(400).float()
    assert abs(energy_distance(points, noise(400, 9).float())) < 0.03
    assert energy_distance(points, points + 3) > 2


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"prediction": 1.5}, "prediction"),
        ({"alpha": 0.0}, "alpha"),
        ({"derivative": "jpv"}, "derivative"),
        ({"at_end": -1}, "at_end"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], name: str) -> None:
    with pytest.raises(InputError, match=name):
        FreeFlow(**options)


class OneInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_networks_and_data_that_do_not_fit_are_refused() -> None:
    short, teacher = TrainingSettings(steps=1, batch_size=4), velocity_teacher(ring())
    for student, source, data, message in (
        (OneInput(), teacher, Prior((2,)), "student cannot be asked"),
        (VelocityMLP(2, 4), ring(), Prior((2,)), "teacher cannot be asked"),
        (VelocityMLP(2, 4), VelocityMLP(3, 4), Prior((2,)), "teacher cannot be asked"),
        (VelocityMLP(2, 4), teacher, TensorData(torch.zeros(8, 2, dtype=torch.int64)), "starts from noise"),
    ):
        with pytest.raises(InputError, match=message):
            train(TrainingJob(student, source, FreeFlow(), data, short))
    with pytest.raises(InputError, match="Prior"):
        tutelage.distill(VelocityMLP(2, 4), teacher, None, "freeflow", steps=1, progress=False)


def test_time_is_clamped_where_asked() -> None:
    asked: list[Tensor] = []

    def record(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t)
        return -x

    method = FreeFlow(prediction=1.0, at_end=1.0, least_time=0.05)
    method(Batch(torch.randn(4, 2)), VelocityMLP(2, 4), velocity_teacher(record, "recorder"))
    assert math.isclose(float(asked[0].min()), 0.05, rel_tol=1e-6) and expand_time(asked[0], torch.zeros(4, 2)).shape == (4, 1)
