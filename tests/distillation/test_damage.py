"""A changed bit, a missing field or a wrong shape in what a run goes on from is noticed, with the file and the remedy named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tutelage import storage
from tutelage.distillation.cache import Cache
from tutelage.distillation.cache_build import build
from tutelage.distillation.checkpoint import CheckpointManager, read_tensors, truncate_log, write_tensors
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import train
from tutelage.errors import InputError, StaleError, TutelageError

from .toy import Distil, samples

TENSORS = {"student.weight": torch.arange(6.0).reshape(2, 3), "sums.loss": torch.tensor(0.5)}
once_a_folder = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def lesson(**options: Any) -> TrainingJob:
    torch.manual_seed(0)
    chosen: dict[str, Any] = {"steps": 6, "batch_size": 8, "checkpoint_every": 2} | options
    return TrainingJob(nn.Linear(4, 3), nn.Linear(4, 3), Distil(), samples(), TrainingSettings(**chosen), name="damaged")


def test_bits_of_a_small_checkpoint(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "a.safetensors", TENSORS, {"step": 3})
    whole = path.read_bytes()
    assert write_tensors(tmp_path / "b.safetensors", TENSORS, {"step": 3}).read_bytes() == whole
    tensors, head = read_tensors(path)
    assert head["step"] == 3 and torch.equal(tensors["student.weight"], TENSORS["student.weight"])
    for bit in range(0, 8 * len(whole), 3):
        path.write_bytes(flip(whole, bit))
        with pytest.raises((InputError, StaleError)) as caught:
            read_tensors(path)
        assert str(caught.value.where) == str(path) and caught.value.remedy


def test_any_bit_of_a_run_s_last_checkpoint_stops_it_from_going_on(tmp_path: Path) -> None:
    train(lesson(), tmp_path)
    path = CheckpointManager(tmp_path).latest
    assert path is not None
    whole = path.read_bytes()

    @once_a_folder
    @given(st.integers(0, 8 * len(whole) - 1))
    def damaged(bit: int) -> None:
        path.write_bytes(flip(whole, bit))
        with pytest.raises((InputError, StaleError)) as caught:
            train(lesson(), tmp_path)
        assert str(caught.value.where) == str(path)

    damaged()
    path.unlink()  # as the remedy says
    assert train(lesson(), tmp_path).student is not None


def test_any_bit_of_a_cache(tmp_path: Path) -> None:
    build(lesson(), tmp_path, shard=2)
    found = sorted(file for file in tmp_path.iterdir() if file.is_file())
    whole = {file: file.read_bytes() for file in found}

    @once_a_folder
    @given(st.sampled_from(found), st.data())
    def damaged(file: Path, data: st.DataObject) -> None:
        bit = data.draw(st.integers(0, 8 * len(whole[file]) - 1))
        file.write_bytes(flip(whole[file], bit))
        try:
            with pytest.raises((InputError, StaleError)) as caught:
                Cache(tmp_path)
            assert str(file) in str(caught.value.where)
        finally:
            file.write_bytes(whole[file])

    damaged()
    Cache(tmp_path)


WRONG: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "no step": lambda tensors, head: head.pop("step"),
    "step is a text": lambda tensors, head: head.update(step="4"),
    "a step beyond the end": lambda tensors, head: head.update(step=10**9),
    "a negative step": lambda tensors, head: head.update(step=-1),
    "seconds not finite": lambda tensors, head: head.update(seconds=float("nan")),
    "ungraded is a number": lambda tensors, head: head.update(ungraded=3),
    "a missing tensor": lambda tensors, head: tensors.pop("student.weight"),
    "another shape": lambda tensors, head: tensors.update({"student.weight": torch.zeros(7, 7)}),
    "optimizer without number": lambda tensors, head: tensors.update({"optimizer.x.step": torch.zeros(1)}),
    "optimizer of another shape": lambda tensors, head: tensors.update({"optimizer.0.exp_avg": torch.zeros(7, 7)}),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_checkpoint_that_does_not_fit(change: Callable[..., None], tmp_path: Path) -> None:
    train(lesson(), tmp_path)
    path = CheckpointManager(tmp_path).latest
    assert path is not None
    tensors, head = read_tensors(path)
    head = {name: head[name] for name in ("step", "since", "seconds", "ungraded")}
    change(tensors, head)
    write_tensors(path, tensors, head)
    with pytest.raises(TutelageError) as caught:
        train(lesson(), tmp_path)
    assert str(path) in str(caught.value.where) and caught.value.remedy


CACHE_WRONG = {
    "passes missing": {"passes": None},
    "shard 0": {"shard": 0},
    "passes large": {"passes": 10**12},
    "passes text": {"passes": "8"},
    "heads empty": {"heads": {}},
    "heads a list": {"heads": [1]},
    "store unknown": {"heads": {"logits": {"store": "top0", "shape": [3]}}},
    "shape negative": {"heads": {"logits": {"store": "fp32", "shape": [-3]}}},
    "another shape": {"heads": {"logits": {"store": "fp32", "shape": [4]}}},
    "another head": {"heads": {"other": {"store": "fp32", "shape": [3]}}},
    "no order": {"order": None},
}


@pytest.mark.parametrize("change", CACHE_WRONG.values(), ids=CACHE_WRONG)
def test_a_cache_whose_head_is_wrong(change: dict[str, Any], tmp_path: Path) -> None:
    build(lesson(), tmp_path, shard=2)
    head = json.loads((tmp_path / "cache.json").read_text())
    storage.write_json(tmp_path / "cache.json", head | change, sealed=True)
    with pytest.raises(InputError) as caught:
        Cache(tmp_path)
    assert caught.value.where and caught.value.remedy


def test_a_damaged_log_is_read_as_far_as_it_can_be(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [{"step": step} for step in range(1, 6)]
    lines = [json.dumps(row).encode() for row in rows]
    log.write_bytes(b"\n".join([lines[0], b"\xff\xfe", b"[" * 5_000, b'{"step": "2"}', lines[1], lines[2], lines[4], b'{"st']))
    with pytest.warns(UserWarning, match="damaged line") as warned:
        assert truncate_log(log, 4) == rows[:3]
    assert len(warned) == 3
    assert log.read_text() == "".join(json.dumps(row) + "\n" for row in rows[:3])


def test_a_run_goes_on_with_a_damaged_log(tmp_path: Path) -> None:
    train(lesson(log_every=1), tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"\x00\xff" + log.read_bytes()[2:])
    with pytest.warns(UserWarning, match="damaged line"):
        train(lesson(log_every=1), tmp_path)
