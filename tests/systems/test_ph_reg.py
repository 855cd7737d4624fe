"""PH-Reg: views put back where they came from, registers that are added and cut off again, and what is trained."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

from tutelage.cli import main
from tutelage.distillation.api import distill
from tutelage.distillation.cache import view_key
from tutelage.distillation.data import Batch, TensorData
from tutelage.distillation.export import load_weights, save_weights
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.recipe import ModelSpec
from tutelage.distillation.resolve import build_model
from tutelage.distillation.schedule import learning_rate
from tutelage.distillation.teacher import BlackBoxTeacher
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.networks.registers import RegisterViT, add_registers, find_parts, patch_tokens
from tutelage.networks.vit import VisionTransformer
from tutelage.systems.ph_reg import PHReg, ShiftedAverage, diagnostics, published_settings, to_dinov2_with_registers
from tutelage.systems.ph_reg.method import cosine_distance
from tutelage.systems.ph_reg.shifted_average import draw_views, farthest, put_back, shifted

SIDE, PATCH, DIM = 20, 4, 8
GRID = SIDE // PATCH


class FakeViT(nn.Module):
    """A "network" of no blocks to speak of whose features are the patches' mean values, of any number of channels."""

    def __init__(self, channels: int = 2, noise: float = 0.0):
        super().__init__()
        self.patch_embed = nn.Conv2d(channels, channels, PATCH, PATCH, bias=False)
        weight = torch.eye(channels)[:, :, None, None].expand(-1, -1, PATCH, PATCH) / PATCH**2
        self.patch_embed.weight = nn.Parameter(weight.clone())
        self.blocks, self.norm = nn.ModuleList([nn.Identity()]), nn.Identity()
        made = torch.Generator().manual_seed(3)
        self.register_buffer("by_position", noise * torch.randn(GRID * GRID, channels, generator=made))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(images).flatten(2).transpose(1, 2)
        return self.norm(self.blocks[0](tokens + self.by_position))


def coordinates(count: int = 3) -> Tensor:
    """Images whose patches hold their row and column."""
    cells = torch.stack(torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")).float()
    return cells.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2).expand(count, -1, -1, -1)


def batch_of(images: Tensor) -> Batch:
    return Batch(images, ids=torch.arange(len(images)), seeds=torch.zeros(len(images), dtype=torch.int64))


def small_vit(seed: int = 0, **options: int) -> VisionTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vit = VisionTransformer(SIDE, PATCH, dim=DIM, depth=3, num_heads=2, **options)
        for parameter in vit.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return vit.eval()


# -- views -----------------------------------------------------------------------------------------------------------


def test_the_index_map_of_the_card() -> None:
    """Offset (1, -2) on a 5 x 5 grid: row 0 shows row 1, from column -2 on."""
    cells = torch.arange(25).view(1, 1, 5, 5)
    view = shifted(cells, torch.tensor([[1, -2]]), torch.tensor([False]), torch.tensor([-1]))[0, 0]
    assert view[0].tolist() == [-1, -1, 5, 6, 7]
    assert view[4].tolist() == [-1] * 5
    mirrored = shifted(cells, torch.tensor([[1, -2]]), torch.tensor([True]), torch.tensor([-1]))[0, 0]
    assert torch.equal(mirrored, view.flip(-1))


