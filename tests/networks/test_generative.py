import math

import pytest
import torch

from tutelage.errors import InputError
from tutelage.networks.diffusion import DiffusionSchedule, guided, noise_betas
from tutelage.networks.flow import (
    GaussianMixtureFlow,
    flow_matching_loss,
    guided_velocity,
    integrate,
    interpolate,
)

KINDS = ("epsilon", "x0", "v")


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ideal(schedule: DiffusionSchedule, std: float = 0.5):
    """What a perfect network predicts where the data are N(0, std^2)."""

    def predict(x, t):
        a, s = schedule.scales(t, x)
        variance = a**2 * std**2 + s**2
        x0, noise = a * std**2 / variance * x, s / variance * x
        return {"epsilon": noise, "x0": x0, "v": a * noise - s * x0}[schedule.prediction]

    return predict


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_schedules_keep_the_variance_and_end_in_noise(name):
    for steps in (50, 1000):
        schedule = DiffusionSchedule(name, steps)
        assert torch.allclose(schedule.signal**2 + schedule.noise**2, torch.ones(steps), atol=1e-5)
        assert float(schedule.signal[0]) > 0.9 and float(schedule.signal[-1]) < 0.15
        assert bool((schedule.signal.diff() < 0).all())
    assert float(noise_betas("scaled_linear", 1000)[0]) == pytest.approx(0.00085)
    with pytest.raises(InputError, match="unknown schedule 'sigmoid'"):
        DiffusionSchedule("sigmoid")
    with pytest.raises(InputError, match="unknown prediction"):
        DiffusionSchedule(prediction="noise")


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_splits_into_the_image_and_the_noise(kind):
    schedule = DiffusionSchedule(steps=100, prediction=kind)
    x0, noise = torch.randn(4, 2, 3, generator=_rng()), torch.randn(4, 2, 3, generator=_rng(1))
    t = torch.tensor([0, 10, 50, 99])
    x_t = schedule.add_noise(x0, noise, t)
    found = schedule.split(schedule.target(x0, noise, t), x_t, t)
    assert torch.allclose(found[0], x0, atol=1e-4) and torch.allclose(found[1], noise, atol=1e-4)
    assert torch.equal(schedule.add_noise(x0, noise, torch.full((4,), -1)), x0)


def test_ddim_of_any_number_of_steps_is_the_same_for_all_predictions_and_finds_the_data():
    noise = torch.randn(2000, 1, generator=_rng())
    found = {}
    for kind in KINDS:
        schedule = DiffusionSchedule("cosine", 200, kind)
        found[kind] = schedule.sample(_ideal(schedule), noise, 200)
    assert torch.allclose(found["epsilon"], found["x0"], atol=1e-3)
    assert torch.allclose(found["v"], found["x0"], atol=1e-3)
    assert float(found["x0"].std()) == pytest.approx(0.5, abs=0.03)
    # a network that knows the image is right in one step and in many
    image = torch.randn(3, 4, generator=_rng(2))
    known = DiffusionSchedule("cosine", 100, "x0")
    for steps in (1, 7, 100):
        assert torch.allclose(known.sample(lambda x, t: image, torch.randn(3, 4, generator=_rng()), steps), image, atol=1e-6)
    assert float(known.sample(lambda x, t: 3 * image, image, 5, clip=1.0).abs().max()) <= 1
    assert known.timesteps(100) == list(range(99, -1, -1)) and known.timesteps(4) == [99, 74, 49, 24]
    with pytest.raises(InputError, match="101 of 100"):
        known.timesteps(101)


def test_ddim_with_all_steps_inverts():
    image = 0.5 * torch.randn(500, 1, generator=_rng())
    errors = []
    for steps in (100, 400):
        schedule = DiffusionSchedule("linear", steps, "epsilon")
        noise = schedule.invert(_ideal(schedule), image, steps)
        assert float(noise.std()) == pytest.approx(1, abs=0.1)
        errors.append(float((schedule.sample(_ideal(schedule), noise, steps) - image).abs().max()))
    assert errors[1] < 0.03 and errors[1] < errors[0] / 2  # of the first order in the step
    # where the implied noise is one and the same at all steps the inversion is exact
    fixed = torch.randn(3, 2, generator=_rng(1))
    back = schedule.invert(lambda x, t: fixed, image[:3].expand(3, 2), 13)
    assert torch.allclose(schedule.sample(lambda x, t: fixed, back, 13), image[:3].expand(3, 2), atol=1e-3)


