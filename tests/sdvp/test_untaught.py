"""A call that cannot teach says why: the language, the failed programs by kind, the labels that were refused."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tutelage import sdvp
from tutelage.errors import InputError
from tutelage.sdvp.questions import language_of
from tutelage.sdvp.stages import collect_to_folder, label_to_folder
from tutelage.sdvp.tally import ProgramTally, SdvpWarning
from tutelage.sdvp.teachers import from_callable
from tutelage.storage import read_json

from . import small

OPTIONS = sdvp.SdvpOptions(settings=replace(small.SETTINGS, steps=3, warmup=0))
MISSPELT = small.PROGRAM.replace("COLOR", "COLOUR")
ENDLESS = "def execute_command(image):\n    while True:\n        pass"


def test_the_language_is_that_of_the_programs() -> None:
    questions, modules = small.questions(45, programs={"viper": small.VIPER}), small.modules()
    options = replace(OPTIONS, settings=small.SETTINGS)
    result = sdvp.compile(questions, modules, {"COLOR": small.brightest}, options=options)
    assert (result.reports[0].verdict.calls, result.reports[0].kept) == (9, 36), "the probe is in the same language"
    assert sdvp.accuracy(questions, result.modules) >= 0.9 > sdvp.accuracy(questions, modules) > 0


def test_most_programs_decide_the_language_and_visprog_does_where_they_are_even() -> None:
    lines, python = small.questions(2), small.questions(2, programs={"viper": small.VIPER})
    assert language_of([*lines, *python]) == "visprog"
    assert language_of([*lines[:1], *python]) == "viper"
    assert language_of([]) == "visprog"


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        (
            {"visprog": MISSPELT},
            r"9 of 9 programs failed\n  9 unknown_module, such as q0: .*unknown module 'COLOUR'.*did you mean COLOR",
        ),
        ({"visprog": small.PROGRAM.replace("=COLOR(", "=COLOR((")}, r"9 of 9 programs failed\n  9 parse, such as q0: line 3"),
        ({"viper": "def execute_command(image):\n    return color(image"}, r"9 of 9 programs failed\n  9 parse"),
        ({"vipergpt": small.VIPER}, r"9 parse, such as q0: no visprog program remedy: the question's programs: vipergpt"),
        ({"visprog": "ANSWER0=MIDDLE(image=IMAGE)\nFINAL_RESULT=RESULT(var=ANSWER0)"}, "no program calls it; all 9 programs ran"),
    ],
    ids=["misspelt module", "syntax error", "syntax error in Python", "misspelt language", "another module"],
)
def test_programs_that_teach_nothing_are_counted_by_kind_and_refused(programs: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=f"(?s)COLOR learned nothing: .*{words}"):
        sdvp.compile(small.questions(9, programs=programs), small.modules(), {"COLOR": small.brightest}, options=OPTIONS)


def test_endless_loops_are_refused() -> None:
    questions = small.questions(2, programs={"viper": ENDLESS})
    with pytest.raises(InputError, match=r"2 of 2 programs failed\n  2 timeout, such as q0"):
        sdvp.compile(questions, small.modules(), {"COLOR": small.brightest}, options=OPTIONS)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "the teacher .* has no answer to any of the 6 collected calls"),
        (math.nan, "COLOR a label with a number that is not finite: float nan"),
        ({"red": math.nan, "blue": 0.5}, "COLOR a label with a number that is not finite"),
        (3, "COLOR a label that is no text: int 3"),
        ({"red": 0.5, "blue": 0.5}, r"the filters drop all 6 labels \(confidence of at least 0.8"),
    ],
    ids=["None", "NaN", "NaN probability", "another type", "unsure"],
)
def test_labels_that_teach_nothing_are_refused(answer: object, words: str, tmp_path: Path) -> None:
    teacher = from_callable(lambda calls: [answer] * len(calls), "guess")
    with pytest.raises(InputError, match=words):
        sdvp.compile(small.questions(6), small.modules(), {"COLOR": teacher}, options=OPTIONS)


@pytest.mark.parametrize("answer", [math.nan, 3])
def test_the_folder_commands_refuse_such_labels_too(answer: object, tmp_path: Path) -> None:
    modules, teacher = small.modules(), from_callable(lambda calls: [answer] * len(calls), "guess")
    records = collect_to_folder(tmp_path / "records", small.questions(3), modules)
    with pytest.raises(InputError, match="the teacher guess gives COLOR a label"):
        label_to_folder(tmp_path / "labelled", records, modules, {"COLOR": teacher})


def test_most_programs_failing_is_a_warning_with_examples() -> None:
    questions = [*small.questions(4), *small.questions(5, first=10, programs={"visprog": MISSPELT})]
    with pytest.warns(SdvpWarning, match=r"collecting for COLOR: 5 of 9 programs failed\n  5 unknown_module, such as q10"):
        result = sdvp.compile(questions, small.modules(), {"COLOR": small.brightest}, options=OPTIONS)
    assert result.runs["COLOR"].calls == result.reports[0].kept == 4


def test_one_module_of_two_that_learns_nothing_is_a_warning() -> None:
    class Tint(small.Color):
        name = "TINT"

    modules = small.modules(TINT=Tint.with_classes(*small.COLORS, pixels=8))
    teachers: dict[str, Callable] = {"COLOR": small.brightest, "TINT": small.brightest}
    with pytest.warns(SdvpWarning, match="TINT learned nothing: no program calls it; all 6 programs ran"):
        result = sdvp.compile(small.questions(6), modules, teachers, options=OPTIONS)
    assert result.modules["TINT"] is modules["TINT"] and result.reports[0].kept == 6


def test_no_teachers_are_refused() -> None:
    with pytest.raises(InputError, match="no teachers"):
        sdvp.compile(small.questions(1), small.modules(), {})


def test_a_folder_of_collected_calls_counts_the_failures(tmp_path: Path) -> None:
    questions = [*small.questions(2), *small.questions(3, first=10, programs={"visprog": MISSPELT})]
    with pytest.warns(SdvpWarning, match="3 of 5 programs failed"):
        collect_to_folder(tmp_path / "some", questions, small.modules(), shard_size=2)
    found = ProgramTally.from_json(read_json(tmp_path / "some" / "programs.json"))
    assert (found.programs, found.calls, dict(found.failures)) == (5, 2, {"unknown_module": 3})
    assert found.examples["unknown_module"].startswith("q10: ")
    with pytest.raises(InputError, match="(?s)no program calls a module that can be taught; 3 of 3 programs failed"):
        collect_to_folder(tmp_path / "none", questions[2:], small.modules())


def test_the_own_agent_script_leaves_with_an_error(tmp_path: Path) -> None:
    programs, images = small.write_files(tmp_path, 6)
    programs.write_text(programs.read_text().replace("COLOR", "COLOUR"))
    script = Path(__file__).parents[2] / "examples" / "own_agent.py"
    done = subprocess.run([sys.executable, script, programs, images, tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "5 of 5 programs failed" in done.stderr and not (tmp_path / "out").exists()
