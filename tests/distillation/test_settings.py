"""Settings: every refusal is typed and names the field; epochs become steps."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tutelage.distillation.api import distill
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingSettings
from tutelage.distillation.recipe import read
from tutelage.distillation.settings import make_settings
from tutelage.distillation.trainer import train
from tutelage.errors import InputError, TutelageError

from .test_trainer import plain, rich, stop_at
from .toy import Net, bits, lesson, samples

NAMES = [item.name for item in dataclasses.fields(TrainingSettings)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", math.nan), ("lr", math.inf), ("lr", -1e-3), ("lr", "fast"), ("lr", None), ("lr", True), ("lr", torch.zeros(2)),
        ("steps", 0), ("steps", -5), ("steps", 10.5), ("steps", 10**10), ("steps", "many"), ("epochs", 0), ("epochs", math.nan),
        ("seed", -1), ("seed", 0.5), ("seed", 2**63), ("view_seed", -1), ("batch_size", 0), ("accumulate", 0),
        ("betas", (0.9, 1.0)), ("betas", (0.9,)), ("betas", 0.9), ("betas", ("a", "b")), ("betas", (-0.1, 0.9)),
        ("momentum", 1.0), ("momentum", math.nan), ("weight_decay", -0.1), ("gamma", -1.0), ("clip", 0.0), ("clip", math.nan),
        ("milestones", (0.5, 1.5)), ("milestones", (0.7, 0.2)), ("layer_decay", 0.0), ("layer_decay", 1.1),
        ("ema", 1.5), ("ema", (0.9, 2.0)), ("ema", "slow"), ("ema", (0.9,)), ("patience", 0), ("warmup", -1), ("views", -1),
        ("optimizer", "adam"), ("schedule", 3), ("precision", "fp8"), ("precision", "fp16"), ("keep", "first"), ("metric", 5),
        ("device", "gpu"), ("device", 0), ("device", "meta"), ("nesterov", "yes"), ("channels_last", 1), ("log_every", -1),
        ("weight_decay_end", 0.1),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        TrainingSettings(**{name: value})
    assert caught.value.where == f"settings.{name}" and caught.value.remedy


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"steps": 10, "epochs": 2}, "settings.epochs"),
        ({"nesterov": True, "momentum": 0.0, "optimizer": "sgd"}, "settings.nesterov"),
    ],
)
def test_settings_that_do_not_agree_are_refused(wrong: dict, field: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainingSettings(**wrong)
    assert caught.value.where == field


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.floats(), max_size=3),
    st.binary(max_size=3),
)


@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=3))
def test_whatever_is_given_the_error_is_typed(values: dict) -> None:
    try:
        made = TrainingSettings(**values)
    except InputError:
        return
    assert made.lr >= 0 and made.batch_size >= 1 and made.seed >= 0


def test_numbers_of_numpy_and_torch_are_taken_as_pythons() -> None:
    made = TrainingSettings(
        lr=np.float32(0.5), steps=np.int64(7), clip=torch.tensor(2.0), betas=[np.float64(0.5), 0.9], epochs=None
    )
    assert (made.lr, made.steps, made.clip, made.betas) == (0.5, 7, 2.0, (0.5, 0.9))
    assert type(made.lr) is float and type(made.steps) is int
    assert made == TrainingSettings(lr=0.5, steps=7, clip=2.0, betas=(0.5, 0.9))


def wide(dtype: torch.dtype = torch.float32, size: int = 4) -> TensorData:
    return TensorData(torch.ones(20, size, dtype=dtype), torch.zeros(20, dtype=torch.int64))


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda: distill(3, Net(16), samples(), "kd"), "student"),
        (lambda: distill(lambda: 3, Net(16), samples(), "kd"), "student"),
        (lambda: distill(Net(), Net(16), samples(), "kd", seeds=-1), "seeds"),
        (lambda: distill(Net(), Net(16), samples(), "kd", seeds=[-1]), "settings.seed"),
        (lambda: distill(Net(), Net(16), samples(), "kd", seeds=[1, 1]), "seeds"),
        (lambda: distill(Net(), Net(16), samples(), "kd", seeds="01"), "seeds"),
        (lambda: distill(Net(), Net(16), samples(), "kd", seeds=0), "seeds"),
        (lambda: distill(Net(), Net(16), samples(), "kd", settings={"lr": 1}), "settings"),
        (lambda: distill(Net(), Net(16), samples(), "kd", validation=1.5), "validation"),
        (lambda: distill(Net(), Net(16), samples(), "kd", patience=2), "settings.patience"),
        (lambda: distill(Net(), Net(16), samples(), "kd", steps=2, lr="x"), "settings.lr"),
        (lambda: distill(Net(), Net(16), samples(), "kd", options=[1]), "options"),
        (lambda: distill(Net(), Net(16), samples(), "kd", out=3), "out"),
        (lambda: distill(Net(), Net(16), samples(), "kd", parallel=2), "parallel"),
        (lambda: distill(Net(), Net(16), wide(torch.double), "kd"), "student"),
        (lambda: distill(Net(), Net(16), wide(torch.int64), "kd"), "student"),
        (lambda: distill(Net(), Net(16), wide(size=5), "kd"), "student"),
        (lambda: distill(Net(), nn.Linear(9, 3), samples(), "kd"), "teacher"),
        (lambda: distill(Net(), Net(16), samples(), "kd", steps=2, evaluate=lambda net: 3.0), "evaluate"),
        (lambda: distill(Net(), Net(16), samples(), "kd", steps=2, evaluate=lambda net: {"a": "b"}), "evaluate"),
        (lambda: distill(Net(), Net(16), samples(), "kd", steps=2, validation=lambda net: {"a": "b"}), "validation"),
    ],
)
def test_wrong_arguments_of_distill_are_refused(call, where: str) -> None:
    with pytest.raises(TutelageError) as caught:
        call()
    assert caught.value.where == where


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="no device 'cuda'") as caught:
        train(lesson(device="cuda"))
    assert caught.value.where == "settings.device"


def test_epochs_are_the_steps_they_take() -> None:
    made = lesson(data=samples(40), steps=None, epochs=3, batch_size=16)
    assert made.settings.steps == 8 and made.settings.epochs is None  # 120 samples, 16 a step, rounded up
    assert lesson(data=samples(40), steps=None, epochs=3, batch_size=8, accumulate=5).settings.steps == 3
    assert lesson(data=samples(40), steps=None, epochs=0.01).settings.steps == 1
    assert bits(train(made).student) == bits(train(lesson(data=samples(40), steps=8, batch_size=16)).student)


def test_a_run_of_epochs_resumes_to_the_same_bits(tmp_path: Path) -> None:
    told = {"steps": None, "epochs": 6, "eval_every": 5}
    whole = train(rich(**told))
    with pytest.raises(KeyboardInterrupt):
        train(rich(**told), tmp_path, stop_at(7))
    again = train(rich(**told), tmp_path)
    assert bits(again.student) == bits(whole.student) and plain(again.history) == plain(whole.history)


def test_overrides_choose_between_steps_and_epochs() -> None:
    assert make_settings(TrainingSettings(steps=7), {"epochs": 2}).epochs == 2
    assert make_settings(TrainingSettings(epochs=2), {"steps": 7}).steps == 7
    assert make_settings(None, {}).steps == 1000
    with pytest.raises(InputError, match="both steps and epochs"):
        make_settings(None, {"steps": 7, "epochs": 2})
    done = distill(Net(), Net(16, seed=1), samples(), "kd", epochs=2, batch_size=30)
    assert done.results[0].history[-1]["step"] == 4


def test_a_recipe_takes_the_new_settings() -> None:
    made = read(TrainingSettings, {"epochs": 3, "ema": [0.9, 0.999], "precision": "bf16", "keep": "last"}, "r.toml")
    assert made.epochs == 3.0 and made.ema == (0.9, 0.999) and made.steps is None
    with pytest.raises(InputError, match=r"r\.toml: settings\.steps"):
        read(TrainingSettings, {"steps": 0}, "r.toml")
