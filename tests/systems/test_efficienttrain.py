"""The crop is an exact low-pass; the schedule gives the sizes; the curriculum goes round any method and resumes exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tutelage
from tutelage.distillation.api import make_method, with_curriculum
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Phase, Turn
from tutelage.distillation.supervised import Supervised
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems._toy import SmallCNN, build_with_seed, toy_images
from tutelage.systems.efficienttrain import EfficientTrain, freq_crop, greedy_search, lanczos_resize, relative_cost, stage_at
from tutelage.systems.efficienttrain.crop import resize_table
from tutelage.systems.kd import KD

SIZES = (4, 6, 8)


def cosine(side: int, u: int, v: int, phase: float = 0.3) -> Tensor:
    axis = torch.arange(side, dtype=torch.float64) / side
    return torch.cos(2 * math.pi * (u * axis[:, None] + v * axis) + phase)[None, None]


@settings(deadline=None, max_examples=50)
@given(half=st.integers(2, 7), u=st.integers(-15, 15), v=st.integers(-15, 15))
def test_low_cosines_stay_and_high_ones_vanish(half: int, u: int, v: int) -> None:
    found = freq_crop(cosine(32, u, v), 2 * half)
    if max(abs(u), abs(v)) < half:
        assert (found - cosine(2 * half, u, v)).abs().max() < 1e-12
    elif max(abs(u), abs(v)) > half:
        assert found.abs().max() < 1e-12


def test_mean_identity_linearity_and_composition() -> None:
    made = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2, 3, 16, 16, generator=made, dtype=torch.float64)
    assert freq_crop(x, 16) is x
    assert torch.allclose(freq_crop(x, 6).mean((2, 3)), x.mean((2, 3)), atol=1e-14)
    assert torch.allclose(freq_crop(2 * x - y, 6), 2 * freq_crop(x, 6) - freq_crop(y, 6), atol=1e-14)
    smooth = sum(cosine(16, u, v) for u, v in ((1, 2), (3, -1), (5, 0), (0, 7)))
    assert torch.allclose(freq_crop(freq_crop(smooth, 12), 8), freq_crop(smooth, 8), atol=1e-14)


def test_a_dividing_size_is_a_low_pass_and_every_second_pixel() -> None:
    image = cosine(16, 1, 3) + cosine(16, 7, 2) + cosine(16, -2, 0)
    assert torch.allclose(freq_crop(image, 8), (cosine(16, 1, 3) + cosine(16, -2, 0))[..., ::2, ::2], atol=1e-14)


def test_gradients_pass_through_the_crop() -> None:
    image = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: freq_crop(x, 4), image)


def test_lanczos_keeps_constants_and_the_size() -> None:
    assert torch.allclose(lanczos_resize(torch.full((1, 2, 14, 14), 3.0), 6), torch.full((1, 2, 6, 6), 3.0))


@pytest.mark.parametrize("size", [0, 5, 10])
def test_a_size_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="crop"):
        freq_crop(torch.zeros(1, 1, 8, 8), size)


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(InputError, match="not square"):
        freq_crop(torch.zeros(1, 1, 8, 6), 4)


def test_the_published_schedule_and_its_cost() -> None:
    published = EfficientTrain.preset("efficienttrain")
    stages = [stage_at(step / 300, published.shares) for step in range(300)]
    assert [stages.count(stage) for stage in range(5)] == [60] * 5 and stages == sorted(stages)
    assert relative_cost(published.config.sizes) == pytest.approx(0.653, abs=5e-4)
    extended = EfficientTrain.preset("efficienttrain++")
    costs = [share * size**2 for share, size in zip(extended.shares, extended.config.sizes)]
    assert max(costs) == pytest.approx(min(costs)), "stages of equal compute"


def test_the_search_lowers_early_stages_as_far_as_accuracy_is_kept() -> None:
    needs = (4, 4, 6, 8)

    def evaluate(sizes: tuple[int, ...]) -> float:
        return 90.0 - sum(max(0, need - size) for need, size in zip(needs, sizes))

    assert greedy_search(evaluate, 8, (2, 4, 6), stages=4) == needs
    with pytest.raises(InputError, match="nan"):
        greedy_search(lambda sizes: float("nan"), 8, (4,))


@pytest.mark.parametrize(
    "options",
    [
        {"sizes": ()}, {"sizes": (8, 4)}, {"sizes": (5, 8)}, {"sizes": SIZES, "shares": (1, 2)}, {"sizes": 8},
        {"sizes": SIZES, "shares": (1, 0, 1)}, {"sizes": SIZES, "crop": "nearest"}, {"sizes": SIZES, "magnitudes": (1,)},
        {"sizes": SIZES, "magnitudes": (1, 2, 11)}, {"sizes": SIZES, "positions": "positions", "patch": 4}, {"inner": "kd"},
    ],
)  # fmt: skip
def test_bad_options_are_refused_with_a_remedy(options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        EfficientTrain(**options)
    assert refused.value.remedy


class Watched(Supervised):
    """Notes the sizes it is shown; has a parameter and a turn of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, int]] = []

    def forward(self, batch: Any, student: nn.Module, teacher: Any) -> Any:
        self.seen.append((batch.inputs.shape[0], batch.inputs.shape[-1]))
        outputs, none = super().forward(batch, student, teacher)
        return {name: value * self.scale for name, value in outputs.items()}, none

    def turns(self) -> Sequence[Turn]:
        return [
            Turn("own", lambda name: name == "method.scale"),
            Turn("student", lambda name: name.startswith("student.")),
        ]