@given(st.integers(-4, 4), st.integers(-4, 4), st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_view_is_put_back_where_it_came_from(row: int, column: int, flip: bool) -> None:
    where, mirrored = torch.tensor([[row, column]]), torch.tensor([flip])
    images = coordinates(1) + 1
    view = shifted(images, where * PATCH, mirrored, torch.full((2,), -7.0))
    tokens = patch_tokens(FakeViT(), view)["patches"]
    index = shifted(torch.arange(25).view(1, 1, 5, 5), where, mirrored, torch.tensor([25])).flatten(1)[..., None]
    back, count = put_back(tokens, index), put_back(torch.ones_like(tokens[..., :1]), index)
    plain = patch_tokens(FakeViT(), images)["patches"]
    torch.testing.assert_close(back, plain * count)
    assert int(count.sum()) == (5 - abs(row)) * (5 - abs(column))


def test_an_equivariant_feature_is_its_own_average() -> None:
    teacher = ShiftedAverage(FakeViT(), 9, shift=0.4, fill=0.0)
    images = coordinates()
    torch.testing.assert_close(teacher(batch_of(images))["patches"], patch_tokens(FakeViT(), images)["patches"])


def test_noise_of_the_position_in_the_view_averages_out() -> None:
    network = FakeViT(noise=1.0)
    images = coordinates(200)
    clean = patch_tokens(FakeViT(), images)["patches"]
    errors = [
        float((ShiftedAverage(network, views, shift=0.4, fill=0.0)(batch_of(images))["patches"] - clean).square().mean().detach())
        for views in (1, 8, 24)
    ]
    assert errors[0] > 2.5 * errors[1] > 2.5 * 1.2 * errors[2]


def test_one_view_is_the_plain_network_and_every_patch_is_shown() -> None:
    vit, images = small_vit(), torch.randn(2, 3, SIDE, SIDE)
    plain = patch_tokens(vit, images)["patches"]
    assert torch.equal(ShiftedAverage(vit, 1)(batch_of(images))["patches"], plain)
    assert ShiftedAverage(vit, 9)(batch_of(images))["patches"].isfinite().all()


@given(st.integers(0, 2**40), st.integers(1, 10), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_offsets_lie_within_reach_and_begin_with_none(key: int, views: int, most: int) -> None:
    offsets, flips = draw_views(torch.tensor([key, key + 1]), views, (most, most), 0.5)
    assert offsets.shape == (2, views, 2) and int(offsets.abs().max()) <= most
    assert not offsets[:, 0].any() and not flips[:, 0].any()
    again = draw_views(torch.tensor([key]), views, (most, most), 0.5)
    assert torch.equal(again[0][0], offsets[0]) and torch.equal(again[1][0], flips[0])


def test_farthest_points_are_distinct_while_there_are_any() -> None:
    every = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2))
    candidates = every.repeat(10, 1)[None]
    chosen = farthest(candidates, torch.tensor([0]), 9)[0]
    assert len(chosen.unique(dim=0)) == 9
    assert chosen[1].tolist() == [1, 1], "the corner opposite of (-1, -1)"
    assert chosen[2].tolist() == [-1, 1], "of equals, the first"


def test_views_follow_sample_and_view_seed() -> None:
    vit, images = small_vit(), torch.randn(4, 3, SIDE, SIDE)
    teacher, batch = ShiftedAverage(vit, 4), batch_of(images)
    whole = teacher(batch)["patches"]
    part = Batch(images[2:3], ids=torch.tensor([2]), seeds=torch.tensor([0]))
    torch.testing.assert_close(teacher(part)["patches"], whole[2:3])
    other = teacher(Batch(images[2:3], ids=torch.tensor([2]), seeds=torch.tensor([9])))["patches"]
    assert not torch.allclose(other, whole[2:3])
    assert len({int(key) for key in view_key(torch.arange(4).numpy(), torch.zeros(4).numpy())}) == 4


