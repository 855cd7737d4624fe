"""A module of the user's own, named on the command line as FILE.py:NAME."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tutelage.cli import main
from tutelage.errors import InputError

runner = CliRunner()
MINE = """
import tutelage
from tutelage import Box, Image
from helper_of_mine import COLOR


@tutelage.module(name="VQA")
def color(image: Image, question: str) -> str:
    return COLOR


def brightest(image: Image) -> str:
    return "bright"


class Verify:
    name, version, batch_size = "VERIFY", "1", 8

    def __new__(cls):
        return tutelage.module(name="VERIFY")(check)


def check(image: Image, object: str, property: str) -> bool:
    return True


def teacher(calls):
    return [{"purple": 0.9, "red": 0.1} for _ in calls]


not_a_module = 7
"""


@pytest.fixture(autouse=True)
def no_trace_is_left() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in {"mine", "helper_of_mine", "broken", "leaves"} & (set(sys.modules) - modules):
        del sys.modules[name]


@pytest.fixture
def mine(home: Path) -> Path:
    (home / "helper_of_mine.py").write_text('COLOR = "purple"\n')
    (home / "mine.py").write_text(MINE)
    return home / "mine.py"


def tutelage(*words: object, **options: object) -> Result:
    return runner.invoke(main.app, [str(word) for word in words], **options)


def test_solve_and_run_call_a_module_of_a_file_and_say_that_it_is_trusted(mine: Path, home: Path, taught: list[str]) -> None:
    own = (*taught, "--module", f"{mine}:color")
    result = tutelage("solve", home / "0.png", "What color is the shape?", "--single", *own)
    assert result.exit_code == 0 and "answer: 'purple'" in result.stdout, result.output
    assert f"trusted code: {mine} runs with your rights, outside the sandbox" in result.stderr
    program = "A=BRIGHTEST(image=IMAGE)\nFINAL_RESULT=RESULT(var=A)"
    result = tutelage("run", "-", "--image", home / "0.png", *taught, "--module", f"{mine}:brightest", input=program)
    assert result.exit_code == 0 and "answer: 'bright'" in result.stdout, result.output


def test_generate_checks_programs_against_a_module_of_a_file(mine: Path, home: Path) -> None:
    gold = home / "gold.jsonl"
    line = {"id": "0", "question": "q", "dsl": "visprog", "images": {"IMAGE": "0.png"}}
    line["program"] = "A=BRIGHTEST(image=IMAGE)\nFINAL_RESULT=RESULT(var=A)"
    gold.write_text(json.dumps(line) + "\n")
    words = ("generate", "q", "--generator", "gold", "--set", f"gold.programs={gold}")
    assert "unknown_module" in tutelage(*words).stdout
    assert "unknown_module" not in tutelage(*words, "--module", f"{mine}:brightest").stdout


def test_a_class_builds_its_module_and_a_relative_path_is_read(
    mine: Path, home: Path, taught: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    program = "A=VERIFY(image=IMAGE,object='x',property='red')\nFINAL_RESULT=RESULT(var=A)"
    result = tutelage("run", "-", "--image", "0.png", *taught, "--module", "mine.py:Verify", input=program)
    assert result.exit_code == 0 and "answer: True" in result.stdout, result.output


def test_sdvp_collects_labels_and_evaluates_with_code_of_a_file_in_workers_too(mine: Path, home: Path, taught: list[str]) -> None:
    program = "A=VQA(image=IMAGE,question='What color is the shape?')\nFINAL_RESULT=RESULT(var=A)"
    lines = [
        {"id": str(n), "dsl": "visprog", "program": program, "images": {"IMAGE": f"{n}.png"}, "answer": "purple", "question": "?"}
        for n in range(3)
    ]
    (home / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    layout = ("--layout", "programs")
    own = (*taught, "--module", f"{mine}:color")
    scores = tutelage("sdvp", "evaluate", home / "q.jsonl", *layout, *own, "--json", home / "s.json")
    assert scores.exit_code == 0 and json.loads((home / "s.json").read_text())["accuracy"] == 100, scores.output
    two = ("--workers", 2)
    done = tutelage("sdvp", "collect", home / "q.jsonl", home / "r", *layout, *taught, "--module", f"{mine}:brightest", *two)
    assert done.exit_code == 0 and "3 calls of VQA" in done.stdout, done.output
    done = tutelage("sdvp", "label", home / "r", home / "l", "--teacher", f"VQA={mine}:teacher", *taught, *two)
    assert done.exit_code == 0 and "VQA: 3 records" in done.stdout and "3 kept" in done.stdout, done.output


@pytest.mark.parametrize(
    ("file", "text", "name", "message"),
    [
        ("mine.py", MINE, "colour", "mine.py: no 'colour' in the file"),
        ("mine.py", MINE, "not_a_module", "no module: it has no name"),
        ("mine.py", MINE, "", "no name of a module in the file"),
        ("broken.py", "import tutelage\n\ndef f(:\n", "f", "broken.py:3: the file raises SyntaxError"),
        ("broken.py", "x = 1\ny = x / 0\n", "x", "broken.py:2: the file raises ZeroDivisionError"),
        ("leaves.py", "import sys\nsys.exit(3)\n", "x", "leaves.py:2: the file raises SystemExit: 3"),
        ("json.py", "x = 1\n", "x", "another Python module is named json"),
        ("my file.py", "x = 1\n", "x", "'my file' is no name of a Python module"),
        ("broken.py", "def f(image): ...\n", "f", "F(image): no type hint"),
        ("broken.py", "class F:\n    def __init__(self, a): ...\n", "F", "cannot be built: TypeError"),
    ],
)
def test_a_file_that_does_not_hold_is_told_with_its_line(
    file: str, text: str, name: str, message: str, mine: Path, home: Path
) -> None:
    (home / file).write_text(text)
    result = tutelage("run", "-", "--image", home / "0.png", "--module", f"{home / file}:{name}", input="A=RESULT(var=IMAGE)")
    assert result.exit_code == InputError.exit_code, result.output
    assert message in result.stderr and "remedy: " in result.stderr and "Traceback" not in result.stderr


def test_an_absent_file_is_told(home: Path) -> None:
    result = tutelage("solve", home / "0.png", "What?", "--module", f"{home / 'none.py'}:f")
    assert result.exit_code == 2 and "none.py: no such file" in result.stderr
