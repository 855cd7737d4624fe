from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft", reason="needs the extra `hf`")

from tutelage.distillation.trainer import train
from tutelage.errors import InputError
from tutelage.modules import hf
from tutelage.modules.loading import load
from tutelage.modules.visual_module import VisualModule
from tutelage.sdvp.continual.base import CombinedStrategy, SelfDistill
from tutelage.sdvp.continual.low_rank import LoRA
from tutelage.sdvp.continual.peft_lora import PeftLoRA
from tutelage.sdvp.continual.registry import parse
from tutelage.sdvp.objective import StepwiseDistillation, make_job

from ...modules.hf.cases import CASES
from .. import small

CASE = CASES["blip"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: Any) -> VisualModule:
    return hf.open_module("VQA", f"hf:{CASE.make(tmp_path_factory.mktemp('blip'))}", **CASE.settings)


@pytest.mark.parametrize("option", [*(PeftLoRA(rank=2, variant=v) for v in ("plain", "rslora", "dora")), LoRA(rank=2)], ids=repr)
def test_parts_start_as_nothing_are_trained_alone_and_merge_exactly(option: Any, blip: VisualModule) -> None:
    """With BLIP, whose output layer is its embedding too: that one gets no part, for merging it would change both."""
    batch = blip.encode(CASE.calls)
    student = option.prepare(blip.copy_network(), blip)
    assert torch.allclose(student(batch)["answer"], blip.network(batch)["answer"], atol=1e-5)
    trained = [(name, p) for name, p in student.named_parameters() if option.is_trainable(f"student.{name}")]
    assert trained and not any("predictions.decoder" in name for name, _ in trained)
    assert {name for name, p in student.named_parameters() if p.requires_grad} == {name for name, _ in trained}
    generator = torch.Generator().manual_seed(1)
    for _, parameter in trained:
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    wrapped = student(batch)["answer"].detach()
    plain = option.finish(student)
    assert not torch.allclose(wrapped, blip.network(batch)["answer"], atol=1e-3)
    assert torch.allclose(plain(batch)["answer"], wrapped, atol=1e-4)
    assert plain.state_dict().keys() == blip.network.state_dict().keys()


def test_a_lesson_with_peft_gives_a_plain_module_that_is_saved_and_loaded(blip: VisualModule, tmp_path: Path) -> None:
    before = blip.version
    task, replay = blip.training_examples(CASE.calls, CASE.labels), blip.training_examples(CASE.calls[::-1], None)
    retain = CombinedStrategy((SelfDistill(), PeftLoRA(targets=("*qkv", "*query", "*value"))))
    settings = replace(small.SETTINGS, steps=12, log_every=1)
    result = train(make_job(blip, task, replay, settings, StepwiseDistillation.Config(), retain))
    taught = blip.with_network(retain.finish(result.student))
    assert result.history[-1]["terms"]["step"] < result.history[0]["terms"]["step"]
    moved = {n for n, p in taught.network.named_parameters() if not torch.equal(p, blip.network.get_parameter(n))}
    assert moved and all(name.endswith(("qkv.weight", "query.weight", "value.weight")) for name in moved)
    again = load(taught.save(tmp_path / "kept"))
    assert again.version == taught.version != before == blip.version


def test_it_is_named_like_the_others_and_refuses_what_it_cannot_do() -> None:
    assert parse("self_distill+peft") == CombinedStrategy((SelfDistill(), PeftLoRA()))
    module = small.color()
    with pytest.raises(InputError, match="no layer of COLOR matches nothing.*") as error:
        PeftLoRA(targets=("nothing.*",)).prepare(module.copy_network(), module)
    assert "network.2" in str(error.value)
    with pytest.raises(InputError, match="peft hides the weights"):
        parse("l2sp+peft").penalty(module, None)
    with pytest.raises(InputError, match="unknown variant 'lorra'"):
        PeftLoRA(variant="lorra").prepare(module.copy_network(), module)