@pytest.mark.parametrize(
    ("options", "images", "message"),
    [
        ({"views": 0}, None, "views"),
        ({"shift": 1.5}, None, "shift"),
        ({"views": 10}, torch.zeros(1, 3, SIDE, SIDE), "has 9"),
        ({"views": 2, "fill": (1.0, 2.0)}, torch.zeros(1, 3, SIDE, SIDE), "channels"),
        ({"views": 2}, torch.zeros(1, 3, SIDE, SIDE + 1), "not covered"),
        ({"views": 2}, torch.zeros(1, 3), "no images"),
    ],
)
def test_views_that_cannot_be_are_refused(options: dict[str, object], images: Tensor | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        teacher = ShiftedAverage(small_vit(), **options)  # type: ignore[arg-type]
        if images is not None:
            teacher(batch_of(images))
    assert error.value.remedy


def test_a_stream_has_no_ids() -> None:
    with pytest.raises(InputError, match="ids"):
        ShiftedAverage(small_vit(), 2)(Batch(torch.zeros(1, 3, SIDE, SIDE)))


# -- registers -------------------------------------------------------------------------------------------------------


def test_no_register_is_the_network_itself() -> None:
    vit, images = small_vit(num_classes=5), torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(add_registers(vit, 0)(images), vit(images))


def test_registers_change_the_answer_and_no_shape() -> None:
    vit, images = small_vit(num_classes=5), torch.randn(2, 3, SIDE, SIDE)
    network = add_registers(vit, 4).eval()
    assert network(images).shape == (2, 5) and not torch.equal(network(images), vit(images))
    plain, found = patch_tokens(vit, images), patch_tokens(network, images)
    assert found["patches"].shape == plain["patches"].shape == (2, 25, DIM)
    torch.testing.assert_close(vit.norm(found["states"]), found["patches"])
    assert network.registers.shape == (1, 4, DIM)


def test_registers_stand_before_all_other_tokens() -> None:
    network = add_registers(small_vit(), 3).eval()
    taken: list[Tensor] = []
    handle = network.vit.blocks[0].attention.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    network(torch.randn(2, 3, SIDE, SIDE))
    handle.remove()
    norm = network.vit.blocks[0].norm1
    assert torch.equal(taken[0][:, :3], norm(network.registers).expand(2, -1, -1)) and taken[0].shape[1] == 3 + 1 + 25
    assert torch.equal(taken[0][:, 3], norm(network.vit.tokens["class"]).expand(2, -1))


def test_they_equal_the_tokens_that_the_network_knows_itself() -> None:
    vit, images = small_vit(), torch.randn(2, 3, SIDE, SIDE)
    native = copy.deepcopy(vit)
    native.add_tokens("register", 4, torch.Generator().manual_seed(0))
    network = add_registers(vit, 4).eval()
    network.registers.data.copy_(native.tokens["register"])
    torch.testing.assert_close(native.forward_features(images)["patches"], patch_tokens(network, images)["patches"])


def test_they_are_saved_and_copied_with_the_network(tmp_path: Path) -> None:
    vit, images = small_vit(), torch.randn(1, 3, SIDE, SIDE)
    network = add_registers(vit, 4, seed=1).eval()
    path = save_weights(network, f"{tmp_path}/network.safetensors")
    assert torch.equal(load_weights(add_registers(vit, 4, seed=2), path)(images), network(images))
    twin = copy.deepcopy(network)
    twin.registers.data.zero_()
    assert not torch.equal(twin(images), network(images)), "the copy uses its own registers"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_what_is_no_vision_transformer_is_refused() -> None:
    with pytest.raises(InputError, match="that can be found"):
        add_registers(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with pytest.raises(InputError, match="no norm 'nowhere'"):
        add_registers(small_vit(), norm="nowhere")
    with pytest.raises(InputError, match="registers already"):
        add_registers(add_registers(small_vit(), 1))
    with pytest.raises(InputError, match="-1 registers"):
        add_registers(small_vit(), -1)
    biased = small_vit()
    biased.blocks[0].relative_position_bias = nn.Embedding(4, 2)
    with pytest.raises(InputError, match="relative positions"):
        add_registers(biased, 1)


def hugging_face(name: str) -> nn.Module:
    import transformers

    common = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH}
    config = getattr(transformers, f"{name.removesuffix('Model')}Config")(**common)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, name)(config).eval()


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("Dinov2Model", "embeddings.position_embeddings"),
        ("ViTModel", "embeddings.position_embeddings"),
        ("DeiTModel", "embeddings.position_embeddings"),
        ("CLIPVisionModel", "embeddings.position_embedding.weight"),
        ("SiglipVisionModel", "embeddings.position_embedding.weight"),
        ("DINOv3ViTModel", None),
    ],
)
def test_networks_of_transformers(name: str, positions: str | None) -> None:
    pytest.importorskip("transformers")
    vit, images = hugging_face(name), torch.randn(2, 3, SIDE, SIDE)
    parts = find_parts(vit)
    assert parts.positions == positions and len(vit.get_submodule(parts.blocks)) == 3
    network = add_registers(vit, 4).eval()
    plain, found = vit(images).last_hidden_state, network(images).last_hidden_state
    assert found.shape == plain.shape and not torch.allclose(found, plain)
    assert torch.equal(add_registers(vit, 0)(images).last_hidden_state, plain)
    patches = patch_tokens(vit, images)["patches"]
    normed = plain if name != "CLIPVisionModel" else vit.post_layernorm(plain)  # CLIP norms its class token alone
    torch.testing.assert_close(patches, normed[:, -25:])
    attentions = network(images, output_attentions=True).attentions if name == "Dinov2Model" else None
    if attentions:
        assert 0 < diagnostics.attention_mass(attentions[-1], 4) < 1
    patch, last = vit.get_submodule(parts.patch_embedding), vit.get_submodule(parts.blocks)[-1]
    expected = 1 + (positions is not None) + len(list(patch.parameters())) + len(list(last.parameters()))
    assert len(list(network.unlocked())) == expected


