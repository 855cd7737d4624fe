"""`tutelage lbt`: from problems to a choice, its picture and pairs, against a stub endpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage.cli import main

from ..programs.generators.stub_server import Asked, Reply, said, serving

runner = CliRunner()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_HOME", str(tmp_path / "home"))


def tutelage(*words: object) -> tuple[int, str, str]:
    result = runner.invoke(main.app, ["lbt", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.stdout, result.stderr


def lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def at(url: str) -> list[str]:
    return ["--set", f"endpoint.url={url}", "--set", "endpoint.model=stub", "--set", "endpoint.attempts=1"]


def teaching(asked: Asked, number: int) -> Reply:
    """Samples: three of four are wrong. Exams: right where the example before them is of the right rule."""
    turns = [turn["content"] for turn in asked.body["messages"]]
    if len(turns) == 2:
        return said("Add. The answer is 4." if number % 4 == 0 else "Multiply by 3. The answer is 6.")
    right = "Add" in turns[2]
    return said(f"The answer is {'6' if right and '3 + 3' in turns[-1] else '0'}.")


def test_from_problems_to_a_choice_and_pairs(tmp_path: Path) -> None:
    problems = lines(tmp_path / "problems.jsonl", [{"id": "p", "problem": "2 + 2", "truth": "4"}])
    exams = lines(tmp_path / "exams.jsonl", [{"id": "p", "problem": "3 + 3", "answer": "6"}])
    samples, scored, chosen, pairs = (tmp_path / f"{name}.jsonl" for name in ("samples", "scored", "chosen", "pairs"))
    with serving(teaching) as server:
        code, shown, err = tutelage("sample", problems, "--count", "4", "--out", samples, *at(server.url))
        assert code == 0 and "4 samples of 1 problems" in shown, err
        asked = len(server.asked)
        code, shown, err = tutelage("exam", samples, exams, "--repeats", "2", "--out", scored, *at(server.url))
        assert code == 0 and "0 unreadable, 0 failed" in shown, err
        assert len(server.asked) == asked + 4, "equal samples are examined once"
        assert all("truth" not in json.dumps(one.body) for one in server.asked)
    rows = [json.loads(line) for line in scored.read_text().splitlines()]
    assert sorted((row["answer"], row["right"], row["total"]) for row in rows) == [("4", 2, 2), *[("6", 0, 2)] * 3]
    picture, result = tmp_path / "ranking.svg", tmp_path / "r.json"
    code, shown, err = tutelage("select", scored, scored, "--out", chosen, "--picture", picture, "--json", result)
    assert code == 0 and "right: 100.0 %; by votes alone 0.0 %" in shown + err, err
    (row,) = (json.loads(line) for line in chosen.read_text().splitlines())
    assert (row["answer"], row["votes"], row["score"], row["fell_back"]) == ("4", "6", 1.0, False)
    assert picture.read_text().startswith("<svg") and json.loads(result.read_text())["right"] == 1
    code, shown, err = tutelage("pairs", scored, "--out", pairs)
    assert code == 0 and "1 pairs of 1 problems" in shown, err
    (pair,) = (json.loads(line) for line in pairs.read_text().splitlines())
    assert pair.keys() == {"prompt", "chosen", "rejected"} and "Add" in pair["chosen"] and "Multiply" in pair["rejected"]
    code, _, err = tutelage("pairs", scored, "--margin", "1", "--out", tmp_path / "none.jsonl")
    assert code == 1 and "no pair" in err and not (tmp_path / "none.jsonl").exists()


def test_bad_input_is_refused(tmp_path: Path) -> None:
    empty = lines(tmp_path / "empty.jsonl", [])
    code, _, err = tutelage("select", empty)
    assert code == 2 and "the file holds no line" in err
    unread = lines(tmp_path / "unread.jsonl", [{"id": 1, "problem": "p", "rationale": "r", "answer": None}])
    code, _, err = tutelage("select", unread)
    assert code == 2 and "no sample has an answer" in err
    known = lines(tmp_path / "known.jsonl", [{"id": 1, "problem": "p", "rationale": "r", "answer": "3"}])
    code, _, err = tutelage("pairs", known, "--out", tmp_path / "pairs.jsonl")
    assert code == 2 and "no problem has a known answer" in err
    code, _, err = tutelage("select", known, "--picture", tmp_path / "p.svg", "--problem", "2")
    assert code == 2 and "no problem '2'" in err
    exams = lines(tmp_path / "exams.jsonl", [{"id": 2, "problem": "q", "answer": "4"}])
    code, _, err = tutelage("exam", known, exams, "--out", tmp_path / "s.jsonl", *at("http://127.0.0.1:1/v1"))
    assert code == 2 and "no exam for the problem '1'" in err
