"""What holds for every family: alone as together, probabilities, gradients, a lesson, saving and loading."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra `hf`")

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingSettings
from tutelage.distillation.trainer import Trainer
from tutelage.errors import InputError, StaleError
from tutelage.modules import hf
from tutelage.modules.hf import base
from tutelage.modules.loading import load
from tutelage.modules.visual_module import CallLabel, VisualModule
from tutelage.programs.types import RuntimeFailure
from tutelage.programs.values import Image
from tutelage.sdvp.objective import StepwiseDistillation, make_job

from . import tiny
from .cases import CASES

Opened = Callable[[str], VisualModule]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: Any) -> Iterator[Opened]:
    """The case's module; its model is made once."""
    made: dict[str, VisualModule] = {}

    def get(name: str) -> VisualModule:
        if name not in made:
            case = CASES[name]
            made[name] = hf.open_module(case.module, f"hf:{case.make(tmp_path_factory.mktemp('model'))}", **case.settings)
        return made[name]

    yield get


every = pytest.mark.parametrize("name", CASES)


def plain(value: Any) -> Any:
    """A value as numbers that can be compared."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return [*value.box, value.mask.sum()] if hasattr(value, "mask") else value


@every
def test_answers_do_not_depend_on_their_batch(name: str, opened: Opened) -> None:
    module, case = opened(name), CASES[name]
    together = module.run(case.calls)
    for i, call in enumerate(case.calls):
        alone = module.run([call])
        one, other = plain(alone.values[0]), plain(together.values[i])
        assert one == other if isinstance(one, (str, bool)) else np.allclose(one, other, rtol=1e-3, atol=1e-4)
        if together.distributions and together.distributions[i]:
            assert together.distributions[i] == pytest.approx(alone.distributions[0], abs=1e-5)


@every
def test_many_images_lie_in_a_file_and_are_the_same(name: str, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    module, calls = opened(name), CASES[name].calls
    held = TensorData(module.encode(calls))
    monkeypatch.setattr(base, "IN_MEMORY", 0)
    filed = TensorData(module.encode(calls))
    assert list(filed.inputs) == list(held.inputs) and filed.fingerprint == held.fingerprint
    rows = torch.tensor([len(calls) - 1, 0])
    for key, value in held.batch(rows, None).inputs.items():
        assert torch.equal(filed.batch(rows, None).inputs[key], value)


@every
def test_closed_distributions_sum_to_one(name: str, opened: Opened) -> None:
    module, case = opened(name), CASES[name]
    dists = module.run(case.calls).distributions
    if module.heads.get("answer") == "classes" or case.module == "VERIFY":
        assert [sum(dist.values()) for dist in dists] == pytest.approx([1] * 4)
        options = [call.args.get("options", module.capabilities.vocabulary or ("yes", "no")) for call in case.calls]
        assert [list(dist) for dist in dists] == [list(names) for names in options]


@every
def test_heads_are_named_typed_and_differentiable(name: str, opened: Opened) -> None:
    module, case = opened(name), CASES[name]
    heads = module.forward(module.encode(case.calls))
    assert set(heads) == set(module.heads) and all(len(head) == 4 for head in heads.values())
    assert all(head.requires_grad for head in heads.values())
    assert not any(head.requires_grad for head in (module.run(case.calls).heads or {}).values())
    looking = ("decoder",) if name == "clipseg" else ("vision", "backbone", "vilt", "dpt")  # CLIPSeg's towers stay frozen
    wanted = [p for n, p in module.network.named_parameters() if any(word in n for word in looking)]
    total = sum((head**2).sum() for head in heads.values())
    gradients = torch.autograd.grad(total, wanted, allow_unused=True)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients), "the image is looked at"


def loss_of(trainer: Trainer) -> float:
    trainer.student.eval()
    with torch.no_grad():
        batch = trainer.batch(0)
        ours, theirs = trainer.method(batch, trainer.student, trainer.teacher)
        weights = trainer.method.loss_weights()
        return sum(weights.get(name, 1) * term.item() for name, term in trainer.method.loss_terms(batch, ours, theirs).items())


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].labels])
def test_a_lesson_lowers_its_loss_and_leaves_the_module_alone(name: str, opened: Opened) -> None:
    module, case = opened(name), CASES[name]
    before = module.version
    task, replay = module.training_examples(case.calls, case.labels), module.training_examples(case.calls[::-1], None)
    settings = TrainingSettings(steps=8, batch_size=4, lr=1e-3, schedule="constant", checkpoint_every=0)
    trainer = Trainer(make_job(module, task, replay, settings, StepwiseDistillation.Config(self_weight=0.1)))
    first = loss_of(trainer)
    student = trainer.run().student
    assert loss_of(trainer) < first
    taught = module.with_network(student)
    module._version = None
    assert module.version == before != taught.version


@every
def test_what_is_saved_answers_the_same_when_loaded(name: str, opened: Opened, tmp_path: Path) -> None:
    module, case = opened(name), CASES[name]
    again = load(module.save(tmp_path / "kept"))
    assert type(again) is type(module) and again.config == module.config and again.version == module.version
    assert repr(plain(again.run(case.calls).values)) == repr(plain(module.run(case.calls).values))
    assert not [p for p in tmp_path.iterdir() if p.name != "kept"], "nothing half-written is left"


def test_other_weights_than_the_saved_ones_are_noticed(opened: Opened, tmp_path: Path) -> None:
    module = opened("clip")
    other = module.copy_network()
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    module.save(tmp_path / "one")
    module.with_network(other).save(tmp_path / "two")
    (tmp_path / "one" / "model.safetensors").write_bytes((tmp_path / "two" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="model.safetensors: damaged"):
        load(tmp_path / "one")
    file = tmp_path / "one" / "tutelage.json"
    head = json.loads(file.read_text())  # as older versions wrote it, without digests
    file.write_text(json.dumps({name: value for name, value in head.items() if name not in ("files", "digest")}))
    with pytest.raises(StaleError, match="tutelage.json"):
        load(tmp_path / "one")


def test_the_version_is_the_weights_and_how_inputs_are_prepared_and_not_the_place(opened: Opened, tmp_path: Path) -> None:
    made = [tiny.clip(tmp_path / name) for name in ("one", "two", "three")]
    file = made[2] / "processor_config.json"
    file.write_text(file.read_text().replace('"do_normalize": true', '"do_normalize": false'))
    one, two, three = (hf.open_module("MATCH", str(folder)).version for folder in made)
    assert one == two == hf.open_module("MATCH", str(made[0]), rows=3).version
    assert (
        len(
            {
                one,
                three,
                hf.open_module("MATCH", str(made[0]), prompt="{option}").version,
                hf.open_module("VERIFY", str(made[0])).version,
            }
        )
        == 4
    )


def test_the_folder_is_one_that_transformers_reads(opened: Opened, tmp_path: Path) -> None:
    import transformers

    module = opened("vilt")
    folder = module.save_pretrained(tmp_path / "kept", card="# card")
    model = transformers.ViltForQuestionAnswering.from_pretrained(folder)
    assert torch.equal(model.classifier[3].weight, module.network.model.classifier[3].weight)
    assert (folder / "README.md").read_text() == "# card"
    again = type(module).from_pretrained(folder)
    assert again.version == module.version


def test_the_depth_of_a_crop_is_read_from_the_whole_picture(opened: Opened) -> None:
    module, image = opened("dpt"), CASES["dpt"].calls[0].args["image"]
    call = CASES["dpt"].calls[0]
    one, two = (type(call)("DEPTH", {"image": view}) for view in (image.crop(0, 0, 5, 6), image.crop(5, 6, 10, 12)))
    heads = module.run([call, one, two]).heads
    assert torch.equal(heads["map"][0], heads["map"][1]) and torch.equal(heads["map"][0], heads["map"][2])
    quarter = heads["map"][0, 0, :32, :32].flatten().median()
    assert heads["median"][1].item() == quarter.item()
    assert module.run([one]).values == pytest.approx([1 / max(1e-6, quarter.item())])


def test_boxes_are_shares_of_what_the_model_saw(opened: Opened) -> None:
    wide = Image.from_array(np.zeros((3, 10, 40), np.uint8))
    found = torch.tensor([[9.0, 0.5, 0.125, 0.5, 0.25], [-9.0, 0.5, 0.5, 1, 1]])
    (box,) = opened("owlv2").boxes(found, wide)  # a square of 40: the image is its upper quarter
    assert box[:4] == pytest.approx((10, 0, 30, 10))
    (box,) = opened("owl-vit").boxes(found, wide)
    assert box[:4] == pytest.approx((10, 0, 30, 2.5))


def test_a_call_that_cannot_be_put_to_the_model_fails_alone(opened: Opened) -> None:
    module, (first, second, *_) = opened("vilt"), CASES["vilt"].calls
    long = type(first)("VQA", {"image": first.args["image"], "question": "is it red ? " * 20})
    said = module.run([first, long, second])
    assert isinstance(said.values[1], RuntimeFailure) and "the model reads at most 24" in said.values[1].message
    assert [said.values[0], said.values[2]] == module.run([first, second]).values
    with pytest.raises(InputError, match="82 tokens of text"):
        module.training_examples([long], [CallLabel("red")])
    matcher, (call, *_) = opened("clip"), CASES["clip"].calls
    none = type(call)("MATCH", {"image": call.args["image"], "options": []})
    assert [type(value) for value in matcher.run([none, call]).values] == [RuntimeFailure, str]
    with pytest.raises(InputError, match="'purple' is none of the options"):
        matcher.training_examples([call], [CallLabel("red", {"red": 0.5, "purple": 0.5})])


def test_a_square_frame_keeps_the_image_in_its_upper_left(opened: Opened) -> None:
    config = replace(opened("grounding dino").config, square=20)
    wide = Image.from_array(np.full((3, 10, 40), 255, np.uint8))
    assert config.sides(wide) == (40, 40)
    seen = np.asarray(config.resize_with_padding(wide))
    assert seen.shape == (20, 20, 3) and (seen[:4] == 255).all() and (seen[7:] == 127).all()


@pytest.mark.parametrize("name", ["blip", "blip-2", "blip-2 with an encoder", "llava"])
def test_closed_scores_are_the_log_probabilities_of_whole_answers(name: str, opened: Opened) -> None:
    """Against the open head of the same model: token by token, each given the ones before it, the end included."""
    module, case = opened(name), CASES[name]
    scores = module.run(case.calls).heads
    rows = module.encode(case.calls)
    with torch.no_grad():
        scores = module.forward(rows)["answer"]
        network = module.network
        prompt = network.prompt(network.inputs(rows))
        for number, ids in enumerate(network.answers):
            ids = ids[ids >= 0]
            total = torch.zeros(4)
            for at in range(len(ids)):
                before = torch.cat([ids[:at], ids.new_zeros(1)]).repeat(4, 1)
                total += network.continuation_logits(prompt, before, 1)[:, at].log_softmax(-1)[:, ids[at]]
            assert torch.allclose(scores[:, number], total, atol=1e-4)
