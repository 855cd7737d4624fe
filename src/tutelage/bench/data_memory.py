"""Items made on the fly pass through the loader, in a process of its own: how much memory it and its workers hold.

python -m tutelage.bench.data_memory OUT.json --items 1280000 --workers 2
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tutelage import storage
from tutelage.distillation.data import SampleOrder
from tutelage.distillation.data.dataset import DatasetData, Loading
from tutelage.distillation.data.loader import BatchLoader
from tutelage.environment import PeakMemory

BATCH = 256


class MadeItems(Dataset[Any]):
    """``count`` images 3x64x64 uint8 and labels made from their number, mirrored at random."""

    def __init__(self, count: int):
        self.count = count
        self.row = torch.arange(64, dtype=torch.uint8)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        row = self.row.flip(0) if random.random() < 0.5 else self.row
        return (row + number % 256).to(torch.uint8).expand(3, 64, 64), number % 1000


def pass_through(items: int, workers: int, passes: int | None = None) -> dict[str, Any]:
    """Fetch every item once, in a seeded order (or ``passes`` batches of 256 alone).

    Returns:
        ``{items, fetched, peak_mib, seconds}``: the peak is of this process and its workers, shared pages counted once.
    """
    data = DatasetData(MadeItems(items), loading=Loading(workers), random=True, version="made")
    total = -(-items // BATCH) if passes is None else passes
    loader = BatchLoader(data, SampleOrder(items, BATCH, 0), total)
    began = time.perf_counter()
    with PeakMemory() as memory:
        for number in range(total):
            batch = loader.take(number)
            assert batch.inputs.shape == (BATCH, 3, 64, 64)
    loader.close()
    return {
        "items": items,
        "fetched": total * BATCH,
        "peak_mib": memory.mib,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """What the module's first lines show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--passes", type=int, help="batches to fetch; by default every item once")
    options = parser.parse_args()
    torch.set_num_threads(1)
    storage.write_json(options.out, pass_through(options.items, options.workers, options.passes))


if __name__ == "__main__":
    main()
