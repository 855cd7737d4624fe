"""Transformers models on the command line: run, solve, the steps of SDVP, and what is taught taken along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("transformers", reason="needs the extra `hf`")

from tutelage.cli import main

from ..modules.hf import tiny

PROGRAM = (
    "B=LOC(image=IMAGE,object='star')\nI=CROP(image=IMAGE,box=B)\nA=VQA(image=I,question='what color is it ?')\n"
    "FINAL_RESULT=RESULT(var=A)"
)
VIPER = "def execute_command(image):\n    return ImagePatch(image).best_text_match(['red', 'blue'])"


@pytest.fixture(scope="module")
def models(tmp_path_factory: Any) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {make.__name__: make(place / make.__name__) for make in (tiny.vilt, tiny.owl, tiny.clip)}


def invoke(*words: object, **options: Any) -> Result:
    return CliRunner().invoke(main.app, list(map(str, words)), **options)


def test_programs_of_both_languages_call_them(home: Path, taught: list[str], models: dict[str, Path]) -> None:
    given = ["--module", f"VQA=hf:{models['vilt']}", "--module", f"LOC=hf:{models['owl']}", *taught[-2:], "--json", "-"]
    result = invoke("run", "-", "--image", home / "0.png", *given, input=PROGRAM)
    assert result.exit_code == 0, result.output
    steps = {step["module"]: step for step in json.loads(result.stdout)["steps"]}
    assert set(steps["VQA"]["output_dist"]) == {"red", "green", "blue", "yes", "no"}
    result = invoke(
        "run",
        "-",
        "--dsl",
        "viper",
        "--image",
        home / "0.png",
        *taught,
        "--module",
        f"MATCH=hf:{models['clip']}",
        "--json",
        "-",
        input=VIPER,
    )
    assert result.exit_code == 0 and json.loads(result.stdout)["answer"] in ("red", "blue"), result.output


def test_a_question_is_solved_with_them(home: Path, taught: list[str], models: dict[str, Path]) -> None:
    result = invoke(
        "solve", home / "0.png", "What color is the circle?", *taught, "--module", f"VQA=hf:{models['vilt']}?answers=red,green"
    )
    assert result.exit_code == 0 and ("answer: 'red'" in result.output or "answer: 'green'" in result.output), result.output


def test_what_cannot_be_had_is_said(home: Path, taught: list[str], models: dict[str, Path]) -> None:
    result = invoke("run", "-", "--image", home / "0.png", *taught, "--module", "VQA=hf:owner/model", input=PROGRAM)
    assert result.exit_code == 2 and "hf:owner/model@REVISION" in result.output
    result = invoke("run", "-", "--image", home / "0.png", *taught, "--module", f"VQA=hf:{models['clip']}", input=PROGRAM)
    assert result.exit_code == 2 and "a clip model serves no VQA" in result.output


def test_a_model_is_taught_by_another_and_exported(home: Path, taught: list[str], models: dict[str, Path]) -> None:
    import transformers

    rows = [
        {"id": str(n), "dsl": "visprog", "program": PROGRAM, "images": {"IMAGE": f"{n}.png"}, "question": "what color is it ?"}
        for n in range(3)
    ]
    (home / "programs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    student = [*taught, "--module", f"VQA=hf:{models['vilt']}?answers=red,green"]
    for words in (
        ["collect", home / "programs.jsonl", home / "records", "--layout", "programs", *student],
        [
            "label",
            home / "records",
            home / "labelled",
            "--teacher",
            f"VQA=hf:{models['vilt']}?answers=red,green",
            "--min-confidence",
            0,
            *student,
        ],
        ["train", home / "labelled", home / "taught", "--continual", "peft", "--steps", 2, "--batch", 2, "--lr", 0.01, *student],
        ["export", home / "taught", "--module", "VQA", "--out", home / "out"],
        ["export", f"VQA=hf:{home / 'out'}?answers=red,green", "--out", home / "again"],
    ):
        result = invoke("sdvp", *words)
        assert result.exit_code == 0, result.output
    transformers.ViltForQuestionAnswering.from_pretrained(home / "out")
    card = (home / "out" / "README.md").read_text()
    assert 'library_name: "transformers"' in card and f"VQA {models['vilt']}" in card and "PeftLoRA" in card
    result = invoke("run", "-", "--image", home / "0.png", *taught, "--module", home / "out", input=PROGRAM)
    assert result.exit_code == 0, result.output