def test_networks_of_timm() -> None:
    timm = pytest.importorskip("timm")
    vit = timm.models.vision_transformer.VisionTransformer(SIDE, PATCH, embed_dim=16, depth=3, num_heads=2, num_classes=5).eval()
    parts, images = find_parts(vit), torch.randn(2, 3, SIDE, SIDE)
    assert (parts.blocks, parts.norm, parts.patch_embedding) == ("blocks", "norm", "patch_embed.proj")
    network = add_registers(vit, 4).eval()
    assert network(images).shape == (2, 5)
    torch.testing.assert_close(patch_tokens(vit, images)["patches"], vit.forward_features(images)[:, 1:])
    eva = timm.create_model("eva02_tiny_patch14_224", depth=2)
    assert add_registers(eva, 4)(torch.randn(1, 3, 224, 224)).shape == eva(torch.randn(1, 3, 224, 224)).shape


def test_a_network_with_a_head_is_read_at_its_trunk() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=2, image_size=SIDE, patch_size=PATCH
    )
    assert find_parts(transformers.Dinov2ForImageClassification(config)).norm == "dinov2.layernorm"


def test_a_dinov2_becomes_one_with_registers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    network, images = add_registers(hugging_face("Dinov2Model"), 4).eval(), torch.randn(2, 3, SIDE, SIDE)
    to_dinov2_with_registers(network).save_pretrained(f"{tmp_path}")
    found = transformers.AutoModel.from_pretrained(f"{tmp_path}").eval()(images).last_hidden_state
    ours = network(images).last_hidden_state
    torch.testing.assert_close(found[:, 5:], ours[:, 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[:, 0], ours[:, 0], atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="no DINOv2"):
        to_dinov2_with_registers(add_registers(small_vit(), 4))


# -- the training ----------------------------------------------------------------------------------------------------


def test_the_loss_is_zero_only_at_the_target() -> None:
    student, target = torch.randn(2, 2, 5, DIM)
    method = PHReg()
    batch = batch_of(torch.zeros(2, 3, SIDE, SIDE))
    same = method.loss_terms(batch, {"patches": target}, {"patches": target})
    assert max(float(term) for term in same.values()) < 1e-6
    assert min(float(t) for t in method.loss_terms(batch, {"patches": student}, {"patches": target}).values()) > 0.1
    torch.testing.assert_close(cosine_distance(3 * student, target), cosine_distance(student, target))
    doubled = method.loss_terms(batch, {"patches": 2 * target}, {"patches": target})
    assert float(doubled["cosine"]) < 1e-6 and float(doubled["mse"]) == pytest.approx(float(target.square().mean()))


def test_the_published_schedule() -> None:
    made = published_settings(80, epochs=100)
    rates = [made.lr * learning_rate(made, step, made.steps) for step in range(made.steps)]
    assert made.steps == 1000 and made.batch_size == 8
    for epoch in (0, 1, 57, 99):
        expected = 1e-4 * 0.05 ** (epoch / 100)
        assert rates[10 * epoch] == pytest.approx(expected) and rates[10 * epoch + 9] == pytest.approx(expected)
    assert rates[-1] == pytest.approx(5.15e-6, rel=1e-3)
    with pytest.raises(InputError):
        published_settings(80, epochs=0)


def test_only_four_groups_change() -> None:
    vit = small_vit()
    before = copy.deepcopy(vit.state_dict())
    network, teacher = add_registers(vit, 4), ShiftedAverage(vit, 4)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    data = TensorData(torch.randn(16, 3, SIDE, SIDE))
    train(TrainingJob(network, teacher, PHReg(), data, TrainingSettings(steps=3, batch_size=8, lr=1e-2, weight_decay=0.1)))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, start[name])}
    expected = {name for name in start if name.startswith(("vit.patch_embed.", "vit.blocks.2."))}
    assert changed == expected | {"injector.tokens", "vit.positions"}
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items()), "the teacher stays"


