"""Intervals against hand values, exact enumeration, and published t quantiles."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.datasets.confidence_intervals import (
    Interval,
    bootstrap,
    cluster_draws,
    interval_of,
    mean_sd,
    paired_bootstrap,
    paired_t,
    supports_claim,
    t_cdf,
    t_interval,
    t_quantile,
)
from tutelage.errors import InputError


@pytest.mark.parametrize(
    ("p", "df", "value"),
    [
        (0.975, 1, 12.7062047),
        (0.975, 2, 4.3026527),
        (0.975, 3, 3.1824463),
        (0.975, 4, 2.7764451),
        (0.95, 5, 2.0150484),
        (0.995, 9, 3.2498355),
        (0.975, 30, 2.0422725),
        (0.025, 4, -2.7764451),
        (0.975, 10_000, 1.9602012),
    ],
)
def test_t_quantiles_of_the_printed_tables(p, df, value):
    assert t_quantile(p, df) == pytest.approx(value, abs=2e-7)


@given(st.floats(0.001, 0.999), st.integers(1, 60))
def test_t_quantile_inverts_the_cdf(p, df):
    assert t_cdf(t_quantile(p, df), df) == pytest.approx(p, abs=1e-9)


@given(st.floats(-30, 30), st.integers(1, 40))
def test_t_cdf_agrees_with_numerical_integration(t, df):
    x = np.linspace(0, t, 20_001)
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    assert t_cdf(t, df) == pytest.approx(0.5 + np.trapezoid(scale * (1 + x**2 / df) ** (-(df + 1) / 2), x), abs=1e-5)


def test_t_interval_by_hand():
    found = t_interval([1.0, 2.0, 3.0])
    half = 4.302652729749464 / math.sqrt(3)
    assert (found.mean, found.low, found.high, found.n) == (2.0, pytest.approx(2 - half), pytest.approx(2 + half), 3)
    assert paired_t([3, 5, 7], [2, 3, 4]) == found
    assert t_interval([5.0]) == Interval(5.0, -math.inf, math.inf, 1)


def test_mean_sd_by_hand():
    assert mean_sd([2, 4, 4, 4, 5, 5, 7, 9]).sd == pytest.approx(math.sqrt(32 / 7))
    assert str(mean_sd([1.0, 3.0])) == "2.0 ± 1.4"
    assert math.isnan(mean_sd([1.0]).sd)


def test_cluster_draws_agree_with_all_possible_resamples():
    values, clusters = [1, 0, 1, 1, 0], ["a", "a", "a", "b", "c"]
    sums, sizes = np.array([2, 1, 0]), np.array([3, 1, 1])
    every = [sums[list(pick)].sum() / sizes[list(pick)].sum() for pick in itertools.product(range(3), repeat=3)]
    draws = cluster_draws(values, clusters, seed=0, draws=40_000)
    assert set(np.round(draws, 9)) == set(np.round(every, 9))
    assert draws.mean() == pytest.approx(np.mean(every), abs=0.005)
    assert draws.std() == pytest.approx(np.std(every), abs=0.005)


def test_whole_images_are_resampled():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(200) < 0.5, 20).astype(float)  # all 20 questions of an image agree
    by_image = bootstrap(right, np.repeat(np.arange(200), 20), seed=1)
    by_question = bootstrap(right, np.arange(4000), seed=1)
    assert by_image.n == 200 and by_question.n == 4000
    assert 3.5 < (by_image.high - by_image.low) / (by_question.high - by_question.low) < 5.5  # sqrt(20) = 4.5
    assert by_image.low < by_image.mean < by_image.high


def test_pairing_removes_what_both_share():
    before = np.random.default_rng(1).random(500) < 0.5
    assert paired_bootstrap(before, before, range(500), seed=0) == Interval(0, 0, 0, 500)
    shifted = paired_bootstrap(before + 0.25, before, range(500), seed=0)
    assert (shifted.low, shifted.high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_pairs_of_seed_and_image_are_clusters():
    clusters = [(seed, image) for seed in range(3) for image in range(5) for _ in range(2)]
    assert bootstrap(np.arange(30), clusters, seed=0).n == 15
    assert bootstrap(np.arange(30), clusters, seed=0) == bootstrap(np.arange(30), clusters, seed=0)
    assert bootstrap(np.arange(30), clusters, seed=0) != bootstrap(np.arange(30), clusters, seed=1)


def test_draws_are_the_same_in_one_block_or_many(monkeypatch):
    values, clusters = np.arange(100.0), np.arange(100) // 3
    whole = cluster_draws(values, clusters, seed=5, draws=50)
    monkeypatch.setattr("tutelage.datasets.confidence_intervals._BLOCK", 100)
    assert np.array_equal(whole, cluster_draws(values, clusters, seed=5, draws=50))


def test_coverage_of_the_bootstrap():
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(200):
        values = rng.normal(1.0, 2.0, 80)
        found = bootstrap(values, range(80), seed=trial, draws=400)
        hits += found.low <= 1.0 <= found.high
    assert 176 <= hits <= 200


def test_interval_of_combined_draws():
    found = interval_of(0.5, np.linspace(0, 1, 101), n=7, level=0.9)
    assert (found.low, found.high, found.n) == (pytest.approx(0.05), pytest.approx(0.95), 7)


@pytest.mark.parametrize(
    ("low", "high", "claim", "margin", "holds"),
    [
        (0.1, 2, "better", 0, True),
        (0, 2, "better", 0, False),
        (-0.9, 2, "not worse", 1, True),
        (-1, 2, "not worse", 1, False),
        (-0.5, 0.5, "equal", 1, True),
        (-0.5, 1.5, "equal", 1, False),
    ],
)
def test_claims(low, high, claim, margin, holds):
    assert supports_claim(Interval((low + high) / 2, low, high, 5), claim, margin) is holds


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_sd([]),
        lambda: t_interval([1.0, math.nan]),
        lambda: paired_t([1, 2], [1]),
        lambda: bootstrap([1, 2], ["a"], seed=0),
        lambda: bootstrap([1, 2], ["a", "b"], seed=0, draws=0),
        lambda: bootstrap([1, 2], ["a", "b"], seed=0, level=1.0),
        lambda: t_quantile(0.5, 0),
        lambda: supports_claim(t_interval([1, 2]), "splendid"),
        lambda: supports_claim(t_interval([1, 2]), "equal", -1),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(InputError):
        call()
