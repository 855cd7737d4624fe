"""The door: what a name may be, what cannot be reached, what is unsafe or incomplete."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra `hf`")

import huggingface_hub.constants
import safetensors.torch

from tutelage.errors import InputError, MissingExtra
from tutelage.modules import hf
from tutelage.modules.hf.loading import Source, read_settings
from tutelage.modules.hf.vqa import VqaConfig

from . import tiny


def test_a_folder_or_a_hub_name_with_its_revision(tmp_path: Path) -> None:
    assert Source.read(f"hf:{tmp_path}") == Source(str(tmp_path)) and Source.read(str(tmp_path)).local
    assert Source.read("hf:Salesforce/blip-vqa-base@787b3d") == Source("Salesforce/blip-vqa-base", "787b3d")
    assert not Source.read("gpt2@main").local
    with pytest.raises(InputError, match="with its revision") as error:
        Source.read("hf:Salesforce/blip-vqa-base")
    assert "hf:Salesforce/blip-vqa-base@REVISION" in str(error.value)
    with pytest.raises(InputError, match="the revision is empty"):
        Source.read("hf:Salesforce/blip-vqa-base@")
    for absent in ("hf:/no/such/folder", "hf:../nothing", "hf:a/b/c@main", "hf:", "hf:@main"):
        with pytest.raises(InputError, match="no such folder"):
            Source.read(absent)


def test_a_hub_that_cannot_be_reached_says_how_to_do_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="hf:owner/model@v1: cannot load") as error:
        hf.open_module("VQA", "hf:owner/model@v1")
    assert "hf download owner/model --revision v1 --local-dir DIR" in str(error.value) and "hf:DIR" in str(error.value)


def test_code_and_pickles_of_a_model_are_never_run(tmp_path: Path) -> None:
    folder = tiny.blip(tmp_path / "model")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot load.*safetensors"):
        hf.open_module("VQA", f"hf:{folder}")
    (folder / "configuration_evil.py").write_text("raise SystemExit('ran')")
    (folder / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.Evil"}}')
    with pytest.raises(InputError, match="cannot load"):
        hf.open_module("VQA", f"hf:{folder}")


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    folder = tiny.vilt(tmp_path / "model")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    safetensors.torch.save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="weights of ViltForQuestionAnswering are not in the model, the first: classifier"):
        hf.open_module("VQA", f"hf:{folder}")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot load"):
        hf.open_module("VQA", f"hf:{folder}")
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="cannot load"):
        hf.open_module("VQA", f"hf:{folder}")


def test_a_family_serves_what_it_can(tmp_path: Path) -> None:
    folder = tiny.clip(tmp_path / "clip")
    with pytest.raises(InputError, match="a clip model serves no VQA") as error:
        hf.open_module("VQA", f"hf:{folder}")
    assert "it serves MATCH, SCORE, VERIFY" in str(error.value)
    with pytest.raises(InputError, match="no module 'MATHC' is made") as error:
        hf.open_module("MATHC", f"hf:{folder}")
    assert "MATCH" in str(error.value)
    with pytest.raises(InputError, match="unexpected keyword argument 'answers'"):
        hf.open_module("MATCH", f"hf:{folder}", answers=("a",))


def test_settings_may_follow_the_name(tmp_path: Path) -> None:
    (tmp_path / "colors.txt").write_text("red\nblue star\n\n")
    assert read_settings("answers=red,+green&tokens=3", VqaConfig) == {"answers": ("red", "green"), "tokens": 3}
    assert read_settings(f"answers=@{tmp_path}/colors.txt&prompt=Q:+{{question}}", VqaConfig) == {
        "answers": ("red", "blue star"),
        "prompt": "Q: {question}",
    }
    with pytest.raises(InputError, match="no setting 'answer'.*") as error:
        read_settings("answer=red", VqaConfig)
    assert "answers" in str(error.value)
    with pytest.raises(InputError, match="cannot read"):
        read_settings("answers=@/no/such/file", VqaConfig)
    folder = tiny.vilt(tmp_path / "model")
    assert hf.open_module("VQA", f"hf:{folder}?answers=red,blue").capabilities.vocabulary == ("red", "blue")
    with pytest.raises(InputError, match="'purple' is no answer of the model"):
        hf.open_module("VQA", f"hf:{folder}?answers=red,purple")
    with pytest.raises(InputError, match="device=nowhere: cannot run there"):
        hf.open_module("VQA", f"hf:{folder}?device=nowhere")
    with pytest.raises(InputError, match="no setting 'prepared'"):
        hf.open_module("VQA", f"hf:{folder}?prepared=x")
    with pytest.raises(InputError, match="Vilt: invalid literal"):
        hf.open_module("VQA", f"hf:{folder}?rows=many")


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match="transformers is not installed"):
        hf.open_module("VQA", f"hf:{tmp_path}")


def test_the_package_costs_nothing_until_a_model_is_opened() -> None:
    code = "import sys, tutelage.modules.hf as hf; hf.classes(); sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
