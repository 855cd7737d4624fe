"""The log as TensorBoard events."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tutelage.distillation.api import distill
from tutelage.distillation.trainer import train
from tutelage.errors import InputError, MissingExtra

from .toy import Distil, Net, lesson, samples


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show of the run: (step, value) by name."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return {name: [(event.step, event.value) for event in read.Scalars(name)] for name in read.Tags()["scalars"]}


def test_events_are_the_records_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    made = lesson()
    made.evaluate = lambda net: {"bias": float(net.head.bias.sum())}
    result = train(made, tmp_path, tensorboard=True)
    shown = events(tmp_path)
    assert set(shown) == {"loss", "lr", "terms/soft", "terms/hard", "figures/bias"}
    for record, (step, value) in zip(result.history, shown["terms/soft"], strict=True):
        assert step == record["step"] and value == pytest.approx(record["terms"]["soft"])
    assert [value for _, value in shown["figures/bias"]] == pytest.approx([result.metrics["bias"]])


def test_a_resumed_run_shows_every_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    def stop(done: int, steps: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    settings = {"log_every": 1, "checkpoint_every": 10}
    with pytest.raises(KeyboardInterrupt):
        train(lesson(**settings), tmp_path, stop, tensorboard=True)
    result = train(lesson(**settings), tmp_path, tensorboard=True)
    assert [step for step, _ in events(tmp_path)["loss"]] == [record["step"] for record in result.history] == [*range(1, 31)]
    files = sorted((tmp_path / "tensorboard").iterdir())
    train(lesson(**settings), tmp_path, tensorboard=True)
    assert sorted((tmp_path / "tensorboard").iterdir()) == files, "a finished run that is read back writes none"


def test_events_need_a_folder_and_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="need a folder"):
        distill(Net(), Net(16, seed=1), samples(), Distil, steps=1, tensorboard=True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra) as caught:
        train(lesson(), tmp_path, tensorboard=True)
    assert "tutelage[tensorboard]" in str(caught.value)
    train(lesson(steps=1), tmp_path / "plain")
