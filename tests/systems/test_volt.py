from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.systems._backbone import count_parameters, create, create_on_meta, published
from tutelage.systems._toy import build_with_seed
from tutelage.systems.volt import (
    CLASSES,
    ConvUNet,
    Points,
    SceneAugmentation,
    SceneDataset,
    Volt,
    VoltNetwork,
    Voxels,
    lovasz_softmax,
    room,
)
from tutelage.systems.volt.augment import IGNORED, joined, rotation
from tutelage.systems.volt.network import RotaryEmbedding, patches

OFF = SceneAugmentation(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def network(patch: int = 4, **options: int) -> VoltNetwork:
    sizes = {"width": 24, "heads": 2, "depth": 2, "outputs": 8} | options
    made = build_with_seed(lambda: VoltNetwork(5, 3, patch=patch, **sizes), 0)  # type: ignore[arg-type]
    for module in made.modules():  # away from the start: norms and biases count, weights are not tiny
        for parameter in module.parameters(recurse=False):
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return made.eval()


def voxels(seed: int, count: int = 60, side: int = 11, scenes: int = 1) -> Voxels:
    rng = torch.Generator().manual_seed(seed)
    parts = []
    for number in range(scenes):
        places = torch.randperm(side**3, generator=rng)[: count + 7 * number]
        coords = torch.stack([places // side**2, places // side % side, places % side], 1)
        parts.append((coords, torch.randn(len(coords), 3, generator=rng), torch.full((len(coords),), number)))
    return Voxels(*(torch.cat(each) for each in zip(*parts, strict=True)))


# -- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "features", "count"), [("s", 6, 23_683_584), ("b", 6, 94_025_728), ("s", 4, 23_587_584)])
def test_published_sizes(variant: str, features: int, count: int) -> None:
    made = create_on_meta(f"volt:{variant}", 20, features)
    assert count_parameters(made) - count_parameters(made.head) == count
    assert count_parameters(create_on_meta(f"volt:{variant}")) == published("volt")[variant].parameters
    parts = {"s": (288_384, 1_774_720, 2_098_560), "b": (576_768, 7_088_128, 8_391_424)}[variant]
    assert count_parameters(made.decoder) == parts[2] and {count_parameters(block) for block in made.blocks} == {parts[1]}
    if features == 6:
        assert count_parameters(made.embed) == parts[0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_rows_follow_their_voxels(seed: int, patch: int) -> None:
    made, scene = network(patch), voxels(seed, scenes=2)
    order = torch.randperm(len(scene.coords), generator=torch.Generator().manual_seed(seed))
    shuffled = Voxels(*(field[order] for field in scene))
    torch.testing.assert_close(made(shuffled), made(scene)[order], atol=1e-5, rtol=1e-5)


def test_scenes_of_a_batch_do_not_meet() -> None:
    made, both = network(), voxels(0, scenes=3)
    said = made(both)
    for number in range(3):
        rows = both.batch == number
        alone = Voxels(both.coords[rows], both.features[rows], torch.zeros_like(both.batch[rows]))
        torch.testing.assert_close(said[rows], made(alone), atol=1e-5, rtol=1e-5)


def test_whole_patches_of_shift_change_nothing_and_one_voxel_does() -> None:
    made, scene = network(4), voxels(1)
    said = made(scene)
    moved = made(scene._replace(coords=scene.coords + torch.tensor([8, 4, 12])))
    torch.testing.assert_close(moved, said, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(made(scene._replace(coords=scene.coords + torch.tensor([1, 0, 0]))), said, atol=1e-2)


def test_rotary_depends_on_differences_and_keeps_norms() -> None:
    rotary = RotaryEmbedding(64)
    assert rotary.split == [12, 12, 8] and RotaryEmbedding(32).split == [6, 6, 4]
    frequencies = rotary.frequencies.split([12, 12, 8])
    torch.testing.assert_close(frequencies[0], torch.tensor([100 ** (-j / 11) for j in range(12)]))
    torch.testing.assert_close(frequencies[2], torch.tensor([100 ** (-j / 7) for j in range(8)]))
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 64), torch.randn(1, 1, 64)

    def score(a: list[int], b: list[int]) -> Tensor:
        return (
            RotaryEmbedding.rotate(q, rotary.turns(torch.tensor([a]))) * RotaryEmbedding.rotate(k, rotary.turns(torch.tensor([b])))
        ).sum()

    torch.testing.assert_close(score([3, 1, 2], [5, 0, 2]), score([13, 8, 12], [15, 7, 12]), atol=1e-4, rtol=1e-4)
    assert not torch.isclose(score([3, 1, 2], [5, 0, 2]), score([3, 1, 2], [5, 0, 3]), atol=1e-3)
    torch.testing.assert_close(RotaryEmbedding.rotate(q, rotary.turns(torch.tensor([[9, 4, 7]]))).norm(), q.norm())
    turned = RotaryEmbedding.rotate(torch.eye(64)[:1].view(1, 1, 64), rotary.turns(torch.tensor([[2, 0, 0]])))[0, 0]
    torch.testing.assert_close(turned[:2], torch.tensor([np.cos(2.0), np.sin(2.0)], dtype=torch.float32))


@torch.no_grad()
def test_the_tokenizer_is_a_strided_convolution() -> None:
    made, scene = network(4), voxels(2, side=12)
    made.blocks = torch.nn.ModuleList()
    lie = patches(scene, 4)
    grid = torch.zeros(1, 3, 12, 12, 12)
    grid[0, :, scene.coords[:, 0], scene.coords[:, 1], scene.coords[:, 2]] = scene.features.T
    weight = made.embed.weight.view(24, 4, 4, 4, 3).movedim(-1, 1)
    dense = F.conv3d(grid, weight, made.embed.bias, stride=4)[0]
    tokens = made.tokens(scene, lie)
    torch.testing.assert_close(tokens, dense[:, lie.places[:, 0], lie.places[:, 1], lie.places[:, 2]].T, atol=1e-5, rtol=1e-5)
    assert len(tokens) == len((scene.coords // 4).unique(dim=0))


@torch.no_grad()
def test_the_detokenizer_is_a_transposed_convolution() -> None:
    made, scene = network(4), voxels(3, side=12)
    lie = patches(scene, 4)
    tokens = torch.randn(len(lie.places), 8)
    grid = torch.zeros(1, 8, 3, 3, 3)
    grid[0, :, lie.places[:, 0], lie.places[:, 1], lie.places[:, 2]] = tokens.T
    weight = made.decoder.detokenize.weight.view(4, 4, 4, 8, 8).permute(4, 3, 0, 1, 2)  # slots, out, in -> in, out, slots
    dense = F.conv_transpose3d(grid, weight, made.decoder.bias, stride=4)[0]
    ours = made.decoder.spread(tokens, lie)
    torch.testing.assert_close(ours, dense[:, scene.coords[:, 0], scene.coords[:, 1], scene.coords[:, 2]].T, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("make", [network, lambda: ConvUNet(5, 3, (4, 8)).eval()])
def test_a_grid_is_its_voxels(make: object) -> None:
    made, scene = make(), voxels(4, side=12, scenes=2)  # type: ignore[operator]
    x, y, z = scene.coords.T
    grid = torch.zeros(2, 3, 12, 12, 12)
    grid[scene.batch, :, x, y, z] = scene.features
    said = made(grid)
    assert said.shape == (2, 5, 12, 12, 12)
    torch.testing.assert_close(said[scene.batch, :, x, y, z], made(scene), atol=1e-5, rtol=1e-5)
    assert bool((said.movedim(1, -1)[~(grid != 0).any(1)] == 0).all())


def test_stages_of_a_grid() -> None:
    made = create("volt", 5, 3, width=24, heads=2, depth=1, outputs=8, patch=4).eval()
    grid = torch.randn(1, 3, 9, 8, 4) * (torch.rand(1, 1, 9, 8, 4) < 0.2)
    features = made.forward_features(grid)
    assert [(f.name, f.stride, tuple(f.maps.shape)) for f in features] == [
        ("voxels", 1, (1, 8, 9, 8, 4)),
        ("tokens", 4, (1, 24, 3, 2, 1)),
    ]


def test_scenes_that_do_not_fit_are_refused() -> None:
    made, scene = network(), voxels(0)
    with pytest.raises(InputError, match="two voxels in one place"):
        made(Voxels(*(torch.cat([field, field[:1]]) for field in scene)))
    with pytest.raises(InputError, match="from 0"):
        made(scene._replace(coords=scene.coords - 1))
    with pytest.raises(InputError, match="from 0"):
        made(scene._replace(coords=scene.coords.float()))
    with pytest.raises(InputError, match=r"features: .*\n.*60, 3"):
        made(scene._replace(features=torch.zeros(60, 4)))
    with pytest.raises(InputError, match="tokens a side"):
        made(scene._replace(coords=scene.coords + torch.tensor([0, 0, 4 * 512])))
    with pytest.raises(InputError, match="no occupied voxel"):
        made(torch.zeros(1, 3, 4, 4, 4))
    with pytest.raises(InputError, match="grid of shape"):
        made(torch.zeros(1, 2, 4, 4, 4))
    with pytest.raises(InputError, match="'batch'"):
        made({"coords": scene.coords, "features": scene.features})
    with pytest.raises(InputError, match="heads"):
        network(width=22, heads=3)


# -- the loss --------------------------------------------------------------------------------------------------------


def test_lovasz_by_hand() -> None:
    """At a certain answer the Lovász extension is the Jaccard loss itself."""
    labels = torch.tensor([0, 0, 0, 1, 1])
    said = torch.tensor([0, 0, 1, 1, 0])
    expected = ((1 - 2 / 4) + (1 - 1 / 3)) / 2  # intersection over union of class 0: 2 of 4, of class 1: 1 of 3
    assert lovasz_softmax(F.one_hot(said, 3).float(), labels).item() == pytest.approx(expected)
    assert lovasz_softmax(F.one_hot(labels, 3).float(), labels).item() == pytest.approx(0)
    one = torch.tensor([[0.7, 0.3]])
    assert lovasz_softmax(one, torch.tensor([1])).item() == pytest.approx(0.7)
    assert lovasz_softmax(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).item() == 0


def test_terms_by_hand() -> None:
    made = Volt.tiny_job(0)
    trainer = Trainer(made)
    batch = trainer.batch(0)
    batch.labels = batch.labels.clone()
    batch.labels[::3] = IGNORED
    ours, theirs = trainer.method(batch, trainer.student, trainer.teacher)
    terms = trainer.method.loss_terms(batch, ours, theirs)
    known = batch.labels >= 0

    def criterion(z: Tensor, y: Tensor) -> float:
        return (F.cross_entropy(z, y, label_smoothing=0.1) + lovasz_softmax(z.softmax(-1), y)).item()

    assert terms["label"].item() == pytest.approx(criterion(ours["logits"][known], batch.labels[known]), rel=1e-5)
    labels = made.teacher(batch)["logits"].argmax(-1)
    assert terms["teacher"].item() == pytest.approx(criterion(ours["distilled"], labels), rel=1e-5), "ignored points too"
    assert trainer.method.loss_weights() == {"label": 0.5, "teacher": 0.5}
    batch.labels[:] = IGNORED
    assert trainer.method.loss_terms(batch, ours, theirs)["label"].item() == 0


def test_without_a_teacher_the_labels_alone_teach() -> None:
    made = replace(Volt.tiny_job(0), teacher=None)
    result = train(made)
    assert set(result.history[-1]["terms"]) == {"label"} and not result.parameters_without_gradient
    taught = train(Volt.tiny_job(0))
    assert not taught.parameters_without_gradient and set(dict(taught.student.named_children())) == set(
        dict(result.student.named_children())
    )


def test_bad_lessons_are_refused() -> None:
    with pytest.raises(InputError, match="distill"):
        Volt(distill=1.0)
    with pytest.raises(InputError, match="no VoltNetwork"):
        train(replace(Volt.tiny_job(0), student=ConvUNet(len(CLASSES), 6, (4, 8))))
    with pytest.raises(InputError, match="empty scenes"):
        SceneDataset([])


# -- scenes and their views ------------------------------------------------------------------------------------------


def test_rooms_hold_what_they_say() -> None:
    made = [room(i) for i in range(12)]
    assert set(np.concatenate([scene.labels for scene in made])) == set(range(len(CLASSES)))
    for scene in made:
        assert len(np.unique(scene.points, axis=0)) == len(scene.points) and scene.points.min() == 0
        np.testing.assert_allclose(np.linalg.norm(scene.normals, axis=1), 1, atol=1e-5)
        assert ((scene.objects < 0) == (scene.labels < 2)).all()
        assert 0 <= scene.colours.min() and scene.colours.max() <= 1
    again = room(3)
    assert all(np.array_equal(a, b) for a, b in zip(vars(again).values(), vars(made[3]).values(), strict=True))


def some(seed: int = 0) -> Points:
    return room(seed, 12, 3)


def never(rng: np.random.Generator) -> Points:
    raise AssertionError("no scene to mix was asked for")


def test_no_change_is_no_change() -> None:
    scene = some()
    view = OFF(scene, 5, never)
    for name, value in vars(view).items():
        assert np.allclose(value, getattr(scene, name)), name


@pytest.mark.parametrize(
    "name", ["turn", "flip", "colour", "crop", "dropout", "jitter", "elastic", "tilt", "scale", "objects", "mix"]
)
def test_each_change_changes_a_scene_and_replays(name: str) -> None:
    scene, other = some(0), some(1)
    views = replace(OFF, **{name: {"tilt": 0.3, "scale": 0.3, "colour": 0.3, "flip": 0.5, "objects": 0.5}.get(name, 1.0)})
    view, again = (views(scene, 9, lambda rng: other) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(vars(view).values(), vars(again).values(), strict=True))
    assert any(a.shape != b.shape or not np.allclose(a, b) for a, b in zip(vars(view).values(), vars(scene).values(), strict=True))
    another = [views(scene, seed, lambda rng: other) for seed in range(8)]
    if name != "mix":
        assert len({view.points.tobytes() + view.colours.tobytes() for view in another}) > 1
    for made in another:
        assert len(np.unique(made.points, axis=0)) == len(made.points) and made.points.min() == 0


def test_a_turn_keeps_shapes_and_turns_normals() -> None:
    scene = some()
    turned = scene.turned(rotation(2, 0.7), scene.points.mean(0))
    pairs = (scene.points[:50], turned.points[:50])
    away = [np.linalg.norm(points[:, None] - points[None], axis=-1) for points in pairs]
    np.testing.assert_allclose(away[0], away[1], atol=1e-4)
    np.testing.assert_allclose(turned.normals, scene.normals @ rotation(2, 0.7).T, atol=1e-5)
    np.testing.assert_allclose(turned.points[:, 2], scene.points[:, 2], atol=1e-4)


def test_a_crop_keeps_three_fifths_around_a_point() -> None:
    scene = some()
    view = replace(OFF, crop=1.0)(scene, 3, never)
    assert len(view.points) == int(np.ceil(0.6 * len(scene.points)))
    assert len(replace(OFF, dropout=1.0)(scene, 3, never).points) == int(np.ceil(0.8 * len(scene.points)))


def test_joined_scenes_keep_both_and_tell_objects_apart() -> None:
    one, other = some(0), some(1)
    both = joined(one, other)
    assert len(both.points) == len(one.points) + len(other.points)
    np.testing.assert_allclose(both.points[len(one.points) :].mean(0), one.points.mean(0), atol=1e-3)
    objects = [set(part) - {-1} for part in np.split(both.objects, [len(one.points)])]
    assert objects[0] and objects[1] and not objects[0] & objects[1]


def test_batches_hold_scenes_end_to_end() -> None:
    scenes = [some(i) for i in range(3)]
    data = SceneDataset(scenes, SceneAugmentation())
    plain = data.batch(torch.tensor([2, 0]), None)
    assert plain.inputs["batch"].unique_consecutive().tolist() == [0, 1]
    assert torch.equal(plain.inputs["coords"][: len(scenes[2].points)], torch.from_numpy(scenes[2].points).long())
    assert plain.inputs["features"].shape == (len(plain.labels), 6)
    one, other = (data.batch(torch.tensor([0, 1]), torch.tensor([5, 6])) for _ in range(2))
    assert all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)
    second = data.batch(torch.tensor([1]), torch.tensor([6]))
    rows = one.inputs["batch"] == 1
    assert torch.equal(one.inputs["coords"][rows], second.inputs["coords"]), "a view depends on its own seed alone"
    assert data.fingerprint != SceneDataset(scenes).fingerprint != SceneDataset(scenes[:2]).fingerprint
