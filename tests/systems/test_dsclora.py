"""The invariants of DSCLoRA: SPAN and its merge, the low-rank updates, the affinity, and what is exported."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tutelage
from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.tasks.metrics import ssim
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError
from tutelage.modules.symbolic import symbolic_modules
from tutelage.networks.lora import add_lora, lora_parameters, merge_lora, unmerge_lora
from tutelage.programs import visprog
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import run
from tutelage.programs.values import Image
from tutelage.systems._backbone import count_macs, count_parameters
from tutelage.systems._toy import build_with_seed
from tutelage.systems.dsclora import SPAB, SPAN, DSCLoRA, RepConv, affinity, affinity_loss, luma, psnr_luma, ssim_luma
from tutelage.systems.dsclora.method import smooth_pairs


def span(name: str = "tiny", seed: int = 0) -> SPAN:
    return build_with_seed(lambda: SPAN(**SPAN.options(name)), seed, name)


def job(method: DSCLoRA, steps: int = 4, student: nn.Module | None = None, teacher: nn.Module | None = None) -> TrainingJob:
    settings = TrainingSettings(steps=steps, batch_size=4, lr=1e-2, log_every=1)
    return TrainingJob(student or span(), teacher or span("tiny-wide"), method, smooth_pairs(0), settings)


# -- the backbone --------------------------------------------------------------------------------------------------------


def test_the_published_network_has_130_828_parameters() -> None:
    with torch.device("meta"):
        network = SPAN(26, 4)
    assert count_parameters(network) == 130_828
    assert count_macs(network, 256) == pytest.approx(8.54e9, rel=0.01)
    assert SPAN(6, 3, 2)(torch.rand(1, 3, 5, 7)).shape == (1, 3, 15, 21)


def test_branches_merge_into_one_convolution_borders_included() -> None:
    torch.manual_seed(0)
    conv = RepConv(3, 5)
    for parameter in conv.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 3, 6, 7)
    torch.testing.assert_close(conv.merged()(x), conv(x), atol=1e-5, rtol=1e-4)
    network = SPAN(6, 2, 3, branches=True)
    plain = network.merged()
    images = torch.rand(2, 3, 8, 9)
    torch.testing.assert_close(plain(images), network(images), atol=1e-5 * network(images).abs().max().item(), rtol=1e-4)
    assert plain.state_dict().keys() == span().state_dict().keys()
    again = plain.merged()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in plain.state_dict().items())


def test_a_block_of_no_response_gives_nothing() -> None:
    block = SPAB(4, branches=False)
    nn.init.zeros_(block.conv3.weight), nn.init.zeros_(block.conv3.bias)
    x = torch.randn(2, 4, 5, 5)
    out, first = block(x)
    assert not out.any() and torch.equal(first, F.silu(block.conv1(x)))


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="x4-wide"):
        SPAN.options("x4-wid")
    for field in ("channels", "scale", "depth"):
        with pytest.raises(InputError, match=field):
            SPAN(**{field: 0})


# -- the updates ---------------------------------------------------------------------------------------------------------


def test_two_branches_one_kernel_and_the_merged_form_agree() -> None:
    base = span()
    network = copy.deepcopy(base)
    add_lora(network, ["blocks.0.conv1"], 2, 4.0, blocked=True)
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(network(images), base(images)), "B = 0"
    for parameter in lora_parameters(network):
        nn.init.normal_(parameter, std=0.2)
    conv, x = network.blocks[0].conv1, torch.randn(2, 6, 8, 8)
    update = conv.parametrizations.weight[0]
    delta = 2.0 * (update.up @ update.down).reshape(6, 6, 3, 3)
    two = F.conv2d(x, conv.parametrizations.weight.original, conv.bias, padding=1) + F.conv2d(x, delta, padding=1)
    torch.testing.assert_close(conv(x), two, atol=1e-5, rtol=1e-5)
    assert torch.linalg.matrix_rank(update.up @ update.down) <= 2 * 3
    before = network(images)
    deltas = merge_lora(network)
    torch.testing.assert_close(network(images), before, atol=1e-5 * before.abs().max().item(), rtol=1e-5)
    unmerge_lora(network, deltas)
    torch.testing.assert_close(network.blocks[0].conv1.weight, base.blocks[0].conv1.weight, atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="no layer"):
        merge_lora(network)


def test_only_the_updates_learn_and_their_number_is_known() -> None:
    student = SPAN(12, 2, 4)
    trainer = Trainer(job(DSCLoRA(), student=student, teacher=SPAN(24, 2, 4)))
    assert sum(parameter.numel() for parameter in trainer.parameters.values()) == 8640
    rank, tail = 2 * 3, 8 * 3
    blocks, ends = 12 * rank * (12 * 3 + 12 * 3), tail * (12 * 3 + 12 * 3) + tail * (12 * 3 + 12 * 3)
    assert blocks + ends == 8640
    trainer.advance()
    learned = {id(parameter) for parameter in lora_parameters(student)}
    assert {id(parameter) for parameter in student.parameters() if parameter.grad is not None} == learned


def test_the_export_has_the_names_and_the_cost_of_the_base() -> None:
    base = span()
    student = copy.deepcopy(base)
    result = train(job(DSCLoRA(), student=student))
    exported = result.student
    assert exported.state_dict().keys() == base.state_dict().keys()
    assert count_parameters(exported) == count_parameters(base)
    assert count_macs(exported, 16) == count_macs(base, 16)
    changed = {name for name, value in exported.state_dict().items() if not torch.equal(value, base.state_dict()[name])}
    adapted = {f"blocks.{block}.conv{number}.weight" for block in range(3) for number in (1, 2, 3)}
    assert changed == adapted | {"conv_2.weight", "upsampler.0.weight"}
    images = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(exported(images), student.eval()(images), atol=1e-5, rtol=1e-4)
    assert [set(record["terms"]) for record in result.history][0] == {"rec", "teacher_image", "affinity"}


# -- the affinity --------------------------------------------------------------------------------------------------------


def test_affinity_is_a_bounded_cosine_with_a_finite_gradient_at_zero() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 4, 5)
    maps[:, :, 1, 2] = 0
    maps.requires_grad_()
    found = affinity(maps)
    assert found.shape == (2, 20, 20) and found.abs().max() <= 1 + 1e-6
    assert not found[:, 7].any()
    (found * torch.randn_like(found)).sum().backward()
    assert maps.grad.isfinite().all() and maps.grad.abs().max() < 100 and not maps.grad[:, :, 1, 2].any()


def test_affinity_does_not_see_lengths_and_rotations() -> None:
    torch.manual_seed(0)
    maps, other = torch.randn(2, 4, 3, 3), torch.randn(2, 7, 3, 3)
    scaled = maps * (0.1 + torch.rand(2, 1, 3, 3))
    turn = torch.linalg.qr(torch.randn(4, 4)).Q
    torch.testing.assert_close(affinity(scaled), affinity(maps), atol=1e-6, rtol=0)
    torch.testing.assert_close(affinity(torch.einsum("dc,bchw->bdhw", turn, maps)), affinity(maps), atol=1e-6, rtol=0)
    assert affinity_loss(maps, maps).item() == 0 and affinity_loss(maps, other).item() > 0, "channels may differ"


def test_large_maps_are_averaged_first() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(1, 3, 8, 12), torch.randn(1, 5, 8, 12)
    expected = affinity_loss(F.avg_pool2d(one, 2), F.avg_pool2d(other, 2))
    torch.testing.assert_close(affinity_loss(one, other, max_positions=24), expected)
    assert torch.equal(affinity_loss(one, other, max_positions=96), affinity_loss(one, other))


def test_the_gradient_of_the_affinity_loss_is_autograds() -> None:
    student = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.randn(2, 4, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (found,) = torch.autograd.grad(affinity_loss(student, teacher), student)
    plain = (affinity(student) - affinity(teacher)).abs().mean()
    (expected,) = torch.autograd.grad(plain, student)
    torch.testing.assert_close(affinity_loss(student, teacher), plain)
    torch.testing.assert_close(found, expected)


# -- what is refused ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="matches no"):
        train(job(DSCLoRA(layers=("body.*",))))
    with pytest.raises(InputError, match="has no layer"):
        train(job(DSCLoRA(student=("blocks.7.act1",), teacher=("blocks.0.act1",))))
    with pytest.raises(InputError, match="as many"):
        train(job(DSCLoRA(student=("blocks.0.act1",))))
    with pytest.raises(InputError, match="height and width"):
        train(job(DSCLoRA(student=("blocks.0.act1",), teacher=("upsampler",))))
    with pytest.raises(InputError, match="merged"):
        train(job(DSCLoRA(), student=SPAN(6, 2, 3, branches=True)))
    with pytest.raises(InputError, match="labels"):
        data = TensorData(torch.rand(4, 3, 8, 8))
        train(TrainingJob(span(), span("tiny-wide"), DSCLoRA(), data, TrainingSettings(steps=1, batch_size=2)))


@pytest.mark.parametrize(("name", "value"), [("rec", -1.0), ("max_positions", 0)])
def test_options_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        DSCLoRA(**{name: value})
    with pytest.raises(InputError, match="layers"):
        DSCLoRA(layers=(), tail=())


def test_another_network_can_be_adapted_without_features() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))
    method = DSCLoRA(affinity=0.0, layers=("0",), tail=("2",))
    result = train(job(method, student=copy.deepcopy(plain), steps=3))
    assert result.student.state_dict().keys() == plain.state_dict().keys()
    assert set(result.history[0]["terms"]) == {"rec", "teacher_image"}


# -- figures --------------------------------------------------------------------------------------------------------------


def test_luma_of_black_white_and_primaries() -> None:
    def colour(*rgb: float) -> Tensor:
        return luma(torch.tensor(rgb).view(1, 3, 1, 1)).flatten() * 255

    assert colour(0.0, 0.0, 0.0).item() == pytest.approx(16) and colour(1.0, 1.0, 1.0).item() == pytest.approx(235, abs=0.01)
    assert colour(1.0, 0.0, 0.0).item() == pytest.approx(81.48, abs=0.01)


def test_figures_are_those_of_the_luma_without_its_border() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 40, 44)
    noisy = images + 0.1 * torch.randn_like(images)
    cut = [luma(each)[..., 3:-3, 3:-3].double() for each in (noisy.clamp(0, 1), images)]
    expected = -10 * (cut[0] - cut[1]).square().mean((1, 2, 3)).log10()
    torch.testing.assert_close(psnr_luma(noisy, images, 3), expected)
    torch.testing.assert_close(ssim_luma(noisy, images, 3), ssim(*cut))
    assert psnr_luma(noisy, images, 0).shape == (2,)
    with pytest.raises(InputError, match="border"):
        psnr_luma(noisy, images, 20)
    with pytest.raises(InputError, match="images"):
        psnr_luma(noisy, images[:, :1], 2)


# -- inside a visual program ----------------------------------------------------------------------------------------------


def test_a_program_enlarges_its_image() -> None:
    network = span().eval()

    @tutelage.module(name="ENLARGE")
    def enlarge(image: Image) -> Image:
        """The image, twice as large."""
        with torch.no_grad():
            return Image.from_array(network(torch.from_numpy(image.pixels)[None])[0].clamp(0, 1).numpy())

    modules = {**symbolic_modules(), "ENLARGE": enlarge}
    signatures = {name: each.signature for name, each in modules.items()}
    program = visprog.parse("IMAGE0=ENLARGE(image=IMAGE)\nFINAL_RESULT=RESULT(var=IMAGE0)", signatures)
    picture = Image.from_array(torch.rand(3, 16, 24).numpy())
    (trace,) = run([Job("a", program, {"IMAGE": picture})], RunContext(modules))
    assert trace.status == "ok", trace.error
    assert (trace.answer.height, trace.answer.width) == (32, 48)
