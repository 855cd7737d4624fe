"""Taps inside ``DistributedDataParallel``: two processes over gloo."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing import spawn

from tutelage.distillation.feature_hooks import FeatureHooks

from .toy import Net


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    network = nn.parallel.DistributedDataParallel(Net())
    inputs = torch.arange(32.0).view(8, 4)[rank * 4 : rank * 4 + 4] / 32
    for _ in range(2):  # the reducer must be ready for the next step
        network.zero_grad()
        with FeatureHooks(network, ["inner"]) as taken:
            said = network(inputs)
        (said.mean() + taken["inner"].square().mean()).backward()
    torch.save([taken["inner"].detach(), *(p.grad for p in network.parameters())], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_taps_see_each_process_and_their_gradients_are_averaged(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_rank, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    network, inputs = Net(), torch.arange(32.0).view(8, 4) / 32
    with FeatureHooks(network, ["inner"]) as taken:
        said = network(inputs)
    (said.mean() + taken["inner"].square().mean()).backward()
    assert torch.allclose(torch.cat([first[0], second[0]]), taken["inner"])
    for one, other, whole in zip(first[1:], second[1:], network.parameters()):
        assert torch.equal(one, other) and torch.allclose(one, whole.grad, atol=1e-6)
