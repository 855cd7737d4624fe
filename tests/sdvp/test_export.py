"""A taught module as a folder with a card that is written from its run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tutelage
from tutelage.cli.main import app
from tutelage.errors import InputError
from tutelage.modules import vqa as vqa_module
from tutelage.reports.model_card import card, cell
from tutelage.sdvp.compile import compile, distill_task
from tutelage.sdvp.export import export, export_run
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.stages import TRAINING_INFO, collect_to_folder, label_to_folder, train_to_folder
from tutelage.sdvp.task import SdvpTask
from tutelage.sdvp.teachers import from_callable
from tutelage.storage import read_json, write_json

from ..modules.networks import vqa
from . import small


def options() -> SdvpOptions:
    return SdvpOptions(settings=small.SETTINGS, replay=False, max_drop=None)


def front(folder: Path) -> dict:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    return huggingface_hub.ModelCard.load(folder / "README.md").data.to_dict()


def test_a_compiled_module_is_exported_with_what_taught_it(tmp_path: Path) -> None:
    questions = [replace(question, answer=None) for question in small.questions()]
    compiled = compile(questions, small.modules(), {"COLOR": small.brightest}, options=options(), folder=tmp_path / "run")
    out = export_run(tmp_path / "run", "COLOR", tmp_path / "out", classes=[small.Color])
    assert small.Color.from_pretrained(out).version == compiled.modules["COLOR"].version
    text = (out / "README.md").read_text()
    assert "| task | brightest | – | – | 30 | 30 | 0 | 1.00 |" in text
    assert "COLOR(image: image) -> text" in text and "None were measured" in text and "evaluate" in text
    assert "license" not in front(out), "a user's own class: its licence is theirs to say"
    assert "drawn scenes" not in text and 'tutelage.load("FOLDER", Color)' in text


def test_stages_are_told_in_the_order_they_were_taught(tmp_path: Path) -> None:
    modules = small.modules()
    for name in ("second", "first"):
        stage = SdvpTask(name, small.questions(), {"COLOR": from_callable(small.brightest, f"who taught {name}")})
        modules = distill_task(modules, stage, options(), tmp_path / "run").modules
    out = export_run(tmp_path / "run", "COLOR", tmp_path / "out", classes=[small.Color])
    assert small.Color.from_pretrained(out).version == modules["COLOR"].version
    text = (out / "README.md").read_text()
    assert text.index("who taught second") < text.index("who taught first")


def test_modules_that_the_command_trained_tell_their_run(tmp_path: Path) -> None:
    modules = small.modules()
    records = collect_to_folder(tmp_path / "records", small.questions(12), modules)
    label_to_folder(tmp_path / "labelled", records, modules, {"COLOR": from_callable(small.brightest)})
    taught = train_to_folder(tmp_path / "taught", tmp_path / "labelled", modules, (), options())
    made = read_json(tmp_path / "taught" / TRAINING_INFO)
    assert made["lessons"][0]["teacher"] == "brightest" and made["lessons"][0]["kept"] == 12
    out = export_run(tmp_path / "taught", "COLOR", tmp_path / "out", classes=[small.Color])
    assert tutelage.load(out, small.Color).version == taught["COLOR"].version
    text = (out / "README.md").read_text()
    assert "| train | brightest |" in text and made["command"] in text and "torch" in text


def test_figures_of_a_study_are_told_misses_included(tmp_path: Path) -> None:
    place = tmp_path / "run" / "lessons" / "seed-7-sdvp"
    modules, stages = {"COLOR": small.color()}, ("later", "earlier")
    for stage in stages:
        modules["COLOR"].save(place / stage / "COLOR")
    arms = [
        {
            "task": "t_up",
            "group": "current",
            "n": 1000,
            "cells": {"frozen": {"mean": 50.0}, "sdvp": {"mean": 61.25}, "teacher": None},
        },
        {
            "task": "t_down",
            "group": "unseen",
            "n": 500,
            "cells": {"frozen": {"mean": 70.0}, "sdvp": {"mean": 64.0}, "teacher": None},
        },
    ]
    result = {"seeds": [7], "command": "tutelage sdvp study", "versions": {"torch": "2"}, "tables": {"arms": arms}}
    write_json(tmp_path / "run" / "study.json", result | {"smoke": False})
    text = (export_run(tmp_path / "run", "COLOR", tmp_path / "out", classes=[small.Color]) / "README.md").read_text()
    assert "| t_up | current | 1,000 | 50.00 | 61.25 | – |" in text
    assert "worse by more than a point on t_down -6.0" in text and "tutelage sdvp study" in text
    with pytest.raises(InputError, match="no arm 'naive' of seed 7") as error:
        export_run(tmp_path / "run", "COLOR", tmp_path / "out", arm="naive")
    assert "seed-7-sdvp" in str(error.value)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        export_run(tmp_path / "none", "VQA", tmp_path / "out")
    small.color().save(tmp_path / "run" / "COLOR")
    with pytest.raises(InputError, match="no distilled module 'COLOUR'") as error:
        export_run(tmp_path / "run", "COLOUR", tmp_path / "out")
    assert "did you mean COLOR" in str(error.value) and not (tmp_path / "out").exists()
    text = (export_run(tmp_path / "run", "COLOR", tmp_path / "out", classes=[small.Color]) / "README.md").read_text()
    assert "no record of a training job" in text


def test_the_front_matter_is_yaml_whatever_the_facts_say(tmp_path: Path) -> None:
    module = vqa()
    assert isinstance(module, vqa_module.Vqa)
    out = export(module, tmp_path / "out", reports=[{"stage": "a|b\nc", "teacher": '--- : "<script>"', "records": 3}])
    assert front(out) == {
        "library_name": "tutelage",
        "license": "apache-2.0",
        "pipeline_tag": "visual-question-answering",
        "tags": ["tutelage", "sdvp", "knowledge-distillation", "visual-programming", "vqa"],
    }
    assert '| a\\|b c | --- : "&lt;script>" |' in (out / "README.md").read_text()


def test_a_card_without_its_facts_is_refused() -> None:
    with pytest.raises(InputError, match="the fact 'title' is missing"):
        card({"module": {"name": "VQA"}})
    assert [cell(value) for value in (None, float("nan"), 1234, 0.25, True)] == ["–", "–", "1,234", "0.25", "True"]


def test_the_command(tmp_path: Path) -> None:
    vqa().save(tmp_path / "run" / "VQA")
    given = ["sdvp", "export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*given, "--module", "VQA"])
    assert done.exit_code == 0 and vqa().version in done.output
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\n")
    failed = CliRunner().invoke(app, given)
    assert failed.exit_code == 2 and "which module of the run?" in failed.output