def job(method: Any, student: nn.Module | None = None, data: TensorData | None = None, **changes: Any) -> TrainingJob:
    student = student or build_with_seed(lambda: SmallCNN(4, 4, 8), 0, "student")
    plain = TrainingSettings(steps=6, batch_size=8, log_every=1)
    return TrainingJob(student, None, method, data or toy_images(0), replace(plain, **changes))


def test_each_stage_shows_its_size_in_equal_batches_to_both_turns() -> None:
    method = EfficientTrain(inner=Watched(), sizes=SIZES)
    trainer = Trainer(job(method), check=False)
    method.inner.seen.clear()
    trainer.run()
    assert method.inner.seen == [(8, size) for size in (4, 4, 4, 4, 6, 6, 6, 6, 8, 8, 8, 8)]
    assert method.inner.scale != 1, "the inner method's own turn found its parameter"


def test_phases_of_the_inner_method_keep_their_names_of_parameters() -> None:
    class Phased(Watched):
        def phases(self) -> Sequence[Phase]:
            return [Phase("first", trains=lambda name: name == "method.scale"), Phase("second")]

    first = EfficientTrain(inner=Phased(), sizes=SIZES).phases()[0]
    assert first.trains is not None and first.trains("method.inner.scale") and not first.trains("student.head.weight")
    with pytest.raises(InputError, match="phases of its own"):
        EfficientTrain(inner=Phased(), sizes=SIZES, positions="positions", patch=2)


def test_at_one_full_size_it_is_the_inner_method_bit_for_bit() -> None:
    plain, wrapped = train(job(Supervised())), train(job(EfficientTrain(sizes=(8,))))
    for name, value in plain.student.state_dict().items():
        assert torch.equal(value, wrapped.student.state_dict()[name])


