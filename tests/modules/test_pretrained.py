"""Folders as the Hugging Face hub keeps them, for any module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tutelage.errors import InputError
from tutelage.modules.loading import load
from tutelage.modules.visual_module import VisualModule
from tutelage.modules.vqa import Verify, Vqa

from .networks import loc, verify, vqa


@pytest.mark.parametrize("make", [vqa, verify, loc])
def test_a_module_saves_and_loads_as_the_hub_keeps_models(make, tmp_path: Path) -> None:
    module = make()
    folder = module.save_pretrained(tmp_path / "kept", card="# About")
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == module.network.state_dict().keys()
    for again in (type(module).from_pretrained(folder), load(folder)):
        assert type(again) is type(module) and again.version == module.version and again.config == module.config


def test_a_module_of_another_class_is_refused(tmp_path: Path) -> None:
    folder = vqa().save_pretrained(tmp_path / "kept")
    with pytest.raises(InputError, match="a Vqa, not a Verify"):
        Verify.from_pretrained(folder)
    with pytest.raises(InputError, match="a Vqa, not a VisualModule"):
        VisualModule.from_pretrained(folder)
    assert isinstance(Vqa.from_pretrained(folder), Vqa)


def test_a_class_of_ones_own_is_given_by_name(tmp_path: Path) -> None:
    class Own(Vqa):
        pass

    module = Own(vqa().config, vqa().network)
    folder = module.save(tmp_path / "kept")
    with pytest.raises(InputError, match="(?s)unknown class of module 'Own'.*load\\(folder, Own\\)"):
        load(folder)
    for again in (load(folder, Own), Own.from_pretrained(folder)):
        assert type(again) is Own and again.version == module.version


def test_absent_torn_and_changed_files_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="config.json: no such file"):
        Vqa.from_pretrained(tmp_path / "nothing")
    folder = vqa().save_pretrained(tmp_path / "kept")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-7])
    with pytest.raises(InputError, match="damaged"):
        Vqa.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="damaged"):
        Vqa.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no such file"):
        Vqa.from_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="not a module folder of tutelage"):
        Vqa.from_pretrained(folder)


def test_weights_that_two_layers_share_are_saved(tmp_path: Path) -> None:
    module = vqa()
    network = module.copy_network()
    network.twin = torch.nn.Linear(4, 4)
    network.other = torch.nn.Linear(4, 4)
    network.other.weight = network.twin.weight
    folder = module.with_network(network).save(tmp_path / "kept")
    weights = load_file(folder / "weights.safetensors")
    assert torch.equal(weights["twin.weight"], weights["other.weight"])
