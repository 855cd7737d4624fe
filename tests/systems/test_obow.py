"""OBoW: codes, bags, the vocabulary's queue, the head that moves with its words, the teacher; training; and `tutelage probe`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from tutelage import distill
from tutelage.cli import main
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.small_models import ResNet, SmallCNN
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems.obow import (
    DynamicHead,
    OBoW,
    Vocabulary,
    bag_divergence,
    bag_of_words,
    perplexity,
    teacher_share,
    word_codes,
    word_distances,
)

SMALL = {"levels": "body.1,body.2", "words": 16, "crop_size": 12, "patches": 0, "colour": 0.0, "grey": 0.0, "blur": 0.0}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_job(student: nn.Module | None = None, images: Tensor | None = None, **options: object) -> TrainingJob:
    torch.manual_seed(0)
    data = TensorData(torch.rand(16, 1, 20, 20, generator=torch.Generator().manual_seed(1)) if images is None else images)
    return TrainingJob(student or SmallCNN(4, 4, 8), None, OBoW(**SMALL | options), data, TrainingSettings(steps=4, batch_size=8))


# -- bags ------------------------------------------------------------------------------------------------------------


def test_distances_and_the_softmax_of_two_words() -> None:
    features, words = normal(3, 7, 5), normal(4, 5, seed=1)
    torch.testing.assert_close(word_distances(features, words), torch.cdist(features, words[None]).square(), atol=1e-4, rtol=1e-4)
    found = word_codes(torch.tensor([[1.0, 3.0]]), 0.5, math.log(3) / 4)  # e^-(log 3 / 2 * 2) = 1 / 3
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25]]))


def test_bags_are_distributions_and_hard_averages_are_the_histogram() -> None:
    distances = word_distances(normal(6, 9, 5), normal(8, 5, seed=1))
    for pooling in ("max", "average"):
        bags = bag_of_words(word_codes(distances, 1.0, 2.0), pooling)
        assert bags.min() >= 0
        torch.testing.assert_close(bags.sum(1), torch.ones(6))
    words = distances.argmin(-1)
    histogram = torch.stack([row.bincount(minlength=8) for row in words]) / 9
    torch.testing.assert_close(bag_of_words(word_codes(distances, 1.0, None), "average"), histogram)
    # max: each word that occurs counts once
    occurs = (histogram > 0).float()
    torch.testing.assert_close(bag_of_words(word_codes(distances, 1.0, None)), occurs / occurs.sum(1, keepdim=True))


def test_soft_codes_become_hard_ones() -> None:
    distances = word_distances(normal(20, 5), normal(8, 5, seed=1))
    hard = word_codes(distances, 1.0, None)
    far = [float((word_codes(distances, 1.0, sharpness) - hard).abs().max()) for sharpness in (1.0, 10.0, 1e4)]
    assert far[0] > far[1] > far[2] and far[2] < 1e-4


def test_codes_do_not_know_the_scale_of_features() -> None:
    """All ten times as large: distances and their running mean a hundred times; a fixed temperature makes the codes hard."""
    features, words = normal(20, 5), normal(8, 5, seed=1)
    codes = word_codes(word_distances(features, words), 0.7, 1.0)
    large = word_distances(10 * features, 10 * words)
    torch.testing.assert_close(word_codes(large, 70.0, 1.0), codes, atol=1e-4, rtol=1e-4)
    assert codes.amax(-1).mean() < 0.9 < 0.99 < word_codes(large, 0.7, 1.0).amax(-1).mean()


def test_perplexity_of_even_and_of_single_words() -> None:
    assert float(perplexity(torch.full((256,), 1 / 256))) == pytest.approx(255.3, abs=0.1)
    assert float(perplexity(F.one_hot(torch.tensor(3), 256).float())) == pytest.approx(1, abs=1e-4)


def test_the_divergence_is_cross_entropy_less_entropy() -> None:
    bags, logits = normal(4, 8).softmax(-1), normal(4, 8, seed=1).requires_grad_()
    cross_entropy = -(bags * logits.log_softmax(-1)).sum(-1)
    entropy = -(bags * bags.log()).sum(-1)
    torch.testing.assert_close(bag_divergence(bags, logits) + entropy, cross_entropy)
    (slope,) = torch.autograd.grad(bag_divergence(bags, logits).sum(), logits)
    torch.testing.assert_close(slope, logits.detach().softmax(-1) - bags)
    torch.testing.assert_close(bag_divergence(bags, bags.log()), torch.zeros(4), atol=1e-6, rtol=0)
    one_word = torch.tensor([[1.0, 0.0]])
    assert bag_divergence(one_word, torch.zeros(1, 2)).tolist() == pytest.approx([math.log(2)])


# -- the vocabulary --------------------------------------------------------------------------------------------------


def test_the_queue_holds_the_latest_words_and_its_end_joins_its_beginning() -> None:
    """Maps that are one value everywhere: image b of step n gives the word 100 n + b. K = 10, B = 4: places wrap at step 2."""
    vocabulary = Vocabulary(10, 2)
    assert vocabulary.words.min() >= 0
    for step in range(1, 6):
        values = 100.0 * step + torch.arange(4)
        vocabulary.bags(values[:, None, None, None].expand(4, 2, 5, 5))
        held = set(vocabulary.words[:, 0].tolist())
        written = [100.0 * n + b for n in range(1, step + 1) for b in range(4)]
        assert set(written[-10:]) <= held and not set(written[:-10]) & held
    assert vocabulary.words[:, 0].tolist() == [302, 303, 400, 401, 402, 403, 500, 501, 502, 503]


def test_scale_first_then_codes_of_the_old_words_then_the_queue() -> None:
    vocabulary = Vocabulary(4, 2, inv_delta=2.0)
    before = vocabulary.words.clone()
    maps = normal(3, 2, 6, 7)
    bags = vocabulary.bags(maps)
    inner = maps[:, :, 1:-1, 1:-1].flatten(2).transpose(1, 2)
    distances = word_distances(inner, before)
    scale = 0.99 * 0.5 + 0.01 * distances.amin(-1).mean()
    torch.testing.assert_close(vocabulary.scale, scale)
    torch.testing.assert_close(bags, bag_of_words(word_codes(distances, scale, 2.0)))
    assert not torch.equal(vocabulary.words[:3], before[:3]) and torch.equal(vocabulary.words[3:], before[3:])


@pytest.mark.parametrize("source", ["local", "point", "global"])
def test_new_words_come_from_the_map_without_its_border(source: str) -> None:
    maps = torch.full((2, 1, 5, 5), 9.0)
    maps[:, :, 1:-1, 1:-1] = torch.arange(9.0).view(3, 3)
    vocabulary = Vocabulary(4, 1, source=source)
    words = vocabulary.new_words(maps[:, :, 1:-1, 1:-1])[:, 0].tolist()
    assert all(word in range(9) for word in words) if source == "point" else words == [4.0, 4.0]


def test_small_maps_are_refused() -> None:
    with pytest.raises(InputError, match="5 x 5"):
        Vocabulary(4, 2).bags(normal(1, 2, 4, 6))


# -- the head --------------------------------------------------------------------------------------------------------


def test_weights_have_unit_length_and_logits_follow_the_words() -> None:
    torch.manual_seed(0)
    head, words, features = DynamicHead(6, 5, 3.0), normal(12, 6).abs(), normal(4, 5, seed=1)
    torch.testing.assert_close(head.weights(words).norm(dim=1), torch.ones(12))
    order = torch.randperm(12)
    logits, moved = head(features, words), head(features, words[order])
    torch.testing.assert_close(moved, logits[:, order])
    bags = normal(4, 12, seed=2).softmax(-1)
    torch.testing.assert_close(bag_divergence(bags[:, order], moved), bag_divergence(bags, logits))
    torch.testing.assert_close(head(2 * features, words), 2 * logits)
    wanted = 3 * features @ head.weights(words).T
    torch.testing.assert_close(logits, wanted)


# -- the method ------------------------------------------------------------------------------------------------------


def test_the_share_of_the_teacher_is_half_a_cosine() -> None:
    assert teacher_share(0, 10) == pytest.approx(0.99) and teacher_share(10, 10) == 1.0
    assert teacher_share(5, 10) == pytest.approx(0.995)


def test_the_teacher_follows_with_statistics_of_its_own() -> None:
    job = some_job()
    trainer = Trainer(job)
    method = job.method
    start = {name: value.clone() for name, value in method.teacher_network.named_parameters()}
    assert all(torch.equal(value, start[name]) for name, value in job.student.named_parameters())
    trainer.advance()
    share = teacher_share(1, 4)
    for name, value in job.student.named_parameters():
        wanted = share * start[name] + (1 - share) * value
        torch.testing.assert_close(dict(method.teacher_network.named_parameters())[name], wanted)
    own, other = method.teacher_network.body[0][1].running_mean, job.student.body[0][1].running_mean
    assert own.any() and not torch.equal(own, other)
    assert all(parameter.grad is None for parameter in method.teacher_network.parameters())


def test_a_teacher_that_keeps_all_of_itself_stays() -> None:
    job = some_job(teacher_decay=1.0)
    trainer = Trainer(job)
    start = [value.clone() for value in job.method.teacher_network.parameters()]
    trainer.run()
    assert all(torch.equal(one, other) for one, other in zip(job.method.teacher_network.parameters(), start, strict=True))


def test_targets_and_predictions_of_one_batch() -> None:
    """Two levels, two crops: logits image by image, over the words that the bags are of."""
    job = some_job()
    Trainer(job)
    method = job.method
    torch.manual_seed(1)
    batch = method.transform(job.data.batch(torch.arange(8), torch.zeros(8, dtype=torch.int64)))
    assert batch.inputs["clean"].shape == (8, 1, 20, 20) and batch.inputs["crops"].shape == (8, 2, 1, 12, 12)
    words = [vocabulary.words.clone() for vocabulary in method.vocabularies]
    job.student.eval()
    student, teacher = method(batch, job.student, None)
    assert set(student) == {"crops.0", "crops.1"} and student["crops.0"].shape == (16, 16)
    assert all(teacher[f"bags.{i}"].shape == (8, 16) and not teacher[f"bags.{i}"].requires_grad for i in (0, 1))
    alone = job.student.body(batch.inputs["crops"][3, 1][None]).mean((2, 3))
    row = method.heads[1](job.student.body(batch.inputs["crops"].flatten(0, 1)).mean((2, 3)), words[1])
    torch.testing.assert_close(row, student["crops.1"])
    torch.testing.assert_close(job.student.body(batch.inputs["crops"].flatten(0, 1)).mean((2, 3))[7], alone[0])  # 2 x 3 + 1
    terms = method.loss_terms(batch, student, teacher)
    parts = [bag_divergence(teacher[f"bags.{i}"].repeat_interleave(2, 0), student[f"crops.{i}"]).mean() for i in (0, 1)]
    torch.testing.assert_close(terms["crops"], (parts[0] + parts[1]) / 2)
    bags = [teacher[f"bags.{i}"] for i in (0, 1)]
    spread = [(bag * (bag / bag.mean(0)).clamp_min(1e-30).log()).sum(-1).mean() for bag in bags]
    torch.testing.assert_close(terms["information"], (spread[0] + spread[1]) / 2)


def test_views_of_the_data_stay_and_plain_ones_differ_from_step_to_step() -> None:
    method = OBoW(**SMALL | {"patches": 2, "patch_size": 8})
    images = Batch(torch.rand(4, 1, 20, 20), ids=torch.arange(4), seeds=torch.zeros(4, dtype=torch.int64))
    torch.manual_seed(0)
    first, second = method.transform(images).inputs, method.transform(images).inputs
    assert first["patches"].shape == (4, 2, 1, 8, 8)
    assert not torch.equal(first["crops"], second["crops"])
    torch.manual_seed(0)
    assert torch.equal(method.transform(images).inputs["crops"], first["crops"])
    own = Batch({"clean": images.inputs, "halves": images.inputs[:, None, :, :10]})
    assert method.transform(own) is own
    with pytest.raises(InputError, match="inputs are clean"):
        method.transform(Batch({"clean": images.inputs}))


@pytest.mark.parametrize(
    "options",
    [{"head": "linear"}, {"inv_delta": None, "pooling": "average"}, {"source": "global"}, {"patches": 2, "patch_size": 12}],
)
def test_every_option_trains(options: dict[str, object]) -> None:
    job = some_job(**options)
    history = train(job).history
    assert all(np.isfinite(value) for record in history for value in record["terms"].values())


@pytest.mark.parametrize(
    "options",
    [{"levels": ""}, {"words": 1}, {"inv_delta": 0.0}, {"teacher_decay": 2.0}, {"head": "x"}, {"pooling": "x"}, {"source": "x"},
     {"crops": 0, "patches": 0}, {"crop_area": (0.5, 2.0)}, {"vocabulary": 3}],
)  # fmt: skip
def test_options_that_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError) as refused:
        OBoW(**options)
    assert refused.value.remedy


def test_networks_and_data_that_are_refused() -> None:
    with pytest.raises(InputError, match="17 words of 16 images"):
        train(some_job(words=17))
    with pytest.raises(InputError, match="no layer 'layer9'"):
        train(some_job(levels="layer9"))
    with pytest.raises(InputError, match="5 x 5"):
        train(some_job(images=torch.rand(16, 1, 12, 12)))
    with pytest.raises(InputError, match="no map"):
        train(some_job(levels="head"))


def test_presets_are_the_published_options() -> None:
    full, small = OBoW.preset("resnet50").config, OBoW.preset("resnet18", words=4096).config
    assert (full.words, full.inv_delta, full.kappa, full.crops, full.patches) == (8192, 15.0, 8.0, 2, 5)
    assert (small.words, small.inv_delta, small.kappa) == (4096, 10.0, 5.0)
    assert OBoW.preset("resnet50 vanilla").config.patches == 0
    with pytest.raises(InputError, match="no preset"):
        OBoW.preset("resnet")


def test_the_lines_of_the_page() -> None:
    torch.manual_seed(0)
    options = {"levels": ("layer2", "layer3"), "words": 8, "crop_size": 20, "patches": 0}
    result = distill(
        ResNet(8, inputs=3), None, TensorData(torch.rand(8, 3, 32, 32)), "obow", options=options, steps=2, batch_size=4
    )
    assert result.student(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_a_recipe_and_its_probe(tmp_path: Path) -> None:
    recipe = f"""
method = "obow"
out = "{tmp_path}/run"
[student]
model = "resnet"
options = {{ depth = 8, inputs = 1 }}
[data]
name = "digits"
labels = false
limit = 64
[options]
levels = "layer1"
words = 32
kappa = 5.0
crop_size = 6
patches = 0
[settings]
steps = 2
batch_size = 8
"""
    (tmp_path / "recipe.toml").write_text(recipe)
    ran = CliRunner().invoke(main.app, ["distill", str(tmp_path / "recipe.toml")])
    assert ran.exit_code == 0, ran.output
    out = tmp_path / "probe.json"
    ran = CliRunner().invoke(main.app, ["probe", f"{tmp_path}/run", "--layer", "layer3", "--per-class", "2", "--json", str(out)])
    assert ran.exit_code == 0, ran.output
    found = json.loads(out.read_text())
    assert set(found["probes"]) == {"kNN", "linear", "2 labels a class"}
    assert all(10 < figure["mean"] <= 100 and len(figure["seeds"]) == 1 for figure in found["probes"].values())
