"""Symbols come back exactly, at nearly the bits that their probabilities say; damaged streams are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import InputError
from tutelage.networks.entropy_coder import PRECISION, FrequencyTable, decode, encode, table_bits
from tutelage.networks.entropy_models import (
    FactorizedPrior,
    bounded,
    gaussian_likelihood,
    gaussian_table,
    round_straight_through,
    scale_rows,
)
from tutelage.seeds import numpy_rng

TABLE = FrequencyTable.from_probabilities([np.array([0.25, 0.5, 0.25]), np.array([0.9])], [-1, 7])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(-(10**6), 10**6) | st.integers(-2, 2), st.integers(0, 1)), max_size=50))
def test_any_symbols_come_back(pairs: list[tuple[int, int]]) -> None:
    symbols, rows = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    assert (decode(encode(symbols, rows, TABLE), rows, TABLE) == symbols).all()


def test_a_stream_is_as_long_as_the_probabilities_say() -> None:
    rng = numpy_rng(0, "symbols")
    scale = torch.from_numpy(rng.uniform(0.11, 20, 20_000))
    symbols = np.round(rng.normal(size=20_000) * scale.numpy()).astype(np.int64)
    zeros = torch.zeros(20_000, dtype=torch.float64)
    ideal = -gaussian_likelihood(torch.from_numpy(symbols).double(), zeros, scale).log2().sum().item()
    rows, table = scale_rows(scale), gaussian_table()
    data = encode(symbols, rows, table)
    assert (decode(data, rows, table) == symbols).all()
    assert 0.999 * ideal < 8 * len(data) < 1.01 * ideal + 8 * 64
    assert table_bits(symbols, rows, table) == pytest.approx(8 * len(data), rel=1e-3, abs=8 * 16)


def test_every_row_fills_its_frequencies() -> None:
    for table in (TABLE, gaussian_table(), FactorizedPrior(3).table()):
        for row in table.edges:
            assert row[0] == 0 and row[-1] == 1 << PRECISION and (np.diff(row) >= 1).all()


def test_a_damaged_stream_is_refused() -> None:
    rows = np.tile([0, 1], 200)
    symbols = np.tile([1, 7], 200)
    data = encode(symbols, rows, TABLE)
    for broken in (b"", data[:5], data[:-4], data + b"\0\0\0\0", b"\xff" * 20):
        with pytest.raises(InputError, match="bitstream"):
            decode(broken, rows, TABLE)
    with pytest.raises(InputError, match="bitstream"):
        decode(data, rows[:-2], TABLE)


@pytest.mark.parametrize("row", [[], [0.5, 0.6], [-0.1, 0.2], [float("nan")]])
def test_what_are_no_probabilities_is_refused(row: list[float]) -> None:
    with pytest.raises(InputError, match="row 0"):
        FrequencyTable.from_probabilities([np.array(row)], [0])


def test_rows_that_do_not_fit_are_refused() -> None:
    for rows in (np.array([0]), np.array([0, 2]), np.array([-1, 0])):
        with pytest.raises(InputError, match="rows"):
            encode(np.array([0, 0]), rows, TABLE)


def test_the_prior_is_a_distribution_whose_table_agrees() -> None:
    torch.manual_seed(0)
    prior = FactorizedPrior(2, init_scale=4.0)
    for gate in prior.gates:
        torch.nn.init.normal_(gate)
    values = torch.arange(-64.0, 65).expand(1, 2, 1, -1)
    mass = prior(values)[0, :, 0]
    assert mass.shape == (2, 129) and (mass.sum(1) <= 1 + 1e-4).all() and (mass.sum(1) > 0.95).all()
    for row, shares in zip(prior.table().edges, mass, strict=True):
        stored = torch.tensor(np.diff(row)[:-1] / 2**PRECISION).float()
        torch.testing.assert_close(stored, shares, atol=3e-3, rtol=0)


def test_a_value_far_away_is_still_pulled() -> None:
    mean = torch.zeros(1, requires_grad=True)
    likelihood = gaussian_likelihood(torch.tensor([2.0]), mean, torch.tensor([0.3]))
    assert likelihood.item() >= 1e-9
    (-likelihood.log2()).backward()
    assert mean.grad is not None and mean.grad.item() < 0
    assert bounded(torch.tensor([0.0])).item() == pytest.approx(1e-9)


def test_rounding_passes_the_gradient() -> None:
    x = torch.tensor([0.4, 1.6, -2.5], requires_grad=True)
    rounded = round_straight_through(x)
    rounded.sum().backward()
    assert torch.equal(rounded.detach(), torch.tensor([0.0, 2.0, -2.0])) and torch.equal(x.grad, torch.ones(3))
