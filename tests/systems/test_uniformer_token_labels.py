"""Token labels, and the light form's second head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.distillation.data import Batch
from tutelage.distillation.outputs import forward_heads
from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.systems._backbone import create
from tutelage.systems._toy import build_with_seed, toy_images
from tutelage.systems.uniformer import DenseLabeler, TokenLabels, UniFormer
from tutelage.systems.uniformer.token_labels import _fitted

MINI = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "head": 8}


def network(**options: object) -> UniFormer:
    made = build_with_seed(lambda: UniFormer(4, 1, **MINI, **options), 0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return made


def images(side: int = 64) -> Tensor:
    return torch.randn(3, 1, side, side, generator=torch.Generator().manual_seed(0))


def test_all_heads_answer_as_the_plain_network_does() -> None:
    for options in ({"token_labels": True}, {"light": True, "stem": "light"}):
        plain, whole = network(**options), network(**options, all_heads=True)
        with torch.no_grad():
            assert plain.state_dict().keys() == whole.state_dict().keys()
            torch.testing.assert_close(whole.eval()(images())["logits"], plain.eval()(images()))
            found = whole.train()(images())
            torch.testing.assert_close(found["logits"], plain.train()(images()))
        assert found.keys() == {"logits", "patches" if "token_labels" in options else "token"}
    assert network()(images()).shape == (3, 4)


def test_a_labeler_answers_for_one_place_as_for_a_map_of_that_place() -> None:
    for made in (network().eval(), build_with_seed(lambda: create("convnext", 4, 1, depths=(1, 1), dims=(8, 16)), 0).eval()):
        with torch.no_grad():
            found = DenseLabeler(made).eval()(images())
            maps = made.forward_stages(images())[-1]
        places = maps.shape[2] * maps.shape[3]
        assert found["patches"].shape == (3, places, 4)
        torch.testing.assert_close(found["logits"], made(images()))
        place, columns = places - 2, maps.shape[3]
        one = maps[:, :, place // columns, place % columns][..., None, None]
        torch.testing.assert_close(found["patches"][:, place], made.forward_head(one), atol=1e-5, rtol=1e-4)


def test_the_terms_by_hand() -> None:
    method = TokenLabels(smoothing=0.0)
    student = {"logits": torch.randn(2, 3), "token": torch.randn(2, 3), "patches": torch.randn(2, 4, 3)}
    teacher = {"patches": torch.randn(2, 4, 3).softmax(-1)}
    labels = torch.tensor([2, 0])
    terms = method.loss_terms(Batch(torch.zeros(2, 1), labels), student, teacher)
    torch.testing.assert_close(terms["label"], F.cross_entropy(student["logits"], labels))
    torch.testing.assert_close(terms["token"], F.cross_entropy(student["token"], labels))
    dense = [-(teacher["patches"][b, n] * student["patches"][b, n].log_softmax(0)).sum() for b in range(2) for n in range(4)]
    torch.testing.assert_close(terms["patches"], torch.stack(dense).mean())
    assert method.loss_weights() == {"patches": 0.5, "token": 0.5}
    assert method.loss_terms(Batch(torch.zeros(2, 1), labels), {"logits": student["logits"]}, {}).keys() == {"label"}


def test_a_grid_is_resized_in_place() -> None:
    """A ramp over columns stays one, and one column of four becomes the mean of two."""
    ramp = torch.arange(4.0).repeat(4)[None, :, None]
    torch.testing.assert_close(_fitted(ramp, 4)[0, :, 0], torch.tensor([0.5, 2.5, 0.5, 2.5]))
    assert _fitted(ramp, 16) is ramp
    with pytest.raises(InputError, match="12 places"):
        _fitted(ramp[:, :12], 4)


def test_the_heads_learn() -> None:
    job = TokenLabels.tiny_job(0)
    job.settings = replace(job.settings, steps=30, lr=1e-2, log_every=6)
    result = train(job)
    first, last = result.history[0]["terms"], result.history[-1]["terms"]
    assert first.keys() == {"label", "token", "patches"}
    assert last["label"] < 0.9 * first["label"] and last["token"] < 0.9 * first["token"] and last["patches"] < first["patches"]
    assert forward_heads(result.student, toy_images(0, 4, image_size=64).inputs).keys() == first.keys() - {"label"} | {"logits"}


def test_what_cannot_be_trained_is_refused() -> None:
    job = TokenLabels.tiny_job(0)
    job.student = network(token_labels=True)
    with pytest.raises(InputError, match="all_heads"):
        train(job)
    job.student, job.teacher = network(token_labels=True, all_heads=True), None
    with pytest.raises(InputError, match="labels the places"):
        train(job)
