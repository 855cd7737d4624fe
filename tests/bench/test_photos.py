from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage.bench.photos import PhotoQuestion, bench, read_photos, read_questions
from tutelage.cli import main
from tutelage.errors import InputError

from ..modules.pretrained.needed import needs, needs_photos

TABLE = Path(__file__).parents[2] / "examples" / "photos" / "questions.jsonl"


def test_the_table_has_forty_questions_and_more_about_known_photographs() -> None:
    from tutelage import assets
    from tutelage.bench.photos import PHOTOS

    questions = read_questions(TABLE)
    assert len(questions) >= 40 and len({(it.photo, it.question) for it in questions}) == len(questions)
    assert {it.photo for it in questions} == {name for asset in PHOTOS for name in assets.asset(asset).files}


def test_an_answer_is_right_where_the_table_accepts_it() -> None:
    count, read = PhotoQuestion("a", "How many?", ("1",), "count"), PhotoQuestion("a", "What?", ("stop",), "read")
    assert count.accepts(1) and not count.accepts(11) and not count.accepts("one")
    assert read.accepts("FULL\nSTOP") and not read.accepts("")
    truth = PhotoQuestion("a", "Is it?", ("yes",), "exist")
    assert truth.accepts(True) and truth.accepts("Yes") and not truth.accepts(False)


@pytest.mark.parametrize("line", ["[]", '{"photo": "a.png"}', '{"photo": "a", "question": "b", "answers": [], "kind": "c"}', "{"])
def test_a_line_that_is_no_question_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(f'{{"photo": "a", "question": "b", "answers": ["c"], "kind": "d"}}\n{line}\n')
    with pytest.raises(InputError) as told:
        read_questions(tmp_path / "q.jsonl")
    assert str(told.value.where).endswith("q.jsonl:2")


@needs_photos
def test_an_unknown_photograph_is_named() -> None:
    with pytest.raises(InputError, match="no photograph 'absent.png'"):
        read_photos(["absent.png"])


@needs_photos
def test_right_wrong_and_refused_are_told_apart_and_timed() -> None:
    asked = [
        PhotoQuestion("astronaut.png", "How many people are there?", ("1",), "count"),
        PhotoQuestion("astronaut.png", "How many people are there?", ("2",), "count"),
        PhotoQuestion("chelsea.png", "Who is this?", ("chelsea",), "open"),
    ]
    result = bench(asked, rounds=1)
    assert [row["outcome"] for row in result["rows"]] == ["right", "wrong", "refused"]
    assert result["accuracy"] == pytest.approx(1 / 3) and result["accuracy_of_answered"] == 0.5
    assert result["kinds"] == {"count": {"right": 1, "wrong": 1, "refused": 0}, "open": {"right": 0, "wrong": 0, "refused": 1}}
    assert result["solve_ms"]["timed"] == 2 and result["solve_ms"]["median"] > 0  # of 512 x 512 alone


@needs_photos
def test_the_command_writes_every_answer(tmp_path: Path) -> None:
    table, out = tmp_path / "q.jsonl", tmp_path / "photos.json"
    table.write_text('{"photo": "chelsea.png", "question": "What animal is this?", "answers": ["cat"], "kind": "what"}\n')
    words = ["bench", "photos", "--questions", str(table), "--rounds", "1", "--json", str(out)]
    result = CliRunner().invoke(main.app, words)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(out.read_text())["rows"]
    assert row["answer"] == "cat" and row["outcome"] == "right" and "1 of 1 right" in result.output


@pytest.mark.slow
@needs("minilm")
@needs_photos
def test_the_committed_answers_are_what_the_modules_say() -> None:
    pytest.importorskip("transformers", reason="needs the extra hf")
    committed = json.loads((TABLE.parents[2] / "results" / "bench" / "photos.json").read_text())
    asked = [question for question in read_questions(TABLE) if question.kind != "read"]  # OCR is another package's
    told = {(row["photo"], row["question"]): row for row in committed["rows"]}
    for row in bench(asked, rounds=1)["rows"]:
        before = told[row["photo"], row["question"]]
        assert (row["answer"], row["outcome"]) == (before["answer"], before["outcome"]), row
