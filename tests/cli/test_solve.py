from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

from tutelage.cli import main
from tutelage.cli._tables import format_value
from tutelage.programs.trace import RecordOrigin, StepRecord, Trace
from tutelage.programs.values import Box

from ..modules.pretrained.needed import needs_networks

runner = CliRunner()


def solve(*words: object) -> tuple[int, str, str]:
    result = runner.invoke(main.app, ["solve", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("dsl", ["visprog", "viper"])
def test_a_question_becomes_a_program_with_its_steps_and_answer(dsl: str, home: Path, taught: list[str]) -> None:
    code, out, err = solve(home / "0.png", "What color is the circle?", "--dsl", dsl, "--json", home / "t.json", *taught)
    assert code == 0, err
    trace = json.loads((home / "t.json").read_text())
    assert "FINAL_RESULT=RESULT(var=ANSWER0)" in out if dsl == "visprog" else "def execute_command(image):" in out
    assert f"answer: {trace['answer']!r}" in out and f"confidence {trace['confidence']:.2f}" in out
    assert {"LOC", "VQA"} <= {step["module"] for step in trace["steps"]}


def test_two_pictures_are_a_left_and_a_right_one(home: Path, taught: list[str]) -> None:
    code, out, err = solve(home / "0.png", home / "1.png", "The left image contains a circle.", *taught)
    assert code == 0 and "image=LEFT" in out and "answer: " in out, err


def test_a_picture_of_one_thing_is_asked_about_whole(home: Path, taught: list[str]) -> None:
    code, out, err = solve(home / "0.png", "What color is the shape?", "--single", *taught)
    assert code == 0 and "LOC" not in out, err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("{home}/0.png", "Tell me a joke"), 1, "the grammar does not read 'Tell me a joke'"),
        (("{home}/absent.png", "What color is the circle?"), 2, "absent.png: no such image"),
        (("a.png", "b.png", "c.png", "What color is the circle?"), 2, "3 images"),
    ],
)
def test_what_cannot_be_solved_is_told_with_a_remedy(words: tuple[str, ...], code: int, told: str, home: Path) -> None:
    found, _, err = solve(*(word.format(home=home) for word in words))
    assert found == code and told in err and "remedy:" in err


def record(output: object, dist: dict[str, float] | None) -> StepRecord:
    return StepRecord(RecordOrigin("x"), 0, 0, "M", "1", {}, output, dist)


def _trace(steps: list[StepRecord]) -> Trace:
    trace = Trace("x")
    trace.steps.extend(steps)
    return trace


def test_confidence_is_the_product_of_what_the_modules_say() -> None:
    steps = [record("red", {"red": 0.5, "blue": 0.5}), record(False, {"yes": 0.2, "no": 0.8}), record(3, None)]
    steps.append(record([Box(0, 0, 1, 1, 0.9)], {"found": 0.9}))
    assert [step.probability for step in steps] == [0.5, 0.8, None, 0.9]
    assert _trace(steps).confidence == pytest.approx(0.5 * 0.8 * 0.9)
    assert _trace([record(3, None)]).confidence is None


def test_values_are_shown_in_few_words() -> None:
    boxes = [Box(0, 0, 1, 1, 0.5)] * 3
    assert format_value(boxes) == "[(0, 0, 1, 1) 0.50, (0, 0, 1, 1) 0.50, … 3 in all]"
    assert (format_value("red"), format_value(0.123456), format_value(True), len(format_value("x" * 500))) == (
        "'red'",
        "0.1235",
        "True",
        60,
    )


def photo(folder: Path, width: int = 200, height: int = 150) -> Path:
    path = folder / "photo.jpg"
    PIL.Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)
    return path


def test_a_photograph_without_its_networks_says_which_set_answers_and_what_to_fetch(
    home: Path, taught: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTELAGE_HOME", str(home))
    code, out, err = solve(photo(home), "What color is the circle?", *taught)
    assert code == 0 and "modules: toy, made for synthetic scenes" in out and "tutelage assets fetch nanodet" in out, err
    code, _, err = solve(photo(home), "How many people are there?", "--modules", "pretrained")
    assert code == 2 and "asset nanodet: not on this machine" in err and "tutelage assets fetch nanodet" in err


def test_a_drawn_scene_is_answered_by_the_toy_modules_and_its_page_shows_the_steps(home: Path, taught: list[str]) -> None:
    page = home / "answer.html"
    code, out, err = solve(home / "0.png", "How many circles are there?", "--html", page, *taught)
    assert code == 0 and "modules: toy (a small, synthetic scene)" in out and f"HTML: {page}" in out, err
    text = page.read_text()
    assert "How many circles are there?" in text and "LOC" in text and "data:image/png;base64," in text


@needs_networks
def test_a_photograph_is_answered_by_the_packaged_set(home: Path) -> None:
    page = home / "answer.html"
    words = (photo(home), "How many people are there?", "--html", page, "--json", home / "t.json")
    code, out, err = solve(*words)
    assert code == 0 and "modules: pretrained (a photograph)" in out and "answer: 0" in out, err
    assert json.loads((home / "t.json").read_text())["models"] == "modules: pretrained (a photograph)"
    assert page.exists()


@needs_networks
def test_a_refusal_is_told_with_its_remedy_and_leaves_a_page_too(home: Path) -> None:
    page = home / "answer.html"
    code, _, err = solve(photo(home), "Why is the sky blue?", "--html", page)
    assert code == 1 and "needs a VQA model" in err and "No answer" in page.read_text()
