"""Replayed rows in a batch: how many, which, and in which colours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import InputError
from tutelage.modules.detection import Loc, LocConfig
from tutelage.modules.visual_module import CallLabel, TrainingExamples
from tutelage.modules.vqa import FiLMConfig, Vqa
from tutelage.programs.types import Call
from tutelage.programs.values import Box
from tutelage.sdvp.objective import StepwiseDistillation, TaskReplayData, make_job, reference_outputs
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.replay_sampling import ReplaySampling, random_colours
from tutelage.sdvp.run_key import run_settings
from tutelage.sdvp.task import SdvpTask
from tutelage.sdvp.toy_modules import VOCABULARY

from . import small


@given(st.integers(1, 5), st.integers(1, 50), st.lists(st.integers(0, 2**62), min_size=1, max_size=8))
def test_rows_are_in_range_and_those_of_one_draw_lie_apart(ratio: int, count: int, draws: list[int]) -> None:
    numbers, seeds = ReplaySampling(ratio).rows(torch.tensor(draws), count)
    assert len(numbers) == len(seeds) == ratio * len(draws)
    assert (numbers >= 0).all() and (numbers < count).all() and (seeds >= 0).all()
    assert numbers.view(-1, ratio)[:, 0].tolist() == [draw % count for draw in draws]
    if count >= ratio:
        assert all(len(set(row)) == ratio for row in numbers.view(-1, ratio).tolist())


def test_a_batch_holds_the_ratio_of_replayed_rows_with_their_own_outputs() -> None:
    task = TrainingExamples({"x": torch.arange(4.0)}, {}, torch.ones(4))
    replay = TrainingExamples({"x": torch.arange(100.0, 109.0)}, {}, torch.ones(9))
    data = TaskReplayData(task, replay, {"h": torch.arange(9.0)}, sampling=ReplaySampling(3))
    batch = data.batch(torch.tensor([2, 0]), torch.tensor([4, 18]))
    assert batch.inputs["task"]["x"].tolist() == [2, 0]
    assert batch.labels["replay"]["heads"]["h"].tolist() == [4, 7, 1, 0, 3, 6]
    assert batch.inputs["replay"]["x"].tolist() == [104, 107, 101, 100, 103, 106]
    assert data.fingerprint != TaskReplayData(task, replay, {"h": torch.arange(9.0)}).fingerprint


@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_share_of_rows_is_altered_alike_for_the_same_seeds(as_bytes: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (200, 3, 8, 8), generator=generator, dtype=torch.uint8)
    pixels = pixels if as_bytes else pixels / 255
    seeds = torch.arange(200)
    found = ReplaySampling(1, 0.5).alter_colours(pixels, seeds)
    assert found.dtype == pixels.dtype and found.min() >= 0 and found.max() <= (255 if as_bytes else 1)
    changed = (found != pixels).flatten(1).any(1).float().mean()
    assert 0.4 < changed < 0.6
    assert torch.equal(found, ReplaySampling(1, 0.5).alter_colours(pixels, seeds))
    assert torch.equal(found[50:60], ReplaySampling(1, 0.5).alter_colours(pixels[50:60], seeds[50:60])), "whatever lies beside"
    assert ReplaySampling(1, 0.0).alter_colours(pixels, seeds) is pixels


def test_random_colours_leave_everything_in_its_place() -> None:
    """Pixels of one colour stay of one colour, and most different ones stay different; a share of the images is inverted."""
    images = torch.full((200, 3, 9, 9), 0.4)
    images[:, :, 2, 6] = 0.7
    found = random_colours(images, torch.arange(200))
    assert found.min() >= 0 and found.max() <= 1
    ground = found[:, :, :1, :1]
    away = (found - ground).abs().amax(1)
    assert (away[:, 2, 6] > 0.05).float().mean() > 0.9
    away[:, 2, 6] = 0
    assert away.max() < 1e-6
    darker = (found[:, :, 2, 6] < ground[:, :, 0, 0]).all(1).float().mean()
    assert 0.3 < darker < 0.6
    assert torch.equal(random_colours(images[7:9], torch.tensor([7, 8])), found[7:9]), "whatever lies beside"


def loc_job(sampling: ReplaySampling):  # noqa: ANN201
    module = Loc.build(LocConfig(("circle", "star"), 4), 0)
    calls = [Call("LOC", {"image": small.picture(i, "red", 48), "object": "circle"}) for i in range(6)]
    task, replay = module.training_examples(calls, [CallLabel([Box(4, 4, 20, 20)])] * 6), module.training_examples(calls, None)
    job = make_job(module, task, replay, small.SETTINGS, StepwiseDistillation.Config(), sampling=sampling)
    return job, reference_outputs(module, replay), replay


def test_altered_pixels_keep_the_old_outputs_for_the_unaltered_ones() -> None:
    job, frozen, replay = loc_job(ReplaySampling(2, 1.0))
    batch = job.data.batch(torch.arange(6), torch.arange(6))
    rows = ReplaySampling(2).rows(torch.arange(6), 6)[0]
    assert torch.equal(batch.labels["replay"]["heads"]["heat"], frozen["heat"][rows])
    assert not torch.equal(batch.inputs["replay"]["pixels"], replay.inputs["pixels"][rows])
    assert batch.inputs["task"]["pixels"].dtype == torch.uint8


def test_colours_are_altered_only_where_answers_do_not_depend_on_them() -> None:
    assert Loc.photometric_input == "pixels" and Vqa.photometric_input is None
    module = Vqa.build(FiLMConfig(VOCABULARY, 4), 0)
    calls = [Call("VQA", {"image": small.picture(i, "red", 32), "question": "What color is the object?"}) for i in range(4)]
    task, replay = module.training_examples(calls, [CallLabel("red")] * 4), module.training_examples(calls, None)
    job = make_job(module, task, replay, small.SETTINGS, StepwiseDistillation.Config(), sampling=ReplaySampling(1, 1.0))
    batch = job.data.batch(torch.arange(4), torch.arange(4))
    assert torch.equal(batch.inputs["replay"]["pixels"], replay.inputs["pixels"])


def test_options_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="replay_ratio"):
        SdvpOptions(replay_ratio=0)
    with pytest.raises(InputError, match="augment_replay"):
        SdvpOptions(augment_replay=1.5)


def test_a_task_may_be_trained_longer_than_the_options_say() -> None:
    task = SdvpTask("new", small.questions(3), {}, steps_factor=3.0)
    options = SdvpOptions("visprog")
    assert task.own_options(options).settings == replace(options.settings, steps=3 * options.settings.steps)
    by_epochs = replace(options, settings=replace(options.settings, steps=None, epochs=2.0))
    assert task.own_options(by_epochs).settings.epochs == 6
    assert SdvpTask("as it is", small.questions(3), {}).own_options(options) == options
    other = run_settings(replace(task, steps_factor=1.0), {}, options)
    assert run_settings(task, {}, options) != other, "a folder of another length is refused"
