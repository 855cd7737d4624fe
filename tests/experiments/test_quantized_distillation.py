"""A seed's figure on few images is the mean of several students."""

from __future__ import annotations

import pytest

from tutelage.experiments import quantized_distillation


def test_each_metric_of_each_arm_is_averaged() -> None:
    draws = [
        {"QD": {"accuracy": 80.0, "times": 3.0}, "PM": {"accuracy": 10.0}},
        {"QD": {"accuracy": 90.0, "times": 3.0}, "PM": {"accuracy": 40.0}},
    ]
    assert quantized_distillation.mean_figures(draws) == {"QD": {"accuracy": 85.0, "times": 3.0}, "PM": {"accuracy": 25.0}}


def test_students_of_one_seed_differ_in_images_and_start(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def few_images(train, test, teacher, seed, steps, all_arms):  # type: ignore[no-untyped-def]
        seen.append((seed, train.inputs, train.views, len(test), steps["steps"]))
        return {"QD": {"accuracy": 1.0}}

    monkeypatch.setattr(quantized_distillation, "few_images", few_images)
    monkeypatch.setattr(quantized_distillation, "headline", lambda *given: {})
    monkeypatch.setattr(quantized_distillation, "train_student", lambda *given, **settings: None)
    quantized_distillation.run(3, False, False)
    assert len(seen) == quantized_distillation.DRAWS and len({seed for seed, *_ in seen}) == len(seen)
    rows = {tuple(image.flatten().tolist()) for _, images, *_ in seen for image in images}
    assert len(rows) == 60 * len(seen), "no image is in two draws"
    assert all((len(images), tests, steps) == (60, 700, 600) and views is not None for _, images, views, tests, steps in seen)
