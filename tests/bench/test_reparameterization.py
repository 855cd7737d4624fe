from __future__ import annotations

import pytest

from tutelage.bench.reparameterization import SIZES, bench
from tutelage.errors import InputError


def test_a_row_says_what_folding_saves() -> None:
    (row,) = bench(rounds=1, batch=2, sizes=["mini"])["rows"]
    assert row["size"] == "mini" and row["side"] == 32 and row["batch"] == 2
    assert row["folded_macs"] < row["macs"] and row["folded_parameters"] < row["parameters"]
    assert 0 < row["difference"] < 1e-5
    assert row["ms"] > 0 and row["folded_ms"] > 0 and row["met"] == (row["times_faster"] >= 1.5)


def test_every_size_can_be_built() -> None:
    from tutelage.systems._backbone import create_on_meta

    for name, config, side, _ in SIZES.values():
        create_on_meta(name, **config).check_sides((side, side))


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(InputError, match="no size 'maxi'"):
        bench(sizes=["maxi"])