def test_guidance_identities():
    a, b, c = (torch.randn(2, 3, generator=_rng(i)) for i in range(3))
    assert torch.equal(guided([a, b, c], [0, 0]), a)
    assert torch.allclose(guided([a, b, c], [1, 1]), c, atol=1e-6)
    assert torch.allclose(guided([a, b, c], [1, 0]), b, atol=1e-6)
    assert torch.allclose(guided([a, b, c], [1.5, 7.5]), a + 1.5 * (b - a) + 7.5 * (c - b))
    with pytest.raises(InputError, match="1 scales for 3"):
        guided([a, b, c], [1])
    # guiding the noise and guiding the clean image is the same
    eps, clean = DiffusionSchedule(steps=50), DiffusionSchedule(steps=50, prediction="x0")
    x, t = torch.randn(2, 3, generator=_rng(3)), torch.tensor([20, 40])
    by_eps = eps.split(guided([a, b], [3.0]), x, t)[0]
    by_x0 = guided([eps.split(p, x, t)[0] for p in (a, b)], [3.0])
    assert torch.allclose(by_eps, by_x0, atol=1e-4) and clean.prediction == "x0"


def test_diffusion_loss_is_zero_for_a_perfect_network_and_seeded():
    schedule = DiffusionSchedule(steps=20, prediction="x0")
    x0 = torch.randn(6, 2, generator=_rng())
    assert not schedule.loss(lambda x, t: x0, x0, _rng(1)).any()
    first, second = (schedule.loss(lambda x, t: x, x0, _rng(1)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, schedule.loss(lambda x, t: x, x0, _rng(2)))


def test_gaussian_flow_ends_where_the_closed_form_says():
    mean, std = torch.tensor([[1.0, -2.0]], dtype=torch.float64), 0.5
    flow = GaussianMixtureFlow(mean, std)
    z = torch.randn(50, 2, dtype=torch.float64, generator=_rng())
    for end in (0.0, 0.4):
        d = 1 - end
        wanted = d * mean + math.sqrt(d**2 * std**2 + (1 - d) ** 2) * z
        assert torch.allclose(integrate(flow, z, 50, "rk4", end=end), wanted, atol=1e-4)
    back = integrate(flow, integrate(flow, z, 100, "rk4"), 100, "rk4", start=0.0, end=1.0)
    assert torch.allclose(back, z, atol=1e-4)


@pytest.mark.parametrize("method, order", [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_samplers_converge_with_their_order(method, order):
    flow = GaussianMixtureFlow(torch.tensor([[1.0], [-0.7]], dtype=torch.float64), 0.5)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    exact = integrate(flow, z, 1000, "rk4")
    errors = [float((integrate(flow, z, n, method) - exact).abs().max()) for n in (20, 40)]
    assert math.log2(errors[0] / errors[1]) > order - 0.35


def test_mixture_velocity_equals_a_monte_carlo_estimate():
    flow = GaussianMixtureFlow(torch.tensor([[2.0], [-2.0], [0.5]]), 0.4, torch.tensor([0.5, 0.3, 0.2]))
    x0, noise = flow.sample(400_000, _rng()), torch.randn(400_000, 1, generator=_rng(1))
    x_t = interpolate(x0, noise, torch.tensor([0.6]))
    for place in (0.5, -0.4):
        near = (x_t - place).abs()[:, 0] < 0.03
        wanted = float((x0 - noise)[near].mean())
        assert float(flow(torch.tensor([[place]]), torch.tensor([0.6]))) == pytest.approx(wanted, abs=0.08)


def test_the_exact_velocity_minimises_the_matching_loss():
    flow = GaussianMixtureFlow(torch.tensor([[1.0], [-1.0]]), 0.3)
    x0, noise = flow.sample(20_000, _rng()), torch.randn(20_000, 1, generator=_rng(1))
    t = torch.rand(20_000, generator=_rng(2))
    best = float(flow_matching_loss(flow, x0, noise, t).mean())
    for other in (lambda x, time: 0 * x, lambda x, time: flow(x, time) + 0.3, lambda x, time: -flow(x, time)):
        assert float(flow_matching_loss(other, x0, noise, t).mean()) > best + 0.05


def test_guidance_acts_inside_its_interval_alone():
    def one(x, t):
        return torch.ones_like(x)

    def two(x, t):
        return 2 * torch.ones_like(x)

    both = guided_velocity(two, one, 3.0, (0.0, 0.7))
    assert both(torch.zeros(2, 2), torch.tensor([0.5, 0.9])).tolist() == [[4, 4], [2, 2]]
    assert guided_velocity(two, one, 1.0)(torch.zeros(1, 1), torch.zeros(1)).item() == 2
    with pytest.raises(InputError, match="unknown method 'rk5'"):
        integrate(one, torch.zeros(1, 1), 4, "rk5")
    with pytest.raises(InputError, match="0 steps"):
        integrate(one, torch.zeros(1, 1), 0)