class FixedTable(nn.Module):
    """Patches of 2 with a learned table that serves one size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(1, 8, 2, 2), nn.Linear(8, 4)
        self.positions = nn.Parameter(0.1 * torch.randn(16, 8))

    def forward(self, images: Tensor) -> Tensor:
        return self.head((self.patches(images).flatten(2).transpose(1, 2) + self.positions).relu().mean(1))


def vit() -> nn.Module:
    return build_with_seed(FixedTable, 0, "vit")


def test_a_position_table_is_resized_with_its_moments_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, Any] = {"sizes": SIZES, "positions": "positions", "patch": 2, "prefix": 0}
    sizes = []

    class Stop(Exception):
        pass

    def stop(done: int, steps: int) -> None:
        if done == 3:  # in the middle of the second stage
            raise Stop

    trainer = Trainer(job(EfficientTrain(**options), vit(), ema=0.5))
    for _ in range(6):
        trainer.advance()
        table = trainer.student.positions
        state = trainer.optimizer.state[table]
        assert state["exp_avg"].shape == table.shape and state["exp_avg_sq"].isfinite().all()
        assert trainer.average.network.positions.shape == table.shape
        sizes.append(len(table))
    assert sizes == [4, 4, 9, 9, 16, 16]
    whole = train(job(EfficientTrain(**options), vit(), checkpoint_every=1))
    with pytest.raises(Stop):
        train(job(EfficientTrain(**options), vit(), checkpoint_every=1), tmp_path, progress=stop)
    resumed = train(job(EfficientTrain(**options), vit(), checkpoint_every=1), tmp_path)
    assert [record["lr"] for record in resumed.history] == [record["lr"] for record in whole.history]
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[name])


def test_a_table_keeps_its_prefix_and_at_equal_size_all_of_it() -> None:
    table = torch.randn(1, 17, 8)
    assert resize_table(table, 4, prefix=1) is table
    found = resize_table(table, 2, prefix=1)
    assert found.shape == (1, 5, 8) and torch.equal(found[:, 0], table[:, 0])
    with pytest.raises(InputError, match="no square grid"):
        resize_table(table, 2)


def test_wrong_images_labels_and_tables_are_refused() -> None:
    with pytest.raises(InputError, match="the images have 8"):
        train(job(EfficientTrain(sizes=(4, 10))))
    with pytest.raises(InputError, match="no parameter 'table'"):
        train(job(EfficientTrain(sizes=SIZES, positions="table", patch=2)))
    with pytest.raises(InputError, match="no entry 'image'"):
        train(job(EfficientTrain(sizes=SIZES, field="image")))


def test_magnitudes_change_the_images_of_their_stage_alone() -> None:
    plain = EfficientTrain(sizes=(8, 8))
    bright = EfficientTrain(sizes=(8, 8), magnitudes=(0, 9))
    data = TensorData(torch.rand(8, 1, 8, 8), torch.arange(8) % 4)
    batch = data.batch(torch.arange(8), torch.arange(8))
    same = []
    for step in (0, 1):
        plain.progress = bright.progress = replace(plain.progress, step=step, steps=2)
        same.append(torch.equal(plain.transform(batch).inputs, bright.transform(batch).inputs))
    assert same == [True, False]


def test_the_keyword_puts_it_round_a_method_by_name(tmp_path: Path) -> None:
    method = with_curriculum(make_method("kd", {"tau": 2.0}), "efficienttrain", {"sizes": [4, 6, 8]})
    assert isinstance(method, EfficientTrain) and isinstance(method.inner, KD) and method.inner.config.tau == 2.0
    assert method.config.sizes == SIZES
    for name, options in (("kd", {}), ("efficient", {}), (None, {"sizes": SIZES})):
        with pytest.raises(InputError):
            with_curriculum(KD(), name, options)
    student, teacher = SmallCNN(4, 4, 8), SmallCNN(4, 8, 16)
    chosen: dict[str, Any] = {"curriculum": "efficienttrain", "curriculum_options": {"sizes": SIZES}}
    done = tutelage.distill(student, teacher, toy_images(0), "kd", steps=3, batch_size=8, progress=False, **chosen)
    assert done.student(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    with pytest.raises(InputError, match="of its own making"):
        tutelage.distill(student, teacher, toy_images(0), "kd", steps=3, cache=tmp_path, progress=False, **chosen)
