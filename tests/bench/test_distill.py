from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tutelage.bench import distill, distill_steps
from tutelage.bench.distill_steps import ALONE, CACHED, HAND, ONLINE, OTHER, QUICK
from tutelage.distillation.trainer import Trainer
from tutelage.errors import InputError


def way(*ms: float, peak: int = 100) -> dict[str, Any]:
    return {"ms": list(ms), "peak": peak, "tricks": []}


def timings() -> dict[str, Any]:
    return {
        HAND: way(200, 200, 200), OTHER: way(220, 440, 220), ALONE: way(100, 200, 100), ALONE + QUICK: way(50, 100, 50, peak=50),
        ONLINE: way(200, 400, 200), ONLINE + QUICK: way(100, 200, 100, peak=51),
        CACHED: way(104, 208, 104), CACHED + QUICK: way(51, 102, 51, peak=50),
    }  # fmt: skip


def accuracy(*on: float) -> dict[str, Any]:
    return {ONLINE: way() | {"accuracy": [80.0, 81.0, 82.0]}, CACHED + QUICK: way() | {"accuracy": list(on)}}


def test_ratios_are_those_of_each_round() -> None:
    pairs = {"resnet56-resnet20": timings(), "resnet110-resnet20": timings()}
    found = distill.summary(pairs, accuracy(80.1, 80.9, 82.0))
    assert found["cached_over_student_only"] == pytest.approx(1.04)
    assert found["best_over_torchdistill"] == pytest.approx(dict.fromkeys(pairs, 220 / 51))
    assert found["online_over_torchdistill"] == pytest.approx(dict.fromkeys(pairs, 2.2))
    assert found["memory_over_student_only"] == pytest.approx(1.02)
    assert found["accuracy_difference"]["mean"] == pytest.approx(0)
    assert all(verdict["met"] for verdict in found["verdicts"]) and len(found["verdicts"]) == 7


def test_a_miss_is_a_miss_and_what_was_left_out_claims_nothing() -> None:
    ways = timings()
    ways[CACHED] = way(110, 220, 110, peak=110)
    del ways[OTHER]
    found = distill.summary({"resnet56-resnet20": ways}, accuracy(78.0, 79.0, 83.0))
    assert found["best_over_torchdistill"] == found["online_over_torchdistill"] == {}
    assert [verdict["met"] for verdict in found["verdicts"]] == [False, False, False]


def test_what_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nothing to measure"):
        distill.run(0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no GPU"):
        distill.run(1, device="cuda")


def test_every_way_teaches_the_same_student() -> None:
    """One step of the loop written by hand, and one of the trainer on the same batch, give the same weights."""
    task = distill_steps.make_setup(8, 8, "cpu", images=distill_steps.BATCH)
    hand = distill_steps.hand_written(task)
    mine = distill_steps.tutelage_step(
        task, distill_steps.KD(tau=4.0, alpha=0.9), distill_steps.NetworkTeacher(copy.deepcopy(task.teacher))
    )
    hand.step(), mine.step()
    for a, b in zip(hand.networks[0].state_dict().values(), mine.networks[0].state_dict().values()):
        assert torch.allclose(a.float(), b.float(), atol=1e-5)
    assert isinstance(mine.step.__self__, Trainer)


@pytest.mark.slow
def test_the_plumbing_holds_and_the_keys_are_as_documented(capsys: pytest.CaptureFixture[str]) -> None:
    found = distill.command(None, 1, seeds=2, smoke=True, processes=1)
    assert {"pair", "variant", "cpu_ms_per_step", "peak_tensor_mib", "accuracy"} <= set.intersection(*map(set, found["rows"]))
    assert {"cached_over_student_only", "best_over_torchdistill", "online_over_torchdistill",
            "memory_over_student_only"} <= set(found["summary"])  # fmt: skip
    assert all(row["cpu_ms_per_step"] > 0 and row["peak_tensor_mib"] > 0 for row in found["rows"])
    assert "mean nothing" in capsys.readouterr().out