def test_training_without_registers_is_an_ablation() -> None:
    vit = small_vit()
    settings = TrainingSettings(steps=2, batch_size=8)
    train(TrainingJob(add_registers(vit, 0), ShiftedAverage(vit, 4), PHReg(), TensorData(torch.randn(8, 3, SIDE, SIDE)), settings))


def test_the_verb_with_a_cache_gives_the_same_bits(tmp_path: Path) -> None:
    vit, photos = small_vit(), TensorData(torch.randn(16, 3, SIDE, SIDE))
    made = replace(published_settings(16, epochs=3), lr=1e-3)
    live = distill(add_registers(vit, 4), ShiftedAverage(vit, 4), photos, "ph-reg", settings=made)
    cached = distill(add_registers(vit, 4), ShiftedAverage(vit, 4), photos, "ph-reg", settings=made, cache=f"{tmp_path}")
    assert isinstance(live.student, RegisterViT)
    for name, value in live.student.state_dict().items():
        assert torch.equal(value, cached.student.state_dict()[name])
    losses = [record["loss"] for record in live.results[0].history]
    assert all(loss > 0 for loss in losses)


def test_a_plain_teacher_is_averaged_as_the_options_say() -> None:
    vit, photos = small_vit(), TensorData(torch.randn(16, 3, SIDE, SIDE))
    made = published_settings(16, epochs=2)
    given = distill(add_registers(vit, 4), ShiftedAverage(vit, 4), photos, "ph-reg", settings=made)
    plain = distill(add_registers(vit, 4), copy.deepcopy(vit), photos, "ph-reg", options={"views": 4}, settings=made)
    for name, value in given.student.state_dict().items():
        assert torch.equal(value, plain.student.state_dict()[name])


def test_a_recipe(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": PATCH}
    transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**small)).save_pretrained(tmp_path / "vit")
    np.savez(tmp_path / "photos.npz", inputs=torch.randn(8, 3, SIDE, SIDE).numpy())
    recipe = f"""
method = "ph-reg"
out = "{tmp_path}/run"
[student]
model = "ph-reg"
options = {{ model = "hf:{tmp_path}/vit", registers = 3 }}
[teacher]
model = "hf:{tmp_path}/vit"
[data]
file = "{tmp_path}/photos.npz"
[options]
views = 4
[settings]
steps = 2
batch_size = 4
"""
    (tmp_path / "recipe.toml").write_text(recipe)
    ran = CliRunner().invoke(main.app, ["distill", str(tmp_path / "recipe.toml")])
    assert ran.exit_code == 0, ran.output
    spec = ModelSpec("ph-reg", {"model": f"hf:{tmp_path}/vit", "registers": 3}, str(tmp_path / "run/seed-0/student.safetensors"))
    assert build_model(spec)(torch.randn(1, 3, SIDE, SIDE)).logits.shape == (1, 2)


