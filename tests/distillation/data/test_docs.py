"""The page about kinds of data: its code runs as printed, top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[3] / "docs" / "data.md"


def test_the_page_runs_as_printed_and_says_what_is_so() -> None:
    names: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)), names)  # noqa: S102 (our own page)
    batch = names["data"].batch(*names["data"].sample_order(8, 0).step(0))
    assert batch.extra["domain"].bincount().tolist() == [6, 2]
    assert names["batch"].inputs["crops"].shape == (8, 2, 3, 12, 12)
    assert (names["figures"]["forgetting"], names["figures"]["backward_transfer"]) == (20.0, -20.0)
    assert names["scenes"].batch(torch.arange(2), None).inputs.shape == (2, 3, 48, 48)
    assert names["made"].batch(torch.arange(3), None).inputs.shape == (3, 12)
    assert names["noise"].batch(torch.arange(3), None).labels.shape == (3,)
