from __future__ import annotations

import pytest
import torch

from tutelage.distillation.data import TensorData
from tutelage.distillation.data.combined import CombinedData
from tutelage.distillation.data.generated import Prior
from tutelage.distillation.data.subset import split_data
from tutelage.errors import InputError


def test_joined_sources_are_split_one_by_one_and_stay_joined() -> None:
    sources = {"photos": TensorData(torch.arange(10.0)[:, None]), "drawings": TensorData(100 + torch.arange(20.0)[:, None])}
    kept, held = split_data(CombinedData(sources), 0.2)
    assert isinstance(kept, CombinedData) and isinstance(held, CombinedData)
    assert [len(one) for one in kept.sources.values()] == [8, 16] and [len(one) for one in held.sources.values()] == [2, 4]
    values = [part.batch(torch.arange(len(part)), None).inputs.flatten() for part in (kept, held)]
    everything = torch.cat(values).sort().values
    assert torch.equal(everything, torch.cat([torch.arange(10.0), 100 + torch.arange(20.0)]))


def test_made_data_is_not_split() -> None:
    with pytest.raises(InputError, match="Prior .* cannot be split"):
        split_data(Prior((2,), length=10**9), 0.1)