def test_registers_get_their_own_learning_rate() -> None:
    network = add_registers(small_vit(), 4)
    method = PHReg(register_lr=10.0)
    method.prepare(network, None, batch_of(torch.zeros(1, 3, SIDE, SIDE)), TensorData(torch.zeros(1, 3, SIDE, SIDE)))
    groups = method.groups(network)
    assert [group.get("lr_scale", 1.0) for group in groups] == [10.0, 1.0]
    assert groups[0]["params"] == [network.registers]


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (small_vit(), ShiftedAverage(small_vit(), 2), "without registers"),
        (add_registers(small_vit(), 2), BlackBoxTeacher(lambda images: images, version="0"), "no patches"),
        (add_registers(small_vit(), 2), small_vit(), "10 views"),
        (add_registers(VisionTransformer(SIDE, 2, dim=DIM, depth=1, num_heads=2), 2), ShiftedAverage(small_vit(), 2), "patches of"),
    ],
)
def test_what_does_not_fit_is_refused(student: nn.Module, teacher: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        distill(student, teacher, TensorData(torch.randn(4, 3, SIDE, SIDE)), "ph-reg", steps=1, batch_size=2)  # type: ignore[arg-type]
    assert error.value.remedy
    with pytest.raises(InputError):
        PHReg(mse=-1.0)


# -- diagnostics -----------------------------------------------------------------------------------------------------


def test_outliers_of_norms_are_counted() -> None:
    states = torch.nn.functional.normalize(torch.randn(10, 10, DIM), dim=-1) * torch.linspace(0.9, 1.1, 100).view(10, 10, 1)
    assert diagnostics.outlier_share(states) == 0
    states[0, :3] *= 20
    assert diagnostics.outlier_share(states) == pytest.approx(0.03)
    assert diagnostics.outlier_share(states, threshold=0.0) == 1
    counts, edges = diagnostics.norm_histogram(states, 10)
    assert int(counts.sum()) == 100 and len(edges) == 11


def test_artifacts_of_the_position_are_found() -> None:
    pattern, free = torch.randn(1, 25, DIM), torch.randn(50, 25, DIM)
    assert diagnostics.position_artifacts(pattern.expand(50, -1, -1)) == pytest.approx(1.0)
    assert diagnostics.position_artifacts(free) < 0.05
    assert 0.3 < diagnostics.position_artifacts(free + pattern) < 0.7


def test_neighbours_and_attention() -> None:
    even = torch.randn(1, 1, DIM).expand(2, 25, -1)
    assert diagnostics.neighbour_cosine(even, (5, 5)) == pytest.approx(1.0)
    board = even * (1 - 2 * (torch.arange(25) % 2)).view(1, 25, 1)
    assert diagnostics.neighbour_cosine(board, (5, 5)) == pytest.approx(-1.0)
    weights = torch.full((1, 2, 10, 10), 0.1)
    assert diagnostics.attention_mass(weights, 4) == pytest.approx(0.4)


def test_a_network_is_diagnosed_and_left_as_it_was() -> None:
    network, images = add_registers(small_vit(), 4).train(), torch.randn(6, 3, SIDE, SIDE)
    figures = diagnostics.diagnose(network, images)
    assert network.training and 0 < figures["register_attention"] < 1
    assert set(figures) == set(diagnostics.diagnose(small_vit(), images)) | {"register_attention"}
    weights = diagnostics.attention_of(network, images)
    assert weights is not None and weights.shape == (6, 2, 30, 30)
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, 2, 30))


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_probe_reads_patches(kind: str) -> None:
    labels = (torch.arange(25) % 5 > 2).long().expand(2, -1)
    cells = torch.nn.functional.one_hot(labels, 2).float().transpose(1, 2).unflatten(2, (GRID, GRID))
    images = cells.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3) + 0.01 * torch.randn(2, 2, SIDE, SIDE)
    found = diagnostics.probe_patches(FakeViT(), (images, labels), (images, labels), kind, k=1)
    assert found["accuracy"] == 100 and found["mIoU"] == 100
    with pytest.raises(InputError, match="no probe"):
        diagnostics.probe_patches(FakeViT(), (images, labels), (images, labels), "tree")
    assert diagnostics.mean_iou(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])) == pytest.approx(50.0)
