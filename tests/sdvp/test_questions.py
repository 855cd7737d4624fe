from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.datasets.synthetic.export import write_gqa, write_nlvr2
from tutelage.errors import InputError
from tutelage.programs.types import ParseFailure
from tutelage.programs.values import Box
from tutelage.sdvp.questions import ProgramParser, Question, score_answer, solve
from tutelage.sdvp.sources import QuestionSource, grammar_programs, questions_from

from . import small


def test_programs_of_both_languages_answer_a_question() -> None:
    viper = "def execute_command(image):\n    return 'green'"
    asked = small.questions(1, programs={"visprog": small.PROGRAM, "viper": viper})
    assert solve(asked, small.modules(), "visprog")[0].answer in small.COLORS
    (trace,) = solve(asked, small.modules(), "viper")
    assert (trace.status, trace.answer) == ("ok", "green")


def test_a_text_is_parsed_once_and_failures_are_kept_as_statuses() -> None:
    programs = ProgramParser("visprog", small.modules())
    first, second = small.questions(2)
    assert programs.parse(first) is programs.parse(second)
    unknown = small.questions(1, programs={"visprog": "A=NOBODY(image=IMAGE)\nFINAL_RESULT=RESULT(var=A)"})[0]
    assert solve([unknown], small.modules())[0].status == "unknown_module"


def test_a_question_without_a_program_is_a_failure_of_its_own() -> None:
    asked = small.questions(1, programs={})
    assert isinstance(ProgramParser("visprog", small.modules()).parse(asked[0]), ParseFailure)
    assert solve(asked, small.modules())[0].status == "parse"


@pytest.mark.parametrize(
    ("gold", "answer", "mark"),
    [
        ("red", "Red.", 1),
        ("yes", True, 1),
        ("2", 2, 1),
        ("red", "blue", 0),
        (Box(0, 0, 10, 10), [Box(0, 0, 10, 9)], 1),
        (Box(0, 0, 10, 10), [Box(0, 0, 4, 4), Box(0, 0, 10, 10)], 0),
        (Box(0, 0, 10, 10), [], 0),
        (Box(0, 0, 10, 10), "here", 0),
    ],
)
def test_answers_are_marked(gold: object, answer: object, mark: int) -> None:
    assert score_answer(Question("q", "t", {}, "?", {}, gold), answer) == mark


def test_questions_come_from_a_file_of_programs_and_a_folder_of_images(tmp_path: Path) -> None:
    programs, images = small.write_files(tmp_path, 4)
    found = questions_from(programs, images)
    assert [q.id for q in found] == ["q0", "q1", "q2", "q3"] and found[0].programs == {"visprog": small.PROGRAM}
    assert (found[1].images["IMAGE"].bytes == small.questions(2)[1].images["IMAGE"].bytes).all()
    assert found[0].answer == "red" and found[0].image_id == "q0.png"
    first = json.loads(programs.read_text().splitlines()[0])
    programs.write_text("".join(json.dumps(first | {"id": str(i)}) + "\n" for i in range(2)))
    a, b = questions_from(programs, images)
    assert a.images["IMAGE"].key == b.images["IMAGE"].key and a.images.album.opened == 1, "a picture is read once"


def test_a_missing_picture_is_named_with_its_line(tmp_path: Path) -> None:
    programs, images = small.write_files(tmp_path, 3)
    (images / "q2.png").unlink()
    with pytest.raises(InputError, match=r"programs.jsonl:3: .*q2.png: no such image"):
        questions_from(programs, images)


def test_the_folders_of_gqa_and_nlvr2_become_questions(tmp_path: Path) -> None:
    write_gqa(tmp_path / "gqa", seed=2, images=3)
    write_nlvr2(tmp_path / "nlvr2", seed=2, pairs=4)
    gqa = QuestionSource("gqa", tmp_path / "gqa", "val").questions()
    assert gqa and all(q.programs.keys() == {"visprog", "viper"} and q.answer and q.kind for q in gqa)
    assert len(QuestionSource("gqa", tmp_path / "gqa", "val", limit=2).questions()) == 2
    assert all(q.answer is None for q in QuestionSource("gqa", tmp_path / "gqa", "test").questions())
    pairs = QuestionSource("nlvr2", tmp_path / "nlvr2", "dev").questions()
    assert pairs and all(set(q.images) == {"LEFT", "RIGHT"} and q.answer in ("yes", "no") and q.programs for q in pairs)
    with pytest.raises(InputError, match="unknown layout 'gqua'"):
        QuestionSource("gqua", tmp_path).questions()


def test_what_the_grammar_does_not_read_has_no_program() -> None:
    assert grammar_programs("Why?") == {}
